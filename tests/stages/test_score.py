"""Score: the cross-encoder's word on the top of a run; what is known is not asked again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rocketray.artifacts import Made, Version
from rocketray.errors import UserError
from rocketray.model.tokens import Assembler, Tokenizer, TokenStore
from rocketray.schema import SCORED
from rocketray.stages import score
from rocketray.stages.score import Hashes, PairScores, Score, as_pairs, kind
from tests.stages.conftest import Small
from tests.versions import run, version

RUN = run((0, [3, 1, 7]), (2, []), (4, [9, 0]))
GOLDEN = 0x9E3779B97F4A7C15


def scored(
    small: Small, folder: Path, known: list[str] | None = None, depth: int = 2, **settings: Any
) -> Made:
    stage = Score(
        cross=str(small.cross),
        run=version(folder / "run", RUN),
        query_tokens=small.query_tokens,
        passage_tokens=small.passage_tokens,
        depth=depth,
        known=known or [],
        **settings,
    )
    return stage(0)


def flat(made: Made) -> list[float]:
    return [ce for row in made.parts["table"]["ce_scores"].to_pylist() for ce in row]


def tokens(small: Small, queries: list[int], passages: list[int]) -> int:
    """What the cross-encoder reads, laid out and counted."""
    stores = TokenStore(small.query_tokens), TokenStore(small.passage_tokens)
    sides = (stores[0], np.array(queries), stores[1], np.array(passages))
    return int(Assembler(Tokenizer(small.tokenizer)).pairs(*sides, 24)["attention_mask"].sum())


def kept(made: Made, path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    np.save(path, made.parts["pairs"])
    return str(path)


class Asked:
    """Stands for the cross-encoder: remembers which pairs it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pairs: list[tuple[int, int]] = []
        monkeypatch.setattr(score.Scorer, "__call__", self)

    def __call__(self, assembler: Any, queries: Any, q: Any, passages: Any, p: Any) -> Any:
        self.pairs += zip(q.tolist(), p.tolist(), strict=True)
        return (q * 100 + p).astype(np.float32) / 1000


def test_the_first_of_each_list_are_scored(small: Small, tmp_path: Path) -> None:
    made = scored(small, tmp_path)
    found = made.parts["table"]
    assert found.schema == SCORED
    assert found["query"].to_pylist() == [0, 2, 4]
    assert found["passages"].to_pylist() == [[3, 1], [], [9, 0]]
    assert found["scores"].to_pylist() == [[0, -1], [], [0, -1]]
    ce_scores = flat(made)
    assert len(ce_scores) == 4
    assert all(0 < ce < 1 for ce in ce_scores)
    pairs = ([0, 0, 4, 4], [3, 1, 9, 0])
    assert made.facts == {"pairs": 4, "known": 0, "tokens": tokens(small, *pairs)}


def test_each_score_goes_to_its_own_pair(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(monkeypatch)
    found = scored(small, tmp_path, depth=3).parts["table"]
    assert asked.pairs == [(0, 3), (0, 1), (0, 7), (4, 9), (4, 0)]
    expected = [[0.003, 0.001, 0.007], [], [0.409, 0.4]]
    for row, values in zip(found["ce_scores"].to_pylist(), expected, strict=True):
        assert row == pytest.approx(values)


def test_known_pairs_are_read_and_only_new_ones_asked(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, store = Asked(monkeypatch), tmp_path / "float32"
    told: dict[str, Any] = {"precision": "float32", "depth": 3}
    first = scored(small, tmp_path)
    asked.pairs.clear()
    more = scored(small, tmp_path, [kept(first, store / "pairs.npy")], **told)
    assert asked.pairs == [(0, 7)]
    assert more.facts == {"pairs": 5, "known": 4, "tokens": tokens(small, [0], [7])}
    assert len(more.parts["pairs"]) == 1
    files = [kept(first, store / "pairs.npy"), kept(more, store / "more.npy")]
    asked.pairs.clear()
    again = scored(small, tmp_path, files, **told)
    assert asked.pairs == []
    assert again.parts["table"] == more.parts["table"]
    assert len(again.parts["pairs"]) == 0


def test_of_equal_pairs_in_one_block_the_first_is_scored_for_all(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passages 3, 8 and 11 are copies. The stand-in's score tells which of them it was asked for:
    a model's own may differ in the last digit from batch to batch."""
    asked = Asked(monkeypatch)
    stage = Score(
        cross=str(small.cross), query_tokens=small.query_tokens, depth=3,
        passage_tokens=small.passage_tokens,
        run=version(tmp_path / "run", run((0, [8, 1, 3]), (4, [11]), (0, [2, 11]))),
    )  # fmt: skip
    made = stage(0)
    assert asked.pairs == [(0, 8), (0, 1), (4, 11), (0, 2)]
    assert flat(made) == pytest.approx([0.008, 0.001, 0.008, 0.411, 0.002, 0.008])
    pairs = ([0, 0, 4, 0], [8, 1, 11, 2])
    assert made.facts == {"pairs": 6, "known": 2, "tokens": tokens(small, *pairs)}
    assert len(made.parts["pairs"]) == 4


def test_scores_of_another_kind_are_not_read(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a person chose the precision or `auto` did."""
    Asked(monkeypatch)
    recheck = {"within": 0.1, "thresholds": [0.5], "seed": 0}
    made, choices = scored(small, tmp_path), tmp_path / "choices.json"
    names = ("float32", "bfloat16", kind("bfloat16", recheck))
    files = {name: kept(made, tmp_path / name / "pairs.npy") for name in names}

    def known(*names: str, **told: Any) -> Any:
        return scored(small, tmp_path, [files[name] for name in names], **told).facts["known"]

    for precision in ("float32", "bfloat16"):
        choices.write_text(json.dumps({"precision": precision}))
        for told in ({"choices": str(choices)}, {"precision": precision}):
            assert known(precision, **told) == 4
            assert known(*(set(names) - {precision}), **told) == 0
    assert known("bfloat16", precision="bfloat16", recheck=recheck) == 0
    assert known(kind("bfloat16", recheck), precision="bfloat16", recheck=recheck) == 4
    assert known("float32", precision="float32", recheck=recheck) == 4


def test_a_pair_is_known_by_its_texts(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passages 3 and 8 have the same title and text, so one score serves both."""
    Asked(monkeypatch)
    known = kept(scored(small, tmp_path), tmp_path / "float32" / "pairs.npy")
    store, queries = PairScores([known]), Hashes(small.query_tokens)
    passages = Hashes(small.passage_tokens)
    found = store.find(queries[np.array([0, 0, 0])], passages[np.array([3, 8, 11])])
    assert found == pytest.approx([0.003] * 3)


def test_what_has_no_tokens_is_not_scored(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passage 3 is not listed, and what follows comes up; question 4 has an empty list."""
    asked = Asked(monkeypatch)
    stage = Score(
        cross=str(small.cross),
        run=version(tmp_path / "run", RUN),
        query_tokens=small.tokens(tmp_path / "queries", small.queries, 1, without=[4]),
        passage_tokens=small.tokens(tmp_path / "passages", small.passages, 3, without=[3]),
        depth=2,
    )
    made = stage(0)
    assert asked.pairs == [(0, 1), (0, 7)]
    assert made.parts["table"]["passages"].to_pylist() == [[1, 7], [], []]
    assert made.parts["table"]["scores"].to_pylist() == [[-1, -2], [], []]
    assert made.parts["table"].schema == SCORED


def test_hashes_are_those_of_all_blocks(small: Small) -> None:
    """Passages lie in blocks of 5, 5 and 2."""
    tokens = Version.open(small.passage_tokens)
    whole = np.concatenate([tokens.array(number, "hashes") for number in range(3)])
    rows = np.array([11, 0, 4, 5, 9, 10, 5])
    np.testing.assert_array_equal(Hashes(small.passage_tokens)[rows], whole[rows])
    assert Hashes(small.passage_tokens)[rows[:0]].dtype == np.uint64


# ------------------------------------------------------------------------------- less precision


def test_what_lies_near_a_threshold_is_scored_again_in_float32(
    small: Small, tmp_path: Path
) -> None:
    exact = flat(scored(small, tmp_path, depth=3))
    rough = flat(scored(small, tmp_path, depth=3, precision="bfloat16"))
    assert all(a != b for a, b in zip(rough, exact, strict=True))
    # Two thresholds about the first score, so that it and what is as near to one is asked again.
    thresholds = [rough[0] - 0.0015, rough[0] + 0.0015]
    again = scored(
        small, tmp_path, depth=3, precision="bfloat16",
        recheck={"within": 0.002, "thresholds": thresholds, "seed": 0},
    )  # fmt: skip
    near = [min(abs(ce - t) for t in thresholds) <= 0.002 for ce in rough]
    assert near[0]
    assert not all(near)
    expected = [e if n else r for e, r, n in zip(exact, rough, near, strict=True)]
    assert flat(again) == pytest.approx(expected, abs=1e-6)
    assert again.facts["rechecked"] == sum(near)
    assert again.facts["compared"] == len(rough)


def test_verdicts_that_float32_would_change_are_counted(small: Small, tmp_path: Path) -> None:
    exact = flat(scored(small, tmp_path, depth=3))
    rough = flat(scored(small, tmp_path, depth=3, precision="bfloat16"))
    between = (exact[0] + rough[0]) / 2
    made = scored(
        small, tmp_path, depth=3, precision="bfloat16",
        recheck={"within": 1e-12, "thresholds": [between, 0.999], "seed": 0},
    )  # fmt: skip
    changed = sum((e > between) != (r > between) for e, r in zip(exact, rough, strict=True))
    assert changed >= 1
    assert made.facts["agreed"] == len(exact) - changed
    assert made.facts["rechecked"] == 0


def test_a_gpu_that_is_not_its_own_is_left_alone(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"precision": "bfloat16", "recheck": {"within": 1, "thresholds": [0.5], "seed": 0}}
    expected = flat(scored(small, tmp_path, **told))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert flat(scored(small, tmp_path, **told, gpu=False)) == expected


def test_float32_needs_no_second_opinion(small: Small, tmp_path: Path) -> None:
    recheck = {"within": 0.5, "thresholds": [0.1, 0.9], "seed": 0}
    made = scored(small, tmp_path, precision="float32", recheck=recheck)
    pairs = ([0, 0, 4, 4], [3, 1, 9, 0])
    assert made.facts == {"pairs": 4, "known": 0, "tokens": tokens(small, *pairs)}


def test_it_is_written_down_which_precision_auto_was(small: Small, tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    scored(small, tmp_path, choices=str(path))
    assert json.loads(path.read_text())["precision"] in ("float32", "bfloat16", "float16")
    path.write_text('{"precision": "bfloat16"}')
    resumed = flat(scored(small, tmp_path, choices=str(path)))
    assert resumed == flat(scored(small, tmp_path, precision="bfloat16"))


# ------------------------------------------------------------------------------------ the store


def file_of(path: Path, *rows: tuple[int, int, float]) -> str:
    queries, passages, ce_scores = zip(*rows, strict=True)
    pairs = as_pairs(
        np.array(queries, np.uint64), np.array(passages, np.uint64), np.array(ce_scores, np.float32)
    )
    np.save(path, pairs)
    return str(path)


def store_of(folder: Path, *rows: tuple[int, int, float]) -> PairScores:
    return PairScores([file_of(folder / "pairs.npy", *rows)])


def find(store: PairScores, *pairs: tuple[int, int]) -> list[float]:
    columns = zip(*pairs, strict=True)
    found = store.find(*(np.array(column, np.uint64) for column in columns))
    assert found.dtype == np.float32
    return [float(value) for value in found]


def test_lookups(tmp_path: Path) -> None:
    store = store_of(tmp_path, (1, 2, 0.25), (2**64 - 1, 2**63, 0.5), (0, 0, 0.75))
    found = find(store, (0, 0), (1, 2), (2, 1), (2**64 - 1, 2**63), (1, 0))
    np.testing.assert_equal(found, [0.75, 0.25, np.nan, 0.5, np.nan])


def test_an_empty_store_knows_nothing() -> None:
    np.testing.assert_equal(find(PairScores([]), (1, 2)), [np.nan])


def test_of_two_scores_for_a_pair_the_first_counts(tmp_path: Path) -> None:
    assert find(store_of(tmp_path, (1, 2, 0.25), (1, 2, 0.5)), (1, 2)) == [0.25]
    first = file_of(tmp_path / "first.npy", (1, 2, 0.75), (5, 6, 0.125))
    second = file_of(tmp_path / "second.npy", (3, 4, 0.5), (1, 2, 0.25))
    wanted = ((1, 2), (3, 4), (5, 6), (7, 8))
    np.testing.assert_equal(find(PairScores([first, second]), *wanted), [0.75, 0.5, 0.125, np.nan])
    np.testing.assert_equal(find(PairScores([second, first]), *wanted), [0.25, 0.5, 0.125, np.nan])


def test_a_file_without_pairs_is_looked_into_in_vain(tmp_path: Path) -> None:
    nobody = np.empty(0, np.uint64)
    np.save(tmp_path / "none.npy", as_pairs(nobody, nobody, np.empty(0, np.float32)))
    some = file_of(tmp_path / "some.npy", (1, 2, 0.25))
    assert find(PairScores([str(tmp_path / "none.npy"), some]), (1, 2)) == [0.25]


def test_many_pairs_over_many_files(tmp_path: Path) -> None:
    """What a dictionary says, whatever the order in which pairs were kept and are asked for."""
    draw = np.random.default_rng(0)
    files, expected = [], dict[tuple[int, int], float]()
    for number in range(3):
        pairs = draw.integers(0, 60, (500, 2)).tolist()
        rows = [(q, p, float(n)) for n, (q, p) in enumerate(pairs, start=1000 * number)]
        files.append(file_of(tmp_path / f"{number}.npy", *rows))
        for query, passage, ce_score in rows:
            expected.setdefault((query, passage), ce_score)
    asked = [(q, p) for q in range(61) for p in range(61)]
    found = find(PairScores(files), *asked)
    np.testing.assert_equal(found, [expected.get(pair, np.nan) for pair in asked])


def test_pairs_whose_mixed_keys_collide_never_get_each_others_score(tmp_path: Path) -> None:
    collides = (1 ^ (2 * GOLDEN) ^ (3 * GOLDEN)) % 2**64
    store = store_of(tmp_path, (1, 2, 0.25))
    np.testing.assert_equal(find(store, (1, 2), (collides, 3)), [0.25, np.nan])


def test_files_that_could_carry_code_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "odd.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        PairScores([str(tmp_path / "odd.npy")]).find(*np.zeros((2, 1), np.uint64))


def test_a_machine_that_does_not_see_known_pairs_says_so(tmp_path: Path) -> None:
    here, gone = tmp_path / "pairs.npy", tmp_path / "gone.npy"
    store_of(tmp_path, (1, 2, 0.25))
    with pytest.raises(UserError, match=r" does not see .*/gone\.npy: .* cluster\.pairs must"):
        PairScores([str(here), str(gone)])


def test_a_query_that_is_left_out_has_empty_lists(small: Small, tmp_path: Path) -> None:
    scored(small, tmp_path)
    stage = Score(
        cross=str(small.cross), run=str(tmp_path / "run"), query_tokens=small.query_tokens,
        passage_tokens=small.passage_tokens, depth=2,
    )  # fmt: skip
    assert stage.rows(0).tolist() == [0, 2, 4]
    made = stage(0, [0])
    found = made.parts["table"]
    assert found["query"].to_pylist() == [0, 2, 4]
    for name in ("passages", "scores", "ce_scores"):
        assert [len(row) for row in found[name].to_pylist()] == [0, 0, 2]
    expected = {"pairs": 2, "known": 0, "tokens": tokens(small, [4, 4], [9, 0])}
    assert made.facts == expected
    assert stage(0, [0, 4]).facts == {"pairs": 0, "known": 0, "tokens": 0}
