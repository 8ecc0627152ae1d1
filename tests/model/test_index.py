"""faiss behind a few functions: what it proposes, what it refuses, and in whose words."""

from __future__ import annotations

import os
import subprocess
import sys

import faiss
import numpy as np
import pytest
import torch

from rocketray.errors import UserError
from rocketray.model import index


def vectors(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)


@pytest.mark.parametrize("factory", ["Flat", "IDMap,Flat", "IVF3,Flat", "HNSW8", "RR8,Flat"])
def test_found_as_numpy_finds(factory: str) -> None:
    p_RD, q_QD = vectors(60), vectors(70)[60:]
    made = index.train(factory, p_RD)
    for first in range(0, 60, 25):
        index.add(made, 1000 + first, p_RD[first : first + 25])
    index.set_probe(made, {"IVF3,Flat": 3, "HNSW8": 60}.get(factory))
    expected = 1000 + np.argsort(-(q_QD @ p_RD.T), axis=1)[:, :5]
    assert index.search(made, q_QD, 5).tolist() == expected.tolist()
    again = index.from_array(index.to_array(made))
    index.set_probe(again, {"IVF3,Flat": 3, "HNSW8": 60}.get(factory))
    assert index.search(again, q_QD, 5).tolist() == expected.tolist()


@pytest.mark.parametrize("own", [None, "Haswell"])
def test_the_core_named_for_faiss_is_for_it_alone(own: str | None) -> None:
    """numpy's BLAS in a child process would read it too, and sum otherwise than its parent's."""
    code = (
        "import os, sys; from pathlib import Path; real = Path.read_text\n"
        "Path.read_text = lambda path, *args, **named: (\n"
        "    'avx512f' if path.name == 'cpuinfo' else real(path, *args, **named))\n"
        "if sys.argv[1:]: os.environ['OPENBLAS_CORETYPE'] = sys.argv[1]\n"
        "import rocketray.model.index; print(os.environ.get('OPENBLAS_CORETYPE'))"
    )
    names = [own] if own else []
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    said = subprocess.run(
        [sys.executable, "-c", code, *names], env=environment, capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert said.stdout.strip() == str(own)


def test_the_same_bytes_again() -> None:
    for factory in ("IVF3,Flat", "HNSW8", "IVF2,PQ4x4"):
        made = []
        for _ in range(2):
            trained = index.train(factory, vectors(60))
            index.add(trained, 0, vectors(60))
            made.append(index.to_array(trained))
        np.testing.assert_array_equal(made[0], made[1])


def test_passages_that_are_no_numbers_are_left_out() -> None:
    p_RD = vectors(6)
    p_RD[2, 1], p_RD[4, 0] = np.nan, np.inf
    made = index.train("HNSW8", vectors(6))
    index.add(made, 10, p_RD.astype(np.float16))
    found = index.search(made, vectors(1), 6)
    assert sorted(found[0].tolist()) == [-1, -1, 10, 11, 13, 15]


def test_more_probes_find_more() -> None:
    p_RD = vectors(400)
    made = index.train("IVF20,Flat", p_RD)
    index.add(made, 0, p_RD)
    exact = np.argsort(-(p_RD[:50] @ p_RD.T), axis=1)[:, :10]
    recalls = []
    for probe in (1, 5, 20):
        index.set_probe(made, probe)
        found = index.search(made, p_RD[:50], 10)
        recalls.append(sum(len({*a} & {*b}) for a, b in zip(found, exact, strict=True)) / 500)
    assert recalls[0] < recalls[1] < recalls[2] == 1


def test_faiss_takes_the_worker_s_threads() -> None:
    made = index.train("Flat", vectors(6))
    faiss.omp_set_num_threads(2)
    index.search(made, vectors(1), 1)
    assert faiss.omp_get_max_threads() == torch.get_num_threads()


@pytest.mark.parametrize(
    ("factory", "probe", "message"),
    [
        ("IVF", None, "retrieve.index = 'IVF': faiss says: could not parse index string IVF."),
        ("nonsense", 3, "retrieve.index = 'nonsense': faiss says: could not parse"),
        ("PQ3", None, "retrieve.index = 'PQ3': faiss says: Error: .* should be a multiple"),
        ("Flat", 3, "retrieve.probe = 3: this retrieve.index has nothing to probe"),
    ],
)
def test_refused_before_anything_is_computed(factory: str, probe: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        index.check(factory, probe, 8)


def test_known_indexes_pass() -> None:
    for factory, probe in (("Flat", None), ("IVF4,Flat", 2), ("HNSW32", 64), ("OPQ4,IVF8,PQ4", 1)):
        index.check(factory, probe, 8)


def test_too_small_a_sample() -> None:
    with pytest.raises(
        UserError, match=r"'IVF16,Flat': faiss says: Error: .*training points \(6\)"
    ):
        index.train("IVF16,Flat", vectors(6))
