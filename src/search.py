"""Command line of a search for the settings of a network.

`python -m src.search --model base|temporal --trials N [--study NAME] [--config FILE] [--preset NAME] [--set a.b=c ...]`

Each trial is a nested MLflow run and a line on the screen; the best settings are printed as arguments of `main.py`. The same command goes on
where a search was cut off, up to N finished trials. Studies are kept in `search.db` under `compute.artifacts`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import NoReturn

from rich.console import Console

from src.config import load_config, nearest
from src.errors import UserError

MODELS = ("base", "temporal")


class Parser(argparse.ArgumentParser):
    """Ends with one line and exit status 2 on wrong input."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UserError(f"{message}; see python -m src.search --help")


def run(words: list[str] | None) -> None:
    """Search as the command line says.

    Raises:
        UserError: for wrong input.
    """
    parser = Parser(prog="python -m src.search", description="Search for the settings of a network.", allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="|".join(MODELS), help="which network")
    parser.add_argument("--trials", required=True, type=int, metavar="N", help="finished trials, those of an earlier call included")
    parser.add_argument("--study", metavar="NAME", help="name it; by default it follows from model, settings and data")
    parser.add_argument("--config", metavar="FILE", help="YAML file")
    parser.add_argument("--preset", metavar="NAME", help="named set of overrides")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="override one setting; may be repeated")
    given = parser.parse_args(words)
    if given.model not in MODELS:
        raise UserError(f"unknown model '{given.model}': {nearest(given.model, MODELS)}")
    if given.trials < 1:
        raise UserError(f"--trials is {given.trials}; at least 1 is needed")
    config = load_config(given.config, given.preset, given.overrides)

    from src.data.dataset import load_dataset  # heavy imports only once the words are known to be right
    from src.engines import engine
    from src.tracking import tracking
    from src.training.search import space

    data = load_dataset(config.data, config.compute.seed)
    console = Console()
    store = config.compute.artifacts / "search.db"
    tags = {"phase": "search", "data_source": data.source, "data_hash": data.data_hash}
    with engine(config.compute) as (trains, cluster), tracking(config, f"search {given.model}", tags) as tracker:

        def say(text: str) -> None:
            console.print(text, highlight=False, soft_wrap=True)

        if cluster:
            say(cluster)
        found = trains.search(config, data, given.model, space(given.model), given.trials, store, tracker.nested, study=given.study, say=say)
        tracker.log_metrics({"search/macro_f1": found.value, "search/trials": float(len(found.rows))})
        tracker.log_table(found.rows, "trials.json")
        say(f"study {found.study} in {store}; best macro-F1 on calibrate ({data.source} traffic): {found.value:.4f}, with")
        say(shlex.join(found.words()))


def main(words: list[str] | None = None) -> int:
    """Run one search and return its exit status."""
    try:
        run(words)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; the same command goes on\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
