"""`rocketray evaluate`: numbers by hand, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rocketray import cli
from rocketray.artifacts import read_json
from rocketray.errors import UserError
from rocketray.evaluation import evaluate, show

RUN = """\
q1 Q0 p1 1 9.5 tag
q1 Q0 p2 2 9.0 tag
q2 Q0 p3 1 8.0 tag
q2 Q0 p2 2 7.0 tag
"""
QRELS = "query-id\tcorpus-id\tscore\nq1\tp2\t1\nq2\tp3\t1\nq3\tp1\t1\n"
CORPUS = [
    {"_id": "p1", "title": "1973", "text": "Nothing here."},
    {"_id": "p2", "title": "", "text": "It began in October 1973."},
    {"_id": "p3", "title": "", "text": "Numbers such as 21973."},
    {"_id": "p4", "text": 5},
]
QUERIES = [
    {"_id": "q1", "text": "when?", "answers": ["1973"]},
    {"_id": "q2", "text": "which year?", "metadata": {"answers": ["1973"]}},
    {"_id": "q3", "text": "and then?", "answers": ["1973"]},
    {"_id": "q4", "text": "why?"},
    {"_id": "train-1", "text": "of another split", "answers": ["1973"]},
]


class Files:
    """A run, judgements, questions and passages on disk."""

    def __init__(self, folder: Path) -> None:
        self.run, self.qrels = folder / "a.trec", folder / "qrels.tsv"
        self.queries, self.corpus = folder / "queries.jsonl", folder / "corpus.jsonl"
        self.run.write_text(RUN)
        self.qrels.write_text(QRELS)
        for path, rows in ((self.queries, QUERIES), (self.corpus, CORPUS[:3])):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", *map(str, arguments)])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_the_usual_measures(files: Files) -> None:
    """q1 finds its passage at rank 2, q2 at rank 1, q3 asks and gets nothing."""
    found = evaluate(files.run, files.qrels)
    assert list(found) == ["mrr@10", "ndcg@10", "recall@10"]
    assert found["mrr@10"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found["recall@10"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("length", "deepest"), [(49, 10), (50, 50), (999, 50), (1000, 1000)])
def test_no_measure_looks_deeper_than_the_lists(files: Files, length: int, deepest: int) -> None:
    lines = (f"q1 Q0 p{n} {n} {-n} tag\n" for n in range(1, length + 1))
    files.run.write_text("".join(lines))
    assert list(evaluate(files.run, files.qrels))[-1] == f"recall@{deepest}"
    assert "recall@1000" in evaluate(files.run, files.qrels, ["recall@1000"])  # Asked for.


def test_any_measure_of_ir_measures(files: Files) -> None:
    assert evaluate(files.run, files.qrels, ["P@1", "AP"]) == {
        "P@1": pytest.approx(1 / 3),
        "AP": pytest.approx(1.5 / 3),
    }


def test_answer_recall(files: Files) -> None:
    """q1 has it at rank 2, in the text; q2's 1973 is at rank 2 too, as 21973 is another word; q3
    is not in the run; q4 has no answers and does not count, nor does what nobody judged."""
    found = evaluate(files.run, files.qrels, answers=files.queries, corpus=files.corpus)
    ks = [f"answer_recall@{k}" for k in (5, 20, 100)]
    assert [found[name] for name in ks] == pytest.approx([2 / 3] * 3)


def test_json(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--run", files.run, "--qrels", files.qrels, "-m", "mrr@10", "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"mrr@10": pytest.approx(0.5)}
    assert "1 of 3 judged questions are not in the run and count zero" in shown.err
    files.qrels.write_text(QRELS.replace("q3\tp1\t1\n", ""))
    assert call("--run", files.run, "--qrels", files.qrels, "-m", "mrr@10", "--json") == 0
    assert capsys.readouterr().err == ""


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    show({"mrr@10": 0.5, "recall@1000": 1.0}, as_json=False)
    assert capsys.readouterr().out == "mrr@10       0.5000\nrecall@1000  1.0000\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measure", "mrr10"], "measure 'mrr10' is unknown"),
        (["--answers", "queries.jsonl"], "--answers and --corpus go together"),
        (["--answers", "no.jsonl", "--corpus", "no.jsonl"], "no.jsonl: no such file"),
        (
            ["--answers", "corpus.jsonl", "--corpus", "corpus.jsonl"],
            "no judged question has `answers`",
        ),
    ],
)
def test_bad_options(
    files: Files, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    folder = files.run.parent
    paths = [str(folder / a) if a.endswith(".jsonl") else a for a in arguments]
    assert call("--run", files.run, "--qrels", files.qrels, *paths) == 2
    assert message in capsys.readouterr().err


def test_missing_file(files: Files) -> None:
    files.run.unlink()
    with pytest.raises(UserError, match=r"a\.trec: no such file"):
        evaluate(files.run, files.qrels)


def test_files_of_two_data_sets(files: Files) -> None:
    files.qrels.write_text("7 0 p1 1\n")
    with pytest.raises(UserError, match="no question in common: 'q1' stands in the one, '7' in"):
        evaluate(files.run, files.qrels)


def test_broken_corpus(files: Files) -> None:
    with files.corpus.open("a") as file:
        file.write(json.dumps(CORPUS[3]) + "\n")
    with pytest.raises(UserError, match=r"corpus\.jsonl, line 4: `text` must be a string, not 5"):
        evaluate(files.run, files.qrels, answers=files.queries, corpus=files.corpus)


def test_corpus_of_another_run(files: Files) -> None:
    files.corpus.write_text(json.dumps(CORPUS[0]) + "\n")
    with pytest.raises(UserError, match=r"lacks 2 passages of the run, e\.g\. 'p2'"):
        evaluate(files.run, files.qrels, answers=files.queries, corpus=files.corpus)


def test_a_run_of_ours_measures_as_its_table_says(tiny_run: Path) -> None:
    """trec_eval breaks ties by id and we by row, but made-up scores do not tie."""
    table = read_json(tiny_run / "metrics.json")["dual_2"]
    found = evaluate(tiny_run / "runs/dual_2.trec", tiny_run / "data/qrels/test.tsv")
    assert found == pytest.approx(table, abs=1e-6)
