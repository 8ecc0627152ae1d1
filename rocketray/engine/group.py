"""Ray Train's process group, for nodes whose name does not lead to their address, and for GPUs
that torch cannot use.

Where nobody says otherwise, gloo listens at the address that its own host's name leads to. On
Debian, and wherever the name leads nowhere, that is loopback: right on one machine, deaf to others.
Ray has an address by which nodes do reach each other, so its interface is said. NCCL takes none
that is loopback by itself.
"""

from __future__ import annotations

import os
from typing import Any

import psutil  # Ray brings it.
import ray
from ray.train.torch import TorchConfig

from rocketray.errors import UserError


class GroupConfig(TorchConfig):
    """What `TorchTrainer` takes as `torch_config`."""

    @property
    def backend_cls(self) -> type:
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        if worker_group.get_resources_per_worker().get("GPU"):
            # Before NCCL's own complaint, which would look like a bug.
            for refusal in filter(None, worker_group.execute(_refusal)):
                raise UserError(refusal)
        worker_group.execute(_say_interface)
        super().on_start(worker_group, backend_config)


def _refusal() -> str:
    """Why this worker cannot compute on the GPU that it was given."""
    from rocketray.model.inference import device  # Ray's controller can do without models.

    try:
        device(gpu=True)
    except UserError as error:
        return str(error)
    return ""


def _say_interface() -> None:
    if name := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The network interface that has an address; None where it is another machine's, as behind a
    translation of addresses."""
    for name, has in psutil.net_if_addrs().items():
        if address in (one.address for one in has):
            return str(name)
    return None
