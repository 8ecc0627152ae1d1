"""Exact top-k by inner product, and the one rule for ties: higher score, then lower row number.

A score is the float32 nearest to the exact product of the stored vectors. So lists are the same
whatever tile, precision, number of threads, library or device found them.

How that costs little more than one matrix product: tiles of passages are multiplied with the
queries in a fast precision, whose error has a bound. One comparison drops what cannot belong to a
query's k best any more; few scores survive it (about k whenever the passages seen have doubled),
and lists are cut only when they are full. In the end the k best, and what the error leaves in
doubt, are scored again in float64.
"""

# Shapes: Q queries, P passages of a block, T passages of a tile, W columns of scores, D embedding
# size, k results, C places of a list, S survivors, U different passages among them, G groups of F
# scores.

from __future__ import annotations

import math
import mmap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from rocketray.model.products import multiply

Block = np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Tiling:
    """Where products are computed, in what precision and in what pieces. Changes no result."""

    device: str
    dtype: torch.dtype
    queries: int
    """Queries of one product."""
    passages: int
    """Passages of one product."""
    pairs: int
    """Pairs of query and passage that are scored again at once."""


CPU = Tiling("cpu", torch.float32, queries=1024, passages=4096, pairs=1024)
"""Tiles of scores, 16 MiB: smaller ones stay in the cache, but each costs its calls."""
GPU = Tiling("cuda", torch.float16, queries=8192, passages=65_536, pairs=131_072)
"""Large enough to hide launches. float16 and not bfloat16: as fast, and an eighth of the error, so
that far fewer stay in doubt."""

BEGIN = 16
"""The first tile has so many times the passages that are kept."""
FOLD, FEW = 64, 12
"""Of so many scores side by side the largest is compared first, where few of a tile survive for
each query."""
SPARE = 64
"""Places of a list beyond twice k."""
LARGEST = 6e4
"""What float16 holds."""


def top_k(
    q_QD: np.ndarray, blocks: Iterable[tuple[int, Block]], k: int, tiling: Tiling = CPU
) -> tuple[np.ndarray, np.ndarray]:
    """Stream blocks of passages past the queries, keeping the best k of each.

    Args:
        q_QD: float32 query embeddings.
        blocks: (row number of the first passage, p_PD), in ascending order, in float16 or float32:
            arrays, tensors on any device, or memory maps, which are read ahead by tiles and let go
            of. A passage with NaN or infinity is no candidate.
        k: how many to keep; fewer candidates give shorter lists.

    Returns:
        scores_Qk float32 and rows_Qk int64, best first.

    Raises:
        ValueError: a query holds NaN or infinity.
    """
    stored = [(first_row, _stored(block)) for first_row, block in blocks]
    passages = sum(len(block) for _, block in stored)
    k = min(k, passages)
    if not len(q_QD) or not k:
        return np.empty((len(q_QD), k), np.float32), np.empty((len(q_QD), k), np.int64)
    queries_QD = torch.tensor(q_QD, dtype=torch.float32, device=tiling.device)
    if not queries_QD.isfinite().all():
        raise ValueError("A query's embedding holds NaN or infinity: nothing is nearest to it.")
    # The error has a bound only where the parts of a sum are joined in float32.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    lists = [_Lists(part_QD, stored, k, tiling) for part_QD in queries_QD.split(tiling.queries)]
    room = _Room(min(len(q_QD), tiling.queries) * min(passages, tiling.passages), tiling)
    candidates = 0
    for tile in _ahead(_tiles(stored, BEGIN * (k + SPARE), tiling)):
        candidates += tile.candidates
        for part in lists:
            part.add(tile, room)
    found = [part.finish(min(k, candidates)) for part in lists]
    scores_Qk, rows_Qk = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
    return scores_Qk, rows_Qk


# -------------------------------------------------------------------------------------- passages


@dataclass(frozen=True)
class _Tile:
    """Passages that are multiplied at once, on the device."""

    first_row: int
    p_TD: torch.Tensor
    sound_T: torch.Tensor
    """Which hold numbers only."""
    candidates: int
    """How many do."""
    longest: float
    """The greatest length of a passage, in this tile and all before it."""


def _stored(block: Block) -> Block:
    """A memory map as it is, an array as a tensor that shares its memory."""
    if isinstance(block, torch.Tensor):
        return block
    if block.dtype not in (np.float16, np.float32):
        block = np.asarray(block, np.float32)
    if isinstance(block, np.memmap):
        return block
    return torch.from_numpy(np.require(block, requirements=["C", "W"]))


def _tiles(stored: Sequence[tuple[int, Block]], first: int, tiling: Tiling) -> Iterator[_Tile]:
    """Tiles in ascending order. Each has no more passages than all before it, so that no more than
    about k of them survive."""
    seen, longest = 0, 0.0
    for first_row, block in stored:
        start = 0
        while start < len(block):
            end = min(start + min(max(first, seen), tiling.passages), len(block))
            p_TD = _read(block, slice(start, end)).to(tiling.device)
            lengths_T = torch.linalg.vector_norm(p_TD, dim=1, dtype=torch.float32)
            sound_T = lengths_T.isfinite()
            longest = max(longest, float(lengths_T.nan_to_num(0, 0).max()))
            p_TD = p_TD.to(tiling.dtype if longest < LARGEST else torch.float32)
            yield _Tile(first_row + start, p_TD, sound_T, int(sound_T.sum()), longest)
            seen, start = seen + end - start, end


def _read(block: Block, rows: slice | torch.Tensor) -> torch.Tensor:
    if isinstance(block, torch.Tensor):
        if isinstance(rows, slice):
            return block[rows]
        return block.index_select(0, rows.to(block.device))
    found = np.array(block[rows if isinstance(rows, slice) else rows.cpu().numpy()])
    _let_go(block)
    return torch.from_numpy(found)


def _let_go(block: np.ndarray) -> None:
    """Pages of a map that have been read count as this process's memory until it says that it
    needs them no more. The kernel keeps them as long as nobody else wants the room."""
    base: object = block
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


def _ahead(tiles: Iterator[_Tile]) -> Iterator[_Tile]:
    """The next tile is read, converted and measured while this one is multiplied."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,)) as reader:
        coming = reader.submit(next, tiles, None)
        while (tile := coming.result()) is not None:
            coming = reader.submit(next, tiles, None)
            yield tile


# ----------------------------------------------------------------------------------------- lists


class _Room:
    """For the scores of a tile, and for which of them are large. One for all tiles: fresh memory
    for each costs a CPU a quarter of the product."""

    def __init__(self, count: int, tiling: Tiling) -> None:
        self.scores = torch.empty(count, dtype=tiling.dtype, device=tiling.device)
        self.large = torch.empty(count if tiling.device == "cpu" else 0, dtype=torch.bool)


class _Lists:
    """For some queries the k best passages so far, and those in doubt: no order, C places each.

    Scores are those of the fast product until `_settle`. `kth_Q` is the k-th of them when the lists
    were last cut, at first that of a tile: what is worse by more than two scores can err together
    has no place.
    """

    def __init__(
        self, q_QD: torch.Tensor, stored: Sequence[tuple[int, Block]], k: int, tiling: Tiling
    ) -> None:
        self.q_QD = q_QD
        self.lengths_Q: torch.Tensor = torch.linalg.vector_norm(q_QD, dim=1)
        self.greatest = _longest(q_QD)
        self.stored = stored
        self.k = k
        self.tiling = tiling
        shape = (len(q_QD), 2 * k + SPARE)
        self.scores_QC = q_QD.new_full(shape, -torch.inf)
        self.rows_QC = torch.zeros(shape, dtype=torch.int64, device=q_QD.device)
        self.counts_Q = torch.zeros(len(q_QD), dtype=torch.int64, device=q_QD.device)
        self.kth_Q = torch.full_like(self.lengths_Q, -torch.inf)
        self.unknown = True
        """Whether no k passages have been seen together, so that nothing bounds `kth_Q`."""
        self.few = False
        """Whether few scores survived the last comparison."""
        self.longest = 0.0

    def add(self, tile: _Tile, room: _Room) -> None:
        self.longest = tile.longest
        shape = (len(self.q_QD), len(tile.p_TD))
        holds = max(self.greatest, self.greatest * tile.longest) < LARGEST
        if holds and tile.p_TD.dtype == room.scores.dtype:
            scores_QT = room.scores[: math.prod(shape)].view(shape)
            multiply(self.q_QD.to(scores_QT.dtype), tile.p_TD, scores_QT)
        else:
            scores_QT = self.q_QD @ tile.p_TD.float().T
        if tile.candidates < len(tile.p_TD):
            scores_QT[:, ~tile.sound_T] = -torch.inf
        if self.unknown and tile.candidates >= self.k:
            # What k passages reach is a floor already, and drops nearly all of the first tile.
            kth_Q = scores_QT.topk(self.k, dim=1, sorted=False).values.amin(1).float()
            self.kth_Q = torch.maximum(self.kth_Q, kth_Q)
            self.unknown = False
        self._keep(scores_QT, tile.first_row, room)

    def finish(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and rows, best first."""
        self._settle()
        return self.scores_QC[:, :k], self.rows_QC[:, :k]

    def _doubt_Q(self) -> torch.Tensor:
        """By how much two scores of a query can err together (Cauchy and Schwarz).

        Query, passage, parts of the sum, the sum and the floor are rounded to the fast precision;
        within a part, products are added in float32 in any order.
        """
        info, size = torch.finfo(self.tiling.dtype), self.q_QD.shape[1]
        relative = 3 * info.eps + size * 2.0**-23
        smallest = info.tiny * info.eps * math.sqrt(size)  # What is rounded below normal numbers.
        error_Q = self.lengths_Q * (relative * self.longest + smallest)
        doubt_Q: torch.Tensor = 2 * (error_Q + smallest * (self.longest + 1))
        return doubt_Q

    def _keep(self, scores_QW: torch.Tensor, first_row: int, room: _Room) -> None:
        """Add the scores that may belong to the lists, making room when that is needed."""
        for make_room in (self._cut, self._settle, None):
            floor_Q = self.kth_Q - self._doubt_Q()
            query_S, column_S = _above(scores_QW, floor_Q, room, fold=self.few)
            self.few = len(query_S) < FEW * len(scores_QW)
            counts_Q = torch.bincount(query_S, minlength=len(self.counts_Q))
            if bool((self.counts_Q + counts_Q).max() <= self.scores_QC.shape[1]):
                scores_S = scores_QW[query_S, column_S].float()
                return self._append(query_S, counts_Q, scores_S, first_row + column_S)
            if make_room:
                make_room()
        half = scores_QW.shape[1] // 2  # Passages in ascending order of their scores, say.
        self._keep(scores_QW[:, :half], first_row, room)
        self._keep(scores_QW[:, half:], first_row + half, room)

    def _append(
        self, query_S: torch.Tensor, counts_Q: torch.Tensor, scores_S: torch.Tensor,
        rows_S: torch.Tensor,
    ) -> None:  # fmt: skip
        """Queries ascending; `counts_Q` says how many there are of each."""
        lines_Q = torch.arange(len(counts_Q), device=counts_Q.device) * self.scores_QC.shape[1]
        begin_Q = lines_Q + self.counts_Q - counts_Q.cumsum(0) + counts_Q
        place_S = torch.arange(len(query_S), device=query_S.device) + begin_Q[query_S]
        self.scores_QC.view(-1)[place_S] = scores_S
        self.rows_QC.view(-1)[place_S] = rows_S
        self.counts_Q += counts_Q

    def _cut(self) -> None:
        """Drop what is worse than the k-th by more than doubt allows."""
        scores_QC, rows_QC = self._filled()
        if scores_QC.shape[1] < self.k:
            return
        self.kth_Q = scores_QC.topk(self.k, dim=1, sorted=False).values.amin(1)
        floor_Q1 = (self.kth_Q - self._doubt_Q()).unsqueeze(1)
        query_S, place_S = _places((scores_QC >= floor_Q1) & (scores_QC > -torch.inf))
        counts_Q = torch.bincount(query_S, minlength=len(self.counts_Q))
        scores_S, rows_S = scores_QC[query_S, place_S], rows_QC[query_S, place_S]
        scores_QC.fill_(-torch.inf)
        self.counts_Q.zero_()
        self._append(query_S, counts_Q, scores_S, rows_S)

    def _settle(self) -> None:
        """Score what the lists hold again, exactly, and keep the k best, best first."""
        self._cut()
        scores_QC, rows_QC = self._filled()
        query_S, place_S = _places(scores_QC > -torch.inf)
        scores_QC[query_S, place_S] = _exact(
            self.q_QD, self.stored, query_S, rows_QC[query_S, place_S], self.tiling.pairs
        )
        by_row = rows_QC.argsort(1)
        by_score = scores_QC.gather(1, by_row).argsort(dim=1, descending=True, stable=True)
        order = by_row.gather(1, by_score)
        scores_QC.copy_(scores_QC.gather(1, order))
        rows_QC.copy_(rows_QC.gather(1, order))
        scores_QC[:, self.k :] = -torch.inf
        self.counts_Q.clamp_(max=self.k)
        if scores_QC.shape[1] >= self.k:
            self.kth_Q = scores_QC[:, self.k - 1].clone()

    def _filled(self) -> tuple[torch.Tensor, torch.Tensor]:
        width = int(self.counts_Q.max())
        return self.scores_QC[:, :width], self.rows_QC[:, :width]


def _above(
    scores_QW: torch.Tensor, floor_Q: torch.Tensor, room: _Room, *, fold: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and column of every score above its query's floor, queries ascending."""
    floor_Q1 = floor_Q.to(scores_QW.dtype).unsqueeze(1)
    if fold and scores_QW.shape[1] % FOLD == 0:
        return _above_by_fold(scores_QW, floor_Q1)
    if scores_QW.device.type != "cpu" or scores_QW.dtype != torch.float32:
        return _places(scores_QW > floor_Q1)
    large_QW = room.large[: scores_QW.numel()].view(scores_QW.shape)
    # By numpy: a third of the time of torch's own comparison.
    np.greater(scores_QW.numpy(), floor_Q1.numpy(), out=large_QW.numpy())
    return _places(large_QW)


def _above_by_fold(
    scores_QW: torch.Tensor, floor_Q1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where nearly all are below: the largest of FOLD scores is compared first. That reads the
    scores once and writes little, where comparing all writes as many answers, to be read again."""
    folded_QGF = scores_QW.unflatten(1, (-1, FOLD))
    query_G, group_G = _places(folded_QGF.amax(2) > floor_Q1)
    hit_S, member_S = _places(folded_QGF[query_G, group_G] > floor_Q1[query_G])
    return query_G[hit_S], group_G[hit_S] * FOLD + member_S


def _places(chosen_QW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and column of what is chosen, queries ascending."""
    if chosen_QW.device.type != "cpu":
        return chosen_QW.nonzero(as_tuple=True)  # type: ignore[return-value]
    # numpy skips what is not chosen eight at a time; torch's nonzero looks at each.
    flat_S = np.flatnonzero(chosen_QW.numpy())
    query_S, column_S = np.divmod(flat_S, chosen_QW.shape[1])
    return torch.from_numpy(query_S), torch.from_numpy(column_S)


# --------------------------------------------------------------------------------- exact scores


def scores_of(
    q_QD: np.ndarray, blocks: Iterable[tuple[int, Block]], rows_Qk: np.ndarray
) -> np.ndarray:
    """Exact scores of given passages, float32 [Q, k]; minus infinity where the row is -1."""
    stored = [(first_row, _stored(block)) for first_row, block in blocks]
    queries_QD, rows = torch.tensor(q_QD, dtype=torch.float32), torch.tensor(rows_Qk)
    query_S, place_S = (rows >= 0).nonzero(as_tuple=True)
    scores_Qk = torch.full(rows.shape, -torch.inf)
    scores_Qk[query_S, place_S] = _exact(
        queries_QD, stored, query_S, rows[query_S, place_S], CPU.pairs
    )
    return scores_Qk.numpy()


def _exact(
    q_QD: torch.Tensor, stored: Sequence[tuple[int, Block]], query_S: torch.Tensor,
    row_S: torch.Tensor, pairs: int,
) -> torch.Tensor:  # fmt: skip
    """Scores of pairs, from the stored vectors, which are read in ascending order."""
    order_S = row_S.argsort(stable=True)  # So that the queries of a row stay in ascending order.
    first_rows = torch.tensor([first_row for first_row, _ in stored], device=row_S.device)
    block_S = torch.searchsorted(first_rows, row_S[order_S], right=True) - 1
    sizes = torch.bincount(block_S, minlength=len(stored)).tolist()
    # The most that a sum of D products can err by, in any order: twice, to be sure.
    error = q_QD.shape[1] * 2.0**-52 * _longest(q_QD)
    scores_S, q_QD = q_QD.new_empty(len(row_S)), q_QD.double()
    for (first_row, block), mine in zip(stored, order_S.split(sizes), strict=True):
        for some in mine.split(pairs) if len(mine) else ():
            rows_U, counts_U = torch.unique_consecutive(row_S[some], return_counts=True)
            p_UD = _read(block, rows_U - first_row).to(q_QD.device)
            pairs_error = error * _longest(p_UD)
            scores_S[some] = _rounded(q_QD, p_UD.double(), query_S[some], counts_U, pairs_error)
    return scores_S


def _rounded(
    q_QD: torch.Tensor, p_UD: torch.Tensor, query_S: torch.Tensor, counts_U: torch.Tensor,
    error: float,
) -> torch.Tensor:  # fmt: skip
    """The float32 nearest to the exact product of each pair, by way of float64.

    There products of two float32 are exact, and sums nearly. Where the error leaves two float32
    to choose from, which is rare, the sum is made again without one.

    Args:
        query_S: the queries of the first passage, then those of the next; each ascending.
        counts_U: how many each passage has.
    """
    sums_S = _products(q_QD, p_UD, query_S, counts_U)
    unsure_N = ((sums_S - error).float() != (sums_S + error).float()).nonzero().flatten()
    if not len(unsure_N):
        return sums_S.float()
    which_S = torch.arange(len(p_UD), device=p_UD.device).repeat_interleave(counts_U)
    products_ND = q_QD[query_S[unsure_N]] * p_UD[which_S[unsure_N]]
    sums_S[unsure_N] = sums_S.new_tensor([math.fsum(row) for row in products_ND.tolist()])
    return sums_S.float()


def _products(
    q_QD: torch.Tensor, p_UD: torch.Tensor, query_S: torch.Tensor, counts_U: torch.Tensor
) -> torch.Tensor:
    """A product per pair: the places of a sparse matrix. Gathering both vectors of every pair first
    takes five times as long."""
    begin = torch.cat([counts_U.new_zeros(1), counts_U.cumsum(0)])
    shape, empty_S = (len(p_UD), len(q_QD)), p_UD.new_zeros(len(query_S))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        pairs = torch.sparse_csr_tensor(begin, query_S, empty_S, shape, check_invariants=False)
    sums: torch.Tensor = torch.sparse.sampled_addmm(pairs, p_UD, q_QD.T, beta=0.0).values()
    return sums


def _longest(v_ND: torch.Tensor) -> float:
    """The greatest length of a vector; what is not finite has none."""
    lengths_N = torch.linalg.vector_norm(v_ND, dim=1, dtype=torch.float32)
    return float(lengths_N.nan_to_num(0, 0).max())


# ------------------------------------------------------------------------------- small matrices


def best(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each line, unordered, boundary ties decided by row number."""
    if scores.shape[1] <= k:
        return scores, rows
    values, places = torch.topk(torch.from_numpy(scores), k, sorted=False)
    best_scores, best_rows = values.numpy(), np.take_along_axis(rows, places.numpy(), axis=1)
    # topk takes any of several equal k-th scores; those lines (few) are sorted in full.
    tied = (scores >= best_scores.min(axis=1, keepdims=True)).sum(axis=1) > k
    if tied.any():
        best_scores[tied], best_rows[tied] = in_order(scores[tied], rows[tied], k)
    return best_scores, best_rows


def in_order(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Each line sorted by score (falling), then row number, and cut to k."""
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
