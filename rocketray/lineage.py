"""What was made from what: every manifest names its inputs by their content."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from rocketray.artifacts import Version


class Lineage:
    """The finished versions of a folder, and their inputs."""

    def __init__(self, stages: Path) -> None:
        self.folders: dict[str, list[str]] = {}
        """Digest -> the folders of that content (two stages may hold the same)."""
        self.inputs: dict[str, dict[str, str]] = {}
        """Folder -> digests of its inputs, by what they are to it."""
        for path in sorted(stages.glob("*/manifest.json")):
            manifest = Version.open(path.parent).manifest
            self.folders.setdefault(manifest["digest"], []).append(path.parent.name)
            inputs = manifest["identity"].get("inputs", {})
            self.inputs[path.parent.name] = {
                name: digest for name, digest in inputs.items() if isinstance(digest, str)
            }

    def behind(self, folders: Iterable[str], but: Collection[str] = ()) -> set[str]:
        """Digests of all that went into some versions, directly or not.

        Args:
            but: inputs that are not followed, such as the model that a run was made by.
        """
        found: set[str] = set()
        todo = list(folders)
        while todo:
            for name, digest in self.inputs[todo.pop()].items():
                if name not in but and digest not in found:
                    found.add(digest)
                    todo += self.folders.get(digest, ())
        return found
