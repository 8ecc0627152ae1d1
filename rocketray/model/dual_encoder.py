"""The dual encoder: one vector per query, one per passage, relevance is their similarity.

Folders open elsewhere too. One shared tower: AutoModel and SentenceTransformer open the folder.
Two towers: both open `query/` and `passage/`, and SentenceTransformer opens the parent as a Router,
where `encode_query` and `encode_document` take the right tower. The vectors are the same there; a
passage with a title is passed as the pair (title, text).
"""

# Shapes: B rows of a batch, T tokens of the longest, D embedding size.

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel

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

Towers = Literal["two", "one"]
Pooling = Literal["cls", "mean", "last"]
Similarity = Literal["dot", "cosine"]

KIND = "dual_encoder"

# The first release whose SentenceTransformer reads every file written here (Router came with it).
_SENTENCE_TRANSFORMERS = "5.0.0"


class DualEncoder(nn.Module):
    """Two towers over the same architecture, or one that serves both sides.

    Attributes:
        query, passage: the towers; the very same module when `towers` is "one".
        temperature: divides the similarity in the loss; embeddings are not scaled by it.
        query_length, passage_length: tokens of an input, special tokens and prompt included.
    """

    query: PreTrainedModel
    passage: PreTrainedModel

    def __init__(
        self,
        query: PreTrainedModel,
        passage: PreTrainedModel,
        *,
        tokenizer_folder: Path,
        pooling: Pooling,
        similarity: Similarity,
        temperature: float,
        query_length: int,
        passage_length: int,
        query_prompt: str,
        passage_prompt: str,
    ) -> None:
        super().__init__()
        self.query = query
        self.passage = passage
        self.tokenizer_folder = tokenizer_folder
        self.pooling: Pooling = pooling
        self.similarity: Similarity = similarity
        self.temperature = temperature
        self.query_length = query_length
        self.passage_length = passage_length
        self.query_prompt = query_prompt
        self.passage_prompt = passage_prompt

    @classmethod
    def create(
        cls,
        weights: str | Path,
        *,
        layers: int | None = None,
        towers: Towers = "two",
        pooling: Pooling = "cls",
        similarity: Similarity = "dot",
        temperature: float = 1.0,
        query_length: int = 32,
        passage_length: int = 128,
        query_prompt: str = "",
        passage_prompt: str = "",
        dropout: float | None = None,
    ) -> DualEncoder:
        """A dual encoder whose towers both start from the weights in a folder.

        Args:
            layers: keep the first so many; None keeps all.
            dropout: None keeps the configuration's.

        Raises:
            UserError: weights that do not fit; see `weights.load`.
        """
        folder = Path(weights)
        query = load(AutoModel, folder, layers=layers, dropout=dropout)
        check_length(query, max(query_length, passage_length), folder)
        return cls(
            query,
            copy.deepcopy(query) if towers == "two" else query,
            tokenizer_folder=folder,
            pooling=pooling,
            similarity=similarity,
            temperature=temperature,
            query_length=query_length,
            passage_length=passage_length,
            query_prompt=query_prompt,
            passage_prompt=passage_prompt,
        )

    @property
    def towers(self) -> Towers:
        return "one" if self.query is self.passage else "two"

    @property
    def size(self) -> int:
        """D."""
        return int(self.query.config.hidden_size)

    def embed_queries(self, batch: Batch) -> torch.Tensor:
        """q_BD, float32; of length one when the similarity is cosine."""
        return self._embed(self.query, batch)

    def embed_passages(self, batch: Batch) -> torch.Tensor:
        """p_BD, float32; of length one when the similarity is cosine."""
        return self._embed(self.passage, batch)

    @property
    def reads_first_token_only(self) -> bool:
        """The last layer is computed for the first token alone."""
        return self.pooling == "cls" and supports(self.query)

    def _embed(self, tower: PreTrainedModel, batch: Batch) -> torch.Tensor:
        if self.reads_first_token_only:
            hidden_BTD = first_token(tower, batch)
        else:
            hidden_BTD = tower(**batch).last_hidden_state
        return self.scaled(pool(hidden_BTD, batch.get("attention_mask"), self.pooling))

    def scaled(self, e_BD: torch.Tensor) -> torch.Tensor:
        """Pooled hidden states as embeddings: of length one when the similarity is cosine."""
        return nn.functional.normalize(e_BD, dim=-1) if self.similarity == "cosine" else e_BD

    def save(self, folder: str | Path) -> None:
        """Write weights, tokenizer and settings; the same model gives the same bytes."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.towers == "one":
            length = max(self.query_length, self.passage_length)
            self._save_tower(folder, self.query, length, default_prompt=None)
        else:
            self._save_tower(folder / "query", self.query, self.query_length, "query")
            self._save_tower(folder / "passage", self.passage, self.passage_length, "document")
            self._save_router(folder)
        write_json(
            folder / "rocketray.json", {"kind": KIND, "towers": self.towers} | self._settings
        )

    @classmethod
    def open(cls, folder: str | Path) -> DualEncoder:
        """A saved dual encoder, on the CPU, in eval mode.

        Raises:
            UserError: the folder holds something else.
        """
        folder = Path(folder)
        settings = read_settings(folder, KIND)
        del settings["kind"]
        two = settings.pop("towers") == "two"
        query = load(AutoModel, folder / "query" if two else folder, whole=True)
        passage = load(AutoModel, folder / "passage", whole=True) if two else query
        tokenizer_folder = folder / "query" if two else folder
        return cls(query, passage, tokenizer_folder=tokenizer_folder, **settings)

    @property
    def _settings(self) -> dict[str, Any]:
        return {
            "pooling": self.pooling,
            "similarity": self.similarity,
            "temperature": self.temperature,
            "query_length": self.query_length,
            "passage_length": self.passage_length,
            "query_prompt": self.query_prompt,
            "passage_prompt": self.passage_prompt,
        }

    def _save_tower(
        self, folder: Path, tower: PreTrainedModel, length: int, default_prompt: str | None
    ) -> None:
        """A folder for AutoModel, AutoTokenizer and SentenceTransformer."""
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            tower.save_pretrained(folder)
        copy_tokenizer(self.tokenizer_folder, folder, length)
        modules = self._module_types("")
        write_json(folder / "modules.json", _numbered(modules))
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": length})
        self._save_prompts(folder, default_prompt)
        (folder / "1_Pooling").mkdir(exist_ok=True)
        write_json(folder / "1_Pooling" / "config.json", self._pooling_config())

    def _save_router(self, folder: Path) -> None:
        """The parent of two towers: a Router whose modules are the towers' own folders."""
        query, passage = self._module_types("query"), self._module_types("passage")
        router = {
            "types": query | passage,
            "structure": {"query": list(query), "document": list(passage)},
            "parameters": {"default_route": "document", "allow_empty_key": True},
        }
        write_json(folder / "router_config.json", router)
        write_json(folder / "modules.json", _numbered({"": "sentence_transformers.models.Router"}))
        self._save_prompts(folder, default_prompt=None)

    def _module_types(self, root: str) -> dict[str, str]:
        """Path -> class, in order; by the class paths of before 5.4, which every release reads."""
        names = {"": "Transformer", "1_Pooling": "Pooling"}
        if self.similarity == "cosine":
            names["2_Normalize"] = "Normalize"
        return {
            (Path(root) / path).as_posix() if root else path: f"sentence_transformers.models.{name}"
            for path, name in names.items()
        }

    def _save_prompts(self, folder: Path, default_prompt: str | None) -> None:
        prompts = {
            "query": self.query_prompt,
            "document": self.passage_prompt,
            "passage": self.passage_prompt,
        }
        settings = {
            "__version__": {"sentence_transformers": _SENTENCE_TRANSFORMERS},
            "prompts": prompts,
            "default_prompt_name": default_prompt if prompts.get(default_prompt or "") else None,
            "similarity_fn_name": self.similarity,
        }
        write_json(folder / "config_sentence_transformers.json", settings)

    def _pooling_config(self) -> dict[str, Any]:
        # The form of before 5.4, which every release reads.
        return {
            "word_embedding_dimension": self.size,
            "pooling_mode_cls_token": self.pooling == "cls",
            "pooling_mode_mean_tokens": self.pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "pooling_mode_weightedmean_tokens": False,
            "pooling_mode_lasttoken": self.pooling == "last",
            "include_prompt": True,
        }


def pool(hidden_BTD: torch.Tensor, mask_BT: torch.Tensor | None, pooling: Pooling) -> torch.Tensor:
    """One vector per row of a batch that is padded on the right; float32 under autocast."""
    if hidden_BTD.dtype in (torch.bfloat16, torch.float16):
        hidden_BTD = hidden_BTD.float()
    if pooling == "cls":
        return hidden_BTD[:, 0]
    if mask_BT is None:
        return hidden_BTD[:, -1] if pooling == "last" else hidden_BTD.mean(dim=1)
    if pooling == "last":
        last_B = mask_BT.sum(dim=1) - 1
        return hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
    weight_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTD.dtype)
    return (hidden_BTD * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1)


def _numbered(modules: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {"idx": number, "name": str(number), "path": path, "type": kind}
        for number, (path, kind) in enumerate(modules.items())
    ]
