"""What people name on a command line (data, a model, questions, a run), as versions of a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rocketray import artifacts, measures, pipeline, preparation, schema, storage
from rocketray import recipe as recipes
from rocketray.artifacts import RunFolder, Version
from rocketray.errors import UserError
from rocketray.formats import open_dataset
from rocketray.lineage import Lineage
from rocketray.lines import text_lines
from rocketray.model import cross_encoder, dual_encoder, published
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.weights import read_settings
from rocketray.preparation import Reading, Ready, Tokens
from rocketray.recipe import Recipe
from rocketray.stages.ingest import Ids, shown
from rocketray.stages.tokenise import Tokenise
from rocketray.tables import (
    PURPOSES,
    SPLITS,
    Tables,
    as_version,
    fetched,
    ids_of,
    read_questions,
    read_tables,
)
from rocketray.workflow import Spec, Workflow


def slug(name: str) -> str:
    """A name for stages, made of what a person named: letters, digits and underscores, and never
    one that the whole loop uses, so that a verb cannot replace what a run has made."""
    stem = Path(name).absolute().name
    if Path(name).is_file():
        stem = Path(stem.removesuffix(".gz")).stem
    word = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_") or "given"
    plain = recipes.first_round(word)
    taken = any(stage == plain or stage.startswith(f"{plain}_") for stage in pipeline.STAGES)
    return f"{word}_given" if taken else word


# ------------------------------------------------------------------------------------------ data


def tables(flow: Workflow, data: Path | None) -> Tables:
    """The tables of a data set, or those that the folder has."""
    if data is not None:
        dataset = open_dataset(fetched(data), train_required=False)
        for warning in dataset.warnings:
            flow.display.say(f"  note: {warning}")
        return read_tables(flow, dataset)
    folder, current = flow.folder, flow.folder.current()
    qrels = [name for name in ("hidden", *SPLITS) if f"qrels_{name}" in current]
    chosen = [name for name in PURPOSES if f"{name}_queries" in current]
    return Tables(
        folder.version("passages"),
        folder.version("queries"),
        {name: folder.version(f"qrels_{name}") for name in qrels},
        {name: folder.version(f"{name}_queries") for name in chosen},
    )


def check_data(out: Path, data: Path | None) -> None:
    """Before a folder is made for nothing.

    Raises:
        UserError: no data set is named and the folder has none; what is named is none; or the
            folder is a whole run's, whose models and row numbers go with its own tables.
    """
    folder = RunFolder(out)
    if storage.mirrored(folder.path):
        storage.check(folder.path)  # Within seconds, where a refresh is patient.
    folder.refresh()
    current = folder.current()
    if data is not None:
        open_dataset(fetched(data), train_required=False)
        if _is_whole_run(folder):
            raise UserError(
                f"{folder} is the folder of a whole run and has its tables: leave --data out. Other"
                " data want another folder, or `rocketray run` again."
            )
    elif "passages" not in current:
        raise UserError(
            f"{folder} holds no passages yet: add --data FOLDER (BEIR or MS MARCO layout) or --data"
            " FILE (.jsonl, .tsv or .txt: one passage a line)."
        )


# ---------------------------------------------------------------------------------------- models


def dual(flow: Workflow, name: str, overrides: Sequence[str] = ()) -> Version:
    """A dual encoder: a model of the folder, a folder saved by rocketray, or any encoder.

    Raises:
        UserError: there is none of that name, or settings that do not go with it.
    """

    def others() -> Version:
        source = preparation.weights_of(flow, name)
        said = published.dual_options(source)
        told = _options("dual", said, name, overrides).model.dual
        return preparation.initial_dual(flow, told, slug(name))

    return _model(flow, name, dual_encoder.KIND, overrides, others)


def cross(flow: Workflow, name: str, overrides: Sequence[str] = ()) -> Version:
    """A cross-encoder, likewise; one that others published must have a trained head.

    Raises:
        UserError: there is none of that name, it has no head, or settings that do not go with it.
    """

    def others() -> Version:
        source = preparation.weights_of(flow, name)
        said = published.cross_options(source)
        length = _options("cross", said, name, overrides).model.cross.length
        identity = preparation.from_weights(flow, name, {"length": length})

        def make(folder: Path) -> dict[str, Any]:
            model = CrossEncoder.trained(source, length=length)
            artifacts.publish_folder(model.save, folder / "model")
            return {}

        return flow.files(slug(name), identity, [], make)

    return _model(flow, name, cross_encoder.KIND, overrides, others)


def _model(
    flow: Workflow, name: str, kind: str, overrides: Sequence[str], others: Callable[[], Version]
) -> Version:
    """The folder's own, or a copy of one saved by rocketray, or what `others` makes of it."""
    own = _own(flow.folder, name)
    saved = artifacts.brought(own.path / "model") if own else Path(name)
    if not (saved / "rocketray.json").is_file():
        try:
            return others()
        except UserError as error:
            raise UserError(f"{error}{_known_models(flow.folder, kind)}") from error
    read_settings(saved, kind)
    if given := [override for override in overrides if override.startswith("model.")]:
        raise UserError(
            f"--set {given[0]}: {name} was saved with its settings, and its vectors would be"
            " others. Leave it out."
        )
    encoding = [override for override in overrides if override.startswith("encode.")]
    if own and encoding and _is_whole_run(flow.folder):
        raise UserError(
            f"--set {encoding[0]}: {own.name} is the run's own, and `rocketray search` would take"
            " the embeddings that this makes for the run's. Leave it out, or name"
            f" {storage.shown(saved)} and another --out."
        )
    return own or _copied(flow, saved)


def _is_whole_run(folder: RunFolder) -> bool:
    return "initial" in folder.current()


def _own(folder: RunFolder, name: str) -> Version | None:
    """A model of this folder: by its stage's name, or by the path of its copy in models/."""
    path = storage.locate(name).absolute()
    stage = path.name if path.parent == folder.path / "models" else name
    if stage not in folder.current():
        return None
    version = folder.version(stage)
    return version if "model/rocketray.json" in version.manifest["sha256"] else None


def _known_models(folder: RunFolder, kind: str) -> str:
    known = [
        name
        for name in folder.current()
        if (own := _own(folder, name)) and preparation.model_settings(own)["kind"] == kind
    ]
    return f" {folder} has: {', '.join(known)}." if known else ""


def _copied(flow: Workflow, source: Path) -> Version:
    """A model that rocketray saved elsewhere, file by file as it is."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    hashes = {path.relative_to(source).as_posix(): artifacts.file_sha256(path) for path in files}

    def make(folder: Path) -> dict[str, Any]:
        artifacts.copy_tree(source, folder / "model")
        return {}

    identity = {"code": 1, "recipe": {}, "inputs": {"model": artifacts.fingerprint(hashes)}}
    return flow.files(slug(str(source)), identity, [], make)


def _options(kind: str, said: Mapping[str, Any], name: str, overrides: Sequence[str]) -> Recipe:
    """A recipe whose `model` is as the model's folder says, and then as the person says."""
    mine = [override for override in overrides if override.startswith(f"model.{kind}.")]
    weights = f"model.{kind}.weights={json.dumps(name)}"  # JSON is YAML.
    return recipes.load(None, [f"model.{kind}={json.dumps(dict(said))}", *mine, weights])


# ---------------------------------------------------------------------------------------- tokens


def ready(flow: Workflow, tables: Tables, model: Version) -> Ready:
    """What the pipeline's functions need for one model: it stands for both, since each of them
    reads the half it is about."""
    sides = zip(("query", "passage"), (tables.queries, tables.passages), strict=True)
    readings = preparation.readings(model)
    found: list[Version | Spec] = []
    for reading, (side, table) in zip(readings, sides, strict=True):
        unit = "queries" if side == "query" else "passages"
        origin = table.name.removesuffix(unit).removesuffix("texts")  # "log_" of a file's questions
        name = f"{model.name}_{origin}{side}_tokens"
        have = _tokens(flow.folder, table, reading, name)
        found.append(have or reading.spec(name, table, unit))
    missing = [spec for spec in found if isinstance(spec, Spec)]
    made = iter(flow.bulk(*missing) if missing else ())
    queries, passages = (next(made) if isinstance(each, Spec) else each for each in found)
    tokens = Tokens(queries, passages)
    return Ready(tables, model, model, tokens, tokens)


def _tokens(folder: RunFolder, table: Version, reading: Reading, own: str) -> Version | None:
    """A store of this table that the model can read: the same ids, not fewer, and stored as they
    are now. Of several `own`, or else that of the shortest texts: another model's store, made
    since, must not take the place of the one that this model's embeddings were made from."""
    found: list[tuple[bool, int, Version]] = []
    for name in folder.current():
        if not name.endswith("_tokens"):
            continue
        version = folder.version(name)
        identity = version.manifest["identity"]
        told = dict(identity["recipe"])
        kind = identity["code"], told.pop("tokenizer_files")
        alike = kind == (Tokenise.code, reading.fingerprint)
        limit = told.pop("limit")
        enough = limit >= reading.limit
        if (
            alike
            and enough
            and told == reading.spaces
            and identity["inputs"]["table"] == table.digest
        ):
            found.append((name != own, limit, version))
    return min(found, key=lambda each: each[:2])[2] if found else None


# ------------------------------------------------------------------------------------- questions


@dataclass(frozen=True)
class Questions:
    """Some questions: their table, and which rows of it (None: whichever a run names)."""

    name: str
    texts: Version
    rows: Version | None = None

    def are_of(self, tables: Tables) -> bool:
        """They belong to the data set, whose judgements then speak of them."""
        return self.texts.digest == tables.queries.digest


def questions(flow: Workflow, tables: Tables, which: str | None) -> Questions:
    """A split of the data set, a file, or the name of a file that was read before.

    Raises:
        UserError: there are none of that name.
    """
    which = which or next((name for name in ("test", "dev") if name in tables.chosen), "test")
    if which in tables.chosen:
        return Questions(which, tables.queries, tables.chosen[which])
    current = flow.folder.current()
    name = slug(which)
    if Path(which).is_file():
        texts = read_questions(flow, f"{name}_texts", Path(which))
    elif f"{which}_texts" in current:
        name, texts = which, flow.folder.version(f"{which}_texts")
    else:
        files = [n.removesuffix("_texts") for n in current if n.endswith("_texts")]
        known = ", ".join([*tables.chosen, *files]) or "none"
        raise UserError(
            f"--queries {which!r}: no such file, and no such questions here (there are: {known})."
            " Name a file of questions: .jsonl, .tsv or .txt."
        )
    rows = pa.table({"query": pa.array(range(texts.rows), pa.int64())})
    size = flow.recipe.blocks.queries
    return Questions(name, texts, as_version(flow, f"{name}_queries", rows, size))


def judgements(flow: Workflow, tables: Tables, asked: Questions) -> pa.Table | None:
    """QRELS of all splits, None where nobody judged these questions. Hidden labels stay hidden."""
    if not asked.are_of(tables):
        return None
    splits = [tables.qrels[name].read() for name in SPLITS if name in tables.qrels]
    return pa.concat_tables(splits) if splits else None


# ------------------------------------------------------------------------------------------ runs


def run(flow: Workflow, tables: Tables, name: str, which: str | None) -> tuple[Version, Questions]:
    """A run, and whose questions it answers: a TREC file, or a run of this folder by its name.

    Args:
        which: of a file, the questions it is about, and others in it are left out; None: the data
            set's.

    Raises:
        UserError: there is none, it names what the tables do not have, or `which` is told of a run
            of this folder, which knows whose questions it answers.
    """
    if Path(name).is_file():
        everything = Questions("", tables.queries)
        asked = questions(flow, tables, which) if which else everything
        return _foreign(flow, tables, Path(name), asked), asked
    folder = flow.folder
    if name not in folder.current() or not _is_run(folder.version(name)):
        known = [stage for stage in folder.current() if _is_run(folder.version(stage))]
        raise UserError(
            f"--run {name!r}: no such file, and no such run in {folder} (there are:"
            f" {', '.join(known) or 'none; rocketray retrieve makes one'})."
        )
    if which:
        raise UserError(
            f"--queries {which!r} goes with a TREC file; {name} is a run of {folder} with questions"
            " of its own. Leave it out."
        )
    version = folder.version(name)
    return version, _asked(folder, tables, version)


def _is_run(version: Version) -> bool:
    """Its table begins as RUN does; scored runs and verdicts are runs too."""
    if not version.blocks or artifacts.TABLE not in version.blocks[0].files:
        return False
    version.fetch(artifacts.TABLE, blocks=[0])
    columns: list[str] = pq.read_schema(version.blocks[0].files[artifacts.TABLE]).names
    return columns[:3] == list(schema.RUN.names)


def _asked(folder: RunFolder, tables: Tables, run: Version) -> Questions:
    """Whose questions a run answers: the table of texts that went into it.

    Raises:
        UserError: the tables have changed since; row numbers would name other rows.
    """
    # Models come from tables, too: those that they learned from, whoever was asked afterwards.
    behind = Lineage(folder.stages).behind([run.path.name], but=("model", "cross"))
    texts = [folder.version(name) for name in folder.current() if name.endswith("_texts")]
    found = [table for table in (tables.queries, *texts) if table.digest in behind]
    if not found or tables.passages.digest not in behind:
        raise UserError(
            f"--run {run.name}: it was made from other tables than {folder.path} has now. Retrieve"
            " again."
        )
    return Questions(found[0].name.removesuffix("_texts"), found[0])


def _foreign(flow: Workflow, tables: Tables, path: Path, asked: Questions) -> Version:
    """A TREC file as a version: ids become row numbers, order is by score, then row number."""
    size = flow.recipe.blocks.queries
    identity = {
        "code": 1,
        "recipe": {"rows": size},
        "inputs": {
            "file": artifacts.file_sha256(path),
            "queries": asked.texts.digest,
            "passages": tables.passages.digest,
            **({"rows": asked.rows.digest} if asked.rows else {}),
        },
    }

    def make() -> list[artifacts.Parts]:
        table = read_run(path, ids_of(asked.texts, "qid"), ids_of(tables.passages, "pid"))
        if asked.rows:
            mine = np.isin(table["query"].to_numpy(), asked.rows.read()["query"].to_numpy())
            table = table.filter(pa.array(mine))
        if not len(table):
            raise UserError(f"{path} holds none of the {asked.name} questions.")
        return [{artifacts.TABLE: table.slice(at, size)} for at in range(0, len(table), size)]

    return flow.small(f"{slug(str(path))}_trec", identity, make)


def read_run(path: Path, qids: Ids, pids: Ids) -> pa.Table:
    """A TREC run file -> RUN.

    Raises:
        UserError: a broken line, or ids that the tables do not have: the first one's line and
            value, and how many lines there are.
    """
    hits = measures.read_run(path)
    if not hits:
        raise UserError(f"{path}: the file holds no hit.")
    queries = qids.rows(list(hits))
    sizes = [len(found.pids) for found in hits.values()]
    passages = pids.rows([pid for found in hits.values() for pid in found.pids])
    if queries.min() < 0 or passages.min() < 0:
        raise UserError(_unknown(path, _names(hits, queries), _names(_pids(hits), passages)))
    rows = []
    lists = np.split(passages, np.cumsum(sizes)[:-1])
    for query, row, found in zip(queries.tolist(), lists, hits.values(), strict=True):
        order = np.lexsort((row, -found.scores))
        rows.append((query, row[order], found.scores[order]))
    rows.sort(key=lambda row: row[0])
    columns = dict(zip(schema.RUN.names, zip(*rows, strict=True), strict=True))
    return pa.table({name: list(column) for name, column in columns.items()}, schema=schema.RUN)


def _pids(hits: Mapping[str, measures.Hits]) -> Iterable[str]:
    return (pid for found in hits.values() for pid in found.pids)


def _names(ids: Iterable[str], rows: np.ndarray) -> set[str]:
    """Those that have no row."""
    return {name for name, row in zip(ids, rows.tolist(), strict=True) if row < 0}


def _unknown(path: Path, qids: set[str], pids: set[str]) -> str:
    """The first line that names what is not there. Read again: it happens once."""
    bad = []
    for number, line in text_lines(path):
        qid, pid, _ = measures.run_cells(path, number, line)
        if qid in qids or pid in pids:
            bad.append((number, f"query {shown(qid)}" if qid in qids else f"passage {shown(pid)}"))
    number, what = bad[0]
    return (
        f"{path}, line {number}: {what} is in no table here; {len(bad):,} lines name what does not"
        f" exist ({len(qids):,} queries, {len(pids):,} passages). Is it a run over another corpus?"
        " Questions of a file of their own: add --queries FILE."
    )
