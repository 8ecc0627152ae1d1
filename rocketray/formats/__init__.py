"""Foreign formats <-> what flows. The only room that knows foreign names (`_id`, `collection.tsv`).

`open_dataset` says which files of a folder hold what; `cut` cuts a file into blocks of rows that
workers read by themselves (`records`); `rocketray.stages.ingest` validates what they hold.

| file          | knows                                                                     |
| ------------- | ------------------------------------------------------------------------- |
| sources.py    | `Source`, `Dataset`, `Cut`: where rows are, and how a file is cut          |
| beir.py       | corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv                               |
| msmarco.py    | collection.tsv, queries.SPLIT.tsv, qrels.SPLIT.tsv; RocketQA's own names   |
| examples_file | people's own training examples: query, positive, negatives                |
| packages.py   | the quickstart corpus: docstrings of the packages installed here           |
| generated.py  | made-up data for tests and the `tiny` recipe                               |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from rocketray.errors import UserError
from rocketray.formats import beir, msmarco
from rocketray.formats.sources import (
    OTHER_IDS,
    BadLine,
    Cut,
    Dataset,
    Record,
    Source,
    check_no_header,
    cut,
    decoded,
    hash64,
    present,
)

__all__ = [
    "BadLine",
    "Cut",
    "Dataset",
    "Record",
    "Source",
    "cut",
    "hash64",
    "open_dataset",
    "records",
    "text_source",
]

PARSE: dict[str, Callable[[str], Record]] = {
    "jsonl": beir.parse,
    "tsv": msmarco.parse,
    "txt": lambda line: {"text": line},
}


def open_dataset(
    data: Path, unlabelled: Path | None = None, *, train_required: bool = True
) -> Dataset:
    """The files of a data set, BEIR or MS MARCO; nothing is read but the folder's listing.

    Parameters
    ----------
    data
        A folder.
    unlabelled
        More questions without labels: `.jsonl`, `.tsv` or `.txt`, each also as `.gz`.
    train_required
        False where nothing is trained: the corpus alone is enough, which may also be one file like
        those of questions, and missing labels are a warning.

    A UserError names the folder, what was looked for and what is there.
    """
    if data.is_file() and not train_required:
        return Dataset("file", [text_source(data, "passages")], [], {})
    if not data.is_dir():
        raise UserError(f"{data}: {'not a folder' if data.exists() else 'no such folder'}.")
    extra = [unlabelled_source(unlabelled)] if unlabelled else []
    if found := beir.locate(data, train_required) or msmarco.locate(data, train_required):
        return replace(found, unlabelled=extra)
    raise UserError(
        f"{data}: no data set here. Looked for {beir.CORPUS} (BEIR) and "
        f"{' or '.join(msmarco.CORPUS)} (MS MARCO), also as .gz; found {present(data)}."
    )


def unlabelled_source(path: Path) -> Source:
    return text_source(path, "unlabelled questions")


def text_source(path: Path, what: str) -> Source:
    """A file of texts; rows without an id get one from the file's name and the line."""
    if not path.is_file():
        raise UserError(f"{path}: no such file of {what}.")
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in ("jsonl", "tsv", "txt"):
        raise UserError(
            f"{path}: {what} are .jsonl (`text`), .tsv (id, text) or .txt "
            "(one per line), each also as .gz."
        )
    return Source(path, kind, ids_optional=True)


def records(block: Cut) -> Iterator[tuple[int, Record | BadLine]]:
    """A block's rows with their line numbers; what cannot be parsed comes as its BadLine.

    Titles in a file of their own are joined by id here, ids that may be absent are made here.
    """
    rows = ((number, parsed(block, number, line)) for number, line in block.lines())
    if block.titles is None:
        yield from rows
        return
    for (number, row), title in zip(rows, block.titled(), strict=True):
        yield number, joined(row, title, block.titles.path)


def joined(row: Record | BadLine, title: bytes, path: Path) -> Record | BadLine:
    """A row with its title from another file, or why it has none."""
    if isinstance(row, BadLine):
        return row
    try:
        return row | {"title": decoded(title, f"its title in {path}: ")}
    except BadLine as error:
        return error


def parsed(block: Cut, number: int, line: bytes) -> Record | BadLine:
    """One line as a record, or why it is none."""
    try:
        text = decoded(line)
        if block.format == "tsv":
            check_no_header(number, text.split("\t"))
        record = PARSE[block.format](text)
    except BadLine as error:
        return error
    if block.ids_optional and record.get("id") is None:
        if other := [name for name in record.get("fields", ()) if name.lower() in OTHER_IDS]:
            return BadLine(f"`{other[0]}` is not read, and `_id` is missing: call it `_id`.")
        record["id"] = f"{block.source.name.removesuffix('.gz')}:{number}"
    return record
