"""The training loop of both encoders: one process, or any number of them, the same curve.

Torch and torch.distributed only; Ray stays outside (engine/training). See `train`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from rocketray import storage
from rocketray.artifacts import (
    Superseded,
    Version,
    publish_folder,
    read_json,
    write_json,
    write_text,
)
from rocketray.errors import UserError
from rocketray.model import checkpoints, towers, trackers
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dev import Dev, cross_mrr, dual_mrr
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.gather import sum_over_workers, told_by_workers, workers
from rocketray.model.job import Job, Result
from rocketray.model.machine import (
    Precision,
    choose_precision,
    is_out_of_memory,
    matmul_flops,
    peak_memory,
)
from rocketray.model.masks import Known
from rocketray.model.optimizer import (
    Gradient,
    adamw,
    learning_rate,
    load_model,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
)
from rocketray.model.order import Order, steps_of
from rocketray.model.steps import CrossStep, DualStep, Examples, Feed, Objective, Tally
from rocketray.model.threads import set_threads

__all__ = ["Dev", "Job", "Result", "check", "train"]

log = logging.getLogger(__name__)

BAD_STEPS = 5
"""Steps in a row that may be dropped for a NaN or an infinity."""

NOTICE_SECONDS = 10.0
"""Between two questions whether a machine is about to be taken away and, once one is, between two
checkpoints: a cloud gives half a minute to two minutes."""

ROOM = 0.85
"""Share of a GPU's memory that may be planned for; embeddings, logits and gaps take the rest."""


CPU_TOKENS = 1536
"""Tokens of a shard on a CPU. As fast as up to 4,096, in 0.72 of the memory (six layers of 384)."""


OnStep = Callable[[int, int, float], None]
"""step (from 1), steps, loss."""


Leaving = Callable[[], bool]
"""Whether a machine of this training is about to be taken away. All workers ask together."""


def check(job: Job) -> None:
    """What can be refused before any worker is started.

    Raises:
        UserError: a tracker's package is missing.
    """
    trackers.check(job.trackers)


def train(
    job: Job,
    *,
    device: torch.device | str | None = None,
    on_step: OnStep | None = None,
    leaving: Leaving | None = None,
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
        leaving: asked every `NOTICE_SECONDS`; as long as it says so, each time a checkpoint is
            saved, whatever `checkpoint_every` is. It changes no result.

    Raises:
        UserError: five steps in a row gave NaN or infinity; the message names the rows.
        Superseded: the run folder has another writer by now. On every worker.
    """
    if job.threads:
        set_threads(job.threads)
    place = torch.device(device) if device else _own_device()
    if place.type == "cuda":
        torch.cuda.set_device(place)
    products = torch.get_float32_matmul_precision()
    # Shards seed the global generators; the caller keeps his, and his precision of products.
    with torch.random.fork_rng([place] if place.type == "cuda" else []):
        try:
            return Trainer(job, place).run(on_step, leaving)
        finally:
            torch.set_float32_matmul_precision(products)


def evaluation_steps(steps: int, evaluations: int) -> set[int]:
    """After which steps (from 1) dev is evaluated: evenly spaced, the last always."""
    count = max(1, evaluations)
    return {max(1, round(steps * (i + 1) / count)) for i in range(count)}


class Trainer:
    """One run of `train`."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self.device = device
        self.rank, self.world = workers()
        open_model = DualEncoder.open if job.kind == "dual" else CrossEncoder.open
        self.model: DualEncoder | CrossEncoder = open_model(job.weights)
        self.job = job
        self.job = job = self._decided()
        self.model.to(device, torch.float64 if job.precision == "float64" else torch.float32)
        if device.type == "cpu":
            towers.touch_few_words(self.model)
        if job.recompute:
            towers.recompute(self.model)
        if job.compile:
            self._check_compilable()
            towers.compile_layers(self.model)
        self.step_of = self._step_of(Examples.open(job.examples))
        batch = max(1, job.global_batch // self.step_of.units_per_row)
        self.order = Order(self.step_of.rows, batch, job.seed)
        self.steps = steps_of(self.step_of.rows, batch, job.epochs)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.gradient = Gradient(parameters)
        self.optimizer = adamw(parameters, job.weight_decay)
        self.state = State()
        self.trackers: trackers.Trackers | None = None
        self.log_sent = self.asked = time.monotonic()
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
            "tokens": self._shard_tokens(),
        }  # fmt: skip
        if isinstance(self.model, CrossEncoder):
            return CrossStep(listwise=job.loss == "listwise", adversarial=job.adversarial, **shared)
        assert isinstance(job.loss, Mapping)
        sizes = tuple(sorted(set(job.dimensions)))
        if sizes and sizes[-1] > self.model.size:
            raise UserError(f"dimensions {sizes}: the model's embeddings have {self.model.size}.")
        objective = Objective(**job.loss, margin=job.mask_margin, dimensions=sizes)
        return DualStep(
            known=_known(job),
            objective=objective,
            in_batch=job.in_batch,
            grad_cache=job.grad_cache,
            chunk=job.chunk,
            **shared,
        )

    def _shard_tokens(self) -> int | None:
        """On a CPU shards of long texts hold fewer rows: activations stay near the cache, and their
        memory is bounded by tokens. Not with dropout, whose random numbers belong to the shards."""
        here = self.device.type == "cpu" and not towers.has_dropout(self.model)
        return CPU_TOKENS if here else None

    # ---- choices: made once, written down, kept over a resume

    def _decided(self) -> Job:
        """The job with what was left to us: worker 0 decides or remembers, all follow."""
        job = self.job
        choices: tuple[Precision, ...] = ("float32", "tf32", "bfloat16", "float64")
        if job.precision == "auto":
            found: Precision = "float32"
            if self.rank == 0:
                found = self._choices().get("precision") or choose_precision(self.device)
                self._choose(precision=found)
            job = replace(job, precision=choices[self._said_by_first(choices.index(found))])
        if job.precision != "float64":
            torch.set_float32_matmul_precision("high" if job.precision == "tf32" else "highest")
        return job

    def _choices(self) -> dict[str, Any]:
        """What this run has chosen so far. Worker 0's file."""
        path = self.job.out / "choices.json"
        return dict(read_json(path)) if storage.fetch(path) else {}

    def _choose(self, **choices: Any) -> None:
        write_json(self.job.out / "choices.json", self._choices() | choices)

    def _fit_memory(self) -> None:
        """Use less memory until the longest possible step fits every worker, and remember it.

        First GradCache, which changes no number; then, without dropout, half the micro-shard. With
        dropout random numbers belong to the shards, so their size is part of the recipe, and what
        does not fit is for the user to change.
        """
        known = self._choices() if self.rank == 0 else {}
        self._use(
            micro_shard=self._said_by_first(known.get("micro_shard", 0)) or self.job.micro_shard,
            grad_cache=bool(self._said_by_first(known.get("grad_cache", 0))) or self.job.grad_cache,
        )
        before = self.job
        while self._anywhere(not self._fits()):
            self._use(**self._less())
        if self.rank == 0 and self.job != before:
            self._choose(micro_shard=self.job.micro_shard, grad_cache=self.job.grad_cache)
        if isinstance(self.step_of, DualStep) and self.job.grad_cache:
            self.step_of = replace(self.step_of, keep=self._room())
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _less(self) -> dict[str, Any]:
        """What to use when the present settings do not fit."""
        size = self.job.micro_shard
        if isinstance(self.step_of, DualStep) and not self.job.grad_cache:
            self._warn("A step's activations do not fit the GPU's memory: grad_cache is on now.")
            return {"grad_cache": True}
        half = size // 2
        if half and not towers.has_dropout(self.model):
            self._warn(f"micro_shard {size} does not fit the GPU's memory: {half}.")
            return {"micro_shard": half}
        able = towers.cannot_recompute(self.model) is None
        cure = "Set recompute, or shorten the texts." if able else "Shorten the texts."
        if half:
            cure = f"With dropout its size is part of the result: set it to {half}"
            cure += ", or set recompute." if able else "."
        raise UserError(f"micro_shard {size} does not fit the GPU's memory. {cure}")

    def _check_compilable(self) -> None:
        """A shard that is forwarded twice must draw the same masks, and two compiled graphs, with
        gradient and without, need not."""
        twice = self.job.kind == "dual" or self.job.recompute  # grad_cache may yet be chosen.
        if twice and towers.has_dropout(self.model):
            raise UserError(
                "compile needs a model without dropout here: a shard's two compiled forwards may"
                " draw other masks. Set dropout=0 (model.dual.dropout, model.cross.dropout), or"
                " compile=false."
            )

    def _warn(self, text: str) -> None:
        if self.rank == 0:
            log.warning(text)

    def _use(self, **settings: Any) -> None:
        self.job = replace(self.job, **settings)
        names = settings.keys() & {"micro_shard", "grad_cache"}
        if isinstance(self.step_of, CrossStep):
            names -= {"grad_cache"}
        self.step_of = replace(self.step_of, **{name: settings[name] for name in names})

    def _fits(self) -> bool:
        """Try the worst case. A CPU's memory is never refused, so there is nothing to try."""
        if self.device.type != "cuda":
            return True
        try:
            self._probe()
            return True
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False

    def _probe(self) -> tuple[int, int]:
        """Bytes on the GPU in the worst case: of the activations, and of everything at the peak."""
        try:
            torch.cuda.reset_peak_memory_stats(self.device)
            # Beside Adam's two moments, which come with the first update.
            held = [torch.empty_like(self.gradient.values) for _ in range(2)]
            before = torch.cuda.memory_allocated(self.device)
            worst = self._worst_case()
            activations = torch.cuda.memory_allocated(self.device) - before
            worst.backward()
            del held
            return activations, torch.cuda.max_memory_allocated(self.device)
        finally:
            self.gradient.buffer.zero_()
            torch.cuda.empty_cache()

    def _room(self) -> int:
        """How many shards' activations GradCache can keep: each saves a second forward.

        Decided anew by every worker and at every start, as it changes no number. On a CPU one: its
        memory is shared with others, and a machine that swaps is slower than any forward.
        """
        if self.device.type != "cuda":
            return 1
        activations, peak = self._probe()
        free, total = torch.cuda.mem_get_info(self.device)
        others = total - free - torch.cuda.memory_reserved(self.device)
        room = ROOM * total - others - peak
        return 1 + max(0, int(room / activations))

    def _worst_case(self) -> torch.Tensor:
        """The activations that a step holds at once: one shard's, or without GradCache all."""
        size = self.job.micro_shard
        if isinstance(self.step_of, CrossStep) or self.job.grad_cache:
            return self.step_of.worst_case(size)
        rows = math.ceil(self.order.global_batch / self.world)
        return torch.stack([self.step_of.worst_case(size) for _ in range(0, rows, size)]).sum()

    # ---- the loop

    def run(self, on_step: OnStep | None, leaving: Leaving | None) -> Result:
        self.model.train()
        self._fit_memory()
        done = self._resume()
        self._begin_watching(done)
        try:
            self._loop(done, on_step, leaving)
        finally:
            if self.trackers:
                self.trackers.close()
        self._settle()
        self._leave_model()
        return self._result()

    def _loop(self, done: int, on_step: OnStep | None, leaving: Leaving | None) -> None:
        evaluations = evaluation_steps(self.steps, self.job.evaluations)
        for step in range(done, self.steps):
            if self._stalled():
                self._log(stopped={"after_step": step, "patience": self.job.patience})
                break
            loss = self._step(step)
            self.state.steps = step + 1
            better = step + 1 in evaluations and self._evaluate(step + 1)
            warned = leaving is not None and self._is_warned(step + 1, leaving)
            due = (step + 1) % self.job.checkpoint_every == 0 or step + 1 == self.steps
            # The best weights and the history that names them must not part in a crash.
            if better or warned or due:
                self._save(step + 1)
            if on_step:
                on_step(step + 1, self.steps, loss)

    def _is_warned(self, step: int, leaving: Leaving) -> bool:
        """Ask whether a machine leaves, at steps that worker 0's clock chooses for all workers."""
        if not self._said_by_first(int(time.monotonic() - self.asked >= NOTICE_SECONDS)):
            return False
        self.asked = time.monotonic()
        if warned := leaving():
            self._log(step=step, notice="a machine is about to be taken away: a checkpoint")
        return warned

    def _stalled(self) -> bool:
        """Early stopping: a pure function of the dev scores, so a resume stops at the same step."""
        if self.job.patience is None or self.state.best is None:
            return False
        since = [step for step, _ in self.state.history if step > self.state.best[0]]
        return len(since) >= self.job.patience

    def _step(self, step: int) -> float:
        started = time.perf_counter()
        job = self.job
        rate = learning_rate(
            step, self.steps, peak=job.learning_rate, warmup=job.warmup, schedule=job.schedule
        )
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
        pairs = isinstance(self.step_of, CrossStep)
        queries = len(tally.examples_R) / (self.step_of.examples.width if pairs else 1)
        self._log(
            step=step + 1,
            epoch=self.order.epoch(step + 1),
            loss=loss,
            learning_rate=rate,
            gradient_norm=norm,
            **self._seen(tally, sums),
            **self._speed(queries, sums, seconds),
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

    def _speed(self, queries: float, sums: Mapping[str, float], seconds: float) -> dict[str, float]:
        speed = {
            "queries_per_s": queries / seconds,
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
            self.trackers = trackers.Trackers(self.job.trackers, self.job.name, self.job.out, done)

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
        if self.rank == 0:
            log.warning("Skipped: %s.", message)
        if self.state.bad_in_a_row == BAD_STEPS:
            raise UserError(
                f"{BAD_STEPS} steps in a row were no numbers: {message}. Lower learning_rate"
                f" ({self.job.learning_rate}), or look at these rows."
            )

    def _broken(self, tally: Tally) -> list[int]:
        """The examples the model could not turn into numbers, or the whole batch if none."""
        broken_R = torch.zeros(len(tally.examples_R), device=self.device)
        broken_R[tally.start : tally.start + len(tally.finite_B)] = (~tally.finite_B).float()
        rows = np.flatnonzero(sum_over_workers(broken_R).cpu().numpy())
        return sorted(set(tally.examples_R[rows if len(rows) else slice(None)].tolist()))

    # ---- dev

    def _evaluate(self, step: int) -> bool:
        """Score dev; True, and the weights kept, if they are the best so far."""
        if self.job.dev is None:
            return False
        self.model.eval()
        if isinstance(self.model, CrossEncoder):
            mrr = cross_mrr(self.model, self.feed, self.job.dev)
        else:
            mrr = dual_mrr(self.model, self.feed, self.job.dev)
        best = self.state.best
        self.state.history.append((step, mrr))
        self._log(step=step, **{"dev_mrr@10": mrr})
        better = best is None or mrr > best[1]
        if better:
            self._check_writer()
        if self.rank == 0 and better:
            tensors = {"model": model_tensors(self.model)}
            # Two: the older of the two checkpoints that are kept may know only the one before.
            checkpoints.save(self.job.out / "best", step, tensors, {"dev_mrr@10": mrr}, keep=2)
        return better

    # ---- stop and go on

    def _check_writer(self) -> None:
        """Before anything is written or removed: two who train into one folder would take each
        other's checkpoints away. Worker 0 asks, all stop together."""
        folder = self.job.run_folder
        if folder is None:
            return
        found: Superseded | None = None
        if self.rank == 0:
            try:
                folder.check_writer()
            except Superseded as error:
                found = error
        if self._anywhere(found is not None):
            raise found or Superseded(f"{folder} was taken over, as worker 0 found.")

    def _save(self, step: int) -> None:
        self._check_writer()
        if self.rank == 0:
            tensors = {
                "model": model_tensors(self.model),
                "optimizer": optimizer_tensors(self.model, self.optimizer),
            }
            folder = self.job.out / "checkpoints"
            state = {**asdict(self.state), "run": self._identity()}
            self._send_log()  # First: who goes on from here needs the lines up to here.
            checkpoints.save(folder, step, tensors, state, keep=2)

    def _resume(self) -> int:
        """Load the newest valid checkpoint and forget what came after it; returns its step."""
        self._check_writer()
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
        load_optimizer(self.model, self.optimizer, found.tensors("optimizer"))
        self.state = State.of(found.state)

    def _leave_model(self) -> None:
        """Write `out/model`: the best weights on dev, or the last without dev."""
        self._check_writer()
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
            publish_folder(self.model.save, self.job.out / "model")
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
            "hosts": told_by_workers(socket.gethostname()),
            "pids": sum_over_workers(pids).tolist(),
            "precision": self.job.precision,
            "micro_shard": self.job.micro_shard,
            "negatives_per_query": self.step_of.negatives_per_query(self.job.global_batch),
        }

    def _result(self) -> Result:
        best = self.state.best
        return Result(
            steps=self.state.steps,
            best_step=best[0] if best else self.state.steps,
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
            if time.monotonic() - self.log_sent > storage.SECONDS:
                self._send_log()
        if self.trackers and "step" in line:
            values = {k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}
            self.trackers.log(line["step"], values)

    def _send_log(self) -> None:
        """To object storage, in the background, where the run is there."""
        path = self.job.log_path
        if path and storage.mirrored(path):
            self.log_sent = time.monotonic()
            storage.later(lambda: storage.push(path))

    def _settle(self) -> None:
        """Wait until all that was sent in the background has arrived."""
        if self.rank == 0:
            self._send_log()
            storage.settle()


@dataclass
class State:
    """What a checkpoint remembers beside tensors. No random state: it follows from the step."""

    history: list[tuple[int, float]] = field(default_factory=list)
    skipped: int = 0
    bad_in_a_row: int = 0
    steps: int = 0
    """Done."""

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> State:
        history = [(int(step), float(mrr)) for step, mrr in saved["history"]]
        return cls(history, saved["skipped"], saved["bad_in_a_row"], saved["step"])

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

    An example's positive is one of its query, also where no person said so (`denoise.promote`).
    Without qrels only a row's own positive is known. None: nothing is masked by id (the paper).
    """
    pairs = [np.empty((2, 0), np.int64)]
    if job.mask_known and job.qrels is not None:
        table = Version.open(job.qrels).read()
        positive = table.filter(pc.greater(table["relevance"], 0))
        pairs.append(np.stack([positive["query"].to_numpy(), positive["passage"].to_numpy()]))
        taught = Version.open(job.examples).read()
        pairs.append(np.stack([taught["query"].to_numpy(), taught["positive"].to_numpy()]))
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


def _cut_log(path: Path | None, step: int) -> None:
    """Keep the lines up to a step; those of steps that will be done again would be doubled."""
    if path is None or not storage.fetch(path):
        return
    lines = path.read_text(encoding="utf-8").splitlines() if step else []
    write_text(path, "".join(line + "\n" for line in lines if _step_in(line) <= step))


def _step_in(line: str) -> float:
    """The step of a log line; a line torn by a kill belongs to no step that counts."""
    try:
        return int(json.loads(line).get("step", 0))
    except json.JSONDecodeError:
        return math.inf
