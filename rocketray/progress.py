"""What a person sees while a run works: bars in a terminal, lines in a job's log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

LINE_SECONDS = 10.0
"""Between two lines of one stage where there is no terminal."""


class Meter:
    """Counts one stage's rows or steps; shows rate and time left."""

    def __init__(self, name: str, total: int, unit: str, done: int, show: Display) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = self.begun_with = done
        self.start = self.shown = self.counted_from = time.monotonic()
        self.show = show
        self.note = ""

    def advance(self, count: int, note: str = "") -> None:
        self.at(self.done + count, note)

    def begin(self, done: int) -> None:
        """Count the rate from here: what came before was done earlier, or was starting up."""
        self.done = self.begun_with = done
        self.counted_from = time.monotonic()

    def at(self, done: int, note: str = "") -> None:
        """Set the count; `note` is a word on how it goes, such as the loss."""
        if done == self.done and note == self.note:
            return
        self.done, self.note = done, note
        self.show.update(self)

    def rate(self) -> float:
        """Units per second since this process began with them."""
        seconds = time.monotonic() - self.counted_from
        return (self.done - self.begun_with) / seconds if seconds > 0 else 0.0

    def words(self) -> str:
        rate = self.rate()
        left = (self.total - self.done) / rate if rate else float("nan")
        eta = f", {clock(left)} left" if self.done < self.total and rate else ""
        note = f", {self.note}" if self.note else ""
        unit = self.unit
        return f"{self.done:,}/{self.total:,} {unit}, {rate:,.1f} {unit}/s{eta}{note}"


class Display:
    """Where meters show: one per process."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(highlight=False, stderr=False)
        self.quiet = quiet
        self.bars: Progress | None = None
        self.task: TaskID | None = None

    def say(self, text: str = "") -> None:
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)
            sys.stdout.flush()

    def show(self, table: Table) -> None:
        if not self.quiet:
            self.console.print(table)

    @contextmanager
    def meter(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Meter]:
        """Follow one piece of work; its last line stays on the screen."""
        meter = Meter(name, total, unit, done, self)
        if self.console.is_terminal and not self.quiet:
            with self._bars() as bars:
                self.bars = bars
                self.task = bars.add_task(name, total=total, completed=done, words="")
                yield meter
            self.bars = None
        else:
            yield meter
        seconds = time.monotonic() - meter.start
        self.say(f"  {name:<26} {meter.words()}  [{clock(seconds)}]")

    def update(self, meter: Meter) -> None:
        if self.bars is not None and self.task is not None:
            words = f"{meter.rate():,.1f} {meter.unit}/s {meter.note}"
            self.bars.update(self.task, completed=meter.done, total=meter.total, words=words)
        elif time.monotonic() - meter.shown >= LINE_SECONDS:
            meter.shown = time.monotonic()
            self.say(f"  {meter.name:<26} {meter.words()}")

    def _bars(self) -> Progress:
        return Progress(
            TextColumn("  {task.description:<26}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )


def clock(seconds: float) -> str:
    """75 -> "1:15"; under ten seconds with one decimal."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def megabytes(size: float) -> str:
    """Decimal, as disks are sold: 1,234,567 -> "1.2 MB"."""
    if size >= 1e13:
        return f"{size / 1e12:,.1f} TB"
    if size < 1e5:
        return f"{size / 1e3:,.1f} kB"
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
