"""Tokenise: a table's texts -> token ids, once per tokenizer and length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rocketray import schema
from rocketray.artifacts import Made, Version
from rocketray.model.tokens import Tokenizer


class Tokenise:
    """Token ids of one block, and the hash of each row's text (the key of stored pair scores).

    Parts: those of `Tokenizer.store_block`, and `hashes` uint64 [rows]; 0 where a row is left out,
    which is no text's, so that a store in which the row is empty has another digest.
    """

    code = 3

    def __init__(
        self, *, tokenizer: str, table: str, limit: int, spaced: bool = False, joined: bool = False
    ) -> None:
        """`spaced`, `joined`: as in `Tokenizer.store_block`."""
        self.tokenizer = Tokenizer(tokenizer)
        self.table = Version.open(table)
        self.limit = limit
        self.spaces = {"spaced": spaced, "joined": joined}

    def rows(self, item: int) -> np.ndarray:
        block = self.table.blocks[item]
        return np.arange(block.first_row, block.first_row + block.rows)

    def __call__(self, item: int, without: Sequence[int] = ()) -> Made:
        table = self.table.table(item)
        texts = table["text"].to_pylist()
        titles = table["title"].to_pylist() if "title" in table.column_names else [""] * len(texts)
        left_out = np.flatnonzero(np.isin(self.rows(item), without))
        for at in left_out:
            titles[at] = texts[at] = ""
        parts = dict(self.tokenizer.store_block(titles, texts, self.limit, **self.spaces))
        parts["hashes"] = schema.text_hashes(
            f"{a}\x1f{b}" for a, b in zip(titles, texts, strict=True)
        )
        parts["hashes"][left_out] = 0
        return Made(parts, len(texts), {"tokens": int(parts["offsets"][-1])})
