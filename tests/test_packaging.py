"""What runs elsewhere runs the same: the container's and the workflow's commands are the repository's own."""

import functools
import importlib.metadata
import re
from importlib.metadata import Distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from main import arguments, check

ROOT = Path(__file__).parents[1]
UNHASHED = {"torch"}
"""Which build of it, for a CPU or for CUDA, is the machine's choice; its version is pinned."""
LICENCES = {
    "0BSD", "3-Clause BSD License", "Apache Software License", "Apache-2.0", "BSD License", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "LLVM-exception", "MIT", "MIT License", "MIT-0", "MIT-CMU", "MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)", "PSF-2.0",
    "Python Software Foundation License", "Zlib",
}  # fmt: skip
"""Permissive ones; of those that ask for their own files' source alone, the MPL."""
MIT_BY_FILE = {"huey", "skops"}
"""Packages whose licence file says MIT, and whose metadata says nothing."""


def test_the_workflow_runs_what_must_be_green() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    (python,) = (step["with"]["python-version"] for step in job["steps"] if "python-version" in step.get("with", {}))
    assert f"python{python}" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert workflow["permissions"] == {"contents": "read"}


def test_the_container_runs_the_main_job_as_nobody_special() -> None:
    lines = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    said = {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in lines if line.split(" ", 1)[0].isupper()}
    assert said["ENTRYPOINT"] == '["python", "main.py"]'
    words = yaml.safe_load(said["CMD"])  # a JSON list is YAML
    check(arguments(words))
    assert " ".join(words) in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert said["USER"] not in ("root", "0")


def pins(file: str) -> dict[str, Requirement]:
    """What a requirements file pins, by name."""
    text = (ROOT / file).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [re.split(r"\s#|\s--hash", line)[0].strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


@functools.cache
def installed() -> dict[str, Distribution]:
    """The distributions that requirements.txt brings, those that these need, and so on."""
    found: dict[tuple[str, frozenset[str]], Distribution] = {}
    waiting = list(pins("requirements.txt").values())
    while waiting:
        wanted = waiting.pop()
        key = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if key not in found:
            found[key] = importlib.metadata.distribution(wanted.name)
            needs = map(Requirement, found[key].requires or ())
            waiting += [one for one in needs if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in (*wanted.extras, ""))]
    return {name: distribution for (name, _), distribution in found.items()}


def test_the_lock_file_holds_every_package_with_its_hashes() -> None:
    asked, locked = pins("requirements.txt"), pins("requirements.lock")
    assert not UNHASHED & set(locked)
    assert {name: str(one.specifier) for name, one in asked.items() if name not in UNHASHED} == {
        name: str(one.specifier) for name, one in locked.items() if name in asked
    }
    assert set(installed()) - set(locked) == UNHASHED
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for block in re.split(r"\n(?=\w)", text)[1:]:
        assert re.match(r"[\w.-]+==\S+( ; [^\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\s*$", block), block
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


def test_setup_and_container_install_what_is_locked() -> None:
    for file in ("Makefile", "Dockerfile"):
        assert "--require-hashes --no-deps -r requirements.lock" in (ROOT / file).read_text(encoding="utf-8")


def test_packages_come_from_an_index_and_are_permissive() -> None:
    for name, distribution in installed().items():
        assert distribution.read_text("direct_url.json") is None or name in UNHASHED, f"{name} was installed from an address or a folder"
        assert name in MIT_BY_FILE or licences(distribution) <= LICENCES, f"{name}: {licences(distribution)}"
        assert licences(distribution) or name in MIT_BY_FILE, f"{name} has no licence"


def licences(distribution: Distribution) -> set[str]:
    """Every licence that a distribution's metadata names, whether with `AND` or with `OR`."""
    told = distribution.metadata
    classified = [line.rsplit(" :: ", 1)[-1] for line in told.get_all("Classifier", []) if line.startswith("License")]
    words = [told["License-Expression"]] if "License-Expression" in told else classified or [told.get("License", "")]
    return {word for line in words for word in re.split(r" (?:AND|OR|WITH) ", line.strip()) if word}


@pytest.mark.parametrize(("line", "name"), [("a==1 \\\n    --hash=sha256:0", "a"), ("b==2  # why", "b")])
def test_pins_are_read(line: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_text(line)
    monkeypatch.setattr("tests.test_packaging.ROOT", tmp_path)
    assert set(pins("x")) == {name}
