"""`rocketray audit`: what denoising and pseudo labelling did to the data, read from a run's folder.

Nothing is scored: every number comes from stored ce_scores, verdicts and judgements. The blocks of
each table are read one after another; in memory are a block, counters, and 18 bytes an unlabelled
question.

Truth that the recipe kept from training is of two kinds: relevant passages of training questions
(`data.hide_positives`), and all labels of some questions (`data.hide_labels`). Only with them is
the removal itself measured; everything else is estimated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from rocketray import artifacts, calibration, report, schema, storage
from rocketray import recipe as recipes
from rocketray.artifacts import RunFolder, Version
from rocketray.calibration import Pairs, keys
from rocketray.errors import UserError
from rocketray.lineage import Lineage
from rocketray.recipe import Recipe
from rocketray.report import audited, denoised
from rocketray.schema import DENOISED, Verdict
from rocketray.stages.ingest import hide_positives
from rocketray.sweeps import (
    ByRank,
    BySource,
    Pseudo,
    Removal,
    Row,
    Sweep,
    blocks,
    ratio,
    sources_of,
)

GRID = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.997)
"""Thresholds that are tried beside the run's own. Cross-encoders leave little in the middle."""
SHOWN = 50
"""Examples of each verdict."""
DEV_SCORED = "dual_0_dev_scored"
POOL = "both_train"


def audit(folder: RunFolder) -> Row:
    """All that the audit knows, as plain values: what `audit.json` holds.

    Raises:
        UserError: the run has not come to denoising, or a file is damaged.
    """
    run = Run.open(folder)
    before = stored_pairs(folder)
    probability, held = cross_encoder(run)
    ranks, sweep = denoising(run, probability)
    read = int(ranks.steps_VRS.sum())
    return {
        "code": audited.CODE,
        "of": {
            name: run.need(name).digest for name in (run.judged, "augment") if run.same_cross(name)
        },
        "thresholds": run.thresholds,
        "asked": run.recipe.denoise.model_dump(include=set(run.thresholds)),
        "calibration": held,
        "by_rank": ranks.rows(),
        "by_source": by_source(run, probability),
        "ce_scores": ranks.histograms(),
        "negatives": sweep.negatives() if read else [],
        "likely_positives": sweep.positives() if read else [],
        "pseudo": pseudo(run, probability),
        "removal": removals(run),
        "examples": examples(run),
        "pairs": {"read": read, "scored": stored_pairs(folder) - before},
    }


def stored_pairs(folder: RunFolder) -> int:
    """Pairs that some cross-encoder has scored for this run."""
    files = [path for path in storage.files(folder.path / "pairs") if path.suffix == ".parquet"]
    return sum(pq.read_metadata(path).num_rows for path in storage.fetch_all(files))


# ------------------------------------------------------------------------------- the run's folder


@dataclass(frozen=True)
class Run:
    """What the audit reads of a run. A folder keeps versions of earlier recipes, so what the recipe
    does not ask for counts as absent."""

    folder: RunFolder
    recipe: Recipe
    current: Mapping[str, str]
    _verified: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, folder: RunFolder) -> Run:
        current, told = folder.current(), folder.path / "recipe.yaml"
        if "denoise" not in current or not told.is_file():
            raise UserError(
                f"{folder.path} has no verdicts yet: there is nothing to audit. The command that"
                " began the run goes on with it; `--until denoise` is far enough."
            )
        return cls(folder, recipes.load(str(told)), current)

    def need(self, name: str) -> Version:
        """The current version, compared with its manifest before its first use."""
        version = self.folder.version(name)
        if name not in self._verified:
            version.verify()
            self._verified.add(name)
        return version

    def get(self, name: str) -> Version | None:
        """None where the run has no such stage, or not yet, or its recipe no more."""
        told = self.recipe
        asked = {
            "qrels_hidden": told.data.hide_labels,
            "qrels_hidden_positives": told.data.hide_positives,
            DEV_SCORED: told.denoise.calibration != "none" or told.data.hide_positives,
            POOL: told.denoise.pool == "both",
        }
        wanted = name in self.current and asked.get(name, True)
        return self.need(name) if wanted else None

    def same_cross(self, name: str) -> Version | None:
        """As `get`, and None where another cross-encoder scored it than what `denoise` judged:
        until the command that began the run has gone on, later stages are those of an earlier
        recipe."""
        version, judge = self.get(name), self._cross_of(self.need(self.judged))
        alike = version and judge in (None, self._cross_of(version))  # None: `denoise.off`.
        return version if alike else None

    @cached_property
    def judged(self) -> str:
        """Verdicts of the last round that the cross-encoder of the first has judged."""
        first = self._cross_of(self.need("denoise"))
        there = [name for name in self.recipe.denoise.finders if name in self.current]
        return [name for name in there if self._cross_of(self.need(name)) == first][-1]

    def _cross_of(self, version: Version) -> str | None:
        """Digest of the cross-encoder behind a scored run, or behind verdicts on one."""
        return self._behind(version, "cross")

    @property
    def pool(self) -> Version | None:
        """The candidates that `denoise` judged, if two retrievers found them."""
        version = self.get(POOL)
        mine = version and version.digest == self._behind(self.need("denoise"), "run")
        return version if mine else None

    def _behind(self, version: Version, name: str) -> str | None:
        """Digest of an input of a scored run, or of the one that verdicts are on."""
        inputs = self._lineage.inputs
        own = inputs[version.path.name]
        scored = self._lineage.folders.get(own["scored"], []) if "scored" in own else []
        return next((inputs[folder].get(name) for folder in scored), own.get(name))

    @cached_property
    def _lineage(self) -> Lineage:
        return Lineage(self.folder.stages)

    @property
    def thresholds(self) -> dict[str, float]:
        """Where ce_scores were cut; none without denoising."""
        told: Mapping[str, Any] = self.need(self.judged).manifest["identity"]["recipe"]
        names = ("negative_below", "positive_above")
        return {name: told[name] for name in names if name in told}

    @property
    def grid(self) -> np.ndarray:
        """Thresholds to try, rising."""
        return np.unique([*GRID, *(t for t in self.thresholds.values() if 0 < t < 1)])

    @property
    def labels(self) -> Version:
        """What denoising took for positives."""
        answers = self.recipe.data.positives == "answers"
        return self.need("answer_positives" if answers else "qrels_train")


# ----------------------------------------------------------------------------- the cross-encoder


def cross_encoder(run: Run) -> tuple[calibration.Map | None, Row]:
    """A map from ce_score to probability, and how far ce_scores are from shares.

    The map is fitted to all pairs. What is said about maps comes from two halves: fitted to
    questions of even row number, measured on the odd ones, so that none shines by heart.
    """
    pairs, source = labelled_pairs(run)
    found: Row = {
        "pairs": len(pairs.ce_N),
        "relevant": int(pairs.relevant_N.sum()),
        "source": source,
        "negatives": "judged irrelevant" if pairs.judged else "unlabelled, taken for irrelevant",
        "chosen": run.recipe.denoise.calibration,
        "reliability": reliability(pairs.ce_N, pairs.relevant_N) if len(pairs.ce_N) else None,
        "maps": {},
    }
    even_N = pairs.queries_N % 2 == 0
    here, there = (
        Pairs(pairs.queries_N[half], pairs.ce_N[half], pairs.relevant_N[half], pairs.judged)
        for half in (even_N, ~even_N)
    )
    if not (fits(here) and fits(there)):
        return None, found
    found["temperature"] = calibration.fit_temperature(pairs.ce_N, pairs.relevant_N).temperature
    found["maps"]["none"] = reliability(there.ce_N, there.relevant_N)
    for kind in ("temperature", "isotonic"):
        mapped_N = calibration.fit(kind, here)(there.ce_N)
        found["maps"][kind] = reliability(mapped_N, there.relevant_N)
    return calibration.fit("isotonic", pairs), found


def labelled_pairs(run: Run) -> tuple[Pairs, str]:
    """Pairs with labels to hold the cross-encoder to, and where they are from: of questions it has
    not learned from, if there are any."""
    if scored := run.same_cross(DEV_SCORED):
        qrels, words = run.need("qrels_dev"), "dev questions, passages of dual_0"
    elif scored := run.same_cross("dual_2_test_scored"):
        split = schema.held_out(run.current)
        qrels = run.need(f"qrels_{split}")
        words = f"{split} questions, passages of dual_2"
    else:
        scored, qrels = run.need(run.judged), run.labels
        finder = run.recipe.denoise.finders[run.judged]
        words = f"training questions, passages of {finder}; it learned from them and looks too good"
    return calibration.labelled_pairs(scored, qrels.read()), words


def fits(pairs: Pairs) -> bool:
    """Whether both labels occur, as a fit needs."""
    return bool(pairs.relevant_N.any() and not pairs.relevant_N.all())


def reliability(probability_N: np.ndarray, relevant_N: np.ndarray) -> Row:
    bins = calibration.reliability(probability_N, relevant_N)
    return {
        "pairs": bins.counts.tolist(),
        "said": [ratio(value, 1) for value in bins.said],
        "so": [ratio(value, 1) for value in bins.so],
        "error": round(bins.error, 6),
    }


# ------------------------------------------------------------------------------------- the counts


def likely(probability: calibration.Map | None, ce_N: np.ndarray) -> np.ndarray:
    """Probabilities of relevance; without a map the ce_scores themselves."""
    return ce_N if probability is None else probability(ce_N)


def denoising(run: Run, probability: calibration.Map | None) -> tuple[ByRank, Sweep]:
    """One pass over the verdicts on labelled questions."""
    hidden, ranks, sweep = hidden_keys(run), ByRank(), Sweep(run.grid)
    for found in blocks(run.need(run.judged)):
        likely_N = likely(probability, found.ce_N)
        ranks.add(found, likely_N, np.isin(found.key_N, hidden))
        sweep.add(found, likely_N)
    return ranks, sweep


def by_source(run: Run, probability: calibration.Map | None) -> list[Row]:
    """Verdicts by who found a candidate; empty where one retriever found all of them."""
    pool = run.pool
    if pool is None:
        return []
    hidden, sources = hidden_keys(run), BySource()
    for block, found in zip(pool.blocks, blocks(run.need("denoise")), strict=True):
        likely_N = likely(probability, found.ce_N)
        who_N = sources_of(pool.table(block.number), found)
        sources.add(found, likely_N, np.isin(found.key_N, hidden), who_N)
    return sources.rows()


def pseudo(run: Run, probability: calibration.Map | None) -> list[Row]:
    """The sweep over pseudo labels; empty where no question was unlabelled."""
    version = run.same_cross("augment")
    if version is None:
        return []
    counted = Pseudo(run.grid, keys_of(run.get("qrels_hidden")))
    for found in blocks(version):
        counted.add(found, likely(probability, found.ce_N))
    return counted.rows()


def removals(run: Run) -> dict[str, Row]:
    """Removal against each known truth: of training, dev and unlabelled questions."""
    found = {}
    if run.get("qrels_hidden_positives"):
        found["train"] = _removal(run, run.judged, hidden_keys(run), keys_of(run.labels))
        if run.same_cross(DEV_SCORED):
            visible, hidden = hide_dev(run)
            found["dev"] = _removal(run, DEV_SCORED, relevant_keys(hidden), relevant_keys(visible))
    if (qrels := run.get("qrels_hidden")) and run.same_cross("augment"):
        found["unlabelled"] = _removal(run, "augment", keys_of(qrels), keys_of(None))
    found = {name: row for name, row in found.items() if row["scored"]}
    if {"train", "dev"} <= found.keys() and (chosen := found["dev"]["best"]):
        rows = zip(found["dev"]["curve"], found["train"]["curve"], strict=True)
        found["train"]["by_dev"] = next(train for dev, train in rows if dev == chosen)
    return found


def _removal(run: Run, name: str, truth: np.ndarray, labelled: np.ndarray) -> Row:
    removal = Removal(run.grid, truth, labelled)
    for found in blocks(run.need(name)):
        removal.add(found)
    return removal.found()


def hide_dev(run: Run) -> tuple[pa.Table, pa.Table]:
    """Dev judgements, visible and hidden: drawn as those of training, but for this count only. No
    model learns from dev, so nothing changes by hiding them."""
    qrels = run.need("qrels_dev").read()
    queries, passages = qrels["query"].to_pylist(), qrels["passage"].to_pylist()
    asked = denoised.fetch(run.need("queries"), set(queries))
    told = denoised.fetch(run.need("passages"), set(passages))
    qids, pids = [asked[row]["qid"] for row in queries], [told[row]["pid"] for row in passages]
    return hide_positives(qrels, qids, pids, run.recipe.data.hide_positives, run.recipe.data_seed)


def hidden_keys(run: Run) -> np.ndarray:
    """Keys of the training positives that were kept from training."""
    return keys_of(run.get("qrels_hidden_positives"))


def keys_of(qrels: Version | None) -> np.ndarray:
    """Keys of the relevant pairs; none of no judgements."""
    return relevant_keys(qrels.read() if qrels else schema.QRELS.empty_table())


def relevant_keys(qrels: pa.Table) -> np.ndarray:
    relevant = qrels.filter(pc.greater(qrels["relevance"], 0))
    return keys(relevant["query"].to_numpy(), relevant["passage"].to_numpy())


# --------------------------------------------------------------------------------------- examples


def examples(run: Run) -> dict[str, list[Row]]:
    """Some passages of each verdict, with all that a person needs to judge it."""
    drawn = draw(run.need(run.judged), DENOISED, run.recipe.seed)
    if augmented := run.same_cross("augment"):
        drawn |= draw(augmented, (Verdict.PSEUDO_POSITIVE.value,), run.recipe.seed)
    texts = Texts(run, [row for rows in drawn.values() for row in rows])
    return {verdict: [texts.shown(row) for row in rows] for verdict, rows in drawn.items()}


def draw(version: Version, verdicts: Sequence[str], seed: int) -> dict[str, list[Row]]:
    """`SHOWN` passages of each verdict, by a seeded hash of question and passage.

    The lowest hashes of a block and of what the blocks before it left are the lowest of all so far.
    """
    names = ("key", "query", "passage", "rank", "score", "ce_score")
    drawn = {verdict: [np.empty(0, np.int64)] * len(names) for verdict in verdicts}
    for found in blocks(version):
        columns = (found.key_N, found.query_N, found.passage_N, found.rank_N, found.score_N,
                   found.ce_N)  # fmt: skip
        for verdict, before in drawn.items():
            told = verdict in DENOISED
            mine_N = found.denoised_N == DENOISED.index(verdict) if told else found.having(verdict)
            both = [np.concatenate([a, b[mine_N]]) for a, b in zip(before, columns, strict=True)]
            lucky = np.isin(both[0], schema.sample(both[0], SHOWN, seed))
            drawn[verdict] = [column[lucky] for column in both]
    return {
        verdict: [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        for verdict, columns in drawn.items()
    }


class Texts:
    """The texts of drawn examples, read from the blocks that hold them."""

    def __init__(self, run: Run, rows: Sequence[Row]) -> None:
        queries = {int(row["query"]) for row in rows}
        self.relevant = _relevant(run, queries)
        wanted = {int(row["passage"]) for row in rows}
        wanted |= {passages[0] for passages in self.relevant.values()}
        self.questions = denoised.fetch(run.need("queries"), queries)
        self.passages = denoised.fetch(run.need("passages"), wanted)

    def shown(self, row: Row) -> Row:
        query, passage = int(row["query"]), int(row["passage"])
        relevant = self.relevant.get(query, [])
        return {
            "qid": self.questions[query]["qid"],
            "question": denoised.cut(self.questions[query]["text"]),
            "positive": self._passage(relevant[0]) if relevant else None,
            "passage": self._passage(passage),
            "rank": int(row["rank"]),
            "score": ratio(row["score"], 1),
            "ce_score": ratio(row["ce_score"], 1),
            "known_relevant": passage in relevant,
        }

    def _passage(self, row: int) -> Row:
        found = self.passages[row]
        return {name: denoised.cut(found[name]) for name in ("pid", "title", "text")}


def _relevant(run: Run, queries: set[int]) -> dict[int, list[int]]:
    """Relevant passages of some questions: those that training saw first, then hidden ones."""
    found: dict[int, list[int]] = {}
    for qrels in (run.labels, run.get("qrels_hidden"), run.get("qrels_hidden_positives")):
        for query, rows in (denoised.positives(qrels, queries) if qrels else {}).items():
            found.setdefault(query, []).extend(rows)
    return found


# ---------------------------------------------------------------------------------------- writing


def write(path: Path, *, as_json: bool) -> None:
    """Audit a run: tables on the screen, audit.json and a section of report.html in its folder; or
    nothing but the JSON on the screen."""
    folder = RunFolder.open(path)
    found = audit(folder)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    artifacts.write_json(folder.path / "audit.json", found)
    show(found)
    print(f"audit: {folder.path / 'audit.json'}\nreport: {report.write(folder)}")


def show(found: Row) -> None:
    """The audit's tables and sentences on the screen."""
    console = Console(highlight=False)
    for table in audited.tables(found):
        console.print(f"\n{table.caption}", soft_wrap=True)
        shown = Table()
        for name in table.columns:
            shown.add_column(name, justify="right")
        for cells, mine in table.rows:
            shown.add_row(*cells, style="bold" if mine else None)
        console.print(shown)
    for sentence in audited.sentences(found):
        console.print(sentence, soft_wrap=True, markup=False)
