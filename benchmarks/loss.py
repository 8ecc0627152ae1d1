"""The contrastive loss: chunked against dense in time, memory and digits; bytes on the wire.

    python benchmarks/loss.py [--json FILE]                    4,096 questions, 8,192 passages
    python benchmarks/loss.py --device cuda --queries 65536 --passages 65536 --no-dense

Needs no data and no Ray.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from measure import Result, in_two_processes, interleaved, peak, ratios, report

from rocketray.model.gather import gather
from rocketray.model.loss import contrastive_loss

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def main() -> None:
    told = arguments()
    torch.set_num_threads(told.threads)
    results = [] if told.no_dense else [time_ratio(told), digits(told)]
    results += memory(told)
    if told.device == "cpu":
        results.append(wire(told))
    facts = {"queries": told.queries, "passages": told.passages, "size": told.size,
             "chunk": told.chunk, "threads": told.threads, "torch": torch.__version__}  # fmt: skip
    report(results, told.json, facts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--passages", type=int, default=8192)
    parser.add_argument("--size", type=int, default=768, help="dimensions of an embedding")
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-dense", action="store_true", help="dense logits would not fit")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def inputs(told: argparse.Namespace, dtype: torch.dtype = torch.float32) -> Inputs:
    torch.manual_seed(0)
    make = {"dtype": dtype, "device": told.device}
    q_BD = F.normalize(torch.randn(told.queries, told.size, **make), dim=1).requires_grad_()
    p_GD = F.normalize(torch.randn(told.passages, told.size, **make), dim=1).requires_grad_()
    step = max(1, told.passages // told.queries)
    return q_BD, p_GD, torch.arange(told.queries, device=told.device) * step % told.passages


def dense(q_BD: torch.Tensor, p_GD: torch.Tensor, positives_B: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(q_BD @ p_GD.T / 0.05, positives_B, reduction="sum")


def chunked(
    q_BD: torch.Tensor, p_GD: torch.Tensor, positives_B: torch.Tensor, chunk: int
) -> torch.Tensor:
    return contrastive_loss(q_BD, p_GD, positives_B, temperature=0.05, chunk=chunk).loss


def both_ways(loss: Callable[..., torch.Tensor], given: Inputs, *more: Any) -> None:
    torch.autograd.grad(loss(*given, *more), given[:2])
    if given[0].is_cuda:
        torch.cuda.synchronize()


def time_ratio(told: argparse.Namespace) -> Result:
    given = inputs(told)
    seconds = interleaved(
        {
            "chunked": lambda: both_ways(chunked, given, told.chunk),
            "dense": lambda: both_ways(dense, given),
        },
        told.rounds,
    )
    return Result(
        name="loss, forward and backward", value=statistics.median(seconds["chunked"]), unit="s",
        peer="dense cross_entropy", target=1.10, better="lower",
        **ratios(seconds["chunked"], seconds["dense"]),
    )  # fmt: skip


def digits(told: argparse.Namespace) -> Result:
    """The largest difference of a gradient, float64."""
    given = inputs(told, torch.float64)
    fast = torch.autograd.grad(chunked(*given, told.chunk), given[:2])
    slow = torch.autograd.grad(dense(*given), given[:2])
    worst = max(float((a - b).abs().max()) for a, b in zip(fast, slow, strict=True))
    return Result(name="gradient difference, float64", value=worst, unit="", target=1e-12,
                  better="lower", peer="dense cross_entropy")  # fmt: skip


def memory(told: argparse.Namespace) -> list[Result]:
    """Bytes beyond the embeddings and their gradients; each variant in a process of its own, as a
    process's peak never falls."""
    names = ["chunked"] if told.no_dense else ["chunked", "dense"]
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        extra = {name: pool.apply(extra_bytes, (told, name)) for name in names}
    ratio = {}
    if "dense" in extra:
        share = extra["chunked"] / extra["dense"]
        ratio = {"ratio": share, "low": share, "high": share}
    return [
        Result(name="extra memory", value=extra["chunked"] / 2**20, unit="MiB",
               peer="dense cross_entropy" if ratio else "", better="lower",
               target=0.25 if ratio else 512, **ratio)
    ]  # fmt: skip


def extra_bytes(told: argparse.Namespace, name: str) -> int:
    torch.set_num_threads(told.threads)
    given = inputs(told)
    held = [torch.zeros_like(tensor) for tensor in given[:2]]  # The gradients that come out.
    small = argparse.Namespace(**vars(told) | {"queries": 8, "passages": 64})
    both_ways(chunked, inputs(small), 8)  # Libraries allocate on first use.
    peak(told.device)
    before = peak(told.device)  # Of nothing: what is held now.
    both_ways(*((chunked, given, told.chunk) if name == "chunked" else (dense, given)))
    return max(1, peak(told.device) - before - sum(t.nbytes for t in held))


def wire(told: argparse.Namespace) -> Result:
    """Bytes that one of two workers sends per step for the loss, over the formula's: an all-gather,
    (W - 1)/W P D 4, and a reduce-scatter, which is as much again, but twice that on gloo: it
    carries one out as an all-reduce."""
    sent = max(in_two_processes(gather_steps, told))
    formula = 3 * 0.5 * told.passages * told.size * 4
    share = sent / formula
    return Result(name="bytes a worker sends per step", value=sent / 2**20, unit="MiB",
                  peer="the formula", ratio=share, low=share, high=share, target=1.01,
                  better="lower")  # fmt: skip


def gather_steps(told: argparse.Namespace) -> float:
    rows, steps = told.passages // 2, 4
    dist.barrier()
    before = written()
    for _ in range(steps):
        p_BD = torch.ones(rows, told.size, requires_grad=True)
        gather(p_BD, [rows, rows]).sum().backward()
    return (written() - before) / steps


def written() -> int:
    """Bytes this process has handed to write calls, sockets included."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


if __name__ == "__main__":
    main()
