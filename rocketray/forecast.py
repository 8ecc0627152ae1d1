"""`rocketray plan`: what a recipe takes on given machines, before anybody pays for it.

Of a bulk stage on W workers, which are never more than its blocks:

    seconds = start + max(efforts / rates / W + (1 - 1/W) / 2 blocks, bytes brought / network)

(half a block because the last workers wait for the last block), and of training on W workers, never
more than a step has shards:

    seconds = start + steps * (efforts / rates / W + bytes sent * (W - 1) / W / link) + dev
              + bytes brought / network

Efforts and bytes are those of `plan`, rates those of `machines` or of a probe of this machine. All
machines are paid for as long as the run takes: hours of devices and money follow from the seconds.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from rocketray import recipe as recipes
from rocketray import tables
from rocketray.errors import UserError
from rocketray.machines import GBIT, HEAD, NETWORK, SPOT, Fleet, fleet
from rocketray.model import weights
from rocketray.plan import Counts, Shape, Task, Work
from rocketray.progress import Display, clock, megabytes
from rocketray.recipe import Recipe

DEVICES = (1, 8, 64, 512)
PASSAGES = (10**7, 10**9)
"""What the table of scale asks for."""
CPU_ONLY = {"ingest", "tokenise", "lexical"}
DRIVER_BYTES = 22
"""Of the driver's memory, a passage (`benchmarks/scale.py`)."""
GB = 1e9
WIDTH = 100
"""Columns of what is shown where no terminal says how many there are."""
NOT_COUNTED = (
    "machines of another kind beside these", "disks", "a shared file system or object storage",
    "traffic between zones", "the minutes in which machines start or idle",
    "work that lost spot machines had in hand",
)  # fmt: skip
"""What a bill has beside the dollars of a plan."""


@dataclass(frozen=True)
class Time:
    """What one stage takes."""

    stage: str
    seconds: float
    bound: str
    """What it waits for: compute, network, blocks (fewer than workers), shards, start."""
    workers: int
    network: float
    """Bytes between machines, and between them and storage: at most, as nothing is kept."""


@dataclass(frozen=True)
class Known:
    """What the data, or the command line in their place, say."""

    counts: Counts
    how: str = "assumed"
    """The mean tokens are known."""
    fleets: Sequence[Fleet] = ()
    """This machine, where it was measured."""


def forecast(
    name: str,
    *,
    counts: Mapping[str, Any],
    machines: Sequence[str] = (),
    network: float | None = None,
    data: Path | None = None,
    unlabelled: Path | None = None,
    overrides: Sequence[str] = (),
    as_json: bool = False,
    display: Display | None = None,
) -> list[dict[str, Any]]:
    """Time, room and money for a recipe: on this machine, probed with `data`, and on others.

    Args:
        counts: fields of `Counts` that are told; with `data` they are counted, and told ones win.
        network: Gbit/s from each machine to others, in place of what it is known to have.

    Raises:
        UserError: an unknown machine or recipe, no data where they are needed.
    """
    display = display or Display(quiet=as_json)
    recipe, fleets = recipes.load(name, overrides), [_joined(fleet(m), network) for m in machines]
    dual, cross = shapes(recipe, display)
    if data or recipe.data.source:
        joined = NETWORK if network is None else network * GBIT
        with tempfile.TemporaryDirectory() as folder:
            known = _with_data(recipe, Path(folder), data, unlabelled, dual, cross,
                               network=None if fleets else joined, display=display)  # fmt: skip
        fleets = list(known.fleets) or fleets
    else:
        known = _without_data(counts, fleets)
    used = replace(known.counts, **counts).under(recipe)
    task, tokens = Task(recipe, used, dual, cross), _tokens(used, counts, known.how)
    found = [
        told(task, fleet) | {"tokens": tokens, "scale": scaled(task, fleet)} for fleet in fleets
    ]
    if as_json:
        print(json.dumps(found, indent=1))
        return found
    if recipe.name == "ablate":
        display.say(
            "  note: this is one run of it. `rocketray ablate` trains in-batch and undenoised rows"
            " as well, and all of it for each seed."
        )
    for about, fleet_ in zip(found, fleets, strict=True):
        show(about, fleet_, task, display)
    return found


def _joined(fleet: Fleet, network: float | None) -> Fleet:
    """With what a person says of its network."""
    if network is None:
        return fleet
    return replace(fleet, machine=replace(fleet.machine, network=network * GBIT))


def _with_data(
    recipe: Recipe, folder: Path, data: Path | None, unlabelled: Path | None, dual: Shape,
    cross: Shape, *, network: float | None, display: Display,
) -> Known:  # fmt: skip
    """Counts of the files' rows, and their tokens; of a probe also this machine.

    Args:
        network: of this machine, to probe it; None leaves it alone.
    """
    from rocketray import probe

    dataset = tables.locate(recipe, folder, data, unlabelled)
    counts = probe.counted(dataset, folder)
    if network is None:
        asked, passage, how = probe.tokens(recipe, dataset, folder)
        return Known(replace(counts, query_tokens=asked, passage_tokens=passage), how)
    display.say("rocketray: measuring this machine with some of the data, for about a minute ...")
    found = probe.probe(recipe, dataset, counts, dual, cross, folder, network=network)
    return Known(found.counts, "the probe", [found.fleet])


def _without_data(counts: Mapping[str, float], fleets: Sequence[Fleet]) -> Known:
    if "passages" not in counts or "train" not in counts:
        raise UserError("How much is it? Give --data FOLDER, or --passages N and --queries N.")
    if not fleets:
        raise UserError(
            "On which machines? Give --machine NAME:COUNT, or --data FOLDER to measure this one."
        )
    return Known(Counts(int(counts["passages"]), int(counts["train"]), int(counts["train"])))


def _tokens(used: Counts, told: Mapping[str, Any], how: str) -> dict[str, Any]:
    """The means that everything rests on, and how each is known."""
    return {
        "query": used.query_tokens, "query_by": "told" if "query_tokens" in told else how,
        "passage": used.passage_tokens,
        "passage_by": "told" if "passage_tokens" in told else how,
    }  # fmt: skip


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
        told = json.loads((weights.here(name) / "config.json").read_text(encoding="utf-8"))
        found = Shape(told["num_hidden_layers"], told["hidden_size"], told["intermediate_size"],
                      told["vocab_size"])  # fmt: skip
    except (UserError, KeyError):
        word = next((word for word in LIKE if word in name.lower()), "base")
        found = LIKE[word]
        display.say(f"  {name} is not on this machine: taken to be of BERT-{word}'s size.")
    return replace(found, layers=min(layers or found.layers, found.layers), first_token=first_token)


def show(found: Mapping[str, Any], fleet: Fleet, task: Task, display: Display) -> None:
    if not display.console.is_terminal:  # A job's log has no width, and Rich takes 80 for it.
        display.console.width = max(display.console.width, WIDTH)
    display.show(table(found, fleet, f"{task.recipe.name} on {fleet}"))
    display.say(totals(found, fleet))
    for line in (*money(found, fleet), tokens_line(found["tokens"]), *found["limits"]):
        display.say(f"  {line}")
    display.show(scale_table(found["scale"], fleet))


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
    moved = _moved(work, fleet, workers)
    network = moved / min(fleet.count, workers) / fleet.machine.network
    bound = "network" if network > compute else "blocks" if workers < there else "compute"
    seconds = max(compute, network)
    start = fleet.machine.kept_seconds if kept else fleet.machine.pool_seconds
    bound = bound if seconds > start else "start"
    return Time(work.stage, start + seconds, bound, workers, moved)


def _trained(work: Work, fleet: Fleet) -> Time:
    there = fleet.train_workers or fleet.devices
    workers = max(1, min(there, work.shards))
    machine = fleet.machine
    across = fleet.count > 1 and workers > machine.devices
    link = machine.network / machine.devices if across else machine.link
    sent = work.steps * work.sent * (workers - 1) / workers
    wire = sent / link + work.reads / fleet.network
    compute = _alone(work, fleet) / workers
    bound = "network" if wire > compute else "shards" if workers < there else "compute"
    seconds = compute + wire
    start = machine.group_seconds
    moved = _moved(work, fleet, workers) + (workers * sent if across else 0.0)
    bound = bound if seconds > start else "start"
    return Time(work.stage, start + seconds, bound, workers, moved)


def _moved(work: Work, fleet: Fleet, workers: int) -> float:
    """Bytes that machines at work bring from storage, and leave there."""
    if math.isinf(fleet.network):
        return 0.0
    return min(fleet.count, workers) * work.reads + work.writes


def _alone(work: Work, fleet: Fleet) -> float:
    """Seconds of one worker for all of it."""
    return sum(amount / fleet.machine.rates[effort] for effort, amount in work.efforts.items())


def told(task: Task, fleet: Fleet) -> dict[str, Any]:
    """Everything of one fleet, as JSON has it."""
    works = task.works()
    found = times(works, fleet)
    stages = [
        {**asdict(time), "device_hours": time.seconds / 3600 * fleet.devices,
         "dollars": time.seconds / 3600 * fleet.price, "rows": work.rows, "unit": work.unit,
         "blocks": work.blocks, "efforts": dict(work.efforts), "reads": work.reads,
         "writes": work.writes}
        for work, time in zip(works, found, strict=True)
    ]  # fmt: skip
    hours = sum(time.seconds for time in found) / 3600
    spot = fleet.head + SPOT * (fleet.price - fleet.head)
    return {
        "machines": str(fleet),
        "device": fleet.machine.device,
        "stages": stages,
        "hours": hours,
        "device_hours": sum(stage["device_hours"] for stage in stages),
        "stored": sum(stage["writes"] for stage in stages),
        "network": sum(stage["network"] for stage in stages),
        "dollars": sum(stage["dollars"] for stage in stages),
        "head_dollars": hours * fleet.head,
        "spot_dollars": hours * spot,
        "not_counted": list(NOT_COUNTED),
        "limits": list(limits(task, fleet, found)),
    }


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


def table(found: Mapping[str, Any], fleet: Fleet, title: str) -> Table:
    """Stage by stage, with totals below; network and money where there are any."""
    hours = "GPU-hours" if fleet.machine.gpus else "CPU-hours"
    columns = {
        "stage": "stage", "workers": "workers", "time": "seconds", "waits for": "bound",
        "stored": "writes", "network": "network", hours: "device_hours", "dollars": "dollars",
    }  # fmt: skip
    for name in ("network", "dollars"):
        if not found[name]:
            del columns[name]
    shown = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0),
                  show_edge=False)  # fmt: skip
    for name in columns:
        left = name in ("stage", "waits for")
        shown.add_column(name, justify="left" if left else "right", no_wrap=True)
    for row in found["stages"]:
        shown.add_row(*(_cell(row[key], key) for key in columns.values()))
    shown.add_section()
    total = {
        **found, "stage": "all", "workers": "", "seconds": found["hours"] * 3600, "bound": "",
        "writes": found["stored"],
    }  # fmt: skip
    shown.add_row(*(_cell(total[key], key) for key in columns.values()))
    return shown


def _cell(value: Any, key: str) -> str:
    if key == "seconds":
        return clock(value)
    if key in ("writes", "network"):
        return megabytes(value) if value else "0"
    return _amount(value) if isinstance(value, float) else str(value)


def _amount(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def totals(found: Mapping[str, Any], fleet: Fleet) -> str:
    words = (
        f"{found['hours']:,.1f} hours on {found['machines']}: {_amount(found['device_hours'])}"
        f" {found['device']}-hours, {megabytes(found['stored'])} stored"
    )
    if found["network"]:
        words += f", up to {megabytes(found['network'])} over the network"
    if fleet.price:
        dollars = _amount(found["dollars"])
        words += f"; {dollars} dollars at ${fleet.machine.price:g} a machine and hour"
        if fleet.listed:
            words += f", about {_amount(found['spot_dollars'])} on spot machines"
    return words + "."


def money(found: Mapping[str, Any], fleet: Fleet) -> Iterator[str]:
    """What is in the dollars, and what is not."""
    if fleet.head:
        yield (f"In the dollars: {found['head_dollars']:,.2f} for the cluster's head"
               f" ({HEAD.name}, ${HEAD.price:g} an hour).")  # fmt: skip
    if fleet.price:
        yield f"Not in them: {'; '.join(NOT_COUNTED)}."


def tokens_line(tokens: Mapping[str, Any]) -> str:
    asked, passage = f"{tokens['query']:.1f} a question", f"{tokens['passage']:.1f} a passage"
    if tokens["query_by"] == tokens["passage_by"]:
        return f"Mean tokens: {asked}, {passage} ({tokens['passage_by']})."
    return f"Mean tokens: {asked} ({tokens['query_by']}), {passage} ({tokens['passage_by']})."


def scale_table(rows: Sequence[Mapping[str, Any]], fleet: Fleet) -> Table:
    title = f"on more devices, over more passages ({fleet.machine.network / GBIT:g} Gbit/s each)"
    shown = Table(title=title, title_justify="left")
    for name in ("passages", "devices", "hours", "longest stage", "its share", "it waits for"):
        shown.add_column(name, justify="left" if "stage" in name or "waits" in name else "right")
    for row in rows:
        shown.add_row(
            f"{row['passages']:,}", str(row["devices"]), f"{row['hours']:,.1f}", row["longest"],
            f"{row['share']:.0%}", row["bound"],
        )  # fmt: skip
    return shown
