"""`rocketray plan --data`: a minute of real work on a sample says how fast this machine is.

As many processes as the run would have workers do the same small run at once, each with its share
of the threads (or one process, where there is a GPU), through the code that a run runs. What `plan`
counts of their blocks and training steps, over the seconds these took, are this machine's rates;
starting a pool or a group of workers is not in them. How long these take to start follows from how
long the probe's processes took; how fast gradients come together is measured between them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from rocketray import labelling, learning, lines, loop, plan, preparation, retrieval
from rocketray import recipe as recipes
from rocketray.artifacts import Version, read_json
from rocketray.errors import UserError
from rocketray.formats import BadLine, Dataset, Source, cut, open_dataset, records
from rocketray.formats.generated import write_jsonl, write_qrels
from rocketray.machines import LOOPBACK, NETWORK, PER_CPU, Fleet, Machine, gpu_link
from rocketray.model import weights
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.inference import device
from rocketray.model.machine import keep_freed_memory, matmul_flops
from rocketray.model.tokens import Assembler, Tokenizer, TokenStore
from rocketray.plan import Counts, Effort, Shape
from rocketray.preparation import Ready
from rocketray.progress import Display
from rocketray.recipe import Recipe
from rocketray.workflow import Workflow

SECONDS = 8.0
"""Of each kind of work, about: encoding, scoring, both trainings."""
STEPS = 5
"""Of each training; the first does not count."""
REACHED = 0.5
"""Of a matrix product's speed, that is taken for granted to choose the sample's size by."""
SHARE = 0.1
"""Of the passages, at most."""
KEPT_SECONDS = 1.0
"""Until a pool begins on one machine, where its processes live on from a pool right before it."""
GROUP_STARTS = 2.5
"""Times what a probe's processes take to start, a training group takes: Ray's controller imports
what they do, then its workers do, and Ray Train besides (docs/lab-notes.md)."""
RAY_CPUS = 0.35
"""Of one CPU, that Ray's processes and the driver take while workers work: on two cores a sixth."""
REDUCED = 2**24
"""Numbers that are summed over the processes at once: 64 MiB."""
SEARCH = 0.8
"""Of a matrix product's speed, that exact search reaches (`benchmarks/retrieval.py`)."""
TOKEN_ROWS = 1000
"""Questions, and passages, whose tokens are counted where no machine is measured."""
TOKENS_PER_WORD = 1.3
"""Of English, by BERT's vocabulary, where the tokenizer is not at hand."""


@dataclass(frozen=True)
class Sizes:
    """Of the sample."""

    passages: int
    questions: int
    rows: int
    """Of a step of dual_0."""
    pairs: int
    """Of a step of cross."""
    depth: int
    """Passages of a question that are scored."""


@dataclass(frozen=True)
class Found:
    """What a probe leaves."""

    fleet: Fleet
    counts: Counts


@dataclass(frozen=True)
class Measured:
    """What one process of a probe leaves."""

    began: float
    """When it had started, by the clock."""
    rates: Mapping[Effort, float]
    tokens: tuple[float, float]
    """Means of questions and passages."""
    link: float
    """Bytes a second to the next process."""


def probe(
    recipe: Recipe, dataset: Dataset, counts: Counts, dual: Shape, cross: Shape, folder: Path,
    *, network: float = NETWORK,
) -> Found:  # fmt: skip
    """Measure this machine with some of a data set, in a folder that somebody else removes.

    Args:
        network: bytes a second to others like it, where a plan asks for several.
    """
    gpu = device().type == "cuda"
    cpus = os.cpu_count() or 1
    gpus = torch.cuda.device_count() if gpu else 0
    trainers = recipe.cluster.train.workers_on(gpus) or 1
    workers = 1 if gpu else min(cpus, trainers)
    sizes = _sizes(recipe, counts, dual, cross, workers)
    _sample(dataset, folder / "sample", sizes)
    told = _shortened(recipe, sizes, max(1, cpus // workers))
    arguments = [(told, folder, number, workers, dual, cross) for number in range(workers)]
    asked = time.time()
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        found = pool.starmap(_measure, arguments)
    one, start = found[0], max(each.began - asked for each in found)
    bulk = recipe.cluster.bulk.actors
    left = 1 - RAY_CPUS / cpus if not gpu and bulk != 0 else 1.0
    machine = Machine(
        "this machine", cpus,
        {effort: left * statistics.mean(each.rates[effort] for each in found)
         for effort in one.rates},
        network=network, own_disk=True, pool_seconds=start, kept_seconds=KEPT_SECONDS,
        group_seconds=GROUP_STARTS * start, link=one.link, gpus=gpus,
        gpu=torch.cuda.get_device_name() if gpu else "",
    )  # fmt: skip
    fleet = Fleet(machine, 1, trainers, 1 if bulk == 0 else bulk)
    queries, passages = one.tokens
    return Found(fleet, replace(counts, query_tokens=queries, passage_tokens=passages))


def counted(dataset: Dataset, folder: Path) -> Counts:
    """Rows of a data set, from its files' lines alone: what is wrong there is ingest's to say."""
    passages, questions = (
        sum(part.rows for source in sources for part in cut(source, 4096, folder))
        for sources in (dataset.corpus, [*dataset.queries, *dataset.unlabelled])
    )
    judged = {split: _judged(path) for split, path in dataset.qrels.items()}
    return Counts(
        passages=passages,
        train=len(judged["train"]),
        labels=sum(judged["train"].values()),
        dev=len(judged.get("dev", ())),
        test=len(judged.get("test", ())),
        unlabelled=questions - len(set().union(*judged.values())),
    )


def _judged(path: Path) -> dict[str, int]:
    """Relevant passages of each question."""
    found: dict[str, int] = {}
    for row in lines.judgements(path):
        if row.relevance > 0:
            found[row.qid] = found.get(row.qid, 0) + 1
    return found


# ---------------------------------------------------------------------------------- the sample


def _sizes(recipe: Recipe, counts: Counts, dual: Shape, cross: Shape, workers: int) -> Sizes:
    """As much as takes `SECONDS` of each kind, no more than the recipe's own."""
    place = device()
    types = {"cuda": torch.bfloat16}
    affordable = SECONDS * REACHED * matmul_flops(place, types.get(place.type, torch.float32))
    tokens = recipe.model.dual.passage_length, recipe.model.cross.length
    passage, pair = dual.operations(tokens[0]), cross.operations(tokens[1])
    steps = recipe.steps
    rows = affordable / (STEPS * 4 * 2 * passage)
    pairs = affordable / (STEPS * 3 * pair)
    passages = max(64, min(affordable / passage, SHARE * counts.passages))
    questions = max(16, min(rows * 2, counts.train))
    return Sizes(
        passages=round(passages),
        questions=round(questions),
        rows=max(2, min(round(rows), steps.dual_0.global_batch // workers)),
        pairs=max(2, min(round(pairs), steps.cross.global_batch // workers)),
        depth=max(1, min(recipe.denoise.depth, round(affordable / pair / questions))),
    )


def _sample(dataset: Dataset, folder: Path, sizes: Sizes) -> None:
    """Some passages and questions in BEIR layout, a passage a question: who answers what makes no
    difference to time."""
    (folder / "qrels").mkdir(parents=True)
    passages = list(_some(dataset.corpus, sizes.passages, folder))
    questions = list(_some(dataset.queries, sizes.questions, folder))
    rows = [
        {"_id": f"p{n}", "title": row.get("title") or "", "text": row["text"]}
        for n, row in enumerate(passages)
    ]
    write_jsonl(folder / "corpus.jsonl", rows)
    asked = [{"_id": f"q{n}", "text": row["text"]} for n, row in enumerate(questions)]
    write_jsonl(folder / "queries.jsonl", asked)
    pairs = [(f"q{n}", f"p{n % len(passages)}") for n in range(len(questions))]
    write_qrels(folder / "qrels" / "train.tsv", pairs)


def _some(sources: Sequence[Source], count: int, scratch: Path) -> Iterator[Mapping[str, str]]:
    """Rows from places spread over the files."""
    parts = [part for source in sources for part in cut(source, 64, scratch)]
    order = np.random.default_rng(0).permutation(len(parts)).tolist()
    found = 0
    for number in order:
        for _, row in records(parts[number]):
            if found < count and not isinstance(row, BadLine) and isinstance(row.get("text"), str):
                found += 1
                yield row


def _shortened(recipe: Recipe, sizes: Sizes, threads: int) -> Recipe:
    """The recipe for the sample: the same models, steps of one worker's share, in one process."""
    epochs = STEPS * sizes.rows / sizes.questions
    pairs = sizes.questions * (1 + recipe.steps.cross.negatives)
    return recipes.changed(recipe, [
        "cluster.bulk.actors=0", "cluster.train.workers=0", "cluster.train.min_workers=null",
        f"cluster.train.threads={threads}", "cluster.train.trackers=[]", "cluster.pairs=null",
        f"steps.dual_0.global_batch={sizes.rows}", f"steps.dual_0.epochs={epochs}",
        "steps.dual_0.in_batch=null", "steps.dual_0.copies=1", "steps.dual_0.compile=false",
        f"steps.cross.global_batch={sizes.pairs}",
        f"steps.cross.epochs={STEPS * sizes.pairs / pairs}", "steps.cross.queries=null",
        "steps.cross.compile=false",
        f"denoise.depth={sizes.depth}", "denoise.off=false", "denoise.pool=dual_0",
        "denoise.fill=random", "denoise.calibration=none",
        "data.hide_labels=0", "data.hide_positives=0", "data.labelled=null",
        "data.positives=labelled", "retrieve.index=null", "evaluate.queries=null",
    ])  # fmt: skip


# ---------------------------------------------------------------- tokens, where nothing is probed


def tokens(recipe: Recipe, dataset: Dataset, scratch: Path) -> tuple[float, float, str]:
    """Means of a question and a passage as the dual encoder reads them, and how they are known.

    Of rows from places spread over the files, always the same: by the recipe's tokenizer, or by
    words where it is not on this machine.
    """
    told = recipe.model.dual
    sides = (
        (list(_some(dataset.queries, TOKEN_ROWS, scratch)), told.query_length, told.query_prompt),
        (list(_some(dataset.corpus, TOKEN_ROWS, scratch)), told.passage_length,
         told.passage_prompt),
    )  # fmt: skip
    if not all(rows for rows, *_ in sides):
        raise UserError("No row of the data could be read: `rocketray check` says what is wrong.")
    rows = f"{len(sides[0][0]):,} questions and {len(sides[1][0]):,} passages"
    try:
        assembler = Assembler(Tokenizer(weights.here(told.weights)))
    except UserError:
        asked, passage = (_by_words(*side) for side in sides)
        how = f"{TOKENS_PER_WORD} a word of {rows}: {told.weights} is not on this machine"
        return asked, passage, how
    asked, passage = (_by_tokenizer(assembler, *side) for side in sides)
    return asked, passage, f"the recipe's tokenizer on {rows}"


def _by_tokenizer(
    assembler: Assembler, rows: Sequence[Mapping[str, str]], limit: int, prompt: str
) -> float:
    titles, texts = [row.get("title") or "" for row in rows], [row["text"] for row in rows]
    spaced = prompt.endswith(" ")
    store = TokenStore.of(assembler.tokenizer.store_block(titles, texts, limit, spaced=spaced))
    return float(assembler.passage_lengths(store, np.arange(store.rows), limit, prompt).mean())


def _by_words(rows: Sequence[Mapping[str, str]], limit: int, prompt: str) -> float:
    """[CLS] and [SEP], and of each word some tokens, cut as the recipe cuts."""
    words = [len(f"{prompt} {row.get('title') or ''} {row['text']}".split()) for row in rows]
    return statistics.mean(min(limit, 2 + TOKENS_PER_WORD * count) for count in words)


# ------------------------------------------------------------------------------- one process


def _measure(
    told: Recipe, folder: Path, number: int, workers: int, dual: Shape, cross: Shape
) -> Measured:
    began = time.time()
    if workers > 1 and device().type == "cpu":
        keep_freed_memory()  # As training's workers do.
    with loop.claimed(folder / f"run-{number}", take_over=False) as run:
        flow = Workflow(told, run, Display(quiet=True))
        ready = preparation.prepare(flow, open_dataset(folder / "sample"))
        model = learning.train_dual(flow, ready, "dual_0", learning.first_examples(flow, ready))
        found = retrieval.retrieve(flow, ready, {"dual_0": model}, {"dual_0": ["train"]})["dual_0"]
        positives = ready.tables.qrels["train"]
        trained = learning.train_cross(flow, ready, found, positives)
        labelling.denoise(flow, ready, found["train"], trained, positives, told.denoise)
        tokens = _tokens(ready)
        counts = replace(
            plan.counts_of(ready), query_tokens=tokens[0], passage_tokens=tokens[1]
        )  # fmt: skip
        rates = _rates(flow, plan.Task(told, counts, dual, cross))
    return Measured(began, rates, tokens, _link(folder / "group", number, workers))


def _link(meeting: Path, number: int, workers: int) -> float:
    """Bytes a second that each process sends on while all sum up a gradient, by the median of five
    (the first warms up). GPUs are in one process: by their name."""
    if device().type == "cuda":
        return gpu_link(torch.cuda.get_device_name())
    if workers == 1:
        return LOOPBACK
    dist.init_process_group("gloo", f"file://{meeting}", rank=number, world_size=workers)
    gradient = torch.zeros(REDUCED)
    seconds = []
    for _ in range(6):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(gradient)
        seconds.append(time.perf_counter() - start)
    dist.destroy_process_group()
    sent = 2 * gradient.nbytes * (workers - 1) / workers  # Around a ring, there and back.
    return sent / statistics.median(seconds[1:])


def _tokens(ready: Ready) -> tuple[float, float]:
    """Means over the sample, as the dual encoder reads."""
    model = DualEncoder.open(ready.dual.path / "model")
    assembler = Assembler(Tokenizer(model.tokenizer_folder))
    queries, passages = (
        (TokenStore(version.path), np.arange(version.rows))
        for version in (ready.dual_tokens.queries, ready.dual_tokens.passages)
    )
    asked = assembler.query_lengths(*queries, model.query_length, model.query_prompt)
    told = assembler.passage_lengths(*passages, model.passage_length, model.passage_prompt)
    return float(asked.mean()), float(told.mean())


def _rates(flow: Workflow, task: plan.Task) -> dict[Effort, float]:
    rates: dict[Effort, float] = dict(PER_CPU)
    works = {work.stage: work for work in task.works()}
    for stage, effort in (("passages", "ingest"), ("passage_tokens", "tokenise"),
                          ("dual_0_embeddings", "encode"), ("dual_0_train_scored", "score"),
                          ("dual_0", "train_dual"), ("cross", "train_cross")):  # fmt: skip
        work, version = works[stage], flow.made[stage]
        seconds = _step_seconds(version) * work.steps if work.steps else _block_seconds(version)
        rates[effort] = work.efforts[effort] / max(seconds, 1e-9)  # type: ignore[index]
    rates["search"] = SEARCH * matmul_flops(device(), torch.float32)
    return rates


def _block_seconds(version: Version) -> float:
    receipts = (version.path / "receipts").glob("*.json")
    return float(sum(read_json(path)["about"]["seconds"] for path in receipts))


def _step_seconds(version: Version) -> float:
    """The median's; the first step warms up."""
    log = (version.path / "log.jsonl").read_text(encoding="utf-8")
    told = [json.loads(line) for line in log.splitlines()]
    return float(
        statistics.median(
            line["seconds"] for line in told if line.get("step", 0) > 1 and "seconds" in line
        )
    )
