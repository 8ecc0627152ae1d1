"""What all benchmarks share: interleaved timings, ratios with their spread, a list of results.

A timing alone says little: machines differ and other work interferes. So peers run in turns (ours,
theirs, ours, theirs ...) in the same process, and what is reported is the ratio of each round, its
median and its range.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from rocketray.model.threads import set_threads


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of a benchmark; `rocketray` against a `peer` or a limit in the same run."""

    name: str
    value: float
    unit: str
    peer: str = ""
    ratio: float | None = None
    """Median over rounds, larger or smaller than 1 as `better` says."""
    low: float | None = None
    high: float | None = None
    """Range of the ratio over rounds."""
    target: float | None = None
    better: Literal["higher", "lower"] = "higher"

    @property
    def met(self) -> bool | None:
        """Whether the ratio, or where there is none the value, reaches the target."""
        if self.target is None:
            return None
        found = self.value if self.ratio is None else self.ratio
        return found >= self.target if self.better == "higher" else found <= self.target


def interleaved(
    work: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each piece of work in each round, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(-warmup, rounds):
        for name, do in work.items():
            start = time.perf_counter()
            do()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(over: list[float], under: list[float]) -> dict[str, float]:
    """Median and range of over/under, round by round: fields of a `Result`."""
    each = [a / b for a, b in zip(over, under, strict=True)]
    return {"ratio": statistics.median(each), "low": min(each), "high": max(each)}


def report(results: list[Result], file: Path | None, facts: Mapping[str, Any]) -> None:
    """Print them, and write them as JSON where a file is named."""
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for result in results:
        print(line(result))
    if file is not None:
        file.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n", encoding="utf-8")


def line(r: Result) -> str:
    """One result for people; for long benchmarks also as soon as it is there."""
    ratio = "" if r.ratio is None else f"  ratio {r.ratio:.3f} [{r.low:.3f}, {r.high:.3f}]"
    peer = f" against {r.peer}" if r.peer else ""
    sign = ">=" if r.better == "higher" else "<="
    met = {None: "", True: "  met", False: "  NOT MET"}[r.met]
    target = "" if r.target is None else f"  target {sign} {r.target:g}{met}"
    return f"{r.name:<44} {r.value:>12.5g} {r.unit:<12}{peer}{ratio}{target}"


def peak(device: str) -> int:
    """Bytes: the most this process has held since the last call."""
    if device != "cpu":
        found = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return found
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    Path("/proc/self/clear_refs").write_text("5")  # Begins a new peak.
    return found


def in_two_processes(work: Callable[..., Any], *args: Any) -> list[Any]:
    """What a function gives on each of two processes of one gloo group, a thread each."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    file = Path(tempfile.gettempdir()) / f"rocketray-{uuid.uuid4().hex}"
    processes = [
        context.Process(target=_join, args=(rank, str(file), work, args, answers))
        for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=3600) for _ in processes)
    for process in processes:
        process.join()
    file.unlink(missing_ok=True)
    for answer in found.values():
        if isinstance(answer, str):
            raise RuntimeError(answer)
    return [found[0], found[1]]


def _join(rank: int, file: str, work: Callable[..., Any], args: Any, answers: Any) -> None:
    """Answers with what the work gives, or with the traceback."""
    set_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    try:
        answers.put((rank, work(*args)))
        dist.barrier()
    except Exception:
        answers.put((rank, traceback.format_exc()))
    dist.destroy_process_group()
