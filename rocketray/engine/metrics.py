"""What Ray's metrics, and so Prometheus, hear of a run: `ray_rocketray_*` at a node's metrics port.

The driver counts blocks as they come; worker 0 tells of training's steps. Ray's own metrics say how
busy the machines are, these what came of it.
"""

from __future__ import annotations

from typing import Protocol


class Made(Protocol):
    """A block that is done."""

    @property
    def rows(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def seconds(self) -> float: ...


class BulkMetrics:
    """Counters by stage, of this process."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter

        def counter(name: str, words: str) -> Counter:
            return Counter(f"rocketray_{name}", description=words, tag_keys=("stage",))

        self.blocks = counter("blocks", "Blocks made")
        self.rows = counter("rows", "Rows of these blocks")
        self.tokens = counter("tokens", "Tokens that models read for them")
        self.seconds = counter("block_seconds", "Seconds that workers spent on them")

    def count(self, stage: str, made: Made) -> None:
        told = ((self.blocks, 1), (self.rows, made.rows), (self.tokens, made.tokens),
                (self.seconds, made.seconds))  # fmt: skip
        for counter, amount in told:
            if amount > 0:  # Ray refuses to count by nothing.
                counter.inc(amount, {"stage": stage})


class TrainMetrics:
    """Gauges of one training, told after each step."""

    def __init__(self, model: str) -> None:
        from ray.util.metrics import Gauge

        def gauge(name: str, words: str) -> Gauge:
            made = Gauge(f"rocketray_{name}", description=words, tag_keys=("model",))
            made.set_default_tags({"model": model})
            return made

        self.step, self.steps = gauge("step", "Steps done"), gauge("steps", "Steps to do")
        self.loss = gauge("loss", "Loss of the last step")

    def __call__(self, step: int, steps: int, loss: float) -> None:
        self.step.set(step)
        self.steps.set(steps)
        self.loss.set(loss)
