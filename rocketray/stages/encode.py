"""Encode: a block of passages -> embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rocketray.artifacts import Made, Version
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.inference import device, encode_passages
from rocketray.model.tokens import Assembler, Tokenizer, TokenStore


class Encode:
    """Part `embeddings`: float32 [rows, D], in row order whatever the batches were; NaN in rows
    that were left out."""

    code = 1

    def __init__(self, *, model: str, tokens: str) -> None:
        self.model = DualEncoder.open(f"{model}/model").to(device()).eval()
        self.assembler = Assembler(Tokenizer(self.model.tokenizer_folder))
        self.tokens = TokenStore(tokens)
        self.blocks = Version.open(tokens).blocks

    def rows(self, item: int) -> np.ndarray:
        block = self.blocks[item]
        return np.arange(block.first_row, block.first_row + block.rows)

    def __call__(self, item: int, without: Sequence[int] = ()) -> Made:
        rows = self.rows(item)
        kept = ~np.isin(rows, without)
        embeddings = np.full((len(rows), self.model.size), np.nan, np.float32)
        if kept.any():
            found = encode_passages(self.model, self.assembler, self.tokens, rows[kept])
            embeddings[kept] = found
        return Made({"embeddings": embeddings}, len(rows))
