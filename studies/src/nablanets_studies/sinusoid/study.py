"""What the experiments on a sinusoid share: how arms run, and their pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nablanets.errors import unknown_name
from nablanets.fitting import error
from nablanets.fitting.loop import Report
from nablanets.parameters import count_parameters
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture, SeedReport
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.sinusoid import Sinusoid
from nablanets_studies.sinusoid.arms import SinusoidConfig, choose, gated, train
from nablanets_studies.sinusoid.metrics import SinusoidMetrics
from nablanets_studies.sinusoid.nets import VARIANTS
from nablanets_studies.sinusoid.pictures import pictures_of


class SinusoidStudy(Experiment[SinusoidConfig]):
    """Learn sin(d pi x) from noisy samples with several networks; the seeds of an arm train as one program."""

    columns = (
        Column("test_mse", "test MSE", ".4f"),
        Column("validation_mse", "validation MSE", ".4f"),
        Column("rate", "rate", ".0e"),
        Column("alpha", "alpha", ".0f"),
    )

    def arms(self, config: SinusoidConfig) -> list[str]:
        arms = config.arms()
        for arm in arms.values():
            if arm.method not in VARIANTS:
                raise unknown_name("method", arm.method, VARIANTS)
        return list(arms)

    def run_part(self, config: SinusoidConfig, arm: str, seed: int, report: Report) -> PartResult:
        ((_, result),) = self.run_arm(config, arm, [seed], lambda _, row: report(row))
        return result

    def run_arm(
        self, config: SinusoidConfig, arm: str, seeds: Sequence[int], report: SeedReport
    ) -> Iterator[tuple[int, PartResult]]:
        """All seeds as one program; the network of seed 0 is kept."""
        chosen = config.arms()[arm]
        alpha, rate = choose(config, chosen)
        x, y = Sinusoid(chosen.frequency).grid(config.test_points)
        members = train(config, chosen, alpha, [rate], seeds, steps=config.steps, slots=config.slots)
        for seed, _, net, result in members:
            for row in result.history:
                report(seed, row)
            measured = SinusoidMetrics(
                test_mse=error(net, x, y),
                validation_mse=result.best_validation_error,
                rate=rate,
                alpha=alpha if gated(chosen.method) else None,
            )
            kept = net if seed == 0 else None
            yield seed, PartResult(kept, count_parameters(net), result.seconds, measured.to_metrics())

    def pictures(self, config: SinusoidConfig, run: RunFolder) -> Iterator[Picture]:
        yield from pictures_of(config, run)
