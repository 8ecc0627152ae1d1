"""Machines that `rocketray plan` knows: what they have, what they cost, how fast they may be.

Peaks and sizes are the makers'; prices are Amazon's list prices, us-east-1, 2025, and change: give
your own as NAME:COUNT@DOLLARS. Shares of the peak are assumptions on the careful side (a measured
matrix product of an encoder's shapes reaches 0.6 to 0.75 of a GPU's peak); a plan that names no
machine measures this one instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rocketray.errors import UserError
from rocketray.plan import Effort

GBIT = 1e9 / 8
TERA = 1e12
SHARES: dict[Effort, float] = {
    "encode": 0.35, "score": 0.35, "search": 0.3, "train_dual": 0.25, "train_cross": 0.25,
}  # fmt: skip
"""Of a GPU's peak in bfloat16, that real tokens reach."""
TRAINING: tuple[Effort, ...] = ("train_dual", "train_cross")
PER_CPU: dict[Effort, float] = {"ingest": 20_000, "tokenise": 300_000, "lexical": 50e6}
"""Rows, tokens, questions times passages a second of one CPU (`benchmarks/scale.py`)."""
CPU_FLOPS = 60e9
"""Of one CPU in float32, where nothing was measured: AVX2 at 3 GHz reaches it."""
POOL_SECONDS = 5.0
"""Until a pool of workers begins its first block: two cores that import torch took as long."""
GROUP_SECONDS = 10.0
"""Until a group of training workers begins its first step, where nothing was measured."""
NVLINK = 200e9
"""Bytes a second between GPUs of one machine."""
SPOT = 0.4
"""Of the list price, that spot machines are taken to cost."""


@dataclass(frozen=True)
class Machine:
    """One kind of machine."""

    name: str
    cpus: int
    rates: Mapping[Effort, float]
    """A second and a worker: a GPU, or a CPU."""
    network: float
    """Bytes a second."""
    price: float = 0.0
    """Dollars an hour."""
    pool_seconds: float = POOL_SECONDS
    """Until a pool's first block begins."""
    kept_seconds: float = POOL_SECONDS
    """The same, right after another pool, whose processes may live on."""
    group_seconds: float = GROUP_SECONDS
    """Until a training group's first step begins."""
    link: float = NVLINK
    """Bytes a second between training workers of this machine."""
    gpus: int = 0
    gpu: str = ""
    memory: float = 0.0
    """Bytes of a GPU; 0: of no GPU."""

    @property
    def devices(self) -> int:
        """Workers that it holds at once."""
        return self.gpus or self.cpus


def _gpus(
    name: str, gpus: int, gpu: str, peak: float, memory: float, cpus: int, network: float,
    price: float, float32: float | None = None,
) -> Machine:  # fmt: skip
    """`peak` in TFLOP/s; `float32` of a GPU that trains in it, having neither bfloat16 nor TF32."""
    rates = {effort: share * peak * TERA for effort, share in SHARES.items()}
    if float32 is not None:
        rates |= dict.fromkeys(TRAINING, 0.6 * float32 * TERA)
    return Machine(
        name, cpus, rates | PER_CPU, network * GBIT, price,
        gpus=gpus, gpu=gpu, memory=memory * 1e9,
    )  # fmt: skip


def _cpus(name: str, cpus: int, network: float, price: float) -> Machine:
    rates = {effort: CPU_FLOPS * (0.8 if effort != "train_dual" else 0.6) for effort in SHARES}
    return Machine(name, cpus, rates | PER_CPU, network * GBIT, price)


MACHINES = {
    machine.name: machine
    for machine in (
        _gpus("p5.48xlarge", 8, "H100", 989, 80, 192, 3200, 55.04),
        _gpus("p4d.24xlarge", 8, "A100", 312, 40, 96, 400, 21.96),
        _gpus("g6.xlarge", 1, "L4", 121, 24, 4, 10, 0.8048),
        _gpus("g6.12xlarge", 4, "L4", 121, 24, 48, 40, 4.6016),
        _gpus("g5.xlarge", 1, "A10G", 70, 24, 4, 10, 1.006),
        _gpus("g4dn.xlarge", 1, "T4", 65, 16, 4, 25, 0.526, float32=8.1),
        _cpus("c7i.4xlarge", 16, 12.5, 0.714),
        _cpus("m7i.4xlarge", 16, 12.5, 0.8064),
    )
}


@dataclass(frozen=True)
class Fleet:
    """So many machines of one kind, all of them at work."""

    machine: Machine
    count: int = 1
    train_workers: int | None = None
    """None: as many as there are devices."""
    bulk_workers: int | None = None

    @property
    def devices(self) -> int:
        return self.count * self.machine.devices

    @property
    def price(self) -> float:
        """Dollars an hour."""
        return self.count * self.machine.price

    def __str__(self) -> str:
        gpus = f" ({self.devices} {self.machine.gpu})" if self.machine.gpus else ""
        return f"{self.count} x {self.machine.name}{gpus}"


def fleet(told: str) -> Fleet:
    """`NAME`, `NAME:COUNT`, `NAME:COUNT@DOLLARS` (an hour, of one machine).

    Raises:
        UserError: another form, or a machine that is not known.
    """
    found = re.fullmatch(r"([\w.-]+)(?::(\d+))?(?:@(\d+(?:\.\d+)?))?", told)
    if not found or int(found[2] or 1) < 1:
        raise UserError(f"--machine {told!r}: say NAME, NAME:COUNT or NAME:COUNT@DOLLARS_AN_HOUR.")
    if found[1] not in MACHINES:
        raise UserError(f"--machine {found[1]!r}: known are {', '.join(MACHINES)}.")
    machine = MACHINES[found[1]]
    if found[3]:
        machine = replace(machine, price=float(found[3]))
    return Fleet(machine, int(found[2] or 1))
