"""Operations, bytes and seconds of a recipe against sums made by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from rocketray import forecast, machines, probe
from rocketray import recipe as recipes
from rocketray.errors import UserError
from rocketray.formats import open_dataset
from rocketray.formats.generated import words, write_jsonl, write_qrels
from rocketray.machines import GBIT, GROUP_SECONDS, MACHINES, POOL_SECONDS, Fleet, Machine
from rocketray.model import weights
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.flops import Flops
from rocketray.plan import Counts, Shape, Task, Work
from rocketray.progress import Display

ROOT = Path(__file__).parent.parent
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
    labelled = replace(MARCO, unlabelled=0)
    names = by_stage(task(labelled))
    assert not {"dual_1_unlabelled_scored", "dual_2"} & names.keys()  # dual_2 is dual_1 again.
    longer = by_stage(task(labelled, "steps.dual_2.epochs=20"))
    assert longer["dual_2"].steps > longer["dual_1"].steps


# ----------------------------------------------------------------------------------------- seconds

PLAIN = Machine("plain", cpus=4, rates={"encode": 100.0, "train_dual": 100.0, "ingest": 10.0},
                network=1000.0, link=2000.0, price=2.0)  # fmt: skip


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
    assert found.network == pytest.approx(8 * 10 * 1000 * 7 / 8)


def test_a_step_has_no_more_workers_than_shards() -> None:
    (found,) = forecast.times([trained(shards=2)], Fleet(PLAIN))
    assert (found.bound, found.workers) == ("shards", 2)


# --------------------------------------------------------------------------------- the whole table


def test_money_is_hours_times_price_and_the_heads() -> None:
    fleet = machines.fleet("g6.xlarge:16@0.5")
    found = forecast.told(task(), fleet)
    assert found["hours"] * 3600 == pytest.approx(sum(s["seconds"] for s in found["stages"]))
    assert found["dollars"] == pytest.approx(found["hours"] * (16 * 0.5 + 0.2016))
    assert found["head_dollars"] == pytest.approx(found["hours"] * 0.2016)
    assert found["spot_dollars"] == pytest.approx(found["hours"] * (0.4 * 16 * 0.5 + 0.2016))
    assert found["device_hours"] == pytest.approx(found["hours"] * 16)


def test_one_machine_needs_no_head_and_one_without_a_price_none_either() -> None:
    assert machines.fleet("g6.xlarge@0.5").price == 0.5
    assert machines.fleet("mine=cpus:4:3").price == 0.0


@pytest.mark.parametrize("machine", ["p5.48xlarge", "g6.2xlarge:8", "m7i.4xlarge:4@0.3"])
def test_totals_are_the_sums_of_the_stages(machine: str) -> None:
    found = forecast.told(task(), machines.fleet(machine))
    for total, part in (("device_hours", "device_hours"), ("network", "network"),
                        ("dollars", "dollars"), ("stored", "writes")):  # fmt: skip
        assert found[total] == pytest.approx(sum(stage[part] for stage in found["stages"]))
        assert all(stage[part] >= 0 for stage in found["stages"])
    first = found["stages"][0]
    fleet = machines.fleet(machine)
    assert first["dollars"] == pytest.approx(first["seconds"] / 3600 * fleet.price)
    assert first["device_hours"] == pytest.approx(first["seconds"] / 3600 * fleet.devices)


def shown(told: Task, fleet: Fleet) -> str:
    """What a person sees of a plan, in a job's log."""
    console = Console(width=80, force_terminal=False, highlight=False)
    display = Display(console)
    found = forecast.told(told, fleet) | {
        "scale": forecast.scaled(told, fleet),
        "tokens": {"query": 12, "query_by": "assumed", "passage": 80, "passage_by": "told"},
    }
    with console.capture() as captured:
        forecast.show(found, fleet, told, display)
    return captured.get()


@pytest.mark.parametrize("machine", ["p5.48xlarge:64", "g6.xlarge:32@0.32", "g2-standard-8"])
def test_the_table_fits_a_hundred_columns_whole(machine: str) -> None:
    fleet = machines.fleet(machine)
    said = shown(task(), fleet)
    before = said[: said.index(f"hours on {fleet}")].splitlines()[:-1]
    table = [line for line in before if line.strip()]
    assert max(map(len, table)) <= 100
    assert not any("…" in line for line in table)
    head = next(line for line in table if "waits for" in line)
    for word in ("stage", "workers", "time", "stored", "network", "GPU-hours", "dollars"):
        assert word in head
    assert any(line.split()[:1] == ["dual_1_unlabelled_scored"] for line in table)
    assert table[-1].split()[0] == "all"


def test_what_is_not_in_the_money_is_said() -> None:
    said = shown(task(), machines.fleet("g6.2xlarge:8"))
    assert "for the cluster's head (m7i.xlarge, $0.2016 an hour)" in said
    assert "Not in them: machines of another kind" in said
    for word in ("disks", "object storage", "zones", "start", "spot"):
        assert word in said[said.index("Not in them") :].split("\n")[0]
    assert forecast.told(task(), machines.fleet("g6.2xlarge"))["not_counted"]
    assert "Mean tokens: 12.0 a question (assumed), 80.0 a passage (told)." in said


def test_where_nothing_is_paid_or_sent_nothing_is_said_of_it() -> None:
    said = shown(task(), Fleet(replace(MACHINES["m7i.4xlarge"], own_disk=True, price=0.0)))
    assert "dollars" not in said
    assert "CPU-hours" in said
    assert "over the network" not in said


# ------------------------------------------------------------------------------- this machine, more

HERE = Machine(
    "this machine", 2,
    {"ingest": 2e4, "tokenise": 3e5, "lexical": 5e7, "encode": 4e10, "search": 6e10,
     "score": 5e10, "train_dual": 3e10, "train_cross": 3.5e10},
    network=10 * GBIT, link=0.6e9, pool_seconds=14.0, kept_seconds=1.0, group_seconds=35.0,
    own_disk=True,
)  # fmt: skip
"""As a probe leaves one."""
SQUAD = Counts(20_958, 5_000, 5_000, dev=300, test=1_000, unlabelled=2_500,
               query_tokens=13.5, passage_tokens=120.25)  # fmt: skip

PLANNED = {
    "queries": 14.16065, "query_tokens": 1.144585, "passages": 1.5303396341463413,
    "passage_tokens": 5.251556067073171, "dual_0": 1218.6373298016,
    "initial_embeddings": 726.4084210720196, "dual_0_embeddings": 713.4084210720196,
    "initial_test": 5.2055956, "dual_0_train": 10.813056399999999,
    "dual_0_dev": 2.4018651999999996, "dual_0_test": 5.2055956, "cross": 1112.3061621028571,
    "dual_0_train_scored": 418.10838440000003, "dual_1": 2233.1584857952002,
    "dual_1_embeddings": 726.4084210720196, "dual_1_unlabelled": 10.813056399999999,
    "dual_1_test": 5.2055956, "dual_1_unlabelled_scored": 337.756987, "dual_2": 3288.3177140064,
    "dual_2_embeddings": 726.4084210720196, "dual_2_test": 5.2055956,
    "dual_2_test_scored": 145.324423, "bm25_test": 1.2357775,
}  # fmt: skip
"""Seconds by the formulas that were compared with an hour's run (docs/lab-notes.md)."""


def squad() -> Task:
    """By the recipe as it was in that hour."""
    recipe = recipes.load(
        "ablate",
        ["data.labelled=2500", "steps.cross.queries=2000", "steps.cross.evaluations=2",
         "steps.cross.global_batch=16", "steps.cross.micro_shard=8",
         "denoise.depth=6", "denoise.fill=random", "augment.queries=2500", "evaluate.rerank=5",
         "evaluate.dev_passages=1500"],
    )  # fmt: skip
    small = Shape(6, 384, 1536)
    return Task(recipe, SQUAD.under(recipe), small, replace(small, first_token=True))


def test_a_probed_machine_by_itself_has_no_network() -> None:
    """So the sums that the hour's run was compared with stay what they were."""
    found = forecast.told(squad(), Fleet(HERE, 1, 2, None))
    assert {s["stage"]: s["seconds"] for s in found["stages"]} == pytest.approx(PLANNED, rel=1e-12)
    assert found["hours"] * 3600 == pytest.approx(11714.416438995357, rel=1e-12)
    slow = forecast.told(squad(), Fleet(replace(HERE, network=1.0), 1, 2, None))
    assert [s["seconds"] for s in slow["stages"]] == [s["seconds"] for s in found["stages"]]
    assert found["network"] == 0


def test_more_of_a_probed_machine_wait_for_the_network() -> None:
    """One GPU each: 64 of them do a step's work in a sixty-fourth of the time, and send as much."""
    fast = dict.fromkeys(HERE.rates, 3e13) | machines.PER_CPU
    here = replace(HERE, gpus=1, gpu="L4", cpus=8, rates=fast)
    rows = forecast.scaled(task(), Fleet(here))
    found = {row["devices"]: row for row in rows if row["passages"] == MARCO.passages}
    assert found[1]["bound"] == "compute"
    assert found[64]["bound"] == found[512]["bound"] == "network"
    free = forecast.scaled(task(), Fleet(replace(here, network=math.inf)))
    assert found[512]["hours"] > 2 * next(
        row["hours"] for row in free if (row["passages"], row["devices"]) == (MARCO.passages, 512)
    )


def test_training_within_a_machine_never_takes_its_network() -> None:
    """Not even with more workers than it has CPUs, as a recipe may ask for."""
    (found,) = forecast.times([trained(sent=1000.0)], Fleet(PLAIN, 1, train_workers=8))
    assert found.seconds == GROUP_SECONDS + 10 + 10 * 1000 * 7 / 8 / PLAIN.link
    assert found.network == 0


def test_each_machine_at_work_brings_what_it_reads() -> None:
    told = {"reads": 1000.0, "writes": 400.0}
    (both,) = forecast.times([mapped(**told)], Fleet(PLAIN, 2))
    (one,) = forecast.times([mapped(**told, blocks=1)], Fleet(PLAIN, 2))
    assert (both.network, one.network) == (2 * 1000 + 400, 1000 + 400)


def test_training_brings_its_tokens_first() -> None:
    (found,) = forecast.times([trained(reads=90_000.0)], Fleet(PLAIN))
    assert found.seconds == GROUP_SECONDS + 20 + 90
    assert found.bound == "network"


# ---------------------------------------------------------------------------- kinds of machines


def named(value: object) -> Iterator[str]:
    """Machine types of a cluster's file, wherever in it they stand."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if re.search(r"(?i)^(.*/)?(instance|machine)-?type$", str(key)):
                yield str(inner)
            yield from named(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from named(inner)


@pytest.mark.parametrize(
    ("file", "some"),
    [
        ("cluster.yaml", {"m7i.xlarge", "m7i.4xlarge", "g6.2xlarge"}),
        ("docs/gcp.yaml", {"n2-standard-4", "n2-standard-16", "g2-standard-8"}),
        ("docs/kuberay.yaml", set()),
    ],
)
def test_machines_of_the_clusters_are_known(file: str, some: set[str]) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    types = {name for document in yaml.safe_load_all(text) for name in named(document)}
    types |= set(re.findall(r"\b[a-z]+\d+\w*\.\d*(?:xlarge|metal)\b", text))  # Comments, too.
    assert some <= types
    assert types <= MACHINES.keys()


def test_bandwidth_is_what_holds_for_hours() -> None:
    baseline = {
        "g6.xlarge": 2.5, "g5.xlarge": 2.5, "g6.2xlarge": 5, "g4dn.xlarge": 5, "m7i.4xlarge": 6.25,
        "c7i.4xlarge": 6.25, "g6.12xlarge": 40,
    }  # fmt: skip
    for name, gbit in baseline.items():
        assert MACHINES[name].network == gbit * GBIT


def test_links_are_of_their_kind() -> None:
    for machine in MACHINES.values():
        nvlinked = machine.gpu in ("H100", "A100")
        kind = machines.NVLINK if nvlinked else machines.PCIE if machine.gpus else machines.LOOPBACK
        assert machine.link == kind, machine.name


@pytest.mark.parametrize(
    ("name", "nvlink"),
    [
        ("NVIDIA H100 80GB HBM3", True), ("NVIDIA A100-SXM4-40GB", True), ("NVIDIA H200", True),
        ("NVIDIA B200", True), ("NVIDIA H100 PCIe", False), ("NVIDIA H100 NVL", False),
        ("NVIDIA L4", False), ("NVIDIA A10G", False), ("Tesla T4", False),
        ("NVIDIA A100 80GB PCIe", False),
    ],
)  # fmt: skip
def test_nvlink_is_told_from_a_gpus_name(name: str, nvlink: bool) -> None:
    assert machines.gpu_link(name) == (machines.NVLINK if nvlink else machines.PCIE)


def test_a_machine_of_ones_own() -> None:
    told = "mine=cpus:16,gpus:2,tflops:120,memory:48,link:50,gbit:25,dollars:0.8"
    found = machines.fleet(told)
    mine = found.machine
    assert (mine.name, mine.cpus, mine.gpus, found.count, mine.price) == ("mine", 16, 2, 1, 0.8)
    assert mine.rates["encode"] == pytest.approx(0.35 * 120e12)
    assert (mine.memory, mine.link, mine.network) == (48e9, 50e9, 25 * GBIT)
    several = machines.fleet(told + ":4@0.35")
    assert (several.count, several.machine.price) == (4, 0.35)
    assert str(several) == "4 x mine (8 GPU)"


def test_a_machine_of_ones_own_may_say_little() -> None:
    plain = machines.fleet("box=cpus:8:3")
    assert (plain.machine.cpus, plain.count, plain.devices) == (8, 3, 24)
    assert (plain.machine.network, plain.machine.link) == (10 * GBIT, machines.LOOPBACK)
    assert machines.fleet("box=cpus:8,gpus:1,tflops:30").machine.link == machines.PCIE
    assert machines.fleet("box=cpus:8,gpus:0").devices == 8


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("m=gpus:1,tflops:9", r"m: cpus is missing\. Add cpus:N"),
        ("m=cpus:4,gpus:1", r"m: tflops is missing\. Add tflops:N, peak of a GPU in bfloat16"),
        ("m=cpus:4,tflops:9", r"m: tflops is a GPU's\. Add gpus:N, or leave it out"),
        ("m=cpus:4,ram:9", r"m: no field is called 'ram'\. Say cpus, gpus, tflops, memory"),
        ("m=cpus:4,cpus:5", r"m: cpus is said twice"),
        ("m=cpus:four", r"m: cpus:four is not a whole number, above 0 \(how many"),
        ("m=cpus:1.5", r"m: cpus:1\.5 is not a whole number, above 0"),
        ("m=cpus:0", r"m: cpus:0 is not a whole number, above 0"),
        ("m=cpus:4,gbit:-1", r"m: gbit:-1 is not a number, above 0 \(to other machines"),
        ("m=cpus:4,dollars:nan", r"m: dollars:nan is not a number, 0 or more \(an hour\)"),
        ("m=cpus:4:0", "say NAME"),
        ("m=", "say NAME"),
        ("mine", r"known are .*Say what another one has: mine=cpus:16"),
    ],
)
def test_a_machine_of_ones_own_that_cannot_be(told: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        machines.fleet(told)


def test_the_documentation_has_every_field_of_a_machine() -> None:
    text = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert [row for row in rows if row in machines.FIELDS] == list(machines.FIELDS)
    for told in re.findall(r"--machine (\S+=\S+)", text):
        machines.fleet(told)


# ----------------------------------------------------------------------------------- mean tokens


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two passages, of which one has a title, and a question: each word is a token."""
    some = words()
    folder = tmp_path / "corpus"
    (folder / "qrels").mkdir(parents=True)
    write_jsonl(
        folder / "corpus.jsonl",
        [
            {"_id": "p0", "title": some[0], "text": " ".join(some[1:3])},
            {"_id": "p1", "title": "", "text": " ".join(some[:10])},
        ],
    )
    write_jsonl(folder / "queries.jsonl", [{"_id": "q0", "text": " ".join(some[:3])}])
    write_qrels(folder / "qrels" / "train.tsv", [("q0", "p0")])
    return folder


SHORT = ["model.dual.query_length=16", "model.dual.passage_length=8"]


def test_mean_tokens_by_the_recipes_tokenizer(corpus: Path, tmp_path: Path) -> None:
    """[CLS] 3 [SEP]; [CLS] 1 [SEP] 2 [SEP] and 12 that are cut to 8."""
    model = weights.tiny(tmp_path / "tiny", words(), seed=0)
    recipe = recipes.load("small", [*SHORT, f"model.dual.weights={model}"])
    asked, passage, how = probe.tokens(recipe, open_dataset(corpus), tmp_path)
    assert (asked, passage) == (5, (6 + 8) / 2)
    assert how == "the recipe's tokenizer on 1 questions and 2 passages"


def test_mean_tokens_by_words_where_no_tokenizer_is_at_hand(corpus: Path, tmp_path: Path) -> None:
    recipe = recipes.load("small", [*SHORT, "model.dual.weights=nobody/nothing"])
    asked, passage, how = probe.tokens(recipe, open_dataset(corpus), tmp_path)
    assert asked == pytest.approx(2 + 1.3 * 3)
    assert passage == pytest.approx((2 + 1.3 * 3 + 8) / 2)
    assert how.startswith("1.3 a word of 1 questions and 2 passages: nobody/nothing is not on")


def test_a_plan_with_data_takes_their_mean_tokens(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = weights.tiny(tmp_path / "tiny", words(), seed=0)
    settings = [*SHORT, f"model.dual.weights={model}", f"model.cross.weights={model}"]
    counts = {"query_tokens": 9.0}
    (found,) = forecast.forecast(
        "small", counts=counts, machines=["g6.2xlarge"], data=corpus, overrides=settings,
        as_json=True,
    )  # fmt: skip
    capsys.readouterr()
    told = found["tokens"]
    assert (told["query"], told["query_by"]) == (9.0, "told")
    assert told["passage"] == 7
    assert told["passage_by"].startswith("the recipe's tokenizer")


def test_without_data_mean_tokens_are_assumed_and_said_to_be(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (found,) = forecast.forecast(
        "msmarco", counts={"passages": 1000, "train": 10}, machines=["g6.2xlarge:2"], network=1.0,
        as_json=True,
    )  # fmt: skip
    capsys.readouterr()
    assert found["tokens"]["passage_by"] == "assumed"
    slow = next(stage for stage in found["stages"] if stage["stage"] == "cross")
    assert slow["bound"] == "network"


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


@pytest.mark.parametrize(("recipe", "told"), [("ablate", True), ("small", False)])
def test_the_plan_of_an_ablations_recipe_is_of_one_run(
    recipe: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    forecast.forecast(recipe, counts={"passages": 10, "train": 5}, machines=["g6.xlarge"])
    assert ("note: this is one run of it. `rocketray ablate`" in capsys.readouterr().out) == told


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
