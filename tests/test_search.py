"""Search of a finished run: against numpy, and against sentence-transformers."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rocketray import cli, search
from rocketray.artifacts import RunFolder, read_json, write_json
from rocketray.errors import UserError
from rocketray.search import SNIPPET, Answer, Searcher, one_line, show, snippet


@pytest.fixture(scope="session")
def searcher(tiny_run: Path) -> Searcher:
    return Searcher(tiny_run)


@pytest.fixture(scope="session")
def passages(tiny_run: Path) -> pa.Table:
    return RunFolder.open(tiny_run).version("passages").read()


@pytest.fixture(scope="session")
def question(tiny_run: Path) -> str:
    return str(RunFolder.open(tiny_run).version("queries").read()["text"][0])


@pytest.fixture
def copied(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def forget(folder: Path, *stages: str) -> None:
    """As if these stages had not been made yet."""
    current = read_json(folder / "current.json")
    write_json(folder / "current.json", {n: v for n, v in current.items() if n not in stages})


def test_against_numpy(
    tiny_run: Path, searcher: Searcher, passages: pa.Table, question: str
) -> None:
    version = RunFolder.open(tiny_run).version("dual_2_embeddings")
    p_PD = np.concatenate([version.array(b.number, "embeddings") for b in version.blocks])
    with torch.inference_mode():
        batch = searcher.assembler.texts([question], searcher.dual.query_length)
        scores_P = p_PD @ searcher.dual.embed_queries(batch)[0].numpy()
    order = np.lexsort((np.arange(len(scores_P)), -scores_P))
    answers = searcher.search(question, 1000)  # More than there are: all of them.
    assert [a.rank for a in answers] == list(range(1, len(passages) + 1))
    assert [a.score for a in answers] == pytest.approx(scores_P[order].tolist(), abs=1e-4)
    assert [a.pid for a in answers[:5]] == [passages["pid"][int(row)].as_py() for row in order[:5]]
    assert answers[:5] == searcher.search(question, 5)
    by_pid = {row["pid"]: row for row in passages.to_pylist()}
    for answer in answers:
        assert answer.title == by_pid[answer.pid]["title"]
        assert answer.snippet == snippet(by_pid[answer.pid]["text"], question)
        assert answer.ce_score is None


@pytest.mark.parametrize("k", [1, 3, 120, 250])
def test_ties_go_to_the_lower_row(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch, question: str, k: int
) -> None:
    """Every third of 300 passages scores higher; all others are equal."""
    direction_1D = _embedding(searcher, question)
    p_PD = np.repeat(direction_1D, 300, axis=0) * (1 + (np.arange(300) % 3 == 2))[:, None]
    monkeypatch.setattr(searcher, "embeddings", [(0, p_PD[:100]), (100, p_PD[100:])])
    _, rows = searcher._nearest(question, k)
    better = [row for row in range(300) if row % 3 == 2]
    assert rows.tolist() == (better + [row for row in range(300) if row % 3 != 2])[:k]


def _embedding(searcher: Searcher, question: str) -> np.ndarray:
    with torch.inference_mode():
        batch = searcher.assembler.texts([question], searcher.dual.query_length)
        q_1D: np.ndarray = searcher.dual.embed_queries(batch).numpy()
    return q_1D


def test_rerank_against_sentence_transformers(
    tiny_run: Path, searcher: Searcher, passages: pa.Table, question: str
) -> None:
    from sentence_transformers import CrossEncoder

    texts = {r["pid"]: f"{r['title']} {r['text']}".strip() for r in passages.to_pylist()}
    answers = searcher.search(question, 50, rerank=True)
    pairs = [(question, texts[a.pid][:2000]) for a in answers]
    model = CrossEncoder(str(tiny_run / "models/cross"), device="cpu")
    assert [a.ce_score for a in answers] == pytest.approx(model.predict(pairs).tolist(), abs=1e-5)
    assert {a.pid for a in answers} == {a.pid for a in searcher.search(question, 50)}
    ce_scores = [a.ce_score or 0.0 for a in answers]
    assert ce_scores == sorted(ce_scores, reverse=True)
    assert answers[:7] == searcher.search(question, 7, rerank=True)


def test_what_follows_the_reranked_keeps_its_place(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    monkeypatch.setattr(search, "RERANKED", 5)
    plain, reranked = searcher.search(question, 8), searcher.search(question, 8, rerank=True)
    assert {a.pid for a in reranked[:5]} == {a.pid for a in plain[:5]}
    assert reranked[5:] == plain[5:]


def test_the_end_of_the_input_ends_the_questions(
    tiny_run: Path,
    question: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{question}\n"))
    with pytest.raises(SystemExit) as stop:
        cli.main(["search", str(tiny_run), "-k", "1", "--json"])
    assert not stop.value.code
    assert '"pid"' in capsys.readouterr().out


# ---- what cannot be searched


@pytest.mark.parametrize("empty", ["", " \n"])
def test_empty_question(searcher: Searcher, empty: str) -> None:
    with pytest.raises(UserError, match="question is empty"):
        searcher.search(empty)


def test_a_question_that_is_no_utf8(searcher: Searcher) -> None:
    """A shell hands bytes that are no UTF-8 over as lone surrogates."""
    assert len(searcher.search("caf\udce9", 3)) == 3


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a rocketray run"):
        Searcher(tmp_path)


def test_the_best_finished_model_is_opened(copied: Path) -> None:
    forget(copied, "dual_2_embeddings")
    assert Searcher(copied)._best()[0].name == "dual_1"
    forget(copied, "dual_1", "dual_0")
    with pytest.raises(UserError, match=r"no finished retriever.*Run it further"):
        Searcher(copied)


def test_embeddings_of_another_model_do_not_count(copied: Path) -> None:
    """As after a kill between training again and encoding again."""
    current = read_json(copied / "current.json")
    write_json(copied / "current.json", {**current, "dual_2": current["dual_0"]})
    assert Searcher(copied)._best()[0].name == "dual_1"


def test_embeddings_of_older_passages(copied: Path) -> None:
    current = read_json(copied / "current.json")
    write_json(copied / "current.json", {**current, "passages": current["queries"]})
    with pytest.raises(UserError, match="passages are newer than their embeddings"):
        Searcher(copied)


def test_no_cross_encoder(copied: Path, question: str) -> None:
    forget(copied, "cross")
    searcher = Searcher(copied)
    assert searcher.search(question, 1)
    with pytest.raises(UserError, match="no cross-encoder"):
        searcher.search(question, 1, rerank=True)


def test_damaged_embeddings(copied: Path) -> None:
    path = RunFolder.open(copied).version("dual_2_embeddings").blocks[1].files["embeddings"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path.name} differs from its manifest: expected sha256"):
        Searcher(copied)


# ---- what people see


def test_snippet_of_a_short_text_is_the_text() -> None:
    assert snippet("  One\n\tline\x1b[31m. ", "line") == "One line [31m."


def test_snippet_shows_where_the_words_stand() -> None:
    text = "the filler of it. " * 50 + "Tensors are padded by pad. " + "the filler of it. " * 50
    found = snippet(text, "how are the TENSORS padded?")
    assert "Tensors are padded by pad." in found
    assert found.startswith("… ")
    assert found.endswith(" …")
    assert len(found) <= SNIPPET + 4


@given(st.text(max_size=600), st.text(max_size=20))
def test_snippet_is_a_piece_of_the_text(text: str, question: str) -> None:
    found = snippet(text, question)
    assert len(found) <= SNIPPET + 4
    assert found == one_line(found)
    assert found.strip("… ") in one_line(text)


ANSWERS = [Answer(1, "p7", "", "text", 0.5, None), Answer(2, "p8", "Title", "词", 2.0, 0.25)]


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    show(ANSWERS, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["1", "0.5000", "p7"], ["text"], ["2", "0.2500", "Title"], ["词"],
    ]  # fmt: skip


def test_show_json(capsys: pytest.CaptureFixture[str]) -> None:
    show(ANSWERS, as_json=True)
    assert [Answer(**row) for row in json.loads(capsys.readouterr().out)] == ANSWERS


def test_verb(
    tiny_run: Path, searcher: Searcher, question: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["search", str(tiny_run), question, "-k", "2", "--rerank", "--json"])
    assert stop.value.code == 0
    found = [Answer(**row) for row in json.loads(capsys.readouterr().out)]
    assert found == searcher.search(question, 2, rerank=True)
