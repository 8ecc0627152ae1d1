"""`rocketray evaluate`: any TREC run against any judgements or answer strings, without a model."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from rocketray import measures, schema, storage
from rocketray.errors import UserError
from rocketray.formats import beir
from rocketray.formats.sources import BadLine
from rocketray.lines import text_lines
from rocketray.measures import Hits
from rocketray.stages.ingest import IngestPassages, IngestQueries

MEASURES = ("mrr@10", "ndcg@10", "recall@10", "recall@50", "recall@1000")
"""The usual ones: see `within`."""
ANSWER_DEPTHS = (5, 20, 100)


def within(depth: int) -> list[str]:
    """The usual measures that lists of such a length tell: a recall@1000 of lists of a hundred
    would be their recall@100. Those at 10 always."""
    return [name for name in MEASURES if int(name.partition("@")[2]) <= max(10, depth)]


def evaluate(
    run_file: Path,
    qrels: Path,
    names: Sequence[str] | None = None,
    *,
    answers: Path | None = None,
    corpus: Path | None = None,
) -> dict[str, float]:
    """Measures of a run file, by name, over all questions of the qrels.

    Args:
        names: measures, ours or of ir-measures; None takes the usual five, without those that look
            deeper than the file's longest list.
        answers, corpus: queries.jsonl with `answers` and corpus.jsonl; together they add
            `answer_recall@5`, `@20` and `@100`, over all questions with answers.

    Raises:
        UserError: a missing or broken file, an unknown measure, files that do not belong together.
    """
    for name in names or ():
        measures.parse(name)  # A misspelt name shows before large files are read.
    if (answers is None) != (corpus is None):
        raise UserError(
            "--answers and --corpus go together: the questions, and the passages' text."
        )
    run_file, qrels = _here(run_file), _here(qrels)
    answers, corpus = answers and _here(answers), corpus and _here(corpus)
    run, judged = measures.read_run(run_file), measures.read_qrels_file(qrels)
    _check_same(run_file, run, qrels, judged)
    _say_unasked(run, judged)
    asked = names or within(max((len(hits.pids) for hits in run.values()), default=0))
    found = measures.evaluate(run, judged, asked)
    return found | (answer_recall(run, judged, answers, corpus) if answers and corpus else {})


def _here(name: Path) -> Path:
    """The file on this machine."""
    path = storage.locate(name)
    if not storage.fetch(path):
        raise UserError(f"{storage.shown(path)}: no such file.")
    return path


def _check_same(
    run_file: Path, run: Mapping[str, Hits], qrels: Path, judged: Mapping[str, Any]
) -> None:
    """All zeros are a wrong file more often than a bad run."""
    if run and run.keys().isdisjoint(judged):
        raise UserError(
            f"{run_file} and {qrels} have no question in common: {next(iter(run))!r} stands in the"
            f" one, {next(iter(judged))!r} in the other."
        )


def _say_unasked(run: Mapping[str, Hits], judged: Mapping[str, Any]) -> None:
    """A low mean may be that of questions which nobody asked. On stderr: stdout may be JSON."""
    if unasked := len(judged.keys() - run.keys()):
        print(
            f"note: {unasked:,} of {len(judged):,} judged questions are not in the run and count"
            " zero. The judgements of those that a run asked lie beside its .trec files:"
            " runs/test.qrels, or dev.qrels.",
            file=sys.stderr,
        )


def answer_recall(
    run: Mapping[str, Hits], judged: Container[str], queries: Path, corpus: Path
) -> dict[str, float]:
    """`answer_recall@k` of a run by ids, over the judged questions that have answers: the file of
    questions may hold all splits. Only the texts of retrieved passages are held."""
    read = _rows(queries, IngestQueries().row)
    answers = {qid: found for qid, _, _, found in read if found and qid in judged}
    if not answers:
        raise UserError(f"{queries}: no judged question has `answers`, a list of strings.")
    first = measures.first_of_file(run, max(ANSWER_DEPTHS))
    pids = {qid: first(qid) for qid in answers}
    wanted = {pid for found in pids.values() for pid in found}
    texts = {pid: text for pid, _, text in _rows(corpus, IngestPassages().row) if pid in wanted}
    if missing := sorted(wanted - texts.keys()):
        raise UserError(
            f"{corpus} lacks {len(missing):,} passages of the run, e.g. {missing[0]!r}."
        )
    return _by_number(answers, pids, texts)


def _by_number(
    answers: Mapping[str, list[str]], pids: Mapping[str, list[str]], texts: Mapping[str, str]
) -> dict[str, float]:
    """The same with numbers for ids, as `measures.answer_recall` takes it."""
    numbers = {pid: number for number, pid in enumerate(texts)}
    lists = [[numbers[pid] for pid in pids[qid]] for qid in answers]
    scores = [[float(-rank) for rank in range(len(row))] for row in lists]
    columns = {"query": range(len(lists)), "passages": lists, "scores": scores}
    table = pa.table({name: list(column) for name, column in columns.items()}, schema=schema.RUN)
    by_number = list(texts.values())
    return measures.answer_recall(
        table, dict(enumerate(answers.values())), by_number.__getitem__, ANSWER_DEPTHS
    )


def _rows(path: Path, row: Callable[[Any, Counter[str]], tuple[Any, ...]]) -> Iterator[Any]:
    """The rows of a BEIR file as ingest reads them."""
    counts = Counter[str]()
    for number, line in text_lines(path):
        try:
            yield row(beir.parse(line), counts)
        except BadLine as error:
            raise UserError(f"{path}, line {number}: {error}") from error


def show(found: Mapping[str, float], *, as_json: bool) -> None:
    """Print one measure a line, or a JSON object."""
    if as_json:
        print(json.dumps(found))
        return
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value:.4f}")
