"""trackers.py: who is told, and what is said when a package is missing. What TensorBoard reads is
tested with the trainer."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from rocketray.errors import UserError
from rocketray.model import trackers


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named_with_its_cure(name: trackers.Name) -> None:
    with (
        mock.patch.dict(sys.modules, {name: None}),
        pytest.raises(UserError, match=rf"{name} is not installed: pip install {name}\."),
    ):
        trackers.check((name,))


def test_mlflow_gets_names_it_allows(tmp_path: Path) -> None:
    package = mock.MagicMock()
    with mock.patch.dict(sys.modules, {"mlflow": package}):
        tracker = trackers.Trackers(("mlflow",), "dual_0", tmp_path, 7)
        tracker.log(8, {"dev_mrr@10": 0.5})
        tracker.close()
    assert package.start_run.call_args.kwargs["run_name"] == "dual_0"
    package.log_metrics.assert_called_once_with({"dev_mrr_10": 0.5}, step=8)
    package.end_run.assert_called_once_with()


def test_wandb_goes_on_with_the_same_run(tmp_path: Path) -> None:
    run = mock.MagicMock()
    package = SimpleNamespace(init=mock.MagicMock(return_value=run))
    with mock.patch.dict(sys.modules, {"wandb": package}):
        tracker = trackers.Trackers(("wandb",), "dual_0", tmp_path, 0)
        tracker.log(1, {"loss": 2.0})
        tracker.close()
        trackers.Trackers(("wandb",), "dual_0", tmp_path, 1)
        trackers.Trackers(("wandb",), "dual_0", tmp_path / "other", 0)
    first, again, other = (call.kwargs for call in package.init.call_args_list)
    assert (first["resume"], first["name"]) == ("allow", "dual_0")
    assert first["id"] == again["id"] != other["id"]
    run.log.assert_called_once_with({"loss": 2.0}, step=1)


def test_who_goes_on_within_a_second_leaves_the_curves_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine of the same name, say, which then shares the store's folder."""
    monkeypatch.setattr(time, "time", lambda: 1e9)
    for done in (0, 3):
        tracker = trackers.Trackers(("tensorboard",), "dual_0", tmp_path, done)
        tracker.log(done + 1, {"loss": 2.0})
        tracker.close()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
