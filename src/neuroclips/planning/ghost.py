"""What a network takes, without the network: its step is walked through on tensors that have shapes and no numbers.

Torch's fake tensors run the real code of forward, backward and optimiser. Every storage that comes and goes is counted,
so the highest sum is the memory that the step needs, and operations are counted beside it. Neither weights nor a GPU
are needed, and the largest network takes a second or two.

What a GPU does otherwise is put in its place: attention is one kernel that keeps no matrix of weights, and autocast
computes norms and losses in float32. Not seen are workspaces inside kernels, and what the allocator cannot fill.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

PRECISIONS = {"no": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BLOCK = 512  # bytes, of which CUDA's allocator gives out whole numbers
_KEPT = 1 << 25  # bytes: the ceiling of glibc's threshold, from which on blocks are mapped and given back
_MASK = 8  # columns that a fused kernel's mask is padded to a multiple of
_IN_FLOAT32 = ("layer_norm", "group_norm", "softmax", "mse_loss", "l1_loss", "cross_entropy", "normalize")
_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)
_FAKE = FakeTensorMode(allow_non_fake_inputs=True)


@dataclass(frozen=True)
class Cost:
    """What a network takes on the device it runs on.

    parameters, trained : numbers of them.  weights : bytes that stay between steps: weights, and of a training the
        gradients and AdamW's two means as well.  peak : bytes at the highest point of a step, ``weights`` included.
    flops : of a step. items : that a step treats, such as clips.
    """

    parameters: int
    trained: int
    weights: int
    peak: int
    flops: float | int
    items: int

    @property
    def activations(self) -> int:
        """Bytes that come and go with a step."""
        return self.peak - self.weights


def ghost(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    """The module that ``make`` gives, with parameters that have shapes and no numbers; buffers are real."""
    with init_empty_weights():
        module: Any = make()
    if hasattr(module, "tie_weights"):  # transformers': what was shared came apart as it was emptied
        module.tie_weights()
    made: dict[int, nn.Parameter] = {}  # shared ones stay shared
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                number = id(parameter)
                made.setdefault(number, nn.Parameter(like(*parameter.shape, dtype=dtype), parameter.requires_grad))
                owner._parameters[name] = made[number]
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                owner._buffers[name] = buffer.to(dtype)
    return module


def like(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without numbers."""
    with _FAKE:
        return torch.empty(shape, dtype=dtype)


def count(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def inference_cost(module: nn.Module, call: Callable[[], Any], items: int, *, like_a_gpu: bool = True) -> Cost:
    """What a frozen network takes in ``call``, which runs it on ``items`` clips or pictures."""
    module.eval().requires_grad_(False)
    weights = _bytes(module.parameters())
    with _counted(like_a_gpu) as ledger, torch.no_grad():
        call()
    return Cost(count(module), 0, weights, weights + ledger.peak, ledger.flops, items)


def training_cost(
    module: nn.Module,
    loss: Callable[[], Tensor],
    items: int,
    *,
    given: Iterable[Any] = (),
    precision: str = "no",
    parts: int = 1,
    like_a_gpu: bool = True,
    fused_adamw: bool = True,
) -> Cost:
    """What an optimiser step takes: weights, gradients and AdamW's means in float32, and forward and backward.

    Parameters
    ----------
    loss : forward pass on a batch of ``items``.  given : the batch's tensors.
    precision : of autocast.  parts : batches of a step; from the second one on, gradients are there already.
    fused_adamw : the plain one makes copies of a parameter.
    """
    module.train()
    module.zero_grad()
    learnt = [p for p in module.parameters() if p.requires_grad]
    weights, gradients = _bytes(module.parameters()), _bytes(learnt)
    held = weights + 2 * gradients + _bytes(t for t in given if isinstance(t, Tensor))
    with _counted(like_a_gpu) as ledger:
        for _ in range(min(parts, 2)):
            with torch.autocast("cpu", PRECISIONS[precision], enabled=precision != "no"):
                value = loss()
            value.backward()
            del value
    peak, flops = held + ledger.peak, ledger.flops / min(parts, 2) * parts
    if not fused_adamw:
        optimizer = torch.optim.AdamW(learnt, foreach=False)
        with _counted(like_a_gpu) as ledger:
            optimizer.step()
        peak = max(peak, weights + gradients + ledger.peak)
    trained = sum(p.numel() for p in learnt)
    return Cost(
        count(module), trained, weights + 3 * gradients, max(peak, weights + 3 * gradients), flops, items * parts
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(_rounded(t.untyped_storage().nbytes()) for t in tensors)


@contextlib.contextmanager
def _counted(like_a_gpu: bool) -> Iterator[_Ledger]:
    ledger = _Ledger(like_a_gpu)
    with _kernels_of_a_gpu(ledger) if like_a_gpu else contextlib.nullcontext(), ledger:
        yield ledger


class _Ledger(TorchDispatchMode):
    """Counts bytes of storages that operations make, until they are dropped, and floating-point operations.

    On a CPU, memory of blocks below ``_KEPT`` bytes stays with the process when they are freed: the C library keeps it
    for the next ones. So the highest sum of small blocks counts beside the highest sum of large ones.
    """

    def __init__(self, like_a_gpu: bool) -> None:
        super().__init__()
        self.like_a_gpu, self.flops = like_a_gpu, 0.0
        self._now, self._peaks = [0, 0], [0, 0]  # of small blocks, and of large ones
        self._held: dict[int, int] = {}

    @property
    def peak(self) -> int:
        return sum(self._peaks)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self._hold(tensor.untyped_storage())
        if self.like_a_gpu and func in _CONVOLUTIONS:  # cuDNN's own copy of an input, in the order that it likes
            copy = args[_CONVOLUTIONS.index(func)].untyped_storage().nbytes()
            self._peaks[1] = max(self._peaks[1], self._now[1] + copy)
        if (formula := flop_registry.get(getattr(func, "_overloadpacket", None))) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._held:
            return
        size = self._held[key] = _rounded(storage.nbytes())
        large = self._is_large(size)
        self._now[large] += size
        self._peaks[large] = max(self._peaks[large], self._now[large])
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        size = self._held.pop(key)
        self._now[self._is_large(size)] -= size

    def _is_large(self, size: int) -> bool:
        return self.like_a_gpu or size >= _KEPT


@contextlib.contextmanager
def _kernels_of_a_gpu(ledger: _Ledger) -> Iterator[None]:
    """What CUDA does otherwise than a CPU, on which the fake tensors are, in place of torch's own functions."""
    own = {name: getattr(F, name) for name in (*_IN_FLOAT32, "scaled_dot_product_attention")}

    def attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        learns = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
        ledger.flops += 2 * 2 * q.numel() * k.shape[-2] * (3.5 if learns else 1)
        return _OneKernel.apply(q, k, v, attn_mask)

    def in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            if torch.is_autocast_enabled("cpu"):
                args, kwargs = tree_map(
                    lambda x: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x, (args, kwargs)
                )
            return function(*args, **kwargs)

        return call

    for name in _IN_FLOAT32:
        setattr(F, name, in_float32(own[name]))
    setattr(F, "scaled_dot_product_attention", attention)  # noqa: B010  mypy knows its type
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(F, name, function)


class _OneKernel(torch.autograd.Function):
    """Memory of fused attention: inputs, output and a number a query are kept; a mask with gradient has one in full."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        if mask is not None:
            mask = mask.new_empty((*mask.shape[:-1], -(-mask.shape[-1] // _MASK) * _MASK))
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32), mask)
        ctx.wanted, ctx.columns = ctx.needs_input_grad[3], k.shape[-2]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, _, _, mask = ctx.saved_tensors
        of_mask = None
        if ctx.wanted:
            whole = q.new_empty((*q.shape[:-1], mask.shape[-1]))[..., : ctx.columns]
            of_mask = whole.sum(tuple(range(whole.ndim - mask.ndim)))
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), of_mask


def _rounded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
