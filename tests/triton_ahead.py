"""Compiles every Triton kernel for an H100 without one: run as a script, where no interpreter takes the kernels' place.

`JITFunction.run` is what a launch calls; here it compiles for the processor named and launches nothing, so that the
functions of `llm_neo.models` go through all their launches on the CPU.
"""

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64"}
TARGET = GPUTarget("cuda", 90, 32)
compiled: list[str] = []


def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, num_warps: int = 4, **options: Any) -> None:
    values = dict(zip(self.arg_names, args, strict=True))
    constants = {p.name: values[p.name] for p in self.params if p.is_constexpr}
    signature = {name: "constexpr" if name in constants else type_of(value) for name, value in values.items()}
    places = {(self.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=self, signature=signature, constexprs=places)
    triton.compile(source, target=TARGET, options={"num_warps": num_warps})
    compiled.append(self.__name__)


def type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + NAMES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def go_through_all(q_heads: int, k_heads: int, width: int, inner: int, head: int, dropout: float) -> None:
    from llm_neo.models import elementwise_kernels
    from llm_neo.models.lora_attention import LoraAttention
    from llm_neo.models.projection import Adapters, Projection
    from llm_neo.models.short_attention import ShortAttention

    tokens, outputs = 40, (q_heads * head, k_heads * head, k_heads * head)
    x = torch.randn(tokens, width, dtype=torch.bfloat16, requires_grad=True)
    gain, cos = x[0].detach().clone(), torch.zeros(tokens, head, dtype=torch.bfloat16)
    downs = tuple(torch.zeros(4, width, requires_grad=True) for _ in range(3))
    ups = tuple(torch.zeros(n, 4, requires_grad=True) for n in outputs)
    weight = torch.zeros(sum(outputs), width, dtype=torch.bfloat16)
    projection = Projection(weight, None, (), Adapters(outputs, downs, ups, 2.0, dropout))
    starts = torch.tensor([0, 13, tokens], dtype=torch.int32)
    layers = LoraAttention([projection, projection], (q_heads, k_heads, head), cos, cos, training=True)
    _, _, _, between = layers(0, x, gain, 1e-5)
    q, k, v, after = layers(1, between, gain, 1e-5)
    out = ShortAttention.apply(q, k, v, starts, starts, 0.125)  # type: ignore[no-untyped-call]
    (out.float().sum() + after.float().sum()).backward()
    states, gate_up = x.detach(), torch.zeros(tokens, 2 * inner, dtype=torch.bfloat16)
    _, rescale = elementwise_kernels.norm(states, gain, 1e-5)
    for kept in (None, states):
        elementwise_kernels.norm_back(states, gain, rescale, states, kept)
    gate, up = gate_up.chunk(2, dim=-1)
    elementwise_kernels.gated_back(gate, up, elementwise_kernels.gated(gate, up), gate, up)
    elementwise_kernels.turn(q.detach(), cos, cos, torch.empty_like(q), back=False)


if __name__ == "__main__":
    JITFunction.run = compile_only
    go_through_all(8, 2, 1024, 2048, 64, 0.1)
    print("compiled", *sorted(set(compiled)))
