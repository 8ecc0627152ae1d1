"""Blocks that kill their worker: attempts are counted, then the rows to blame are found.

Ray starts a lost worker again and hands it the same block, for ever. So a worker leaves a mark
before it makes a block and takes it away afterwards; a worker that is killed cannot. Who finds
`ATTEMPTS` marks makes the block in a process of its own. Mostly that succeeds: machines were lost,
and nothing is wrong with the rows. Where that process dies too, halves of the block are tried until
single rows are found. They are left out of the block, up to `blocks.quarantine` of a stage.

A stage that can do without some rows has, beside `__call__(item)`,

    def rows(self, item) -> np.ndarray: ...      # the table rows of a block, by position
    def __call__(self, item, without=()): ...    # table rows to leave out; positions stay

What it yields for such a row: Tokenise no tokens, Encode NaN, stages over queries empty lists. What
Tokenise has left out is left out by those that read its tokens (`Version.left_out`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rocketray import storage
from rocketray.artifacts import Made, Version
from rocketray.errors import UserError
from rocketray.model.threads import set_threads

if TYPE_CHECKING:
    from rocketray.engine.bulk import Job

ATTEMPTS = 3
"""So many workers may be lost over a block, as spot machines are, before its rows are suspected."""
LAST_ATTEMPT = 12
"""Then even the careful way is killed from outside each time, and somebody has to look."""


# ------------------------------------------------------------------------------------ attempts


@contextmanager
def attempt(folder: Path, block: int, worker: str) -> Iterator[int]:
    """Leave a mark while a block is made; gives how many lost workers left theirs before, on
    whatever node."""
    marks, name = folder / "attempts", f"{block:05d}-"
    lost = [mark for mark in storage.entries(marks) if mark.name.startswith(name)]
    mine = marks / f"{name}{uuid.uuid4().hex[:8]}"
    marks.mkdir(parents=True, exist_ok=True)
    # Not synced, as a receipt is: who loses power forgets a mark, and the block is tried once more.
    mine.write_text(worker, encoding="utf-8")
    storage.push(mine)
    try:
        if len(lost) >= LAST_ATTEMPT:
            for mark in lost:  # Whoever starts the stage again has mended something.
                storage.remove(mark)
            raise UserError(
                f"{folder.name}: block {block} was begun {len(lost)} times, and each worker was"
                " killed before the end. No row is to blame: look at the memory of the machines."
                " The same command tries again."
            )
        yield len(lost)
    finally:
        storage.remove(mine)


# ------------------------------------------------------------------------------- in a child


@dataclass(frozen=True)
class Death:
    """A child ended without an answer."""

    how: str
    """`SIGSEGV`, or `exit code 3`."""


class Child:
    """A process that makes one block, without some rows, as often as it is asked to.

    It is started again when it has died. Started afresh and not forked: a fork of a process with
    threads (torch's, Ray's) may hang; nor by multiprocessing, which would run a person's script
    again in every child.
    """

    def __init__(self, job: Job, block: int) -> None:
        self.job = replace(job, items=[job.items[block]], keys=[job.keys[block]])
        self.process: subprocess.Popen[bytes] | None = None

    def rows(self) -> np.ndarray | Death:
        """Table rows of the block."""
        rows: np.ndarray | Death = self._ask(None)
        return rows

    def make(self, without: np.ndarray) -> Made | Death:
        made: Made | Death = self._ask(without)
        return made

    def _ask(self, question: np.ndarray | None) -> Any:
        """The answer, or how the child died. What it raised is raised here."""
        process = self.process or self._start()
        try:
            self.pipe.send(question)
            kind, answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process = None
            return Death(_end(process))
        if kind == "refused":
            raise UserError(answer)
        if kind == "broken":
            raise RuntimeError(answer)
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        self.pipe, theirs = multiprocessing.Pipe()
        code = f"from rocketray.engine.poison import serve; serve({theirs.fileno()})"
        path = {"PYTHONPATH": os.pathsep.join(sys.path)}
        process = self.process = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=[theirs.fileno()], env={**os.environ, **path}
        )
        theirs.close()  # Or its end would never be noticed.
        try:
            self.pipe.send(self.job)
            self.pipe.recv()
        except (EOFError, OSError):  # Before it has touched the stage: no row is to blame.
            raise RuntimeError(
                f"A process for {self.job.stage} did not start ({_end(process)})."
            ) from None
        return process

    def close(self) -> None:
        if self.process is not None:
            self.pipe.close()
            self.process.wait()


def _end(process: subprocess.Popen[bytes]) -> str:
    """How a process that has gone ended."""
    code = process.wait()
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def serve(handle: int) -> None:
    """The child: answers until its parent has no more questions, or is gone."""
    pipe = Connection(handle)
    job: Job = pipe.recv()
    pipe.send("ready")
    set_threads(1)  # As in every worker (engine/bulk): the same bytes.
    stage: Any = None
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        try:
            stage = stage or job.stage(**job.settings)
            pipe.send(("made", _answer(stage, job.items[0], question)))
        except UserError as error:
            pipe.send(("refused", str(error)))
        except Exception:
            pipe.send(("broken", traceback.format_exc()))


def _answer(stage: Any, item: Any, question: np.ndarray | None) -> Any:
    if question is None:
        return stage.rows(item)
    return stage(item, question) if len(question) else stage(item)


# ----------------------------------------------------------------------------------- the search


def careful(job: Job, block: int) -> tuple[Made, list[tuple[int, str]]]:
    """A block whose workers died, made in a child, and the rows it had to leave out: the place of
    each in the block (from 0, ascending), and how it ends its process. Places, for another version
    may adopt the block where its rows have other numbers.

    Raises:
        UserError: rows kill their process, and more of them than may be left out; or the block
            does, and no single row is to blame.
    """
    child = Child(job, block)
    try:
        made = child.make(np.empty(0, np.int64))
        if isinstance(made, Made):
            return made, []
        if not hasattr(job.stage, "rows"):
            why = "this stage cannot leave rows out; look at its rows, and at the machine's memory"
            raise _refusal(job, block, made, why)
        rows = child.rows()
        if isinstance(rows, Death):
            raise _refusal(job, block, rows, "it dies before it has seen a row")
        found = _search(job, child, made, rows)
        made = child.make(np.array(list(found), np.int64))
        if isinstance(made, Death):
            raise _refusal(job, block, made, "no single row does it; look at the machine's memory")
        return made, [(n, found[row]) for n, row in enumerate(rows.tolist()) if row in found]
    finally:
        child.close()


def _search(job: Job, child: Child, death: Death, rows: np.ndarray) -> dict[int, str]:
    """The rows to leave out, and how each ends its process."""

    def kills(some: np.ndarray) -> Death | None:
        made = child.make(np.setdiff1d(rows, some))
        return made if isinstance(made, Death) else None

    before, found = quarantined(job.draft.receipts().values()), dict[int, str]()
    for row, alone in culprits(rows, death, kills):
        found[row] = alone.how
        if before + len(found) > job.quarantine:
            which = named(Version.open(job.people) if job.people else None, row)
            raise UserError(
                f"{job.draft.stage}: {which} kills its worker ({alone.how}), also alone in"
                " a process of its own. Remove it from the data, or let"
                f" blocks.quarantine (now {job.quarantine}) rows of a stage be left out."
            )
    return found


def culprits(
    rows: np.ndarray, death: Death, kills: Callable[[np.ndarray], Death | None]
) -> Iterator[tuple[int, Death]]:
    """Rows that kill a process by themselves, by bisection; `rows` together do, by `death`.

    About 2 log2(rows) trials for each. Rows that kill only together are not found.
    """
    if len(rows) == 1:
        yield int(rows[0]), death
        return
    for half in np.array_split(rows, 2):
        if how := kills(half):
            yield from culprits(half, how, kills)


def quarantined(blocks: Any) -> int:
    """How many rows these receipts or manifest entries were made without."""
    return sum(len(block["facts"].get("quarantined", ())) for block in blocks)


def named(table: Version | None, row: int) -> str:
    """A row of passages or questions, with its id where the table is known."""
    if table is None:
        return f"row {row}"
    found = table.take(np.array([row]), "pid", "qid")  # It has one of the two.
    return f"row {row} of {table.name} ({found.column_names[0]} {found[0][0].as_py()!r})"


def _refusal(job: Job, block: int, death: Death, why: str) -> UserError:
    place = getattr(job.items[block], "place", None)
    which = f"block {block} ({place})" if place else f"block {block}"
    return UserError(
        f"{job.draft.stage}: {which} kills its worker ({death.how}), also in a process of its"
        f" own, and {why}."
    )
