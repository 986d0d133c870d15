"""The Triton kernels against the plain form; without a GPU they run in Triton's interpreter (see conftest.py)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version
from transformers import LlamaConfig, LlamaForSequenceClassification

from llm_neo.batching import TokenRows, packed_batch
from llm_neo.models import adapters
from llm_neo.models.attention import PackedAttention, Segments
from llm_neo.models.decoder import Heads, Layer, Norm, before_attention, rotated
from llm_neo.models.fused import FusedClassifier
from llm_neo.models.projection import Adapters, Projection
from llm_neo.recipe.tree import Lora

triton = pytest.importorskip("triton")
MODELS = Path(adapters.__file__).parent
KERNEL_MODULES = ("short_attention", "lora_attention", "elementwise_kernels")
LOOPS = pytest.mark.skipif(
    Version(triton.__version__) < Version("3.7"),
    reason="the interpreter of this Triton cannot loop up to a number that is known when the kernel runs",
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
T, WIDTH, QUERY_HEADS, KEY_HEADS, D, RANK = 20, 96, 4, 2, 32, 4
OUTPUTS = (QUERY_HEADS * D, KEY_HEADS * D, KEY_HEADS * D)
SCALE, EPSILON = 2.0, 1e-5


@pytest.fixture(autouse=True)
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    if DEVICE.type == "cuda":
        pytest.skip("on a GPU Triton's products of float32 are TF32; test_captured.py compares losses there")


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("shared", [2, 3])
@pytest.mark.parametrize("ends", [[5, 6, 22, 30], [40, 45, 140]])
def test_short_attention_equals_the_padded_form(ends: list[int], shared: int, last_only: bool) -> None:
    from llm_neo.models.short_attention import ShortAttention

    starts, tokens = torch.tensor([0, *ends], dtype=torch.int32), ends[-1]
    joint, longest_text = torch.randn(tokens, 2 * shared + 4, 64), int(starts.diff().max())
    q, k, v = (part.clone().requires_grad_() for part in joint.split([2 * shared, 2, 2], dim=1))
    segments = Segments(starts, starts, longest_text, longest_text)
    queries = q
    if last_only:
        segments, queries = segments.last_queries(), q[starts[1:].long() - 1]
    expected = PackedAttention(segments, len(queries), tokens, packed_kernel=False)(queries, k, v, 0.125)
    found = ShortAttention.apply(queries, k, v, segments.query_starts, segments.key_starts, 0.125)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), (q, k, v), retain_graph=True),
        torch.autograd.grad((expected * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_every_kernel_compiles_for_an_h100(tmp_path: Path) -> None:
    """The interpreter forgives what the compiler refuses; the compiler needs no GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("triton_ahead.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    names = set(done.stdout.split()[1:])
    source = "".join((MODELS / f"{name}.py").read_text(encoding="utf-8") for name in KERNEL_MODULES)
    launched = set(re.findall(r"(\w+)\[(?:_grid|\()", source))
    assert names >= launched and len(launched) >= 10


class Problem:
    """A norm, frozen q, k and v with branches, and positions."""

    def __init__(self) -> None:
        self.x = torch.randn(T, WIDTH, requires_grad=True)
        self.constant = torch.randn(T, WIDTH)
        self.gain, self.weight = torch.randn(WIDTH), torch.randn(sum(OUTPUTS), WIDTH) / 10
        self.downs = [torch.randn(RANK, WIDTH, requires_grad=True) for _ in range(3)]
        self.ups = [torch.randn(outputs, RANK, requires_grad=True) for outputs in OUTPUTS]
        angle = torch.randn(T, D // 2).repeat(1, 2)
        self.cos, self.sin = angle.cos(), angle.sin()
        self.learnt = [self.x, *self.downs, *self.ups]

    def by_kernels(self, dropout: float, seed: int = 7) -> tuple[torch.Tensor, ...]:
        """Two layers, the first of a constant, so that the gradients of both are computed at once."""
        from llm_neo.models.lora_attention import LoraAttention

        branches = Adapters(OUTPUTS, tuple(self.downs), tuple(self.ups), SCALE, dropout)
        projection = Projection(self.weight, None, (), branches)
        shape = (QUERY_HEADS, KEY_HEADS, D)
        layers = LoraAttention([projection, projection], shape, self.cos, self.sin, training=True)
        layers.seeds.copy_(torch.tensor([seed, seed + 1]))
        first = layers(0, self.constant, self.gain, EPSILON)
        second = layers(1, self.x, self.gain, EPSILON)
        return (*first[:3], *second)

    def plain_layer(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        branches = Adapters(OUTPUTS, tuple(self.downs), tuple(self.ups), SCALE, 0.0)
        projection = Projection(self.weight, None, (), branches)
        norm, unused = Norm(self.gain, EPSILON), Projection(None, None, (), None)
        layer = Layer(norm, projection, None, None, unused, norm, unused, unused)
        heads = Heads(QUERY_HEADS, KEY_HEADS, D, 1.0)
        return before_attention(x, self.cos[:, None], self.sin[:, None], layer, heads, True)

    def plainly(self) -> tuple[torch.Tensor, ...]:
        return (*self.plain_layer(self.constant), *self.plain_layer(self.x), self.x)


@LOOPS
def test_norm_projection_and_rotation_equal_the_plain_form() -> None:
    problem = Problem()
    found, expected = problem.by_kernels(dropout=0.0), problem.plainly()
    weights = [torch.randn_like(part) for part in expected]
    gradients = [
        torch.autograd.grad(sum((p * w).sum() for p, w in zip(parts, weights, strict=True)), problem.learnt)
        for parts in (found, expected)
    ]
    for mine, theirs in zip((*found, *gradients[0]), (*expected, *gradients[1]), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-5)


@LOOPS
def test_with_dropout_the_gradient_is_that_of_the_same_mask() -> None:
    problem = Problem()
    weights = [torch.randn_like(part) for part in problem.by_kernels(dropout=0.3)]

    def loss() -> torch.Tensor:
        return sum(((p * w).sum() for p, w in zip(problem.by_kernels(0.3), weights, strict=True)), torch.zeros(()))

    gradients = torch.autograd.grad(loss(), problem.learnt)
    for tensor, gradient in zip(problem.learnt, gradients, strict=True):
        step = torch.randn_like(tensor) * 1e-2
        with torch.no_grad():
            tensor += step
            above = loss()
            tensor -= 2 * step
            below = loss()
            tensor += step
        assert ((above - below) / 2).item() == pytest.approx((gradient * step).sum().item(), rel=1e-2, abs=2e-3)


def test_dropout_drops_its_share_anew_for_each_seed_and_branch() -> None:
    problem = Problem()
    with torch.no_grad():
        problem.ups[0].zero_()
        for down in problem.downs:
            down.fill_(1.0)
        whole, first, again, second = (
            torch.cat([part.flatten() for part in problem.by_kernels(dropout, seed)[:3]])
            for dropout, seed in ((0.0, 7), (0.3, 7), (0.3, 7), (0.3, 8))
        )
    assert torch.equal(first, again) and not torch.equal(first, second)
    queries = T * OUTPUTS[0]
    assert torch.equal(first[:queries], whole[:queries]), "a branch without an upper half has nothing to drop"
    assert not torch.equal(first[queries:], whole[queries:])


@LOOPS
def test_a_classifier_by_kernels_equals_the_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_neo.models.lora_attention import fits

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_labels=2,
        pad_token_id=0,
    )
    model = LlamaForSequenceClassification(config).requires_grad_(False)
    lora = Lora(rank=4, alpha=8, dropout=0.0, targets=("q_proj", "k_proj", "v_proj"))
    adapted = adapters.add_adapters(model, lora, 0)
    learnt = adapters.trainable_parameters(adapted)
    for parameter in learnt:
        parameter.data += 0.05 * torch.randn_like(parameter)
    batch = packed_batch(TokenRows(("a", "b"), np.arange(20), np.array([0, 7, 20])), np.arange(2))
    expected = FusedClassifier(adapted.train())(batch)
    wanted = torch.autograd.grad(expected.square().sum(), learnt)
    monkeypatch.setattr(FusedClassifier, "_fits_kernels", lambda self: fits([x.keys_values for x in self._layers], 32))
    fused = FusedClassifier(adapted, compiled=True)
    assert fused._kernels
    found = fused(batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(torch.autograd.grad(found.square().sum(), learnt), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_the_norm_equals_the_plain_form() -> None:
    from llm_neo.models import elementwise_kernels as kernels

    x, gain, d_out, d_kept = torch.randn(7, 96), torch.randn(96), torch.randn(7, 96), torch.randn(7, 96)
    x.requires_grad_()
    expected = gain * x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + EPSILON)
    (wanted,) = torch.autograd.grad((expected * d_out).sum(), x)
    found, rescale = kernels.norm(x.detach(), gain, EPSILON)
    torch.testing.assert_close(found, expected)
    for kept, whole in ((None, wanted), (d_kept, wanted + d_kept)):
        torch.testing.assert_close(kernels.norm_back(x.detach(), gain, rescale, d_out, kept), whole)


def test_the_gated_unit_equals_the_plain_form() -> None:
    from llm_neo.models import elementwise_kernels as kernels

    both, d_out = torch.randn(5, 160, requires_grad=True), torch.randn(5, 80)
    gate, up = both.chunk(2, dim=-1)
    expected = torch.nn.functional.silu(gate) * up
    (wanted,) = torch.autograd.grad((expected * d_out).sum(), both)
    torch.testing.assert_close(kernels.gated(gate.detach(), up.detach()), expected)
    d_both = torch.empty_like(both)
    kernels.gated_back(gate.detach(), up.detach(), d_out, *d_both.chunk(2, dim=-1))
    torch.testing.assert_close(d_both, wanted)


def test_turning_heads_equals_the_plain_form_and_back_undoes_it() -> None:
    from llm_neo.models import elementwise_kernels as kernels

    joint, angle = torch.randn(6, 5, D), torch.randn(6, 1, D // 2).repeat(1, 1, 2)
    cos, sin, x = angle.cos(), angle.sin(), joint[:, 1:4]
    turned = kernels.turn(x, cos, sin, torch.empty(6, 3, D), back=False)
    torch.testing.assert_close(turned, rotated(x, cos, sin))
    torch.testing.assert_close(kernels.turn(turned, cos, sin, torch.empty(6, 3, D), back=True), x.contiguous())
