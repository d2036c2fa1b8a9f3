"""What a call costs: time, memory, and how both grow."""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Call = Callable[[], object]
#: Seconds that a call counts as at least, where the clock shows none.
_SHORTEST = 1e-6


def interleaved_times(
    runs: Sequence[Call],
    repeats: int,
    *,
    warm_up: int = 2,
    at_least: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Median times of several calls that take turns, so that a disturbance of the machine meets all of them.

    Every other round goes backwards, so that no call always follows the same one, and at each turn a call runs once before
    it is timed, or is repeated: what another one left in caches and allocator is not its cost.

    Args:
        runs: the calls.
        repeats: rounds.
        warm_up: calls of each that are not counted.
        at_least: seconds that a measurement lasts at least; short calls are repeated within it.
        clock: in seconds; ``time.process_time`` leaves out what other programs take from this one.
    """
    repetitions = []
    for run in runs:
        for _ in range(warm_up):
            run()
        repetitions.append(_repetitions(run, at_least, clock))
    # With several calls, another one has run since: each runs once before it is timed, unless it is repeated anyway.
    refresh = len(runs) > 1 and not at_least
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats):
        turns = list(zip(runs, repetitions, times, strict=True))
        if turn % 2:
            turns.reverse()
        for run, number, record in turns:
            if refresh:
                run()
            record.append(_elapsed(run, number, clock) / number)
    return [statistics.median(record) for record in times]


def _repetitions(run: Call, at_least: float, clock: Callable[[], float]) -> int:
    """How often a call is to run within a measurement that lasts so many seconds at least."""
    if not at_least:
        return 1
    seconds = max(_elapsed(run, 1, clock), _SHORTEST)
    return math.ceil(at_least / seconds)


def _elapsed(run: Call, number: int, clock: Callable[[], float]) -> float:
    begin = clock()
    for _ in range(number):
        run()
    return clock() - begin


def peak_bytes(run: Call) -> int:
    """The most bytes of tensors that a call makes and holds at one time.

    Counted from the storages that operations return until they are freed, in the backward pass as well, so that the
    number depends on the program alone; what was there before, such as parameters, does not count.

    >>> peak_bytes(lambda: torch.zeros(1000) + 1)
    8000
    """
    with _StorageCounter() as counter:
        run()
    return counter.peak


class _StorageCounter(TorchDispatchMode):
    """Follows the storages that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.held = 0
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for storage in _storages(result):
            key = storage._cdata
            if key not in given and key not in self.alive:
                self.alive[key] = storage.nbytes()
                self.held += storage.nbytes()
                weakref.finalize(storage, self._freed, key)
        self.peak = max(self.peak, self.held)
        return result

    def _freed(self, key: int) -> None:
        self.held -= self.alive.pop(key, 0)


def _storages(tree: Any) -> Iterable[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def forward_pass(net: nn.Module, x: Tensor) -> Call:
    """A call that evaluates a network without a graph."""

    def run() -> None:
        with torch.no_grad():
            net(x)

    return run


def training_step(net: nn.Module, x: Tensor) -> Call:
    """A call that makes one step of Adam on ||net(x) - x||^2."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 1e-4, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        (net(x) - x).square().sum(dim=-1).mean().backward()
        optimizer.step()

    return run


def growth_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The p of the power law value = c size^p that fits best on logarithmic scales.

    >>> round(growth_exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
