"""Token ids: made once per text, kept memory-mapped, and laid out as batches.

A token store holds, per block of a table, three arrays: `ids` (all rows one after another, without
special tokens), `offsets` (where each row begins) and `lengths` (how many of a row's ids are its
title; how many title and text have before they are cut). Special tokens, prompts and truncation
come when a batch is laid out, so one store serves the dual encoder and the cross-encoder, with and
without prompts.

Title, text and prompt are tokenised apart and joined as ids, and the ids are those of the joined
string. WordPiece (BERT, ERNIE, MiniLM) and SentencePiece behind a split at white space (XLM-R, T5)
treat a word alike wherever it stands, so one store serves every use. A byte-level BPE (RoBERTa,
ModernBERT) writes a word that follows a space differently from one that begins a text: for such a
tokenizer (`Tokenizer.minds_spaces`, found by a probe) a store is made for its use, with the space
in front that a prompt or a joined title puts there. What still differs from the joined string, for
byte-level BPE alone: white space at the end of a title, when the text begins with white space too
or is empty (two runs instead of one); and for every tokenizer: a prompt that does not end in white
space, when it would grow together with the first word; and which of two texts keeps an odd token,
when one of them has more characters than are tokenised (`CHARACTERS_PER_TOKEN`).
"""

# Shapes: R rows of a batch, T tokens of the longest row. All arrays are numpy until the very end.

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoTokenizer

from rocketray import storage
from rocketray.artifacts import Block, Version, brought, mapped_array
from rocketray.errors import UserError
from rocketray.model.weights import tokenizer_fingerprint

Batch = dict[str, torch.Tensor]
"""input_ids, attention_mask and, where the tokenizer makes them, token_type_ids: int64 [R, T]. A
batch without attention_mask has no padding."""

Gather = Callable[[np.ndarray], np.ndarray]
"""How many leading ids to take of each row -> those ids, row after row."""

Specials = list[np.ndarray]
"""Runs of special tokens, [2, n] each: their ids, their token types."""

CHARACTERS_PER_TOKEN = 20
"""A text is cut to this many characters per allowed token (and at least 1,000) before it is
tokenised, so that one runaway document cannot stall a block. A run of white space counts as one
character where the tokenizer skips it (`Tokenizer.skips_blanks`). Only a text of very long words
could lose an id by it, and for byte-level BPE one with very long runs; its whole length is that of
what was tokenised."""

_REPEATED_BLANKS = re.compile(r"[ \t\r\n]+(?=[ \t\r\n])")
"""All of a run but its last. Not of other white space: BERT joins what a form feed parts."""

_BLANKS = "  a \t\r\n b\n\n\tc"
"""Runs of it, which a tokenizer may skip or not."""

_PROBES = ("a", "The", "7", "é", "(")
"""Words that a tokenizer may write differently after a space."""

_TEXTS_AT_ONCE = 2048  # The tokenizer's own records are ten times the size of the ids.


class Tokenizer:
    """The fast tokenizer of a model folder."""

    def __init__(self, folder: str | Path) -> None:
        folder = brought(folder)
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
        if not tokenizer.is_fast:
            raise UserError(
                f"{folder} has no fast tokenizer. Save one there (tokenizer.json) and try again."
            )
        self.fingerprint: str = tokenizer_fingerprint(folder)
        self.vocab_size: int = len(tokenizer)
        self.pad_id: int = tokenizer.pad_token_id or 0
        self.makes_types: bool = "token_type_ids" in tokenizer.model_input_names
        # Many published tokenizer.json files carry a truncation or padding of their own.
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self.minds_spaces: bool = self.ids(_PROBES, 8) != self.ids([f" {p}" for p in _PROBES], 8)
        fewer = _REPEATED_BLANKS.sub("", _BLANKS)
        self.skips_blanks: bool = self.ids([_BLANKS], 32) == self.ids([fewer], 32)

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The smallest type that holds every id."""
        return np.uint16 if self.vocab_size <= 65535 else np.uint32

    def ids(self, texts: Sequence[str], limit: int) -> list[list[int]]:
        """At most `limit` ids of each text, without special tokens."""
        return [ids[:limit] for ids in self._encode(texts, limit)]

    def _encode(self, texts: Sequence[str], limit: int) -> list[list[int]]:
        """All ids of each text, which is cut by characters only."""
        characters = max(1000, limit * CHARACTERS_PER_TOKEN)
        cut = [t if len(t) <= characters else self._beginning(t, characters) for t in texts]
        ids: list[list[int]] = []
        for start in range(0, len(cut), _TEXTS_AT_ONCE):
            some = cut[start : start + _TEXTS_AT_ONCE]
            encodings = self._backend.encode_batch_fast(some, add_special_tokens=False)
            ids.extend(encoding.ids for encoding in encodings)
        return ids

    def _beginning(self, text: str, characters: int) -> str:
        """Its first characters, those of a run of white space counted once where that is sound."""
        looked_at = characters
        while self.skips_blanks:
            kept = _REPEATED_BLANKS.sub("", text[:looked_at])
            if len(kept) >= characters or looked_at >= len(text):
                return kept[:characters]
            looked_at *= 4  # Most need not be looked at: a text may have millions of characters.
        return text[:characters]

    def store_block(
        self,
        titles: Sequence[str] | None,
        texts: Sequence[str],
        limit: int,
        *,
        spaced: bool = False,
        joined: bool = False,
    ) -> dict[str, np.ndarray]:
        """The three arrays of one block; `titles` is None for queries.

        Title and text keep up to `limit` ids each, which is what any truncation to at most `limit`
        tokens can leave of them, paired or joined. Who gives way, though, hangs on how long they
        were, which no cut length tells: two that are both cut would pass for equals.

        Args:
            spaced: a prompt that ends in a space will stand before the row.
            joined: a space will part title and text, instead of [SEP].

        Returns:
            ids uint16 or uint32 [tokens], offsets int64 [rows + 1], and lengths int32 [rows, 3]:
            ids kept of the title, of the whole title, of the whole text.
        """
        titles = [""] * len(texts) if titles is None else titles
        if self.minds_spaces:
            titles, texts = _with_spaces(titles, texts, spaced=spaced, joined=joined)
        title_ids, text_ids = self._encode(titles, limit), self._encode(texts, limit)
        parts = [ids[:limit] for row in zip(title_ids, text_ids, strict=True) for ids in row]
        kept = _counts(parts).reshape(-1, 2)
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(kept.sum(axis=1), out=offsets[1:])
        lengths = np.stack([kept[:, 0], _counts(title_ids), _counts(text_ids)], axis=1)
        return {
            "ids": np.fromiter(chain.from_iterable(parts), self.dtype, int(offsets[-1])),
            "offsets": offsets,
            "lengths": lengths.astype(np.int32),
        }

    def surroundings(self, text: str, pair: str | None = None) -> tuple[Specials, np.ndarray]:
        """Where special tokens stand around one text or two.

        Returns:
            the specials before, between and after the texts, and the token type of each text.
        """
        encoding = self._backend.encode(text, pair, add_special_tokens=True)
        ids_and_types = np.array([encoding.ids, encoding.type_ids], np.int64)
        owners = np.array([-1 if owner is None else owner for owner in encoding.sequence_ids])
        first_last = [np.flatnonzero(owners == owner)[[0, -1]] for owner in range(max(owners) + 1)]
        edges = [0, *chain.from_iterable((first, last + 1) for first, last in first_last)]
        edges.append(len(owners))
        gaps = [
            ids_and_types[:, start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)
        ]
        return gaps, np.array([ids_and_types[1, first] for first, _ in first_last])


def _with_spaces(
    titles: Sequence[str], texts: Sequence[str], *, spaced: bool, joined: bool
) -> tuple[list[str], list[str]]:
    """Titles and texts as they stand in the joined string: with the space before them, if any."""
    rows = list(zip(titles, texts, strict=True))
    first, after_title = " " * spaced, " " * joined
    return (
        [first + title if title else "" for title, _ in rows],
        [(after_title if title else first) + text for title, text in rows],
    )


def _counts(rows: Sequence[Sequence[int]]) -> np.ndarray:
    return np.fromiter(map(len, rows), np.int64, len(rows))


class Sizes(NamedTuple):
    """Ids of some texts, int64 [R] each: as many as the store kept, and as many as there were."""

    kept_R: np.ndarray
    whole_R: np.ndarray

    def beside(self, others: Sizes) -> Sizes:
        """Of two texts that stand as one."""
        return Sizes(self.kept_R + others.kept_R, self.whole_R + others.whole_R)


@dataclass(frozen=True)
class _Block:
    """One block's arrays; see `Tokenizer.store_block`."""

    ids: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray


PARTS = ("ids", "offsets", "lengths")
HELD = 6144
"""Blocks of a store that are mapped at once, those used last: 25 million passages in blocks of
4,096. Three maps each: Linux allows a process 65,530, and three such stores stay below. Beyond it
a block that is asked for again is mapped again."""


class TokenStore:
    """The token ids of one table, read in place from one version or several in a row.

    A block is mapped when it is first asked for, and no file stays open. Pickles as its paths: a
    worker maps the files itself instead of receiving them.

    Raises:
        UserError: a version is of an earlier rocketray, which stored less.
    """

    def __init__(self, versions: str | Path | Sequence[str | Path]) -> None:
        paths = [versions] if isinstance(versions, str | Path) else versions
        self.paths = [Path(path) for path in paths]
        places = list(_places(self.paths))

        @lru_cache(HELD)  # Dropping a block unmaps it, once nobody looks at it any more.
        def opened(number: int) -> _Block:
            return _open(*places[number])

        self._hold([block.rows for _, block in places], opened)

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> TokenStore:
        """A store of texts that are in no version, such as a question just asked: one
        `Tokenizer.store_block`, in memory. It stays in its process."""
        store, block = cls([]), _Block(*(arrays[part] for part in PARTS))
        store._hold([len(block.lengths)], lambda number: block)
        return store

    def _hold(self, rows: Sequence[int], opened: Callable[[int], _Block]) -> None:
        self._opened = opened
        self._first_rows = np.cumsum([0, *rows], dtype=np.int64)[:-1]
        self.rows = sum(rows)

    def __reduce__(self) -> tuple[type[TokenStore], tuple[list[Path]]]:
        if self.rows and not self.paths:
            raise TypeError("A token store in memory has no path to pickle.")
        return TokenStore, (self.paths,)

    def __len__(self) -> int:
        return self.rows

    def ids(self, row: int) -> np.ndarray:
        """The title's ids, then the text's."""
        block, at = self._find(row)
        return block.ids[block.offsets[at] : block.offsets[at + 1]]

    def sizes(self, rows: np.ndarray) -> tuple[Sizes, Sizes]:
        """Of the rows' titles, of their texts."""
        kept_R, lengths_3R = np.zeros(len(rows), np.int64), np.zeros((3, len(rows)), np.int64)
        for block, where, at in self._by_block(rows):
            kept_R[where] = block.offsets[at + 1] - block.offsets[at]
            lengths_3R[:, where] = block.lengths[at].T
        kept_titles_R, titles_R, texts_R = lengths_3R
        return Sizes(kept_titles_R, titles_R), Sizes(kept_R - kept_titles_R, texts_R)

    def gather(self, rows: np.ndarray, skip_R: np.ndarray, take_R: np.ndarray) -> np.ndarray:
        """`take_R` ids of each row after its first `skip_R`, row after row in one flat array."""
        flat = np.empty(take_R.sum(), np.int64)
        starts_R = np.cumsum(take_R) - take_R
        for block, where, at in self._by_block(rows):
            source = _spans(block.offsets[at] + skip_R[where], take_R[where])
            flat[_spans(starts_R[where], take_R[where])] = block.ids[source]
        return flat

    def _by_block(self, rows: np.ndarray) -> Iterable[tuple[_Block, np.ndarray, np.ndarray]]:
        """(block, positions in `rows`, rows within the block) for every block that is needed."""
        rows = np.asarray(rows, np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.rows):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a store of {self.rows} rows")
        block_R = np.searchsorted(self._first_rows, rows, side="right") - 1
        for number in np.unique(block_R).tolist():
            where = np.flatnonzero(block_R == number)
            yield self._opened(number), where, rows[where] - self._first_rows[number]

    def _find(self, row: int) -> tuple[_Block, int]:
        ((block, _, at),) = self._by_block(np.array([row]))
        return block, int(at[0])


def _places(paths: Iterable[Path]) -> Iterator[tuple[Version, Block]]:
    """Where each block with rows lies; its files are brought to this node."""
    for path in paths:
        version = Version.open(path)
        for block in version.blocks:
            if not block.files.keys() >= {*PARTS}:
                raise UserError(
                    f"{storage.shown(path)} holds tokens as an earlier rocketray stored them."
                    " Repeat the command that made them: it makes them again."
                )
        version.fetch(*PARTS)
        yield from ((version, block) for block in version.blocks if block.rows)


def _open(version: Version, block: Block) -> _Block:
    version.fetch(*PARTS, blocks=[block.number])  # Somebody may have cleared this node's mirror.
    return _Block(*(mapped_array(block.files[part]) for part in PARTS))


def _spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... lengths[0] of them, then starts[1], ...: without a loop."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    indices: np.ndarray = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
    return indices


def longest_first(
    first_R: np.ndarray, second_R: np.ndarray, budget: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens of two texts stay if the longer one is cut until both fit the budget.

    Exactly what `truncation="longest_first"` of the tokenizers library keeps, odd token included:
    it goes to the text that was longer, and to the second of two equals.
    """
    short_R = np.minimum(np.minimum(first_R, second_R), budget // 2)
    long_R = np.minimum(np.maximum(first_R, second_R), budget - short_R)
    first_is_short = first_R <= second_R
    return np.where(first_is_short, short_R, long_R), np.where(first_is_short, long_R, short_R)


@dataclass(frozen=True)
class _Plan:
    """How many ids of each part a row gets; `paired_R` says which template surrounds them."""

    prompt_R: np.ndarray
    first_R: np.ndarray
    second_R: np.ndarray
    paired_R: np.ndarray


class Assembler:
    """Lays out batches: special tokens, prompt, truncation, token types, padding on the right.

    `limit` always counts every token of a row, special tokens and prompt included. The template is
    read off the tokenizer itself by encoding one text and one pair.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        (self._head, single_tail), single_types = tokenizer.surroundings("a")
        (pair_head, self._middle, pair_tail), pair_types = tokenizer.surroundings("a", "b")
        same = np.array_equal(self._head, pair_head)
        if not (same and np.array_equal(single_tail[0], pair_tail[0])):
            raise UserError(
                "This tokenizer surrounds a pair by other special tokens than a single text; "
                "rocketray lays out only templates such as [CLS] a [SEP] and [CLS] a [SEP] b [SEP]."
            )
        self._tail = pair_tail[0]
        self._tail_types = np.stack([single_tail[1], pair_tail[1]])
        self._first_type = int(pair_types[0])
        self._second_types = np.array([single_types[0], pair_types[1]])
        self._prompts: dict[str, np.ndarray] = {"": np.empty(0, np.int64)}

    def queries(self, store: TokenStore, rows: np.ndarray, limit: int, prompt: str = "") -> Batch:
        """[CLS] prompt query [SEP]"""
        plan = self._plan_single(store, rows, limit, prompt)
        return self._lay_out(plan, _none, _from_start(store, rows), prompt)

    def passages(self, store: TokenStore, rows: np.ndarray, limit: int, prompt: str = "") -> Batch:
        """[CLS] prompt title [SEP] text [SEP], or [CLS] prompt text [SEP] where there is no title.

        Token types are 0 up to and with the first [SEP], 1 after it, as in RocketQA's official
        code. Prompt and title count as one text when the longer is cut first.
        """
        titles, texts = store.sizes(rows)

        def after_titles(take_R: np.ndarray) -> np.ndarray:
            return store.gather(rows, titles.kept_R, take_R)

        plan = self._plan(titles, texts, titles.whole_R > 0, limit, prompt)
        return self._lay_out(plan, _from_start(store, rows), after_titles, prompt)

    def pairs(
        self,
        queries: TokenStore,
        query_rows: np.ndarray,
        passages: TokenStore,
        passage_rows: np.ndarray,
        limit: int,
    ) -> Batch:
        """[CLS] query [SEP] title text [SEP]: no [SEP] between title and text, as in RocketQA."""
        plan = self._plan_pairs(queries, query_rows, passages, passage_rows, limit)
        return self._lay_out(
            plan, _from_start(queries, query_rows), _from_start(passages, passage_rows), ""
        )

    def texts(self, texts: Sequence[str], limit: int, prompt: str = "") -> Batch:
        """[CLS] prompt text [SEP] of texts that are in no store, such as a question just asked."""
        block = self.tokenizer.store_block(None, texts, limit, spaced=prompt.endswith(" "))
        store = TokenStore.of(block)
        return self.queries(store, np.arange(store.rows), limit, prompt)

    def query_lengths(
        self, store: TokenStore, rows: np.ndarray, limit: int, prompt: str = ""
    ) -> np.ndarray:
        """Tokens each row of `queries(...)` would have, without assembling it: int64 [R]."""
        return self._lengths(self._plan_single(store, rows, limit, prompt))

    def passage_lengths(
        self, store: TokenStore, rows: np.ndarray, limit: int, prompt: str = ""
    ) -> np.ndarray:
        """Tokens each row of `passages(...)` would have, without assembling it: int64 [R]."""
        titles, texts = store.sizes(rows)
        return self._lengths(self._plan(titles, texts, titles.whole_R > 0, limit, prompt))

    def pair_lengths(
        self,
        queries: TokenStore,
        query_rows: np.ndarray,
        passages: TokenStore,
        passage_rows: np.ndarray,
        limit: int,
    ) -> np.ndarray:
        """Tokens each row of `pairs(...)` would have, without assembling it: int64 [R]."""
        return self._lengths(self._plan_pairs(queries, query_rows, passages, passage_rows, limit))

    def _plan_single(self, store: TokenStore, rows: np.ndarray, limit: int, prompt: str) -> _Plan:
        nothing_R = np.zeros(len(rows), np.int64)
        return self._plan(
            Sizes(nothing_R, nothing_R), _joined(store, rows), nothing_R > 0, limit, prompt
        )

    def _plan_pairs(
        self,
        queries: TokenStore,
        query_rows: np.ndarray,
        passages: TokenStore,
        passage_rows: np.ndarray,
        limit: int,
    ) -> _Plan:
        first, second = _joined(queries, query_rows), _joined(passages, passage_rows)
        return self._plan(first, second, first.whole_R >= 0, limit, "")

    def _plan(
        self, first: Sizes, second: Sizes, paired_R: np.ndarray, limit: int, prompt: str
    ) -> _Plan:
        """The prompt goes before the first text of a pair, and before a single (second) text."""
        prompt_length = len(self._prompt(prompt))
        budget_R = limit - self._special_tokens(paired_R)
        if len(budget_R) and budget_R.min() < 1:
            raise ValueError(f"limit={limit} leaves no room between the special tokens.")
        first_R, second_R = longest_first(
            first.whole_R + prompt_length * paired_R,
            second.whole_R + prompt_length * ~paired_R,
            budget_R,
        )
        prompt_R = np.minimum(prompt_length, np.where(paired_R, first_R, second_R))
        first_R, second_R = first_R - prompt_R * paired_R, second_R - prompt_R * ~paired_R
        if (first_R > first.kept_R).any() or (second_R > second.kept_R).any():
            raise ValueError(f"limit={limit} asks for more ids than the store kept of a row.")
        return _Plan(prompt_R, first_R, second_R, paired_R)

    def _special_tokens(self, paired_R: np.ndarray) -> np.ndarray:
        around = self._head.shape[1] + len(self._tail)
        specials_R: np.ndarray = around + self._middle.shape[1] * paired_R
        return specials_R

    def _lengths(self, plan: _Plan) -> np.ndarray:
        lengths_R = self._special_tokens(plan.paired_R)
        lengths_R += plan.prompt_R + plan.first_R + plan.second_R
        return lengths_R

    def _prompt(self, prompt: str) -> np.ndarray:
        if prompt not in self._prompts:
            # Without its space, which the word after it brings; no prompt is this long.
            (ids,) = self.tokenizer.ids([prompt.removesuffix(" ")], 1 << 16)
            self._prompts[prompt] = np.array(ids, np.int64)
        return self._prompts[prompt]

    def _lay_out(self, plan: _Plan, first: Gather, second: Gather, prompt: str) -> Batch:
        """One pass over the parts of all rows; no loop over rows or tokens."""
        lengths_R = self._lengths(plan)
        shape = (len(lengths_R), int(lengths_R.max(initial=0)))
        ids_RT = np.full(shape, self.tokenizer.pad_id, np.int64)
        types_RT = np.zeros(shape, np.int64)
        at_R = np.arange(shape[0]) * shape[1]
        for take_R, ids, types in self._parts(plan, first, second, prompt):
            where = _spans(at_R, take_R)
            ids_RT.ravel()[where] = ids
            types_RT.ravel()[where] = types
            at_R = at_R + take_R
        mask_RT = np.arange(shape[1]) < lengths_R[:, None]
        batch = {"input_ids": ids_RT, "attention_mask": mask_RT.astype(np.int64)}
        if self.tokenizer.makes_types:
            batch["token_type_ids"] = types_RT
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _parts(
        self, plan: _Plan, first: Gather, second: Gather, prompt: str
    ) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(tokens of each row, their ids, their token types) from left to right."""
        paired_R = plan.paired_R.astype(np.int64)
        second_type_R = self._second_types[paired_R]
        ones_R = np.ones_like(paired_R)
        head_R, middle_R = ones_R * self._head.shape[1], paired_R * self._middle.shape[1]
        yield head_R, *(_repeated(row, head_R) for row in self._head)
        prompt_type_R = np.where(plan.paired_R, self._first_type, second_type_R)
        prompt_ids = _repeated(self._prompt(prompt), plan.prompt_R)
        yield plan.prompt_R, prompt_ids, np.repeat(prompt_type_R, plan.prompt_R)
        first_type_R = ones_R * self._first_type
        yield plan.first_R, first(plan.first_R), np.repeat(first_type_R, plan.first_R)
        yield middle_R, *(_repeated(row, middle_R) for row in self._middle)
        yield plan.second_R, second(plan.second_R), np.repeat(second_type_R, plan.second_R)
        tail_R = ones_R * len(self._tail)
        yield tail_R, _repeated(self._tail, tail_R), self._tail_types[paired_R].ravel()


def _repeated(ids: np.ndarray, take_R: np.ndarray) -> np.ndarray:
    """The first `take_R` of the same ids for every row."""
    repeated: np.ndarray = ids[_spans(np.zeros_like(take_R), take_R)]
    return repeated


def _none(_: np.ndarray) -> np.ndarray:
    return np.empty(0, np.int64)


def _from_start(store: TokenStore, rows: np.ndarray) -> Gather:
    return lambda take_R: store.gather(rows, np.zeros_like(take_R), take_R)


def _joined(store: TokenStore, rows: np.ndarray) -> Sizes:
    """Of title and text as one."""
    titles, texts = store.sizes(rows)
    return titles.beside(texts)


def unmasked(batch: Batch) -> Batch:
    """The batch without its mask if nothing is padded: attention has faster kernels then."""
    if "attention_mask" in batch and bool(batch["attention_mask"].all()):
        return {name: tensor for name, tensor in batch.items() if name != "attention_mask"}
    return batch


def batches_by_budget(lengths: np.ndarray, budget_tokens: int) -> list[np.ndarray]:
    """Indices in batches of alike lengths, longest first, of at most `budget_tokens` each.

    A batch costs rows times its longest row, as padding makes it. A row longer than the whole
    budget is a batch of its own. Equal lengths stay in index order, so the batches depend on
    `lengths` alone.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        rows = max(1, budget_tokens // longest)
        batches.append(order[start : start + rows])
        start += rows
    return batches
