"""What was made from what: every manifest names its inputs by their content."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rocketray.artifacts import Version


class Lineage:
    """The finished versions of a folder, and their inputs."""

    def __init__(self, stages: Path) -> None:
        self.folders: dict[str, list[str]] = {}
        """Digest -> the folders of that content (two stages may hold the same)."""
        self.inputs: dict[str, list[str]] = {}
        """Folder -> digests of its inputs."""
        for path in sorted(stages.glob("*/manifest.json")):
            manifest = Version.open(path.parent).manifest
            self.folders.setdefault(manifest["digest"], []).append(path.parent.name)
            inputs = manifest["identity"].get("inputs", {}).values()
            self.inputs[path.parent.name] = [name for name in inputs if isinstance(name, str)]

    def behind(self, folders: Iterable[str]) -> set[str]:
        """Digests of all that went into some versions, directly or not."""
        found: set[str] = set()
        todo = [digest for folder in folders for digest in self.inputs[folder]]
        while todo:
            digest = todo.pop()
            if digest not in found:
                found.add(digest)
                todo += [d for folder in self.folders.get(digest, ()) for d in self.inputs[folder]]
        return found
