"""What a seed of an ablation came to, as one small file: enough to compare it with others.

    DIR/seed-14.parquet    row, question, group, measures; counts, seconds in its metadata

A seed's run is large and stays where it was made; its file travels. So the seeds of one ablation
may be trained on several machines, and what a table rests on may be kept beside the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from rocketray import artifacts
from rocketray.errors import UserError
from rocketray.recipe import Recipe

META = b"rocketray.seed"


@dataclass(frozen=True)
class Seed:
    """Every row of one seed."""

    seed: int
    origin: Mapping[str, Any]
    """What all seeds share: `recipe`, and digests of `tables` and of initial `weights`."""
    rows: Mapping[str, Any]
    """By row that is no ordinary run's: the rule it was made by."""
    measured: Mapping[str, pd.DataFrame]
    """By row: a frame of measures by question."""
    groups: pd.Series
    """Of each question, as `measures.compare` takes them."""
    facts: Mapping[str, Mapping[str, Any]]
    """By row: what its model was trained on, and what its rule had to work with."""
    seconds: Mapping[str, float]
    """By row: what its own stages took."""
    needed: Mapping[str, float]
    """By row: the same with the stages of other rows that it rests on."""
    cross: Mapping[str, float] | None
    """MRR@10 on dev of dual_0's first passages, by dual_0 and by the cross-encoder."""
    removed: Mapping[str, Sequence[float]]
    """By verdict: share of unlabelled passages, by rank."""
    pool: Mapping[str, float] | None
    """Candidates by who found them, where BM25 and dual_0 both did."""

    def write(self, folder: Path) -> None:
        whole = pd.concat(self.measured, names=["row", "query"]).reset_index()
        whole.insert(2, "group", self.groups.reindex(whole["query"]).to_numpy())
        told = {name: getattr(self, name) for name in TOLD}
        table = pa.Table.from_pandas(whole, preserve_index=False)
        table = table.replace_schema_metadata({META: json.dumps(told, sort_keys=True)})
        artifacts.write_table(path_of(folder, self.seed), table)

    @classmethod
    def read(cls, path: Path) -> Seed:
        """
        Raises:
            UserError: the file is no seed's, is damaged, or is called after another seed.
        """
        try:
            table = artifacts.read_table(path)
            told = json.loads((table.schema.metadata or {})[META])
            whole = table.to_pandas().set_index("query")
            groups = whole.pop("group").groupby(level=0).first()
            measured = {
                name: frame.drop(columns="row") for name, frame in whole.groupby("row", sort=False)
            }
            found = cls(**told, measured=measured, groups=groups)
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is no seed of an ablation, or is damaged"
                f" ({type(error).__name__}: {error}). Remove it; its run can make it again."
            ) from error
        if path_of(path.parent, found.seed) != path:
            raise UserError(
                f"{path} holds seed {found.seed}, and its name says another. Call it"
                f" {path_of(path.parent, found.seed).name}, or remove it."
            )
        return found

    def check(self, path: Path, origin: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
        """That a file from elsewhere belongs to what is asked for here.

        Args:
            origin: what it must agree with, or a part of that.
            rows: the rows that are asked for, and the rule of each.

        Raises:
            UserError: it was made by another recipe, from other data or weights, or without some of
                the rows or by other rules for them.
        """
        if lacking := [name for name in rows if name not in self.measured]:
            raise UserError(
                f"{path} lacks the rows {', '.join(lacking)}. Ask for them where it was made, or"
                " remove it."
            )
        mine = {name: self.origin.get(name) for name in origin}
        mine["rows"] = {name: self.rows.get(name) for name in rows}
        if different := artifacts.changes(mine, {**origin, "rows": rows}):
            raise UserError(
                f"{path} cannot be compared with what is asked for here: {'; '.join(different)}."
                " Give the options that it was made with, or remove it."
            )


TOLD = (
    "seed", "origin", "rows", "facts", "seconds", "needed", "cross", "removed", "pool",
)  # fmt: skip
"""Fields that go into a file's metadata."""


def path_of(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}.parquet"


def shared(recipe: Recipe) -> dict[str, Any]:
    """The recipe as seeds must share it: neither the seed nor the machines that worked."""
    # An ablation is of one round, and files that are older than the field do not say so.
    tree = recipe.model_dump(
        mode="json", exclude={"seed": True, "cluster": True, "denoise": {"rounds"}}
    )
    tree["data"]["seed"] = recipe.data_seed
    return tree
