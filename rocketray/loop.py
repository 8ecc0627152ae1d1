"""What the verbs do: claim a folder, run the pipeline, show what came of it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast, get_args

from rocketray import artifacts, own_examples, pipeline, plan, preparation, results, storage, tables
from rocketray import recipe as recipes
from rocketray.artifacts import RunFolder
from rocketray.engine import room
from rocketray.engine.cluster import job_has_ended
from rocketray.errors import UserError
from rocketray.formats import Dataset
from rocketray.progress import Display
from rocketray.workflow import Finished, Workflow


def run(
    name: str,
    out: Path,
    *,
    data: Path | None = None,
    unlabelled: Path | None = None,
    overrides: Sequence[str] = (),
    until: str | None = None,
    frozen: bool = False,
    take_over: bool = False,
    display: Display | None = None,
) -> Workflow:
    """The whole loop into `out`, or the rest of it. Returns what was made.

    Raises:
        UserError: anything a person can mend, before anything is trained where possible.
    """
    recipe = recipes.load(name, overrides)
    if until is not None:
        _check_stage(until, recipe.denoise.rounds)
    display = display or Display()
    with claimed(out, take_over) as folder:
        dataset = tables.locate(recipe, folder.path, data, unlabelled)
        beyond = pipeline.beyond(until, recipe.denoise.rounds) if until else set()
        flow = Workflow(recipe, folder, display, until, frozen, beyond)
        if not (folder.path / "recipe.yaml").is_file():
            flow.tell_recipe()
        display.say(f"rocketray: recipe {recipe.name}, seed {recipe.seed}, into {folder}")
        say_departures(recipe, display)
        say_warnings(dataset, display)
        try:
            check_room(recipe, folder, display, until)
            ready = preparation.prepare(flow, dataset)
            if not frozen:  # That may refuse every stage yet to come; `conclude` is the last.
                flow.tell_recipe()
            if "unlabelled" not in ready.tables.chosen:  # Said before hours of training, not after.
                display.say(f"  note: no unlabelled questions. {tables.NOTHING_TO_ADD}")
            display.show(plan.table(recipe, ready))
            pipeline.run(flow, ready)
            results.conclude(flow)
            if until and until not in flow.made:
                display.say(f"  note: --until {until}: this run has no such stage, and is whole.")
        except Finished as stop:
            if not frozen or until in flow.made:  # Then all that it would refuse is there.
                flow.tell_recipe()
            where = f"after {until}, as asked"
            if until not in flow.made:
                where = f"before {stop.args[0]}: this run makes no {until}, which would come before"
            display.say(f"Stopped {where}. Without --until it goes on from here.")
        return flow


def check_room(
    recipe: recipes.Recipe, folder: RunFolder, display: Display, until: str | None = None
) -> None:
    """Refuse what a cluster's machines can never hold, where training is still to come: else a
    smaller cluster than the recipe's will do."""
    before = pipeline.STAGES[: pipeline.STAGES.index("dual_0")]
    if until not in before and "dual_2" not in folder.current():
        room.check(recipe.cluster, display.say)


def say_departures(recipe: recipes.Recipe, display: Display) -> None:
    """Where the recipe is not the paper's."""
    if found := recipes.departures(recipe):
        words = ", ".join(map(str, found))
        display.say(f"  departs from the paper (its rule in brackets) in {words}")


def say_warnings(dataset: Dataset, display: Display) -> None:
    """What a data set lacks."""
    for warning in dataset.warnings:
        display.say(f"  note: {warning}")


@contextmanager
def claimed(out: Path, take_over: bool) -> Iterator[RunFolder]:
    """A run folder that this process alone writes."""
    folder = RunFolder(out)
    folder.claim(take_over=take_over, has_ended=job_has_ended)
    try:
        yield folder
    finally:
        folder.release()


def _check_stage(name: str, rounds: int) -> None:
    known = pipeline.stages(rounds)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"--until {name!r}: no such stage.{hint} In order: {', '.join(known)}.")


QUESTIONS = (
    "how do I pad a tensor",
    "join two data frames on a column",
    "compute the inverse of a matrix",
)


def quickstart(
    out: Path,
    *,
    overrides: Sequence[str] = (),
    take_over: bool = False,
    display: Display | None = None,
) -> None:
    """The recipe `quickstart`, then three answers and what to try next."""
    from rocketray import search

    display = display or Display()
    run("quickstart", out, overrides=overrides, take_over=take_over, display=display)
    searcher = search.Searcher(out)
    for question in QUESTIONS:
        display.say(f"\n{question}?")
        for answer in searcher.search(question, 3):
            display.say(f"  {answer.score:6.3f}  {answer.title}\n          {answer.snippet}")
    place = storage.shown(storage.locate(out))
    display.say(
        f"""
Next:
  rocketray search {place}                          ask your own questions
  open {place}/report.html                      curves, scores, what denoising removed
  rocketray run small --data FOLDER --out runs/1  your own corpus, questions and labels
  SentenceTransformer("{place}/models/dual_2")  the retriever in sentence-transformers"""
    )


def train(
    kind: str,
    examples: Path,
    out: Path,
    *,
    recipe: str,
    overrides: Sequence[str] = (),
    take_over: bool = False,
    display: Display | None = None,
) -> None:
    """One model on a file of one's own examples: `out/models/dual` or `out/models/cross`.

    Raises:
        UserError: another kind, a broken example (nothing is written then), a folder in use.
    """
    if kind not in get_args(own_examples.Kind):
        raise UserError(f"There is no {kind!r} to train: say `dual` or `cross`.")
    told = recipes.load(recipe, overrides)
    own = own_examples.read(examples)
    display = display or Display()
    with claimed(out, take_over) as folder:
        own_examples.check_folder(folder)
        artifacts.write_text(folder.path / "recipe.yaml", recipes.dump(told))
        display.say(f"rocketray: {kind} from recipe {told.name}, into {folder}")
        own_examples.train(Workflow(told, folder, display), cast(own_examples.Kind, kind), own)
    display.say(f"model: {folder}/models/{kind}")
