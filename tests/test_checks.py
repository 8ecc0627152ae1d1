"""`rocketray check`: made data, clean or with one fault planted, through the command line."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rocketray import checks, cli
from rocketray.checks import (
    check,
    copies,
    counter,
    folded,
    language,
    near_pairs,
    sketches,
    unlabelled_copies,
)
from rocketray.model import weights
from rocketray.stages import ingest

WORDS = [f"{a}{b}" for a in ("river", "stone", "cloud", "light", "field", "night", "music", "bread")
         for b in ("ing", "ers", "ful", "less", "ward", "like", "some", "ness")]  # fmt: skip


def sentence(draw: random.Random, count: int) -> str:
    return " ".join(draw.choices(WORDS, k=count))


class Data:
    """A clean BEIR folder: 30 passages, 120 training questions, 12 dev, 12 test, 10 unlabelled."""

    def __init__(self, folder: Path) -> None:
        draw = random.Random(1)
        self.folder = folder
        self.passages = [
            {"_id": f"p{n}", "title": "", "text": f"The {sentence(draw, 24)} is in the {n}."}
            for n in range(30)
        ]
        sizes = {"train": 120, "dev": 12, "test": 12, "free": 10}
        self.queries = [
            {"_id": f"{split}{n}", "text": f"what is the {sentence(draw, 8)} of {split} {n}?"}
            for split, size in sizes.items()
            for n in range(size)
        ]
        self.qrels = {
            split: [(f"{split}{n}", f"p{n % 30}", 1) for n in range(sizes[split])]
            for split in ("train", "dev", "test")
        }

    def write(self) -> Path:
        (self.folder / "qrels").mkdir(exist_ok=True)
        for name, rows in (("corpus", self.passages), ("queries", self.queries)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (self.folder / f"{name}.jsonl").write_text(lines)
        for split, judged in self.qrels.items():
            lines = "".join("\t".join(map(str, row)) + "\n" for row in judged)
            (self.folder / "qrels" / f"{split}.tsv").write_text(lines)
        return self.folder

    def warnings(self, *overrides: str) -> dict[str, dict[str, Any]]:
        found = check(self.write(), recipe="small", overrides=overrides)
        return {one.check: dict(one.numbers) for one in found if one.advice}


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path)


def command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", *map(str, arguments)])
    assert isinstance(stop.value.code, int)
    return stop.value.code


# ---------------------------------------------------------------------------------- whole folders


def test_a_clean_set_has_no_warnings(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    assert data.warnings() == {}
    assert command("--data", data.folder) == 0
    assert "no warnings" in capsys.readouterr().out


def test_warnings_leave_exit_code_0_and_json_says_which(
    data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    data.passages[3]["text"] = ""
    assert command("--data", data.write(), "--json") == 0
    found = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    assert [name for name, row in found.items() if row["warning"]] == ["empty passages"]
    assert found["empty passages"]["numbers"] == {"passages": 1}
    assert found["rows"]["numbers"] == {"passages": 30, "questions": 154}


def test_ids_that_part_the_columns_of_a_run(data: Data) -> None:
    data.passages[3]["_id"], data.passages[4]["_id"] = "p 3", "p\u00a04"
    data.qrels = {
        split: [(q, data.passages[int(p[1:])]["_id"], n) for q, p, n in judged]
        for split, judged in data.qrels.items()
    }
    assert data.warnings() == {"ids with a space": {"passages": 2, "questions": 0}}


def test_what_ingest_refuses_is_refused_in_its_words(
    data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    data.passages[5]["_id"] = "p4"
    assert command("--data", data.write()) == 2
    assert "passage 'p4' stands twice" in capsys.readouterr().err
    data.passages[5]["_id"], data.qrels["test"][0] = "p5", ("test0", "nobody", 1)
    assert command("--data", data.write()) == 2
    assert "1 lines name a query or passage that does not exist" in capsys.readouterr().err
    (data.folder / "corpus.jsonl").write_text('{"_id": "p0"}\n{\n')
    assert command("--data", data.folder) == 2
    said = capsys.readouterr().err
    assert "corpus.jsonl, line 1: `text` is missing." in said
    assert "And 1 more." in said


def test_labels_that_teach_nothing_are_refused(
    data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    data.qrels["train"] = [(query, passage, 0) for query, passage, _ in data.qrels["train"]]
    assert command("--data", data.write()) == 2
    assert "train.tsv has no relevance above 0" in capsys.readouterr().err


def test_titles_of_no_passage_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "collection.tsv": "1\ta passage\n", "para.title.txt": "9\ta title\n",
        "queries.train.tsv": "4\ta question\n", "qrels.train.tsv": "4\t0\t1\t1\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert command("--data", tmp_path) == 2
    assert "para.title.txt: no line names a passage" in capsys.readouterr().err


def test_unlabelled_questions_that_were_asked_before_do_not_count(data: Data) -> None:
    """One asks in the words of a test question, one repeats another."""
    text = {row["_id"]: row["text"] for row in data.queries}
    for row in data.queries:
        row["text"] = {"free0": text["test0"].upper(), "free2": text["free1"]}.get(
            row["_id"], row["text"]
        )
    found = {one.check: one.numbers for one in check(data.write(), recipe="small")}
    assert found["unlabelled questions"] == {"questions": 8, "asked_before": 2}


def test_nothing_is_left_behind(data: Data) -> None:
    before = sorted(data.write().rglob("*"))
    check(data.folder, recipe="small")
    assert sorted(data.folder.rglob("*")) == before


# --------------------------------------------------------------------------------- planted faults


def test_leaks_between_splits(data: Data) -> None:
    """By id, by words, and with one word of many changed; dev is clean."""
    told = {row["_id"]: row["text"] for row in data.queries}
    data.qrels["test"].append(("train7", "p7", 1))
    texts = {
        "test1": told["train1"].upper().replace(" ", "  ").replace("?", " ?!"),
        "test2": told["train2"].replace("train 2", "train 3"),
    }
    for row in data.queries:
        row["text"] = texts.get(row["_id"], row["text"])
    found = data.warnings()
    leak = found.pop("leaks train to test")
    assert leak | {"same_id": 1, "same_words": 1, "nearly": 1, "questions": 13} == leak
    assert leak["examples"] == ["train7", "test1", "test2"]
    assert found.pop("duplicate questions")["copies"] == 1
    assert found == {}


def test_duplicate_passages_and_their_labels(data: Data) -> None:
    """A copy of p1 without labels (six questions have p1), and p2 with a word changed: 2 of 32
    passages are nearly equal, and that is more than one in twenty."""
    text = f"the {sentence(random.Random(4), 34)} is in the".split()
    data.passages[2]["text"] = " ".join(text)
    text[20] = "elsewhere"
    data.passages += [
        {"_id": "copy", "title": "", "text": f" {data.passages[1]['text'].upper()}\n"},
        {"_id": "near", "title": "", "text": " ".join(text)},
    ]
    found = data.warnings()
    assert found.pop("duplicate passages") == {"copies": 1, "rows": 32, "examples": ["copy"]}
    assert found.pop("labelled passages with an unlabelled copy")["judgements"] == 6
    assert found.pop("near-duplicate passages")["examples"] == ["p2", "near"]
    assert found == {}


def test_no_positive_and_grades(data: Data) -> None:
    data.qrels["dev"] = [("dev0", "p0", 2), ("dev0", "p1", 0), ("dev1", "p1", 0)]
    assert data.warnings() == {"no positive dev": {"questions": 1}}
    found = {one.check: one.numbers for one in check(data.folder, recipe="small")}
    assert found["labels dev"] == {
        "questions": 2, "positives_per_question": 1.0, "without_positive": 1,
        "grades": {"0": 2, "2": 1},
    }  # fmt: skip
    assert found["never labelled"] == {"passages": 0}


def test_a_missing_split_few_questions_nothing_unlabelled(data: Data) -> None:
    del data.qrels["test"]
    data.qrels["train"] = data.qrels["train"][:20]
    data.queries = [row for row in data.queries if row["_id"][:4] != "free"]
    data.queries = [row for row in data.queries if row["_id"][:4] != "test"][:32]
    data.queries += [{"_id": f"dev{n}", "text": f"what of {n} {WORDS[n]}?"} for n in range(12)]
    data.queries = data.queries[:20] + data.queries[-12:]
    assert set(data.warnings()) == {"splits", "training questions", "unlabelled questions"}


def test_very_long_passages_and_cut_texts(data: Data) -> None:
    data.passages[0]["text"] = "the bread of the night " * 5000
    assert set(data.warnings()) == {"passages over 100,000 characters"}
    found = data.warnings("model.dual.passage_length=16", "model.dual.query_length=8")
    assert found["cut by model.dual.passage_length"]["cut"] == 30
    assert found["cut by model.dual.query_length"]["cut"] == 154


def test_foreign_texts(data: Data) -> None:
    for row in data.passages[:3]:
        row["text"] += " Die Stadt ist nicht in der Nähe und das Wasser wird mit dem Zug gebracht."
        row["text"] = row["text"][-80:]
    assert data.warnings() == {"languages of passages": {"English": 27, "German": 3}}


# ------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("What is a dog?", "what is a dog"),
        ("\uff37hat  is\ta DOG", "what is a dog"),
        ("it's", "it s"),
        ("\u72d7\u662f\u4ec0\u4e48\uff1f", "\u72d7\u662f\u4ec0\u4e48"),
    ],
)
def test_words_alone(text: str, same: str) -> None:
    assert ingest.words(text) == same


def test_folding_keeps_punctuation() -> None:
    assert folded(" A  b.\n") == "a b."


def test_rows_that_repeat_an_earlier_one() -> None:
    assert copies(np.array([5, 7, 5, 5, 7, 1], np.uint64)).tolist() == [2, 3, 4]


def test_unlabelled_copies_by_hand() -> None:
    """Passages 0, 2 and 4 are the same text. Question 8 has two of the three labelled, question 9
    all of them."""
    same = np.array([1, 2, 1, 3, 1], np.uint64)
    queries = np.array([8, 8, 8, 9, 9, 9])
    passages = np.array([0, 2, 1, 0, 2, 4])
    assert unlabelled_copies(queries, passages, same) == 1


def altered(share: float, count: int, draw: random.Random) -> Iterable[tuple[str, str]]:
    """Texts of 240 distinct words, and copies with other words at the end: 16 bytes from a word's
    beginning are two words here, so `share` of all shingles stay."""
    for _ in range(count):
        own = [f"w{draw.randrange(10**12):013d}" for _ in range(480)]
        kept = round(240 * share)
        yield " ".join(own[:240]), " ".join([*own[:kept], *own[240 : 480 - kept]])


@pytest.mark.parametrize(("jaccard", "low", "high"), [(0.9, 0.97, 1.0), (0.7, 0.0, 0.09)])
def test_near_duplicates_are_found_as_often_as_is_said(
    jaccard: float, low: float, high: float
) -> None:
    """99 % at a Jaccard similarity of 0.9, 3 % at 0.7. J = s / (2 - s)."""
    pairs = list(altered(2 * jaccard / (1 + jaccard), 300, random.Random(5)))
    texts = [text for pair in pairs for text in pair]
    found = near_pairs(sketches(texts, short=False))
    assert (found[:, 1] == found[:, 0] + 1).all()
    assert low <= len(found) / len(pairs) <= high


def test_sketches_do_not_depend_on_the_block() -> None:
    draw = random.Random(2)
    texts = ["", "a", *(sentence(draw, n) for n in range(1, 20)), "\u5411\u91cf\u68c0\u7d22" * 3]
    for short in (False, True):
        whole = sketches(texts, short=short)
        assert whole.shape == (22, checks.HASHES)
        parts = [sketches(texts[at : at + 5], short=short) for at in range(0, 22, 5)]
        assert np.array_equal(whole, np.concatenate(parts))
    assert sketches([], short=True).shape == (0, checks.HASHES)


@pytest.mark.parametrize("short", [False, True])
def test_scripts_without_blanks_are_told_apart(short: bool) -> None:
    """Many shingles each: one for the whole text would make all that begin alike near-equal."""
    beginning = "\u5411\u91cf\u68c0\u7d22\u628a\u95ee\u9898"
    draw = random.Random(3)
    texts = [beginning + "".join(chr(draw.randrange(0x4E00, 0x9000)) for _ in range(40))
             for _ in range(20)]  # fmt: skip
    assert len(near_pairs(sketches(texts, short=short))) == 0
    assert len(near_pairs(sketches([texts[0], texts[0] + "\u3002"], short=short))) == 1


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ("what is the capital of the land", "English"),
        ("wie ist die Hauptstadt von dem Land und das Wetter", "German"),
        ("quelle est la capitale et le climat dans les Alpes", "French"),
        ("\u0433\u0434\u0435 \u043e\u043d", "Cyrillic"),
        ("\u5411\u91cf\u68c0\u7d22", "Chinese or Japanese"),
        ("\ubca1\ud130 \uac80\uc0c9", "Korean"),
        ("zzz qqq", "unknown"),
        ("1234 !?", "unknown"),
    ],
)  # fmt: skip
def test_guessing_a_language(text: str, guess: str) -> None:
    assert language(text) == guess


def test_tokens_are_counted_by_the_weights_own_tokenizer(tmp_path: Path) -> None:
    """ "dog" is a word of it, "cats" falls apart into four letters."""
    weights.tiny(tmp_path, ["red", "dog"])
    count, unit = counter(str(tmp_path))
    assert (count(["red dog", "cats", ""]).tolist(), unit) == ([2, 4, 0], "tokens")


def test_words_are_counted_where_there_is_no_tokenizer() -> None:
    count, unit = counter("nobody/has-this-model")
    assert (count(["red dog", ""]).tolist(), unit) == ([2, 0], "words")
