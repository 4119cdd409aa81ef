"""Artifact folders: written whole or not at all, with the run's identity and checksums beside the payload.

`meta.json` holds the kind of artifact, when and by which command, code and package versions it was made, and what the
caller adds (configuration, seed, data hash). `checksums.json` holds the SHA-256 of every other file, and is refused in any
other spelling. A single file is sealed: its SHA-256 stands at its end.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from src.errors import UserError

PACKAGES = ("torch", "gymnasium", "stable-baselines3", "numpy", "polars", "scikit-learn", "lightgbm", "mlflow")

SEAL = b"\nsha256:"
"""What stands between the content of a sealed file and its digest."""


@functools.cache
def git_commit() -> str:
    """Commit of the checkout that this code lies in, `-dirty` added when it was changed, or `unknown`."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


_ISSUED: ContextVar[str | None] = ContextVar("issued", default=None)


def command() -> str:
    """The command that this process was started with, or on whose behalf it works (`issued_by`)."""
    return _ISSUED.get() or shlex.join(["python", *sys.orig_argv[1:]])


@contextlib.contextmanager
def issued_by(words: str) -> Iterator[None]:
    """Work on behalf of another process's command: what is made inside names that one."""
    before = _ISSUED.set(words)
    try:
        yield
    finally:
        _ISSUED.reset(before)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file beside `path`, which takes its place if all goes well; else nothing is left.

    Raises:
        UserError: when the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, 0o644)
            os.replace(name, path)
        finally:
            with contextlib.suppress(FileNotFoundError):  # it is gone where it became `path`
                os.unlink(name)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write '{path}': {reason}; choose a writable folder (--set compute.artifacts=FOLDER, or --out where a command has it)"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: when the folder cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def new_artifact(folder: Path, kind: str, meta: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; on success it becomes `folder`, on failure nothing is left.

    Raises:
        UserError: when the parent folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _put_back(folder)
        target = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"cannot write artifact '{folder}': {error.strerror}; choose a writable folder (--set compute.artifacts=FOLDER, or --out where a command has it)"
        ) from error
    try:
        target.chmod(0o755)
        yield target
        sums = {file.relative_to(target).as_posix(): _digest(file) for file in sorted(target.rglob("*")) if file.is_file()}
        identity = {
            "kind": kind,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command(),
            "commit": git_commit(),
            "versions": versions(),
        }
        (target / "meta.json").write_text(json.dumps({**identity, **meta}, indent=1, default=str) + "\n", encoding="utf-8")
        sums["meta.json"] = _digest(target / "meta.json")
        (target / "checksums.json").write_bytes(_listed(sums))
        # A rename onto a full folder fails, so the old one steps aside first; both renames are on one file system.
        if folder.exists():
            aside = target.with_name(target.name + ".old")
            folder.rename(aside)
            target.rename(folder)
            shutil.rmtree(aside)
        else:
            target.rename(folder)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def open_artifact(folder: Path, kind: str) -> dict[str, Any]:
    """Check every file of an artifact against its checksum and return its `meta.json`.

    Raises:
        UserError: when the folder is missing, holds another kind, or a file is missing, added or altered (it is named).
    """
    _put_back(folder)
    sums = _read_json(folder, "checksums.json", kind)
    if (folder / "checksums.json").read_bytes() != _listed(sums):
        raise UserError(f"artifact '{folder}': file 'checksums.json' was altered; delete the folder and train again")
    present = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} - {"checksums.json"}
    for name in sorted(present ^ set(sums)):
        raise UserError(f"artifact '{folder}': file '{name}' is {'not listed' if name in present else 'missing'}; delete the folder and train again")
    for name, expected in sums.items():
        if _digest(folder / name) != expected:
            raise UserError(f"artifact '{folder}': file '{name}' was altered (checksum differs); delete the folder and train again")
    meta = _read_json(folder, "meta.json", kind)
    if meta.get("kind") != kind:
        raise UserError(f"artifact '{folder}' is a {meta.get('kind')}, not a {kind}")
    return meta


def content_digest(folder: Path) -> str:
    """Digest of what an artifact holds, but not of when and how it was made: the same data written again have the same one.

    Raises:
        UserError: when the folder is no artifact.
    """
    sums = _read_json(folder, "checksums.json", "complete")
    sums.pop("meta.json", None)
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def seal(path: Path) -> None:
    """Write a file's SHA-256 behind its content, so that `check_seal` knows it from an altered one."""
    digest = _digest(path)
    with path.open("ab") as stream:
        stream.write(SEAL + digest.encode())


def check_seal(path: Path, cure: str) -> None:
    """Refuse a file that was altered or cut off since it was sealed.

    Args:
        path: the file.
        cure: end of the error's line: what to do.

    Raises:
        UserError: when the file cannot be read, bears no seal, or is another than was sealed.
    """
    found = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            left = os.fstat(stream.fileno()).st_size - len(SEAL) - 2 * found.digest_size
            while left > 0 and (part := stream.read(min(left, 1 << 20))):
                found.update(part)
                left -= len(part)
            said = stream.read()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}; {cure}") from error
    if said != SEAL + found.hexdigest().encode():
        raise UserError(f"'{path}' was altered or cut off, or is of an older version (its checksum differs); {cure}")


def _listed(sums: dict[str, Any]) -> bytes:
    """Content of `checksums.json`."""
    return (json.dumps(sums, indent=1) + "\n").encode()


def _put_back(folder: Path) -> None:
    """Undo a replacement that was killed between its two renames: the old artifact had stepped aside, the new one was not there yet."""
    if not folder.exists():
        for aside in folder.parent.glob(f".{folder.name}.*.old"):
            aside.rename(folder)
            return


def _read_json(folder: Path, name: str, kind: str) -> dict[str, Any]:
    try:
        tree = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no {kind} artifact at '{folder}': '{name}' is missing; train it first") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"artifact '{folder}': file '{name}' cannot be read ({error.__class__.__name__}); delete the folder and train again") from error
    if not isinstance(tree, dict):
        raise UserError(f"artifact '{folder}': file '{name}' is malformed; delete the folder and train again")
    return tree
