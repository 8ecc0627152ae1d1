"""Ingest: foreign rows -> validated tables, ids -> row numbers. Found here, before anything costs.

Reads a `Cut` of a file, writes PASSAGES or QUERIES and each row's id hash; all problems of a block
come back together, each with file and line. `Ids` then turns ids into row numbers, once, and
`read_qrels` uses it: from there on only row numbers travel.
"""

from __future__ import annotations

import hashlib
import re
import socket
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rocketray import lines, schema, storage
from rocketray.artifacts import Made
from rocketray.errors import UserError
from rocketray.formats import BadLine, Cut, Record, records

VERY_LONG = 100_000
"""Characters. Longer passages are kept and counted; tokenising cuts them."""
PROBLEMS_KEPT = 20
"""Per block. A wrong field name breaks every line of a corpus; nobody reads more than the first."""
CHUNK = 1 << 18
"""Lines of a qrels file looked up at once."""
COUNTED = (
    "rows", "empty", "titled", "very_long", "int_ids", "spaced_ids", "surrogates", "odd_answers",
    "problems",
)  # fmt: skip
SURROGATES = re.compile("[\ud800-\udfff]")
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
SPACE = re.compile(r"\s")

WORD = re.compile(r"\w+")

Rows = NDArray[np.int64]
Hashes = NDArray[np.uint64]


class Problem(NamedTuple):
    """A line that cannot be ingested, and why."""

    file: str
    line: int
    message: str


class Ingested(NamedTuple):
    """What became of one cut."""

    table: pa.Table
    hashes: Hashes
    """Of the table's ids."""
    problems: list[Problem]
    """The first `PROBLEMS_KEPT`; `counts["problems"]` knows how many there are."""
    counts: dict[str, int]
    """Every name in `COUNTED`, perhaps 0."""


class IngestPassages:
    """Cut -> PASSAGES. Empty and very long passages are kept and counted."""

    def __call__(self, cut: Cut) -> Ingested:
        return ingested(cut, self.row, schema.PASSAGES)

    def row(self, record: Record, counts: Counter[str]) -> tuple[Any, ...]:
        title = record.get("title")
        text = string(record, "text", counts)
        counts["empty"] += not text.strip()
        counts["very_long"] += len(text) > VERY_LONG
        whole = "" if title is None else string(record, "title", counts)
        counts["titled"] += bool(whole)
        return identity(record, counts), whole, text


class IngestQueries:
    """Cut -> QUERIES. `labelled` holds the hashes of labelled qids (`named_queries`), sorted."""

    def __init__(self, labelled: Hashes | None = None) -> None:
        self.labelled = np.empty(0, np.uint64) if labelled is None else labelled

    def __call__(self, cut: Cut) -> Ingested:
        found = ingested(cut, self.row, schema.QUERIES)
        labelled = pa.array(np.isin(found.hashes, self.labelled))
        at = schema.QUERIES.get_field_index("labelled")
        return found._replace(table=found.table.set_column(at, schema.QUERIES.field(at), labelled))

    def row(self, record: Record, counts: Counter[str]) -> tuple[Any, ...]:
        text = string(record, "text", counts)
        if not text.strip():
            raise BadLine("the question's `text` is empty.")
        return identity(record, counts), text, False, answers(record, counts)


def ingested(
    cut: Cut, row: Callable[[Record, Counter[str]], tuple[Any, ...]], columns: pa.Schema
) -> Ingested:
    """Every line of a cut through `row`; the id is the first column."""
    counts = Counter(dict.fromkeys(COUNTED, 0))
    rows: list[tuple[Any, ...]] = []
    problems: list[Problem] = []
    for line, record in records(cut):
        try:
            if isinstance(record, BadLine):
                raise record
            rows.append(row(record, counts))
        except BadLine as error:
            problems.append(Problem(str(cut.source), line, str(error)))
    counts.update(rows=len(rows), problems=len(problems))
    cells = zip(*rows, strict=True) if rows else iter([()] * len(columns))
    table = pa.table([list(column) for column in cells], schema=columns)
    ids = [values[0] for values in rows]
    return Ingested(table, schema.text_hashes(ids), problems[:PROBLEMS_KEPT], dict(counts))


def string(record: Record, name: str, counts: Counter[str]) -> str:
    """A field that must be text. Lone surrogates (legal in JSON, not in UTF-8) are replaced."""
    if name not in record:
        raise BadLine(f"`{name}` is missing. {needed(record)}")
    value = record[name]
    if not isinstance(value, str):
        raise BadLine(f"`{name}` must be a string, not {shown(value)}.")
    return clean(value, name, counts)


def needed(record: Record) -> str:
    has = ", ".join(record.get("fields", ()))[:200]
    return f"A row needs `_id` and `text`; this one has {has or 'nothing'}."


def clean(value: str, name: str, counts: Counter[str]) -> str:
    """No NUL (C libraries end a string there), nothing that UTF-8 cannot hold."""
    if "\0" in value:
        at = value.index("\0") + 1
        raise BadLine(f"`{name}` holds a NUL character (U+0000) at character {at}. Remove it.")
    try:
        value.encode()
    except UnicodeEncodeError:
        counts["surrogates"] += 1
        return SURROGATES.sub("\ufffd", value)
    return value


def identity(record: Record, counts: Counter[str]) -> str:
    """The row's id as a string: TREC files hold it as one cell of one line."""
    value = record.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        counts["int_ids"] += 1
        return str(value)
    if value is None:
        raise BadLine(f"the id (`_id`) is missing. {needed(record)}")
    if not isinstance(value, str):
        raise BadLine(f"the id (`_id`) must be a string, not {shown(value)}.")
    if not value.strip():
        raise BadLine("the id (`_id`) is empty.")
    if CONTROLS.search(value):
        raise BadLine(
            f"the id (`_id`) {shown(value)} holds a tab, newline or control character, "
            "which no TREC file can carry. Rename it."
        )
    counts["spaced_ids"] += bool(SPACE.search(value))
    return clean(value, "_id", counts)


def answers(record: Record, counts: Counter[str]) -> list[str]:
    """Strings that answer the question; other shapes count as none, for metadata is free."""
    value = record.get("answers", [])
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        counts["odd_answers"] += 1
        return []
    return [clean(item, "answers", counts) for item in found]


def shown(value: object) -> str:
    """A value for a message, cut to a readable length."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def words(text: str) -> str:
    """The words alone: without differences of case, width, punctuation and white space."""
    return " ".join(WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def named_queries(qrels: Iterable[Path]) -> Hashes:
    """Sorted id hashes of every query that some qrels file names."""
    names = {row.qid for path in qrels for row in lines.judgements(path)}
    return np.sort(schema.text_hashes(sorted(names)))


class Ids:
    """From ids to row numbers, at 8 bytes an id: the head of its hash and, below, its row number,
    sorted. With 10^7 ids the head has 40 bits, and some 50 pairs of ids share one.

    Parameters
    ----------
    blocks
        Hashes of the table's ids, block after block, in row order.
    count
        How many ids there are.
    read
        Row numbers (int64, ascending, distinct) -> their ids. Equal hashes prove nothing, so every
        match is compared with the real id.
    """

    def __init__(
        self, blocks: Iterable[Hashes], count: int, read: Callable[[Rows], list[str]]
    ) -> None:
        self.row_bits = np.uint64((1 << count.bit_length()) - 1)
        self.keys = np.empty(count, np.uint64)
        first = 0
        for hashes in blocks:
            last = first + len(hashes)
            self.keys[first:last] = self.head(hashes) | np.arange(first, last, dtype=np.uint64)
            first = last
        self.keys.sort()  # The first of equal ids comes first.
        self.read = read

    def __len__(self) -> int:
        return len(self.keys)

    def head(self, hashes: Hashes) -> Hashes:
        """The bits of hashes, or of keys, that are no row number."""
        return hashes & ~self.row_bits

    def rows(self, ids: Sequence[str]) -> Rows:
        """Row number of each id, -1 where there is none."""
        wanted = self.head(schema.text_hashes(ids))
        found = np.full(len(ids), -1, np.int64)
        at = np.searchsorted(self.keys, wanted)
        open_ = np.arange(len(ids))
        while open_.size:  # a second round only where two ids share a head
            open_ = open_[at[open_] < len(self)]
            open_ = open_[self.head(self.keys[at[open_]]) == wanted[open_]]
            rows = (self.keys[at[open_]] & self.row_bits).astype(np.int64)
            same = np.array(
                [ids[i] == name for i, name in zip(open_, self.names(rows), strict=True)], bool
            )
            found[open_[same]] = rows[same]
            open_ = open_[~same]
            at[open_] += 1
        return found

    def names(self, rows: Rows) -> list[str]:
        """Ids of rows in any order, repeats allowed."""
        distinct, back = np.unique(rows, return_inverse=True)
        names = self.read(distinct) if distinct.size else []
        return [names[i] for i in back]

    def duplicates(self) -> list[tuple[int, int]]:
        """(first row, later row) of every id that comes again, by the later row."""
        equal = np.flatnonzero(self.head(self.keys[1:] ^ self.keys[:-1]) == 0)
        suspects = np.sort(self.keys[np.union1d(equal, equal + 1)] & self.row_bits)
        suspects = suspects.astype(np.int64)
        first: dict[str, int] = {}
        pairs = []
        for row, name in zip(suspects.tolist(), self.names(suspects), strict=True):
            if first.setdefault(name, row) != row:
                pairs.append((first[name], row))
        return pairs


def raise_problems(problems: Iterable[Problem], total: int | None = None) -> None:
    """One UserError with the first problem by file and line, and how many more there are."""
    known = sorted(problems)
    if not known:
        return
    file, line, message = known[0]
    more = max(total or 0, len(known)) - 1
    raise UserError(f"{file}, line {line}: {message}" + (f" And {more:,} more." if more else ""))


def raise_duplicates(ids: Ids, cuts: Sequence[Cut], what: str) -> None:
    """One UserError naming both places of the first id that comes twice. `what`: its column."""
    pairs = ids.duplicates()
    if not pairs:
        return
    first, second = pairs[0]
    more = f" And {len(pairs) - 1:,} more." if len(pairs) > 1 else ""
    raise UserError(
        f"{what} {shown(ids.names(np.array([first]))[0])} stands twice: {place(cuts, first)} and "
        f"{place(cuts, second)}. Rename or remove one.{more}"
    )


def place(cuts: Sequence[Cut], row: int) -> str:
    """`file, line n` of a row of the table that these cuts make."""
    for cut in cuts:
        if row < cut.rows:
            number, _ = next(islice(cut.lines(), row, None))
            return f"{cut.source}, line {number}"
        row -= cut.rows
    raise ValueError(f"the cuts have {row + 1} rows too few.")


class Judged(NamedTuple):
    """A chunk of a qrels file, ids translated; -1 is unknown."""

    line: Rows
    query: Rows
    passage: Rows
    relevance: Rows


def read_qrels(
    path: Path, queries: Ids, passages: Ids, counts: Counter[str] | None = None
) -> pa.Table:
    """A qrels file -> QRELS, sorted by (query, passage).

    Streams the file; 32 bytes a line are kept. A judgement given twice alike is merged, and added
    to `counts["merged"]`. UserErrors: unknown ids (one for all of them, with three examples), two
    relevances for one pair, no judgement at all. Relevance 0 and less stays: a person's "no".
    """
    chunks: list[Judged] = []
    unknown, missing = 0, list[str]()
    for chunk, rows in judged(path, queries, passages):
        bad = np.flatnonzero((chunk.query < 0) | (chunk.passage < 0))
        unknown += len(bad)
        missing += [dangling(rows[i], chunk.query[i] < 0) for i in bad[: 3 - len(missing)]]
        chunks.append(chunk)
    if not chunks:
        raise UserError(f"{path}: the file holds no judgement. Add some, or remove the file.")
    if unknown:
        raise UserError(
            f"{path}: {unknown:,} lines name a query or passage that does not exist: "
            f"{'; '.join(missing)}. Remove them or add what they name."
        )
    everything = Judged(*(np.concatenate(column) for column in zip(*chunks, strict=True)))
    kept = merged(path, everything, queries, passages)
    if counts is not None:
        counts["merged"] += len(everything.line) - len(kept)
    columns = [column[kept] for column in everything[1:]]
    return pa.table(columns, names=schema.QRELS.names).cast(schema.QRELS)


def judged(
    path: Path, queries: Ids, passages: Ids
) -> Iterator[tuple[Judged, list[lines.Judgement]]]:
    """The file's lines in chunks, with row numbers beside the ids."""
    stream = lines.judgements(path)
    while rows := list(islice(stream, CHUNK)):
        number, qids, pids, relevance = zip(*rows, strict=True)
        found = queries.rows(qids), passages.rows(pids)
        yield Judged(np.array(number), *found, np.array(relevance)), rows


def dangling(row: lines.Judgement, query: bool) -> str:
    """One example of an unknown id."""
    what = f"query {shown(row.qid)}" if query else f"passage {shown(row.pid)}"
    return f"line {row.line}, {what}"


def merged(path: Path, rows: Judged, queries: Ids, passages: Ids) -> Rows:
    """Which rows to keep, in key order: the first of equal ones; contradictions are refused."""
    order = np.lexsort((rows.line, rows.passage, rows.query))
    query, passage, relevance = (column[order] for column in rows[1:])
    again = (query[1:] == query[:-1]) & (passage[1:] == passage[:-1])
    clash = np.flatnonzero(again & (relevance[1:] != relevance[:-1]))
    if clash.size:
        a, b = order[clash[0]], order[clash[0] + 1]
        qid, pid = queries.names(query[clash[:1]])[0], passages.names(passage[clash[:1]])[0]
        raise UserError(
            f"{path}: query {shown(qid)} and passage {shown(pid)} have relevance "
            f"{rows.relevance[a]} in line {rows.line[a]} and {rows.relevance[b]} in line "
            f"{rows.line[b]}. Keep one."
        )
    kept: Rows = order[np.concatenate([[True], ~again])]
    return kept


def hide_labels(
    train_qrels: pa.Table, qids: Mapping[int, str] | Sequence[str], share: float, seed: int
) -> tuple[pa.Table, pa.Table]:
    """Hide the labels of a share of the queries, to measure what augmentation makes of them.

    `qids[row]` is a query's id: the choice hangs on (seed, qid) alone, so neither the order of rows
    nor other queries' ids move a query, and a larger share hides a superset. At least one query
    stays visible. Returns (visible, hidden).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} must lie in [0, 1].")
    query = train_qrels["query"].to_numpy()
    drawn = sorted(np.unique(query).tolist(), key=lambda row: (lot(seed, qids[row]), qids[row]))
    hidden = np.isin(query, drawn[: min(round(share * len(drawn)), max(len(drawn) - 1, 0))])
    return train_qrels.filter(pa.array(~hidden)), train_qrels.filter(pa.array(hidden))


def hide_positives(
    qrels: pa.Table, qids: Sequence[str], pids: Sequence[str], share: float, seed: int
) -> tuple[pa.Table, pa.Table]:
    """Hide a share of the relevant passages of queries that have several: known false negatives.

    `qids` and `pids` are the ids of each row of `qrels`: the lots hang on (seed, qid, pid) alone,
    and a larger share hides a superset. The passage with the highest lot of each query stays, so
    that none loses its last one. Returns (visible, hidden).
    """
    lots = [lot(seed, f"{qid}\t{pid}") for qid, pid in zip(qids, pids, strict=True)]
    relevant, query = qrels["relevance"].to_numpy() > 0, qrels["query"].to_numpy()
    drawn: dict[int, list[int]] = {}
    for row in sorted(np.flatnonzero(relevant).tolist(), key=lots.__getitem__):
        drawn.setdefault(int(query[row]), []).append(row)
    several = [rows for rows in drawn.values() if len(rows) > 1]
    free = sorted((row for rows in several for row in rows[:-1]), key=lots.__getitem__)
    count = min(round(share * sum(map(len, several))), len(free))
    hidden = np.isin(np.arange(len(qrels)), free[:count])
    return qrels.filter(pa.array(~hidden)), qrels.filter(pa.array(hidden))


def lot(seed: int, name: str) -> bytes:
    """A draw that depends on seed and name alone."""
    return hashlib.blake2b(f"{seed}\t{name}".encode(), digest_size=8).digest()


class Ingest:
    """One cut -> a block of `table`, with the hashes of its ids and, for queries, of their words.

    The form the engine runs.

    Facts: the counts, and `problems_kept`, which `tables` raises before anything else runs.
    """

    code = 2

    def __init__(self, *, table: Literal["passages", "queries"], labelled: str | None) -> None:
        """`labelled`: for queries, a file of `named_queries`."""
        self.ingest: IngestPassages | IngestQueries = IngestPassages()
        if table == "queries":
            if labelled:
                storage.fetch(Path(labelled))
            self.ingest = IngestQueries(np.load(labelled) if labelled else None)

    def __call__(self, item: Cut) -> Made:
        titles = [item.titles.path, item.titles.index] if item.titles else []
        read = [item.path, *titles]
        if gone := set(read) - set(storage.fetch_all(read)):
            raise UserError(
                f"{socket.gethostname()} does not see {storage.shown(min(gone))}: the data must be"
                " on storage that every node sees under one path, or on object storage."
            )
        found = self.ingest(item)
        facts = {**found.counts, "problems_kept": [list(problem) for problem in found.problems]}
        parts = {"table": found.table, "hashes": found.hashes}
        if isinstance(self.ingest, IngestQueries):
            texts = found.table["text"].to_pylist()
            # What is all signs has no words; it is itself.
            parts["words"] = schema.text_hashes(words(text) or text for text in texts)
        return Made(parts, len(found.table), facts)
