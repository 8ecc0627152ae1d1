"""BM25: equal to the formula written out."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rocketray.model.top_k import in_order
from rocketray.schema import PASSAGES, RUN
from rocketray.stages import lexical
from rocketray.stages.lexical import Lexical
from tests.versions import questions, rows_of, table, version

TEXTS = [
    ("red dog", "dog runs fast"),
    ("", "cat sleeps"),
    ("cat", "red cat runs"),
    ("", ""),
    ("", "cat sleeps"),
]
QUESTIONS = ("red cat", "dog", "unheard", "cat sleeps")


def search(folder: Path, k: int, *queries: int) -> list[tuple[list[int], list[float]]]:
    rows = [(f"p{n}", title, text) for n, (title, text) in enumerate(TEXTS)]
    stage = Lexical(
        passages=version(folder / "passages", table(PASSAGES, *rows)),
        queries=version(folder / "queries", rows_of(*queries)),
        texts=version(folder / "texts", questions(*QUESTIONS)),
        k=k,
    )
    found = stage(0).parts["table"]
    assert found.schema == RUN
    assert found["query"].to_pylist() == list(queries)
    return list(zip(found["passages"].to_pylist(), found["scores"].to_pylist(), strict=True))


def bm25(query: str, passage: int) -> float:
    """Robertson and Zaragoza (2009) with Lucene's idf and without the factor k1 + 1."""
    bags = [Counter(f"{title} {text}".split()) for title, text in TEXTS]
    mean = sum(bag.total() for bag in bags) / len(bags)
    score = 0.0
    for word in query.split():
        holding = sum(word in bag for bag in bags)
        idf = math.log(1 + (len(bags) - holding + 0.5) / (holding + 0.5))
        count = bags[passage][word]
        length = 1 - 0.4 + 0.4 * bags[passage].total() / mean
        score += idf * count / (count + 0.9 * length)
    return score


def test_scores_are_bm25(tmp_path: Path) -> None:
    ((passages, scores),) = search(tmp_path, 10, 0)
    expected = sorted((-bm25("red cat", p), p) for p in (0, 1, 2, 4))
    assert passages == [p for _, p in expected]
    assert scores == pytest.approx([-s for s, _ in expected], rel=1e-5)


def test_equal_passages_are_ordered_by_row_and_lists_cut_to_k(tmp_path: Path) -> None:
    ((passages, scores),) = search(tmp_path, 2, 3)
    assert passages == [1, 4]
    assert scores[0] == scores[1]


def test_a_tie_at_the_end_of_the_list_goes_to_the_lower_row(tmp_path: Path) -> None:
    """Passages 1 and 4 are the same."""
    whole = search(tmp_path / "whole", 10, 0, 3)
    assert whole[1][0][:3] == [1, 4, 2]
    for k in (1, 2, 3, 4):
        cut = [(passages[:k], scores[:k]) for passages, scores in whole]
        assert search(tmp_path / str(k), k, 0, 3) == cut


def test_only_what_is_listed_is_put_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sorted_rows: list[int] = []

    def counted(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        sorted_rows.append(rows.size)
        return in_order(scores, rows, k)

    monkeypatch.setattr(lexical, "in_order", counted)
    ((passages, _),) = search(tmp_path, 2, 3)
    assert passages == [1, 4]
    assert sorted_rows == [2]


def test_passages_without_a_common_word_are_not_listed(tmp_path: Path) -> None:
    (dog, unheard) = search(tmp_path, 10, 1, 2)
    assert dog[0] == [0]
    assert unheard == ([], [])
