"""What rules had to work with, from examples and verdicts written out by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest

from rocketray.ablation import drawn
from rocketray.evidence import own, taught, unlike
from rocketray.schema import EXAMPLES, VERDICTS, Verdict

NAN = float("nan")


def examples(*rows: tuple[int, int, list[int], float, list[float]]) -> pa.Table:
    """Query, positive, negatives, and ce_scores of both."""
    names = ("query", "positive", "negatives", "ce_positive", "ce_negatives")
    whole = [dict(zip(names, row, strict=True)) | {"copy": 0, "source": "labelled"} for row in rows]
    return pa.Table.from_pylist(whole, schema=EXAMPLES)


def test_a_teacher_needs_both_sides() -> None:
    table = examples(
        (0, 1, [2, 3], 0.9, [0.1, 0.2]),
        (1, 1, [2, 3], 0.9, [NAN, 0.2]),
        (2, 1, [2, 3], 0.9, [NAN, NAN]),
        (3, 1, [2, 3], NAN, [0.1, 0.2]),
    )
    assert taught(table) == 0.5


def test_examples_are_unlike_by_query_positive_or_negatives() -> None:
    usual = examples(*((query, 1, [2, 3], 0.9, [0.1, 0.2]) for query in range(4)))
    other = examples(
        (0, 1, [2, 3], NAN, [NAN, NAN]),  # The same passages: what a teacher said is no matter.
        (1, 1, [3, 2], 0.9, [0.1, 0.2]),
        (2, 5, [2, 3], 0.9, [0.1, 0.2]),
        (9, 1, [2, 3], 0.9, [0.1, 0.2]),
    )
    assert unlike(usual, usual) == 0.0
    assert unlike(other, usual) == 0.75


def test_measuring_a_row_is_not_what_it_took() -> None:
    stages = ("x_examples", "y_embeddings", "x", "x_embeddings", "x_test_cells", "x_test")
    assert own("x", stages) == {"x_examples", "y_embeddings", "x"}
    made_once = ("x", "x_index_trained", "x_index", "x_exact", "x_recall", "bm25_train")
    assert own("x", made_once) == {"x"}


def judged(*lists: list[Verdict]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {"query": query, "passages": list(range(len(row))), "scores": [0.5] * len(row),
         "ce_scores": [0.5] * len(row), "verdicts": [verdict.value for verdict in row]}
        for query, row in enumerate(lists)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=VERDICTS)


def test_by_lot_as_many_of_each_rank_are_removed() -> None:
    label, hard, unsure = Verdict.LABELLED_POSITIVE, Verdict.HARD_NEGATIVE, Verdict.UNCERTAIN
    table = judged(*([label, unsure, hard], [hard, unsure], [unsure, hard, label]) * 20)
    found = drawn(table, [3, 0])
    assert found.schema == VERDICTS
    assert found.drop_columns("verdicts") == table.drop_columns("verdicts")
    before, after = (one["verdicts"].to_pylist() for one in (table, found))
    assert before != after
    for rank in range(3):
        counts = [
            Counter(row[rank] for row in lists if len(row) > rank) for lists in (before, after)
        ]
        assert counts[0] == counts[1]
    for one, other in zip(before, after, strict=True):
        assert [v == label for v in one] == [v == label for v in other]
    assert drawn(table, [3, 0]) == found
    assert drawn(table, [3, 1]) != found


def test_no_positive_is_made_by_lot() -> None:
    table = judged([Verdict.PSEUDO_POSITIVE, Verdict.HARD_NEGATIVE])
    (verdicts,) = drawn(table, [0])["verdicts"].to_pylist()
    assert verdicts == [Verdict.LIKELY_FALSE_NEGATIVE, Verdict.HARD_NEGATIVE]


@pytest.mark.parametrize("sizes", [(2, 0, 1), (0, 3)])
def test_lists_keep_their_lengths(sizes: tuple[int, ...]) -> None:
    table = judged(*([Verdict.HARD_NEGATIVE] * size for size in sizes))
    assert [len(row) for row in drawn(table, [0])["verdicts"].to_pylist()] == list(sizes)
