"""Docstrings as a data set: how they are found, split and named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rocketray.errors import UserError
from rocketray.formats import open_dataset, packages
from rocketray.formats.packages import Reader, reader, split, write_packages

LONG = "Further words about the thing, so many of them that they make up a passage of their own."


# ------------------------------------------------------------------------------ reading docstrings


@pytest.mark.parametrize(
    ("doc", "question", "rest"),
    [
        (f"Pads a tensor. {LONG}", "Pads a tensor.", LONG),
        (f"Pads a\n    tensor.\n\n    {LONG}\n", "Pads a tensor.", LONG),
        (f"pad(x, n=1) -> Tensor\n\nPads a tensor.\n\n{LONG}", "Pads a tensor.",
         f"pad(x, n=1) -> Tensor\n\n{LONG}"),
        (f"pad(x,\n    n=1)\n\nPads a tensor.\n\n{LONG}", "Pads a tensor.",
         f"pad(x,\n    n=1)\n\n{LONG}"),
        (f".. deprecated:: 1.0\n   Not any more.\n\nPads a tensor.\n\n{LONG}", "Pads a tensor.",
         LONG),
        (f"Overview\n========\nPads a tensor.\n\n{LONG}", "Pads a tensor.", LONG),
        (f"Pads, e.g. a tensor, see :func:`torch.nn.pad`.\n\n{LONG}",
         "Pads, e.g. a tensor, see torch.nn.pad.", LONG),
        ("Pads a tensor.", "Pads a tensor.", ""),
        ("Pads a tensor", "Pads a tensor", ""),
        (f"See :func:`torch.abs`.\n\n{LONG}", "", f"See torch.abs.\n\n{LONG}"),
        (f"Pads.\n\n{LONG}", "", f"Pads.\n\n{LONG}"),
        (f">>> pad(x)\n\n{LONG}", "", f">>> pad(x)\n\n{LONG}"),
        ("Holds a \0 and a \ud800 both.", "Holds a and a both.", ""),
        ("", "", ""),
    ],
)  # fmt: skip
def test_split(doc: str, question: str, rest: str) -> None:
    assert split(doc) == (question, rest)


def test_equal_questions_and_passages() -> None:
    other = LONG.replace("thing", "other thing")
    found = packages.gather(
        [
            ("a.sum", f"Adds it up.\n\n{LONG}"),
            ("b.sum", f"Adds it up.\n\n{other}"),  # its question is taken, the passage stays
            ("c.sum", f"Adds it all up.\n\n{LONG}"),  # nothing new
            ("d.sum", f"Tells itself. {LONG} Tells itself again, tells itself."),  # gives it away
            ("e.one", "Stands in one line."),
        ]
    )
    assert list(found.passages) == ["a.sum", "b.sum", "d.sum"]
    assert found.questions == {"a.sum": "Adds it up."}
    assert found.unlabelled == {"e.one": "Stands in one line."}


# ------------------------------------------------------------------------------------ reading code

SOURCES = {
    "__init__.py": """
from typing import TYPE_CHECKING
from ._impl import pad, _hidden
from .deep import *
if TYPE_CHECKING:
    from .deep.leaf import Frame
""",
    "_impl.py": f'''
def pad(x):
    """Pads a tensor.

    {LONG}
    """
def _hidden():
    """Never mind this."""
def unexported():
    """Cannot be reached."""
''',
    "deep/__init__.py": """
from .leaf import starred, Frame
__all__ = ["starred"]
__all__ += ["Frame"]
""",
    "deep/leaf.py": '''
from .base import Base
def starred():
    """Comes through a star."""
class Frame(Base):
    """Holds some columns."""
    def head(self):
        """Gives the first rows."""
    def _secret(self):
        """Is a secret."""
    @property
    def size(self):
        """Counts all cells."""
def late(x): pass
late.__doc__ = """Is told later."""
twin = _add_docstr(torch.twin, "Is a twin " + "of something.")
''',
    "deep/base.py": '''
class Base:
    """Is the base of all."""
    def tail(self):
        """Gives the last rows."""
''',
    "_docs.py": '''
add_docstr(toy.fast, r"""fast({input}) -> Tensor

Is written in C.
""".format(input="x"))
add_newdoc("toy.deep.base", "Base", ("shape", """Tells the shape."""))
raise SystemExit("never runs")
''',
    "broken.py": "def broken(:\n",
    "tests/test_pad.py": '''def test_pad():\n    """Is a test, no documentation."""\n''',
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    for name, text in SOURCES.items():
        path = tmp_path / "site/toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = reader("toy")
    assert found is not None
    assert "toy" not in sys.modules
    return found


def test_public_names(toy: Reader) -> None:
    found = {name: " ".join(doc.split()) for name, doc in toy.documented().items()}
    assert found.pop("toy.pad").startswith("Pads a tensor.")
    assert found == {
        "toy.starred": "Comes through a star.",
        "toy.Frame": "Holds some columns.",
        "toy.Frame.head": "Gives the first rows.",
        "toy.Frame.size": "Counts all cells.",
        "toy.Frame.tail": "Gives the last rows.",
        "toy.Frame.shape": "Tells the shape.",
        "toy.deep.leaf.late": "Is told later.",
        "toy.deep.leaf.twin": "Is a twin of something.",
        "toy.deep.base.Base": "Is the base of all.",
        "toy.fast": "fast({input}) -> Tensor Is written in C.",
    }


def test_missing_packages(tmp_path: Path) -> None:
    assert reader("no_such_package_here") is None
    with pytest.raises(UserError, match="none of the packages no_such_package_here is installed"):
        write_packages(tmp_path, packages=["no_such_package_here"])


# -------------------------------------------------------------------------- this very environment


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    write_packages(
        folder,
        limit_passages=400,
        limit_train=250,
        limit_dev=20,
        limit_test=20,
        limit_unlabelled=100,
        packages=["numpy"],
    )
    return folder


def rows(path: Path) -> dict[str, dict[str, str]]:
    return {row["_id"]: row for row in map(json.loads, path.read_text().splitlines())}


def test_a_data_set_of_numpy(written: Path) -> None:
    assert list(json.loads((written / "sources.json").read_text())) == ["numpy"]
    found = open_dataset(written)
    corpus, queries = rows(found.corpus[0].path), rows(found.queries[0].path)
    assert len(corpus) == 400
    assert corpus["numpy.pad"]["title"] == "numpy.pad"
    assert "pad_width" in corpus["numpy.pad"]["text"]
    labelled = set()
    for split_name, size in (("train", 250), ("dev", 20), ("test", 20)):
        pairs = found.qrels[split_name].read_text().splitlines()[1:]
        assert 10 < len(pairs) <= size
        for qid, pid, _ in (line.split("\t") for line in pairs):
            labelled.add(qid)
            question = queries[qid]["text"].rstrip(".").lower()
            assert question not in " ".join(corpus[pid]["text"].lower().split())
    assert 50 < len(set(queries) - labelled) <= 100


def test_the_seed_of_pythons_hashes_changes_no_byte(tmp_path: Path) -> None:
    """A set is walked in another order in every process; pandas has the most to choose from."""
    code = (
        "import sys; from pathlib import Path; from rocketray.formats.packages import"
        " write_packages; write_packages(Path(sys.argv[1]), packages=['pandas'])"
    )
    folders = [tmp_path / seed for seed in ("1", "2")]
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            env={**os.environ, "PYTHONHASHSEED": folder.name},
        )
        for folder in folders
    ]
    assert [reader.wait() for reader in readers] == [0, 0]
    one, other = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in folders
    )
    assert len(one) == 6  # Passages, questions, qrels of three splits, versions.
    assert one == other


def test_padding_in_torch() -> None:
    """`how do I pad a tensor` must find something: torch hides these documents best."""
    found = reader("torch")
    assert found is not None
    docs = found.module("torch.nn.functional").docs
    assert "padding" in docs["pad"].lower()
    assert "Applies a 1D convolution" in docs["conv1d"]
    assert "Computes the absolute value" in found.attached["torch", "abs"]
    assert found.resolve("torch.nn", "ConstantPad1d") == (
        "torch.nn.modules.padding",
        "ConstantPad1d",
    )
