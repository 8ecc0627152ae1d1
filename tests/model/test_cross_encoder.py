"""A saved cross-encoder gives the same probabilities in sentence-transformers."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
import sentence_transformers
import torch
from transformers import AutoTokenizer

from rocketray.errors import UserError
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.weights import tiny

PAIRS = [
    ("how do i pad a tensor", "pad with zeros"),
    ("zeros", "the tensor a tensor " * 40),
    ("how " * 60, "pad " * 60),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    words = "how do i pad a tensor with zeros the"
    return tiny(folder, words.split())


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", False)
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.ERROR)


def batch_of(folder: Path, length: int) -> dict[str, torch.Tensor]:
    queries, passages = zip(*PAIRS, strict=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(
        list(queries),
        list(passages),
        truncation="longest_first",
        max_length=length,
        padding=True,
        return_tensors="pt",
    )
    return dict(batch)


@torch.no_grad()
def test_sentence_transformers_predicts_the_same_probabilities(weights, tmp_path):
    encoder = CrossEncoder.create(weights, length=48, seed=3)
    batch = batch_of(weights, 48)
    ce_B = encoder.ce_scores(batch)
    assert ce_B.shape == (3,)
    torch.testing.assert_close(ce_B, torch.sigmoid(encoder.logits(batch)))
    encoder.save(tmp_path)
    assert torch.equal(CrossEncoder.open(tmp_path).ce_scores(batch), ce_B)
    theirs = sentence_transformers.CrossEncoder(str(tmp_path), device="cpu")
    torch.testing.assert_close(torch.tensor(theirs.predict(PAIRS)), ce_B, atol=1e-6, rtol=1e-5)
    assert theirs.max_seq_length == 48


def test_the_head_comes_from_the_seed_alone(weights):
    def head(seed: int) -> torch.Tensor:
        return CrossEncoder.create(weights, seed=seed).model.classifier.weight

    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_dropout_and_length(weights):
    encoder = CrossEncoder.create(weights, layers=1, length=32, dropout=0.3)
    assert len(encoder.model.bert.encoder.layer) == 1
    assert {m.p for m in encoder.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}
    assert encoder.length == 32
    with pytest.raises(UserError, match="reads at most 512 tokens"):
        CrossEncoder.create(weights, length=513)


def test_saving_twice_gives_the_same_bytes(weights, tmp_path):
    CrossEncoder.create(weights).save(tmp_path / "a")
    CrossEncoder.open(tmp_path / "a").save(tmp_path / "b")
    a, b = (
        {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (tmp_path / name).iterdir()
        }
        for name in "ab"
    )
    assert a == b


def test_a_cross_encoder_can_start_the_next_one(weights, tmp_path):
    first = CrossEncoder.create(weights, seed=1)
    first.save(tmp_path)
    again = CrossEncoder.create(tmp_path, seed=2)
    assert torch.equal(again.model.classifier.weight, first.model.classifier.weight)


def test_a_dual_encoder_is_no_cross_encoder(weights, tmp_path):
    CrossEncoder.create(weights).save(tmp_path)
    (tmp_path / "rocketray.json").write_text('{"kind": "dual_encoder"}')
    with pytest.raises(UserError, match="this command needs 'cross_encoder'"):
        CrossEncoder.open(tmp_path)
