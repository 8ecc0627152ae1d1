"""From people's files to tables: the first stages, and which questions each purpose takes.

Everything is validated here, before anything is computed; ids become row numbers.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from rocketray import artifacts, schema, storage
from rocketray.artifacts import Version
from rocketray.errors import UserError
from rocketray.formats import Cut, Dataset, Source, cut, open_dataset, text_source
from rocketray.formats.generated import write_generated
from rocketray.formats.packages import write_packages
from rocketray.recipe import Recipe
from rocketray.stages import ingest
from rocketray.workflow import Spec, Workflow

SPLITS = ("train", "dev", "test")
PURPOSES = (*SPLITS, "unlabelled")
TRUTHS = (*SPLITS, "hidden", "hidden_positives")
STAGES = frozenset(
    {
        "passages",
        "queries",
        *(f"qrels_{name}" for name in TRUTHS),
        *(f"{name}_queries" for name in PURPOSES),
    }
)
"""All that a data set may leave."""
SPACED = (
    "TREC files with them are read by rocketray, but not by trec_eval and the like. Rename them."
)
NOTHING_TO_ADD = (
    "Step 4 has nothing to add: bring questions with --unlabelled FILE, or try --hide-labels 0.5."
)


@dataclass(frozen=True)
class Tables:
    """What ingest leaves: the tables everything else reads by row number."""

    passages: Version
    queries: Version
    qrels: Mapping[str, Version]
    """`train` (visible labels), `hidden` and `hidden_positives` (truth kept from training), and
    `dev`, `test` where the data have them."""
    chosen: Mapping[str, Version]
    """Query rows by purpose: `train`, `dev`, `test`, `unlabelled`. Absent where empty."""


def locate(recipe: Recipe, folder: Path, data: Path | None, unlabelled: Path | None) -> Dataset:
    """The files to read; made first where the recipe brings its own data."""
    if data is None:
        if recipe.data.source is None:
            raise UserError(
                f"Recipe {recipe.name!r} brings no data: add --data FOLDER (BEIR layout:"
                " corpus.jsonl, queries.jsonl, qrels/train.tsv; or MS MARCO TSV files)."
            )
        data = make_data(recipe, folder / "data")
    if unlabelled:
        unlabelled = storage.locate(unlabelled)
        storage.fetch(unlabelled)
    return open_dataset(fetched(data), unlabelled)


def fetched(data: Path) -> Path:
    """A data set on this machine, whole, where it is on object storage."""
    data = storage.locate(data)
    storage.sync(data, below=True)
    if storage.mirrored(data) and not data.is_dir():
        raise UserError(f"{storage.shown(data)}: nothing there.")
    return data


def make_data(recipe: Recipe, folder: Path) -> Path:
    """Write the recipe's own data set, once: the same recipe and machine give the same bytes."""
    size = recipe.data.queries
    storage.sync(folder, below=True)
    mark = folder / ".made.json"
    told = recipe.data.model_dump(mode="json", exclude={"seed"})
    wanted = {"data": told, "seed": recipe.data_seed}
    if mark.is_file() and artifacts.read_json(mark) == wanted:
        return folder
    storage.remove(folder)
    if recipe.data.source == "generated":
        write_generated(folder, passages=recipe.data.passages, queries=size, seed=recipe.data_seed)
    else:
        write_packages(
            folder,
            limit_passages=recipe.data.passages,
            limit_train=size,
            limit_dev=max(50, size // 10),
            limit_test=max(50, size // 5),
            limit_unlabelled=size,
            seed=recipe.data_seed,
        )
    storage.push(folder)
    artifacts.write_json(mark, wanted)
    return folder


def read_tables(flow: Workflow, dataset: Dataset) -> Tables:
    """Validate everything, before anything is computed.

    The tables become current together, once all are valid: row numbers in one speak of the others,
    and what was refused must not be found by the next verb.
    """
    with flow.together(STAGES), _scratch(flow) as scratch:
        passages, queries, cuts = _ingest_rows(flow, dataset, scratch)
        pids, qids = ids_of(passages, "pid"), ids_of(queries, "qid")
        ingest.raise_duplicates(pids, cuts["passages"], "passage")
        ingest.raise_duplicates(qids, cuts["queries"], "query")
        qrels = _ingest_qrels(flow, dataset, qids, pids, queries)
        chosen = _choose(flow, queries, qrels)
    return Tables(passages, queries, qrels, chosen)


def _ingest_rows(
    flow: Workflow, dataset: Dataset, scratch: Path
) -> tuple[Version, Version, dict[str, list[Cut]]]:
    blocks = flow.recipe.blocks
    cuts = {
        "passages": _cuts(dataset.corpus, blocks.passages, scratch),
        "queries": _cuts([*dataset.queries, *dataset.unlabelled], blocks.queries, scratch),
    }
    named = ingest.named_queries(dataset.qrels.values())
    labelled = scratch / "labelled.npy"  # A path: what Ray carries to an actor must stay small.
    np.save(labelled, named)
    storage.push(scratch)
    specs = [_ingest_spec("passages", "passages", cuts["passages"])]
    if cuts["queries"]:
        specs.append(_ingest_spec("queries", "queries", cuts["queries"], named, labelled))
    made = flow.bulk(*specs)
    _raise_problems(made)
    check_titles(dataset.corpus[0], made[0].facts.get("titled"))
    for version in made:
        if spaced := version.facts.get("spaced_ids"):
            flow.display.say(f"  note: {version.name}: {spaced:,} ids with a space. {SPACED}")
    if len(made) == 1:  # A corpus alone.
        made.append(as_version(flow, "queries", schema.QUERIES.empty_table()))
    passages, queries = made
    return passages, queries, cuts


def _ingest_spec(
    name: str, table: str, found: Sequence[Cut], named: np.ndarray | None = None,
    labelled: Path | None = None,
) -> Spec:  # fmt: skip
    """Rows of files -> one of the two tables. `labelled` is a file of `named`."""
    keys = [_cut_digest(cut, named) for cut in found]
    return Spec(
        name=name,
        stage=ingest.Ingest,
        settings={"table": table},
        given={"labelled": str(labelled) if labelled else None},
        also={"rows": [c.rows for c in found], "files": _digest(keys)},
        items=found,
        keys=keys,
        unit=table,
    )


def check_titles(corpus: Source, titled: int | None) -> None:
    """`titled`: passages that the file of titles names."""
    if corpus.titles and titled == 0:
        raise UserError(
            f"{corpus.titles}: no line names a passage of {corpus.path}. A line is pid, tab, title."
        )


def check_train(path: Path, qrels: pa.Table) -> None:
    if not schema.positives_of(qrels):
        raise UserError(f"{path} has no relevance above 0: nothing to learn from.")


def _raise_problems(made: Sequence[Version]) -> None:
    problems = [
        ingest.Problem(*problem)
        for version in made
        for block in version.blocks
        for problem in block.facts["problems_kept"]
    ]
    ingest.raise_problems(problems, sum(version.facts["problems"] for version in made))


def read_questions(flow: Workflow, name: str, path: Path) -> Version:
    """A file of questions as a table of its own, `name`; the data set's stays as it is."""
    source = text_source(path, "questions")
    with flow.together(), _scratch(flow) as scratch:
        cuts = _cuts([source], flow.recipe.blocks.queries, scratch)
        storage.push(scratch)
        made = flow.bulk(_ingest_spec(name, "queries", cuts))
        _raise_problems(made)
        ingest.raise_duplicates(ids_of(made[0], "qid"), cuts, "query")
    return made[0]


@contextmanager
def _scratch(flow: Workflow) -> Iterator[Path]:
    """A folder for what ingest needs and nobody after it. With a name of its own: what an earlier
    attempt left in a node's mirror must not be read for it."""
    folder = flow.folder.path / "scratch"
    mine = folder / uuid.uuid4().hex[:8]
    mine.mkdir(parents=True)
    try:
        yield mine
    finally:
        storage.remove(folder)


def _cuts(sources: Sequence[Source], rows: int, scratch: Path) -> list[Cut]:
    return [found for source in sources for found in cut(source, rows, scratch)]


def _cut_digest(found: Cut, named: np.ndarray | None) -> str:
    """What a block of a file holds: its bytes, how they are read, its titles where those have a
    file of their own, which queries are named."""
    with found.path.open("rb") as file:
        file.seek(found.offset)
        digest = hashlib.sha256(file.read(found.length))
    # Lines are named in problems; rows without an id are called after the file too.
    name = found.source.name if found.ids_optional else ""
    digest.update(f"\0{found.format}\0{name}:{found.first_line}".encode())
    for title in found.titled():  # Not the whole file: appended titles change no block of before.
        digest.update(title + b"\n")
    if named is not None:
        digest.update(np.ascontiguousarray(named).tobytes())
    return digest.hexdigest()


def _digest(keys: Sequence[str]) -> str:
    return artifacts.fingerprint(list(keys))


def ids_of(version: Version, column: str) -> ingest.Ids:
    """People's ids -> row numbers."""
    version.fetch("hashes")

    def read(rows: np.ndarray) -> list[str]:
        names: list[str] = version.take(rows, column)[column].to_pylist()
        return names

    def hashes(block: artifacts.Block) -> np.ndarray:
        if "hashes" in block.files:
            return version.array(block.number, "hashes")
        return schema.text_hashes(version.table(block.number)[column].to_pylist())

    return ingest.Ids(map(hashes, version.blocks), version.rows, read)


def _ingest_qrels(
    flow: Workflow, dataset: Dataset, qids: ingest.Ids, pids: ingest.Ids, queries: Version
) -> dict[str, Version]:
    """One version per split, and what is kept from training: `hidden`, `hidden_positives`."""
    read = {
        split: ingest.read_qrels(dataset.qrels[split], qids, pids)
        for split in SPLITS
        if split in dataset.qrels
    }
    train = read.get("train")
    if train is not None:
        check_train(dataset.qrels["train"], train)
    share = flow.recipe.data.hide_labels
    if train is not None and share:
        names = queries.read(["qid"])["qid"].to_pylist()
        read["train"], read["hidden"] = ingest.hide_labels(
            train, names, share, flow.recipe.data_seed
        )
    share = flow.recipe.data.hide_positives
    if train is not None and share:
        names, pnames = (
            ids.names(read["train"][column].to_numpy())
            for ids, column in ((qids, "query"), (pids, "passage"))
        )
        read["train"], read["hidden_positives"] = ingest.hide_positives(
            read["train"], names, pnames, share, flow.recipe.data_seed
        )
    return {split: as_version(flow, f"qrels_{split}", table) for split, table in read.items()}


def as_version(
    flow: Workflow, name: str, table: pa.Table, rows: int | None = None,
    facts: Mapping[str, int] | None = None,
) -> Version:  # fmt: skip
    """A table this process has at hand, as a version: its identity is its content."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    size = rows or max(1, len(table))
    content = hashlib.sha256(sink.getvalue()).hexdigest()
    identity = {"rows": size, "content": content, **(facts or {})}
    # No rows are one empty block, so that the version still knows its columns.
    blocks = [table.slice(at, size) for at in range(0, max(1, len(table)), size)]
    return flow.small(name, identity, lambda: [{artifacts.TABLE: b} for b in blocks], facts)


def _choose(flow: Workflow, queries: Version, qrels: Mapping[str, Version]) -> dict[str, Version]:
    """Which queries each purpose takes, in blocks of their own."""
    recipe, seed = flow.recipe, flow.recipe.data_seed
    limits = {
        "train": recipe.data.labelled,
        "dev": recipe.evaluate.dev_queries,
        "test": recipe.evaluate.queries,
        "unlabelled": recipe.augment.queries,
    }
    whole = {split: _queries_of(qrels[split]) for split in SPLITS if split in qrels}
    if "test" not in whole and "dev" in whole:
        whole["test"] = whole["dev"]
    free = free_queries(queries, qrels)
    new = whole["unlabelled"] = new_questions(queries, free)
    rows = {name: schema.sample(found, limits[name], seed) for name, found in whole.items()}
    say_left_out(flow, whole, rows)
    size = recipe.blocks.queries
    facts = {"unlabelled": {"asked_before": len(free) - len(new)}}
    return {
        name: as_version(
            flow, f"{name}_queries", pa.table({"query": pa.array(found)}), size, facts.get(name)
        )
        for name, found in rows.items()
        if len(found)
    }


LIMITS = {
    "train": ("trains on", "labelled questions", "data.labelled"),
    "dev": ("chooses weights by", "dev questions", "evaluate.dev_queries"),
    "test": ("measures", "held-out questions", "evaluate.queries"),
    "unlabelled": ("augments with", "unlabelled questions", "augment.queries"),
}
"""What questions of a purpose do, what they are called, and the field that limits them."""


def say_left_out(
    flow: Workflow, whole: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]
) -> None:
    """Of which questions the recipe takes a part."""
    parts = [
        f"{verb} {len(rows[name]):,} of {len(whole[name]):,} {what} ({field})"
        for name, (verb, what, field) in LIMITS.items()
        if name in rows and len(rows[name]) < len(whole[name])
    ]
    if parts:
        flow.display.say(f"  note: {'; '.join(parts)}")


def free_queries(queries: Version, qrels: Mapping[str, Version]) -> np.ndarray:
    """Rows of the questions without labels, or with hidden ones; ascending."""
    labelled = queries.read(["labelled"])["labelled"].to_numpy(zero_copy_only=False)
    free = np.flatnonzero(~labelled)
    return np.union1d(free, _queries_of(qrels["hidden"])) if "hidden" in qrels else free


def new_questions(queries: Version, free: np.ndarray, asked: Version | None = None) -> np.ndarray:
    """Rows of the unlabelled questions but for those in whose words a question with labels asks, of
    any split: a pseudo label must say nothing of a test question, nor contradict a person. Of
    several that ask the same the first stays.

    Args:
        free: `free_queries`.
        asked: another table, whose questions are all unlabelled; None: those of `queries`.
    """
    if not asked and not len(free):
        return free
    words = _words(queries)
    with_labels = np.delete(words, free)
    if asked:
        free, words = np.arange(asked.rows), _words(asked)
    return first_of_words(words, free, with_labels)


def first_of_words(words: np.ndarray, free: np.ndarray, with_labels: np.ndarray) -> np.ndarray:
    """Of the rows `free` those whose words are not among `with_labels`, the first of each."""
    free = free[np.isin(words[free], with_labels, invert=True)]
    _, first = np.unique(words[free], return_index=True)
    return free[np.sort(first)]


def _words(queries: Version) -> np.ndarray:
    """Hashes of the questions' words, by row."""
    if not queries.rows:
        return schema.text_hashes([])
    queries.fetch("words")
    return np.concatenate([queries.array(block.number, "words") for block in queries.blocks])


def _queries_of(qrels: Version) -> np.ndarray:
    """Queries with at least one positive."""
    return np.array(sorted(schema.positives_of(qrels.read())), dtype=np.int64)
