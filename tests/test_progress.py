"""progress.py: rates and times left that a person can check."""

from __future__ import annotations

import io
from unittest import mock

import pytest
from rich.console import Console

from rocketray import progress
from rocketray.progress import Display, clock


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_a_resumed_meter_counts_what_was_done_since() -> None:
    """300 of 562 steps were done before; 20 more in 10 seconds, after 30 seconds of starting."""
    time, shown = Clock(), io.StringIO()
    display = Display(Console(file=shown, width=120))
    with mock.patch.object(progress, "time", time), display.meter("cross", 562, "steps") as meter:
        time.now += 30
        meter.begin(300)
        time.now += 10
        meter.at(320, "loss 0.250")
        assert meter.rate() == 2.0
        assert meter.words() == "320/562 steps, 2.0 steps/s, 2:01 left, loss 0.250"
    assert shown.getvalue().rstrip().endswith("[0:40]")  # The whole of it, starting included.


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.21, "3.2 s"), (75, "1:15"), (59.7, "1:00"), (3675, "1:01:15")]
)
def test_clock(seconds: float, words: str) -> None:
    assert clock(seconds) == words
