"""Denoise: a scored run of labelled queries -> a verdict, with its reason, on every passage."""

from __future__ import annotations

import pyarrow as pa

from rocketray.artifacts import Made, Version
from rocketray.schema import VERDICTS, Verdict, count, positives_of, with_verdicts


class Denoise:
    """RocketQA step 3 (section 3.3 of the paper): keep only confident negatives.

    Nothing is dropped here: every retrieved passage keeps its row, its ce_score and a verdict;
    `examples` takes the hard negatives.
    """

    code = 1
    light = True

    def __init__(
        self, *, scored: str, positives: str, negative_below: float, positive_above: float
    ) -> None:
        self.scored = Version.open(scored)
        self.positives = positives_of(Version.open(positives).read())
        self.negative_below = negative_below
        self.positive_above = positive_above

    def __call__(self, item: int) -> Made:
        scored = self.scored.table(item)
        rows = zip(
            scored["query"].to_pylist(), scored["passages"].to_pylist(),
            scored["ce_scores"].to_pylist(), strict=True,
        )  # fmt: skip
        verdicts = [self.judge_all(*row) for row in rows]
        return Made({"table": with_verdicts(scored, verdicts)}, len(scored), count(verdicts))

    def judge_all(self, query: int, passages: list[int], ce_scores: list[float]) -> list[Verdict]:
        known = set(self.positives.get(query, []))
        return [
            self.judge(ce, passage in known)
            for passage, ce in zip(passages, ce_scores, strict=True)
        ]

    def judge(self, ce_score: float, labelled: bool) -> Verdict:
        """Is this retrieved passage a safe negative? Equal to a threshold is not safe."""
        if labelled:
            return Verdict.LABELLED_POSITIVE
        if ce_score < self.negative_below:
            return Verdict.HARD_NEGATIVE
        if ce_score > self.positive_above:
            return Verdict.LIKELY_FALSE_NEGATIVE
        return Verdict.UNCERTAIN


class TrustAll:
    """No denoising (the paper's ablation): every retrieved passage without a label is a negative.

    Reads a run, asks no cross-encoder; ce_scores are NaN.
    """

    code = 1
    light = True

    def __init__(self, *, run: str, positives: str, depth: int) -> None:
        self.run = Version.open(run)
        self.positives = positives_of(Version.open(positives).read())
        self.depth = depth

    def __call__(self, item: int) -> Made:
        run = self.run.table(item)
        columns = {name: [row[: self.depth] for row in run[name].to_pylist()] for name in
                   ("passages", "scores")}  # fmt: skip
        queries = run["query"].to_pylist()
        verdicts = [
            [self._judge(query, passage) for passage in passages]
            for query, passages in zip(queries, columns["passages"], strict=True)
        ]
        columns |= {
            "query": queries,
            "ce_scores": [[float("nan")] * len(row) for row in verdicts],
            "verdicts": verdicts,
        }
        return Made({"table": pa.table(columns, schema=VERDICTS)}, len(run), count(verdicts))

    def _judge(self, query: int, passage: int) -> Verdict:
        labelled = passage in self.positives.get(query, frozenset())
        return Verdict.LABELLED_POSITIVE if labelled else Verdict.HARD_NEGATIVE
