"""C's words for torch's elementwise operations.

``WORDS`` maps an operation to a format string or a function, like ``expressions.EXPRESSIONS`` for NumPy. Both get the
operation's arguments by their names in its schema, as code: tensors as one element of theirs, numbers as literals.
``f`` is the suffix of C's functions for the type of the numbers: nothing for double, ``f`` for float. ``HELPERS`` are
functions that some words call; ``TYPE`` and ``f`` are replaced in them.

Every function that compares passes NaN on, as torch does and C's fmax does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Word = str | Callable[..., str]

_UNARY = {
    **{name: name for name in ("ceil", "cos", "cosh", "exp", "expm1", "floor", "log", "log10", "log1p", "log2")},
    **{name: name for name in ("sin", "sinh", "sqrt", "tan", "trunc", "erf")},
    **{name: name for name in ("acos", "acosh", "asin", "asinh", "atan", "atanh")},
    **{"abs": "fabs", "sgn": "sign", "sigmoid": "sigmoid", "sign": "sign"},
    "tanh": "fast_tanh",
}
_COMPARISONS = {"eq": "==", "ne": "!=", "gt": ">", "ge": ">=", "lt": "<", "le": "<="}
#: Powers that are cheaper, and no less exact, as products.
_POWERS = {
    1.0: "{self}",
    2.0: "{self} * {self}",
    3.0: "{self} * {self} * {self}",
    0.5: "sqrt{f}({self})",
    -0.5: "1 / sqrt{f}({self})",
    -1.0: "1 / {self}",
    -2.0: "1 / ({self} * {self})",
}


def _scaled(first: str, sign: str, second: str, factor: str) -> Callable[..., str]:
    """first +- factor * second, where the factor is nearly always one."""

    def expression(**arguments: str) -> str:
        scale = arguments[factor]
        scaled = "" if _is_number(scale, 1.0) else f"{scale} * "
        term = (scaled + second).format(**arguments)
        start = first.format(**arguments)
        if _is_number(start, 0.0) and sign == "+":
            return term
        return f"{start} {sign} {term}"

    return expression


def _is_number(code: str, value: float) -> bool:
    """Whether a piece of code is a literal of some value."""
    try:
        return float(code.strip("()").removesuffix("f")) == value
    except ValueError:
        return False


def _product(self: str, other: str, **_: str) -> str:
    if _is_number(other, 1.0):
        return self
    return other if _is_number(self, 1.0) else f"{self} * {other}"


def _power(self: str, exponent: str, f: str, **_: str) -> str:
    for value, pattern in _POWERS.items():
        if _is_number(exponent, value):
            return pattern.format(self=self, f=f)
    return f"pow{f}({self}, {exponent})"


def _clamp(self: str, min: str, max: str, f: str, **_: str) -> str:
    inner = self if min == "None" else f"maximum{f}({self}, {min})"
    return inner if max == "None" else f"minimum{f}({inner}, {max})"


WORDS: dict[str, Word] = {
    **{f"aten.{name}.default": f"{word}{{f}}({{self}})" for name, word in _UNARY.items()},
    **{f"aten.{name}.Scalar": f"{{self}} {sign} {{other}}" for name, sign in _COMPARISONS.items()},
    **{f"aten.{name}.Tensor": f"{{self}} {sign} {{other}}" for name, sign in _COMPARISONS.items()},
    "aten.add.Scalar": _scaled("{self}", "+", "{other}", "alpha"),
    "aten.add.Tensor": _scaled("{self}", "+", "{other}", "alpha"),
    "aten.addcmul.default": _scaled("{self}", "+", "{tensor1} * {tensor2}", "value"),
    "aten.atan2.default": "atan2{f}({self}, {other})",
    "aten.clamp.default": _clamp,
    "aten.div.Scalar": "{self} / {other}",
    "aten.div.Tensor": "{self} / {other}",
    "aten.isinf.default": "isinf({self}) != 0",
    "aten.isnan.default": "isnan({self}) != 0",
    "aten.logical_and.default": "{self} && {other}",
    "aten.logical_not.default": "!{self}",
    "aten.logical_or.default": "{self} || {other}",
    "aten.maximum.default": "maximum{f}({self}, {other})",
    "aten.minimum.default": "minimum{f}({self}, {other})",
    "aten.mul.Scalar": _product,
    "aten.mul.Tensor": _product,
    "aten.neg.default": "-{self}",
    "aten.pow.Scalar": "pow{f}({self}, {exponent})",
    "aten.pow.Tensor_Scalar": _power,
    "aten.pow.Tensor_Tensor": "pow{f}({self}, {exponent})",
    "aten.reciprocal.default": "1 / {self}",
    "aten.relu.default": "maximum{f}({self}, 0)",
    "aten.rsqrt.default": "1 / sqrt{f}({self})",
    "aten.rsub.Scalar": _scaled("{other}", "-", "{self}", "alpha"),
    "aten.sigmoid_backward.default": "{grad_output} * {output} * (1 - {output})",
    "aten.softplus.default": "softplus{f}({self}, {beta}, {threshold})",
    "aten.softplus_backward.default": "{grad_output} * softplus_slope{f}({self}, {beta}, {threshold})",
    "aten.square.default": "{self} * {self}",
    "aten.sub.Scalar": _scaled("{self}", "-", "{other}", "alpha"),
    "aten.sub.Tensor": _scaled("{self}", "-", "{other}", "alpha"),
    "aten.tanh_backward.default": "{grad_output} * (1 - {output} * {output})",
    "aten.where.ScalarOther": "{condition} ? {self} : {other}",
    "aten.where.ScalarSelf": "{condition} ? {self} : {other}",
    "aten.where.self": "{condition} ? {self} : {other}",
    "prims.add.default": "{x} + {y}",
    "prims.mul.default": "{x} * {y}",
}

#: In the order in which they are written: later ones may call those before.
HELPERS = {
    "maximum": """\
/* The larger of two numbers; NaN if one is. */
static TYPE maximum§(TYPE first, TYPE second)
{
    return first >= second || isnan(first) ? first : second;
}
""",
    "minimum": """\
/* The smaller of two numbers; NaN if one is. */
static TYPE minimum§(TYPE first, TYPE second)
{
    return first <= second || isnan(first) ? first : second;
}
""",
    "sign": """\
static TYPE sign§(TYPE z)
{
    return isnan(z) ? z : (TYPE)((z > 0) - (z < 0));
}
""",
    "sigmoid": """\
/* 1 / (1 + exp(-z)) without overflow. */
static TYPE sigmoid§(TYPE z)
{
    const TYPE small = exp§(-fabs§(z));
    return (z >= 0 ? 1 : small) / (1 + small);
}
""",
    "softplus": """\
/* log(1 + exp(steepness z)) / steepness without overflow, and z itself above the limit. */
static TYPE softplus§(TYPE z, TYPE steepness, TYPE limit)
{
    const TYPE u = steepness * z;
    if (u > limit) {
        return z;
    }
    return ((u > 0 ? u : 0) + log1p§(exp§(-fabs§(u)))) / steepness;
}
""",
    "softplus_slope": """\
/* The derivative of softplus. */
static TYPE softplus_slope§(TYPE z, TYPE steepness, TYPE limit)
{
    const TYPE u = steepness * z;
    const TYPE small = exp§(-fabs§(u));
    return u > limit ? 1 : (u >= 0 ? 1 : small) / (1 + small);
}
""",
    "fast_tanh": """\
/* tanh to a few units in the last place, faster than some libraries have it: by Pade's fraction of order 7/6 where
   1 - 2 / (1 + exp(2 |z|)) would lose digits. */
static TYPE fast_tanh§(TYPE z)
{
    const TYPE u = z * z;
    if (u < (TYPE)0.02) {
        return z * (135135 + u * (17325 + u * (378 + u))) / (135135 + u * (62370 + u * (3150 + u * 28)));
    }
    return copysign§(1 - 2 / (1 + exp§(2 * fabs§(z))), z);
}
""",
    "whole": """\
/* The number without its fraction, as an index; zero for NaN. */
static int whole§(TYPE z)
{
    return isnan(z) ? 0 : (int)z;
}
""",
}


def number(value: float, suffix: str) -> str:
    """A number as a literal of C that reads back as the same number.

    >>> number(0.1, ""), number(2, "f"), number(-3.0, ""), number(float("inf"), "")
    ('0.1', '2.0f', '(-3.0)', 'INFINITY')
    """
    value = float(value)
    if math.isnan(value):
        return "NAN"
    size = abs(value)
    digits = str(np.float32(size)) if suffix else repr(size)  # the fewest that read back
    text = "INFINITY" if math.isinf(value) else f"{digits}{suffix}"
    return f"(-{text})" if math.copysign(1.0, value) < 0 else text
