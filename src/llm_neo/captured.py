"""One optimizer step as one CUDA graph: forward, loss, backward, clipping and update without a wait for the host.

A graph is captured for each bucket of tokens (two with accumulation); a batch is padded to the next bucket with
texts of their own that count for nothing. Losses stay on the device until they are asked for. A step with a
non-finite loss or gradient sets a flag on the device that turns off its own update and every later one, so that the
weights are those before it, however late the host reads the flag.

Shapes: B texts of a micro-batch, T tokens of a bucket, C classes, F figures of a step.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from llm_neo.batching import Batch
from llm_neo.buckets import bucket, padded, unpacked
from llm_neo.engine import NonFiniteStepError, Objective, StepFigures, StepMemoryError
from llm_neo.evaluate import Forward

_FIGURES = ("loss", "hard_loss", "soft_loss", "gradient_norm", "learning_rate")
_WARM_UPS = 1


class CapturedEngine:
    """The step of `engine.PlainEngine`, replayed from CUDA graphs.

    Every tensor that the graphs touch keeps its place in memory: the parameters, the optimizer's state, the learning
    rate (a tensor), the inputs. Warming up and capturing leave no trace: parameters, state and random numbers are
    put back before the first step counts.
    """

    def __init__(
        self,
        forward: Forward,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        max_gradient_norm: float | None,
        autocast_dtype: torch.dtype | None,
        device: torch.device,
        *,
        rows_of_batch: int,
        longest_text: int,
        accumulates: bool,
        log_capacity: int = 1024,
    ) -> None:
        """Prepare; graphs are captured when a bucket is first seen.

        Args:
            forward: logits of a packed batch, as many as it has segments; its shapes depend on no tensor's value.
            objective: losses of each row.
            optimizer: capturable, its learning rate a tensor on the device.
            scheduler: sets the learning rate of each step.
            max_gradient_norm: None = no clipping.
            autocast_dtype: as in `PlainEngine`.
            device: a CUDA device.
            rows_of_batch: B, the most texts of a micro-batch.
            longest_text: tokens of the longest text.
            accumulates: some steps have several micro-batches.
            log_capacity: steps that may pass between two reads.
        """
        self._forward, self._objective = forward, objective
        self.optimizer, self.scheduler = optimizer, scheduler
        self._max_norm, self._autocast_dtype, self._device = max_gradient_norm, autocast_dtype, device
        self._rows, self._longest, self._accumulates = rows_of_batch, longest_text, accumulates
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._log = torch.zeros(log_capacity, len(_FIGURES), device=device)
        self._taken = torch.zeros(1, dtype=torch.int64, device=device)
        self._first_bad = torch.full((1,), -1, dtype=torch.int64, device=device)
        self._skip = torch.zeros((), device=device)
        self._sums = torch.zeros(3, device=device)
        self._gradients = [torch.zeros_like(p) for p in self._parameters] if accumulates else []
        # The fused optimizers of PyTorch leave everything as it is where this tensor is 1.
        optimizer.found_inf, optimizer.grad_scale = self._skip, None  # type: ignore[attr-defined]
        self._graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._pool: Any = None
        self._pending: list[tuple[list[Batch], int]] = []

    def rehearse(self, batch: Batch) -> None:
        """Capture what a step with this micro-batch replays.

        Raises:
            StepMemoryError: the device is out of memory.
        """
        try:
            for updates in (False, True) if self._accumulates else (True,):
                self._graph(batch, len(batch.rows), updates=updates)
        except torch.OutOfMemoryError as error:
            raise StepMemoryError([batch]) from error

    def step(self, micro_batches: Sequence[Batch]) -> None:
        """Queue one step; the device may still be busy with the ones before.

        Raises:
            StepMemoryError: the device is out of memory.
        """
        batches = list(micro_batches)
        rows = sum(len(batch.rows) for batch in batches)
        try:
            for index, batch in enumerate(batches):
                self._replay(batch, rows, updates=index == len(batches) - 1)
        except torch.OutOfMemoryError as error:
            raise StepMemoryError(batches) from error
        self.scheduler.step()
        self._pending.append((batches, sum(batch.tokens for batch in batches)))

    @property
    def full(self) -> bool:
        """Whether `read` must come before the next step."""
        return len(self._pending) == len(self._log)

    def read(self) -> list[StepFigures]:
        """Figures of every step since the last call; waits for the device.

        Raises:
            NonFiniteStepError: one of them met a NaN or an infinity; the weights are those before it.
        """
        if not self._pending:
            return []
        host = torch.cat([self._log[: len(self._pending)].flatten(), self._first_bad.float()]).tolist()
        first_bad, width = int(host.pop()), len(_FIGURES)
        figures = [
            StepFigures(**dict(zip(_FIGURES, host[index * width : (index + 1) * width], strict=True)), tokens=tokens)
            for index, (_, tokens) in enumerate(self._pending)
        ]
        pending, self._pending = self._pending, []
        self._taken.zero_()
        if first_bad >= 0:
            raise NonFiniteStepError(figures[first_bad], pending[first_bad][0], figures[:first_bad])
        return figures

    def _replay(self, batch: Batch, rows: int, *, updates: bool) -> None:
        graph, inputs, values = self._graph(batch, rows, updates=updates)
        inputs.copy_(values, non_blocking=True)
        graph.replay()

    def _graph(
        self, batch: Batch, rows: int, *, updates: bool
    ) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        """The graph of the batch's bucket, captured where it is the first of it, its inputs and their values."""
        tokens = bucket(batch.tokens + self._rows - len(batch.rows) + 1)
        values = padded(batch, tokens, self._rows, rows)
        key = (tokens, updates)
        if key not in self._graphs:
            self._graphs[key] = self._capture(tokens, values, updates=updates)
        return *self._graphs[key], values

    def _capture(
        self, tokens: int, values: torch.Tensor, *, updates: bool
    ) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        inputs = values.to(self._device)
        with self._without_trace():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    self._body(inputs, tokens, updates=updates)
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                self._body(inputs, tokens, updates=updates)
            self._pool = graph.pool()
        return graph, inputs

    @contextmanager
    def _without_trace(self) -> Iterator[None]:
        """Put parameters, optimizer state, counters and random numbers back as they were."""
        self._materialise_state()
        kept = [*self._parameters, *_slots(self.optimizer), *self._gradients, self._log, self._taken]
        kept += [self._first_bad, self._skip, self._sums]
        before = [tensor.detach().clone() for tensor in kept]
        random = torch.cuda.get_rng_state(self._device)
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(kept, before, strict=True):
                    tensor.copy_(value)
            torch.cuda.set_rng_state(random, self._device)

    def _materialise_state(self) -> None:
        """Make the optimizer's state, which is first made by a step, as it is before the first one."""
        if self.optimizer.state:
            return
        skip = self._skip.clone()
        self._skip.fill_(1.0)
        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._skip.copy_(skip)

    def _body(self, inputs: torch.Tensor, tokens: int, *, updates: bool) -> None:
        """What a graph holds: one micro-batch and, with `updates`, the end of the step."""
        batch, present_B, rows = unpacked(inputs, tokens, self._rows, self._longest)
        with self._autocast():
            logits_BC = self._forward(batch)[: self._rows]
        losses = self._objective(logits_BC.float(), batch.rows)
        shares = [torch.where(present_B, term, 0.0).sum() / rows for term in losses]
        found = torch.autograd.grad(shares[0], self._parameters)
        # Fused kernels want gradients laid out like their parameters.
        gradients = [gradient.contiguous() for gradient in found]
        sums = torch.stack([share.detach() for share in shares])
        if self._accumulates:
            torch._foreach_add_(self._gradients, gradients)
            self._sums += sums
            gradients, sums = self._gradients, self._sums
        if updates:
            self._update(gradients, sums)

    def _update(self, gradients: list[torch.Tensor], sums: torch.Tensor) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_norm or math.inf)
        rate = self.optimizer.param_groups[0]["lr"]
        figures = torch.cat([sums.float(), norm.detach().float()[None], rate.detach().float()[None]])
        is_bad = ~torch.isfinite(figures).all()
        self._first_bad.copy_(torch.where((self._first_bad < 0) & is_bad, self._taken, self._first_bad))
        self._skip.copy_((self._first_bad >= 0).float()[0])
        self.optimizer.step()
        self._log.index_copy_(0, self._taken, figures[None])
        self._taken += 1
        if self._accumulates:
            torch._foreach_zero_(self._gradients)
            self._sums.zero_()
        for parameter in self._parameters:
            parameter.grad = None

    def _autocast(self) -> AbstractContextManager[object]:
        if self._autocast_dtype is None or self._autocast_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._autocast_dtype, cache_enabled=False)


def _slots(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [value for slots in optimizer.state.values() for value in slots.values() if isinstance(value, torch.Tensor)]
