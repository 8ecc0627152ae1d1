"""How good a ranking is: MRR, nDCG, recall and others through ir-measures, equal to trec_eval.

Which order is measured. trec_eval ignores ranks: it sorts by score, cut to float32, and breaks ties
by document id, descending. Ours is another rule (ties by row number), so a run in memory is handed
to ir-measures with scores made from its ranks, strictly falling: the order measured is the order
written down. A run **file** is measured as trec_eval does it, by the file's scores alone; where two
scores tie, the two numbers may differ.

Whom it averages over: every query of the qrels. A query without hits counts zero.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import ir_measures
import numpy as np
import pandas as pd
import pyarrow as pa

from rocketray.answers import has_answer
from rocketray.errors import UserError
from rocketray.lines import judgements, text_lines
from rocketray.schema import QRELS, RUN, require

NAMES = {"mrr": "RR", "ndcg": "nDCG", "recall": "R", "map": "AP", "hit": "Success"}
"""Our names -> those of ir-measures. `hit@k`: is any relevant passage among the first k (RocketQA's
evaluation calls this recall); `recall@k`: which share of the relevant ones is."""
CHUNK = 500
"""Queries handed over at once: 1,000 hits each are some 100 MB of Python objects."""
ROUNDS_AT_ONCE = 256


class Hits(NamedTuple):
    """One query's part of a run file, in the file's order."""

    pids: list[str]
    scores: np.ndarray
    """float32: all that trec_eval keeps of a score."""


class Comparison(NamedTuple):
    """Two rankings on the same queries."""

    difference: float
    """Mean of a - b."""
    p_value: float
    """How often random signs make a difference at least as large."""
    queries: int


Run: TypeAlias = pa.Table | Mapping[str, Hits]
"""RUN, measured in its own order; or `read_run`, measured in trec_eval's."""
Qrels: TypeAlias = pa.Table | Mapping[str, Mapping[str, int]]
"""QRELS, or `read_qrels_file`. Row numbers go with row numbers, ids with ids."""


# -------------------------------------------------------------------------------------- measuring


def evaluate(run: Run, qrels: Qrels, measures: Sequence[str]) -> dict[str, float]:
    """The mean of each measure over the queries of the qrels.

    Measures are `mrr@10`, `ndcg@10`, `recall@50`, `map@100`, `hit@5` or any name ir-measures knows,
    such as `P@5` or `AP`; any other is a UserError.
    """
    return {str(name): float(mean) for name, mean in per_query(run, qrels, measures).mean().items()}


def per_query(run: Run, qrels: Qrels, measures: Sequence[str]) -> pd.DataFrame:
    """One row per query of the qrels, in ascending order of id; one column per measure."""
    asked = {name: parse(name) for name in measures}
    names: dict[Any, list[str]] = {}
    for name, measure in asked.items():
        names.setdefault(measure, []).append(name)
    judged = by_query(qrels)
    frame = pd.DataFrame(0.0, index=pd.Index(list(judged), name="query"), columns=list(asked))
    rank = ranking(run, deepest(asked.values()))
    values = {name: dict.fromkeys(judged, 0.0) for name in asked}
    queries = iter(judged)
    while part := list(islice(queries, CHUNK)):
        ranks = {str(query): hits for query in part if (hits := rank(query))}
        truth = {str(query): judged[query] for query in part}
        back = {str(query): query for query in part}
        for found in ir_measures.iter_calc(list(names), truth, ranks):
            for name in names[found.measure]:
                values[name][back[found.query_id]] = found.value
    for name, column in values.items():
        frame[name] = list(column.values())
    return frame


def parse(name: str) -> Any:
    """A measure of ir-measures by our name or its own."""
    ours = re.fullmatch(r"(\w+)@([1-9]\d*)", name)
    theirs = f"{NAMES[ours[1]]}@{int(ours[2])}" if ours and ours[1] in NAMES else name
    try:
        measure = ir_measures.parse_measure(theirs)
        # Asked now, not after large files were read: a cutoff may lack, or the package it needs.
        known = ir_measures.DefaultPipeline.supports(measure)
    except (NameError, ValueError, SyntaxError, AssertionError):
        known = False
    # NumQ and its like are sums over queries, and no mean says the same.
    if not (known and isinstance(measure.aggregator(), ir_measures.MeanAgg)):
        names = ", ".join(f"{ours}@K" for ours in NAMES)
        raise UserError(
            f"measure {name!r} is unknown: use {names}, or a name of ir-measures such as `P@5`."
        )
    return measure


def deepest(measures: Iterable[Any]) -> int | None:
    """How many hits matter at all; None when some measure has no cutoff."""
    cutoffs = [measure.params.get("cutoff") for measure in measures]
    return max(cutoffs, default=None) if all(isinstance(c, int) for c in cutoffs) else None


def by_query(qrels: Qrels) -> dict[Any, dict[str, int]]:
    """query -> {passage: relevance}, ascending. Below 0 is 0: no measure here tells them apart."""
    if isinstance(qrels, Mapping):
        return {
            query: {pid: max(0, relevance) for pid, relevance in qrels[query].items()}
            for query in sorted(qrels)
        }
    require(qrels, QRELS.names, "measures")
    judged: dict[int, dict[str, int]] = {}
    columns = (qrels[name].to_pylist() for name in QRELS.names)
    for query, passage, relevance in zip(*columns, strict=True):
        judged.setdefault(query, {})[str(passage)] = max(0, relevance)
    return {query: judged[query] for query in sorted(judged)}


def ranking(run: Run, depth: int | None) -> Callable[[Any], dict[str, float]]:
    """query -> {passage: strictly falling score} of its first `depth` hits, {} when it has none."""
    first = first_of_file(run, depth) if isinstance(run, Mapping) else first_of_table(run, depth)

    def scored(query: Any) -> dict[str, float]:
        pids = first(query)
        return dict(zip(pids, map(float, range(len(pids), 0, -1)), strict=True))

    return scored


def first_of_table(run: pa.Table, depth: int | None) -> Callable[[int], list[str]]:
    """The table's own order."""
    require(run, RUN.names[:2], "measures")
    passages = run["passages"].combine_chunks()
    place = {query: row for row, query in enumerate(run["query"].to_pylist())}

    def first(query: int) -> list[str]:
        if query not in place:
            return []
        hits = passages[place[query]].values.to_numpy()
        return [str(passage) for passage in hits[:depth].tolist()]

    return first


def first_of_file(run: Mapping[str, Hits], depth: int | None) -> Callable[[str], list[str]]:
    """trec_eval's order: float32 score, then id, both descending."""

    def first(query: str) -> list[str]:
        if query not in run:
            return []
        pids, scores = run[query].pids, run[query].scores.astype(np.float32)
        order = np.argsort(-scores, kind="stable").tolist()
        if len(np.unique(scores)) < len(scores):
            order.sort(key=lambda i: (scores[i], pids[i]), reverse=True)
        return [pids[i] for i in order[:depth]]

    return first


def compare(
    a: pd.Series,
    b: pd.Series,
    *,
    groups: pd.Series | None = None,
    rounds: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Paired randomisation test, two-sided: are a and b the same but for luck?

    Each round flips the sign of every query's difference at random; the p-value is the share of
    rounds (the observed one among them) whose mean is at least as far from zero. No assumption
    about the distribution, unlike the t-test, which it agrees with on some hundred queries (Smucker
    et al., CIKM 2007).

    Args:
        groups: of queries, which rise and fall together, such as those about one passage: a group's
            differences are flipped as one. Flipped alone they would pass for more witnesses than
            they are, and p would be too small. A query without a group stands alone.
    """
    if set(a.index) != set(b.index) or not a.index.is_unique or not b.index.is_unique:
        raise ValueError("compare needs two series over the same queries, one value each.")
    difference_Q = (a - b.reindex(a.index)).to_numpy(dtype=np.float64)
    flipped_G = difference_Q if groups is None else _sums(difference_Q, groups.reindex(a.index))
    observed = abs(flipped_G.sum())
    random, extreme = np.random.default_rng(seed), 1
    for start in range(0, rounds, ROUNDS_AT_ONCE):
        size = min(ROUNDS_AT_ONCE, rounds - start)
        signs_RG = random.integers(0, 2, size=(size, len(flipped_G)), dtype=np.int8) * 2 - 1
        # Sums in another order differ by rounding; equal ones must count as equal.
        extreme += int((abs(signs_RG @ flipped_G) >= observed * (1 - 1e-12) - 1e-15).sum())
    mean = float(difference_Q.mean()) if len(difference_Q) else 0.0
    return Comparison(mean, extreme / (rounds + 1), len(difference_Q))


def interval(
    differences: pd.DataFrame,
    *,
    groups: pd.Series | None = None,
    rounds: int = 2_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Where the mean of differences lies in 95 % of draws: a bootstrap over two levels.

    Each round draws as many seeds as there are, with replacement, and as many groups of questions,
    and averages over what it drew. The questions are the same for every seed, so one draw of them
    serves all seeds of a round. A single seed is always the one that is drawn: then the interval
    speaks of other questions, and not of other seeds. Of two or three it is somewhat narrow, for
    so few hardly show how far seeds can differ.

    Args:
        differences: a row for each query, a column for each seed.
        groups: of queries, as in `compare`: drawn whole.
    """
    names = groups if groups is not None else pd.Series(differences.index, differences.index)
    code_Q = _codes(names.reindex(differences.index))
    count_G = np.bincount(code_Q)
    value_GS = np.zeros((len(count_G), differences.shape[1]))
    np.add.at(value_GS, code_Q, differences.to_numpy(dtype=np.float64))
    random, means = np.random.default_rng(seed), []
    for start in range(0, rounds, ROUNDS_AT_ONCE):
        size = min(ROUNDS_AT_ONCE, rounds - start)
        group_RG, seed_RS = (_drawn(random, size, number) for number in value_GS.shape)
        sum_R = (group_RG @ value_GS * seed_RS).sum(1)
        means.append(sum_R / (group_RG @ count_G * differences.shape[1]))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def _drawn(random: np.random.Generator, rounds: int, number: int) -> np.ndarray:
    """[rounds, number]: how often each one came when so many were drawn, with replacement."""
    drawn = random.integers(number, size=(rounds, number)) + number * np.arange(rounds)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=rounds * number)
    return counts.reshape(rounds, number).astype(np.float64)


def _sums(value_Q: np.ndarray, groups: pd.Series) -> np.ndarray:
    """Of each group, and of each query that has none."""
    return np.bincount(_codes(groups), weights=value_Q)


def _codes(groups: pd.Series) -> np.ndarray:
    """Groups as numbers from 0; a query that has none is a group by itself."""
    code_Q, names = pd.factorize(groups)
    alone_Q = code_Q < 0
    code_Q[alone_Q] = len(names) + np.arange(alone_Q.sum())
    return np.asarray(code_Q)


def answer_recall(
    run: pa.Table,
    answers: Mapping[int, Sequence[str]],
    text_of: Callable[[int], str],
    ks: Sequence[int],
) -> dict[str, float]:
    """`answer_recall@k`: the share of questions with an answer in one of the first k passages.

    The open-domain QA measure (DPR, RocketQA on NQ): passage text only, `answers.has_answer`. Over
    every query of `answers` that has any; one that the run lacks counts zero.
    """
    asked = {query: list(found) for query, found in sorted(answers.items()) if found}
    first = first_of_table(run, max(ks))
    ranks = [first_answer(map(text_of, map(int, first(q))), found) for q, found in asked.items()]
    return {
        f"answer_recall@{k}": sum(rank < k for rank in ranks) / len(ranks) if ranks else 0.0
        for k in ks
    }


def first_answer(texts: Iterable[str], answers: Sequence[str]) -> float:
    """Position of the first text with an answer, from 0; infinity when none has."""
    hits = (rank for rank, text in enumerate(texts) if has_answer(text, answers))
    return next(hits, float("inf"))


# ------------------------------------------------------------------------------------- TREC files


def read_run(path: Path) -> dict[str, Hits]:
    """A TREC run, `qid Q0 pid rank score tag`, parted by tabs or spaces; `.gz` is read through.

    UserErrors name file and line: other than 6 columns, a score that is no number, a passage twice
    for one query.
    """
    pids: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    same: dict[str, str] = {}  # one string object per passage, however many queries it is in
    for number, line in text_lines(path):
        qid, pid, score = run_cells(path, number, line)
        pids.setdefault(qid, []).append(same.setdefault(pid, pid))
        scores.setdefault(qid, []).append(score)
    for qid, found in pids.items():
        if len(set(found)) < len(found):
            raise UserError(f"{path}: query {qid!r} lists passage {twice(found)!r} twice.")
    return {qid: Hits(found, np.array(scores.pop(qid), np.float32)) for qid, found in pids.items()}


def run_cells(path: Path, number: int, line: str) -> tuple[str, str, float]:
    """(qid, pid, score) of a run's line."""
    cells = line.split("\t")
    if len(cells) != 6:
        cells = line.split()
    if len(cells) != 6:
        raise UserError(
            f"{path}, line {number}: {len(cells)} columns; a run's line is "
            "`qid Q0 pid rank score tag`."
        )
    qid, _, pid, _, value, _ = cells
    try:
        score = float(value)
    except ValueError:
        score = float("nan")
    if score != score:
        raise UserError(f"{path}, line {number}: score {value!r} is not a number.")
    return qid, pid, score


def twice(names: Sequence[str]) -> str:
    """The first name that comes again."""
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def write_run(
    path: Path,
    rows: Iterable[tuple[str, Sequence[str], Sequence[float]]],
    tag: str = "rocketray",
) -> None:
    """Write (qid, pids best first, scores) as a TREC run, one query at a time.

    Columns are parted by tabs, which trec_eval takes as well, so ids with spaces come back whole.
    Scores are the shortest decimals that parse back to the same float32. The file appears complete
    or not at all.
    """
    attempt = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with attempt.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.writelines(run_lines(*row, tag))
        os.replace(attempt, path)
    finally:
        attempt.unlink(missing_ok=True)


def run_lines(qid: str, pids: Sequence[str], scores: Sequence[float], tag: str) -> Iterator[str]:
    """One query's lines."""
    for rank, (pid, score) in enumerate(zip(pids, exactly(scores), strict=True), start=1):
        if not {"\t", "\n", "\r"}.isdisjoint(qid + pid):
            raise ValueError(f"ids {qid!r}, {pid!r} hold a tab or newline; ingest refuses those.")
        yield f"{qid}\tQ0\t{pid}\t{rank}\t{score}\t{tag}\n"


def exactly(scores: Sequence[float]) -> list[str]:
    """float32 as text, none lost."""
    values = np.asarray(scores, dtype=np.float32)
    if np.isnan(values).any():
        raise ValueError("a run holds NaN scores; no order can be read from those.")
    return [str(text) for text in values.astype(str)]


def read_qrels_file(path: Path) -> dict[str, dict[str, int]]:
    """A qrels file by ids, TREC (4 columns) or BEIR (3, header). Contradictions are a UserError."""
    qrels: dict[str, dict[str, int]] = {}
    for line, qid, pid, relevance in judgements(path):
        if qrels.setdefault(qid, {}).setdefault(pid, relevance) != relevance:
            raise UserError(
                f"{path}, line {line}: query {qid!r} and passage {pid!r} have relevance "
                f"{relevance} here and {qrels[qid][pid]} before. Keep one."
            )
    if not qrels:
        raise UserError(f"{path}: the file holds no judgement. Add some, or remove the file.")
    return qrels
