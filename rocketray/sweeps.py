"""From stored ce_scores to shares and curves: counters that take a block of lists at a time.

All thresholds are answered at once. The `cell` of a ce_score is how many thresholds of the grid it
has reached (is at, or over): a score is under threshold g exactly where its cell is at most g, so
sums over cells do the rest. What counters return are plain values, ready for JSON.
"""

# Shapes: N passages of a block's lists, laid flat; L lists; R bands of ranks; G thresholds;
# V verdicts; S steps of a histogram.

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rocketray.artifacts import Version
from rocketray.calibration import keys
from rocketray.schema import DENOISED, Verdict

FIRST_RANKS = np.array([1, 2, 3, 4, 6, 11, 21, 51, 101, 201, 501])
"""Where each band of ranks begins; the last one has no end."""
STEPS = 20
"""Of a ce_score histogram, equally wide."""
SOURCES = ("dual_0", "bm25", "both")
"""Who found a candidate, as `stages.pool` says it."""
VERDICTS = tuple(verdict.value for verdict in Verdict)
FALSE_NEGATIVE = VERDICTS.index(Verdict.LIKELY_FALSE_NEGATIVE)

Row = dict[str, Any]


class Flat(NamedTuple):
    """A block's lists, one after another."""

    lists: int
    list_N: np.ndarray
    """The place of the passage's list in the block."""
    query_N: np.ndarray
    passage_N: np.ndarray
    rank_N: np.ndarray
    score_N: np.ndarray
    ce_N: np.ndarray
    """float64, as stages compare it; NaN where nobody scored."""
    verdict_N: np.ndarray
    """Place in VERDICTS; -1 in a table without verdicts."""

    @property
    def key_N(self) -> np.ndarray:
        return keys(self.query_N, self.passage_N)

    @property
    def band_N(self) -> np.ndarray:
        band_N: np.ndarray = np.searchsorted(FIRST_RANKS, self.rank_N, side="right") - 1
        return band_N

    def having(self, verdict: str) -> np.ndarray:
        mine_N: np.ndarray = self.verdict_N == VERDICTS.index(verdict)
        return mine_N

    @property
    def denoised_N(self) -> np.ndarray:
        """Place in DENOISED: `denoise.promote` makes a positive of what it takes for a false
        negative, which is removed as well."""
        promoted_N = self.having(Verdict.PSEUDO_POSITIVE)
        return np.where(promoted_N, FALSE_NEGATIVE, self.verdict_N)


def blocks(version: Version) -> Iterator[Flat]:
    """A scored run, with or without verdicts, block by block."""
    for block in version.blocks:
        yield flat(version.table(block.number))


def flat(table: pa.Table) -> Flat:
    """SCORED or VERDICTS, laid flat."""
    lengths = pc.list_value_length(table["passages"]).to_numpy()
    list_N = np.repeat(np.arange(len(table)), lengths)
    ranks_N = np.arange(len(list_N)) - (np.cumsum(lengths) - lengths)[list_N] + 1
    passages, scores, ce = (_flat(table, name) for name in ("passages", "scores", "ce_scores"))
    verdicts = np.full(len(list_N), -1)
    if "verdicts" in table.column_names:
        column = table["verdicts"].combine_chunks().flatten()
        verdicts = pc.index_in(column, value_set=pa.array(VERDICTS)).to_numpy()
    queries = table["query"].to_numpy()[list_N]
    return Flat(len(table), list_N, queries, passages, ranks_N, scores, ce.astype(float), verdicts)


def _flat(table: pa.Table, column: str) -> np.ndarray:
    values: np.ndarray = table[column].combine_chunks().flatten().to_numpy()
    return values


def names_of_bands(bands: np.ndarray) -> list[str]:
    """1, 2, 3, 4-5, ... 501-"""
    last = [*(FIRST_RANKS[1:] - 1).tolist(), None]
    pairs = [(int(FIRST_RANKS[band]), last[band]) for band in bands]
    return [str(a) if a == b else f"{a}-{b or ''}" for a, b in pairs]


def ratio(part: float, whole: float) -> float | None:
    """A share, rounded for JSON; None of nothing, and of what is no number."""
    value = float(part) / float(whole) if whole else float("nan")
    return round(value, 6) if np.isfinite(value) else None


# ---------------------------------------------------------------------------------- what was done


class ByRank:
    """Verdicts, ce_scores and false negatives among the unlabelled passages, by band of ranks.

    `before`: all that carry no label; `after`: those that denoising keeps as negatives.
    """

    column = "ranks"
    """What a row is called by."""

    def __init__(self) -> None:
        bands = len(FIRST_RANKS)
        self.verdicts_VR = np.zeros((len(DENOISED), bands), np.int64)
        self.steps_VRS = np.zeros((len(DENOISED), bands, STEPS), np.int64)
        names = [f"{what}_{when}" for what in ("false", "ce", "known") for when in SIDES]
        self.sums = {name: np.zeros(bands) for name in names}

    def add(
        self,
        found: Flat,
        likely_N: np.ndarray,
        hidden_N: np.ndarray,
        band_N: np.ndarray | None = None,
    ) -> None:
        """`likely_N`: probability of relevance; `hidden_N`: known to be relevant; `band_N`: where
        each passage counts, None for its rank."""
        band_N = found.band_N if band_N is None else band_N
        scored_N = np.isfinite(found.ce_N)
        verdict_N = found.denoised_N
        np.add.at(self.verdicts_VR, (verdict_N, band_N), 1)
        step_N = np.minimum((found.ce_N[scored_N] * STEPS).astype(int), STEPS - 1)
        np.add.at(self.steps_VRS, (verdict_N[scored_N], band_N[scored_N], step_N), 1)
        sides = ~found.having(Verdict.LABELLED_POSITIVE), found.having(Verdict.HARD_NEGATIVE)
        for when, mine_N in zip(SIDES, sides, strict=True):
            for what, values_N in (("false", likely_N), ("ce", found.ce_N), ("known", hidden_N)):
                np.add.at(self.sums[f"{what}_{when}"], band_N[mine_N], values_N[mine_N])

    def rows(self) -> list[Row]:
        """One row a band, and one for all."""
        used = self._used()
        rows = [
            self._row(name, np.array([band]))
            for name, band in zip(self.names(used), used, strict=True)
        ]
        return [*rows, self._row("all", used)]

    def names(self, bands: np.ndarray) -> list[str]:
        return names_of_bands(bands)

    def _used(self) -> np.ndarray:
        return np.flatnonzero(self.verdicts_VR.sum(axis=0))

    def _row(self, name: str, bands: np.ndarray) -> Row:
        counts_V = self.verdicts_VR[:, bands].sum(axis=1).tolist()
        row: Row = {self.column: name, "passages": sum(counts_V)}
        row |= dict(zip(DENOISED, counts_V, strict=True))
        sums = {name: values[bands].sum() for name, values in self.sums.items()}
        unlabelled = {"before": sum(counts_V[1:]), "after": row[Verdict.HARD_NEGATIVE]}
        for when, size in unlabelled.items():
            row[f"false_{when}"] = ratio(sums[f"false_{when}"], size)
            row[f"ce_{when}"] = ratio(sums[f"ce_{when}"], size)
            row[f"known_false_{when}"] = int(sums[f"known_{when}"])
        return row

    def histograms(self) -> Row:
        """ce_scores by verdict, and by band of ranks and verdict."""
        used = self._used()
        by_verdict = self.steps_VRS.sum(axis=1).tolist()
        return {
            "edges": (np.arange(STEPS + 1) / STEPS).tolist(),
            "by_verdict": dict(zip(DENOISED, by_verdict, strict=True)),
            "by_rank": [
                {
                    "ranks": name,
                    "counts": dict(zip(DENOISED, self.steps_VRS[:, band].tolist(), strict=True)),
                }
                for name, band in zip(names_of_bands(used), used, strict=True)
            ],
        }


class BySource(ByRank):
    """The same by who found a candidate: bands are places in SOURCES."""

    column = "found_by"

    def names(self, bands: np.ndarray) -> list[str]:
        return [SOURCES[band] for band in bands]


def sources_of(pool: pa.Table, found: Flat) -> np.ndarray:
    """A block of POOL -> of each passage that was judged of its lists, its place in SOURCES."""
    sizes = np.bincount(found.list_N, minlength=found.lists).tolist()
    rows = zip(pool["found_by"].to_pylist(), sizes, strict=True)
    return np.array([SOURCES.index(who) for row, size in rows for who in row[:size]], np.int64)


SIDES = ("before", "after")


class Sweep:
    """What other thresholds would have made of the unlabelled passages of the same lists."""

    def __init__(self, grid: np.ndarray) -> None:
        self.grid = grid
        cells = len(grid) + 1
        self.under, self.over = np.zeros(cells, np.int64), np.zeros(cells, np.int64)
        self.likely_under, self.likely_over = np.zeros(cells), np.zeros(cells)
        self.lowest = np.zeros(cells, np.int64)
        self.lists = 0

    def add(self, found: Flat, likely_N: np.ndarray) -> None:
        cells = len(self.under)
        mine_N = np.isfinite(found.ce_N) & ~found.having(Verdict.LABELLED_POSITIVE)
        under = np.searchsorted(self.grid, found.ce_N[mine_N], side="right")
        over = np.searchsorted(self.grid, found.ce_N[mine_N], side="left")
        self.under += np.bincount(under, minlength=cells)
        self.over += np.bincount(over, minlength=cells)
        self.likely_under += np.bincount(under, likely_N[mine_N], cells)
        self.likely_over += np.bincount(over, likely_N[mine_N], cells)
        lowest_L = np.full(found.lists, cells - 1)  # No unlabelled passage: no negative ever.
        np.minimum.at(lowest_L, found.list_N[mine_N], under)
        self.lowest += np.bincount(lowest_L, minlength=cells)
        self.lists += found.lists

    def negatives(self) -> list[Row]:
        """For each `negative_below`: negatives, questions left without one, false ones."""
        sizes, false, served = (
            np.cumsum(cells)[:-1] for cells in (self.under, self.likely_under, self.lowest)
        )
        return [
            {
                "negative_below": float(threshold),
                "negatives": int(sizes[g]),
                "per_question": ratio(sizes[g], self.lists),
                "questions_without": int(self.lists - served[g]),
                "estimated_false": ratio(false[g], sizes[g]),
            }
            for g, threshold in enumerate(self.grid)
        ]

    def positives(self) -> list[Row]:
        """For each `positive_above`: unlabelled passages over it, and the share that is right."""
        sizes, right = (np.cumsum(c[::-1])[-2::-1] for c in (self.over, self.likely_over))
        return [
            {
                "positive_above": float(threshold),
                "passages": int(sizes[g]),
                "estimated_precision": ratio(right[g], sizes[g]),
            }
            for g, threshold in enumerate(self.grid)
        ]


# ------------------------------------------------------------------------------------ known truth


class Removal:
    """How thresholds part the passages that are known to be relevant, and that training took for
    unlabelled, from the rest.

    Only lists of questions with such a passage count, and their labelled passages do not.
    """

    def __init__(self, grid: np.ndarray, truth: np.ndarray, labelled: np.ndarray) -> None:
        """`truth`, `labelled`: keys of pairs."""
        self.grid, self.truth, self.labelled = grid, truth, labelled
        self.queries = np.unique(truth >> 32)
        shape = len(FIRST_RANKS), len(grid) + 1
        self.true, self.other = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.known = 0
        """Of `truth`, that belong to the questions of the lists: others were never searched."""

    def add(self, found: Flat) -> None:
        key_N = found.key_N
        self.known += int(np.isin(self.truth >> 32, found.query_N).sum())
        mine_N = np.isfinite(found.ce_N) & np.isin(found.query_N, self.queries)
        mine_N &= ~np.isin(key_N, self.labelled)
        true_N = np.isin(key_N, self.truth)
        cell_N = np.searchsorted(self.grid, found.ce_N, side="right")
        for counts, kind_N in ((self.true, mine_N & true_N), (self.other, mine_N & ~true_N)):
            np.add.at(counts, (found.band_N[kind_N], cell_N[kind_N]), 1)

    def rows(self) -> list[Row]:
        """For each `negative_below`: `recall`, the share of the known ones that it removes;
        `kept`, the share of the others that stay negatives; `precision`, the share of the known
        among all it removes (a lower bound: others may be relevant too).

        `kept` weighs each band of ranks by its known ones: easy passages far down do not count.
        """
        true, other = self.true.sum(axis=0), self.other.sum(axis=0)
        removed, lost = (cells.sum() - np.cumsum(cells) for cells in (true, other))
        per_band = self.other.sum(axis=1)
        weights = self.true.sum(axis=1) * (per_band > 0)
        kept = weights @ (np.cumsum(self.other, axis=1) / np.maximum(per_band, 1)[:, None])
        return [
            {
                "negative_below": float(threshold),
                "recall": ratio(removed[g], true.sum()),
                "kept": ratio(kept[g], weights.sum()),
                "precision": ratio(removed[g], removed[g] + lost[g]),
            }
            for g, threshold in enumerate(self.grid)
        ]

    def found(self) -> Row:
        """The curve, and what it rests on: `scored` of the `known` are in the lists."""
        rows = self.rows()
        return {
            "known": self.known,
            "scored": int(self.true.sum()),
            "others": int(self.other.sum()),
            "curve": rows,
            "best": best(rows),
        }


def best(rows: list[Row]) -> Row | None:
    """The threshold with the highest mean of recall and kept; the lowest of equals."""
    whole = [row for row in rows if None not in (row["recall"], row["kept"])]
    return max(whole, key=lambda row: row["recall"] + row["kept"]) if whole else None


# ---------------------------------------------------------------------------------- pseudo labels


class Pseudo:
    """The best passage of each unlabelled question; 18 bytes a question are kept."""

    def __init__(self, grid: np.ndarray, truth: np.ndarray) -> None:
        """`truth`: keys of the pairs whose labels were hidden."""
        self.grid, self.truth = grid, truth
        self.queries = np.unique(truth >> 32)
        self.kept: list[tuple[np.ndarray, ...]] = []

    def add(self, found: Flat, likely_N: np.ndarray) -> None:
        # Each list best first; of equals the better ranked, as augment takes it.
        order = np.lexsort((found.rank_N, -found.ce_N, found.list_N))
        top = order[np.unique(found.list_N[order], return_index=True)[1]]
        known, right = (
            np.isin(found.query_N[top], self.queries),
            np.isin(found.key_N[top], self.truth),
        )
        self.kept.append((found.ce_N[top], likely_N[top], known, right))

    def rows(self) -> list[Row]:
        """For each `positive_above`: questions with a pseudo positive, its estimated precision;
        where labels were hidden, `agreement`, the share that is right, and `recall`, the share of
        all those questions that get a right one."""
        ce, likely, known, right = (np.concatenate(c) for c in zip(*self.kept, strict=True))
        return [
            {
                "positive_above": float(threshold),
                "questions": int(over.sum()),
                "share": ratio(over.sum(), len(over)),
                "estimated_precision": ratio(likely[over].sum(), over.sum()),
                "known": int((over & known).sum()),
                "agreement": ratio((over & right).sum(), (over & known).sum()),
                "recall": ratio((over & right).sum(), known.sum()),
            }
            for threshold, over in ((t, ce > t) for t in self.grid)
        ]
