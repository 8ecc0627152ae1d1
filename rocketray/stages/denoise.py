"""Denoise: a scored run of labelled queries -> a verdict, with its reason, on every passage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from rocketray.artifacts import Made, Version
from rocketray.schema import VERDICTS, Verdict, count, positives_of, refused_of, with_verdicts


@dataclass(frozen=True)
class Limit:
    """NV-Retriever's positive-aware rules (arXiv 2407.15831): how high a negative may score.

        TopK-PercPos      s < percpos * s_positive           (0.95 there)
        TopK-MarginPos    s < s_positive - marginpos         (0.05 there, with cosine)

    `s` is the number that `by` names, of the lowest-scoring positive that the list holds, so that a
    negative is below every one of them. A share of a number below zero would lie above it; there
    the distance is what counts, |s_positive| * (1 - percpos), which is the same above zero.

    A retriever's list ends where its scores do: a positive that is not in it scores no higher than
    anything that is, so nothing is below it. A ce_score that nobody computed is not known at all,
    so the rule is not asked.
    """

    percpos: float | None = None
    marginpos: float | None = None
    by: Literal["score", "ce_score"] = "score"

    def of(self, positives: Sequence[float]) -> float:
        """What a negative must stay under, from the numbers of the positives in its list."""
        if self.percpos is None and self.marginpos is None:
            return math.inf
        if not positives:
            return -math.inf if self.by == "score" else math.inf
        lowest = min(positives)
        return min(
            math.inf if self.percpos is None else lowest - (1 - self.percpos) * abs(lowest),
            math.inf if self.marginpos is None else lowest - self.marginpos,
        )


class Denoise:
    """RocketQA step 3 (section 3.3 of the paper): keep only confident negatives.

    Nothing is dropped here: every retrieved passage keeps its row, its ce_score and a verdict;
    `examples` takes the hard negatives.

    Beyond the paper: `filter`, a second condition on hard negatives (see `Limit`), and `promote`,
    by which a passage that would be removed as a likely false negative becomes a positive of its
    question (relabelling, as RLHN does with language models, arXiv 2505.16967); one that a person
    has judged irrelevant is removed all the same.
    """

    code = 3
    light = True

    def __init__(
        self, *, scored: str, positives: str, negative_below: float, positive_above: float,
        filter: Mapping[str, Any] | None = None, promote: bool = False,
    ) -> None:  # fmt: skip
        self.scored = Version.open(scored)
        qrels = Version.open(positives).read()
        self.positives, self.refused = positives_of(qrels), refused_of(qrels)
        self.negative_below = negative_below
        self.positive_above = positive_above
        self.limit = Limit(**filter or {})
        self.promote = promote

    def __call__(self, item: int) -> Made:
        scored = self.scored.table(item)
        names = ("query", "passages", "scores", "ce_scores")
        rows = zip(*(scored[name].to_pylist() for name in names), strict=True)
        verdicts = [self.judge_all(*row) for row in rows]
        return Made({"table": with_verdicts(scored, verdicts)}, len(scored), count(verdicts))

    def judge_all(
        self, query: int, passages: list[int], scores: list[float], ce_scores: list[float]
    ) -> list[Verdict]:
        known = set(self.positives.get(query, []))
        labelled = [passage in known for passage in passages]
        numbers = scores if self.limit.by == "score" else ce_scores
        limit = self.limit.of([s for s, own in zip(numbers, labelled, strict=True) if own])
        verdicts = [
            self.judge(ce, own, number < limit)
            for ce, own, number in zip(ce_scores, labelled, numbers, strict=True)
        ]
        if not self.promote:
            return verdicts
        refused = set(self.refused.get(query, []))
        return [
            Verdict.PSEUDO_POSITIVE
            if verdict == Verdict.LIKELY_FALSE_NEGATIVE and passage not in refused
            else verdict
            for passage, verdict in zip(passages, verdicts, strict=True)
        ]

    def judge(self, ce_score: float, labelled: bool, below: bool = True) -> Verdict:
        """Is this retrieved passage a safe negative? Equal to a threshold is not safe.

        Args:
            below: it keeps to the limit that the positive's score sets.
        """
        if labelled:
            return Verdict.LABELLED_POSITIVE
        if ce_score < self.negative_below:
            return Verdict.HARD_NEGATIVE if below else Verdict.NEAR_POSITIVE
        if ce_score > self.positive_above:
            return Verdict.LIKELY_FALSE_NEGATIVE
        return Verdict.UNCERTAIN


class TrustAll:
    """No denoising (the paper's ablation): every retrieved passage without a label is a negative.

    Reads a run, asks no cross-encoder; ce_scores are NaN. With a `filter` by the retriever's own
    score this is NV-Retriever's mining, which asks none either.
    """

    code = 2
    light = True

    def __init__(
        self, *, run: str, positives: str, depth: int, filter: Mapping[str, Any] | None = None
    ) -> None:
        self.run = Version.open(run)
        self.positives = positives_of(Version.open(positives).read())
        self.depth = depth
        self.limit = Limit(**filter or {})

    def __call__(self, item: int) -> Made:
        run = self.run.table(item)
        columns = {name: [row[: self.depth] for row in run[name].to_pylist()] for name in
                   ("passages", "scores")}  # fmt: skip
        queries = run["query"].to_pylist()
        rows = zip(queries, columns["passages"], columns["scores"], strict=True)
        verdicts = [self._judge_all(*row) for row in rows]
        columns |= {
            "query": queries,
            "ce_scores": [[float("nan")] * len(row) for row in verdicts],
            "verdicts": verdicts,
        }
        return Made({"table": pa.table(columns, schema=VERDICTS)}, len(run), count(verdicts))

    def _judge_all(self, query: int, passages: list[int], scores: list[float]) -> list[Verdict]:
        known = set(self.positives.get(query, []))
        limit = self.limit.of([s for p, s in zip(passages, scores, strict=True) if p in known])
        return [
            Verdict.LABELLED_POSITIVE if passage in known
            else Verdict.HARD_NEGATIVE if score < limit else Verdict.NEAR_POSITIVE
            for passage, score in zip(passages, scores, strict=True)
        ]  # fmt: skip
