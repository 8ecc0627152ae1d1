"""Making versions: skip what is finished, adopt what is the same, run the rest, say why.

`Workflow` knows no stage and no step; `tables`, `preparation`, `retrieval`, `labelling` and
`learning` tell it what to make from what.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rocketray import artifacts, storage
from rocketray.artifacts import Block, Draft, Parts, RunFolder, Version
from rocketray.engine.bulk import Job, Receipt, run_jobs
from rocketray.engine.poison import named
from rocketray.errors import UserError
from rocketray.meanwhile import meanwhile
from rocketray.progress import Display
from rocketray.recipe import Recipe, dump

TOLD = 10
"""So many rows that a stage leaves out are named."""


class Finished(Exception):
    """`--until` is reached, or passed; what stage comes next, where that is known."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One stage over the blocks of a table: what it is made of, and so its identity."""

    name: str
    stage: Any
    """A stage class (see engine/bulk.py): called with `inputs` as paths, `settings` and `given`."""
    inputs: Mapping[str, Version] = field(default_factory=dict)
    """By the constructor's argument; a version counts by its content."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Plain values that change the result."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Plain values that do not, such as where something lies."""
    begin: Callable[[Path], Mapping[str, Any]] = lambda stage: {}
    """More of them, asked for with the version's folder when the stage begins: what writes
    something there must not where `--until` or `--frozen` keep the stage from beginning."""
    also: Mapping[str, Any] = field(default_factory=dict)
    """What changes the result without being told to the stage, such as what its items hold."""
    over: str | None = None
    """The input whose blocks are mapped, one item each; or `items`."""
    items: Sequence[Any] = ()
    """What the stage is called with, by block."""
    keys: Sequence[str] | None = None
    """What each item holds, by block: lets an equal block of another version be adopted."""
    unit: str = "queries"
    people: Version | None = None
    """The table of passages or questions whose rows the stage's are, to name them by their ids."""

    def identity(self) -> dict[str, Any]:
        inputs = {name: version.digest for name, version in self.inputs.items()}
        recipe = json.loads(artifacts.canonical({**self.settings, **self.also}))
        return {"stage": self.name, "code": self.stage.code, "recipe": recipe, "inputs": inputs}

    def choosing(self) -> Spec:
        """Of a stage that chooses something by itself: told where its workers write it down."""
        return replace(
            self, begin=lambda stage: {**self.begin(stage), "choices": str(stage / "choices.json")}
        )

    def job(self, draft: Draft) -> Job:
        paths = {name: str(version.path) for name, version in self.inputs.items()}
        arguments = {**paths, **self.settings, **self.given, **self.begin(draft.path)}
        items = self.items
        if self.over:
            items = range(len(self.inputs[self.over].manifest["blocks"]))
        people = str(self.people.path) if self.people else ""
        keys = self._keys(len(items))
        return Job(draft, self.stage, arguments, items, keys, people=people)

    def _keys(self, count: int) -> list[str]:
        """A block depends on its own rows, the settings and the other inputs, but not on the
        rest of the mapped table; where items are not blocks of one table, on everything."""
        if self.keys is not None:
            mine = [self.stage.code, dict(self.settings)]
            return [artifacts.fingerprint([mine, key]) for key in self.keys]
        identity = self.identity()
        if not self.over:
            return [artifacts.fingerprint([identity, number]) for number in range(count)]
        over = self.inputs[self.over].manifest
        del identity["inputs"][self.over]
        rows = [[over["sha256"][n] for n in block["files"].values()] for block in over["blocks"]]
        return [artifacts.fingerprint([identity, files]) for files in rows]


@dataclass
class Workflow:
    """One run's folder, recipe and display."""

    recipe: Recipe
    folder: RunFolder
    display: Display
    until: str | None = None
    frozen: bool = False
    beyond: Collection[str] = ()
    """Stages that come after `until`: before them it stops where nothing makes that."""
    made: dict[str, Version] = field(default_factory=dict)
    """Versions of this run, by stage, in the order they were needed."""
    skipped: list[str] = field(default_factory=list)

    def tell_recipe(self) -> None:
        """`recipe.yaml`, which others read as that of the folder's versions: to be called when
        those are made by it, not when it may yet be refused."""
        artifacts.write_text(self.folder.path / "recipe.yaml", dump(self.recipe))

    # ---- three ways to make a version

    def bulk(self, *specs: Spec) -> list[Version]:
        """Stages over blocks. Several share one pool of workers, which takes seconds to start."""
        self._stop_if_reached(*(spec.name for spec in specs))
        before = [self._before(spec.name, spec.identity()) for spec in specs]
        missing = [
            (spec, draft) for spec, (draft, found) in zip(specs, before, strict=True) if not found
        ]
        jobs = [self._job(spec, draft) for spec, draft in missing]
        for (spec, draft), job in zip(missing, jobs, strict=True):
            self._verify(spec.inputs.values())
            # For whoever asks meanwhile how far it is: receipts tell what is done, not what is to.
            artifacts.write_json(draft.path / "wanted.json", {"blocks": len(job.items)})
            draft.adopt({n: job.keys[n] for n in job.todo()})
        self._run(jobs, [spec.unit for spec, _ in missing])
        made = {}
        for job in jobs:
            self._tell_chosen(job.draft)
            facts = _sum_facts(job.draft)
            made[job.draft.stage] = self._finish(job.draft, facts, blocks=len(job.items))
        return [
            self._after(self._within_quarantine(spec, found or made[spec.name]))
            for spec, (_, found) in zip(specs, before, strict=True)
        ]

    def _tell_chosen(self, draft: Draft) -> None:
        """What workers chose for want of something: under Ray nobody hears them."""
        chosen = artifacts.chosen(draft.path)
        if "tokens" in chosen:
            self.display.say(
                f"  {draft.stage:<26} memory ran out: blocks begin with {chosen['tokens']:,} tokens"
                " at once"
            )
        if not chosen.get("int8_gains", True):
            self.display.say(
                f"  {draft.stage:<26} int8 gained nothing: a worker's processor has no fast 8-bit"
                " products. Precision auto is at least as fast"
            )

    def _job(self, spec: Spec, draft: Draft) -> Job:
        return replace(spec.job(draft), quarantine=self.recipe.blocks.quarantine)

    def _within_quarantine(self, spec: Spec, version: Version) -> Version:
        """Says what was left out. Two workers at once, or an earlier recipe, may have left out more
        than is allowed."""
        count, limit = version.facts.get("quarantined", 0), self.recipe.blocks.quarantine
        if count > limit:
            raise UserError(
                f"{version.name} was made without {count} rows that kill their worker, and"
                f" blocks.quarantine allows {limit}. {version.path / 'manifest.json'} lists them,"
                " counted from 0 in each block: remove them from the data, or raise it."
            )
        self._tell_left_out(spec, version, count)
        return version

    def _tell_left_out(self, spec: Spec, version: Version, count: int) -> None:
        for row, how in islice(_left_out(version), TOLD):
            self.display.say(
                f"  note: {version.name} leaves out {named(spec.people, row)}, which kills its"
                f" worker ({how})"
            )
        if count > TOLD:
            self.display.say(
                f"  note: {version.name} leaves out {count - TOLD:,} more;"
                f" {version.path / 'manifest.json'} lists them, counted from 0 in each block"
            )

    def small(
        self, name: str, identity: Mapping[str, Any], make: Callable[[], list[Parts]],
        facts: Mapping[str, Any] | None = None,
    ) -> Version:  # fmt: skip
        """A table this process makes: `make` gives its blocks, each with rows in "table"."""
        self._stop_if_reached(name)
        whole = {"stage": name, **identity}
        draft, found = self._before(name, whole)
        if found:
            return self._after(found)
        with self._timed(draft):
            blocks = make()
            for number, parts in enumerate(blocks):
                rows = len(parts[artifacts.TABLE])
                artifacts.commit_block(draft.path, number, parts, rows=rows, key="", facts={})
        return self._after(self._finish(draft, facts or {}, blocks=len(blocks)))

    def files(
        self,
        name: str,
        identity: Mapping[str, Any],
        inputs: Sequence[Version],
        make: Callable[[Path], Mapping[str, Any]],
    ) -> Version:
        """A version of plain files, such as a model: `make` publishes PATH/model and returns
        facts."""
        self._stop_if_reached(name)
        whole = {"stage": name, **identity}
        draft, found = self._before(name, whole)
        if found:
            return self._after(found)
        self._verify(inputs)
        with self._timed(draft):
            facts = make(draft.path)
            storage.sync(draft.path / "model", below=True)  # Another node may have made it.
            model = sorted(p for p in (draft.path / "model").rglob("*") if p.is_file())
        return self._after(self._finish(draft, facts, files=model))

    # ---- what goes together

    @contextmanager
    def together(self, stages: Collection[str] = ()) -> Iterator[None]:
        """Versions made inside become current in one step, at the end; `stages` that were not made
        are current no more. Refused or killed before that, the folder has what it had.

        `--until` one of them stops at the end, too.
        """
        self._held = held = list[Version]()
        try:
            yield
        finally:
            self._held = None
        self.folder.check_writer()
        self.folder.set_current(*held, instead_of=stages)
        self._stop_if_reached()

    _held: list[Version] | None = None
    """Made inside `together`, and not current yet."""

    # ---- around making

    def _before(self, name: str, identity: Mapping[str, Any]) -> tuple[Draft, Version | None]:
        draft, found = self.folder.draft(name, identity), self.folder.finished(name, identity)
        if found:
            self.skipped.append(name)
            self.display.say(f"  {name:<26} finished before, skipped")
            return draft, found
        if name in self.folder.current():
            old = self.folder.version(name).manifest["identity"]
            reasons = "; ".join(artifacts.changes(old, identity))
            if self.frozen:
                raise UserError(f"--frozen: {name} would have to be made again: {reasons}.")
            self.display.say(f"  {name:<26} again, because {reasons}")
        draft.path.mkdir(parents=True, exist_ok=True)
        return draft, None

    def _stop_if_reached(self, *coming: str) -> None:
        """Also where nothing will make `until`, as all that comes next, together, is beyond it."""
        if self._held is not None or self.until is None:
            return
        if self.until in self.made or (coming and set(coming) <= set(self.beyond)):
            raise Finished(*coming)

    def _finish(
        self, draft: Draft, facts: Mapping[str, Any], *, files: Iterable[Path] = (),
        blocks: int | None = None,
    ) -> Version:  # fmt: skip
        """A manifest makes a version count, whoever wrote it: so ask before."""
        self.folder.check_writer()
        return draft.finish(facts, files, blocks)

    def _after(self, version: Version) -> Version:
        self.folder.check_writer()
        if self._held is None:
            self.folder.set_current(version)
        else:
            self._held.append(version)
        self.made[version.name] = version
        return version

    def _verify(self, inputs: Any) -> None:
        """An artifact is checked once, before the first stage of this process that reads it."""
        for version in inputs:
            if version.path not in self._verified:
                version.verify()
                self._verified.add(version.path)

    _verified: set[Path] = field(default_factory=set)

    def _run(self, jobs: Sequence[Job], units: Sequence[str]) -> None:
        totals = [len(job.items) for job in jobs]
        todo = [len(job.todo()) for job in jobs]
        if not any(todo):  # Killed between the last block and its timing, perhaps.
            for job in jobs:
                _write_timing(job.draft, 0.0)
            return
        name = " + ".join(job.draft.stage for job in jobs)
        seconds = [0.0 for _ in jobs]
        start = time.monotonic()
        made = Counter[str]()

        def done(receipt: Receipt) -> None:
            self.folder.check_writer()
            if not made:  # Count from the first block: starting a pool says nothing on its rate.
                meter.counted_from = time.monotonic() - receipt.seconds
            seconds[receipt.job] += receipt.seconds
            made.update({units[receipt.job]: receipt.rows, "tokens": receipt.tokens})
            elapsed = max(1e-9, time.monotonic() - meter.counted_from)
            note = ", ".join(f"{n / elapsed:,.0f} {unit}/s" for unit, n in made.items() if n)
            meter.advance(1, note)

        with self.display.meter(name, sum(totals), "blocks", sum(totals) - sum(todo)) as meter:
            run_jobs(jobs, self.recipe.cluster, done, self.display.say)
        elapsed = time.monotonic() - start
        share = sum(seconds) or 1.0
        for number, job in enumerate(jobs):
            _write_timing(job.draft, elapsed * seconds[number] / share)

    @contextmanager
    def _timed(self, draft: Draft) -> Iterator[None]:
        """Ends before the manifest is written: what counts as finished has its timing, then."""
        start = time.monotonic()
        yield
        _write_timing(draft, time.monotonic() - start)

    def timings(self) -> list[dict[str, Any]]:
        """Per stage: its rows and its timing. From files, so that skipped ones count."""
        rows = []
        for name, version in self.made.items():
            path = version.path / "timing.json"
            timing = json.loads(path.read_text()) if path.is_file() else {}
            rows.append(
                {"stage": name, "rows": version.rows, "seconds": 0.0, "blocks": {}} | timing
            )
        return rows


def _left_out(version: Version) -> Iterator[tuple[int, str]]:
    """Rows of passages or questions that a version was made without, and how each ended its
    process."""
    for block in version.blocks:
        if block.left_out:
            rows = _rows_of(version, block)
            yield from ((rows[place], how) for place, how in block.left_out)


def _rows_of(version: Version, block: Block) -> Sequence[int]:
    """What a block's rows are about: the questions that a run names, or else rows as they count."""
    if artifacts.TABLE in block.files:
        table = version.table(block.number, ["query"])
        if table.column_names:
            queries: list[int] = table["query"].to_pylist()
            return queries
    return range(block.first_row, block.first_row + block.rows)


def _write_timing(draft: Draft, seconds: float) -> None:
    """Seconds (of several starts, added up), blocks per worker, and what a block took: shortest,
    median, longest. Beside the manifest, not in it: times never repeat."""
    path = draft.path / "timing.json"
    before: dict[str, Any] = artifacts.read_json(path) if path.is_file() else {}
    timing: dict[str, Any] = {"seconds": round(before.get("seconds", 0.0) + seconds, 3)}
    about = [receipt.get("about") for receipt in draft.receipts().values()]
    mine = [a for a in about if a]  # An adopted block says nothing.
    timing["blocks"] = dict(Counter[str](a["worker"] for a in mine))
    if each := [a["seconds"] for a in mine]:
        timing["block_seconds"] = [min(each), round(statistics.median(each), 3), max(each)]
    artifacts.write_json(path, timing)


def _sum_facts(draft: Draft) -> dict[str, Any]:
    """Counts of all blocks, added up."""
    total = Counter[str]()
    for receipt in draft.receipts().values():
        facts = receipt["facts"]
        total.update({n: v for n, v in facts.items() if isinstance(v, int)})
        total.update({"quarantined": len(facts["quarantined"])} if "quarantined" in facts else {})
    return dict(sorted(total.items()))


@contextmanager
def followed(log: Path, update: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call `update` with the last line of a growing JSON-lines file, twice a second; on object
    storage as often as the file is sent there.

    Training runs in other processes; its log is the one channel that also survives them.
    """
    pause = storage.SECONDS if storage.mirrored(log) else 0.5

    def look() -> None:
        with suppress(UserError):  # A store that does not answer: training will say so.
            if line := _last_line(log):
                update(line)

    try:
        with meanwhile(look, pause):
            yield
    finally:
        look()


def _last_line(log: Path) -> dict[str, Any]:
    # What follows the last newline is half written.
    lines = storage.tail(log, 4096).split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            record: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "loss" in record:
            return record
    return {}
