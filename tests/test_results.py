"""Measures of a run, block by block: those of the whole run. And counts in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rocketray import measures, results
from rocketray.artifacts import Version
from rocketray.evaluation import MEASURES
from rocketray.schema import Verdict
from tests.versions import qrels, run, scored, version

SIZES = (12, 0, 3, 60, 60, 60, 60, 60, 5)
"""Passages found for question 10, 11, ... in blocks of four, the last one of question 18."""


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Version, Version]:
    """A run, and its first five passages scored: the fifth is the best, two pairs are equal."""
    random = np.random.default_rng(0)
    rows = [(10 + n, random.permutation(60)[:size].tolist()) for n, size in enumerate(SIZES)]
    heads = [(q, p[:5], [0.1, 0.1, 0.5, 0.5, 0.9][: len(p)]) for q, p in rows]
    starts = range(0, len(rows), 4)
    found = version(tmp_path / "found", *(run(*rows[at : at + 4]) for at in starts))
    by_cross = version(tmp_path / "by_cross", *(scored(*heads[at : at + 4]) for at in starts))
    return Version.open(found), Version.open(by_cross)


def test_by_block_as_of_the_whole(runs: tuple[Version, Version]) -> None:
    """Questions 13, 10, 11, 12, 18 are judged, none of the second block, and 5 was not asked."""
    found, by_cross = runs
    lists = found.read(["query", "passages"]).to_pylist()
    fifth = {row["query"]: row["passages"][4] for row in lists if row["passages"][4:]}
    places = [(13, fifth[13], 1), (10, fifth[10], 1), (11, 3, 1), (18, 1, 0), (5, 1, 1), (12, 9, 1)]
    judged = qrels(*places, *((13, p, 1) for p in range(20, 40)), (13, fifth[13], 2))
    values, depth = results.per_query(found, by_cross, judged)
    assert depth == 60
    answered = judged.filter(pa.array(judged["query"].to_numpy() != 5))
    whole = {"found": found.read(), "by_cross": results.reranked(found.read(), by_cross.read())}
    assert list(values) == ["found", "by_cross"]
    for name, table in whole.items():
        assert values[name].index.tolist() == [10, 11, 12, 13, 18]
        expected = measures.evaluate(table, answered, MEASURES)
        assert values[name].mean().to_dict() == pytest.approx(expected, abs=1e-12)
    assert values["found"]["recall@50"].sum() > 0
    assert values["found"]["mrr@10"][13] == 0.2
    assert values["by_cross"]["mrr@10"][13] == 1


def test_questions_that_nobody_judged(runs: tuple[Version, Version]) -> None:
    assert results.per_query(runs[0], None, qrels()) == ({}, 60)
    assert results.per_query(runs[0], None, qrels((5, 1, 1))) == ({}, 60)


def test_what_a_filter_kept_out_is_told_where_it_did() -> None:
    counts = {
        Verdict.HARD_NEGATIVE: 4, Verdict.LIKELY_FALSE_NEGATIVE: 1, Verdict.UNCERTAIN: 2,
        Verdict.NEAR_POSITIVE: 1,
    }  # fmt: skip
    ((label, words),) = results.removals(counts, ", round 2")
    assert label == "negatives removed, round 2"
    assert words == (
        "4 of 8 (50.0 %): 1 likely false negatives, 2 uncertain, 1 too near the positive"
    )
    ((_, words),) = results.removals({**counts, Verdict.NEAR_POSITIVE: 0}, "")
    assert words == "3 of 7 (42.9 %): 1 likely false negatives, 2 uncertain"
