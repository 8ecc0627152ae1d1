"""Operations, bytes and seconds of a recipe against sums made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rocketray import forecast, machines
from rocketray import recipe as recipes
from rocketray.errors import UserError
from rocketray.formats.generated import words
from rocketray.machines import GROUP_SECONDS, POOL_SECONDS, Fleet, Machine
from rocketray.model import weights
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.flops import Flops
from rocketray.plan import Counts, Shape, Task, Work

BASE = Shape(12, 768, 3072)
LARGE = Shape(24, 1024, 4096, first_token=True)
MARCO = Counts(8_841_823, 502_939, 532_761, test=6_980, unlabelled=1_700_000)


def task(counts: Counts = MARCO, *settings: str) -> Task:
    recipe = recipes.load("msmarco", settings)
    return Task(recipe, counts.under(recipe), replace(BASE, first_token=True), LARGE)


def by_stage(told: Task) -> dict[str, Work]:
    return {work.stage: work for work in told.works()}


# ------------------------------------------------------------------------------- operations, bytes


def test_weights_of_base_are_85_million() -> None:
    assert BASE.weights == 84_934_656  # 12 * (4 * 768 * 768 + 2 * 768 * 3,072)


def test_operations_of_a_text() -> None:
    assert BASE.operations(80) == 2 * 84_934_656 * 80 + 4 * 12 * 768 * 80**2


@pytest.mark.parametrize("kind", ["mean", "cls", "cross"])
def test_operations_are_those_the_trainer_counts(kind: Any, tmp_path: Path) -> None:
    """`model.flops` counts a real model's parameters; here they follow from its settings."""
    folder = weights.tiny(tmp_path / "tiny", words(), seed=0)
    model: CrossEncoder | DualEncoder
    if kind == "cross":
        model = CrossEncoder.create(folder, length=32)
        tower = model.model
    else:
        model = DualEncoder.create(folder, pooling=kind)
        tower = model.passage
    first = model.reads_first_token_only
    config = tower.config
    shape = Shape(
        config.num_hidden_layers, config.hidden_size, config.intermediate_size, first_token=first
    )
    assert first == (kind != "mean")
    mask = torch.ones(3, 20, dtype=torch.int64)
    count = Flops(tower, first_token=first)
    assert count.forward(mask) == pytest.approx(3 * shape.operations(20), rel=1e-12)


def test_stages_are_a_runs_own() -> None:
    from rocketray.pipeline import STAGES

    names = [work.stage for work in task(MARCO, "evaluate.bm25=true").works()]
    assert set(names) <= set(STAGES)
    assert len(set(names)) == len(names)
    assert names.index("dual_0") < names.index("cross") < names.index("dual_1")


def test_a_second_round_is_planned() -> None:
    """What dual_1 lists is scored as well; the pairs that both rounds have are counted twice."""
    from rocketray.pipeline import stages

    works = by_stage(task(MARCO, "denoise.rounds=2"))
    assert set(works) <= set(stages(2))
    for stage in ("_embeddings", ""):
        one, two = works[f"dual_1{stage}"], works[f"dual_1_round_2{stage}"]
        assert one == replace(two, stage=one.stage)
    assert works["dual_1_train_scored"].rows == works["dual_0_train_scored"].rows
    assert works["dual_1_train"].efforts == works["dual_0_train"].efforts
    assert "dual_1_unlabelled" not in works
    assert works["dual_1_round_2_unlabelled_scored"].rows == 50 * 1_700_000
    order = ["dual_1", "dual_1_train", "dual_1_train_scored", "dual_1_round_2", "dual_2"]
    assert [stage for stage in works if stage in order] == order


def test_scoring_of_the_training_lists() -> None:
    work = by_stage(task())["dual_0_train_scored"]
    assert work.rows == 50 * 502_939
    assert work.efforts == {"score": work.rows * LARGE.operations(12 + 80 - 1)}
    assert work.blocks == 123  # of 4,096 questions


def test_retrieval_is_the_product_of_questions_and_passages() -> None:
    work = by_stage(task())["dual_0_train"]
    assert work.efforts["search"] == 2 * 502_939 * 8_841_823 * 768  # 6.83e15
    assert work.blocks == 123 * 9  # groups of 1,048,576
    assert work.reads == 8_841_823 * 768 * 4


def test_a_training_step() -> None:
    """4,096 rows of a question and two passages, four forwards' worth with grad_cache."""
    work = by_stage(task())["dual_1"]
    assert work.steps == math.ceil(10 * 4 * 532_761 / 4096)
    shape = task().dual
    row = 4 * (shape.operations(12) + 2 * shape.operations(80)) + 6 * 4096 * 2 * 768
    assert work.efforts["train_dual"] == work.steps * 4096 * row
    assert work.shards == 64
    towers = 2 * (84_934_656 + 30_522 * 768)
    assert work.sent == 2 * (4 * towers + 4 * 4096 * 2 * 768)


def test_bm25_searches_for_training_questions_where_negatives_come_from_it() -> None:
    assert "bm25_train" not in by_stage(task())
    for setting in ("steps.dual_0.negatives=bm25", "denoise.pool=both"):
        work = by_stage(task(MARCO, setting))["bm25_train"]
        assert work.efforts == {"lexical": 502_939 * 8_841_823}


def test_a_recipe_limits_what_it_uses() -> None:
    recipe = recipes.load(
        "small", ["data.hide_labels=0.5", "data.labelled=100", "augment.queries=null"]
    )
    used = Counts(1000, 400, 800, dev=20, unlabelled=7).under(recipe)
    assert (used.train, used.labels) == (100, 200)
    assert used.unlabelled == 207  # and the 200 whose labels are hidden
    assert used.test == 20  # dev stands in


def test_without_unlabelled_questions_nothing_is_augmented() -> None:
    names = by_stage(task(replace(MARCO, unlabelled=0)))
    assert "dual_1_unlabelled_scored" not in names
    assert names["dual_2"].steps == names["dual_1"].steps


# ----------------------------------------------------------------------------------------- seconds

PLAIN = Machine("plain", cpus=4, rates={"encode": 100.0, "train_dual": 100.0, "ingest": 10.0},
                network=1000.0, price=2.0)  # fmt: skip


def mapped(**about: float) -> Work:
    told = {"blocks": 8, "reads": 0.0, "writes": 0.0} | about
    return Work("stage", 80, "rows", {"encode": 8000.0}, **told)  # type: ignore[arg-type]


def test_a_stage_is_shared_by_workers() -> None:
    """80 s alone; 4 workers 20 s, and half a block of 10 s for three of four at the end."""
    (found,) = forecast.times([mapped()], Fleet(PLAIN))
    assert found.seconds == POOL_SECONDS + 20 + 0.75 * 5
    assert (found.bound, found.workers) == ("compute", 4)


def test_more_workers_than_blocks_stand_idle() -> None:
    (found,) = forecast.times([mapped(blocks=2)], Fleet(PLAIN))
    assert (found.bound, found.workers) == ("blocks", 2)
    assert found.seconds == POOL_SECONDS + 40 + 0.5 * 20


def test_the_network_may_be_slower_than_the_work() -> None:
    (found,) = forecast.times([mapped(reads=50_000.0)], Fleet(PLAIN))
    assert (found.bound, found.seconds) == ("network", POOL_SECONDS + 50)


def test_a_pools_start_may_be_most_of_it() -> None:
    (found,) = forecast.times([mapped()], Fleet(replace(PLAIN, rates={"encode": 1e6})))
    assert found.bound == "start"


def test_a_pool_after_a_pool_finds_its_processes() -> None:
    """Training between them takes their place."""
    machine = replace(PLAIN, pool_seconds=9.0, kept_seconds=1.0)
    works = [mapped(), mapped(), trained(), mapped()]
    found = forecast.times(works, Fleet(machine))
    base = 20 + 0.75 * 5
    assert [found[n].seconds - base for n in (0, 1, 3)] == [9, 1, 9]


def trained(**about: float) -> Work:
    told = {"steps": 10, "shards": 8, "sent": 0.0} | about
    return Work("dual_0", 80, "rows", {"train_dual": 8000.0}, **told)  # type: ignore[arg-type]


def test_training_on_one_machine() -> None:
    (found,) = forecast.times([trained()], Fleet(PLAIN))
    assert (found.bound, found.seconds) == ("compute", GROUP_SECONDS + 20)


def test_gradients_take_time_within_one_machine_too() -> None:
    """4 workers, of which each sends 3/4 of 1,000 bytes ten times, at 500 a second."""
    machine = replace(PLAIN, link=500.0, group_seconds=3.0)
    (found,) = forecast.times([trained(sent=1000.0)], Fleet(machine))
    assert found.seconds == 3 + 20 + 10 * 750 / 500


def test_training_across_machines_sends_gradients() -> None:
    """8 workers on two machines, each with a quarter of its machine's 1,000 bytes a second."""
    (found,) = forecast.times([trained(sent=1000.0)], Fleet(PLAIN, 2))
    assert found.seconds == pytest.approx(GROUP_SECONDS + 10 + 10 * 1000 * 7 / 8 / 250)
    assert found.bound == "network"


def test_a_step_has_no_more_workers_than_shards() -> None:
    (found,) = forecast.times([trained(shards=2)], Fleet(PLAIN))
    assert (found.bound, found.workers) == ("shards", 2)


# --------------------------------------------------------------------------------- the whole table


def test_money_is_hours_times_price() -> None:
    fleet = machines.fleet("g6.xlarge:16@0.5")
    found = forecast.told(task(), fleet)
    assert found["hours"] * 3600 == pytest.approx(sum(s["seconds"] for s in found["stages"]))
    assert found["dollars"] == pytest.approx(found["hours"] * 16 * 0.5)
    assert found["device_hours"] == pytest.approx(found["hours"] * 16)


def test_eight_gpus_beat_one_and_a_billion_passages_cost_more() -> None:
    rows = forecast.scaled(task(), machines.fleet("p5.48xlarge"))
    hours = {(row["passages"], row["devices"]): row["hours"] for row in rows}
    assert hours[8_841_823, 8] < hours[8_841_823, 1] / 4
    assert hours[10**9, 8] > 2 * hours[8_841_823, 8]


def test_limits_are_named() -> None:
    huge = task(replace(MARCO, passages=10**9), "evaluate.bm25=true")
    said = " ".join(forecast.told(huge, machines.fleet("p5.48xlarge:64"))["limits"])
    for word in ("160 GB of tokens", "driver holds 22 GB", "shards", "BM25"):
        assert word in said
    small = task(Counts(10_000, 1_000, 1_000, unlabelled=100), "evaluate.bm25=false")
    assert not forecast.told(small, machines.fleet("g6.xlarge"))["limits"]


def test_ids_of_a_large_vocabulary_take_four_bytes() -> None:
    """XLM-R's 250,002 words: 10^9 passages of 80 tokens."""
    huge = task(replace(MARCO, passages=10**9))
    huge = replace(huge, dual=replace(huge.dual, vocabulary=250_002))
    assert by_stage(huge)["passage_tokens"].writes == 320 * 10**9
    said = " ".join(forecast.told(huge, machines.fleet("p5.48xlarge"))["limits"])
    assert "320 GB of tokens" in said


def test_without_bfloat16_training_is_in_float32() -> None:
    rates = machines.MACHINES["g4dn.xlarge"].rates
    assert rates["train_dual"] == rates["train_cross"] == pytest.approx(0.6 * 8.1e12)
    assert rates["encode"] == pytest.approx(0.35 * 65e12)


@pytest.mark.parametrize(
    ("told", "message"),
    [("h100", "known are p5.48xlarge"), ("g6.xlarge:0", "say NAME"), ("g6.xlarge@x", "say NAME")],
)
def test_a_machine_nobody_knows(told: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        machines.fleet(told)


def test_what_is_missing_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"--data FOLDER, or --passages N and --queries N"):
        forecast.forecast("msmarco", counts={}, machines=["g6.xlarge"])
    with pytest.raises(UserError, match=r"Give --machine NAME:COUNT"):
        forecast.forecast("msmarco", counts={"passages": 10, "train": 5})


def test_weights_that_are_not_here_are_taken_by_their_name() -> None:
    assert task().recipe.model.cross.weights.endswith("large-en")
    dual, cross = forecast.shapes(task().recipe, forecast.Display(quiet=True))
    assert (dual.layers, dual.width, cross.layers, cross.width) == (12, 768, 24, 1024)


# ------------------------------------------------------------------------------------- the probe


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_probe_measures_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = forecast.forecast("tiny", counts={}, as_json=True)
    capsys.readouterr()
    names = [stage["stage"] for stage in found["stages"]]
    assert names[0] == "queries"
    assert "dual_2" in names
    assert all(stage["seconds"] > 0 for stage in found["stages"])
    assert found["dollars"] == 0
