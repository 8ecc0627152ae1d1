"""The training loop of both encoders: one process, or any number of them, the same curve.

Torch and torch.distributed only; Ray stays outside (engine/training). See `train`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch

from rocketray.artifacts import Version, publish, read_json, write_json, write_text
from rocketray.errors import UserError
from rocketray.model import checkpoints, trackers
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dev import Dev, cross_mrr, dual_mrr
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.gather import sum_over_workers, workers
from rocketray.model.machine import (
    Precision,
    choose_precision,
    is_out_of_memory,
    matmul_flops,
    peak_memory,
)
from rocketray.model.masks import Known
from rocketray.model.order import Order, steps_of
from rocketray.model.steps import CrossStep, DualStep, Examples, Feed, Objective, Tally

__all__ = ["Dev", "Job", "Result", "train"]

log = logging.getLogger(__name__)

PATIENCE = 5
"""Steps in a row that may be dropped for a NaN or an infinity."""


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


OnStep = Callable[[int, int, float], None]
"""step (from 1), steps, loss."""


def train(
    job: Job, *, device: torch.device | str | None = None, on_step: OnStep | None = None
) -> Result:
    """Train, or go on where the newest valid checkpoint in `job.out` ends.

    Call it in one process, or in every process of an initialised torch.distributed group, whatever
    started them (Ray Train, torchrun). The number of workers is no hyper-parameter: the curve is
    the same to rounding, and the same number of workers gives the same bytes (on CPUs), also when
    it was stopped and called again.

    Why not DistributedDataParallel: its hooks average a gradient as soon as one backward has
    filled it, but here several backwards make one step (shards, GradCache). One all-reduce of one
    flat buffer at the end of a step is simpler and provably the same (see loss.py).

    Args:
        device: None takes this process's GPU (LOCAL_RANK) if there is one.
        on_step: called on every worker after each step.

    Raises:
        UserError: five steps in a row gave NaN or infinity; the message names the rows.
    """
    if job.threads:
        torch.set_num_threads(job.threads)
    place = torch.device(device) if device else _own_device()
    # Shards seed the global generators; the caller keeps his.
    with torch.random.fork_rng([place] if place.type == "cuda" else []):
        return Trainer(job, place).run(on_step)


def schedule(job: Job, step: int, steps: int) -> float:
    """The learning rate of a step (from 0): up over the warm-up, then down to zero, or flat.

    The first step already moves, and so does the last: (step + 1) / warm-up steps, then
    (steps - step) / (steps - warm-up steps).
    """
    rising = round(job.warmup * steps)
    if step < rising:
        return job.learning_rate * (step + 1) / rising
    if job.schedule == "constant":
        return job.learning_rate
    return job.learning_rate * (steps - step) / (steps - rising)


def evaluation_steps(steps: int, evaluations: int) -> set[int]:
    """After which steps (from 1) dev is evaluated: evenly spaced, the last always."""
    count = max(1, evaluations)
    return {max(1, round(steps * (i + 1) / count)) for i in range(count)}


class Gradient:
    """All gradients as views into one buffer, so that a step has one all-reduce and no copy.

    What else adds up over workers travels at its end: the loss, tokens, similarities.
    """

    EXTRA = 8

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        sizes = [parameter.numel() for parameter in parameters]
        self.buffer = parameters[0].new_zeros(sum(sizes) + self.EXTRA).detach()
        self.values = self.buffer[: -self.EXTRA]
        for parameter, view in zip(parameters, torch.split(self.values, sizes), strict=True):
            parameter.grad = view.view_as(parameter)  # Autograd adds into it in place.

    def reduce(self, sums: Mapping[str, torch.Tensor | float]) -> dict[str, float]:
        """Sum gradients and `sums` over workers; returns the sums and the gradient's norm."""
        tail = self.buffer[len(self.values) :]
        for place, value in enumerate(sums.values()):
            tail[place] = value
        sum_over_workers(self.buffer)
        totals = torch.cat([self.values.norm()[None], tail[: len(sums)]]).tolist()
        return dict(zip(("gradient_norm", *sums), totals, strict=True))


class Trainer:
    """One run of `train`."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self.device = device
        self.rank, self.world = workers()
        open_model = DualEncoder.open if job.kind == "dual" else CrossEncoder.open
        self.model: DualEncoder | CrossEncoder = open_model(job.weights)
        self.job = job = self._decided(job)
        self.model.to(device, torch.float64 if job.precision == "float64" else torch.float32)
        if job.recompute:
            _recompute(self.model)
        if job.compile:
            _compile(self.model)
        self.step_of = self._step_of(Examples.open(job.examples))
        batch = max(1, job.global_batch // self.step_of.rows_per_unit)
        self.order = Order(self.step_of.rows, batch, job.seed)
        self.steps = steps_of(self.step_of.rows, batch, job.epochs)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.gradient = Gradient(self.parameters)
        self.optimizer = _optimizer(self.parameters, job)
        self.state = State()
        self.trackers: list[trackers.Tracker] = []
        self.limit_flops = 0.0
        """What all workers' processors could do per second; 0 until measured."""

    @property
    def feed(self) -> Feed:
        return self.step_of.feed

    def _step_of(self, examples: Examples) -> DualStep | CrossStep:
        job = self.job
        shared: dict[str, Any] = {
            "model": self.model,
            "feed": Feed.open(
                self.model.tokenizer_folder, job.query_tokens, job.passage_tokens, self.device,
                bfloat16=job.precision == "bfloat16",
            ),
            "examples": examples,
            "micro_shard": job.micro_shard,
            "seed": job.seed,
        }  # fmt: skip
        if isinstance(self.model, CrossEncoder):
            return CrossStep(listwise=job.loss == "listwise", adversarial=job.adversarial, **shared)
        assert isinstance(job.loss, Mapping)
        objective = Objective(
            **job.loss, margin=job.mask_margin, dimensions=tuple(sorted(job.dimensions))
        )
        return DualStep(
            known=_known(job),
            objective=objective,
            in_batch=job.in_batch,
            grad_cache=job.grad_cache,
            chunk=job.chunk,
            **shared,
        )

    # ---- choices: made once, written down, kept over a resume

    def _decided(self, job: Job) -> Job:
        """The job with what was left to us: worker 0 decides or remembers, all follow."""
        path = job.out / "choices.json"
        choices: tuple[Precision, ...] = ("float32", "tf32", "bfloat16", "float64")
        if job.precision == "auto":
            found: Precision = "float32"
            if self.rank == 0:
                known = read_json(path) if path.is_file() else {}
                found = known.get("precision") or choose_precision(self.device)
                write_json(path, known | {"precision": found})
            number = self._said_by_first(choices.index(found))
            job = replace(job, precision=choices[number])
        if job.precision != "float64":
            torch.set_float32_matmul_precision("high" if job.precision == "tf32" else "highest")
        return job

    def _fit_micro_shard(self) -> None:
        """Halve the micro-shard until the longest possible one fits the GPU of every worker.

        Only without dropout: its random numbers belong to the shards, so there the size is part
        of the recipe, and what does not fit is for the user to change.
        """
        path, size = self.job.out / "choices.json", self.job.micro_shard
        known = read_json(path) if path.is_file() and self.rank == 0 else {}
        if remembered := self._said_by_first(known.get("micro_shard", 0)):
            self._use_micro_shard(remembered)
            return
        free = not _has_dropout(self.model)
        while self._anywhere(not self._fits(size)):
            half = size // 2
            if not free or not half:
                raise UserError(
                    f"micro_shard {size} does not fit the GPU's memory."
                    + (f" With dropout its size is part of the result: set it to {half}."
                       if half else " Shorten the texts, or set recompute.")
                )  # fmt: skip
            log.warning("micro_shard %d does not fit the GPU's memory: %d.", size, half)
            size = half
        if size != self.job.micro_shard and self.rank == 0:
            write_json(path, known | {"micro_shard": size})
        self._use_micro_shard(size)

    def _use_micro_shard(self, size: int) -> None:
        self.job = replace(self.job, micro_shard=size)
        self.step_of = replace(self.step_of, micro_shard=size)

    def _fits(self, size: int) -> bool:
        """Try the worst case. A CPU's memory is never refused, so there is nothing to try."""
        if self.device.type != "cuda":
            return True
        try:
            self.step_of.worst_case(size).backward()
            return True
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            self.gradient.buffer.zero_()
            torch.cuda.empty_cache()

    # ---- the loop

    def run(self, on_step: OnStep | None) -> Result:
        self.model.train()
        self._fit_micro_shard()
        done = self._resume()
        self._begin_watching(done)
        evaluations = evaluation_steps(self.steps, self.job.evaluations)
        for step in range(done, self.steps):
            if self._stalled():
                break
            loss = self._step(step)
            if step + 1 in evaluations:
                self._evaluate(step + 1)
            if (step + 1) % self.job.checkpoint_every == 0 or step + 1 == self.steps:
                self._save(step + 1)
            if on_step:
                on_step(step + 1, self.steps, loss)
        self._leave_model()
        for tracker in self.trackers:
            tracker.close()
        return self._result()

    def _stalled(self) -> bool:
        """Early stopping: a pure function of the dev scores, so a resume stops at the same step."""
        if self.job.patience is None or self.state.best is None:
            return False
        since = [step for step, _ in self.state.history if step > self.state.best[0]]
        return len(since) >= self.job.patience

    def _step(self, step: int) -> float:
        started = time.perf_counter()
        rate = schedule(self.job, step, self.steps)
        tally, sums = self.gradient_of(step)
        loss, norm = sums["loss"], sums["gradient_norm"]
        if not math.isfinite(loss) or not math.isfinite(norm):
            self._skip(step, tally, loss, norm)
            return loss
        self.state.bad_in_a_row = 0
        self._update(rate, norm)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # Or the clock stops before the work does.
        seconds = time.perf_counter() - started
        self._log(
            step=step + 1,
            epoch=self.order.epoch(step + 1),
            loss=loss,
            learning_rate=rate,
            gradient_norm=norm,
            **self._seen(tally, sums),
            **self._speed(sums, seconds),
        )
        return loss

    def gradient_of(self, step: int) -> tuple[Tally, dict[str, float]]:
        """Fill `self.gradient` with the gradient of the global batch's mean loss.

        Returns:
            The tally, and of the global batch: its sums, and the gradient's norm before clipping.
        """
        self.model.train()
        self.gradient.buffer.zero_()
        tally = self.step_of(step, self.order.batch(step))
        return tally, self.gradient.reduce(tally.sums)

    def _seen(self, tally: Tally, sums: Mapping[str, float]) -> dict[str, float]:
        """What the loss saw: masked columns, and how the positive stands to the hardest other."""
        if not tally.columns:
            return {}
        close = round(sums.get("close", 0.0) * len(tally.examples_R))
        seen = {
            "masked": tally.masked,
            "masked_by_margin": close,
            "masked_share": (tally.masked + close) / tally.columns,
        }
        if "positive" in sums:
            seen |= {"positive": sums["positive"], "hardest_negative": sums["hardest"]}
        return seen

    def _speed(self, sums: Mapping[str, float], seconds: float) -> dict[str, float]:
        speed = {
            "queries_per_s": self.job.global_batch / seconds,
            "tokens_per_s": sums["tokens"] / seconds,
            "seconds": seconds,
            "memory_gib": peak_memory(self.device) / 2**30,
        }
        if self.limit_flops:
            speed["utilisation"] = sums["flops"] / seconds / self.limit_flops
        return speed

    def _begin_watching(self, done: int) -> None:
        """Trackers, and the limit that utilisation is measured against."""
        types: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float64": torch.float64}
        mine = matmul_flops(self.device, types.get(self.job.precision, torch.float32))
        total = torch.tensor([mine], dtype=torch.float64, device=self.device)
        self.limit_flops = float(sum_over_workers(total))
        if self.rank == 0 and self.job.trackers:
            self.trackers = trackers.start(self.job.trackers, self.job.name, self.job.out, done)

    def _update(self, rate: float, norm: float) -> None:
        if 0 < self.job.clip < norm:
            self.gradient.values.mul_(self.job.clip / norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def _skip(self, step: int, tally: Tally, loss: float, norm: float) -> None:
        """Drop the step on all workers (the summed loss and norm are the same on all of them)."""
        self.state.skipped += 1
        self.state.bad_in_a_row += 1
        rows = self._broken(tally)
        reason = f"loss {loss}, gradient norm {norm}"  # Words: JSON has no NaN.
        self._log(step=step + 1, skipped=reason, rows=rows)
        message = (
            f"step {step + 1} of {self.steps} gave {reason}; rows of {self.job.examples}:"
            f" {rows[:10]}{' ...' if len(rows) > 10 else ''}"
        )
        log.warning("Skipped: %s.", message)
        if self.state.bad_in_a_row == PATIENCE:
            raise UserError(
                f"{PATIENCE} steps in a row were no numbers: {message}. Lower learning_rate"
                f" ({self.job.learning_rate}), or look at these rows."
            )

    def _broken(self, tally: Tally) -> list[int]:
        """The examples the model could not turn into numbers, or the whole batch if none."""
        broken_R = torch.zeros(len(tally.examples_R), device=self.device)
        broken_R[tally.start : tally.start + len(tally.finite_B)] = (~tally.finite_B).float()
        rows = np.flatnonzero(sum_over_workers(broken_R).cpu().numpy())
        return sorted(set(tally.examples_R[rows if len(rows) else slice(None)].tolist()))

    # ---- dev

    def _evaluate(self, step: int) -> None:
        if self.job.dev is None:
            return
        self.model.eval()
        if isinstance(self.model, CrossEncoder):
            mrr = cross_mrr(self.model, self.feed, self.job.dev)
        else:
            mrr = dual_mrr(self.model, self.feed, self.job.dev)
        best = self.state.best
        self.state.history.append((step, mrr))
        self._log(step=step, **{"dev_mrr@10": mrr})
        if self.rank == 0 and (best is None or mrr > best[1]):
            tensors = {"model": model_tensors(self.model)}
            checkpoints.save(self.job.out / "best", step, tensors, {"dev_mrr@10": mrr}, keep=1)

    # ---- stop and go on

    def _save(self, step: int) -> None:
        if self.rank == 0:
            tensors = {
                "model": model_tensors(self.model),
                "optimizer": _optimizer_tensors(self.model, self.optimizer),
            }
            folder = self.job.out / "checkpoints"
            state = {**asdict(self.state), "run": self._identity()}
            checkpoints.save(folder, step, tensors, state, keep=2)

    def _resume(self) -> int:
        """Load the newest valid checkpoint and forget what came after it; returns its step."""
        folder = self.job.out / "checkpoints"
        found = checkpoints.newest(folder) if self.rank == 0 else None
        done = self._said_by_first(found.step if found else 0)
        if done:
            self._load(found or checkpoints.at(folder, done), folder, done)
        if self.rank == 0:
            checkpoints.remove_after(folder, done)
            checkpoints.remove_after(self.job.out / "best", done)
            _cut_log(self.job.log_path, done)
        self._log(start={"from_step": done, **self._facts()})
        return done

    def _load(self, found: checkpoints.Checkpoint | None, folder: Path, step: int) -> None:
        if self._anywhere(found is None) or found is None:
            raise UserError(
                f"Not every worker can read step {step} in {folder}, worker 0 can. The output"
                " folder must be on storage that all workers share."
            )
        if found.state["run"] != self._identity():
            raise UserError(
                f"{folder} holds another run: {found.state['run']}; this is {self._identity()}."
                " Give another output folder, or remove that one."
            )
        load_model(self.model, found.tensors("model"))
        _load_optimizer(self.model, self.optimizer, found.tensors("optimizer"))
        self.state = State.of(found.state)

    def _leave_model(self) -> None:
        """Write `out/model`: the best weights on dev, or the last without dev."""
        best = self.state.best if self.rank == 0 else None
        found = checkpoints.at(self.job.out / "best", best[0]) if best else None
        if self._anywhere(best is not None and found is None):
            raise UserError(
                f"{self.job.out / 'best'} lost the weights that are best on dev."
                f" Remove {self.job.out} to train again."
            )
        if found:
            load_model(self.model, found.tensors("model"))
        if self.rank == 0:
            _save_model(self.model, self.job.out / "model")
        self._anywhere(False)  # Nobody leaves before it is there.

    def _said_by_first(self, number: int) -> int:
        """Worker 0's number, on every worker."""
        mine = number if self.rank == 0 else 0
        return int(sum_over_workers(torch.tensor([mine], device=self.device)))

    def _anywhere(self, fact: bool) -> bool:
        """Whether it is so on any worker: all stop, instead of the rest waiting for one."""
        return bool(sum_over_workers(torch.tensor([int(fact)], device=self.device)))

    # ---- what is told

    def _identity(self) -> dict[str, int]:
        """What tells one run from another in the same folder; stages are told by fingerprint."""
        return {"steps": self.steps, "rows": self.step_of.rows, "seed": self.job.seed}

    def _facts(self) -> dict[str, Any]:
        pids = torch.zeros(self.world, dtype=torch.int64, device=self.device)
        pids[self.rank] = os.getpid()
        return {
            "steps": self.steps,
            "rows": self.step_of.rows,
            "global_batch": self.job.global_batch,
            "workers": self.world,
            "pids": sum_over_workers(pids).tolist(),
            "precision": self.job.precision,
            "micro_shard": self.job.micro_shard,
            "negatives_per_query": self.step_of.negatives_per_query(self.job.global_batch),
        }

    def _result(self) -> Result:
        best = self.state.best
        return Result(
            steps=self.steps,
            best_step=best[0] if best else self.steps,
            dev_mrr=best[1] if best else None,
            history=self.state.history,
            negatives_per_query=self.step_of.negatives_per_query(self.job.global_batch),
            rows=self.step_of.rows,
            skipped=self.state.skipped,
            precision=self.job.precision,
            micro_shard=self.job.micro_shard,
        )

    def _log(self, **line: Any) -> None:
        if self.rank == 0 and self.job.log_path:
            self.job.log_path.parent.mkdir(parents=True, exist_ok=True)
            with self.job.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        values = {k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}
        for tracker in self.trackers:
            tracker.log(line["step"], values)


@dataclass
class State:
    """What a checkpoint remembers beside tensors. No random state: it follows from the step."""

    history: list[tuple[int, float]] = field(default_factory=list)
    skipped: int = 0
    bad_in_a_row: int = 0

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> State:
        history = [(int(step), float(mrr)) for step, mrr in saved["history"]]
        return cls(history, saved["skipped"], saved["bad_in_a_row"])

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, MRR@10), the highest; the earliest of equals."""
        return max(self.history, key=lambda entry: entry[1], default=None)


def _own_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def _known(job: Job) -> Known | None:
    """Which passages answer which query, for masks: people's word, and the cross-encoder's.

    Without qrels only a row's own positive is known. None: nothing is masked by id (the paper).
    """
    pairs = [np.empty((2, 0), np.int64)]
    if job.mask_known and job.qrels is not None:
        table = Version.open(job.qrels).read()
        positive = table.filter(pc.greater(table["relevance"], 0))
        pairs.append(np.stack([positive["query"].to_numpy(), positive["passage"].to_numpy()]))
    if job.mask_ce_above is not None:
        pairs += [_scored_above(Version.open(path), job.mask_ce_above) for path in job.scored]
    if not job.mask_known and job.mask_ce_above is None:
        return None
    return Known.of(*np.concatenate(pairs, axis=1))


def _scored_above(scored: Version, threshold: float) -> np.ndarray:
    """[2, K]: query and passage of every pair with a higher ce_score."""
    table = scored.read()
    counts = pc.list_value_length(table["passages"]).to_numpy()
    queries = np.repeat(table["query"].to_numpy(), counts)
    passages = pc.list_flatten(table["passages"]).to_numpy()
    above = pc.list_flatten(table["ce_scores"]).to_numpy() > threshold
    return np.stack([queries[above], passages[above]])


def _has_dropout(model: torch.nn.Module) -> bool:
    """Whether two forwards differ. Attention has its rate in the configuration alone."""
    rates = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    return any(rate > 0 for rate in rates)


def _towers(model: DualEncoder | CrossEncoder) -> list[Any]:
    return [model.model] if isinstance(model, CrossEncoder) else [model.query, model.passage]


def _recompute(model: DualEncoder | CrossEncoder) -> None:
    for tower in _towers(model):
        # transformers 5 renamed it on the way.
        old = "gradient_checkpointing_enable"
        new = "activation_checkpointing_enable"
        getattr(tower, new if hasattr(tower, new) else old)({"use_reentrant": False})


def _compile(model: DualEncoder | CrossEncoder) -> None:
    """Layer by layer: they are alike, so one compilation serves them all."""
    for tower in _towers(model):
        for stack in tower.modules():
            if isinstance(stack, torch.nn.ModuleList):
                for layer in stack:
                    layer.compile(dynamic=True)


def _optimizer(parameters: list[torch.nn.Parameter], job: Job) -> torch.optim.AdamW:
    """AdamW; biases and norms, the vectors among the parameters, do not decay."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": job.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=job.learning_rate, fused=True)


def model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by name, each once: a shared tower is one object under two names."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@torch.no_grad()
def load_model(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    own = model_tensors(model)
    if own.keys() != tensors.keys():
        raise ValueError(f"other parameters than the model's: {sorted(own.keys() ^ tensors)}.")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def _optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """`exp_avg/NAME` and so on; nothing before the first update."""
    return {
        f"{key}/{name}": tensor
        for name, parameter in model.named_parameters()
        for key, tensor in optimizer.state[parameter].items()
    }


def _load_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    for key_name, tensor in tensors.items():
        key, _, name = key_name.partition("/")
        optimizer.state[parameters[name]][key] = tensor.to(parameters[name].device)


def _save_model(model: DualEncoder | CrossEncoder, folder: Path) -> None:
    """Whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    model.save(temporary)
    if folder.exists():
        shutil.rmtree(folder)
    publish(temporary, folder)


def _cut_log(path: Path | None, step: int) -> None:
    """Keep the lines up to a step; those of steps that will be done again would be doubled."""
    if path is None or not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines() if step else []
    write_text(path, "".join(line + "\n" for line in lines if _step_in(line) <= step))


def _step_in(line: str) -> float:
    """The step of a log line; a line torn by a kill belongs to no step that counts."""
    try:
        return int(json.loads(line).get("step", 0))
    except json.JSONDecodeError:
        return math.inf
