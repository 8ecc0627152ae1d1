"""Examples always hold exactly n negatives, none of them a positive, and repeat by seed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocketray.schema import EXAMPLES, PASSAGES
from rocketray.stages.examples import (
    CrossExamples,
    FirstExamples,
    HardExamples,
    draw,
    in_drawn_order,
    simans,
)
from tests.versions import qrels, rows_of, run, table, verdicts, version

HARD, FALSE, UNSURE, LABELLED, PSEUDO = (
    "hard_negative",
    "likely_false_negative",
    "uncertain",
    "labelled_positive",
    "pseudo_positive",
)
Rows = list[tuple[int, int, int, list[int]]]


def corpus(folder: Path, size: int) -> str:
    rows = [(f"p{n}", "", f"text {n}") for n in range(size)]
    return version(folder / f"passages_{size}", table(PASSAGES, *rows))


def keyed(table: pa.Table) -> Rows:
    """(query, positive, copy, negatives) of every example."""
    names = ("query", "positive", "copy", "negatives")
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


# ---------------------------------------------------------------------------------------- drawing


@given(st.integers(1, 60), st.sets(st.integers(0, 59)), st.integers(0, 30), st.integers(0, 9))
def test_draws_are_distinct_and_unknown(size: int, known: set[int], count: int, seed: int) -> None:
    known = {passage for passage in known if passage < size}
    found = draw(size, known, count, seed, query=3)
    assert len(set(found)) == len(found) == min(count, size - len(known))
    assert not set(found) & known
    assert set(found) <= set(range(size))
    assert found == draw(size, known, count, seed, query=3)


def test_draws_depend_on_seed_and_query() -> None:
    found = {tuple(draw(1000, set(), 5, seed, query)) for seed in range(3) for query in range(3)}
    assert len(found) == 9


# ----------------------------------------------------------------------------------------- step 1


def first(folder: Path, negatives: Any, *, copies: int = 1, seed: int = 0, size: int = 50) -> Rows:
    """Queries 0 (two positives) and 5 (one) in one block; BM25 lists below."""
    lexical = version(folder / "run", run((0, [11, 10, 12, 20, 21]), (5, [30])))
    stage = FirstExamples(
        queries=version(folder / "queries", rows_of(0, 5)),
        qrels=version(folder / "qrels", qrels((0, 10, 1), (0, 11, 1), (5, 30, 1))),
        passages=corpus(folder, size),
        negatives=negatives,
        copies=copies,
        seed=seed,
        run=lexical if negatives == "run" else None,
    )
    made = stage(0)
    assert made.parts["table"].schema == EXAMPLES
    assert made.rows == len(made.parts["table"])
    return keyed(made.parts["table"])


def test_without_negatives_there_is_a_row_for_each_positive(tmp_path: Path) -> None:
    assert first(tmp_path, "none") == [(0, 10, 0, []), (0, 11, 0, []), (5, 30, 0, [])]


def test_random_negatives_differ_between_copies_and_are_no_positives(tmp_path: Path) -> None:
    rows = first(tmp_path, "random", copies=2)
    expected = [(0, 10, 0), (0, 10, 1), (0, 11, 0), (0, 11, 1), (5, 30, 0), (5, 30, 1)]
    assert [row[:3] for row in rows] == expected
    mine = [negatives[0] for query, _, _, negatives in rows if query == 0]
    assert len(set(mine)) == 4
    assert not set(mine) & {10, 11}
    assert rows == first(tmp_path, "random", copies=2)
    assert rows != first(tmp_path, "random", copies=2, seed=1)


def test_lexical_negatives_are_dealt_in_rank_order_then_random_ones(tmp_path: Path) -> None:
    rows = first(tmp_path, "run", copies=2)
    assert [row[3] for row in rows[:3]] == [[12], [20], [21]]
    fourth = rows[3][3][0]
    assert fourth not in {10, 11, 12, 20, 21}
    assert all(30 not in row[3] for row in rows[4:])


def test_a_corpus_of_positives_has_no_examples(tmp_path: Path) -> None:
    stage = FirstExamples(
        queries=version(tmp_path / "queries", rows_of(0)),
        qrels=version(tmp_path / "qrels", qrels((0, 0, 1), (0, 1, 1))),
        passages=corpus(tmp_path, 2),
        negatives="random",
        copies=1,
        seed=0,
    )
    assert keyed(stage(0).parts["table"]) == []


# ----------------------------------------------------------------------------------------- step 2


def cross(folder: Path, *blocks: pa.Table, **settings: Any) -> CrossExamples:
    defaults: dict[str, Any] = {"depth": 5, "negatives": 2, "first_only": False, "seed": 0}
    return CrossExamples(
        run=version(folder / "run", *blocks),
        positives=version(folder / "qrels", qrels((0, 1, 1), (0, 9, 1), (3, 4, 1))),
        passages=corpus(folder, 40),
        **defaults | settings,
    )


def test_negatives_come_from_the_top_of_the_run(tmp_path: Path) -> None:
    made = cross(tmp_path, run((0, [1, 2, 3, 4, 5, 6, 7])))(0)
    rows = keyed(made.parts["table"])
    assert [row[:3] for row in rows] == [(0, 1, 0), (0, 9, 0)]
    for *_, negatives in rows:
        assert len(set(negatives)) == 2
        assert set(negatives) <= {2, 3, 4, 5}
    assert made.facts == {"filled": 0}


def test_where_every_candidate_is_labelled_positive_the_corpus_fills(tmp_path: Path) -> None:
    made = cross(tmp_path, run((0, [1, 9]), (3, [4, 7])))(0)
    rows = keyed(made.parts["table"])
    assert [row[:2] for row in rows] == [(0, 1), (0, 9), (3, 4)]
    assert all(len(set(row[3])) == 2 and not {row[0], 1, 9} & set(row[3]) for row in rows[:2])
    assert rows[2][3][0] == 7
    assert made.facts == {"filled": 5}


def test_only_the_first_positive_but_no_other_as_negative(tmp_path: Path) -> None:
    stage = cross(tmp_path, run((0, [9, 2, 1, 3])), first_only=True)
    ((query, positive, copy, negatives),) = keyed(stage(0).parts["table"])
    assert (query, positive, copy) == (0, 1, 0)
    assert sorted(negatives) == [2, 3]


def test_a_query_without_positives_gives_nothing(tmp_path: Path) -> None:
    assert keyed(cross(tmp_path, run((8, [1, 2, 3])))(0).parts["table"]) == []


def test_examples_do_not_depend_on_their_block(tmp_path: Path) -> None:
    lists = [(0, [1, 2, 3, 4]), (3, [5, 6, 7, 8])]
    together = cross(tmp_path / "a", run(*lists))(0).parts["table"]
    apart = cross(tmp_path / "b", run(lists[1]), run(lists[0]))
    assert sorted(keyed(together)) == sorted(
        keyed(apart(0).parts["table"]) + keyed(apart(1).parts["table"])
    )


# ---------------------------------------------------------------------------------- steps 3 and 4


def hard(folder: Path, labelled: pa.Table, **settings: Any) -> HardExamples:
    defaults: dict[str, Any] = {
        "negatives": 1,
        "copies": 1,
        "fill": "drop",
        "first_only": False,
        "seed": 0,
    }
    return HardExamples(
        labelled=version(folder / "labelled", labelled),
        positives=version(folder / "qrels", qrels((0, 1, 1), (2, 5, 1), (2, 6, 1))),
        passages=corpus(folder, 40),
        **defaults | settings,
    )


JUDGED = verdicts(
    (
        0,
        [1, 10, 11, 12, 13, 14],
        [0.9, 0.1, 0.95, 0.5, 0.05, 0.0],
        [LABELLED, HARD, FALSE, UNSURE, HARD, HARD],
    )
)


def test_hard_negatives_are_dealt_in_rank_order(tmp_path: Path) -> None:
    made = hard(tmp_path, JUDGED, copies=3)(("labelled", 0))
    assert keyed(made.parts["table"]) == [(0, 1, 0, [10]), (0, 1, 1, [13]), (0, 1, 2, [14])]
    assert made.facts == {"filled": 0, "without": 0, "from_labels": 3, "from_pseudo_labels": 0}


def test_ce_scores_travel_with_the_example(tmp_path: Path) -> None:
    made = hard(tmp_path, JUDGED, negatives=2)(("labelled", 0))
    (row,) = made.parts["table"].to_pylist()
    assert row["ce_positive"] == pytest.approx(0.9)
    assert row["ce_negatives"] == pytest.approx([0.1, 0.05])
    assert row["source"] == "labelled"


def test_a_score_nobody_computed_is_nan(tmp_path: Path) -> None:
    judged = verdicts((2, [10], [0.1], [HARD]))
    rows = hard(tmp_path, judged, fill="random")(("labelled", 0)).parts["table"].to_pylist()
    assert [row["positive"] for row in rows] == [5, 6]
    assert all(math.isnan(row["ce_positive"]) for row in rows)
    assert math.isnan(rows[1]["ce_negatives"][0])


def test_fill_drop_gives_fewer_copies(tmp_path: Path) -> None:
    made = hard(tmp_path, JUDGED, copies=2, negatives=2, fill="drop")(("labelled", 0))
    assert keyed(made.parts["table"]) == [(0, 1, 0, [10, 13])]
    made = hard(tmp_path / "more", JUDGED, negatives=4, fill="drop")(("labelled", 0))
    assert keyed(made.parts["table"]) == []
    assert made.facts == {"filled": 0, "without": 1, "from_labels": 0, "from_pseudo_labels": 0}


def test_fill_random_takes_neither_positives_nor_what_was_judged(tmp_path: Path) -> None:
    made = hard(tmp_path, JUDGED, negatives=20, fill="random")(("labelled", 0))
    ((*_, negatives),) = keyed(made.parts["table"])
    assert negatives[:3] == [10, 13, 14]
    assert len(set(negatives)) == 20
    assert not {1, 11, 12} & set(negatives)
    assert made.facts == {"filled": 17, "without": 0, "from_labels": 1, "from_pseudo_labels": 0}


def test_fill_unscored_tail_takes_what_the_run_lists_below_the_depth(tmp_path: Path) -> None:
    judged = verdicts((0, [10, 11], [0.1, 0.9], [HARD, FALSE]))
    tail = version(tmp_path / "run", run((0, [10, 11, 1, 30, 31, 32])))
    stage = hard(tmp_path, judged, negatives=4, fill="unscored_tail", run=tail)
    ((*_, negatives),) = keyed(stage(("labelled", 0)).parts["table"])
    assert negatives[0] == 10
    assert sorted(negatives[1:]) == [30, 31, 32]


def test_a_passage_without_tokens_is_no_part_of_the_tail(tmp_path: Path) -> None:
    """99 was not scored, though it stands above the last that was."""
    judged = verdicts((0, [10, 11], [0.1, 0.9], [HARD, FALSE]))
    tail = version(tmp_path / "run", run((0, [10, 99, 11, 30])))
    stage = hard(tmp_path, judged, negatives=2, fill="unscored_tail", run=tail)
    ((*_, negatives),) = keyed(stage(("labelled", 0)).parts["table"])
    assert negatives == [10, 30]


def test_fill_unscored_tail_drops_where_the_tail_is_too_short(tmp_path: Path) -> None:
    judged = verdicts((0, [10], [0.9], [FALSE]))
    tail = version(tmp_path / "run", run((0, [10, 1])))
    made = hard(tmp_path, judged, fill="unscored_tail", run=tail)(("labelled", 0))
    assert keyed(made.parts["table"]) == []
    assert made.facts == {"filled": 0, "without": 1, "from_labels": 0, "from_pseudo_labels": 0}


def test_a_query_that_was_left_out_of_scoring_gets_no_negatives_of_its_run(tmp_path: Path) -> None:
    """Its whole run is unscored, and ranks 1 on are the likeliest false negatives."""
    judged = verdicts((0, [], [], []))
    tail = version(tmp_path / "run", run((0, [10, 11, 30])))
    made = hard(tmp_path, judged, fill="unscored_tail", run=tail)(("labelled", 0))
    assert keyed(made.parts["table"]) == []
    assert made.facts == {"filled": 0, "without": 1, "from_labels": 0, "from_pseudo_labels": 0}


def test_every_candidate_labelled_positive(tmp_path: Path) -> None:
    judged = verdicts((2, [5, 6], [0.9, 0.1], [LABELLED, LABELLED]))
    made = hard(tmp_path, judged, fill="random")(("labelled", 0))
    rows = keyed(made.parts["table"])
    assert [row[:3] for row in rows] == [(2, 5, 0), (2, 6, 0)]
    assert not {5, 6} & {passage for row in rows for passage in row[3]}
    assert made.facts == {"filled": 2, "without": 0, "from_labels": 2, "from_pseudo_labels": 0}


def test_with_first_only_the_other_positives_are_no_negatives(tmp_path: Path) -> None:
    judged = verdicts((2, [6, 5, 9], [0.9, 0.9, 0.0], [LABELLED, LABELLED, HARD]))
    stage = hard(tmp_path, judged, first_only=True, negatives=30, fill="random")
    ((_, positive, _, negatives),) = keyed(stage(("labelled", 0)).parts["table"])
    assert positive == 5
    assert negatives[0] == 9
    assert not {5, 6} & set(negatives)


def test_pseudo_labels_are_never_filled(tmp_path: Path) -> None:
    unlabelled = verdicts(
        (7, [20, 21, 22, 23], [0.99, 0.1, 0.95, 0.0], [PSEUDO, HARD, FALSE, HARD]),
        (8, [20], [0.99], [PSEUDO]),
        (9, [20, 21], [0.5, 0.1], [UNSURE, HARD]),
    )
    stage = hard(
        tmp_path,
        JUDGED,
        copies=4,
        fill="random",
        unlabelled=version(tmp_path / "unlabelled", unlabelled),
    )
    made = stage(("pseudo", 0))
    assert keyed(made.parts["table"]) == [(7, 20, 0, [21]), (7, 20, 1, [23])]
    assert set(made.parts["table"]["source"].to_pylist()) == {"pseudo"}
    assert made.facts == {"filled": 0, "without": 1, "from_labels": 0, "from_pseudo_labels": 2}


# ----------------------------------------------------------------------------- beyond the paper


def test_a_list_may_begin_further_down(tmp_path: Path) -> None:
    """Ranks count what is labelled or removed, too."""
    made = hard(tmp_path, JUDGED, copies=3, from_rank=3)(("labelled", 0))
    assert keyed(made.parts["table"]) == [(0, 1, 0, [13]), (0, 1, 1, [14])]


def test_promoted_passages_are_positives_after_the_labelled_one(tmp_path: Path) -> None:
    judged = verdicts((0, [10, 1, 11, 12], [1.0, 0.9, 0.0, 0.0], [PSEUDO, LABELLED, HARD, HARD]))
    made = hard(tmp_path, judged)(("labelled", 0))
    assert keyed(made.parts["table"]) == [(0, 1, 0, [11]), (0, 10, 0, [12])]
    assert (made.facts["from_labels"], made.facts["from_pseudo_labels"]) == (1, 1)
    assert set(made.parts["table"]["source"].to_pylist()) == {"labelled"}


def test_simans_by_hand() -> None:
    """Chances of 1, exp(-2) and exp(-8) for scores 0, 1 and 2 away from the positive plus b."""
    found = simans(np.array([3.0, 2.0, 1.0]), positive=4.0, a=2.0, b=-1.0)
    assert found.tolist() == [0.0, -2.0, -8.0]


def test_drawing_goes_by_the_chances() -> None:
    """3 to 1 for the first place, and from what is left for the second: shares of 4,000 draws."""
    chances = np.log([3.0, 1.0, 1.0])
    orders = [in_drawn_order(chances, [seed, 7]) for seed in range(4000)]
    first = sum(order[0] == 0 for order in orders) / 4000
    second = sum(order[0] == 1 and order[1] == 0 for order in orders) / 4000
    assert first == pytest.approx(3 / 5, abs=0.03)
    assert second == pytest.approx(1 / 5 * 3 / 4, abs=0.03)


def test_random_draws_from_the_whole_list_by_seed_and_query(tmp_path: Path) -> None:
    found = set()
    for seed in range(20):
        stage = hard(tmp_path / str(seed), JUDGED, sample="random", negatives=2, seed=seed)
        ((*_, negatives),) = keyed(stage(("labelled", 0)).parts["table"])
        assert set(negatives) < {10, 13, 14}
        assert [(0, 1, 0, negatives)] == keyed(stage(("labelled", 0)).parts["table"])
        found.add(tuple(negatives))
    assert len(found) > 3


def test_simans_takes_what_scores_like_the_positive(tmp_path: Path) -> None:
    """Scores fall from 0 by one a rank: the positive has 0, 13 has -4. With b = -4 and a sharp
    fall no other is ever drawn."""
    for seed in range(10):
        stage = hard(tmp_path / str(seed), JUDGED, sample="simans", simans=[50, -4], seed=seed)
        assert keyed(stage(("labelled", 0)).parts["table"]) == [(0, 1, 0, [13])]


def test_simans_without_the_positive_takes_the_lists_last_score_for_its(tmp_path: Path) -> None:
    judged = verdicts((2, [10, 11, 12], [0.0] * 3, [HARD, HARD, UNSURE]))
    stage = hard(tmp_path, judged, sample="simans", simans=[50, 1])  # One above -2: rank 2.
    assert keyed(stage(("labelled", 0)).parts["table"])[0] == (2, 5, 0, [11])
