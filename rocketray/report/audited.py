"""What `audit.json` tells, as tables and sentences: the same on the screen and in the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rocketray import artifacts
from rocketray.artifacts import RunFolder
from rocketray.schema import DENOISED, Verdict

Row = Mapping[str, Any]

CODE = 3
"""Of the form of audit.json."""

FALSE = ("false_before", "false_after")
PLAIN = ("negative_below", "positive_above", "per_question", "calibration_error")
"""Numbers that are no shares."""
NEGATIVES = (
    "negative_below", "negatives", "per_question", "questions_without", "estimated_false",
)  # fmt: skip
POSITIVES = ("positive_above", "passages", "estimated_precision")
PSEUDO = (
    "positive_above", "questions", "share", "estimated_precision", "known", "agreement", "recall",
)  # fmt: skip
REMOVAL = ("negative_below", "recall", "kept", "precision")
"""Columns of the tables in order; JSON keeps none."""
CHANCE = 1.05
"""Sum of recall and kept under which a threshold says nothing: a coin's is 1."""
TRUTHS = {
    "train": "positives hidden from training",
    "dev": "positives of dev questions, hidden for this count only",
    "unlabelled": "questions whose labels were hidden",
}
"""Known truths in order: name in audit.json, words for people."""


class Shown(NamedTuple):
    """A table in words; a row that the run itself stands for is marked."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[Sequence[str], bool]]
    marked: str = ""
    """What that row is; of a sum it needs no word."""


def read(folder: RunFolder) -> dict[str, Any] | None:
    """The folder's audit.json; None without one, where it is of other verdicts than the run's, or
    of an older form.

    Raises:
        UserError: the file is damaged.
    """
    path = folder.path / "audit.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = artifacts.read_json(path)
    current = folder.current()
    same = all(
        name in current and folder.version(name).digest == digest
        for name, digest in found["of"].items()
    )
    return found if same and found.get("code") == CODE else None


def tables(found: Row) -> Iterator[Shown]:
    """Every part of an audit that has rows."""
    yield by_verdict("Labels and verdicts by rank", found["by_rank"], "ranks")
    if found["by_source"]:
        caption = "Labels and verdicts by who found a candidate"
        yield by_verdict(caption, found["by_source"], "found_by")
    removals = [
        (f"Removal against known truth: {words}", row["curve"], REMOVAL)
        for words, row in truths(found)
    ]
    for caption, rows, columns in (
        ("Negatives of labelled questions, by threshold", found["negatives"], NEGATIVES),
        ("Likely false negatives, by threshold", found["likely_positives"], POSITIVES),
        ("Pseudo labels, by threshold", found["pseudo"], PSEUDO),
        *removals,
    ):
        if rows:
            mine = found["thresholds"].get(columns[0])
            yield _table(caption, rows, columns, mine, "the run's own threshold")
    if maps := calibrations(found):
        rows = [{"map": name, "calibration_error": row["error"]} for name, row in maps.items()]
        caption = "Calibration: fitted to half of the questions, measured on the others"
        columns = ("map", "calibration_error")
        yield _table(caption, rows, columns, found["calibration"]["chosen"], "the run's own")


def truths(found: Row) -> list[tuple[str, Row]]:
    """Each known truth in words, and what became of it."""
    removal = found["removal"]
    return [(words, removal[name]) for name, words in TRUTHS.items() if name in removal]


def calibrations(found: Row) -> dict[str, Row]:
    """Reliability without a map, and after each."""
    maps = found["calibration"]["maps"]
    return {name: maps[name] for name in ("none", "temperature", "isotonic") if name in maps}


def by_verdict(caption: str, rows: Sequence[Row], kind: str) -> Shown:
    """Shares of the verdicts, by the first column, `kind`; false negatives, estimated and
    (hidden ones) known. What only `denoise.filter` removes is told where it did."""
    known = ("known_false_before", "known_false_after") if rows[-1]["known_false_before"] else ()
    verdicts = [name for name in DENOISED if name != Verdict.NEAR_POSITIVE or rows[-1][name]]
    shares = [
        {
            **{name: row[name] for name in (kind, "passages")},
            **{verdict: row[verdict] / max(1, row["passages"]) for verdict in verdicts},
            **{name: row[name] for name in (*FALSE, *known)},
        }
        for row in rows
    ]
    return _table(caption, shares, tuple(shares[0]), "all")


def _table(
    caption: str, rows: Sequence[Row], columns: Sequence[str], first: Any, marked: str = ""
) -> Shown:
    """`first`: the first cell of the row to stand out, which is what `marked` says."""
    cells = [
        (tuple(cell(name, row[name]) for name in columns), row[columns[0]] == first) for row in rows
    ]
    return Shown(caption, [name.replace("_", " ") for name in columns], cells, marked)


def cell(name: str, value: Any) -> str:
    """One number as people read it."""
    if value is None:
        return "\u2013"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if name in PLAIN else percent(value)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def sentences(found: Row) -> Iterator[str]:
    """What the tables rest on, and what they come to."""
    held, pairs = found["calibration"], found["pairs"]
    if later := [name for name in found["of"] if name not in ("denoise", "augment")]:
        yield f"Negatives and false negatives are those of the last round ({later[0]})."
    yield estimated(held, pairs["read"])
    if found["thresholds"] != found["asked"]:
        moved = ", ".join(f"{n} {t:.4g}" for n, t in found["thresholds"].items())
        yield f"denoise.calibration ({held['chosen']}) moved the thresholds: {moved}."
    for known, row in truths(found):
        yield f"{known.capitalize()}: {removal(row)}."
    yield f"{pairs['read']:,} stored ce_scores read, {pairs['scored']:,} pairs scored."


def estimated(held: Row, read: int) -> str:
    """Where shares of false negatives come from.

    Args:
        held: what the cross-encoder was held to.
        read: ce_scores of passages that were judged.
    """
    if not read:
        return "Denoising was off: passages have no ce_score, so no false negatives are estimated."
    if not held["maps"]:
        return (
            "False negatives are estimated by ce_scores as they are: too few labelled pairs for a"
            " map."
        )
    return (
        "False negatives are estimated by the cross-encoder, made a probability by isotonic"
        f" regression on {held['pairs']:,} pairs, {held['relevant']:,} of them relevant"
        f" ({held['source']}; negatives: {held['negatives']})."
    )


def removal(row: Row) -> str:
    """One known truth in a sentence: what there is, and the threshold that parts it best; for
    training the one that dev questions chose."""
    words = f"{row['scored']:,} of {row['known']:,} were retrieved and scored"
    chosen = row.get("by_dev", row["best"])
    if chosen is None:
        return words
    if (chosen["recall"] or 0) + (chosen["kept"] or 0) < CHANCE:
        return f"{words}; no threshold parts them from the others better than chance"
    how = "chosen by dev questions," if "by_dev" in row else "which parts them best,"
    return (
        f"{words}; negative_below={chosen['negative_below']:g}, {how} removes"
        f" {_percent(chosen['recall'])} of them and keeps {_percent(chosen['kept'])} of the others"
        " at the same ranks"
    )


def _percent(share: float | None) -> str:
    return "none" if share is None else percent(share)
