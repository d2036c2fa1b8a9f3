"""`nablanets.autofit` against what practitioners use, in ten cases, on held-out samples that nobody has looked at.

    python benchmarks/autofit.py [--cases motor-flux,demand] [--methods rbf,mlp] [--seconds 60] [--seeds 1]

One thread. Every method has the same seconds of the processor for its search, and chooses inside the training samples
(autofit_methods.py); `by hand` are the recipes of autofit_hand.py. Errors are in dB: the mean square of the error over
the mean square of the gradients, on the test samples as they were measured and, where it is known, on the truth without
noise. The ratio is the RMSE of the best peer over ours: above 1 we are better. The gap is test minus validation.

Needs scikit-learn. The motor's data are not part of this repository: --motor says where they are.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from autofit_cases import CASES, MOTOR, Case
from autofit_hand import by_hand
from autofit_methods import Candidate, Outcome, affine, boosting, mlp, rbf, search
from nablanets import autofit
from nablanets.fitting import decibels
from timing import one_thread, print_table

#: The peers, whose best our ratio is about.
PEERS = ("rbf", "mlp", "boosting")
METHODS = ("affine", *PEERS, "by hand", "autofit")


@dataclass(frozen=True)
class Row:
    """One method on one case with one seed.

    Attributes:
        db, truth_db: relative mean square errors on the test samples, and on the same without noise.
        validation_db: the same on held-out parts of the training samples, as the method knows it.
        rmse, truth_rmse: in the units of the gradients.
    """

    case: str
    method: str
    seed: int
    db: float
    truth_db: float
    validation_db: float
    rmse: float
    truth_rmse: float
    seconds: float
    chosen: str
    tried: int


def candidates(method: str, case: Case, seed: int) -> Iterator[Candidate]:
    """What a peer tries, the most promising first."""
    n, d = case.x.shape
    if method == "affine":
        return affine()
    if method == "rbf":
        return rbf(n, d)
    if method == "mlp":
        return mlp(n, seed)
    return boosting(n, seed)


def run_autofit(case: Case, seconds: float, seed: int) -> Outcome:
    """With no options but the budget, which is of wall time."""
    begin = time.perf_counter()
    result = autofit(case.x, case.g, budget=seconds, seed=seed, progress=False)
    spent = time.perf_counter() - begin

    def predict(points: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            parts = [result.net(part) for part in torch.from_numpy(points).split(8192)]
        return torch.cat(parts).numpy()

    return Outcome(predict, result.chosen, 10 ** (result.db / 10), len(result.tried), spent)


def measure(case: Case, method: str, seconds: float, seed: int) -> Row:
    x, g = case.x.numpy(), case.g.numpy()
    if method == "autofit":
        found = run_autofit(case, seconds, seed)
    elif method == "by hand":
        recipes = list(by_hand(case, seed))
        found = search(iter(recipes), x, g, seconds, seed, expected=len(recipes))
    else:
        found = search(candidates(method, case, seed), x, g, seconds, seed)
    difference = torch.from_numpy(found.predict(case.x_test.numpy())) - case.g_test
    from_truth = difference + case.g_test - case.truth_test
    return Row(
        case=case.name,
        method=method,
        seed=seed,
        db=decibels(float(difference.square().mean() / case.g_test.square().mean())),
        truth_db=decibels(float(from_truth.square().mean() / case.truth_test.square().mean())),
        validation_db=decibels(found.validation_error),
        rmse=float(difference.square().mean().sqrt()),
        truth_rmse=float(from_truth.square().mean().sqrt()),
        seconds=found.seconds,
        chosen=found.chosen,
        tried=found.tried,
    )


def summary(row: Row, unit: str) -> str:
    """One line about a row."""
    errors = f"test {row.db:7.2f} dB, truth {row.truth_db:7.2f}, validation {row.validation_db:7.2f}"
    errors += f", RMSE {row.rmse:.4g} {unit}"
    return f"{row.case:13} {row.method:9} {errors}, {row.seconds:.1f} s, {row.tried} tried: {row.chosen}"


def print_rows(rows: list[Row], methods: list[str]) -> None:
    """Medians over seeds: errors, then the seconds, ratio and gap of the best of ours."""
    columns = ["case", *(f"{name} dB" for name in methods), "ratio", "gap dB", "seconds"]
    lines = []
    for case in dict.fromkeys(row.case for row in rows):
        own = [row for row in rows if row.case == case]
        errors = {name: median(row.db for row in own if row.method == name) for name in methods}
        peers = [median(row.rmse for row in own if row.method == name) for name in methods if name in PEERS]
        ours = "autofit" if "autofit" in methods else "by hand"
        mine = [row for row in own if row.method == ours]
        ratio = gap = seconds = "-"
        if mine:
            seconds = f"{median(row.seconds for row in mine):.1f}"
            gap = f"{median(row.db - row.validation_db for row in mine):+.1f}"
            ratio = f"{min(peers) / median(row.rmse for row in mine):.2f}" if peers else "-"
        lines.append([case, *(f"{errors[name]:.1f}" for name in methods), ratio, gap, seconds])
    print_table("Held-out errors, medians over seeds; ratio, gap and seconds are ours", columns, lines)


def chosen_names(text: str, all_names: tuple[str, ...], what: str) -> list[str]:
    names = [name.strip() for name in text.split(",")] if text else list(all_names)
    unknown = [name for name in names if name not in all_names]
    if unknown:
        raise SystemExit(f"autofit.py: unknown {what} {', '.join(unknown)}; there are {', '.join(all_names)}.")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="names with commas between them; all of them if left out")
    parser.add_argument("--methods", default="", help="the same")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each method in each case")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--motor", type=Path, default=MOTOR, help="the measured flux map, .npz")
    parser.add_argument("--json", type=Path, help="a file for all rows, written after each")
    options = parser.parse_args()
    one_thread()
    threadpool_limits(1)
    names = chosen_names(options.cases, tuple(CASES), "cases")
    methods = chosen_names(options.methods, METHODS, "methods")
    rows: list[Row] = []
    for name in names:
        for seed in range(options.seeds):
            case = CASES[name](seed, options.motor)
            if case is None:
                print(f"{name} is skipped: there is no {options.motor}. Give the path with --motor.")
                break
            for method in methods:
                row = measure(case, method, options.seconds, seed)
                rows.append(row)
                print(summary(row, case.unit), flush=True)
                if options.json:
                    options.json.write_text(json.dumps([asdict(each) for each in rows], indent=1))
    if rows:
        print_rows(rows, methods)


if __name__ == "__main__":
    main()
