"""What the examples of client libraries come to: `python -m benchmarks.examples [--quick]`.

Each runs as a user runs it, with its default flags, on the bundled synthetic bank; a client that is not installed is left out.
`--quick` trains for a few thousand steps.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from typing import Any

from benchmarks.common import ROOT, launch, parser, write_result

EXAMPLES = {
    "sb3_ppo": "stable_baselines3",
    "maskable_ppo": "sb3_contrib",
    "recurrent_ppo": "sb3_contrib",
    "cleanrl_ppo": "torch",
    "cleanrl_ppo --device-set --timesteps 300000": "torch",
    "torchrl_ppo": "torchrl",
    "rllib_ppo": "ray",
}
"""Words after `python -m examples.`, and the package that must be there."""

TRAINED = re.compile(r"trained ([\d,]+) steps in ([\d.]+) s, ([\d.]+) s of it on the CPU")
PLAYED = re.compile(r"^  (\S.*?)\s+(-?[\d.]+) \+- ([\d.]+)$", re.MULTILINE)
REFERENCES = ("no-op", "random")


def main() -> None:
    """Run, read what they print, and write."""
    given = parser(__doc__).parse_args()
    rows: list[dict[str, Any]] = []
    references: dict[str, dict[str, Any]] = {}
    for words, package in EXAMPLES.items():
        if importlib.util.find_spec(package) is None:
            print(f"examples.{words} is left out: {package} is not installed here")
            continue
        small = ["--timesteps", "4096", "--episodes", "20"] if given.quick else []
        print(f"running examples.{words}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", f"examples.{words.split()[0]}", *words.split()[1:], *small], capture_output=True, text=True, check=False, cwd=ROOT
        )
        trained = TRAINED.search(done.stdout)
        if done.returncode or trained is None:
            sys.exit(f"error: examples.{words} ended with status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        steps, seconds, busy = int(trained[1].replace(",", "")), float(trained[2]), float(trained[3])
        for name, mean, error in PLAYED.findall(done.stdout):
            line = {"return": float(mean), "standard_error": float(error)}
            if name in REFERENCES:
                references[name] = {"example": name, "steps": None, "seconds": None, "steps_per_cpu_second": None, **line}
            else:
                rows.append({"example": words, "steps": steps, "seconds": seconds, "steps_per_cpu_second": steps / busy, **line})
    write_result("examples", "synthetic", {}, {"clients": [*rows, *references.values()]}, given.quick)


if __name__ == "__main__":
    launch(main)
