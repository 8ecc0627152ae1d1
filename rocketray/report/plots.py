"""Plots as inline SVG: no script, sharp at any size, the page's own ink in light and dark.

The same numbers give the same bytes: a fixed salt for ids, no date, text left as text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from rocketray.report.curves import Curve, smooth, thin
from rocketray.report.denoised import EDGES, Denoised
from rocketray.schema import Verdict

INK = "#010203"
"""Stands for the page's text colour, put in when the SVG is written."""

BLUE, ORANGE = "#2f7fd1", "#d9662b"
"""At least 3:1 against both of the page's backgrounds, and apart for colour-blind readers."""

WIDTH = 4.4
"""Inches, of 72 units each: as many as a phone's page has pixels, so that letters stay legible."""

STYLE = {
    "svg.fonttype": "none",  # Text stays text: small, selectable, read aloud.
    "svg.hashsalt": "rocketray",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def training(name: str, curve: Curve) -> Markup:
    """Loss by step above, dev MRR@10 below where the run has dev questions."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        if len(curve.dev_steps):
            top, bottom = figure.subplots(2, sharex=True, height_ratios=[3, 2])
            _dev(bottom, curve)
        else:
            top = bottom = figure.subplots()
        _loss(top, curve)
        bottom.set_xlabel("step")
        bottom.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return _svg(figure, f"curve-{name}", f"{name}: {_words(curve)}")


def ce_scores(denoised: Denoised, thresholds: Mapping[str, float]) -> Markup:
    """How the cross-encoder scored labelled and unlabelled passages, and where the cuts are."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        unlabelled, labelled = denoised.unlabelled, denoised.labelled
        # Below one passage there is nothing: half a passage is the floor of the log axis.
        axes.stairs(
            unlabelled, EDGES, baseline=0.5, fill=True, color=BLUE, alpha=0.6, label="unlabelled"
        )
        axes.stairs(labelled, EDGES, baseline=0.5, color=ORANGE, lw=1.6, label="labelled positive")
        for (label, value), dashes in zip(thresholds.items(), ("--", ":"), strict=False):
            axes.axvline(value, color=INK, ls=dashes, lw=1.2, label=f"{label} {value:g}")
        top = 2 * max(unlabelled.max(), labelled.max())
        axes.set(xlim=(0, 1), ylim=(0.5, top), xlabel="ce_score", ylabel="passages (log)")
        figure.legend(loc="outside upper center", ncols=2)
        cuts = ", ".join(f"{label} {value:g}" for label, value in thresholds.items())
        words = (
            f"Histogram of ce_scores: {labelled.sum():,} labelled positives,"
            f" {unlabelled.sum():,} unlabelled passages"
        )
        return _svg(figure, "ce-scores", f"{words}; thresholds: {cuts}" if cuts else words)


def removed_by_rank(shares: Mapping[str, np.ndarray]) -> Markup:
    """Share of unlabelled passages taken out of the negatives, by rank, each reason on top of the
    other (the paper's Figure 5). `shares`: by verdict, from rank 1; those of nothing are left out.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        below = np.zeros(max(map(len, shares.values())))
        edges = np.arange(len(below) + 1) + 0.5
        for verdict, share in shares.items():
            if share.any():
                colour, _ = SHADES[Verdict(verdict)]
                axes.stairs(below + share, edges, baseline=below, fill=True, color=colour,
                            label=verdict.replace("_", " "))  # fmt: skip
                below = below + share
        axes.set(xlim=(edges[0], edges[-1]), xlabel="rank in the list", ylabel="removed")
        axes.set_ylim(0, 1.1 * below.max() or 1)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        figure.legend(loc="outside upper center", ncols=2)
        words = f"Share removed by rank: {below[0]:.1%} at rank 1, {below[-1]:.1%} at {len(below)}"
        return _svg(figure, "removed-by-rank", words)


def rows_of_bars(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """A dot for each row of an ablation with its seeds' spread, and the paper's beside it."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.6 + 0.34 * len(rows)), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(rows))
        means = [row["mean"] for row in rows]
        axes.errorbar(means, places, xerr=[row["spread"] or 0.0 for row in rows], fmt="o",
                      color=BLUE, ecolor=BLUE, label="here, ± spread over seeds")  # fmt: skip
        published = [(row["paper"], i) for i, row in enumerate(rows) if row["paper"] is not None]
        axes.plot(*zip(*published, strict=True), "D", ms=4, color=ORANGE, label="paper, MS MARCO")
        axes.set_yticks(places, [row["words"] for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("MRR@10")
        figure.legend(loc="outside upper center", ncols=2)
        words = "; ".join(f"{row['words']} {row['mean']:.4f}" for row in rows)
        return _svg(figure, "rows", f"MRR@10 by row: {words}")


def points(name: str, found: Sequence[Mapping[str, Any]], x: str, *, log: bool) -> Markup:
    """MRR@10 against a count, with the seeds' spread."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        counts, means = ([point[field] for point in found] for field in ("x", "mean"))
        axes.errorbar(counts, means, yerr=[point["spread"] or 0.0 for point in found], color=BLUE,
                      marker="o", ms=4, lw=1.2)  # fmt: skip
        if log:
            axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set(xlabel=x, ylabel="MRR@10")
        words = "; ".join(f"{c:,.0f}: {m:.4f}" for c, m in zip(counts, means, strict=True))
        return _svg(figure, name, f"MRR@10 by {x}: {words}")


SHADES = {
    Verdict.LABELLED_POSITIVE: (ORANGE, "-"),
    Verdict.HARD_NEGATIVE: (BLUE, "-"),
    Verdict.LIKELY_FALSE_NEGATIVE: (ORANGE, ":"),
    Verdict.UNCERTAIN: (BLUE, ":"),
    Verdict.NEAR_POSITIVE: (INK, ":"),
}
"""Colour and dashes of each verdict: apart without colours, too."""


def scores_by_verdict(histograms: Mapping[str, Any]) -> Markup:
    """How the cross-encoder scored the passages of each verdict."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.set_yscale("log")
        for verdict, (colour, dashes) in SHADES.items():
            counts = histograms["by_verdict"][verdict]
            if any(counts):
                axes.stairs(counts, histograms["edges"], baseline=0.5, color=colour, ls=dashes,
                            lw=1.6, label=verdict.replace("_", " "))  # fmt: skip
        top = 2 * max(1, *(max(counts) for counts in histograms["by_verdict"].values()))
        axes.set(xlim=(0, 1), ylim=(0.5, top), xlabel="ce_score", ylabel="passages (log)")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        figure.legend(loc="outside upper center", ncols=2)
        words = ", ".join(
            f"{sum(histograms['by_verdict'][verdict]):,} {verdict.replace('_', ' ')}"
            for verdict in SHADES
        )
        return _svg(figure, "scores-by-verdict", f"Histograms of ce_scores by verdict: {words}")


def scores_by_rank(histograms: Mapping[str, Any]) -> Markup:
    """ce_scores, one strip a band of ranks: unlabelled passages by what became of them, each on
    top of the other, as shares of the band's; labelled ones as shares of their own."""
    edges, bands = histograms["edges"], histograms["by_rank"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.1 + 0.55 * len(bands)), layout="constrained")
        strips = figure.subplots(len(bands), sharex=True, squeeze=False)[:, 0]
        last = {
            band["ranks"]: _strip(axes, edges, band)
            for axes, band in zip(strips, bands, strict=True)
        }
        strips[-1].set_xlabel("ce_score, by rank")
        figure.legend(*strips[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
        told = ", ".join(f"rank {ranks}: {share:.0%}" for ranks, share in last.items())
        words = f"Histograms of ce_scores by rank; share of unlabelled in the highest bin at {told}"
        return _svg(figure, "scores-by-rank", words)


def _strip(axes: Axes, edges: Sequence[float], band: Mapping[str, Any]) -> float:
    """One band of ranks; returns the share of its unlabelled passages in the highest bin."""
    counts = {verdict: np.array(band["counts"][verdict]) for verdict in SHADES}
    labelled = counts.pop(Verdict.LABELLED_POSITIVE)
    whole = max(1, sum(int(values.sum()) for values in counts.values()))
    below = np.zeros(len(edges) - 1)
    for verdict, values in counts.items():
        colour, _ = SHADES[verdict]
        alpha = 0.45 if verdict in (Verdict.UNCERTAIN, Verdict.NEAR_POSITIVE) else 1.0
        axes.stairs(below + values / whole, edges, baseline=below, fill=True, color=colour,
                    alpha=alpha, label=verdict.replace("_", " "))  # fmt: skip
        below = below + values / whole
    axes.stairs(
        labelled / max(1, labelled.sum()), edges, color=INK, lw=1, label="labelled positive"
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.05), yticks=[])
    axes.set_ylabel(band["ranks"], rotation=0, ha="right", va="center")
    return float(below[-1])


def recall(curves: Mapping[str, np.ndarray]) -> Markup:
    """Share of the relevant passages among the first k, by k."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        looks = ((INK, ":"), (INK, "--"), (ORANGE, "--"), (BLUE, "--"), (BLUE, "-"),
                 (ORANGE, "-"), (BLUE, "-."), (ORANGE, "-."))  # fmt: skip
        for number, (name, curve_K) in enumerate(curves.items()):
            again, look = divmod(number, len(looks))  # Of many rounds the later are drawn broader.
            colour, dashes = looks[look]
            axes.plot(np.arange(1, len(curve_K) + 1), curve_K, color=colour, ls=dashes,
                      lw=1.5 + 1.5 * again, label=name)  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set(xlabel="k (log)", ylabel="recall at k", ylim=(None, 1))
        figure.legend(loc="outside upper center", ncols=3)
        ends = ", ".join(
            f"{name} {curve_K[0]:.3f} to {curve_K[-1]:.3f}" for name, curve_K in curves.items()
        )
        return _svg(figure, "recall", f"Recall from the first passage to the last: {ends}")


def reliability(curves: Mapping[str, Mapping[str, Any]]) -> Markup:
    """What a probability says against how often it is so; the diagonal is perfect."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=INK, lw=0.6)
        marks = (("o", BLUE, "-"), ("s", ORANGE, "--"), ("^", INK, ":"))
        for (name, curve), (mark, colour, dashes) in zip(curves.items(), marks, strict=False):
            said, so = (np.array(curve[column], float) for column in ("said", "so"))
            filled = np.isfinite(said)
            axes.plot(said[filled], so[filled], marker=mark, ms=4, lw=1, color=colour, ls=dashes,
                      label=f"{name}: error {curve['error']:.3f}")  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability said", ylabel="share relevant")
        figure.legend(loc="outside upper center", ncols=1)
        errors = ", ".join(f"{name} {curve['error']:.3f}" for name, curve in curves.items())
        words = f"Reliability of the cross-encoder; expected calibration error: {errors}"
        return _svg(figure, "reliability", words)


def removal(name: str, truth: str, found: Mapping[str, Any]) -> Markup:
    """Known positives removed against other passages kept, as negative_below falls."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        rows = [row for row in found["curve"] if row["kept"] is not None]
        kept, recall = ([row[column] for row in rows] for column in ("kept", "recall"))
        axes.plot(kept, recall, color=BLUE, marker="o", ms=3, lw=1)
        words = f"Removal, {truth}: {found['scored']:,} known positives"
        if best := found["best"]:
            axes.plot(best["kept"], best["recall"], marker="D", ms=7, color=ORANGE, ls="")
            axes.annotate(f"negative_below {best['negative_below']:g}",
                          (best["kept"], best["recall"]), xytext=(-6, -14), ha="right",
                          textcoords="offset points")  # fmt: skip
            words += (
                f"; at negative_below {best['negative_below']:g} {best['recall']:.0%} removed and"
                f" {best['kept']:.0%} of the others kept"
            )
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="others kept, same ranks")
        axes.set_ylabel("known positives removed")
        return _svg(figure, name, words)


def _loss(axes: Axes, curve: Curve) -> None:
    steps = thin(curve.steps)
    axes.plot(steps, thin(curve.losses), color=BLUE, lw=0.7, alpha=0.35)
    axes.plot(steps, thin(smooth(curve.losses)), color=BLUE, lw=1.6)
    axes.set_ylabel("loss")


def _dev(axes: Axes, curve: Curve) -> None:
    axes.plot(curve.dev_steps, curve.dev_mrr, color=ORANGE, marker="o", ms=4, lw=0.8)
    axes.set_ylim(0, 1.15 * curve.dev_mrr.max() or 1)
    axes.set_ylabel("dev MRR@10")


def _words(curve: Curve) -> str:
    words = (
        f"loss from {curve.losses[0]:.3f} to {curve.losses[-1]:.3f} in {curve.steps[-1]:,.0f} steps"
    )
    return f"{words}, best dev MRR@10 {curve.dev_mrr.max():.4f}" if len(curve.dev_mrr) else words


def _svg(figure: Figure, name: str, label: str) -> Markup:
    """An <svg> element for the middle of a page: sized by it, with ids of its own."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=NO_METADATA)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box, "matplotlib always writes a viewBox"
    # Several SVGs share one page: their ids must differ. Inside HTML no namespace is needed.
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", body).replace("xlink:href", "href")
    body = body.replace(INK, "currentColor")
    return Markup(f'<svg role="img" aria-label="{escape(label)}" {box.group()}>{body}')
