"""masks.py: hand-made ids, and a slow reference."""

from __future__ import annotations

import numpy as np
import torch

from rocketray.model.masks import Known, Masks, known_positives

CPU = torch.device("cpu")


def cells(masks: Masks) -> list[tuple[int, int]]:
    return list(zip(masks.rows.tolist(), masks.columns.tolist(), strict=True))


def test_known_positives_and_the_same_passage_are_masked_but_never_the_rows_own() -> None:
    # Row 0: query 5, passages 50 and 99. Row 1: query 6, 60 and 50. Row 2: query 5, 51 and 60.
    columns = np.array([50, 99, 60, 50, 51, 60])
    known = Known.of(np.array([6, 5, 5]), np.array([60, 51, 50]))
    masks = known_positives(np.array([5, 6, 5]), columns, known)
    assert cells(masks) == [
        (0, 3),  # passage 50, row 0's own positive, as row 1's negative
        (0, 4),  # passage 51 answers query 5
        (1, 5),  # passage 60 once more
        (2, 0),  # passage 50 answers query 5
        (2, 3),
    ]
    assert masks.count == 5
    expected = torch.zeros(3, 6, dtype=torch.bool)
    for row, column in cells(masks):
        expected[row, column] = True
    assert torch.equal(masks.mask(0, 3, CPU), expected)
    assert torch.equal(masks.mask(1, 2, CPU), expected[1:2])


def test_without_labels_only_the_rows_own_passage_is_known() -> None:
    nothing = Known.of(np.empty(0, np.int64), np.empty(0, np.int64))
    masks = known_positives(np.array([1, 2]), np.array([8, 8]), nothing)
    assert cells(masks) == [(0, 1), (1, 0)]


def test_off_masks_nothing() -> None:
    masks = known_positives(np.array([1, 1]), np.array([8, 8]), None)
    assert masks.count == 0
    assert not masks.mask(0, 2, CPU).any()


def test_groups_hide_the_columns_of_other_rows() -> None:
    known = Known.of(np.empty(0, np.int64), np.empty(0, np.int64))
    groups = np.array([0, 1, 0])
    masks = known_positives(np.array([1, 2, 3]), np.array([8, 8, 8]), known, groups)
    assert masks.mask(0, 3, CPU).tolist() == [
        [False, True, True],  # column 1: another group; column 2: own group, but passage 8 again
        [True, False, True],
        [True, True, False],
    ]
    assert cells(masks) == [(0, 2), (2, 0)]


def test_random_ids_against_a_loop() -> None:
    random = np.random.default_rng(0)
    queries, columns = random.integers(0, 6, 12), random.integers(0, 15, 36)
    known = Known.of(random.integers(0, 6, 20), random.integers(0, 15, 20))
    answers = set(zip(known.queries_K.tolist(), known.passages_K.tolist(), strict=True))
    slow = [
        (row, column)
        for row in range(12)
        for column in range(36)
        if column != 3 * row
        and ((queries[row], columns[column]) in answers or columns[column] == columns[3 * row])
    ]
    assert cells(known_positives(queries, columns, known)) == slow
