"""The dual encoder of a whole run against the best that sentence-transformers gives for as much.

    python benchmarks/quality.py --out DIR [--data FOLDER] [--unlabelled FILE] [--recipe small]
                                 [--set FIELD=VALUE ...] [--seeds 1] [--json FILE]

Needs the packages `datasets` and `accelerate` (theirs). Everything stays in DIR; what is finished
there is not done again.

Ours is `rocketray run`. Theirs begins from the same weights, with the same labelled questions,
lengths, batch sizes, learning rates and numbers of steps, through its own trainers:

1. CachedMultipleNegativesRankingLoss on labelled pairs, for as many steps as dual_0;
2. a CrossEncoder by BinaryCrossEntropyLoss, on negatives drawn from what 1 ranks high, for as many
   steps as ours;
3. mine_hard_negatives by 1, as deep as it does by itself, with 2 as its cross_encoder, by each
   of MINING;
4. 1 goes on with each of these, and with labelled pairs alone, for as many steps as dual_1 and
   dual_2 together. What is best on dev is theirs.

So both dual encoders come from as many questions seen, which is counted and reported, as is what
each brings over the untrained weights. Ours may pseudo-label unlabelled questions, for
which theirs has no means. Both are measured on the same test questions over the whole corpus.
"""

from __future__ import annotations

import shutil
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

sys.path.insert(0, str(Path(__file__).parent))
from measure import Result, report

from rocketray import artifacts, loop, measures, results, schema
from rocketray import recipe as recipes
from rocketray.comparison import SURE, Measured, against
from rocketray.recipe import DualStep
from rocketray.stages.ingest import lot
from rocketray.workflow import Workflow

MEASURE = "mrr@10"
MINING: dict[str, dict[str, float]] = {
    "relative margin 0.05": {"relative_margin": 0.05},
    "at most 0.5": {"max_score": 0.5},
}
"""Of the cross-encoder: NV-Retriever's rule as its documentation recommends it, and the rule that
is nearest to RocketQA's."""
PLAIN = "no hard negatives"
SOURCES = (
    "passages", "queries", "train_queries", "qrels_train", "initial", "initial_cross", "dual_0",
    "cross", "dual_1", "dual_2",
)  # fmt: skip
"""Of ours, that theirs depends on: data, weights, and settings and steps of training."""
SHARD = 32
"""Rows that its GradCache holds at once."""
DEPTH = 100
SEEN = "seen.json"
"""Beside a dual encoder of theirs: steps made, and questions that its loss was given."""
CODE = 2
"""Raised where theirs is made otherwise."""


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where everything stays")
    parser.add_argument("--data", type=Path, help="in BEIR layout; default: the recipe's own")
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--unlabelled", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    found = [one_seed(told, number) for number in range(told.seeds)]
    report(list(compared(found)), told.json, {"seeds": told.seeds, "questions": len(found[0].ours)})


class Seed(NamedTuple):
    """Measures by test question; `groups` as `measures.compare` takes them."""

    ours: pd.DataFrame
    theirs: pd.DataFrame
    initial: pd.DataFrame
    """Of the weights that both begin with."""
    groups: pd.Series
    ours_seen: Mapping[str, int]
    """`steps` of the optimiser that the dual encoder comes from, `questions` in their batches."""
    theirs_seen: Mapping[str, int]


def one_seed(told: Namespace, number: int) -> Seed:
    folder = told.out / f"seed-{number}"
    flow = loop.run(
        told.recipe, folder / "ours", data=told.data, unlabelled=told.unlabelled,
        overrides=[*told.set, *seeded(told, number)],
    )  # fmt: skip
    if flow.recipe.model.dual.towers != "one":
        sys.exit("model.dual.towers=two: sentence-transformers trains one tower. Set it to one.")
    ours, initial = (flow.made[f"{name}_test"].read() for name in ("dual_2", "initial"))
    key = artifacts.fingerprint([CODE, *(flow.made[name].digest for name in SOURCES)])
    theirs = Theirs(flow, folder / f"theirs-{key}")
    runs = (ours, theirs.test_run(), initial)
    every = [measures.per_query(run, results.judged(flow), [MEASURE]) for run in runs]
    return Seed(*every, results.groups(flow), seen(flow), theirs.seen())


def seen(flow: Workflow) -> dict[str, int]:
    """What went into our dual encoder. Every batch of ours is full."""
    steps = {name: int(flow.made[name].facts["steps"]) for name in ("dual_0", "dual_1", "dual_2")}
    batches = {name: getattr(flow.recipe.steps, name).global_batch for name in steps}
    questions = sum(steps[name] * batches[name] for name in steps)
    return {"steps": sum(steps.values()), "questions": questions}


def seeded(told: Namespace, number: int) -> list[str]:
    """Another seed of training over the same choice of questions."""
    seed = recipes.load(told.recipe, told.set).seed
    return [f"seed={seed + number}", f"data.seed={seed}"] if number else []


def compared(found: list[Seed]) -> Iterator[Result]:
    ours, theirs, initial = (
        Measured(name, name, [getattr(seed, name) for seed in found], [], found[0].groups)
        for name in ("ours", "theirs", "initial")
    )
    each = [a / b for a, b in zip(ours.by_seed(MEASURE), theirs.by_seed(MEASURE), strict=True)]
    mean, their_mean, untrained = (
        float(np.mean(side.by_seed(MEASURE))) for side in (ours, theirs, initial)
    )
    difference = against(ours, theirs)
    yield Result(
        name=f"{MEASURE} of the dual encoder", value=mean, unit="", target=1.03,
        peer=f"sentence-transformers, {their_mean:.4f}", ratio=mean / their_mean, low=min(each),
        high=max(each),
    )  # fmt: skip
    yield Result(
        name="chance of such a difference by luck", value=difference["p"], unit="", target=SURE,
        better="lower",
    )  # fmt: skip
    # What makes it a comparison: as much work on both sides, and of both some use.
    for what in ("steps", "questions"):
        yield as_much(what, found)
    for whose, value in (("ours", mean), ("theirs", their_mean)):
        yield Result(
            name=f"{MEASURE} over the untrained weights, {whose}", value=value - untrained, unit="",
            target=0.0,
        )  # fmt: skip


def as_much(what: str, found: list[Seed]) -> Result:
    """Ours may not have had more than theirs."""
    pairs = [(seed.ours_seen[what], seed.theirs_seen[what]) for seed in found]
    each = [ours / theirs for ours, theirs in pairs]
    mean, their_mean = (float(np.mean(side)) for side in zip(*pairs, strict=True))
    return Result(
        name=f"{what} of the dual encoder's training", value=mean, unit="", target=1.0,
        peer=f"sentence-transformers, {their_mean:,.0f}", ratio=mean / their_mean, low=min(each),
        high=max(each), better="lower",
    )  # fmt: skip


# -------------------------------------------------------------------------------------- theirs


@dataclass
class Theirs:
    """What a user of sentence-transformers would write, over the tables of our run."""

    flow: Workflow
    folder: Path

    @cached_property
    def passages(self) -> list[str]:
        table = self.flow.made["passages"].read()
        rows = zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True)
        return [f"{title} {text}" if title else text for title, text in rows]

    @cached_property
    def questions(self) -> list[str]:
        texts: list[str] = self.flow.made["queries"].read()["text"].to_pylist()
        return texts

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """(question, relevant passage) of the training questions that ours was given."""
        chosen = self.flow.made["train_queries"].read()["query"].to_pylist()
        positives = schema.positives_of(self.flow.made["qrels_train"].read())
        return [(self.questions[q], self.passages[p]) for q in chosen for p in positives[q]]

    def test_run(self) -> pa.Table:
        """Retrieval for the test questions by the model that is best on dev."""
        return self.run(self.best, self.flow.made["test_queries"].read()["query"].to_numpy())

    @cached_property
    def best(self) -> Path:
        """The last model that is best on dev."""
        finals = {name: self.final(name) for name in (PLAIN, *MINING)}
        asked = self.flow.made["dev_queries"].read()["query"].to_numpy()
        qrels = self.flow.made["qrels_dev"].read()
        qrels = qrels.filter(pa.array(np.isin(qrels["query"].to_numpy(), asked)))
        dev = {
            name: measures.evaluate(self.run(model, asked), qrels, [MEASURE])[MEASURE]
            for name, model in finals.items()
        }
        print("  theirs on dev:", ", ".join(f"{name} {value:.4f}" for name, value in dev.items()))
        return finals[max(dev, key=lambda name: dev[name])]

    def seen(self) -> dict[str, int]:
        """What went into it, as its trainers counted."""
        parts = [artifacts.read_json(model / SEEN) for model in (self.base(), self.best)]
        return {what: sum(part[what] for part in parts) for what in ("steps", "questions")}

    def run(self, model: Path, queries: np.ndarray) -> pa.Table:
        """Exact retrieval over the corpus, as RUN."""
        network = self.network(model)
        told = {"convert_to_tensor": True, "normalize_embeddings": True, "show_progress_bar": False}
        p_PD = network.encode(self.passages, **told)
        texts = [self.questions[query] for query in queries.tolist()]
        q_QD = network.encode(texts, **told)
        scores_QK, rows_QK = (q_QD @ p_PD.T).topk(min(DEPTH, len(p_PD)), dim=1)
        return pa.table([queries, rows_QK.tolist(), scores_QK.tolist()], schema=schema.RUN)

    # ---- the steps, each in a folder of its own

    def base(self) -> Path:
        def make(folder: Path) -> None:
            network = self.network(self.flow.made["initial"].path / "model")
            told = self.flow.recipe.steps.dual_0
            self.train(network, self.pairs, told, self.steps("dual_0"), folder)

        return self.once("base", make)

    def cross(self) -> Path:
        def make(folder: Path) -> None:
            from sentence_transformers import CrossEncoder
            from sentence_transformers.cross_encoder import (
                CrossEncoderTrainer,
                CrossEncoderTrainingArguments,
            )
            from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

            told = self.flow.recipe.steps.cross
            network = CrossEncoder(
                str(self.flow.made["initial_cross"].path / "model"), num_labels=1,
                max_length=self.flow.recipe.model.cross.length,
            )  # fmt: skip
            drawn = sorted(self.pairs, key=lambda pair: lot(self.flow.recipe.seed, pair[0]))
            mined = self.mine(
                self.base(), drawn[: told.queries], told.negatives, "random",
                range_max=told.depth, output_format="labeled-pair",
            )  # fmt: skip
            arguments = CrossEncoderTrainingArguments(**self.arguments(told, self.steps("cross")))
            CrossEncoderTrainer(
                model=network, args=arguments, train_dataset=mined,
                loss=BinaryCrossEntropyLoss(network),
            ).train()  # fmt: skip
            network.save_pretrained(str(folder))

        return self.once("cross", make)

    def final(self, name: str) -> Path:
        def make(folder: Path) -> None:
            told = self.flow.recipe.steps.dual_1
            rows: Any = self.pairs
            if name != PLAIN:
                from sentence_transformers import CrossEncoder

                rows = self.mine(
                    self.base(), self.pairs, told.negatives * told.copies, "top",
                    output_format="triplet", cross_encoder=CrossEncoder(str(self.cross())),
                    **MINING[name],
                )  # fmt: skip
                print(f"  theirs: {name}, {len(rows):,} rows of {len(self.pairs):,} pairs")
            steps = self.steps("dual_1") + self.steps("dual_2")
            self.train(self.network(self.base()), rows, told, steps, folder)

        return self.once(name.replace(" ", "-"), make)

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """A finished folder: found, or made."""
        folder, attempt = self.folder / name, self.folder / f"{name}.part"
        if not folder.is_dir():
            shutil.rmtree(attempt, ignore_errors=True)
            attempt.mkdir(parents=True)
            start = time.monotonic()
            make(attempt)
            print(f"  theirs: {name} in {time.monotonic() - start:.0f} s", flush=True)
            attempt.rename(folder)
        return folder

    # ---- their library

    def network(self, model: Path) -> Any:
        from sentence_transformers import SentenceTransformer

        network = SentenceTransformer(str(model))
        network.max_seq_length = self.flow.recipe.model.dual.passage_length
        return network

    def mine(
        self, model: Path, pairs: list[tuple[str, str]], count: int, how: str, **options: Any
    ) -> Any:
        from sentence_transformers.util import mine_hard_negatives

        return mine_hard_negatives(
            dataset(pairs), self.network(model), corpus=self.passages, num_negatives=count,
            sampling_strategy=how, verbose=False, **options,
        )  # fmt: skip

    def train(self, network: Any, rows: Any, told: DualStep, steps: int, folder: Path) -> None:
        from sentence_transformers import (
            SentenceTransformerTrainer,
            SentenceTransformerTrainingArguments,
        )
        from sentence_transformers.sentence_transformer.losses import (
            CachedMultipleNegativesRankingLoss,
        )

        scale = 1 / self.flow.recipe.model.dual.temperature
        loss = CachedMultipleNegativesRankingLoss(network, scale=scale, mini_batch_size=SHARD)
        batches: list[int] = []
        loss.register_forward_pre_hook(
            lambda _, given: batches.append(len(given[0][0]["input_ids"]))
        )
        rows = dataset(rows) if isinstance(rows, list) else rows
        trainer = SentenceTransformerTrainer(
            model=network,
            args=SentenceTransformerTrainingArguments(
                **self.arguments(told, steps), batch_sampler="no_duplicates",
                # Full batches, as ours are: the rest of an epoch would be steps of fewer questions.
                dataloader_drop_last=len(rows) >= told.global_batch,
            ),
            train_dataset=rows,
            loss=loss,
        )  # fmt: skip
        trainer.train()
        network.save_pretrained(str(folder))
        counted = {"steps": trainer.state.global_step, "questions": sum(batches)}
        artifacts.write_json(folder / SEEN, counted)

    def arguments(self, told: Any, steps: int) -> dict[str, Any]:
        linear = told.schedule == "linear"
        return {
            "output_dir": str(self.folder / "trainer"),
            "max_steps": steps,
            "per_device_train_batch_size": told.global_batch,
            "learning_rate": told.learning_rate,
            "warmup_steps": round(told.warmup * steps),
            "lr_scheduler_type": "linear" if linear else "constant_with_warmup",
            "weight_decay": told.weight_decay,
            "seed": self.flow.recipe.seed,
            "bf16": torch.cuda.is_available(),
            "save_strategy": "no",
            "report_to": [],
            "logging_steps": 20,
            "disable_tqdm": True,
        }

    def steps(self, model: str) -> int:
        return int(self.flow.made[model].facts["steps"])


def dataset(pairs: list[tuple[str, str]]) -> Any:
    from datasets import Dataset

    questions, positives = zip(*pairs, strict=True)
    return Dataset.from_dict({"anchor": list(questions), "positive": list(positives)})


if __name__ == "__main__":
    main()
