"""machine.py: choices follow from what was measured."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from rocketray.model import machine
from rocketray.model.machine import choose_precision, is_out_of_memory, matmul_flops, peak_memory

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
