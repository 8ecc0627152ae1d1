"""Other libraries open the saved folders and find the same numbers."""

from __future__ import annotations

import hashlib
import itertools
import logging
import shutil
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from rocketray.errors import UserError
from rocketray.model.dual_encoder import DualEncoder, pool
from rocketray.model.tokens import Assembler, Tokenizer, unmasked
from rocketray.model.weights import tiny

QUERIES = ["how do i pad a tensor", "zeros", "tensor of zeros and a long tail " * 9]
PASSAGES = [("", "pad with zeros"), ("pad", "a tensor " * 40), ("the tensor", "")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    return tiny(
        folder,
        ["how", "do", "i", "pad", "a", "tensor", "with", "zeros", "the", "of", "long", "tail"],
    )


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    # Other libraries report on a pooler that no dual encoder has, and draw progress bars.
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", False)
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.ERROR)


def differing(encoder: DualEncoder) -> DualEncoder:
    """As training would leave it: the towers apart from the start, and from each other."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return encoder


@torch.no_grad()
def embed(encoder: DualEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    """q_BD from the assembler; p_BD from the tokenizer on the raw pairs, one by one."""
    assembler = Assembler(Tokenizer(encoder.tokenizer_folder))
    queries = assembler.texts(QUERIES, encoder.query_length, encoder.query_prompt)
    tokenizer = AutoTokenizer.from_pretrained(encoder.tokenizer_folder)
    passages = [
        tokenizer(
            [encoder.passage_prompt + (title or text)],
            [text] if title else None,
            truncation="longest_first",
            max_length=encoder.passage_length,
            return_tensors="pt",
        )
        for title, text in PASSAGES
    ]
    return encoder.embed_queries(queries), torch.cat([encoder.embed_passages(p) for p in passages])


def encode_passages(model: SentenceTransformer) -> torch.Tensor:
    # One call each: sentence-transformers takes pairs or single texts, never both at once.
    inputs = [[(title, text) if title else text] for title, text in PASSAGES]
    return torch.cat([model.encode_document(i, convert_to_tensor=True) for i in inputs])


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    theirs = theirs.cpu()
    assert torch.nn.functional.cosine_similarity(ours, theirs).min() >= 1 - 1e-6
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("towers", "pooling", "similarity"),
    list(itertools.product(["one", "two"], ["cls", "mean", "last"], ["dot", "cosine"])),
)
def test_sentence_transformers_finds_the_same_numbers(
    weights, tmp_path, towers, pooling, similarity
):
    encoder = differing(
        DualEncoder.create(
            weights,
            towers=towers,
            pooling=pooling,
            similarity=similarity,
            query_length=24,
            passage_length=24 if towers == "one" else 40,
            query_prompt="query: ",
            passage_prompt="the ",
            dropout=0.1,
        )
    )
    encoder.eval()
    q_BD, p_BD = embed(encoder)
    encoder.save(tmp_path)

    model = SentenceTransformer(str(tmp_path), device="cpu")
    assert_same(q_BD, model.encode_query(QUERIES, convert_to_tensor=True))
    assert_same(p_BD, encode_passages(model))
    assert model.similarity_fn_name == similarity
    opened = DualEncoder.open(tmp_path)
    assert all(map(torch.equal, embed(opened), (q_BD, p_BD)))
    assert opened.towers == towers
    assert opened._settings == encoder._settings


def test_each_tower_opens_alone(weights, tmp_path):
    encoder = differing(DualEncoder.create(weights, query_prompt="query: ", passage_length=40))
    q_BD, p_BD = embed(encoder)
    encoder.save(tmp_path)
    query = SentenceTransformer(str(tmp_path / "query"), device="cpu")
    passage = SentenceTransformer(str(tmp_path / "passage"), device="cpu")
    assert_same(q_BD, query.encode(QUERIES, convert_to_tensor=True))
    assert_same(p_BD, encode_passages(passage))
    assert (query.max_seq_length, passage.max_seq_length) == (32, 40)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "query")
    batch = tokenizer(["query: " + QUERIES[2]], truncation=True, return_tensors="pt")
    model = AutoModel.from_pretrained(tmp_path / "query")
    with torch.no_grad():
        assert_same(q_BD[2:], model(**batch).last_hidden_state[:, 0])


def test_a_tower_can_start_the_next_training(weights, tmp_path):
    encoder = differing(DualEncoder.create(weights, towers="two"))
    encoder.save(tmp_path)
    again = DualEncoder.create(tmp_path / "query", towers="one")
    for name, tensor in encoder.query.state_dict().items():
        assert torch.equal(again.query.state_dict()[name], tensor)


def test_towers_start_equal_and_are_shared_only_on_request(weights):
    one, two = (DualEncoder.create(weights, towers=towers) for towers in ("one", "two"))
    assert one.query is one.passage
    assert two.query is not two.passage
    assert len(list(two.parameters())) == 2 * len(list(one.parameters()))
    old, new = two.query.state_dict(), two.passage.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert one.size == 32


def test_saving_twice_gives_the_same_bytes(weights, tmp_path):
    encoder = differing(DualEncoder.create(weights))
    encoder.save(tmp_path / "a")
    DualEncoder.open(tmp_path / "a").save(tmp_path / "b")
    a, b = (
        {
            path.relative_to(tmp_path / name): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in "ab"
    )
    assert a == b
    assert {path.suffix for path in a} == {".json", ".safetensors"}
    mentioned = "".join(path.read_text() for path in (tmp_path / "a").rglob("*.json"))
    assert str(weights) not in mentioned


def test_pooling_by_hand():
    hidden_BTD = torch.tensor([[[1.0], [3.0], [8.0]], [[5.0], [7.0], [9.0]]], dtype=torch.bfloat16)
    mask_BT = torch.tensor([[1, 1, 0], [1, 1, 1]])
    pooled = {kind: pool(hidden_BTD, mask_BT, kind) for kind in ("cls", "mean", "last")}
    assert {kind: e_BD.squeeze().tolist() for kind, e_BD in pooled.items()} == {
        "cls": [1, 5],
        "mean": [2, 7],
        "last": [3, 9],
    }
    assert pooled["mean"].dtype == torch.float32


@torch.no_grad()
def test_padding_changes_nothing(weights):
    encoder = DualEncoder.create(weights, pooling="mean")
    assembler = Assembler(Tokenizer(weights))
    together = encoder.embed_queries(assembler.texts(QUERIES, 32))
    alone = [encoder.embed_queries(assembler.texts([query], 32)) for query in QUERIES]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_without_padding_no_mask_is_needed(weights, pooling):
    encoder = DualEncoder.create(weights, pooling=pooling)
    batch = Assembler(Tokenizer(weights)).texts(QUERIES[:1] * 2, 32)
    bare = unmasked(batch)
    assert "attention_mask" not in bare
    masked = encoder.embed_queries(batch)
    torch.testing.assert_close(encoder.embed_queries(bare), masked, atol=1e-6, rtol=1e-6)
    padded = batch | {
        "attention_mask": torch.tensor([[1] * n for n in batch["input_ids"].shape[1:] * 2])
    }
    padded["attention_mask"][1, -1] = 0
    assert unmasked(padded) is padded


def test_user_errors(weights, tmp_path):
    with pytest.raises(UserError, match="reads at most 512 tokens"):
        DualEncoder.create(weights, passage_length=513)
    with pytest.raises(UserError, match=r"no rocketray\.json"):
        DualEncoder.open(weights)
    shutil.copytree(weights, tmp_path / "model")
    (tmp_path / "model" / "rocketray.json").write_text('{"kind": "cross_encoder"}')
    with pytest.raises(UserError, match="'cross_encoder'; this command needs 'dual_encoder'"):
        DualEncoder.open(tmp_path / "model")
