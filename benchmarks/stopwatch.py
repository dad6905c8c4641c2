"""Does the report's tokens/s agree with an independent stopwatch?

    python benchmarks/stopwatch.py ENGINE [--concurrency 1] [--rounds 5]

Measures a published aoti engine twice over: with `trtforge bench`, and with a stopwatch that knows
nothing of trtforge's jobs, drivers and formulas: a process of its own loads the engine, calls it
with random token ids, and divides the tokens it counts by what `time.monotonic_ns` says from before
to after the call. The two go by turns, so that a busy machine is busy for both. They agree when the
stopwatch's mean lies within the confidence interval of the benchmark's; where one of the intervals
is wider than 10 % of its mean, the machine had too much else to do, and nothing is said. The last
line is JSON. Exit code 1: they disagree; 2: nothing can be said. Needs a running store
(TRTFORGE_HOME) and PyTorch.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Of Student's t, two-sided 95 %, for 2 to 10 values: written down here, not taken from trtforge.
_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
_STOPWATCH = """
import json, random, sys, time
from pathlib import Path
from trtforge.engines.aoti.runtime import Engine
directory, seed, batch, tokens_in, tokens_out, warm, rounds = json.loads(sys.argv[1])
engine = Engine(Path(directory))
source = random.Random(seed)
vocabulary = json.loads((Path(directory) / "config.json").read_text())["pretrained_config"]["vocab_size"]
rates = []
for number in range(warm + rounds):
    prompts = [[source.randrange(vocabulary) for _ in range(tokens_in)] for _ in range(batch)]
    before = time.monotonic_ns()
    answer = engine.generate(prompts, tokens_out)
    after = time.monotonic_ns()
    counted = sum(len(row) for row in answer.tokens)
    if number >= warm:
        rates.append(counted / ((after - before) / 1e9))
print(json.dumps(rates))
"""  # noqa: E501


# Of trtforge's processes, not of its formulas: how long OpenMP's threads spin before they sleep.
# With PyTorch's default, tokens come many times slower on a machine that does something else, too.
_ENVIRONMENT = {**os.environ, "GOMP_SPINCOUNT": "1000"}
_WIDEST = 0.1


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_ENVIRONMENT)
    if done.returncode:
        raise SystemExit(f"{command[:4]} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval."""
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), _T95[len(values)] * spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, choices=sorted(_T95))
    parser.add_argument("--workload", default="128/32")
    asked = parser.parse_args()
    tokens_in, tokens_out = (int(part) for part in asked.workload.split("/"))
    command = [sys.executable, "-m", "trtforge.cli"]
    theirs: list[float] = []
    ours: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "engine"
        run([*command, "fetch", asked.engine, str(directory)])
        for number in range(asked.rounds):
            # Two repeats each, of which the stopwatch's mean and bench's mean are one value.
            told: dict[str, Any] = json.loads(
                run(
                    [
                        *command, "bench", asked.engine, "--workload", asked.workload,
                        "--concurrency", str(asked.concurrency), "--repeats", "2",
                        "--no-eager", "--json",
                    ]
                )
            )  # fmt: skip
            (point,) = told["summary"]["points"]
            ours.append(point["intervals"]["output_tokens_per_s"]["mean"])
            seed = random.Random(number).randrange(1 << 30)
            job = [
                str(directory), seed, asked.concurrency, tokens_in, tokens_out, 1, 2,
            ]  # fmt: skip
            rates = json.loads(
                run([sys.executable, "-c", _STOPWATCH, json.dumps(job)]).splitlines()[-1]
            )
            theirs.append(statistics.fmean(rates))
            told_now = f"bench {ours[-1]:.2f}, stopwatch {theirs[-1]:.2f} tokens/s"
            print(f"round {number + 1}: {told_now}", flush=True)
    mine, my_half = interval(ours)
    other, other_half = interval(theirs)
    noisy = max(my_half / mine, other_half / other) > _WIDEST
    within = abs(mine - other) <= my_half
    verdict = "within the interval" if within else "OUTSIDE the interval"
    if noisy:
        verdict = "the intervals are too wide to say; try again on a quiet machine"
    print(f"bench     {mine:.2f} ± {my_half:.2f} tokens/s")
    print(f"stopwatch {other:.2f} ± {other_half:.2f} tokens/s")
    print(f"apart by {abs(mine / other - 1):.2%}: {verdict}")
    print(
        json.dumps(
            {
                "bench": {"mean": mine, "half": my_half, "values": ours},
                "stopwatch": {"mean": other, "half": other_half, "values": theirs},
                "difference": mine / other - 1,
                "within": None if noisy else within,
            }
        )
    )
    raise SystemExit(2 if noisy else int(not within))


if __name__ == "__main__":
    main()
