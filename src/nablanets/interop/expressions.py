"""NumPy's words for torch's operations.

``EXPRESSIONS`` maps an operation to a format string or a function. Both get the operation's arguments by their names in
its schema (as code; lists as tuples), and ``shape``, the shape of the result, as code. ``HELPERS`` are functions that
some expressions call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNARY = {
    **{name: name for name in ("abs", "ceil", "cos", "cosh", "exp", "expm1", "floor", "log", "log10", "log1p", "log2")},
    **{name: name for name in ("sign", "sin", "sinh", "sqrt", "square", "tan", "tanh", "trunc")},
    **{name: f"arc{name[1:]}" for name in ("acos", "acosh", "asin", "asinh", "atan", "atanh")},
    **{"isnan": "isnan", "isinf": "isinf", "logical_not": "logical_not"},
}
_COMPARISONS = {"eq": "==", "ne": "!=", "gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def _index(item: str, dim: int) -> str:
    """An index that applies ``item`` to one dimension."""
    return f"[{':, ' * dim}{item}]" if dim >= 0 else f"[..., {item}{', :' * (-dim - 1)}]"


def _select(self: str, dim: int, index: int, **_: object) -> str:
    return self + _index(str(index), dim)


def _slice(self: str, dim: int, start: int | None, end: int | None, step: int, **_: object) -> str:
    last = "" if end is None or end >= 2**62 else end
    return self + _index(f"{start or ''}:{last}{'' if step == 1 else f':{step}'}", dim)


def _linear(input: str, weight: str, bias: str | None, **_: object) -> str:
    return f"{input} @ {weight}.T" + ("" if bias is None else f" + {bias}")


def _scaled(pattern: str, factor: str) -> Callable[..., str]:
    """A pattern whose ``{term}`` is multiplied by an argument that is nearly always one."""

    def expression(**arguments: object) -> str:
        scale = arguments[factor]
        return pattern.format(scale="" if scale == 1 else f"{scale} * ", **arguments)

    return expression


def _reduction(name: str) -> Callable[..., str]:
    """A reduction over some dimensions."""

    def expression(self: str, dim: Sequence[int] | int, keepdim: bool, **_: object) -> str:
        axes = dim[0] if isinstance(dim, Sequence) and len(dim) == 1 else dim
        return f"{self}.{name}(axis={axes}{', keepdims=True' if keepdim else ''})"

    return expression


def _transposed(self: str, shape: Sequence[object], **_: object) -> str:
    if len(shape) > 2:
        return f"{self}.swapaxes(-1, -2)"
    return self.removesuffix(".T") if self.endswith(".T") else f"{self}.T"


def _einsum(equation: str, tensors: tuple[str, ...], **_: object) -> str:
    return f"np.einsum({equation!r}, {', '.join(tensors)})"


def _addmm(self: str, mat1: str, mat2: str, beta: float, alpha: float, **_: object) -> str:
    product = f"{mat1} @ {mat2}"
    return f"{self} + {product}" if alpha == beta == 1 else f"{beta} * {self} + {alpha} * ({product})"


EXPRESSIONS: dict[str, str | Callable[..., str]] = {
    **{f"aten.{name}.default": f"np.{word}({{self}})" for name, word in _UNARY.items()},
    **{f"aten.{name}.Scalar": f"{{self}} {sign} {{other}}" for name, sign in _COMPARISONS.items()},
    **{f"aten.{name}.Tensor": f"{{self}} {sign} {{other}}" for name, sign in _COMPARISONS.items()},
    **{f"aten.{name}.default": "{self} @ {mat2}" for name in ("mm", "bmm")},
    **{f"aten.{name}": "{self}.reshape{shape}" for name in (
        "view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "unflatten.int",
        "squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default",
    )},
    **{f"aten.{name}": "np.broadcast_to({self}, {shape})" for name in ("expand.default", "expand_as.default")},
    **{f"aten.{name}": "{self}.astype({dtype})" for name in ("to.dtype", "_to_copy.default")},
    **{f"aten.{name}.default": "{self}" for name in ("alias", "contiguous", "detach")},
    "aten._softmax.default": "_softmax_along({self}, {dim})",
    "aten.add.Tensor": _scaled("{self} + {scale}{other}", "alpha"),
    "aten.add.Scalar": _scaled("{self} + {scale}{other}", "alpha"),
    "aten.addcmul.default": _scaled("{self} + {scale}{tensor1} * {tensor2}", "value"),
    "aten.addmm.default": _addmm,
    "aten.amax.default": _reduction("max"),
    "aten.amin.default": _reduction("min"),
    "aten.atan2.default": "np.arctan2({self}, {other})",
    "aten.cat.default": "np.concatenate({tensors}, axis={dim})",
    "aten.clamp.default": "np.clip({self}, {min}, {max})",
    "aten.clone.default": "{self}.copy()",
    "aten.cumsum.default": "np.cumsum({self}, axis={dim})",
    "aten.diff.default": "np.diff({self}, n={n}, axis={dim})",
    "aten.div.Scalar": "{self} / {other}",
    "aten.div.Tensor": "{self} / {other}",
    "aten.einsum.default": _einsum,
    "aten.embedding.default": "{weight}[{indices}]",
    "aten.erf.default": "_erf({self})",
    "aten.full_like.default": "np.full_like({self}, {fill_value})",
    "aten.linear.default": _linear,
    "aten.logical_and.default": "np.logical_and({self}, {other})",
    "aten.logical_or.default": "np.logical_or({self}, {other})",
    "aten.logsumexp.default": "_logsumexp({self}, {dim}, {keepdim})",
    "aten.mT.default": _transposed,
    "aten.matmul.default": "{self} @ {other}",
    "aten.maximum.default": "np.maximum({self}, {other})",
    "aten.mean.dim": _reduction("mean"),
    "aten.minimum.default": "np.minimum({self}, {other})",
    "aten.movedim.int": "np.moveaxis({self}, {source}, {destination})",
    "aten.mul.Scalar": "{self} * {other}",
    "aten.mul.Tensor": "{self} * {other}",
    "aten.neg.default": "-{self}",
    "aten.ones_like.default": "np.ones_like({self})",
    "aten.permute.default": "np.transpose({self}, {dims})",
    "aten.pow.Scalar": "np.power({self}, {exponent})",
    "aten.pow.Tensor_Scalar": "{self} ** {exponent}",
    "aten.pow.Tensor_Tensor": "{self} ** {exponent}",
    "aten.reciprocal.default": "1 / {self}",
    "aten.relu.default": "np.maximum({self}, 0)",
    "aten.rsqrt.default": "1 / np.sqrt({self})",
    "aten.rsub.Scalar": _scaled("{other} - {scale}{self}", "alpha"),
    "aten.select.int": _select,
    "aten.sigmoid.default": "_sigmoid({self})",
    "aten.slice.Tensor": _slice,
    "aten.softmax.int": "_softmax_along({self}, {dim})",
    "aten.softplus.default": "_softplus({self}, {beta}, {threshold})",
    "aten.stack.default": "np.stack({tensors}, axis={dim})",
    "aten.sub.Scalar": _scaled("{self} - {scale}{other}", "alpha"),
    "aten.sub.Tensor": _scaled("{self} - {scale}{other}", "alpha"),
    "aten.sum.default": "{self}.sum()",
    "aten.sum.dim_IntList": _reduction("sum"),
    "aten.t.default": _transposed,
    "aten.transpose.int": "{self}.swapaxes({dim0}, {dim1})",
    "aten.unbind.int": "np.moveaxis({self}, {dim}, 0)",
    "aten.where.ScalarOther": "np.where({condition}, {self}, {other})",
    "aten.where.ScalarSelf": "np.where({condition}, {self}, {other})",
    "aten.where.self": "np.where({condition}, {self}, {other})",
    "aten.zeros_like.default": "np.zeros_like({self})",
    "getitem": "{self}[{index}]",
}  # fmt: skip

HELPERS = {
    "_erf": '''
_scalar_erf = np.vectorize(math.erf, otypes=[float])


def _erf(z):
    """The error function, which NumPy lacks."""
    return _scalar_erf(z).astype(z.dtype)
''',
    "_logsumexp": '''
def _logsumexp(z, axes, keepdims):
    """log(sum(exp(z))) without overflow."""
    top = z.max(axis=axes, keepdims=True)
    value = np.log(np.exp(z - top).sum(axis=axes, keepdims=True)) + top
    return value if keepdims else value.squeeze(axes)
''',
    "_sigmoid": '''
def _sigmoid(z):
    """1 / (1 + exp(-z)) without overflow."""
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, small) / (1 + small)
''',
    "_softmax_along": '''
def _softmax_along(z, axis):
    """exp(z) / sum(exp(z)) without overflow."""
    exponentials = np.exp(z - z.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)
''',
    "_softplus": '''
def _softplus(z, sharpness, threshold):
    """log(1 + exp(sharpness * z)) / sharpness, and z itself above the threshold."""
    soft = np.logaddexp(0, sharpness * z) / sharpness
    return np.where(sharpness * z > threshold, z, soft)
''',
}
