import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from src.data import audit as module
from src.data.audit import audit, ceiling, dynamics, main
from src.data.dataset import Dataset, Rows
from tests.datasets import make_dataset

LENGTH = 10
REAL = Path(__file__).parents[2] / "shared" / "data" / "ciciot2023"


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_dataset()


def changed(dataset: Dataset, **sides: Rows) -> Dataset:
    return dataclasses.replace(dataset, splits={**dataset.splits, **sides})


def verdicts(dataset: Dataset) -> list[str]:
    return [row["verdict"] for row in audit(dataset, LENGTH, quick=True)["verdict"]]


def best_by_trying(vectors: np.ndarray, label: np.ndarray, classes: int) -> tuple[float, float]:
    """Best accuracy and macro-F1 over every rule from vectors to classes."""
    kinds = np.unique(vectors)
    best = (0.0, 0.0)
    for rule in itertools.product(range(classes), repeat=len(kinds)):
        found = module.scores(label, np.array(rule)[np.searchsorted(kinds, vectors)], classes)
        best = max(best[0], found["accuracy"]), max(best[1], found["macro_f1"])
    return best


def test_no_rule_passes_the_ceiling() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        vectors, label = rng.integers(0, 5, 30), rng.integers(0, 3, 30)
        accuracy, macro_f1 = best_by_trying(vectors, label, 3)
        found = ceiling(vectors, label, 3)
        assert found["accuracy"] == pytest.approx(accuracy)
        assert macro_f1 <= found["macro_f1"] + 1e-12
    assert ceiling(np.arange(30), label, 3) == {"accuracy": 1.0, "macro_f1": 1.0}
    assert ceiling(np.zeros(4, dtype=int), np.array([0, 0, 0, 1]), 2) == {"accuracy": 0.75, "macro_f1": pytest.approx((6 / 7 + 2 / 5) / 2)}


def refilled(dataset: Dataset, fill: Callable[[np.ndarray, np.ndarray, np.random.Generator], None]) -> Dataset:
    """The data set with features changed in place by `fill(features, label, rng)`, side by side."""
    rng, sides = np.random.default_rng(0), {}
    for side, rows in dataset.splits.items():
        features = rows.features.copy()
        fill(features, rows.label, rng)
        sides[side] = dataclasses.replace(rows, features=features)
    return changed(dataset, **sides)


def test_a_clean_data_set_is_clean(dataset: Dataset) -> None:
    def two_bits(features: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> None:
        features[:] = rng.normal(size=features.shape)
        features[:, 0] += 10 * (label // 2)
        features[:, 1] += 10 * (label % 2)

    assert verdicts(refilled(dataset, two_bits)) == ["clean", "clean", "clean"]


def test_a_vector_on_two_sides_is_found(dataset: Dataset) -> None:
    test = dataset.splits["test"].features.copy()
    test[5] = dataset.splits["fit"].features[7]
    assert verdicts(changed(dataset, test=dataclasses.replace(dataset.splits["test"], features=test)))[0] == "LEAK"


def test_a_feature_that_tells_the_label_is_found(dataset: Dataset) -> None:
    def tell(features: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> None:
        features[:, 1] = label + 0.1 * rng.random(len(label))

    tables = audit(refilled(dataset, tell), LENGTH, quick=True)
    assert tables["one feature alone"][0]["feature"] == dataset.feature_names[1]
    assert tables["verdict"][1]["verdict"] == "LEAK"


def test_order_is_seen_by_dynamics_and_levels_are_not() -> None:
    rng = np.random.default_rng(0)
    walk, noise = np.cumsum(rng.normal(size=(300, LENGTH, 1)), axis=1), rng.normal(size=(300, LENGTH, 1))
    still, loud = np.zeros((300, LENGTH, 1)), 1e6 * np.exp(3 * rng.normal(size=(300, LENGTH, 1)))
    ratio = {name: dynamics(part, rng)[:, 0].mean() for name, part in {"walk": walk, "noise": noise, "still": still, "loud": loud}.items()}
    assert ratio["walk"] < 1
    assert [ratio[name] for name in ("noise", "still", "loud")] == pytest.approx([2, 2, 2], abs=0.12)


def walking(dataset: Dataset, shuffled: tuple[str, ...]) -> Dataset:
    """Every class walks, but the rows of the classes named stand in any order, as in a merged file."""

    def walk(features: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> None:
        for index, name in enumerate(dataset.class_names):
            mine = np.flatnonzero(label == index)
            features[mine] = np.cumsum(rng.normal(size=(len(mine), features.shape[1])), axis=0)
            if name in shuffled:
                features[mine] = features[rng.permutation(mine)]

    return dataclasses.replace(refilled(dataset, walk), assembled=("BenignTraffic", "XSS"))


def test_classes_shuffled_at_the_source_are_told_by_their_order_and_declared(dataset: Dataset) -> None:
    found = audit(walking(dataset, ("BenignTraffic", "XSS")), LENGTH, quick=True)
    told, control = found["assembled against ordered classes, dynamics alone, classes held out"]
    assert told["AUC"] > 0.9
    assert abs(control["AUC"] - 0.5) < 0.1
    assert found["verdict"][-1]["verdict"] == "declared: BenignTraffic, XSS"
    assert audit(walking(dataset, ()), LENGTH, quick=True)["verdict"][-1]["verdict"] == "clean"


def test_shuffling_rows_costs_a_model_that_reads_their_order(dataset: Dataset) -> None:
    def ramps(features: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> None:
        steps = np.tile(np.arange(5.0), (len(label) // 5, 1))
        any_order = rng.permuted(steps, axis=1).reshape(-1)
        features[:] = rng.normal(size=features.shape)
        features[:, 0] += 20 * (label // 2)
        features[:, 4] = np.where(label % 2, steps.reshape(-1), any_order)

    ordered, mixed, never = audit(refilled(dataset, ramps), LENGTH, quick=True)["what the order of rows is worth, boosted trees on windows"]
    assert ordered["accuracy"] > 0.8
    assert mixed["accuracy"] < ordered["accuracy"] - 0.1  # what is left of the pair is a guess
    assert never["accuracy"] < ordered["accuracy"] - 0.1


def test_labels_that_mean_nothing_teach_nothing(dataset: Dataset) -> None:
    rows = audit(dataset, LENGTH, quick=True)["artefacts and shuffled labels, boosted trees on rows"]
    assert rows[0]["recall"] > 0.7
    assert rows[-1]["recall"] < 0.32


def test_wrong_input_ends_in_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--root", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nowhere" in error


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no CICIoT2023 CSVs at {REAL}")
def test_the_command_audits_the_reference_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IOTDEF__COMPUTE__ARTIFACTS", str(tmp_path))
    assert main(["--quick", "--root", str(REAL)]) == 0
    tables = json.loads((tmp_path / "audit.json").read_text())["tables"]
    assert all(row["now"] == 0 < row["before"] for row in tables["copies across sides, share of rows"])
