"""Packed attention against torch's own `scaled_dot_product_attention`, one text at a time."""

import math
import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_neo.models.attention import PackedAttention, Segments

HEADS, GROUPS = 4, 2
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def edges(counts: list[int]) -> torch.Tensor:
    return torch.tensor([0, *counts]).cumsum(0).int()


def segments(counts: list[int]) -> Segments:
    starts = edges(counts)
    return Segments(starts, starts, max(counts), max(counts))


def random_heads(tokens: int, heads: int, *, width: int = 8, seed: int = 0) -> torch.Tensor:
    draw = torch.randn(tokens, heads, width, generator=torch.Generator().manual_seed(seed + heads))
    return draw.requires_grad_()


def one_text(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention of a text whose queries are its last tokens, by torch."""
    seen = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
    q, k, v = (part.transpose(0, 1) for part in (q, k, v))
    k, v = (part.repeat_interleave(len(q) // len(part), dim=0) for part in (k, v))
    return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=seen, scale=scale)[0].transpose(0, 1)


def text_by_text(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, counts: list[int], scale: float) -> torch.Tensor:
    parts = zip(*(part.split(counts) for part in (q, k, v)), strict=True)
    return torch.cat([one_text(*part, scale) for part in parts])


def test_two_tokens_by_hand() -> None:
    # Both texts' keys are equal, so that a second token answers with the mean of two values.
    q, k = torch.ones(3, 1, 2), torch.ones(3, 1, 2)
    v = torch.tensor([[2.0, 0.0], [4.0, 8.0], [7.0, 7.0]])[:, None]
    out = PackedAttention(segments([2, 1]), 3, 3, packed_kernel=False)(q, k, v, 1.0)
    assert out[:, 0].tolist() == [[2.0, 0.0], [3.0, 4.0], [7.0, 7.0]]


@given(LENGTHS, st.sampled_from([1, 2, 4]), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_it_equals_torch_on_each_text_with_gradients(counts: list[int], groups: int, seed: int) -> None:
    tokens, scale = sum(counts), 0.3
    q, k, v = (random_heads(tokens, h, seed=seed + i) for i, h in enumerate([HEADS, groups, groups]))
    packed = PackedAttention(segments(counts), tokens, tokens, packed_kernel=False)(q, k, v, scale)
    expected = text_by_text(q, k, v, counts, scale)
    assert packed.shape == (tokens, HEADS, 8) and (packed - expected).abs().max() < 1e-5

    slope = random_heads(tokens, HEADS, seed=seed + 9).detach()
    found, wanted = (torch.autograd.grad((out * slope).sum(), [q, k, v]) for out in (packed, expected))
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(found, wanted, strict=True))


@given(LENGTHS, st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_last_queries_are_the_last_rows_of_the_whole_with_gradients(counts: list[int], seed: int) -> None:
    tokens = sum(counts)
    q, k, v = (random_heads(tokens, h, seed=seed + i) for i, h in enumerate([HEADS, GROUPS, GROUPS]))
    whole, last = segments(counts), edges(counts)[1:].long() - 1
    ends = whole.last_queries()
    assert ends.query_starts.tolist() == list(range(len(counts) + 1)) and ends.longest_query == 1
    some = PackedAttention(ends, len(counts), tokens, packed_kernel=False)(q[last], k, v, 0.3)
    every = PackedAttention(whole, tokens, tokens, packed_kernel=False)(q, k, v, 0.3)[last]
    assert (some - every).abs().max() < 1e-5
    found, wanted = (torch.autograd.grad(out.square().sum(), [q, k, v]) for out in (some, every))
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(found, wanted, strict=True))


def shared_prefix(prefix: int, rests: list[int]) -> Segments:
    """A prefix that is computed once and read by each of the texts that go on from it."""
    places = torch.arange(prefix + sum(rests))
    ends = places[prefix:].split(rests)
    keys = torch.cat([places[:prefix], *(torch.cat([places[:prefix], end]) for end in ends)])
    counts = [prefix, *(prefix + rest for rest in rests)]
    return Segments(edges([prefix, *rests]), edges(counts), max(prefix, *rests), max(counts), keys)


def prefixed_texts(tensor: torch.Tensor, prefix: int, rests: list[int]) -> list[torch.Tensor]:
    return [torch.cat([tensor[:prefix], rest]) for rest in tensor[prefix:].split(rests)]


def test_shared_keys_answer_as_if_each_text_had_its_own() -> None:
    prefix, rests = 3, [2, 4, 1]
    tokens = prefix + sum(rests)
    q, k, v = (random_heads(tokens, h, seed=i) for i, h in enumerate([HEADS, GROUPS, GROUPS]))
    shared = shared_prefix(prefix, rests)
    out = PackedAttention(shared, tokens, len(shared.key_index), packed_kernel=False)(q, k, v, 0.3)
    whole = [one_text(*text, 0.3) for text in zip(*(prefixed_texts(t, prefix, rests) for t in (q, k, v)), strict=True)]
    expected = torch.cat([whole[0][:prefix], *(text[prefix:] for text in whole)])
    assert (out - expected).abs().max() < 1e-5

    ends = shared.last_queries()
    last = shared.query_starts[1:].long() - 1
    out = PackedAttention(ends, len(last), len(shared.key_index), packed_kernel=False)(q[last], k, v, 0.3)
    assert (out - expected[last]).abs().max() < 1e-5


def test_shared_keys_refuse_to_be_trained_on() -> None:
    shared = shared_prefix(2, [1, 1])
    q, k, v = (random_heads(4, h, seed=i) for i, h in enumerate([HEADS, GROUPS, GROUPS]))
    out = PackedAttention(shared, 4, len(shared.key_index), packed_kernel=False)(q, k, v, 0.3)
    with pytest.raises(RuntimeError, match="scored but not trained"):
        out.sum().backward()


def triton_device() -> torch.device:
    pytest.importorskip("triton", reason="Triton is not installed")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton kernels need a GPU, or TRITON_INTERPRET=1")
    return torch.device("cpu")


KERNEL_CASES = {
    "texts": segments([1, 13, 7, 30, 16, 17]),
    "as long as a program holds": segments([128, 1, 65]),
    "last queries": segments([1, 13, 7, 30]).last_queries(),
    "shared prefix": shared_prefix(5, [2, 14, 1]),
}


@pytest.mark.parametrize("case", KERNEL_CASES)
@pytest.mark.parametrize(("groups", "width"), [(4, 16), (2, 64), (1, 32)])
def test_the_short_kernels_equal_the_padded_form(case: str, groups: int, width: int) -> None:
    device = triton_device()
    from llm_neo.models.short_attention import ShortAttention

    # The interpreter multiplies float32; a GPU is given what `has_packed_kernel` lets through.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tolerance = 3e-2 if device.type == "cuda" else 1e-4
    where = KERNEL_CASES[case].to(device)
    queries, keys = int(where.query_starts[-1]), int(where.key_starts[-1])
    drawn = [random_heads(n, h, width=width, seed=i) for i, (n, h) in enumerate([(queries, 4), (keys, groups)] * 2)]
    q, k, slope, v = (tensor.detach().to(device, dtype).requires_grad_() for tensor in drawn)
    # The kernels take the keys of each segment, gathered; so does the padded form without an index.
    gathered = Segments(where.query_starts, where.key_starts, where.longest_query, where.longest_key)
    scale = width**-0.5
    out = ShortAttention.apply(q, k, v, where.query_starts, where.key_starts, scale)
    q32, k32, v32 = (tensor.detach().float().requires_grad_() for tensor in (q, k, v))
    expected = PackedAttention(gathered, queries, keys, packed_kernel=False)(q32, k32, v32, scale)
    assert out.dtype == dtype and (out.float() - expected).abs().max() < tolerance
    found = torch.autograd.grad((out.float() * slope.detach().float()).sum(), [q, k, v])
    wanted = torch.autograd.grad((expected * slope.detach().float()).sum(), [q32, k32, v32])
    for a, b in zip(found, wanted, strict=True):
        assert (a.float() - b).abs().max() < tolerance * max(1.0, b.abs().max().item())


def test_the_short_kernels_read_parts_of_a_joint_product() -> None:
    device = triton_device()
    from llm_neo.models.short_attention import ShortAttention

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    where = segments([5, 3]).to(device)
    joint = random_heads(8, 8, width=16).detach().to(device, dtype)
    q, k, v = joint.split([4, 2, 2], dim=1)
    assert not k.is_contiguous()
    apart, together = (
        ShortAttention.apply(*parts, where.query_starts, where.key_starts, 0.25)
        for parts in ([part.contiguous() for part in (q, k, v)], (q, k, v))
    )
    assert torch.equal(apart, together)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("counts", [[5, 60, 128], [5, 300, 128]], ids=["short kernel", "flash kernel"])
@pytest.mark.parametrize("part", ["all queries", "last queries"])
def test_the_packed_kernels_of_a_gpu_equal_the_padded_form(counts: list[int], part: str) -> None:
    where, tokens = segments(counts).to(torch.device("cuda")), sum(counts)
    if part == "last queries":
        where = where.last_queries()
    queries, scale = int(where.query_starts[-1]), 1 / math.sqrt(64)
    sizes = [(queries, HEADS), (tokens, GROUPS), (tokens, GROUPS)]
    drawn = [random_heads(n, h, width=64, seed=i).detach() for i, (n, h) in enumerate(sizes)]
    half, single = (
        [tensor.to("cuda", torch.bfloat16).to(dtype).requires_grad_() for tensor in drawn]
        for dtype in (torch.bfloat16, torch.float32)
    )
    out = PackedAttention(where, queries, tokens, packed_kernel=True)(*half, scale)
    expected = PackedAttention(where, queries, tokens, packed_kernel=False)(*single, scale)
    assert (out.float() - expected).abs().max() < 3e-2
    found, wanted = torch.autograd.grad(out.float().sum(), half), torch.autograd.grad(expected.sum(), single)
    for a, b in zip(found, wanted, strict=True):
        assert (a.float() - b).abs().max() < 3e-2 * max(1.0, b.abs().max().item())
