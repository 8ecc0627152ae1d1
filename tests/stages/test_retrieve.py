"""Retrieve: every query against every passage, in a grid of cells that changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rocketray.artifacts import Draft, Version, commit_block
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.inference import Encoder, encode_queries
from rocketray.model.tokens import Assembler, Tokenizer, TokenStore
from rocketray.schema import RUN
from rocketray.stages.encode import Encode
from rocketray.stages.index import FillIndex, TrainIndex
from rocketray.stages.retrieve import Cell, Group, MergeTopk, Retrieve, grid, groups_of, run_table
from tests.stages.conftest import Small
from tests.versions import rows_of, run, version


def embed(small: Small, folder: Path) -> str:
    stage = Encode(model=str(small.dual), tokens=small.passage_tokens)
    for number in range(3):
        made = stage(number)
        commit_block(folder, number, made.parts, rows=made.rows, key="", facts={})
    return str(Draft(folder, "embeddings", {}).finish({}).path)


def retrieve(small: Small, folder: Path, k: int, **index: Any) -> Retrieve:
    return Retrieve(
        model=str(small.dual),
        queries=version(folder / "chosen", rows_of(4, 0), rows_of(2)),
        query_tokens=small.query_tokens,
        embeddings=embed(small, folder / "embeddings"),
        k=k,
        **index,
    )


def indexes(embeddings: str, folder: Path, factory: str, groups: list[Group]) -> str:
    """A finished version of filled indexes."""
    made = TrainIndex(embeddings=embeddings, factory=factory, rows=12, seed=0)(0)
    commit_block(folder / "trained", 0, made.parts, rows=made.rows, key="", facts={})
    trained = str(Draft(folder / "trained", "trained", {}).finish({}).path)
    fill = FillIndex(embeddings=embeddings, trained=trained)
    for number, group in enumerate(groups):
        made = fill(group)
        commit_block(folder / "filled", number, made.parts, rows=made.rows, key="", facts={})
    return str(Draft(folder / "filled", "filled", {}).finish({}).path)


def cell(queries: int, first: int = 0, last: int = 3, number: int = 0) -> Cell:
    return Cell(queries=queries, number=number, group=(first, last))


def table_of(stage: Retrieve | MergeTopk, item: object) -> pa.Table:
    found = stage(item).parts["table"]  # type: ignore[arg-type]
    assert isinstance(found, pa.Table)
    assert found.schema == RUN
    return found


def test_blocks_of_embeddings_are_in_row_order(small: Small, tmp_path: Path) -> None:
    model = DualEncoder.open(small.dual / "model").eval()
    assembler = Assembler(Tokenizer(model.tokenizer_folder))
    rows = np.arange(12)
    whole = Encoder(model, "passage")(assembler, TokenStore(small.passage_tokens), rows)
    version = Version.open(embed(small, tmp_path / "embeddings"))
    parts = np.concatenate([version.array(number, "embeddings") for number in range(3)])
    assert parts.dtype == np.float32
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)


def test_equal_to_brute_force(small: Small, tmp_path: Path) -> None:
    found = table_of(retrieve(small, tmp_path, 4), cell(0))
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
    groups = groups_of([5, 5, 2], group_rows)
    path = version(tmp_path / "cells", *(table_of(stage, item) for item in grid(2, groups)))
    merge = MergeTopk(cells=path, groups=len(groups), k=k)
    for block in range(2):
        whole = table_of(stage, cell(block))
        assert table_of(merge, block) == whole
        assert {len(row) for row in whole["passages"].to_pylist()} == {min(k, 12)}


def test_a_gpu_that_is_not_its_own_is_left_alone(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = retrieve(small, tmp_path, 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    other = Retrieve(
        model=str(small.dual), queries=str(stage.queries.path), query_tokens=small.query_tokens,
        embeddings=str(stage.embeddings.path), k=4, gpu=False,
    )  # fmt: skip
    assert table_of(other, cell(0)) == table_of(stage, cell(0))


def test_half_precision_embeddings_are_scored_as_they_are(small: Small, tmp_path: Path) -> None:
    whole = Version.open(embed(small, tmp_path / "whole"))
    halves = [whole.array(number, "embeddings").astype(np.float16) for number in range(3)]
    for name, dtype in (("half", np.float16), ("same", np.float32)):
        for number, half in enumerate(halves):
            parts = {"embeddings": half.astype(dtype)}
            commit_block(tmp_path / name, number, parts, rows=len(half), key="", facts={})
        Draft(tmp_path / name, name, {}).finish({})
    stage = retrieve(small, tmp_path, 4)
    found = []
    for name in ("half", "same"):
        stage.embeddings, stage.opened = Version.open(tmp_path / name), None
        found.append(table_of(stage, cell(0)))
    assert found[0] == found[1]


# ---- with an index


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF2,Flat", "SQ8"])
@pytest.mark.parametrize("group_rows", [5, 100])
def test_an_index_that_looks_everywhere_equals_exact_search(
    small: Small, tmp_path: Path, factory: str, group_rows: int
) -> None:
    """k takes in the whole corpus, so that what SQ8 loses changes nothing either: scores are those
    of the embeddings."""
    exact = table_of(retrieve(small, tmp_path, 12), cell(0))
    groups = groups_of([5, 5, 2], group_rows)
    path = indexes(str(tmp_path / "embeddings"), tmp_path / factory, factory, groups)
    probe = {"HNSW8": 12, "IVF2,Flat": 2}.get(factory)
    stage = retrieve(small, tmp_path, 12, indexes=path, probe=probe)
    cells = version(tmp_path / "cells", *(table_of(stage, item) for item in grid(1, groups)))
    assert table_of(MergeTopk(cells=cells, groups=len(groups), k=12), 0) == exact


def test_what_an_index_does_not_find_is_missing_and_never_minus_one(
    small: Small, tmp_path: Path
) -> None:
    """One of four lists is probed: fewer than k passages, and not as many for every query."""
    exact = table_of(retrieve(small, tmp_path, 12), cell(0)).to_pylist()
    for group_rows in (5, 100):
        groups = groups_of([5, 5, 2], group_rows)
        folder = tmp_path / str(group_rows)
        path = indexes(str(tmp_path / "embeddings"), folder, "IVF4,Flat", groups)
        stage = retrieve(small, tmp_path, 12, indexes=path, probe=1)
        tables = [table_of(stage, item) for item in grid(1, groups)]
        cells = version(folder / "cells", *tables)
        merged = table_of(MergeTopk(cells=cells, groups=len(groups), k=12), 0).to_pylist()
        for row, whole in zip(merged, exact, strict=True):
            score_of = dict(zip(whole["passages"], whole["scores"], strict=True))
            assert 0 < len(row["passages"]) < 12
            assert row["passages"] == [p for p in whole["passages"] if p in row["passages"]]
            assert row["scores"] == [score_of[p] for p in row["passages"]]


# ---- tables and groups


def test_of_equal_passages_the_lower_row_comes_first(tmp_path: Path) -> None:
    left = run_table(np.array([7]), np.array([[5, 2]]), np.array([[2.0, 1.0]], np.float32))
    right = run_table(np.array([7]), np.array([[9, 8]]), np.array([[2.0, 2.0]], np.float32))
    merge = MergeTopk(cells=version(tmp_path / "cells", left, right), groups=2, k=3)
    assert table_of(merge, 0)["passages"].to_pylist() == [[5, 8, 9]]


def test_lists_of_different_lengths_are_merged(tmp_path: Path) -> None:
    tables = []
    for passages in ([[3, -1], [-1, -1]], [[-1, -1], [-1, -1]], [[6, 7], [8, -1]]):
        rows = np.array(passages)
        tables.append(run_table(np.array([0, 1]), rows, -rows.astype(np.float32)))
    assert tables[1]["passages"].to_pylist() == [[], []]
    merge = MergeTopk(cells=version(tmp_path / "cells", *tables), groups=3, k=2)
    found = table_of(merge, 0)
    assert found["passages"].to_pylist() == [[3, 6], [8]]
    assert found["scores"].to_pylist() == [[-3, -6], [-8]]


def test_the_grid_goes_group_by_group() -> None:
    """So that a worker keeps a group open, and MergeTopk finds its cells."""
    cells = grid(2, [(0, 2), (2, 3)])
    assert [tuple(c.values()) for c in cells] == [
        (0, 0, (0, 2)), (1, 0, (0, 2)), (0, 1, (2, 3)), (1, 1, (2, 3)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "group_rows", "count"),
    [([5, 5, 2], 1, 3), ([5, 5, 2], 9, 3), ([5, 5, 2], 12, 2), ([5, 5, 2], 15, 1), ([3], 1, 1)],
)
def test_groups_are_whole_blocks(rows: list[int], group_rows: int, count: int) -> None:
    groups = groups_of(rows, group_rows)
    assert len(groups) == count
    assert [block for group in groups for block in range(*group)] == list(range(len(rows)))


def test_rows_that_are_left_out_keep_their_places(small: Small, tmp_path: Path) -> None:
    encode = Encode(model=str(small.dual), tokens=small.passage_tokens)
    assert encode.rows(1).tolist() == [5, 6, 7, 8, 9]
    whole, made = (encode(1, rows).parts["embeddings"] for rows in ((), (7,)))
    assert np.isnan(made[2]).all()
    kept = [0, 1, 3, 4]
    np.testing.assert_allclose(np.asarray(made)[kept], np.asarray(whole)[kept], atol=1e-5)
    assert np.isnan(encode(2, (10, 11)).parts["embeddings"]).all()

    stage = retrieve(small, tmp_path, 4)
    cell = Cell(queries=0, number=0, group=(0, 3))
    assert stage.rows(cell).tolist() == [4, 0]
    both, one = table_of(stage, cell), stage(cell, (4,)).parts["table"]
    assert one.schema == RUN
    assert one["query"].to_pylist() == [4, 0]
    assert one["passages"].to_pylist() == [[], both["passages"][1].as_py()]
    assert stage(cell, (0, 4)).parts["table"]["passages"].to_pylist() == [[], []]


def test_a_question_without_tokens_finds_nothing(small: Small, tmp_path: Path) -> None:
    both = table_of(retrieve(small, tmp_path, 4), cell(0))
    stage = Retrieve(
        model=str(small.dual), queries=str(tmp_path / "chosen"), k=4,
        query_tokens=small.tokens(tmp_path / "tokens", small.queries, 1, without=[4]),
        embeddings=str(tmp_path / "embeddings"),
    )  # fmt: skip
    found = table_of(stage, cell(0))
    assert found["query"].to_pylist() == [4, 0]
    assert found["passages"].to_pylist() == [[], both["passages"][1].as_py()]


def test_a_query_left_out_in_one_group_is_left_out(tmp_path: Path) -> None:
    cells = tmp_path / "cells"
    for number, (table, facts) in enumerate(
        [
            (run((7, [3, 1]), (9, [2, 0])), {}),
            (run((7, [5]), (9, [])), {"quarantined": [[1, "SIGKILL"]]}),
        ]
    ):
        commit_block(cells, number, {"table": table}, rows=2, key="", facts=facts)
    Draft(cells, "cells", {}).finish({})
    merge = MergeTopk(cells=str(cells), groups=2, k=2)
    assert table_of(merge, 0)["passages"].to_pylist() == [[3, 5], []]
