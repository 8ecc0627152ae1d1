"""AdamW over one flat gradient, the learning rate, and both models' tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from rocketray.model.gather import sum_over_workers


def learning_rate(
    step: int, steps: int, *, peak: float, warmup: float, schedule: Literal["linear", "constant"]
) -> float:
    """The learning rate of a step (from 0): up over the warm-up, then down to zero, or flat.

    The first step already moves, and so does the last: (step + 1) / warm-up steps, then
    (steps - step) / (steps - warm-up steps).
    """
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    if schedule == "constant":
        return peak
    return peak * (steps - step) / (steps - rising)


PART = 1 << 22
"""Values of the gradient whose norm is taken at once."""


class Gradient:
    """All gradients as views into one buffer, so that a step has one all-reduce and no copy.

    What else adds up over workers travels at its end: the loss, tokens, similarities.
    """

    EXTRA = 8

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        sizes = [parameter.numel() for parameter in parameters]
        self.buffer = parameters[0].new_zeros(sum(sizes) + self.EXTRA).detach()
        self.values = self.buffer[: -self.EXTRA]
        for parameter, view in zip(parameters, torch.split(self.values, sizes), strict=True):
            parameter.grad = view.view_as(parameter)  # Autograd adds into it in place.

    def reduce(self, sums: Mapping[str, torch.Tensor | float]) -> dict[str, float]:
        """Sum gradients and `sums` over workers; returns the sums and the gradient's norm."""
        tail = self.buffer[len(self.values) :]
        for place, value in enumerate(sums.values()):
            tail[place] = value
        sum_over_workers(self.buffer)
        # In float64: a float32 sum over a hundred million squares is off by percents. In parts: of
        # the whole, torch makes a float64 copy first, twice the size of all gradients.
        norms = [
            torch.linalg.vector_norm(part, dtype=torch.float64) for part in self.values.split(PART)
        ]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        totals = torch.cat([norm[None], tail[: len(sums)].double()]).tolist()
        return dict(zip(("gradient_norm", *sums), totals, strict=True))


def adamw(parameters: list[torch.nn.Parameter], decay: float) -> torch.optim.AdamW:
    """AdamW; biases and norms, the vectors among the parameters, do not decay."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, fused=True)


def model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by name, each once: a shared tower is one object under two names."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@torch.no_grad()
def load_model(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    own = model_tensors(model)
    if own.keys() != tensors.keys():
        raise ValueError(f"other parameters than the model's: {sorted(own.keys() ^ tensors)}.")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """`exp_avg/NAME` and so on; nothing before the first update."""
    return {
        f"{key}/{name}": tensor
        for name, parameter in model.named_parameters()
        for key, tensor in optimizer.state[parameter].items()
    }


def load_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    for key_name, tensor in tensors.items():
        key, _, name = key_name.partition("/")
        optimizer.state[parameters[name]][key] = tensor.to(parameters[name].device)
