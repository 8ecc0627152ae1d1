"""The paper's rules: the recipes that claim to be the paper keep them, others are told apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from rocketray.errors import UserError
from rocketray.paper import FREE, RULES, Either
from rocketray.recipe import Recipe, chosen_on_dev, departures, dump, load


@pytest.mark.parametrize("name", ["msmarco", "nq"])
def test_a_paper_recipe_departs_nowhere(name: str) -> None:
    """Its values are written out with sources, so this holds two lists against each other."""
    assert load(name).paper
    assert departures(load(name)) == []


def test_paper_alone_is_a_recipe_of_the_papers_rules(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("paper: true\n")
    recipe = load(str(tmp_path / "mine.yaml"))
    assert departures(recipe) == []
    assert not recipe.steps.dual_1.mask_known
    assert recipe.model.dual.towers == "two"


def test_what_the_recipe_says_stays_and_is_listed(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "paper: true\nmodel: {dual: {towers: one}}\ndenoise: {off: true}\n"
    )
    recipe = load(
        str(tmp_path / "mine.yaml"), ["steps.dual_2.copies=4", "steps.dual_2.mask_margin=0.5"]
    )
    assert [str(departure) for departure in departures(recipe)] == [
        "model.dual.towers one (two)",
        "steps.dual_2.mask_margin 0.5 (null)",
        "denoise.off true (false)",
    ]


def test_more_rounds_are_a_departure() -> None:
    found = departures(load("msmarco", ["denoise.rounds=2"]))
    assert [str(departure) for departure in found] == ["denoise.rounds 2 (1)"]


def test_without_it_the_defaults_are_ours() -> None:
    fields = {departure.field for departure in departures(Recipe())}
    assert fields == {
        *(f"steps.{step}.mask_known" for step in ("dual_0", "dual_1", "dual_2")),
        *(f"steps.{step}.evaluations" for step in ("dual_0", "cross", "dual_1", "dual_2")),
        "denoise.fill",
    }


def test_every_rule_is_a_field() -> None:
    whole = Recipe(paper=True)
    for field, value in RULES.items():
        found: object = whole
        for name in field.split("."):
            found = getattr(found, name)
        value = value[0] if isinstance(value, Either) else value
        assert found == (tuple(value) if isinstance(value, list) else value), field


def test_every_field_has_a_rule_or_a_reason_for_none() -> None:
    """May a recipe with a new field of these parts be called the paper's? Somebody must decide."""
    parts = ("model", "steps", "retrieve", "denoise", "augment", "data")
    fields = {field for part in parts for field in leaves(getattr(Recipe(), part), part)}
    assert fields == RULES.keys() | FREE.keys()
    assert not RULES.keys() & FREE.keys()


def leaves(model: BaseModel, path: str) -> Iterator[str]:
    """Every field below, by its whole name."""
    for name, value in model:
        field = f"{path}.{name}"
        yield from leaves(value, field) if isinstance(value, BaseModel) else [field]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("denoise.calibration=isotonic", "denoise.calibration isotonic (none)"),
        ("denoise.fill=random", "denoise.fill random (unscored_tail or drop)"),
        ("data.hide_positives=0.3", "data.hide_positives 0.3 (0.0)"),
        ("steps.cross.evaluations=2", "steps.cross.evaluations 2 (1)"),
        ("steps.dual_2.patience=1", "steps.dual_2.patience 1 (null)"),
        ("model.cross.dropout=0.0", "model.cross.dropout 0.0 (null)"),
        ("retrieve.index=HNSW32", "retrieve.index HNSW32 (null or Flat)"),
    ],
)
def test_what_the_paper_does_not_do_is_told(override: str, told: str) -> None:
    assert [str(departure) for departure in departures(load("msmarco", [override]))] == [told]


@pytest.mark.parametrize("override", ["denoise.fill=drop", "retrieve.index=Flat"])
def test_either_of_two_is_the_papers(override: str) -> None:
    assert departures(load("msmarco", [override])) == []


def test_what_dev_questions_choose() -> None:
    assert chosen_on_dev(load("msmarco", ["steps.dual_1.patience=1"])) == []
    told = load("ablate", ["steps.cross.evaluations=2", "denoise.calibration=temperature"])
    assert chosen_on_dev(told) == ["steps.cross.evaluations", "denoise.calibration"]


def test_a_dump_lists_departures_as_comments() -> None:
    assert dump(load("msmarco")).endswith("# Departs from none of the paper's rules.\n")
    assert "\n#   model.dual.pooling mean (cls)\n" in dump(load("small"))


def test_a_mistake_under_paper_is_still_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("paper: true\nsteps: 3\n")
    with pytest.raises(UserError, match="steps = 3: input should be a valid dictionary"):
        load(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["denoise.off=true", "denoise.promote=true"], "`off` asks no cross-encoder"),
        (["denoise.off=true", "denoise.filter={percpos: 0.9, by: ce_score}"], "`off` asks no"),
        (["denoise.pool=both", "denoise.filter.percpos=0.9"], "do not compare"),
        (["denoise.pool=both", "steps.dual_1.sample=simans"], "do not compare"),
        (["denoise.pool=bm25", "denoise.rounds=2"], "rounds is 2, and BM25 finds the same"),
        (
            ["denoise.pool=bm25", "denoise.depth=101"],
            "ask for 101 passages a question, and BM25 lists 100",
        ),
        (["steps.dual_1.sample=best"], "input should be 'top', 'random' or 'simans'"),
        (["denoise.filter.percpos=1.5"], "less than or equal to 1"),
    ],
)
def test_rules_that_cannot_go_together_are_refused(override: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load("small", override)
