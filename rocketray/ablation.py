"""`rocketray ablate`: the paper's Table 3 on anybody's data, over several seeds, with one command.

    DIR/seed-13/         an ordinary run; beside its four models lie those of the other rows
    DIR/seed-13.parquet  what it came to; enough in its stead (rocketray/seeds.py)
    DIR/ablation.json    what came of all; .md and .html for people
    DIR/times.json       seconds by row and seed: they never repeat, so they stand apart

A row is a model, or a list somebody else ordered, measured on the test questions. What rows share
(tables, tokens, dual_0, its runs, the cross-encoder, its scores) is made once per seed; what no
seed changes, once. Rows that compare two rules train equally many steps. dual_2 does not: it has as
many epochs as dual_1, as in the paper, over more examples, and so have the points of the figure
`augmented`. `--also longer` trains dual_1 for as many steps.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table

from rocketray import (
    artifacts,
    evidence,
    labelling,
    learning,
    measures,
    pipeline,
    preparation,
    report,
    results,
    retrieval,
    schema,
    storage,
    tables,
)
from rocketray import recipe as recipes
from rocketray.artifacts import RunFolder, Version
from rocketray.comparison import Measured, compared
from rocketray.errors import UserError
from rocketray.formats import Dataset
from rocketray.learning import cross_quality, weakness
from rocketray.loop import check_room, claimed, say_departures, say_warnings
from rocketray.model import weights as initial_weights
from rocketray.model.order import steps_of
from rocketray.preparation import Ready
from rocketray.progress import Display, clock
from rocketray.recipe import DualStep, HardStep, Recipe
from rocketray.report import ablation as page
from rocketray.schema import Verdict
from rocketray.seeds import Seed, path_of, shared
from rocketray.workflow import Workflow

Make = Callable[[Workflow, Ready, "Row"], None]


@dataclass(frozen=True)
class Row:
    """One row of a table beside what every run makes."""

    name: str
    """Of the stage that holds its model."""
    words: str
    make: Make
    settings: tuple[str, ...] = ()
    """Fields in which it differs from the recipe, as for --set."""
    share: float = 1.0
    """Of the unlabelled questions it learns from."""

    @property
    def rule(self) -> dict[str, Any]:
        """What makes it another row than one of the same name."""
        return {"settings": list(self.settings), "share": self.share}


@dataclass(frozen=True)
class Asked:
    """What one command asks for beside the table."""

    in_batch: int = 16
    figures: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


UNDENOISED = (
    "denoise.off=true", "denoise.filter={}", "denoise.promote=false",
    "steps.dual_1.mask_ce_above=null",
    *(f"steps.{step}.loss.{loss}=0" for step in ("dual_1", "dual_2")
      for loss in ("kl", "margin_mse")),
)  # fmt: skip
"""No denoising, and nothing else that asks a cross-encoder."""
ALONE = (*UNDENOISED, "denoise.depth=100", "denoise.fill=random")
"""What asks no cross-encoder costs no scores, so it may look as deep as dual_0's lists go; below
them there is no tail to fill from."""

VARIANTS = {
    "percpos": ("also under 95 % of the positive's score (NV-Retriever)",
                ("denoise.filter.percpos=0.95",)),
    "marginpos": ("also 0.05 under the positive's score (NV-Retriever)",
                  ("denoise.filter.marginpos=0.05",)),
    "percpos_alone": ("of 100, under 95 % of the positive's score, unscored (NV-Retriever)",
                      (*ALONE, "denoise.filter.percpos=0.95")),
    "marginpos_alone": ("of 100, 0.05 under the positive's score, unscored (NV-Retriever)",
                        (*ALONE, "denoise.filter.marginpos=0.05")),
    "random": ("of 100, drawn at random, unscored", (*ALONE, "steps.dual_1.sample=random")),
    "simans": ("of 100, drawn near the positive's score, unscored (SimANS)",
               (*ALONE, "steps.dual_1.sample=simans")),
    "kl": ("with distilled ce_scores, listwise (RocketQAv2)", ("steps.dual_1.loss.kl=1.0",)),
    "margin_mse": ("with distilled differences of ce_scores (Margin-MSE)",
                   ("steps.dual_1.loss.margin_mse=0.05",)),
    "promote": ("likely false ones made positives", ("denoise.promote=true",)),
    "mask_ce": ("columns with ce_score above 0.9 masked", ("steps.dual_1.mask_ce_above=0.9",)),
    "mask_margin": ("columns 0.1 above the positive masked (Qwen3-Embedding)",
                    ("steps.dual_1.mask_margin=0.1",)),
    "bm25": ("found by BM25 (DPR)", ("denoise.pool=bm25",)),
    "both": ("found by BM25 and dual_0 in turn", ("denoise.pool=both",)),
    "rounds": ("of a second round, found by dual_1", ("denoise.rounds=2",)),
}  # fmt: skip
"""What `--also` takes: dual_1 with one other rule, in words and as fields of a recipe."""
LONGER = "longer"
"""And dual_1 by the same rules for as many steps as dual_2, which has more examples."""
BY_LOT = "random_removed"
"""And the control of denoising: as many candidates of every rank removed, but drawn by lot."""

FIGURES = ("negatives", "augmented")
AUGMENTED = (0.25, 0.5)
"""Shares of the unlabelled questions in the figure, beside none (dual_1) and all (dual_2)."""

OWN = {
    "dual_0": ("dual_0_examples", "dual_0"),
    "dual_1": ("denoise", "dual_1_examples", "dual_1"),
    "dual_2": ("augment", "dual_2_examples", "dual_2"),
}
"""Stages of a row of the run itself that no other row needs but those that build on it; what comes
before them stands in a column of its own (`evidence.behind`)."""


def ablate(
    name: str,
    out: Path,
    *,
    data: Path | None = None,
    unlabelled: Path | None = None,
    overrides: Sequence[str] = (),
    seeds: int = 3,
    asked: Asked | None = None,
    take_over: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Every row with every seed into `out`, or the rest of it. Returns what ablation.json holds.

    Raises:
        UserError: anything a person can mend, before anything is trained where possible.
    """
    recipe, asked = recipes.load(name, overrides), asked or Asked()
    rows = planned(recipe, asked)
    display = display or Display()
    _check_folder(out)
    wanted = range(recipe.seed, recipe.seed + seeds)
    brought = brought_seeds(out, wanted, recipe, rows)
    missing = [seed for seed in wanted if seed not in brought]
    if missing:
        dataset = tables.locate(recipe, out, data, unlabelled)
    for number, seed in enumerate(wanted, start=1):
        display.say(f"rocketray: recipe {recipe.name}, seed {seed} ({number} of {seeds})")
        if number == 1:
            say_departures(recipe, display)
        if seed in brought:
            display.say(f"  taken from {path_of(out, seed)}")
            continue
        folder = out / f"seed-{seed}"
        with claimed(folder, take_over) as claim:
            check_room(recipe, claim, display)
            if seed == missing[0]:
                say_warnings(dataset, display)
            else:
                lend(out / f"seed-{missing[0]}", folder)
            told = recipes.changed(recipe, [f"seed={seed}", f"data.seed={recipe.data_seed}"])
            flow = Workflow(told, claim, display)
            one_seed(told, rows, flow, dataset, partial(_check_all, out, brought, rows)).write(out)
    found = [Seed.read(path_of(out, seed)) for seed in wanted]
    _check_all(out, {seed.seed: seed for seed in found[1:]}, rows, found[0].origin)
    return conclude(out, recipe, asked, rows, found, display)


def brought_seeds(
    out: Path, wanted: Iterable[int], recipe: Recipe, rows: Sequence[Row]
) -> dict[int, Seed]:
    """Seeds of which the file is here and the run is not: they were trained elsewhere.

    Raises:
        UserError: one of them does not belong here.
    """
    brought = {
        seed: Seed.read(path_of(out, seed))
        for seed in wanted
        if path_of(out, seed).exists() and not (out / f"seed-{seed}").exists()
    }
    _check_all(out, brought, rows, {"recipe": shared(recipe)})
    if brought:
        _check_all(out, brought, rows, next(iter(brought.values())).origin)
    return brought


def _check_all(
    out: Path, seeds: Mapping[int, Seed], rows: Sequence[Row], origin: Mapping[str, Any]
) -> None:
    """That seeds agree with an origin, and made these rows by these rules."""
    for number, seed in seeds.items():
        seed.check(path_of(out, number), origin, {row.name: row.rule for row in rows})


def _check_folder(out: Path) -> None:
    ours = re.compile(r"seed-\d+(\.parquet)?|data|ablation\..*|times\.json|\..*")
    if storage.mirrored(storage.locate(out)):
        raise UserError(f"{out}: an ablation's folder must be on a file system, not a url.")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out needs a folder.")
    inside = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if other := [name for name in inside if not ours.fullmatch(name)]:
        raise UserError(
            f"{out} holds something else than an ablation ({', '.join(other[:3])}). Give --out a"
            " new or empty folder."
        )


def lend(first: Path, other: Path) -> None:
    """Link the first seed's versions of what no seed changes into another's folder.

    They are found there as finished: a version's name is its content's. Times stay behind, for
    they were spent once.
    """
    for name, folder in RunFolder(first).current().items():
        target = other / "stages" / folder
        if name in evidence.MADE_ONCE and not target.exists():
            temporary = target.with_name(f".{folder}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            left_out = shutil.ignore_patterns("timing.json")
            shutil.copytree(first / "stages" / folder, temporary, copy_function=os.link,
                            ignore=left_out)  # fmt: skip
            temporary.replace(target)


# --------------------------------------------------------------------------------- which rows


def planned(recipe: Recipe, asked: Asked) -> list[Row]:
    """Rows beside those of an ordinary run, in the order in which they are made.

    Raises:
        UserError: an unknown name, a group as large as the batch, weights that are not there.
    """
    _check(recipe, asked)
    undenoised = Row("undenoised", "hard negatives, not denoised", hard_step, UNDENOISED)
    rows = [_group(asked.in_batch), undenoised]
    rows += [_also(name) for name in asked.also]
    rows += [_whole(name) for name in whole_weights(recipe, asked)]
    if "negatives" in asked.figures:
        rows += [_group(size) for size in groups(recipe) if size != asked.in_batch]
    if "augmented" in asked.figures:
        rows += [
            Row(f"augmented_{share * 100:.0f}", f"{share:.0%} of the unlabelled questions",
                part_augmented, share=share)
            for share in AUGMENTED
        ]  # fmt: skip
    for row in rows:
        recipes.changed(recipe, row.settings)  # A rule that the recipe cannot have shows here.
    return rows


def whole_weights(recipe: Recipe, asked: Asked) -> list[str]:
    """Initial weights that dual_0 is trained from once more. Of all of them every layer is kept:
    how many of the recipe's are says nothing about others. Where it leaves some out, its own are
    trained whole as well, for what others are compared with must be as deep as they are."""
    mine, names = recipe.model.dual, list(asked.weights)
    if names and mine.layers is not None and mine.weights not in names:
        names.insert(0, mine.weights)
    return names


def _check(recipe: Recipe, asked: Asked) -> None:
    for kind, names, known in (
        ("--also", asked.also, [*VARIANTS, LONGER, BY_LOT]),
        ("--figure", asked.figures, list(FIGURES)),
    ):
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"{kind} {unknown[0]!r}: there are {', '.join(known)}.")
    whole = whole_weights(recipe, asked)
    slugs = tuple(_slug(name) for name in whole)
    for names in (asked.also, asked.figures, slugs):
        if len(set(names)) < len(names):
            raise UserError(f"the same name twice among {', '.join(names)}.")
    batch = recipe.steps.dual_0.global_batch
    if not 1 <= asked.in_batch < batch:
        raise UserError(
            f"--in-batch {asked.in_batch}: groups must be smaller than the batch,"
            f" steps.dual_0.global_batch {batch}; as large, they are cross-batch negatives."
        )
    if asked.in_batch == 1 and recipe.steps.dual_0.negatives == "none":
        raise UserError("--in-batch 1 without steps.dual_0.negatives leaves no negative at all.")
    if recipe.denoise.off:
        raise UserError("denoise.off leaves nothing to compare: an ablation makes that row itself.")
    if recipe.denoise.rounds > 1:
        raise UserError(
            f"denoise.rounds {recipe.denoise.rounds}: the rows of an ablation are of one round."
            " Set it to 1; `--also rounds` adds a row of two."
        )
    for name in whole:
        if name != "tiny":
            initial_weights.resolve(name)


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name.rstrip("/").rpartition("/")[2]).lower()


def _also(name: str) -> Row:
    if name == LONGER:
        return Row(f"also_{LONGER}", "hard negatives, as many steps as dual_2", longer)
    if name == BY_LOT:
        return Row(f"also_{BY_LOT}", "hard negatives, as many removed, by lot", by_lot)
    words, settings = VARIANTS[name]
    return Row(f"also_{name}", f"hard negatives {words}", hard_step, settings)


def _whole(name: str) -> Row:
    settings = (f"model.dual.weights={json.dumps(name)}", "model.dual.layers=null")
    return Row(_weights_row(name), f"dual_0 from {name}, all layers", other_weights, settings)


def _weights_row(name: str) -> str:
    return f"weights_{_slug(name)}"


def _group(size: int) -> Row:
    return Row(f"in_batch_{size}", f"in-batch negatives, groups of {size}", first_step,
               (f"steps.dual_0.in_batch={size}",))  # fmt: skip


def groups(recipe: Recipe) -> list[int]:
    """Sizes of the figure's groups: powers of four below the batch that leave a negative."""
    told = recipe.steps.dual_0
    sizes = [4**power for power in range(20) if 4**power < told.global_batch]
    return sizes if told.negatives != "none" else sizes[1:]


# --------------------------------------------------------------------------------- making rows


def one_seed(
    told: Recipe, rows: Sequence[Row], flow: Workflow, dataset: Dataset,
    agree: Callable[[Mapping[str, Any]], None],
) -> Seed:  # fmt: skip
    """A whole run, then the other rows: what was measured and what it took.

    Args:
        agree: raises where seeds that were brought are of another origin; asked before training.
    """
    ready = preparation.prepare(flow, dataset)
    flow.tell_recipe()
    if "test" not in ready.tables.chosen:
        raise UserError("an ablation needs judged questions: add qrels/test.tsv or qrels/dev.tsv.")
    if "unlabelled" not in ready.tables.chosen:
        for make, option in ((part_augmented, "--figure augmented"), (longer, f"--also {LONGER}")):
            if any(row.make is make for row in rows):
                raise UserError(f"{option} needs unlabelled questions: add --unlabelled FILE.")
    mine = origin(flow)
    agree(mine)
    pipeline.run(flow, ready)
    results.conclude(flow)
    added = {name: stages for name, stages in OWN.items() if name in flow.made}
    for row in rows:
        before = set(flow.made)
        row.make(flow, ready, row)
        added[row.name] = tuple(name for name in flow.made if name not in before)
    own = {name: evidence.own(name, stages) for name, stages in added.items()}
    return Seed(
        seed=told.seed,
        origin=mine,
        rows={row.name: row.rule for row in rows},
        measured={name: measured(flow, name, run) for name, run in runs_of(flow, rows)},
        groups=results.groups(flow),
        facts={name: evidence.facts(flow, name) for name in own},
        seconds={name: evidence.seconds(flow, stages) for name, stages in own.items()},
        needed={
            name: evidence.seconds(flow, stages | evidence.behind(flow, name))
            for name, stages in own.items()
        },
        cross=cross_quality(flow),
        removed=evidence.removed(flow),
        pool=dict(flow.made["both_train"].facts) if "both_train" in flow.made else None,
    )


def origin(flow: Workflow) -> dict[str, Any]:
    """What seeds share, known before anything is trained: recipe, data, initial weights."""
    made = flow.made
    read = ("passages", "queries", "qrels_train", "train_queries", "unlabelled_queries",
            "dev_queries", "qrels_dev", "test_queries", results.held_out(flow).name)  # fmt: skip
    return {
        "recipe": shared(flow.recipe),
        "tables": {name: made[name].digest for name in read if name in made},
        "weights": {
            name: made[name].manifest["identity"]["inputs"]["weights"]
            for name in ("initial", "initial_cross")
        },
    }


def first_step(flow: Workflow, ready: Ready, row: Row) -> None:
    """dual_0 by other rules, from the same examples."""
    told = recipes.changed(flow.recipe, row.settings).steps.dual_0
    finish(flow, ready, row, flow.made["dual_0_examples"], told)


def other_weights(flow: Workflow, ready: Ready, row: Row) -> None:
    """dual_0 from other initial weights, with their tokenizer (the paper's Table 6)."""
    told = recipes.changed(flow.recipe, row.settings).model.dual
    dual = preparation.initial_dual(flow, told, f"{row.name}_initial")
    wanted = {f"{row.name}_": preparation.readings(dual)}
    (tokens,) = preparation.token_stores(flow, ready.tables, wanted)
    other = replace(ready, dual=dual, dual_tokens=tokens)
    finish(flow, other, row, flow.made["dual_0_examples"], flow.recipe.steps.dual_0)


def hard_step(flow: Workflow, ready: Ready, row: Row) -> None:
    """dual_1 by other rules, for as many steps."""
    changed = recipes.changed(flow.recipe, row.settings)
    positives = _positives(flow, ready)
    # Of both retrievers, but of another depth: the run's own pool keeps its name.
    told = flow.recipe.denoise
    other = told.pool == "both" and changed.denoise.deepest != told.deepest
    name = f"{row.name}_pool" if other else "both_train"
    run = labelling.pool(flow, ready, flow.made["dual_0_train"], changed.denoise, name=name)
    if changed.denoise.rounds > 1:
        models = {"dual_1": flow.made["dual_1"]}
        found = retrieval.retrieve(flow, ready, models, {"dual_1": ["train"]})
        run = labelling.pool(flow, ready, found["dual_1"]["train"], changed.denoise, 2, run)
    verdicts = flow.made["denoise"]
    if changed.denoise != flow.recipe.denoise:
        verdicts = labelling.denoise(
            flow, ready, run, flow.made["cross"], positives, changed.denoise, f"{row.name}_verdicts"
        )
    _from_verdicts(flow, ready, row, verdicts, run, changed)


def by_lot(flow: Workflow, ready: Ready, row: Row) -> None:
    """dual_1 from lists of which as many were removed, of every rank, but drawn by lot: what
    dual_1 gains over this one it owes to the cross-encoder's word on which to remove, and not to
    deeper, or fewer, or more random negatives."""
    run = labelling.pool(flow, ready, flow.made["dual_0_train"], flow.recipe.denoise)
    judged = flow.made["denoise"]
    identity = {"code": 1, "recipe": {"seed": flow.recipe.seed}, "inputs": {"of": judged.digest}}

    def make() -> list[artifacts.Parts]:
        seed = flow.recipe.seed
        numbers = [block.number for block in judged.blocks]
        return [{artifacts.TABLE: drawn(judged.table(n), [seed, n])} for n in numbers]

    verdicts = flow.small(f"{row.name}_verdicts", identity, make, judged.facts)
    _from_verdicts(flow, ready, row, verdicts, run, flow.recipe)


def drawn(judged: pa.Table, seed: Sequence[int]) -> pa.Table:
    """VERDICTS with those of each rank dealt out anew among its passages without a label."""
    generator = np.random.default_rng(seed)
    sizes = pc.list_value_length(judged["verdicts"]).to_numpy()
    ranks = np.concatenate([np.arange(size) for size in sizes])
    verdicts = np.array(pc.list_flatten(judged["verdicts"]).to_pylist(), dtype=object)
    # A positive by lot (`denoise.promote`) would be a wrong one: it is only removed.
    verdicts[verdicts == Verdict.PSEUDO_POSITIVE.value] = Verdict.LIKELY_FALSE_NEGATIVE.value
    free = verdicts != Verdict.LABELLED_POSITIVE.value
    for rank in np.unique(ranks):
        mine = np.flatnonzero(free & (ranks == rank))
        verdicts[mine] = generator.permutation(verdicts[mine])
    lists = np.split(verdicts, np.cumsum(sizes)[:-1])
    return schema.with_verdicts(judged.drop_columns("verdicts"), [row.tolist() for row in lists])


def _from_verdicts(
    flow: Workflow, ready: Ready, row: Row, verdicts: Version, run: Version, changed: Recipe
) -> None:
    """Train on other verdicts for as many steps as dual_1."""
    told = changed.steps.dual_1
    examples = learning.hard_examples(
        flow, ready, row.name, verdicts, _positives(flow, ready), run, told=told,
        fill=changed.denoise.fill,
    )  # fmt: skip
    told = equally_long(told, examples.rows, flow.made["dual_1_examples"].rows)
    finish(flow, ready, row, examples, told)


def equally_long(told: HardStep, rows: int, others: int) -> HardStep:
    """As many optimiser steps on `rows` examples as its epochs are on `others`."""
    steps = steps_of(others, told.global_batch, told.epochs)
    if not rows or steps_of(rows, told.global_batch, told.epochs) == steps:
        return told
    return _for_steps(told, rows, steps)


def _for_steps(told: HardStep, rows: int, steps: float) -> HardStep:
    return told.model_copy(update={"epochs": steps * told.global_batch / rows})


def longer(flow: Workflow, ready: Ready, row: Row) -> None:
    """dual_1 once more, for as many steps as dual_2: they have as many epochs, as in the paper, but
    dual_2's are longer. What dual_2 gains over this one it owes to its pseudo labels."""
    told, examples = flow.recipe.steps.dual_1, flow.made["dual_1_examples"]
    steps = flow.made["dual_2"].facts["steps"]
    finish(flow, ready, row, examples, _for_steps(told, examples.rows, steps))


def part_augmented(flow: Workflow, ready: Ready, row: Row) -> None:
    """dual_2 from a share of the unlabelled questions: a larger share holds the smaller one. As
    many epochs as dual_2, so fewer steps."""
    judged = flow.made["augment"]
    queries = judged.read(["query"])["query"].to_numpy()
    seed = flow.recipe.data_seed
    chosen = schema.sample(queries, round(row.share * len(queries)), seed)
    rule = {"share": row.share, "seed": seed}
    identity = {"code": 1, "recipe": rule, "inputs": {"of": judged.digest}}

    def make() -> list[artifacts.Parts]:
        blocks = [judged.table(block.number) for block in judged.blocks]
        return [
            {artifacts.TABLE: table.filter(pa.array(np.isin(table["query"].to_numpy(), chosen)))}
            for table in blocks
        ]

    pseudo = flow.small(f"{row.name}_verdicts", identity, make)
    told = flow.recipe.steps.dual_2
    run = labelling.pool(flow, ready, flow.made["dual_0_train"], flow.recipe.denoise)
    examples = learning.hard_examples(
        flow, ready, row.name, flow.made["denoise"], _positives(flow, ready), run, pseudo, told
    )
    finish(flow, ready, row, examples, told)


def finish(flow: Workflow, ready: Ready, row: Row, examples: Version, told: DualStep) -> None:
    """Train a row's model and search the test questions with it."""
    model = learning.train_dual(flow, ready, row.name, examples, told)
    retrieval.retrieve(flow, ready, {row.name: model}, {row.name: ["test"]})


def _positives(flow: Workflow, ready: Ready) -> Version:
    return flow.made.get("answer_positives") or ready.tables.qrels["train"]


# -------------------------------------------------------------------------------- measuring them


def runs_of(flow: Workflow, rows: Sequence[Row]) -> Iterator[tuple[str, pa.Table]]:
    """The run over the test questions of every row."""
    own = results.test_runs(flow)
    if "augment" not in flow.made:  # Then dual_2 is dual_1 again.
        own = {name: run for name, run in own.items() if name not in ("dual_2", "reranked")}
    yield from own.items()
    for row in rows:
        yield row.name, flow.made[f"{row.name}_test"].read()


def measured(flow: Workflow, name: str, run: pa.Table) -> pd.DataFrame:
    """One row per test question, one column per measure. Kept as a version."""
    sources = ("dual_2_test", "dual_2_test_scored") if name == "reranked" else (f"{name}_test",)
    read = (*sources, results.held_out(flow).name, "test_queries")
    told = {"measures": results.asked(flow)}
    identity = {"code": 1, "recipe": told, "inputs": {n: flow.made[n].digest for n in read}}

    def make() -> list[artifacts.Parts]:
        frame = measures.per_query(run, results.judged(flow), told["measures"]).reset_index()
        return [{artifacts.TABLE: pa.table({column: frame[column].to_numpy() for column in frame})}]

    version = flow.small(f"{name}_measures", identity, make)
    frame: pd.DataFrame = version.read().to_pandas().set_index("query")
    return frame


# ----------------------------------------------------------------------------- what came of them


def conclude(
    out: Path, recipe: Recipe, asked: Asked, rows: Sequence[Row], found: Sequence[Seed],
    display: Display,
) -> dict[str, Any]:  # fmt: skip
    """Compare, show, and write what people open."""
    words = report.MODELS | {row.name: row.words for row in rows}
    split = schema.held_out(found[0].origin["tables"])
    measured_rows = {
        name: Measured(name, words[name], [seed.measured[name] for seed in found],
                       [seed.facts.get(name, {}) for seed in found], found[0].groups)
        for name in found[0].measured
        if name in words
    }  # fmt: skip
    shown = {
        "recipe": recipe.name,
        "split": split,
        "seeds": [seed.seed for seed in found],
        "departures": [str(departure) for departure in recipes.departures(recipe)],
        **compared(measured_rows, f"in_batch_{asked.in_batch}", rows_by_kind(rows, recipe, asked)),
        "cross": mean_of([seed.cross for seed in found if seed.cross]),
        "removed": {
            verdict: mean_by_rank([seed.removed[verdict] for seed in found])
            for verdict in found[0].removed
        },
        "pool": mean_of([seed.pool for seed in found if seed.pool]),
    }
    shown["notes"] = [*report.dev_notes(split, recipe), *notes(shown)]
    times = {
        kind: {
            name: {str(seed.seed): getattr(seed, field)[name] for seed in found}
            for name in found[0].seconds
            if name in words
        }
        for kind, field in (("own", "seconds"), ("needed", "needed"))
    }
    artifacts.write_json(out / "ablation.json", shown)
    artifacts.write_json(out / "times.json", times)
    page.write(out, shown, times)
    for table in screen(shown, times):
        display.show(table)
    for line in (*page.sentences(shown), *shown["notes"]):
        display.say(f"  {line}")
    display.say(f"report: {out / 'ablation.html'}")
    return shown


def rows_by_kind(rows: Sequence[Row], recipe: Recipe, asked: Asked) -> dict[str, list[str]]:
    """Names of rows beside the table, by what they are compared in."""
    negatives = sorted(
        (row.name for row in rows if row.make is first_step),
        key=lambda name: int(name.rpartition("_")[2]),
    )
    whole = [row.name for row in rows if row.make is other_weights]
    mine = recipe.model.dual
    base = "dual_0" if mine.layers is None else _weights_row(mine.weights)
    kinds = {
        "also": [row.name for row in rows if row.name.startswith("also_")],
        "weights": [base, *(name for name in whole if name != base)] if whole else [],
        "negatives": [*negatives, "dual_0"] if "negatives" in asked.figures else [],
        "augmented": [
            "dual_1", *(row.name for row in rows if row.make is part_augmented), "dual_2",
        ] if "augmented" in asked.figures else [],
    }  # fmt: skip
    return {kind: names for kind, names in kinds.items() if names}


def mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """Column by column, over seeds."""
    if not rows:
        return None
    return {name: round(float(np.mean([row[name] for row in rows])), 6) for name in rows[0]}


def mean_by_rank(lists: Sequence[Sequence[float]]) -> list[float]:
    """Over seeds; past the end of a list there is nothing."""
    depth = max(map(len, lists))
    padded = [[*row, *[0.0] * (depth - len(row))] for row in lists]
    return [round(float(mean), 6) for mean in np.mean(padded, axis=0)]


def screen(shown: Mapping[str, Any], times: page.Times) -> Iterator[Table]:
    """The tables as a terminal has them."""
    titles = {kind: words[0] for kind, words in page.TABLES.items() if kind in shown}
    names = ("row", shown["measure"], "spread", "difference", "p", "paper", "steps", "time",
             "in all")  # fmt: skip
    first = f"{shown['questions']:,} {shown['split']} questions"
    for kind, title in {"rows": first, **titles}.items():
        table = Table(title=title, title_justify="left")
        for name in names:
            table.add_column(name, justify="left" if name == "row" else "right")
        for row in shown[kind]:
            took = [page.mean_seconds(times[which], row["row"]) for which in page.TIMES]
            clocks = ["" if seconds is None else clock(seconds) for seconds in took]
            table.add_row(row["words"], *page.cells(row), page.steps(row), *clocks)
        yield table


def notes(shown: Mapping[str, Any]) -> list[str]:
    """What a reader of the tables must know, above all what makes them mean less than they seem."""
    by_name = {row["row"]: row for row in shown["rows"]}
    found = []
    if shown["cross"] and (weak := weakness(shown["cross"])):
        found.append(f"Warning: {weak} Denoising may look useless for that reason alone.")
    if "reranked" in by_name and by_name["reranked"]["mean"] <= by_name["dual_2"]["mean"]:
        found.append(
            f"Warning: reranking dual_2 by the cross-encoder does not help (MRR@10"
            f" {by_name['reranked']['mean']:.4f} against {by_name['dual_2']['mean']:.4f})."
        )
    found += _hardly_acted(by_name.get("dual_1", {}), shown.get("also", []))
    if "dual_2" in by_name and by_name["dual_2"]["steps"] != by_name["dual_1"]["steps"]:
        found.append(_longer(by_name["dual_1"], by_name["dual_2"], shown.get("augmentation")))
    if "dual_2" not in by_name:
        found.append("Note: there are no unlabelled questions, so no row for data augmentation.")
    if pool := shown["pool"]:
        found.append(
            f"Pool of BM25 and dual_0: {pool['dual_0']:,.0f} candidates were found by dual_0 alone,"
            f" {pool['bm25']:,.0f} by BM25 alone, {pool['both']:,.0f} by both."
        )
    return found


def _hardly_acted(dual_1: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Rules that had next to nothing to work with: that nothing came of them says nothing."""
    had = dual_1.get("had", {})
    if had and 1 - had["kept"] < evidence.LITTLE:
        yield (
            f"Note: denoising could hardly act: it took {1 - had['kept']:.1%} of the passages"
            " without a label out of the negatives."
        )
    if had and had["filled"] > 0.5:
        yield (
            f"Note: {had['filled']:.1%} of dual_1's hard negatives come from elsewhere"
            " (denoise.fill): too few of a question's list are under denoise.negative_below."
        )
    for row in others:
        if why := evidence.idle(row, dual_1):
            yield f"Note: {row['row']} could hardly act: {why}."


def _longer(
    dual_1: Mapping[str, Any], dual_2: Mapping[str, Any], gain: Mapping[str, Any] | None
) -> str:
    told = (
        f"Note: dual_2 trains {dual_2['steps']:,.0f} steps, dual_1 {dual_1['steps']:,.0f}: as many"
        " epochs, as in the paper, over more examples. "
    )
    if gain is None:
        return f"{told}`--also {LONGER}` trains dual_1 for as many."
    return (
        f"{told}Against dual_1 for as many steps it is {gain['difference']:+.4f}, p ="
        f" {gain.get('p_holm', gain['p']):.4f}, in {gain['seeds_above']} seeds."
    )
