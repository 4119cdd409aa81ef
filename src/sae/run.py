"""The runner: all five stages, or some of them, in one process and unattended.

    python -m src.sae.run --dataset bigbase --version v3 --config-preset basic --root FOLDER
    python -m src.sae.run --dataset bigbase --version v3 --config-preset basic --start-from 3

Every flag and every file that the chosen stages need is checked before the first of them starts. The exit status is 0 only when every
stage that was asked for succeeded, 1 when one failed, 2 for wrong input. `--dry-run` shows the plan, as commands of the single stages.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from src.config import nearest
from src.errors import UserError
from src.sae.aggregation import aggregate, read_schema
from src.sae.encoding import add_encoding_flags, encode, encoding_settings
from src.sae.evaluation import EvaluationSettings, evaluate
from src.sae.layout import Layout, Say, add_preset, finish, layout_of, parser, preset, read_json, teller
from src.sae.training import add_training_flags, train, training_settings
from src.sae.visualisation import VisualisationSettings, visualise

NAMES = {1: "aggregation", 2: "encoding", 3: "training", 4: "evaluation", 5: "visualisation"}

FLAGS: dict[int, tuple[str, ...]] = {
    1: ("root", "subdir", "config_preset"),
    2: ("config_preset", "seq_len", "stride", "sample_size", "max_features", "memory_limit", "leave_out", "seed"),
    3: (
        *("encoder_units", "decoder_units", "dropout_rate", "learning_rate", "batch_size", "epochs"),
        *("stopping_strategy", "min_improvement", "patience", "max_train", "max_val", "resume", "seed"),
    ),
    4: ("target_fpr",),
    5: (),
}
"""Flags of each stage's own command, beside those that all have."""

ON_FAILURE = ("stop", "continue", "ask")


@dataclass(frozen=True)
class Stage:
    """One stage, ready to run."""

    number: int
    needs: tuple[Path, ...]
    """What must be there."""
    makes: tuple[Path, ...]
    """What is there afterwards."""
    command: str
    """That does the same alone."""
    act: Callable[[Say], object]


def flags() -> argparse.ArgumentParser:
    """The command line."""
    words = parser("src.sae.run", "Run the stages of the LSTM autoencoder pipeline.")
    add_preset(words)
    words.add_argument("--root", type=Path, metavar="FOLDER", help="raw files of the data set; stage 1 needs it")
    words.add_argument("--subdir", metavar="NAME", help="folder below --root, e.g. network-flows")
    add_encoding_flags(words)
    add_training_flags(words)
    rate = EvaluationSettings().target_fpr
    words.add_argument("--target-fpr", type=float, default=rate, metavar="RATE", help=f"share of benign windows that may raise an alarm (default {rate:g})")
    words.add_argument("--seed", type=int, default=0, metavar="N", help="of stages 2 and 3 (default 0)")
    words.add_argument("--start-from", type=int, default=1, metavar="STAGE", help="first stage (default 1)")
    words.add_argument("--stop-at", type=int, default=5, metavar="STAGE", help="last stage (default 5)")
    words.add_argument("--skip-stages", type=int, nargs="+", default=[], metavar="STAGE", help="stages to leave out")
    words.add_argument("--dry-run", action="store_true", help="check the input and show the plan; write nothing")
    words.add_argument(
        "--on-failure", default="stop", metavar="|".join(ON_FAILURE), help="what to do when a stage fails (default stop); ask stops where there is no terminal"
    )
    return words


def chosen(given: argparse.Namespace) -> list[int]:
    """Numbers of the stages that are asked for.

    Raises:
        UserError: when one does not exist, or none is left.
    """
    for flag, numbers in (("--start-from", [given.start_from]), ("--stop-at", [given.stop_at]), ("--skip-stages", given.skip_stages)):
        for number in numbers:
            if number not in NAMES:
                raise UserError(f"{flag} {number}: no such stage; allowed: " + ", ".join(f"{key} ({name})" for key, name in NAMES.items()))
    found = [number for number in NAMES if given.start_from <= number <= given.stop_at and number not in given.skip_stages]
    if not found:
        raise UserError(f"no stage is left of --start-from {given.start_from} --stop-at {given.stop_at} and --skip-stages")
    return found


def plan(given: argparse.Namespace, layout: Layout) -> list[Stage]:
    """The stages that are asked for, with their settings checked.

    Raises:
        UserError: for a flag or a configuration that is wrong, a folder of raw files that is not there, or an artifact that no stage makes.
    """
    numbers = chosen(given)
    windows, learning, judging = encoding_settings(given), training_settings(given), EvaluationSettings(given.target_fpr)
    schema = encoding = root = None
    if min(numbers) < 3 or given.config_preset is not None:
        files = preset(layout.dataset, given.config_preset)
        schema, encoding = read_schema(files.schema), read_json(files.encoding)
    if 1 in numbers:
        if given.root is None:
            raise UserError(f"stage 1 needs --root FOLDER, the raw files of {layout.dataset}; or leave it out with --start-from 2")
        root = given.root / given.subdir if given.subdir else given.root
        if not root.exists():
            raise UserError(f"folder '{root}' does not exist; --root (and --subdir) must name the raw files of {layout.dataset}")
    table = (layout.parquet, layout.metadata)
    acts: dict[int, tuple[tuple[Path, ...], tuple[Path, ...], Callable[[Say], object]]] = {
        1: ((), (*table, layout.labels), lambda say: aggregate(layout.dataset, root, schema, layout, say)),  # type: ignore[arg-type]
        2: (table, (layout.encoded,), lambda say: encode(layout, encoding, windows, say)),  # type: ignore[arg-type]
        3: ((layout.encoded,), (layout.model,), lambda say: train(layout, learning, say)),
        4: ((layout.encoded, layout.model), (layout.eval,), lambda say: evaluate(layout, judging, say)),
        5: ((layout.encoded, layout.model, layout.eval), (layout.vis,), lambda say: visualise(layout, VisualisationSettings(), say)),
    }
    stages = [Stage(number, acts[number][0], acts[number][1], _command(given, number), acts[number][2]) for number in numbers]
    made: set[Path] = set()
    for stage in stages:
        for path in stage.needs:
            if path not in made and not _exists(path):
                maker = next(number for number, (_, makes, _) in acts.items() if path in makes)
                raise UserError(f"stage {stage.number} ({NAMES[stage.number]}) needs '{path}', which is missing; let stage {maker} run too")
        made.update(stage.makes)
    return stages


def _command(given: argparse.Namespace, number: int) -> str:
    """What runs one stage alone, with the same outcome."""
    words = ["python", "-m", f"src.sae.{NAMES[number]}"]
    for name in ("dataset", "version", "out", *FLAGS[number]):
        value = getattr(given, name)
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else map(str, value) if isinstance(value, list) else [str(value)])]
    return shlex.join(words)


def carry_out(stages: list[Stage], on_failure: str, say: Say) -> dict[int, str]:
    """Run stages in order; returns why each that did not succeed did not, by number."""
    failed: dict[int, str] = {}
    unmade: set[Path] = set()
    for place, stage in enumerate(stages):
        name, began = f"stage {stage.number}, {NAMES[stage.number]}", time.perf_counter()
        say(f"stage {stage.number}: {NAMES[stage.number]}")
        say(f"  {stage.command}")
        for path in unmade.intersection(stage.needs):
            if _exists(path):
                say(f"note: '{path}' is of an earlier run")
        try:
            for path in stage.needs:
                if not _exists(path):
                    raise UserError(f"'{path}' is missing")
            stage.act(say)
        except Exception as error:  # whatever a stage ends with, the summary and the exit status must tell of it
            failed[stage.number] = str(error) if isinstance(error, UserError) else f"{error.__class__.__name__}: {' '.join(str(error).split())[:300]}"
            unmade.update(stage.makes)
            if not isinstance(error, UserError):
                traceback.print_exc()
            say(f"failed: {name}, after {time.perf_counter() - began:.1f} s: {failed[stage.number]}")
            rest = stages[place + 1 :]
            if rest and not _goes_on(on_failure, rest[0], say):
                return failed | {later.number: "not run" for later in rest}
        else:
            say(f"done: {name}, in {time.perf_counter() - began:.1f} s")
    return failed


def _goes_on(on_failure: str, following: Stage, say: Say) -> bool:
    """Whether to run the next stage after one that failed."""
    if on_failure != "ask":
        return on_failure == "continue"
    if sys.stdin is None or not sys.stdin.isatty():  # None: started without one
        say("stopped: --on-failure ask, and there is no terminal to ask on")
        return False
    try:
        return input(f"go on with stage {following.number}, {NAMES[following.number]}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def summary(stages: list[Stage], failed: dict[int, str], layout: Layout, seconds: float, say: Say) -> None:
    """Show what succeeded, what did not, and what lies where."""
    done = [stage.number for stage in stages if stage.number not in failed]
    say(f"{'failed' if failed else 'done'}: {len(done)} of {len(stages)} stages succeeded, in {seconds:.1f} s")
    for number, reason in failed.items():
        say(f"failed: stage {number}, {NAMES[number]}: {reason}")
    for number, path in zip(NAMES, (layout.parquet, layout.encoded, layout.model, layout.eval, layout.vis), strict=True):
        if _exists(path):
            say(f"  {NAMES[number]:<14} {path}{'' if number in done else ' (of an earlier run)'}")


def run(words: list[str] | None) -> int:
    """Run the stages as the command line says; returns the exit status.

    Raises:
        UserError: for wrong input.
    """
    given = flags().parse_args(words)
    layout = layout_of(given)
    if given.on_failure not in ON_FAILURE:
        raise UserError(f"unknown --on-failure '{given.on_failure}': {nearest(given.on_failure, ON_FAILURE)}")
    stages, say, began = plan(given, layout), teller(), time.perf_counter()
    if given.dry_run:
        for stage in stages:
            say(f"stage {stage.number}: {NAMES[stage.number]}, makes {', '.join(map(str, stage.makes))}")
            say(f"  {stage.command}")
        say("nothing was written (--dry-run)")
        return 0
    failed = carry_out(stages, given.on_failure, say)
    summary(stages, failed, layout, time.perf_counter() - began, say)
    return 1 if failed else 0


def _exists(path: Path) -> bool:
    """Whether an artifact lies there, or beside it because a replacement was killed between its two renames; `open_artifact` puts that back."""
    return path.exists() or any(path.parent.glob(f".{path.name}.*.old"))


if __name__ == "__main__":
    sys.exit(finish(run))
