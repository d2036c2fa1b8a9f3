"""Operations that are more than one statement on elements: products of matrices, sums, softmax, tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from nablanets.interop.c.loops import Lettered, Loops
from nablanets.interop.c.values import LARGEST, SMALLEST, SUM, Array, Fold

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _matmul(loops: Loops, name: str, self: Array, other: Array, **_: Any) -> Array:
    """The product of matrices or vectors, as torch.matmul broadcasts them."""
    batch = max(len(self.shape), len(other.shape), 2) - 2
    shared = _LETTERS[:batch]
    row = _LETTERS[batch]
    inner = _LETTERS[batch + 1]
    column = _LETTERS[batch + 2]
    left = inner if len(self.shape) == 1 else shared[batch - len(self.shape) + 2 :] + row + inner
    right = inner if len(other.shape) == 1 else shared[batch - len(other.shape) + 2 :] + inner + column
    rows = row if len(self.shape) > 1 else ""
    columns = column if len(other.shape) > 1 else ""
    return loops.fold(SUM, name, shared + rows + columns, (self, left), (other, right))


def _mm(loops: Loops, name: str, self: Array, mat2: Array, **_: Any) -> Array:
    return _matmul(loops, name, self, mat2)


def _addmm(loops: Loops, name: str, self: Array, mat1: Array, mat2: Array, beta: float, alpha: float) -> Array:
    product = _matmul(loops, f"{name}_product", mat1, mat2)
    scaled = self if beta == 1 else loops.word("aten.mul.Scalar", f"{name}_scaled", self=self, other=beta)
    return loops.word("aten.add.Tensor", name, self=scaled, other=product, alpha=alpha)


def _linear(loops: Loops, name: str, input: Array, weight: Array, bias: Array | None) -> Array:
    transposed = Array(weight.base, weight.layout.mT)
    if bias is None:
        return _matmul(loops, name, input, transposed)
    product = _matmul(loops, f"{name}_product", input, transposed)
    return loops.word("aten.add.Tensor", name, self=product, other=bias, alpha=1)


def _einsum(loops: Loops, name: str, equation: str, tensors: list[Array], **_: Any) -> Array:
    """einsum with an explicit result; an ellipsis stands for dimensions that get letters of their own."""
    inputs, out = equation.replace(" ", "").split("->")
    terms = inputs.split(",")
    free = [letter for letter in _LETTERS if letter not in equation]
    counts = [
        len(array.shape) - len(term.replace("...", ""))
        for term, array in zip(terms, tensors, strict=True)
        if "..." in term
    ]
    shared = "".join(free[: max(counts, default=0)])
    operands: list[Lettered] = []
    for term, array in zip(terms, tensors, strict=True):
        count = len(array.shape) - len(term.replace("...", ""))
        operands.append((array, term.replace("...", shared[len(shared) - count :])))
    return loops.fold(SUM, name, out.replace("...", shared), *operands)


def _folded(loops: Loops, fold: Fold, name: str, z: Array, dim: Sequence[int] | int | None, keepdim: bool) -> Array:
    """z folded over some dimensions, or all of them where None or none is given."""
    letters = _LETTERS[: len(z.shape)]
    given = [dim] if isinstance(dim, int) else list(dim or range(len(z.shape)))
    dims = [d % len(z.shape) for d in given]
    out = "".join(letter for d, letter in enumerate(letters) if d not in dims)
    folded = loops.fold(fold, name, out, (z, letters))
    if not keepdim:
        return folded
    shape = [1 if d in dims else size for d, size in enumerate(z.shape)]
    return Array(folded.base, folded.layout.view(shape))


def _sum(loops: Loops, name: str, self: Array, dim: Any = None, keepdim: bool = False, **_: Any) -> Array:
    return _folded(loops, SUM, name, self, dim, keepdim)


def _mean(loops: Loops, name: str, self: Array, dim: Any, keepdim: bool, **_: Any) -> Array:
    total = _folded(loops, SUM, f"{name}_sum", self, dim, keepdim)
    count = torch.Size(self.shape).numel() // torch.Size(total.shape).numel()
    return loops.word("aten.div.Scalar", name, self=total, other=float(count))


def _amax(loops: Loops, name: str, self: Array, dim: Any, keepdim: bool) -> Array:
    return _folded(loops, LARGEST, name, self, dim, keepdim)


def _amin(loops: Loops, name: str, self: Array, dim: Any, keepdim: bool) -> Array:
    return _folded(loops, SMALLEST, name, self, dim, keepdim)


def _exponentials(loops: Loops, name: str, z: Array, dim: Any) -> tuple[Array, Array, Array]:
    """max z, exp(z - max z) and their sum over some dimensions, which are kept."""
    top = _folded(loops, LARGEST, f"{name}_top", z, dim, True)
    below = loops.word("aten.sub.Tensor", f"{name}_below", self=z, other=top, alpha=1)
    exponentials = loops.word("aten.exp.default", f"{name}_exp", self=below)
    return top, exponentials, _folded(loops, SUM, f"{name}_total", exponentials, dim, True)


def _softmax(loops: Loops, name: str, self: Array, dim: int, **_: Any) -> Array:
    _top, exponentials, total = _exponentials(loops, name, self, dim)
    return loops.word("aten.div.Tensor", name, self=exponentials, other=total)


def _logsumexp(loops: Loops, name: str, self: Array, dim: Any, keepdim: bool) -> Array:
    top, _exponential, total = _exponentials(loops, name, self, dim)
    logarithm = loops.word("aten.log.default", f"{name}_log", self=total)
    value = loops.word("aten.add.Tensor", name, self=logarithm, other=top, alpha=1)
    if keepdim:
        return value
    dims = [dim] if isinstance(dim, int) else list(dim)
    return Array(value.base, value.layout.squeeze(dims))


def _cat(loops: Loops, name: str, tensors: list[Array], dim: int) -> Array:
    """Tensors after one another, each copied to its place."""
    sizes = [array.shape[dim] for array in tensors]
    shape = list(tensors[0].shape)
    shape[dim] = sum(sizes)
    whole = loops.new(name, shape, tensors[0].base.dtype).array()
    start = 0
    for array, size in zip(tensors, sizes, strict=True):
        loops.write(Array(whole.base, whole.layout.narrow(dim, start, size)), [array], lambda code, _: code[0])
        start += size
    return whole


def _stack(loops: Loops, name: str, tensors: list[Array], dim: int) -> Array:
    return _cat(loops, name, [Array(array.base, array.layout.unsqueeze(dim)) for array in tensors], dim)


def _diff(loops: Loops, name: str, self: Array, n: int, dim: int, **_: Any) -> Array:
    result = self
    for _step in range(n):
        size = result.shape[dim] - 1
        right = Array(result.base, result.layout.narrow(dim, 1, size))
        left = Array(result.base, result.layout.narrow(dim, 0, size))
        result = loops.word("aten.sub.Tensor", name, self=right, other=left, alpha=1)
    return result


def _cumsum(loops: Loops, name: str, self: Array, dim: int, **_: Any) -> Array:
    """Sums up to each element: one sum that each element reads before the next is added."""
    size = self.shape[dim]
    parts: list[Array] = []
    for k in range(size):
        part = Array(self.base, self.layout.narrow(dim, k, 1))
        parts.append(part if k == 0 else loops.word("aten.add.Tensor", name, self=parts[-1], other=part, alpha=1))
    return _cat(loops, name, parts, dim)


def _embedding(loops: Loops, name: str, weight: Array, indices: Array, **_: Any) -> Array:
    """Rows of a table (rows, n)."""
    whole = loops.new(name, (*indices.shape, weight.shape[1]), weight.base.dtype).array()
    stride, step = weight.layout.stride()
    start = weight.layout.storage_offset()
    spread = Array(indices.base, indices.layout.unsqueeze(-1))

    def expression(code: list[str], variables: Sequence[str]) -> str:
        terms = [str(start)] if start else []
        terms.append(code[0] if stride == 1 else f"{stride} * {code[0]}")
        if weight.shape[1] > 1:
            terms.append(variables[-1] if step == 1 else f"{step} * {variables[-1]}")
        return f"{weight.base.name}[{' + '.join(terms)}]"

    anywhere = Array(weight.base, weight.layout[0, 0].expand(spread.shape))  # so that the table is there
    loops.write(whole, [spread, anywhere], expression)
    return whole


def _diag_embed(loops: Loops, name: str, self: Array, offset: int, dim1: int, dim2: int) -> Array:
    """Square matrices with given diagonals."""
    if self.shape[-1] == 1 and offset == 0:
        return Array(self.base, self.layout.unsqueeze(-1))
    size = self.shape[-1] + abs(offset)
    shape = (*self.shape[:-1], size, size)
    whole = loops.new(name, shape, self.base.dtype).array()
    zeros = loops.filled(0.0, shape, self.base.dtype)
    loops.write(whole, [zeros], lambda code, _: code[0])
    diagonal = Array(whole.base, whole.layout.movedim((-2, -1), (dim1, dim2)).diagonal(offset, dim1, dim2))
    loops.write(diagonal, [self], lambda code, _: code[0])
    return whole


#: The functions of the loops, a name for the result, and the operation's arguments by their names in its schema.
COMPOSITE: dict[str, Callable[..., Array]] = {
    "aten._softmax.default": _softmax,
    "aten.addmm.default": _addmm,
    "aten.amax.default": _amax,
    "aten.amin.default": _amin,
    "aten.bmm.default": _mm,
    "aten.cat.default": _cat,
    "aten.cumsum.default": _cumsum,
    "aten.diag_embed.default": _diag_embed,
    "aten.diff.default": _diff,
    "aten.einsum.default": _einsum,
    "aten.embedding.default": _embedding,
    "aten.linear.default": _linear,
    "aten.logsumexp.default": _logsumexp,
    "aten.matmul.default": _matmul,
    "aten.mean.dim": _mean,
    "aten.mm.default": _mm,
    "aten.softmax.int": _softmax,
    "aten.stack.default": _stack,
    "aten.sum.default": _sum,
    "aten.sum.dim_IntList": _sum,
}
