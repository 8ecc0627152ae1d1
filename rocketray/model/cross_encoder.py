"""The cross-encoder: reads query and passage together, answers with the chance of relevance.

Opens elsewhere too: AutoModelForSequenceClassification, and sentence-transformers' CrossEncoder,
whose `predict` gives the same ce_scores for (query, title + " " + text).
"""

# Shapes: B pairs of a batch.

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    PreTrainedModel,
    RobertaForSequenceClassification,
    XLMRobertaForSequenceClassification,
)

from rocketray.model.first_token import first_token, supports
from rocketray.model.tokens import Batch
from rocketray.model.weights import (
    check_length,
    copy_tokenizer,
    load,
    quiet,
    read_settings,
    write_json,
)

KIND = "cross_encoder"

FIRST_TOKEN_HEADS = (
    BertForSequenceClassification,
    RobertaForSequenceClassification,
    XLMRobertaForSequenceClassification,
)


class CrossEncoder(nn.Module):
    """One encoder with one output, the logit of relevance.

    RocketQA takes a softmax over two outputs; the difference of its two logits is our one, so
    thresholds on the probability mean the same.
    """

    def __init__(self, model: PreTrainedModel, *, length: int, tokenizer_folder: Path) -> None:
        super().__init__()
        self.model = model
        self.length = length
        self.tokenizer_folder = tokenizer_folder

    @classmethod
    def create(
        cls,
        weights: str | Path,
        *,
        layers: int | None = None,
        length: int = 160,
        seed: int = 0,
        dropout: float | None = None,
    ) -> CrossEncoder:
        """A cross-encoder over a pre-trained encoder; a head it lacks is drawn from `seed`.

        Args:
            length: tokens of a pair, special tokens included.

        Raises:
            UserError: weights that do not fit; see `weights.load`.
        """
        folder = Path(weights)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            auto = AutoModelForSequenceClassification
            model = load(auto, folder, layers=layers, dropout=dropout, num_labels=1)
        check_length(model, length, folder)
        # What sentence-transformers reads to know that a logit becomes a probability.
        model.config.sentence_transformers = {
            "activation_fn": "torch.nn.modules.activation.Sigmoid"
        }
        return cls(model, length=length, tokenizer_folder=folder)

    def logits(self, batch: Batch) -> torch.Tensor:
        """[B], float32 whatever precision autocast chose inside (float64 for a float64 model)."""
        logits_B: torch.Tensor = self._head(batch).squeeze(-1)
        return logits_B if logits_B.dtype == torch.float64 else logits_B.float()

    @property
    def reads_first_token_only(self) -> bool:
        """The head reads the first token alone, and the last layer is computed for it alone."""
        return isinstance(self.model, FIRST_TOKEN_HEADS) and supports(self.model.base_model)

    def _head(self, batch: Batch) -> torch.Tensor:
        """[B, 1]. Families other than BERT and RoBERTa run whole."""
        if self.reads_first_token_only:
            return self.classify(first_token(self.model.base_model, batch))
        logits: torch.Tensor = self.model(**batch).logits
        return logits

    def classify(self, first_B1D: torch.Tensor) -> torch.Tensor:
        """[B, 1]: what a head that reads the first token alone makes of its hidden state."""
        model = self.model
        if isinstance(model, BertForSequenceClassification):
            first_B1D = model.dropout(model.bert.pooler(first_B1D))
        logits: torch.Tensor = model.classifier(first_B1D)
        return logits

    def ce_scores(self, batch: Batch) -> torch.Tensor:
        """Probability of relevance, float32 [B]."""
        return torch.sigmoid(self.logits(batch))

    def save(self, folder: str | Path) -> None:
        """Write weights, tokenizer and settings; the same model gives the same bytes."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            self.model.save_pretrained(folder)
        copy_tokenizer(self.tokenizer_folder, folder, self.length)
        write_json(folder / "rocketray.json", {"kind": KIND, "length": self.length})

    @classmethod
    def open(cls, folder: str | Path) -> CrossEncoder:
        """A saved cross-encoder, on the CPU, in eval mode.

        Raises:
            UserError: the folder holds something else.
        """
        folder = Path(folder)
        settings = read_settings(folder, KIND)
        model = load(AutoModelForSequenceClassification, folder, whole=True)
        return cls(model, length=settings["length"], tokenizer_folder=folder)
