"""Lines of text files, and qrels files in all their shapes."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from rocketray.errors import UserError
from rocketray.lines import Judgement, judgements, text_lines


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    content = b"\xef\xbb\xbfone \r\n\n\t\ntwo\xe2\x80\xa8still\nlast"
    path.write_bytes(content)
    expected = [(1, "one "), (4, "two\u2028still"), (5, "last")]
    assert list(text_lines(path)) == expected
    packed = tmp_path / "x.txt.gz"
    packed.write_bytes(gzip.compress(content))
    assert list(text_lines(packed)) == expected


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"x\.txt, line 2: byte 4 of the line \(0xe9\) is not"):
        list(text_lines(path))


def test_utf_16_is_called_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("fine\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"\(0xff\) is not .* `iconv -f UTF-16 -t UTF-8`"):
        list(text_lines(path))


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"a line\n" * 1000)[:-9])
    with pytest.raises(UserError, match=r"x\.gz: the gzip file ends too early"):
        list(text_lines(path))
    path.write_bytes(b"plain\n")
    with pytest.raises(UserError, match=r"x\.gz: not a readable gzip file"):
        list(text_lines(path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("query-id\tcorpus-id\tscore\nq 1\tp1\t2\n", [(2, "q 1", "p1", 2)]),  # BEIR
        ("q1\tp1\t-1\r\n\nq2\tp2\t0", [(1, "q1", "p1", -1), (3, "q2", "p2", 0)]),
        ("q1 0 p1 1\nq2\t0\tp2\t1\n", [(1, "q1", "p1", 1), (2, "q2", "p2", 1)]),  # TREC
        ("7\t8\n", [(1, "7", "8", 1)]),  # RocketQA
        ("qid\tpid\n7\t8\n", [(2, "7", "8", 1)]),
    ],
)
def test_judgements(tmp_path: Path, text: str, expected: list[tuple[object, ...]]) -> None:
    path = tmp_path / "qrels.tsv"
    path.write_text(text, newline="")
    assert list(judgements(path)) == [Judgement(*row) for row in expected]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q\tp\tyes", "line 2: relevance 'yes' is not an integer"),
        ("q\tp\t1.0", "line 2: relevance '1.0' is not an integer"),
        ("q\t0\tp\t9999999999", "line 2: relevance '9999999999' is not an integer"),
        ("q", "line 2: 1 columns; a qrels line is"),
        ("a b c d e", "line 2: 5 columns"),
    ],
)
def test_bad_judgements(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "qrels.tsv"
    path.write_text(f"q1\tp1\t1\n{line}\n")
    with pytest.raises(UserError) as error:
        list(judgements(path))
    assert str(error.value).startswith(f"{path}, {message}")
