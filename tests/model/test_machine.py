"""machine.py: choices follow from what was measured."""

from __future__ import annotations

import multiprocessing
import platform
import resource
from unittest import mock

import pytest
import torch

from rocketray.model import machine
from rocketray.model.machine import (
    choose_precision,
    is_out_of_memory,
    keep_freed_memory,
    matmul_flops,
    peak_memory,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(("gain", "choice"), [(0.5, "float32"), (1.2, "float32"), (2, "bfloat16")])
def test_a_cpu_takes_bfloat16_only_where_it_is_clearly_faster(gain: float, choice: str) -> None:
    def measured(_: torch.device, dtype: torch.dtype) -> float:
        return gain if dtype == torch.bfloat16 else 1.0

    with mock.patch.object(machine, "matmul_flops", measured):
        assert choose_precision(CPU) == choice


def test_measuring_gives_a_plausible_number() -> None:
    assert 1e8 < matmul_flops(CPU, torch.float32, seconds=0.01) < 1e14


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory(CPU)
    held = torch.ones(64, 2**20)  # 256 MiB
    assert peak_memory(CPU) >= max(before, held.nbytes)


def test_only_lack_of_memory_counts_as_that() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: 4 bytes"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def faults(keeping: bool) -> int:
    """Pages asked of the kernel while 64 MiB, 16,384 pages, are taken and freed fifty times."""
    if keeping:
        keep_freed_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_that_is_kept_is_seldom_asked_for_again() -> None:
    """Seldom: a small thing may come to lie where the last 64 MiB were."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        before, after = pool.apply(faults, (False,)), pool.apply(faults, (True,))
    assert after < before / 2
