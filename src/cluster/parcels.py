"""Artifacts that travel: what a node has made, as bytes, and put down whole where the run keeps it. So nodes need no disk in common."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from src.artifacts import open_artifact
from src.errors import UserError

Parcel = dict[str, bytes]
"""Content of each file of an artifact, by its path inside."""
SCRATCH = "cluster"
"""Folder beside the artifacts in which workers keep what they are at: on a disk in common, whoever takes a task over goes on from there."""


def pack(folder: Path) -> Parcel:
    """Read a finished artifact."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def unpack(parcel: Parcel, folder: Path) -> None:
    """Write an artifact to `folder`, whole or not at all, in place of what was there.

    Raises:
        UserError: when what arrived is no whole artifact, or the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            place.chmod(0o755)
            for name, content in parcel.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(content)
            open_artifact(place, json.loads(parcel["meta.json"])["kind"])
            aside = place.with_name(place.name + ".old")  # the name from which `open_artifact` puts a replacement back that was killed
            if folder.exists():
                folder.rename(aside)
            place.rename(folder)
            shutil.rmtree(aside, ignore_errors=True)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write artifact '{folder}': {error.strerror}; choose a writable folder (--set compute.artifacts=FOLDER)") from error
