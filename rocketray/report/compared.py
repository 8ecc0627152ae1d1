"""Two models question by question, on the questions that measure: what a mean hides.

Memory is one block of a run and a few numbers per question, whatever the size of the corpus.
"""

# Shapes: Q such questions in ascending order of their rows, K ranks.

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rocketray import measures, schema
from rocketray.artifacts import RunFolder, Version
from rocketray.report.denoised import Passage, cut, fetch, readable
from rocketray.schema import positives_of, sample

DEPTH = 10
"""A relevant passage beyond it counts nothing, as in MRR@10."""
CURVE = 100
"""Ranks of the recall curve at most."""
SHOWN = 10
WORDS, MANY = 6, 0.03
"""So many first words at most get a slice of their own, those of at least such a share."""
DRAWN = 1000
"""Questions whose passages are read for the slices by overlap."""

Relevant = Mapping[int, set[int]]
"""Of every judged question, ascending; a set may be empty."""


@dataclass(frozen=True)
class Found:
    """What one model found."""

    first_Q: np.ndarray
    """Row of the first passage of each list; -1 where the list is empty."""
    rank_Q: np.ndarray
    """Rank of the first relevant passage, from 1; 0 where the list has none."""
    hit_Q: np.ndarray
    """Row of that passage; -1 where the list has none."""
    recall_K: np.ndarray
    """Share of the relevant passages among the first 1, 2, ... K, mean over questions."""

    @property
    def mrr_Q(self) -> np.ndarray:
        """Each question's part of MRR@10."""
        counts_Q = (self.rank_Q > 0) & (self.rank_Q <= DEPTH)
        return np.where(counts_Q, 1.0 / np.maximum(self.rank_Q, 1), 0.0)


@dataclass(frozen=True)
class Slice:
    """Questions of a kind. MRR@10 of both models on them."""

    kind: str
    name: str
    questions: int
    before: float
    after: float


@dataclass(frozen=True)
class Case:
    """A question that one model answers better. A rank of 0: not in the list at all."""

    question: str
    before: int
    after: int
    relevant: Passage
    instead: Passage | None
    """What the model that does worse puts first."""


@dataclass(frozen=True)
class Compared:
    """`after` against `before`."""

    before: str
    after: str
    mrr: tuple[float, float]
    questions: int
    better: int
    worse: int
    p_value: float
    """Of the difference in MRR@10: a paired randomisation test over the questions in which those
    about one passage are one witness, since they rise and fall with its embedding."""
    slices: Sequence[Slice]
    wins: Sequence[Case]
    losses: Sequence[Case]


def read(folder: RunFolder, models: Sequence[str]) -> tuple[Mapping[str, Found], Compared | None]:
    """What each model found, in order; and the last dual encoder against dual_0 (against the
    initial weights where there is no later one). Empty and None where nothing was retrieved.

    Args:
        models: whose runs over those questions the folder may hold, in order.
    """
    names = folder.current()
    split = schema.held_out(names)
    if split is None:
        return {}, None
    relevant = relevant_of(folder.version(f"qrels_{split}"))
    if "test_queries" in names:  # The others of them were not asked (`evaluate.queries`).
        asked = folder.version("test_queries").read()["query"].to_pylist()
        relevant = {query: relevant[query] for query in sorted(asked)}
    runs = {model: f"{model}_test" for model in models if f"{model}_test" in names}
    every = {model: found(folder.version(name), relevant) for model, name in runs.items()}
    after = next((model for model in reversed(models) if model in every), None)
    before = next((m for m in ("dual_0", "initial") if m in every and m != after), None)
    texts = {"queries", "passages"} <= names.keys()
    if not (relevant and before and after and after != "bm25" and texts):
        return every, None
    return every, compare(folder, relevant, (before, every[before]), (after, every[after]))


def relevant_of(qrels: Version) -> Relevant:
    table = qrels.read()
    positives = positives_of(table)
    return {q: set(positives.get(q, ())) for q in sorted(set(table["query"].to_pylist()))}


def found(run: Version, relevant: Relevant) -> Found:
    """Go through a run block by block."""
    place = {query: number for number, query in enumerate(relevant)}
    first_Q, hit_Q = np.full(len(place), -1), np.full(len(place), -1)
    rank_Q = np.zeros(len(place), np.int64)
    gained_K = np.zeros(CURVE)
    longest = 0
    for block in run.blocks:
        table = run.table(block.number)
        lists = zip(table["query"].to_pylist(), table["passages"].to_pylist(), strict=True)
        for query, passages in lists:
            if query not in place or not passages:
                continue
            wanted = relevant[query]
            ranks = [rank for rank, row in enumerate(passages, start=1) if row in wanted]
            first_Q[place[query]] = passages[0]
            if ranks:
                rank_Q[place[query]], hit_Q[place[query]] = ranks[0], passages[ranks[0] - 1]
            for rank in ranks:
                if rank <= CURVE:
                    gained_K[rank - 1] += 1 / len(wanted)
            longest = max(longest, len(passages))
    recall_K = gained_K[:longest].cumsum() / max(1, len(place))
    return Found(first_Q, rank_Q, hit_Q, recall_K)


def compare(
    folder: RunFolder, relevant: Relevant, before: tuple[str, Found], after: tuple[str, Found]
) -> Compared:
    (old_name, old), (new_name, new) = before, after
    passages = folder.version("passages")
    questions = {
        q: row["text"] for q, row in fetch(folder.version("queries"), set(relevant)).items()
    }
    gain_Q = new.mrr_Q - old.mrr_Q
    wins, losses = (
        [int(q) for q in np.argsort(sign * gain_Q, kind="stable")[:SHOWN] if sign * gain_Q[q] < 0]
        for sign in (-1, 1)
    )
    told = list(questions.values())
    return Compared(
        old_name,
        new_name,
        (float(old.mrr_Q.mean()), float(new.mrr_Q.mean())),
        len(gain_Q),
        int((gain_Q > 0).sum()),
        int((gain_Q < 0).sum()),
        chance(old, new, relevant),
        [
            *slices("first word", first_words(told), old, new),
            *slices("length", lengths(told), old, new),
            *slices("overlap", overlaps(questions, relevant, passages), old, new),
        ],
        cases(wins, old, new, old, questions, relevant, passages),
        cases(losses, old, new, new, questions, relevant, passages),
    )


def chance(old: Found, new: Found, relevant: Relevant) -> float:
    """The p-value of `new` against `old`; a question's group is its first relevant passage."""
    rows = list(relevant)
    first = {query: min(passages) for query, passages in relevant.items() if passages}
    both = (pd.Series(side.mrr_Q, rows) for side in (new, old))
    return measures.compare(*both, groups=pd.Series(first, dtype="int64")).p_value


# ------------------------------------------------------------------------------------------ slices


Parts = tuple[Sequence[str], Sequence[int]]
"""Names of slices in the order of reading, and each question's place among them; -1 is none."""


def slices(kind: str, parts: Parts, old: Found, new: Found) -> Iterator[Slice]:
    """A slice of each name that holds a question."""
    names, places = parts
    places_Q = np.array(places)
    for place, name in enumerate(names):
        mine_Q = places_Q == place
        if mine_Q.any():
            mrr = (float(side.mrr_Q[mine_Q].mean()) for side in (old, new))
            yield Slice(kind, name, int(mine_Q.sum()), *mrr)


def first_words(questions: Sequence[str]) -> Parts:
    """By first word, where many begin so: the most frequent first, and then all others."""
    firsts = [next(iter(words(question)), "") for question in questions]
    counts = Counter(filter(None, firsts))
    many = [word for word, count in counts.items() if count > MANY * len(questions)]
    names = sorted(many, key=lambda word: (-counts[word], word))[:WORDS]
    places = {word: place for place, word in enumerate(names)}
    return [*names, "other"], [places.get(first, len(names)) for first in firsts]


def lengths(questions: Sequence[str]) -> Parts:
    """By length: the third that a question is of."""
    sizes = np.array([len(words(question)) for question in questions])
    one, two = (int(edge) for edge in np.quantile(sizes, [1 / 3, 2 / 3]))
    names = (f"up to {one} words", f"up to {two} words", f"over {two} words")
    return names, [int(size > one) + int(size > two) for size in sizes.tolist()]


def overlaps(questions: Mapping[int, str], relevant: Relevant, passages: Version) -> Parts:
    """By the share of its words that a question has in common with its first relevant passage, of
    questions drawn among those that have one."""
    drawn = set(sample(np.array([q for q in relevant if relevant[q]]), DRAWN, seed=0).tolist())
    texts = fetch(passages, {min(relevant[query]) for query in drawn})
    places = []
    for query, question in questions.items():
        asked = set(words(question))
        if query not in drawn or not asked:
            places.append(-1)
            continue
        row = texts[min(relevant[query])]
        share = len(asked & set(words(f"{row['title']} {row['text']}"))) / len(asked)
        places.append(int(share >= 1 / 3) + int(share > 2 / 3))
    return ("under a third", "up to two thirds", "over two thirds"), places


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


# ------------------------------------------------------------------------------------------- cases


def cases(
    chosen: Sequence[int], old: Found, new: Found, loser: Found, questions: Mapping[int, str],
    relevant: Relevant, passages: Version,
) -> list[Case]:  # fmt: skip
    """Questions by their place, with the texts a person needs to judge them: the relevant passage
    that the better model found, and what stands first in the list of the other."""
    rows, winner = list(relevant), new if loser is old else old
    answers = {place: int(winner.hit_Q[place]) for place in chosen}
    instead = {place: int(loser.first_Q[place]) for place in chosen}
    wanted = {*answers.values(), *(row for row in instead.values() if row >= 0)}
    texts = readable(passages, wanted)
    return [
        Case(
            cut(questions[rows[place]]), int(old.rank_Q[place]), int(new.rank_Q[place]),
            texts[answers[place]], texts.get(instead[place]),
        )
        for place in chosen
    ]  # fmt: skip
