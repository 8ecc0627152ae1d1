"""Bulk work: any stage over the blocks of a table, on Ray Data.

A stage is a plain class, made once per worker from settings and paths and called with one item
per block:

    class Encode:
        code = 1                                     # raised when its results change
        light = False                                # a block takes a fraction of a second
        gpu = True                                   # it is told `gpu`: whether one is its own
        def __init__(self, *, model: str, ...): ...  # heavy state, from paths and plain values
        def __call__(self, item) -> Made: ...        # one block: parts, rows, facts

Ray carries block numbers out and receipts back; data go through files. A block is committed by
the worker that made it, so a lost worker, node or driver costs only the blocks in flight. A block
that kills its workers ends in `poison`.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rocketray import storage
from rocketray.artifacts import Draft, Made, commit_block
from rocketray.engine import poison
from rocketray.engine.cluster import SHARED, connect, is_here, sees
from rocketray.engine.metrics import BulkMetrics
from rocketray.engine.room import PATIENCE, of_bulk
from rocketray.errors import UserError
from rocketray.meanwhile import meanwhile
from rocketray.model.threads import set_threads
from rocketray.recipe import Cluster

QUICK_BLOCKS = 32
"""So many blocks of a light stage are made before a pool of workers would have started."""
RESTARTS = 3
"""So often a pool that Ray broke is begun anew without a block done in between."""
SILENCE = 600.0
"""Seconds without a block, after which a person is told who has which..."""
SILENCES = 5
"""...and as many times the longest block so far, where that is more."""
NAMED = 8
"""So many of them are named."""
KEEP_SECONDS = 10.0
"""So long a process without a block keeps its stage: training wants the memory of its model."""


class Stage(Protocol):
    def __call__(self, item: Any) -> Made: ...


@dataclass(frozen=True)
class Job:
    """One stage over the blocks of one table."""

    draft: Draft
    stage: Callable[..., Stage]
    settings: dict[str, Any]
    """Keyword arguments of the stage: paths and plain values, never weights."""
    items: Sequence[Any]
    """What the stage is called with, by block number. Errors name one by its `place`, such as a
    file and a line, where it has one."""
    keys: Sequence[str]
    """What each block depends on, by block number (`Draft.adopt`)."""
    quarantine: int = 0
    """So many rows that kill their worker may be left out."""
    people: str = ""
    """The table of passages or questions whose rows the stage's are, to name them by their ids."""

    @property
    def is_quick(self) -> bool:
        """Done here before a pool of workers could start, which takes seconds."""
        return getattr(self.stage, "light", False) and len(self.items) <= QUICK_BLOCKS

    def todo(self) -> list[int]:
        done = self.draft.receipts()
        return [number for number in range(len(self.items)) if number not in done]


@dataclass(frozen=True)
class Receipt:
    """One block is done, or why it is not: what Ray brings back."""

    job: int
    block: int
    rows: int = 0
    tokens: int = 0
    """Where the stage counts them."""
    seconds: float = 0.0
    worker: str = ""
    error: str = ""
    """What a person can mend."""
    bug: str = ""
    """The traceback of anything else."""


class Worker:
    """Runs on Ray Data's actors, or in this process: makes blocks and commits them."""

    def __init__(self, jobs: Sequence[Job], threads: int = 1) -> None:
        self.jobs = jobs
        self.stages: dict[int, Stage] = {}
        # One is as fast on all cores together, and sums do not depend on the machine.
        set_threads(threads)

    def make(self, job_number: int, block: int) -> Receipt:
        """One block: made, committed, told of.

        Raises:
            UserError: the stage refuses its data, or this machine does not see the run folder.
            Exception: a bug, with a note on where.
        """
        job, me = self.jobs[job_number], _name()
        _check_sight(job.draft.path)
        try:
            with poison.attempt(job.draft.path, block, me) as lost:
                start = time.monotonic()
                stage = self._stage(job_number) if lost < poison.ATTEMPTS else None
                loaded = time.monotonic()
                made = stage(job.items[block]) if stage else self._careful(job, block)
                seconds = time.monotonic() - loaded
                about = {"worker": me, "attempts": lost + 1, "seconds": round(seconds, 3),
                         "loading": round(loaded - start, 3)}  # fmt: skip
                commit_block(
                    job.draft.path, block, made.parts, rows=made.rows, key=job.keys[block],
                    facts=made.facts, about=about,
                )  # fmt: skip
        except UserError:
            raise
        except Exception as error:
            error.add_note(f"In stage {job.draft.stage}, block {block}, on {me}.")
            raise
        tokens = made.facts.get("tokens", 0)
        return Receipt(job_number, block, made.rows, tokens, seconds, me)

    def _stage(self, number: int) -> Stage:
        if number not in self.stages:
            job = self.jobs[number]
            self.stages.clear()  # First: two models may be one too many.
            self.stages[number] = job.stage(**job.settings)
        return self.stages[number]

    def _careful(self, job: Job, block: int) -> Made:
        self.stages.clear()  # The child needs the room, and on a GPU all of it.
        if torch := sys.modules.get("torch"):
            torch.cuda.empty_cache()
        made, left_out = poison.careful(job, block)
        facts = {**made.facts, "quarantined": left_out} if left_out else made.facts
        return Made(made.parts, made.rows, facts)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        receipts = [
            self._told(int(job), int(block))
            for job, block in zip(batch["job"], batch["block"], strict=True)
        ]
        return {name: [getattr(r, name) for r in receipts] for name in Receipt.__annotations__}

    def _told(self, job: int, block: int) -> Receipt:
        """Errors as words: Ray would wrap an exception in its own, traceback upon traceback."""
        try:
            return self.make(job, block)
        except UserError as error:
            return Receipt(job, block, error=str(error))
        except Exception:
            return Receipt(job, block, bug=traceback.format_exc())


class Kept:
    """The worker of this process, from one block to the next; let go of when none comes."""

    def __init__(self) -> None:
        self.pool = ""
        self.worker: Worker | None = None
        self.timer = threading.Timer(0, self.forget)

    def __call__(
        self, batch: dict[str, Any], pool: str, jobs: Sequence[Job]
    ) -> dict[str, list[Any]]:
        self.timer.cancel()
        worker = self.worker if self.pool == pool else None
        if worker is None:
            self.worker = None  # First: two models may be one too many.
            self.pool, self.worker = pool, (worker := Worker(jobs))
        try:
            return worker(batch)
        finally:
            self.timer = threading.Timer(KEEP_SECONDS, self.forget)
            self.timer.daemon = True
            self.timer.start()

    def forget(self) -> None:
        self.worker = None


_kept = Kept()


def _by_kept_worker(batch: dict[str, Any], pool: str, jobs: Sequence[Job]) -> dict[str, list[Any]]:
    """A module's function: Ray finds it by name in its process, and with it what is kept there."""
    return _kept(batch, pool, jobs)


def run_jobs(
    jobs: Sequence[Job],
    cluster: Cluster,
    done: Callable[[Receipt], None],
    say: Callable[[str], None] = print,
) -> None:
    """Make every missing block of the jobs, calling `done` for each as it comes.

    Several jobs share one pool of workers (starting one takes seconds). The blocks, and so the
    bytes, are the same for any number of workers, in whatever order they are made.

    Args:
        say: is told what keeps the pool waiting.

    Raises:
        UserError: a stage refused its data, rows kill their workers, or no machine of the cluster
            can hold a worker.
        RuntimeError: a bug in a stage; names stage and block and holds the traceback.
    """
    work = [(number, block) for number, job in enumerate(jobs) for block in job.todo()]
    here = cluster.bulk.actors == 0 or all(job.is_quick for job in jobs)
    receipts = _here(jobs, work, cluster) if here else _on_ray(jobs, work, cluster, say)
    with closing(receipts):
        for receipt in receipts:
            if receipt.error:
                raise UserError(receipt.error)
            if receipt.bug:
                raise RuntimeError(f"A stage broke.\n{receipt.bug}")
            done(receipt)


def _here(
    jobs: Sequence[Job], work: Sequence[tuple[int, int]], cluster: Cluster
) -> Generator[Receipt, None, None]:
    worker = Worker(_placed(jobs, cluster.bulk.gpus))
    for job, block in work:
        yield worker.make(job, block)


def _on_ray(
    jobs: Sequence[Job],
    work: Sequence[tuple[int, int]],
    cluster: Cluster,
    say: Callable[[str], None],
) -> Generator[Receipt, None, None]:
    """Receipts as they come, from one pool after another until none is missing.

    Ray Data lives through lost workers and nodes, but for gaps of its own: Ray 2.60 raises a
    KeyError when a block's location is gone by the time it counts locality. What was committed
    stays, so going on costs a new pool, where giving up would cost the user a night.
    """
    left, breaks = dict.fromkeys(work), 0
    while left:
        try:
            for receipt in _pool(jobs, list(left), cluster, say):
                left.pop((receipt.job, receipt.block), None)
                breaks = 0
                yield receipt
            return
        except UserError:
            raise
        except Exception as error:  # Ray's: those of a stage come as receipts.
            breaks += 1
            if breaks > RESTARTS:
                raise
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            say(f"  Ray Data broke ({what}). A new pool makes the {len(left)} blocks that miss.")


def _pool(
    jobs: Sequence[Job],
    work: Sequence[tuple[int, int]],
    cluster: Cluster,
    say: Callable[[str], None],
) -> Iterator[Receipt]:
    connect(cluster)
    import ray.data

    room = of_bulk(cluster.bulk, models=any(getattr(job.stage, "gpu", False) for job in jobs))
    asked = room.asked
    jobs = _placed(jobs, "GPU" in asked)
    room.wait(cluster, say)
    most = cluster.bulk.actors or (len(work) if room.grows() else max(1, room.now()))
    most = min(most, len(work))
    # Where machines come when asked for, ask for all at once: Ray Data alone would double its pool
    # each time a few blocks are done.
    asks = cluster.bulk.actors and room.grows()
    first = most if asks else max(1, min(most, room.now()))
    items = [{"job": job, "block": block} for job, block in work]
    silence = Silence(jobs, say)
    with (
        _quiet_ray_data(),
        room.watched(_signs(jobs, len(work)), say),
        meanwhile(silence.look, PATIENCE),
    ):
        how = _on_tasks(jobs, most) if is_here(cluster) and "GPU" not in asked else None
        receipts = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            **(how or _on_actors(jobs, first, most)),
            batch_size=1,
            num_cpus=asked["CPU"],
            num_gpus=asked.get("GPU", 0),
            resources={n: v for n, v in asked.items() if n not in ("CPU", "GPU")},
        )
        metrics = BulkMetrics()
        for row in receipts.iter_rows():
            receipt = Receipt(**row)
            silence.end(receipt.seconds)
            metrics.count(
                jobs[receipt.job].draft.stage, blocks=1, rows=receipt.rows, tokens=receipt.tokens,
                block_seconds=receipt.seconds,
            )  # fmt: skip
            yield receipt


def _placed(jobs: Sequence[Job], gpu: bool | None) -> list[Job]:
    """What computes on a GPU hears whether it has one: Ray hides none from those without."""
    return [
        replace(job, settings={**job.settings, "gpu": gpu})
        if getattr(job.stage, "gpu", False)
        else job
        for job in jobs
    ]


def _on_tasks(jobs: Sequence[Job], most: int) -> dict[str, Any]:
    """On this machine's own Ray: tasks, whose processes live on into the next pool. Actors' do not,
    and to import torch and transformers again takes seconds, in each of a run's dozen pools.

    Not with GPUs, where Ray ends a process after each task; nor on a cluster, where it is actors
    that wait for a place which make machines come.
    """
    from ray.data import TaskPoolStrategy

    told = {"pool": uuid.uuid4().hex, "jobs": list(jobs)}
    return {"fn": _by_kept_worker, "fn_kwargs": told, "compute": TaskPoolStrategy(size=most)}


def _on_actors(jobs: Sequence[Job], first: int, most: int) -> dict[str, Any]:
    """From one to the most: the pool follows the machines that come and go."""
    from ray.data import ActorPoolStrategy

    return {
        "fn": Worker,
        "fn_constructor_kwargs": {"jobs": list(jobs)},
        "compute": ActorPoolStrategy(min_size=1, max_size=most, initial_size=first),
    }


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Our settings of Ray Data, for as long as it works for us.

    rocketray shows progress in the user's words, and waits: a block may take an hour, and a pool
    may wait a day for a machine, where Ray Data would stop after half an hour.
    """
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with DataContext.current(context):
            yield
    finally:
        logger.setLevel(level)


def _signs(jobs: Sequence[Job], left: int) -> Callable[[], bool]:
    """Tells whether a worker has begun or made a block since now, when so many are missing."""
    folders = [job.draft.path / "attempts" for job in jobs]
    before = _marks(folders)

    def begun() -> bool:
        return bool(_marks(folders) - before) or sum(len(job.todo()) for job in jobs) < left

    return begun


class Silence:
    """Says once that no block has come for long, and who has which: for a worker that hangs (it was
    stopped, or reads from a disk that does not answer) the pool would wait without a word."""

    def __init__(self, jobs: Sequence[Job], say: Callable[[str], None]) -> None:
        self.stages = {job.draft.path / "attempts": job.draft.stage for job in jobs}
        self.before = _marks(self.stages)  # Left by workers that were lost.
        self.seen: dict[Path, float] = {}
        """Marks of workers, and when each was first seen."""
        self.say = say
        self.longest = 0.0
        self.end(0.0)

    def end(self, seconds: float) -> None:
        """A block has come; it took so long."""
        self.longest = max(self.longest, seconds)
        self.since, self.has_said = time.monotonic(), False

    def look(self) -> None:
        now = time.monotonic()
        with suppress(UserError, OSError):  # A mark goes just now; a store does not answer.
            marks = _marks(self.stages) - self.before
            self.seen = {mark: self.seen.get(mark, now) for mark in marks}
            # A block that was begun is a sign of life as well: machines may have come late.
            silent = now - max([self.since, *self.seen.values()])
            if self.has_said or silent < max(SILENCE, SILENCES * self.longest):
                return
            begun = [told for mark in self._newest() if (told := self._begun(mark))]
            if not begun:  # Who waits for a machine is told so (engine/room.py).
                return
            self.has_said = True
            more = f", and {len(begun) - NAMED} more" if len(begun) > NAMED else ""
            self.say(
                f"  no block has come for {silent / 60:.0f} minutes. Begun: "
                f"{', '.join(begun[:NAMED])}{more}. If one of these processes hangs, end it"
                " (kill -9): another makes its block."
            )

    def _newest(self) -> list[Path]:
        """The last mark of each block; those before it are of workers that were lost since."""
        newest = {}
        for mark in sorted(self.seen, key=self.seen.__getitem__):
            newest[mark.parent, mark.name.partition("-")[0]] = mark
        return sorted(newest.values())

    def _begun(self, mark: Path) -> str:
        """Nothing of one that is gone by now."""
        host, _, process = storage.tail(mark, 1000).decode().rpartition(":")
        block = f"{self.stages[mark.parent]} block {int(mark.name.partition('-')[0])}"
        return process and f"{block} by process {process} on {host}"


def _marks(folders: Iterable[Path]) -> set[Path]:
    return {mark for folder in folders for mark in storage.entries(folder)}


def _check_sight(folder: Path) -> None:
    """A worker that made a folder of its own would commit where nobody reads."""
    if not sees(folder):
        raise UserError(f"{socket.gethostname()} does not see {folder}: {SHARED}")


def _name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
