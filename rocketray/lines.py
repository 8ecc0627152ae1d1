"""Text files, line by line, and errors that name the line.

Data people bring is read here and nowhere else, so that everybody agrees on what a line is:
a line ends at `\\n` and at nothing else (U+2028 is text), a `\\r` before it is part of the line's
end, a byte-order mark opens the file without belonging to it, a blank line is no row, and `.gz` is
read through. Lines are numbered from 1, blank ones included, as an editor numbers them.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from rocketray.errors import UserError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HEADER_WORDS = frozenset({"query-id", "query_id", "queryid", "query", "qid", "topic"})
INT32 = range(-(2**31), 2**31)


class Judgement(NamedTuple):
    """One line of a qrels file: a person's word on one query and one passage."""

    line: int
    qid: str
    pid: str
    relevance: int


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, decompressed when its name ends in `.gz`."""
    if path.suffix == ".gz":
        return cast(BinaryIO, io.BufferedReader(gzip.open(path, "rb")))
    return path.open("rb")


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Every line's number and bytes, line end and byte-order mark removed, blank lines left out."""
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged_gzip(path, error) from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """`raw_lines` as text; bytes that are no UTF-8 are a UserError naming line and byte."""
    for number, line in raw_lines(path):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number}: {not_utf8(error)}") from error


def not_utf8(error: UnicodeDecodeError) -> str:
    """What a reader of the message needs: the byte, where it is, what to do."""
    byte = error.object[error.start]
    likely = "UTF-16" if error.start == 0 and byte in (0xFE, 0xFF) else "LATIN1"
    return (
        f"byte {error.start + 1} of the line (0x{byte:02x}) is not valid UTF-8. "
        f"Convert the file, e.g. with `iconv -f {likely} -t UTF-8`."
    )


def damaged_gzip(path: Path, error: Exception) -> UserError:
    """A cut-off download and a plain file under a `.gz` name are two different mistakes."""
    if isinstance(error, EOFError):
        return UserError(f"{path}: the gzip file ends too early (truncated). Copy it again.")
    return UserError(f"{path}: not a readable gzip file ({error}). Copy it again, or rename it.")


def judgements(path: Path) -> Iterator[Judgement]:
    """A qrels file, streamed.

    A line is `qid pid relevance` (BEIR), `qid 0 pid relevance` (TREC) or `qid pid`, which means
    relevance 1. Columns are parted by tabs, or by spaces where the line has no tab. A first line of
    column names is skipped.
    """
    for number, line in text_lines(path):
        cells = line.split("\t") if "\t" in line else line.split()
        if number == 1 and cells[0].strip().lower() in HEADER_WORDS:
            continue
        yield judgement(path, number, cells)


def judgement(path: Path, number: int, cells: list[str]) -> Judgement:
    """One line's cells; anything but 2, 3 or 4 of them is a UserError."""
    match cells:
        case [qid, pid]:
            return Judgement(number, qid, pid, 1)
        case [qid, pid, value] | [qid, _, pid, value]:
            return Judgement(number, qid, pid, relevance(path, number, value))
    raise UserError(
        f"{path}, line {number}: {len(cells)} columns; a qrels line is `qid pid`, "
        "`qid pid relevance` or `qid 0 pid relevance`, parted by tabs."
    )


def relevance(path: Path, number: int, value: str) -> int:
    """An integer, as in TREC; `1.0` and `yes` are refused rather than guessed at."""
    try:
        if (whole := int(value)) in INT32:
            return whole
    except ValueError:
        pass
    raise UserError(
        f"{path}, line {number}: relevance {value!r} is not an integer (32 bits). Write 1, not 1.0"
        " or yes; a first line of column names begins with query-id."
    )
