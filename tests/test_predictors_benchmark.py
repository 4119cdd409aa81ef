import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import benchmarks
from benchmarks import predictors
from benchmarks.candidates import BASE, CANDIDATES, TEMPORAL, Readout, read_out
from benchmarks.common import Gate, PartOptions
from benchmarks.part_protocol import OPPONENTS, WHOLE, Protocol, judged, last_row, natural_counts
from benchmarks.parts import gates_of
from src.config import Config, load_config
from src.data.audit import shuffled_rows
from src.data.dataset import Dataset
from src.errors import UserError
from src.training.lstm_trainer import LSTMTrainer
from src.training.peers import side_windows
from tests.datasets import make_dataset

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data" / "ciciot2023"


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_dataset()


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(
        overrides=["lstm.training.epochs=1", "lstm.model.hidden_size=4", "temporal.training.epochs=1", "temporal.model.hidden_size=16", "compute.threads=1"]
    )


def said(protocol: Protocol, skill: float, seed: int, epistemic: bool = False) -> Readout:
    """Probabilities of a candidate that leans towards the truth by `skill` and knows when it does not."""
    rng = np.random.default_rng(seed)
    found, doubt = {}, {}
    for key, truth in {"calibrate": protocol.held, **dict.fromkeys(("test", "rows shuffled", "last row only"), protocol.truth)}.items():
        lean = skill * (0.3 if key == "last row only" else 1) * rng.random((len(truth), 1))
        logits = rng.normal(size=(len(truth), len(protocol.family))) + lean * np.eye(len(protocol.family))[truth]
        found[key] = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
        doubt[key] = (-lean[:, 0]).astype(np.float32)
    return Readout(found, doubt if epistemic else {}, parameters=100, seconds=1.0)


@pytest.fixture(scope="module")
def outcome(config: Config, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Gate], dict[str, list[dict]], Path]:
    protocol = Protocol(config, dataset, resamples=100, block=15)
    skills = {BASE: 4.0, TEMPORAL: 6.0, **dict.fromkeys(OPPONENTS.values(), 2.0)}
    folder = tmp_path_factory.mktemp("figures")
    return *judged(protocol, {name: [said(protocol, skill, seed, name == TEMPORAL) for seed in range(3)] for name, skill in skills.items()}, folder), folder


def test_every_gate_of_the_requirements_is_asked(outcome: tuple[dict[str, Gate], dict[str, list[dict]], Path]) -> None:
    gates = outcome[0]
    assert set(gates) == {"C4.rows", "C4.pooled", "C4.stats", "D13.base", "D13.calibration", "D13.uncertainty", "D13.selective"}
    for key in ("C4.rows", "C4.pooled", "C4.stats", "D13.base"):
        assert gates[key].met
        assert 0 < gates[key].low < gates[key].value < gates[key].high  # type: ignore[operator]


def test_a_candidate_that_is_no_better_meets_no_gate(config: Config, dataset: Dataset, tmp_path: Path) -> None:
    protocol = Protocol(config, dataset, resamples=100, block=15)
    readouts = {name: [said(protocol, skill, 0)] for name, skill in {BASE: 2.0, **dict.fromkeys(OPPONENTS.values(), 4.0)}.items()}
    gates = judged(protocol, readouts, tmp_path)[0]
    assert set(gates) == {"C4.rows", "C4.pooled", "C4.stats"}, "a gate that was not measured is absent"
    assert not any(gate.met for gate in gates.values())


def test_tables_hold_equal_keys_and_say_what_controls_cost(outcome: tuple[dict[str, Gate], dict[str, list[dict]], Path]) -> None:
    tables = outcome[1]
    for rows in tables.values():
        assert rows
        assert all(set(row) == set(rows[0]) for row in rows)
    control = next(row for row in tables["controls"] if (row["candidate"], row["control"]) == (BASE, "last row only"))
    intact = next(row for row in tables["candidates"] if row["candidate"] == BASE)
    assert control["lost"] == pytest.approx(intact["macro_f1"] - control["macro_f1"])
    assert control["low"] > 0
    assert {row["doubt"] for row in tables["doubt"] if row["candidate"] == TEMPORAL} == {"entropy", "epistemic"}
    json.dumps(tables)


def test_figures_are_small(outcome: tuple[dict[str, Gate], dict[str, list[dict]], Path]) -> None:
    drawn = sorted(outcome[2].glob("*.png"))
    assert [path.stem for path in drawn] == ["predictors_reliability", "predictors_risk", "predictors_scores"]
    assert all(5_000 < path.stat().st_size < 200_000 for path in drawn)


@pytest.mark.parametrize("name", [BASE, TEMPORAL])
def test_a_network_is_trained_once_and_read_again_from_what_was_kept(
    config: Config, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("IOTDEF__COMPUTE__ARTIFACTS", str(tmp_path))
    sets = {"test": lambda: side_windows(dataset, "test", config.data.window)[0]}
    first = read_out(name, config, dataset, 0, sets)
    assert set(first.doubt) == ({"test"} if name == TEMPORAL else set())
    # With the reading gone, the network alone is taken from what was kept and says the same.
    shutil.rmtree(tmp_path / "benchmarks" / "readouts")
    with monkeypatch.context() as patch:
        patch.setattr(LSTMTrainer, "_train", lambda *_: pytest.fail("trained again"))
        reread = read_out(name, config, dataset, 0, sets)
        np.testing.assert_array_equal(reread.probabilities["test"], first.probabilities["test"])
        assert (reread.parameters, reread.seconds) == (first.parameters, first.seconds)
        for other in (lambda: read_out(name, config, dataset, 1, sets), lambda: read_out(name, config, make_dataset(1), 0, sets)):
            with pytest.raises(pytest.fail.Exception, match="trained again"):
                other()
    monkeypatch.setitem(CANDIDATES, name, lambda *_: pytest.fail("asked again"))
    np.testing.assert_array_equal(read_out(name, config, dataset, 0, sets).probabilities["test"], first.probabilities["test"])


def test_a_part_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part_probe.py").write_text(
        "from pathlib import Path\n"
        "from benchmarks.common import Gate\n"
        "def measure(options):\n"
        "    with (options.root / '..' / 'count').open('a') as stream:\n"
        "        stream.write('x')\n"
        "    return {'C4.probe': Gate('x', 0.5, 0.0, '>', -0.1, 1.0, by_interval=True)}, {'t': [{'a': 1.5}]}\n"
    )
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path)])
    monkeypatch.setenv("IOTDEF__COMPUTE__ARTIFACTS", str(tmp_path / "artifacts"))
    (root := tmp_path / "data").mkdir()
    (root / "x.csv").write_text("1")
    options = PartOptions(quick=True, root=root, shared=root, seeds=2)
    found = [predictors.PREDICTORS.outcome("probe", options) for _ in range(2)]
    assert (tmp_path / "count").read_text() == "x"
    assert found[0] == found[1]
    gate = gates_of(found[1])["C4.probe"]
    assert gate.value == 0.5
    assert not gate.met, "the gate was decided by its interval"
    (root / "x.csv").write_text("12")
    predictors.PREDICTORS.outcome("probe", options)
    assert (tmp_path / "count").read_text() == "xx"


def test_an_unknown_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["predictors", "--part", "protocl"])
    with pytest.raises(UserError, match=r"unknown part 'protocl'.*protocol"):
        predictors.main()


def test_natural_counts_are_those_of_the_whole_data_set() -> None:
    assert sum(WHOLE.values()) == 46_686_579
    counts = natural_counts(("BenignTraffic", "DDoS-UDP_Fragmentation", "DDoS", "Recon-PingSweep", "Recon", "XSS"))
    assert counts.tolist() == [1_098_195, 286_925, 33_984_560 - 286_925, 2_262, 354_565 - 2_262, 3_846]


def test_controls_change_the_order_or_the_past_and_nothing_else() -> None:
    windows = np.arange(600, dtype=np.float32).reshape(20, 10, 3)
    mixed = shuffled_rows(windows, np.random.default_rng(0))
    assert not np.array_equal(mixed, windows)
    np.testing.assert_array_equal(np.sort(mixed[:, :, 0], axis=1), windows[:, :, 0])
    np.testing.assert_array_equal(mixed[:, :, 1] - mixed[:, :, 0], 1)  # rows stay whole
    assert (last_row(windows) == windows[:, -1:]).all()


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no CICIoT2023 CSVs at {REAL}")
def test_the_protocol_at_small_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IOTDEF__COMPUTE__ARTIFACTS", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.predictors", "--quick", "--part", "protocol", "--root", str(REAL)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"C4.rows", "C4.pooled", "C4.stats"} <= set(found["gates"])
    assert {row["candidate"] for row in found["tables"]["candidates"]} == set(CANDIDATES)
