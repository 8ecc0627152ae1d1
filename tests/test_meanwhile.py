"""What is looked at while other work goes on, and no longer."""

from __future__ import annotations

import threading

import pytest

from rocketray.meanwhile import meanwhile


def test_it_looks_until_the_work_has_ended() -> None:
    threads, looks, thrice = threading.active_count(), list[int](), threading.Event()

    def look() -> None:
        looks.append(len(looks))
        if len(looks) == 3:
            thrice.set()

    with meanwhile(look, 0.001):
        assert thrice.wait(30)
    assert threading.active_count() == threads
    assert looks[:3] == [0, 1, 2]


def test_it_ends_with_work_that_fails() -> None:
    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError), meanwhile(lambda: None, 60.0):
        _ = 1 / 0
    assert threading.active_count() == threads
