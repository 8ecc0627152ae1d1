"""Two models question by question, over a folder small enough to count by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rocketray import report
from rocketray.artifacts import RunFolder, write_json
from rocketray.recipe import parse
from rocketray.report import compared, plots
from rocketray.report.compared import Found, chance, first_words, lengths, slices
from rocketray.schema import PASSAGES, QRELS, QUERIES, RUN
from tests.report.test_report import version

MODELS = list(report.MODELS)
QUESTIONS = ("Who flies?", "who swims in the sea", "why")
TEXTS = ("a bird flies", "a fish swims", "nobody knows why", "who asks")
JUDGED = {"query": [0, 1, 1, 2], "passage": [0, 1, 3, 2], "relevance": [1, 1, 2, 0]}


def run(*lists: list[int]) -> pa.Table:
    scores = [[float(-n) for n in range(len(rows))] for rows in lists]
    return pa.table([list(range(len(lists))), list(lists), scores], schema=RUN)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path)
    queries = [["a", "b", "c"], list(QUESTIONS), [True] * 3, [[]] * 3]
    version(made, "queries", pa.table(queries, schema=QUERIES))
    passages = [[str(n) for n in range(4)], [""] * 4, list(TEXTS)]
    table = pa.table(passages, schema=PASSAGES)
    version(made, "passages", table.slice(0, 3), table.slice(3))
    version(made, "qrels_test", pa.table(JUDGED, schema=QRELS))
    version(made, "initial_test", run([1], [0], [0]))
    both = run([1, 0, 2], [1, 2, 3], [])
    version(made, "dual_0_test", both.slice(0, 1), both.slice(1))
    version(made, "dual_2_test", run([0, 1, 2], [2, 0], [2, 1]))
    return made


def test_ranks_and_recall_are_those_of_the_lists(folder: RunFolder) -> None:
    every, _ = compared.read(folder, MODELS)
    assert list(every) == ["initial", "dual_0", "dual_2"]
    dual_0, dual_2 = every["dual_0"], every["dual_2"]
    assert dual_0.first_Q.tolist() == [1, 1, -1]
    assert dual_0.rank_Q.tolist() == [2, 1, 0]
    assert dual_0.hit_Q.tolist() == [0, 1, -1]
    assert dual_0.mrr_Q.tolist() == [0.5, 1, 0]
    # Question 0 has its one passage at 2; question 1 one of two at 1, the other at 3; 2 has none.
    assert dual_0.recall_K == pytest.approx(np.array([0.5, 1.5, 2]) / 3)
    assert dual_2.rank_Q.tolist() == [1, 0, 0]  # A passage judged 0 is not relevant.


def test_a_second_round_has_its_own_curve(folder: RunFolder) -> None:
    version(folder, "dual_1_test", run([0], [1], [2]))
    version(folder, "dual_1_round_2_test", run([1], [1], [2]))
    version(folder, "bm25_test", run([2], [1], [2]))
    told = parse({"denoise": {"rounds": 2}}, "two rounds").denoise
    every, _ = compared.read(folder, list(report.models(told)))
    names = ["initial", "bm25", "dual_0", "dual_1", "dual_1_round_2", "dual_2"]
    assert list(every) == names
    assert every["dual_1_round_2"].first_Q.tolist() == [1, 1, 2]
    drawn = plots.recall({name: one.recall_K for name, one in every.items()})
    assert all(f">{name}</text>" in drawn for name in names)


def test_questions_that_were_not_asked_do_not_count(folder: RunFolder) -> None:
    version(folder, "test_queries", pa.table({"query": pa.array([1, 0])}))
    every, found = compared.read(folder, MODELS)
    assert every["dual_0"].rank_Q.tolist() == [2, 1]
    assert found
    assert found.questions == 2


def test_the_last_model_stands_against_dual_0(folder: RunFolder) -> None:
    _, found = compared.read(folder, MODELS)
    assert found
    assert (found.before, found.after) == ("dual_0", "dual_2")
    assert found.mrr == (0.5, pytest.approx(1 / 3))
    assert (found.better, found.worse, found.questions) == (1, 1, 3)
    (win,), (loss,) = found.wins, found.losses
    assert (win.question, win.before, win.after) == ("Who flies?", 2, 1)
    assert win.instead
    assert (win.relevant.text, win.instead.text) == ("a bird flies", "a fish swims")
    assert (loss.question, loss.before, loss.after) == ("who swims in the sea", 1, 0)
    assert loss.instead
    assert (loss.relevant.text, loss.instead.text) == ("a fish swims", "nobody knows why")


def test_of_several_relevant_passages_the_one_is_shown_that_was_found(folder: RunFolder) -> None:
    """Question 1 has passages 1 and 3; dual_2 finds 3 first and dual_0 none, so 3 is shown."""
    version(folder, "dual_0_test", run([0], [0, 2], [2]))
    version(folder, "dual_2_test", run([0], [3, 0], [2]))
    _, found = compared.read(folder, MODELS)
    assert found
    (win,) = found.wins
    assert (win.question, win.after, win.relevant.text) == (QUESTIONS[1], 1, "who asks")


def test_questions_about_one_passage_are_one_witness() -> None:
    """Five gains alike: only when all signs agree is a sum as large, in 2 of 32 cases. About one
    passage all signs are one."""
    old, new = (Found(np.zeros(5), np.full(5, rank), np.zeros(5), np.zeros(1)) for rank in (2, 1))
    apart = {query: {query, 9} for query in range(5)}
    together = {query: {3, query + 5} for query in range(5)}
    assert chance(old, new, apart) == pytest.approx(2 / 32, abs=0.01)
    assert chance(old, new, together) == 1


def test_questions_without_a_relevant_passage_change_no_chance() -> None:
    old, new = (
        Found(np.zeros(6), np.array([*[rank] * 5, 0]), np.zeros(6), np.zeros(1)) for rank in (2, 1)
    )
    relevant: dict[int, set[int]] = {query: {query} for query in range(5)}
    assert chance(old, new, relevant | {5: set()}) == pytest.approx(2 / 32, abs=0.01)


def test_slices_by_overlap_leave_out_questions_without_a_relevant_passage(
    folder: RunFolder,
) -> None:
    _, found = compared.read(folder, MODELS)
    assert found
    overlap = [
        (s.name, s.questions, s.before, s.after) for s in found.slices if s.kind == "overlap"
    ]
    # "who flies" shares one word of two; "who swims in the sea" one of five.
    assert overlap == [("under a third", 1, 1, 0), ("up to two thirds", 1, 0.5, 1)]


def test_slices_hold_every_question_once() -> None:
    parts = first_words(["Who is it", "who?", "", "How so", "how", "how far"])
    assert parts == (["how", "who", "other"], [1, 1, 2, 0, 0, 0])
    found = Found(np.zeros(6), np.array([1, 2, 0, 4, 11, 1]), np.zeros(6), np.zeros(1))
    rows = list(slices("first word", parts, found, found))
    assert [(s.name, s.questions, s.after) for s in rows] == [
        ("how", 3, (0.25 + 0 + 1) / 3),
        ("who", 2, 0.75),
        ("other", 1, 0),
    ]


def test_a_rare_first_word_has_no_slice() -> None:
    assert first_words(["what"] * 99 + ["whence"]) == (["what", "other"], [0] * 99 + [1])


def test_no_slice_without_a_question() -> None:
    found = Found(np.zeros(2), np.ones(2), np.zeros(2), np.zeros(1))
    rows = slices("first word", first_words(["1984 was", "1984 is"]), found, found)
    assert [(s.name, s.questions) for s in rows] == [("1984", 2)]
    rows = slices("any", (["none", "one"], [-1, 1]), found, found)
    assert [(s.name, s.questions) for s in rows] == [("one", 1)]


def test_lengths_are_cut_in_thirds() -> None:
    names = ("up to 1 words", "up to 2 words", "over 2 words")
    assert lengths(["a", "a b", "a b c"]) == (names, [0, 1, 2])


def test_the_page_shows_both_sides(folder: RunFolder) -> None:
    page = report.write(folder).read_text()
    assert "dual_2 against dual_0 on 3 test questions" in page
    assert "higher on 1, lower on 1" in page
    assert "p = 1.0000 by a paired randomisation test in which questions about one" in page
    assert "2 by dual_0, 1 by dual_2" in page
    assert "1 by dual_0, none by dual_2" in page
    assert page.count("a fish swims") == 2


def test_dev_questions_measure_where_there_are_no_others(folder: RunFolder) -> None:
    """MS MARCO's layout: all of it is there, and called what it is."""
    before = compared.read(folder, MODELS)
    version(folder, "qrels_dev", pa.table(JUDGED, schema=QRELS))
    folder.set_current(instead_of={"qrels_test"})
    after = compared.read(folder, MODELS)
    assert list(after[0]) == list(before[0])
    assert after[1] == before[1]
    write_json(folder.path / "metrics.json", {"dual_2": {"mrr@10": 0.5}})
    write_json(folder.path / "summary.json", {"rows": {"dev": 2, "test": 3}})
    page = report.write(folder).read_text()
    assert "dual_2 against dual_0 on 3 dev questions" in page
    assert "2 dev questions, 3 dev questions that measure." in " ".join(page.split())
    assert "test questions" not in page
    assert "There are no two models to compare" not in page


def test_dev_questions_that_chose_as_well_are_told(folder: RunFolder) -> None:
    write_json(folder.path / "metrics.json", {"dual_2": {"mrr@10": 0.5}})
    (folder.path / "recipe.yaml").write_text("paper: true\nsteps: {cross: {evaluations: 2}}\n")
    words = "they have also chosen (steps.cross.evaluations)"
    assert words not in report.write(folder).read_text()
    version(folder, "qrels_dev", pa.table(JUDGED, schema=QRELS))
    folder.set_current(instead_of={"qrels_test"})
    assert words in report.write(folder).read_text()
    (folder.path / "recipe.yaml").write_text("paper: true\n")
    assert "have also chosen" not in report.write(folder).read_text()


def test_one_model_has_a_curve_but_nothing_to_stand_against(folder: RunFolder) -> None:
    current = {"qrels_test", "queries", "passages", "initial_test"}
    path = folder.path / "current.json"
    path.write_text(json.dumps({n: v for n, v in folder.current().items() if n in current}))
    every, found = compared.read(folder, MODELS)
    assert (list(every), found) == (["initial"], None)
    assert "There are no two models to compare" in report.write(folder).read_text()


def test_the_numbers_are_those_of_metrics_json(tiny_run: Path) -> None:
    every, found = compared.read(RunFolder.open(tiny_run), MODELS)
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    assert found
    for model, one in every.items():
        assert one.mrr_Q.mean() == pytest.approx(metrics[model]["mrr@10"], abs=1e-6)
        assert one.recall_K[9] == pytest.approx(metrics[model]["recall@10"], abs=1e-6)
