"""`rocketray check`: what is wrong with a data set, before anybody trains on it.

The files are streamed once, block by block, through ingest itself: what ingest refuses is refused
here, and nothing is left behind. Kept in memory: two 64-bit hashes a row and the 64 bytes of its
sketch, the ids' table of ingest (24 bytes a row) and the judgements (32 bytes each). Ids wait on
disk.
"""

# Shapes: N rows of a table, S shingles of a block, H hashes of a sketch.

from __future__ import annotations

import bisect
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import util
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tokenizers import Tokenizer

from rocketray import recipe as recipes
from rocketray import schema, tables
from rocketray.formats import Cut, Dataset, Source, cut
from rocketray.recipe import Recipe
from rocketray.stages import ingest

ROWS = 4096
"""In a block: what is held as text at once."""
SAMPLE = 20_000
"""Texts of a table, by a seeded hash of the row, that are tokenised and whose language is guessed.
All of them where there are no more."""
HASHES = 64
"""Of a sketch, 8 bits each."""
BAND = 4
"""Hashes that must agree for two texts to be compared at all."""
NEIGHBOURS = 4
"""A text is compared with so many that follow it among those that share a band."""
ALIKE = 0.8
"""Share of equal hashes from which two texts are near-duplicates. Of pairs that share 90 % of
their shingles 99 % are found, of 80 % half, of 70 % one in thirty, of 50 % one in a million."""
SKETCHED = 10_000
"""Characters of a text that its sketch is made of."""
SPACE, BEYOND = 0x20, 0xE0
"""Bytes of UTF-8: a blank, and the first of a character of three or four bytes."""
SPLITS = ("train", "dev", "test")
FEW = 100
"""Training questions under which a run teaches little."""
MANY = 0.05
"""Share from which cut, nearly equal or foreign texts are worth a warning."""

COPIED = (
    "Remove copies from the corpus, or label all of them: an unlabelled copy of a positive is a"
    " false negative."
)
ASKED_TWICE = "Join them into one question with all its labels."
NEARLY = (
    "Expect unlabelled positives: denoise (the default), and read `rocketray audit` after a run."
)
OTHER_LANGUAGES = "Take weights that know all of them: --set model.dual.weights=NAME, and cross."

UNKNOWN = "unknown"
SCRIPTS = (
    (0x0000, "Latin"), (0x0370, "Greek"), (0x0400, "Cyrillic"), (0x0530, "other script"),
    (0x0590, "Hebrew"), (0x0600, "Arabic"), (0x0780, "other script"), (0x0900, "Devanagari"),
    (0x0980, "other script"), (0x0E00, "Thai"), (0x0E80, "other script"), (0x1100, "Korean"),
    (0x1200, "other script"), (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, "other script"),
    (0x3040, "Japanese"), (0x3100, "other script"), (0x3400, "Chinese or Japanese"),
    (0xA000, "other script"), (0xAC00, "Korean"), (0xD7B0, "other script"),
    (0xF900, "Chinese or Japanese"), (0xFB00, "other script"), (0x20000, "Chinese or Japanese"),
)  # fmt: skip
"""First code point of a range, and what is written in it; enough to guess by."""
SCRIPT_STARTS = [start for start, _ in SCRIPTS]
STOP_WORDS = {
    "English": "the of and to in is that for it with as on are this what how which who does when",
    "German": "der die das und ist nicht ein eine zu mit auf den von sich wie was im wird",
    "French": "le la les des et est une que pour dans qui sur pas du avec quel quelle comment",
    "Spanish": "el la los las y es que para una por con del se como cual donde su",
    "Italian": "il di che un per non con sono della gli nel come dei quale si",
    "Portuguese": "o os e do da que em um uma para com não dos como qual são",
    "Dutch": "de het een van en is dat niet op te zijn met voor hoe wat wie",
}
SPEAKERS = {
    word: [name for name, some in STOP_WORDS.items() if word in some.split()]
    for word in " ".join(STOP_WORDS.values()).split()
}

Hashes = np.ndarray
"""uint64 [N]."""


@dataclass(frozen=True)
class Finding:
    """One line of the table. With advice it is a warning."""

    check: str
    found: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ""


def check(
    data: Path, unlabelled: Path | None = None, *, recipe: str, overrides: Sequence[str] = ()
) -> list[Finding]:
    """Everything that is found in a data set.

    Raises:
        UserError: what ingest refuses, in its words: the data cannot be used.
    """
    told = recipes.load(recipe, overrides)
    with tempfile.TemporaryDirectory(prefix="rocketray-check-") as folder:
        dataset = tables.locate(told, Path(folder), data, unlabelled)
        read = Read.of(dataset, told, Path(folder))
        return [finding for part in CHECKS for finding in part(read)]


# ---------------------------------------------------------------------------------------- reading


class Texts:
    """What is kept of a table of texts."""

    def __init__(self, cuts: Sequence[Cut], seed: int, folder: Path, *, short: bool) -> None:
        """`folder`: where the ids go, a file a block. `short`: questions, not passages."""
        self.cuts, self.folder, self.short = cuts, folder, short
        self.starts = np.cumsum([0, *(one.rows for one in cuts)])
        self.sampled = schema.sample(np.arange(len(self)), SAMPLE, seed)
        self.sample: list[tuple[str, str]] = []
        """Titles and texts of some rows."""
        self.counts = Counter[str]()
        self.problems: list[ingest.Problem] = []
        self.blocks: list[tuple[Hashes, Hashes, np.ndarray]] = []
        folder.mkdir()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, stage: Callable[[Cut], ingest.Ingested]) -> Texts:
        for number, one in enumerate(self.cuts):
            self._add(number, stage(one))
        return self

    def _add(self, number: int, found: ingest.Ingested) -> None:
        self.problems += found.problems
        self.counts.update(found.counts)
        titles, texts = titled(found.table)
        joined = [f"{title} {text}" for title, text in zip(titles, texts, strict=True)]
        same = schema.text_hashes(map(ingest.words if self.short else folded, joined))
        self.blocks.append((found.hashes, same, sketches(joined, short=self.short)))
        here = self.sampled - self.starts[number]
        self.sample += [(titles[n], texts[n]) for n in here[(here >= 0) & (here < len(texts))]]
        pq.write_table(pa.table({"id": found.table.column(0)}), self._ids_of(number))

    def _ids_of(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"

    @cached_property
    def ids(self) -> ingest.Ids:
        count = sum(len(hashes) for hashes, _, _ in self.blocks)
        return ingest.Ids((hashes for hashes, _, _ in self.blocks), count, self._names)

    def _names(self, rows: np.ndarray) -> list[str]:
        names: list[str] = []
        blocks = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(blocks):
            column = pq.read_table(self._ids_of(number))["id"]
            names += column.take(rows[blocks == number] - self.starts[number]).to_pylist()
        return names

    @cached_property
    def same(self) -> Hashes:
        """Equal for equal texts."""
        return np.concatenate([same for _, same, _ in self.blocks])

    @cached_property
    def near(self) -> np.ndarray:
        """`near_pairs` of texts that are not equal."""
        pairs = near_pairs(np.concatenate([sketch for _, _, sketch in self.blocks]))
        apart: np.ndarray = pairs[self.same[pairs[:, 0]] != self.same[pairs[:, 1]]]
        return apart


def titled(table: pa.Table) -> tuple[list[str], list[str]]:
    """Titles (empty ones for questions) and texts."""
    texts = table["text"].to_pylist()
    has = "title" in table.column_names
    return (table["title"].to_pylist() if has else [""] * len(texts)), texts


@dataclass(frozen=True)
class Read:
    """A data set, read once."""

    dataset: Dataset
    recipe: Recipe
    passages: Texts
    queries: Texts
    qrels: Mapping[str, pa.Table]

    @classmethod
    def of(cls, dataset: Dataset, recipe: Recipe, scratch: Path) -> Read:
        asked = [*dataset.queries, *dataset.unlabelled]
        passages, queries = (
            Texts(_cuts(sources, scratch), recipe.seed, scratch / name, short=name == "queries")
            for name, sources in (("passages", dataset.corpus), ("queries", asked))
        )
        passages.read(ingest.IngestPassages())
        queries.read(ingest.IngestQueries())
        total = passages.counts["problems"] + queries.counts["problems"]
        ingest.raise_problems([*passages.problems, *queries.problems], total)
        ingest.raise_duplicates(passages.ids, passages.cuts, "passage")
        ingest.raise_duplicates(queries.ids, queries.cuts, "query")
        qrels = {
            split: ingest.read_qrels(path, queries.ids, passages.ids)
            for split, path in dataset.qrels.items()
        }
        tables.check_titles(dataset.corpus[0], passages.counts["titled"])
        if "train" in qrels:
            tables.check_train(dataset.qrels["train"], qrels["train"])
        return cls(dataset, recipe, passages, queries, qrels)

    def asked(self, split: str) -> np.ndarray:
        """Rows of the questions that a split judges."""
        return np.unique(self.qrels[split]["query"].to_numpy())


def _cuts(sources: Sequence[Source], scratch: Path) -> list[Cut]:
    return [found for source in sources for found in cut(source, ROWS, scratch)]


# --------------------------------------------------------------------------- equal and near-equal


def folded(text: str) -> str:
    """Without differences of case and white space."""
    return " ".join(text.casefold().split())


def sketches(texts: Sequence[str], *, short: bool) -> np.ndarray:
    """MinHash (Broder 1997) of the texts' shingles, 8 bits a hash: uint8 [N, H].

    Two texts agree in about as many hashes as they share shingles.
    """
    if not texts:
        return np.empty((0, HASHES), np.uint8)
    shingles_S, first_N = _shingles(texts, short)
    factors = _mixed(np.arange(1, HASHES + 1, dtype=np.uint64)) | np.uint64(1)
    lowest = [np.minimum.reduceat(shingles_S * factor, first_N) for factor in factors]
    # Not the highest bits, which are zeros in a minimum.
    return np.stack([(low >> np.uint64(16)).astype(np.uint8) for low in lowest], axis=1)


def _shingles(texts: Sequence[str], short: bool) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all texts' shingles, text after text, and where each text's begin.

    A shingle is 16 bytes from the beginning of a word, or of any character of three bytes or more:
    many of their scripts part no words. In short texts it is 8 bytes from anywhere.
    """
    width = 8 if short else 16
    # Zeros part the texts, and fill the last windows of each; no text holds one.
    whole = [ingest.words(text[:SKETCHED]).encode() + bytes(width) for text in texts]
    flat = np.frombuffer(b"".join(whole) + bytes(width), np.uint8)
    first_N = np.cumsum([0, *map(len, whole[:-1])])
    begins = flat != 0
    if not short:
        begins[1:] &= (flat[:-1] == SPACE) | (flat[1:] >= BEYOND)
    begins[first_N] = True
    starts_S = np.flatnonzero(begins)
    windows = np.lib.stride_tricks.sliding_window_view(flat, width)[starts_S]
    shingles_S = np.zeros(len(starts_S), np.uint64)
    for part in windows.view(np.uint64).T:
        shingles_S = _mixed(shingles_S ^ part)
    return shingles_S, np.searchsorted(starts_S, first_N)


def _mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def near_pairs(sketch_NH: np.ndarray) -> np.ndarray:
    """Pairs of rows that agree in `ALIKE` of their hashes, the lower row first: int64 [pairs, 2].

    Only rows with an equal band are compared, and there with the next `NEIGHBOURS`: the work grows
    with the rows and not with their pairs, and of a hundred copies some pairs stay unsaid.
    """
    found = [np.empty((0, 2), np.int64)]
    for band in np.ascontiguousarray(sketch_NH).view(f"<u{BAND}").T:
        order = np.argsort(band, kind="stable")
        for step in range(1, NEIGHBOURS + 1):
            equal = np.flatnonzero(band[order[step:]] == band[order[:-step]])
            for at in np.array_split(equal, max(1, len(equal) // 100_000)):
                pairs = np.stack([order[at], order[at + step]], axis=1)
                agree = (sketch_NH[pairs[:, 0]] == sketch_NH[pairs[:, 1]]).mean(axis=1)
                found.append(np.sort(pairs[agree >= ALIKE], axis=1))
    pairs = np.concatenate(found)
    return pairs if not len(pairs) else np.unique(pairs, axis=0)


def copies(same: Hashes) -> np.ndarray:
    """Rows that repeat an earlier one."""
    _, first = np.unique(same, return_index=True)
    return np.setdiff1d(np.arange(len(same)), first)


# ----------------------------------------------------------------------------------------- checks


def sizes(read: Read) -> Iterator[Finding]:
    numbers = {"passages": len(read.passages), "questions": len(read.queries)}
    yield Finding("rows", ", ".join(f"{n:,} {name}" for name, n in numbers.items()), numbers)
    for note in read.dataset.warnings:
        yield Finding("splits", note, {}, "Add the file, or go on without that number.")
    teaching = len(schema.positives_of(read.qrels["train"]))
    if teaching < FEW:
        yield Finding(
            "training questions", f"{teaching:,} with a relevant passage", {"questions": teaching},
            f"Under {FEW} teach little: label more, or start from weights that already retrieve.",
        )  # fmt: skip


def spaced_ids(read: Read) -> Iterator[Finding]:
    """What parts columns in TREC files."""
    counted = {"passages": read.passages.counts, "questions": read.queries.counts}
    numbers = {name: counts["spaced_ids"] for name, counts in counted.items()}
    found = ", ".join(f"{n:,} {name}" for name, n in numbers.items())
    yield Finding(
        "ids with a space", found, numbers, tables.SPACED if any(numbers.values()) else ""
    )


def leaks(read: Read) -> Iterator[Finding]:
    """Questions of one split that another has seen: by id, by words, nearly by words."""
    splits = [split for split in SPLITS if split in read.qrels]
    for number, one in enumerate(splits):
        for two in splits[number + 1 :]:
            yield _leak(read, one, two)


def _leak(read: Read, one: str, two: str) -> Finding:
    ours, theirs = read.asked(one), read.asked(two)
    ids = np.intersect1d(ours, theirs)
    rest = np.setdiff1d(theirs, ids)
    same = read.queries.same
    equal = rest[np.isin(same[rest], same[ours])]
    pairs = np.concatenate([read.queries.near, read.queries.near[:, ::-1]])
    nearly = pairs[np.isin(pairs[:, 0], rest) & np.isin(pairs[:, 1], ours), 0]
    nearly = np.setdiff1d(nearly, equal)
    seen = np.concatenate([ids, equal, nearly])
    names = read.queries.ids.names(seen[:3])
    numbers = {"same_id": len(ids), "same_words": len(equal), "nearly": len(nearly),
               "questions": len(theirs), "examples": names}  # fmt: skip
    found = (
        f"{len(ids):,} by id, {len(equal):,} by the same words, {len(nearly):,} nearly,"
        f" of {len(theirs):,} {two} questions{_such_as(names)}"
    )
    advice = f"Take them out of qrels/{two}.tsv: {two} would measure what {one} has told."
    if not (len(ids) or len(equal)):  # "type 1" and "type 2" are near in letters alone.
        advice = f"Read them, and take those that ask the same out of qrels/{two}.tsv."
    return Finding(f"leaks {one} to {two}", found, numbers, advice if len(seen) else "")


def duplicates(read: Read) -> Iterator[Finding]:
    """Rows that repeat an earlier one, and rows nearly like another."""
    yield from _duplicates("passages", read.passages, COPIED)
    yield from _duplicates("questions", read.queries, ASKED_TWICE)


def _duplicates(name: str, texts: Texts, advice: str) -> Iterator[Finding]:
    again, total = copies(texts.same), len(texts)
    names = texts.ids.names(again[:3])
    numbers = {"copies": len(again), "rows": total, "examples": names}
    found = f"{len(again):,} of {total:,} repeat another{_such_as(names)}"
    yield Finding(f"duplicate {name}", found, numbers, advice if len(again) else "")
    near = len(np.unique(texts.near))
    names = texts.ids.names(texts.near[:2].ravel())
    numbers = {"rows": near, "pairs": len(texts.near), "examples": names}
    found = f"{near:,} of {total:,} are nearly another{_such_as(names)}"
    yield Finding(f"near-duplicate {name}", found, numbers, NEARLY if near > MANY * total else "")


def labels(read: Read) -> Iterator[Finding]:
    """How dense the judgements are, by split; what they never name."""
    for split, qrels in read.qrels.items():
        positives = schema.positives_of(qrels)
        asked = len(np.unique(qrels["query"].to_numpy()))
        per = sum(map(len, positives.values())) / max(1, len(positives))
        grades = Counter(qrels["relevance"].to_pylist())
        without = asked - len(positives)
        numbers = {"questions": asked, "positives_per_question": round(per, 4),
                   "without_positive": without,
                   "grades": {str(g): n for g, n in sorted(grades.items())}}  # fmt: skip
        graded = ", ".join(f"{g}: {n:,}" for g, n in sorted(grades.items()))
        found = f"{asked:,} questions, {per:.2f} positives each, relevance {graded}"
        yield Finding(f"labels {split}", found, numbers)
        if without:
            yield Finding(
                f"no positive {split}", f"{without:,} judged questions without a relevant passage",
                {"questions": without}, "They neither teach nor measure: judge more, or drop them.",
            )  # fmt: skip
    yield from _unlabelled(read)


def _unlabelled(read: Read) -> Iterator[Finding]:
    judged = [qrels.filter(pa.array(qrels["relevance"].to_numpy() > 0)) for qrels in
              read.qrels.values()]  # fmt: skip
    queries, passages = (
        np.concatenate([table[name].to_numpy() for table in judged])
        for name in ("query", "passage")
    )
    never = len(read.passages) - len(np.unique(passages))
    yield Finding(
        "never labelled", f"{never:,} passages ({share(never, len(read.passages))})",
        {"passages": never},
    )  # fmt: skip
    twins = unlabelled_copies(queries, passages, read.passages.same)
    yield Finding(
        "labelled passages with an unlabelled copy", f"{twins:,} judgements",
        {"judgements": twins}, COPIED if twins else "",
    )  # fmt: skip
    named = np.unique(np.concatenate([read.asked(split) for split in read.qrels]))
    free, words = np.setdiff1d(np.arange(len(read.queries)), named), read.queries.same
    new = len(tables.first_of_words(words, free, words[named]))
    others = f", {len(free) - new:,} asked before, in the same words, not counted"
    yield Finding(
        "unlabelled questions",
        f"{new:,}" + (others if new < len(free) else ""),
        {"questions": new, "asked_before": len(free) - new},
        "" if new else tables.NOTHING_TO_ADD,
    )


def unlabelled_copies(queries: np.ndarray, passages: np.ndarray, same: Hashes) -> int:
    """Positives of which the corpus holds a copy that is no positive of that question: a false
    negative without any doubt."""
    numbers = np.unique(same, return_inverse=True)[1]
    sizes = np.bincount(numbers)
    pairs, labelled = np.unique(
        np.stack([queries, numbers[passages]], axis=1), axis=0, return_counts=True
    )
    return int(np.sum(sizes[pairs[:, 1]] > labelled))


def lengths(read: Read) -> Iterator[Finding]:
    """Empty and very long passages, and what the recipe's limits cut off."""
    counts = read.passages.counts
    yield Finding(
        "empty passages", f"{counts['empty']:,}", {"passages": counts["empty"]},
        "They can be found and answer nothing: remove them." if counts["empty"] else "",
    )  # fmt: skip
    yield Finding(
        f"passages over {ingest.VERY_LONG:,} characters", f"{counts['very_long']:,}",
        {"passages": counts["very_long"]},
        "Split them into passages of their own." if counts["very_long"] else "",
    )  # fmt: skip
    yield from _cut_off(read)


def _cut_off(read: Read) -> Iterator[Finding]:
    dual, cross = read.recipe.model.dual, read.recipe.model.cross
    count, unit = counter(dual.weights)
    asked = count([text for _, text in read.queries.sample])
    titles, texts = (count(list(column)) for column in zip(*read.passages.sample, strict=True))
    prompts = count([dual.query_prompt, dual.passage_prompt])
    whole = titles + texts
    middle = int(np.median(asked))
    # [CLS] and [SEP], and one more [SEP] after a title or between question and passage.
    for field_, sizes, room in (
        ("model.dual.query_length", asked, dual.query_length - 2 - prompts[0]),
        ("model.dual.passage_length", whole + (titles > 0), dual.passage_length - 2 - prompts[1]),
        ("model.cross.length", whole, cross.length - 3 - middle),
    ):
        yield _beyond(field_, sizes, room, unit)


def _beyond(field_: str, sizes: np.ndarray, room: int, unit: str) -> Finding:
    """Texts that have more than there is room for."""
    cut_, lost = int(np.sum(sizes > room)), int(np.maximum(sizes - room, 0).sum())
    numbers = {"texts": len(sizes), "cut": cut_, "lost": lost, "of": int(sizes.sum()), "unit": unit}
    found = (
        f"{share(cut_, len(sizes))} of {len(sizes):,} texts are cut, and lose"
        f" {share(lost, int(sizes.sum()))} of all {unit}"
    )
    advice = f"What is cut is never read: raise {field_}, or split long texts."
    return Finding(f"cut by {field_}", found, numbers, advice if cut_ > MANY * len(sizes) else "")


def counter(weights: str) -> tuple[Callable[[list[str]], np.ndarray], str]:
    """How to count a text's tokens, and what they are: of these weights' own tokenizer if it lies
    on this machine; words if not, of which there are fewer."""
    file = tokenizer_file(weights)
    if file is None:
        return (lambda texts: np.array([len(text.split()) for text in texts], np.int64)), "words"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: list[str]) -> np.ndarray:
        cut_ = [text[: ingest.VERY_LONG] for text in texts]
        found = tokenizer.encode_batch_fast(cut_, add_special_tokens=False)
        return np.array([len(one.ids) for one in found], np.int64)

    return count, "tokens"


def tokenizer_file(weights: str) -> Path | None:
    """tokenizer.json of a folder of weights, of the package of weights, or of a hub model that has
    been downloaded before. Nothing is downloaded."""
    name = weights.replace("-", "_")
    spec = util.find_spec(name) if name.isidentifier() else None
    folders = [Path(weights).expanduser()]
    folders += [Path(place) / "model" for place in (spec and spec.submodule_search_locations) or ()]
    files = [folder / "tokenizer.json" for folder in folders]
    if weights.count("/") <= 1 and not weights.startswith((".", "~", "/")):
        cached = huggingface_hub.try_to_load_from_cache(weights, "tokenizer.json")
        files += [Path(cached)] if isinstance(cached, str) else []
    return next((file for file in files if file.is_file()), None)


# -------------------------------------------------------------------------------------- languages


def languages(read: Read) -> Iterator[Finding]:
    """Which languages, roughly, and whether questions and passages share theirs."""
    first = {}
    for name, texts in (("passages", read.passages), ("questions", read.queries)):
        counted = Counter(language(f"{title} {text}") for title, text in texts.sample)
        counted.pop(UNKNOWN, None)
        known = sum(counted.values())
        first[name] = max(counted, key=lambda x: (counted[x], x)) if counted else UNKNOWN
        other = known - counted[first[name]]
        words_ = ", ".join(f"{word} {share(n, known)}" for word, n in counted.most_common(4))
        found = f"{words_ or 'none told'} of {known:,} told, {len(texts.sample) - known:,} not"
        advice = OTHER_LANGUAGES if other > MANY * known else ""
        yield Finding(f"languages of {name}", found, dict(counted), advice)
    if UNKNOWN not in first.values() and first["passages"] != first["questions"]:
        found = f"{first['questions']} asked of {first['passages']}"
        yield Finding("languages apart", found, first, OTHER_LANGUAGES)


def language(text: str) -> str:
    """A guess from a text's first 400 characters: the script of most letters; for Latin letters the
    language with most stop words. Close languages (Portuguese and Spanish) are often confused, a
    text without stop words is of unknown language, and other languages in Latin letters are taken
    for one of those here or for unknown."""
    head = text[:400]
    scripts = Counter(script(letter) for letter in head if letter.isalpha())
    if not scripts:
        return UNKNOWN
    main = max(scripts, key=lambda name: (scripts[name], name))
    if main != "Latin":
        return main
    found = Counter(
        name for word in ingest.WORD.findall(head.lower()) for name in SPEAKERS.get(word, ())
    )
    best = found.most_common(2)
    tie = len(best) == 2 and best[0][1] == best[1][1]
    return UNKNOWN if tie or not best else best[0][0]


def script(letter: str) -> str:
    """The script of a letter, by ranges of code points."""
    place = bisect.bisect_right(SCRIPT_STARTS, ord(letter)) - 1
    return SCRIPTS[place][1]


CHECKS = (sizes, spaced_ids, leaks, duplicates, labels, lengths, languages)


# ---------------------------------------------------------------------------------------- showing


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


def _such_as(names: Sequence[str]) -> str:
    return f" (e.g. {', '.join(map(ingest.shown, names))})" if names else ""


def show(findings: Sequence[Finding], *, as_json: bool) -> None:
    """A table with warnings and what to do about them, or a JSON list."""
    if as_json:
        rows = [{**asdict(one), "warning": bool(one.advice)} for one in findings]
        print(json.dumps(rows, ensure_ascii=False))
        return
    table = Table()
    for name in ("check", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for one in findings:
        table.add_row(
            *map(escape, (one.check, one.found, one.advice)), style="bold" if one.advice else None
        )
    console = Console(highlight=False)
    console.print(table)
    warnings = sum(bool(one.advice) for one in findings)
    console.print(f"{warnings} warnings" if warnings else "no warnings")
