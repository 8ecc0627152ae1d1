"""Tokenise: ids as the tokenizer gives them, and one hash per text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rocketray.artifacts import Version
from rocketray.model.tokens import Tokenizer, TokenStore
from rocketray.schema import PASSAGES
from rocketray.stages.tokenise import Tokenise
from tests.stages.conftest import Small
from tests.versions import table, version


def test_ids_are_the_tokenizers(small: Small) -> None:
    store, tokenizer = TokenStore(small.passage_tokens), Tokenizer(small.tokenizer)
    passages = Version.open(small.passages).read()
    titles, texts = passages["title"].to_pylist(), passages["text"].to_pylist()
    assert store.rows == 12
    of_titles, of_texts = store.sizes(np.arange(12))
    for row, (title, text) in enumerate(zip(titles, texts, strict=True)):
        first, then = tokenizer.ids([title, text], 24)
        assert (of_titles.kept_R[row], of_texts.kept_R[row]) == (len(first), len(then))
        assert store.ids(row).tolist() == first + then


def test_queries_have_no_titles(small: Small) -> None:
    made = Tokenise(tokenizer=small.tokenizer, table=small.queries, limit=24)(0)
    assert made.rows == 5
    lengths = np.asarray(made.parts["lengths"])
    assert lengths.tolist() == [[0, 0, n] for n in (2, 3, 1, 3, 2)]
    assert made.facts == {"tokens": 2 + 3 + 1 + 3 + 2}


def test_hashes_are_of_title_and_text_not_of_the_id(small: Small, tmp_path: Path) -> None:
    rows = [("a", "red", "dog"), ("b", "red", "dog"), ("c", "", "red dog"), ("d", "red dog", "")]
    path = version(tmp_path / "passages", table(PASSAGES, *rows))
    made = Tokenise(tokenizer=small.tokenizer, table=path, limit=24)(0)
    a, b, c, d = np.asarray(made.parts["hashes"]).tolist()
    assert a == b
    assert len({a, c, d}) == 3


def test_a_row_that_is_left_out_has_no_tokens_and_the_hash_of_no_text(small: Small) -> None:
    stage = Tokenise(tokenizer=small.tokenizer, table=small.passages, limit=24)
    assert stage.rows(1).tolist() == [5, 6, 7, 8, 9]
    whole, made = stage(1), stage(1, [6, 0])
    assert made.rows == 5
    ids = [np.split(m.parts["ids"], m.parts["offsets"][1:-1]) for m in (whole, made)]
    assert [len(row) for row in ids[1]] == [
        len(row) if n != 1 else 0 for n, row in enumerate(ids[0])
    ]
    hashes = np.asarray(made.parts["hashes"])
    assert hashes[1] == 0
    assert np.delete(hashes, 1).tolist() == np.delete(np.asarray(whole.parts["hashes"]), 1).tolist()
