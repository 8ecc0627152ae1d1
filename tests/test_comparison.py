"""Rows beside each other: means, spreads and the paper's order, from numbers checked by hand."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from rocketray.comparison import (
    MEASURE,
    Measured,
    claim,
    compared,
    corrected,
    holm,
    line,
    order,
    spread,
    verdict,
)

QUESTIONS = 40
QUIET: dict[str, list[str]] = {}


def row(name: str, *seeds: float, **facts: float) -> Measured:
    """Every question has the seed's value."""
    frames = [pd.DataFrame({MEASURE: [value] * QUESTIONS, "recall@10": 1.0}) for value in seeds]
    return Measured(name, f"the {name}", frames, [facts for _ in seeds])


def table(**means: float) -> dict[str, Measured]:
    """Two seeds of one value each."""
    return {name: row(name, mean, mean) for name, mean in means.items()}


def claimed(better: Measured, worse: Measured, paper: float) -> dict[str, Any]:
    """A claim asked by itself."""
    (found,) = corrected([(better, worse)])
    return claim(better, worse, found, paper)


AS_THE_PAPER = table(
    initial=0.1, in_batch_4=0.3, dual_0=0.4, undenoised=0.2, dual_1=0.5, dual_2=0.6
)


def test_mean_and_spread_are_over_seeds() -> None:
    found = line(row("dual_0", 0.25, 0.5, 0.75, steps=10), None)
    assert found["by_seed"] == [0.25, 0.5, 0.75]
    assert (found["mean"], found["spread"]) == (0.5, 0.25)
    assert found["measures"] == {MEASURE: 0.5, "recall@10": 1.0}
    assert (found["steps"], found["examples"], found["against"]) == (10, None, None)
    assert found["had"] == {}


def test_one_seed_has_no_spread() -> None:
    assert spread([0.5]) is None


def test_questions_are_averaged_over_seeds_before_they_are_compared() -> None:
    """Two seeds that disagree about every question cancel out: a difference of zero."""
    up = Measured("a", "", [pd.DataFrame({MEASURE: [v, 1 - v] * 5}) for v in (0.0, 1.0)], [{}, {}])
    assert up.by_question().tolist() == [0.5] * 10


@pytest.mark.parametrize(
    ("better", "worse", "holds", "sure", "words"),
    [
        ((0.5, 0.6), (0.4, 0.5), True, True, "p = 0.0001, in 2 of 2 seeds: holds."),
        ((0.4, 0.5), (0.5, 0.6), False, True, "p = 0.0001, in 0 of 2 seeds: is reversed."),
        ((0.5, 0.5), (0.5, 0.5), False, False, "p = 1.0000, in 0 of 2 seeds: equal."),
        ((0.5,), (0.4,), True, False,
         "in 1 of 1 seeds: holds on these questions; other seeds unknown."),
        ((0.4,), (0.5,), False, False,
         "in 0 of 1 seeds: is reversed on these questions; other seeds unknown."),
        ((0.9, 0.4), (0.5, 0.5), True, False,
         "p = 0.0001, in 1 of 2 seeds: holds on these questions, but not with every seed."),
        ((0.9, 0.5), (0.5, 0.5), True, False,
         "p = 0.0001, in 1 of 2 seeds: holds on these questions, but not with every seed."),
    ],
)  # fmt: skip
def test_claims(
    better: tuple[float, ...], worse: tuple[float, ...], holds: bool, sure: bool, words: str
) -> None:
    found = claimed(row("dual_1", *better), row("dual_0", *worse), 0.03)
    assert (found["holds"], found["sure"]) == (holds, sure)
    assert found["words"].startswith("dual_1 above dual_0: ")
    assert "(paper +0.0300)" in found["words"]
    assert found["words"].endswith(words)


def test_a_gain_on_two_questions_may_be_luck() -> None:
    """Two gains of one: of four pairs of signs two are as far from zero, p = 1/2."""
    values = [1.0] * 2 + [0.0] * 38
    better = Measured("a", "", [pd.DataFrame({MEASURE: values})] * 2, [{}, {}])
    found = claimed(better, row("b", 0.0, 0.0), 0.1)
    assert found["p"] == pytest.approx(0.5, abs=0.02)
    assert not found["sure"]
    assert found["words"].endswith("holds, but may be luck.")


def test_questions_about_one_passage_are_one_witness() -> None:
    better, worse = (
        Measured(
            "a", "", [pd.DataFrame({MEASURE: [value] * QUESTIONS})], [{}], pd.Series(7, range(40))
        )
        for value in (0.5, 0.4)
    )
    assert claimed(better, worse, 0.03)["p"] == 1.0


def test_an_interval_is_over_seeds_and_questions() -> None:
    """Two seeds, +0.3 and -0.1 for every question: draws of two have 0.3, 0.1 or -0.1."""
    found = claimed(row("a", 0.8, 0.4), row("b", 0.5, 0.5), 0.1)
    assert (found["difference"], found["interval"]) == (0.1, [-0.1, 0.3])
    assert "95 % in [-0.1000, +0.3000]" in found["words"]


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.01], [0.01]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01, 2 x 0.03, 1 x 0.04 but not less
        ([0.5, 0.4], [0.8, 0.8]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([], []),
    ],
)
def test_p_values_are_corrected_for_their_number(
    p_values: list[float], expected: list[float]
) -> None:
    assert holm(p_values) == pytest.approx(expected)


def test_what_is_sure_alone_may_not_be_among_many() -> None:
    """Six equal gains of 40 have p = 2/64 = 0.03: sure by itself, and not as one of two."""
    frame = pd.DataFrame({MEASURE: [1.0] * 6 + [0.0] * 34})
    better = Measured("a", "", [frame] * 2, [{}, {}])
    (alone,) = corrected([(better, row("b", 0.0, 0.0))])
    one, other = corrected([(better, row("b", 0.0, 0.0))] * 2)
    assert alone["p"] == one["p"] == pytest.approx(2 / 64, abs=0.005)
    assert (alone["sure"], verdict(alone)) == (True, "holds")
    assert one["p_holm"] == other["p_holm"] == pytest.approx(2 * alone["p"])
    assert (one["sure"], verdict(one)) == (False, "holds, but may be luck")


def test_what_augmentation_gains_beside_longer_training() -> None:
    found = compared(
        AS_THE_PAPER | table(also_longer=0.55), "in_batch_4", {"also": ["also_longer"]}
    )
    assert found["augmentation"]["difference"] == pytest.approx(0.05)
    assert found["augmentation"]["row"] == "also_longer"
    assert [row["against"]["row"] for row in found["also"]] == ["dual_1"]
    assert "Against dual_1 for as many steps (also_longer): +0.0500" in found["claims"][-1]["words"]
    sixfold = pytest.approx(6 * found["claims"][0]["p"])
    assert [claim["p_holm"] for claim in found["claims"]] == [sixfold] * 5
    assert found["order"].startswith("The paper's order: 5 of 5 differences")
    assert "augmentation" not in compared(AS_THE_PAPER, "in_batch_4", QUIET)


def test_a_claim_says_who_trained_longer() -> None:
    rows = AS_THE_PAPER | {
        "dual_1": row("dual_1", 0.5, 0.5, steps=83), "dual_2": row("dual_2", 0.6, 0.6, steps=141),
    }  # fmt: skip
    *others, last = (claim["words"] for claim in compared(rows, "in_batch_4", QUIET)["claims"])
    assert last.endswith("holds. dual_2 trains 141 steps, dual_1 83.")
    assert not any("trains" in words for words in others)


def test_the_table_has_the_papers_order_and_each_row_the_one_above() -> None:
    found = compared(AS_THE_PAPER | table(bm25=0.7, reranked=0.8), "in_batch_4", QUIET)
    names = [line["row"] for line in found["rows"]]
    assert names == ["bm25", "initial", "in_batch_4", "dual_0", "undenoised", "dual_1", "dual_2",
                     "reranked"]  # fmt: skip
    assert [line["against"] and line["against"]["row"] for line in found["rows"]] == [
        None, *names[:-1],
    ]  # fmt: skip
    assert [line["paper"] for line in found["rows"]] == [
        None, None, 0.3239, 0.3332, 0.2603, 0.3638, 0.3702, None,
    ]  # fmt: skip
    assert found["questions"] == QUESTIONS


def test_the_papers_order_holds() -> None:
    found = compared(AS_THE_PAPER, "in_batch_4", QUIET)
    assert found["order"] == (
        "The paper's order: 5 of 5 differences are sure (p < 0.05 by Holm's correction, and all 2"
        " seeds agree), 0 are surely reversed. 5 of 5 have its sign: it holds."
    )
    differences = [round(claim["paper"], 4) for claim in found["claims"]]
    assert differences == [0.0093, 0.0729, 0.1035, 0.0306, 0.0064]


def test_one_seed_makes_nothing_sure() -> None:
    rows = {name: row(name, found.by_seed()[0]) for name, found in AS_THE_PAPER.items()}
    assert compared(rows, "in_batch_4", QUIET)["order"] == (
        "The paper's order: 0 of 5 differences are sure (one seed makes none sure), 0 are surely"
        " reversed. 5 of 5 have its sign: it has the right signs, and not all of it is sure."
    )


def test_the_papers_order_does_not_hold_when_one_pair_is_reversed() -> None:
    rows = AS_THE_PAPER | table(undenoised=0.45)
    found = compared(rows, "in_batch_4", QUIET)["order"]
    assert found.startswith("The paper's order: 4 of 5 differences are sure")
    assert found.endswith(
        "1 are surely reversed. 4 of 5 have its sign: it does not hold as a whole."
    )


def test_without_augmentation_there_is_no_claim_about_it() -> None:
    rows = {name: found for name, found in AS_THE_PAPER.items() if name != "dual_2"}
    claims = compared(rows, "in_batch_4", QUIET)["claims"]
    assert [claim["better"] for claim in claims] == ["dual_0", "dual_0", "dual_1", "dual_1"]
    assert "4 of 4" in order(claims)


def test_other_rules_are_compared_with_dual_1_and_other_weights_with_the_first() -> None:
    rows = AS_THE_PAPER | table(also_kl=0.55, also_simans=0.52, weights_whole=0.5, weights_x=0.45)
    kinds = {"also": ["also_kl", "also_simans"], "weights": ["weights_whole", "weights_x"]}
    found = compared(rows, "in_batch_4", kinds)
    assert math.isclose(found["also"][0]["against"]["difference"], 0.05)
    one, other = (line["against"] for line in found["also"])
    assert one["row"] == other["row"] == "dual_1"
    assert (one["p_holm"], one["sure"]) == (pytest.approx(2 * one["p"]), True)
    whole, x = (line["against"] for line in found["weights"])
    assert whole is None
    assert (x["row"], x["difference"]) == ("weights_whole", -0.05)


def test_points_of_a_figure() -> None:
    rows = {
        "in_batch_4": row("in_batch_4", 0.25, 0.75, negatives_per_query=3),
        "dual_0": row("dual_0", 0.5, 0.5, negatives_per_query=63),
    }
    found = compared(rows, "in_batch_4", {"negatives": ["in_batch_4", "dual_0"]})["negatives"]
    assert [(p["x"], p["mean"], p["spread"]) for p in found] == [
        (3, 0.5, round(math.sqrt(0.125), 6)),
        (63, 0.5, 0.0),
    ]
