"""Imports go in the allowed directions only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BASE = {"src.errors", "src.config", "src.artifacts"}
"""What every room may import."""

# Longest matching prefix decides the room; values are the other rooms that it may import.
ROOMS: dict[str, set[str]] = {
    "src.errors": set(),
    "src.config": {"src.errors"},
    "src.artifacts": {"src.errors"},
    "src.tracking": BASE,
    "src.data": BASE,
    "src.data.bank": {"src.errors", "src.artifacts"},
    "src.predictor": BASE,
    "src.utils": BASE | {"src.data"},
    "src.models": BASE | {"src.data", "src.predictor"},
    "src.training": BASE | {"src.data", "src.predictor", "src.models", "src.utils"},
    "src.evaluation": BASE | {"src.data", "src.predictor"},
    # The five stages of the autoencoder pipeline; the last two measure, so they use the evaluation's statistics.
    "src.sae": BASE | {"src.data", "src.predictor", "src.models", "src.utils", "src.training", "src.evaluation"},
    "envs": BASE | {"src.predictor", "src.data.bank"},
    "agents": BASE | {"envs", "src.evaluation", "src.predictor", "src.data.bank"},
    # The command of a search: trains and tracks; nobody imports it.
    "src.search": BASE | {"src.data", "src.training", "src.tracking", "src.engines"},
    # What a Ray cluster carries out; `src.engines`, where the command lines ask who trains, comes here when `compute.engine` says so.
    "src.cluster": BASE | {"src.data", "src.predictor", "src.models", "src.training", "envs", "agents"},
    "src.engines": BASE | {"src.cluster", "src.data", "src.predictor", "src.training", "agents"},
    # The body of the command line: joins all rooms, and only main.py (and benchmarks) may import it.
    "src.pipeline": BASE | {"src.engines", "src.data", "src.predictor", "src.models", "src.training", "src.evaluation", "src.tracking", "envs", "agents"},
    # One policy, or a submission, in the pipeline's world; only main.py (and benchmarks) may import it.
    "src.scoring": BASE | {"src.pipeline", "src.data", "src.evaluation", "src.tracking", "envs", "agents"},
    # Packets to a decision: joins all rooms but the pipeline, and only main.py (and benchmarks) may import it.
    "src.watch": BASE | {"src.data", "src.predictor", "src.models", "src.training", "src.evaluation", "envs", "agents"},
    "main": BASE | {"src.pipeline", "src.scoring", "src.watch"},
}

BANNED: dict[str, set[str]] = {
    "envs": {"torch", "pandas", "polars", "mlflow", "sklearn", "stable_baselines3"},
    "src.data.bank": {"torch", "pandas", "polars", "mlflow", "sklearn"},
    "src.predictor": {"torch", "pandas", "polars", "mlflow", "sklearn"},
    "src.config": {"torch", "pandas", "polars", "mlflow", "numpy"},
}
"""Packages that a room may not import."""


def room_of(module: str) -> str | None:
    """The most specific room that holds `module`."""
    fits = [room for room in ROOMS if module == room or module.startswith(room + ".")]
    return max(fits, key=len, default=None)


def modules() -> list[tuple[str, Path]]:
    """Every module of the product, by dotted name."""
    files = [ROOT / "main.py", *(path for top in ("src", "envs", "agents") for path in (ROOT / top).rglob("*.py"))]
    return [(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path) for path in files if path.exists()]


def imports(source: str) -> list[str]:
    """Dotted names that a source file imports, anywhere in it."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room they cross into"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_imports_stay_in_their_rooms(module: str, path: Path) -> None:
    room = room_of(module)
    if room is None:
        assert path.name == "__init__.py", f"{module} belongs to no room"
        return
    for name in imports(path.read_text(encoding="utf-8")):
        other = room_of(name)
        if name.split(".")[0] in {"src", "envs", "agents", "main"} and other != room:
            allowed = any(other == ok or (other or "").startswith(ok + ".") for ok in ROOMS[room])
            assert allowed, f"{module} ({room}) must not import {name}"
        for top in (top for prefix, banned in BANNED.items() if module == prefix or module.startswith(prefix + ".") for top in banned):
            assert name.split(".")[0] != top, f"{module} must not import {top}"


def test_only_tracking_imports_mlflow() -> None:
    users = {module for module, path in modules() if any(name.split(".")[0] == "mlflow" for name in imports(path.read_text(encoding="utf-8")))}
    assert users <= {"src.tracking"}


def test_only_the_cluster_imports_ray() -> None:
    users = {module for module, path in modules() if any(name.split(".")[0] == "ray" for name in imports(path.read_text(encoding="utf-8")))}
    assert users
    assert all(room_of(name) == "src.cluster" for name in users)


def test_the_rule_can_fail() -> None:
    assert imports("from src.models import x") == ["src.models.x"]
    assert room_of("src.data.bank") == "src.data.bank"
    assert room_of("src.data.windows") == "src.data"
