"""What verbs leave for other tools: `.npy`, id lists, TREC runs, Parquet, JSON lines, faiss.

Every file appears complete or not at all. Ids are people's here, never row numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rocketray import measures, storage
from rocketray.artifacts import Taken, Version
from rocketray.errors import UserError
from rocketray.schema import Verdict
from rocketray.stages.index import INDEX


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary name that becomes the file's own at the end; on object storage it is sent then.

    Raises:
        UserError: nothing can be written there.
        OSError: the body met one that names another file, such as a block that cannot be read.
    """
    attempt = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield attempt
        attempt.replace(path)
        storage.push(path)
    except OSError as error:
        if error.filename and Path(error.filename) not in (attempt, *attempt.parents):
            raise
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        with suppress(OSError):  # Where nothing can be written, nothing is left.
            attempt.unlink()


def write_embeddings(path: Path, embeddings: Version) -> None:
    """All blocks as one `.npy` [rows, D], in row order, block by block through memory."""
    like = embeddings.array(0, "embeddings")
    shape = (embeddings.rows, like.shape[1])
    with appearing(path) as attempt:
        whole = np.lib.format.open_memmap(attempt, mode="w+", dtype=like.dtype, shape=shape)
        for block in embeddings.blocks:  # One open at a time: there may be more than open files.
            rows = slice(block.first_row, block.first_row + block.rows)
            whole[rows] = embeddings.array(block.number, "embeddings")
        whole.flush()


def write_ids(path: Path, passages: Version) -> None:
    """One pid a line: line n is row n."""
    with appearing(path) as attempt, attempt.open("w", encoding="utf-8", newline="\n") as file:
        for number in range(len(passages.blocks)):
            file.writelines(f"{pid}\n" for pid in passages.table(number)["pid"].to_pylist())


def write_indexes(folder: Path, name: str, indexes: Version) -> list[Path]:
    """One faiss file per group of passages; where there is one group, it is `NAME.faiss`."""
    paths = []
    for block in indexes.blocks:
        suffix = f"-{block.number:05d}" if len(indexes.blocks) > 1 else ""
        paths.append(folder / f"{name}{suffix}.faiss")
        with appearing(paths[-1]) as attempt:
            attempt.write_bytes(indexes.array(block.number, INDEX).tobytes())
    return paths


# ------------------------------------------------------------------------------------------ runs


class Names:
    """People's ids and texts of the rows that a run names, by row number. Only those rows are held
    in memory, which grows with the run and not with the corpus."""

    def __init__(
        self, queries: Version, passages: Version, run: Version, *, texts: bool = False,
        also: Iterable[int] = (),
    ) -> None:  # fmt: skip
        """
        Args:
            texts: of passages, too, not ids alone.
            also: passages that the run does not name.
        """
        asked, named = _rows(run)
        columns = ("pid", "title", "text") if texts else ("pid",)
        self.queries = Taken(queries, asked, "qid", "text")
        self.passages = Taken(passages, np.union1d(named, [*also]).astype(np.int64), *columns)

    def qid(self, query: int) -> str:
        return self.queries.cells("qid", [query])[0]

    def pids(self, passages: Sequence[int]) -> list[str]:
        return self.passages.cells("pid", passages)

    def question(self, query: int) -> str:
        return self.queries.cells("text", [query])[0]

    def text(self, passage: int) -> str:
        """As a cross-encoder reads it: title and text as one string."""
        title, text = (self.passages.cells(name, [passage])[0] for name in ("title", "text"))
        return f"{title} {text}" if title else text

    def says_something(self, passage: int) -> bool:
        return bool(self.text(passage).strip())


def _rows(run: Version) -> tuple[np.ndarray, np.ndarray]:
    """Queries and passages that a run names, each ascending and once."""
    queries, passages = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for number in range(len(run.blocks)):
        table = run.table(number, ["query", "passages"])
        queries.append(table["query"].to_numpy())
        passages.append(np.unique(table["passages"].combine_chunks().flatten().to_numpy()))
    return np.unique(np.concatenate(queries)), np.unique(np.concatenate(passages))


def write_trec(path: Path, run: Version, names: Names, by: str = "scores") -> None:
    """A run, or a scored one in order of its `ce_scores` (ties by row number)."""

    def rows() -> Iterator[tuple[str, list[str], list[float]]]:
        for row in each(run):
            passages, scores = np.array(row["passages"], np.int64), np.array(row[by], np.float32)
            order = np.lexsort((passages, -scores))
            pids = names.pids(passages[order].tolist())
            yield names.qid(row["query"]), pids, scores[order].tolist()

    path.parent.mkdir(parents=True, exist_ok=True)
    measures.write_run(path, rows(), tag=f"rocketray-{run.name}")
    storage.push(path)


def write_pairs(path: Path, scored: Version, names: Names) -> None:
    """A scored run as Parquet, one row a pair: qid, pid, score, ce_score."""
    kinds = {"qid": pa.string(), "pid": pa.string(), "score": pa.float32()}
    columns = pa.schema({**kinds, "ce_score": pa.float32()})
    with appearing(path) as attempt, pq.ParquetWriter(attempt, columns) as writer:
        for number in range(len(scored.blocks)):
            table = scored.table(number)
            sizes = [len(row) for row in table["passages"].to_pylist()]
            qids = names.queries.cells("qid", table["query"].to_pylist())
            flat = {name: table[name].combine_chunks().flatten() for name in
                    ("passages", "scores", "ce_scores")}  # fmt: skip
            pairs = [
                pa.array(np.repeat(np.array(qids, object), sizes), pa.string()),
                pa.array(names.pids(flat["passages"].to_pylist()), pa.string()),
                flat["scores"],
                flat["ce_scores"],
            ]
            writer.write_table(pa.Table.from_arrays(pairs, schema=columns))


def each(run: Version) -> Iterator[dict[str, Any]]:
    """A run's rows, one block in memory."""
    for number in range(len(run.blocks)):
        yield from run.table(number).to_pylist()


# -------------------------------------------------------------------------------------- examples


def write_examples(
    path: Path, verdicts: Version, names: Names, positives: Mapping[int, Sequence[int]], most: int,
    teach: Container[int],
) -> dict[str, int]:  # fmt: skip
    """Training examples, one JSON object a line and positive; how many of what.

    `query`, `positive`, `negatives` (texts, best ranked first, at most `most`), `scores` (ce_scores
    of the positive, null where nobody scored it, and of the negatives), and their ids. Questions
    without a positive or without a hard negative make none, and empty passages are neither.

    Args:
        teach: questions to learn from; the others are left out.
    """
    counts = dict.fromkeys(("examples", "full", "no_positive", "no_negative", "left_out"), 0)
    with appearing(path) as attempt, attempt.open("w", encoding="utf-8", newline="\n") as file:
        for row in each(verdicts):
            if row["query"] not in teach:
                counts["left_out"] += 1
                continue
            ce_scores = dict(zip(row["passages"], row["ce_scores"], strict=True))
            labelled = [*positives.get(row["query"], ()), *_of(row, Verdict.PSEUDO_POSITIVE)]
            chosen = list(filter(names.says_something, labelled))
            hard = filter(names.says_something, _of(row, Verdict.HARD_NEGATIVE))
            negatives = list(islice(hard, most))
            counts["no_positive"] += not chosen
            counts["no_negative"] += bool(chosen) and not negatives
            for positive in chosen if negatives else ():
                line = _example(names, row["query"], positive, negatives, ce_scores)
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                counts["examples"] += 1
                counts["full"] += len(negatives) == most
    return counts


def _of(row: Mapping[str, Any], verdict: Verdict) -> list[int]:
    """A row's passages with this verdict, in its order."""
    pairs = zip(row["passages"], row["verdicts"], strict=True)
    return [passage for passage, found in pairs if found == verdict]


def _example(
    names: Names,
    query: int,
    positive: int,
    negatives: Sequence[int],
    ce_scores: Mapping[int, float],
) -> dict[str, Any]:
    ids = names.pids([positive, *negatives])
    return {
        "query": names.question(query),
        "positive": names.text(positive),
        "negatives": [names.text(passage) for passage in negatives],
        "scores": [ce_scores.get(passage) for passage in (positive, *negatives)],
        "qid": names.qid(query),
        "positive_id": ids[0],
        "negative_ids": ids[1:],
    }


def judged(verdicts: Version) -> dict[str, np.ndarray]:
    """ce_scores, scores and ranks (from 1) by verdict, each float [count]."""
    found: dict[str, list[tuple[float, float, int]]] = {verdict.value: [] for verdict in Verdict}
    for row in each(verdicts):
        for rank, cells in enumerate(
            zip(row["verdicts"], row["ce_scores"], row["scores"], strict=True), start=1
        ):
            verdict, ce_score, score = cells
            found[verdict].append((ce_score, score, rank))
    return {verdict: np.array(rows) for verdict, rows in found.items() if rows}


def most_sure(verdicts: Version, verdict: Verdict, count: int) -> list[tuple[float, int, int]]:
    """(ce_score, query, passage) of the highest ce_scores with a verdict, at most one a query."""
    best = []
    for row in each(verdicts):
        cells = zip(row["ce_scores"], row["passages"], row["verdicts"], strict=True)
        mine = [(ce, row["query"], passage) for ce, passage, found in cells if found == verdict]
        best += [max(mine)] if mine else []
    return sorted(best, reverse=True)[:count]
