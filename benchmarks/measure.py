"""What all benchmarks share: interleaved timings, ratios with their spread, a list of results.

A timing alone says little: machines differ and other work interferes. So peers run in turns (ours,
theirs, ours, theirs ...) in the same process, and what is reported is the ratio of each round, its
median and its range.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


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
