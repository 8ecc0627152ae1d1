"""trainer.py: one process, several, a slow reference and an interrupted run say the same."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import socket
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from transformers import BertModel

from rocketray import storage
from rocketray.artifacts import Draft, RunFolder, Superseded, Version, commit_block, read_json
from rocketray.errors import UserError
from rocketray.model import checkpoints, dual_encoder, steps, trackers, trainer
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.gather import gather
from rocketray.model.gather import workers as who
from rocketray.model.job import Job
from rocketray.model.loss import Contrast, contrastive_loss
from rocketray.model.optimizer import learning_rate
from rocketray.model.trainer import Leaving, Trainer, evaluation_steps, train
from rocketray.schema import EXAMPLES
from tests.distributed import Workers
from tests.model.training_data import NEGATIVES, TrainingData
from tests.s3 import Node

CPU = torch.device("cpu")
WIDTH = 1 + NEGATIVES


# ----------------------------------------------------------- the gradient of one step, in float64


def exact() -> ExitStack:
    """Let float64 through where the encoders promise float32."""
    stack = ExitStack()
    stack.enter_context(mock.patch.object(dual_encoder, "pool", lambda hidden, _, __: hidden[:, 0]))
    stack.enter_context(mock.patch.object(CrossEncoder, "logits", exact_logits))
    return stack


def exact_logits(self: CrossEncoder, batch: Any) -> torch.Tensor:
    logits_B: torch.Tensor = self.model(**batch).logits[:, 0]
    return logits_B


def gradients(jobs: list[Job], step: int = 1) -> list[tuple[np.ndarray, float, int]]:
    """Flat gradient, loss and masked columns of one step of every job."""
    found = []
    with exact():
        for job in jobs:
            run = Trainer(job, CPU)
            tally, sums = run.gradient_of(step)
            values = run.gradient.values.numpy().copy()
            assert sums["gradient_norm"] == pytest.approx(np.linalg.norm(values))
            found.append((values, sums["loss"], tally.masked))
    return found


def slow_dual(job: Job, step: int = 1) -> tuple[np.ndarray, float, int]:
    """The same from the whole batch at once, dense softmaxes and loops over ids."""
    with exact():
        run = Trainer(job, CPU)
        feed, examples, model = run.feed, run.step_of.examples, run.model
        assert isinstance(model, DualEncoder)
        model.train()
        batch_R = run.order.batch(step)
        queries, passages = examples.queries_N[batch_R], examples.passages_NS[batch_R].ravel()
        q_RD = model.embed_queries(feed.assembler.queries(feed.queries, queries, 16))
        p_GD = model.embed_passages(feed.assembler.passages(feed.passages, passages, 32))
        hidden_RG, masked = slow_mask(job, queries, passages)
        ce_RS = torch.from_numpy(examples.ce_NS[batch_R])
        losses = [
            slow_loss(job, model, cut(model, q_RD, size), cut(model, p_GD, size), hidden_RG, ce_RS)
            for size in job.dimensions or [32]
        ]
        loss = torch.stack(losses).mean()
        return flat_gradient(model, loss), loss.item(), masked


def cut(model: DualEncoder, e_BD: torch.Tensor, size: int) -> torch.Tensor:
    part = e_BD[:, :size]
    return part / part.norm(dim=1, keepdim=True) if model.similarity == "cosine" else part


def slow_mask(job: Job, queries: np.ndarray, passages: np.ndarray) -> tuple[torch.Tensor, int]:
    """Query i is answered by i and i + 1 (qrels), and by i + 3 (scored)."""
    hidden_RG = torch.zeros(len(queries), len(passages), dtype=torch.bool)
    masked = 0
    for row, query in enumerate(queries):
        known = [query, query + 1] if job.mask_known else []
        if job.mask_ce_above is not None:
            known = [*known, query, query + 3]
        for column, passage in enumerate(passages):
            if job.in_batch and row // job.in_batch != column // WIDTH // job.in_batch:
                hidden_RG[row, column] = True
            elif column != row * WIDTH and passage in known:
                hidden_RG[row, column] = True
                masked += 1
    return hidden_RG, masked


def slow_loss(
    job: Job, model: DualEncoder, q_RD: torch.Tensor, p_GD: torch.Tensor,
    hidden_RG: torch.Tensor, ce_RS: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    assert isinstance(job.loss, dict)
    loss, rows = torch.zeros((), dtype=torch.float64), len(q_RD)
    t, places = model.temperature, torch.arange(len(q_RD)) * WIDTH
    similar_RG = q_RD @ p_GD.T
    own_R = similar_RG[torch.arange(rows), places]
    too_close = similar_RG > own_R[:, None] + (
        math.inf if job.mask_margin is None else job.mask_margin
    )
    logits = similar_RG.masked_fill(hidden_RG | too_close, -torch.inf) / t
    loss = loss + job.loss.get("contrastive", 1.0) * F.cross_entropy(logits, places)
    others_RG = (p_GD[places] @ p_GD.T).masked_fill(hidden_RG, -torch.inf)
    for row in range(rows):
        others = torch.cat([others_RG[row, : row * WIDTH], others_RG[row, row * WIDTH + 1 :]])
        all_of_row = torch.cat([own_R[row, None], others]) / t
        term = all_of_row.logsumexp(0) - all_of_row[0]
        loss = loss + job.loss.get("passage", 0.0) * term / rows
        known = [s for s in range(WIDTH) if not ce_RS[row, s].isnan()]
        teacher = torch.logit(ce_RS[row, known].double(), eps=1e-7)
        student = similar_RG[row, [row * WIDTH + s for s in known]] / t
        if len(known) > 1:
            target = teacher.softmax(0)
            kl = (target * (target.log() - student.log_softmax(0))).sum()
            loss = loss + job.loss.get("kl", 0.0) * kl / rows
            if known[0] == 0:
                gaps = (student[0] - student[1:]) - (teacher[0] - teacher[1:])
                loss = loss + job.loss.get("margin_mse", 0.0) * gaps.square().mean() / rows
    return loss


def slow_cross(job: Job, step: int = 1) -> tuple[np.ndarray, float, int]:
    with exact():
        run = Trainer(job, CPU)
        feed, examples, model = run.feed, run.step_of.examples, run.model
        assert isinstance(model, CrossEncoder)
        model.train()
        queries, passages, labels = [], [], []
        rows = run.order.batch(step)
        if job.loss == "listwise":
            rows = (rows[:, None] * WIDTH + np.arange(WIDTH)).ravel()
        for pair in rows:
            queries.append(examples.queries_N[pair // WIDTH])
            passages.append(examples.passages_NS[pair // WIDTH][pair % WIDTH])
            labels.append(float(pair % WIDTH == 0))
        batch = feed.assembler.pairs(
            feed.queries, np.array(queries), feed.passages, np.array(passages), 40
        )

        def loss_now() -> torch.Tensor:
            logits_R = model.logits(batch)
            if job.loss == "listwise":
                return -logits_R.view(-1, WIDTH).log_softmax(1)[:, 0].mean()
            return F.binary_cross_entropy_with_logits(logits_R, torch.tensor(labels).double())

        if job.adversarial:
            table = model.model.get_input_embeddings().weight
            direction = torch.autograd.grad(loss_now(), table)[0].to_dense()
            table.data += job.adversarial * direction / direction.norm()
        loss = loss_now()
        return flat_gradient(model, loss), loss.item(), 0


def flat_gradient(model: torch.nn.Module, loss: torch.Tensor) -> np.ndarray:
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.to_dense().flatten() for gradient in found]).numpy()


def dual_jobs(data: TrainingData, out: Path) -> list[Job]:
    weights = data.dual(dropout=0.0, temperature=0.5)
    job = data.job("dual", out, weights, precision="float64", chunk=2)
    return [
        job,  # 10 rows in shards of 3, 3, 3, 1: workers get 6 + 4, or 6 + 3 + 1 rows.
        replace(job, mask_known=False, grad_cache=False),
        replace(job, in_batch=4),
        replace(job, micro_shard=5),  # Two shards: a third worker has no rows at all.
        replace(job, weights=data.dual(dropout=0.0, towers="one", similarity="cosine")),
        replace(job, global_batch=24),  # More than there are examples: repeats.
        replace(job, loss={"kl": 0.7, "margin_mse": 0.1}, grad_cache=False),
        replace(job, loss={"contrastive": 0.5, "passage": 0.3}, mask_margin=0.05),
        replace(job, mask_ce_above=0.9, scored=(data.scored,)),
        replace(job, loss={"kl": 0.7, "margin_mse": 0.1}, micro_shard=5),  # A worker without rows.
        replace(job, mask_known=False, mask_ce_above=0.9, scored=(data.scored,), in_batch=4),
        replace(
            job,
            weights=data.dual(dropout=0.0, towers="one", similarity="cosine"),
            dimensions=(8, 32),
            loss={"kl": 1.0, "passage": 0.1},
        ),
        replace(job, recompute=True),
    ]


def cross_jobs(data: TrainingData, out: Path) -> list[Job]:
    job = data.job("cross", out, data.cross(dropout=0.0), precision="float64")
    return [
        job,
        replace(job, micro_shard=7),
        replace(
            job, loss="listwise", micro_shard=7
        ),  # 3 examples of 3 pairs, in shards of 2 and 1.
        replace(job, adversarial=0.01),
        replace(job, loss="listwise", adversarial=0.5),
    ]


def assert_equal(answers: list[Any], slow: list[Any]) -> None:
    for (gradient, loss, masked), (slow_gradient, slow_loss, slow_masked) in zip(
        answers, slow, strict=True
    ):
        assert (loss, masked) == (pytest.approx(slow_loss, rel=1e-12), slow_masked)
        tolerance = 1e-12 * float(np.linalg.norm(slow_gradient))
        np.testing.assert_allclose(gradient, slow_gradient, rtol=0, atol=tolerance)


def test_the_gradient_equals_a_dense_softmax_for_any_number_of_workers(
    workers: Workers, data: TrainingData, tmp_path: Path
) -> None:
    duals, crosses = dual_jobs(data, tmp_path), cross_jobs(data, tmp_path)
    slow = [slow_dual(job) for job in duals] + [slow_cross(job) for job in crosses]
    assert [masked for _, _, masked in slow].count(0) == 6  # The others do test the mask.
    assert_equal(gradients(duals + crosses), slow)
    for world in (2, 3):
        for answers in workers.run(world, gradients, duals + crosses):
            assert_equal(answers, slow)


@pytest.mark.slow
def test_the_gradient_on_four_workers(data: TrainingData, tmp_path: Path) -> None:
    jobs, four = dual_jobs(data, tmp_path), Workers(4, tmp_path)
    for answers in four.run(4, gradients, jobs):
        assert_equal(answers, [slow_dual(job) for job in jobs])
    four.stop()


# The mistakes of published recipes: each must be seen by the comparison above.


def detached_gather(p_BD: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Other workers' passages as constants, one's own with their gradient."""
    rank, _ = who()
    start = sum(sizes[:rank])
    p_GD = gather(p_BD.detach(), sizes)
    return torch.cat([p_GD[:start], p_BD, p_GD[start + len(p_BD) :]])


def times_world(*args: Any, **kwargs: Any) -> Contrast:
    told = contrastive_loss(*args, **kwargs)
    return told._replace(loss=told.loss * who()[1])


def over_world(*args: Any, **kwargs: Any) -> Contrast:
    told = contrastive_loss(*args, **kwargs)
    return told._replace(loss=told.loss / who()[1])


def wrong_gradients(job: Job) -> list[np.ndarray]:
    found = []
    for name, mistake in [
        ("gather", detached_gather),
        ("contrastive_loss", times_world),
        ("contrastive_loss", over_world),
    ]:
        with mock.patch.object(steps, name, mistake):
            found.append(gradients([job])[0][0])
    return found


def test_the_comparison_sees_a_detached_gather_and_a_world_size_factor(
    workers: Workers, data: TrainingData, tmp_path: Path
) -> None:
    job = dual_jobs(data, tmp_path)[0]
    right = slow_dual(job)[0]
    tolerance = 1e-12 * float(np.linalg.norm(right))
    detached, times, over = workers.run(2, wrong_gradients, job)[0]
    cosine = right @ detached / np.linalg.norm(right) / np.linalg.norm(detached)
    assert cosine < 0.999
    np.testing.assert_allclose(times, 2 * right, rtol=0, atol=tolerance)
    np.testing.assert_allclose(over, right / 2, rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------- whole, short runs


def read_log(job: Job) -> list[dict[str, Any]]:
    assert job.log_path is not None
    return [json.loads(line) for line in job.log_path.read_text().splitlines()]


def losses(job: Job) -> list[float]:
    return [line["loss"] for line in read_log(job) if "loss" in line]


def left(job: Job) -> dict[str, torch.Tensor]:
    """The weights in `out/model`."""
    kind = DualEncoder if job.kind == "dual" else CrossEncoder
    return {name: p.detach() for name, p in kind.open(job.out / "model").named_parameters()}


def assert_same_bytes(one: Job, other: Job) -> None:
    for path in sorted((one.out / "model").rglob("*.safetensors")):
        assert path.read_bytes() == (other.out / path.relative_to(one.out)).read_bytes()


@pytest.mark.parametrize("kind", ["dual", "cross"])
def test_two_workers_equal_one_with_dropout(
    workers: Workers, data: TrainingData, tmp_path: Path, kind: str
) -> None:
    # Cosine: by inner product, a bias common to all passages has no gradient either (see below).
    weights = (
        data.dual(dropout=0.1, similarity="cosine", temperature=0.1)
        if kind == "dual"
        else data.cross(dropout=0.1)
    )
    one, two = (
        data.job(kind, tmp_path / name, weights, dev=data.dev(), learning_rate=1e-4)
        for name in ("one", "two")
    )
    result = train(one)
    assert [result] * 2 == workers.run(2, train, two)
    assert losses(one) == pytest.approx(losses(two), rel=1e-5)
    # A key's bias shifts all scores of a softmax alike: its gradient is zero, and Adam makes
    # steps out of what rounding leaves of it. It changes no output.
    one_left, two_left = (
        {name: p for name, p in left(job).items() if not name.endswith("key.bias")}
        for job in (one, two)
    )
    torch.testing.assert_close(one_left, two_left, rtol=0, atol=1e-5)
    start = read_log(two)[0]["start"]
    assert (start["workers"], start["steps"]) == (2, result.steps)


def test_grad_cache_gives_the_same_bytes_with_dropout(data: TrainingData, tmp_path: Path) -> None:
    weights = data.dual(dropout=0.1)
    cached, kept = (
        data.job("dual", tmp_path / str(cache), weights, grad_cache=cache)
        for cache in (True, False)
    )
    train(cached)
    train(kept)
    assert losses(cached) == losses(kept)
    assert_same_bytes(cached, kept)


def test_bfloat16_forwards_stay_near_float32(data: TrainingData, tmp_path: Path) -> None:
    weights = data.dual(dropout=0.1, similarity="cosine", temperature=0.1)
    full, half = (
        data.job("dual", tmp_path / name, weights, precision=name, learning_rate=1e-4)
        for name in ("float32", "bfloat16")
    )
    train(full)
    train(half)
    assert losses(full) != losses(half)
    assert losses(half) == pytest.approx(losses(full), rel=0.05)
    assert {p.dtype for p in left(half).values()} == {torch.float32}


def test_it_learns(data: TrainingData, tmp_path: Path) -> None:
    weights = data.dual(dropout=0.0, towers="one", similarity="cosine", temperature=0.05)
    job = data.job("dual", tmp_path, weights, epochs=10, learning_rate=3e-3, dev=data.dev())
    result = train(job)
    assert losses(job)[-1] < losses(job)[0] / 3
    assert result.dev_mrr is not None
    assert result.dev_mrr > 0.8


def test_result_and_log_say_what_happened(data: TrainingData, tmp_path: Path) -> None:
    job = data.job(
        "dual", tmp_path, data.dual(dropout=0.1), epochs=3, evaluations=2, dev=data.dev()
    )
    seen: list[tuple[int, int, float]] = []
    result = train(job, on_step=lambda *step: seen.append(step))
    assert (result.steps, result.rows, result.skipped) == (6, 20, 0)
    assert result.negatives_per_query == 10 * WIDTH - 1
    assert [step for step, _ in result.history] == [3, 6]
    assert (result.best_step, result.dev_mrr) == max(result.history, key=lambda entry: entry[1])
    lines = read_log(job)
    assert lines[0] == {
        "start": {
            "from_step": 0,
            "steps": 6,
            "rows": 20,
            "global_batch": 10,
            "workers": 1,
            "hosts": [socket.gethostname()],
            "pids": [os.getpid()],
            "precision": "float32",
            "micro_shard": 3,
            "negatives_per_query": 29,
        }
    }
    assert [line["step"] for line in lines[1:]] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert seen == [(line["step"], 6, line["loss"]) for line in lines if "loss" in line]
    assert lines[1].keys() == {
        "step", "epoch", "loss", "learning_rate", "gradient_norm",
        "masked", "masked_by_margin", "masked_share", "positive", "hardest_negative",
        "queries_per_s", "tokens_per_s", "seconds", "memory_gib", "utilisation",
    }  # fmt: skip
    assert lines[4] == {"step": 3, "dev_mrr@10": result.history[0][1]}
    assert lines[2]["epoch"] == 1.0


def test_dev_mrr_equals_a_slow_one(data: TrainingData, tmp_path: Path) -> None:
    job = data.job("dual", tmp_path, data.dual(dropout=0.1), dev=data.dev())
    result = train(job)
    model, dev, feed = DualEncoder.open(tmp_path / "model"), data.dev(), Trainer(job, CPU).feed
    assert dev.pool is not None
    pool = np.sort(dev.pool)
    with torch.no_grad():
        q_QD = model.embed_queries(feed.assembler.queries(feed.queries, dev.queries, 16))
        p_PD = model.embed_passages(feed.assembler.passages(feed.passages, pool, 32))
    found = []
    for scores, relevant in zip((q_QD @ p_PD.T).tolist(), dev.relevant, strict=True):
        ranked = sorted(range(len(pool)), key=lambda place: -scores[place])
        ranks = [rank for rank, place in enumerate(ranked, 1) if pool[place] in relevant]
        found.append(1 / ranks[0] if ranks[0] <= 10 else 0)
    assert result.dev_mrr == pytest.approx(np.mean(found))


def test_the_best_on_dev_is_left_and_the_earliest_of_equals(
    data: TrainingData, tmp_path: Path
) -> None:
    seen = []

    def scripted(model: DualEncoder, *_: Any) -> float:
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return [0.2, 0.5, 0.5, 0.1][len(seen) - 1]

    weights = data.dual(dropout=0.1)
    job = data.job("dual", tmp_path, weights, epochs=4, evaluations=4, dev=data.dev())
    with mock.patch.object(trainer, "dual_mrr", scripted):
        result = train(job)
    assert result.history == [(2, 0.2), (4, 0.5), (6, 0.5), (8, 0.1)]
    assert (result.best_step, result.dev_mrr) == (4, 0.5)
    torch.testing.assert_close(left(job), seen[1], rtol=0, atol=0)


def test_without_dev_the_last_is_left(data: TrainingData, tmp_path: Path) -> None:
    job = data.job("dual", tmp_path, data.dual(dropout=0.1))
    result = train(job)
    assert (result.best_step, result.dev_mrr, result.history) == (4, None, [])
    last = checkpoints.newest(tmp_path / "checkpoints")
    assert last is not None
    torch.testing.assert_close(left(job), last.tensors("model"), rtol=0, atol=0)


def test_the_callers_random_state_is_his(data: TrainingData, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(data.job("dual", tmp_path, data.dual(dropout=0.1), epochs=0.5))
    assert torch.equal(torch.rand(3), expected)


# -------------------------------------------------------------------------------- stop and go on


class Interrupt(Exception):
    pass


def train_until(job: Job, stop: int, leaving: Leaving | None = None) -> None:
    def on_step(step: int, *_: Any) -> None:
        if step == stop:
            raise Interrupt

    with pytest.raises(Interrupt):
        train(job, on_step=on_step, leaving=leaving)


def stop_and_go_on(job: Job) -> Any:
    train_until(job, 5)
    return train(job)


def warned_and_go_on(job: Job) -> Any:
    """Told after the third step that a machine leaves, which it does after the fourth."""
    asked = itertools.count(1)
    with mock.patch.object(trainer, "NOTICE_SECONDS", 0.0):
        train_until(job, 4, lambda: next(asked) == 3)
    return train(job)


def without_times(job: Job) -> list[dict[str, Any]]:
    times = ("queries_per_s", "tokens_per_s", "seconds", "utilisation", "memory_gib")
    lines = [line for line in read_log(job) if "start" not in line]
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("kind", ["dual", "cross"])
def test_a_stopped_run_ends_in_the_same_bytes(
    workers: Workers, data: TrainingData, tmp_path: Path, kind: str, world: int
) -> None:
    weights = data.dual(dropout=0.1) if kind == "dual" else data.cross(dropout=0.1)
    whole, stopped = (
        data.job(
            kind,
            tmp_path / name,
            weights,
            epochs=4 if kind == "dual" else 4 / WIDTH,
            checkpoint_every=2,
            evaluations=8,
            dev=data.dev(),
            weight_decay=0.01,
        )
        for name in ("whole", "stopped")
    )
    if world == 1:
        results = [train(whole), stop_and_go_on(stopped)]
    else:
        results = workers.run(2, train, whole) + workers.run(2, stop_and_go_on, stopped)
    assert results == results[:1] * len(results)
    assert results[0].steps == 8
    assert_same_bytes(whole, stopped)
    assert without_times(whole) == without_times(stopped)
    starts = [line["start"]["from_step"] for line in read_log(stopped) if "start" in line]
    assert starts == [0, 4]


@pytest.mark.parametrize("world", [1, 2])
def test_a_notice_saves_what_is_done(
    workers: Workers, data: TrainingData, tmp_path: Path, world: int
) -> None:
    """Long before the next checkpoint is due."""
    whole, warned = (
        data.job("dual", tmp_path / name, data.dual(dropout=0.1), epochs=4)
        for name in ("whole", "warned")
    )
    if world == 1:
        train(whole)
        warned_and_go_on(warned)
    else:
        workers.run(2, train, whole)
        workers.run(2, warned_and_go_on, warned)
    assert_same_bytes(whole, warned)
    log = read_log(warned)
    assert [line["start"]["from_step"] for line in log if "start" in line] == [0, 3]
    assert [line["step"] for line in log if "notice" in line] == [3]


def test_a_stopped_run_goes_on_on_another_machine(
    data: TrainingData, tmp_path: Path, on: Node
) -> None:
    """On object storage: checkpoints, the best weights and the log are all it has."""
    whole, first, second, seen = (
        data.job(
            "dual", out, data.dual(dropout=0.1), epochs=4, checkpoint_every=2, evaluations=8,
            dev=data.dev(), precision="auto", trackers=("tensorboard",),
        )
        for out in (tmp_path / "whole", *(on(node) / "dual_0" for node in "abc"))
    )  # fmt: skip
    train(whole)
    train_until(first, 5)
    storage.settle()  # As the end of the process does.
    assert train(second).steps == 8
    storage.sync(seen.out, below=True)
    assert_same_bytes(whole, seen)
    assert without_times(whole) == without_times(seen)
    assert read_json(seen.out / "choices.json") == read_json(whole.out / "choices.json")
    assert len(list((seen.out / "tensorboard").iterdir())) == 2


def test_workers_may_change_in_between(
    workers: Workers, data: TrainingData, tmp_path: Path
) -> None:
    whole, changed = (
        data.job(
            "dual",
            tmp_path / name,
            data.dual(dropout=0.1),
            epochs=4,
            checkpoint_every=2,
            learning_rate=1e-4,
        )
        for name in ("whole", "changed")
    )
    train(whole)
    train_until(changed, 5)
    workers.run(3, train, changed)
    assert losses(changed) == pytest.approx(losses(whole), rel=1e-5)
    starts = [line["start"] for line in read_log(changed) if "start" in line]
    assert [(s["from_step"], s["workers"]) for s in starts] == [(0, 1), (4, 3)]


def test_another_runs_checkpoints_are_refused(data: TrainingData, tmp_path: Path) -> None:
    job = data.job("dual", tmp_path, data.dual(dropout=0.1))
    train(job)
    with pytest.raises(UserError, match=r"holds another run: .*'steps': 4.*; this is .*'steps': 2"):
        train(replace(job, epochs=1))


def test_a_finished_run_called_again_changes_nothing(data: TrainingData, tmp_path: Path) -> None:
    job = data.job("dual", tmp_path, data.dual(dropout=0.1), dev=data.dev())
    first = train(job)
    weights = left(job)
    assert train(job) == first
    torch.testing.assert_close(left(job), weights, rtol=0, atol=0)
    assert len(losses(job)) == first.steps


def test_a_corrupt_checkpoint_costs_steps_and_not_the_result(
    data: TrainingData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = data.dual(dropout=0.1)
    whole, stopped = (
        data.job("dual", tmp_path / name, weights, epochs=4, checkpoint_every=2)
        for name in ("whole", "stopped")
    )
    train(whole)
    train_until(stopped, 5)
    broken = stopped.out / "checkpoints" / "step-00000004" / "optimizer.safetensors"
    broken.write_bytes(broken.read_bytes()[:-4])
    train(stopped)
    assert str(broken) in caplog.text
    assert_same_bytes(whole, stopped)


def test_a_stop_before_the_first_checkpoint_starts_the_log_anew(
    data: TrainingData, tmp_path: Path
) -> None:
    job = data.job("dual", tmp_path, data.dual(dropout=0.1))
    train_until(job, 1)
    assert job.log_path is not None
    with job.log_path.open("a") as file:
        file.write('{"step": 2, "lo')  # Torn by a kill.
    train(job)
    assert len(losses(job)) == 4


def test_lost_best_weights_stop_the_run(data: TrainingData, tmp_path: Path) -> None:
    job = data.job("dual", tmp_path, data.dual(dropout=0.1), dev=data.dev())
    best = train(job).best_step
    (tmp_path / "best" / f"step-{best:08d}" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="lost the weights that are best on dev"):
        train(job)


def taken_over(job: Job, when: int) -> str:
    """What is said after another process has taken the run folder over, after so many steps."""
    assert job.run_folder is not None
    other = RunFolder(job.run_folder.path)

    def on_step(step: int, *_: Any) -> None:
        if step == when and who()[0] == 0:
            other.claim(take_over=True)

    with pytest.raises(Superseded) as error:
        train(job, on_step=on_step)
    return str(error.value)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(
    ("evaluations", "when", "saved"),
    [
        (1, 3, {"checkpoints/step-00000002"}),  # Then a checkpoint is due,
        (2, 3, {"checkpoints/step-00000002"}),  # or the best weights,
        (1, 8, {"checkpoints/step-00000006", "checkpoints/step-00000008", "best/step-00000008"}),
    ],  # or the model.
)
def test_who_was_taken_over_saves_nothing_more(
    workers: Workers, data: TrainingData, tmp_path: Path, world: int, evaluations: int, when: int,
    saved: set[str],
) -> None:  # fmt: skip
    folder = RunFolder(tmp_path)
    folder.claim()
    job = data.job(
        "dual", tmp_path / "dual_0", data.dual(dropout=0.1), epochs=4, checkpoint_every=2,
        dev=data.dev(), evaluations=evaluations, run_folder=folder,
    )  # fmt: skip
    said = [taken_over(job, when)] if world == 1 else workers.run(2, taken_over, job, when)
    assert all("was taken over" in text for text in said)
    assert {path.relative_to(job.out).as_posix() for path in job.out.glob("*/*step-*")} == saved
    assert not (job.out / "model").exists()


def test_who_was_taken_over_removes_no_checkpoint_of_the_other(
    data: TrainingData, tmp_path: Path
) -> None:
    """As when its group is begun anew: it would go on from what is there, and forget the rest."""
    folder, other = RunFolder(tmp_path), RunFolder(tmp_path)
    folder.claim()
    job = data.job("dual", tmp_path / "dual_0", data.dual(dropout=0.1), run_folder=folder)
    other.claim(take_over=True)
    newer = job.out / "checkpoints" / ".step-00000009.0123abcd.tmp"
    newer.mkdir(parents=True)
    with pytest.raises(Superseded):
        train(job)
    assert newer.is_dir()
    assert [path.name for path in job.out.iterdir()] == ["checkpoints"]


# --------------------------------------------------------------------------------- no numbers


def poisoned(data: TrainingData, token: str | None) -> Path:
    """Initial weights in which one word, or every word, is NaN."""
    path = data.folder / f"poisoned-{token}"
    model = DualEncoder.open(data.dual(dropout=0.0))
    words = json.loads((data.base / "tokenizer.json").read_text())["model"]["vocab"]
    with torch.no_grad():
        table = model.passage.get_input_embeddings().weight
        table[words[token] if token else slice(None)] = torch.nan
    model.save(path)
    return path


def examples_with(data: TrainingData, passage: int) -> set[int]:
    rows = steps.Examples.open(data.examples).passages_NS
    return {int(example) for example in np.flatnonzero((rows == passage).any(axis=1))}


@pytest.mark.parametrize("world", [1, 2])
def test_a_step_without_numbers_is_dropped_by_all_and_its_rows_are_named(
    workers: Workers, data: TrainingData, tmp_path: Path, world: int
) -> None:
    settings: dict[str, Any] = {"epochs": 4, "global_batch": 2, "micro_shard": 1}
    job = data.job("dual", tmp_path, poisoned(data, "poison"), **settings)
    result = train(job) if world == 1 else workers.run(2, train, job)[1]
    guilty = examples_with(data, 7)
    order = Trainer(job, CPU).order
    expected = {
        step + 1: sorted(guilty.intersection(order.batch(step).tolist()))
        for step in range(result.steps)
        if guilty.intersection(order.batch(step).tolist())
    }
    dropped = {line["step"]: line["rows"] for line in read_log(job) if "skipped" in line}
    assert dropped == expected
    assert 0 < len(dropped) == result.skipped < result.steps
    changed = left(job)["passage.encoder.layer.0.output.dense.weight"]
    assert changed.isfinite().all()


def test_five_steps_in_a_row_without_numbers_are_an_error(
    data: TrainingData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = data.job("dual", tmp_path, poisoned(data, None), epochs=4)
    with pytest.raises(UserError, match=r"5 steps in a row .* Lower learning_rate \(0.001\)"):
        train(job)
    assert len(caplog.records) == 5


# ---------------------------------------------------------------------------------- small pieces


def rates(steps: int, warmup: float, schedule: Any) -> list[float]:
    return [
        learning_rate(step, steps, peak=1.0, warmup=warmup, schedule=schedule)
        for step in range(steps)
    ]


def test_linear_schedule() -> None:
    assert rates(10, 0.2, "linear") == [
        1 / 2,
        1,
        1,
        7 / 8,
        6 / 8,
        5 / 8,
        4 / 8,
        3 / 8,
        2 / 8,
        1 / 8,
    ]


def test_constant_schedule() -> None:
    assert rates(8, 0.25, "constant") == [1 / 2] + [1] * 7
    assert rates(3, 0.0, "constant") == [1, 1, 1]


def test_evaluation_steps() -> None:
    assert evaluation_steps(10, 1) == {10}
    assert evaluation_steps(10, 4) == {2, 5, 8, 10}
    assert evaluation_steps(3, 0) == {3}
    assert evaluation_steps(2, 5) == {1, 2}


def test_negatives_per_query(data: TrainingData, tmp_path: Path) -> None:
    weights = data.dual(dropout=0.1)
    count = Trainer(data.job("dual", tmp_path, weights, in_batch=4), CPU)._result()
    assert count.negatives_per_query == 4 * WIDTH - 1
    cross = Trainer(data.job("cross", tmp_path, data.cross(dropout=0.1)), CPU)._result()
    assert (cross.negatives_per_query, cross.rows) == (NEGATIVES, 20 * WIDTH)


def test_clipping_scales_and_decay_spares_vectors(data: TrainingData, tmp_path: Path) -> None:
    job = data.job("dual", tmp_path, data.dual(dropout=0.1), clip=0.5, weight_decay=0.1)
    run = Trainer(job, CPU)
    decay, spared = run.optimizer.param_groups
    assert (decay["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in run.model.named_parameters()}
    assert all(
        names[id(p)].endswith("bias") or "LayerNorm" in names[id(p)] for p in spared["params"]
    )
    norm = run.gradient_of(0)[1]["gradient_norm"]
    before = run.gradient.values.clone()
    run._update(1e-3, norm)
    assert norm > 0.5
    torch.testing.assert_close(run.gradient.values, before * (0.5 / norm))
    assert math.isclose(run.gradient.values.norm(), 0.5, rel_tol=1e-5)


def test_examples_need_equal_numbers_of_negatives(data: TrainingData) -> None:
    table = mock.Mock()
    table.read.return_value = pa.table(
        {"query": [1, 2], "positive": [1, 2], "negatives": [[1], [1, 2]]}
    )
    with (
        mock.patch.object(Version, "open", return_value=table),
        pytest.raises(ValueError, match=r"same number of negatives: \[1, 2\]"),
    ):
        steps.Examples.open("somewhere")


# ------------------------------------------------------------- choices, early stops, what is told


def weights_after(job: Job) -> np.ndarray:
    """All weights after a whole run, flat."""
    with exact():
        train(job)
    last = checkpoints.newest(job.out / "checkpoints")
    assert last is not None
    return torch.cat([p.flatten() for _, p in sorted(last.tensors("model").items())]).numpy()


@pytest.mark.parametrize("kind", ["dual", "cross"])
def test_fifty_steps_in_float64_on_any_number_of_workers(
    workers: Workers, data: TrainingData, tmp_path: Path, kind: str
) -> None:
    """Uneven shares (10 rows in shards of 3), dropout on."""
    weights = data.dual(dropout=0.1) if kind == "dual" else data.cross(dropout=0.1)
    epochs = 25 if kind == "dual" else 25 / WIDTH
    jobs = [
        data.job(
            kind, tmp_path / name, weights, epochs=epochs, precision="float64", learning_rate=1e-4
        )
        for name in ("one", "two", "three")
    ]
    one = weights_after(jobs[0])
    assert len(losses(jobs[0])) == 50
    for world, job in ((2, jobs[1]), (3, jobs[2])):
        found = workers.run(world, weights_after, job)[0]
        assert np.linalg.norm(found - one) <= 1e-10 * np.linalg.norm(one)
        assert losses(job) == pytest.approx(losses(jobs[0]), rel=1e-10)


def test_early_stopping_and_a_resume_stop_at_the_same_step(
    data: TrainingData, tmp_path: Path
) -> None:
    scores = iter([0.2, 0.5, 0.5, 0.4, 0.9, 0.9])
    job = data.job(
        "dual", tmp_path, data.dual(dropout=0.1), epochs=6, evaluations=6, dev=data.dev(),
        patience=2, checkpoint_every=2,
    )  # fmt: skip
    with mock.patch.object(trainer, "dual_mrr", side_effect=scores):
        result = train(job)  # 0.5 at step 4; not better at 6 and 8.
    assert [step for step, _ in result.history] == [2, 4, 6, 8]
    assert (result.best_step, result.steps, len(losses(job))) == (4, 8, 8)
    assert read_log(job)[-1] == {"stopped": {"after_step": 8, "patience": 2}}
    with mock.patch.object(trainer, "dual_mrr", side_effect=AssertionError):
        assert train(job) == result


def fits(most: int) -> Any:
    """A GPU on which GradCache and shards of `most` rows fit."""
    return mock.patch.object(
        Trainer, "_fits", lambda run: run.job.grad_cache and run.job.micro_shard <= most
    )


def test_what_does_not_fit_is_cached_then_halved_and_remembered(
    data: TrainingData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = data.dual(dropout=0.0)
    job = data.job("dual", tmp_path, weights, micro_shard=8, grad_cache=False, checkpoint_every=2)
    with fits(2):
        assert train(job).micro_shard == 2
    assert "grad_cache is on now" in caplog.text
    assert "micro_shard 8 does not fit" in caplog.text
    remembered = json.loads((tmp_path / "choices.json").read_text())
    assert remembered == {"grad_cache": True, "micro_shard": 2}
    with fits(2):
        run = Trainer(job, CPU)
        run._fit_memory()
    assert (run.job.micro_shard, run.job.grad_cache) == (2, True)
    same = data.job("dual", tmp_path / "same", weights, micro_shard=2)
    train(same)
    assert_same_bytes(job, same)


def test_with_dropout_a_micro_shard_that_does_not_fit_stops_the_run(
    data: TrainingData, tmp_path: Path
) -> None:
    job = data.job("dual", tmp_path, data.dual(dropout=0.1), micro_shard=8)
    with fits(2), pytest.raises(UserError, match=r"micro_shard 8 does not fit .* set it to 4"):
        train(job)


def test_kept_activations_change_no_byte(data: TrainingData, tmp_path: Path) -> None:
    weights = data.dual(dropout=0.1)
    fewest, more = (data.job("dual", tmp_path / str(room), weights) for room in (1, 3))
    for job, room in ((fewest, 1), (more, 3)):
        with mock.patch.object(Trainer, "_room", lambda run, room=room: room):
            train(job)
    assert losses(fewest) == losses(more)
    assert_same_bytes(fewest, more)


@pytest.mark.parametrize(("free", "kept"), [(80, 6), (40, 2), (10, 1)])
def test_activations_are_kept_where_a_gpu_has_room(
    data: TrainingData, tmp_path: Path, free: int, kept: int
) -> None:
    """Of 100 bytes 85 may be planned for. A step takes 20 beside what others hold (100 - free, less
    our 5), each further shard's activations 10: with 80 free, 1 + (85 - 15 - 20) / 10."""
    run = Trainer(data.job("dual", tmp_path, data.dual(dropout=0.0)), CPU)
    run.device = torch.device("cuda")
    with (
        mock.patch.object(Trainer, "_probe", return_value=(10, 20)),
        mock.patch.object(torch.cuda, "mem_get_info", return_value=(free, 100)),
        mock.patch.object(torch.cuda, "memory_reserved", return_value=5),
    ):
        assert run._room() == kept


@pytest.mark.parametrize("kind", ["dual", "cross"])
def test_the_worst_case_is_the_longest_shard(data: TrainingData, tmp_path: Path, kind: str) -> None:
    weights = data.dual(dropout=0.0) if kind == "dual" else data.cross(dropout=0.0)
    run = Trainer(data.job(kind, tmp_path, weights), CPU)
    run.step_of.worst_case(3).backward()
    assert run.gradient.values.any()
    assert run._worst_case().isfinite()


def test_auto_precision_is_decided_once(data: TrainingData, tmp_path: Path) -> None:
    job = data.job("dual", tmp_path, data.dual(dropout=0.0), precision="auto")
    with mock.patch.object(trainer, "choose_precision", return_value="bfloat16"):
        assert Trainer(job, CPU).job.precision == "bfloat16"
    with mock.patch.object(trainer, "choose_precision", side_effect=AssertionError):
        assert train(job).precision == "bfloat16"


@pytest.mark.parametrize(
    ("kind", "settings"), [("dual", {}), ("cross", {}), ("cross", {"adversarial": 0.5})]
)
def test_recomputing_activations_gives_the_same_bytes_with_dropout(
    data: TrainingData, tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    weights = data.dual(dropout=0.1) if kind == "dual" else data.cross(dropout=0.1)
    kept, again = (
        data.job(kind, tmp_path / str(recompute), weights, recompute=recompute, **settings)
        for recompute in (False, True)
    )
    train(kept)
    train(again)
    assert losses(kept) == losses(again)
    assert_same_bytes(kept, again)


def test_what_cannot_recompute_is_refused(data: TrainingData, tmp_path: Path) -> None:
    job = data.job("dual", tmp_path, data.dual(dropout=0.0), recompute=True)
    with (
        mock.patch.object(BertModel, "supports_gradient_checkpointing", False),
        pytest.raises(UserError, match="recompute: transformers cannot for BertModel"),
    ):
        Trainer(job, CPU)


@pytest.mark.parametrize("settings", [{"kind": "dual"}, {"kind": "cross", "recompute": True}])
def test_compiled_layers_with_dropout_are_forwarded_once(
    data: TrainingData, tmp_path: Path, settings: dict[str, Any]
) -> None:
    weights = data.dual(dropout=0.1) if settings["kind"] == "dual" else data.cross(dropout=0.1)
    job = data.job(out=tmp_path, weights=weights, compile=True, **settings)
    with pytest.raises(UserError, match="compile needs a model without dropout here"):
        Trainer(job, CPU)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # The compiler's own.
def test_compiled_layers_give_the_same_losses(data: TrainingData, tmp_path: Path) -> None:
    weights = data.dual(dropout=0.0, pooling="mean")
    # Shards of one size: one of a single row would be compiled for itself.
    plain, compiled = (
        data.job("dual", tmp_path / str(on), weights, micro_shard=5, compile=on)
        for on in (False, True)
    )
    train(plain)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train(compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)


def test_adversarial_steps_leave_the_embeddings_where_adam_puts_them(
    data: TrainingData, tmp_path: Path
) -> None:
    run = Trainer(data.job("cross", tmp_path, data.cross(dropout=0.1), adversarial=0.5), CPU)
    assert isinstance(run.model, CrossEncoder)
    table = run.model.model.get_input_embeddings().weight
    before = table.detach().clone()
    run.gradient_of(0)
    assert torch.equal(table, before)


def test_masks_are_counted_and_similarities_told(data: TrainingData, tmp_path: Path) -> None:
    weights = data.dual(dropout=0.0, towers="one", similarity="cosine", temperature=0.05)
    job = data.job("dual", tmp_path, weights, mask_margin=0.0, epochs=1)
    train(job)
    line = next(line for line in read_log(job) if "loss" in line)
    assert line["hardest_negative"] <= line["positive"]  # What is nearer was masked.
    assert line["masked_by_margin"] > 0
    cells = 10 * 10 * WIDTH
    assert line["masked_share"] == (line["masked"] + line["masked_by_margin"]) / cells


def test_a_positive_that_nobody_labelled_is_no_negative_of_its_query(
    data: TrainingData, tmp_path: Path
) -> None:
    """Query 0 with positives 0 and 5 (promoted): each row masks the other's positive."""
    row = {"query": 0, "copy": 0, "negatives": [30, 31], "source": "labelled",
           "ce_positive": 1.0, "ce_negatives": [0.0, 0.0]}  # fmt: skip
    rows = [row | {"positive": positive} for positive in (0, 5)]
    draft = Draft(tmp_path / "examples", "examples", {})
    table = pa.Table.from_pylist(rows, schema=EXAMPLES)
    commit_block(draft.path, 0, {"table": table}, rows=2, key="", facts={})
    job = data.job("dual", tmp_path, data.dual(dropout=0.0), global_batch=2)
    job = replace(job, examples=draft.finish({}).path)
    assert Trainer(job, CPU).gradient_of(0)[0].masked == 2


def test_the_masked_share_is_one_of_the_columns_a_row_sees(
    data: TrainingData, tmp_path: Path
) -> None:
    run = Trainer(data.job("dual", tmp_path, data.dual(dropout=0.0), in_batch=4), CPU)
    assert run.gradient_of(0)[0].columns == (4 * 4 + 4 * 4 + 2 * 2) * WIDTH


def test_dimensions_the_model_does_not_have(data: TrainingData, tmp_path: Path) -> None:
    job = data.job("dual", tmp_path, data.dual(dropout=0.0), dimensions=(8, 999))
    with pytest.raises(UserError, match=r"dimensions \(8, 999\): .* have 32"):
        Trainer(job, CPU)


def test_a_crash_between_a_new_best_and_its_checkpoint_costs_nothing(
    data: TrainingData, tmp_path: Path
) -> None:
    """Best at step 2, a better one at 4, the checkpoint of step 4 lost; and the second time step 4
    is worse, as it may be on other machines."""
    job = data.job(
        "dual", tmp_path, data.dual(dropout=0.1), epochs=3, evaluations=3, dev=data.dev(),
        checkpoint_every=2,
    )  # fmt: skip
    with mock.patch.object(trainer, "dual_mrr", side_effect=[0.5, 0.6]):
        train_until(job, 4)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000004")
    with mock.patch.object(trainer, "dual_mrr", side_effect=[0.4, 0.3]):
        assert train(job).best_step == 2


def test_the_callers_precision_of_products_is_his(data: TrainingData, tmp_path: Path) -> None:
    before = torch.get_float32_matmul_precision()
    train(data.job("dual", tmp_path, data.dual(dropout=0.0), precision="tf32", epochs=0.5))
    assert torch.get_float32_matmul_precision() == before


def test_a_tracker_that_fails_does_not_end_training(
    data: TrainingData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = data.job("dual", tmp_path, data.dual(dropout=0.0), trackers=("tensorboard",))
    with mock.patch.object(trackers.TensorBoard, "log", side_effect=OSError("disk full")):
        train(job)
    assert caplog.text.count("TensorBoard failed at step 1") == 1
    assert len(losses(job)) == 4


def test_tensorboard_is_told_every_step(data: TrainingData, tmp_path: Path) -> None:
    job = data.job(
        "dual", tmp_path, data.dual(dropout=0.0), dev=data.dev(), trackers=("tensorboard",)
    )
    train(job)
    events = list((tmp_path / "tensorboard").glob("events.*"))
    assert len(events) == 1
    told = events[0].read_bytes()
    assert told.count(b"gradient_norm") == 4
    assert told.count(b"dev_mrr_10") == 1  # Its names allow no "@".
