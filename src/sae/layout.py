"""What the five stages share: where each artifact lies, which configuration goes with which data set, flags, and how a command ends.

Everything of one run is found by data set and version below one folder:

    processed/NAME.parquet  metadata/NAME.json  label_dist/NAME.csv      stage 1, with NAME = lstm-sae-DATASET-VERSION
    encoded/NAME/  models/NAME/  eval/NAME/  vis/NAME/                   stages 2, 3, 4 and 5
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from src.config import nearest
from src.errors import UserError

Say = Callable[[str], None]
"""Shows one line of progress."""

MODEL = "lstm-sae"
OUT = Path("artifacts/sae")
SCHEMAS = Path(__file__).parent / "schemas"

PRESETS: dict[str, dict[str, str]] = {
    "bigbase": {"basic": "v1", "extended": "v2"},
    "unraveled": {"network": "v1"},
    "ciciot2023": {"merged39": "v1", "classic46": "v2"},
    "iot23": {},
    "nbaiot": {},
    "otrf": {},
}
"""Data sets, and the presets of each with the number of its configuration; a data set without presets has `v1` alone."""

USUAL = {"ciciot2023": "merged39"}
"""Presets that hold where none is named; CICIoT2023's newer release is the one that is found today."""


@dataclass(frozen=True)
class Layout:
    """Where the artifacts of one data set and version lie."""

    root: Path
    dataset: str
    version: str

    @property
    def name(self) -> str:
        """Name that every artifact of this run bears."""
        return f"{MODEL}-{self.dataset}-{self.version}"

    @property
    def parquet(self) -> Path:
        """Stage 1: all events."""
        return self.root / "processed" / f"{self.name}.parquet"

    @property
    def metadata(self) -> Path:
        """Stage 1: schema, counts and sources."""
        return self.root / "metadata" / f"{self.name}.json"

    @property
    def labels(self) -> Path:
        """Stage 1: how often each label stands there."""
        return self.root / "label_dist" / f"{self.name}.csv"

    @property
    def encoded(self) -> Path:
        """Stage 2: folder of windows."""
        return self.root / "encoded" / self.name

    @property
    def model(self) -> Path:
        """Stage 3: folder of the trained autoencoder."""
        return self.root / "models" / self.name

    @property
    def eval(self) -> Path:
        """Stage 4: folder of scores and measures."""
        return self.root / "eval" / self.name

    @property
    def vis(self) -> Path:
        """Stage 5: folder of figures."""
        return self.root / "vis" / self.name

    @property
    def model_name(self) -> str:
        """Beginning of the names of the files in `model`."""
        return f"{MODEL}-model-{self.dataset}-{self.version}"


@dataclass(frozen=True)
class Preset:
    """The pair of configuration files that a run uses."""

    schema: Path
    encoding: Path


def preset(dataset: str, name: str | None = None) -> Preset:
    """The configuration of a data set; `name` chooses where there are several.

    Raises:
        UserError: when the data set has no such preset, or has several, none of them usual, and none is named.
    """
    known = PRESETS[dataset]
    name = name or USUAL.get(dataset)
    if name is None:
        if len(known) > 1:
            raise UserError(f"data set '{dataset}' has several configurations; choose one with --config-preset: {', '.join(known)}")
        number = next(iter(known.values()), "v1")
    elif name in known:
        number = known[name]
    elif not known:
        raise UserError(f"--config-preset {name} does not fit data set '{dataset}', which has one configuration; leave the flag out")
    else:
        raise UserError(f"--config-preset {name} does not fit data set '{dataset}': {nearest(name, known)}")
    return Preset(SCHEMAS / f"schema-{dataset}-{number}.json", SCHEMAS / f"encoding-{dataset}-{MODEL}-{number}.json")


def read_json(path: Path, required: Iterable[str] = (), optional: Iterable[str] | None = None) -> dict[str, Any]:
    """A JSON file that holds an object.

    Args:
        path: the file.
        required: keys that must be there.
        optional: keys that may be there; None allows any.

    Raises:
        UserError: when it cannot be read, is no object, lacks a key, or has an unknown one.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"'{path}' is missing") from error
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as JSON: {' '.join(str(error).split())[:200]}") from error
    except RecursionError as error:
        raise UserError(f"'{path}' cannot be read as JSON: it is nested too deeply") from error
    if not isinstance(tree, dict):
        raise UserError(f"'{path}' must hold an object of keys, not {type(tree).__name__}")
    required = list(required)
    for key in required:
        if key not in tree:
            raise UserError(f"'{path}': key '{key}' is missing; found: {', '.join(tree) or 'none'}")
    if optional is not None:
        known = [*required, *optional]
        for key in tree:
            if key not in known:
                raise UserError(f"'{path}': unknown key '{key}': {nearest(key, known)}")
    return tree


class Parser(argparse.ArgumentParser):
    """Ends with one line and exit status 2 on wrong input; flags may be spelled with underscores, `--encoding_config`."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Parse words, those of the command line where none are given."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([re.sub(r"^--[a-z_-]+", lambda flag: flag[0].replace("_", "-"), word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UserError(f"{message}; see {self.prog} --help")


def parser(module: str, description: str) -> Parser:
    """The flags of every stage: which data set, which version, and where artifacts lie. `module` is what `python -m` starts."""
    words = Parser(prog=f"python -m {module}", description=description, allow_abbrev=False)
    words.add_argument("--dataset", required=True, metavar="|".join(PRESETS), help="which data set")
    words.add_argument("--version", required=True, metavar="NAME", help="of the experiment; part of every artifact's name")
    words.add_argument("--model", default=MODEL, metavar="NAME", help=f"the one that there is: {MODEL}")
    words.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help=f"where artifacts lie (default {OUT})")
    return words


def add_preset(words: argparse.ArgumentParser) -> None:
    """The flag that chooses among a data set's configurations."""
    choices = ", ".join(f"{name} ({dataset})" for dataset, names in PRESETS.items() for name in names)
    words.add_argument("--config-preset", metavar="NAME", help=f"configuration, where a data set has several: {choices}")


def layout_of(given: argparse.Namespace) -> Layout:
    """Where the artifacts of the named run lie.

    Raises:
        UserError: for an unknown data set or model, or a version that cannot be part of a file's name.
    """
    if given.dataset not in PRESETS:
        raise UserError(f"unknown data set '{given.dataset}': {nearest(given.dataset, PRESETS)}")
    if given.model != MODEL:
        raise UserError(f"unknown --model '{given.model}'; allowed: {MODEL}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", given.version):
        raise UserError(f"--version '{given.version}' must be 1 to 64 letters, digits, dots, dashes or underscores that begin with a letter or digit")
    return Layout(given.out, given.dataset, given.version)


def teller() -> Say:
    """Shows lines on the standard output; coloured by their beginning on a terminal, plain elsewhere."""
    console = Console(highlight=False, soft_wrap=True)
    colours = {"stage": "bold cyan", "failed": "bold red", "stopped": "yellow", "learning rate": "yellow", "done": "bold green"}

    def say(text: str) -> None:
        colour = next((colour for start, colour in colours.items() if text.startswith(start)), "")
        console.print(Text(text, style=colour))  # a Text: brackets in a path are no markup

    return say


def finish(run: Callable[[list[str] | None], int | None], words: list[str] | None = None) -> int:
    """Run a command and return its exit status: what `run` returns (None: 0), 2 for wrong input, 1 for a disk that fails, 130 when interrupted."""
    try:
        return run(words) or 0
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}; is the disk full, or gone?\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return 130
