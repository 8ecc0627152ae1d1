"""BEIR: a folder with corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv, each also .gz."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rocketray.errors import UserError
from rocketray.formats.sources import BadLine, Dataset, Record, Source, first_of, present

CORPUS = "corpus.jsonl"
QUERIES = "queries.jsonl"
SPLITS = ("train", "dev", "test")
NAMES = {"_id": "id", "title": "title", "text": "text"}
KINDS = {list: "array", str: "string", int: "number", float: "number", bool: "boolean"}


def locate(data: Path, train_required: bool = True) -> Dataset | None:
    """The files of a BEIR folder, None when it is not one; a UserError when it is half of one."""
    corpus = first_of(data, [CORPUS])
    if corpus is None:
        return None
    queries = first_of(data, [QUERIES])
    if queries is None:
        if not train_required:
            warning = f"{data}: no {QUERIES}, so there are no questions but those you name."
            return Dataset("beir", [Source(corpus, "jsonl")], [], {}, [warning])
        raise UserError(f"{data}: {CORPUS} has no {QUERIES} beside it; found {present(data)}.")
    check_names(data / "qrels")
    found = {split: first_of(data / "qrels", [f"{split}.tsv"]) for split in SPLITS}
    qrels = {split: path for split, path in found.items() if path}
    if train_required and "train" not in qrels:
        raise UserError(
            f"{data}: no training labels. Looked for qrels/train.tsv, also as .gz; "
            f"found {present(data)}."
        )
    missing = [split for split in SPLITS if split not in qrels]
    return Dataset(
        "beir",
        [Source(corpus, "jsonl")],
        [Source(queries, "jsonl")],
        qrels,
        [f"{data}: no qrels/{split}.tsv, so nothing is measured on {split}." for split in missing],
    )


def check_names(qrels: Path) -> None:
    """A file that nobody reads hides whose questions are judged: they would count as unlabelled."""
    known = {f"{split}.tsv{ending}" for split in SPLITS for ending in ("", ".gz")}
    files = sorted(path.name for path in qrels.glob("[!.]*") if path.is_file())
    if strange := [name for name in files if name not in known]:
        raise UserError(
            f"{qrels / strange[0]}: no such split. Its questions would count as unlabelled, and"
            " step 4 would learn from them. Rename it to train.tsv, dev.tsv or test.tsv, each also"
            f" as .gz, or move it out of {qrels.name}/."
        )


def parse(line: str) -> Record:
    """One JSON object -> a record. Answers may stand where SQuAD- or NQ-like files put them."""
    row = json_object(line)
    record = {ours: row[theirs] for theirs, ours in NAMES.items() if theirs in row}
    record["fields"] = list(row)
    metadata = row.get("metadata")
    places = [row.get("answers")]
    if isinstance(metadata, dict):
        places += [metadata.get("answers"), metadata.get("answer")]
    record["answers"] = next((value for value in places if value is not None), [])
    return record


def json_object(line: str) -> dict[str, Any]:
    """A line's JSON object; anything else is a BadLine that says where and what."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadLine(
            f"broken JSON at column {error.colno}: {error.msg}. A line is one JSON object."
        ) from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 10,000 brackets
        raise BadLine(f"JSON that cannot be read: {error}.") from error
    if not isinstance(row, dict):
        raise BadLine(f"a JSON {KINDS.get(type(row), 'null')} where an object must be.")
    return row
