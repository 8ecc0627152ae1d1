"""Search a finished run: its best dual encoder over its own passages, exactly."""

# Shapes: D embedding size.

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rocketray import recipe as recipes
from rocketray.artifacts import RunFolder, Version
from rocketray.errors import UserError
from rocketray.model.cross_encoder import CrossEncoder
from rocketray.model.dual_encoder import DualEncoder
from rocketray.model.inference import device, encode_queries, score_pairs
from rocketray.model.tokens import Assembler, Tokenizer, TokenStore
from rocketray.model.top_k import top_k

RERANKED = 50
"""How many of the best the cross-encoder puts in order."""
SNIPPET = 200
"""Characters of a snippet."""
BEFORE = 40
"""Characters of a snippet before its first matching word."""
WORD = re.compile(r"\w+")
BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")  # Control characters too: a terminal obeys them.


@dataclass(frozen=True)
class Answer:
    """One passage found for a question."""

    rank: int
    pid: str
    title: str
    snippet: str
    """The part of the text where the question's words stand, on one line."""
    score: float
    """The dual encoder's."""
    ce_score: float | None
    """The cross-encoder's, where it was asked."""


class Searcher:
    """A finished run, open for questions.

    Raises:
        UserError: the folder is no run, holds no finished retriever, or a file of it is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = RunFolder.open(folder)
        dual, embeddings = self._best()
        self.passages = self._made_for(embeddings)
        for version in (dual, embeddings, self.passages):
            version.verify()
        self.dual = DualEncoder.open(dual.path / "model").to(device()).eval()
        self.assembler = Assembler(Tokenizer(self.dual.tokenizer_folder))
        embeddings.fetch("embeddings")
        # In memory: every question reads all of them.
        self.embeddings = [
            (block.first_row, np.array(embeddings.array(block.number, "embeddings")))
            for block in embeddings.blocks
        ]

    def search(self, question: str, k: int = 10, *, rerank: bool = False) -> list[Answer]:
        """The k best passages (all, where there are fewer), ties by row number.

        Args:
            rerank: the cross-encoder puts the 50 best in order; what follows keeps its place.
        """
        question = question.strip().encode("utf-8", "replace").decode()
        if not question:
            raise UserError("The question is empty. Ask for example: how do I pad a tensor")
        scores, rows = self._nearest(question, max(k, RERANKED) if rerank else k)
        ce_scores = np.empty(0, np.float32)
        if rerank:
            scores, rows, ce_scores = self._reranked(question, scores, rows)
        probabilities = [*ce_scores.tolist(), *[None] * len(rows)]
        found = zip(rows.tolist(), scores.tolist(), probabilities, strict=False)
        return [
            self._answer(rank, question, *hit) for rank, hit in enumerate(list(found)[:k], start=1)
        ]

    # ---- what is opened

    def _best(self) -> tuple[Version, Version]:
        """The best dual encoder whose embeddings are there, and those."""
        current = self.folder.current()
        rounds = recipes.of_run(self.folder.path).denoise.in_rounds("dual_1")
        for name in ("dual_2", *reversed(rounds), "dual_0"):  # Best first.
            if name in current and f"{name}_embeddings" in current:
                dual, embeddings = map(self.folder.version, (name, f"{name}_embeddings"))
                if _inputs(embeddings)["model"] == dual.digest:
                    return dual, embeddings
        raise UserError(
            f"{self.folder} has no finished retriever (dual_0, dual_1 or dual_2 with its"
            " embeddings). Run it further: `rocketray run` with the same --out goes on."
        )

    def _made_for(self, embeddings: Version) -> Version:
        """The passages that were embedded: newer ones may stand beside older embeddings."""
        tokens, passages = map(self.folder.version, ("passage_tokens", "passages"))
        embedded = _inputs(embeddings)["tokens"] == tokens.digest
        if not (embedded and _inputs(tokens)["table"] == passages.digest):
            raise UserError(
                f"{self.folder}: the passages are newer than their embeddings. Run it"
                " further: `rocketray run` with the same --out goes on."
            )
        return passages

    @cached_property
    def _cross(self) -> tuple[CrossEncoder, Assembler, TokenStore]:
        """The cross-encoder, and the passages in its tokens."""
        found = self._cross_versions()
        if found is None:
            raise UserError(
                f"{self.folder} has no cross-encoder for these passages. Run it further:"
                " `rocketray run` with the same --out goes on."
            )
        version, tokens = found
        for opened in found:
            opened.verify()
        cross = CrossEncoder.open(version.path / "model").to(device()).eval()
        return cross, Assembler(Tokenizer(cross.tokenizer_folder)), TokenStore(tokens.path)

    def _cross_versions(self) -> tuple[Version, Version] | None:
        current = self.folder.current()
        if "cross" not in current:
            return None
        cross = self.folder.version("cross")
        # One store, of the plain name, serves both models where they share a tokenizer.
        for name in ("cross_passage_tokens", "passage_tokens"):
            if name in current:
                tokens = self.folder.version(name)
                if _inputs(cross)["passage_tokens"] == tokens.digest:
                    return cross, tokens
        return None

    # ---- what is asked

    def _nearest(self, question: str, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows of the k nearest passages, best first."""
        prompt = self.dual.query_prompt
        store = _stored(question, self.assembler, self.dual.query_length, prompt)
        q_1D = encode_queries(self.dual, self.assembler, store, np.zeros(1, np.int64))
        (scores,), (rows,) = top_k(q_1D, self.embeddings, k)
        return scores, rows

    def _reranked(
        self, question: str, scores: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores and rows with the 50 best in order of ce_score, and those ce_scores."""
        cross, assembler, passages = self._cross
        store = _stored(question, assembler, cross.length)
        head = rows[:RERANKED]
        asked = np.zeros(len(head), np.int64)
        ce_scores = score_pairs(cross, assembler, store, asked, passages, head)
        order = np.lexsort((head, -ce_scores))
        places = np.concatenate([order, np.arange(len(head), len(rows))])
        return scores[places], rows[places], ce_scores[order]

    def _answer(
        self, rank: int, question: str, row: int, score: float, ce_score: float | None
    ) -> Answer:
        block = next(b for b in reversed(self.passages.blocks) if b.first_row <= row)
        table = self.passages.table(block.number)
        pid, title, text = (
            table[name][row - block.first_row].as_py() for name in ("pid", "title", "text")
        )
        return Answer(rank, pid, one_line(title), snippet(text, question), score, ce_score)


def _inputs(version: Version) -> dict[str, Any]:
    """Digests of what a version was made from."""
    inputs: dict[str, Any] = version.manifest["identity"]["inputs"]
    return inputs


def _stored(question: str, assembler: Assembler, limit: int, prompt: str = "") -> TokenStore:
    spaced = prompt.endswith(" ")
    return TokenStore.of(assembler.tokenizer.store_block(None, [question], limit, spaced=spaced))


def one_line(text: str) -> str:
    return BLANKS.sub(" ", text).strip()


def snippet(text: str, question: str) -> str:
    """About 200 characters of a text, where most of the question's letters find their words.

    Long words count more than short ones, which is what there is of weighing without statistics.

    >>> snippet("To pad, call pad(x).", "how do I pad?")
    'To pad, call pad(x).'
    """
    line = one_line(text)
    if len(line) <= SNIPPET:
        return line
    wanted = {word.lower() for word in WORD.findall(question)}
    hits = [(m.start(), m[0].lower()) for m in WORD.finditer(line) if m[0].lower() in wanted]
    room = SNIPPET - BEFORE

    def worth(place: int) -> int:
        start = hits[place][0]
        near = {word for at, word in hits[place : place + room] if at + len(word) <= start + room}
        return sum(map(len, near))

    first = hits[max(range(len(hits)), key=worth)][0] if hits else 0
    return _cut(line, max(0, min(first - BEFORE, len(line) - SNIPPET)))


def _cut(line: str, start: int) -> str:
    """A snippet from about there, in whole words where it has spaces."""
    part = line[start : start + SNIPPET]
    if start and not line[start - 1].isspace():
        part = part[part.find(" ", 0, BEFORE) + 1 :]
    if start + SNIPPET >= len(line):
        return f"… {part.strip()}"
    if not line[start + SNIPPET].isspace():
        part = part[: part.rfind(" ", SNIPPET // 2)] if " " in part[SNIPPET // 2 :] else part
    return f"{'… ' if start else ''}{part.strip()} …"


def show(answers: Sequence[Answer], *, as_json: bool) -> None:
    """Print rank, score, title and snippet, or a JSON list of all fields."""
    if as_json:
        print(json.dumps([asdict(answer) for answer in answers], ensure_ascii=False, indent=1))
        return
    for answer in answers:
        score = answer.score if answer.ce_score is None else answer.ce_score
        print(f"{answer.rank:>3}  {score:8.4f}  {answer.title or answer.pid}")
        print(f"{'':15}{answer.snippet}")
