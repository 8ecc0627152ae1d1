"""Bulk work: any stage over the blocks of a table, on Ray Data.

A stage is a plain class, made once per worker from settings and paths and called with one item
per block:

    class Encode:
        code = 1                                     # raised when its results change
        light = False                                # a block takes a fraction of a second
        def __init__(self, *, model: str, ...): ...  # heavy state, from paths and plain values
        def __call__(self, item) -> Made: ...        # one block: parts, rows, facts

Ray carries block numbers out and receipts back; data go through files. A block is committed by
the worker that made it, so a lost worker, node or driver costs only the blocks in flight.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rocketray.artifacts import Draft, Made, commit_block
from rocketray.engine.cluster import connect, cpus, has_gpus
from rocketray.errors import UserError
from rocketray.recipe import Cluster

QUICK_BLOCKS = 32
"""So many blocks of a light stage are made before a pool of workers would have started."""


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
    """What the stage is called with, by block number."""
    keys: Sequence[str]
    """What each block depends on, by block number (`Draft.adopt`)."""

    @property
    def is_quick(self) -> bool:
        """Done here before a pool of workers could start, which takes seconds."""
        return getattr(self.stage, "light", False) and len(self.items) <= QUICK_BLOCKS

    def todo(self) -> list[int]:
        done = self.draft.receipts()
        return [number for number in range(len(self.items)) if number not in done]


@dataclass(frozen=True)
class Receipt:
    """One block is done: what Ray brings back."""

    job: int
    block: int
    rows: int
    seconds: float
    worker: str
    error: str


class Worker:
    """Runs on Ray Data's actors, or in this process: makes blocks and commits them."""

    def __init__(self, jobs: Sequence[Job], threads: int = 1) -> None:
        self.jobs = jobs
        self.stages: dict[int, Stage] = {}
        _set_threads(threads)

    def make(self, job_number: int, block: int) -> Receipt:
        start = time.monotonic()
        job = self.jobs[job_number]
        try:
            if job_number not in self.stages:
                self.stages = {job_number: job.stage(**job.settings)}  # One model at a time.
            made = self.stages[job_number](job.items[block])
            commit_block(
                job.draft.path, block, made.parts, rows=made.rows, key=job.keys[block],
                facts=made.facts,
            )  # fmt: skip
        except UserError as error:
            return Receipt(job_number, block, 0, 0.0, _name(), str(error))
        return Receipt(job_number, block, made.rows, time.monotonic() - start, _name(), "")

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        receipts = [
            self.make(int(job), int(block))
            for job, block in zip(batch["job"], batch["block"], strict=True)
        ]
        return {name: [getattr(r, name) for r in receipts] for name in Receipt.__annotations__}


def run_jobs(jobs: Sequence[Job], cluster: Cluster, done: Callable[[Receipt], None]) -> None:
    """Make every missing block of the jobs, calling `done` for each as it comes.

    Several jobs share one pool of workers (starting one takes seconds). The blocks, and so the
    bytes, are the same for any number of workers.

    Raises:
        UserError: a stage refused its data.
    """
    work = [(number, block) for number, job in enumerate(jobs) for block in job.todo()]
    here = cluster.bulk.actors == 0 or all(job.is_quick for job in jobs)
    receipts = _here(jobs, work) if here else _on_ray(jobs, work, cluster)
    for receipt in receipts:
        if receipt.error:
            raise UserError(receipt.error)
        done(receipt)


def _here(jobs: Sequence[Job], work: Sequence[tuple[int, int]]) -> Iterator[Receipt]:
    worker = Worker(jobs)
    for job, block in work:
        yield worker.make(job, block)


def _on_ray(
    jobs: Sequence[Job], work: Sequence[tuple[int, int]], cluster: Cluster
) -> Iterator[Receipt]:
    if not work:
        return
    connect(cluster)
    import ray.data
    from ray.data import ActorPoolStrategy

    _quiet_ray_data()
    use_gpu = has_gpus() if cluster.bulk.gpus is None else cluster.bulk.gpus
    actors = min(cluster.bulk.actors or max(1, cpus()), len(work))
    items = [{"job": job, "block": block} for job, block in work]
    receipts = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Worker,
        fn_constructor_kwargs={"jobs": list(jobs)},
        batch_size=1,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=1 if use_gpu else 0,
    )
    for row in receipts.iter_rows():
        yield Receipt(**row)


def _quiet_ray_data() -> None:
    """Ray Data's own bars and notices; rocketray shows progress in the user's words."""
    import logging

    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _set_threads(threads: int) -> None:
    # One thread per worker: as fast on all cores together, and sums do not depend on the machine.
    # Stages that need no torch have not imported it by now, and starting them stays quick.
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def _name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
