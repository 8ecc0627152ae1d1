"""Two runs in one list: in turn, nothing twice, and who found what."""

from __future__ import annotations

from pathlib import Path

import pytest

from rocketray.stages.pool import POOL, LaterPool, Pool, in_turn, who
from tests.versions import run, table, version


@pytest.mark.parametrize(
    ("first", "second", "depth", "expected"),
    [
        ([1, 2, 3], [4, 5, 6], 4, [1, 4, 2, 5]),
        ([1, 2, 3], [1, 3, 9], 9, [1, 3, 2, 9]),
        ([1, 2, 3], [], 2, [1, 2]),
        ([], [4, 5, 6], 3, [4, 5, 6]),
        ([1], [4, 5], 3, [1, 4, 5]),
        ([], [], 3, []),
    ],
)
def test_in_turn(first: list[int], second: list[int], depth: int, expected: list[int]) -> None:
    assert in_turn(first, second, depth) == expected


def test_who_found_it() -> None:
    assert [who(passage, [1, 2], [2, 3]) for passage in (1, 2, 3)] == ["dual_0", "both", "bm25"]


def test_a_pool_is_a_run_that_says_who_found_what(tmp_path: Path) -> None:
    dense = version(tmp_path / "dense", run((0, [1, 2, 3]), (7, [8])))
    lexical = version(tmp_path / "lexical", run((0, [2, 9]), (7, [])))
    made = Pool(dense=dense, lexical=lexical, depth=4)(0)
    table = made.parts["table"]
    assert table.schema == POOL
    assert table["passages"].to_pylist() == [[1, 2, 3, 9], [8]]
    assert table["scores"].to_pylist() == [[4.0, 3.0, 2.0, 1.0], [1.0]]
    assert table["found_by"].to_pylist() == [["dual_0", "both", "dual_0", "bm25"], ["dual_0"]]
    assert (made.rows, made.facts) == (2, {"dual_0": 3, "bm25": 1, "both": 1})


def test_a_later_pool_names_all_who_found_a_passage(tmp_path: Path) -> None:
    """Passage 1 comes from the pool before, and stands further down in the new list, too."""
    before = [
        (0, [1, 2, 3], [3.0, 2.0, 1.0], ["dual_0", "both", "bm25"]),
        (7, [], [], []),
    ]
    earlier = version(tmp_path / "before", table(POOL, *before))
    dense = version(tmp_path / "dense", run((0, [2, 4, 5, 1]), (7, [8])))
    made = LaterPool(dense=dense, before=earlier, depth=4, finder="dual_1")(0)
    found = made.parts["table"]
    assert found.schema == POOL
    assert found["passages"].to_pylist() == [[2, 1, 4, 3], [8]]
    assert found["found_by"].to_pylist() == [
        ["dual_0+bm25+dual_1", "dual_0+dual_1", "dual_1", "bm25"], ["dual_1"],
    ]  # fmt: skip
    assert made.facts == {
        "dual_0+bm25+dual_1": 1, "dual_0+dual_1": 1, "dual_1": 2, "bm25": 1,
    }  # fmt: skip
    last = version(tmp_path / "last", run((0, [4, 6]), (7, [])))
    again = version(tmp_path / "again", found)
    third = LaterPool(dense=last, before=again, depth=3, finder="dual_1_round_2")(0)
    assert third.parts["table"]["found_by"].to_pylist() == [
        ["dual_1+dual_1_round_2", "dual_0+bm25+dual_1", "dual_1_round_2"], ["dual_1"],
    ]  # fmt: skip


def test_runs_over_other_queries_are_refused(tmp_path: Path) -> None:
    dense = version(tmp_path / "dense", run((0, [1])))
    lexical = version(tmp_path / "lexical", run((1, [1])))
    with pytest.raises(ValueError, match="not over the same queries"):
        Pool(dense=dense, lexical=lexical, depth=3)(0)
