"""Index: trained on a seeded sample, filled by groups, measured against exact search."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from rocketray.artifacts import Draft, Made, Version, commit_block
from rocketray.errors import UserError
from rocketray.model import index
from rocketray.schema import sample
from rocketray.stages.index import FillIndex, Recall, TrainIndex
from tests.versions import run, version


def vectors() -> np.ndarray:
    vectors_PD = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    vectors_PD[7] = np.nan
    return vectors_PD


def commit(folder: Path, *blocks: Made) -> str:
    for number, made in enumerate(blocks):
        commit_block(folder, number, made.parts, rows=made.rows, key="", facts=made.facts)
    return str(Draft(folder, folder.name, {}).finish({}).path)


@pytest.fixture
def embeddings(tmp_path: Path) -> str:
    """Blocks of 20, 20 and 10."""
    parts = np.split(vectors(), [20, 40])
    return commit(tmp_path / "embeddings", *(Made({"embeddings": p}, len(p)) for p in parts))


def opened(made: Made) -> index.Index:
    data = made.parts["index"]
    assert isinstance(data, np.ndarray)
    assert data.dtype == np.uint8
    return index.from_array(data)


def test_the_sample_depends_on_rows_and_seed(embeddings: str) -> None:
    """The centre of a single list lies in the direction of the mean of what it was trained on."""
    for seed in (1, 2):
        made = TrainIndex(embeddings=embeddings, factory="IVF1,Flat", rows=9, seed=seed)(0)
        chosen = sample(np.arange(50), 9, seed)
        chosen = chosen[chosen != 7]
        assert made.rows == len(chosen)
        trained = opened(made)
        assert trained.ntotal == 0
        centre = faiss.extract_index_ivf(trained).quantizer.reconstruct(0)
        mean_D = vectors()[chosen].mean(axis=0)
        np.testing.assert_allclose(centre, mean_D / np.linalg.norm(mean_D), atol=1e-6)


def test_groups_hold_their_passages_by_row(embeddings: str, tmp_path: Path) -> None:
    made = TrainIndex(embeddings=embeddings, factory="IVF2,Flat", rows=50, seed=0)(0)
    stage = FillIndex(embeddings=embeddings, trained=commit(tmp_path / "trained", made))
    first, second = stage((0, 2)), stage((2, 3))
    assert (first.rows, second.rows) == (39, 10)
    for filled, rows in ((first, {*range(40)} - {7}), (second, {*range(40, 50)})):
        searched = opened(filled)
        index.set_probe(searched, 2)
        found = index.search(searched, vectors()[:1], 50)
        assert {*found[0].tolist()} == rows | {-1}


def test_an_index_is_covered_by_the_manifest(embeddings: str, tmp_path: Path) -> None:
    made = TrainIndex(embeddings=embeddings, factory="Flat", rows=50, seed=0)(0)
    trained = Version.open(commit(tmp_path / "trained", made))
    path = trained.blocks[0].files["index"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"-index\.npy differs from its manifest"):
        trained.verify()


def test_recall(tmp_path: Path) -> None:
    """Of query 3 two of three are found, of query 9 one of one; query 5 was not asked for."""
    found = run((5, [1]), (3, [8, 2, 7])), run((9, [4, 6, 1]))
    exact = run((3, [2, 5, 8]), (9, [6]))
    stage = Recall(run=version(tmp_path / "run", *found), exact=version(tmp_path / "exact", exact))
    made = stage(0)
    assert made.facts == {"found": 3, "wanted": 4}
    assert made.parts["table"].to_pylist() == [  # type: ignore[union-attr]
        {"query": 3, "found": 2, "wanted": 3},
        {"query": 9, "found": 1, "wanted": 1},
    ]
