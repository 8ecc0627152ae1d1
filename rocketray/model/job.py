"""What a training is told, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rocketray.artifacts import RunFolder
from rocketray.model import trackers
from rocketray.model.dev import Dev
from rocketray.model.machine import Precision


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """Everything `train` needs, as plain values: it is pickled to the workers."""

    kind: Literal["dual", "cross"]
    weights: Path
    """Folder written by `DualEncoder.save` or `CrossEncoder.save`: the initial weights."""
    examples: Path
    """Version folder of an EXAMPLES table."""
    query_tokens: Path
    passage_tokens: Path
    """Token stores the rows of `examples` point into."""
    out: Path
    """Gets `model/` (the result), `checkpoints/` and `best/`. Shared by all workers."""
    run_folder: RunFolder | None = None
    """Where `out` is: training stops once somebody else has become its writer."""
    qrels: Path | None = None
    """Version folder of a QRELS table: known positives, used only to mask columns."""
    scored: tuple[Path, ...] = ()
    """Version folders of SCORED tables, for `mask_ce_above`."""
    dev: Dev | None = None

    epochs: float = 1
    global_batch: int = 64
    """Dual: examples. Cross: pairs; an example with n negatives is 1 + n pairs."""
    micro_shard: int = 8
    """Rows (dual) or pairs (cross) in one forward; part of the recipe when there is dropout."""
    learning_rate: float = 3e-5
    """Peak."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises."""
    schedule: Literal["linear", "constant"] = "linear"
    """After the warm-up: down to zero, or flat."""
    weight_decay: float = 0.0
    """Decoupled; never on biases and norms."""
    clip: float = 1.0
    """Largest global gradient norm; 0 = no clipping."""
    in_batch: int | None = None
    """None: every passage of the global batch is a column. g: only those of the row's group of
    g consecutive rows (the paper's in-batch baseline), whatever the number of workers."""
    mask_known: bool = True
    """Drop columns known to answer the row's query. The paper does not."""
    mask_ce_above: float | None = None
    """Drop columns, too, to which `scored` gives the row's query a ce_score above this."""
    mask_margin: float | None = None
    """Drop columns, too, that are more similar than the positive by more than this."""
    loss: Mapping[str, float] | str = field(default_factory=dict)
    """Dual: weights by name, as in `steps.Objective`; none given is RocketQA's. Cross:
    `pointwise` (the default) or `listwise`."""
    dimensions: tuple[int, ...] = ()
    """Matryoshka: leading parts of the embedding that must each serve by themselves."""
    adversarial: float = 0.0
    """Cross: length of the step that moves the word embeddings against the model."""
    grad_cache: bool = True
    """Forward twice, keep the activations of one shard only. Same gradient either way."""
    chunk: int = 512
    """Rows of logits that exist at once."""
    precision: Precision = "float32"
    """bfloat16: autocast, weights and loss stay float32. float64: for parity tests. auto: decided
    once per run, by machine.py, and kept over a resume."""
    recompute: bool = False
    """Keep no activations inside the encoder's layers and make them again in backward."""
    compile: bool = False
    """Compile the encoder's layers (torch.compile)."""
    seed: int = 0
    evaluations: int = 1
    """Dev evaluations over the run, evenly spaced; the last step always has one."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a better one; None: never."""
    checkpoint_every: int = 100
    """Steps."""
    log_path: Path | None = None
    """JSON lines: one per step and one per dev evaluation."""
    threads: int | None = None
    """Torch threads of one worker; None leaves them alone."""
    name: str = "training"
    """What trackers call the run."""
    trackers: tuple[trackers.Name, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out; the weights themselves are in `out/model`."""

    steps: int
    best_step: int
    """The step whose weights are in `out/model`."""
    dev_mrr: float | None
    """MRR@10 on dev of those weights; None without dev."""
    history: list[tuple[int, float]] = field(default_factory=list)
    """(step, dev MRR@10) of every evaluation."""
    negatives_per_query: int
    rows: int
    """Examples (dual) or pairs (cross) in one epoch."""
    skipped: int
    """Steps dropped for a NaN or an infinity."""
    precision: str
    """What was used, also where `auto` decided."""
    micro_shard: int
    """What was used, also where a smaller one had to be found."""
