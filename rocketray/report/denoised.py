"""What denoising did, in one pass over its blocks: ce_scores, removals by rank, the clearest ones.

Memory is one block and a few counters, whatever the number of questions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rocketray.artifacts import Version
from rocketray.schema import VERDICTS, Verdict, positives_of, require

EDGES = np.linspace(0.0, 1.0, 51)
"""Bins of the ce_score histogram; every bin but the last is open above, as in numpy."""

REMOVED = (Verdict.LIKELY_FALSE_NEGATIVE, Verdict.UNCERTAIN, Verdict.NEAR_POSITIVE)
"""Verdicts that take a passage out of the negatives, clearest first."""

SHOWN = 20
CUT = 600


@dataclass(frozen=True, order=True)
class Removed:
    """One passage that is no negative any more. In order: clearest first, ties by row number."""

    order: int
    minus_ce: float
    query: int
    passage: int
    rank: int
    score: float

    @property
    def verdict(self) -> Verdict:
        return REMOVED[self.order]

    @property
    def ce_score(self) -> float:
        return -self.minus_ce


@dataclass(frozen=True)
class Passage:
    """A passage as people read it."""

    title: str
    text: str


@dataclass(frozen=True)
class Story:
    """A removed negative with the texts a person needs to judge the removal."""

    removed: Removed
    question: str
    passage: Passage
    labelled: Passage | None
    labels: int
    """How many labelled passages the question has; `labelled` is the first."""


@dataclass
class Denoised:
    """Counters over all labelled questions. Arrays by rank start at rank 1."""

    labelled: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) - 1, np.int64))
    unlabelled: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) - 1, np.int64))
    candidates: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Retrieved passages without a label, by rank."""
    removed: dict[Verdict, np.ndarray] = field(
        default_factory=lambda: {verdict: np.zeros(0, np.int64) for verdict in REMOVED}
    )
    clearest: list[Removed] = field(default_factory=list)

    @property
    def scored(self) -> int:
        return int(self.labelled.sum() + self.unlabelled.sum())

    @property
    def removals(self) -> int:
        return int(sum(counts.sum() for counts in self.removed.values()))

    @property
    def by_rank(self) -> dict[str, np.ndarray]:
        """Removed for each reason, of the passages without a label, by rank; 0 where none is."""
        sizes = np.maximum(self.candidates, 1)
        return {verdict.value: counts / sizes for verdict, counts in self.removed.items()}

    def add(self, table: pa.Table) -> None:
        """Count one block of VERDICTS."""
        require(table, VERDICTS.names, "the report")
        ranks = _ranks(table["verdicts"])
        ce_scores = _flat(table["ce_scores"]).to_numpy()
        verdicts = _flat(table["verdicts"])
        labelled = _is(verdicts, Verdict.LABELLED_POSITIVE)
        self.labelled += _histogram(ce_scores[labelled])
        self.unlabelled += _histogram(ce_scores[~labelled])
        depth = max(len(self.candidates), int(ranks.max(initial=0)))
        self.candidates = _longer(self.candidates, depth) + _by_rank(ranks[~labelled], depth)
        found = list(self.clearest)
        for verdict in REMOVED:
            mine = _removed_as(verdicts, verdict)
            self.removed[verdict] = _longer(self.removed[verdict], depth) + _by_rank(
                ranks[mine], depth
            )
            found += _clearest(table, verdict, np.flatnonzero(mine), ranks, ce_scores)
        self.clearest = sorted(found)[:SHOWN]


def read(version: Version) -> Denoised:
    """Go through a denoise version block by block."""
    denoised = Denoised()
    for block in version.blocks:
        denoised.add(version.table(block.number))
    return denoised


def stories(
    clearest: list[Removed], queries: Version, passages: Version, qrels: Version | None
) -> list[Story]:
    """Fetch the texts of some removed negatives, reading only the blocks that hold them."""
    labels = positives(qrels, {removed.query for removed in clearest}) if qrels else {}
    wanted = {removed.passage for removed in clearest} | {rows[0] for rows in labels.values()}
    questions = fetch(queries, {removed.query for removed in clearest})
    texts = readable(passages, wanted)
    return [
        Story(
            removed,
            cut(questions[removed.query]["text"]),
            texts[removed.passage],
            texts[labels[removed.query][0]] if removed.query in labels else None,
            len(labels.get(removed.query, [])),
        )
        for removed in clearest
    ]


def readable(passages: Version, rows: set[int]) -> dict[int, Passage]:
    """Some passages by row number, long ones cut."""
    found = fetch(passages, rows)
    return {row: Passage(cut(p["title"]), cut(p["text"])) for row, p in found.items()}


def cut(text: str, limit: int = CUT) -> str:
    """At most `limit` characters, and an ellipsis where something is left out."""
    return text if len(text) <= limit else text[:limit].rstrip() + " …"


# ------------------------------------------------------------------------------- one block's rows


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks().flatten()


def _ranks(column: pa.ChunkedArray) -> np.ndarray:
    """The rank of each entry of a column of lists, flattened: 1, 2, ..., 1, 2, ..."""
    lengths = pc.list_value_length(column).to_numpy()
    starts = np.cumsum(lengths) - lengths
    ranks: np.ndarray = np.arange(lengths.sum()) - np.repeat(starts, lengths) + 1
    return ranks


def _is(verdicts: pa.Array, verdict: Verdict) -> np.ndarray:
    mask: np.ndarray = pc.equal(verdicts, verdict.value).to_numpy(zero_copy_only=False)
    return mask


def _removed_as(verdicts: pa.Array, verdict: Verdict) -> np.ndarray:
    mine = _is(verdicts, verdict)
    if verdict is not Verdict.LIKELY_FALSE_NEGATIVE:
        return mine
    # `denoise.promote` makes positives of them: removed they are as well.
    both: np.ndarray = mine | _is(verdicts, Verdict.PSEUDO_POSITIVE)
    return both


def _histogram(ce_scores: np.ndarray) -> np.ndarray:
    # NaN: nobody scored it (denoise.off).
    return np.histogram(ce_scores[np.isfinite(ce_scores)], EDGES)[0]


def _by_rank(ranks: np.ndarray, depth: int) -> np.ndarray:
    return np.bincount(ranks - 1, minlength=depth)


def _longer(counts: np.ndarray, depth: int) -> np.ndarray:
    return np.pad(counts, (0, depth - len(counts)))


def _clearest(
    table: pa.Table, verdict: Verdict, places: np.ndarray, ranks: np.ndarray, ce_scores: np.ndarray
) -> list[Removed]:
    """The highest ce_scores among some entries of a block; `places` index its flattened lists."""
    queries = np.repeat(
        table["query"].to_numpy(), pc.list_value_length(table["passages"]).to_numpy()
    )
    passages, scores = _flat(table["passages"]).to_numpy(), _flat(table["scores"]).to_numpy()
    order = np.lexsort((passages[places], queries[places], -ce_scores[places]))
    return [
        Removed(
            REMOVED.index(verdict), -float(ce_scores[place]), int(queries[place]),
            int(passages[place]), int(ranks[place]), float(scores[place]),
        )
        for place in places[order[:SHOWN]]
    ]  # fmt: skip


# -------------------------------------------------------------------------------------- the texts


def positives(qrels: Version, queries: set[int]) -> dict[int, list[int]]:
    """Labelled passages of a few queries, whatever the size of the judgements."""
    wanted = pa.array(sorted(queries), pa.int64())
    found: dict[int, list[int]] = {}
    for block in qrels.blocks:
        table = qrels.table(block.number)
        for query, rows in positives_of(table.filter(pc.is_in(table["query"], wanted))).items():
            found.setdefault(query, []).extend(rows)
    return found


def fetch(version: Version, rows: set[int]) -> dict[int, dict[str, str]]:
    """Some rows of a table by row number."""
    found: dict[int, dict[str, str]] = {}
    for block in version.blocks:
        mine = sorted(row for row in rows if 0 <= row - block.first_row < block.rows)
        if mine:
            places = pa.array([row - block.first_row for row in mine])
            taken = version.table(block.number).take(places).to_pylist()
            found.update(zip(mine, taken, strict=True))
    return found
