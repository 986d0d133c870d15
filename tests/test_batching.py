"""Tokens and batches, on texts whose tokens can be counted by hand."""

import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llm_neo.batching import TokenRows, encode, epoch_order, equal_length_batches, packed_batch
from llm_neo.errors import InputError

BOS, GOOD, BAD, FILM = 1, 3, 9, 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def rows_of(*lengths: int) -> TokenRows:
    """Texts of the given lengths with tokens 10 * text + position."""
    tokens = [10 * text + np.arange(length) for text, length in enumerate(lengths)]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return TokenRows(tuple(str(i) for i in range(len(lengths))), np.concatenate(tokens), offsets)


def test_special_tokens_come_from_the_tokenizer_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = encode(tokenizer, ["a", "b"], [("good film",), ("bad",)], 8)
    assert rows.tokens.tolist() == [BOS, GOOD, FILM, BOS, BAD] and rows.offsets.tolist() == [0, 3, 5]
    assert rows[1].tolist() == [BOS, BAD] and len(rows) == 2 and rows.lengths.tolist() == [3, 2]


def test_a_pair_is_one_text_with_both_marks(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = encode(tokenizer, ["a"], [("good film", "bad")], 8)
    assert rows.tokens.tolist() == [BOS, GOOD, FILM, BOS, BAD]


def test_long_texts_lose_their_end_and_are_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = encode(tokenizer, ["a", "b"], [("good film film film",), ("bad",)], 3)
    assert rows.tokens.tolist() == [BOS, GOOD, FILM, BOS, BAD] and rows.truncated == 1
    pair = encode(tokenizer, ["a"], [("good film film film", "bad")], 5)
    assert pair.tokens.tolist() == [BOS, GOOD, FILM, BOS, BAD] and pair.truncated == 1


def test_no_texts_give_no_rows(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(encode(tokenizer, [], [], 8)) == 0


def test_a_text_without_a_token_is_named() -> None:
    class Mute:
        def __call__(self, *columns: list[str], **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[5], []]}

    with pytest.raises(InputError, match="row b: .* gives no token"):
        encode(Mute(), ["a", "b"], [("x",), ("y",)], 8)  # type: ignore[arg-type]


def test_a_packed_batch_holds_the_chosen_texts_end_to_end() -> None:
    batch = packed_batch(rows_of(2, 3, 1), np.array([2, 1]))
    assert batch.input_ids.tolist() == [[20, 10, 11, 12]]
    assert batch.position_ids is not None and batch.position_ids.tolist() == [[0, 0, 1, 2]]
    assert batch.segments is not None and batch.segments.query_starts.tolist() == [0, 1, 4]
    assert batch.last_token.tolist() == [0, 3] and batch.rows.tolist() == [2, 1] and batch.tokens == 4


def test_the_mask_lets_a_token_see_its_own_text_up_to_itself() -> None:
    mask = packed_batch(rows_of(2, 3, 1), np.array([2, 1])).attention_mask()
    assert mask is not None and mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]


def test_equal_length_batches_cover_every_text_once_without_a_mask() -> None:
    rows = rows_of(2, 3, 2, 2, 5)
    batches = list(equal_length_batches(rows, max_tokens=4))
    assert [batch.rows.tolist() for batch in batches] == [[4], [1], [0, 2], [3]]
    for batch in batches:
        assert batch.attention_mask() is None and batch.position_ids is None
        for place, row in enumerate(batch.rows.tolist()):
            assert batch.input_ids[place].tolist() == rows[row].tolist()
            assert batch.input_ids.flatten()[batch.last_token[place]] == rows[row][-1]


def test_a_batch_moves_whole() -> None:
    batch = packed_batch(rows_of(2, 3), np.array([0, 1])).to(torch.device("meta"))
    assert {t.device.type for t in (batch.input_ids, batch.position_ids, batch.rows) if t is not None} == {"meta"}


def test_an_epoch_is_a_permutation_that_seed_and_epoch_decide() -> None:
    first = epoch_order(50, seed=0, epoch=0)
    assert sorted(first.tolist()) == list(range(50)) and np.array_equal(first, epoch_order(50, 0, 0))
    assert not np.array_equal(first, epoch_order(50, 0, 1)) and not np.array_equal(first, epoch_order(50, 1, 0))
