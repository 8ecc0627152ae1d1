"""People's own training examples -> tables -> one trained model, resumed and skipped like a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from rocketray import learning, preparation, schema, storage
from rocketray.artifacts import RunFolder, Version
from rocketray.errors import UserError
from rocketray.formats.examples_file import Text, open_examples
from rocketray.model.dev import Dev
from rocketray.recipe import CrossStep, FirstStep
from rocketray.stages.examples import Row, example, made
from rocketray.stages.ingest import hide_labels
from rocketray.tables import STAGES, Tables, as_version
from rocketray.workflow import Workflow

Kind = Literal["dual", "cross"]
DEV_SHARE = 0.1
DEV_FROM = 50
"""Questions from which a tenth of them chooses the best checkpoint instead of teaching."""


@dataclass(frozen=True)
class Line:
    """One example of the file, in row numbers."""

    number: int
    query: int
    positive: int
    negatives: list[int]
    """Without repetitions, and without what another line calls a positive of the query."""


@dataclass(frozen=True)
class Own:
    """A file of examples, read: every distinct text once, and examples as row numbers."""

    path: Path
    passages: pa.Table
    queries: pa.Table
    qrels: pa.Table
    lines: list[Line]


# ---------------------------------------------------------------------------------------- reading


def read(path: Path) -> Own:
    """All of a file. Texts are held in memory once: some millions are fine.

    Raises:
        UserError: naming file, line and field; or the file is empty.
    """
    passages: dict[Text, int] = {}
    queries: dict[str, int] = {}
    lines: list[Line] = []
    path = storage.locate(path)
    storage.fetch(path)
    for line, query, positive, negatives in open_examples(path):
        rows = [passages.setdefault(text, len(passages)) for text in (positive, *negatives)]
        lines.append(Line(line, queries.setdefault(query, len(queries)), rows[0], rows[1:]))
    if not lines:
        raise UserError(f"{path}: the file holds no training examples.")
    qrels = _qrels(lines)
    positives = schema.positives_of(qrels)
    lines = [_cleaned(line, set(positives[line.query])) for line in lines]
    return Own(path, _passages(list(passages)), _queries(list(queries)), qrels, lines)


def _cleaned(line: Line, positives: set[int]) -> Line:
    negatives = [p for p in dict.fromkeys(line.negatives) if p not in positives]
    return Line(line.number, line.query, line.positive, negatives)


def _passages(texts: list[Text]) -> pa.Table:
    columns = {
        "pid": [f"p{row}" for row in range(len(texts))],
        "title": [text.title for text in texts],
        "text": [text.text for text in texts],
    }
    return pa.table(columns, schema=schema.PASSAGES)


def _queries(texts: list[str]) -> pa.Table:
    columns = {
        "qid": [f"q{row}" for row in range(len(texts))],
        "text": texts,
        "labelled": [True] * len(texts),
        "answers": [[]] * len(texts),
    }
    return pa.table(columns, schema=schema.QUERIES)


def _qrels(lines: list[Line]) -> pa.Table:
    pairs = dict.fromkeys((line.query, line.positive) for line in lines)
    queries, passages = zip(*pairs, strict=True)
    columns = {"query": queries, "passage": passages, "relevance": [1] * len(pairs)}
    return pa.table(columns, schema=schema.QRELS)


# --------------------------------------------------------------------------------------- training


def train(flow: Workflow, kind: Kind, own: Own) -> Version:
    """Train one model on them; it ends in `models/KIND` of the run's folder.

    Raises:
        UserError: a cross-encoder lacks negatives.
    """
    told = flow.recipe.steps.dual_0 if kind == "dual" else flow.recipe.steps.cross
    qrels, held_out = split(own, flow.recipe.seed)
    table = _examples(flow, own, qrels, 1 if kind == "dual" else flow.recipe.steps.cross.negatives)
    if kind == "cross" and not len(table["negatives"][0]):
        raise UserError(
            f"{own.path}: a cross-encoder learns from negatives, and not every example has one."
            " Give each at least one that is no positive of its query."
        )
    examples = as_version(flow, "own_examples", table)
    tables = _tables(flow, own, qrels, held_out)
    if isinstance(told, FirstStep):
        return _train_dual(flow, told, tables, examples)
    return _train_cross(flow, told, tables, examples, _candidates(own, tables))


def check_folder(folder: RunFolder) -> None:
    """Both kinds of run call their tables `passages`; one folder keeps one kind."""
    current = folder.current()
    if current and "own_examples" not in current:
        raise UserError(f"{folder.path} holds a run of the whole loop. Give --out another folder.")


def split(own: Own, seed: int) -> tuple[pa.Table, pa.Table]:
    """Judgements to learn from, and those of the questions held out (none of few questions).

    The choice hangs on the questions' texts, not on their order in the file.
    """
    share = DEV_SHARE if len(own.queries) >= DEV_FROM else 0.0
    return hide_labels(own.qrels, own.queries["text"].to_pylist(), share, seed)


def _examples(flow: Workflow, own: Own, qrels: pa.Table, most: int) -> pa.Table:
    """EXAMPLES with as many negatives each as the shortest list has, and at most `most`."""
    known = set(qrels["query"].to_pylist())
    lines = [line for line in own.lines if line.query in known]
    shortest = min(lines, key=lambda line: len(line.negatives))
    count = min(most, len(shortest.negatives))
    held_out = len(own.queries) - len(known)
    flow.display.say(
        f"  {len(lines):,} examples of {len(known):,} questions; {held_out:,} more questions"
        " choose the checkpoint (dev)"
    )
    why = "no more are used" if count == most else f"line {shortest.number} has no more"
    flow.display.say(f"  negatives per example: {count}, the first of each list ({why})")
    return table_of(lines, count)


def table_of(lines: list[Line], count: int) -> pa.Table:
    """EXAMPLES with the first `count` negatives of each; a pair that comes again is a copy."""
    copies: Counter[tuple[int, int]] = Counter()
    rows: list[Row] = []
    for line in lines:
        pair = line.query, line.positive
        rows.append(example(*pair, copies[pair], line.negatives[:count]))
        copies[pair] += 1
    table: pa.Table = made(rows).parts["table"]
    return table


def _tables(flow: Workflow, own: Own, qrels: pa.Table, held_out: pa.Table) -> Tables:
    recipe = flow.recipe
    chosen = {}
    with flow.together(STAGES):
        passages = as_version(flow, "passages", own.passages, recipe.blocks.passages)
        queries = as_version(flow, "queries", own.queries, recipe.blocks.queries)
        judged = {"train": as_version(flow, "qrels_train", qrels)}
        if len(held_out):
            judged["dev"] = as_version(flow, "qrels_dev", held_out)
            rows = np.unique(held_out["query"].to_numpy())
            rows = schema.sample(rows, recipe.evaluate.dev_queries, recipe.seed)
            table = pa.table({"query": pa.array(rows)})
            chosen["dev"] = as_version(flow, "dev_queries", table)
    return Tables(passages, queries, judged, chosen)


def _train_dual(flow: Workflow, told: FirstStep, tables: Tables, examples: Version) -> Version:
    model = flow.recipe.model.dual
    weights = preparation.initial_dual(flow, model)
    inputs = _inputs(flow, tables, weights, "")
    inputs |= {"examples": examples, "qrels": tables.qrels["train"]}
    extra = learning.dual_settings(told)
    dev = learning.dual_dev(flow, tables)
    return learning.train(flow, "dual", "dual", told, inputs, dev, extra)


def _train_cross(
    flow: Workflow, told: CrossStep, tables: Tables, examples: Version, dev: Dev | None
) -> Version:
    model = flow.recipe.model.cross
    weights = preparation.initial_cross(flow, model)
    inputs = _inputs(flow, tables, weights, "cross_")
    inputs |= {"examples": examples}
    extra = learning.cross_settings(told)
    return learning.train(flow, "cross", "cross", told, inputs, dev, extra)


def _inputs(flow: Workflow, tables: Tables, weights: Version, prefix: str) -> dict[str, Version]:
    (tokens,) = preparation.token_stores(flow, tables, {prefix: preparation.readings(weights)})
    stores = {"query_tokens": tokens.queries, "passage_tokens": tokens.passages}
    return {"weights": weights, **stores}


def _candidates(own: Own, tables: Tables) -> Dev | None:
    """Each dev question's own passages, to be told apart; None where none has a negative."""
    if "dev" not in tables.chosen:
        return None
    queries = tables.chosen["dev"].read()["query"].to_pylist()
    positives = schema.positives_of(tables.qrels["dev"].read())
    negatives: dict[int, list[int]] = {query: [] for query in queries}
    for line in own.lines:
        if line.query in negatives:
            negatives[line.query] += line.negatives
    queries = [query for query in queries if negatives[query]]
    if not queries:
        return None
    return Dev(
        queries=np.array(queries),
        relevant=[np.array(positives[query]) for query in queries],
        candidates=[np.array([*positives[query], *negatives[query]]) for query in queries],
    )
