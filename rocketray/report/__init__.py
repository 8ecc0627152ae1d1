"""The HTML report (being written)."""

from pathlib import Path

from rocketray.artifacts import RunFolder


def write(folder: RunFolder) -> Path:
    return folder.path / "report.html"
