"""Pairs are scored once, in each kind of score: also where a stage was stopped, never where a file
is damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rocketray import artifacts, labelling
from rocketray.artifacts import Version
from rocketray.errors import UserError
from rocketray.model import inference
from rocketray.stages.score import Score
from rocketray.verbs import work
from tests.verbs.conftest import Place

RUN = "told_train_top10"
QUERIES = 16
"""In two blocks of eight."""


@pytest.fixture
def found(place: Place) -> Place:
    place.do(work.retrieve, model=str(place.told), queries="train", k=10)
    return place


@pytest.fixture
def copied(found: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The same, for an undisturbed course of things."""
    return found.copied(tmp_path_factory.mktemp("undisturbed"))


def score(place: Place, k: int, *overrides: str) -> Version:
    scored: Version = place.do(
        work.score, *overrides, run=RUN, model=str(place.cross), k=k
    )[0]  # fmt: skip
    return scored


def known(version: Version) -> int:
    count: int = version.facts["known"]
    return count


def damage(path: Path) -> None:
    """One bit of a file, in place: under all its names."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


@contextmanager
def stopped_at(block: int) -> Iterator[None]:
    """Ctrl-C when a scoring comes to this block."""
    whole: Callable[..., Any] = Score.__call__

    def until(stage: Score, item: int, *more: Any) -> Any:
        if item == block:
            raise KeyboardInterrupt
        return whole(stage, item, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Score, "__call__", until)
        with pytest.raises(KeyboardInterrupt):
            yield


@contextmanager
def on_a_gpu() -> Iterator[None]:
    """A machine where `auto` becomes bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "choose_precision", lambda place: "bfloat16")
        yield


# ------------------------------------------------------------------------------------- precision


def test_a_run_on_a_gpu_and_one_on_a_cpu_share_no_scores(found: Place, copied: Place) -> None:
    with on_a_gpu():
        half = score(found, 5)
    assert (half.facts["pairs"], known(half)) == (QUERIES * 5, 0)
    exact = score(found, 6)
    assert known(exact) == 0
    assert exact.digest == score(copied, 6).digest
    with on_a_gpu():
        deeper = score(found, 7)
    assert known(deeper) >= QUERIES * 5
    first = [row[:5] for row in deeper.read()["ce_scores"].to_pylist()]
    assert first == half.read()["ce_scores"].to_pylist() != [
        row[:5] for row in exact.read()["ce_scores"].to_pylist()
    ]  # fmt: skip


def test_what_auto_became_is_known_to_who_asks_for_it_by_name(found: Place) -> None:
    with on_a_gpu():
        score(found, 5)
    assert known(score(found, 6, "score.precision=bfloat16")) >= QUERIES * 5
    assert known(score(found, 6, "score.precision=float32")) == 0
    assert known(score(found, 7)) >= QUERIES * 6  # On a CPU `auto` is float32.


# ---------------------------------------------------------------------------------------- damage


def test_a_damaged_score_is_never_read(found: Place, copied: Place) -> None:
    """The store's file is the stage's own under another name, so both are damaged."""
    first = score(found, 5)
    path = found.out / "pairs"
    path = min(path.glob(f"{first.manifest['identity']['inputs']['cross']}/float32/*.npy"))
    damage(path)
    with pytest.raises(UserError) as error:
        score(found, 6)
    assert str(error.value) == (
        f"{path} is damaged: its sha256 is {artifacts.file_sha256(path)} and should be its name."
        " Remove it: its pairs are then scored again."
    )
    path.unlink()
    again = score(found, 6)
    assert not path.exists()
    assert QUERIES / 2 * 5 <= known(again) < QUERIES * 5
    expected = score(copied, 6).read()["ce_scores"].to_pylist()
    for row, values in zip(again.read()["ce_scores"].to_pylist(), expected, strict=True):
        assert row == pytest.approx(values, abs=1e-6)


def test_a_stage_that_was_begun_with_a_damaged_score_says_what_to_remove(found: Place) -> None:
    score(found, 5)
    with stopped_at(block=1):
        score(found, 6)
    path = min(found.out.glob("pairs/*/float32/*.npy"))
    damage(path)
    with pytest.raises(UserError) as error:
        score(found, 6)
    (stage,) = {p.parent for p in found.out.glob("stages/*/known.json")} - {
        p.parent for p in found.out.glob("stages/*/manifest.json")
    }  # fmt: skip
    assert f"Remove it and {stage}, which was begun with it: " in str(error.value)


# --------------------------------------------------------------------------------------- stopped


def test_what_a_stopped_stage_has_scored_is_known(found: Place, copied: Place) -> None:
    with stopped_at(block=1):
        score(found, 5)
    assert QUERIES / 2 * 5 <= known(score(found, 6)) < QUERIES * 5
    resumed = score(found, 5)
    assert known(resumed) == 0  # As when it was begun, and so the same bytes.
    assert resumed.manifest == score(copied, 5).manifest
    assert known(score(found, 7)) >= QUERIES * 6


def test_a_stage_without_a_block_yet_knows_a_store_that_it_is_given_then(
    found: Place, copied: Place, tmp_path: Path
) -> None:
    store = f"cluster.pairs={tmp_path / 'store'}"
    score(copied, 5, store)
    with stopped_at(block=0):
        score(found, 6)
    assert known(score(found, 6, store)) >= QUERIES * 5


def test_a_stage_killed_before_its_scores_were_kept_is_known(
    found: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(labelling, "keep_pairs", killed)
        with pytest.raises(KeyboardInterrupt):
            score(found, 5)
    assert not (found.out / "pairs").exists()
    assert known(score(found, 6)) >= QUERIES * 5


def test_equal_files_of_two_stages_are_one(found: Place) -> None:
    """The deeper list's blocks are all known, and each leaves a file without pairs."""
    score(found, 5)
    score(found, 6)
    assert known(score(found, 5, "score.precision=float32")) == QUERIES * 5
    files = list(found.out.glob("pairs/*/float32/*.npy"))
    assert len(files) == 2 + 2 + 1
    assert all(artifacts.file_sha256(path) == path.stem for path in files)
