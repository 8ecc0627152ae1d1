"""The plan a run prints before it trains: stages, rows, blocks, workers."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from rocketray.pipeline import Ready
from rocketray.recipe import Recipe


def table(recipe: Recipe, ready: Ready) -> Table:
    """What is to come, as far as it can be known: "up to" where a verdict decides."""
    shown = Table(title="plan", title_justify="left")
    for name in ("stage", "rows", "blocks", "workers"):
        shown.add_column(name, justify="left" if name == "stage" else "right")
    actors, workers = recipe.cluster.bulk.actors, recipe.cluster.train.workers
    pool = "this process" if actors == 0 else f"{actors or 'all CPUs'}"
    trainers = "this process" if workers == 0 else str(workers)
    for stage, rows, blocks in stages(recipe, ready):
        shown.add_row(stage, rows, str(blocks) if blocks else "", pool if blocks else trainers)
    return shown


def stages(recipe: Recipe, ready: Ready) -> Iterator[tuple[str, str, int]]:
    """(stage, rows in words, blocks; 0 for training)."""
    chosen = {name: version.rows for name, version in ready.tables.chosen.items()}
    blocks = {name: len(version.blocks) for name, version in ready.tables.chosen.items()}
    train, test, free = (chosen.get(name, 0) for name in ("train", "test", "unlabelled"))
    corpus, corpus_blocks = ready.tables.passages.rows, len(ready.tables.passages.blocks)
    steps = recipe.steps

    def dual(name: str, examples: str) -> Iterator[tuple[str, str, int]]:
        told = getattr(steps, name)
        yield f"{name}: train, {told.epochs:g} epochs of {told.global_batch}", examples, 0
        yield f"{name}: encode the corpus", f"{corpus:,} passages", corpus_blocks

    yield from dual("dual_0", f"{train:,} questions")
    yield "initial weights: encode the corpus", f"{corpus:,} passages", corpus_blocks
    if test:
        yield "retrieve for each model", f"{test:,} test questions", blocks["test"]
    yield "retrieve by dual_0", f"{train:,} questions", blocks["train"]
    pairs = min(train, steps.cross.queries or train) * (1 + steps.cross.negatives)
    yield (
        f"cross: train, {steps.cross.epochs:g} epochs of {steps.cross.global_batch}",
        f"{pairs:,} pairs",
        0,
    )
    if not recipe.denoise.off:
        yield "score and denoise", f"{train * recipe.denoise.depth:,} pairs", blocks["train"]
    yield from dual("dual_1", f"{train:,} questions")
    if free:
        yield "score and augment", f"{free * recipe.augment.depth:,} pairs", blocks["unlabelled"]
    yield from dual("dual_2", f"{train:,} to {train + free:,} questions")
    if test and recipe.evaluate.rerank:
        yield "rerank", f"{test * recipe.evaluate.rerank:,} pairs", blocks["test"]
