"""Distant positives: the listed passages that hold an answer, in the run's order."""

from __future__ import annotations

from pathlib import Path

from rocketray.schema import PASSAGES, QRELS, positives_of
from rocketray.stages.answers import AnswerPositives
from tests.versions import questions, run, table, version


def test_positives_are_listed_in_rank_order(tmp_path: Path) -> None:
    texts = [("", "in 1973"), ("1973", "a title"), ("", "nothing"), ("", "19 73"), ("", "Ada")]
    rows = [(f"p{n}", title, text) for n, (title, text) in enumerate(texts)]
    asked = questions("when?", "who?", "why?", answers=[["1973"], ["Bob", "ada"], []])
    stage = AnswerPositives(
        run=version(tmp_path / "run", run((1, [0, 4]), (0, [3, 2, 1, 0]), (2, [0, 1]))),
        queries=version(tmp_path / "queries", asked),
        passages=version(tmp_path / "passages", table(PASSAGES, *rows)),
        depth=3,
    )
    made = stage(0)
    assert made.parts["table"].schema == QRELS
    assert positives_of(made.parts["table"]) == {1: [4], 0: [3, 1]}
    assert made.rows == 3
