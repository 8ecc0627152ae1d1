"""Examples: labels, runs and verdicts -> training examples with exactly n negatives each.

Draws are seeded by (seed, query), so an example does not depend on its block or its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from rocketray.artifacts import Made, Version
from rocketray.schema import EXAMPLES, Verdict, positives_of

NAN = float("nan")
Row = dict[str, Any]


class FirstExamples:
    """Step 1: every labelled positive, `copies` times, each copy with other negatives.

    Negatives are random passages of the corpus, or the best of a lexical run that are no
    positives (then random ones where that list is short), or none.
    """

    code = 1
    light = True

    def __init__(
        self, *, queries: str, qrels: str, passages: str,
        negatives: Literal["random", "run", "none"], copies: int, seed: int, run: str | None = None,
    ) -> None:  # fmt: skip
        self.queries = Version.open(queries)
        self.positives = positives_of(Version.open(qrels).read())
        self.corpus = Version.open(passages).rows
        self.count = 0 if negatives == "none" else 1
        self.copies = copies
        self.seed = seed
        self.run = Version.open(run) if run else None

    def __call__(self, item: int) -> Made:
        queries = self.queries.table(item)["query"].to_pylist()
        lists = self.run.table(item)["passages"].to_pylist() if self.run else [[]] * len(queries)
        rows: list[Row] = []
        for query, candidates in zip(queries, lists, strict=True):
            positives = self.positives[query]
            need = self.count * self.copies * len(positives)
            found = [p for p in candidates if p not in set(positives)][:need]
            found += draw(self.corpus, {*positives, *found}, need - len(found), self.seed, query)
            rows += spread(query, positives, self.copies, self.count, found)
        return made(rows)


class CrossExamples:
    """Step 2: positives, and negatives drawn at random from dual_0's top passages.

    The cross-encoder must see what the retriever confuses, or its scores mean nothing there
    (section 3.3 of the paper). No passage labelled positive is drawn.
    """

    code = 1
    light = True

    def __init__(
        self, *, run: str, positives: str, passages: str, depth: int, negatives: int,
        first_only: bool, seed: int,
    ) -> None:  # fmt: skip
        self.run = Version.open(run)
        self.positives = positives_of(Version.open(positives).read())
        self.corpus = Version.open(passages).rows
        self.depth = depth
        self.negatives = negatives
        self.first_only = first_only
        self.seed = seed

    def __call__(self, item: int) -> Made:
        run = self.run.table(item)
        rows: list[Row] = []
        filled = 0
        for query, candidates in zip(
            run["query"].to_pylist(), run["passages"].to_pylist(), strict=True
        ):
            positives = self.positives.get(query, [])
            known = set(positives)
            pool = [p for p in candidates[: self.depth] if p not in known]
            for positive in positives[:1] if self.first_only else positives:
                generator = np.random.default_rng([self.seed, query, positive])
                drawn = generator.permutation(len(pool))[: self.negatives]
                chosen = [pool[i] for i in drawn]
                missing = self.negatives - len(chosen)
                more = draw(self.corpus, {*known, *chosen}, missing, self.seed, query)
                chosen += more
                filled += len(more)
                if len(chosen) == self.negatives:
                    rows.append(example(query, positive, 0, chosen))
        return made(rows, {"filled": filled})


class HardExamples:
    """Steps 3 and 4: hard negatives by verdict, in the paper best-ranked first, never sampled.

    Labelled queries keep their human positives; an unlabelled one has its pseudo positive, and
    gives as many copies as it has hard negatives for. `fill` names what completes a labelled
    query's list: `drop` (fewer copies), `random` passages of the corpus, or `unscored_tail`, the
    run below the scored depth, as the released MS MARCO script does.

    Beyond the paper: promoted positives (`denoise.promote`), a list that begins at `from_rank`
    (NV-Retriever's "shifted top-k"), and drawing from it (`sample`, see `in_drawn_order`).
    """

    code = 3
    light = True

    def __init__(
        self, *, labelled: str, positives: str, passages: str, negatives: int, copies: int,
        fill: Literal["drop", "random", "unscored_tail"], first_only: bool, seed: int,
        unlabelled: str | None = None, run: str | None = None,
        sample: Literal["top", "random", "simans"] = "top", from_rank: int = 1,
        simans: Sequence[float] = (0.0, 0.0),
    ) -> None:  # fmt: skip
        self.verdicts = {"labelled": Version.open(labelled)}
        if unlabelled:
            self.verdicts["pseudo"] = Version.open(unlabelled)
        self.positives = positives_of(Version.open(positives).read())
        self.corpus = Version.open(passages).rows
        self.negatives = negatives
        self.copies = copies
        self.fill = fill
        self.first_only = first_only
        self.seed = seed
        self.run = Version.open(run) if run else None
        self.sample = sample
        self.from_rank = from_rank
        self.a, self.b = simans

    def __call__(self, item: tuple[str, int]) -> Made:
        source, block = item
        table = self.verdicts[source].table(block)
        tails = self._tails(block, source)
        names = ("query", "passages", "scores", "ce_scores", "verdicts")
        columns = [table[name].to_pylist() for name in names]
        rows: list[Row] = []
        facts = {"filled": 0, "without": 0, "from_labels": 0, "from_pseudo_labels": 0}
        for query, passages, scores, ce_scores, verdicts, tail in zip(*columns, tails, strict=True):
            ce = dict(zip(passages, ce_scores, strict=True))
            hard = self._hard(query, passages, scores, verdicts)
            pseudo = [
                p for p, v in zip(passages, verdicts, strict=True) if v == Verdict.PSEUDO_POSITIVE
            ]
            if source == "pseudo":
                positives = pseudo
                if not positives:
                    continue
            else:
                positives = self.positives.get(query, [])
                positives = (positives[:1] if self.first_only else positives) + pseudo
                need = self.negatives * self.copies * len(positives)
                missing = max(0, need - len(hard))
                more = self._filling(query, passages, tail, missing)
                facts["filled"] += len(more)
                hard = hard + more
            made_rows = spread(query, positives, self.copies, self.negatives, hard, source, ce)
            facts["without"] += not made_rows
            theirs = sum(row["positive"] in pseudo for row in made_rows)
            facts["from_pseudo_labels"] += theirs
            facts["from_labels"] += len(made_rows) - theirs
            rows += made_rows
        return made(rows, facts)

    def _hard(
        self, query: int, passages: list[int], scores: list[float], verdicts: list[str]
    ) -> list[int]:
        """A query's safe negatives in the order in which they are taken."""
        ranks = range(self.from_rank - 1, len(passages))
        hard = [rank for rank in ranks if verdicts[rank] == Verdict.HARD_NEGATIVE]
        if self.sample != "top":
            chances = np.zeros(len(hard))
            if self.sample == "simans" and hard:
                own = (Verdict.LABELLED_POSITIVE, Verdict.PSEUDO_POSITIVE)
                known = [s for s, v in zip(scores, verdicts, strict=True) if v in own]
                # A positive that is not in the list scores no higher than the last that is.
                positive = min(known, default=scores[-1])
                chances = simans(
                    np.array([scores[rank] for rank in hard]), positive, self.a, self.b
                )
            hard = [hard[i] for i in in_drawn_order(chances, [self.seed, query])]
        return [passages[rank] for rank in hard]

    def _tails(self, block: int, source: str) -> list[list[int]]:
        """What the run lists beyond the scored depth. Of a query that was left out of scoring
        nothing is beyond: the top of its run is where the unlabelled positives are."""
        depth = self.verdicts[source].table(block)["passages"].to_pylist()
        if self.run is None or source == "pseudo":
            return [[] for _ in depth]
        lists = self.run.table(block)["passages"].to_pylist()
        return [
            row[row.index(scored[-1]) + 1 :] if scored else []
            for row, scored in zip(lists, depth, strict=True)
        ]

    def _filling(self, query: int, passages: list[int], tail: list[int], missing: int) -> list[int]:
        known = {*self.positives.get(query, []), *passages}
        if self.fill == "random":
            return draw(self.corpus, known, missing, self.seed, query)
        if self.fill == "unscored_tail":
            pool = [p for p in tail if p not in known]
            order = np.random.default_rng([self.seed, query]).permutation(len(pool))
            return [pool[i] for i in order[:missing]]
        return []


def simans(scores: np.ndarray, positive: float, a: float, b: float) -> np.ndarray:
    """SimANS (arXiv 2210.11773): log of the chance of each negative, up to a constant.

        p_i  ~  exp(-a (s_i - s_positive - b)^2)

    Negatives much above the positive are likely unlabelled positives, those far below teach
    nothing; what lies near its score is ambiguous, and drawn most often.
    """
    chances: np.ndarray = -a * (scores - positive - b) ** 2
    return chances


def in_drawn_order(log_chances: np.ndarray, seed: Sequence[int]) -> list[int]:
    """All places, in the order in which one draws without replacement by these chances.

    Equal chances give a uniform permutation. The largest of log-chance plus a Gumbel variable is
    a draw by the chances, the next largest one from the rest, and so on (Kool et al., arXiv
    1903.06059): no chance is too small, as it would be in a sum of exponentials.
    """
    noise = np.random.default_rng(seed).gumbel(size=len(log_chances))
    order: list[int] = np.argsort(-(log_chances + noise), kind="stable").tolist()
    return order


def spread(
    query: int,
    positives: Iterable[int],
    copies: int,
    count: int,
    negatives: list[int],
    source: str = "labelled",
    ce: dict[int, float] | None = None,
) -> list[Row]:
    """Deal a list of negatives, in order, to the copies of each positive, `count` apiece.

    An example that would come short is left out: examples always hold exactly n negatives.
    """
    rows = []
    for number, (positive, copy) in enumerate((p, c) for p in positives for c in range(copies)):
        mine = negatives[number * count : (number + 1) * count]
        if len(mine) == count:
            rows.append(example(query, positive, copy, mine, source, ce))
    return rows


def example(
    query: int,
    positive: int,
    copy: int,
    negatives: list[int],
    source: str = "labelled",
    ce: dict[int, float] | None = None,
) -> Row:
    ce = ce or {}
    return {
        "query": query,
        "positive": positive,
        "copy": copy,
        "negatives": negatives,
        "source": source,
        "ce_positive": ce.get(positive, NAN),
        "ce_negatives": [ce.get(p, NAN) for p in negatives],
    }


def draw(corpus: int, known: set[int], count: int, seed: int, query: int) -> list[int]:
    """`count` different random passages outside `known`; fewer where the corpus is that small."""
    if count <= 0:
        return []
    generator = np.random.default_rng([seed, query])
    if corpus <= 4 * (len(known) + count):
        pool = [p for p in generator.permutation(corpus).tolist() if p not in known]
        return pool[:count]
    found: list[int] = []
    while len(found) < count:  # Known passages are few beside the corpus: try again.
        passage = int(generator.integers(corpus))
        if passage not in known and passage not in found:
            found.append(passage)
    return found


def made(rows: list[Row], facts: dict[str, int] | None = None) -> Made:
    columns = {name: [row[name] for row in rows] for name in EXAMPLES.names}
    return Made({"table": pa.table(columns, schema=EXAMPLES)}, len(rows), facts or {})
