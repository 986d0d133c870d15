"""Scores from a prefix tree against those of whole texts; its size against a trie of dictionaries."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import tiny_config
from transformers import LlamaForSequenceClassification

from llm_neo.batching import Batch, TokenRows
from llm_neo.errors import ResourceError
from llm_neo.evaluate import classifier_forward, score_rows
from llm_neo.models.fused import FusedClassifier
from llm_neo.prefix_tree import KEYS_PER_TOKEN, tree_batches, tree_tokens

CPU = torch.device("cpu")
SST2 = Path(__file__).parents[2] / "shared/data/sst2/train.tsv"

Texts = list[list[int]]


def rows_of(texts: Texts) -> TokenRows:
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    return TokenRows(tuple(f"row {i}" for i in range(len(texts))), np.concatenate(texts).astype(np.int64), offsets)


def trie_nodes(texts: Texts) -> int:
    root: dict[int, dict] = {}
    nodes = 0
    for text in texts:
        at = root
        for token in text:
            nodes += token not in at
            at = at.setdefault(token, {})
    return nodes


def paths(batch: Batch) -> Iterator[tuple[int, list[int], list[int]]]:
    """Each text of a batch: its number, its tokens as its keys spell them, their positions."""
    segments = batch.segments
    assert segments is not None and batch.position_ids is not None
    index = torch.arange(batch.tokens) if segments.key_index is None else segments.key_index
    for text, (start, end) in enumerate(zip(segments.key_starts, segments.key_starts[1:], strict=False)):
        at = index[start:end]
        yield int(batch.rows[text]), batch.input_ids[0, at].tolist(), batch.position_ids[0, at].tolist()


alphabets = st.sampled_from([1, 2, 3, 60])
texts_of_any_shape = alphabets.flatmap(
    lambda letters: st.lists(
        st.lists(st.integers(0, letters - 1), min_size=1, max_size=9), min_size=1, max_size=24, unique_by=tuple
    )
)
budgets = st.sampled_from([1, 2, 5, 16, 1000])
NESTED = [[1] * length for length in (3, 1, 4, 2, 5)]
BRANCHED = [[1, 2], [1, 2, 3, 4], [1, 2, 3, 5], [1, 3], [2], [2, 1, 1], [1, 2, 3]]


@pytest.fixture(scope="module")
def model() -> LlamaForSequenceClassification:
    torch.manual_seed(3)
    classifier = LlamaForSequenceClassification(tiny_config(3, num_labels=3, pad_token_id=2)).eval()
    return classifier.requires_grad_(False)


@settings(max_examples=60, deadline=None)
@given(texts=texts_of_any_shape, max_tokens=budgets)
@example(texts=NESTED, max_tokens=2)
@example(texts=NESTED, max_tokens=1000)
@example(texts=BRANCHED, max_tokens=5)
def test_scores_are_those_of_whole_texts(model: LlamaForSequenceClassification, texts: Texts, max_tokens: int) -> None:
    repeated = rows_of([*texts, texts[0]])
    expected = score_rows(classifier_forward(model, "plain"), repeated, CPU)
    scored = score_rows(classifier_forward(model), repeated, CPU, max_tokens=max_tokens)
    assert (scored - expected).abs().max() < 1e-5


@settings(max_examples=200, deadline=None)
@given(texts=texts_of_any_shape, max_tokens=budgets)
@example(texts=NESTED, max_tokens=1000)
def test_every_text_is_in_one_batch_and_finds_its_own_tokens(texts: Texts, max_tokens: int) -> None:
    found = [path for batch in tree_batches(rows_of(texts), max_tokens) for path in paths(batch)]
    assert sorted(row for row, _, _ in found) == list(range(len(texts)))
    for row, tokens, positions in found:
        assert tokens == texts[row] and positions == list(range(len(tokens)))


@settings(max_examples=200, deadline=None)
@given(texts=texts_of_any_shape, max_tokens=budgets)
def test_a_query_is_among_the_last_keys_of_its_text(texts: Texts, max_tokens: int) -> None:
    for batch in tree_batches(rows_of(texts), max_tokens):
        segments = batch.segments
        assert segments is not None
        queries, keys = segments.query_starts.diff(), segments.key_starts.diff()
        assert (queries >= 1).all() and (queries <= keys).all() and int(queries.sum()) == batch.tokens
        assert (segments.longest_query, segments.longest_key) == (queries.max(), keys.max())
        assert batch.last_token.tolist() == (segments.query_starts[1:] - 1).tolist()
        if segments.key_index is None:
            assert queries.tolist() == keys.tolist()
            continue
        for text in range(len(queries)):
            own = segments.key_index[segments.key_starts[text] : segments.key_starts[text + 1]][-queries[text] :]
            assert own.tolist() == list(range(segments.query_starts[text], segments.query_starts[text + 1]))


@settings(max_examples=200, deadline=None)
@given(texts=texts_of_any_shape, max_tokens=budgets)
def test_batches_keep_to_the_budget_but_for_a_long_text_alone(texts: Texts, max_tokens: int) -> None:
    for batch in tree_batches(rows_of(texts), max_tokens):
        keys = sum(len(texts[row]) for row in batch.rows.tolist())
        assert len(batch.rows) == 1 or (batch.tokens <= max_tokens and keys <= KEYS_PER_TOKEN * max_tokens)


@settings(max_examples=200, deadline=None)
@given(texts=texts_of_any_shape)
def test_the_tree_has_as_many_tokens_as_a_trie_has_nodes(texts: Texts) -> None:
    assert tree_tokens(rows_of(texts)) == tree_tokens(rows_of([*texts, texts[-1]])) == trie_nodes(texts)


def test_a_hand_made_tree() -> None:
    (batch,) = tree_batches(rows_of([[7, 8, 9], [7, 8], [7, 8, 5, 6]]), 100)
    assert batch.rows.tolist() == [1, 2, 0] and batch.input_ids.tolist() == [[7, 8, 5, 6, 9]]
    assert batch.position_ids is not None and batch.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert batch.segments is not None and batch.segments.key_index is not None
    assert batch.segments.query_starts.tolist() == [0, 2, 4, 5] and batch.last_token.tolist() == [1, 3, 4]
    assert batch.segments.key_index.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 4]


def test_texts_that_share_nothing_need_no_lookup() -> None:
    (batch,) = tree_batches(rows_of([[1, 2], [3], [2, 2, 2]]), 100)
    assert batch.segments is not None and batch.segments.key_index is None
    assert batch.segments.key_starts is batch.segments.query_starts and batch.rows.tolist() == [2, 0, 1]


def test_token_ids_are_ordered_as_numbers_so_that_batches_are_the_same_on_every_machine() -> None:
    (batch,) = tree_batches(rows_of([[70000], [256], [1], [65536], [255]]), 100)
    assert batch.input_ids.tolist() == [[1, 255, 256, 65536, 70000]]


def test_no_text_gives_no_batch() -> None:
    empty = TokenRows((), np.zeros(0, np.int64), np.zeros(1, np.int64))
    assert tree_tokens(empty) == 0 and list(tree_batches(empty, 8)) == []


class SmallMemory(FusedClassifier):
    """A device that holds `room` keys; it remembers the batches it was given."""

    room: int
    seen: list[Batch]

    def __call__(self, batch: Batch) -> torch.Tensor:
        self.seen.append(batch)
        index = None if batch.segments is None else batch.segments.key_index
        if (batch.tokens if index is None else len(index)) > self.room:
            raise torch.OutOfMemoryError("no memory")
        return super().__call__(batch)


@pytest.mark.parametrize(("room", "tree_fits"), [(30, True), (20, True), (5, False)])
def test_running_out_of_memory_halves_the_tree_and_then_does_without(
    model: LlamaForSequenceClassification, room: int, tree_fits: bool
) -> None:
    rows = rows_of([*NESTED, *BRANCHED])
    forward = SmallMemory(model)
    forward.room, forward.seen = room, []
    expected = score_rows(classifier_forward(model, "plain"), rows, CPU)
    assert (score_rows(forward, rows, CPU, max_tokens=64) - expected).abs().max() < 1e-5
    assert len(forward.seen[0].rows) == len(rows) > len(forward.seen[-1].rows)
    assert (forward.seen[-1].segments is not None) == tree_fits
    forward.room = 4
    with pytest.raises(ResourceError, match="one text of 5 tokens"):
        score_rows(forward, rows, CPU, max_tokens=64)


def test_the_tree_can_be_left_out_and_progress_is_told_what_was_computed(
    model: LlamaForSequenceClassification,
) -> None:
    rows = rows_of(BRANCHED)
    for prefix_tree, tokens in ((True, trie_nodes(BRANCHED)), (False, rows.lengths.sum())):
        told = Told()
        score_rows(classifier_forward(model), rows, CPU, told, prefix_tree=prefix_tree)
        assert (told.rows, told.tokens) == (len(BRANCHED), tokens)


class Told:
    """A `Progress` and its only bar: it adds up what it is told."""

    rows = tokens = 0

    def stage(self, name: str) -> None: ...

    def say(self, message: str) -> None: ...

    def bar(self, label: str, total: int | None, unit: str) -> "Told":
        return self

    def __enter__(self) -> "Told":
        return self

    def __exit__(self, *error: object) -> None: ...

    def advance(self, amount: int = 1, **figures: float) -> None:
        self.rows += amount
        self.tokens += int(figures["tokens"])


def test_real_sentences_need_well_under_their_tokens() -> None:
    if not SST2.is_file():
        pytest.skip("SST-2 does not lie beside the checkout (shared/data/sst2/train.tsv)")
    lines = SST2.read_text(encoding="utf-8").splitlines()[1:]
    words: dict[str, int] = {}
    texts = [[words.setdefault(word, len(words)) for word in line.split("\t")[0].split()] for line in lines]
    distinct = rows_of([list(text) for text in dict.fromkeys(map(tuple, texts)) if text])
    computed = sum(batch.tokens for batch in tree_batches(distinct, 1024))
    assert tree_tokens(distinct) <= computed < 0.75 * distinct.lengths.sum()
