"""The bulk verbs, each alone: claim a folder, name its inputs, make a version, say what came of it.

Every verb takes `out`, the folder it works in, and leaves there stages with blocks, receipts and
manifests like a whole run, so the same call again goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.table import Table

from rocketray import (
    artifacts,
    labelling,
    preparation,
    results,
    retrieval,
    schema,
    storage,
)
from rocketray import recipe as recipes
from rocketray.artifacts import Version
from rocketray.errors import UserError
from rocketray.evaluation import within
from rocketray.loop import claimed
from rocketray.progress import Display
from rocketray.recipe import Denoise as Rules
from rocketray.schema import Verdict
from rocketray.storage import shown
from rocketray.tables import Tables, as_version, free_queries, new_questions
from rocketray.verbs import named, plain
from rocketray.verbs.named import Questions
from rocketray.verbs.plain import Names
from rocketray.workflow import Workflow

NEW = ("name=verbs", "blocks.passages=1024", "blocks.queries=256")
"""A new folder's recipe: blocks small enough that some thousand passages show how it goes on."""
SAMPLES = 3
"""Removed passages that denoise shows."""


# ----------------------------------------------------------------------------------------- frame


@contextmanager
def opened(
    verb: str, out: Path, data: Path | None, overrides: Sequence[str], options: Sequence[str],
    take_over: bool, display: Display | None,
) -> Iterator[tuple[Workflow, Tables]]:  # fmt: skip
    """The folder, claimed, with its tables.

    Args:
        overrides: what a person set; kept in a new folder's recipe.yaml, but for `model` fields,
            which belong to the model that the command names.
        options: what the verb's own options set, for this call alone.
    """
    named.check_data(out, data)
    display = display or Display()
    with claimed(out, take_over) as folder:
        path = folder.path / "recipe.yaml"
        mine = [override for override in overrides if not override.startswith("model.")]
        if not path.is_file():
            artifacts.write_text(path, recipes.dump(recipes.load(None, [*NEW, *mine])))
        recipe = recipes.load(str(path), [*mine, *options])
        flow = Workflow(recipe, folder, display)
        display.say(f"rocketray {verb}: into {folder}")
        yield flow, named.tables(flow, data)


def times(flow: Workflow) -> None:
    """Of what this call made; before the last lines, which say where things are."""
    new = [row for row in flow.timings() if row["stage"] not in flow.skipped]
    if any(row["seconds"] >= 0.05 for row in new):
        flow.display.show(results.times(new))


def plan(flow: Workflow, **lines: str) -> None:
    """What is about to be done."""
    actors = flow.recipe.cluster.bulk.actors
    workers = "this process" if actors == 0 else str(actors or "one per CPU")
    flow.display.say("plan")
    for name, words in {**lines, "workers": workers}.items():
        flow.display.say(f"  {name:<12} {words}")


def size(version: Version, what: str) -> str:
    blocks = len(version.blocks)
    return f"{version.rows:,} {what} in {blocks:,} block{'s' * (blocks != 1)}"


def described(model: Version) -> str:
    """A model's settings, on a line."""
    told = preparation.model_settings(model)
    words = ", ".join(f"{name} {value!r}" for name, value in told.items() if name != "kind")
    return f"{model.name}: {words}"


# ----------------------------------------------------------------------------------------- verbs


def ingest(
    out: Path, *, data: Path, overrides: Sequence[str] = (), take_over: bool = False,
    display: Display | None = None,
) -> Tables:  # fmt: skip
    """A data set's files as tables: validated, ids as row numbers. Returns them."""
    with opened("ingest", out, data, overrides, (), take_over, display) as (flow, tables):
        say = flow.display.say
        say(f"  passages     {size(tables.passages, 'passages')}")
        say(f"  queries      {size(tables.queries, 'queries')}")
        for name, version in tables.qrels.items():
            say(f"  {name:<12} {version.rows:,} judgements")
        for name, version in tables.chosen.items():
            say(f"  {name:<12} {version.rows:,} questions")
        for label, value in results.ingested(tables.passages):
            say(f"  {label:<12} {value}")
        times(flow)
    return tables


def encode(
    out: Path, *, model: str, data: Path | None = None, to: Path | None = None,
    ids: Path | None = None, overrides: Sequence[str] = (), take_over: bool = False,
    display: Display | None = None,
) -> Version:  # fmt: skip
    """The embeddings of all passages by one model.

    Args:
        to, ids: also as one `.npy`, and the pids in its order, one a line.
    """
    with opened("encode", out, data, overrides, (), take_over, display) as (flow, tables):
        dual = named.dual(flow, model, overrides)
        plan(flow, model=described(dual), encode=size(tables.passages, "passages"))
        made = embedded(flow, tables, dual)
        times(flow)
        say = flow.display.say
        if to:
            to = storage.locate(to)
            plain.write_embeddings(to, made)
            say(f"embeddings: {shown(to)}  np.load({str(to)!r}, mmap_mode='r')")
        if ids:
            ids = storage.locate(ids)
            plain.write_ids(ids, tables.passages)
            say(f"ids: {shown(ids)}  line n is row n")
        shape = made.array(0, "embeddings").shape[1]
        blocks = f"{shown(made.path)}/blocks/*.npy"
        say(f"embeddings: {blocks}  {made.rows:,} x {shape}, in order of name")
        if not to:
            say("  as one file: the same command with --to embeddings.npy --ids ids.txt")
    return made


def embedded(flow: Workflow, tables: Tables, dual: Version) -> Version:
    """Every passage's embedding."""
    ready = named.ready(flow, tables, dual)
    retrieval.retrieve(flow, ready, {dual.name: dual}, {dual.name: []})
    return flow.made[f"{dual.name}_embeddings"]


def retrieve(
    out: Path, *, model: str, queries: str | None = None, k: int = 100, data: Path | None = None,
    overrides: Sequence[str] = (), take_over: bool = False, display: Display | None = None,
) -> Version:  # fmt: skip
    """The k best passages of each question: a run, also as `runs/NAME.trec`."""
    with opened("retrieve", out, data, overrides, (), take_over, display) as (flow, tables):
        dual = named.dual(flow, model, overrides)
        preparation.check_index(flow, dual)
        asked = named.questions(flow, tables, queries)
        if asked.rows is None:
            raise ValueError("questions without rows come from a foreign run, and are not asked.")
        plan(
            flow, model=described(dual), encode=size(tables.passages, "passages"),
            retrieve=f"{k:,} for each of {size(asked.rows, asked.name + ' questions')}",
        )  # fmt: skip
        purpose = f"{asked.name}_top{k}"
        these = Tables(tables.passages, asked.texts, {}, {purpose: asked.rows})
        ready = named.ready(flow, these, dual)
        runs = retrieval.retrieve(
            flow, ready, {dual.name: dual}, {dual.name: [purpose]}, {purpose: k}
        )
        run = runs[dual.name][purpose]
        path = flow.folder.path / "runs" / f"{run.name}.trec"
        plain.write_trec(path, run, Names(asked.texts, tables.passages, run))
        _measured(flow, tables, asked, run)
        times(flow)
        flow.display.say(f"run: {shown(path)}  --run {run.name} for the other verbs")
    return run


def score(
    out: Path, *, run: str, model: str, queries: str | None = None, k: int = 50,
    pairs: Path | None = None, data: Path | None = None, overrides: Sequence[str] = (),
    take_over: bool = False, display: Display | None = None,
) -> Version:  # fmt: skip
    """A run's first k passages with a cross-encoder's probabilities: a scored run, also as
    `runs/NAME.trec` in order of those, and `runs/NAME.parquet`.

    Args:
        pairs: a store of scored pairs outside this folder, for several to share.
    """
    options = _pairs(pairs)
    with opened("score", out, data, overrides, options, take_over, display) as (flow, tables):
        found, asked = named.run(flow, tables, run, queries)
        scored = _scored(flow, tables, found, asked, model, k, overrides)
        names = Names(asked.texts, tables.passages, scored)
        folder = flow.folder.path / "runs"
        plain.write_trec(folder / f"{scored.name}.trec", scored, names, by="ce_scores")
        plain.write_pairs(folder / f"{scored.name}.parquet", scored, names)
        _measured(flow, tables, asked, found, scored)
        times(flow)
        flow.display.say(f"scored run: {shown(folder / scored.name)}.trec and .parquet")
    return scored


def denoise(
    out: Path, *, run: str, model: str, k: int = 50, negative_below: float | None = None,
    positive_above: float | None = None, negatives: int = 5, to: Path | None = None,
    pairs: Path | None = None, data: Path | None = None, overrides: Sequence[str] = (),
    take_over: bool = False, display: Display | None = None,
) -> Version:  # fmt: skip
    """Verdicts on a run over labelled questions, and training examples from them.

    Args:
        negatives: hard negatives of an example, at most, best ranked first.
        to: where the examples go; None: `examples/NAME.jsonl`.
    """
    options = [*_pairs(pairs), *_thresholds(negative_below, positive_above)]
    with opened("denoise", out, data, overrides, options, take_over, display) as (flow, tables):
        found, asked = named.run(flow, tables, run, None)
        judged = named.judgements(flow, tables, asked)
        if judged is None:
            raise UserError(
                f"--run {run}: nobody judged its questions, so no passage is a known positive. For"
                " unlabelled questions there is rocketray augment."
            )
        scored = _scored(flow, tables, found, asked, model, k, overrides)
        positives = as_version(flow, "judgements", judged)
        spec = labelling.denoise_spec(
            f"{scored.name}_denoised", scored, positives, _uncalibrated(flow)
        )
        (verdicts,) = flow.bulk(spec)
        train = tables.qrels.get("train")
        known = schema.positives_of(train.read()) if train else {}
        left_out = "questions of other splits than train, which never teach"
        _examples(flow, tables, asked, verdicts, known, known, left_out, negatives, to)
    return verdicts


def augment(
    out: Path, *, run: str, model: str, queries: str | None = None, k: int = 50,
    negative_below: float | None = None, positive_above: float | None = None, negatives: int = 5,
    to: Path | None = None, pairs: Path | None = None, data: Path | None = None,
    overrides: Sequence[str] = (), take_over: bool = False, display: Display | None = None,
) -> Version:  # fmt: skip
    """Pseudo labels for a run over unlabelled questions, and training examples from them."""
    options = [*_pairs(pairs), *_thresholds(negative_below, positive_above)]
    with opened("augment", out, data, overrides, options, take_over, display) as (flow, tables):
        found, asked = named.run(flow, tables, run, queries)
        scored = _scored(flow, tables, found, asked, model, k, overrides)
        (verdicts,) = flow.bulk(
            labelling.augment_spec(f"{scored.name}_augmented", scored, _uncalibrated(flow))
        )
        hidden = tables.qrels.get("hidden") if asked.are_of(tables) else None
        for label, value in results.pseudo_labels(verdicts, hidden):
            flow.display.say(f"  {label:<32} {value}")
        free = free_queries(tables.queries, tables.qrels)
        new = new_questions(tables.queries, free, None if asked.are_of(tables) else asked.texts)
        left_out = "questions with labels, or asked before in the same words"
        _examples(flow, tables, asked, verdicts, {}, set(new.tolist()), left_out, negatives, to)
    return verdicts


def index(
    out: Path, *, model: str, factory: str = "Flat", data: Path | None = None,
    overrides: Sequence[str] = (), take_over: bool = False, display: Display | None = None,
) -> Version:  # fmt: skip
    """The passages' embeddings as a faiss index for other tools: `index/NAME.faiss` (one for each
    `blocks.passage_group` passages, where there are more) and `index/NAME.ids.txt`.

    Args:
        factory: a string of `faiss.index_factory`; "Flat" is exact.
    """
    options = (f"retrieve.index={json.dumps(factory)}",)
    with opened("index", out, data, overrides, options, take_over, display) as (flow, tables):
        dual = named.dual(flow, model, overrides)
        preparation.check_index(flow, dual)
        plan(
            flow, model=described(dual), encode=size(tables.passages, "passages"), index=factory
        )  # fmt: skip
        ready = named.ready(flow, tables, dual)
        made = retrieval.searched(flow, ready, {dual.name: dual})[dual.name].indexes
        assert made is not None  # The option asks for it.
        times(flow)
        folder = flow.folder.path / "index"
        for path in plain.write_indexes(folder, dual.name, made):
            flow.display.say(f"index: {shown(path)}  faiss.read_index({str(path)!r})")
        ids = folder / f"{dual.name}.ids.txt"
        plain.write_ids(ids, tables.passages)
        flow.display.say(f"ids: {shown(ids)}  line n is the index's row n")
    return made


# ------------------------------------------------------------------------------------ their parts


def _pairs(folder: Path | None) -> list[str]:
    if folder is None:
        return []
    return [f"cluster.pairs={json.dumps(shown(storage.locate(folder).absolute()))}"]


def _uncalibrated(flow: Workflow) -> Rules:
    """The recipe's rules, which must not ask for what only a whole run knows."""
    told = flow.recipe.denoise
    if told.calibration != "none":
        raise UserError(
            f"denoise.calibration is {told.calibration}: it is fitted to dev questions that dual_0"
            " has searched, as a whole run does. Add --set denoise.calibration=none."
        )
    return told


def _thresholds(negative_below: float | None, positive_above: float | None) -> list[str]:
    told = {"negative_below": negative_below, "positive_above": positive_above}
    return [f"denoise.{name}={value}" for name, value in told.items() if value is not None]


def _scored(
    flow: Workflow, tables: Tables, run: Version, asked: Questions, model: str, k: int,
    overrides: Sequence[str],
) -> Version:  # fmt: skip
    """The run's first k passages, scored; known pairs are looked up."""
    cross = named.cross(flow, model, overrides)
    plan(
        flow, model=described(cross), run=f"{run.name}: {size(run, 'questions')}",
        score=f"up to {run.rows * k:,} pairs, the first {k:,} of each question",
        pairs=f"looked up and kept in {shown(labelling.pairs_folder(flow))}",
    )  # fmt: skip
    ready = named.ready(flow, Tables(tables.passages, asked.texts, {}, {}), cross)
    scored = labelling.score(flow, ready, f"{run.name}_by_{cross.name}", run, cross, k)
    pairs, known = scored.facts["pairs"], scored.facts["known"]
    flow.display.say(
        f"  {pairs:,} pairs: {known:,} were known, {pairs - known:,} were scored"
        + (" (in an earlier call)" if scored.name in flow.skipped else "")
    )
    return scored


def _measured(
    flow: Workflow, tables: Tables, asked: Questions, run: Version, scored: Version | None = None
) -> None:
    """The usual measures of a run, and of the same in order of its ce_scores, where the questions
    have judgements."""
    judged = named.judgements(flow, tables, asked)
    found, depth = results.per_query(run, scored, judged) if judged is not None else ({}, 0)
    if not found:
        return
    columns = within(depth)
    table = Table(title=f"{len(found[run.name]):,} judged questions")
    table.title_justify = "left"
    table.add_column("run")
    for name in columns:
        table.add_column(name, justify="right")
    for name, values in found.items():
        table.add_row(name, *(f"{value:.4f}" for value in values[columns].mean()))
    flow.display.show(table)


# -------------------------------------------------------------------------- verdicts and examples


def _examples(
    flow: Workflow, tables: Tables, asked: Questions, verdicts: Version,
    positives: Mapping[int, Sequence[int]], teach: Container[int], left_out: str, negatives: int,
    to: Path | None,
) -> None:  # fmt: skip
    """The table of verdicts, what was removed, and the file of examples, of those questions that
    may teach (`left_out` says who the others are)."""
    labelled = [passage for query in positives for passage in positives[query]]
    names = Names(asked.texts, tables.passages, verdicts, texts=True, also=labelled)
    flow.display.show(verdict_table(plain.judged(verdicts), verdicts.rows))
    _show_removed(flow, verdicts, names)
    path = storage.locate(to or flow.folder.path / "examples" / f"{verdicts.name}.jsonl")
    counts = plain.write_examples(path, verdicts, names, positives, negatives, teach)
    times(flow)
    if counts["left_out"]:
        flow.display.say(f"left out of the examples: {counts['left_out']:,} {left_out}")
    flow.display.say(
        f"examples: {shown(path)}  {counts['examples']:,}, of which {counts['full']:,} have all"
        f" {negatives} negatives; no positive: {counts['no_positive']:,} questions, no hard"
        f" negative: {counts['no_negative']:,}"
    )
    flow.display.say("  to train on them: rocketray train dual --examples FILE --out DIR")


def verdict_table(judged: Mapping[str, np.ndarray], questions: int) -> Table:
    """How many passages got which verdict, how sure the cross-encoder was, where they stood."""
    total = sum(map(len, judged.values()))
    table = Table(title=f"verdicts on {total:,} passages of {questions:,} questions")
    table.title_justify = "left"
    table.add_column("verdict")
    for heading in ("passages", "share", "a question", "ce_score", "10 %", "90 %", "score", "rank"):
        table.add_column(heading, justify="right")
    for verdict, values in judged.items():
        low, middle, high = np.percentile(values[:, 0], [10, 50, 90])
        cells = [f"{len(values):,}", f"{100 * len(values) / total:.1f} %"]
        cells += [f"{len(values) / max(1, questions):.1f}"]
        cells += [f"{value:.3f}" for value in (middle, low, high, np.median(values[:, 1]))]
        table.add_row(verdict, *cells, f"{np.median(values[:, 2]):.0f}")
    return table


def _show_removed(flow: Workflow, verdicts: Version, names: Names) -> None:
    """A person should see what was called relevant though nobody had labelled it."""
    found = plain.most_sure(verdicts, Verdict.LIKELY_FALSE_NEGATIVE, SAMPLES)
    if found:
        flow.display.say("removed as likely false negatives, the surest first")
    for ce_score, query, passage in found:
        text = " ".join(names.text(passage).split())
        flow.display.say(f"  {ce_score:.3f}  {names.question(query)}")
        flow.display.say(f"         {text[:100]}{'…' * (len(text) > 100)}")
