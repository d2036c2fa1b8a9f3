"""The sinusoid study of "Gradient Residual Connections", with the controls that tell what helps."""

from __future__ import annotations

from nablanets_studies.machinery.base import Sheet
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.sinusoid.arms import Arm, SinusoidConfig
from nablanets_studies.sinusoid.experiment_findings import SinusoidFindings
from nablanets_studies.sinusoid.results import COMPARISON, SHARES, SinusoidResults, against, comparison_cells
from nablanets_studies.sinusoid.study import SinusoidStudy


class SinusoidExperiment(SinusoidStudy):
    """Learn sin(d pi x) from noisy samples with every kind of skip, at equal epochs."""

    name = "sinusoid"
    summary = "Learn sin(d pi x) from noisy samples: gradient residuals, every control, and nets made for the task."
    template = "experiment.md.j2"
    presets = {  # noqa: RUF012
        "quick": SinusoidConfig(
            frequencies=(4,),
            other_frequencies=(),
            width=32,
            first_scale=4.0,
            steps=400,
            rates=(3e-4, 3e-3),
            alphas=(0.0,),
            trial_steps=150,
            trial_seeds=2,
            validation_samples=200,
            test_points=500,
            slots=5,
        ),
        "paper": SinusoidConfig(),
    }
    seeds = {"quick": 5, "paper": 30}  # noqa: RUF012

    def findings(self, config: SinusoidConfig, run: RunFolder) -> SinusoidFindings:
        return SinusoidFindings.of(SinusoidResults(config, run))

    def sheets(self, config: SinusoidConfig, run: RunFolder) -> list[Sheet]:
        results = SinusoidResults(config, run)
        sheets = [_against_standard(results), *(_over_training(results, d) for d in config.frequencies)]
        return [sheet for sheet in sheets if sheet.rows]


def _against_standard(results: SinusoidResults) -> Sheet:
    """All methods against the standard skip at the end."""
    rows = []
    for d in results.config.every_frequency:
        for method, comparison in against(results.test_errors(d), "standard").items():
            rows.append([Arm(method, d).name, *comparison_cells(comparison)])
    return Sheet("Test MSE against the standard skip, seed by seed", ("arm", *COMPARISON), rows)


def _over_training(results: SinusoidResults, d: int) -> Sheet:
    """All methods against the standard skip when shares of the run are over."""
    later = [against(results.errors_after(d, share), "standard") for share in SHARES]
    rows = []
    for method in later[-1]:
        comparisons = [found[method] for found in later]
        rows.append([method, *(f"{c.ratio:.2f} ({c.p_t:.1g})" for c in comparisons)])
    columns = ("arm", *(f"{share * results.config.epochs:.0f} epochs" for share in SHARES))
    title = f"d = {d}: validation MSE relative to the standard skip as training goes on (p, paired t-test)"
    return Sheet(title, columns, rows)
