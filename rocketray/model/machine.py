"""What this machine is good at: measured, for choices that a run makes once and writes down."""

# Shapes: R rows, D width, I inner width of a linear layer.

from __future__ import annotations

import ctypes
import resource
import sys
import time
from typing import Literal

import torch

Precision = Literal["auto", "float32", "tf32", "bfloat16", "float64"]

CLEARLY = 1.3
"""bfloat16 must be this much faster than float32 to be chosen on a CPU."""


def choose_precision(device: torch.device) -> Precision:
    """What `auto` becomes: bfloat16 on a GPU that has it; on a CPU only where it is clearly faster.

    Most CPUs convert bfloat16 back and forth and lose time; those with matrix units gain.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "tf32"
    faster = matmul_flops(device, torch.bfloat16) / matmul_flops(device, torch.float32)
    return "bfloat16" if faster >= CLEARLY else "float32"


def keep_freed_memory() -> None:
    """Have this process keep the memory it frees, for what it allocates next; for good.

    A training step frees and allocates the same hundreds of MiB, which glibc gives back to the
    kernel and asks for again, page by page: 25,000 faults a step of 8 pairs. Where several
    processes of a machine do so, steps take a seventh longer (docs/lab-notes.md). Not for processes
    that go on to other work. Preloading another allocator would ask as much of every user.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # Another C library, which has its own ways.
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Of malloc.h."""


def matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.15) -> float:
    """Floating-point operations per second of a linear layer of BERT-base's shape: the limit
    that utilisation is measured against. Times the best of several, to shut out other work."""
    rows, width, inner = (16_384 if device.type == "cuda" else 1024), 768, 3072
    # Of its own generator, so that nobody's random numbers move. Ones would multiply too easily.
    generator = torch.Generator(device).manual_seed(0)
    x_RD, w_ID = (
        torch.randn(shape, generator=generator, device=device).to(dtype)
        for shape in ((rows, width), (inner, width))
    )
    with torch.no_grad():
        _timed_linear(x_RD, w_ID)  # The first call chooses kernels.
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            best = min(best, _timed_linear(x_RD, w_ID))
    return 2.0 * rows * width * inner / best


def _timed_linear(x_RD: torch.Tensor, w_ID: torch.Tensor) -> float:
    """Seconds of one product; on a GPU the mean of many, as a launch takes as long as one."""
    times = 20 if x_RD.is_cuda else 1
    if x_RD.is_cuda:
        torch.cuda.synchronize(x_RD.device)
    start = time.perf_counter()
    for _ in range(times):
        torch.nn.functional.linear(x_RD, w_ID)
    if x_RD.is_cuda:
        torch.cuda.synchronize(x_RD.device)
    return (time.perf_counter() - start) / times


def peak_memory(device: torch.device) -> int:
    """Bytes: the most this process has held, of the GPU's memory or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def is_out_of_memory(error: RuntimeError) -> bool:
    words = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
