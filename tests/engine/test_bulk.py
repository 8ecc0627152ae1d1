"""Bulk: missing blocks are made, each once; errors of the user surface as such."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from rocketray.artifacts import Draft
from rocketray.engine import bulk
from rocketray.engine.bulk import Receipt, run_jobs
from rocketray.errors import UserError
from rocketray.recipe import BulkCluster, Cluster, TrainCluster
from tests.toys import Double, job

UNLUCKY = r"^numbers\.txt, line 3: 13 is unlucky\.$"
ITEMS = [[1, 2], [3], [], [4, 5, 6]]


@pytest.fixture(autouse=True)
def made() -> list[list[int]]:
    Double.made.clear()
    return Double.made


def draft(folder: Path, name: str = "double") -> Draft:
    return Draft(folder / name, name, {})


def cluster(actors: int) -> Cluster:
    return Cluster(bulk=BulkCluster(actors=actors, gpus=False), train=TrainCluster(workers=0))


def run(folder: Path, actors: int = 0) -> list[Receipt]:
    receipts: list[Receipt] = []
    jobs = [job(draft(folder), ITEMS), job(draft(folder, "triple"), ITEMS[:2], factor=3)]
    run_jobs(jobs, cluster(actors), receipts.append)
    return receipts


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_every_block_is_made_and_committed(tmp_path: Path) -> None:
    receipts = run(tmp_path)
    keys = [(0, 0, 2), (0, 1, 1), (0, 2, 0), (0, 3, 3), (1, 0, 2), (1, 1, 1)]
    assert [(r.job, r.block, r.rows) for r in receipts] == keys
    assert draft(tmp_path).finish({}, blocks=4).read()["n"].to_pylist() == [2, 4, 6, 8, 10, 12]
    assert draft(tmp_path, "triple").finish({}, blocks=2).read()["n"].to_pylist() == [3, 6, 9]


def test_finished_blocks_are_not_made_again(tmp_path: Path, made: list[list[int]]) -> None:
    run(tmp_path)
    (tmp_path / "double" / "receipts" / "00001.json").unlink()
    (tmp_path / "double" / "blocks" / "00003.parquet").unlink()
    made.clear()
    assert [(r.job, r.block) for r in run(tmp_path)] == [(0, 1), (0, 3)]
    assert made == [[3], [4, 5, 6]]
    assert run(tmp_path) == []


def test_a_user_error_surfaces_and_what_was_done_before_stays(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=UNLUCKY):
        run_jobs([job(draft(tmp_path), [[1], [13], [2]])], cluster(0), lambda receipt: None)
    assert list(draft(tmp_path).receipts()) == [0]


def test_a_bug_surfaces_as_itself(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        run_jobs([job(draft(tmp_path), [[14]])], cluster(0), lambda receipt: None)


def test_no_jobs() -> None:
    run_jobs([], cluster(0), pytest.fail)
    run_jobs([], cluster(2), pytest.fail)


def test_a_pool_is_started_unless_all_work_is_quick(tmp_path: Path) -> None:
    few, many = [[1]] * 3, [[1]] * 33
    for name, items, light, pools in [
        ("light", few, True, 0), ("heavy", few, False, 1), ("long", many, True, 1),
    ]:  # fmt: skip
        with (
            mock.patch.object(Double, "light", light, create=True),
            mock.patch.object(bulk, "_on_ray", return_value=iter([])) as on_ray,
        ):
            run_jobs([job(draft(tmp_path, name), items)], cluster(2), lambda receipt: None)
        assert on_ray.call_count == pools


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own.
@pytest.mark.timeout(300)
def test_actors_change_neither_bytes_nor_errors(tmp_path: Path) -> None:
    import ray

    try:
        for actors in (0, 1, 2):
            receipts = run(tmp_path / str(actors), actors)
            assert sorted((r.job, r.block) for r in receipts) == [
                *((0, n) for n in range(4)),
                *((1, n) for n in range(2)),
            ]
        here = content(tmp_path / "0")
        assert len(here) == 12
        assert content(tmp_path / "1") == here
        assert content(tmp_path / "2") == here
        bad = job(draft(tmp_path, "bad"), [[1], [13], [2]])
        with pytest.raises(UserError, match=UNLUCKY):
            run_jobs([bad], cluster(2), lambda receipt: None)
    finally:
        ray.shutdown()
