"""Many seeds and hyper-parameters trained as one batched program.

Small networks leave a processor idle: most of a step is the overhead of its operations. Here the parameters of up to 32
networks are the rows of one matrix theta, (slots, p); a batch is (slots, n, d), in each member's own order; and every
operation of a step works on all of them at once. That is faster by about the number of members until the arrays no
longer fit into a cache.

A member's result must not depend on who trains beside it, to the last bit. Hence

- every program is full: slots that are left over hold copies, so that shapes, and with them the way in which a sum is
  divided and rounded, are always the same;
- a member has its own slot, which follows from its seed and its place in the grid: where a row lies in memory decides
  how it is aligned, and that may change the last bit too;
- nothing couples the members: no early stopping, no limit in time, no clipping.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nablanets.errors import InvalidInputError, ShapeError, unknown_name
from nablanets.fitting.batches import Samples, StackedBatches, check_samples, split
from nablanets.fitting.closed_form import make_loss, num_slots
from nablanets.fitting.problem import as_samples
from nablanets.fitting.scale import unit_for_adam, unit_of_targets
from nablanets.fitting.settings import FitResult, FitSettings, HistoryRow
from nablanets.fitting.stack import Stack

# Validation samples that are evaluated at once, for all members.
_VALIDATION_CHUNK = 1024
# What members of one program may differ in.
_PER_MEMBER = ("learning_rate", "weight_decay", "schedule", "warmup")


class Member(NamedTuple):
    """One trained network of :func:`fit_many`, which holds its best weights."""

    seed: int
    settings: FitSettings
    net: nn.Module
    result: FitResult


def fit_many(
    build: Callable[[], nn.Module],
    x: Tensor,
    g: Tensor,
    *,
    seeds: int | Sequence[int] = 30,
    grid: Mapping[str, Sequence[Any]] | None = None,
    validation: float | Samples = 0.1,
    settings: FitSettings | None = None,
    slots: int | None = None,
    **changes: Any,
) -> list[Member]:
    """Train a network with many seeds and hyper-parameters at once, with Adam or AdamW.

    Every member has initial weights and an order of samples from its own seed, and its result does not depend, to the
    last bit, on which other seeds there are. Samples held out of common ones are the same for all.

    Args:
        build: makes a fresh network from torch's random state, which is set to each seed in turn and restored.
        x, g: samples, (n, d); or (k, n, d), the own samples of each of the k seeds.
        seeds: how many, counted from zero, or which.
        grid: values to try, all combinations, of learning_rate, weight_decay, schedule or warmup.
        validation: fraction of the samples to hold out, or a pair (x, g), also with own samples.
        settings: common to all, see :class:`FitSettings`; its fields can also be given by name.
        slots: members of one program, which takes as long with fewer; 32 (8 where a step has much to do) if
            not given. Results depend on it in rounding.

    Returns:
        One :class:`Member` for each combination and seed, seeds varying fastest. Their seconds are those of the
        program that they were part of.

    Raises:
        InvalidInputError: settings that would make members depend on each other or on time (max_seconds, patience), or
            that need another optimiser or clipping.

    >>> from nablanets import GradNetM
    >>> x = torch.rand(200, 2)
    >>> members = fit_many(lambda: GradNetM(2, 4), x, 2 * x, seeds=2, grid={"learning_rate": [1e-3, 1e-2]}, steps=20)
    >>> [(m.seed, m.settings.learning_rate) for m in members]
    [(0, 0.001), (1, 0.001), (0, 0.01), (1, 0.01)]
    """
    x, g = as_samples(x, g, "fit_many")
    common = (settings or FitSettings()).update(**changes)
    _check(common, grid or {})
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    members = [(seed, each) for each in _combinations(common, grid or {}) for seed in seeds]
    nets = [_build(build, seed) for seed, _ in members]
    if not members:
        return []
    samples = []
    for own, held_out in _samples(nets[0], x, g, validation, len(seeds)):
        checked = check_samples(nets[0], *own, owner="fit_many")
        generator = torch.Generator().manual_seed(common.seed)  # every seed holds out the same rows
        samples.append(split(*checked, held_out, generator))
    results: dict[int, FitResult] = {}
    slots = slots or num_slots(nets[0], common.batch_size)
    for program in _programs(members, len(seeds), slots):
        results |= _Program(nets, members, program, samples).run()
    return [Member(*member, nets[k], results[k]) for k, member in enumerate(members)]


class _Program:
    """The loop of the members of one program: ``slots`` says which member each slot holds; others hold copies.

    It has no early stopping, no checkpoints and no limit in time, unlike the loop of ``fit``: a member must not depend
    on the others, and all of them end together. A step of a program is that of :class:`_Adam` on the rows of theta.

    Args:
        nets: all networks, in the order of the members.
        members: seed and settings of each network.
        slots: which member each slot holds, None for a slot that is left over.
        samples: training and validation samples, common ones or those of each seed.
    """

    def __init__(
        self,
        nets: list[nn.Module],
        members: list[tuple[int, FitSettings]],
        slots: Sequence[int | None],
        samples: list[tuple[Samples, Samples]],
    ) -> None:
        self.nets = nets
        self.slots = slots
        copied = next(k for k in slots if k is not None)
        full = [copied if k is None else k for k in slots]
        self.settings = [members[k][1] for k in full]
        self.schedules = [settings.make_schedule() for settings in self.settings]
        self.stack = Stack([nets[k] for k in full])
        generators = [torch.Generator().manual_seed(members[k][0]) for k in full]
        own = samples if len(samples) == 1 else [samples[k % len(samples)] for k in full]  # seeds vary fastest
        self.batches = StackedBatches([train for train, _ in own], self.settings[0].batch_size, generators)
        self.validation = own[0][1] if len(own) == 1 else _stacked([held_out for _, held_out in own])
        self.theta = self.stack.theta  # (slots, p)
        self.loss = make_loss(self.stack)
        self.adam = _Adam(self.theta, self.settings)
        units = [unit_for_adam(unit_of_targets(train[1])) for train, _ in own]
        self.far_from_one = any(unit != 1.0 for unit in units)
        self.units = self.theta.new_tensor(units).unsqueeze(1)  # of the gradients, (slots or 1, 1)
        self.best = self.theta.clone()
        self.best_error = torch.full_like(self.best[:, 0], math.inf)
        self.history: list[list[HistoryRow]] = [[] for _ in slots]

    def run(self) -> dict[int, FitResult]:
        """Train the members, put the best weights into their networks, and say what each of them did."""
        began = time.perf_counter()
        settings = self.settings[0]
        losses = torch.zeros_like(self.best_error)  # sums since the last validation
        for step in range(1, settings.steps + 1):
            progress = (step - 1) / settings.steps
            learning_rates = [schedule.at(progress) for schedule in self.schedules]
            losses += self._advance(learning_rates)
            if step == settings.steps or step % settings.validation_interval == 0:
                self._validate(step, time.perf_counter() - began, losses, learning_rates)
                losses.zero_()
        results = {}
        for slot, k in enumerate(self.slots):
            if k is not None:
                self.stack.write(slot, self.nets[k], self.best)
                results[k] = self._result(self.history[slot])
        return results

    def _advance(self, learning_rates: list[float]) -> Tensor:
        loss, gradient = self.loss.with_gradient(self.theta, *self.batches.next())
        if self.far_from_one:
            gradient = gradient / self.units.square()
        self.adam.step(gradient, learning_rates)
        return loss

    @torch.no_grad()
    def _validate(self, step: int, seconds: float, losses: Tensor, learning_rates: list[float]) -> None:
        value = self._validation_errors()
        better = value < self.best_error
        self.best = torch.where(better.unsqueeze(1), self.theta, self.best)
        self.best_error = torch.where(better, value, self.best_error)
        columns = zip(self.history, learning_rates, losses.tolist(), value.tolist(), strict=True)
        for rows, learning_rate, total, error in columns:
            steps = step - (rows[-1].step if rows else 0)
            rows.append(HistoryRow(step, seconds, total / steps, error, learning_rate))

    def _validation_errors(self) -> Tensor:
        """Mean ||f(x) - g||^2 of each slot, (slots,), in chunks of samples."""
        x, g = self.validation
        sums = []
        chunks = zip(x.split(_VALIDATION_CHUNK, dim=-2), g.split(_VALIDATION_CHUNK, dim=-2), strict=True)
        for points, targets in chunks:
            residual = self.loss.values(self.theta, points) - targets  # (slots, n, d)
            sums.append(residual.square().sum(dim=(1, 2)))
        return torch.stack(sums).sum(dim=0) / x.shape[-2]

    def _result(self, rows: list[HistoryRow]) -> FitResult:
        finite = [row for row in rows if math.isfinite(row.validation_error)]
        best = min(finite, key=lambda row: row.validation_error, default=rows[0])
        return FitResult(
            history=rows,
            best_validation_error=best.validation_error,
            best_step=best.step,
            stop_reason="steps" if math.isfinite(rows[-1].validation_error) else "diverged",
            steps=rows[-1].step,
            seconds=rows[-1].seconds,
        )


class _Adam:
    """Adam on rows of parameters, each with a learning rate and a decay of its own.

    torch's fused Adam knows one learning rate for a whole tensor. So it is given a tensor of zeros and the learning
    rate one, which leaves in that tensor the change that Adam makes; each row of theta then takes the change times its
    own learning rate. Decay is done here, before: as a penalty in the gradient ("adam") or as a factor ("adamw").

    Args:
        theta: (slots, p), changed in place by each step.
        settings: of each row.
    """

    def __init__(self, theta: Tensor, settings: Sequence[FitSettings]) -> None:
        self.theta = theta
        self.change = nn.Parameter(torch.zeros_like(theta))
        self.adam = torch.optim.Adam([self.change], lr=1.0, fused=True)
        self.decoupled = settings[0].optimizer == "adamw"
        self.weight_decay = theta.new_tensor([[each.weight_decay] for each in settings])  # (slots, 1)
        self.decays = any(each.weight_decay for each in settings)

    @torch.no_grad()
    def step(self, gradient: Tensor, learning_rates: Sequence[float]) -> None:
        learning_rate = self.theta.new_tensor(learning_rates).unsqueeze(1)  # (slots, 1)
        if self.decays and self.decoupled:
            self.theta.mul_(1 - learning_rate * self.weight_decay)
        elif self.decays:
            gradient = torch.addcmul(gradient, self.weight_decay, self.theta)
        self.change.zero_().grad = gradient
        self.adam.step()
        self.theta.addcmul_(learning_rate, self.change)


def _programs(members: list[tuple[int, FitSettings]], seeds: int, slots: int) -> Iterable[Sequence[int | None]]:
    """Which member is in each slot, program by program; the slot depends on the seed and the place in the grid only."""
    queues: list[list[int]] = [[] for _ in range(slots)]
    num_combinations = len(members) // seeds
    for k, (seed, _) in enumerate(members):
        combination = k // seeds
        queues[(seed * num_combinations + combination) % slots].append(k)
    return itertools.zip_longest(*queues)


def _check(settings: FitSettings, grid: Mapping[str, Sequence[Any]]) -> None:
    for name in grid:
        if name not in _PER_MEMBER:
            raise unknown_name("setting that fit_many can vary", name, _PER_MEMBER)
    for name in ("max_seconds", "patience", "clip_norm"):
        if getattr(settings, name) is not None:
            raise InvalidInputError(f"fit_many: all members take the same steps; expected no {name}. Use fit for that.")
    if settings.optimizer not in ("adam", "adamw"):
        raise InvalidInputError(f"fit_many: expected optimizer 'adam' or 'adamw', got {settings.optimizer!r}.")


def _combinations(settings: FitSettings, grid: Mapping[str, Sequence[Any]]) -> Iterator[FitSettings]:
    for values in itertools.product(*grid.values()):
        yield settings.update(**dict(zip(grid, values, strict=True)))


def _samples(
    net: nn.Module, x: Tensor, g: Tensor, validation: float | Samples, seeds: int
) -> Iterator[tuple[Samples, float | Samples]]:
    """Samples and what to validate on, once if all seeds share them, else for each seed."""
    own = isinstance(x, Tensor) and x.ndim == 3
    if own and not len(x) == len(g) == seeds:
        raise ShapeError(f"fit_many: expected samples of {seeds} seeds, got {tuple(x.shape)} and {tuple(g.shape)}.")
    for k in range(seeds if own else 1):
        held_out = validation
        if not isinstance(validation, int | float):
            pair = (part[k] if own and part.ndim == 3 else part for part in validation)
            held_out = check_samples(net, *pair, owner="fit_many (validation)")
        yield (x[k], g[k]) if own else (x, g), held_out


def _stacked(samples: Sequence[Samples]) -> Samples:
    x = torch.stack([points for points, _ in samples])
    g = torch.stack([targets for _, targets in samples])
    return x, g


def _build(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()
