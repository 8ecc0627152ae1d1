"""MS MARCO passage ranking, as TSV, and the names RocketQA's own data folder uses.

collection.tsv (pid, text), perhaps titles.tsv or para.title.txt (pid, title), queries.SPLIT.tsv
(qid, text), qrels.SPLIT.tsv; each also as .gz. No header lines.
"""

from __future__ import annotations

from pathlib import Path

from rocketray.errors import UserError
from rocketray.formats.sources import BadLine, Dataset, Record, Source, first_of, present

CORPUS = ("collection.tsv", "para.txt")
TITLES = ("titles.tsv", "para.title.txt")
QRELS = {
    # `dev.small` (6,980 queries) is what every paper calls dev, and a subset of dev.
    "train": ("qrels.train.tsv",),
    "dev": ("qrels.dev.small.tsv", "qrels.dev.tsv"),
    "test": ("qrels.test.tsv", "qrels.eval.tsv"),
}
QUERIES = {
    "train": ("queries.train.tsv", "train.query.txt", "queries.tsv"),
    "dev": ("queries.dev.small.tsv", "queries.dev.tsv", "dev.query.txt", "queries.tsv"),
    "test": ("queries.test.tsv", "queries.eval.tsv", "test.query.txt", "queries.tsv"),
}


def locate(data: Path, train_required: bool = True) -> Dataset | None:
    """The files of an MS MARCO folder, None when it is not one; a UserError when files lack."""
    corpus = first_of(data, CORPUS)
    if corpus is None:
        return None
    qrels = {split: path for split in QRELS if (path := first_of(data, QRELS[split]))}
    if train_required and "train" not in qrels:
        raise UserError(
            f"{data}: no training labels. Looked for {QRELS['train'][0]}, also as .gz; "
            f"found {present(data)}."
        )
    queries = {split: queries_of(data, split, path) for split, path in qrels.items()}
    return Dataset(
        "msmarco",
        [Source(corpus, "tsv", titles=first_of(data, TITLES))],
        # One file may serve several splits (queries.tsv); its rows are wanted once.
        [Source(path, "tsv") for path in dict.fromkeys(queries.values())],
        qrels,
        [warning(data, split) for split in QRELS if split not in qrels],
    )


def queries_of(data: Path, split: str, qrels: Path) -> Path:
    """The queries beside a qrels file: of the same name first, so that dev.small stays small."""
    twin = qrels.name.removesuffix(".gz").replace("qrels.", "queries.")
    path = first_of(data, (twin, *QUERIES[split]))
    if path is None:
        raise UserError(
            f"{data}: {qrels.name} has no queries. Looked for {', '.join(QUERIES[split])}, also "
            f"as .gz; found {present(data)}."
        )
    return path


def warning(data: Path, split: str) -> str:
    """Queries without labels are left out: training on test questions would be a leak."""
    path = first_of(data, QUERIES[split][:-1])
    unused = f"; {path.name} is not used" if path else ""
    return f"{data}: no {QRELS[split][0]}, so nothing is measured on {split}{unused}."


def parse(line: str) -> Record:
    """`id <tab> text`. A third column is refused: gluing it to the text would hide a mistake."""
    match line.split("\t"):
        case [key, text]:
            return {"id": key, "text": text}
        case cells:
            raise BadLine(f"{len(cells)} columns parted by tabs; expected 2: id and text.")
