"""Nothing is unpickled from disk: not in what the code calls, and not while every kind of artifact is opened."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from agents.learned import load_policy
from agents.training import RLTrainer
from src import config
from src.config import load_config
from src.data.bank import TraceBank
from src.models.lstm_attack_predictor import LSTMConfig, build_model
from src.models.predictor_interface import EnhancedAttackPredictor
from src.models.subspace import BenignSubspace
from tests.banks import make_bank
from tests.test_architecture import modules

READ_BESIDE = ("/proc", "/sys", "/etc", "/dev", "/usr/share")
"""What a run may open beside its own folders: the system's descriptions of itself, and fonts."""
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "read_pickle"}
"""Names that a load path has no business with."""


def unpickles(source: str) -> list[str]:
    """Calls in a source file that could unpickle."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if UNPICKLING & set(name.split(".")) or (name == "torch.load" and words.get("weights_only") != "True"):
            found.append(name)
        if name in ("np.load", "numpy.load") and words.get("allow_pickle", "False") != "False":
            found.append(name)
        if name == "yaml.load" and [ast.unparse(one) for one in node.args[1:]] != ["_UniqueKeys"]:
            found.append(name)
    return found


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_no_call_unpickles(module: str, path: Path) -> None:
    assert not unpickles(path.read_text(encoding="utf-8"))


def test_that_rule_can_fail() -> None:
    bad = (
        "pickle.loads(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)",
        "yaml.load(x, Loader)",
        "pd.read_pickle(x)",
    )
    assert [len(unpickles(one)) for one in bad] == [1] * len(bad)
    assert not unpickles("torch.load(x, weights_only=True); np.load(x); np.load(x, allow_pickle=False); yaml.load(x, _UniqueKeys)")
    assert issubclass(config._UniqueKeys, yaml.SafeLoader)


WATCHED: list[Path] | None = None
"""Files that were opened while the audit hook watches; None: it does not."""


def _audit(event: str, told: tuple[Any, ...]) -> None:
    if WATCHED is None:
        return
    if event == "pickle.find_class":
        raise AssertionError(f"unpickled {told}")
    if event == "open" and isinstance(told[0], str | bytes | os.PathLike):
        WATCHED.append(Path(os.fsdecode(told[0])).resolve())


@contextmanager
def watched() -> Iterator[list[Path]]:
    """Raise where anything is unpickled, and list the files that are opened."""
    global WATCHED  # noqa: PLW0603  (a hook cannot be taken back, so it is switched)
    WATCHED = seen = []
    try:
        yield seen
    finally:
        WATCHED = None


@pytest.fixture(scope="module", autouse=True)
def hook() -> None:
    sys.addaudithook(_audit)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One artifact of each kind."""
    root = tmp_path_factory.mktemp("artifacts")
    bank = make_bank(windows=30)
    bank.save(root / "bank", {})
    words = ["rl.n_envs=4", "rl.hidden_size=8", "rl.total_timesteps=128", "rl.checkpoint_steps=64", "rl.validation_steps=64", "rl.validation_episodes=2"]
    words += ["rl.ppo.n_steps=16", "rl.ppo.batch_size=32", "rl.ppo.demonstrations=0", "env.scenario=home", "env.horizon=20", "env.start_range=[2, 5]"]
    agent = RLTrainer(load_config(overrides=words, environ={}), bank, root / "agents").train(seed=0)
    model = build_model(LSTMConfig(3, 8, 1, 2, 0.0, False, 4), 0)
    raw = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(0))
    EnhancedAttackPredictor(model, BenignSubspace.fit(model.scaler, raw, raw), ("a", "b", "c"), ("BenignTraffic", "XSS")).save(root / "sensor", {})
    return {"root": root, "bank": root / "bank", "agent": agent, "sensor": root / "sensor"}


def test_opening_artifacts_unpickles_nothing_and_stays_in_their_folders(artifacts: dict[str, Path]) -> None:
    import_paths = tuple(Path(place).resolve() for place in (sys.prefix, sys.base_prefix, Path(__file__).parents[1]))
    with watched() as seen:
        TraceBank.load(artifacts["bank"])
        TraceBank.bundled()
        EnhancedAttackPredictor.load(artifacts["sensor"])
        load_policy(artifacts["agent"])
    assert {"policy.safetensors", "meta.json"} <= {path.name for path in seen}
    outside = [path for path in seen if not path.is_relative_to(artifacts["root"].resolve()) and not any(path.is_relative_to(one) for one in import_paths)]
    assert not [path for path in outside if not path.is_relative_to("/proc") and not path.is_relative_to("/sys")]


def test_the_hook_can_fail() -> None:
    import pickle

    stored = pickle.dumps(Path())
    with watched(), pytest.raises(AssertionError, match="unpickled"):
        pickle.loads(stored)  # noqa: S301  (that it is refused is the test)


WHOLE_JOB = """
import os, sys

log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def hook(event, told):
    if event == "open" and isinstance(told[0], (str, bytes, os.PathLike)):
        kind = "write" if (told[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else "read"
        place = os.path.realpath(os.fsdecode(told[0]))
    elif event in ("os.mkdir", "sqlite3.connect") and not str(told[0]).startswith("file:"):
        kind, place = "write", os.path.realpath(os.fsdecode(told[0]))
    elif event in ("socket.connect", "socket.bind"):
        kind, place = "network", repr(told[1])
    else:
        return
    os.write(log, f"{kind}\\t{place}\\n".encode())

sys.addaudithook(hook)

import pytest

import main
from tests.test_main import thin_grids, words

with pytest.MonkeyPatch.context() as patch:
    thin_grids(patch)
    sys.exit(main.main(words(sys.argv[2], "all", "rl.seeds=1")))
"""


def test_a_whole_run_writes_below_its_artifacts_reads_what_it_is_given_and_calls_nobody(tmp_path: Path) -> None:
    """What Python opens; the compiled libraries' own files (fonts, threads, clocks of the system) are not seen."""
    root, artifacts, home, temporary = Path(__file__).parents[1], tmp_path / "artifacts", tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", WHOLE_JOB, str(tmp_path / "log"), str(artifacts)], cwd=root, env=environ, capture_output=True, text=True)  # noqa: PLW1510
    assert done.returncode == 0, done.stderr
    seen: dict[str, set[str]] = {"read": set(), "write": set(), "network": set()}
    for line in (tmp_path / "log").read_text(encoding="utf-8").splitlines():
        kind, place = line.split("\t", 1)
        seen[kind].add(place)

    def outside(kind: str, *places: Path | str) -> list[str]:
        allowed = [Path(place).resolve() for place in places]
        return sorted(place for place in seen[kind] if not any(Path(place).is_relative_to(one) for one in allowed))

    caches = [
        home / ".cache" / "matplotlib",
        home / ".config" / "matplotlib",
        *(root / room / "__pycache__" for room in ("agents", "envs")),
    ]  # the last: numba's
    assert (artifacts / "mlflow.db").resolve().as_posix() in seen["write"]
    assert set(outside("write", artifacts, temporary, "/dev/null", *caches)) <= {str(home / ".cache"), str(home / ".config")}
    assert [path.name.split("_")[0] for path in temporary.iterdir()] in ([], ["torchinductor"])  # torch's, and empty
    prefixes = (sys.prefix, sys.base_prefix)
    assert outside("read", root, artifacts, home, temporary, *prefixes, *READ_BESIDE) == []
    assert {address[:6] for address in seen["network"]} <= {"('127.", "('::1'"}
