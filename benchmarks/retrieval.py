"""Exact top-k against one matrix product, faiss and torch; from a file; on a GPU.

    python benchmarks/retrieval.py [--json FILE]             200,000 passages, 1,024 questions
    python benchmarks/retrieval.py --only stream             600,000 passages in a float16 file
    python benchmarks/retrieval.py --only device --device cuda
                                                             MS MARCO's size, 100,000 questions

Vectors are random and of length one. The limit is the product alone, the fastest tile of several,
on a CPU by torch or by numpy, whichever is faster.
faiss reads OPENBLAS_CORETYPE when it is imported, so it runs in processes of its own, as shipped
and, where the processor has AVX-512, with that core named (its OpenBLAS takes recent processors for
old ones). torch's peer is a product and torch.topk for each of its fastest chunks. Needs no data.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from measure import Result, interleaved, peak, ratios, report

from rocketray.model.products import multiply
from rocketray.model.threads import set_threads
from rocketray.model.top_k import CPU, GPU, Block, Tiling, top_k

Search = Callable[[], tuple[np.ndarray, np.ndarray]]
Key = TypeVar("Key")
CHUNKS = [(1024, 2048), (1024, 4096), (1024, 16_384), (256, 16_384), (64, 65_536)]
"""Queries and passages that a product on the CPU takes at once, to choose among."""
DEVICE_CHUNKS = [(4096, 16_384), (8192, 32_768), (8192, 65_536), (1024, 131_072)]
CORETYPE = "OPENBLAS_CORETYPE"


def main() -> None:
    told = arguments()
    found = results(told)
    facts = {"k": told.k, "size": told.size, "threads": told.threads, "device": told.device,
             "torch": torch.__version__}  # fmt: skip
    report(found, told.json, facts)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="exact", help=",".join(PARTS))
    parser.add_argument("--queries", type=int, help="1,024; on a device 100,000")
    parser.add_argument("--passages", type=int, help="200,000; stream 600,000; device 8,841,823")
    parser.add_argument("--size", type=int, default=768, help="dimensions of an embedding")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="of the part `device`")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(given)


def results(told: argparse.Namespace) -> list[Result]:
    set_threads(told.threads)
    return [result for name in told.only.split(",") for result in PARTS[name](told)]


def vectors(count: int, size: int, seed: int, device: str = "cpu") -> torch.Tensor:
    """Random, of length one; float16 on a GPU, where float32 would not fit beside the work."""
    made = torch.empty(count, size, dtype=torch.float32 if device == "cpu" else torch.float16,
                       device=device)  # fmt: skip
    generator = torch.Generator(device).manual_seed(seed)
    for rows in made.split(100_000):
        drawn = torch.randn(rows.shape, generator=generator, device=device)
        rows.copy_(torch.nn.functional.normalize(drawn, dim=1))
    return made


# ------------------------------------------------------------------------------------- the sides


def product(
    q_QD: torch.Tensor, p_PD: torch.Tensor, chunk: tuple[int, int], by: str = "torch"
) -> Callable[[], None]:
    """The product alone, into the same place again and again."""
    scores = torch.empty(chunk, dtype=p_PD.dtype, device=p_PD.device)

    def run() -> None:
        for tile_TD in p_PD.split(chunk[1]):
            for part_QD in q_QD.to(p_PD.dtype).split(chunk[0]):
                out = scores[: len(part_QD), : len(tile_TD)]
                if by == "numpy":
                    multiply(part_QD, tile_TD, out)
                else:
                    torch.mm(part_QD, tile_TD.T, out=out)
        wait(p_PD)

    return run


def by_torch(q_QD: torch.Tensor, p_PD: torch.Tensor, k: int, chunk: tuple[int, int]) -> Search:
    """A product and a topk per chunk, and a topk over what came of them."""

    def part(part_QD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, rows = [], []
        for number, tile_TD in enumerate(p_PD.split(chunk[1])):
            found = (part_QD @ tile_TD.T).topk(min(k, len(tile_TD)), dim=1)
            scores.append(found.values)
            rows.append(found.indices + number * chunk[1])
        best = torch.cat(scores, dim=1).topk(k, dim=1)
        return best.values, torch.cat(rows, dim=1).gather(1, best.indices)

    def run() -> tuple[np.ndarray, np.ndarray]:
        parts = [part(part_QD) for part_QD in q_QD.to(p_PD.dtype).split(chunk[0])]
        scores, rows = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
        return scores, rows

    return run


def ours(q_QD: torch.Tensor, p_PD: Block, k: int, tiling: Tiling = CPU) -> Search:
    queries = q_QD.cpu().numpy()
    return lambda: top_k(queries, [(0, p_PD)], k, tiling)


def wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def fastest(work: dict[Key, Callable[[], Any]]) -> Key:
    """The one whose time is least."""
    names = {str(key): key for key in work}
    seconds = interleaved({str(key): do for key, do in work.items()}, rounds=1)
    return names[min(seconds, key=lambda name: min(seconds[name]))]


# --------------------------------------------------------------------------- in another process


@contextmanager
def elsewhere(
    serve: Callable[..., None], *given: Any, coretype: str | None = None
) -> Iterator[Callable[[], Any]]:
    """A process that answers: a function that asks it and waits. The environment is its own."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    before = os.environ.pop(CORETYPE, None)
    if coretype:
        os.environ[CORETYPE] = coretype
    process = context.Process(target=serve, args=(theirs, *given), daemon=True)
    process.start()
    os.environ.pop(CORETYPE, None)
    if before:
        os.environ[CORETYPE] = before
    theirs.close()  # So that the end of the process is the end of the pipe.
    mine.recv()  # It is ready.

    def ask(what: str = "search") -> Any:
        mine.send(what)
        return mine.recv()

    yield ask
    process.terminate()
    process.join()


def answer(pipe: Connection, search: Search) -> None:
    """Search when asked to; say what was found last, or the most memory ever held."""
    pipe.send("ready")
    rows: np.ndarray | None = None
    while True:
        what = pipe.recv()
        if what == "search":
            rows = search()[1]
            pipe.send("done")
        else:
            pipe.send(rows if what == "rows" else peak("cpu"))


def serve_faiss(pipe: Connection, told: argparse.Namespace) -> None:
    import faiss

    torch.set_num_threads(told.threads)
    faiss.omp_set_num_threads(told.threads)
    index = faiss.IndexFlatIP(told.size)
    index.add(vectors(told.passages, told.size, seed=1).numpy())
    q_QD = vectors(told.queries, told.size, seed=2).numpy()
    answer(pipe, lambda: index.search(q_QD, told.k))


def serve_ours(pipe: Connection, told: argparse.Namespace, file: Path, mapped: bool) -> None:
    set_threads(told.threads)
    passages = np.load(file, mmap_mode="r")
    if not mapped:
        passages = np.array(passages, np.float32)
    answer(pipe, ours(vectors(told.queries, told.size, seed=2), passages, told.k))


# ------------------------------------------------------------------------------------- the parts


def exact(told: argparse.Namespace) -> list[Result]:
    """In memory, on the CPU."""
    told = sized(told, 1024, 200_000)
    q_QD, p_PD = (vectors(n, told.size, s) for n, s in ((told.queries, 2), (told.passages, 1)))
    part_PD = p_PD[:65_536]  # Enough to choose by.
    tile, by = fastest(
        {(c, by): product(q_QD, part_PD, c, by) for c in CHUNKS for by in ("torch", "numpy")}
    )
    chunk = fastest({c: by_torch(q_QD, part_PD, told.k, c) for c in CHUNKS})
    work: dict[str, Callable[[], Any]] = {
        "ours": ours(q_QD, p_PD, told.k),
        "product": product(q_QD, p_PD, tile, by),
        "torch": by_torch(q_QD, p_PD, told.k, chunk),
    }
    has_avx512 = "avx512f" in Path("/proc/cpuinfo").read_text()
    with ExitStack() as stack:
        work["faiss as shipped"] = stack.enter_context(elsewhere(serve_faiss, told))
        if has_avx512:
            core = elsewhere(serve_faiss, told, coretype="SkylakeX")
            work["faiss with AVX-512"] = stack.enter_context(core)
        seconds = interleaved(work, told.rounds)
        theirs = {name: ask("rows") for name, ask in work.items() if name.startswith("faiss")}
    theirs["torch"] = work["torch"]()[1]
    mine = work["ours"]()[1]
    targets = {"product": 0.85, "torch": 1.15, "faiss with AVX-512": 1.0}
    targets["faiss as shipped"] = 3.0 if has_avx512 else 1.0  # Without, it is as fast as it gets.
    words = {"product": f"product alone by {by}, {tile[1]} passages", "torch": f"torch, {chunk}"}
    name = f"{told.queries:,} queries, {told.passages:,} passages"
    speed = 2e-9 * told.queries * told.passages * told.size / statistics.median(seconds["ours"])
    return [
        *(
            Result(name=name, value=speed, unit="GFLOP/s", peer=words.get(peer, peer),
                   target=targets[peer], **ratios(seconds[peer], seconds["ours"]))
            for peer in work if peer != "ours"
        ),
        *(
            Result(name=f"passages also found by {peer}", value=shared(mine, rows), unit="share",
                   target=0.9999)
            for peer, rows in theirs.items()
        ),
    ]  # fmt: skip


def shared(mine_Qk: np.ndarray, theirs_Qk: np.ndarray) -> float:
    """Share of our passages that they list, too. At a list's end float32 may take another."""
    pairs = zip(mine_Qk, theirs_Qk, strict=True)
    return statistics.mean(len({*a} & {*b}) / len(a) for a, b in pairs)


def stream(told: argparse.Namespace) -> list[Result]:
    """From a float16 file, against float32 in memory."""
    told = sized(told, 1024, 600_000)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder) / "embeddings.npy"
        np.save(file, vectors(told.passages, told.size, seed=1).half().numpy())
        asks = {
            name: stack.enter_context(elsewhere(serve_ours, told, file, name == "file"))
            for name in ("file", "memory")
        }
        seconds = interleaved(asks, told.rounds)
        same = np.array_equal(*(ask("rows") for ask in asks.values()))
        held = asks["file"]("peak")
    return [
        Result(name=f"{told.passages:,} passages from a file", unit="s", peer="in memory",
               value=statistics.median(seconds["file"]), target=0.85,
               **ratios(seconds["memory"], seconds["file"])),
        Result(name="peak memory, from a file", value=held / 2**30, unit="GiB", target=1.0,
               better="lower"),
        Result(name="same passages from a file", value=float(same), unit="yes is 1", target=1.0),
    ]  # fmt: skip


def device(told: argparse.Namespace) -> list[Result]:
    """On a GPU that holds the passages, in float16. With --device cpu: the same code, to try it."""
    told = sized(told, 100_000, 8_841_823)
    q_QD = vectors(told.queries, told.size, seed=2, device=told.device).float()
    p_PD = vectors(told.passages, told.size, seed=1, device=told.device).half()
    tiling = replace(GPU, device=told.device)
    tile = fastest({chunk: product(q_QD[:8192], p_PD, chunk) for chunk in DEVICE_CHUNKS})
    chunk = fastest({c: by_torch(q_QD[:8192], p_PD, told.k, c) for c in DEVICE_CHUNKS})
    work: dict[str, Callable[[], Any]] = {
        "ours": ours(q_QD, p_PD, told.k, tiling),
        "product": product(q_QD, p_PD, tile),
        "torch": by_torch(q_QD, p_PD, told.k, chunk),
    }
    seconds = interleaved(work, told.rounds)
    both = work["ours"]()[1], work["torch"]()[1]
    speed = 2e-12 * told.queries * told.passages * told.size / statistics.median(seconds["ours"])
    name = f"{told.queries:,} queries, {told.passages:,} passages"
    return [
        Result(name=name, value=speed, unit="TFLOP/s", peer=f"product alone, {tile}", target=0.55,
               **ratios(seconds["product"], seconds["ours"])),
        Result(name=name, value=speed, unit="TFLOP/s", peer=f"torch, {chunk}", target=1.5,
               **ratios(seconds["torch"], seconds["ours"])),
        Result(name="passages also found by torch", value=shared(*both), unit="share"),
    ]  # fmt: skip


def sized(told: argparse.Namespace, queries: int, passages: int) -> argparse.Namespace:
    """A part's own sizes where the command names none."""
    sizes = {"queries": told.queries or queries, "passages": told.passages or passages}
    return argparse.Namespace(**{**vars(told), **sizes})


PARTS = {"exact": exact, "stream": stream, "device": device}


if __name__ == "__main__":
    main()
