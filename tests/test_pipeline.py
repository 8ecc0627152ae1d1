"""The whole loop in this process over made-up data: what is made, what is not made again."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from rocketray import (
    artifacts,
    audit,
    calibration,
    cli,
    labelling,
    learning,
    loop,
    measures,
    pipeline,
    preparation,
    report,
    results,
    search,
)
from rocketray.artifacts import RunFolder, Superseded, Version
from rocketray.engine import room
from rocketray.errors import UserError
from rocketray.evaluation import evaluate
from rocketray.formats import open_dataset
from rocketray.formats.generated import words, write_generated
from rocketray.model import weights
from rocketray.model.dev import Dev
from rocketray.progress import Display, Meter
from rocketray.recipe import Cluster, load
from rocketray.schema import EXAMPLES, RUN, positives_of
from rocketray.stages.pool import in_turn
from rocketray.tables import STAGES, as_version
from rocketray.verbs.named import slug
from rocketray.workflow import Workflow
from tests.versions import run, scored

RECIPE = """
name: test
seed: 3
model:
  dual: {weights: tiny, query_length: 16, passage_length: 32}
  cross: {weights: tiny, length: 48}
steps:
  dual_0: {epochs: 1, global_batch: 8, micro_shard: 8, learning_rate: 1.0e-3, evaluations: 1,
    precision: float32}
  cross:
    {epochs: 1, global_batch: 16, micro_shard: 16, learning_rate: 1.0e-3, negatives: 2, depth: 10,
     evaluations: 1, precision: float32}
  dual_1: {epochs: 1, global_batch: 8, micro_shard: 8, learning_rate: 1.0e-3, evaluations: 1,
    precision: float32}
  dual_2: {epochs: 1, global_batch: 8, micro_shard: 8, learning_rate: 1.0e-3, evaluations: 1,
    precision: float32}
denoise: {depth: 5, negative_below: 0.45, positive_above: 0.55}
augment: {depth: 5}
evaluate: {k: 20, rerank: 5, dev_passages: 20, dev_rerank: 5}
blocks: {passages: 10, queries: 8}
cluster: {train: {workers: 0, threads: 1}, bulk: {actors: 0}}
"""


def write_data(folder: Path) -> Path:
    write_generated(folder, passages=40, queries=16, unlabelled=9, seed=1)
    return folder


class Place:
    """A data set, a recipe and a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data, self.out, self.recipe = folder / "data", folder / "out", folder / "mine.yaml"

    def run(self, *overrides: str, **options: Any) -> Workflow:
        display = Display(Console(file=io.StringIO(), width=200))
        return loop.run(
            str(self.recipe), self.out, data=self.data, overrides=overrides,
            **{"display": display, **options},
        )  # fmt: skip

    def copied(self, folder: Path) -> Place:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Place(folder)

    def version(self, name: str) -> Version:
        return RunFolder.open(self.out).version(name)


def new(folder: Path) -> Place:
    place = Place(folder)
    write_data(place.data)
    place.recipe.write_text(RECIPE)
    return place


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A whole run. Tests that write work on a copy."""
    place = new(tmp_path_factory.mktemp("finished"))
    place.run()
    return place


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Place:
    return finished.copied(tmp_path)


def remade(flow: Workflow) -> set[str]:
    return set(flow.made) - set(flow.skipped)


# ------------------------------------------------------------------------------------ a whole run


def test_the_stages_are_those_that_until_takes(finished: Place) -> None:
    made = set(RunFolder.open(finished.out).current()) - {"metrics"}
    assert made <= set(pipeline.STAGES)
    assert set(pipeline.STAGES) - made == {
        "qrels_hidden", "qrels_hidden_positives", "dual_0_dev_scored", "initial_index",
        "dual_0_index", "dual_1_index", "dual_2_index",
    }  # fmt: skip


def test_until_a_stage_that_this_run_has_not(place: Place) -> None:
    said = io.StringIO()
    flow = place.run(until="dual_0_index", display=Display(Console(file=said, width=200)))
    assert list(flow.made)[-1] == "dual_0_embeddings"
    assert (
        "Stopped before initial_test: this run makes no dual_0_index, which would come before"
        in said.getvalue()
    )
    flow = place.run("evaluate.bm25=false", until="bm25_test", display=Display(quiet=True))
    assert "metrics" in flow.made  # Nothing comes after it.


@pytest.mark.parametrize(
    ("until", "missing", "last", "stopped"),
    [
        ("qrels_hidden", (), "test_queries", "initial"),
        ("dual_0_dev", ("dev",), "dual_0_test", "cross_examples"),
        ("dual_1_unlabelled", (), "dual_1_embeddings", "dual_1_test"),
    ],
)
def test_where_the_data_make_no_stage_it_stops_before_the_next(
    until: str, missing: tuple[str, ...], last: str, stopped: str, tmp_path: Path
) -> None:
    """Runs over several purposes are made together: dual_0_train comes before dual_0_dev."""
    place, said = new(tmp_path), io.StringIO()
    for split in missing:
        (place.data / "qrels" / f"{split}.tsv").unlink()
    without_unlabelled(place)
    flow = place.run(until=until, display=Display(Console(file=said, width=200)))
    assert list(flow.made)[-1] == last
    assert f"Stopped before {stopped}: this run makes no {until}" in said.getvalue()


@pytest.mark.parametrize(
    ("until", "told", "last"),
    [
        ("dual_0_index", "blocks.passage_group=20", "dual_0_embeddings"),  # Before the search.
        ("dual_0_train_scored", "denoise.pool=both", "cross"),  # Before BM25's and both's lists.
    ],
)
def test_what_nobody_asks_for_by_name_is_not_made_either(
    until: str, told: str, last: str, place: Place
) -> None:
    assert list(place.run(told, until=until).made)[-1] == last


def test_no_measure_looks_deeper_than_the_corpus(place: Place) -> None:
    place.run("evaluate.k=1000")  # Of 40 passages.
    metrics = artifacts.read_json(place.out / "metrics.json")
    assert list(metrics["dual_2"]) == ["mrr@10", "ndcg@10", "recall@10"]


def without_unlabelled(place: Place) -> None:
    path = place.data / "queries.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    named = "".join(file.read_text() for file in (place.data / "qrels").iterdir())
    kept = [json.dumps(row) + "\n" for row in rows if f"{row['_id']}\t" in named]
    path.write_text("".join(kept))


def test_every_artifact_is_as_its_manifest_says(finished: Place) -> None:
    for name in RunFolder.open(finished.out).current():
        finished.version(name).verify()


def test_blocks_have_the_size_and_order_of_the_recipe(finished: Place) -> None:
    assert [block.rows for block in finished.version("passages").blocks] == [10] * 4
    assert [block.rows for block in finished.version("passage_tokens").blocks] == [10] * 4
    assert [block.rows for block in finished.version("initial_embeddings").blocks] == [10] * 4
    assert [block.rows for block in finished.version("dual_0_train").blocks] == [8, 8]
    corpus = (finished.data / "corpus.jsonl").read_text().splitlines()
    pids = finished.version("passages").read()["pid"].to_pylist()
    assert pids == [json.loads(line)["_id"] for line in corpus]


def test_examples_hold_no_positive_and_exactly_n_negatives(finished: Place) -> None:
    positives = positives_of(finished.version("qrels_train").read())
    for name, count in (("dual_0", 1), ("cross", 2), ("dual_1", 1), ("dual_2", 1)):
        table = finished.version(f"{name}_examples").read()
        assert table.schema == EXAMPLES
        for row in table.to_pylist():
            assert len(set(row["negatives"])) == count
            assert not {row["positive"], *positives.get(row["query"], [])} & set(row["negatives"])


def test_what_people_open_is_there(finished: Place) -> None:
    for name in ("recipe.yaml", "metrics.json", "summary.json", "report.html", "current.json"):
        assert (finished.out / name).is_file()
    for step in pipeline.STEPS:
        assert (finished.out / "logs" / f"{step}.jsonl").is_file()
        assert (finished.out / "models" / step).is_dir()
    assert not (finished.out / "scratch").exists()


def test_metrics_are_shares(finished: Place) -> None:
    metrics = json.loads((finished.out / "metrics.json").read_text())
    assert set(metrics) == set(report.MODELS)
    assert all(0 <= value <= 1 for row in metrics.values() for value in row.values())
    assert metrics["bm25"]["recall@10"] > 0.5


# -------------------------------------------------------------------------------- the second run


def test_the_same_command_again_makes_nothing(place: Place) -> None:
    assert remade(place.run()) == set()


def test_a_deeper_trec_file_is_written(place: Place) -> None:
    assert remade(place.run("evaluate.trec_depth=3")) == {"metrics"}
    lines = (place.out / "runs" / "dual_2.trec").read_text().splitlines()
    assert {line.split()[3] for line in lines} == {"1", "2", "3"}


@pytest.mark.parametrize(("cross", "weak"), [(0.4, True), (0.6, False)])
def test_a_weak_cross_encoder_is_said_before_it_scores(
    cross: float, weak: bool, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, quality = io.StringIO(), {"dual_0": 0.5, "cross": cross, "best": 0.9}
    monkeypatch.setattr(learning, "cross_quality", lambda flow: quality)
    place.run(until="cross", display=Display(Console(file=said, width=200)))
    note = "no better than dual_0 (MRR@10 0.4000 against 0.5000), so its verdicts may be weak"
    assert (note in said.getvalue()) == weak


def test_a_cross_encoder_is_judged_by_what_it_reranks(place: Place) -> None:
    """As trec_eval would judge dual_0's lists, cut where those of cross are."""
    flow = place.run()
    run = flow.made["dual_0_dev"].read()
    depth = flow.recipe.evaluate.dev_rerank
    lists = [rows[:depth] for rows in run["passages"].to_pylist()]
    scores = [rows[:depth] for rows in run["scores"].to_pylist()]
    cut = pa.table([run["query"], lists, scores], schema=RUN)
    expected = measures.evaluate(cut, flow.made["qrels_dev"].read(), ["mrr@10"])["mrr@10"]
    dev_mrr = flow.made["cross"].facts["dev_mrr"]
    positives = positives_of(flow.made["qrels_dev"].read())
    pairs = zip(run["query"].to_pylist(), lists, strict=True)
    holds = [not set(positives[query]).isdisjoint(rows) for query, rows in pairs]
    assert learning.cross_quality(flow) == {
        "dual_0": pytest.approx(expected), "cross": dev_mrr, "best": sum(holds) / len(holds),
    }  # fmt: skip
    counts = dict(json.loads((place.out / "summary.json").read_text())["counts"])
    said = f"MRR@10 {dev_mrr:.4f} where dual_0 has {expected:.4f}"
    assert counts["cross-encoder on dev"] == said


def test_a_list_counts_as_far_as_its_tenth_and_at_best_its_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    relevant, lists = [np.array([30]), np.array([1]), np.array([99])], [np.arange(20, 32)]
    lists += [np.arange(12)] * 2  # Found at the eleventh place, at the second, and not at all.
    dev = Dev(queries=np.arange(3), relevant=relevant, candidates=lists)
    monkeypatch.setattr(learning, "_cross_dev", lambda flow: dev)
    cross: Any = SimpleNamespace(facts={"dev_mrr": 0.5})
    flow: Any = SimpleNamespace(made={"cross": cross})
    expected = {"dual_0": 0.5 / 3, "cross": 0.5, "best": 2 / 3}
    assert learning.cross_quality(flow) == pytest.approx(expected)


def test_the_page_tells_what_the_summary_tells(place: Place) -> None:
    """Also where another way leads to the same weights, so that nothing is measured again."""
    place.run()
    assert "metrics" not in remade(place.run("evaluate.dev_rerank=1"))
    counts = dict(json.loads((place.out / "summary.json").read_text())["counts"])
    assert counts["cross-encoder on dev"] in (place.out / "report.html").read_text()


def test_a_run_killed_before_its_page_is_there_leaves_no_older_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: RunFolder) -> None:
        raise KeyboardInterrupt

    place.run()
    with monkeypatch.context() as patch:
        patch.setattr(report, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            place.run("evaluate.dev_rerank=1")
    assert not (place.out / "report.html").exists()
    place.run("evaluate.dev_rerank=1")
    counts = dict(json.loads((place.out / "summary.json").read_text())["counts"])
    assert counts["cross-encoder on dev"] in (place.out / "report.html").read_text()


def test_promoted_passages_count_as_removed(place: Place) -> None:
    def removed(*overrides: str) -> str:
        place.run("denoise.negative_below=0.001", "denoise.positive_above=0.002", *overrides)
        counts = dict(artifacts.read_json(place.out / "summary.json")["counts"])
        return str(counts["negatives removed"])

    before = removed()
    assert ": 0 likely false" not in before
    assert removed("denoise.promote=true") == before


def test_candidates_of_two_retrievers_are_told_by_who_found_them(place: Place) -> None:
    facts = place.run("denoise.pool=both").made["both_train"].facts
    found = {name: facts[name] for name in ("dual_0", "bm25", "both")}
    assert sum(found.values()) == 16 * 5
    counts = dict(artifacts.read_json(place.out / "summary.json")["counts"])
    assert counts["candidates"] == (
        "{dual_0} found by dual_0 alone, {bm25} by BM25 alone, {both} by both".format(**found)
    )
    rows = audit.audit(RunFolder.open(place.out))["by_source"]
    assert {row["found_by"]: row["passages"] for row in rows[:-1]} == {
        name: count for name, count in found.items() if count
    }


def test_what_was_left_out_of_scoring_follows_the_scored() -> None:
    found, judged = run((0, [5, 6, 7, 8])), scored((0, [5, 7], [0.1, 0.9]))
    assert results.reranked(found, judged)["passages"].to_pylist() == [[7, 5, 6, 8]]


class Overtaken(Display):
    """Somebody takes the run folder over when dual_2 begins to train."""

    def __init__(self, out: Path) -> None:
        super().__init__(quiet=True)
        self.out = out

    @contextmanager
    def meter(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Meter]:
        if name == "dual_2":
            RunFolder(self.out).claim(take_over=True)
        with super().meter(name, total, unit, done) as meter:
            yield meter


def test_only_what_still_trains_asks_for_room(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run needs no machines for training, nor does one that stops before it."""
    asked: list[Cluster] = []
    monkeypatch.setattr(room, "check", lambda cluster, say: asked.append(cluster))
    place.run()
    new(tmp_path / "tables").run(until="passages")
    assert asked == []
    new(tmp_path / "training").run(until="dual_0_examples")
    assert asked == []
    fresh = new(tmp_path / "fresh")
    fresh.run(until="dual_0")
    assert asked == [load(str(fresh.recipe)).cluster]


def test_who_was_taken_over_stops_training(place: Place) -> None:
    before = set((place.out / "stages").glob("dual_2-*"))
    with pytest.raises(Superseded):
        place.run("steps.dual_2.learning_rate=0.0001", display=Overtaken(place.out))
    (begun,) = set((place.out / "stages").glob("dual_2-*")) - before
    assert list(begun.iterdir()) == []


def test_another_machine_folder_makes_the_same_bytes(finished: Place, tmp_path: Path) -> None:
    """Paths are no part of a fingerprint: the moved folders are still finished."""
    moved = finished.copied(tmp_path / "elsewhere")
    assert remade(moved.run("cluster.train.threads=2", frozen=True)) == set()


def test_a_new_threshold_reruns_denoise_and_what_follows_but_scores_nothing_of_it(
    place: Place,
) -> None:
    flow = place.run("denoise.negative_below=0.4", until="dual_1_examples")
    assert remade(flow) <= {"denoise", "dual_1_examples"}
    assert "denoise" in remade(flow)
    assert {"dual_0_train_scored", "cross"} <= set(flow.skipped)


def test_a_deeper_list_scores_only_the_new_pairs(place: Place) -> None:
    before = place.version("dual_0_train_scored").facts
    flow = place.run("denoise.depth=8", until="dual_0_train_scored")
    assert remade(flow) == {"dual_0_train_scored"}
    facts = flow.made["dual_0_train_scored"].facts
    assert facts["pairs"] == 16 * 8
    assert facts["known"] >= before["pairs"] == 16 * 5


def test_scores_of_another_precision_are_not_taken_for_known(place: Place) -> None:
    flow = place.run("score.precision=int8", until="dual_0_train_scored")
    assert remade(flow) == {"dual_0_train_scored"}
    facts = flow.made["dual_0_train_scored"].facts
    assert (facts["pairs"], facts["known"]) == (16 * 5, 0)


def test_a_recheck_makes_thresholds_part_of_the_scores(place: Place) -> None:
    told = ("score.precision=int8", "score.recheck=0.1")
    first = place.run(*told, until="dual_0_train_scored").made["dual_0_train_scored"].facts
    assert first["compared"] == first["pairs"] == 16 * 5
    assert 0 <= first["rechecked"] <= first["pairs"]
    flow = place.run(*told, "denoise.negative_below=0.4", until="dual_0_train_scored")
    assert remade(flow) == {"dual_0_train_scored"}


def test_a_rows_recheck_looks_near_its_own_thresholds(place: Place) -> None:
    """As a row of an ablation is made: by other rules than the recipe's."""
    flow = place.run("score.precision=int8", "score.recheck=0.1", until="denoise")
    flow.until = None
    ready = preparation.prepare(flow, open_dataset(place.data))
    rules = flow.recipe.denoise.model_copy(update={"negative_below": 0.3})
    run, cross = flow.made["dual_0_train"], flow.made["cross"]
    labelling.denoise(flow, ready, run, cross, ready.tables.qrels["train"], rules, "row_verdicts")
    told = flow.made["dual_0_train_scored"].manifest["identity"]["recipe"]
    assert told["recheck"]["thresholds"] == [0.3, 0.55]


def test_the_precision_that_auto_was_stands_beside_the_stage(finished: Place) -> None:
    for name in ("initial_embeddings", "dual_0_train_scored"):
        choices = json.loads((finished.version(name).path / "choices.json").read_text())
        assert choices["precision"] in ("float32", "bfloat16", "float16")


def test_embeddings_in_half_the_bytes_serve_as_well(place: Place) -> None:
    flow = place.run("encode.storage=float16", until="dual_0_train")
    assert "initial_embeddings" in remade(flow)
    block = flow.made["dual_0_embeddings"].array(0, "embeddings")
    assert block.dtype == np.float16
    assert flow.made["dual_0_train"].rows == 16


def test_appended_passages_encode_only_new_blocks(place: Place) -> None:
    before = place.version("initial_embeddings")
    with (place.data / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "new", "title": "", "text": words()[0]}) + "\n")
    after = place.run(until="initial_embeddings").made["initial_embeddings"]
    assert [block.rows for block in after.blocks] == [10] * 4 + [1]
    for old, new in zip(before.blocks, after.blocks[:-1], strict=True):
        assert old.files["embeddings"].samefile(new.files["embeddings"])


def test_appended_passages_are_encoded_in_the_precision_of_the_others(place: Place) -> None:
    """The old blocks, float32 in truth, are taken for a GPU's."""
    old = place.version("initial_embeddings").path
    artifacts.write_json(old / "choices.json", {"precision": "bfloat16"})
    with (place.data / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "new", "title": "", "text": words()[0]}) + "\n")
    after = place.run(until="initial_embeddings").made["initial_embeddings"]
    assert artifacts.chosen_precision(after.path) == "bfloat16"
    told = place.run("encode.precision=bfloat16", until="initial_embeddings")
    half = told.made["initial_embeddings"]
    new, old_one = (
        [version.array(number, "embeddings") for version in (after, half)] for number in (4, 0)
    )
    np.testing.assert_array_equal(*new)
    assert not np.array_equal(*old_one)


def test_a_damaged_block_stops_the_run_and_its_cure_works(place: Place) -> None:
    version = place.version("denoise")
    path = version.blocks[0].files["table"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(Exception, match="differs from its manifest: expected sha256"):
        place.run("steps.dual_1.copies=2")
    shutil.rmtree(version.path)
    assert remade(place.run()) == {"denoise"}


# ----------------------------------------------------------------------------------- more rounds


@pytest.fixture(scope="module")
def twice(finished: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Workflow]:
    """The finished run gone on with a second round. Tests that write work on a copy."""
    place = finished.copied(tmp_path_factory.mktemp("twice"))
    return place, place.run("denoise.rounds=2")


SECOND_ROUND = {
    "dual_1_train", "dual_1_train_scored", "denoise_round_2", "dual_1_round_2_examples",
    "dual_1_round_2", "dual_1_round_2_embeddings", "dual_1_round_2_unlabelled",
    "dual_1_round_2_test", "dual_1_round_2_unlabelled_scored",
}  # fmt: skip


def pairs_of(version: Version) -> dict[tuple[int, int], float]:
    """ce_score by question and passage."""
    return {
        (row["query"], passage): ce_score
        for row in version.read().to_pylist()
        for passage, ce_score in zip(row["passages"], row["ce_scores"], strict=True)
    }


def test_a_second_round_adds_stages_and_keeps_those_of_the_first(
    finished: Place, twice: tuple[Place, Workflow]
) -> None:
    flow = twice[1]
    later = {"augment", "dual_2_examples", "dual_2", "dual_2_embeddings", "dual_2_test",
             "dual_2_test_scored", "metrics"}  # fmt: skip
    assert remade(flow) == SECOND_ROUND | later
    before = RunFolder.open(finished.out).current()
    for name in before.keys() & flow.made.keys() - later:
        assert flow.made[name].path.name == before[name]
    assert set(flow.made) - {"metrics"} <= set(pipeline.stages(2))
    assert set(pipeline.stages(2)) > SECOND_ROUND


def test_one_round_after_two_is_as_before(finished: Place, twice: tuple[Place, Workflow]) -> None:
    """The number of rounds is in no fingerprint."""
    before = RunFolder.open(finished.out).current()
    place, _ = twice
    copy = place.copied(place.folder.with_name("once_more"))
    flow = copy.run(frozen=True)
    assert remade(flow) == set()
    assert {name: version.path.name for name, version in flow.made.items()} == before


def test_a_second_round_scores_no_pair_of_the_first_again(twice: tuple[Place, Workflow]) -> None:
    made = twice[1].made
    first, second = pairs_of(made["dual_0_train_scored"]), pairs_of(made["dual_1_train_scored"])
    shared = first.keys() & second.keys()
    assert {pair: first[pair] for pair in shared} == {pair: second[pair] for pair in shared}
    facts = made["dual_1_train_scored"].facts
    assert facts["pairs"] == 16 * 5
    assert 0 < len(shared) == facts["known"] < facts["pairs"]


def test_a_second_round_learns_from_what_dual_1_finds(twice: tuple[Place, Workflow]) -> None:
    made = twice[1].made
    lists = {row["query"]: row["passages"] for row in made["dual_1_train"].read().to_pylist()}
    for row in made["denoise_round_2"].read().to_pylist():
        assert row["passages"] == lists[row["query"]][:5]
    names = ("dual_1", "dual_1_round_2", "dual_1_round_2_examples", "dual_2_examples",
             "dual_1_round_2_unlabelled")  # fmt: skip
    inputs = {name: made[name].manifest["identity"]["inputs"] for name in names}
    assert inputs["dual_1_round_2"]["weights"] == inputs["dual_1"]["weights"]
    for name in ("dual_1_round_2_examples", "dual_2_examples"):
        assert inputs[name]["labelled"] == made["denoise_round_2"].digest
    assert inputs["dual_1_round_2_unlabelled"]["model"] == made["dual_1_round_2"].digest


def test_people_see_the_second_round(twice: tuple[Place, Workflow]) -> None:
    place, _ = twice
    metrics = artifacts.read_json(place.out / "metrics.json")
    words = report.models(load("small", ["denoise.rounds=2"]).denoise)
    assert list(words) == ["initial", "bm25", "dual_0", "dual_1", "dual_1_round_2", "dual_2",
                           "reranked"]  # fmt: skip
    assert metrics.keys() == words.keys()
    counted = dict(artifacts.read_json(place.out / "summary.json")["counts"])
    for label in ("negatives removed", "negatives removed, round 2", "dual_1_round_2: examples"):
        assert label in counted
    page = (place.out / "report.html").read_text()
    assert "dual_1_round_2: denoised again, found by dual_1" in page
    assert "retrieved for labelled questions in the last round (denoise_round_2):" in page
    assert (place.out / "logs" / "dual_1_round_2.jsonl").is_file()
    found = audit.audit(RunFolder.open(place.out))
    assert found["of"].keys() == {"denoise_round_2", "augment"}


def test_the_best_retriever_is_the_last(twice: tuple[Place, Workflow], tmp_path: Path) -> None:
    place = twice[0].copied(tmp_path)
    current = artifacts.read_json(place.out / "current.json")
    for name in ("dual_2", "dual_1_round_2", "dual_1"):
        assert search.Searcher(place.out)._best()[0].name == name
        del current[name]
        artifacts.write_json(place.out / "current.json", current)


def test_a_later_pool_says_who_found_what(place: Place) -> None:
    """BM25, dual_0 and dual_1; and every verdict counts where columns are masked by ce_score."""
    settings = ("denoise.pool=both", "denoise.rounds=2", "steps.dual_1.mask_ce_above=0.9")
    made = place.run(*settings, until="dual_1_round_2").made
    names = ("both_round_2_train", "both_train", "dual_1_train")
    pool, before, dense = (made[name].read().to_pylist() for name in names)
    for row, earlier, new in zip(pool, before, dense, strict=True):
        assert row["passages"] == in_turn(new["passages"], earlier["passages"], 5)
        brought = dict(zip(earlier["passages"], earlier["found_by"], strict=True))
        for passage, found_by in zip(row["passages"], row["found_by"], strict=True):
            finders = found_by.split("+")
            assert ("dual_1" in finders) == (passage in new["passages"])
            for name in ("dual_0", "bm25"):
                assert (name in finders) == (brought.get(passage) in (name, "both"))
    assert sum(made["both_round_2_train"].facts.values()) == 16 * 5
    scored = made["both_round_2_train_scored"]
    assert scored.facts["known"] >= 16 * 2  # Of five in turn, two are the earlier pool's.
    verdicts = made["denoise"].digest, made["denoise_round_2"].digest
    inputs = made["dual_1_round_2"].manifest["identity"]["inputs"]
    assert (inputs["scored_0"], inputs["scored_1"]) == verdicts


def test_a_verb_keeps_away_from_the_names_of_rounds() -> None:
    assert slug("elsewhere/models/dual_1_round_2") == "dual_1_round_2_given"
    assert slug("elsewhere/merry_go_round_2") == "merry_go_round_2"


# ------------------------------------------------------------------------------------- odd data


def test_hidden_labels_become_unlabelled_questions(tmp_path: Path) -> None:
    flow = new(tmp_path).run("data.hide_labels=0.25", until="unlabelled_queries")
    hidden = set(positives_of(flow.made["qrels_hidden"].read()))
    train = set(flow.made["train_queries"].read()["query"].to_pylist())
    assert (len(hidden), len(train)) == (4, 12)
    assert not hidden & train
    assert hidden <= set(flow.made["unlabelled_queries"].read()["query"].to_pylist())


def test_what_was_asked_before_gets_no_pseudo_label(tmp_path: Path) -> None:
    """A question with labels in other signs, and one of two that are the same but for case."""
    place = new(tmp_path)
    path = place.data / "queries.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    texts = {row["_id"]: row["text"] for row in rows}
    tested = (place.data / "qrels" / "test.tsv").read_text().splitlines()[1].split("\t")[0]
    more = [texts[tested].upper() + "?!", "Is it new?", "is it NEW", "???", "!"]
    lines = [json.dumps({"_id": f"more{n}", "text": text}) + "\n" for n, text in enumerate(more)]
    path.write_text(path.read_text() + "".join(lines))
    flow = place.run(until="unlabelled_queries")
    chosen = flow.made["unlabelled_queries"]
    kept = flow.made["queries"].take(chosen.read()["query"].to_numpy(), "qid")["qid"].to_pylist()
    assert [qid for qid in kept if qid.startswith("more")] == ["more1", "more3", "more4"]
    assert len(kept) == 9 + 3
    assert chosen.facts == {"asked_before": 2}


def test_without_unlabelled_questions_dual_2_is_dual_1(tmp_path: Path) -> None:
    """Said before anything is trained; the table and the page call it what it is."""
    place, said = new(tmp_path), io.StringIO()
    without_unlabelled(place)
    made = place.run(display=Display(Console(file=said, width=200))).made
    shown = said.getvalue()
    assert shown.index("no unlabelled questions. Step 4 has nothing") < shown.index("plan (workers")
    assert "dual_2                     a copy of dual_1, which learned the same" in shown
    assert made["dual_2"].digest == made["dual_1"].digest
    weights_2 = sorted((place.out / "models" / "dual_2").rglob("*.safetensors"))
    for path in (*weights_2, place.out / "logs" / "dual_2.jsonl"):
        assert path.read_bytes() == Path(str(path).replace("dual_2", "dual_1")).read_bytes()
    assert len(weights_2) == 2
    for text in (shown, (place.out / "report.html").read_text()):
        assert "dual_2: no unlabelled questions to add" in text
        assert "data augmentation" not in text
    trained = place.run("steps.dual_2.copies=2").made["dual_2"]
    assert trained.facts["steps"] == 2 * made["dual_1"].facts["steps"]


def test_questions_that_a_recipe_leaves_out_are_told(tmp_path: Path) -> None:
    said = io.StringIO()
    told = ("data.labelled=12", "evaluate.queries=3", "evaluate.dev_queries=16")
    display = Display(Console(file=said, width=200))
    new(tmp_path).run(*told, until="test_queries", display=display)
    assert (
        "  note: trains on 12 of 16 labelled questions (data.labelled);"
        " measures 3 of 4 held-out questions (evaluate.queries)\n"
    ) in said.getvalue()


def test_the_judgements_of_what_was_asked_lie_beside_the_runs(place: Place) -> None:
    place.run("evaluate.queries=3")
    metrics = json.loads((place.out / "metrics.json").read_text())["dual_2"]
    run = place.out / "runs" / "dual_2.trec"
    assert len({line.split()[0] for line in run.read_text().splitlines()}) == 3
    found = evaluate(run, place.out / "runs" / "test.qrels", list(metrics))
    assert found == pytest.approx(metrics, abs=1e-6)


def test_ids_with_a_space_are_told(tmp_path: Path) -> None:
    place, said = new(tmp_path), io.StringIO()
    append("corpus.jsonl", '{"_id": "a b", "text": "x"}')(place.data)
    place.run(until="passages", display=Display(Console(file=said, width=200)))
    assert "  note: passages: 1 ids with a space. TREC files" in said.getvalue()


def test_hidden_positives_are_kept_from_training_and_scored_on_dev(tmp_path: Path) -> None:
    """Every question gets a second positive; half of all are hidden, so one of each."""
    place = new(tmp_path)
    for split in ("train", "dev"):
        path = place.data / "qrels" / f"{split}.tsv"
        rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
        more = [f"{qid}\tp{(int(pid[1:]) + 1) % 36}\t1\n" for qid, pid, _ in rows]
        path.write_text(path.read_text() + "".join(more))
    flow = place.run("data.hide_positives=0.5", "denoise.calibration=isotonic", until="denoise")
    visible, hidden = (
        flow.made[name].read().to_pylist() for name in ("qrels_train", "qrels_hidden_positives")
    )
    assert [row["query"] for row in visible] == [row["query"] for row in hidden]
    assert len(visible) == 16
    assert flow.made["qrels_dev"].rows == 8
    for name in ("dual_0_examples", "cross_examples"):
        shown = {(row["query"], row["positive"]) for row in flow.made[name].read().to_pylist()}
        assert shown == {(row["query"], row["passage"]) for row in visible}
    scored, told = flow.made["dual_0_dev_scored"], flow.made["denoise"].manifest["identity"]
    pairs = calibration.labelled_pairs(scored, flow.made["qrels_dev"].read())
    asked = {"negative_below": 0.45, "positive_above": 0.55}
    assert told["recipe"] == calibration.moved(calibration.fit("isotonic", pairs), asked)


def test_dev_measures_where_there_is_no_test_split(tmp_path: Path) -> None:
    """MS MARCO's layout: nothing is lost, and what chose and measures is told."""
    place, said = new(tmp_path), io.StringIO()
    (place.data / "qrels" / "test.tsv").unlink()
    display = Display(Console(file=said, width=200))
    flow = place.run("steps.cross.evaluations=2", display=display)
    asked = f"{flow.made['test_queries'].rows} dev questions"
    assert [path.name for path in (place.out / "runs").glob("*.qrels")] == ["dev.qrels"]
    page = (place.out / "report.html").read_text()
    assert f"dual_2 against dual_0 on {asked}" in page
    assert "Share of the relevant passages among the first k, mean over the dev questions" in page
    for text in (page, said.getvalue()):
        assert asked in text
        assert "they have also chosen (steps.cross.evaluations)" in text


def test_calibration_needs_dev_questions(tmp_path: Path) -> None:
    place = new(tmp_path)
    (place.data / "qrels" / "dev.tsv").unlink()
    with pytest.raises(UserError, match="no dev questions to fit it to"):
        place.run("denoise.calibration=temperature", until="denoise")
    assert "initial" not in RunFolder.open(place.out).current()  # Nothing was trained first.


def test_mended_answers_are_measured_anew(tmp_path: Path) -> None:
    """Every passage has an answer, then no test question's has: texts and judgements stay."""
    place = new(tmp_path)
    path = place.data / "queries.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    asked = set((place.data / "qrels" / "test.tsv").read_text().split())

    def answered(found: list[str]) -> float:
        texts = [row | {"answers": found if row["_id"] in asked else everywhere} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in texts))
        place.run("data.positives=answers")
        metrics = artifacts.read_json(place.out / "metrics.json")
        return float(metrics["dual_2"]["answer_recall@20"])

    corpus = (place.data / "corpus.jsonl").read_text().splitlines()
    everywhere = [json.loads(line)["text"].split()[0] for line in corpus[:-4]]
    assert answered(everywhere) == 1
    assert answered(["nowhere"]) == 0


def test_questions_of_the_cross_encoder_are_drawn_by_the_datas_seed(tmp_path: Path) -> None:
    place = new(tmp_path)
    told = ("steps.cross.queries=8", "data.seed=3")
    drawn = [
        set(flow.made["cross_chosen_examples"].read()["query"].to_pylist())
        for flow in (place.run(*told, f"seed={seed}", until="cross") for seed in (3, 4))
    ]
    assert len(drawn[0]) == 8
    assert drawn[0] == drawn[1]


def test_hiding_too_small_a_share_hides_nothing(tmp_path: Path) -> None:
    flow = new(tmp_path).run("data.hide_labels=0.001", until="unlabelled_queries")
    assert flow.made["qrels_hidden"].rows == 0


def test_dev_judgements_without_a_positive_choose_no_checkpoint(tmp_path: Path) -> None:
    place = new(tmp_path)
    path = place.data / "qrels" / "dev.tsv"
    path.write_text(path.read_text().replace("\t1\n", "\t0\n"))
    flow = place.run(until="dual_0")
    assert "dev_queries" not in flow.made
    assert "dual_0" in flow.made


def test_passages_in_groups_give_the_same_runs(tmp_path: Path) -> None:
    place = new(tmp_path)
    whole = place.run(until="initial_test").made["initial_test"].read()
    groups = place.run("blocks.passage_group=10", until="initial_test").made
    assert groups["initial_test_cells"].rows == 4 * len(whole)
    assert groups["initial_test"].read() == whole


def test_an_index_that_looks_everywhere_gives_the_same_runs(tmp_path: Path) -> None:
    place = new(tmp_path)
    whole = place.run(until="initial_test").made["initial_test"].read()
    indexed = ("retrieve.index=IVF2,Flat", "retrieve.probe=2", "retrieve.train_rows=30")
    for rows, groups in ((100, 1), (20, 2)):
        flow = place.run(*indexed, f"blocks.passage_group={rows}", until="cross_examples")
        assert [block.rows for block in flow.made["initial_index"].blocks] == [
            40 // groups
        ] * groups
        assert flow.made["initial_test"].read() == whole
        recall = flow.made["dual_0_recall"].facts
        assert recall["found"] == recall["wanted"] == 16 * 10


def test_the_recall_of_an_index_is_told(tmp_path: Path) -> None:
    """One of four lists holds less than half of the nearest 20 of 40 passages."""
    place, told = new(tmp_path), io.StringIO()
    overrides = ["retrieve.index=IVF4,Flat", "retrieve.probe=1"]
    flow = loop.run(
        str(place.recipe), place.out, data=place.data, overrides=overrides, until="cross_examples",
        display=Display(Console(file=told, width=200)),
    )  # fmt: skip
    facts = flow.made["initial_recall"].facts
    assert 0 < facts["found"] < facts["wanted"]
    share = facts["found"] / facts["wanted"]
    assert f"initial_index              finds {share:.1%} of the 20 nearest" in told.getvalue()
    assert min(map(len, flow.made["initial_test"].read()["passages"].to_pylist())) < 20


# -------------------------------------------------------------------------------------- bad input


def append(name: str, line: str) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        with (data / name).open("a") as file:
            file.write(line + "\n")

    return change


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        (data / name).write_text(text)

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda data: (data / name).unlink()


BAD_DATA = {
    "no corpus": (remove("corpus.jsonl"), "no data set here. Looked for corpus.jsonl"),
    "no queries": (remove("queries.jsonl"), "corpus.jsonl has no queries.jsonl beside it"),
    "no training labels": (remove("qrels/train.tsv"), "Looked for qrels/train.tsv"),
    "empty corpus": (write("corpus.jsonl", "\n"), "corpus.jsonl: the file holds no rows"),
    "no judgement": (write("qrels/train.tsv", "query-id\tcorpus-id\tscore\n"), "no judgement"),
    "only zeros": (
        write("qrels/train.tsv", "train-0\tp0\t0\n"),
        "train.tsv has no relevance above 0",
    ),
    "broken JSON": (append("corpus.jsonl", '{"_id": "x"'), "corpus.jsonl, line 41: broken JSON"),
    "no id": (append("corpus.jsonl", '{"text": "x"}'), "corpus.jsonl, line 41: the id (`_id`) is"),
    "no text": (append("corpus.jsonl", '{"_id": "x"}'), "line 41: `text` is missing"),
    "a number as text": (append("corpus.jsonl", '{"_id": "x", "text": 5}'), "must be a string"),
    "an array": (append("corpus.jsonl", "[]"), "line 41: a JSON array where an object must be"),
    "the same id": (
        append("corpus.jsonl", '{"_id": "p3", "text": "x"}'),
        "passage 'p3' stands twice: ",
    ),
    "the same qid": (
        append("queries.jsonl", '{"_id": "train-1", "text": "x"}'),
        "query 'train-1' stands twice: ",
    ),
    "an empty question": (
        append("queries.jsonl", '{"_id": "x", "text": " "}'),
        "queries.jsonl, line 34: the question's `text` is empty",
    ),
    "unknown query": (append("qrels/train.tsv", "x\tp1\t1"), "train.tsv: 1 lines name a query or"),
    "unknown passage": (append("qrels/test.tsv", "train-1\tx\t1"), "line 6, passage 'x'"),
    "relevance no number": (
        append("qrels/train.tsv", "train-1\tp1\tyes"),
        "train.tsv, line 18: relevance 'yes' is not an integer",
    ),
    "two relevances": (append("qrels/train.tsv", "train-1\tp1\t1\ntrain-1\tp1\t2"), "Keep one."),
    "five columns": (append("qrels/train.tsv", "a b c d e"), "train.tsv, line 18: 5 columns"),
}


def command(place: Place, *arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(
            ["run", str(place.recipe), "--data", str(place.data), "--out", str(place.out),
             "--until", "train_queries", *arguments]
        )  # fmt: skip
    return int(stop.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("rocketray: ")
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(("change", "message"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data(
    change: Callable[[Path], None],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = new(tmp_path)
    change(place.data)
    assert command(place) == 2
    assert message in refused(capsys)


def test_titles_that_no_passage_has_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = new(tmp_path)
    place.data = tmp_path / "tsv"
    place.data.mkdir()
    for name, text in [
        ("collection.tsv", "1\ta bird\n2\ta fish\n"), ("queries.train.tsv", "1\twho flies\n"),
        ("qrels.train.tsv", "1\t1\n"), ("titles.tsv", "Bird\nFish\n"),
    ]:  # fmt: skip
        (place.data / name).write_text(text)
    assert command(place) == 2
    assert "titles.tsv: no line names a passage of " in refused(capsys)


def test_refused_data_leave_a_runs_tables(place: Place) -> None:
    """And its recipe, which audit, report and search read."""
    before = RunFolder.open(place.out).current()
    told = (place.out / "recipe.yaml").read_bytes()
    corpus = place.data / "corpus.jsonl"
    corpus.write_text('{"_id": "first", "text": "a new one"}\n' + corpus.read_text())
    append("qrels/test.tsv", "test-0\tnowhere\t1")(place.data)
    with pytest.raises(UserError, match=r"test\.tsv: 1 lines name a query or passage"):
        place.run("denoise.negative_below=0.3")
    assert RunFolder.open(place.out).current() == before
    assert (place.out / "recipe.yaml").read_bytes() == told


@pytest.mark.parametrize("setting", ["denoise.negative_below=0.3", "evaluate.trec_depth=3"])
def test_what_frozen_refuses_leaves_the_recipe(setting: str, place: Place) -> None:
    """Verdicts are refused half-way, measures at the very end."""
    told = (place.out / "recipe.yaml").read_bytes()
    with pytest.raises(UserError, match="--frozen: "):
        place.run(setting, frozen=True)
    assert (place.out / "recipe.yaml").read_bytes() == told
    place.run("cluster.train.threads=2", frozen=True)
    assert b"threads: 2" in (place.out / "recipe.yaml").read_bytes()


def test_the_recipe_of_a_run_that_stops_is_there(tmp_path: Path) -> None:
    place = new(tmp_path)
    for setting in ("seed=4", "seed=5"):
        place.run(setting, until="initial")
        assert setting.replace("=", ": ") in (place.out / "recipe.yaml").read_text()


def test_until_a_table_stops_after_all_of_them(tmp_path: Path) -> None:
    place = new(tmp_path)
    place.run(until="passages")
    hidden = {"qrels_hidden", "qrels_hidden_positives"}
    assert set(RunFolder.open(place.out).current()) == STAGES - hidden


def test_mended_data_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = new(tmp_path)
    corpus = (place.data / "corpus.jsonl").read_text()
    (place.data / "corpus.jsonl").write_text(corpus + "{\n")
    assert command(place) == 2
    (place.data / "corpus.jsonl").write_text(corpus)
    assert command(place) == 0
    assert "Stopped after train_queries, as asked." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "steps.dual_0.epoch=1"], "unknown field 'steps.dual_0.epoch': did you mean"),
        (["--set", "steps.dual_0.epochs=0"], "steps.dual_0.epochs = 0: input should be greater"),
        (["--hide-labels", "1.5"], "data.hide_labels = 1.5: input should be less than 1"),
        (
            ["--hide-positives", "2"],
            "data.hide_positives = 2.0: input should be less than or equal",
        ),
        (["--until", "dual0"], "--until 'dual0': no such stage. Did you mean 'dual_0'?"),
        (["--until", "denoise_round_2"], "--until 'denoise_round_2': no such stage."),
        (["--data", "nowhere"], "nowhere: no such folder."),
        (["--unlabelled", "nowhere.txt"], "nowhere.txt: no such file of unlabelled questions."),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(new(tmp_path), *arguments) == 2
    assert message in refused(capsys)


def test_an_index_that_faiss_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = new(tmp_path)
    assert command(place, "--set", "retrieve.index=IFV4", "--until", "dual_0") == 2
    assert "retrieve.index = 'IFV4': faiss says: could not parse index string" in refused(capsys)
    assert "dual_0_examples" not in RunFolder.open(place.out).current()


def test_a_recipe_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = new(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", str(place.recipe), "--out", str(place.out)])
    assert "Recipe 'test' brings no data: add --data FOLDER" in refused(capsys)


def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "prepare", interrupt)
    assert command(new(tmp_path)) == 130
    assert "stopped. The same command goes on from here." in capsys.readouterr().err


def test_an_unknown_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(new(tmp_path), "--untill", "x") == 2
    assert "No such option" in capsys.readouterr().err


def test_an_out_folder_with_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = new(tmp_path)
    place.out.mkdir()
    (place.out / "thesis.tex").touch()
    assert command(place) == 2
    assert "holds something else than a rocketray run (thesis.tex)" in refused(capsys)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizer.json", "have no tokenizer"),
        ("config.json", "there is no config.json in"),
        ("model.safetensors", "are not in safetensors"),
    ],
)
def test_incomplete_weights(
    missing: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = new(tmp_path)
    folder = weights.tiny(tmp_path / "weights", words())
    (folder / missing).unlink()
    chosen = ["--set", f"model.dual.weights={folder}", "--until", "initial"]
    assert command(place, *chosen) == 2
    assert message in refused(capsys)


def test_no_table_is_without_rows_and_columns(tmp_path: Path) -> None:
    flow = Workflow(load("tiny"), RunFolder(tmp_path / "run"), Display(quiet=True))
    empty = pa.table({"query": pa.array([], pa.int64())})
    assert as_version(flow, "empty", empty).read() == empty
