"""Artifacts: versions of stages, their blocks, receipts and manifests, and who may write.

    DIR/stages/NAME-<fingerprint>/   attempts/00007-...     a worker has begun a block
                                     blocks/00007.parquet   one block's files, committed by rename
                                     receipts/00007.json    written after them: the block is done
                                     manifest.json          written last: the version is done
    DIR/current.json                 which version of each stage is current
    DIR/writers/000003.json          who writes; the highest number (epoch) counts

DIR may be a mirror of object storage (storage.py): what is published here is sent there, and counts
then; what is read is fetched first and compared with its manifest as it comes in.

A version's *fingerprint* is its identity: code version, the recipe fields that change its result
and the digests of its inputs. Its *digest* is its content: the sha256 of every file. What is in
the manifest repeats byte for byte on any machine; hosts, attempts and times stay in receipts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rocketray import storage
from rocketray.errors import UserError

Parts = Mapping[str, "pa.Table | np.ndarray"]
"""What a stage makes of one block: named arrays, or one table named "table"."""

TABLE = "table"


@dataclass(frozen=True)
class Made:
    """One block as a stage made it. `facts` are counts that repeat, for the report."""

    parts: Parts
    rows: int
    facts: Mapping[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------------------- small pieces


def canonical(value: object) -> str:
    """One spelling for one value: sorted keys, no spaces, so that hashes repeat."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(identity: object) -> str:
    """The first 12 hex digits of the sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()[:12]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_intact(path: Path, sha256: str) -> bool:
    """Whether a file is there and what was written down of it. On object storage that shows when
    it comes to a node."""
    return storage.mirrored(path) or (path.is_file() and file_sha256(path) == sha256)


def _sync(path: Path) -> None:
    """Have a file, or which files a folder holds, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(path: Path) -> Path:
    """A name no other attempt uses, so that a late loser cannot tear the winner's file."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def publish(temporary: Path, path: Path) -> None:
    """Make a finished temporary file (or folder) visible under its name, durably, instead of what
    is there.

    On object storage it is there before it is here: a file that is here alone counts as removed,
    and whoever looks from another process of this node takes it away (`storage.sync`).
    """
    storage.push(temporary, path)
    place(temporary, path)


def place(temporary: Path, path: Path) -> None:
    """The same on this node's disk alone."""
    for entry in [*temporary.rglob("*"), temporary]:
        _sync(entry)
    if path.is_dir():
        shutil.rmtree(path)
    temporary.replace(path)
    _sync(path.parent)


def publish_folder(save: Callable[[Path], None], path: Path) -> None:
    """Have a folder written, such as a model's, and publish it: whole or not at all."""
    temporary = _temporary(path)
    save(temporary)
    publish(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old text or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.write_text(text, encoding="utf-8")
    publish(temporary, path)


def write_table(path: Path, table: pa.Table) -> None:
    """A Parquet file by itself, with its schema's metadata, atomically."""
    temporary = _temporary(path)
    pq.write_table(table, temporary, compression="zstd")
    publish(temporary, path)


def write_json(path: Path, value: object) -> None:
    write_text(path, json_text(value))


def json_text(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # Broken JSON, or no UTF-8.
        raise UserError(
            f"{storage.shown(path)} is damaged ({error}). Remove it; the same command makes it"
            " again."
        ) from error


def chosen(version: Path) -> dict[str, Any]:
    """What a stage's workers chose and found (model/inference.py); empty before they begin."""
    path = version / "choices.json"
    return dict(read_json(path)) if storage.fetch(path) else {}


def chosen_precision(version: Path) -> str | None:
    """What `auto` became; None where nobody had to choose, or has begun."""
    return chosen(version).get("precision")


# ----------------------------------------------------------------------------------- read side


@dataclass(frozen=True)
class Block:
    """Consecutive rows of one table. `files` maps a part's name to its path."""

    number: int
    first_row: int
    rows: int
    files: Mapping[str, Path]
    facts: Mapping[str, Any]

    @property
    def left_out(self) -> list[tuple[int, str]]:
        """Rows that it was made without (engine/poison.py): the place of each in the block, from 0
        and ascending, and how the process ended that worked on it, such as SIGSEGV."""
        return [(place, how) for place, how in self.facts.get("quarantined", ())]


class Version:
    """A finished version of a stage, read only."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path) -> Version:
        path = Path(path)
        if not _bring_manifest(path):
            raise UserError(
                f"{storage.shown(path)} is not a finished stage: it has no manifest.json."
            )
        return cls(path, read_json(path / "manifest.json"))

    @property
    def name(self) -> str:
        return str(self.manifest["stage"])

    @property
    def digest(self) -> str:
        """The content: changes when any byte of any file does."""
        return str(self.manifest["digest"])

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the stage counted or chose: reported, never part of an identity."""
        facts: Mapping[str, Any] = self.manifest["facts"]
        return facts

    @cached_property
    def blocks(self) -> list[Block]:
        blocks, first_row = [], 0
        for entry in self.manifest["blocks"]:
            files = {part: self.path / name for part, name in entry["files"].items()}
            blocks.append(Block(entry["block"], first_row, entry["rows"], files, entry["facts"]))
            first_row += entry["rows"]
        return blocks

    @property
    def rows(self) -> int:
        return sum(block.rows for block in self.blocks)

    @property
    def left_out(self) -> np.ndarray:
        """Rows of a table that its blocks were made without (engine/poison.py): int64, ascending.
        Blocks name them by their place, which an adopted one takes along."""
        found = [block.first_row + place for block in self.blocks for place, _ in block.left_out]
        return np.array(found, np.int64)

    def table(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        self.fetch(TABLE, blocks=[number])
        return read_table(self.blocks[number].files[TABLE], columns)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All blocks as one table. For what is small: it is held in memory."""
        self.fetch(TABLE)
        return pa.concat_tables([self.table(i, columns) for i in range(len(self.blocks))])

    def take(self, rows: np.ndarray, *columns: str) -> pa.Table:
        """Some rows, ascending and distinct, of some columns: only their blocks are read."""
        starts = np.array([block.first_row for block in self.blocks])
        blocks = np.searchsorted(starts, rows, side="right") - 1
        self.fetch(TABLE, blocks=np.unique(blocks).tolist())
        found = [
            self.table(int(number), columns).take(pa.array(rows[blocks == number] - starts[number]))
            for number in np.unique(blocks)
        ]
        return pa.concat_tables(found or [self.table(0, columns).slice(0, 0)])

    def array(self, number: int, part: str) -> np.ndarray:
        """One part of one block, memory-mapped."""
        self.fetch(part, blocks=[number])
        return open_array(self.blocks[number].files[part])

    def fetch(self, *parts: str, blocks: Iterable[int] | None = None) -> None:
        """Have these parts of blocks (of all) on this node. Reading does it one by one; whoever
        reads many on object storage waits less so.

        Raises:
            UserError: a file of the store is not there, or not what the manifest says.
        """
        if storage.mirrored(self.path):
            numbers = range(len(self.blocks)) if blocks is None else blocks
            entries = [self.manifest["blocks"][number]["files"] for number in numbers]
            self._fetch_files([files[part] for files in entries for part in parts if part in files])

    def fetch_folder(self, folder: Path) -> None:
        """The same with the plain files below a folder of the version, such as its model."""
        names = [
            name for name in self.manifest["sha256"] if (self.path / name).is_relative_to(folder)
        ]
        self._fetch_files(names)

    def _fetch_files(self, names: Iterable[str]) -> None:
        wanted = {self.path / name: self.manifest["sha256"][name] for name in names}
        for path in wanted.keys() - set(storage.fetch_all(wanted)):
            raise self._differs(path, wanted[path], "no such file")

    def verify(self) -> None:
        """Compare every file with the manifest; on object storage only whether it is there, since
        each is compared when it comes to a node.

        Raises:
            UserError: naming the file, what the manifest expects and what was found.
        """
        there = set(storage.files(self.path)) if storage.mirrored(self.path) else None
        for name, expected in self.manifest["sha256"].items():
            path = self.path / name
            if there is not None:
                found = expected if path in there else "no such file"
            else:
                found = file_sha256(path) if path.is_file() else "no such file"
            if found != expected:
                raise self._differs(path, expected, found)

    def _differs(self, path: Path, expected: str, found: str) -> UserError:
        return UserError(
            f"{storage.shown(path)} differs from its manifest: expected sha256 {expected}, found"
            f" {found}. Remove {storage.shown(self.path)} to make this stage again."
        )


def _bring_manifest(folder: Path) -> bool:
    """Have a version's manifest on this node; whether there is one."""
    path = folder / "manifest.json"
    if not storage.mirrored(path):
        return path.is_file()
    content = storage.read(path)
    if content is None:
        path.unlink(missing_ok=True)
        return False
    if not path.is_file() or path.read_bytes() != content:
        with suppress(ValueError, LookupError, TypeError):  # Damaged: for who reads it to say.
            _forget_others(folder, json.loads(content)["sha256"])
        temporary = _temporary(path)
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        place(temporary, path)
    return True


def _forget_others(folder: Path, sha256: Mapping[str, str]) -> None:
    """Remove from this node's mirror what is not the manifest's: a block that another node made
    again, or a version that somebody had made again. From then on what is here is taken for it."""
    for name, expected in sha256.items():
        path = folder / name
        if path.is_file() and file_sha256(path) != expected:
            path.unlink()


def brought(folder: str | Path) -> Path:
    """A folder of plain files of a version, such as its model: on this node, whole."""
    folder = Path(folder)
    if storage.mirrored(folder):
        home = next((path for path in folder.parents if path.parent.name == "stages"), None)
        if home:  # Given weights belong to no version.
            Version.open(home).fetch_folder(folder)
    return folder


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file of plain types. Extension types could carry code, so they are refused."""
    # One thread and no memory map: blocks are small, and actors share the cores.
    file = pq.ParquetFile(path)
    for column in file.schema_arrow:
        if not _plain(column.type):
            raise UserError(f"{path} holds column {column.name!r} of foreign type {column.type}.")
    return file.read(columns, use_threads=False)


def _plain(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        return False
    return all(_plain(kind.field(i).type) for i in range(kind.num_fields))


def open_array(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def mapped_array(path: Path) -> np.ndarray:
    """The same without an open file, so that thousands may be held at once: Python's own map, and
    so numpy's, keeps a file descriptor as long as it lives."""
    with pa.memory_map(str(path)) as file:
        np.lib.format.read_magic(file)  # 1.0, which is all that commit_block writes.
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        content = file.read_buffer()  # A view of the map, which outlives the file.
    return np.ndarray(shape, dtype, content, order="F" if by_columns else "C")


# ---------------------------------------------------------------------------------- write side


def commit_block(
    folder: Path,
    number: int,
    parts: Parts,
    *,
    rows: int,
    key: str,
    facts: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write one block's files and then its receipt; returns the receipt.

    `about` is what only the receipt says, since it never repeats: worker, seconds, attempts.

    Safe to run twice, on two hosts at once, or to be killed anywhere: a block counts when its
    receipt stands, and a receipt is written after the files it names.
    """
    files: dict[str, str] = {}
    sha256: dict[str, str] = {}
    (folder / "blocks").mkdir(parents=True, exist_ok=True)
    for part, data in sorted(parts.items()):
        name = f"blocks/{number:05d}" + ("" if part == TABLE else f"-{part}")
        name += ".parquet" if isinstance(data, pa.Table) else ".npy"
        temporary = _temporary(folder / name)
        if isinstance(data, pa.Table):
            pq.write_table(data, temporary, compression="zstd", store_schema=False)
        else:
            with temporary.open("wb") as file:
                np.save(file, np.ascontiguousarray(data), allow_pickle=False)
        files[part], sha256[name] = name, file_sha256(temporary)
        publish(temporary, folder / name)
    receipt = {"block": number, "rows": rows, "key": key, "files": files, "sha256": sha256}
    receipt |= {"facts": dict(facts), "about": dict(about or {})}
    write_receipt(folder, receipt)
    return receipt


def write_receipt(folder: Path, receipt: Mapping[str, Any]) -> None:
    write_json(folder / "receipts" / f"{receipt['block']:05d}.json", receipt)


class Taken:
    """Some rows of a table, in memory: cells by row number.

    Args:
        rows: ascending and distinct.
    """

    def __init__(self, version: Version, rows: np.ndarray, *columns: str) -> None:
        self.rows, self.table = rows, version.take(rows, *columns)

    def cells(self, column: str, rows: Sequence[int]) -> list[str]:
        places = pa.array(np.searchsorted(self.rows, rows), pa.int64())
        found: list[str] = self.table[column].take(places).to_pylist()
        return found


@dataclass(frozen=True)
class Draft:
    """A version being written. Picklable: workers commit blocks through its path alone."""

    path: Path
    stage: str
    identity: Mapping[str, Any]

    def receipts(self) -> dict[int, dict[str, Any]]:
        """Receipts of finished blocks by number. A damaged one counts as none."""
        found = {}
        storage.sync(self.path / "receipts")
        there = set(storage.files(self.path / "blocks"))  # A receipt is sent after its files.
        for path in sorted((self.path / "receipts").glob("*.json")):
            try:
                receipt = json.loads(path.read_text(encoding="utf-8"))
                files, number = receipt["files"].values(), int(receipt["block"])
            except (ValueError, LookupError, TypeError, AttributeError):
                continue
            if all(self.path / name in there for name in files):
                found[number] = receipt
        return found

    def adopt(self, keys: Mapping[int, str]) -> int:
        """Take over blocks that other versions of this stage made from the same input, stopped ones
        too: a block is whole when it has its receipt.

        A block's key is its stage's settings and its own input, so that appended passages leave
        the old blocks as they are. Where workers chose a precision by themselves, all blocks come
        from versions that chose one, this one's if it has begun, and this one goes on in it. Files
        are linked, not copied; a damaged one stays where it is. Returns how many.
        """
        wanted = {key: number for number, key in keys.items()}
        found: dict[str | None, dict[int, tuple[Path, dict[str, Any]]]] = {}
        for other in sorted(self.path.parent.glob(f"{self.stage}-*")):
            if not wanted or other == self.path:
                continue
            same = found.setdefault(chosen_precision(other), {})
            for receipt in Draft(other, self.stage, {}).receipts().values():
                if receipt["key"] in wanted:
                    same.setdefault(wanted[receipt["key"]], (other, receipt))
        precision = chosen_precision(self.path)
        if precision is None and found:
            precision = max(found, key=lambda chosen: len(found[chosen]))
        blocks = found.get(precision, {})
        if blocks and precision is not None:
            storage.create(self.path / "choices.json", canonical({"precision": precision}))
        return sum(storage.together(lambda number: self._link(*blocks[number], number), blocks))

    def _link(self, other: Path, receipt: Mapping[str, Any], number: int) -> bool:
        """False where a file is damaged: linked, it would be damaged here as well, and no stage
        could be made again."""
        if not all(is_intact(other / name, value) for name, value in receipt["sha256"].items()):
            return False
        files, sha256 = {}, {}
        for part, old in receipt["files"].items():
            name = old.replace(f"blocks/{receipt['block']:05d}", f"blocks/{number:05d}")
            link(other / old, self.path / name)
            files[part], sha256[name] = name, receipt["sha256"][old]
        mine = {"block": number, "files": files, "sha256": sha256, "about": {}}
        write_receipt(self.path, {**receipt, **mine})
        return True

    def finish(
        self, facts: Mapping[str, Any], files: Iterable[Path] = (), blocks: int | None = None
    ) -> Version:
        """Write the manifest, which makes the version visible.

        Args:
            facts: what the stage counted; must repeat from run to run.
            files: further files (a model's), already in place below the version's folder.
            blocks: how many blocks there must be; a missing one is a bug, not a short table.
        """
        # Of workers that were killed while writing: a block, a checkpoint, a whole model.
        for leftover in [*self.path.glob(".*.tmp"), *self.path.glob("*/.*.tmp")]:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)
        with suppress(OSError):  # A late loser takes its own mark away meanwhile.
            storage.remove(self.path / "attempts")
        receipts = [receipt for _, receipt in sorted(self.receipts().items())]
        if blocks is not None and [r["block"] for r in receipts] != list(range(blocks)):
            raise ValueError(f"{self.path} should have {blocks} blocks, found {len(receipts)}.")
        sha256 = {name: value for receipt in receipts for name, value in receipt["sha256"].items()}
        for path in files:
            sha256[path.relative_to(self.path).as_posix()] = file_sha256(path)
        names = ("block", "rows", "key", "files", "facts")
        manifest = {
            "stage": self.stage,
            "fingerprint": fingerprint(self.identity),
            "identity": self.identity,
            "blocks": [{name: receipt[name] for name in names} for receipt in receipts],
            "sha256": sha256,
            "digest": fingerprint(sha256),
            "facts": dict(facts),
        }
        if storage.mirrored(self.path):
            _forget_others(self.path, sha256)
        write_json(self.path / "manifest.json", manifest)
        return Version.open(self.path)


# ----------------------------------------------------------------------------------- run folder


@dataclass(frozen=True)
class Writer:
    """One process that may write a run folder."""

    epoch: int
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    born: str = field(default_factory=lambda: _born(os.getpid()))
    job: str = field(default_factory=lambda: _ray_job())
    """The Ray job it drives, `submission id@address of the cluster`; "" if none."""
    claim: str = field(default_factory=lambda: uuid.uuid4().hex[:8], compare=False)
    """Tells two claims of one process apart."""

    def alive(self, has_ended: Callable[[str], bool]) -> bool | None:
        """Whether the holder still runs; None when it is on another host and nobody can tell.

        Args:
            has_ended: whether a Ray job is known to have ended.
        """
        if not self.born:  # Released.
            return False
        if self.host != socket.gethostname():
            return False if self.job and has_ended(self.job) else None
        return _born(self.pid) == self.born


def _ray_job() -> str:
    """From the environment that `ray job submit` gives a driver: this room knows no Ray."""
    told = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    name = (told.get("metadata") or {}).get("job_submission_id", "")
    return f"{name}@{os.environ.get('RAY_ADDRESS', '')}" if name else ""


def _born(pid: int) -> str:
    """When a process started, in the kernel's words: tells a pid from its reuse. "" if none."""
    try:
        # The name in parentheses may hold spaces; the start time is the 20th field after it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:  # No /proc (macOS): the pid alone has to do.
        os.kill(pid, 0)
    except OSError:
        return ""
    return "alive"


class Superseded(UserError):
    """Another process has taken the run folder over."""


class RunFolder:
    """The folder a run leaves: stages with their versions, and what people open."""

    def __init__(self, path: str | Path) -> None:
        self.path = storage.locate(path).absolute()
        self.writer: Writer | None = None

    def __str__(self) -> str:
        """What people call it."""
        return storage.shown(self.path)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """For reading: refuses a folder that is no run."""
        folder = cls(path)
        folder.refresh()
        if not (folder.path / "current.json").is_file():
            raise UserError(f"{folder} is not a rocketray run: it has no current.json.")
        return folder

    def refresh(self) -> None:
        """Before reading: have on this node what another may have written."""
        if storage.mirrored(self.path) and not self._is_written_here():
            self._sync()

    def _is_written_here(self) -> bool:
        """Whether the mirror is at least as new as the store, and in its writer's hands."""
        holder = self._holder()
        is_here = holder is not None and holder.alive(lambda job: False) is True
        return is_here and (self.path / "current.json").is_file()

    def _sync(self) -> list[Path]:
        """Bring to this node's mirror what says how far the run is: all small files but receipts.
        Returns the folders of all stages."""
        for folder in (self.path, self.path / "logs", self.path / "models"):
            storage.sync(folder)
        stages = storage.entries(self.stages)
        # Of what this mirror alone still has, too: a version that was removed there is none here.
        storage.together(_bring_manifest, {*stages, *self.stages.glob("*")})
        storage.fetch_all(
            stage / name for stage in stages for name in ("timing.json", "known.json")
        )
        return stages

    # ---- one writer

    def claim(
        self, *, take_over: bool = False, has_ended: Callable[[str], bool] = lambda job: False
    ) -> None:
        """Become the folder's writer, or say who is.

        Args:
            take_over: whoever holds it is known to be gone.
            has_ended: whether a Ray job is known to have ended.

        Raises:
            UserError: the folder holds something else, cannot be written, or has a living writer.
        """
        self._check_folder()
        holder = self._holder()
        if holder and not take_over and holder.alive(has_ended) is not False:
            where = f"process {holder.pid} on {holder.host}"
            raise UserError(
                f"{self} is being written by {where}. Wait for it, stop it, or, if you know"
                " that it is gone, add --take-over."
            )
        writer = Writer((holder.epoch if holder else 0) + 1)
        # The fence: of two claims at once only one makes the next epoch.
        if not storage.create(self._writer_path(writer.epoch), canonical(asdict(writer))):
            raise UserError(f"{self} has just been claimed by another process.")
        self.writer = writer
        if storage.mirrored(self.path):  # From here on this mirror says it: nobody else writes.
            for gone in set(self.stages.glob("*")) - set(self._sync()):
                shutil.rmtree(gone)

    def release(self) -> None:
        """Say that nobody writes any more. The epoch stays: numbers never come back."""
        if self.writer and self._holder() == self.writer:
            released = replace(self.writer, born="")
            write_json(self._writer_path(self.writer.epoch), asdict(released))
        self.writer = None

    def check_writer(self) -> None:
        """Refuse to go on once a newer epoch exists."""
        if self.writer and (holder := self._holder()) != self.writer:
            raise Superseded(
                f"{self} was taken over by process {holder.pid if holder else '?'}"
                f" on {holder.host if holder else '?'}; this process stops."
            )

    def _check_folder(self) -> None:
        if storage.mirrored(self.path):
            storage.check(self.path)
        elif self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; --out needs a folder.")
        inside = [path.name for path in storage.entries(self.path)]
        if inside and "writers" not in inside:
            raise UserError(
                f"{self} holds something else than a rocketray run ({', '.join(inside[:3])}"
                f"{', ...' if len(inside) > 3 else ''}). Give --out a new or empty folder."
            )
        try:
            (self.path / "writers").mkdir(parents=True, exist_ok=True)
            probe = self.path / "writers" / f".probe-{uuid.uuid4().hex[:8]}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}.") from error

    def _writer_path(self, epoch: int) -> Path:
        return self.path / "writers" / f"{epoch:06d}.json"

    def _holder(self) -> Writer | None:
        storage.sync(self.path / "writers")
        epochs = sorted((self.path / "writers").glob("[0-9]*.json"))
        if not epochs:
            return None
        try:
            told = json.loads(epochs[-1].read_text(encoding="utf-8"))
            return Writer(**{"job": "", **told})  # Those of before there was this field.
        except (ValueError, TypeError):  # Damaged, as by a power cut.
            return Writer(int(epochs[-1].stem), born="", pid=0, job="")

    # ---- versions

    @property
    def stages(self) -> Path:
        return self.path / "stages"

    def draft(self, stage: str, identity: Mapping[str, Any]) -> Draft:
        path = self.stages / f"{stage}-{fingerprint(identity)}"
        return Draft(path, stage, identity)

    def finished(self, stage: str, identity: Mapping[str, Any]) -> Version | None:
        path = self.draft(stage, identity).path
        return Version.open(path) if (path / "manifest.json").is_file() else None

    def current(self) -> dict[str, str]:
        """Folder of each stage's current version; one that somebody removed is left out."""
        path = self.path / "current.json"
        current: dict[str, str] = read_json(path) if path.is_file() else {}
        return {
            name: folder
            for name, folder in current.items()
            if (self.stages / folder / "manifest.json").is_file()
        }

    def version(self, stage: str) -> Version:
        """The current version of a stage."""
        current = self.current()
        if stage not in current:
            raise UserError(
                f"{self} has no finished stage {stage!r}. It has: {', '.join(current)}."
            )
        return Version.open(self.stages / current[stage])

    def set_current(self, *versions: Version, instead_of: Collection[str] = ()) -> None:
        """Make versions current, in one step.

        Args:
            instead_of: stages that have no current version any more, unless one of `versions` is
                theirs; what they had stays, as old versions.
        """
        before = self.current()
        kept = {name: folder for name, folder in before.items() if name not in instead_of}
        after = kept | {version.name: version.path.name for version in versions}
        if after != before:
            write_json(self.path / "current.json", after)


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two identities, in words: `recipe.epochs 2 -> 3`."""
    found = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += changes(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name} {_short(before)} -> {_short(after)}")
    return found


def _short(value: object) -> str:
    text = canonical(value)
    return text if len(text) <= 40 else text[:37] + "..."


def link(source: Path, target: Path) -> None:
    """A finished file under another name as well: linked, on object storage copied there; a copy,
    too, where the two lie on different file systems."""
    if storage.mirrored(target) and storage.mirrored(source):
        storage.copy(source, target)
        return
    storage.fetch(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    publish(temporary, target)


def copy_tree(source: Path, target: Path) -> None:
    """Replace a folder by a copy of another, so that people never see half of it (on object storage
    they may)."""
    if storage.mirrored(target) and storage.mirrored(source):
        copies = {target / path.relative_to(source): path for path in storage.files(source)}
        storage.together(lambda copy: storage.copy(copies[copy], copy), copies)
        storage.together(storage.remove, set(storage.files(target)) - copies.keys())
        return
    temporary = _temporary(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, temporary)
    storage.remove(target)
    publish(temporary, target)
