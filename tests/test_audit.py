"""The audit of a folder that can be counted by hand, and of a whole run."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rocketray import artifacts, audit, cli, report
from rocketray.artifacts import Draft, RunFolder, commit_block, read_json
from rocketray.errors import UserError
from rocketray.report import audited
from rocketray.schema import PASSAGES
from rocketray.stages.denoise import Denoise
from rocketray.stages.pool import POOL
from tests.versions import falling, qrels, questions, scored, table, verdicts, version

POSITIVE, HARD, FALSE, UNSURE, NEAR, PSEUDO = (
    "labelled_positive",
    "hard_negative",
    "likely_false_negative",
    "uncertain",
    "near_positive",
    "pseudo_positive",
)
RECIPE = """
name: by hand
data: {hide_labels: 0.5, hide_positives: 0.5}
denoise: {negative_below: 0.2, positive_above: 0.8}
"""
THRESHOLDS = {"negative_below": 0.2, "positive_above": 0.8}


def add(folder: RunFolder, name: str, *tables: pa.Table, **recipe: Any) -> None:
    """Tables as the blocks of a finished, current version."""
    attempt = len(list(folder.stages.glob(f"{name}-*")))
    draft = Draft(folder.stages / f"{name}-{attempt}", name, {"stage": name, "recipe": recipe})
    for number, block in enumerate(tables):
        commit_block(draft.path, number, {"table": block}, rows=len(block), key="", facts={})
    folder.set_current(draft.finish({}))


def by_hand(path: Path) -> RunFolder:
    """Questions 0 and 1 teach, 2 and 3 are dev, 4 and 5 have hidden labels.

    Question 0 has positives 0 (visible) and 1 (hidden). Each dev question has two, and one of them
    is hidden for the count: 3 or 4, of which question 3 has an irrelevant one at the same rank.
    """
    folder = RunFolder(path)
    (path / "recipe.yaml").parent.mkdir(parents=True, exist_ok=True)
    (path / "recipe.yaml").write_text(RECIPE)
    rows = [(f"p{n}", f"T{n}", f"text {n}") for n in range(8)]
    add(folder, "passages", table(PASSAGES, *rows[:5]), table(PASSAGES, *rows[5:]))
    add(folder, "queries", questions(*(f"question {n}" for n in range(6))))
    add(folder, "qrels_train", qrels((0, 0, 1), (1, 2, 1)))
    add(folder, "qrels_hidden_positives", qrels((0, 1, 1)))
    add(folder, "qrels_hidden", qrels((4, 5, 1), (5, 6, 1)))
    add(folder, "qrels_dev", qrels((2, 3, 1), (2, 4, 1), (3, 6, 1), (3, 7, 1)))
    add(
        folder, "denoise",
        verdicts((0, [0, 1, 2, 3], [0.9, 0.85, 0.5, 0.1], [POSITIVE, FALSE, UNSURE, HARD])),
        verdicts((1, [2, 5], [0.95, 0.05], [POSITIVE, HARD])),
        **THRESHOLDS,
    )  # fmt: skip
    add(
        folder, "augment",
        verdicts((4, [5, 6], [0.9, 0.1], [PSEUDO, HARD])),
        verdicts((5, [0, 6], [0.95, 0.6], [PSEUDO, UNSURE])),
        **THRESHOLDS,
    )  # fmt: skip
    add(
        folder, "dual_0_dev_scored",
        scored((2, [3, 0, 4], [0.9, 0.3, 0.6]), (3, [0, 7, 1], [0.4, 0.8, 0.1])),
    )  # fmt: skip
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return by_hand(tmp_path / "run")


def command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["audit", *map(str, arguments)])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def at(rows: list[dict[str, Any]], name: str, threshold: float) -> dict[str, Any]:
    (row,) = (row for row in rows if row[name] == threshold)
    return row


# ---------------------------------------------------------------------------------------- by hand


def test_the_parts_of_an_audit(folder: RunFolder) -> None:
    found = audit.audit(folder)
    assert found["by_rank"][-1] | {"ranks": "all"} == found["by_rank"][-1]
    assert [found["by_rank"][-1][v] for v in (POSITIVE, HARD, FALSE, UNSURE)] == [2, 2, 1, 1]
    assert found["by_rank"][-1]["known_false_before"] == 1
    assert found["by_rank"][-1]["known_false_after"] == 0
    assert at(found["negatives"], "negative_below", 0.1)["negatives"] == 1
    assert at(found["negatives"], "negative_below", 0.2) == {
        "negative_below": 0.2, "negatives": 2, "per_question": 1.0, "questions_without": 0,
        "estimated_false": 0.0,
    }  # fmt: skip
    assert at(found["likely_positives"], "positive_above", 0.8)["passages"] == 1
    assert found["pairs"] == {"read": 6, "scored": 0}
    assert found["thresholds"] == found["asked"] == THRESHOLDS


def test_the_cross_encoder_is_held_to_dev_questions(folder: RunFolder) -> None:
    """0.9, 0.6 and 0.8 are relevant; 0.3, 0.4 and 0.1 are not: isotonic regression is a step, and
    says 1 of 0.85 and (half-way between 0.4 and 0.6) 0.5 of 0.5."""
    found = audit.audit(folder)
    held = found["calibration"]
    assert (held["pairs"], held["relevant"]) == (6, 3)
    assert held["source"] == "dev questions, passages of dual_0"
    assert held["negatives"] == "unlabelled, taken for irrelevant"
    rows = {row["ranks"]: row for row in found["by_rank"]}
    assert rows["2"]["false_before"] == pytest.approx(0.5)  # 1 of 0.85, 0 of 0.05
    assert rows["3"]["false_before"] == pytest.approx(0.5)
    assert rows["all"]["false_after"] == 0.0


def test_verdicts_by_who_found_a_candidate(folder: RunFolder) -> None:
    """Of the pool that was judged: one of another dual_0 lists other passages."""
    assert audit.audit(folder)["by_source"] == []
    add(
        folder, "both_train",
        pool((0, [0, 1, 2, 3, 9], ["both", "bm25", "dual_0", "bm25", "bm25"])),
        pool((1, [2, 5], ["dual_0", "bm25"])),
    )  # fmt: skip
    recipe = folder.path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("denoise: {", "denoise: {pool: both, "))
    assert audit.audit(folder)["by_source"] == []
    old = folder.version("denoise")
    inputs = {"run": folder.version("both_train").digest}
    identity = {**old.manifest["identity"], "inputs": inputs}
    artifacts.write_json(old.path / "manifest.json", {**old.manifest, "identity": identity})
    rows = {row["found_by"]: row for row in audit.audit(folder)["by_source"]}
    assert [rows[who]["passages"] for who in ("dual_0", "bm25", "both", "all")] == [2, 3, 1, 6]
    assert (rows["dual_0"][POSITIVE], rows["dual_0"][UNSURE]) == (1, 1)
    assert (rows["bm25"][FALSE], rows["bm25"][HARD]) == (1, 2)
    assert (rows["bm25"]["known_false_before"], rows["bm25"]["known_false_after"]) == (1, 0)
    recipe.write_text(RECIPE)
    assert audit.audit(folder)["by_source"] == []


def pool(*rows: tuple[int, list[int], list[str]]) -> pa.Table:
    return table(POOL, *((query, row, falling(row), who) for query, row, who in rows))


def test_removal_of_each_known_truth(folder: RunFolder) -> None:
    """Training: 0.85 goes at 0.2, and no other of rank 2 is there to be kept. Unlabelled: 0.9 of
    question 4 and 0.6 of question 5 go, 0.1 of rank 2 stays, 0.95 of rank 1 does not."""
    found = audit.audit(folder)["removal"]
    train = found["train"]
    assert (train["known"], train["scored"], train["others"]) == (1, 1, 2)
    assert at(train["curve"], "negative_below", 0.2)["recall"] == 1.0
    assert at(train["curve"], "negative_below", 0.2)["precision"] == 0.5
    unlabelled = found["unlabelled"]
    assert (unlabelled["known"], unlabelled["scored"], unlabelled["others"]) == (2, 2, 2)
    assert at(unlabelled["curve"], "negative_below", 0.2) == {
        "negative_below": 0.2, "recall": 1.0, "kept": 0.5, "precision": 0.666667,
    }  # fmt: skip
    assert unlabelled["best"]["negative_below"] == 0.2
    dev = found["dev"]
    assert (dev["known"], dev["others"]) == (2, 3)
    assert (dev["best"]["recall"], dev["best"]["kept"]) == (1.0, 1.0)
    chosen = dev["best"]["negative_below"]
    assert train["by_dev"] == at(train["curve"], "negative_below", chosen)


def test_pseudo_labels_against_hidden_ones(folder: RunFolder) -> None:
    row = at(audit.audit(folder)["pseudo"], "positive_above", 0.8)
    assert (row["questions"], row["known"], row["agreement"], row["recall"]) == (2, 2, 0.5, 0.5)
    row = at(audit.audit(folder)["pseudo"], "positive_above", 0.9)
    assert (row["questions"], row["agreement"], row["recall"]) == (1, 0.0, 0.0)


def test_examples_show_what_a_person_needs(folder: RunFolder) -> None:
    found = audit.audit(folder)["examples"]
    assert {verdict: len(rows) for verdict, rows in found.items()} == {
        POSITIVE: 2, HARD: 2, FALSE: 1, UNSURE: 1, NEAR: 0, PSEUDO: 2,
    }  # fmt: skip
    assert found[FALSE] == [
        {
            "qid": "q0", "question": "question 0", "rank": 2, "score": -1.0, "ce_score": 0.85,
            "positive": {"pid": "p0", "title": "T0", "text": "text 0"},
            "passage": {"pid": "p1", "title": "T1", "text": "text 1"},
            "known_relevant": True,
        }
    ]  # fmt: skip
    right = {row["qid"]: row["known_relevant"] for row in found[PSEUDO]}
    assert right == {"q4": True, "q5": False}


def test_fifty_examples_are_drawn_whatever_the_blocks(tmp_path: Path) -> None:
    lists = [(n, [n, n + 1], [0.1, 0.1], [HARD, HARD]) for n in range(100)]
    whole, parts = (
        audit.draw(
            audit.Version.open(version(tmp_path / name, *map(verdicts_of, found))), [HARD], 1
        )
        for name, found in (("whole", [lists]), ("parts", [lists[:7], lists[7:60], lists[60:]]))
    )
    assert whole == parts
    assert len(whole[HARD]) == audit.SHOWN


def test_promoted_passages_are_drawn_as_false_negatives(tmp_path: Path) -> None:
    lists = verdicts((0, [1, 2, 3], [0.95, 0.1, 0.5], [PSEUDO, HARD, "uncertain"]))
    drawn = audit.draw(audit.Version.open(version(tmp_path / "v", lists)), [FALSE, HARD], 1)
    assert {name: [row["passage"] for row in rows] for name, rows in drawn.items()} == {
        FALSE: [1],
        HARD: [2],
    }


def verdicts_of(rows: list[tuple[int, list[int], list[float], list[str]]]) -> pa.Table:
    return verdicts(*rows)


def test_what_the_recipe_does_not_ask_for_is_not_there(folder: RunFolder) -> None:
    """A folder keeps what earlier recipes hid."""
    (folder.path / "recipe.yaml").write_text("name: plain\n")
    found = audit.audit(folder)
    assert found["removal"] == {}
    assert found["by_rank"][-1]["known_false_before"] == 0
    assert all(row["known"] == 0 for row in found["pseudo"])
    assert found["calibration"]["source"].startswith("training questions")


def test_scores_of_an_earlier_cross_encoder_are_left_out(folder: RunFolder) -> None:
    """A new cross-encoder judged, and the run has not come to later stages since."""

    def scored_by(cross: str, name: str) -> str:
        identity = {"inputs": {"cross": cross}}
        draft = Draft(folder.stages / f"{name}-{cross}", name, identity)
        block = scored((2, [3, 0, 4], [0.9, 0.3, 0.6 if cross == "new" else 0.7]))
        commit_block(draft.path, 0, {"table": block}, rows=1, key="", facts={})
        version = draft.finish({})
        folder.set_current(version)
        return version.digest

    def judged(name: str, scores: str) -> None:
        old = folder.version(name)
        identity = {**old.manifest["identity"], "inputs": {"scored": scores}}
        artifacts.write_json(old.path / "manifest.json", {**old.manifest, "identity": identity})

    judged("denoise", scored_by("new", "dual_0_train_scored"))
    judged("augment", scored_by("old", "dual_1_unlabelled_scored"))
    scored_by("old", "dual_0_dev_scored")
    found = audit.audit(folder)
    assert found["pseudo"] == []
    assert found["removal"].keys() == {"train"}
    assert found["of"].keys() == {"denoise"}
    assert found["calibration"]["source"].startswith("training questions")
    scored_by("new", "dual_0_dev_scored")
    judged("augment", folder.version("dual_0_dev_scored").digest)
    found = audit.audit(folder)
    assert found["of"].keys() == {"denoise", "augment"}
    assert found["calibration"]["source"].startswith("dev questions")


def test_the_last_round_is_audited(folder: RunFolder) -> None:
    told = folder.path / "recipe.yaml"
    told.write_text(RECIPE.replace("0.8}", "0.8, rounds: 2}"))
    assert audit.audit(folder)["of"].keys() == {"denoise", "augment"}  # It has not come to it.
    add(folder, "denoise_round_2", verdicts((0, [0, 3], [0.9, 0.1], [POSITIVE, HARD])),
        **THRESHOLDS)  # fmt: skip
    found = audit.audit(folder)
    assert found["of"].keys() == {"denoise_round_2", "augment"}
    assert found["by_rank"][-1]["passages"] == 2
    assert next(audited.sentences(found)).endswith("those of the last round (denoise_round_2).")
    told.write_text(RECIPE)
    assert audit.audit(folder)["by_rank"][-1]["passages"] == 6


def test_without_ce_scores_there_are_shares_and_examples(folder: RunFolder) -> None:
    """denoise.off: no thresholds, no sweep."""
    nan = float("nan")
    add(folder, "denoise", verdicts((0, [0, 1], [nan, nan], [POSITIVE, HARD])), depth=2)
    found = audit.audit(folder)
    assert (found["negatives"], found["likely_positives"], found["thresholds"]) == ([], [], {})
    assert found["pairs"] == {"read": 0, "scored": 0}
    assert next(audited.sentences(found)).startswith("Denoising was off: ")
    assert found["by_rank"][-1]["known_false_after"] == 1
    assert found["examples"][HARD][0]["ce_score"] is None
    json.dumps(found, allow_nan=False)


def test_a_run_that_has_not_come_to_denoising(tmp_path: Path, folder: RunFolder) -> None:
    shutil.rmtree(folder.stages / "denoise-0")
    with pytest.raises(UserError, match="no verdicts yet"):
        audit.audit(folder)
    assert command(tmp_path) == 2


def test_a_damaged_block_is_named(folder: RunFolder) -> None:
    path = folder.stages / "augment-0" / "blocks" / "00000.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"blocks/00000.parquet differs from its manifest"):
        audit.audit(folder)


def test_moved_thresholds_are_those_that_denoising_compared(tmp_path: Path) -> None:
    """The stage takes them as they are, and stored ce_scores stay raw."""
    stage = Denoise(
        scored=version(tmp_path / "scored", scored((0, [1, 2], [0.35, 0.5]))),
        positives=version(tmp_path / "qrels", qrels((9, 9, 1))),
        negative_below=0.4,
        positive_above=0.45,
    )
    found = stage(0).parts["table"]
    assert found["verdicts"].to_pylist() == [[HARD, FALSE]]


# ------------------------------------------------------------------------------- screen and page


def test_the_command_writes_json_and_a_section(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # In a narrow terminal headings wrap.
    assert command(folder.path) == 0
    said = capsys.readouterr().out
    assert "6 stored ce_scores read, 0 pairs scored." in said
    assert read_json(folder.path / "audit.json") == audit.audit(folder)
    assert said.index("hidden from training") < said.index("hidden for this count only")
    assert said.index("negative below") < said.index("estimated false")
    html = (folder.path / "report.html").read_text()
    assert "Examples: hard negative (2)" in html
    assert html.count("<svg") >= 5


def test_json_alone_writes_nothing(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(folder.path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == audit.audit(folder)
    assert not (folder.path / "audit.json").exists()
    assert not (folder.path / "report.html").exists()


def test_an_audit_of_other_verdicts_is_not_shown(folder: RunFolder) -> None:
    audit.write(folder.path, as_json=False)
    assert audited.read(folder) is not None
    add(folder, "denoise", verdicts((0, [0], [0.9], [POSITIVE])), **THRESHOLDS)
    assert audited.read(folder) is None
    assert "have not been audited" in report.write(folder).read_text()


# ------------------------------------------------------------------------------------ a whole run


def test_a_whole_run_is_audited_without_torch_and_left_as_it_was(
    tiny_run: Path, tmp_path: Path
) -> None:
    """Nothing can be scored where there is no torch. The numbers are those of the run's summary."""
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    before = {path: digest(path) for path in out.rglob("*") if path.is_file()}
    code = (
        "import sys; from pathlib import Path; from rocketray import audit\n"
        f"audit.write(Path({str(out)!r}), as_json=False)\n"
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    changed = {path.name for path, old in before.items() if digest(path) != old}
    assert changed == {"report.html"}
    found, facts = read_json(out / "audit.json"), RunFolder.open(out).version("denoise").facts
    assert found["pairs"]["scored"] == 0
    assert all(found["by_rank"][-1][verdict] == facts[verdict] for verdict in audit.DENOISED)
    pseudo = RunFolder.open(out).version("augment").facts[PSEUDO]
    assert at(found["pseudo"], "positive_above", 0.5)["questions"] == pseudo
    assert found["removal"].keys() == {"unlabelled"}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
