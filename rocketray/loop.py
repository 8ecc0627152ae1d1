"""What the verbs do: claim a folder, run the pipeline, show what came of it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rocketray import artifacts, pipeline, results
from rocketray import recipe as recipes
from rocketray.artifacts import RunFolder
from rocketray.errors import UserError
from rocketray.progress import Display
from rocketray.recipe import Recipe
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
        _check_stage(until)
    display = display or Display()
    with claimed(out, take_over) as folder:
        dataset = pipeline.locate(recipe, folder.path, data, unlabelled)
        artifacts.write_text(folder.path / "recipe.yaml", recipes.dump(recipe))
        flow = Workflow(recipe, folder, display, until, frozen)
        display.say(f"rocketray: recipe {recipe.name}, seed {recipe.seed}, into {folder.path}")
        for warning in dataset.warnings:
            display.say(f"  note: {warning}")
        try:
            pipeline.run(flow, dataset)
            results.conclude(flow)
        except Finished:
            display.say(f"Stopped after {until}, as asked. Without --until it goes on from here.")
        return flow


@contextmanager
def claimed(out: Path, take_over: bool) -> Iterator[RunFolder]:
    """A run folder that this process alone writes."""
    folder = RunFolder(out)
    folder.claim(take_over=take_over)
    try:
        yield folder
    finally:
        folder.release()


def _check_stage(name: str) -> None:
    if name not in pipeline.STAGES:
        close = difflib.get_close_matches(name, pipeline.STAGES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"--until {name!r}: no such stage.{hint} In order: {', '.join(pipeline.STAGES)}.")
