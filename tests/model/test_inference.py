"""Models over many rows: the numbers of the model itself, whatever precision, batch or memory."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertModel, RobertaConfig
from transformers import RobertaForSequenceClassification as RobertaHead

from rocketray.errors import UserError
from rocketray.model import inference, weights
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.inference import CPU_TOKENS, Choices, Encoder, Passes, Scorer
from rocketray.model.tokens import Assembler, Tokenizer, TokenStore, batches_by_budget

WORDS = ("red", "green", "blue", "dog", "cat", "bird", "runs", "sleeps", "flies")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights.tiny(tmp_path_factory.mktemp("bert"), WORDS, hidden=64)


@pytest.fixture(scope="module")
def assembler(bert: Path) -> Assembler:
    return Assembler(Tokenizer(bert))


@pytest.fixture(scope="module")
def passages(assembler: Assembler) -> TokenStore:
    """60 rows of 1 to 30 words, some with titles."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, draw.integers(1, 31))) for _ in range(60)]
    titles = ["bird" if n % 3 == 0 else "" for n in range(60)]
    return TokenStore.of(assembler.tokenizer.store_block(titles, texts, 40))


@pytest.fixture(scope="module")
def queries(assembler: Assembler) -> TokenStore:
    texts = ["red dog", "blue bird flies", "cat", "green cat sleeps"]
    return TokenStore.of(assembler.tokenizer.store_block(None, texts, 12))


ROWS = np.arange(60)


def dual(folder: Path, pooling: Any = "cls") -> DualEncoder:
    similarity: Any = "cosine" if pooling == "mean" else "dot"
    return DualEncoder.create(
        folder, pooling=pooling, similarity=similarity, query_length=12, passage_length=36
    )


@torch.inference_mode()
def by_model(model: DualEncoder, assembler: Assembler, store: TokenStore) -> np.ndarray:
    """One padded batch through the model's own forward."""
    batch = assembler.passages(store, ROWS, model.passage_length)
    hidden = model.passage(**batch).last_hidden_state
    if model.pooling == "cls":
        return hidden[:, 0].numpy()
    mask = batch["attention_mask"].unsqueeze(-1)
    if model.pooling == "last":
        return hidden[torch.arange(60), mask[..., 0].sum(1) - 1].numpy()
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1).numpy()


# ---------------------------------------------------------------------------------- same numbers


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_embeddings_are_the_models(
    bert: Path, assembler: Assembler, passages: TokenStore, pooling: str
) -> None:
    model = dual(bert, pooling)
    found = Encoder(model, "passage")(assembler, passages, ROWS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_model(model, assembler, passages), rtol=0, atol=1e-5)


def test_an_encoder_of_another_family_runs_padded(
    bert: Path, assembler: Assembler, passages: TokenStore, tmp_path: Path
) -> None:
    size = assembler.tokenizer.vocab_size
    config = DistilBertConfig(vocab_size=size, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    torch.manual_seed(0)
    DistilBertModel(config).save_pretrained(tmp_path)
    weights.copy_tokenizer(bert, tmp_path, 36)
    for pooling in ("cls", "mean"):
        model = dual(tmp_path, pooling)
        plain = Assembler(Tokenizer(tmp_path))
        plain.tokenizer.makes_types = False
        exact = by_model(model, plain, passages)
        found = Encoder(model, "passage")(plain, passages, ROWS)
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5)
        near = Encoder(model, "passage", "bfloat16")(plain, passages, ROWS)
        assert cosines(near, exact).min() > 0.99


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_ce_scores_are_the_models(
    bert: Path, queries: TokenStore, passages: TokenStore, family: str
) -> None:
    model, assembler = CrossEncoder.create(bert, length=40), Assembler(Tokenizer(bert))
    if family == "roberta":
        model.model = roberta(assembler.tokenizer.vocab_size)
        assembler.tokenizer.makes_types = False  # As RoBERTa's own.
    asked = ROWS % 4
    batch = assembler.pairs(queries, asked, passages, ROWS, 40)
    with torch.inference_mode():
        expected = torch.sigmoid(model.model(**batch).logits[:, 0]).numpy()
        short = model.ce_scores(batch).numpy()
    assert model.reads_first_token_only
    found = Scorer(model)(assembler, queries, asked, passages, ROWS)
    for scores in (short, found):
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)


def roberta(vocab_size: int) -> RobertaHead:
    torch.manual_seed(0)
    return RobertaHead(
        RobertaConfig(
            vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=64, num_labels=1, type_vocab_size=1,
            initializer_range=0.2,
        )
    ).eval()  # fmt: skip


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found: np.ndarray = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return found


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "int8"])
def test_less_precision_stays_near_and_is_used(
    bert: Path, assembler: Assembler, passages: TokenStore, queries: TokenStore, precision: Any
) -> None:
    exact = Encoder(dual(bert, "mean"), "passage")(assembler, passages, ROWS)
    near = Encoder(dual(bert, "mean"), "passage", precision)(assembler, passages, ROWS)
    assert near.dtype == np.float32
    assert cosines(near, exact).min() > 0.99
    assert not np.array_equal(near, exact)
    asked = ROWS % 4
    model = CrossEncoder.create(bert, length=40)
    exact = Scorer(model)(assembler, queries, asked, passages, ROWS)
    near = Scorer(model, precision)(assembler, queries, asked, passages, ROWS)
    np.testing.assert_allclose(near, exact, rtol=0, atol=0.05)
    assert not np.array_equal(near, exact)


def test_padding_of_sorted_rows_is_under_two_in_a_hundred() -> None:
    """What a family that is not packed multiplies for nothing: lognormal lengths, mean about 75,
    at most 180, in a block of the recipe's default size."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(4.2, 0.5, 4096), 8, 180).astype(np.int64)
    batches = batches_by_budget(lengths, CPU_TOKENS)
    padded = sum(len(b) * int(lengths[b].max()) for b in batches)
    assert padded / lengths.sum() < 1.02


# ---------------------------------------------------------------------------------------- memory


class Small:
    """A forward that holds so many tokens and no more; gives each row its first token's id."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.sizes: list[int] = []

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if batch["input_ids"].numel() > self.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.sizes.append(batch["input_ids"].numel())
        return batch["input_ids"][:, 1].float()


def over(passes: Passes, forward: Any, assembler: Assembler, store: TokenStore) -> np.ndarray:
    return passes.over(
        lambda chosen: assembler.passages(store, ROWS[chosen], 36),
        forward,
        assembler.passage_lengths(store, ROWS, 36),
        ROWS + 100,
        "passage",
    )


def test_when_memory_runs_out_fewer_tokens_go_at_once_and_the_next_worker_knows(
    assembler: Assembler, passages: TokenStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = over(Passes(), Small(10**9), assembler, passages)
    path = tmp_path / "choices.json"
    forward = Small(600)
    with caplog.at_level(logging.WARNING):
        found = over(Passes("float32", Choices(path)), forward, assembler, passages)
        np.testing.assert_array_equal(found, expected)
        assert max(forward.sizes) <= 600
        assert Choices(path).read() == {"tokens": CPU_TOKENS // 4}
        said = [record.getMessage() for record in caplog.records]
        assert [text.split()[-1] for text in said] == ["1,024.", "512."]
        over(Passes("float32", Choices(path)), forward, assembler, passages)
    assert len(caplog.records) == 2


class Once(Small):
    """Runs out of memory at its first batch, whatever its size; calls `meanwhile` before."""

    def __init__(self, meanwhile: Any = lambda: None) -> None:
        super().__init__(10**9)
        self.meanwhile = meanwhile

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.meanwhile:
            self.meanwhile()
            self.meanwhile = None
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().__call__(batch)


def test_a_small_batch_that_fails_once_halves_what_other_blocks_begin_with_once(
    assembler: Assembler, tmp_path: Path
) -> None:
    """Two rows of 20 tokens, special ones included: this block goes on with 32, it alone."""
    block = assembler.tokenizer.store_block(None, [" ".join(["red"] * 18)] * 2, 40)
    store, rows, choices = TokenStore.of(block), np.arange(2), Choices(tmp_path / "choices.json")
    forward = Once()
    passes = Passes("float32", choices)
    lengths = assembler.query_lengths(store, rows, 36)
    passes.over(
        lambda chosen: assembler.queries(store, chosen, 36), forward, lengths, rows, "query"
    )
    assert lengths.tolist() == forward.sizes == [20, 20]
    assert Choices(choices.path).read() == {"tokens": CPU_TOKENS // 2}


def test_a_budget_that_another_worker_has_lowered_is_not_raised(
    assembler: Assembler, passages: TokenStore, tmp_path: Path
) -> None:
    path = tmp_path / "choices.json"
    forward = Once(lambda: Choices(path).note(tokens=256))
    over(Passes("float32", Choices(path)), forward, assembler, passages)
    assert Choices(path).read() == {"tokens": 256}
    assert max(forward.sizes) <= 256


def test_a_row_that_does_not_fit_by_itself_is_named(
    assembler: Assembler, passages: TokenStore
) -> None:
    longest = int(np.argmax(assembler.passage_lengths(passages, ROWS, 36))) + 100
    with pytest.raises(UserError, match=rf"Row {longest} of the passage table \(\d+ tokens\)"):
        over(Passes(), Small(20), assembler, passages)


def test_other_errors_are_not_taken_for_memory(assembler: Assembler, passages: TokenStore) -> None:
    def broken(_: Any) -> torch.Tensor:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        over(Passes(), broken, assembler, passages)


def test_what_is_no_number_is_refused(
    bert: Path, assembler: Assembler, passages: TokenStore
) -> None:
    model = dual(bert)
    model.passage.encoder.layer[0].output.dense.bias.data[0] = float("nan")
    with pytest.raises(UserError, match=r"60 rows of the passage table, first \[0, 1, 2, 3, 4\]"):
        Encoder(model, "passage")(assembler, passages, ROWS)


def test_no_rows_are_no_embeddings(bert: Path, assembler: Assembler, passages: TokenStore) -> None:
    assert len(Encoder(dual(bert), "passage")(assembler, passages, ROWS[:0])) == 0


# ---------------------------------------------------------------------------------------- places


def test_a_gpu_is_left_to_those_who_asked_for_it(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine has none; it is said to have one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert inference.device() == inference.device(True) == torch.device("cuda", 0)
    assert Encoder(dual(bert), "passage", gpu=False).passes.place == torch.device("cpu")
    cross = CrossEncoder.create(bert, length=40)
    assert Scorer(cross, gpu=False).passes.place == torch.device("cpu")


def test_a_gpu_that_torch_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of hours on one CPU thread beside a GPU that costs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wanted = {"13.0": "NVIDIA's driver for CUDA 13.0 or later", None: "a torch built with CUDA"}
    for built, needs in wanted.items():
        monkeypatch.setattr(torch.version, "cuda", built)
        with pytest.raises(UserError, match=f"no GPU on {socket.gethostname()}, .* needs {needs}"):
            inference.device(True)
    assert inference.device() == inference.device(False) == torch.device("cpu")


# --------------------------------------------------------------------------------------- choices


def test_auto_is_float32_on_a_cpu_and_half_precision_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert inference.choose_precision(torch.device("cpu")) == "float32"
    for has, expected in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has, **_: has)
        assert inference.choose_precision(torch.device("cuda")) == expected


def test_the_first_worker_chooses_and_all_others_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "choices.json"
    monkeypatch.setattr(inference, "choose_precision", lambda place: "bfloat16")
    assert Passes("auto", Choices(path)).precision == "bfloat16"
    monkeypatch.undo()
    assert Passes("auto", Choices(path)).precision == "bfloat16"
    assert Passes("float32", Choices(path)).precision == "float32"
    assert [file.name for file in tmp_path.iterdir()] == ["choices.json"]


def test_a_smaller_budget_leaves_the_precision(tmp_path: Path) -> None:
    choices = Choices(tmp_path / "choices.json")
    assert choices.begin(precision="float32") == {"precision": "float32"}
    choices.note(tokens=512)
    assert Choices(choices.path).begin(precision="bfloat16") == {
        "precision": "float32",
        "tokens": 512,
    }


def test_where_int8_gains_nothing_is_written_down(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fast, expected in ((True, {}), (False, {"int8_gains": False})):
        monkeypatch.setattr(inference.int8, "is_fast", lambda fast=fast: fast)
        choices = Choices(tmp_path / "choices.json")
        Encoder(dual(bert), "passage", "int8", choices)
        assert Choices(choices.path).read() == expected


def test_int8_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "device", lambda gpu: torch.device("cuda"))
    with pytest.raises(UserError, match="int8 is for CPUs"):
        Passes("int8")
