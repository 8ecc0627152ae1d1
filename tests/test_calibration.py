"""Calibration by hand and against scikit-learn; moved thresholds give the verdicts of the map."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from rocketray import calibration
from rocketray.artifacts import Version
from rocketray.calibration import (
    Isotonic,
    Pairs,
    Temperature,
    fit,
    fit_isotonic,
    fit_temperature,
    labelled_pairs,
    moved,
    reliability,
)
from rocketray.errors import UserError
from tests.versions import qrels, scored, version


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# -------------------------------------------------------------------------------- one temperature


def test_temperature_by_hand() -> None:
    """Every logit is 2, and three of four pairs are relevant: sigmoid(2 / T) must be 0.75."""
    found = fit_temperature(np.full(4, sigmoid(2)), np.array([1, 1, 1, 0], bool))
    assert found.temperature == pytest.approx(2 / math.log(3))


def test_a_calibrated_score_has_temperature_one() -> None:
    ce = np.repeat([0.2, 0.8], 10)
    relevant = np.array([1] * 2 + [0] * 8 + [1] * 8 + [0] * 2, bool)
    assert fit_temperature(ce, relevant).temperature == pytest.approx(1)


def test_temperature_keeps_the_half_and_the_ends() -> None:
    assert Temperature(3.0)(np.array([0, 0.5, 1])).tolist() == [0, 0.5, 1]
    assert Temperature(2.0)(np.array([sigmoid(2)])) == pytest.approx(sigmoid(1))


def test_always_right_is_made_sure_and_always_wrong_unsure() -> None:
    """A score of exactly 0 or 1 is no infinity to a fit."""
    ce = np.array([0.0, 1.0])
    assert 0.001 <= fit_temperature(ce, np.array([False, True])).temperature < 0.1
    assert fit_temperature(ce, np.array([True, False])).temperature == pytest.approx(1000)


# --------------------------------------------------------------------------------------- isotonic


def test_pool_adjacent_violators_by_hand() -> None:
    found = fit_isotonic(np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.array([0, 1, 0, 1, 1], bool))
    assert found.scores_K.tolist() == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert found.values_K.tolist() == [0, 0.5, 0.5, 1, 1]
    assert found(np.array([0.0, 0.15, 0.25, 0.35, 0.9])).tolist() == pytest.approx(
        [0, 0.25, 0.5, 0.75, 1]
    )


def test_equal_scores_count_as_one() -> None:
    found = fit_isotonic(np.array([0.5, 0.5, 0.5, 0.9]), np.array([1, 0, 0, 1], bool))
    assert found.scores_K.tolist() == [0.5, 0.9]
    assert found.values_K.tolist() == pytest.approx([1 / 3, 1])


def test_a_falling_curve_becomes_one_group() -> None:
    found = fit_isotonic(np.array([0.1, 0.4, 0.8]), np.array([1, 0, 0], bool))
    assert found.scores_K.tolist() == [0.1, 0.8]
    assert found.values_K.tolist() == pytest.approx([1 / 3, 1 / 3])


def test_isotonic_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    ce = generator.integers(0, 60, 400) / 60
    relevant = generator.random(400) < ce**2
    peer = IsotonicRegression(out_of_bounds="clip").fit(ce, relevant)
    at = np.linspace(0, 1, 301)
    assert fit_isotonic(ce, relevant)(at) == pytest.approx(peer.predict(at))


# ------------------------------------------------------------------------------- moved thresholds


def test_moved_thresholds_by_hand() -> None:
    thresholds = {"negative_below": 0.1, "positive_above": 0.9}
    found = moved(Temperature(2.0), thresholds)  # Odds 1:9 and 9:1 become their squares.
    assert found == {
        "negative_below": pytest.approx(1 / 82),
        "positive_above": pytest.approx(81 / 82),
    }
    line = Isotonic(np.array([0.2, 0.6]), np.array([0.0, 1.0]))
    assert moved(line, thresholds) == {
        "negative_below": pytest.approx(0.24),
        "positive_above": pytest.approx(0.56),
    }


def test_beyond_the_values_all_or_none_is_cut() -> None:
    """Flat at 0.3: nothing is under 0.1 or over 0.9, everything is under 0.5 and over 0.2."""
    flat, ends = Isotonic(np.array([0.0, 1.0]), np.array([0.3, 0.3])), np.array([0.0, 1.0])
    assert not (ends < flat.below(0.1)).any()
    assert not (ends > flat.above(0.9)).any()
    assert (ends < flat.below(0.5)).all()
    assert (ends > flat.above(0.2)).all()


shares = st.floats(0, 1)


@given(st.lists(st.tuples(shares, st.booleans()), min_size=2, max_size=30), shares, st.booleans())
@settings(max_examples=100, deadline=None)
def test_moved_thresholds_give_the_verdicts_of_the_map(
    pairs: list[tuple[float, bool]], threshold: float, straight: bool
) -> None:
    """Except where rounding alone decides."""
    ce, relevant = (np.array(column) for column in zip(*pairs, strict=True))
    assume(relevant.any() and not relevant.all())
    found = fit_temperature(ce, relevant) if straight else fit_isotonic(ce, relevant)
    at = np.linspace(0, 1, 97)
    mapped = found(at)
    clear = np.abs(mapped - threshold) > 1e-9
    assert ((at < found.below(threshold)) == (mapped < threshold))[clear].all()
    assert ((at > found.above(threshold)) == (mapped > threshold))[clear].all()


# ------------------------------------------------------------------------------------ reliability


def test_reliability_by_hand() -> None:
    """Two pairs at 0.9 (bin 9, as 1.0 is), half of them right; two at 0.05, none right."""
    found = reliability(np.array([0.9, 1.0, 0.05, 0.05]), np.array([1, 0, 0, 0], bool))
    assert found.counts.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (found.said[0], found.so[0]) == (pytest.approx(0.05), 0)
    assert (found.said[9], found.so[9]) == (pytest.approx(0.95), 0.5)
    assert found.error == pytest.approx(0.5 * 0.05 + 0.5 * 0.45)
    assert np.isnan(found.so[1:9]).all()


# ----------------------------------------------------------------------------------- labelled pairs


def test_unlabelled_counts_as_irrelevant_until_people_have_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Version.open(version(tmp_path / "run", scored((4, [1, 2, 3], [0.9, 0.5, 0.1]))))
    judged = qrels((4, 1, 2), (4, 3, 0), (5, 2, 1))
    pairs = labelled_pairs(run, judged)
    assert pairs.ce_N.tolist() == pytest.approx([0.9, 0.5, 0.1])
    assert (pairs.relevant_N.tolist(), pairs.judged) == ([True, False, False], False)
    monkeypatch.setattr(calibration, "JUDGED", 1)
    pairs = labelled_pairs(run, judged)
    assert pairs.ce_N.tolist() == pytest.approx([0.9, 0.1])
    assert (pairs.relevant_N.tolist(), pairs.judged) == ([True, False], True)


def test_pairs_nobody_scored_are_left_out(tmp_path: Path) -> None:
    run = Version.open(version(tmp_path / "run", scored((4, [1, 2], [math.nan, 0.5]), (5, [], []))))
    assert labelled_pairs(run, qrels((4, 1, 1))).queries_N.tolist() == [4]


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_one_kind_of_label_is_not_enough(kind: str) -> None:
    pairs = Pairs(np.array([0, 1]), np.array([0.5, 0.6]), np.array([True, True]), False)
    with pytest.raises(UserError, match="Of 2 scored pairs 2 are relevant"):
        fit(kind, pairs)
