"""`rocketray plan`: what a recipe takes on given machines, before anybody pays for it.

Of a bulk stage on W workers, which are never more than its blocks:

    seconds = start + max(efforts / rates / W + (1 - 1/W) / 2 blocks, bytes brought / network)

(half a block because the last workers wait for the last block), and of training on W workers, never
more than a step has shards:

    seconds = start + steps * (efforts / rates / W + bytes sent * (W - 1) / W / link) + dev

Efforts and bytes are those of `plan`, rates those of `machines` or of a probe of this machine.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from rocketray import recipe as recipes
from rocketray import tables
from rocketray.errors import UserError
from rocketray.machines import MACHINES, SPOT, Fleet, fleet
from rocketray.model import weights
from rocketray.plan import PAIR_BYTES, Counts, Shape, Task, Work
from rocketray.progress import Display, clock, megabytes
from rocketray.recipe import Recipe

DEVICES = (1, 8, 64, 512)
PASSAGES = (10**7, 10**9)
"""What the table of scale asks for."""
CPU_ONLY = {"ingest", "tokenise", "lexical"}
DRIVER_BYTES = 22
"""Of the driver's memory, a passage (`benchmarks/scale.py`)."""
GB = 1e9


@dataclass(frozen=True)
class Time:
    """What one stage takes."""

    stage: str
    seconds: float
    bound: str
    """What it waits for: compute, network, blocks (fewer than workers), shards, start."""
    workers: int


def forecast(
    name: str,
    *,
    counts: Mapping[str, Any],
    machines: Sequence[str] = (),
    data: Path | None = None,
    unlabelled: Path | None = None,
    overrides: Sequence[str] = (),
    as_json: bool = False,
    display: Display | None = None,
) -> list[dict[str, Any]]:
    """Time, room and money for a recipe: on this machine, probed with `data`, and on others.

    Args:
        counts: fields of `Counts` that are told; with `data` they are counted, and told ones win.

    Raises:
        UserError: an unknown machine or recipe, no data where they are needed.
    """
    display = display or Display(quiet=as_json)
    recipe, fleets = recipes.load(name, overrides), [fleet(machine) for machine in machines]
    dual, cross = shapes(recipe, display)
    if data or recipe.data.source:
        with tempfile.TemporaryDirectory() as folder:
            known, here = _with_data(recipe, Path(folder), data, unlabelled, dual, cross,
                                     probed=not fleets, display=display)  # fmt: skip
        fleets = here or fleets
    else:
        known = _without_data(counts, fleets)
    used = replace(known, **counts).under(recipe)
    task = Task(recipe, used, dual, cross)
    found = [told(task, fleet) | {"scale": scaled(task, fleet)} for fleet in fleets]
    if as_json:
        print(json.dumps(found, indent=1))
        return found
    for about, fleet_ in zip(found, fleets, strict=True):
        show(about, fleet_, task, display)
    return found


def _with_data(
    recipe: Recipe, folder: Path, data: Path | None, unlabelled: Path | None, dual: Shape,
    cross: Shape, *, probed: bool, display: Display,
) -> tuple[Counts, list[Fleet]]:  # fmt: skip
    """Counts of the files' rows; of a probe also their tokens, and this machine."""
    from rocketray import probe

    dataset = tables.locate(recipe, folder, data, unlabelled)
    counts = probe.counted(dataset, folder)
    if not probed:
        return counts, []
    display.say("rocketray: measuring this machine with some of the data, for about a minute ...")
    found = probe.probe(recipe, dataset, counts, dual, cross, folder)
    return found.counts, [found.fleet]


def _without_data(counts: Mapping[str, float], fleets: Sequence[Fleet]) -> Counts:
    if "passages" not in counts or "train" not in counts:
        raise UserError("How much is it? Give --data FOLDER, or --passages N and --queries N.")
    if not fleets:
        raise UserError(
            "On which machines? Give --machine NAME:COUNT, or --data FOLDER to measure this one."
        )
    return Counts(int(counts["passages"]), int(counts["train"]), int(counts["train"]))


def shapes(recipe: Recipe, display: Display) -> tuple[Shape, Shape]:
    """Of both encoders."""
    dual, cross = recipe.model.dual, recipe.model.cross
    return (
        shape(dual.weights, dual.layers, first_token=dual.pooling == "cls", display=display),
        shape(cross.weights, cross.layers, first_token=True, display=display),
    )


LIKE = {
    "large": Shape(24, 1024, 4096),
    "base": Shape(12, 768, 3072),
    "tiny": Shape(2, 32, 64, 5000),
}
"""Of weights that are not on this machine, by a word in their name; else as base."""


def shape(name: str, layers: int | None, *, first_token: bool, display: Display) -> Shape:
    """Of weights by name; nothing is downloaded for it."""
    try:
        folder = weights.PACKAGE if name == weights.PACKAGE else Path(name).expanduser()
        told = json.loads((weights.resolve(folder) / "config.json").read_text(encoding="utf-8"))
        found = Shape(told["num_hidden_layers"], told["hidden_size"], told["intermediate_size"],
                      told["vocab_size"])  # fmt: skip
    except (UserError, KeyError):
        word = next((word for word in LIKE if word in name.lower()), "base")
        found = LIKE[word]
        display.say(f"  {name} is not on this machine: taken to be of BERT-{word}'s size.")
    return replace(found, layers=min(layers or found.layers, found.layers), first_token=first_token)


def show(found: Mapping[str, Any], fleet: Fleet, task: Task, display: Display) -> None:
    display.show(table(found, f"{task.recipe.name} on {fleet}"))
    display.say(totals(found, fleet))
    for line in found["limits"]:
        display.say(f"  {line}")
    display.show(scale_table(found["scale"]))


def times(works: Sequence[Work], fleet: Fleet) -> list[Time]:
    """In this order: training takes the place of the processes of the pool before it."""
    after_pool = [False, *(not work.steps for work in works)]
    return [
        _trained(work, fleet) if work.steps else _mapped(work, fleet, kept)
        for work, kept in zip(works, after_pool, strict=False)
    ]


def _mapped(work: Work, fleet: Fleet, kept: bool) -> Time:
    there = fleet.count * fleet.machine.cpus if work.efforts.keys() & CPU_ONLY else fleet.devices
    there = fleet.bulk_workers or there
    workers = max(1, min(there, work.blocks))
    alone = _alone(work, fleet)
    tail = (1 - 1 / workers) / 2 * alone / max(1, work.blocks)
    compute = alone / workers + tail
    network = (work.reads + work.writes / fleet.count) / fleet.machine.network
    bound = "network" if network > compute else "blocks" if workers < there else "compute"
    seconds = max(compute, network)
    start = fleet.machine.kept_seconds if kept else fleet.machine.pool_seconds
    return Time(work.stage, start + seconds, bound if seconds > start else "start", workers)


def _trained(work: Work, fleet: Fleet) -> Time:
    there = fleet.train_workers or fleet.devices
    workers = max(1, min(there, work.shards))
    machine = fleet.machine
    link = machine.link if workers <= machine.devices else machine.network / machine.devices
    wire = work.steps * work.sent * (workers - 1) / workers / link
    compute = _alone(work, fleet) / workers
    bound = "network" if wire > compute else "shards" if workers < there else "compute"
    seconds = compute + wire
    start = machine.group_seconds
    return Time(work.stage, start + seconds, bound if seconds > start else "start", workers)


def _alone(work: Work, fleet: Fleet) -> float:
    """Seconds of one worker for all of it."""
    return sum(amount / fleet.machine.rates[effort] for effort, amount in work.efforts.items())


def told(task: Task, fleet: Fleet) -> dict[str, Any]:
    """Everything of one fleet, as JSON has it."""
    works = task.works()
    found = times(works, fleet)
    hours = sum(time.seconds for time in found) / 3600
    return {
        "machines": str(fleet),
        "stages": [
            {**asdict(time), "rows": work.rows, "unit": work.unit, "blocks": work.blocks,
             "efforts": dict(work.efforts), "reads": work.reads, "writes": work.writes}
            for work, time in zip(works, found, strict=True)
        ],
        "hours": hours,
        "device_hours": hours * fleet.devices,
        "stored": sum(work.writes for work in works),
        "brought": sum(work.reads for work in works) * fleet.count,
        "dollars": hours * fleet.price,
        "spot_dollars": hours * fleet.price * SPOT,
        "limits": list(limits(task, fleet, found)),
    }  # fmt: skip


def limits(task: Task, fleet: Fleet, found: Sequence[Time]) -> Iterator[str]:
    """Where this task on these machines meets the design's limits."""
    recipe, counts = task.recipe, task.counts
    for bound, field in (("blocks", "blocks.passages and blocks.queries"),
                         ("shards", "the global batch or steps.*.micro_shard")):  # fmt: skip
        idle = [f"{time.stage} ({time.workers})" for time in found if time.bound == bound]
        if idle:
            yield f"More workers than {bound} in {', '.join(idle)}: see {field}."
    if (tokens := task.token_bytes) > 10 * GB:
        yield f"Every node that scores or trains keeps {tokens / GB:,.0f} GB of tokens on its disk."
    group = recipe.blocks.passage_group * task.dual.width * 4
    if 0 < fleet.machine.memory < 2 * group:
        yield (f"A group of blocks.passage_group passages takes {group / GB:.1f} GB of a GPU's"
               f" {fleet.machine.memory / GB:.0f}: make it smaller.")  # fmt: skip
    driver = counts.passages * DRIVER_BYTES
    if driver > GB:
        yield f"The driver holds {driver / GB:,.0f} GB: {DRIVER_BYTES} bytes a passage."
    pairs = sum(work.rows for work in task.works() if work.unit == "pairs" and work.blocks)
    if pairs * PAIR_BYTES > GB:
        yield (f"Pairs scored before are read whole by each worker that scores anew: up to"
               f" {pairs * PAIR_BYTES / GB:,.0f} GB.")  # fmt: skip
    files = sum(2 * work.blocks for work in task.works())
    if files > 1e6:
        yield f"{files:,} files: raise blocks.passages and blocks.queries."
    searches = {
        "evaluate.bm25": recipe.evaluate.bm25,
        "steps.dual_0.negatives and denoise.pool": task.lexical_training,
    }
    if counts.passages > 5e6 and any(searches.values()):
        asked = " and ".join(field for field, wanted in searches.items() if wanted)
        yield f"BM25 indexes the corpus in each worker's memory: see {asked}."


def scaled(task: Task, fleet: Fleet) -> list[dict[str, Any]]:
    """The same recipe on more devices and more passages: hours, and what takes longest of them."""
    rows = []
    for passages in dict.fromkeys((task.counts.passages, *PASSAGES)):
        larger = replace(task, counts=replace(task.counts, passages=passages))
        works = larger.works()
        for devices in DEVICES:
            found = times(works, _devices(fleet, devices))
            longest = max(found, key=lambda time: time.seconds)
            hours = sum(time.seconds for time in found) / 3600
            rows.append({"passages": passages, "devices": devices, "hours": hours,
                         "longest": longest.stage, "share": longest.seconds / 3600 / hours,
                         "bound": longest.bound})  # fmt: skip
    return rows


def _devices(fleet: Fleet, count: int) -> Fleet:
    """So many of its devices: whole machines, or a part of one."""
    whole, machine = fleet.machine.devices, fleet.machine
    if count >= whole:
        return Fleet(machine, -(-count // whole))
    return Fleet(machine, 1, train_workers=count, bulk_workers=count)


# ---------------------------------------------------------------------------------------- shown


def table(found: Mapping[str, Any], title: str) -> Table:
    """Stage by stage, with totals below."""
    shown = Table(title=title, title_justify="left")
    for name in ("stage", "rows", "workers", "time", "waits for", "stored"):
        left = name in ("stage", "waits for")
        shown.add_column(name, justify="left" if left else "right", no_wrap=True)
    for row in found["stages"]:
        shown.add_row(
            row["stage"], f"{row['rows']:,}", str(row["workers"]), clock(row["seconds"]),
            row["bound"], megabytes(row["writes"]),
        )  # fmt: skip
    shown.add_section()
    shown.add_row("all", "", "", clock(found["hours"] * 3600), "", megabytes(found["stored"]))
    return shown


def totals(found: Mapping[str, Any], fleet: Fleet) -> str:
    unit = f"{fleet.machine.gpu or 'CPU'}-hours"
    words = (
        f"{found['hours']:,.1f} hours on {found['machines']}: {found['device_hours']:,.0f} {unit},"
        f" {megabytes(found['stored'])} stored,"
        f" up to {megabytes(found['brought'])} over the network"
    )
    if fleet.price:
        words += f"; {found['dollars']:,.0f} dollars at ${fleet.machine.price:g} a machine and hour"
    if fleet.machine == MACHINES.get(fleet.machine.name):  # At its list price.
        words += f", about {found['spot_dollars']:,.0f} on spot machines"
    return words + "."


def scale_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    shown = Table(title="on more devices, over more passages", title_justify="left")
    for name in ("passages", "devices", "hours", "longest stage", "its share", "it waits for"):
        shown.add_column(name, justify="left" if "stage" in name or "waits" in name else "right")
    for row in rows:
        shown.add_row(
            f"{row['passages']:,}", str(row["devices"]), f"{row['hours']:,.1f}", row["longest"],
            f"{row['share']:.0%}", row["bound"],
        )  # fmt: skip
    return shown
