"""Machines that `rocketray plan` knows: what they have, what they cost, how fast they may be.

Peaks and sizes are the makers'; prices are list prices of 2025 (Amazon us-east-1, Google
us-central1) and change: give your own as NAME:COUNT@DOLLARS. Bandwidth to others is what holds for
hours: Amazon's baseline, for "up to 10 Gigabit" is a burst of minutes, and Google's limit of what
leaves a machine. Shares of the peak are assumptions on the careful side (a measured matrix
product of an encoder's shapes reaches 0.6 to 0.75 of a GPU's peak); a plan that names no machine
measures this one instead.
"""

from __future__ import annotations

import math
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
"""Bytes a second that each GPU sends on around a ring, joined by NVLink: 8 A100 reach about as much
(NVIDIA/nccl-tests issue 149), H100 more."""
PCIE = 10e9
"""The same through PCIe 4.0, by way of the host's memory: a third of a slot's 32 GB/s, assumed."""
LOOPBACK = 0.6e9
"""The same between processes on CPUs, by gloo: two of them reached it (docs/lab-notes.md)."""
NVLINKED = ("SXM", "HBM3", "H200", "B200")
"""In the names of GPUs that come on boards with NVLink."""
NETWORK = 10 * GBIT
"""Bytes a second of a machine to others, where nobody said it."""
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
    """Bytes a second to other machines and to storage, for hours."""
    link: float
    """Bytes a second that each training worker sends on to the next one of this machine."""
    price: float = 0.0
    """Dollars an hour."""
    pool_seconds: float = POOL_SECONDS
    """Until a pool's first block begins."""
    kept_seconds: float = POOL_SECONDS
    """The same, right after another pool, whose processes may live on."""
    group_seconds: float = GROUP_SECONDS
    """Until a training group's first step begins."""
    gpus: int = 0
    gpu: str = ""
    memory: float = 0.0
    """Bytes of a GPU; 0: of no GPU, or unknown."""
    own_disk: bool = False
    """As long as it is by itself its files lie on its own disk, and nothing uses the network."""

    @property
    def devices(self) -> int:
        """Workers that it holds at once."""
        return self.gpus or self.cpus

    @property
    def device(self) -> str:
        """What a worker is: a kind of GPU, or a CPU."""
        return self.gpu or "CPU"


def _gpus(
    name: str, gpus: int, gpu: str, peak: float, memory: float, cpus: int, network: float,
    price: float, *, link: float = PCIE, float32: float | None = None,
) -> Machine:  # fmt: skip
    """`peak` in TFLOP/s; `float32` of a GPU that trains in it, having neither bfloat16 nor TF32."""
    rates = {effort: share * peak * TERA for effort, share in SHARES.items()}
    if float32 is not None:
        rates |= dict.fromkeys(TRAINING, 0.6 * float32 * TERA)
    return Machine(
        name, cpus, rates | PER_CPU, network * GBIT, link, price,
        gpus=gpus, gpu=gpu, memory=memory * 1e9,
    )  # fmt: skip


def _cpus(name: str, cpus: int, network: float, price: float, *, link: float = LOOPBACK) -> Machine:
    rates = {effort: CPU_FLOPS * (0.8 if effort != "train_dual" else 0.6) for effort in SHARES}
    return Machine(name, cpus, rates | PER_CPU, network * GBIT, link, price)


MACHINES = {
    machine.name: machine
    for machine in (
        _gpus("p5.48xlarge", 8, "H100", 989, 80, 192, 3200, 55.04, link=NVLINK),
        _gpus("p4d.24xlarge", 8, "A100", 312, 40, 96, 400, 21.96, link=NVLINK),
        _gpus("g6.xlarge", 1, "L4", 121, 24, 4, 2.5, 0.8048),
        _gpus("g6.2xlarge", 1, "L4", 121, 24, 8, 5, 0.9776),
        _gpus("g6.12xlarge", 4, "L4", 121, 24, 48, 40, 4.6016),
        _gpus("g5.xlarge", 1, "A10G", 70, 24, 4, 2.5, 1.006),
        _gpus("g4dn.xlarge", 1, "T4", 65, 16, 4, 5, 0.526, float32=8.1),
        _gpus("g2-standard-8", 1, "L4", 121, 24, 8, 16, 0.8536),
        _cpus("c7i.4xlarge", 16, 6.25, 0.714),
        _cpus("m7i.4xlarge", 16, 6.25, 0.8064),
        _cpus("m7i.xlarge", 4, 1.562, 0.2016),
        _cpus("n2-standard-4", 4, 10, 0.1942),
        _cpus("n2-standard-16", 16, 32, 0.7769),
    )
}
HEAD = MACHINES["m7i.xlarge"]
"""That every cluster of more than one paid machine has beside it, as cluster.yaml's."""


def gpu_link(name: str) -> float:
    """Bytes a second from GPU to GPU, by the name that its driver gives it."""
    # "NVL" is a card for a PCIe slot, with a bridge to one or three others at most.
    return NVLINK if any(word in name for word in NVLINKED) and "NVL" not in name else PCIE


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
    def network(self) -> float:
        """Bytes a second of each machine; infinite where none are sent."""
        alone = self.count == 1 and self.machine.own_disk
        return math.inf if alone else self.machine.network

    @property
    def head(self) -> float:
        """Dollars an hour of the cluster's head."""
        return HEAD.price if self.count > 1 and self.machine.price else 0.0

    @property
    def price(self) -> float:
        """Dollars an hour, the head's among them."""
        return self.count * self.machine.price + self.head

    @property
    def listed(self) -> bool:
        """Whether the machine is at its list price."""
        known = MACHINES.get(self.machine.name)
        return known is not None and known.price == self.machine.price

    def __str__(self) -> str:
        gpus = f" ({self.devices} {self.machine.gpu})" if self.machine.gpus else ""
        return f"{self.count} x {self.machine.name}{gpus}"


# ------------------------------------------------------------------------------- as people say it

FORM = (
    "say NAME, NAME:COUNT or NAME:COUNT@DOLLARS_AN_HOUR; one of your own is"
    " NAME=cpus:16,gpus:1,tflops:120 in place of NAME"
)
_FIELD = r"[^:,@]+(?::[^:,@]+)?"
_TOLD = re.compile(rf"([\w.-]+)(?:=({_FIELD}(?:,{_FIELD})*))?(?::(\d+))?(?:@(\d+(?:\.\d+)?))?")
FIELDS = {
    "cpus": "how many it has",
    "gpus": "how many it has",
    "tflops": "peak of a GPU in bfloat16, TFLOP/s",
    "memory": "of a GPU, GB",
    "link": "from one training worker to the next within it, GB/s",
    "gbit": "to other machines, for hours, Gbit/s",
    "dollars": "an hour",
}
"""Of a machine of one's own, with what a number means."""
_WHOLE, _OF_GPUS, _MAY_BE_ZERO = {"cpus", "gpus"}, {"tflops", "memory"}, {"gpus", "dollars"}


def fleet(told: str) -> Fleet:
    """`NAME`, `NAME:COUNT`, `NAME:COUNT@DOLLARS` (an hour, of one machine), where NAME is known or
    followed by what it has: `mine=cpus:16,gpus:1,tflops:120,gbit:10,dollars:0.8`, see `FIELDS`.

    Raises:
        UserError: another form, a machine that is not known, a field that cannot be.
    """
    found = _TOLD.fullmatch(told)
    if not found or int(found[3] or 1) < 1:
        raise UserError(f"--machine {told!r}: {FORM}.")
    name, own, count, price = found.groups()
    if own is None and name not in MACHINES:
        raise UserError(
            f"--machine {name!r}: known are {', '.join(MACHINES)}. Say what another one has:"
            f" {name}=cpus:16,gpus:1,tflops:120,gbit:10,dollars:0.8"
        )
    machine = MACHINES[name] if own is None else _own(name, own)
    if price:
        machine = replace(machine, price=float(price))
    return Fleet(machine, int(count or 1))


def _own(name: str, told: str) -> Machine:
    """A machine by its fields."""
    given: dict[str, float] = {}
    for one in told.split(","):
        field, _, number = one.partition(":")
        if field in given:
            raise UserError(f"--machine {name}: {field} is said twice. Leave one out.")
        given[field] = _number(name, field, number)
    gpus = int(given.get("gpus", 0))
    if "cpus" not in given:
        raise UserError(f"--machine {name}: cpus is missing. Add cpus:N, {FIELDS['cpus']}.")
    if gpus and "tflops" not in given:
        raise UserError(f"--machine {name}: tflops is missing. Add tflops:N, {FIELDS['tflops']}.")
    for field in sorted(_OF_GPUS & given.keys()):
        if not gpus:
            raise UserError(f"--machine {name}: {field} is a GPU's. Add gpus:N, or leave it out.")
    cpus, network = int(given["cpus"]), given.get("gbit", NETWORK / GBIT)
    link = given.get("link", (PCIE if gpus else LOOPBACK) / 1e9) * 1e9
    price = given.get("dollars", 0.0)
    if not gpus:
        return _cpus(name, cpus, network, price, link=link)
    memory = given.get("memory", 0.0)
    return _gpus(name, gpus, "GPU", given["tflops"], memory, cpus, network, price, link=link)


def _number(name: str, field: str, told: str) -> float:
    """What a field says."""
    if field not in FIELDS:
        raise UserError(f"--machine {name}: no field is called {field!r}. Say {', '.join(FIELDS)}.")
    try:
        number = float(told)
    except ValueError:
        number = math.nan
    least = "0 or more" if field in _MAY_BE_ZERO else "above 0"
    kind = "a whole number" if field in _WHOLE else "a number"
    fits = math.isfinite(number) and (number > 0 or (number == 0 and field in _MAY_BE_ZERO))
    if not fits or (field in _WHOLE and not number.is_integer()):
        what = FIELDS[field]
        raise UserError(f"--machine {name}: {field}:{told} is not {kind}, {least} ({what}).")
    return number
