"""Models that others published: what their folder says about itself, and `.bin` -> safetensors.

A sentence-transformers folder says how its vectors are made; a bare Hugging Face folder does not.
What cannot be said in rocketray's words is refused, for the vectors would silently be others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rocketray.errors import UserError
from rocketray.model import weights
from rocketray.model.tokens import Tokenizer

POOLING = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
"""sentence-transformers' names -> ours."""
OLD_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Before sentence-transformers 5.4 a folder had one flag per mode."""
LENGTHS = range(4, 1_000_000)
"""What a limit can be; tokenizers without one say 10^30."""


def dual_options(folder: Path) -> dict[str, Any]:
    """Fields of `recipe.Dual` that the folder of one encoder says; a bare one says nothing more
    than that one tower serves both sides.

    Raises:
        UserError: it makes its vectors in a way that rocketray does not have.
    """
    said: dict[str, Any] = {"towers": "one"}
    modules = _read(folder / "modules.json")
    if modules is None:
        return said
    kinds = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    if foreign := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
        raise UserError(
            f"{folder} has a module {foreign[0]} (modules.json); rocketray has an encoder, pooling"
            " and normalisation. Choose a model without it."
        )
    said["pooling"] = _pooling(folder / kinds["Pooling"]) if "Pooling" in kinds else "mean"
    said |= _prompts(folder, cosine="Normalize" in kinds)
    told = _read(folder / "sentence_bert_config.json") or {}
    if told.get("do_lower_case"):
        _check_case(folder)
    length = told.get("max_seq_length")
    if length := length or _tokenizer_limit(folder):
        said |= {"query_length": length, "passage_length": length}
    return said


def _check_case(folder: Path) -> None:
    upper, lower = Tokenizer(folder).ids(["ABC", "abc"], 8)
    if upper != lower:
        raise UserError(
            f"{folder} has its texts lowercased before they reach the tokenizer (do_lower_case in"
            " sentence_bert_config.json), which rocketray does not do. Choose another model."
        )


def cross_options(folder: Path) -> dict[str, Any]:
    """Fields of `recipe.Cross` that the folder of a cross-encoder says."""
    length = _tokenizer_limit(folder)
    return {"length": length} if length else {}


def _read(path: Path) -> Any:
    """JSON, or None where there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}). Download it again.") from error


def _pooling(folder: Path) -> str:
    told = _read(folder / "config.json")
    if told is None:
        raise UserError(
            f"{folder} has no config.json, which says how vectors are pooled. Download the whole"
            " model again."
        )
    modes = told.get("pooling_mode") or [
        OLD_POOLING.get(name, name)
        for name, value in told.items()
        if name.startswith("pooling_mode_") and value
    ]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in POOLING:
        raise UserError(
            f"{folder}/config.json pools by {', '.join(modes) or 'nothing'}; rocketray has"
            f" {', '.join(POOLING)}. Choose another model."
        )
    if not told.get("include_prompt", True):
        raise UserError(
            f"{folder}/config.json leaves the prompt out of the mean; rocketray does not. Choose"
            " another model."
        )
    return POOLING[modes[0]]


def _prompts(folder: Path, *, cosine: bool) -> dict[str, Any]:
    """Prompts and similarity, as `encode_query`, `encode_document` and `similarity` take them."""
    told = _read(folder / "config_sentence_transformers.json") or {}
    similarity = told.get("similarity_fn_name") or "cosine"
    if similarity not in ("cosine", "dot"):
        raise UserError(f"{folder} compares by {similarity}; rocketray by dot or cosine.")
    prompts = told.get("prompts") or {}
    usual = prompts.get(told.get("default_prompt_name") or "", "")
    passage = next((n for n in ("document", "passage", "corpus") if n in prompts), "")
    return {
        "similarity": "cosine" if cosine else similarity,
        "query_prompt": prompts.get("query", usual),
        "passage_prompt": prompts.get(passage, usual),
    }


def _tokenizer_limit(folder: Path) -> int | None:
    """`model_max_length`, and no more than the model has positions for."""
    length = (_read(folder / "tokenizer_config.json") or {}).get("model_max_length")
    if not isinstance(length, int) or length not in LENGTHS:
        return None
    config = _read(folder / "config.json") or {}
    positions = config.get("max_position_embeddings") or length
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        positions -= 2  # They count positions from behind the padding's.
    return min(length, positions)


# --------------------------------------------------------------------------------------- convert


def convert(name: str | Path, out: Path) -> dict[str, torch.Tensor]:
    """Weights published as `.bin` -> a folder with model.safetensors; returns the tensors.

    The file is unpickled with `weights_only`: torch then builds tensors and plain containers and
    nothing else. Beside the weights the folder gets the configuration and the tokenizer.

    Raises:
        UserError: nothing to convert, something else than tensors in it, or `out` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty. Give --out a new folder.")
    folder = weights.published_as_bin(name)
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("pytorch_model*.bin")):
        tensors |= _tensors(path)
    attempt = out.with_name(f".{out.name}.converting")
    shutil.rmtree(attempt, ignore_errors=True)
    attempt.mkdir(parents=True)
    for path in folder.glob("**/*"):
        if path.suffix in (".json", ".txt", ".model") and not path.name.endswith(".index.json"):
            target = attempt / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    save_file(tensors, attempt / "model.safetensors", metadata={"format": "pt"})
    if out.exists():
        out.rmdir()
    attempt.rename(out)
    return tensors


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Whatever the unpickler meets: pickle, zip and EOF errors alike.
        raise UserError(
            f"{path} cannot be read as weights alone ({str(error).splitlines()[0]}). It is damaged,"
            " or holds more than weights; rocketray does not run what it holds."
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not named tensors.")
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor.")
    # Clones: safetensors refuses tensors that share memory, as tied word embeddings do.
    return {name: value.clone().contiguous() for name, value in content.items()}
