"""Where rows are: `Source` (a file), `Dataset` (the files of a folder), `Cut` (a block of a file).

A file is cut once, by one streaming reader that keeps nothing but byte offsets; workers then read
only their own range. So a block's content depends on the file and on `rows_per_block`, never on
how many workers there are.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from rocketray.errors import UserError
from rocketray.lines import BYTE_ORDER_MARK, damaged_gzip, not_utf8

Record = dict[str, Any]
"""A row in our words and the file's types: `id`, `title`, `text`, `answers`, each perhaps absent;
of a JSON object also the names of its `fields`. Validation is ingest's business."""
OTHER_IDS = frozenset({"id", "docid", "doc_id", "docno", "pid", "passage_id", "qid", "query_id"})
"""What others call `_id`: a made-up id in its place would be a surprise."""
COLUMNS = OTHER_IDS.union(
    {
        "_id",
        *("query", "question", "passage", "document", "title", "text", "body", "contents"),
        *("anchor", "positive", "negative", "pos", "neg"),
    }
)
"""What first lines call the columns of a TSV file."""
LONGEST = 256 << 20
"""Bytes of a line. A collection written as one JSON array is one line, and must not be read whole
to find that out."""


class BadLine(Exception):
    """A line that cannot become a record; the message has neither file nor line number."""


@dataclass(frozen=True)
class Source:
    """A file of passages or queries."""

    path: Path
    format: str
    """`jsonl`, `tsv` (id, text) or `txt` (text)."""
    ids_optional: bool = False
    """Rows without an id get one from the file's name and the line number."""
    titles: Path | None = None
    """A second file (id, title), joined by id."""


@dataclass(frozen=True)
class Dataset:
    """The files of a data set. Several sources of one kind are one table, in this order."""

    layout: Literal["beir", "msmarco", "file"]
    corpus: list[Source]
    queries: list[Source]
    qrels: dict[str, Path]
    """`train`, `dev`, `test`; only those that exist."""
    warnings: list[str] = field(default_factory=list)
    unlabelled: list[Source] = field(default_factory=list)


@dataclass(frozen=True)
class Titles:
    """A titles file and its index, made by `indexed`: uint64 [2, rows], hash of id and offset."""

    path: Path
    index: Path

    def find(self, pids: Sequence[bytes]) -> Iterator[bytes]:
        """Each passage's title, as it stands in the file; b"" where the file has none."""
        hashes_T, offsets_T = np.asarray(np.load(self.index, mmap_mode="r", allow_pickle=False))
        wanted_R = np.array([hash64(pid) for pid in pids], np.uint64)
        first_R = np.searchsorted(hashes_T, wanted_R)
        last_R = np.searchsorted(hashes_T, wanted_R, side="right")
        with self.path.open("rb") as file:
            for pid, first, last in zip(pids, first_R, last_R, strict=True):
                # Equal hashes prove nothing: the real ids are compared.
                titles = (title_in(file, int(offset), pid) for offset in offsets_T[first:last])
                yield next((title for title in titles if title is not None), b"")


def title_in(file: BinaryIO, offset: int, pid: bytes) -> bytes | None:
    """The title in the line that begins there; None where it is another passage's."""
    file.seek(offset)
    line = file.readline()
    found, _, title = (line if offset else line.removeprefix(BYTE_ORDER_MARK)).partition(b"\t")
    return title.rstrip(b"\r\n") if found == pid else None


@dataclass(frozen=True)
class Cut:
    """One block of a source: a byte range of an uncompressed file, whole lines only."""

    path: Path
    """What is read; a decompressed copy where the source is gzipped."""
    format: str
    first_line: int
    offset: int
    length: int
    rows: int
    """Non-blank lines in the range: the rows of the table, if none of them is broken."""
    source: Path
    """What error messages name."""
    ids_optional: bool = False
    titles: Titles | None = None

    @property
    def place(self) -> str:
        """Where a person finds it."""
        return f"{self.source}, {self.rows:,} rows from line {self.first_line:,}"

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The range's non-blank lines: number in the file, bytes without the line end."""
        left = self.length
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for number, line in enumerate(file, start=self.first_line):
                if left <= 0:
                    return
                left -= len(line)
                line = without_mark(number, line)
                if line.strip():
                    yield number, line.rstrip(b"\r\n")

    def titled(self) -> Iterator[bytes]:
        """Each line's title, where titles have a file of their own: bytes, b"" for none. Only files
        of id, tab, text have one."""
        if self.titles is not None:
            yield from self.titles.find([line.partition(b"\t")[0] for _, line in self.lines()])


def check_no_header(number: int, cells: Sequence[str]) -> None:
    """A line of column names would become a row like others."""
    if number == 1 and all(cell.strip().lower() in COLUMNS for cell in cells):
        raise BadLine(
            f"a line of column names ({', '.join(cells)}), and such files have none: remove it."
        )


def decoded(line: bytes, where: str = "") -> str:
    """Text, or a BadLine that names the byte."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadLine(where + not_utf8(error)) from error


def cut(source: Source, rows_per_block: int, scratch: Path) -> list[Cut]:
    """Cut a file into blocks of exactly `rows_per_block` rows, the last one shorter.

    Streams the file once, keeping byte offsets only. A gzipped source (and a titles file) is
    written to `scratch` first, decompressed: a gzip stream cannot be entered in the middle. Workers
    read from `scratch`, so on a cluster it must be a place they all see.
    """
    path = decompressed(source.path, scratch)
    titles = indexed(source.titles, scratch) if source.titles else None
    cuts = [
        Cut(path, source.format, *span, source.path, source.ids_optional, titles)
        for span in spans(path, rows_per_block)
    ]
    if not cuts:
        raise UserError(f"{source.path}: the file holds no rows (it is empty, or blank).")
    return cuts


def spans(path: Path, rows_per_block: int) -> Iterator[tuple[int, int, int, int]]:
    """(first_line, offset, length, rows) of each block. Blank lines belong to the row after.

    Raises:
        UserError: a line is longer than any row, such as a whole collection in one.
    """
    first_line, offset, rows, end, row_end = 1, 0, 0, 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, LONGEST), b""), start=1):
            if len(line) == LONGEST:
                raise UserError(
                    f"{path}, line {number}: longer than {LONGEST >> 20} MiB."
                    " Write one row a line; longer texts are cut by the token limits anyway."
                )
            end += len(line)
            if not without_mark(number, line).strip():
                continue
            rows, row_end = rows + 1, end
            if rows == rows_per_block:
                yield first_line, offset, end - offset, rows
                first_line, offset, rows = number + 1, end, 0
    if rows:
        yield first_line, offset, row_end - offset, rows


def without_mark(number: int, line: bytes) -> bytes:
    """A byte-order mark is no part of line 1; anywhere else it is a character like others."""
    return line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def decompressed(path: Path, scratch: Path) -> Path:
    """The path itself, or for `.gz` a copy in scratch, there completely or not at all."""
    if path.suffix != ".gz":
        return path
    scratch.mkdir(parents=True, exist_ok=True)
    # Two sources may share a file name (queries.jsonl.gz), so the copy's name has the whole path.
    target = scratch / f"{hash64(str(path.absolute())):016x}-{path.stem}"
    attempt = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        with gzip.open(path, "rb") as packed, attempt.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
        os.replace(attempt, target)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged_gzip(path, error) from error
    finally:
        attempt.unlink(missing_ok=True)
    return target


def indexed(path: Path, scratch: Path) -> Titles:
    """Index a titles file by id: 16 bytes a title, so the join needs neither memory nor order.

    The alternative, trusting both files to be in the same order, is a join by line position.
    """
    plain = decompressed(path, scratch)
    hashes, offsets, end = array("Q"), array("Q"), 0
    with plain.open("rb") as file:
        for number, line in enumerate(file, start=1):
            pid = without_mark(number, line).partition(b"\t")[0]
            if line.strip():
                hashes.append(hash64(pid))
                offsets.append(end)
            end += len(line)
    hashes_T, offsets_T = np.asarray(hashes), np.asarray(offsets)
    order = np.argsort(hashes_T, kind="stable")
    scratch.mkdir(parents=True, exist_ok=True)
    target = scratch / f"{hash64(str(path.absolute())):016x}-titles.npy"
    attempt = target.with_name(f"{os.getpid()}-{target.name}")
    np.save(attempt, np.stack([hashes_T[order], offsets_T[order]]))
    os.replace(attempt, target)
    return Titles(plain, target)


def hash64(text: str | bytes) -> int:
    """blake2b, 8 bytes: stable across machines and Python versions, unlike `hash`."""
    data = text.encode() if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def present(folder: Path) -> str:
    """What is in a folder, one level down as well, for messages; at most 20 names."""
    names = [path.name + "/" if path.is_dir() else path.name for path in folder.iterdir()]
    names += [f"qrels/{path.name}" for path in folder.glob("qrels/*")]
    shown = sorted(names)[:20]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(shown) or "nothing") + more


def first_of(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of these files that exists, each looked for plain and then as `.gz`."""
    paths = (folder / f"{name}{ending}" for name in names for ending in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)
