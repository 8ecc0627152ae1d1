"""Does a passage hold an answer? Two matchers that differ, as RocketQA's scripts do.

`has_answer` measures (DPR's matcher: whole words, passage text only). `contains_answer` builds NQ
training data (substring without spaces, text or title). They disagree on purpose of nobody: the
first says "1973" is not in "21973", the second says it is.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache


def has_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether some answer's words stand in the text one after the other (DPR's `has_answer`).

    Both sides NFD-normalised and lower-cased. An answer without any word matches nothing; in DPR's
    code it matches everything.
    """
    body = spelled(words(text))
    return any(spelled(span) in body for answer in answers if (span := words(answer)))


def contains_answer(title: str, text: str, answers: Sequence[str]) -> bool:
    """Whether some answer is a substring of text or title, lower-cased and without spaces."""
    places = squeezed(text), squeezed(title)
    spans = [span for answer in answers if (span := squeezed(answer))]
    return any(span in place for span in spans for place in places)


def words(text: str) -> list[str]:
    """DPR's SimpleTokenizer: runs of letters, digits and marks, or one other visible character."""
    normal = unicodedata.normalize("NFD", text)
    return [word.lower() for word in word_pattern().findall(normal)]


def spelled(sequence: Iterable[str]) -> str:
    """Words as one string in which a substring is a run of whole words: no word holds a NUL."""
    return "\0" + "\0".join(sequence) + "\0"


def squeezed(text: str) -> str:
    return text.replace(" ", "").lower()


@cache
def word_pattern() -> re.Pattern[str]:
    r"""`[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]`, in terms the standard library understands."""
    return re.compile(f"[{characters('LNM')}]+|[^{characters('ZC')}]")


def characters(categories: str) -> str:
    """All characters whose general category starts with one of these letters, as regex ranges."""
    ranges: list[list[int]] = []
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code))[0] not in categories:
            continue
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)
