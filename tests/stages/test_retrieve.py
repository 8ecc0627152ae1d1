"""Retrieve: every query against every passage, in a grid of cells that changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rocketray.artifacts import Draft, Version, commit_block
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.inference import encode_passages, encode_queries
from rocketray.model.tokens import Assembler, Tokenizer, TokenStore
from rocketray.schema import RUN
from rocketray.stages.encode import Encode
from rocketray.stages.retrieve import Cell, MergeTopk, Retrieve, grid, run_table
from tests.stages.conftest import Small
from tests.versions import rows_of, run, version


def embed(small: Small, folder: Path) -> str:
    stage = Encode(model=str(small.dual), tokens=small.passage_tokens)
    for number in range(3):
        made = stage(number)
        commit_block(folder, number, made.parts, rows=made.rows, key="", facts={})
    return str(Draft(folder, "embeddings", {}).finish({}).path)


def retrieve(small: Small, folder: Path, k: int) -> Retrieve:
    return Retrieve(
        model=str(small.dual),
        queries=version(folder / "chosen", rows_of(4, 0), rows_of(2)),
        query_tokens=small.query_tokens,
        embeddings=embed(small, folder / "embeddings"),
        k=k,
    )


def table_of(stage: Retrieve | MergeTopk, item: object) -> pa.Table:
    found = stage(item).parts["table"]  # type: ignore[arg-type]
    assert isinstance(found, pa.Table)
    assert found.schema == RUN
    return found


def test_blocks_of_embeddings_are_in_row_order(small: Small, tmp_path: Path) -> None:
    model = DualEncoder.open(small.dual / "model").eval()
    assembler = Assembler(Tokenizer(model.tokenizer_folder))
    rows = np.arange(12)
    whole = encode_passages(model, assembler, TokenStore(small.passage_tokens), rows)
    version = Version.open(embed(small, tmp_path / "embeddings"))
    parts = np.concatenate([version.array(number, "embeddings") for number in range(3)])
    assert parts.dtype == np.float32
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)


def test_equal_to_brute_force(small: Small, tmp_path: Path) -> None:
    found = table_of(retrieve(small, tmp_path, 4), Cell(queries=0, first=0, last=3))
    model = DualEncoder.open(small.dual / "model").eval()
    assembler = Assembler(Tokenizer(model.tokenizer_folder))
    q_QD = encode_queries(model, assembler, TokenStore(small.query_tokens), np.array([4, 0]))
    embeddings = Version.open(tmp_path / "embeddings")
    p_PD = np.concatenate([embeddings.array(number, "embeddings") for number in range(3)])
    scores_QP = q_QD @ p_PD.T
    assert found["query"].to_pylist() == [4, 0]
    for row, (passages, scores) in enumerate(
        zip(found["passages"].to_pylist(), found["scores"].to_pylist(), strict=True)
    ):
        assert len(set(passages)) == 4
        assert scores == sorted(scores, reverse=True)
        np.testing.assert_allclose(scores, scores_QP[row, passages], rtol=1e-5)
        others = np.delete(scores_QP[row], passages)
        assert others.max() <= scores[-1] + 1e-5


@pytest.mark.parametrize("k", [1, 4, 100])
@pytest.mark.parametrize("group_rows", [5, 10, 100])
def test_merged_groups_equal_one_group(
    small: Small, tmp_path: Path, k: int, group_rows: int
) -> None:
    stage = retrieve(small, tmp_path, k)
    cells, groups = grid(2, [5, 5, 2], group_rows)
    path = version(tmp_path / "cells", *(table_of(stage, cell) for cell in cells))
    merge = MergeTopk(cells=path, groups=groups, k=k)
    for block in range(2):
        whole = table_of(stage, Cell(queries=block, first=0, last=3))
        assert table_of(merge, block) == whole
        assert {len(row) for row in whole["passages"].to_pylist()} == {min(k, 12)}


def test_of_equal_passages_the_lower_row_comes_first(tmp_path: Path) -> None:
    left = run_table(np.array([7]), np.array([[5, 2]]), np.array([[2.0, 1.0]], np.float32))
    right = run_table(np.array([7]), np.array([[9, 8]]), np.array([[2.0, 2.0]], np.float32))
    merge = MergeTopk(cells=version(tmp_path / "cells", left, right), groups=2, k=3)
    assert table_of(merge, 0)["passages"].to_pylist() == [[5, 8, 9]]


def test_the_grid_goes_query_block_by_query_block() -> None:
    cells, groups = grid(2, [5, 5, 2], 10)
    assert groups == 2
    assert [tuple(cell.values()) for cell in cells] == [(0, 0, 2), (0, 2, 3), (1, 0, 2), (1, 2, 3)]


@pytest.mark.parametrize(
    ("rows", "group_rows", "groups"),
    [([5, 5, 2], 1, 3), ([5, 5, 2], 9, 3), ([5, 5, 2], 12, 2), ([5, 5, 2], 15, 1), ([3], 1, 1)],
)
def test_groups_are_whole_blocks(rows: list[int], group_rows: int, groups: int) -> None:
    cells, found = grid(1, rows, group_rows)
    assert found == groups
    assert [c["first"] for c in cells] == [0, *(c["last"] for c in cells[:-1])]
    assert cells[-1]["last"] == len(rows)


def test_rows_that_are_left_out_keep_their_places(small: Small, tmp_path: Path) -> None:
    encode = Encode(model=str(small.dual), tokens=small.passage_tokens)
    assert encode.rows(1).tolist() == [5, 6, 7, 8, 9]
    whole, made = (encode(1, rows).parts["embeddings"] for rows in ((), (7,)))
    assert np.isnan(made[2]).all()
    kept = [0, 1, 3, 4]
    np.testing.assert_allclose(np.asarray(made)[kept], np.asarray(whole)[kept], atol=1e-5)
    assert np.isnan(encode(2, (10, 11)).parts["embeddings"]).all()

    stage = retrieve(small, tmp_path, 4)
    cell = Cell(queries=0, first=0, last=3)
    assert stage.rows(cell).tolist() == [4, 0]
    both, one = table_of(stage, cell), stage(cell, (4,)).parts["table"]
    assert one.schema == RUN
    assert one["query"].to_pylist() == [4, 0]
    assert one["passages"].to_pylist() == [[], both["passages"][1].as_py()]
    assert stage(cell, (0, 4)).parts["table"]["passages"].to_pylist() == [[], []]


def test_a_query_left_out_in_one_group_is_left_out(tmp_path: Path) -> None:
    first = run((0, [3, 1]), (1, [2, 0]))
    second = run((0, [5]), (1, []))
    merge = MergeTopk(cells=version(tmp_path / "cells", first, second), groups=2, k=2)
    assert table_of(merge, 0)["passages"].to_pylist() == [[3, 5], []]
