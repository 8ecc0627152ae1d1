"""Where training's numbers go beside the JSON-lines log: TensorBoard, MLflow, Weights & Biases.

One worker tells them. MLflow and W&B are extras (`pip install mlflow`, `wandb`), and
are told by their own environment variables where to send things (MLFLOW_TRACKING_URI,
WANDB_MODE=offline ...).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from rocketray import storage
from rocketray.errors import UserError

log = logging.getLogger(__name__)

Name = Literal["tensorboard", "mlflow", "wandb"]
PACKAGES: Mapping[Name, str] = {
    "tensorboard": "tensorboardX",
    "mlflow": "mlflow",
    "wandb": "wandb",
}


class Tracker(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


def check(names: tuple[Name, ...]) -> None:
    """Before anything is started: are the packages there?

    Raises:
        UserError: one is not.
    """
    for name in names:
        _package(PACKAGES[name], name)


class Trackers:
    """All of a run's trackers. One that fails is left out from then on: training matters more.

    Args:
        run: what people call it, such as "dual_0".
        folder: the version's own, so it tells one run from another.
        done: steps that are done already; what was told of later ones is replaced where it can be.
    """

    def __init__(self, names: tuple[Name, ...], run: str, folder: Path, done: int) -> None:
        kinds: Mapping[str, Any] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": Wandb}
        self._all: list[Tracker] = []
        for name in names:
            with self._spared(name, done):
                self._all.append(kinds[name](run, folder, done))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in list(self._all):
            with self._spared(tracker, step):
                tracker.log(step, values)

    def close(self) -> None:
        for tracker in list(self._all):
            with self._spared(tracker, None):
                tracker.close()

    @contextlib.contextmanager
    def _spared(self, tracker: Tracker | Name, step: int | None) -> Iterator[None]:
        """Networks, quotas, disks: theirs to fail, never ours."""
        try:
            yield
        except Exception as error:
            name = tracker if isinstance(tracker, str) else type(tracker).__name__
            log.warning("%s failed at step %s and is told no more: %r", name, step, error)
            if not isinstance(tracker, str):
                self._all.remove(tracker)


class TensorBoard:
    """Event files in `FOLDER/tensorboard`: `tensorboard --logdir` on the run's `stages`."""

    def __init__(self, run: str, folder: Path, done: int) -> None:
        writer = _package("tensorboardX", "tensorboard").SummaryWriter
        self.folder = folder / "tensorboard"
        # A name is a second's and a host's: one that goes on within it must not take the other's.
        suffix = f".{done}"
        self.writer = writer(str(self.folder), purge_step=done + 1, filename_suffix=suffix)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()
        storage.push(self.folder)


class MLflow:
    """A run of MLflow; going on after a stop begins another, with the same name."""

    def __init__(self, run: str, folder: Path, done: int) -> None:
        self.mlflow = _package("mlflow", "mlflow")
        self.mlflow.start_run(run_name=run, tags={"folder": str(folder), "from_step": str(done)})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # Its names allow no "@".
        self.mlflow.log_metrics({k.replace("@", "_"): v for k, v in values.items()}, step=step)

    def close(self) -> None:
        self.mlflow.end_run()


class Wandb:
    """A run of W&B's project `rocketray`, the same one after a stop."""

    def __init__(self, run: str, folder: Path, done: int) -> None:
        wandb = _package("wandb", "wandb")
        # By the place: the same recipe in another folder is another run.
        own = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self.run = wandb.init(project="rocketray", name=run, id=own, resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"cluster.train.trackers names {extra!r}, but the package {name} is not installed:"
            f" pip install {name}."
        ) from error
