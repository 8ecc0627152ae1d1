"""One small corpus with random models, for stages that need them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rocketray.artifacts import Draft, commit_block
from rocketray.model import weights
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.schema import PASSAGES
from rocketray.stages.tokenise import Tokenise
from tests.versions import questions, table, version

WORDS = ("red", "green", "blue", "dog", "cat", "bird", "runs", "sleeps", "flies")


class Small:
    """Folders as stages take them: 5 queries in 1 block, 12 passages in blocks of 5, 5 and 2.

    Passages 3, 8 and 11 are copies of one another, in three blocks.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = str(weights.tiny(folder / "weights", WORDS))
        texts = [f"{WORDS[n % 9]} {WORDS[(2 * n + 3) % 9]} {WORDS[n % 4]}" for n in range(12)]
        texts[8] = texts[11] = texts[3]
        rows = [(f"p{n}", "bird" if n % 2 else "", text) for n, text in enumerate(texts)]
        rows[8], rows[11] = ("p8", *rows[3][1:]), ("p11", *rows[3][1:])
        blocks = [table(PASSAGES, *rows[at : at + 5]) for at in (0, 5, 10)]
        self.passages = version(folder / "passages", *blocks)
        asked = ("red dog", "blue bird flies", "cat", "green cat sleeps", "dog runs")
        self.queries = version(folder / "queries", questions(*asked))
        self.query_tokens = self.tokens(folder / "query_tokens", self.queries, 1)
        self.passage_tokens = self.tokens(folder / "passage_tokens", self.passages, 3)
        self.dual, self.cross = folder / "dual", folder / "cross"
        sizes = {"query_length": 12, "passage_length": 16}
        DualEncoder.create(Path(self.tokenizer), **sizes).save(self.dual / "model")
        CrossEncoder.create(Path(self.tokenizer), length=24).save(self.cross / "model")

    def tokens(self, folder: Path, of: str, blocks: int, without: Sequence[int] = ()) -> str:
        """A token store, perhaps without some rows, as the engine leaves it."""
        stage = Tokenise(tokenizer=self.tokenizer, table=of, limit=24)
        for number in range(blocks):
            made = stage(number, without)
            places = np.flatnonzero(np.isin(stage.rows(number), without)).tolist()
            left_out = [[place, "SIGKILL"] for place in places]
            facts = {"quarantined": left_out} if left_out else {}
            commit_block(folder, number, made.parts, rows=made.rows, key="", facts=facts)
        return str(Draft(folder, folder.name, {}).finish({}).path)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("small"))
