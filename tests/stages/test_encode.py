"""Encode: a block's embeddings are the model's, in row order, in the type asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rocketray.errors import UserError
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.tokens import Assembler, Tokenizer, TokenStore
from rocketray.stages.encode import Encode, stored
from tests.stages.conftest import Small


def embeddings(small: Small, block: int, **settings: Any) -> np.ndarray:
    stage = Encode(model=str(small.dual), tokens=small.passage_tokens, **settings)
    made = stage(block)
    found = made.parts["embeddings"]
    assert isinstance(found, np.ndarray)
    assert made.rows == len(found)
    return found


def test_blocks_are_the_models_embeddings_in_row_order(small: Small) -> None:
    model = DualEncoder.open(small.dual / "model")
    assembler = Assembler(Tokenizer(model.tokenizer_folder))
    batch = assembler.passages(TokenStore(small.passage_tokens), np.arange(12), 16)
    with torch.inference_mode():
        expected = model.embed_passages(batch).numpy()
    found = [embeddings(small, block) for block in range(3)]
    assert [len(block) for block in found] == [5, 5, 2]
    assert all(block.dtype == np.float32 for block in found)
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=0, atol=1e-5)


def test_tokens_are_counted_as_the_model_reads_them(small: Small) -> None:
    stage = Encode(model=str(small.dual), tokens=small.passage_tokens)
    batch = Assembler(Tokenizer(small.tokenizer)).passages(
        TokenStore(small.passage_tokens), np.array([5, 6, 8, 9]), 16
    )
    made = stage(1, without=[7])
    assert made.facts == {"tokens": int(batch["attention_mask"].sum())}


def test_a_block_repeats_bit_by_bit(small: Small) -> None:
    np.testing.assert_array_equal(embeddings(small, 1), embeddings(small, 1))


def test_a_gpu_that_is_not_its_own_is_left_alone(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = embeddings(small, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    np.testing.assert_array_equal(embeddings(small, 0, gpu=False), expected)


def test_half_the_bytes_hold_the_nearest_numbers(small: Small) -> None:
    halves = embeddings(small, 0, storage="float16")
    assert halves.dtype == np.float16
    np.testing.assert_array_equal(halves, embeddings(small, 0).astype(np.float16))


def test_numbers_that_half_the_bytes_cannot_hold_are_refused() -> None:
    large = np.array([[1.0, 2.0], [70_000.0, 0.0]], np.float32)
    with pytest.raises(UserError, match=r"rows \[8\] of the passage table"):
        stored(large, "float16", np.array([7, 8]))
    assert stored(large, "float32", np.array([7, 8])) is large


def test_a_resumed_stage_keeps_what_auto_was(small: Small, tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    path.write_text('{"precision": "bfloat16"}')
    resumed = embeddings(small, 0, choices=str(path))
    np.testing.assert_array_equal(resumed, embeddings(small, 0, precision="bfloat16"))
    assert not np.array_equal(resumed, embeddings(small, 0, precision="float32"))


def test_what_has_no_tokens_has_no_embedding(small: Small, tmp_path: Path) -> None:
    tokens = small.tokens(tmp_path / "tokens", small.passages, 3, without=[7])
    stage = Encode(model=str(small.dual), tokens=tokens)
    found = [np.isnan(stage(block).parts["embeddings"]).all(axis=1).tolist() for block in (0, 1)]
    assert found == [[False] * 5, [False, False, True, False, False]]
