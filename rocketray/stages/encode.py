"""Encode: a block of passages -> embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from rocketray.artifacts import Made, Version
from rocketray.errors import UserError
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.inference import Choices, Encoder, Precision
from rocketray.model.tokens import Assembler, Tokenizer, TokenStore


class Encode:
    """Part `embeddings`: [rows, D] in row order whatever the batches were, float32 or float16; NaN
    in rows that are left out, here or of the tokens."""

    code = 4
    gpu = True

    def __init__(
        self, *, model: str, tokens: str, precision: Precision = "auto",
        storage: Literal["float32", "float16"] = "float32", choices: str | None = None,
        gpu: bool | None = None,
    ) -> None:  # fmt: skip
        dual = DualEncoder.open(f"{model}/model")
        self.encode = Encoder(dual, "passage", precision, Choices(choices), gpu)
        self.size = dual.size
        self.assembler = Assembler(Tokenizer(dual.tokenizer_folder))
        self.tokens = TokenStore(tokens)
        version = Version.open(tokens)
        self.blocks, self.left_out = version.blocks, version.left_out
        self.storage = storage

    def rows(self, item: int) -> np.ndarray:
        block = self.blocks[item]
        return np.arange(block.first_row, block.first_row + block.rows)

    def __call__(self, item: int, without: Sequence[int] = ()) -> Made:
        rows = self.rows(item)
        kept = ~np.isin(rows, [*without, *self.left_out])
        embeddings = np.full((len(rows), self.size), np.nan, self.storage)
        if kept.any():
            found = self.encode(self.assembler, self.tokens, rows[kept])
            embeddings[kept] = stored(found, self.storage, rows[kept])
        tokens = self.encode.lengths(self.assembler, self.tokens, rows[kept])
        return Made({"embeddings": embeddings}, len(rows), {"tokens": int(tokens.sum())})


def stored(embeddings: np.ndarray, storage: str, rows: np.ndarray) -> np.ndarray:
    """Embeddings in the type they are kept in.

    Raises:
        UserError: a number too large for it, which would rank as infinity; names rows.
    """
    if storage == "float32":
        return embeddings
    with np.errstate(over="ignore"):
        halves: np.ndarray = embeddings.astype(np.float16)
    lost = ~np.isfinite(halves).all(axis=1)
    if lost.any():
        raise UserError(
            f"encode.storage float16 holds numbers up to 65,504, and rows {rows[lost][:5].tolist()}"
            " of the passage table have larger ones. Set encode.storage=float32."
        )
    return halves
