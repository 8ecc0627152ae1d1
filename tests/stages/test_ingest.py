"""Validation, ids to row numbers, judgements: every mistake is found, with file and line."""

from __future__ import annotations

import json
import socket
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rocketray import schema
from rocketray.errors import UserError
from rocketray.formats import Cut, Source, cut
from rocketray.schema import PASSAGES, QRELS, QUERIES, text_hashes
from rocketray.stages import ingest
from rocketray.stages.ingest import (
    COUNTED,
    Ids,
    IngestPassages,
    IngestQueries,
    Problem,
    hide_labels,
    hide_positives,
    named_queries,
    raise_duplicates,
    raise_problems,
    read_qrels,
)


def block(path: Path, content: bytes | Sequence[Any], kind: str = "jsonl") -> Cut:
    """A file of these bytes, or of these objects as JSON lines, as one cut."""
    if not isinstance(content, bytes):
        content = "".join(json.dumps(row) + "\n" for row in content).encode()
    path.write_bytes(content)
    [found] = cut(Source(path, kind), 1_000, path.parent)
    return found


def ids_of(names: Sequence[str]) -> Ids:
    """Two blocks, and a reader that wants what the contract promises it."""

    def read(rows: np.ndarray) -> list[str]:
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
        return [names[row] for row in rows]

    return Ids([text_hashes(names[:2]), text_hashes(names[2:])], len(names), read)


def test_a_machine_that_does_not_see_the_data_says_so(tmp_path: Path) -> None:
    """As a worker elsewhere, where --data is on the driver's own disk."""
    found = block(tmp_path / "corpus.jsonl", [{"_id": "1", "text": "one"}])
    found.path.unlink()
    where = f"^{socket.gethostname()} does not see {found.path}: the data must be on storage that"
    with pytest.raises(UserError, match=where):
        ingest.Ingest(table="passages", labelled=None)(found)


# ------------------------------------------------------------------------------------------- rows


def test_passages(tmp_path: Path) -> None:
    rows = [
        {"_id": "a", "title": "T", "text": "one\u2028\ttwo\n", "metadata": {}},
        {"_id": 7, "text": " "},
        {"_id": "../../x", "title": None, "text": "x" * 100_001},
        {"_id": "d", "text": "half \ud83d of it", "title": "\ud800"},
        {"_id": "e", "title": "", "text": "\U0001f680 \u4e2d"},
    ]
    found = IngestPassages()(block(tmp_path / "corpus.jsonl", rows))
    assert found.table.schema == PASSAGES
    assert found.table["pid"].to_pylist() == ["a", "7", "../../x", "d", "e"]
    assert found.table["title"].to_pylist() == ["T", "", "", "\ufffd", ""]
    texts = found.table["text"].to_pylist()
    assert texts[0] == "one\u2028\ttwo\n"
    assert texts[1] == " "
    assert texts[3] == "half \ufffd of it"
    assert texts[4] == "\U0001f680 \u4e2d"
    assert found.problems == []
    counted = {"rows": 5, "empty": 1, "titled": 2, "very_long": 1, "int_ids": 1, "surrogates": 2}
    assert found.counts == {**dict.fromkeys(COUNTED, 0), **counted}
    assert found.hashes.tolist() == text_hashes(["a", "7", "../../x", "d", "e"]).tolist()


def test_queries(tmp_path: Path) -> None:
    rows = [
        {"_id": "q1", "text": "one?", "metadata": {"answers": ["a", "b"]}},
        {"_id": "q2", "text": "two?", "answers": "c"},
        {"_id": "q3", "text": "three?", "metadata": {"answer": [1]}},
    ]
    qrels = tmp_path / "train.tsv"
    qrels.write_text("q2\tp\t1\nq9\tp\t1\n")
    found = IngestQueries(named_queries([qrels]))(block(tmp_path / "queries.jsonl", rows))
    assert found.table.schema == QUERIES
    assert found.table.to_pylist() == [
        {"qid": "q1", "text": "one?", "labelled": False, "answers": ["a", "b"]},
        {"qid": "q2", "text": "two?", "labelled": True, "answers": ["c"]},
        {"qid": "q3", "text": "three?", "labelled": False, "answers": []},
    ]
    assert found.counts["odd_answers"] == 1
    unlabelled = IngestQueries()(block(tmp_path / "q.tsv", b"1\tone?\r\n\n2\ttwo?", "tsv"))
    assert unlabelled.table["qid"].to_pylist() == ["1", "2"]
    assert unlabelled.table["labelled"].to_pylist() == [False, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"_id": "b", "text": "x"', "broken JSON at column 25: Expecting ',' delimiter."),
        (b"[1]", "a JSON array where an object must be."),
        (b"null", "a JSON null where an object must be."),
        (b"[" * 100_000, "JSON that cannot be read: "),
        (b'{"_id": ' + b"1" * 5_000 + b', "text": "x"}', "JSON that cannot be read: "),
        (b'{"text": "x"}', "the id (`_id`) is missing."),
        (b'{"_id": null, "text": "x"}', "the id (`_id`) is missing."),
        (b'{"_id": 1.5, "text": "x"}', "the id (`_id`) must be a string, not 1.5."),
        (b'{"_id": true, "text": "x"}', "the id (`_id`) must be a string, not True."),
        (b'{"_id": " ", "text": "x"}', "the id (`_id`) is empty."),
        (b'{"_id": "a\\tb", "text": "x"}', "the id (`_id`) 'a\\tb' holds a tab, newline or"),
        (b'{"_id": "a\\nb", "text": "x"}', "the id (`_id`) 'a\\nb' holds a tab, newline or"),
        (b'{"_id": "b"}', "`text` is missing. A row needs `_id` and `text`; this one has _id."),
        (
            b'{"id": 1, "contents": "x"}',
            "`text` is missing. A row needs `_id` and `text`; this one has id, contents.",
        ),
        (b'{"_id": "b", "text": null}', "`text` must be a string, not None."),
        (b'{"_id": "b", "text": ["x"]}', "`text` must be a string, not ['x']."),
        (b'{"_id": "b", "text": "x", "title": 3}', "`title` must be a string, not 3."),
        (b'{"_id": "b", "text": "x\\u0000"}', "`text` holds a NUL character (U+0000) at"),
        (b'{"_id": "b", "text": "\xff"}', "byte 23 of the line (0xff) is not valid UTF-8."),
        (b'\xef\xbb\xbf{"_id": "b", "text": "x"}', "broken JSON at column 1: Unexpected UTF-8"),
    ],
)
def test_broken_passages(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    good = b'{"_id": "a", "text": "x"}\n'
    found = IngestPassages()(block(path, good + b"\n" + line + b"\n" + good))
    assert len(found.table) == found.counts["rows"] == len(found.hashes) == 2
    assert found.counts["problems"] == 1
    [problem] = found.problems
    assert (problem.file, problem.line) == (str(path), 3)
    assert problem.message.startswith(message)


def test_broken_queries(tmp_path: Path) -> None:
    rows = [{"_id": "q1", "text": " \n"}, {"_id": "q2", "text": "x", "answers": ["\0"]}]
    found = IngestQueries()(block(tmp_path / "queries.jsonl", rows))
    assert [problem.message for problem in found.problems] == [
        "the question's `text` is empty.",
        "`answers` holds a NUL character (U+0000) at character 1. Remove it.",
    ]
    assert found.table.schema == QUERIES
    assert len(found.table) == 0
    tabs = IngestQueries()(block(tmp_path / "q.tsv", b"1\tone\ttwo\n\tthree\n", "tsv"))
    assert [problem.message for problem in tabs.problems] == [
        "3 columns parted by tabs; expected 2: id and text.",
        "the id (`_id`) is empty.",
    ]


def test_a_corpus_of_problems_is_cut_short(tmp_path: Path) -> None:
    found = IngestPassages()(block(tmp_path / "c.jsonl", [{"_id": str(n)} for n in range(99)]))
    assert len(found.problems) == ingest.PROBLEMS_KEPT
    assert found.counts["problems"] == 99


def test_raise_problems() -> None:
    raise_problems([])
    problems = [Problem("b", 1, "y."), Problem("a", 9, "z."), Problem("a", 2, "x.")]
    with pytest.raises(UserError, match=r"^a, line 2: x\. And 2 more\.$"):
        raise_problems(problems)
    with pytest.raises(UserError, match=r"^a, line 2: x\. And 1,499 more\.$"):
        raise_problems(problems, total=1_500)
    with pytest.raises(UserError, match=r"^a, line 2: x\.$"):
        raise_problems(problems[2:])


NAME = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=6)
TEXT = st.text(max_size=20).map(lambda text: text.replace("\0", ""))


@given(
    rows=st.lists(st.tuples(NAME, TEXT, st.integers(0, 2)), min_size=1, max_size=12),
    ends=st.sampled_from(["\n", "\r\n"]),
    ascii_=st.booleans(),
    mark=st.booleans(),
    size=st.integers(1, 5),
)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_rows_out_are_lines_in(
    tmp_path: Path,
    rows: list[tuple[str, str, int]],
    ends: str,
    ascii_: bool,
    mark: bool,
    size: int,
) -> None:
    path = tmp_path / "corpus.jsonl"
    lines = [
        json.dumps({"_id": name, "text": text}, ensure_ascii=ascii_) + ends * (1 + blank)
        for name, text, blank in rows
    ]
    path.write_bytes(b"\xef\xbb\xbf" * mark + "".join(lines).encode())
    found = [IngestPassages()(c) for c in cut(Source(path, "jsonl"), size, tmp_path)]
    table = pa.concat_tables([one.table for one in found])
    assert table["pid"].to_pylist() == [name for name, _, _ in rows]
    assert table["text"].to_pylist() == [text for _, text, _ in rows]
    assert sum(one.counts["problems"] for one in found) == 0


def test_a_giant_passage_and_few_copies_of_it(tmp_path: Path) -> None:
    """10 MB in one line: kept, counted, and not held many times over."""
    giant = block(tmp_path / "corpus.jsonl", [{"_id": "a", "text": "x" * 10_000_000}])
    tracemalloc.start()
    found = IngestPassages()(giant)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.counts["very_long"] == 1
    assert peak < 60_000_000


# -------------------------------------------------------------------------------------------- ids


def test_rows_of_ids() -> None:
    ids = ids_of(["a", "b", "c", "d"])
    assert len(ids) == 4
    assert ids.rows(["d", "x", "a", "d", ""]).tolist() == [3, -1, 0, 3, -1]
    assert ids.rows([]).tolist() == []
    assert ids.duplicates() == []


def test_no_ids_at_all() -> None:
    ids = ids_of([])
    assert ids.rows(["a"]).tolist() == [-1]
    assert ids.duplicates() == []


def test_duplicates() -> None:
    ids = ids_of(["a", "b", "a", "c", "b", "a"])
    assert ids.duplicates() == [(0, 2), (1, 4), (0, 5)]
    assert ids.rows(["a", "b"]).tolist() == [0, 1]


def test_equal_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every hash equal, the real ids decide."""
    monkeypatch.setattr(schema, "text_hashes", lambda ids: np.full(len(ids), 5, np.uint64))
    names = ["a", "b", "c", "b"]
    ids = Ids([schema.text_hashes(names)], 4, lambda rows: [names[row] for row in rows])
    assert ids.rows(["c", "x", "b", "a"]).tolist() == [2, -1, 1, 0]
    assert ids.duplicates() == [(1, 3)]


@given(st.lists(st.text("ab", max_size=3), max_size=12), st.lists(st.text("ab", max_size=3)))
@settings(deadline=None)
def test_ids_are_a_dictionary(names: list[str], wanted: list[str]) -> None:
    ids = ids_of(names)
    assert ids.rows(wanted).tolist() == [names.index(w) if w in names else -1 for w in wanted]
    expected = [(names.index(name), n) for n, name in enumerate(names) if names.index(name) < n]
    assert ids.duplicates() == expected


def test_both_places_of_a_duplicate(tmp_path: Path) -> None:
    for name, content in (("a.txt", "one\n\ntwo\nthree\n"), ("b.txt", "four\n\nfive\n")):
        (tmp_path / name).write_text(content)
    cuts = [c for n in "ab" for c in cut(Source(tmp_path / f"{n}.txt", "txt"), 2, tmp_path)]
    raise_duplicates(ids_of(["1", "2", "3", "4", "5"]), cuts, "pid")
    with pytest.raises(UserError) as error:
        raise_duplicates(ids_of(["1", "2", "3", "4", "2"]), cuts, "pid")
    assert str(error.value) == (
        f"pid '2' stands twice: {tmp_path}/a.txt, line 3 and {tmp_path}/b.txt, line 3. "
        "Rename or remove one."
    )
    with pytest.raises(UserError, match=r"And 1 more\.$"):
        raise_duplicates(ids_of(["1", "1", "1", "4", "2"]), cuts, "pid")


# ---------------------------------------------------------------------------------------- qrels

QUERY_IDS, PASSAGE_IDS = ids_of(["q0", "q1", "q2"]), ids_of(["p0", "p1", "p2"])


def qrels_of(tmp_path: Path, text: str, counts: Counter[str] | None = None) -> Any:
    (tmp_path / "train.tsv").write_text(text)
    return read_qrels(tmp_path / "train.tsv", QUERY_IDS, PASSAGE_IDS, counts)


def test_qrels(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    text = "query-id\tcorpus-id\tscore\nq2\tp0\t3\nq0\tp1\t0\nq2\tp0\t3\nq0\tp0\t-1\n"
    found = qrels_of(tmp_path, text, counts)
    assert found.schema == QRELS
    assert found.to_pydict() == {
        "query": [0, 0, 2],
        "passage": [0, 1, 0],
        "relevance": [-1, 0, 3],
    }
    assert counts == {"merged": 1}
    assert qrels_of(tmp_path, "q2 0 p0 3\nq0 0 p1 0\nq0 0 p0 -1\n") == found


def test_qrels_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "q2\tp0\t3\nq0\tp1\t0\nq2\tp0\t3\nq0\tp0\t1\n"
    whole = qrels_of(tmp_path, text)
    monkeypatch.setattr(ingest, "CHUNK", 1)
    assert qrels_of(tmp_path, text) == whole


def test_dangling_qrels(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        qrels_of(tmp_path, "q0\tp0\t1\nq9\tp0\t1\nq0\tp9\t1\nq8\tp8\t1\nq7\tp0\t1\n")
    assert str(error.value) == (
        f"{tmp_path}/train.tsv: 4 lines name a query or passage that does not exist: line 2, "
        "query 'q9'; line 3, passage 'p9'; line 4, query 'q8'. Remove them or add what they name."
    )


def test_contradicting_qrels(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        qrels_of(tmp_path, "q0\tp0\t1\nq1\tp2\t1\n\nq1\tp2\t2\n")
    assert str(error.value) == (
        f"{tmp_path}/train.tsv: query 'q1' and passage 'p2' have relevance 1 in line 2 and 2 in "
        "line 4. Keep one."
    )


def test_qrels_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the file holds no judgement"):
        qrels_of(tmp_path, "query-id\tcorpus-id\tscore\n")
    with pytest.raises(UserError, match="line 1: relevance 'x' is not an integer"):
        qrels_of(tmp_path, "q0\tp0\tx\n")


# ----------------------------------------------------------------------------------------- hiding


def labels(queries: Sequence[int]) -> pa.Table:
    columns = {
        "query": list(queries),
        "passage": [0] * len(queries),
        "relevance": [1] * len(queries),
    }
    return pa.table(columns, schema=QRELS)


def hidden_queries(qids: Sequence[str], share: float, seed: int = 0) -> set[str]:
    visible, hidden = hide_labels(labels(range(len(qids))), qids, share, seed)
    assert sorted(visible["query"].to_pylist() + hidden["query"].to_pylist()) == list(
        range(len(qids))
    )
    return {qids[row] for row in hidden["query"].to_pylist()}


def test_hiding_is_a_matter_of_id_and_seed() -> None:
    names = [f"q{n}" for n in range(20)]
    chosen = hidden_queries(names, 0.3)
    assert len(chosen) == 6
    assert hidden_queries(names[::-1], 0.3) == chosen
    assert hidden_queries(names, 0.3, seed=1) != chosen
    assert chosen < hidden_queries(names, 0.6)
    assert hidden_queries(names, 0) == set()


def test_a_query_is_hidden_with_all_its_labels() -> None:
    visible, hidden = hide_labels(labels([0, 1, 0, 1, 0]), {0: "a", 1: "b"}, 0.5, 0)
    assert {len(visible), len(hidden)} == {2, 3}
    assert set(visible["query"].to_pylist()).isdisjoint(hidden["query"].to_pylist())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_one_query_stays_visible(count: int) -> None:
    assert len(hidden_queries([f"q{n}" for n in range(count)], 1.0)) == count - 1


def test_share_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"share=1\.5 must lie in \[0, 1\]"):
        hide_labels(labels([0]), ["q"], 1.5, 0)


SEVERAL = [("a", "1", 1), ("a", "2", 2), ("a", "3", 1), ("a", "4", 0), ("b", "1", 1),
           ("c", "1", 1), ("c", "2", 1), ("d", "1", 1), ("d", "2", 0)]  # fmt: skip
"""Of a three are relevant and of c two; b and d have one."""


def hidden_pairs(
    share: float, seed: int = 0, rows: Sequence[tuple[str, str, int]] = SEVERAL
) -> set[tuple[str, str]]:
    qids, pids, relevance = zip(*rows, strict=True)
    columns = {"query": map("abcd".index, qids), "passage": map(int, pids), "relevance": relevance}
    table = pa.table({name: list(values) for name, values in columns.items()}, schema=QRELS)
    visible, hidden = hide_positives(table, qids, pids, share, seed)
    assert len(visible) + len(hidden) == len(rows)
    assert all(relevance > 0 for relevance in hidden["relevance"].to_pylist())
    left = visible.filter(pa.array(visible["relevance"].to_numpy() > 0))["query"].to_pylist()
    assert set(left) == {0, 1, 2, 3}  # Nobody loses the last one.
    found = zip(hidden["query"].to_pylist(), hidden["passage"].to_pylist(), strict=True)
    return {("abcd"[query], str(passage)) for query, passage in found}


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.2, 1), (0.4, 2), (0.6, 3), (1.0, 3)])
def test_a_share_of_the_positives_of_questions_with_several(share: float, count: int) -> None:
    """Five positives are of such questions, and three of them may go."""
    found = hidden_pairs(share)
    assert len(found) == count
    assert {qid for qid, _ in found} <= {"a", "c"}


def test_hiding_positives_is_a_matter_of_ids_and_seed() -> None:
    chosen = hidden_pairs(0.4)
    assert hidden_pairs(0.4, rows=SEVERAL[::-1]) == chosen
    assert chosen < hidden_pairs(0.6)
    assert any(hidden_pairs(0.4, seed) != chosen for seed in range(1, 5))
