"""Recipes: every mistake is named with its field, its value and the cure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rocketray import cli
from rocketray.errors import UserError
from rocketray.recipe import (
    ABOUT,
    Recipe,
    TrainCluster,
    dump,
    first_round,
    load,
    names,
    path_of,
)


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def refused(name: str, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load(name, overrides)
    return str(error.value)


@pytest.mark.parametrize("name", names())
def test_every_shipped_recipe_loads(name: str) -> None:
    assert load(name).name == name


@pytest.mark.parametrize("name", names())
def test_dump_and_load_round_trip(name: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(dump(load(name)), encoding="utf-8")
    assert load(str(tmp_path / "recipe.yaml")) == load(name)


def test_every_field_is_documented_under_itself() -> None:
    assert [name for name, field in leaves(Recipe) if not field.description] == []


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load("tiny").seed = 5  # type: ignore[misc]


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    assert load(str(tmp_path / "empty.yaml")) == Recipe()


# -------------------------------------------------------------------------------------- overrides


def test_overrides_win_and_the_last_one_counts() -> None:
    recipe = load("tiny", ["seed=1", "steps.dual_0.epochs=2", "steps.dual_0.epochs=2.5"])
    assert (recipe.seed, recipe.steps.dual_0.epochs) == (1, 2.5)
    assert recipe.steps.dual_0.global_batch == load("tiny").steps.dual_0.global_batch


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("steps.dual_0.learning_rate=1e-4", "steps.dual_0.learning_rate", 1e-4),
        ("denoise.off=true", "denoise.off", True),
        ("model.dual.layers=null", "model.dual.layers", None),
        ('model.dual.query_prompt="query: "', "model.dual.query_prompt", "query: "),
        (" seed = 5 ", "seed", 5),
    ],
)
def test_the_value_of_an_override_is_yaml(override: str, field: str, value: object) -> None:
    found: object = load("tiny", [override])
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set 'seed' must read field=value"),
        ("=3", "--set '=3' must read field=value"),
        ("seed.x=3", "'seed' holds a value, not fields"),
        ("seed=[", "the value is not valid YAML"),
    ],
)
def test_broken_overrides(override: str, message: str) -> None:
    assert message in refused("tiny", override)


# ------------------------------------------------------------------------------------ wrong fields


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=3", "unknown field 'sed': did you mean 'seed'? Known here: name, seed, paper, data,"),
        ("steps.dual_0.epoch=3", "unknown field 'steps.dual_0.epoch': did you mean 'epochs'?"),
        ("model.dual.zzz=3", "unknown field 'model.dual.zzz': Known here: weights, layers,"),
        ("steps.dual_0.epochs=0", "steps.dual_0.epochs = 0: input should be greater than 0."),
        ("steps.dual_0.epochs=.inf", "steps.dual_0.epochs = inf: input should be a finite number"),
        ("steps.dual_0.epochs=x", "steps.dual_0.epochs = 'x': input should be a valid number"),
        ("evaluate.k=1.5", "evaluate.k = 1.5: input should be a valid integer"),
        ("data.hide_labels=1", "data.hide_labels = 1: input should be less than 1."),
        ("cluster.bulk.actors=-1", "cluster.bulk.actors = -1: input should be greater than or eq"),
        ("model.dual.pooling=max", "model.dual.pooling = 'max': input should be 'cls', 'mean' or"),
        ("denoise.fill=none", "denoise.fill = 'none': input should be 'drop', 'random' or 'unsc"),
        ("denoise.negative_below=0.5", "negative_below (0.5) must be under positive_above (0.5)."),
        ("steps=3", "steps = 3: input should be a valid dictionary"),
    ],
)
def test_wrong_fields(override: str, message: str) -> None:
    found = refused("tiny", override)
    assert found.startswith("recipe 'tiny': ")
    assert message in found


@pytest.mark.parametrize(
    ("told", "gpus", "workers"),
    [
        ({}, 0, 2),
        ({}, 1, 1),
        ({}, 8, 8),
        ({"min_workers": 4}, 1, 4),
        ({"min_workers": 4}, 8, 8),
        ({"workers": 3}, 8, 3),
        ({"workers": 0}, 8, 0),
    ],
)
def test_training_takes_the_gpus_there_are(told: dict[str, int], gpus: int, workers: int) -> None:
    assert TrainCluster(**told).workers_on(gpus) == workers


def test_every_wrong_field_is_named() -> None:
    found = refused("tiny", "sed=3", "evaluate.k=0").splitlines()
    assert len(found) == 2


# ------------------------------------------------------------------------------------- wrong files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: [1\n", "is not valid YAML: "),
        (b"seed: \xff\n", "is not valid YAML: "),
        (b"seed: !!python/object/apply:os.getcwd []\n", "is not valid YAML: "),
        (b"- 1\n", "must hold fields (name: value), not a list."),
        (b"words\n", "must hold fields (name: value), not a str."),
        (b"seed: many\n", "seed = 'many': input should be a valid integer"),
    ],
)
def test_wrong_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    found = refused(str(path))
    assert found.startswith(str(path))
    assert message in found


def test_unknown_recipes(tmp_path: Path) -> None:
    assert "Unknown recipe 'smal'. Did you mean 'small'? There are: " in refused("smal")
    assert "There is no recipe file" in refused(str(tmp_path / "none.yaml"))


def test_rounds_have_names() -> None:
    told = load("small", ["denoise.rounds=3"])
    names = ("dual_1", "dual_1_round_2", "dual_1_round_3")
    assert told.denoise.in_rounds("dual_1") == names
    assert told.denoise.finders == {
        "denoise": "dual_0", "denoise_round_2": "dual_1", "denoise_round_3": "dual_1_round_2",
    }  # fmt: skip
    assert {first_round(name) for name in names} == {"dual_1"}
    assert all(told.steps.of(name) is told.steps.dual_1 for name in names)


def test_off_is_a_field_although_yaml_reads_false(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("denoise: {off: true}\n")
    assert load(str(tmp_path / "mine.yaml")).denoise.off


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps.dual_0.loss.kl=1", "loss.kl needs ce_scores"),
        ("steps.dual_0.mask_ce_above=0.9", "mask_ce_above needs ce_scores"),
        ("cluster.train={workers: 2, min_workers: 8}", r"min_workers \(8\) is above workers \(2\)"),
        ("cluster.bulk.accelerator=H100", "accelerator 'H100' is a GPU's: set gpus to true, too"),
        ("steps.dual_1.loss.contrastive=0", "nothing to train for"),
        ("retrieve.probe=8", "probe is an index's: set retrieve.index, too"),
    ],
)
def test_settings_that_could_not_act_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load("small", [override])


def test_distilling_scores_that_nobody_makes_is_refused() -> None:
    with pytest.raises(UserError, match=r"steps.dual_2.loss distils .* denoise.off"):
        load("small", ["steps.dual_2.loss.kl=1", "denoise.off=true"])
    with pytest.raises(UserError, match=r"steps.dual_1.mask_ce_above masks .* denoise.off"):
        load("small", ["steps.dual_1.mask_ce_above=0.9", "denoise.off=true"])
    assert load("small", ["steps.dual_2.mask_ce_above=0.9", "denoise.off=true"]).denoise.off


@pytest.mark.parametrize("told", ["denoise.pool=bm25", "denoise.pool=both", "denoise.rounds=2"])
def test_answers_are_looked_for_in_the_lists_of_dual_0(told: str) -> None:
    with pytest.raises(UserError, match="looked for in dual_0's lists alone"):
        load("nq", [told])


def test_a_recheck_near_thresholds_that_move_is_refused() -> None:
    told = ["score.recheck=0.05", "denoise.calibration=temperature"]
    with pytest.raises(UserError) as error:
        load("small", told)
    assert "denoise.calibration (temperature) moves once pairs are scored" in str(error.value)
    assert "set score.recheck to null, or denoise.calibration to none" in str(error.value)
    for alone in told:
        load("small", [alone])


def test_the_command_lists_recipes_and_prints_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it prints is a recipe, the same one."""

    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit, match="0"):
            cli.main(["recipes", *arguments])
        return capsys.readouterr().out

    listed = said().splitlines()
    assert [line.split()[0] for line in listed] == list(ABOUT)
    assert (
        "small       your corpus of thousands to tens of thousands of passages, on a CPU" in listed
    )
    path = tmp_path / "mine.yaml"
    path.write_text(said("small"))
    assert str(path_of("small")) in path.read_text().splitlines()[0]
    assert load(str(path)) == load("small")
