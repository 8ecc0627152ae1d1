"""People's own training examples: a query, what answers it, and what does not.

JSONL, one object a line, under any of the names these trainers use (and one file may mix them):

| positives                        | negatives           | who            |
| -------------------------------- | ------------------- | -------------- |
| `positive`: text or object       | `negatives`: list   | rocketray      |
| `positive`: text                 | `negative`: text    | triplets       |
| `pos`: list                      | `neg`: list         | FlagEmbedding  |
| `positive_passages`: list        | `negative_passages` | Tevatron       |

A passage is a string or an object with `text` and perhaps `title`. TSV: query, positive, negative.
Other fields are left alone, but for those that sound like negatives: to train without them would be
a surprise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rocketray.errors import UserError
from rocketray.formats.beir import json_object
from rocketray.formats.sources import BadLine, check_no_header
from rocketray.lines import text_lines

POSITIVES = ("positive", "pos", "positive_passages")
NEGATIVES = ("negatives", "negative", "neg", "negative_passages")
BESIDE = ("negative_ids", "neg_scores", "neg_id", "neg_ids")
"""Fields beside them, ours and FlagEmbedding's, that hold no passages."""
KNOWN = (*NEGATIVES, *BESIDE)


class Text(NamedTuple):
    """A passage as people wrote it; the title is often ""."""

    title: str
    text: str


class OwnExample(NamedTuple):
    """One positive of one line. A line with several positives makes several, same negatives."""

    line: int
    query: str
    positive: Text
    negatives: list[Text]


def open_examples(path: Path) -> Iterator[OwnExample]:
    """Stream a file of examples, `.jsonl` or `.tsv`, each also as `.gz`.

    UserErrors name file, line and field.
    """
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in ("jsonl", "tsv"):
        raise UserError(f"{path}: training examples are .jsonl or .tsv, each also as .gz.")
    if not path.is_file():
        raise UserError(f"{path}: no such file of training examples.")
    for number, line in text_lines(path):
        try:
            yield from from_json(number, line) if kind == "jsonl" else from_tsv(number, line)
        except BadLine as error:
            raise UserError(f"{path}, line {number}: {error}") from error


def from_tsv(number: int, line: str) -> list[OwnExample]:
    """A triple."""
    cells = line.split("\t")
    check_no_header(number, cells)
    if len(cells) != 3:
        raise BadLine(f"{len(cells)} columns parted by tabs; expected query, positive, negative.")
    for name, cell in zip(("query", "positive", "negative"), cells, strict=True):
        filled(cell, name)
    query, positive, negative = cells
    return [OwnExample(number, query, Text("", positive), [Text("", negative)])]


def from_json(number: int, line: str) -> list[OwnExample]:
    """An object under any of the known names."""
    row = json_object(line)
    if row.get("query") is None:
        raise BadLine(
            f"`query` is missing: a line needs it and one of {', '.join(POSITIVES)}; this one has"
            f" {', '.join(row)[:200] or 'nothing'}."
        )
    query = filled(row["query"], "query")
    if strange := [name for name in row if "neg" in name.lower() and name not in KNOWN]:
        raise BadLine(
            f"`{strange[0]}` is not read: put negatives in one of {', '.join(NEGATIVES)}."
        )
    positives = passages(row, POSITIVES)
    if not positives:
        raise BadLine(f"no positive: the line needs one of {', '.join(POSITIVES)}, not empty.")
    negatives = passages(row, NEGATIVES)
    return [OwnExample(number, query, positive, negatives) for positive in positives]


def passages(row: dict[str, Any], names: tuple[str, ...]) -> list[Text]:
    """The passages under whichever of the names the row uses, [] when it uses none."""
    used = [name for name in names if row.get(name) is not None]
    if len(used) > 1:
        raise BadLine(f"`{used[0]}` and `{used[1]}` both stand here; keep one.")
    if not used:
        return []
    value = row[used[0]]
    found = value if isinstance(value, list) else [value]
    places = [used[0]] if found is not value else [f"{used[0]}[{i}]" for i in range(len(found))]
    return [passage(item, place) for item, place in zip(found, places, strict=True)]


def passage(value: object, place: str) -> Text:
    """A string, or an object with `text` and perhaps `title`."""
    if not isinstance(value, dict):
        return Text("", filled(value, place))
    title = value.get("title")
    if title is not None and not isinstance(title, str):
        raise BadLine(f"`{place}.title` must be a string.")
    return Text(readable(title or "", f"{place}.title"), filled(value.get("text"), f"{place}.text"))


def filled(value: object, place: str) -> str:
    """A string that says something."""
    if value is None:
        raise BadLine(f"`{place}` is missing.")
    if not isinstance(value, str):
        raise BadLine(f"`{place}` must be a string, not {ascii(value)[:60]}.")
    if not value.strip():
        raise BadLine(f"`{place}` is empty.")
    return readable(value, place)


def readable(value: str, place: str) -> str:
    """No lone surrogates and no NUL: ingest would have to change or refuse them later."""
    if "\0" in value:
        raise BadLine(f"`{place}` holds a NUL character (U+0000). Remove it.")
    return value.encode("utf-8", "replace").decode() if not value.isascii() else value


def write_examples(path: Path, folder: Path) -> int:
    """Write a BEIR folder of these examples, and examples.jsonl that names its rows; how many.

    A text's id is its hash, so the same text is one row wherever it comes from. examples.jsonl has
    `line`, `query`, `positive`, `negatives` (ids), one line per example.
    """
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    names = ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "examples.jsonl")
    seen: set[str] = set()
    count = 0
    with ExitStack() as stack:
        corpus, queries, qrels, mapping = (
            stack.enter_context((folder / name).open("w", encoding="utf-8", newline="\n"))
            for name in names
        )
        qrels.write("query-id\tcorpus-id\tscore\n")
        for line, query, positive, negatives in open_examples(path):
            count += 1
            qid = once(queries, seen, text=query)
            pids = [once(corpus, seen, **text._asdict()) for text in (positive, *negatives)]
            if (pair := f"{qid}\t{pids[0]}") not in seen:
                seen.add(pair)
                qrels.write(f"{pair}\t1\n")
            row = {"line": line, "query": qid, "positive": pids[0], "negatives": pids[1:]}
            mapping.write(json.dumps(row) + "\n")
    if not count:
        raise UserError(f"{path}: the file holds no training examples.")
    return count


def once(file: TextIO, seen: set[str], **row: str) -> str:
    """Write a row unless it stands already; its id."""
    key = hashlib.blake2b(json.dumps(row).encode(), digest_size=12).hexdigest()
    if key not in seen:
        seen.add(key)
        file.write(json.dumps({"_id": key, **row}, ensure_ascii=False) + "\n")
    return key
