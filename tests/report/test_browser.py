"""The pages in a real browser: on a phone by day, at a desk by night, every part of them open."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from matplotlib.image import imread
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from rocketray import audit, report
from rocketray.ablation import FIGURES, Asked
from rocketray.artifacts import RunFolder, write_json
from tests.report.test_report import audit_of, small
from tests.test_ablation import Place

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # Of the first test, which makes all pages.
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; Debian has it as `chromium`"),
]

SCREENS: dict[str, dict[str, Any]] = {
    "phone": {"viewport": {"width": 360, "height": 780}, "is_mobile": True},
    "desk": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
}
PLOTS = {"run": 9, "ablation": 4, "texts": 8, "nothing": 0}
"""Pages, and how many plots each has."""
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
LEGIBLE = 9.0
"""Pixels that a plot's letters are high at least, wherever it is scaled to."""


@dataclass(frozen=True)
class Shown:
    """A loaded page, what it put on the console, and the addresses it asked for."""

    page: Page
    said: list[str]
    asked: list[str]


def show(browser: Browser, path: Path, screen: str) -> Shown:
    shown = Shown(browser.new_page(**SCREENS[screen]), [], [])
    shown.page.on("console", lambda message: shown.said.append(message.text))
    shown.page.on("pageerror", lambda error: shown.said.append(str(error)))
    shown.page.on("request", lambda request: shown.asked.append(request.url))
    shown.page.goto(path.as_uri(), wait_until="networkidle")
    shown.page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    return shown


@pytest.fixture(scope="module")
def pages(
    ablated: tuple[Place, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A run with its audit, the ablation it is of, other people's texts, and an empty folder."""
    place = ablated[0].copied(tmp_path_factory.mktemp("ablation"))
    place.run(asked=Asked(in_batch=4, figures=FIGURES, weights=("tiny",), also=("both",)))
    audit.write(place.out / "seed-3", as_json=False)
    texts = small(tmp_path_factory.mktemp("texts"))
    write_json(texts.path / "audit.json", audit_of(texts.version("denoise").digest))
    return {
        "run": place.out / "seed-3" / "report.html",
        "ablation": place.out / "ablation.html",
        "texts": report.write(texts),
        "nothing": report.write(RunFolder(tmp_path_factory.mktemp("nothing"))),
    }


@pytest.fixture(scope="module")
def browser(pages: dict[str, Path]) -> Iterator[Browser]:
    """Started after the pages are made: its driver runs an event loop in this thread."""
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module", params=product(PLOTS, SCREENS), ids="-".join)
def shown(
    request: pytest.FixtureRequest, browser: Browser, pages: dict[str, Path]
) -> Iterator[Shown]:
    name, screen = request.param
    found = show(browser, pages[name], screen)
    yield found
    found.page.close()


# ------------------------------------------------------------------------ what may be wrong in one


def talkative(shown: Shown) -> list[str]:
    """What it says on the console, and what it asks for beside itself."""
    return shown.said + [url for url in shown.asked if url != shown.page.url]


def too_wide(shown: Shown) -> list[str]:
    """A page that scrolls sideways; tables may, each in a box of its own."""
    assert shown.page.viewport_size
    wide = shown.page.evaluate("document.scrollingElement.scrollWidth")
    screen = shown.page.viewport_size["width"]
    return [f"{wide} pixels on a screen of {screen}"] if wide > screen else []


def numberless(shown: Shown) -> list[str]:
    """Rows that show their name alone until somebody scrolls."""
    return shown.page.evaluate(
        """() => [...document.querySelectorAll('th[scope=row] + td')]
          .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth)
          .map(e => e.parentElement.textContent)"""
    )


def undrawn(shown: Shown) -> list[str]:
    """Plots without size, without axes and words, or without data."""
    plots = shown.page.locator("svg").all()
    return [f"{plot.get_attribute('aria-label')}" for plot in plots if not drawn(plot)]


def drawn(plot: Locator) -> bool:
    """Data alone have colours; axes and words are in the page's ink."""
    box = plot.bounding_box()
    if not box or not box["width"] or not box["height"]:
        return False
    rgb_HW3 = imread(io.BytesIO(plot.screenshot()))[..., :3]
    coloured_HW = np.ptp(rgb_HW3, axis=-1) > 0.25
    inked_HW = np.abs(rgb_HW3 - rgb_HW3[0, 0]).min(axis=-1) > 0.25
    return coloured_HW.sum() >= 50 and (inked_HW & ~coloured_HW).sum() >= 500


def illegible(shown: Shown) -> list[str]:
    """Words of plots that are too small, cut off, or written over others."""
    return shown.page.evaluate(
        """least => [...document.querySelectorAll('svg')].flatMap(plot => {
          const scale = plot.getScreenCTM().a, whole = plot.getBoundingClientRect()
          const words = [...plot.querySelectorAll('text')].map(text => {
            const box = text.getBoundingClientRect()
            return {
              text: text.textContent, size: scale * parseFloat(getComputedStyle(text).fontSize),
              left: box.left + 1, right: box.right - 1,
              top: box.top + box.height / 5, bottom: box.bottom - box.height / 5 }
          })
          const over = (a, b) =>
            a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom
          return [
            ...words.filter(w => w.size < least).map(w => `${w.size.toFixed(1)} px: ${w.text}`),
            ...words.filter(w => w.left < whole.left || w.right > whole.right ||
              w.top < whole.top || w.bottom > whole.bottom).map(w => `cut off: ${w.text}`),
            ...words.flatMap((w, n) => words.slice(n + 1).filter(v => over(w, v))
              .map(v => `${w.text} on ${v.text}`)),
          ].map(fault => `${plot.getAttribute('aria-label').slice(0, 30)}: ${fault}`)
        })""",
        LEGIBLE,
    )


def inaccessible(shown: Shown) -> list[str]:
    """What axe-core finds against WCAG 2.2 AA, contrast included."""
    found = Axe().run(shown.page, options=RULES).response["violations"]
    return [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]


def unreachable(shown: Shown) -> list[str]:
    """What works or scrolls and is not the next stop of the key Tab, or is one unseen."""
    stops = shown.page.evaluate(
        """() => {
          const scrolls = e => e.scrollWidth > e.clientWidth &&
            ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)
          window.stops = [...document.querySelectorAll('body *')].filter(e =>
            e.matches('summary, a[href], [tabindex]') || scrolls(e))
          return window.stops.map(e => e.outerHTML.slice(0, 100))
        }"""
    )
    faults = []
    for number, stop in enumerate(stops):
        shown.page.keyboard.press("Tab")
        here, seen = shown.page.evaluate(
            """() => {
              const here = document.activeElement, look = getComputedStyle(here)
              const seen = look.outlineStyle != 'none' && parseFloat(look.outlineWidth) >= 2
              return [window.stops.indexOf(here), seen]
            }"""
        )
        faults += [] if here == number and seen else [f"{here} for {number}, {seen}: {stop}"]
    return faults


def unnamed(shown: Shown) -> list[str]:
    """Tables without a name or a heading, and headings that do not say what they head."""
    return shown.page.evaluate(
        """() => [...document.querySelectorAll(
          'table:not(:has(caption), [aria-label]), table:not(:has(th)), th:not([scope])'
        )].map(e => e.outerHTML.slice(0, 100))"""
    )


CHECKS = (
    talkative, too_wide, numberless, undrawn, illegible, unreachable, unnamed, inaccessible,
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_a_page_has_no_fault(shown: Shown, check: Callable[[Shown], list[str]]) -> None:
    assert check(shown) == []


@pytest.mark.parametrize("name", PLOTS)
def test_a_page_is_one_small_file_with_all_its_plots(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    assert pages[name].stat().st_size < 5_000_000
    shown = show(browser, pages[name], "phone")
    assert shown.asked == [shown.page.url]
    assert shown.page.locator("svg").count() == PLOTS[name]


# ---------------------------------------------------------------- every check finds its fault


@pytest.mark.parametrize(
    ("check", "screen", "whole", "broken"),
    [
        (talkative, "phone", "</main>", "</main><script>1</script>"),
        (talkative, "phone", "</main>", "</main><p style='background: url(x.png)'>a</p>"),
        (talkative, "phone", "<style>", "<link rel='stylesheet' href='x.css'><style>"),
        (talkative, "phone", '<meta http-equiv="Content', "<img src='x.png'><meta name=\"Content"),
        (too_wide, "phone", "</main>", "</main><p style='width: 25rem'>a</p>"),
        (too_wide, "phone", 'name="viewport"', 'name="another"'),
        (too_wide, "phone", ".wide { overflow-x: auto", ".wide { overflow-x: visible"),
        (numberless, "phone", "td { white-space: nowrap", "th, td { white-space: nowrap"),
        (undrawn, "phone", "svg { display: block", "svg { display: none"),
        (undrawn, "desk", "</style>", "svg path { visibility: hidden }</style>"),
        (undrawn, "desk", "</style>", "svg { color: var(--paper) }</style>"),
        (illegible, "phone", "</style>", "svg { max-width: 12rem !important }</style>"),
        (illegible, "desk", "</style>", "svg text { font-size: 20px !important }</style>"),
        (inaccessible, "phone", "--soft: #5a626b", "--soft: #a5adb6"),
        (inaccessible, "desk", "--soft: #a5adb6", "--soft: #5a626b"),
        (inaccessible, "phone", 'lang="en"', ""),
        (unreachable, "phone", 'tabindex="0"', 'tabindex="-1"'),
        (unreachable, "desk", ":focus-visible { outline: 2px", ":focus-visible { outline: 0px"),
        (unnamed, "desk", 'th scope="col"', "th"),
        (unnamed, "desk", "caption>", "b>"),
        (unnamed, "desk", 'aria-label="Counts"', ""),
    ],
)
def test_a_fault_is_found(
    browser: Browser, pages: dict[str, Path], tmp_path: Path, check: Callable[[Shown], list[str]],
    screen: str, whole: str, broken: str,
) -> None:  # fmt: skip
    html = pages["run"].read_text(encoding="utf-8")
    assert whole in html
    page = tmp_path / "broken.html"
    page.write_text(html.replace(whole, broken), encoding="utf-8")
    shown = show(browser, page, screen)
    assert check(shown)
    shown.page.close()
