"""How often the performance gate fails an engine, by how much slower it is and how noisy runs are.

A simulation of the gate's own code: `--trials` pairs of engines for each cell, whose runs are off
by a normal share (`noise`) of their true speed, compared at as many concurrencies and metrics as
`--comparisons` says. The false-alarm rate is the column of engines as quick as each other (1.00);
the column at the tolerance (0.95) is the worst that the gate promises to be wrong; the rest is its
power. The gate's confidence intervals are Student's, whatever the noise; a machine with rarer,
heavier disturbances (`heavy`: every tenth run is 20 % slower) widens them.

    python benchmarks/gate_power.py --repeats 3 5 10

Prints tables, and one JSON object as its last line.
"""

import argparse
import json
import math
import random

from trtforge.gates.performance import compare_metric

RATIOS = (1.05, 1.0, 0.97, 0.95, 0.93, 0.9, 0.85, 0.8)
NOISES = ("0.005", "0.01", "0.02", "0.05", "0.1", "heavy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--repeats", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--comparisons", type=int, default=4, help="concurrencies x metrics")
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    source = random.Random(asked.seed)
    rates: dict[str, dict[str, dict[str, float]]] = {}
    for repeats in asked.repeats:
        print(
            f"\n{repeats} runs of each engine, {asked.comparisons} comparisons, tolerance "
            f"{asked.tolerance:.0%}: share of engines that fail, by new speed / old speed"
        )
        print(f"{'noise':>8}" + "".join(f"{ratio:>8}" for ratio in RATIOS))
        table = rates.setdefault(str(repeats), {})
        for noise in NOISES:
            row = {str(ratio): fail_rate(ratio, noise, repeats, asked, source) for ratio in RATIOS}
            table[noise] = row
            print(f"{noise:>8}" + "".join(f"{rate:8.3f}" for rate in row.values()))
    print(
        json.dumps(
            {
                "trials": asked.trials,
                "comparisons": asked.comparisons,
                "tolerance": asked.tolerance,
                "false_alarms_most": max(row["1.0"] for t in rates.values() for row in t.values()),
                "at_tolerance_most": max(row["0.95"] for t in rates.values() for row in t.values()),
                "fail_rate": rates,
            }
        )
    )


def fail_rate(
    ratio: float, noise: str, repeats: int, asked: argparse.Namespace, source: random.Random
) -> float:
    """Share of new engines, `ratio` times as quick as the old ones, that fail."""
    failed = 0
    for _ in range(asked.trials):
        failed += any(
            not compare_metric(
                "output_tokens_per_s",
                1,
                [run(ratio, noise, source) for _ in range(repeats)],
                [run(1.0, noise, source) for _ in range(repeats)],
                tolerance=asked.tolerance,
                comparisons=asked.comparisons,
            ).passed
            for _ in range(asked.comparisons)
        )
    return failed / asked.trials


def run(speed: float, noise: str, source: random.Random) -> float:
    """The speed that one run of an engine shows."""
    if noise == "heavy":
        return speed * math.exp(source.gauss(0, 0.01)) * (0.8 if source.random() < 0.1 else 1.0)
    return speed * math.exp(source.gauss(0, float(noise)))


if __name__ == "__main__":
    main()
