"""What the documentation names is there, and the paper's recipes give a source for every number."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from rocketray import recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
SOURCE = re.compile(r"#.*(\[P|\[C|ours:)")


def tree(page: str) -> list[str]:
    """Paths in a page's file tree: the fenced block that begins with a folder's line."""
    (block,) = re.findall(r"```text\n(rocketray/ .*?)```", page, re.DOTALL)
    folders: list[str] = []
    paths = []
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name]
        paths.append("".join(folders))
    return paths


@pytest.mark.parametrize("path", tree(README))
def test_the_file_tree_is_real(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_file_tree_has_every_module() -> None:
    modules = [p.relative_to(ROOT).as_posix() for p in (ROOT / "rocketray").glob("*.py")]
    assert sorted(set(modules) - set(tree(README))) == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!http|#)([^)#]+)", text)
    assert [t for t in targets if not ((ROOT / page).parent / t).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_shipped_recipes(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"(?:rocketray run|jobs/run\.py) ([a-z]\w*)", text)
    assert set(named) <= set(recipe.names())


def test_the_readme_says_of_recipes_what_the_command_says() -> None:
    assert sorted(recipe.ABOUT) == recipe.names()
    for name, words in recipe.ABOUT.items():
        assert f"| `{name}` | {words} |" in README
        assert recipe.path_of(name).is_file()


@pytest.mark.parametrize("name", ["msmarco", "nq", "quickstart", "small", "tiny"])
def test_the_readme_names_every_recipe(name: str) -> None:
    assert name in recipe.names()
    assert f"`{name}`" in README


@pytest.mark.parametrize("page", PAGES)
def test_set_options_name_real_fields(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for override in re.findall(r"--set (\w+\.[\w.]+=[\w.-]+)", text):
        recipe.load("tiny", [override])


@pytest.mark.parametrize("name", ["msmarco", "nq"])
def test_every_value_of_a_paper_recipe_has_a_source(name: str) -> None:
    """On its own line, or (weights) in the comment above it."""
    lines = (ROOT / "rocketray" / "recipes" / f"{name}.yaml").read_text("utf-8").splitlines()
    valued = [
        (above, line)
        for above, line in zip(["", *lines], lines, strict=False)
        if re.match(r"\s*\w+: *[^#\s]", line) and not line.startswith("name:")
    ]
    assert len(valued) > 60
    without = [
        line
        for above, line in valued
        if not SOURCE.search(line) and not (line.lstrip().startswith("weights:") and "#" in above)
    ]
    assert without == []


@pytest.mark.parametrize("name", ["msmarco", "nq"])
def test_a_paper_recipe_leaves_no_training_number_to_defaults(name: str) -> None:
    """A default that changes later must not change what claims to be the paper's."""
    text = (ROOT / "rocketray" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    written = yaml.safe_load(text)["steps"]
    whole = recipe.load(name).steps.model_dump()
    absent = {
        f"{step}.{field}"
        for step, fields in whole.items()
        for field, value in fields.items()
        if value is not None and field not in written[step]
    }
    assert absent == set()


def _said_by_rocketray() -> list[str]:
    """Every text of the package, the values in it left out."""
    found = []
    for path in (ROOT / "rocketray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def _said_by_ray() -> list[str]:
    spec = find_spec("ray")
    assert spec
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    inside = [folder / "autoscaler", folder / "_private/authentication"]
    return [path.read_text(encoding="utf-8") for one in inside for path in one.rglob("*.py")]


def _troubles() -> dict[str, list[str]]:
    """Messages in the table of docs/operations.md, by who says them."""
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^## Trouble-shooting$(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    found: dict[str, list[str]] = {}
    for message, who in re.findall(r"^\| (`.*?) \| (\w+) \|", table, re.MULTILINE):
        found.setdefault(who, []).extend(re.findall(r"`(.*?)`", message))
    return found


def test_every_trouble_is_told_in_the_words_of_its_message() -> None:
    troubles = _troubles()
    assert set(troubles) == {"rocketray", "Ray"}
    assert len(troubles["rocketray"]) > 15
    for who, texts in [("rocketray", _said_by_rocketray()), ("Ray", _said_by_ray())]:
        unknown = [m for m in troubles[who] if not any(m in text for text in texts)]
        assert unknown == [], who
