"""What the tests of training share: worker processes and one small training set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed import Workers
from tests.model.training_data import TrainingData


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    pool = Workers(3, tmp_path_factory.mktemp("rendezvous"))
    yield pool
    pool.stop()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return TrainingData(tmp_path_factory.mktemp("training_data"))
