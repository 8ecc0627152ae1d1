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
from rocketray.errors import UserError
from rocketray.report import audited, curves, denoised, plots
from rocketray.schema import PASSAGES, QRELS, QUERIES, VERDICTS, Verdict

POSITIVE, HARD, FALSE, UNSURE, NEAR = (
    Verdict.LABELLED_POSITIVE,
    Verdict.HARD_NEGATIVE,
    Verdict.LIKELY_FALSE_NEGATIVE,
    Verdict.UNCERTAIN,
    Verdict.NEAR_POSITIVE,
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
    attempt = len(list(folder.stages.glob(f"{name}-*")))
    draft = Draft(folder.stages / f"{name}-{attempt}", name, {})
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
    told = {3: "<script>alert(1)</script> & more", 4: "long " * 200, 5: "unbroken" * 40}
    return told.get(row, f"text of {row}")


DENOISED = (
    verdicts(
        (0, [(1, 0.95, POSITIVE), (2, 0.05, HARD), (3, 0.81, FALSE)]),
        (1, [(4, 0.91, FALSE), (5, 0.51, UNSURE)]),
    ),
    verdicts((2, [(0, 0.61, UNSURE), (1, 0.01, HARD), (2, 1.0, POSITIVE)])),
)
"""Two blocks. By rank, without a label: 2, 3, 1; removed: 2, 1, 1."""


def small(path: Path) -> RunFolder:
    """A whole run folder, in small."""
    made = RunFolder(path)
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
    write_log(made, "dual_0", LOG)
    write_log(made, "cross", LOG)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Nobody changes it."""
    return small(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(folder: RunFolder) -> str:
    """Its report."""
    return html_of(folder)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture
def bare(tmp_path: Path) -> RunFolder:
    """A folder in which nothing has been done."""
    return RunFolder(tmp_path)


def write_log(folder: RunFolder, name: str, lines: list[dict[str, Any]], end: str = "") -> Path:
    path = folder.path / "logs" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
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


def test_the_same_folder_gives_the_same_bytes(folder: RunFolder, html: str) -> None:
    path = report.write(folder)
    assert path == folder.path / "report.html"
    assert path.read_text(encoding="utf-8") == html


def test_the_page_needs_nothing_from_outside(html: str) -> None:
    assert not re.search(r"https?:|<script|<link|<img|@import|\bsrc=", html)
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', html))
    assert len(html) < 200_000


def test_ids_are_unique_and_every_reference_has_its_target(html: str) -> None:
    ids = re.findall(r'\bid="([^"]*)"', html)
    targets = re.findall(r'(?:href="#|url\(#)([^")]*)', html)
    assert len(set(ids)) == len(ids)
    assert targets
    assert set(targets) <= set(ids)


def test_the_page_can_be_read_aloud_and_on_a_phone(page: Page) -> None:
    assert {"charset": "utf-8"} in page.all("meta")
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert page.all("html") == [{"lang": "en"}]
    assert {heading.get("scope") for heading in page.all("th")} == {"row", "col"}
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))


def test_every_plot_is_well_formed(html: str) -> None:
    """Two models' curves, the histogram, the removals by rank."""
    plots = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert [ElementTree.fromstring(plot).tag for plot in plots] == ["svg"] * 4


def test_texts_are_escaped(html: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in html
    assert "why &lt;b&gt;bold&lt;/b&gt;?" in html


def test_what_is_missing_is_said(bare: RunFolder) -> None:
    """One sentence a section."""
    page = Page(html_of(bare))
    assert page.said("p") == [
        "The folder has no summary.json: this run has not come to its end.",
        "Nothing was measured: the folder has no metrics.json.",
        "There are no two models to compare: the folder lacks their runs over the test questions.",
        "Nothing was counted.",
        "There are no training logs.",
        "Nothing has been denoised yet.",
        "Nothing has been denoised yet.",
        "Nothing has been denoised yet.",
        "These verdicts have not been audited: rocketray audit FOLDER does it, without scoring"
        " anything.",
        "No times were kept.",
        "The folder has no recipe.yaml.",
    ]
    assert len(page.said("h2")) == 10
    assert not page.all("svg")


def test_a_damaged_file_is_named(bare: RunFolder) -> None:
    (bare.path / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json is damaged"):
        report.write(bare)


# ---------------------------------------------------------------------------------------- numbers


def test_the_table_of_results(page: Page, html: str) -> None:
    """In the order of the method, cuts by size; the best of a column is marked, ties as well."""
    assert page.rows[:4] == [
        ["model", "mrr@10", "recall@50", "recall@1000"],
        ["initial weights, untrained", "0.1250", "0.5000", "\u2013"],
        ["BM25", "0.5000", "0.7500", "0.8750"],
        ["dual_0: cross-batch negatives", "0.2500", "0.8750", "0.8750"],
    ]
    marked = re.findall(r'<td class="best">([^<]*)', html)
    assert marked == ["0.5000", "0.8750", "0.8750", "0.8750"]


def test_a_model_of_another_name_comes_last() -> None:
    assert list(report.results({"mine": {"mrr@10": 0.1}, "dual_2": {}})) == ["dual_2", "mine"]


def test_sizes_counts_and_facts(page: Page, html: str) -> None:
    text = " ".join(html.split())
    sizes = "1,234 passages, 3 questions in all, 2 training questions,"
    assert f"{sizes} 1 questions with hidden labels (seed 3)." in text
    assert ["negatives removed", "4 of 6 (66.7 %)"] in page.rows
    assert "3 steps. Best dev MRR@10 0.5000 at step 2. 63 negatives per question." in text


def test_times(page: Page) -> None:
    """Stages under 0.05 s have no row; all stages count in the sum and the shares."""
    assert page.rows[-4:] == [
        ["stage", "seconds", "share", "rows", "rows/s", "blocks per worker"],
        ["encode", "3.0", "", "1,200", "400", "5 + 2"],
        ["denoise", "1.0", "", "3", "3", ""],
        ["all", "4.0", "", "", "", ""],
    ]
    assert report.timings(SUMMARY["timings"])[0].share == pytest.approx(3.0 / 4.01)


def test_many_workers_are_named_in_short() -> None:
    blocks = {str(number): number for number in range(1, 10)}
    (row,) = report.timings([{"stage": "s", "rows": 0, "seconds": 1.0, "blocks": blocks}])
    assert row.workers == "9 workers, 1 to 9 each"


def test_thresholds_are_drawn_and_named(html: str) -> None:
    assert "negative_below 0.2</text>" in html
    assert "positive_above 0.7</text>" in html


# --------------------------------------------------------------------------------------- denoised


def test_the_histogram_counted_by_hand(folder: RunFolder) -> None:
    """Bins of 0.02, open above; 1.0 falls into the last."""
    counted = denoised.read(folder.version("denoise"))
    labelled, unlabelled = (
        {place: count for place, count in enumerate(counts.tolist()) if count}
        for counts in (counted.labelled, counted.unlabelled)
    )
    assert labelled == {47: 1, 49: 1}
    assert unlabelled == {0: 1, 2: 1, 25: 1, 30: 1, 40: 1, 45: 1}
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
    assert counted.by_rank[FALSE].tolist() == [1 / 2, 0, 1]
    assert counted.by_rank[UNSURE].tolist() == [1 / 2, 1 / 3, 0]
    assert counted.removals == 4


def test_what_is_promoted_was_removed_as_a_likely_false_negative() -> None:
    """`denoise.promote` of 0.97 and 0.95: the same page as without."""
    promoted, plain = denoised.Denoised(), denoised.Denoised()
    for counted, verdict in ((promoted, Verdict.PSEUDO_POSITIVE), (plain, FALSE)):
        counted.add(verdicts((0, [(1, 0.97, verdict), (2, 0.95, verdict), (3, 0.02, HARD)])))
    assert promoted.by_rank[FALSE].tolist() == plain.by_rank[FALSE].tolist() == [1, 1, 0]
    assert promoted.clearest == plain.clearest
    assert [r.passage for r in promoted.clearest] == [1, 2]


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
    assert [r.ce_score for r in found] == pytest.approx([0.91, 0.81, 0.61, 0.51])


def test_twenty_are_kept_whatever_the_blocks() -> None:
    """Ties by row number; uncertain ones only fill what is left."""
    found = [(i, [(i, 0.8, FALSE), (i + 100, 0.5, UNSURE)]) for i in range(15)]
    counted = denoised.Denoised()
    for row in reversed(found):
        counted.add(verdicts(row))
    assert [r.query for r in counted.clearest] == [*range(15), *range(5)]
    assert [r.verdict for r in counted.clearest] == [FALSE] * 15 + [UNSURE] * 5


def test_stories_in_the_page(page: Page) -> None:
    """Question, removed passage, first labelled passage; relevance 0 is no label."""
    assert page.said("h3")[2:] == [
        "second question", "why <b>bold</b>?", "third question", "second question",
    ]  # fmt: skip
    shown = [text for text in page.said("p") if "ce_score " in text]
    assert shown[:3] == [
        "likely false negative: rank 1, score 9.000, ce_score 0.9100",
        "likely false negative: rank 3, score 7.000, ce_score 0.8100",
        "uncertain: rank 1, score 9.000, ce_score 0.6100",
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


def test_without_ce_scores_there_is_no_histogram(bare: RunFolder) -> None:
    """denoise.off: NaN everywhere, nothing removed."""
    version(bare, "denoise", verdicts((0, [(1, np.nan, POSITIVE), (2, np.nan, HARD)])))
    said = Page(html_of(bare)).said("p")
    assert "No retrieved passage has a ce_score: denoising was off." in said
    assert "No negative was removed." in said
    assert "The folder does not hold the texts of questions and passages." in said


def test_lists_of_unequal_length_and_empty_ones() -> None:
    counted = denoised.Denoised()
    counted.add(verdicts((0, []), (1, [(3, 0.5, UNSURE)])))
    counted.add(verdicts((2, [])))
    assert counted.candidates.tolist() == [1]
    assert [r.query for r in counted.clearest] == [1]


# ------------------------------------------------------------------------------------------ audit

CURVE = [
    {"negative_below": 0.25, "recall": 1.0, "kept": 0.5, "precision": 0.5},
    {"negative_below": 0.5, "recall": 0.5, "kept": 1.0, "precision": None},
]
RELIABILITY = {"pairs": [2, 1], "said": [0.05, None], "so": [0.5, None], "error": 0.45}
PASSAGE = {"pid": "p1", "title": "T", "text": "<i>told</i>"}


def audit_of(digest: str) -> dict[str, Any]:
    """What `rocketray audit` might have left; its own tests say that it does."""
    row = {"ranks": "1", "passages": 4, POSITIVE.value: 1, HARD.value: 2, FALSE.value: 1,
           UNSURE.value: 0, NEAR.value: 0, "false_before": 0.25, "false_after": None,
           "known_false_before": 1, "known_false_after": 0}  # fmt: skip
    example = {"qid": "q7", "question": "why?", "positive": None, "passage": PASSAGE, "rank": 2,
               "score": 0.5, "ce_score": 0.75, "known_relevant": True}  # fmt: skip
    negatives = {"negative_below": 0.25, "negatives": 1234, "per_question": 2.5,
                 "questions_without": 7, "estimated_false": None}  # fmt: skip
    by_verdict = dict.fromkeys([POSITIVE, HARD, FALSE, UNSURE, NEAR], [1] * 20)
    return {
        "code": audited.CODE,
        "of": {"denoise": digest},
        "thresholds": {"negative_below": 0.25, "positive_above": 0.9},
        "asked": {"negative_below": 0.1, "positive_above": 0.9},
        "calibration": {
            "pairs": 3, "relevant": 1, "source": "dev", "negatives": "unlabelled",
            "chosen": "isotonic", "maps": {"none": RELIABILITY, "isotonic": RELIABILITY},
        },
        "by_rank": [row, {**row, "ranks": "all"}],
        "by_source": [{**row, "found_by": "bm25"}, {**row, "found_by": "all"}],
        "ce_scores": {
            "edges": np.linspace(0, 1, 21).tolist(),
            "by_verdict": by_verdict,
            "by_rank": [{"ranks": name, "counts": by_verdict} for name in ("9", "10")],
        },
        "negatives": [negatives, {**negatives, "negative_below": 0.5}],
        "likely_positives": [],
        "pseudo": [],
        "removal": {
            "dev": {"known": 3, "scored": 2, "others": 5, "curve": CURVE, "best": CURVE[0]}
        },
        "examples": {HARD.value: [example], FALSE.value: []},
        "pairs": {"read": 40, "scored": 0},
    }  # fmt: skip


def test_what_a_filter_removed_is_shown_where_one_was_asked() -> None:
    row = audit_of("")["by_rank"][0]
    without, beside = (audited.by_verdict("", [{**row, NEAR: count}], "ranks") for count in (0, 1))
    assert "near positive" not in without.columns
    assert beside.rows[0][0][beside.columns.index("near positive")] == "25.0 %"


def test_each_reason_stands_on_the_other() -> None:
    """Those of nothing are not in the legend."""
    shares = {FALSE.value: np.array([0.25, 0.0]), UNSURE.value: np.zeros(2),
              NEAR.value: np.array([0.25, 0.5])}  # fmt: skip
    drawn = plots.removed_by_rank(shares)
    assert "50.0% at rank 1, 50.0% at 2" in drawn
    assert "near positive" in drawn
    assert "uncertain" not in drawn


@pytest.fixture
def audited_page(bare: RunFolder) -> str:
    made = version(bare, "denoise", *DENOISED)
    write_json(bare.path / "audit.json", audit_of(made.digest))
    return html_of(bare)


def test_an_audit_in_the_page(audited_page: str) -> None:
    page = Page(audited_page)
    assert page.rows[0][:4] == ["ranks", "passages", "labelled positive", "hard negative"]
    assert page.rows[1] == [
        "1", "4", "25.0 %", "50.0 %", "25.0 %", "0.0 %", "25.0 %", "\u2013", "1", "0",
    ]  # fmt: skip
    assert ["0.25", "1,234", "2.5", "7", "\u2013"] in page.rows
    said = page.said("p")
    whole = " ".join(said)
    assert "denoise.calibration (isotonic) moved the thresholds: negative_below 0.25" in whole
    assert "parts them best, removes 100.0 % of them and keeps 50.0 % of the others" in whole
    assert "40 stored ce_scores read, 0 pairs scored." in said
    assert "q7: rank 2, score 0.500, ce_score 0.7500, known to be relevant" in said
    assert "Examples: hard negative (1)" in page.said("summary")
    assert ["found by", "passages", "labelled positive"] in [row[:3] for row in page.rows]
    assert page.said("caption") == [
        "Labels and verdicts by rank.",
        "Labels and verdicts by who found a candidate.",
        "Negatives of labelled questions, by threshold; the run's own threshold is bold on colour.",
        "Removal against known truth: positives of dev questions, hidden for this count only; the"
        " run's own threshold is bold on colour.",
        "Calibration: fitted to half of the questions, measured on the others; the run's own is"
        " bold on colour.",
    ]


def test_an_audit_can_be_read_aloud_by_keyboard_and_without_scripts(audited_page: str) -> None:
    page = Page(audited_page)
    assert {heading.get("scope") for heading in page.all("th")} == {"row", "col"}
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    labels = " ".join(str(svg["aria-label"]) for svg in page.all("svg"))
    assert "expected calibration error: none 0.450, isotonic 0.450" in labels
    assert "2 known positives; at negative_below 0.25 100% removed and 50% of the others" in labels
    assert len(page.said("summary")) == len(page.all("details"))
    test_the_page_needs_nothing_from_outside(audited_page)
    test_ids_are_unique_and_every_reference_has_its_target(audited_page)
    assert "&lt;i&gt;told&lt;/i&gt;" in audited_page


def test_a_threshold_no_better_than_chance_is_not_recommended() -> None:
    row = {"known": 3, "scored": 2, "best": {**CURVE[0], "recall": 1.0, "kept": 0.0}}
    assert audited.removal(row) == (
        "2 of 3 were retrieved and scored; no threshold parts them from the others better than"
        " chance"
    )


def test_an_audit_of_other_verdicts_is_none(bare: RunFolder) -> None:
    version(bare, "denoise", *DENOISED)
    write_json(bare.path / "audit.json", audit_of("another"))
    assert any("have not been audited" in text for text in Page(html_of(bare)).said("p"))


def test_an_audit_of_an_older_form_is_none(bare: RunFolder) -> None:
    made = version(bare, "denoise", *DENOISED)
    found = audit_of(made.digest)
    write_json(bare.path / "audit.json", {**found, "code": found["code"] - 1})
    assert any("have not been audited" in text for text in Page(html_of(bare)).said("p"))


# ----------------------------------------------------------------------------------------- curves


def test_a_log_is_read(bare: RunFolder) -> None:
    """A skipped step's loss is no number; a killed run's last line is cut short."""
    path = write_log(bare, "cross", [*LOG, {"step": 4, "loss": float("nan")}], '{"step": 5, "lo')
    curve = curves.read(path)
    assert curve.steps.tolist() == [1, 2, 3]
    assert curve.losses.tolist() == [3, 2, 1]
    assert curve.dev_steps.tolist() == [2, 3]
    assert curve.dev_mrr.tolist() == [0.5, 0.25]


def test_a_run_that_has_just_begun(bare: RunFolder) -> None:
    """No step, one step, and no dev evaluation yet."""
    for name, lines in {"dual_0": 1, "cross": 2, "dual_1": 3}.items():
        write_log(bare, name, LOG[:lines])
    page = Page(html_of(bare))
    assert page.said("p").count("The log holds no step.") == 1
    assert [svg["aria-label"] for svg in page.all("svg")] == [
        "cross: loss from 3.000 to 3.000 in 1 steps",
        "dual_1: loss from 3.000 to 2.000 in 2 steps",
    ]


def test_smoothing_is_a_mean_of_neighbours() -> None:
    values = np.random.default_rng(1).random(173)
    slow = [values[max(0, i - 3) : i + 4].mean() for i in range(173)]
    assert curves.smooth(values) == pytest.approx(slow)
    assert curves.smooth(np.array([3.0, 1.0])).tolist() == [3.0, 1.0]


def test_thinning_keeps_short_curves_and_means_of_long_ones() -> None:
    assert curves.thin(np.arange(4.0), 4).tolist() == [0, 1, 2, 3]
    assert curves.thin(np.arange(6.0), 3).tolist() == [0.5, 2.5, 4.5]
    assert len(curves.thin(np.arange(1001.0))) == curves.POINTS
