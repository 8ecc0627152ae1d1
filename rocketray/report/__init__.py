"""The report of a run: one HTML file without scripts or outside resources.

    denoised.py      what denoising did, from its blocks
    compared.py      two models question by question
    audited.py       what `rocketray audit` found, from audit.json
    curves.py        training logs
    plots.py         SVG
    page.html.jinja  the page
    style.css        how pages look
    ablation.py      another page: several runs beside each other

Everything is read from the run's folder. What a folder lacks is said in a sentence, so that a run
stopped half-way has a report as well. The same folder gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rocketray import artifacts, schema
from rocketray import recipe as recipes
from rocketray.artifacts import RunFolder, Version
from rocketray.recipe import Denoise, Recipe
from rocketray.report import audited, compared, curves, denoised, plots
from rocketray.report.denoised import Denoised, Story
from rocketray.schema import Verdict

MODELS = {
    "initial": "initial weights, untrained",
    "bm25": "BM25",
    "dual_0": "dual_0: cross-batch negatives",
    "dual_1": "dual_1: + denoised hard negatives",
    "dual_2": "dual_2: + data augmentation",
    "reranked": "dual_2 reranked by cross",
}
"""Rows of the table of results in order: name in metrics.json, words for people; of one round."""

SIZES = {
    "passages": "passages",
    "queries": "questions in all",
    "train": "training questions",
    "dev": "dev questions",
    "test": "test questions",
    "unlabelled": "unlabelled questions",
    "hidden": "questions with hidden labels",
}
"""Sizes in order: name in summary.json, words for people."""

BRIEFEST = 0.05
"""Seconds under which a stage is not worth a row."""


@dataclass(frozen=True)
class Cell:
    """One number of the table of results, and whether it is its column's best."""

    value: float | None
    best: bool


@dataclass(frozen=True)
class Trained:
    """One model's curves and what its training counted."""

    name: str
    facts: Mapping[str, Any]
    plot: Markup | None


@dataclass(frozen=True)
class Timing:
    """One stage's time. `share` is of all stages together, from 0 to 1."""

    stage: str
    rows: int
    seconds: float
    share: float
    workers: str

    @property
    def rate(self) -> float:
        return self.rows / self.seconds


def models(told: Denoise, made: Collection[str] = ()) -> dict[str, str]:
    """`MODELS`, with those of later rounds behind dual_1.

    Args:
        made: stages of the run, which tell whether step 4 had something to add.
    """
    found = {}
    for name, words in MODELS.items():
        found[name] = words
        for before, later in pairwise(told.in_rounds(name) if name == "dual_1" else ()):
            found[later] = f"{later}: denoised again, found by {before}"
    if "train_queries" in made and "unlabelled_queries" not in made:
        found["dual_2"] = "dual_2: no unlabelled questions to add"
    return found


def trained_models(told: Denoise) -> tuple[str, ...]:
    """What a run trains, in order."""
    return ("dual_0", "cross", *told.in_rounds("dual_1"), "dual_2")


def write(folder: RunFolder) -> Path:
    """Write report.html into a run's folder.

    Raises:
        UserError: a file of the folder is damaged; the message names it.
    """
    path = folder.path / "report.html"
    artifacts.write_text(path, environment().get_template("page.html.jinja").render(page(folder)))
    return path


def page(folder: RunFolder) -> dict[str, Any]:
    """All that the template shows."""
    metrics, summary = _json(folder, "metrics.json"), _json(folder, "summary.json")
    recipe = folder.path / "recipe.yaml"
    told = recipes.load(str(recipe)) if recipe.is_file() else None
    rules = recipes.of_run(folder.path).denoise
    judged = next((name for name in reversed(rules.finders) if name in folder.current()), "denoise")
    version = _version(folder, judged)
    thresholds = _thresholds(told, version)
    measured = denoised.read(version) if version else None
    split = schema.held_out(folder.current())
    words = models(rules, folder.current())
    found, questions = compared.read(folder, list(words))
    found = {model: one for model, one in found.items() if len(one.recall_K)}
    return {
        "summary": summary,
        "split": split or "test",
        "notes": dev_notes(split, told) if told else [],
        "sizes": _sizes(summary.get("rows", {}), split),
        "counts": summary.get("counts", []),
        "measures": measures(metrics),
        "results": results(metrics, words),
        "labels": words,
        "recall": plots.recall({m: f.recall_K for m, f in found.items()}) if found else None,
        "compared": questions,
        "depth": compared.DEPTH,
        "trained": trained(folder, trained_models(rules), summary.get("models", {})),
        "judged": judged,
        "finder": rules.finders[judged],
        "thresholds": thresholds,
        "denoised": measured,
        "ce_scores": plots.ce_scores(measured, thresholds)
        if measured and measured.scored
        else None,
        "by_rank": plots.removed_by_rank(measured.by_rank)
        if measured and measured.removals
        else None,
        "stories": _stories(folder, measured),
        "audit": audit(folder, judged),
        "timings": timings(summary.get("timings", [])),
        "seconds": sum(row["seconds"] for row in summary.get("timings", [])),
        "briefest": BRIEFEST,
        "recipe": recipe.read_text(encoding="utf-8") if told else "",
        "departures": [str(found) for found in recipes.departures(told)] if told else [],
    }


@dataclass(frozen=True)
class Audit:
    """What the page shows of audit.json: a finished run has all of it."""

    tables: list[audited.Shown]
    sentences: list[str]
    plots: list[tuple[Markup, str]]
    """With their captions."""
    examples: dict[str, list[dict[str, Any]]]


def audit(folder: RunFolder, judged: str) -> Audit | None:
    """None where the run has not been audited since its last verdicts, those of stage `judged`."""
    found = audited.read(folder)
    if found is None or judged not in found["of"]:
        return None
    drawn = []
    if found["pairs"]["read"]:
        drawn.append((plots.scores_by_verdict(found["ce_scores"]), "ce_scores by verdict."))
        words = (
            "ce_scores by rank: of unlabelled passages by verdict, and (the line) of labelled ones."
            " Each strip and each line adds up to its rank."
        )
        drawn.append((plots.scores_by_rank(found["ce_scores"]), words))
    if maps := audited.calibrations(found):
        drawn.append((plots.reliability(maps), "Below the line: less often relevant than said."))
    for number, (words, row) in enumerate(audited.truths(found)):
        drawn.append((plots.removal(f"removal-{number}", words, row), f"{words.capitalize()}."))
    tables, sentences = list(audited.tables(found)), list(audited.sentences(found))
    order = [verdict.value for verdict in Verdict if verdict in found["examples"]]
    return Audit(tables, sentences, drawn, {name: found["examples"][name] for name in order})


def dev_notes(split: str | None, recipe: Recipe) -> list[str]:
    """What to know where the questions that measure have chosen something as well; else nothing.

    Args:
        split: whose questions measure, as `schema.held_out` says.
    """
    fields = recipes.chosen_on_dev(recipe)
    if split != "dev" or not fields:
        return []
    return [
        "Note: there are no test questions, so dev questions measure, and they have also chosen"
        f" ({', '.join(fields)}): the numbers are somewhat too good. Add test judgements, or set"
        " evaluations to 1 and calibration to none."
    ]


def _sizes(rows: Mapping[str, int], split: str | None) -> list[tuple[str, int]]:
    measuring = {"test": "dev questions that measure"} if split == "dev" else {}
    words = {**SIZES, **measuring}
    return [(words[name], rows[name]) for name in SIZES if name in rows]


def environment() -> jinja2.Environment:
    """For every page of this room: what they show is escaped, and a missing name is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("rocketray", "report"),
        autoescape=True,  # Questions and passages are other people's text.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# -------------------------------------------------------------------------- the table of results


def measures(metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Columns: every measure that some model has, cuts in order of size."""
    return sorted({name for row in metrics.values() for name in row}, key=_by_cut)


def _by_cut(measure: str) -> tuple[str, int]:
    name, _, depth = measure.partition("@")
    return name, int(depth) if depth.isdigit() else 0


def results(
    metrics: Mapping[str, Mapping[str, float]], names: Collection[str] = tuple(MODELS)
) -> dict[str, list[Cell]]:
    """Rows by model, in the order of the method; the best value of each column is marked."""
    columns = measures(metrics)
    best = {name: max(row[name] for row in metrics.values() if name in row) for name in columns}
    order = [*(name for name in names if name in metrics), *sorted(set(metrics) - set(names))]
    return {
        model: [
            Cell(metrics[model].get(name), metrics[model].get(name) == best[name])
            for name in columns
        ]
        for model in order
    }


# ------------------------------------------------------------------------------ training and time


def trained(
    folder: RunFolder, names: Sequence[str], facts: Mapping[str, Mapping[str, Any]]
) -> list[Trained]:
    """Models with a training log, in the order of the method."""
    logs = {name: folder.path / "logs" / f"{name}.jsonl" for name in names}
    return [
        Trained(name, facts.get(name, {}), _curve(name, log))
        for name, log in logs.items()
        if log.is_file()
    ]


def _curve(name: str, log: Path) -> Markup | None:
    curve = curves.read(log)
    return plots.training(name, curve) if len(curve.steps) else None


def timings(rows: Sequence[Mapping[str, Any]]) -> list[Timing]:
    """Stages that took time worth a row."""
    total = sum(row["seconds"] for row in rows)
    return [
        Timing(row["stage"], row["rows"], row["seconds"], row["seconds"] / total,
               _workers(list(row["blocks"].values())))
        for row in rows
        if row["seconds"] >= BRIEFEST
    ]  # fmt: skip


def _workers(blocks: list[int]) -> str:
    """Blocks of each worker, most first; many workers in short."""
    if len(blocks) > 8:
        return f"{len(blocks):,} workers, {min(blocks):,} to {max(blocks):,} each"
    return " + ".join(f"{count:,}" for count in sorted(blocks, reverse=True))


# ------------------------------------------------------------------------------ the run's folder


def _json(folder: RunFolder, name: str) -> dict[str, Any]:
    path = folder.path / name
    content: dict[str, Any] = artifacts.read_json(path) if path.is_file() else {}
    return content


def _version(folder: RunFolder, name: str) -> Version | None:
    return folder.version(name) if name in folder.current() else None


def _thresholds(recipe: Recipe | None, version: Version | None) -> dict[str, float]:
    """Where ce_scores were cut: a calibration moves what the recipe says."""
    names = ("negative_below", "positive_above")
    told = version.manifest["identity"].get("recipe", {}) if version else {}
    if all(name in told for name in names):
        return {name: told[name] for name in names}
    return recipe.denoise.model_dump(include=set(names)) if recipe else {}


def _stories(folder: RunFolder, measured: Denoised | None) -> list[Story] | None:
    """The clearest removals with their texts; None where the texts are not there."""
    queries, passages = _version(folder, "queries"), _version(folder, "passages")
    if measured is None or queries is None or passages is None:
        return None
    qrels = _version(folder, "qrels_train")
    return denoised.stories(measured.clearest, queries, passages, qrels)
