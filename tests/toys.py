"""Stages that do next to nothing, for the tests of what runs stages; Ray's actors import them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rocketray.artifacts import Draft, Made, Version
from rocketray.engine.bulk import Job
from rocketray.errors import UserError


class Double:
    """Twice each number of a block; refuses 13, breaks on 14."""

    code = 1
    made: list[Any] = []  # noqa: RUF012  (counts over instances, within this process)

    def __init__(
        self, *, factor: int = 2, table: str | None = None, place: str = "", gpu: bool | None = None
    ) -> None:
        self.factor = factor
        self.told = gpu
        self.table = Version.open(table) if table else None

    def __call__(self, item: Any) -> Made:
        Double.made.append(item)
        numbers = self.table.table(item)["n"].to_pylist() if self.table else item
        if 13 in numbers:
            raise UserError("numbers.txt, line 3: 13 is unlucky.")
        if 14 in numbers:
            raise RuntimeError("a bug")
        doubled = pa.table({"n": pa.array([self.factor * n for n in numbers], pa.int64())})
        return Made({"table": doubled}, len(numbers), {"numbers": len(numbers)})


class Placed(Double):
    """Says whether a GPU is its own."""

    gpu = True

    def __call__(self, item: Any) -> Made:
        made = super().__call__(item)
        return Made(made.parts, made.rows, {"gpu": self.told})


class Slow(Double):
    """Takes half a second a block, until there is a file `hurry`."""

    def __init__(self, *, hurry: str = "") -> None:
        super().__init__()
        self.hurry = hurry

    def __call__(self, item: Any) -> Made:
        if not os.path.exists(self.hurry):
            time.sleep(0.5)
        return super().__call__(item)


class Hung(Double):
    """Stops in the middle of its first block, as if somebody had stopped its process."""

    def __init__(self, *, once: str) -> None:
        super().__init__()
        self.once = once

    def __call__(self, item: Any) -> Made:
        if not os.path.exists(self.once):
            open(self.once, "w").close()
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().__call__(item)


class SlowPlaced(Slow):
    """On a GPU, where there is one."""

    gpu = True

    def __init__(self, *, gpu: bool) -> None:
        super().__init__()


class Deadly(Double):
    """Is killed by the number `kills`, and by `crowd` numbers at once. Numbers are their own rows;
    one that is left out becomes 0."""

    def __init__(self, *, kills: int = 666, crowd: int = 99) -> None:
        super().__init__()
        if kills == -1:
            os.kill(os.getpid(), signal.SIGKILL)
        self.kills, self.crowd = kills, crowd

    def rows(self, item: list[int]) -> np.ndarray:
        return np.array(item)

    def __call__(self, item: list[int], without: Sequence[int] = ()) -> Made:
        here = [number for number in item if number not in without]
        if self.kills in here or len(here) >= self.crowd:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__([number if number in here else 0 for number in item])


def begun(draft: Draft) -> Draft:
    """With its folder, as a workflow makes it before any worker comes."""
    draft.path.mkdir(parents=True, exist_ok=True)
    return draft


def job(draft: Draft, items: list[list[int]], factor: int = 2) -> Job:
    keys = [f"{item}" for item in items]
    return Job(begun(draft), Double, {"factor": factor}, items, keys)


def deadly(
    draft: Draft, items: list[list[int]], quarantine: int = 0, stage: Any = Deadly, **settings: int
) -> Job:
    keys = [f"{item}" for item in items]
    return Job(begun(draft), stage, dict(settings), items, keys, quarantine)
