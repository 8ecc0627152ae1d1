"""The report over a folder small enough to count by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

from rocketray import report
from rocketray.artifacts import Draft, RunFolder, Version, commit_block, write_json
from rocketray.report import curves, denoised
from rocketray.schema import PASSAGES, QRELS, QUERIES, VERDICTS, Verdict

POSITIVE, HARD, FALSE, UNSURE = (
    Verdict.LABELLED_POSITIVE,
    Verdict.HARD_NEGATIVE,
    Verdict.LIKELY_FALSE_NEGATIVE,
    Verdict.UNCERTAIN,
)
METRICS = {
    "bm25": {"mrr@10": 0.5, "recall@50": 0.75, "recall@1000": 0.875},
    "dual_0": {"mrr@10": 0.25, "recall@50": 0.875, "recall@1000": 0.875},
    "initial": {"mrr@10": 0.125, "recall@50": 0.5},
}
SUMMARY = {
    "recipe": "by hand",
    "seed": 3,
    "rows": {"queries": 3, "passages": 1234, "train": 2, "hidden": 1},
    "counts": [["negatives removed", "4 of 6 (66.7 %)"]],
    "models": {"dual_0": {"steps": 3, "best_step": 2, "dev_mrr": 0.5, "negatives_per_query": 63}},
    "timings": [
        {"stage": "encode", "rows": 1200, "seconds": 3.0, "blocks": {"a": 2, "b": 5}},
        {"stage": "denoise", "rows": 3, "seconds": 1.0, "blocks": {}},
        {"stage": "qrels_train", "rows": 2, "seconds": 0.01, "blocks": {}},
    ],
}
LOG = [
    {"start": {"steps": 3}},
    {"step": 1, "loss": 3.0},
    {"step": 2, "loss": 2.0},
    {"step": 2, "dev_mrr@10": 0.5},
    {"step": 3, "loss": 1.0},
    {"step": 3, "dev_mrr@10": 0.25},
]
RECIPE = "name: by hand\ndenoise: {negative_below: 0.2, positive_above: 0.7}\n"


def version(folder: RunFolder, name: str, *tables: pa.Table) -> Version:
    """Tables as the blocks of a finished, current version."""
    draft = Draft(folder.stages / f"{name}-0", name, {})
    for number, table in enumerate(tables):
        parts = {"table": table}
        commit_block(draft.path, number, parts, rows=len(table), key=str(number), facts={})
    finished = draft.finish({})
    folder.set_current(finished)
    return finished


def verdicts(*rows: tuple[int, list[tuple[int, float, Verdict]]]) -> pa.Table:
    """VERDICTS from (query, [(passage, ce_score, verdict)]); scores fall from 9."""
    columns: dict[str, list[Any]] = {
        "query": [query for query, _ in rows],
        "passages": [[p for p, _, _ in found] for _, found in rows],
        "scores": [[9.0 - i for i in range(len(found))] for _, found in rows],
        "ce_scores": [[ce for _, ce, _ in found] for _, found in rows],
        "verdicts": [[v for _, _, v in found] for _, found in rows],
    }
    return pa.table(columns, schema=VERDICTS)


def passages(first: int, count: int) -> pa.Table:
    rows = range(first, first + count)
    columns = {"pid": map(str, rows), "title": (f"T{i}" for i in rows), "text": map(text_of, rows)}
    return pa.table({name: list(values) for name, values in columns.items()}, schema=PASSAGES)


def text_of(row: int) -> str:
    return {3: "<script>alert(1)</script> & more", 4: "long " * 200}.get(row, f"text of {row}")


DENOISED = (
    verdicts(
        (0, [(1, 0.95, POSITIVE), (2, 0.05, HARD), (3, 0.8, FALSE)]),
        (1, [(4, 0.9, FALSE), (5, 0.5, UNSURE)]),
    ),
    verdicts((2, [(0, 0.6, UNSURE), (1, 0.01, HARD), (2, 1.0, POSITIVE)])),
)
"""Two blocks. By rank, without a label: 2, 3, 1; removed: 2, 1, 1."""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A whole run folder, in small."""
    made = RunFolder(tmp_path / "run")
    version(made, "passages", passages(0, 3), passages(3, 3))
    columns = {
        "qid": ["a", "b", "c"],
        "text": ["why <b>bold</b>?", "second question", "third question"],
        "labelled": [True] * 3,
        "answers": [[], [], []],
    }
    version(made, "queries", pa.table(columns, schema=QUERIES))
    labels = {"query": [0, 0, 2, 1], "passage": [1, 5, 2, 0], "relevance": [1, 1, 1, 0]}
    version(made, "qrels_train", pa.table(labels, schema=QRELS))
    version(made, "denoise", *DENOISED)
    write_json(made.path / "metrics.json", METRICS)
    write_json(made.path / "summary.json", SUMMARY)
    (made.path / "recipe.yaml").write_text(RECIPE)
    (made.path / "logs").mkdir()
    write_log(made, "dual_0", LOG)
    return made


def write_log(folder: RunFolder, name: str, lines: list[dict[str, Any]], end: str = "") -> Path:
    path = folder.path / "logs" / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return path


class Page(HTMLParser):
    """A page taken apart: tags with attributes, table rows, and the text of each kind of tag."""

    VOID = ("meta",)

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, Mapping[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], " ".join(data.split())))
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, name: str) -> list[Mapping[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    def said(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag and text]


def html_of(folder: RunFolder) -> str:
    return report.write(folder).read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------ whole pages


def test_it_is_written_into_the_run_folder(folder: RunFolder) -> None:
    assert report.write(folder) == folder.path / "report.html"


def test_the_same_folder_gives_the_same_bytes(folder: RunFolder) -> None:
    assert report.write(folder).read_bytes() == report.write(folder).read_bytes()


def test_the_page_needs_nothing_from_outside(folder: RunFolder) -> None:
    html = html_of(folder)
    assert not re.search(r"https?:|<script|<link|<img|@import|\bsrc=", html)
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', html))
    assert len(html) < 200_000


def test_ids_are_unique_and_every_reference_has_its_target(folder: RunFolder) -> None:
    write_log(folder, "cross", LOG)
    html = html_of(folder)
    ids = re.findall(r'\bid="([^"]*)"', html)
    targets = re.findall(r'(?:href="#|url\(#)([^")]*)', html)
    assert len(set(ids)) == len(ids)
    assert targets
    assert set(targets) <= set(ids)


def test_the_page_can_be_read_aloud_and_on_a_phone(folder: RunFolder) -> None:
    page = Page(html_of(folder))
    assert {"charset": "utf-8"} in page.all("meta")
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert page.all("html") == [{"lang": "en"}]
    assert {heading.get("scope") for heading in page.all("th")} == {"row", "col"}
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert len(page.all("svg")) == 3


def test_texts_are_escaped(folder: RunFolder) -> None:
    html = html_of(folder)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in html
    assert "why &lt;b&gt;bold&lt;/b&gt;?" in html


def test_a_finished_stage_is_not_needed(tmp_path: Path) -> None:
    """An empty folder has a report that says what is missing, one sentence a section."""
    page = Page(html_of(RunFolder(tmp_path)))
    assert len(page.said("h2")) == len(page.said("p")) - 1 == 8
    assert not page.all("svg")
    assert not page.all("table")


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("metrics.json", "Nothing was measured: the folder has no metrics.json."),
        ("summary.json", "The folder has no summary.json: this run has not come to its end."),
        ("logs/dual_0.jsonl", "There are no training logs."),
        ("recipe.yaml", "The folder has no recipe.yaml."),
    ],
)
def test_a_missing_file_is_said(folder: RunFolder, missing: str, sentence: str) -> None:
    (folder.path / missing).unlink()
    assert sentence in Page(html_of(folder)).said("p")


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("denoise", "Nothing has been denoised yet."),
        ("passages", "The folder does not hold the texts of questions and passages."),
        ("queries", "The folder does not hold the texts of questions and passages."),
    ],
)
def test_a_missing_stage_is_said(folder: RunFolder, missing: str, sentence: str) -> None:
    current = {name: path for name, path in folder.current().items() if name != missing}
    write_json(folder.path / "current.json", current)
    assert sentence in Page(html_of(folder)).said("p")


# ---------------------------------------------------------------------------------------- numbers


def test_the_table_of_results(folder: RunFolder) -> None:
    """In the order of the method, cuts by size; the best of a column is marked, ties as well."""
    html = html_of(folder)
    assert Page(html).rows[:4] == [
        ["model", "mrr@10", "recall@50", "recall@1000"],
        ["initial weights, untrained", "0.1250", "0.5000", "–"],
        ["BM25", "0.5000", "0.7500", "0.8750"],
        ["dual_0: cross-batch negatives", "0.2500", "0.8750", "0.8750"],
    ]
    marked = re.findall(r'<td class="best">([^<]*)', html)
    assert marked == ["0.5000", "0.8750", "0.8750", "0.8750"]


def test_a_model_of_another_name_comes_last() -> None:
    assert list(report.results({"mine": {"mrr@10": 0.1}, "dual_2": {}})) == ["dual_2", "mine"]


def test_sizes_counts_and_facts(folder: RunFolder) -> None:
    html = " ".join(html_of(folder).split())
    sizes = "1,234 passages, 3 questions in all, 2 training questions,"
    assert f"{sizes} 1 questions with hidden labels (seed 3)." in html
    assert ["negatives removed", "4 of 6 (66.7 %)"] in Page(html).rows
    assert "3 steps. Best dev MRR@10 0.5000 at step 2. 63 negatives per question." in html


def test_times(folder: RunFolder) -> None:
    """Stages under 0.05 s have no row; all stages count in the sum and the shares."""
    rows = Page(html_of(folder)).rows[-4:]
    assert rows[0] == ["stage", "seconds", "share", "rows", "rows/s", "blocks per worker"]
    assert rows[1:] == [
        ["encode", "3.0", "\n" * 0, "1,200", "400", "5 + 2"],
        ["denoise", "1.0", "", "3", "3", ""],
        ["all", "4.0", "", "", "", ""],
    ]
    assert report.timings(SUMMARY["timings"])[0].share == pytest.approx(3.0 / 4.01)


def test_many_workers_are_named_in_short() -> None:
    rows = [{"stage": "s", "rows": 0, "seconds": 1.0, "blocks": {str(i): i for i in range(1, 10)}}]
    assert report.timings(rows)[0].workers == "9 workers, 1 to 9 each"


def test_thresholds_are_drawn_and_named(folder: RunFolder) -> None:
    html = html_of(folder)
    assert "negative_below 0.2</text>" in html
    assert "positive_above 0.7</text>" in html


# --------------------------------------------------------------------------------------- denoised


def test_the_histogram_counted_by_hand(folder: RunFolder) -> None:
    """Bins of 0.02, open above; 1.0 falls into the last."""
    counted = denoised.read(folder.version("denoise"))
    assert dict(enumerate(counted.labelled)) | {} == {
        i: {47: 1, 49: 1}.get(i, 0) for i in range(50)
    }
    found = {i: n for i, n in enumerate(counted.unlabelled.tolist()) if n}
    assert found == {0: 1, 2: 1, 25: 1, 30: 1, 40: 1, 45: 1}
    assert counted.scored == 8


def test_the_histogram_is_numpys_whatever_the_blocks() -> None:
    ce = np.random.default_rng(0).random(300).astype(np.float32)
    rows = [(q, [(i, float(ce[q * 10 + i]), HARD) for i in range(10)]) for q in range(30)]
    counted = denoised.Denoised()
    for start in range(0, 30, 7):
        counted.add(verdicts(*rows[start : start + 7]))
    assert counted.unlabelled.tolist() == np.histogram(ce, denoised.EDGES)[0].tolist()


def test_removals_by_rank(folder: RunFolder) -> None:
    """Labelled positives are no candidates, so rank 1 has two: a third of three would be wrong."""
    counted = denoised.read(folder.version("denoise"))
    assert counted.candidates.tolist() == [2, 3, 1]
    assert counted.shares(FALSE).tolist() == [1 / 2, 0, 1]
    assert counted.shares(UNSURE).tolist() == [1 / 2, 1 / 3, 0]
    assert counted.removals == 4


def test_the_clearest_come_first(folder: RunFolder) -> None:
    """Likely false negatives by ce_score, then uncertain ones by ce_score."""
    found = denoised.read(folder.version("denoise")).clearest
    shown = [(r.verdict, r.query, r.passage, r.rank, r.score) for r in found]
    assert shown == [
        (FALSE, 1, 4, 1, 9.0),
        (FALSE, 0, 3, 3, 7.0),
        (UNSURE, 2, 0, 1, 9.0),
        (UNSURE, 1, 5, 2, 8.0),
    ]
    assert [r.ce_score for r in found] == pytest.approx([0.9, 0.8, 0.6, 0.5])


def test_twenty_are_kept_whatever_the_blocks() -> None:
    """Ties by row number; uncertain ones only fill what is left."""
    found = [(i, [(i, 0.8, FALSE), (i + 100, 0.5, UNSURE)]) for i in range(15)]
    counted = denoised.Denoised()
    for row in reversed(found):
        counted.add(verdicts(row))
    assert [r.query for r in counted.clearest] == [*range(15), *range(5)]
    assert [r.verdict for r in counted.clearest] == [FALSE] * 15 + [UNSURE] * 5


def test_stories_in_the_page(folder: RunFolder) -> None:
    """Question, removed passage, first labelled passage; relevance 0 is no label."""
    page = Page(html_of(folder))
    assert page.said("h3")[1:] == [
        "second question", "why <b>bold</b>?", "third question", "second question",
    ]  # fmt: skip
    shown = [text for text in page.said("p") if "ce_score " in text]
    assert shown[:3] == [
        "likely false negative: rank 1, score 9.000, ce_score 0.9000",
        "likely false negative: rank 3, score 7.000, ce_score 0.8000",
        "uncertain: rank 1, score 9.000, ce_score 0.6000",
    ]
    texts = page.said("dd")
    assert texts[0] == ("long " * 120).rstrip() + " …"
    assert texts[1:6] == [
        "none", "<script>alert(1)</script> & more", "text of 1", "text of 0", "text of 2",
    ]  # fmt: skip
    assert "labelled passage (first of 2)" in page.said("dt")


def test_a_text_is_cut_at_its_limit() -> None:
    assert denoised.cut("x" * 600) == "x" * 600
    assert denoised.cut("x" * 601) == "x" * 600 + " …"


def test_without_ce_scores_there_is_no_histogram(folder: RunFolder) -> None:
    """denoise.off: NaN everywhere, nothing removed."""
    version(folder, "denoise", verdicts((0, [(1, np.nan, POSITIVE), (2, np.nan, HARD)])))
    said = Page(html_of(folder)).said("p")
    assert "No retrieved passage has a ce_score: denoising was off." in said
    assert said.count("No negative was removed.") == 2


def test_lists_of_unequal_length_and_empty_ones() -> None:
    counted = denoised.Denoised()
    counted.add(verdicts((0, []), (1, [(3, 0.5, UNSURE)])))
    counted.add(verdicts((2, [])))
    assert counted.candidates.tolist() == [1]
    assert [r.query for r in counted.clearest] == [1]


# ----------------------------------------------------------------------------------------- curves


def test_a_log_is_read(folder: RunFolder) -> None:
    path = write_log(folder, "cross", [*LOG, {"step": 4, "loss": float("nan")}], '{"step": 5, "lo')
    curve = curves.read(path)
    assert curve.steps.tolist() == [1, 2, 3]
    assert curve.losses.tolist() == [3, 2, 1]
    assert curve.dev_steps.tolist() == [2, 3]
    assert curve.dev_mrr.tolist() == [0.5, 0.25]


@pytest.mark.parametrize("log", [LOG[:1], LOG[:2], LOG[:3]])
def test_a_run_that_has_just_begun(folder: RunFolder, log: list[dict[str, Any]]) -> None:
    """No step, one step, no dev evaluation."""
    write_log(folder, "dual_0", log)
    assert ("The log holds no step." in html_of(folder)) == (len(log) == 1)


def test_smoothing_is_a_mean_of_neighbours() -> None:
    values = np.random.default_rng(1).random(173)
    slow = [values[max(0, i - 3) : i + 4].mean() for i in range(173)]
    assert curves.smooth(values) == pytest.approx(slow)
    assert curves.smooth(np.array([3.0, 1.0])).tolist() == [3.0, 1.0]


def test_thinning_keeps_short_curves_and_means_of_long_ones() -> None:
    assert curves.thin(np.arange(4.0), 4).tolist() == [0, 1, 2, 3]
    assert curves.thin(np.arange(6.0), 3).tolist() == [0.5, 2.5, 4.5]
    assert len(curves.thin(np.arange(1001.0))) == curves.POINTS


def test_every_plot_is_well_formed(folder: RunFolder) -> None:
    plots = re.findall(r"<svg.*?</svg>", html_of(folder), re.DOTALL)
    assert [ElementTree.fromstring(plot).tag for plot in plots] == ["svg"] * 3
