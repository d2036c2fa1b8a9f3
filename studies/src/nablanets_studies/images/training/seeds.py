"""Seeds of seeds: one number for each step, epoch and process, that no version of Python or NumPy changes."""

from __future__ import annotations

_WORD = 0xFFFFFFFFFFFFFFFF  # 64 bits
_HALF = 0xFFFFFFFF  # 32 bits
# Of splitmix64: the step of its counter (2^64 over the golden ratio), and the two multipliers of its mixing.
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST_MULTIPLIER = 0xBF58476D1CE4E5B9
_SECOND_MULTIPLIER = 0x94D049BB133111EB


def derived_seed(seed: int, *places: int) -> int:
    """A seed of 32 bits that follows from a seed and the place that it is for (a step, a process, ...).

    Seed and place are put side by side as the two halves of a counter of splitmix64, whose output is its upper half;
    with several places that is done with the result and the next place, and so on. The mixing matters because torch's
    generator for the CPU looks at the lower 32 bits of a seed only, and nearby seeds must not give nearby streams.

    Args:
        seed: an integer, of which the lower 32 bits count.
        places: integers, also negative ones, of which the lower 32 bits count.

    Reference:
        Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014, with the constants of
        java.util.SplittableRandom.

    >>> derived_seed(0, 0) == 0xE220A8397B1DCDAF >> 32        # the first number of splitmix64 from zero
    True
    """
    for place in places:
        counter = (seed & _HALF) << 32 | (place & _HALF)
        z = (counter + _GOLDEN) & _WORD
        z = ((z ^ (z >> 30)) * _FIRST_MULTIPLIER) & _WORD
        z = ((z ^ (z >> 27)) * _SECOND_MULTIPLIER) & _WORD
        seed = (z ^ (z >> 31)) >> 32
    return seed
