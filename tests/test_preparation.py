"""Initial models and their tokens, from weights as others publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from transformers import RobertaConfig, RobertaModel

from rocketray import loop, preparation
from rocketray.artifacts import RunFolder
from rocketray.formats.generated import words
from rocketray.model.weights import tiny
from rocketray.progress import Display
from rocketray.recipe import load
from rocketray.workflow import Workflow
from tests.conftest import SMALLER
from tests.model import families


def bert(folder: Path) -> Path:
    """With `vocab.txt`, as ERNIE 2.0 and BERT were first published."""
    tiny(folder, words())
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    lines = sorted(vocabulary, key=vocabulary.__getitem__)
    (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return folder


def roberta(folder: Path) -> Path:
    """With `vocab.json` and `merges.txt`, as RoBERTa was."""
    families.roberta(folder)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.model.save(str(folder))
    (folder / "tokenizer_config.json").unlink()  # It names a class that reads no other file.
    config = RobertaConfig(
        vocab_size=backend.get_vocab_size(), hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=64,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(folder)
    return folder


def tokens(run: Path, weights: Path, towers: str) -> dict[str, Any]:
    """The sha256 of all tokens' blocks, by stage; made by both models of the same weights."""
    models = [f"model.{kind}.weights={weights}" for kind in ("dual", "cross")]
    settings = (*SMALLER, *models, f"model.dual.towers={towers}")
    loop.run("tiny", run, overrides=settings, until="passage_tokens", display=Display(quiet=True))
    folder = RunFolder.open(run)
    stages = [name for name in folder.current() if name.endswith("_tokens")]
    return {name: folder.version(name).manifest["sha256"] for name in stages}


@pytest.mark.parametrize(("make", "towers"), [(bert, "one"), (bert, "two"), (roberta, "one")])
def test_a_vocabulary_in_the_old_form_gives_the_same_tokens(
    tmp_path: Path, make: Any, towers: str
) -> None:
    weights = make(tmp_path / "weights")
    new = tokens(tmp_path / "new", weights, towers)
    assert "passage_tokens" in new
    (weights / "tokenizer.json").unlink()
    assert tokens(tmp_path / "old", weights, towers) == new


def test_another_vocabulary_makes_another_model(tmp_path: Path) -> None:
    """SentencePiece's too; a folder that has none keeps its identity."""
    flow = Workflow(load("tiny"), RunFolder(tmp_path / "run"), Display(quiet=True))
    weights = tiny(tmp_path / "weights", ["pad"])
    seen = [preparation.from_weights(flow, str(weights), {})]
    for content in (b"one", b"two"):
        (weights / "spiece.model").write_bytes(content)
        seen.append(preparation.from_weights(flow, str(weights), {}))
    assert len({identity["inputs"]["weights"] for identity in seen}) == 3
