"""Measures by hand, and against trec_eval itself (through pytrec_eval)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import pytrec_eval
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rocketray.errors import UserError
from rocketray.measures import (
    Hits,
    answer_recall,
    compare,
    evaluate,
    interval,
    per_query,
    read_qrels_file,
    read_run,
    write_run,
)
from rocketray.schema import QRELS, RUN

ALL = ["mrr@10", "ndcg@10", "recall@10", "recall@50", "map@100", "hit@5"]


def run_table(rows: dict[int, list[int]], scores: list[float] | None = None) -> pa.Table:
    columns = {
        "query": list(rows),
        "passages": list(rows.values()),
        "scores": [scores or [float(-i) for i in range(len(hits))] for hits in rows.values()],
    }
    return pa.table(columns, schema=RUN)


def qrels_table(rows: list[tuple[int, int, int]]) -> pa.Table:
    columns = dict(zip(QRELS.names, map(list, zip(*rows, strict=True)), strict=True))
    return pa.table(columns, schema=QRELS)


def hits(**scores: float) -> Hits:
    return Hits(list(scores), np.array(list(scores.values()), np.float32))


def test_by_hand() -> None:
    run = run_table({0: [7, 5, 6], 1: [4, 5], 3: [1]})
    qrels = qrels_table([(0, 5, 1), (0, 9, 1), (1, 4, 2), (1, 5, 0), (2, 1, 1)])
    found = per_query(run, qrels, ALL)
    # Query 0: first hit at rank 2, one of two found. Query 1: perfect. Query 2: no hits at all.
    assert found["mrr@10"].to_dict() == {0: 0.5, 1: 1.0, 2: 0.0}
    assert found["recall@10"].to_dict() == {0: 0.5, 1: 1.0, 2: 0.0}
    assert found["map@100"].to_dict() == {0: 0.25, 1: 1.0, 2: 0.0}
    assert found["hit@5"].to_dict() == {0: 1.0, 1: 1.0, 2: 0.0}
    ideal = 1 + 1 / math.log2(3)
    assert found["ndcg@10"][0] == pytest.approx(1 / math.log2(3) / ideal)
    assert evaluate(run, qrels, ["mrr@10", "hit@5"]) == {"mrr@10": 0.5, "hit@5": 2 / 3}


def test_cutoffs() -> None:
    run = run_table({0: list(range(60))})
    qrels = qrels_table([(0, 10, 1)])
    asked = ["mrr@10", "mrr@11", "recall@10", "recall@11", "hit@10", "hit@50"]
    assert evaluate(run, qrels, asked) == {
        "mrr@10": 0, "mrr@11": pytest.approx(1 / 11), "recall@10": 0, "recall@11": 1, "hit@10": 0,
        "hit@50": 1,
    }  # fmt: skip


def test_ties_keep_our_order() -> None:
    """trec_eval would put passage 9 first, for "9" > "10"; the table says 10."""
    run = run_table({0: [10, 9]}, scores=[1.0, 1.0])
    assert evaluate(run, qrels_table([(0, 10, 1)]), ["mrr@10"]) == {"mrr@10": 1.0}


def test_ties_in_a_file_are_trec_evals() -> None:
    run = {"q": hits(**{"10": 1.0, "9": 1.0, "8": 1.0 + 1e-9})}  # equal as float32
    assert evaluate(run, {"q": {"10": 1}}, ["mrr@10"]) == {"mrr@10": pytest.approx(1 / 3)}


def test_names_of_ir_measures() -> None:
    run, qrels = {"q": hits(a=3, b=2, c=1)}, {"q": {"b": 1, "c": 1}}
    found = evaluate(run, qrels, ["P@2", "AP", "RR@1", "nDCG@10", "ndcg@10"])
    assert found["P@2"] == 0.5
    assert found["AP"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["RR@1"] == 0
    assert found["nDCG@10"] == found["ndcg@10"]


NO_MEASURES = ["mr@10", "mrr@x", "accuracy", "mrr 10", "", "mrr@0x1", "mrr@0"]
NO_CUTOFF, NO_PACKAGE, NO_MEAN = ["P", "Success"], ["RBP(p=0.8)", "alpha_nDCG@20"], ["NumRet"]


@pytest.mark.parametrize("name", [*NO_MEASURES, *NO_CUTOFF, *NO_PACKAGE, *NO_MEAN])
def test_unknown_measure(name: str) -> None:
    with pytest.raises(UserError, match=r"is unknown: use mrr@K, ndcg@K, recall@K, map@K, hit@K"):
        evaluate({}, {"q": {"a": 1}}, [name])


def test_all_irrelevant_and_negative_judgements() -> None:
    found = evaluate({"q": hits(a=1.0)}, {"q": {"a": -2}, "r": {"b": 0}}, ALL)
    assert found == dict.fromkeys(ALL, 0.0)


QUERY = st.dictionaries(st.sampled_from("abcdefghijkl"), st.sampled_from([0.5, 1, 1 + 1e-9, 2]))
JUDGED = st.dictionaries(st.sampled_from("abcdefghijkl"), st.integers(0, 3), min_size=1)
TREC = {
    "ndcg@10": "ndcg_cut_10",
    "recall@10": "recall_10",
    "map@100": "map_cut_100",
    "hit@5": "success_5",
}


@given(
    st.fixed_dictionaries({"1": QUERY, "2": QUERY, "3": QUERY}),
    st.fixed_dictionaries({"1": JUDGED, "3": JUDGED, "4": JUDGED}),
)
@settings(deadline=None, max_examples=60)
def test_equal_to_trec_eval(
    run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]]
) -> None:
    truth = pytrec_eval.RelevanceEvaluator(qrels, {*TREC.values(), "recip_rank"}).evaluate(run)
    found = per_query({qid: hits(**scores) for qid, scores in run.items()}, qrels, ALL)
    for qid in qrels:
        for ours, theirs in TREC.items():
            value = truth[qid][theirs] if run.get(qid) else 0.0
            assert found.loc[qid, ours] == pytest.approx(value, abs=1e-12)
        rank = truth[qid]["recip_rank"] if run.get(qid) else 0.0
        assert found.loc[qid, "mrr@10"] == pytest.approx(rank if rank >= 0.1 else 0.0)


def test_more_queries_than_a_chunk() -> None:
    run = run_table({query: [query, query + 1] for query in range(1_203)})
    qrels = qrels_table([(query, query + query % 2, 1) for query in range(1_203)])
    found = per_query(run, qrels, ["mrr@10"])
    assert found["mrr@10"].tolist() == [1.0 if query % 2 == 0 else 0.5 for query in range(1_203)]


# ----------------------------------------------------------------------------------- significance


def test_compare_counts_signs() -> None:
    """Three equal differences: 2 of the 8 sign patterns reach the sum, so p is about 1/4."""
    a, b = pd.Series([1.0, 1.0, 1.0]), pd.Series([0.5, 0.5, 0.5])
    found = compare(a, b, rounds=4_000)
    assert found.difference == 0.5
    assert found.p_value == pytest.approx(0.25, abs=0.03)
    assert found == compare(a, b, rounds=4_000)
    assert found.queries == 3


def test_compare_flips_a_group_as_one() -> None:
    """Six equal gains: alone 2 of 64 sign patterns are as far from zero; as two groups of two and
    two queries that stand alone, 2 of 16; as one group both patterns are."""
    a, b = (pd.Series([value] * 6, index=list("abcdef")) for value in (1.0, 0.5))
    pairs = pd.Series({"d": 8, "c": 8, "b": 7, "a": 7, "z": 7})
    for groups, expected in [(None, 2 / 64), (pairs, 2 / 16), (pd.Series(1, list("abcdef")), 1.0)]:
        found = compare(a, b, groups=groups, rounds=4_000)
        assert (found.difference, found.queries) == (0.5, 6)
        assert found.p_value == pytest.approx(expected, abs=0.02)


def test_compare_agrees_with_the_t_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(5)
    a = pd.Series(draw.random(300))
    b = a + draw.normal(0.02, 0.2, 300)
    expected = stats.ttest_rel(a, b).pvalue
    assert compare(a, b).p_value == pytest.approx(expected, abs=0.02)


def test_compare_aligns_by_query() -> None:
    a = pd.Series({"x": 1.0, "y": 0.0})
    assert compare(a, a[::-1]) == (0.0, 1.0, 2)
    with pytest.raises(ValueError, match="over the same queries"):
        compare(a, pd.Series({"x": 1.0, "z": 0.0}))


def test_an_interval_draws_seeds_and_groups_of_queries() -> None:
    """Every draw's mean is known, and those at the ends come in a quarter of draws or more."""
    index = list("abcd")
    for columns, groups, expected in [
        ([[0.5] * 4, [0.5] * 4], None, (0.5, 0.5)),
        ([[1.0] * 4, [-1.0] * 4], None, (-1.0, 1.0)),  # Of two seeds: both one, both the other.
        ([[0.0, 0.0, 0.0, 1.0]], pd.Series(7, index), (0.25, 0.25)),  # One group, always drawn.
        # Two groups, of three and one: the mean is over the drawn queries, 0, 1/4 or 1.
        ([[0.0, 0.0, 0.0, 1.0]], pd.Series([7, 7, 7], list("cba")), (0.0, 1.0)),
    ]:
        found = interval(pd.DataFrame(np.array(columns).T, index), groups=groups)
        assert found == pytest.approx(expected)


def test_an_interval_of_many_queries_is_that_of_the_normal_distribution() -> None:
    drawn = np.random.default_rng(5).normal(0.02, 0.2, 400)
    low, high = interval(pd.DataFrame({"seed": drawn}))
    error = drawn.std() / 400**0.5
    assert low == pytest.approx(drawn.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(drawn.mean() + 1.96 * error, abs=0.2 * error)
    assert (low, high) == interval(pd.DataFrame({"seed": drawn}))


# ---------------------------------------------------------------------------------------- answers


def test_answer_recall() -> None:
    texts = {1: "Paris is far.", 2: "Rome it is.", 3: "Nothing."}
    run = run_table({0: [3, 2], 1: [1, 3], 2: [1]})
    answers = {0: ["rome"], 1: ["Paris"], 2: [], 5: ["Oslo"]}  # 2 has none, 5 no hits
    assert answer_recall(run, answers, texts.__getitem__, [1, 2]) == {
        "answer_recall@1": 1 / 3,
        "answer_recall@2": 2 / 3,
    }
    assert answer_recall(run, {}, texts.__getitem__, [1]) == {"answer_recall@1": 0.0}


# ------------------------------------------------------------------------------------- TREC files


def test_written_by_hand(tmp_path: Path) -> None:
    write_run(tmp_path / "x.trec", [("q1", ["p2", "p 1"], [2.5, 0.1])], tag="me")
    text = (tmp_path / "x.trec").read_text()
    assert text == "q1\tQ0\tp2\t1\t2.5\tme\nq1\tQ0\tp 1\t2\t0.1\tme\n"


SCORES = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4)
IDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda name: not any(character.isspace() for character in name)
)


@given(st.dictionaries(IDS | st.just("../../x") | st.just("$(x)"), SCORES, max_size=4))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_run_round_trip(tmp_path: Path, rows: dict[str, list[float]]) -> None:
    path = tmp_path / "x.trec"
    names = {qid: [f"p{i}" for i in range(len(scores))] for qid, scores in rows.items()}
    write_run(path, ((qid, names[qid], scores) for qid, scores in rows.items()))
    found = read_run(path)
    assert list(found) == list(rows)
    for qid, scores in rows.items():
        assert found[qid].pids == names[qid]
        assert found[qid].scores.tobytes() == np.array(scores, np.float32).tobytes()


def test_read_any_white_space_and_order(tmp_path: Path) -> None:
    path = tmp_path / "x.trec"
    path.write_text("q1 Q0 a 1 2.0 t\nq2\tQ0\tb\t1\t1e-3\tt\nq1   Q0  c 2 3 t\n")
    found = read_run(path)
    assert {qid: row.pids for qid, row in found.items()} == {"q1": ["a", "c"], "q2": ["b"]}
    assert evaluate(found, {"q1": {"c": 1}, "q2": {"b": 1}}, ["mrr@10"]) == {"mrr@10": 1.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 p 1 2.0 t\nq Q0 p2 2 2.0\n", ", line 2: 5 columns; a run's line is"),
        ("q Q0 p 1 high t\n", ", line 1: score 'high' is not a number."),
        ("q Q0 p 1 nan t\n", ", line 1: score 'nan' is not a number."),
        ("q Q0 p 1 2 t\nq Q0 p 2 1 t\n", ": query 'q' lists passage 'p' twice."),
    ],
)
def test_bad_runs(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.trec"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_run(path)
    assert str(error.value).startswith(f"{path}{message}")


def test_a_failed_run_leaves_nothing(tmp_path: Path) -> None:
    for bad in (["a\tb"], [1.0]), (["a"], [float("nan")]), (["a"], []):
        with pytest.raises(ValueError):  # noqa: PT011 (three messages)
            write_run(tmp_path / "x.trec", [("q", ["ok"], [1.0]), ("q2", *bad)])
    assert list(tmp_path.iterdir()) == []


def test_qrels_file(tmp_path: Path) -> None:
    path = tmp_path / "qrels.txt"
    path.write_text("q1 0 a 2\nq1 0 b 0\nq1 0 a 2\nq2 0 a 1\n")
    assert read_qrels_file(path) == {"q1": {"a": 2, "b": 0}, "q2": {"a": 1}}
    path.write_text("query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\ta\t1\n")
    with pytest.raises(
        UserError, match=r"line 3: query 'q1' and passage 'a' have relevance 1 here"
    ):
        read_qrels_file(path)
    path.write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(UserError, match="holds no judgement"):
        read_qrels_file(path)
