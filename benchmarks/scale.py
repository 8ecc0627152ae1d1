"""Ingest, tokenise, encode, retrieve, score over growing corpora: seconds, memory, object store.

    python benchmarks/scale.py [--sizes 100000,300000,1000000] [--actors 2] [--json FILE]

Made-up passages and a tiny random model, so that what is measured is everything but the model. Each
size runs in a process of its own. Of each stage: seconds from its first block on (starting the pool
is left out), rows a second, the most memory of the driver and of a worker while it ran, and the
object store. Memory is what a process has written (RssAnon); files mapped into it can be dropped at
any time and are not counted. Then, over the sizes: time grows as rows to the power of `exponent` (a
straight line through the logarithms), memory by `ratio` from the smallest corpus to the largest.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import Result, line, report

from rocketray import labelling, loop, preparation, recipe, retrieval
from rocketray.formats import open_dataset
from rocketray.formats.generated import words, write_qrels
from rocketray.meanwhile import meanwhile
from rocketray.progress import Display, Meter
from rocketray.workflow import Workflow

QUERIES = 1024
"""Of the test split; the training split has a few, since ingest wants one."""
DEPTH = 20
"""Passages of each that are scored."""
LENGTH = 40
"""Words of a passage."""
STAGES = {
    "passages + queries": "ingest",
    "query_tokens + passage_tokens": "tokenise",
    "initial_embeddings": "encode",
    "initial_test": "retrieve",
    "initial_test_scored": "score",
}
BULK = (b"ray::MapBatches", b"ray::IDLE")
"""Names of processes that make blocks, or wait for the next one."""
MB = 1e6


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="100000,300000,1000000")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the runs lie; default: a temporary one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=int, help="(used by itself) this size, in this process")
    told = parser.parse_args()
    if told.one:
        print(json.dumps(measure(told.folder, told.one, told.actors)))
        return
    sizes = [int(size) for size in told.sizes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        told.folder = told.folder or Path(folder)
        found = {size: in_a_process(told, size) for size in sizes}
    results = [r for size in sizes for r in of_size(size, found[size])]
    if len(sizes) > 1:
        results += over_sizes(found)
    report(results, told.json, {"actors": told.actors, "queries": QUERIES, "words": LENGTH})


def in_a_process(told: Namespace, size: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", str(size), "--actors", str(told.actors)]
    command += ["--folder", str(told.folder / f"{size}")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for result in of_size(size, found):
        print(line(result), flush=True)
    return found


def of_size(size: int, found: dict[str, Any]) -> Iterator[Result]:
    for stage, about in found.items():
        name = f"{size:,}: {stage}"
        yield Result(name=name, value=about["seconds"], unit="s", better="lower")
        if about.get("rows"):
            rate = about["rows"] / about["seconds"]
            yield Result(name=f"{name}, rate", value=rate, unit="rows/s")
        for what in ("driver", "worker", "store"):
            yield Result(name=f"{name}, {what}", value=about[what] / MB, unit="MB", better="lower")


def over_sizes(found: dict[int, dict[str, Any]]) -> Iterator[Result]:
    """How time and memory grow. Where a number is small beside what does not grow (imports, the
    start of Python), the ratio is near 1 in any case: look at the megabytes, too."""
    sizes = sorted(found)
    first, last = found[sizes[0]], found[sizes[-1]]
    for stage in first:
        seconds = [found[size][stage]["seconds"] for size in sizes]
        slope = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
        yield Result(name=f"{stage}: exponent of time", value=slope, unit="", target=1.1,
                     better="lower")  # fmt: skip
        for what in ("driver", "worker"):
            grown = last[stage][what] / first[stage][what]
            more = (last[stage][what] - first[stage][what]) / (sizes[-1] - sizes[0])
            yield Result(name=f"{stage}: memory of {what}, ratio", value=grown, unit="",
                         target=1.1, better="lower")  # fmt: skip
            yield Result(name=f"{stage}: memory of {what}, a passage", value=more, unit="bytes",
                         target=20 if what == "driver" else None, better="lower")  # fmt: skip


# ---------------------------------------------------------------------------------- one corpus


def measure(folder: Path, size: int, actors: int) -> dict[str, Any]:
    """Stages of one corpus: seconds, rows, peaks in bytes."""
    write_corpus(folder / "data", size)
    told = recipe.load(
        "tiny",
        [f"cluster.bulk.actors={actors}", "cluster.bulk.gpus=false", "evaluate.k=100",
         "data.hide_labels=0", "blocks.passages=4096", "blocks.queries=256"],
    )  # fmt: skip
    display = Watch()
    start = time.monotonic()
    with loop.claimed(folder / "run", take_over=False) as run, display.peaks("all"):
        flow = Workflow(told, run, display)
        ready = preparation.prepare(flow, open_dataset(folder / "data"))
        runs = retrieval.retrieve(flow, ready, {"initial": ready.dual}, {"initial": ["test"]})
        found = runs["initial"]["test"]
        labelling.score(flow, ready, "initial_test_scored", found, ready.cross, DEPTH)
        rows = {row["stage"]: row["rows"] for row in flow.timings()}
    display.found["all"] |= {"seconds": time.monotonic() - start}
    for name, stage in STAGES.items():
        display.found[stage]["rows"] = max(rows[part] for part in name.split(" + "))
    return display.found


def write_corpus(folder: Path, size: int) -> None:
    """A BEIR folder of random words, drawn many at once; `formats.generated` would take minutes."""
    (folder / "qrels").mkdir(parents=True)
    draw, vocabulary = np.random.default_rng(size), np.array(words())
    with (folder / "corpus.jsonl").open("w") as file:
        for first in range(0, size, 10_000):
            drawn = vocabulary[draw.integers(len(vocabulary), size=(10_000, LENGTH))]
            for row, text in enumerate(drawn[: size - first].tolist(), start=first):
                passage = {"_id": f"p{row}", "title": text[0], "text": " ".join(text)}
                file.write(json.dumps(passage) + "\n")
    with (folder / "queries.jsonl").open("w") as file:
        for row, text in enumerate(vocabulary[draw.integers(4900, size=(QUERIES, 5))].tolist()):
            file.write(json.dumps({"_id": f"q{row}", "text": " ".join(text)}) + "\n")
    answers = draw.integers(size, size=QUERIES).tolist()
    pairs = [(f"q{query}", f"p{passage}") for query, passage in enumerate(answers)]
    write_qrels(folder / "qrels" / "train.tsv", pairs[:8])
    write_qrels(folder / "qrels" / "test.tsv", pairs)


class Watch(Display):
    """Shows nothing; looks at memory four times a second while a stage runs."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.found: dict[str, Any] = {}

    @contextmanager
    def meter(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Meter]:
        with self.peaks(STAGES[name]), super().meter(name, total, unit, done) as meter:
            yield meter
            seconds = time.monotonic() - meter.counted_from
        self.found[STAGES[name]]["seconds"] = seconds

    @contextmanager
    def peaks(self, name: str) -> Iterator[None]:
        peak = {"driver": 0, "worker": 0, "store": 0}

        def look() -> None:
            for what, now in memory().items():
                peak[what] = max(peak[what], now)

        try:
            with meanwhile(look, 0.25):
                yield
        finally:
            look()  # By now there are workers, however quick it was.
            self.found[name] = peak


def memory() -> dict[str, int]:
    """Bytes now: this process, the largest bulk worker, all of the object store that is in use."""
    import ray

    store = 0
    if ray.is_initialized():
        total, free = ray.cluster_resources(), ray.available_resources()
        store = int(total["object_store_memory"] - free.get("object_store_memory", 0))
    return {
        "driver": written(Path("/proc/self")),
        "worker": max([written(folder) for folder in bulk_workers()], default=0),
        "store": store,
    }


def bulk_workers() -> Iterator[Path]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(BULK):
                yield folder
        except OSError:  # It has just ended.
            continue


def written(folder: Path) -> int:
    """RssAnon of a process."""
    try:
        lines = (folder / "status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(row.split()[1]) * 1024 for row in lines if row.startswith("RssAnon"))


if __name__ == "__main__":
    main()
