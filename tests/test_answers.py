"""The two answer matchers, by hand and against a slow reading of the official ones."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocketray.answers import contains_answer, has_answer, words


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ("It began in October 1973.", ["1973"], True),
        ("It began in October 1973.", ["October 1974", "october 1973"], True),
        ("It began in 21973.", ["1973"], False),  # whole words
        ("the New-York Times", ["new york"], False),  # the hyphen is a word between them
        ("the New - York Times", ["New-York"], True),
        ("caf\u00e9", ["cafe\u0301"], True),  # composed and decomposed
        ("cafe", ["caf\u00e9"], False),  # normalised, not stripped of accents
        ("It cost $12.", ["$12"], True),
        ("\u5317\u4eac\u5e02", ["\u5317\u4eac"], False),  # no spaces: one run of letters
        ("zero\u200bwidth", ["zero width"], True),  # a format character parts words
        ("", ["a"], False),
        ("anything", [], False),
        ("anything", ["", " "], False),  # DPR's code says True
    ],
)
def test_has_answer(text: str, answers: list[str], found: bool) -> None:
    assert has_answer(text, answers) is found


@pytest.mark.parametrize(
    ("title", "text", "answers", "found"),
    [
        ("", "It began in 21973.", ["1973"], True),  # a substring is enough
        ("Oil crisis of 1973", "It began.", ["1973"], True),  # the title counts
        ("", "New York", ["newyork", "x"], True),  # spaces do not
        ("", "New\tYork", ["new york"], False),  # other white space does
        ("New", "York", ["New York"], False),  # not across title and text
        ("t", "t", ["", " "], False),
    ],
)
def test_contains_answer(title: str, text: str, answers: list[str], found: bool) -> None:
    assert contains_answer(title, text, answers) is found


def test_words() -> None:
    assert words("Don't \u00e4\u2160x\u0301, 3.5!") == [
        "don", "'", "t", "a\u0308\u2170x\u0301", ",", "3", ".", "5", "!",
    ]  # fmt: skip


def slow_words(text: str) -> list[str]:
    """Character by character, by Unicode category."""
    found, run = [], ""
    for character in unicodedata.normalize("NFD", text) + " ":
        kind = unicodedata.category(character)[0]
        if kind in "LNM":
            run += character
            continue
        found += [run] if run else []
        found += [character] if kind not in "ZC" else []
        run = ""
    return [word.lower() for word in found]


def slow_has_answer(text: str, answers: list[str]) -> bool:
    body, spans = slow_words(text), [slow_words(answer) for answer in answers]
    starts = range(len(body) + 1)
    return any(span and body[i : i + len(span)] == span for span in spans for i in starts)


TEXT = st.text(alphabet="ab1 .-\u00e9\u0301\u3000\u4e2d\U0001f680\x00\u03a3\u00ad", max_size=12)


@given(TEXT)
def test_words_are_the_slow_words(text: str) -> None:
    assert words(text) == slow_words(text)


@given(st.text(max_size=8))
def test_words_of_any_text(text: str) -> None:
    assert words(text) == slow_words(text)


@given(TEXT, st.lists(TEXT.map(lambda text: text[:3]), max_size=3))
def test_has_answer_is_the_slow_one(text: str, answers: list[str]) -> None:
    assert has_answer(text, answers) == slow_has_answer(text, answers)
