"""Readers of Sysmon event tables.

* bigbase (FullAPT-2025): 50 files `dataset-N.csv`, whose number tells the campaign; 44 columns and a label, either `TacticLabel` (`Normal` or an
  ATT&CK tactic) or `Label` (benign or malicious) with `Tactic` and `Technique`. Spellings differ in case.
* OTRF Security-Datasets (MIT licence): one parquet of the events of many captures of attacks, `dataset_file` being the capture. The capture is of an
  attack but no event says whether it belongs to it: every label is `Unknown`.

`-` is Sysmon's unset field and becomes empty.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from src.data.tables import BENIGN, check_agreement, check_columns, check_parquet, first_line, labels, plain, typed
from src.errors import UserError

UNKNOWN = "Unknown"
"""Label of an event of which nobody said whether it is an attack's."""

MALICIOUS = "Malicious"
"""Label of an attack's event whose tactic is not given."""

TACTICS = (
    *("Reconnaissance", "Resource Development", "Initial Access", "Execution", "Persistence", "Privilege Escalation", "Defense Evasion"),
    *("Credential Access", "Discovery", "Lateral Movement", "Collection", "Command and Control", "Exfiltration", "Impact"),
)
"""MITRE ATT&CK Enterprise's tactics: labels of attack events."""

CAMPAIGNS = {"APT1": (1, 20), "APT2": (21, 30), "APT3": (31, 38), "APT4": (39, 44), "APT5": (45, 47), "APT6": (48, 50)}
"""First and last file of each campaign."""

_ENDPOINT = ("IsIpv6", "Ip", "Hostname", "Port", "PortName")
COLUMNS_44: tuple[str, ...] = (
    *("EventID", "Computer", "UtcTime", "ProcessGuid", "ProcessId", "Image", "User", "Protocol"),
    *(f"{side}{name}" for side in ("Source", "Destination") for name in _ENDPOINT),
    *("ImageLoaded", "OriginalFileName", "Hashes", "EventType", "TargetObject", "SourceProcessGUID", "SourceProcessId", "SourceImage"),
    *("TargetProcessGUID", "TargetProcessId", "TargetImage", "SourceThreadId", "SourceUser", "TargetUser", "PipeName", "CommandLine"),
    *("CurrentDirectory", "ParentProcessGuid", "ParentProcessId", "ParentImage", "ParentCommandLine", "TargetFilename"),
    *("CreationUtcTime", "Device", "PreviousCreationUtcTime", "Hash"),
)
"""bigbase's columns without the label."""

TYPES: dict[str, Any] = dict.fromkeys(("EventID", "SourcePort", "DestinationPort"), pl.Int64)
"""Columns of numbers; all others are text."""

_LABELS = {plain(name): name for name in (*TACTICS, MALICIOUS)}


def campaign(path: Path) -> str:
    """Campaign of one of bigbase's files.

    Raises:
        UserError: for a name that is none of `dataset-1.csv` to `dataset-50.csv`.
    """
    numbered = re.fullmatch(r"dataset-0*(\d+)\.csv", path.name, re.IGNORECASE)
    found = [name for name, (first, last) in CAMPAIGNS.items() if numbered and first <= int(numbered[1]) <= last]
    if not found:
        raise UserError(f"'{path}' is no file of bigbase: the campaign is read from names dataset-1.csv to dataset-50.csv")
    return found[0]


def read_bigbase(path: Path, columns: Sequence[str], label_columns: Sequence[str], benign: Sequence[str]) -> pl.DataFrame:
    """The asked columns of one CSV in file order, with `label`.

    Args:
        path: one of the files.
        columns: names among the 44.
        label_columns: the first one that the file has holds its labels; beside `Label`, `Tactic` says what a malicious event is, where it is set.
        benign: spellings of the benign label, in any case.

    Returns:
        Numbers for the columns in `TYPES`, text for others, and `label`: benign traffic, a tactic, or `MALICIOUS`.

    Raises:
        UserError: for a missing column, a cell that is no number, a row without a label or with an unknown one.
    """
    try:
        lazy = pl.scan_csv(path, infer_schema=False, null_values=["-"], encoding="utf8-lossy", glob=False)
        found = lazy.collect_schema().names()
        check_columns(path, found, columns)
        label = next((name for name in label_columns if name in found), None)
        if label is None:
            raise UserError(f"'{path}': no label column ({' or '.join(label_columns)}); found: {', '.join(found)}")
        tactic = label == "Label" and "Tactic" in found
        said = [name for name in dict.fromkeys([*label_columns, *["Tactic"] * tactic]) if name in found]
        frame = lazy.select(*dict.fromkeys([*columns, *said])).collect()
    except pl.exceptions.NoDataError:
        raise UserError(f"'{path}' is empty: a file of bigbase has a header and rows") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"'{path}' cannot be read as CSV: {first_line(error)}") from error
    if len(frame) == 0:
        raise UserError(f"'{path}' has a header but no rows")
    check_agreement(path, frame, said, benign)
    name = labels(path, label, frame[label].str.strip_chars(), benign, _LABELS)
    if tactic:
        harmful = name != BENIGN
        kind = frame["Tactic"].filter(harmful).str.strip_chars().replace("", None).fill_null(MALICIOUS)
        name = name.scatter(harmful.arg_true(), labels(path, "Tactic", kind, (), _LABELS))
    return typed(path, frame.select(columns), TYPES).with_columns(name.alias("label"))


def read_otrf(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """The asked columns of the parquet in file order, with `label`, which is `UNKNOWN` in every row.

    Raises:
        UserError: for a file that is no parquet, or a missing column.
    """
    check_parquet(path, columns)
    try:
        lazy = pl.scan_parquet(path, glob=False)
        check_columns(path, lazy.collect_schema().names(), columns)
        frame = lazy.select(*dict.fromkeys(columns)).collect()
        frame = frame.with_columns(pl.col(name).cast(kind) for name, kind in TYPES.items() if name in frame.columns)
        nested = [name for name, kind in frame.schema.items() if not kind.is_numeric() and kind not in (pl.String, pl.Boolean, pl.Null, pl.Datetime)]
        if nested:
            raise UserError(f"'{path}': column '{nested[0]}' holds {frame.schema[nested[0]]}; events are of texts and numbers")
        endless = [column.name for column in frame.select(pl.selectors.float()) if not column.drop_nulls().is_finite().all()]
        if endless:
            raise UserError(f"'{path}': column '{endless[0]}' holds a number that is not finite; leave such cells empty")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"'{path}' cannot be read as parquet: {first_line(error)}") from error
    if len(frame) == 0:
        raise UserError(f"'{path}' has columns but no rows")
    return frame.with_columns(pl.col(pl.String).replace("-", None), pl.lit(UNKNOWN).alias("label"))
