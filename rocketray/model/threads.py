"""How many threads this process's products take."""

from __future__ import annotations

import sys

from threadpoolctl import threadpool_limits


def set_threads(count: int) -> None:
    """Of torch's products and of numpy's, from here on. Who has not imported torch does not need it
    here either: stages without a model start quickly."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)
    threadpool_limits(count, user_api="blas")
