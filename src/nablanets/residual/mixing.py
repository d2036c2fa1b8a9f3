"""The sum y + (1 - s) x + s c g / |g| that a gradient residual ends in, as one operation.

It is bound by memory, since each of its parts is as large as x: a closed backward pass goes through it about half as
often as autograd does with single operations.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor


def unit(g: Tensor, dims: list[int]) -> Tensor:
    """g scaled to unit norm over some dimensions; where it is zero it stays zero, also in the backward pass.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), [1])
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    return g * _inverse_norm(g, dims)


def mixed(
    y: Tensor | None, x: Tensor, g: Tensor, s: Tensor, dims: list[int], gain: float = 1.0, *, overwrite: bool = False
) -> Tensor:
    r"""y + (1 - s) x + s c g / |g|, with the norm over ``dims``; without the last part where g is zero.

    For the cotangent G of the result, with u = g / |g|, derivatives are
    :math:`\bar x = (1 - s) G`, :math:`\bar g = s c (G - u \langle u, G \rangle) / |g|` and
    :math:`\bar s = \langle G, c u - x \rangle`; they can be differentiated again.

    Args:
        y: of the shape of x, or None for zero.
        x, g: of the same shape and type.
        s: the gate, a scalar or anything that broadcasts against x.
        dims: the dimensions that a norm runs over, counted from the end.
        gain: c.
        overwrite: y is needed by nobody else, so that where no derivatives are wanted the result may take its place.

    >>> x, g = torch.tensor([1.0, 1.0]), torch.tensor([3.0, 4.0])
    >>> mixed(None, x, g, torch.tensor(0.5), [-1])
    tensor([0.8000, 0.9000])
    """
    if y is not None and y.dtype != x.dtype:
        return y + mixed(None, x, g, s, dims, gain)
    if s.ndim or torch.compiler.is_compiling():  # the closed derivatives are for one gate; compilers fuse by themselves
        return _composed(y, x, g, s, dims, gain)
    if g.requires_grad:  # back-propagation through g, where the closed backward pass pays
        result: Tensor = _Mixed.apply(y, x, g, s, dims, gain)[0]
        return result
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return _composed(y, x, g, s, dims, gain)
    return _summed(y, x, g, s, _inverse_norm(g, dims), gain, overwrite=overwrite)


def _composed(y: Tensor | None, x: Tensor, g: Tensor, s: Tensor, dims: list[int], gain: float) -> Tensor:
    """The same by single operations: what a compiler fuses itself, and what vmap can batch."""
    u = unit(g, dims)
    carried = torch.lerp(x, u if gain == 1 else gain * u, s)
    return carried if y is None else y + carried


def _summed(
    y: Tensor | None, x: Tensor, g: Tensor, s: Tensor, inverse_norm: Tensor, gain: float, *, overwrite: bool = False
) -> Tensor:
    """The same in fewer passes through memory, outside of autograd and vmap; ``inverse_norm`` is 1 / |g|."""
    weight = inverse_norm * (s if gain == 1 else s * gain)
    if overwrite and y is not None:
        result = y.addcmul_(g, weight)
    else:
        result = g * weight if y is None else torch.addcmul(y, g, weight)
    return result.addcmul_(x, 1 - s)


def _inverse_norm(g: Tensor, dims: list[int]) -> Tensor:
    """1 / |g|, and 0 where g = 0."""
    square = g.square().sum(dim=dims, keepdim=True)  # vector_norm is slow over inner dimensions
    zero = square == 0
    safe = square.masked_fill(zero, 1) if torch.is_grad_enabled() else square
    return torch.rsqrt(safe).masked_fill(zero, 0)


class _Mixed(torch.autograd.Function):
    """:func:`mixed` for a scalar gate, and 1 / |g|."""

    @staticmethod
    def forward(
        y: Tensor | None, x: Tensor, g: Tensor, s: Tensor, dims: list[int], gain: float
    ) -> tuple[Tensor, Tensor]:
        inverse_norm = _inverse_norm(g, dims)
        return _summed(y, x, g, s, inverse_norm, gain), inverse_norm

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        y, x, g, s, ctx.dims, ctx.gain = inputs
        ctx.onto = y is not None
        ctx.save_for_backward(x, g, s, output[1])
        ctx.save_for_forward(x, g, s, output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, of_result: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if of_result is None:
            return (None,) * 6
        x, g, s, inverse_norm = ctx.saved_tensors
        again = torch.is_grad_enabled()  # to be differentiated again, or batched
        inverse_norm = _inverse_norm(g, ctx.dims) if again else inverse_norm
        of_x = of_g = of_s = None
        if ctx.needs_input_grad[1]:
            of_x = (1 - s) * of_result
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            along = inverse_norm * (of_result * g).sum(dim=ctx.dims, keepdim=True)  # <u, G>
        if ctx.needs_input_grad[3]:
            of_s = ctx.gain * along.sum() - _inner(of_result, x)
        if ctx.needs_input_grad[2]:
            across = torch.addcmul(of_result, g, along * inverse_norm, value=-1)
            weight = inverse_norm * (ctx.gain * s)
            of_g = across * weight if again else across.mul_(weight)
        return of_result if ctx.onto else None, of_x, of_g, of_s, None, None

    @staticmethod
    def jvp(ctx: Any, of_y: Any, of_x: Any, of_g: Any, of_s: Any, *_: None) -> tuple[Tensor, None]:
        x, g, s, _ = ctx.saved_tensors
        inverse_norm = _inverse_norm(g, ctx.dims)
        u = g * inverse_norm
        result = torch.zeros_like(x) if of_y is None else of_y
        if of_x is not None:
            result = result + (1 - s) * of_x
        if of_g is not None:
            along = (u * of_g).sum(dim=ctx.dims, keepdim=True)
            result = result + (s * ctx.gain) * inverse_norm * (of_g - u * along)
        if of_s is not None:
            result = result + of_s * (ctx.gain * u - x)
        return result, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        def composed(*inputs: Any) -> tuple[Tensor, Tensor]:
            return _composed(*inputs), _inverse_norm(inputs[2], inputs[4])

        return torch.vmap(composed, in_dims, randomness=info.randomness)(*inputs), (0, 0)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    if a.is_contiguous() and b.is_contiguous() and a.dtype in {torch.float32, torch.float64}:
        return torch.dot(a.view(-1), b.view(-1))  # without a product in memory
    return (a * b).sum()


# Function.apply asks for it at every call, which takes longer than the forward pass of a small block.
_Mixed.forward.__signature__ = inspect.signature(_Mixed.forward)  # type: ignore[attr-defined]
