"""Batches from the store are what the Hugging Face tokenizer makes of the raw strings."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rocketray.artifacts import Draft, commit_block
from rocketray.errors import UserError
from rocketray.model import tokens
from rocketray.model.tokens import (
    Assembler,
    Tokenizer,
    TokenStore,
    batches_by_budget,
    longest_first,
)
from rocketray.model.weights import tiny
from tests.model.families import BYTE_LEVEL, FAMILIES

WORDS = ["how", "do", "i", "pad", "a", "tensor", "pads", "with", "zeros", "##s", "the", "query"]
LIMIT = 40

word = st.one_of(
    st.sampled_from([*WORDS, "tensors", "Übergröße", "don't", "x" * 20, "[SEP]", "\u200b"]),
    st.sampled_from(["如何填充张量", "🤗🚀", "नमस्ते", "e\u0301", "#a_b(c)", "9,5"]),
    st.text(max_size=4),
)
text = st.lists(word, max_size=60).map(" ".join)
"""From empty to twice the limit."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("weights"), WORDS)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def assembler(tokenizer: Tokenizer) -> Assembler:
    return Assembler(tokenizer)


@pytest.fixture(scope="module")
def reference(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


def write_store(
    folder: Path,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    titles: Sequence[str] | None = None,
    *,
    limit: int = LIMIT,
    block: int = 2,
    **spaces: bool,
) -> TokenStore:
    """The texts as a finished version with blocks of `block` rows."""
    for number, start in enumerate(range(0, len(texts), block)):
        some = slice(start, start + block)
        parts = tokenizer.store_block(
            titles[some] if titles else None, texts[some], limit, **spaces
        )
        commit_block(folder, number, parts, rows=len(texts[some]), key="", facts={})
    Draft(folder, "tokens", {}).finish({})
    return TokenStore(folder)


def assert_same(batch: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert batch.keys() == expected.keys()
    for name in batch:
        assert batch[name].dtype == torch.int64
        assert batch[name].tolist() == expected[name].tolist(), name


def stack(tokenizer: PreTrainedTokenizerFast, rows: list[dict]) -> dict[str, torch.Tensor]:
    return dict(tokenizer.pad(rows, return_tensors="pt", padding_side="right"))


def encode(
    tokenizer: PreTrainedTokenizerFast, first: str, second: str | None, limit: int
) -> dict[str, list[int]]:
    # As a batch of one: called on bare strings, transformers takes an empty second text for none.
    seconds = None if second is None else [second]
    encoded = tokenizer([first], seconds, truncation="longest_first", max_length=limit)
    return {name: rows[0] for name, rows in encoded.items()}


def encode_passage(
    tokenizer: PreTrainedTokenizerFast, title: str, body: str, limit: int, prompt: str = ""
) -> dict[str, list[int]]:
    """The slow reference: a pair where the title has tokens, else one text."""
    if tokenizer(title, add_special_tokens=False).input_ids:
        return encode(tokenizer, prompt + title, body, limit)
    return encode(tokenizer, prompt + body, None, limit)


# -------------------------------------------------------------------------------- the template


def test_a_query_a_passage_and_a_pair(tmp_path, tokenizer, assembler, reference):
    queries = write_store(tmp_path / "q", tokenizer, ["how do i pad a tensor"])
    passages = write_store(tmp_path / "p", tokenizer, ["pad with zeros"], ["the tensor"])
    row = np.array([0])

    def read(batch):
        tokens = " ".join(reference.convert_ids_to_tokens(batch["input_ids"][0].tolist()))
        return tokens, "".join(map(str, batch["token_type_ids"][0].tolist()))

    assert read(assembler.queries(queries, row, 6)) == ("[CLS] how do i pad [SEP]", "000000")
    assert read(assembler.passages(passages, row, 16, "query:")) == (
        "[CLS] query : the tensor [SEP] pad with zeros [SEP]",
        "0000001111",
    )
    assert read(assembler.pairs(queries, row, passages, row, 12)) == (
        # Six ids and five for nine places: the query was longer, so it keeps the odd one.
        "[CLS] how do i pad a [SEP] the tensor pad with [SEP]",
        "000000011111",
    )


def test_no_room_is_refused(assembler):
    with pytest.raises(ValueError, match="limit=2 leaves no room"):
        assembler.texts(["pad"], 2)


def test_no_rows_make_an_empty_batch(assembler):
    assert assembler.texts([], 8)["input_ids"].shape == (0, 0)


# ------------------------------------------------------------------- equal to the raw strings

properties = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@properties
@given(rows=st.lists(st.tuples(text, text), min_size=1, max_size=5), limit=st.integers(4, LIMIT))
@pytest.mark.parametrize("prompt", ["", "query: "])
def test_passages_equal_the_tokenizer_on_raw_pairs(
    tmp_path_factory, tokenizer, assembler, reference, prompt, rows, limit
):
    titles, texts = zip(*rows, strict=True)
    store = write_store(tmp_path_factory.mktemp("p"), tokenizer, texts, titles, limit=limit)
    order = np.arange(len(rows))[::-1]
    expected = [encode_passage(reference, *rows[row], limit, prompt) for row in order]
    assert_same(assembler.passages(store, order, limit, prompt), stack(reference, expected))
    lengths = [len(row["input_ids"]) for row in expected]
    assert assembler.passage_lengths(store, order, limit, prompt).tolist() == lengths


@properties
@given(
    rows=st.lists(st.tuples(text, text, text), min_size=1, max_size=5),
    limit=st.integers(4, LIMIT),
)
def test_pairs_equal_the_tokenizer_on_joined_strings(
    tmp_path_factory, tokenizer, assembler, reference, rows, limit
):
    queries, titles, texts = zip(*rows, strict=True)
    q = write_store(tmp_path_factory.mktemp("q"), tokenizer, queries, limit=limit)
    p = write_store(tmp_path_factory.mktemp("p"), tokenizer, texts, titles, limit=limit)
    every = np.arange(len(rows))
    expected = [encode(reference, query, f"{title} {body}", limit) for query, title, body in rows]
    assert_same(assembler.pairs(q, every, p, every, limit), stack(reference, expected))
    lengths = [len(row["input_ids"]) for row in expected]
    assert assembler.pair_lengths(q, every, p, every, limit).tolist() == lengths


@properties
@given(texts=st.lists(text, min_size=1, max_size=5), limit=st.integers(4, LIMIT))
def test_queries_equal_the_tokenizer_stored_or_not(
    tmp_path_factory, tokenizer, assembler, reference, texts, limit
):
    store = write_store(tmp_path_factory.mktemp("q"), tokenizer, texts, limit=limit)
    every = np.arange(len(texts))
    expected = [encode(reference, "query: " + text, None, limit) for text in texts]
    assert_same(assembler.queries(store, every, limit, "query: "), stack(reference, expected))
    assert_same(assembler.texts(texts, limit, "query: "), stack(reference, expected))
    lengths = [len(row["input_ids"]) for row in expected]
    assert assembler.query_lengths(store, every, limit, "query: ").tolist() == lengths


LONG = [(50, 60), (60, 50), (60, 60), (50, 51), (50, 52), (50, 53), (41, 40), (3, 90), (90, 3)]
"""Words of two texts of which a store of `LIMIT` keeps no more than `LIMIT` each."""


@pytest.mark.parametrize(("first", "second"), LONG)
@pytest.mark.parametrize("limit", [LIMIT, LIMIT - 1])
@pytest.mark.parametrize("prompt", ["", "query: "])
def test_of_two_long_texts_the_odd_token_stays_with_the_longer(
    tmp_path, tokenizer, assembler, reference, first, second, limit, prompt
):
    title, body = "pad " * first, "zeros " * second
    store = write_store(tmp_path, tokenizer, [body], [title], limit=limit)
    batch = assembler.passages(store, np.array([0]), limit, prompt)
    expected = encode(reference, prompt + title, body, limit)
    assert batch["input_ids"][0].tolist() == expected["input_ids"]


@pytest.mark.parametrize(("first", "second"), LONG)
@pytest.mark.parametrize("limit", [LIMIT, LIMIT - 1])
def test_of_a_long_pair_too(tmp_path, tokenizer, assembler, reference, first, second, limit):
    """As where questions are whole paragraphs: what the two stores keep is equally long."""
    question, passage = "pad " * first, "zeros " * second
    q = write_store(tmp_path / "q", tokenizer, [question], limit=limit)
    p = write_store(tmp_path / "p", tokenizer, [passage], limit=limit)
    row = np.array([0])
    batch = assembler.pairs(q, row, p, row, limit)
    expected = encode(reference, question, passage, limit)
    assert batch["input_ids"][0].tolist() == expected["input_ids"]


def test_a_store_that_kept_too_little_is_refused(tmp_path, tokenizer, assembler):
    store = write_store(tmp_path, tokenizer, ["pad", "pad " * 9], limit=8)
    assert assembler.query_lengths(store, np.array([0]), LIMIT).tolist() == [3]
    with pytest.raises(ValueError, match=f"limit={LIMIT} asks for more ids than the store kept"):
        assembler.queries(store, np.array([0, 1]), LIMIT)


@given(first=st.integers(0, 30), second=st.integers(0, 30), budget=st.integers(1, 40))
def test_longest_first_fills_the_budget_and_cuts_only_the_longer(first, second, budget):
    a, b = (int(kept[0]) for kept in longest_first(np.array([first]), np.array([second]), budget))
    assert a + b == min(first + second, budget)
    assert a == first or a >= b - 1
    assert b == second or b >= a - 1


# --------------------------------------------------------------------------- other templates


def byte_level(folder: Path, single: str, pair: str) -> Path:
    """A byte-level BPE tokenizer with RoBERTa's special tokens and no token types."""
    alphabet = {c: i for i, c in enumerate(["<s>", "</s>", "<pad>", *sorted(_bytes())])}
    backend = Backend(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.save_pretrained(folder)
    return folder


def _bytes() -> list[str]:
    return pre_tokenizers.ByteLevel.alphabet()


@pytest.mark.parametrize(
    ("single", "pair"),
    [
        ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
        ("$A </s>", "$A </s> $B </s>"),
        ("<s> $A", "<s> $A $B"),
    ],
)
def test_the_template_is_read_off_the_tokenizer(tmp_path, single, pair):
    folder = byte_level(tmp_path / "t", single, pair)
    tokenizer, reference = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    rows = [("ab", "cdé"), ("", "x"), ("title", "y" * 50)]
    titles, texts = zip(*rows, strict=True)
    store = write_store(tmp_path / "p", tokenizer, texts, titles)
    batch = Assembler(tokenizer).passages(store, np.arange(3), 17)
    assert "token_type_ids" not in batch
    expected = [encode_passage(reference, *row, 17) for row in rows]
    assert_same(batch, stack(reference, expected))
    assert batch["input_ids"][1, -1] == tokenizer.pad_id == 2


# -------------------------------------------------------------------------- family by family

odd = st.one_of(
    st.sampled_from(["pad", "tensor", "Übergröße", "don't", "'s", "9,500", "2024", "x" * 30]),
    st.sampled_from(["如何填充张量", "नमस्ते", "e\u0301", "café", "🤗🚀", "Ⅻ", "ﬁ", "\u200b"]),
    st.sampled_from(["a_b(c)", "...", "[SEP]", "</s>", ":", "("]),
)
blank = st.sampled_from([" ", "  ", "\n", "\n\n", "\t", " \n "])
spaced_text = st.lists(st.one_of(odd, blank, st.text(max_size=3)), max_size=30).map("".join)
"""Words grown together, parted by any white space, blank, with white space around, or empty."""


class Family:
    """A family's tokenizer, rocketray's way and the family's own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = FAMILIES[name](folder)
        self.tokenizer = Tokenizer(self.folder)
        self.assembler = Assembler(self.tokenizer)
        self.reference = AutoTokenizer.from_pretrained(self.folder)
        self.is_byte_level = name in BYTE_LEVEL

    def store(
        self,
        texts: Sequence[str],
        titles: Sequence[str] | None = None,
        *,
        limit: int = LIMIT,
        **spaces: bool,
    ) -> TokenStore:
        return TokenStore.of(self.tokenizer.store_block(titles, texts, limit, **spaces))

    def has_title(self, title: str) -> bool:
        """A title of white space alone is none, but to a byte-level tokenizer, which writes it."""
        return bool(self.reference(title, add_special_tokens=False).input_ids)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


PROMPTS = ["", "query: ", "Represent this sentence: ", "Instruct: find it\nQuery: "]
families = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def test_only_a_byte_level_tokenizer_minds_spaces(family: Family) -> None:
    assert family.tokenizer.minds_spaces is family.is_byte_level


@pytest.mark.parametrize("prompt", PROMPTS)
@families
@given(texts=st.lists(spaced_text, min_size=1, max_size=4), limit=st.integers(5, LIMIT))
def test_family_queries(family: Family, prompt: str, texts: list[str], limit: int) -> None:
    store = family.store(texts, limit=limit, spaced=prompt.endswith(" "))
    expected = [encode(family.reference, prompt + text, None, limit) for text in texts]
    every = np.arange(len(texts))
    assert_same(
        family.assembler.queries(store, every, limit, prompt), stack(family.reference, expected)
    )
    assert_same(family.assembler.texts(texts, limit, prompt), stack(family.reference, expected))


@pytest.mark.parametrize("prompt", PROMPTS)
@families
@given(
    rows=st.lists(st.tuples(spaced_text, spaced_text), min_size=1, max_size=4),
    limit=st.integers(5, LIMIT),
)
def test_family_passages(
    family: Family, prompt: str, rows: list[tuple[str, str]], limit: int
) -> None:
    """(title, text) as a pair, text alone where there is no title."""
    titles, texts = zip(*rows, strict=True)
    store = family.store(texts, titles, limit=limit, spaced=prompt.endswith(" "))
    expected = [encode_passage(family.reference, *row, limit, prompt) for row in rows]
    batch = family.assembler.passages(store, np.arange(len(rows)), limit, prompt)
    assert_same(batch, stack(family.reference, expected))


@families
@given(
    rows=st.lists(st.tuples(spaced_text, spaced_text, spaced_text), min_size=1, max_size=4),
    limit=st.integers(6, LIMIT),
)
def test_family_pairs(family: Family, rows: list[tuple[str, str, str]], limit: int) -> None:
    """(question, title + " " + text), cut longest first."""
    questions, titles, texts = zip(*rows, strict=True)
    if family.is_byte_level:
        joints = zip(titles, texts, strict=True)
        # See `test_what_differs_two_runs_of_white_space_at_a_joint`.
        assume(not any(t != t.rstrip() and (not x or x[0].isspace()) for t, x in joints))
    passages = [f"{title} {text}" if family.has_title(title) else text for _, title, text in rows]
    asked = family.store(questions, limit=limit)
    store = family.store(texts, titles, limit=limit, joined=True)
    every = np.arange(len(rows))
    batch = family.assembler.pairs(asked, every, store, every, limit)
    expected = [
        encode(family.reference, question, passage, limit)
        for question, passage in zip(questions, passages, strict=True)
    ]
    assert_same(batch, stack(family.reference, expected))


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_what_differs_two_runs_of_white_space_at_a_joint(name: str, tmp_path: Path) -> None:
    """Byte-level BPE writes a run of white space as one piece, and two stores hold two runs."""
    family = Family(name, tmp_path)
    row = np.arange(1)
    store = family.store(["  pad"], ["title "], joined=True)
    ours = family.assembler.pairs(family.store(["how"]), row, store, row, LIMIT)["input_ids"][0]
    theirs = encode(family.reference, "how", "title    pad", LIMIT)["input_ids"]
    assert ours.tolist() != theirs
    assert family.reference.decode(ours.tolist()) == family.reference.decode(theirs)


def test_what_differs_a_prompt_without_a_space(tmp_path: Path) -> None:
    """SentencePiece grows a prompt together with its first word; rocketray keeps them apart."""
    family = Family("t5", tmp_path)
    (ours,) = family.assembler.texts(["pad"], LIMIT, "query:")["input_ids"].tolist()
    (spaced,) = family.assembler.texts(["pad"], LIMIT, "query: ")["input_ids"].tolist()
    assert ours == spaced != encode(family.reference, "query:pad", None, LIMIT)["input_ids"]


def test_the_rule_is_longest_first_not_only_second(tmp_path: Path) -> None:
    """`only_second` would keep a long question whole; longest_first cuts what is longer."""
    family = Family("minilm", tmp_path)
    texts, row = ("pad " * 12, "tensor " * 6), np.arange(1)
    question, passage = (family.store([text]) for text in texts)
    (ours,) = family.assembler.pairs(question, row, passage, row, 17)["input_ids"].tolist()
    longest, only = (
        family.reference(*texts, truncation=rule, max_length=17).input_ids
        for rule in ("longest_first", "only_second")
    )
    pad, tensor = family.reference.convert_tokens_to_ids(["pad", "tensor"])
    assert ours == longest
    assert (ours.count(pad), ours.count(tensor)) == (8, 6)
    assert (only.count(pad), only.count(tensor)) == (12, 2)


# ---------------------------------------------------------------------------------- the store


def kept(store: TokenStore, rows: Sequence[int]) -> list[int]:
    """Ids kept of each row, title and text together."""
    titles, texts = store.sizes(np.array(rows))
    found: list[int] = titles.beside(texts).kept_R.tolist()
    return found


def test_rows_are_found_in_any_order_over_blocks_and_versions(tmp_path, tokenizer):
    texts = ["pad", "a tensor", "", "how do i", "zeros"]
    titles = ["the query", "", "with", "", "pads"]
    one = write_store(tmp_path / "one", tokenizer, texts[:3], titles[:3])
    write_store(tmp_path / "two", tokenizer, texts[3:], titles[3:])
    both = TokenStore([tmp_path / "one", tmp_path / "two"])
    assert (one.rows, both.rows, len(both)) == (3, 5, 5)
    for row in range(5):
        title, body = tokenizer.ids([titles[row], texts[row]], 9)
        of_titles, of_texts = both.sizes(np.array([row]))
        assert (of_titles.kept_R.tolist(), of_texts.kept_R.tolist()) == ([len(title)], [len(body)])
        assert both.ids(row).tolist() == title + body
    assert kept(both, [4, 0, 2, 0]) == [2, 3, 1, 3]
    with pytest.raises(IndexError, match="store of 5 rows"):
        both.sizes(np.array([5]))


def test_a_pickled_store_maps_the_files_again(tmp_path, tokenizer):
    store = write_store(tmp_path, tokenizer, ["pad " * 30] * 50)
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).ids(49).tolist() == store.ids(49).tolist()  # noqa: S301


def maps(folder: Path) -> int:
    """Files below a folder that this process has mapped."""
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists a process' maps")
def test_blocks_are_mapped_when_asked_for_and_let_go_of(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "HELD", 2)
    texts = ["pad " * n for n in range(1, 10)]
    store = write_store(tmp_path, tokenizer, texts)
    assert (len(store), maps(tmp_path)) == (9, 0)
    assert kept(store, [8, 0, 3, 8, 5, 0]) == [9, 1, 4, 9, 6, 1]
    assert maps(tmp_path) == 2 * 3
    first = store.ids(0)
    assert [store.ids(row).tolist() for row in range(9)] == tokenizer.ids(texts, LIMIT)
    assert first.tolist() == store.ids(0).tolist()  # Who looks at a block keeps it.


def test_a_store_has_more_blocks_than_a_process_may_have_files(tmp_path, tokenizer, few_files):
    store = write_store(tmp_path, tokenizer, ["pad " * n for n in range(30)], block=1)
    assert kept(store, range(30)) == list(range(30))


def test_a_store_of_an_earlier_version_is_refused(tmp_path, tokenizer):
    parts = tokenizer.store_block(None, ["pad"], LIMIT)
    parts["titles"] = parts.pop("lengths")[:, 0]
    commit_block(tmp_path, 0, parts, rows=1, key="", facts={})
    Draft(tmp_path, "tokens", {}).finish({})
    with pytest.raises(UserError, match="holds tokens as an earlier rocketray stored them"):
        TokenStore(tmp_path)


def test_whole_lengths_are_stored(tokenizer):
    block = tokenizer.store_block(["pad " * 9, ""], ["zeros", "a tensor " * 5], 4)
    assert block["lengths"].tolist() == [[4, 9, 1], [0, 0, 10]]
    assert block["offsets"].tolist() == [0, 5, 9]


def test_a_block_of_empty_rows_can_be_stored(tmp_path, tokenizer, assembler):
    store = write_store(tmp_path, tokenizer, ["", ""])
    assert assembler.queries(store, np.arange(2), 8)["attention_mask"].tolist() == [[1, 1]] * 2


def test_ids_take_two_bytes_where_the_vocabulary_allows(tokenizer):
    block = tokenizer.store_block(None, ["pad a tensor"], LIMIT)
    assert {name: array.dtype.name for name, array in block.items()} == {
        "ids": "uint16",
        "offsets": "int64",
        "lengths": "int32",
    }


def test_a_runaway_text_is_cut_before_it_is_tokenised(tokenizer):
    (ids,) = tokenizer.ids(["pad " * 1_000_000], 8)
    assert ids == tokenizer.ids(["pad"], 8)[0] * 8


@pytest.mark.parametrize("blanks", [" ", "\n", "\r\n\t "])
def test_long_runs_of_white_space_lose_no_id(family: Family, blanks: str) -> None:
    """But to byte-level BPE, which writes them. 4,000 of them are more than is tokenised."""
    assert family.tokenizer.skips_blanks is not family.is_byte_level
    if family.tokenizer.skips_blanks:
        runs, words = blanks * 4000, ["pad", "a", "tensor", "with", "zeros"]
        texts = [runs + " ".join(words), runs.join(words), runs]
        expected = family.reference(texts, add_special_tokens=False)["input_ids"]
        assert family.tokenizer.ids(texts, 160) == expected
        assert expected[0] == expected[1] == family.tokenizer.ids([" ".join(words)], 160)[0]


def test_a_text_with_runs_of_white_space_is_cut_where_it_would_be_without_them(tokenizer):
    """3,200 characters are 800 times "pad ", whatever the length of the whole text."""
    block = tokenizer.store_block(None, ["pad   " * 2000, "pad " * 2000, "pad " * 800], 160)
    assert block["lengths"].tolist() == [[0, 0, 800]] * 3


def test_one_very_long_word_is_unknown_at_any_limit(tokenizer, reference):
    # WordPiece gives up on words of more than 100 letters; a cut must not make them shorter.
    assert tokenizer.ids(["x" * 120], 3) == [[reference.unk_token_id]]


def test_the_fingerprint_is_of_the_ids_not_of_the_limits(folder, tokenizer, tmp_path):
    other = tiny(tmp_path, [*WORDS, "more"])
    assert Tokenizer(other).fingerprint != tokenizer.fingerprint
    config = other / "tokenizer_config.json"
    before = Tokenizer(other).fingerprint
    config.write_text(config.read_text().replace("{", '{"model_max_length": 7,', 1))
    assert Tokenizer(other).fingerprint == before


# ----------------------------------------------------------------------------------- batches


def test_batches_hold_the_budget_longest_first():
    lengths = np.array([2, 9, 3, 9, 4])
    assert [b.tolist() for b in batches_by_budget(lengths, 10)] == [[1], [3], [4, 2], [0]]
    assert [b.tolist() for b in batches_by_budget(lengths, 18)] == [[1, 3], [4, 2, 0]]


@given(st.lists(st.integers(0, 50), max_size=80), st.integers(1, 200))
def test_every_index_is_in_one_batch(lengths, budget):
    lengths = np.array(lengths, np.int64)
    batches = batches_by_budget(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= budget for b in batches)
