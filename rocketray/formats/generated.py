"""Made-up data that a tiny model can learn: for tests and the `tiny` recipe.

A topic is a handful of words. A passage mixes its topic's words with key words that hardly any
other passage has; a question repeats two or three of the key words and one topic word. Passages of
one topic are therefore each other's hard negatives, and matching words is all there is to learn.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

LETTERS = ("bdfgklmnprstvz", "aeiou")
TOPIC_WORDS = 8
KEYS = 4
"""Key words of a passage."""
TOPICS = 12
SPECIAL = {
    "empty": "",
    "chinese": "\u5411\u91cf\u68c0\u7d22\u628a\u95ee\u9898\u548c\u6bb5\u843d\u653e\u8fdb\u540c"
    "\u4e00\u4e2a\u7a7a\u95f4\u3002",
    "emoji": "\U0001f680 \U0001f469\u200d\U0001f680 \U0001f1e8\U0001f1f3",
}
"""Texts that break careless code. `very_long` is made beside them."""
VERY_LONG = 120_000
"""Characters."""
Row = dict[str, Any]


def words() -> list[str]:
    """The whole vocabulary, 4,900 words, as `model.weights.tiny` wants it."""
    syllables = ["".join(pair) for pair in product(*LETTERS)]
    return ["".join(pair) for pair in product(syllables, syllables)]


def write_generated(
    folder: Path,
    *,
    passages: int = 200,
    queries: int = 120,
    unlabelled: int | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Write a BEIR folder; how many rows of what.

    Parameters
    ----------
    passages
        At least 8. The last four are one empty, one very long, one Chinese, one of emoji.
    queries
        Training questions. Dev and test get a quarter each.
    unlabelled
        More rows of queries.jsonl that no qrels file names; None: as many as `queries`.
    """
    if passages < 8:
        raise ValueError(f"passages={passages}: at least 8 are needed.")
    draw = random.Random(seed)
    corpus, keys, topics = ordinary(passages - len(SPECIAL) - 1, draw)
    corpus += special(corpus)
    sizes = {"train": queries, "dev": max(1, queries // 4), "test": max(1, queries // 4)}
    sizes["unlabelled"] = queries if unlabelled is None else unlabelled
    asked: list[Row] = []
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for split, size in sizes.items():
        about = [draw.randrange(len(keys)) for _ in range(size)]
        rows = [
            {"_id": f"{split}-{n}", "text": question(keys[p], topics[p], draw)}
            for n, p in enumerate(about)
        ]
        asked += rows
        if split != "unlabelled":
            pairs = [(row["_id"], corpus[p]["_id"]) for row, p in zip(rows, about, strict=True)]
            write_qrels(folder / "qrels" / f"{split}.tsv", pairs)
    write_jsonl(folder / "corpus.jsonl", corpus)
    write_jsonl(folder / "queries.jsonl", asked)
    return {"passages": len(corpus), **sizes}


def ordinary(count: int, draw: random.Random) -> tuple[list[Row], list[list[str]], list[list[str]]]:
    """Passages, and for each its key words and its topic's words."""
    vocabulary = words()
    draw.shuffle(vocabulary)
    themes = [vocabulary[t * TOPIC_WORDS : (t + 1) * TOPIC_WORDS] for t in range(TOPICS)]
    rest = vocabulary[TOPICS * TOPIC_WORDS :]
    # Few enough words that a small model sees each several times.
    rest = rest[: max(KEYS * 4, count)]
    corpus, keys, topics = [], [], []
    for n in range(count):
        theme, own = themes[n % TOPICS], draw.sample(rest, KEYS)
        text = [*own, *draw.sample(theme, TOPIC_WORDS // 2)]
        draw.shuffle(text)
        corpus.append({"_id": f"p{n}", "title": theme[0], "text": " ".join(text) + "."})
        keys.append(own)
        topics.append(theme)
    return corpus, keys, topics


def special(corpus: Sequence[Row]) -> list[Row]:
    """One passage each that is empty, very long, Chinese, emoji."""
    line = " ".join(row["text"] for row in corpus) + " "
    very_long = (line * (VERY_LONG // len(line) + 1))[:VERY_LONG]
    texts = {**SPECIAL, "very_long": very_long}
    return [{"_id": name, "title": "", "text": text} for name, text in texts.items()]


def question(keys: Sequence[str], theme: Sequence[str], draw: random.Random) -> str:
    """Two or three key words of a passage and one word of its topic."""
    chosen = [*draw.sample(list(keys), draw.choice((2, 3))), draw.choice(list(theme))]
    draw.shuffle(chosen)
    return " ".join(chosen) + "?"


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_qrels(path: Path, pairs: Iterable[tuple[str, str]]) -> None:
    """BEIR's three columns, every relevance 1."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"{qid}\t{pid}\t1\n" for qid, pid in pairs)
