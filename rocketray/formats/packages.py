"""The quickstart corpus: the documentation of the Python packages installed here.

The first prose sentence of a docstring is the question, the rest the passage, the title its public
name (`torch.nn.functional.pad`); docstrings of one line are the unlabelled questions. Source is
read with `ast`, nothing is imported, so no package's code runs and none must work.

A public name is the shortest path under which a package offers a thing: `numpy.pad`, though its
source lies in `numpy/lib/_arraypad_impl.py`. `Reader` finds it by following imports. Docstrings
that C code gets at run time (`add_docstr`, `add_newdoc`) are read where they are attached.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from rocketray.errors import UserError
from rocketray.formats.generated import Row, write_jsonl, write_qrels
from rocketray.formats.sources import hash64

PACKAGES = ("torch", "numpy", "pandas", "ray", "transformers", "pyarrow")
"""What rocketray itself needs, and so what is installed wherever it runs; a fixed list, so that one
more package of a user's neither changes the corpus nor costs time."""
SKIPPED = re.compile(
    r"(^|\.)(tests?|testing|conftest|thirdparty_files|_vendor\w*|_pytest|benchmarks?|rllib"
    r"|dashboard|generated|\w+_pb2(_grpc)?"
    # Near copies of each other, 2,500 files of them, filled in by decorators at run time.
    r"|transformers\.models)(\.|$)"
)
FAVOURITES = frozenset(
    [
        "torch",
        "torch.Tensor",
        "torch.nn",
        "torch.nn.functional",
        "torch.nn.utils",
        "torch.nn.utils.rnn",
        "torch.nn.init",
        "torch.optim",
        "torch.linalg",
        "torch.utils.data",
        "numpy",
        "numpy.linalg",
        "numpy.random",
        "numpy.char",
        "pandas",
        "pandas.DataFrame",
        "pandas.Series",
        "pandas.Index",
        "ray",
        "ray.data",
        "ray.data.Dataset",
        "ray.train",
        "ray.tune",
    ]
)
"""What people know: their members come before everything else when the corpus is limited."""
SHOWN = frozenset(
    [
        "torch.nn.functional.pad",
        "torch.nn.utils.rnn.pad_sequence",
        "torch.nn.ConstantPad1d",
        "numpy.pad",
        "torch.nn.utils.rnn.pad_packed_sequence",
        "torch.nn.ZeroPad2d",
        "torch.cat",
        "torch.reshape",
        "numpy.concatenate",
        "pandas.merge",
        "pandas.DataFrame.merge",
        "pandas.DataFrame.dropna",
    ]
)
"""What the documentation asks for; always kept."""
SHORTEST_PASSAGE = 80
WORDS = range(2, 41)
"""How many words make a question."""

PROMPT = re.compile(r"^(>>>|\.\.\.|\$ |```)")
UNDERLINE = re.compile(r"^\s*[-=~^*]{3,}\s*$")
FIELD = re.compile(r"^(:\w+|@\w+|\w+\s*:$|\w+ : |[-*] |\d+\. |\|)")
POINTER = re.compile(
    r"^(see |alias |refer to |same as |deprecated|in-place version|out-of-place)", re.I
)
ROLE = re.compile(r":[\w:+]+:`~?!?([^`<]*?)(?:\s*<[^`>]*>)?`")
QUOTED = re.compile(r"``?([^`\n]+)``?")
PLACEHOLDER = re.compile(r"^[ \t]*\{\w+\}[ \t]*\n?", re.M)
SENTENCE = re.compile(r"^(.*?(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)(?<! cf)[.!?])(?=\s|$)", re.S)
MATH = re.compile(r"[\\{}$]|:math:|\.\.|>>>|\|")


# ------------------------------------------------------------------------------------- reading code

Definition = tuple[str, str]
"""Where a thing is written: module and name in it."""


@dataclass
class Module:
    """What one source file says, as far as names and docstrings go."""

    docs: dict[str, str] = field(default_factory=dict)
    """Functions and classes written here; "" where one has no docstring."""
    methods: dict[str, dict[str, str]] = field(default_factory=dict)
    """Class -> public method -> docstring."""
    bases: dict[str, list[str]] = field(default_factory=dict)
    imports: dict[str, Definition] = field(default_factory=dict)
    """Name here -> module and name there."""
    stars: list[str] = field(default_factory=list)
    """Modules of which everything is imported."""
    exports: list[str] | None = None
    """`__all__`, None when absent or computed."""
    is_package: bool = False

    def offered(self) -> Iterable[str]:
        """Names a user may import from here. Without `__all__`, only a package's `__init__`
        re-exports what it imports; elsewhere an import is for the module's own use."""
        if self.exports is not None:
            return self.exports
        names = [*self.docs, *self.imports] if self.is_package else list(self.docs)
        return [name for name in names if not name.startswith("_")]


@dataclass
class Reader:
    """The source files of one package, parsed when somebody asks for them."""

    name: str
    files: dict[str, Path]
    """By module name."""
    attached: dict[Definition, str] = field(default_factory=dict)
    """Docstrings given from outside, by where the thing pretends to be written."""
    parsed: dict[str, Module] = field(default_factory=dict)

    def module(self, name: str) -> Module:
        """A module's content; an empty one where there is no readable source."""
        if name not in self.parsed:
            self.parsed[name] = self.read(name) if name in self.files else Module()
        return self.parsed[name]

    def read(self, name: str) -> Module:
        path = self.files[name]
        found = Module(is_package=path.name == "__init__.py")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's strings
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError, OSError):
            return found
        for node in statements(tree.body):
            self.take(node, name, found)
        return found

    def take(self, node: ast.stmt, name: str, found: Module) -> None:
        """One top-level statement."""
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if doc := docstring(node):
                    found.docs[node.name] = doc
                else:
                    found.docs.setdefault(node.name, "")
            case ast.ClassDef():
                found.docs[node.name] = docstring(node)
                found.methods[node.name] = methods(node)
                found.bases[node.name] = [
                    base.id for base in node.bases if isinstance(base, ast.Name)
                ]
            case ast.ImportFrom():
                self.take_import(node, name, found)
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                found.exports = names_in(node.value)
            case ast.AugAssign(target=ast.Name(id="__all__")):
                more = names_in(node.value)
                found.exports = found.exports + more if found.exports and more else None
            case ast.Assign(targets=[target]):
                take_assigned(target, node.value, found)
            case ast.Expr(value=ast.Call() as call):
                self.take_attached(call)

    def take_import(self, node: ast.ImportFrom, name: str, found: Module) -> None:
        """`from x import y`, x within this package."""
        source = node.module or ""
        if node.level:
            parts = name.split(".")
            parts = parts[: len(parts) - node.level + found.is_package]
            source = ".".join([*parts, source] if source else parts)
        if source.split(".")[0] != self.name:
            return
        for item in node.names:
            if item.name == "*":
                found.stars.append(source)
            else:
                found.imports[item.asname or item.name] = (source, item.name)

    def take_attached(self, call: ast.Call) -> None:
        """`add_docstr(torch.abs, "...")` and `add_newdoc("numpy", "array", "...")`."""
        function = dotted(call.func).rpartition(".")[2]
        match call.args:
            case [target, text] if function.strip("_") == "add_docstr" and (doc := literal(text)):
                place, _, last = dotted(target).rpartition(".")
                self.attached[place, last] = doc
            case [ast.Constant(value=last), text] if function == "add_docstr_all":
                self.attached["torch.Tensor", str(last)] = literal(text) or ""
            case [ast.Constant(value=place), ast.Constant(value=last), text] if (
                function == "add_newdoc"
            ):
                self.take_newdoc(str(place), str(last), text)

    def take_newdoc(self, place: str, last: str, text: ast.expr) -> None:
        """numpy's way; a pair (attribute, text) documents an attribute of a class."""
        match text:
            case ast.Tuple(elts=[ast.Constant(value=attribute), inner]):
                self.attached[f"{place}.{last}", str(attribute)] = literal(inner) or ""
            case _:
                self.attached[place, last] = literal(text) or ""

    def resolve(self, module: str, name: str, depth: int = 0) -> Definition | None:
        """Where a name offered by a module is written; None outside this package or unknown."""
        if depth > 12:  # a cycle of star imports
            return None
        here = self.module(module)
        if name in here.docs or (module, name) in self.attached:
            return module, name
        if name in here.imports:
            source, original = here.imports[name]
            if (found := self.resolve(source, original, depth + 1)) or source == module:
                return found
        for star in here.stars:
            offered = self.module(star).exports
            hidden = name.startswith("_") if offered is None else name not in offered
            if not hidden and (found := self.resolve(star, name, depth + 1)):
                return found
        return None

    def offered(self, module: str, depth: int = 0) -> set[str]:
        """Names offered by a module, those behind its star imports included."""
        here = self.module(module)
        names = set(here.offered())
        if here.exports is None and here.is_package and depth < 6:
            for star in here.stars:
                names |= self.offered(star, depth + 1)
        return {name for name in names if not name.startswith("_")}

    def documented(self) -> dict[str, str]:
        """Public name -> docstring, for every function, class and method of the package."""
        homes = self.homes()
        heirs = self.heirs(homes)
        written = {f"{module}.{name}" for module, name in homes}
        found: dict[str, str] = {}
        attributes: dict[str, dict[str, str]] = {}
        for (place, last), doc in self.attached.items():
            if place in written:
                attributes.setdefault(place, {})[last] = doc
            else:
                found[f"{place}.{last}"] = doc
        for (module, name), home in sorted(homes.items(), key=lambda item: shortest(item[1])):
            here = self.module(module)
            found.setdefault(home, here.docs.get(name) or self.attached.get((module, name), ""))
            members = attributes.get(f"{module}.{name}", {}) | here.methods.get(name, {})
            for member, doc in members.items():
                found.setdefault(f"{heirs.get((module, name), home)}.{member}", doc)
        top = self.name + "."
        return {
            name: doc
            for name, doc in found.items()
            if doc and name.startswith(top) and is_public(name)
        }

    def homes(self) -> dict[Definition, str]:
        """Each definition's public name: the shortest path that offers it."""
        found: dict[Definition, str] = {}
        for module in filter(is_public, self.files):
            for name in sorted(self.offered(module)):  # A set has an order of its own, each time.
                if (thing := self.resolve(module, name)) is None:
                    continue
                path = f"{module}.{name}"
                found[thing] = min(found.get(thing, path), path, key=shortest)
        return found

    def heirs(self, homes: dict[Definition, str]) -> dict[Definition, str]:
        """Base classes whose methods people know by a subclass: `NDFrame.head` is
        `pandas.DataFrame.head`. Only subclasses nearer to the top than the base itself count."""
        found: dict[Definition, str] = {}
        for (module, name), home in homes.items():
            bases = [(module, name)]
            for place, child in bases:  # grows while it is walked: bases of bases
                resolved = (self.resolve(place, b) for b in self.module(place).bases.get(child, []))
                bases += [base for base in resolved if base and base not in bases]
            for base in bases[1:]:
                best = found.get(base, homes.get(base, home))
                if home.count(".") < best.count(".") or base not in homes:
                    found[base] = min(best, home, key=shortest)
        return found


def shortest(name: str) -> tuple[int, str]:
    return name.count("."), name


def is_public(name: str) -> bool:
    """No part of the name is private or belongs to tests."""
    return not any(part.startswith("_") for part in name.split(".")) and not SKIPPED.search(name)


def statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those under `if`, `try` and `with` included (TYPE_CHECKING imports)."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from statements([*node.body, *getattr(node, "orelse", [])])


def methods(node: ast.ClassDef) -> dict[str, str]:
    """A class's public methods and properties with their docstrings."""
    found: dict[str, str] = {}
    for item in statements(node.body):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.name[0] != "_":
            found[item.name] = found.get(item.name) or docstring(item)
    return found


def take_assigned(target: ast.expr, value: ast.expr, found: Module) -> None:
    """`conv1d = _add_docstr(torch.conv1d, "...")` and `pad.__doc__ = "..."`."""
    match target, value:
        case ast.Name(id=name), ast.Call(args=[_, text]) if dotted(value.func).endswith(
            "add_docstr"
        ):
            found.docs[name] = literal(text) or ""
        case ast.Attribute(value=ast.Name(id=name), attr="__doc__"), _ if name in found.docs:
            found.docs[name] = literal(value) or found.docs[name]


def docstring(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    return ast.get_docstring(node, clean=False) or ""


def dotted(node: ast.expr) -> str:
    """`torch.nn.functional` of an expression; "" of anything else."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=inner, attr=name):
            return f"{dotted(inner)}.{name}"
    return ""


def literal(node: ast.expr) -> str | None:
    """The text of a string expression, what is computed in it left out; None if it has none."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = [part for part in (literal(left), literal(right)) if part]
            return "".join(parts) or None
        case ast.Call(func=ast.Attribute(value=inner, attr="format")):
            return literal(inner)
        case ast.Call(args=[inner, *_]):  # textwrap.dedent("...")
            return literal(inner)
        case ast.JoinedStr(values=values):
            return "".join(filter(None, map(literal, values))) or None
    return None


def names_in(node: ast.expr) -> list[str] | None:
    """The strings of a list, None when it is computed."""
    match node:
        case ast.List(elts=items) | ast.Tuple(elts=items):
            names = [literal(item) for item in items]
            return [name for name in names if name]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            first, second = names_in(left), names_in(right)
            return None if first is None or second is None else first + second
    return None


def reader(name: str) -> Reader | None:
    """A package's files; None where it is not installed."""
    spec = find_spec(name)  # of a top-level package: imports nothing
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(spec.submodule_search_locations[0])
    files = {}
    for path in sorted(root.rglob("*.py")):
        module = ".".join([name, *path.relative_to(root).with_suffix("").parts])
        module = module.removesuffix(".__init__")
        if not SKIPPED.search(module):
            files[module] = path
    found = Reader(name, files)
    for module in files:
        if module.endswith(("_docs", "_add_newdocs", "_add_newdocs_scalars")):
            found.module(module)
    return found


# ------------------------------------------------------------------------------ reading docstrings


def split(doc: str) -> tuple[str, str]:
    """(question, rest) of a docstring; the question is "" where the first prose makes none."""
    lines = plain(inspect.cleandoc(speakable(doc))).split("\n")
    head, signature = prose_starts(lines)
    end = head
    while end < len(lines) and is_prose(lines, end):
        end += 1
    paragraph = " ".join(" ".join(lines[head:end]).split())
    sentence = found[1] if (found := SENTENCE.match(paragraph)) else paragraph
    after = paragraph[len(sentence) :].strip()
    rest = "\n".join([signature, after, *lines[end:]]).strip()
    rest = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", rest))
    if not is_question(sentence):
        return "", "\n".join(lines).strip()
    return sentence, rest if after or any(map(str.strip, lines[end:])) else ""


def speakable(doc: str) -> str:
    """Without NUL and lone surrogates, which docstrings about characters hold and no file may."""
    return doc.replace("\0", "").encode("utf-8", "ignore").decode()


def plain(doc: str) -> str:
    """Without reStructuredText's marks and without templates' placeholders."""
    return QUOTED.sub(r"\1", ROLE.sub(r"\1", PLACEHOLDER.sub("", doc))).replace("**", "")


def prose_starts(lines: Sequence[str]) -> tuple[int, str]:
    """Index of the first line of prose, after headings and directives; signatures before it."""
    at, signature = 0, ""
    while at < len(lines):
        line = lines[at]
        if is_signature(line):
            depth, start = 0, at
            while at < len(lines) and (depth := depth + balance(lines[at])) > 0:
                at += 1
            at += 1
            signature += "\n".join(lines[start:at]) + "\n"
        elif line.startswith(".."):
            at += 1
            while at < len(lines) and (not lines[at].strip() or lines[at][0] == " "):
                at += 1
        elif not line.strip() or is_heading(lines, at) or UNDERLINE.match(line):
            at += 1
        else:
            break
    return at, signature


def is_signature(line: str) -> bool:
    """`pad(input, pad) -> Tensor`, perhaps going on in the next line."""
    return bool(re.match(r"^[\w.]+\s?\(", line)) and (
        line.rstrip().endswith(")") or " -> " in line or balance(line) > 0
    )


def balance(line: str) -> int:
    return line.count("(") - line.count(")")


def is_heading(lines: Sequence[str], at: int) -> bool:
    """`Parameters` above a row of dashes."""
    return at + 1 < len(lines) and bool(UNDERLINE.match(lines[at + 1]))


def is_prose(lines: Sequence[str], at: int) -> bool:
    """Whether a line goes on with a paragraph of prose."""
    line = lines[at]
    stops = not line.strip() or line[0].isspace() or line.startswith("..") or is_heading(lines, at)
    return not (stops or PROMPT.match(line) or FIELD.match(line) or UNDERLINE.match(line))


def is_question(sentence: str) -> bool:
    """Prose of a fitting length that says something by itself."""
    return (
        len(sentence.split()) in WORDS
        and sentence[:1].isalpha()
        and not POINTER.match(sentence)
        and not MATH.search(sentence)
        and not sentence.endswith((":", ","))
    )


def squeezed(text: str) -> str:
    return " ".join(text.lower().split())


# ------------------------------------------------------------------------------------- the data set


@dataclass
class Corpus:
    """What the docstrings give, by public name."""

    passages: dict[str, str] = field(default_factory=dict)
    questions: dict[str, str] = field(default_factory=dict)
    """Of some of the passages."""
    unlabelled: dict[str, str] = field(default_factory=dict)


def gather(docs: Iterable[tuple[str, str]]) -> Corpus:
    """Docstrings, the most important first, to questions and passages; the first of equals stays.

    Passages of one question stay all: they are positives nobody labelled, which is the point of
    denoising. Equal passages do not.
    """
    found = Corpus()
    asked: set[str] = set()
    seen: set[str] = set()
    for name, doc in docs:
        question, rest = split(doc)
        text, key = squeezed(rest), squeezed(question).rstrip(".!?")
        if len(rest) >= SHORTEST_PASSAGE:
            if text in seen:
                continue
            seen.add(text)
            found.passages[name] = rest
        if not question or key in asked or key in text:
            continue
        asked.add(key)
        (found.questions if name in found.passages else found.unlabelled)[name] = question
    return found


def write_packages(
    folder: Path,
    *,
    limit_passages: int | None = None,
    limit_train: int | None = None,
    limit_dev: int | None = None,
    limit_test: int | None = None,
    limit_unlabelled: int | None = None,
    seed: int = 0,
    packages: Sequence[str] = PACKAGES,
) -> dict[str, int]:
    """Write a BEIR folder of the installed packages' documentation; how many rows of what.

    None is no limit. What a limit keeps: `SHOWN`, members of `FAVOURITES`, then names with few
    dots; among equals by a hash of (seed, name). Splits (8 : 1 : 1) are drawn by hash too, so the
    same packages and seed give the same bytes. Unlabelled questions stand in queries.jsonl and in
    no qrels file. sources.json lists the packages' versions.
    """
    readers = [found for name in packages if (found := reader(name))]
    if not readers:
        raise UserError(f"none of the packages {', '.join(packages)} is installed to read from.")
    docs = {name: doc for found in readers for name, doc in found.documented().items()}
    rank = ranks(seed, packages)
    corpus = gather((name, docs[name]) for name in sorted(docs, key=rank))
    chosen = list(corpus.passages)[:limit_passages]
    limits = {"train": limit_train, "dev": limit_dev, "test": limit_test}
    splits: dict[str, list[str]] = {split: [] for split in limits}
    for name in (name for name in chosen if name in corpus.questions):
        splits[split_of(seed, name)].append(name)
    splits = {split: sorted(names[: limits[split]]) for split, names in splits.items()}
    free = sorted(list(corpus.unlabelled)[:limit_unlabelled])
    write_folder(folder, corpus, sorted(chosen), splits, free)
    write_jsonl(folder / "sources.json", [versions([found.name for found in readers])])
    return {
        "passages": len(chosen),
        **{split: len(names) for split, names in splits.items()},
        "unlabelled": len(free),
    }


def ranks(seed: int, packages: Sequence[str]) -> Callable[[str], tuple[int, int, int, str]]:
    """Sort key: what a limited corpus keeps first."""

    def rank(name: str) -> tuple[int, int, int, str]:
        depth = name.count(".")
        known = 1 if name.rpartition(".")[0] in FAVOURITES else 1 + depth
        tier = 0 if name in SHOWN else known
        return tier, packages.index(name.split(".")[0]) // 3, hash64(f"{seed}\t{name}"), name

    return rank


def split_of(seed: int, name: str) -> str:
    """train, dev or test, 8 : 1 : 1, by a hash that has nothing to do with the rank's."""
    return {8: "dev", 9: "test"}.get(hash64(f"split\t{seed}\t{name}") % 10, "train")


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions; a distribution may be named otherwise than its package."""
    names = metadata.packages_distributions()
    return {package: metadata.version(min(names.get(package, [package]))) for package in packages}


def write_folder(
    folder: Path, corpus: Corpus, chosen: list[str], splits: dict[str, list[str]], free: list[str]
) -> None:
    """The BEIR files."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    rows: list[Row] = [
        {"_id": name, "title": name, "text": corpus.passages[name]} for name in chosen
    ]
    asked = [(name, corpus.questions[name]) for names in splits.values() for name in names]
    asked += [(name, corpus.unlabelled[name]) for name in free]
    write_jsonl(folder / "corpus.jsonl", rows)
    write_jsonl(folder / "queries.jsonl", [{"_id": f"q:{name}", "text": q} for name, q in asked])
    for split_name, names in splits.items():
        pairs = [(f"q:{name}", name) for name in names]
        write_qrels(folder / "qrels" / f"{split_name}.tsv", pairs)
