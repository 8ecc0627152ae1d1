"""Several worker processes for tests: started once, then given functions to run as a group.

Groups are gloo with a file as rendezvous: no ports to collide. Every wait has an end.
"""

from __future__ import annotations

import os
import traceback
import uuid
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

from rocketray.model.threads import set_threads

SECONDS = 120


class Workers:
    """A pool of processes; `run` makes some of them a torch.distributed group."""

    def __init__(self, count: int, folder: Path) -> None:
        context = mp.get_context("spawn")
        self.folder = folder
        self._ends: list[Connection] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def run(self, world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What `function(*args)` returned on each of `world` workers, in rank order.

        The function is found by its name, so it stands at the top of a test module.
        """
        rendezvous = self.folder / uuid.uuid4().hex
        for rank, end in enumerate(self._ends[:world]):
            end.send((rendezvous, rank, world, function, args))
        answers = [self._answer(end) for end in self._ends[:world]]
        failures = [f"worker {rank}:\n{text}" for rank, (ok, text) in enumerate(answers) if not ok]
        if failures:
            raise AssertionError("\n".join(failures))
        return [value for _, value in answers]

    def _answer(self, end: Connection) -> tuple[bool, Any]:
        if not end.poll(SECONDS):
            self.stop()
            raise AssertionError(f"a worker gave no answer in {SECONDS} s.")
        answer: tuple[bool, Any] = end.recv()
        return answer

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(end: Connection) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    set_threads(1)
    while True:
        rendezvous, rank, world, function, args = end.recv()
        try:
            _join(rendezvous, rank, world)
            answer = (True, function(*args))
        except BaseException:
            answer = (False, traceback.format_exc())
        if dist.is_initialized():
            dist.destroy_process_group()
        end.send(answer)


def _join(rendezvous: Path, rank: int, world: int) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=SECONDS / 2),
    )
    dist.barrier()  # A quick worker must not leave while a slow one is still connecting.
