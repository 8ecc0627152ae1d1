"""A seed's file: what was written is read, and what does not belong is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rocketray.errors import UserError
from rocketray.recipe import changed, load
from rocketray.seeds import Seed, path_of, shared

ORIGIN: dict[str, Any] = {
    "recipe": {"steps": {"epochs": 2}},
    "tables": {
        "passages": "abc",
        "qrels_train": "q",
        "train_queries": "t",
        "unlabelled_queries": "u",
    },
    "weights": {"initial": "w"},
}
RULE = {"settings": ["steps.dual_0.in_batch=16"], "share": 1.0}


def frame(*values: float) -> pd.DataFrame:
    index = pd.Index([4, 7, 9], name="query")
    return pd.DataFrame({"mrr@10": values, "recall@50": [1.0, 0.0, 1.0]}, index=index)


@pytest.fixture
def seed() -> Seed:
    return Seed(
        seed=14,
        origin=ORIGIN,
        rows={"dual_0": RULE},
        # Rows in the order of a table, not of the alphabet; a value that no short text holds.
        measured={"dual_0": frame(1 / 3, 0.1 + 0.2, 0.0), "bm25": frame(1.0, 0.5, 1 / 7)},
        groups=pd.Series({4: 30, 7: 31, 9: 30}),
        facts={"dual_0": {"steps": 59, "rows": 2500, "negatives_per_query": 127.0}},
        seconds={"dual_0": 240.5},
        needed={"dual_0": 300.25},
        cross={"dual_0": 0.436, "cross": 0.541, "best": 0.9},
        removed={"uncertain": [0.5, 0.25]},
        pool=None,
    )


def test_what_was_written_is_read_to_the_last_bit(seed: Seed, tmp_path: Path) -> None:
    seed.write(tmp_path)
    path = tmp_path / "seed-14.parquet"
    assert list(tmp_path.iterdir()) == [path] == [path_of(tmp_path, 14)]
    found = Seed.read(path)
    assert list(found.measured) == ["dual_0", "bm25"]
    for name, expected in seed.measured.items():
        pd.testing.assert_frame_equal(found.measured[name], expected, check_exact=True)
    assert found.groups.to_dict() == {4: 30, 7: 31, 9: 30}
    assert replace(found, measured=seed.measured, groups=seed.groups) == seed


def test_the_same_seed_has_the_same_bytes(seed: Seed, tmp_path: Path) -> None:
    seed.write(tmp_path)
    (tmp_path / "again").mkdir()
    Seed.read(path_of(tmp_path, 14)).write(tmp_path / "again")
    one, other = (path_of(folder, 14).read_bytes() for folder in (tmp_path, tmp_path / "again"))
    assert one == other


def test_seeds_of_one_ablation_agree(seed: Seed) -> None:
    seed.check(Path("seed-14.parquet"), ORIGIN, {"dual_0": RULE})
    seed.check(Path("seed-14.parquet"), {"recipe": ORIGIN["recipe"]}, {})


def tables(**other: str) -> dict[str, Any]:
    return {"tables": ORIGIN["tables"] | other}


@pytest.mark.parametrize(
    ("origin", "rows", "words"),
    [
        ({"recipe": {"steps": {"epochs": 3}}}, {}, r"recipe\.steps\.epochs 2 -> 3\. Give"),
        (tables(passages="abd"), {}, r'tables\.passages "abc" -> "abd"'),
        (tables(qrels_train="other"), {}, r'tables\.qrels_train "q" -> "other"'),
        (tables(train_queries="other"), {}, r'tables\.train_queries "t" -> "other"'),
        (tables(unlabelled_queries="other"), {}, r'tables\.unlabelled_queries "u" -> "other"'),
        (tables(dev="new"), {}, r'tables\.dev null -> "new"'),
        ({"weights": {"initial": "v"}}, {}, r'weights\.initial "w" -> "v"'),
        ({}, {"dual_0": RULE | {"share": 0.5}}, r"rows\.dual_0\.share 1\.0 -> 0\.5"),
        ({}, {"dual_0": RULE | {"settings": []}}, r"rows\.dual_0\.settings .* -> \[\]"),
        ({}, {"dual_0": RULE, "also_kl": RULE}, r"seed-14\.parquet lacks the rows also_kl\. Ask"),
    ],
)
def test_what_does_not_belong_is_refused(
    seed: Seed, origin: dict[str, Any], rows: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        seed.check(Path("seed-14.parquet"), origin, rows)


def test_a_file_under_another_seeds_name_is_refused(seed: Seed, tmp_path: Path) -> None:
    seed.write(tmp_path)
    path_of(tmp_path, 14).rename(path_of(tmp_path, 15))
    with pytest.raises(UserError, match=r"holds seed 14, and .* Call it seed-14\.parquet, or"):
        Seed.read(path_of(tmp_path, 15))


def test_no_seed_is_told_from_one(tmp_path: Path) -> None:
    other, torn = tmp_path / "seed-1.parquet", tmp_path / "seed-2.parquet"
    pq.write_table(pa.table({"row": ["dual_0"], "query": [1]}), other)
    torn.write_bytes(other.read_bytes()[:-40])
    for path in (other, torn):
        with pytest.raises(UserError, match="no seed of an ablation, or is damaged"):
            Seed.read(path)


def test_seeds_share_a_recipe_but_for_the_seed_and_the_machines() -> None:
    recipe = load("ablate", [])
    assert shared(recipe) == shared(
        changed(recipe, ["seed=14", f"data.seed={recipe.seed}", "cluster.bulk.actors=7"])
    )
    # Other draws from the data are another ablation.
    assert shared(recipe) != shared(changed(recipe, ["seed=14"]))
    assert shared(recipe) != shared(changed(recipe, ["denoise.depth=7"]))
    assert "rounds" not in shared(recipe)["denoise"]  # Files older than the field do not say it.
