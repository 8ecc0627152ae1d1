from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from threadpoolctl import threadpool_info

from rocketray.model.threads import set_threads


@pytest.fixture
def own_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    set_threads(before)


def test_threads_are_those_of_both(own_threads: None) -> None:
    set_threads(1)
    numpys = [x["num_threads"] for x in threadpool_info() if x["internal_api"] == "openblas"]
    assert torch.get_num_threads() == 1
    assert set(numpys) == {1}


def test_torch_is_not_imported_for_it() -> None:
    code = "import sys; from rocketray.model.threads import set_threads; set_threads(1);"
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
