"""What Ray's metrics, and so Prometheus, hear of a run: `ray_rocketray_*` at a node's metrics port.

The driver counts blocks as they come; worker 0 tells of training's steps. Ray's own metrics say how
busy the machines are, these what came of it.
"""

from __future__ import annotations


class BulkMetrics:
    """Counters by stage, of this process."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter

        words = {
            "blocks": "Blocks made",
            "rows": "Rows of these blocks",
            "tokens": "Tokens that models read for them",
            "block_seconds": "Seconds that workers spent on them",
        }
        self.counters = {
            name: Counter(f"rocketray_{name}", description=text, tag_keys=("stage",))
            for name, text in words.items()
        }

    def count(self, stage: str, **amounts: float) -> None:
        for name, amount in amounts.items():
            if amount > 0:  # Ray refuses to count by nothing.
                self.counters[name].inc(amount, {"stage": stage})


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
