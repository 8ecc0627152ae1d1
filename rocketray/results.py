"""What came of a run: the table, the counts, TREC files, summary.json and the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.table import Table

from rocketray import artifacts, measures, report, schema, storage
from rocketray.artifacts import Version
from rocketray.evaluation import ANSWER_DEPTHS, MEASURES, within
from rocketray.learning import cross_quality
from rocketray.progress import clock
from rocketray.retrieval import list_depths
from rocketray.schema import Verdict
from rocketray.workflow import Workflow


def conclude(flow: Workflow) -> None:
    """Measure every model on the held-out questions, show it, and leave it in the run's folder."""
    runs = test_runs(flow)
    metrics = measure(flow, runs) if runs else {}
    flow.tell_recipe()  # Nothing is left that `--frozen` could refuse; and the report reads it.
    if not runs:
        flow.display.say("No test or dev judgements: nothing to measure.")
        return
    artifacts.write_json(flow.folder.path / "metrics.json", metrics)
    summary, told = summarise(flow), flow.folder.path / "summary.json"
    page, text = flow.folder.path / "report.html", artifacts.json_text(summary)
    # A model may come to the same weights by another way, which the page tells. An old page goes
    # first: a run that is killed before the new one is there must not take it for that.
    if not storage.fetch(told) or told.read_bytes() != text.encode():
        storage.remove(page)
    artifacts.write_text(told, text)
    if "metrics" not in flow.skipped or not storage.fetch(page):
        for name, run in runs.items():
            write_trec(flow, name, run)
        write_qrels(flow)
        report.write(flow.folder)
    show(flow, metrics, summary)
    flow.display.say(f"report: {storage.shown(page)}")


# -------------------------------------------------------------------------------------- measuring


def test_runs(flow: Workflow) -> dict[str, pa.Table]:
    """The runs over the held-out questions, by their name in the table."""
    runs = {
        name: flow.made[f"{name}_test"].read()
        for name in report.models(flow.recipe.denoise)
        if f"{name}_test" in flow.made
    }
    if "dual_2_test_scored" in flow.made:
        runs["reranked"] = reranked(runs["dual_2"], flow.made["dual_2_test_scored"].read())
    return runs


def reranked(run: pa.Table, scored: pa.Table) -> pa.Table:
    """A run whose scored head is put in order of ce_score (ties by row number); the rest stays.

    `scores` are made from ranks, since two kinds of numbers would not compare.
    """
    lists = []
    for passages, head, ce_scores in zip(
        run["passages"].to_pylist(), scored["passages"].to_pylist(),
        scored["ce_scores"].to_numpy(zero_copy_only=False), strict=True,
    ):  # fmt: skip
        order = np.lexsort((head, -np.asarray(ce_scores)))
        known = set(head)  # No slice: what was left out of scoring is missing in between.
        rest = [passage for passage in passages if passage not in known]
        lists.append([head[i] for i in order] + rest)
    scores = [list(range(len(row), 0, -1)) for row in lists]
    columns = {"query": run["query"], "passages": lists, "scores": scores}
    return pa.table(columns, schema=schema.RUN)


def per_query(
    run: Version, scored: Version | None, judged: pa.Table
) -> tuple[dict[str, pd.DataFrame], int]:
    """Measures of a run's judged questions, one block in memory: a run may be larger than that.

    Args:
        scored: the same blocks with ce_scores, measured as the run reranked.
        judged: QRELS.

    Returns:
        by name of the version one row per question and one column for each of `MEASURES`, nothing
        where no question is judged; and the length of the run's longest list.
    """
    judged = judged.take(pa.array(np.argsort(judged["query"].to_numpy(), kind="stable")))
    known = judged["query"].to_numpy()
    found: dict[str, list[pd.DataFrame]] = {}
    depth = 0
    for block in run.blocks:
        lists = run.table(block.number, ["query", "passages"])
        lengths = lists["passages"].combine_chunks().value_lengths().to_numpy()
        depth = max(depth, int(lengths.max(initial=0)))
        queries = lists["query"].to_numpy()
        first, last = np.searchsorted(known, queries), np.searchsorted(known, queries, "right")
        mine = last > first
        if not mine.any():
            continue
        spans = [np.arange(*span) for span in zip(first[mine], last[mine], strict=True)]
        truth = judged.take(pa.array(np.concatenate(spans)))
        ranked = {run.name: lists.filter(pa.array(mine))}
        if scored:
            heads = scored.table(block.number, ["passages", "ce_scores"]).filter(pa.array(mine))
            ranked[scored.name] = reranked(ranked[run.name], heads)
        for name, table in ranked.items():
            found.setdefault(name, []).append(measures.per_query(table, truth, MEASURES))
    return {name: pd.concat(parts).sort_index() for name, parts in found.items()}, depth


def asked(flow: Workflow) -> list[str]:
    """The measures of its table."""
    return within(min(list_depths(flow.recipe)["test"], flow.made["passages"].rows))


def measure(flow: Workflow, runs: Mapping[str, pa.Table]) -> dict[str, dict[str, float]]:
    """Measures by model. Kept as a version, so that a repeated command need not measure again, nor
    write the files of the same runs, of which the depth is part."""
    qrels, names = held_out(flow), asked(flow)
    inputs = {name: flow.made[_source(name)].digest for name in runs}
    if flow.recipe.data.positives == "answers":  # Theirs stand beside the questions' texts.
        inputs["answers"] = flow.made["queries"].digest
    identity = {
        "code": 2,
        "recipe": {
            "positives": flow.recipe.data.positives,
            "trec_depth": flow.recipe.evaluate.trec_depth,
            "measures": names,
        },
        "inputs": {**inputs, "qrels": qrels.digest, "queries": flow.made["test_queries"].digest},
    }

    def make() -> list[artifacts.Parts]:
        truth = judged(flow)
        rows = [
            (name, measure, value)
            for name, run in runs.items()
            for measure, value in {
                **measures.evaluate(run, truth, names),
                **_answer_recall(flow, run),
            }.items()
        ]
        header = ("model", "measure", "value")
        columns = dict(zip(header, (list(c) for c in zip(*rows, strict=True)), strict=True))
        return [{artifacts.TABLE: pa.table(columns)}]

    metrics: dict[str, dict[str, float]] = {name: {} for name in runs}
    for row in flow.small("metrics", identity, make).read().to_pylist():
        metrics[row["model"]][row["measure"]] = round(row["value"], 6)
    return metrics


def _source(name: str) -> str:
    return "dual_2_test_scored" if name == "reranked" else f"{name}_test"


def _answer_recall(flow: Workflow, run: pa.Table) -> dict[str, float]:
    """Share of questions with an answer string in the first k passages (DPR's measure)."""
    if flow.recipe.data.positives != "answers":
        return {}
    answers = flow.made["queries"].read(["answers"])["answers"]
    texts = artifacts.Taken(flow.made["passages"], _listed(run), "text")
    return measures.answer_recall(
        run,
        {query: answers[query].as_py() for query in run["query"].to_pylist()},
        lambda passage: texts.cells("text", [passage])[0],
        ANSWER_DEPTHS,
    )


def _listed(run: pa.Table, depth: int | None = None) -> np.ndarray:
    """Every passage in the (first `depth` of the) lists, once, ascending."""
    heads = [np.array(row[:depth], np.int64) for row in run["passages"].to_pylist()]
    return np.unique(np.concatenate(heads))


def held_out(flow: Workflow) -> Version:
    """Judgements of the questions in the table: test, or dev where there is no test."""
    return flow.made[f"qrels_{schema.held_out(flow.made)}"]


def judged(flow: Workflow) -> pa.Table:
    """Of those, the judgements of the questions that are asked."""
    chosen = flow.made["test_queries"].read()["query"].to_numpy()
    table = held_out(flow).read()
    return table.filter(pa.array(np.isin(table["query"].to_numpy(), chosen)))


def groups(flow: Workflow) -> pd.Series:
    """Of each question that is asked, its first relevant passage: with that passage's embedding all
    questions about it rise and fall, so they are no witnesses independent of each other."""
    relevant = schema.positives_of(judged(flow))
    return pd.Series({query: min(passages) for query, passages in relevant.items()}, dtype="int64")


def write_trec(flow: Workflow, name: str, run: pa.Table) -> None:
    """One TREC run file, in people's ids."""
    qids = flow.made["queries"].read(["qid"])["qid"]
    depth = flow.recipe.evaluate.trec_depth
    pids = artifacts.Taken(flow.made["passages"], _listed(run, depth), "pid")

    def rows() -> Iterator[tuple[str, list[str], list[float]]]:
        columns = (run[column].to_pylist() for column in run.column_names)
        for query, passages, scores in zip(*columns, strict=True):
            yield qids[query].as_py(), pids.cells("pid", passages[:depth]), scores[:depth]

    path = flow.folder.path / "runs" / f"{name}.trec"
    path.parent.mkdir(exist_ok=True)
    measures.write_run(path, rows(), tag=f"rocketray-{name}")
    storage.push(path)


def write_qrels(flow: Workflow) -> None:
    """`runs/test.qrels`, or `dev.qrels` where dev measures: what the runs are measured by. The data
    set's own file may judge more questions than the recipe asks."""
    table = judged(flow)
    queries, passages, relevance = (table[name].to_numpy() for name in schema.QRELS.names)
    qids = artifacts.Taken(flow.made["queries"], np.unique(queries), "qid")
    pids = artifacts.Taken(flow.made["passages"], np.unique(passages), "pid")
    names = qids.cells("qid", queries.tolist()), pids.cells("pid", passages.tolist())
    lines = zip(*names, relevance.tolist(), strict=True)
    path = flow.folder.path / "runs" / f"{schema.held_out(flow.made)}.qrels"
    artifacts.write_text(path, "".join(f"{qid}\t0\t{pid}\t{n}\n" for qid, pid, n in lines))


# --------------------------------------------------------------------------------------- counting


def summarise(flow: Workflow) -> dict[str, Any]:
    """What a person would ask, for the screen and the report."""
    made = flow.made
    names = (
        "passages",
        "queries",
        *(f"{p}_queries" for p in ("train", "dev", "test", "unlabelled")),
    )
    rows = {name.removesuffix("_queries"): made[name].rows for name in names if name in made}
    return {
        "recipe": flow.recipe.name,
        "seed": flow.recipe.seed,
        "rows": rows,
        "counts": [[label, value] for label, value in counts(flow)],
        "models": {
            name: dict(made[name].facts)
            for name in report.trained_models(flow.recipe.denoise)
            if name in made
        },
        "timings": flow.timings(),
    }


def counts(flow: Workflow) -> Iterator[tuple[str, str]]:
    """Label and value of everything worth a line; what did not happen has none."""
    yield from ingested(flow.made["passages"])
    made, rounds = flow.made, flow.recipe.denoise
    if "dual_0" in made:
        yield "negatives per question", f"{made['dual_0'].facts['negatives_per_query']:,} in dual_0"
    if "cross" in made and (quality := cross_quality(flow)):
        yield (
            "cross-encoder on dev",
            f"MRR@10 {quality['cross']:.4f} where dual_0 has {quality['dual_0']:.4f}",
        )
    if "both_train" in made:
        yield "candidates", _found_by(made["both_train"].facts)
    for number, stage in enumerate(rounds.in_rounds("denoise"), start=1):
        if stage in made:
            yield from removals(made[stage].facts, "" if number == 1 else f", round {number}")
    for step in (*rounds.in_rounds("dual_1"), "dual_2"):
        if f"{step}_examples" in made:
            facts = made[f"{step}_examples"].facts
            yield (
                f"{step}: examples",
                f"{facts['from_labels']:,} from labels,"
                f" {facts['from_pseudo_labels']:,} from pseudo labels",
            )
            if facts["filled"]:
                yield f"{step}: filled negatives", f"{facts['filled']:,} (too few confident ones)"
            if facts["without"]:
                yield f"{step}: questions without example", f"{facts['without']:,}"
    if "augment" in made:
        yield from pseudo_labels(made["augment"], made.get("qrels_hidden"))
        if asked := made["unlabelled_queries"].facts.get("asked_before"):
            yield "unlabelled questions left out", f"{asked:,}: asked before, in the same words"
    left_out = sum(version.facts.get("quarantined", 0) for version in made.values())
    if left_out:
        yield "rows left out (quarantined)", f"{left_out:,}: they kill the process that reads them"
    scored = [v.facts for name, v in made.items() if name.endswith("_scored")]
    if scored:
        known = sum(facts["known"] for facts in scored)
        pairs = sum(facts["pairs"] for facts in scored)
        yield "pairs scored", f"{pairs - known:,}, and {known:,} known from before"
        yield from _rechecked(scored, pairs - known)


def ingested(passages: Version) -> Iterator[tuple[str, str]]:
    """What ingest found odd about the passages, and kept."""
    facts = passages.facts
    words = {"empty": "empty passages", "very_long": "passages over 100,000 characters"}
    for name, label in words.items():
        if facts.get(name):
            yield label, f"{facts[name]:,} of {passages.rows:,} (kept)"


def _rechecked(scored: Sequence[Mapping[str, int]], new: int) -> Iterator[tuple[str, str]]:
    """With `score.recheck`: what float32 was asked again, and how often it would disagree."""
    again, compared, agreed = (
        sum(facts.get(name, 0) for facts in scored) for name in ("rechecked", "compared", "agreed")
    )
    if compared:
        yield (
            "scored again in float32",
            f"{again:,} ({share(again, new)}); of {compared:,} verdicts drawn to compare"
            f" {agreed:,} agree ({share(agreed, compared)})",
        )


def _found_by(facts: Mapping[str, int]) -> str:
    dual_0, bm25, both = (facts[name] for name in ("dual_0", "bm25", "both"))
    return f"{dual_0:,} found by dual_0 alone, {bm25:,} by BM25 alone, {both:,} by both"


def removals(facts: Mapping[str, int], where: str) -> Iterator[tuple[str, str]]:
    """What denoising took out of the negatives; `denoise.filter`'s share where it took any."""
    counts = {
        "likely false negatives": schema.likely_false(facts),
        "uncertain": facts[Verdict.UNCERTAIN],
    }
    if near := facts[Verdict.NEAR_POSITIVE]:
        counts["too near the positive"] = near
    removed = sum(counts.values())
    total = removed + facts[Verdict.HARD_NEGATIVE]
    yield (
        f"negatives removed{where}",
        f"{removed:,} of {total:,} ({share(removed, total)}):"
        f" {', '.join(f'{count:,} {name}' for name, count in counts.items())}",
    )


def pseudo_labels(verdicts: Version, hidden: Version | None) -> Iterator[tuple[str, str]]:
    """How many pseudo positives, and how many of those with a hidden truth are right."""
    truth = schema.positives_of(hidden.read()) if hidden else {}
    labels = right = known = 0
    for number in range(len(verdicts.blocks)):
        table = verdicts.table(number)
        columns = (table[name].to_pylist() for name in ("query", "passages", "verdicts"))
        for query, passages, row in zip(*columns, strict=True):
            if Verdict.PSEUDO_POSITIVE in row:
                labels += 1
                known += query in truth
                right += passages[row.index(Verdict.PSEUDO_POSITIVE)] in truth.get(query, [])
    total = verdicts.rows
    yield "pseudo labels", f"{labels:,} of {total:,} unlabelled questions ({share(labels, total)})"
    if known:
        yield (
            "pseudo labels right",
            f"{right:,} of {known:,} with a hidden label ({share(right, known)})",
        )


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


# ---------------------------------------------------------------------------------------- showing


def show(flow: Workflow, metrics: Mapping[str, Mapping[str, float]], summary: Any) -> None:
    """The table, the counts and the times, on the screen."""
    names = list(next(iter(metrics.values())))
    best = {name: max(row[name] for row in metrics.values()) for name in names}
    split = schema.held_out(flow.made)
    words = report.models(flow.recipe.denoise, flow.made)
    table = Table(
        title=f"{flow.made['test_queries'].rows:,} {split} questions", title_justify="left"
    )
    table.add_column("model")
    for name in names:
        table.add_column(name, justify="right")
    for model, row in metrics.items():
        cells = [
            ("[bold]{}[/]" if row[n] == best[n] else "{}").format(f"{row[n]:.4f}") for n in names
        ]
        table.add_row(words[model], *cells)
    flow.display.show(table)
    for note in report.dev_notes(split, flow.recipe):
        flow.display.say(f"  {note}")
    for label, value in summary["counts"]:
        flow.display.say(f"  {label:<32} {value}")
    flow.display.show(times(summary["timings"]))


def times(timings: list[dict[str, Any]]) -> Table:
    """Seconds and rates by stage; what took no time to speak of has no line."""
    table = Table(title="time per stage", title_justify="left")
    for name in ("stage", "rows", "time", "rows/s", "blocks per worker", "s/block"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in timings:
        if row["seconds"] >= 0.05:
            rate = f"{row['rows'] / row['seconds']:,.0f}" if row["rows"] else ""
            blocks = " + ".join(str(n) for n in sorted(row["blocks"].values(), reverse=True))
            rows = f"{row['rows']:,}" if row["rows"] else ""
            each = " / ".join(f"{s:.2g}" for s in row.get("block_seconds", ()))
            table.add_row(row["stage"], rows, clock(row["seconds"]), rate, blocks, each)
    total = sum(row["seconds"] for row in timings)
    table.add_row("all", "", clock(total), "", "", "")
    return table
