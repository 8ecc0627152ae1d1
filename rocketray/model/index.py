"""Approximate search by faiss: one index per group of passages, by inner product.

An index only proposes rows; their scores are computed from the embeddings (`top_k.scores_of`), so
that they mean the same whatever found them, and a compressing index loses no digits.
"""

# Shapes: R rows, Q queries, D embedding size, k results.

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from rocketray.errors import UserError

# faiss-cpu's OpenBLAS does not know recent processors and falls back to SSE, four times slower;
# naming the AVX-512 core is safe where the processor has it. It is read when faiss is imported, and
# goes then: numpy's, which encodes, would read it in child processes and sum otherwise than here.
_CPU, _CORE = Path("/proc/cpuinfo"), "OPENBLAS_CORETYPE"
_names = _CORE not in os.environ and _CPU.exists() and "avx512f" in _CPU.read_text()
if _names:
    os.environ[_CORE] = "SkylakeX"

import faiss  # noqa: E402

if _names:
    del os.environ[_CORE]

Index = faiss.Index


def check(factory: str, probe: int | None, size: int) -> None:
    """Refuse what faiss would refuse later, when hours have been spent.

    Args:
        factory: a string of `faiss.index_factory`.
        size: D.

    Raises:
        UserError: faiss does not know it, it does not go with D, or it has nothing to probe.
    """
    set_probe(empty(factory, size), probe)


def empty(factory: str, size: int) -> Index:
    """An index without passages, which takes row numbers with them."""
    try:
        index = faiss.index_factory(size, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise _refused(factory, error) from error
    return index if isinstance(index, faiss.IndexIDMap) else faiss.IndexIDMap(index)


def train(factory: str, sample_RD: np.ndarray) -> Index:
    """An empty index that has learnt from a sample where its passages lie.

    Raises:
        UserError: the sample is too small for it.
    """
    _use_threads()
    index = empty(factory, sample_RD.shape[1])
    try:
        index.train(sample_RD)
    except RuntimeError as error:
        raise _refused(factory, error) from error
    return index


def add(index: Index, first_row: int, p_RD: np.ndarray) -> None:
    """Consecutive passages. Those with NaN or infinity cannot be found, so they are left out."""
    _use_threads()
    p_RD = np.asarray(p_RD, np.float32)
    sound_R = np.isfinite(p_RD).all(axis=1)
    index.add_with_ids(p_RD[sound_R], first_row + np.flatnonzero(sound_R))


def search(index: Index, q_QD: np.ndarray, k: int) -> np.ndarray:
    """Rows, int64 [Q, k]; -1 where the index found fewer."""
    _use_threads()
    _, rows_Qk = index.search(np.ascontiguousarray(q_QD, np.float32), k)
    found: np.ndarray = rows_Qk
    return found


def to_array(index: Index) -> np.ndarray:
    """Its bytes, uint8."""
    data: np.ndarray = faiss.serialize_index(index)
    return data


def from_array(data: np.ndarray) -> Index:
    """An index from its bytes.

    Only for bytes whose sha256 stands in this run's manifest: faiss's reader trusts the sizes and
    kinds it reads, so foreign bytes could make it write anywhere in memory.
    """
    return faiss.deserialize_index(np.asarray(data))


def set_probe(index: Index, probe: int | None) -> None:
    """How far a search looks: an IVF's lists, an HNSW's candidates. None leaves faiss's default."""
    if probe is None:
        return
    name = "nprobe" if faiss.try_extract_index_ivf(index) else "efSearch"
    try:
        faiss.ParameterSpace().set_index_parameter(index, name, probe)
    except RuntimeError as error:
        raise UserError(
            f"retrieve.probe = {probe}: this retrieve.index has nothing to probe; only IVF and HNSW"
            " have. Leave it null."
        ) from error


def _refused(factory: str, error: RuntimeError) -> UserError:
    """faiss's own words, without the place in its source."""
    words = str(error).rpartition(".cpp:")[2].partition(": ")[2] or str(error)
    return UserError(f"retrieve.index = {factory!r}: faiss says: {words}.")


def _use_threads() -> None:
    """faiss would take every core; a worker has as many as torch was told."""
    faiss.omp_set_num_threads(torch.get_num_threads())
