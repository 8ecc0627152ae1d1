"""A stage that does next to nothing, for the tests of what runs stages; Ray's actors import it."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from rocketray.artifacts import Draft, Made, Version
from rocketray.engine.bulk import Job
from rocketray.errors import UserError


class Double:
    """Twice each number of a block; refuses 13, breaks on 14."""

    code = 1
    made: list[Any] = []  # noqa: RUF012  (counts over instances, within this process)

    def __init__(self, *, factor: int = 2, table: str | None = None, place: str = "") -> None:
        self.factor = factor
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


def job(draft: Draft, items: list[list[int]], factor: int = 2) -> Job:
    keys = [f"{item}" for item in items]
    return Job(draft, Double, {"factor": factor}, items, keys)
