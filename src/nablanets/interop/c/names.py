"""Names that C allows, and that mean nothing else there."""

from __future__ import annotations

import itertools
import re

from nablanets.interop.c.operations import HELPERS
from nablanets.interop.c.text import VARIABLES

_KEYWORDS = """
auto break case char const continue default do double else enum extern float for goto if inline int long register
restrict return short signed sizeof static struct switch typedef union unsigned void volatile while asm typeof class new
delete this template namespace public private protected virtual operator bool true false and or not xor
"""
#: Of math.h, in C99 and in what compilers add to it.
_MATH = """
acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp2 exp10 expm1 fabs fdim floor fma
fmax fmin fmod frexp hypot ilogb ldexp lgamma llrint llround log log10 log1p log2 logb lrint lround modf nan nearbyint
nextafter nexttoward pow pow10 remainder remquo rint round scalbln scalbn sin sinh sqrt tan tanh tgamma trunc fpclassify
isfinite isinf isnan isnormal signbit gamma signgam scalb significand drem j0 j1 jn y0 y1 yn finite infnan matherr abs
main printf puts index
"""
#: In the helpers and in the test.
_OWN = "first second z u small steepness limit n F test_x test_f test_F test_J test_difference"
_MATH_NAMES = frozenset(_MATH.split())
RESERVED = frozenset(
    {*_KEYWORDS.split(), *_MATH_NAMES, *(f"{name}f" for name in _MATH_NAMES), *(f"{name}l" for name in _MATH_NAMES)}
    | {*HELPERS, *(f"{name}f" for name in HELPERS), *VARIABLES, *_OWN.split(), "x", "f", "J"}
)


def identifier(text: str) -> str:
    """A name of C that is like a text.

    >>> identifier("ridge.alpha"), identifier("2d-map"), identifier("for")
    ('ridge_alpha', 'map_2d_map', 'for_map')
    """
    name = re.sub(r"[^A-Za-z0-9_]", "_", text).strip("_") or "map"
    if name[0].isdigit():
        name = f"map_{name}"
    return f"{name}_map" if name in RESERVED else name


class Names:
    """Gives each value a name that no other has.

    >>> names = Names({"taken"})
    >>> [names(name) for name in ("tanh", "taken", "mul", "mul")]
    ['tanh_2', 'taken_2', 'mul', 'mul_2']
    """

    def __init__(self, taken: set[str]) -> None:
        self.taken = set(taken)

    def __call__(self, base: str) -> str:
        base = re.sub(r"[^A-Za-z0-9_]", "_", base).strip("_") or "value"
        base = f"v{base}" if base[0].isdigit() else base
        candidates = itertools.chain([base], (f"{base}_{k}" for k in itertools.count(2)))
        name = next(name for name in candidates if name not in self.taken and name not in RESERVED)
        self.taken.add(name)
        return name
