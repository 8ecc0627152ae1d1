"""What a folder holds, and what of it is old: `rocketray status` and `rocketray clean`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table

from rocketray import artifacts, storage
from rocketray.artifacts import Draft, RunFolder, Version
from rocketray.engine.cluster import job_has_ended
from rocketray.errors import UserError
from rocketray.lineage import Lineage
from rocketray.loop import claimed
from rocketray.progress import Display, clock, megabytes

State = Literal["current", "old", "unfinished"]


@dataclass(frozen=True)
class Stored:
    """One version's folder."""

    stage: str
    folder: str
    state: State
    """`unfinished`: being written, or stopped; the command that began it goes on with it."""
    blocks: int
    """Finished ones."""
    total: int | None
    """Blocks there will be; None where nobody wrote it down."""
    rows: int
    seconds: float | None
    size: int
    """Bytes of its files, those it shares with other versions included."""


@dataclass(frozen=True)
class Status:
    """A run folder at one moment."""

    writer: str | None
    """Who writes it now, in words."""
    versions: list[Stored]
    size: int
    """Bytes of the whole folder; a file on disk with several names counts once."""

    def old(self) -> list[Stored]:
        return [stored for stored in self.versions if stored.state == "old"]


def status(path: Path) -> Status:
    """Read a run folder; it may be written meanwhile.

    Raises:
        UserError: it is no run folder.
    """
    folder = RunFolder(path)
    if not storage.entries(folder.path / "writers"):
        raise UserError(f"{folder} is not a rocketray run: it has no writers.")
    folder.refresh()
    current = set(folder.current().values())
    versions = [_stored(version, current) for version in storage.entries(folder.stages)]
    return Status(_writer(folder), versions, _bytes(_files([folder.path])))


def _writer(folder: RunFolder) -> str | None:
    holder = folder._holder()
    alive = holder and holder.alive(job_has_ended)
    if holder is None or alive is False:
        return None
    unsure = "" if alive else ", on another machine: perhaps gone"
    return f"process {holder.pid} on {holder.host} (epoch {holder.epoch}{unsure})"


def _stored(path: Path, current: set[str]) -> Stored:
    stage = path.name.rpartition("-")[0]
    size = _bytes(_files([path]))
    timing = path / "timing.json"
    seconds = artifacts.read_json(timing)["seconds"] if timing.is_file() else None
    if (path / "manifest.json").is_file():
        version = Version.open(path)
        state: State = "current" if path.name in current else "old"
        count = len(version.blocks)
        return Stored(stage, path.name, state, count, count, version.rows, seconds, size)
    receipts = Draft(path, stage, {}).receipts()
    wanted = path / "wanted.json"
    total = artifacts.read_json(wanted)["blocks"] if storage.fetch(wanted) else None
    rows = sum(receipt["rows"] for receipt in receipts.values())
    return Stored(stage, path.name, "unfinished", len(receipts), total, rows, seconds, size)


def show_status(found: Status, display: Display) -> None:
    table = Table()
    for name in ("stage", "state", "blocks", "rows", "time", "size"):
        table.add_column(name, justify="left" if name in ("stage", "state") else "right")
    for stored in found.versions:
        if stored.state == "old":
            continue
        running = "running" if found.writer else "stopped"
        state = "finished" if stored.state == "current" else running
        of = f"/{stored.total:,}" if stored.total is not None else "/?"
        done = f"{stored.blocks:,}{'' if stored.state == 'current' else of}"
        seconds = "" if stored.seconds is None else clock(stored.seconds)
        rows = f"{stored.rows:,}" if stored.rows else ""
        blocks = done if stored.blocks or stored.total else ""
        table.add_row(stored.stage, state, blocks, rows, seconds, megabytes(stored.size))
    display.show(table)
    display.say(f"writer: {found.writer or 'nobody'}")
    old = found.old()
    display.say(
        f"on disk: {megabytes(found.size)}; {versions(len(old))} (rocketray clean --dry-run says"
        " what they take)"
    )


# ----------------------------------------------------------------------------------------- clean


@dataclass(frozen=True)
class Cleaning:
    """What is removed, what is kept though it is old, and why."""

    removed: list[Stored]
    needed: list[Stored]
    """A current version was made from it."""
    recent: list[Stored]
    """`keep` of a stage's newest."""
    freed: int
    """Bytes; what current versions and stored pairs also hold is not among them."""


def clean(path: Path, *, keep: int = 0, dry_run: bool = False, take_over: bool = False) -> Cleaning:
    """Remove versions that are not current; unfinished ones stay, for they may be gone on with.

    Args:
        keep: of each stage, spare so many of the newest old versions.

    Raises:
        UserError: it is no run folder, or somebody writes it.
    """
    if dry_run:
        return _chosen(path, keep)
    status(path)  # To claim what is no run folder would make it one.
    with claimed(path, take_over) as folder:
        chosen = _chosen(path, keep)
        for stored in chosen.removed:
            folder.check_writer()
            version = folder.stages / stored.folder
            storage.remove(version / "manifest.json")  # First: a version half removed is none.
            storage.remove(version)
    return chosen


def _chosen(path: Path, keep: int) -> Cleaning:
    found = status(path)
    stages = RunFolder(path).stages
    needed_folders = _needed(stages, found)
    manifests = {s.folder: stages / s.folder / "manifest.json" for s in found.old()}
    storage.fetch_all(manifests.values())  # As old as the store says, not as this mirror is.
    old = sorted(found.old(), key=lambda s: -manifests[s.folder].stat().st_mtime)
    needed = [stored for stored in old if stored.folder in needed_folders]
    removed: list[Stored] = []
    recent: list[Stored] = []
    spared = Counter[str]()
    for stored in old:
        if stored in needed:
            continue
        spared[stored.stage] += 1
        (recent if spared[stored.stage] <= keep else removed).append(stored)
    names = _files(stages / stored.folder for stored in removed)
    return Cleaning(sorted(removed, key=lambda s: s.folder), needed, recent, _freed(names))


def _needed(stages: Path, found: Status) -> set[str]:
    """Folders of what went into the current versions."""
    lineage = Lineage(stages)
    behind = lineage.behind(s.folder for s in found.versions if s.state == "current")
    return {folder for digest in behind for folder in lineage.folders.get(digest, ())}


def show_cleaning(chosen: Cleaning, display: Display, *, dry_run: bool) -> None:
    for stored in chosen.removed:
        display.say(f"  {stored.folder:<52} {megabytes(stored.size):>10}")
    verb = "would remove" if dry_run else "removed"
    spared = "".join(
        f"; {len(group):,} {why}"
        for group, why in ((chosen.needed, "kept as inputs of current ones"),
                           (chosen.recent, "kept by --keep"))
        if group
    )  # fmt: skip
    display.say(
        f"{verb} {versions(len(chosen.removed))}, {megabytes(chosen.freed)} on disk{spared}"
    )


def versions(count: int) -> str:
    return f"{count:,} old version{'s' * (count != 1)}"


# ----------------------------------------------------------------------------------------- bytes


@dataclass(frozen=True)
class _File:
    """One name of a file."""

    identity: Hashable
    """The same for all names of one file."""
    size: int
    names: int
    """How many it has, wherever they are."""


def _files(folders: Iterable[Path]) -> list[_File]:
    """Every file below; on object storage each name is a file of its own."""
    found: list[_File] = []
    for folder in folders:
        if storage.mirrored(folder):
            found += [_File(path, size, 1) for path, size in storage.sizes(folder).items()]
        else:
            found += _on_disk(folder)
    return found


def _on_disk(folder: Path) -> Iterator[_File]:
    """One that vanishes meanwhile is not there."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file() and not path.is_symlink():
                stat = path.stat()
                yield _File((stat.st_dev, stat.st_ino), stat.st_size, stat.st_nlink)


def _bytes(files: Sequence[_File]) -> int:
    """A file with several names counts once."""
    return sum({file.identity: file.size for file in files}.values())


def _freed(files: Sequence[_File]) -> int:
    """What is free again when these names go: files that have no other name."""
    names = Counter(file.identity for file in files)
    every = {file.identity: file for file in files}
    return sum(file.size for file in every.values() if file.names == names[file.identity])
