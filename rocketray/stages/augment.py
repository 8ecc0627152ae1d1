"""Augment: a scored run of unlabelled queries -> pseudo labels, each with its verdict."""

from __future__ import annotations

import numpy as np

from rocketray.artifacts import Made, Version
from rocketray.schema import Verdict, count, with_verdicts


class Augment:
    """RocketQA step 4 (section 3.4 of the paper).

    The best cross-encoder score of a query, if above the upper threshold, makes a pseudo positive;
    scores under the lower one make hard negatives; all else is left alone.
    """

    code = 1

    def __init__(self, *, scored: str, negative_below: float, positive_above: float) -> None:
        self.scored = Version.open(scored)
        self.negative_below = negative_below
        self.positive_above = positive_above

    def __call__(self, item: int) -> Made:
        scored = self.scored.table(item)
        verdicts = [self.judge_all(row) for row in scored["ce_scores"].to_pylist()]
        return Made({"table": with_verdicts(scored, verdicts)}, len(scored), count(verdicts))

    def judge_all(self, ce_scores: list[float]) -> list[Verdict]:
        verdicts = [self._judge(ce) for ce in ce_scores]
        if ce_scores:
            best = int(np.argmax(ce_scores))  # Of equals the better ranked.
            if ce_scores[best] > self.positive_above:
                verdicts[best] = Verdict.PSEUDO_POSITIVE
        return verdicts

    def _judge(self, ce_score: float) -> Verdict:
        if ce_score < self.negative_below:
            return Verdict.HARD_NEGATIVE
        if ce_score > self.positive_above:
            return Verdict.LIKELY_FALSE_NEGATIVE
        return Verdict.UNCERTAIN
