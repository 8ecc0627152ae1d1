"""A small data set, models of three kinds, and a folder in which verbs have worked."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rocketray.formats.generated import words, write_generated
from rocketray.model import weights
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.weights import write_json
from rocketray.progress import Display
from rocketray.verbs import work
from tests.runs import ALONE

SMALL = [*ALONE, "blocks.passages=16", "blocks.queries=8"]


class Place:
    """Where verbs work: data, models, and a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.bare = folder / "models" / "Bare.Model-v1"
        """A Hugging Face folder that says nothing about itself."""
        self.told = folder / "models" / "told"
        """The same weights as a sentence-transformers folder: mean, cosine, prompts."""
        self.cross = folder / "models" / "reranker"
        """A cross-encoder as rocketray saves it."""
        self.out = folder / "out"

    def do(self, verb: Callable[..., Any], *overrides: str, **options: Any) -> tuple[Any, str]:
        """Call a verb in the folder; what it returns, and what it prints."""
        screen = io.StringIO()
        display = Display(Console(file=screen, width=200))
        out = options.pop("out", self.out)
        made = verb(out, overrides=[*SMALL, *overrides], display=display, **options)
        return made, screen.getvalue()

    def copied(self, folder: Path) -> Place:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Place(folder)


def publish(folder: Path, weights_folder: Path) -> None:
    """Files with which sentence-transformers says how a model makes its vectors."""
    shutil.copytree(weights_folder, folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    kinds = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", kinds)
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False}
    pooling |= {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 24})
    prompts = {"query": "query: ", "document": "passage: "}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts})


@pytest.fixture(scope="session")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Encoded and retrieved by the published model. Read only: whoever writes copies it."""
    place = Place(tmp_path_factory.mktemp("verbs"))
    write_generated(place.data, passages=40, queries=16, unlabelled=9, seed=1)
    weights.tiny(place.bare, words(), seed=1)
    publish(place.told, place.bare)
    CrossEncoder.create(place.bare, length=48, seed=2).save(place.cross)
    place.do(work.retrieve, data=place.data, model=str(place.told), k=10)
    return place


@pytest.fixture
def place(worked: Place, tmp_path: Path) -> Place:
    return worked.copied(tmp_path)
