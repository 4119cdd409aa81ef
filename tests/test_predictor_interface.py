import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from src.data.taxonomy import FAMILIES, severity
from src.data.windows import gather, window_starts
from src.errors import UserError
from src.models.lstm_attack_predictor import LSTMConfig, Scaler, build_model
from src.models.predictor_interface import ALONE, EnhancedAttackPredictor, _load_pyfunc
from src.models.subspace import BenignSubspace
from src.models.temperature import fit_temperature
from src.predictor.interface import AttackPredictorInterface, Sensor
from tests.datasets import CLASSES, FEATURES, make_dataset

T = 6
DATA = make_dataset()
KEYS = {
    "predicted_attack", "attack_category", "confidence", "risk_score", "is_attack", "severity_level", "all_probabilities",
    "uncertainty", "anomaly_score",
}  # fmt: skip


def windows(split: str, label: int | None = None) -> np.ndarray:
    rows = DATA.splits[split]
    starts = window_starts(rows.segment, T, 1)
    return gather(rows.features, starts if label is None else starts[rows.label[starts] == label], T)


@pytest.fixture(scope="module")
def sensor() -> EnhancedAttackPredictor:
    """Not trained: what is tested here holds for any weights."""
    model = build_model(LSTMConfig(len(FEATURES), 16, 2, len(CLASSES), 0.3, False, T), 0)
    model.scaler.fit(DATA.splits["fit"].features)
    with torch.no_grad():
        model.classifier[3].weight.mul_(40)  # so that probabilities differ from window to window
    ordinary = [torch.from_numpy(windows(split, 0)) for split in ("fit", "calibrate")]
    return EnhancedAttackPredictor(model, BenignSubspace.fit(model.scaler, *ordinary), FEATURES, CLASSES)


def steps(window: np.ndarray) -> list[dict[str, float]]:
    return [dict(zip(FEATURES, map(float, row), strict=True)) for row in window]


def test_it_meets_the_contract(sensor: EnhancedAttackPredictor) -> None:
    assert isinstance(sensor, AttackPredictorInterface)
    assert isinstance(sensor, Sensor)
    assert (sensor.sequence_length, sensor.feature_names, sensor.class_names) == (T, FEATURES, CLASSES)


def test_readings_have_the_stated_shapes_and_ranges(sensor: EnhancedAttackPredictor) -> None:
    reading = sensor.read(windows("test"))
    count = len(windows("test"))
    assert reading.probabilities.shape == (count, len(CLASSES))
    assert reading.table().shape == (count, len(FAMILIES) + 3)
    for field in dataclasses.fields(reading):
        value = getattr(reading, field.name)
        assert value.dtype == np.float32
        assert value.min() >= 0
        assert value.max() <= 1
    np.testing.assert_allclose(reading.probabilities.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(reading.families.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(reading.risk, reading.probabilities @ severity(CLASSES), atol=1e-6)
    np.testing.assert_allclose(reading.families[:, FAMILIES.index("Web")], reading.probabilities[:, CLASSES.index("XSS")], atol=1e-6)
    entropy = stats.entropy(reading.probabilities, axis=1) / math.log(len(CLASSES))
    np.testing.assert_allclose(reading.uncertainty, entropy, atol=1e-5)
    assert reading.risk.std() > 0.01


def test_one_sequence_and_a_batch_agree(sensor: EnhancedAttackPredictor) -> None:
    batch = windows("calibrate")[::7]  # calibration windows themselves: ties with the reference errors
    reading = sensor.read(batch)
    small = sensor.read(batch, batch_size=5)
    np.testing.assert_allclose(small.table(), reading.table(), atol=1e-6)
    for index, window in enumerate(batch):
        answer = sensor.predict_attack_risk(steps(window))
        assert set(answer) == KEYS
        assert answer["risk_score"] == pytest.approx(reading.risk[index], abs=1e-6)
        assert answer["uncertainty"] == pytest.approx(reading.uncertainty[index], abs=1e-6)
        assert answer["anomaly_score"] == pytest.approx(reading.anomaly[index], abs=1e-6)
        assert list(answer["all_probabilities"].values()) == pytest.approx(reading.probabilities[index], abs=1e-6)
        best = int(reading.probabilities[index].argmax())
        assert answer["predicted_attack"] == CLASSES[best]
        assert answer["is_attack"] == (best != 0) == (answer["attack_category"] != "Benign")
        assert answer["confidence"] == max(answer["all_probabilities"].values())


def test_severity_levels_are_fifths_of_the_risk(sensor: EnhancedAttackPredictor) -> None:
    levels = ["none", "low", "medium", "high", "critical"]
    for window in windows("test")[::9]:
        answer = sensor.predict_attack_risk(steps(window))
        assert answer["severity_level"] == levels[min(int(answer["risk_score"] * 5), 4)]


def test_short_sequences_repeat_the_oldest_step_and_long_ones_lose_it(sensor: EnhancedAttackPredictor) -> None:
    window = steps(windows("test", 1)[0])
    filled = [window[0]] * 3 + window[: T - 3]
    assert sensor.predict_attack_risk(window[: T - 3]) == sensor.predict_attack_risk(filled)
    assert sensor.predict_attack_risk(window[:1]) == sensor.predict_attack_risk([window[0]] * T)
    other = steps(windows("test", 2)[0])
    assert sensor.predict_attack_risk(other + window) == sensor.predict_attack_risk(window)


def test_features_go_by_name_and_the_callers_list_stays(sensor: EnhancedAttackPredictor) -> None:
    window = steps(windows("test", 2)[0])[:4]
    turned = [dict(reversed(list(step.items()))) for step in window]
    before = copy.deepcopy(turned)
    assert sensor.predict_attack_risk(turned) == sensor.predict_attack_risk(window)
    assert turned == before
    assert [list(step) for step in turned] == [list(step) for step in before]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Rate": None}, r"step 1: feature 'Rate' is None, not a number"),
        ({"Rate": "fast"}, r"feature 'Rate' is 'fast', not a number"),
        ({"IAT": float("nan")}, r"step 1: feature 'IAT' is nan"),
        ({"IAT": float("-inf")}, r"feature 'IAT' is -inf"),
        ({"IAT": 1e300}, r"feature 'IAT' is 1e\+300"),
        ({"Speed": 1.0}, r"step 1: unknown feature 'Speed'; known: Rate, IAT"),
    ],
)
def test_wrong_features_are_named(sensor: EnhancedAttackPredictor, change: dict[str, Any], words: str) -> None:
    window = steps(windows("test")[0])
    window[1] |= change
    with pytest.raises(UserError, match=words):
        sensor.predict_attack_risk(window)


def test_missing_features_empty_sequences_and_wrong_shapes_are_refused(sensor: EnhancedAttackPredictor) -> None:
    window = steps(windows("test")[0])
    del window[0]["Std"]
    with pytest.raises(UserError, match=r"step 0: feature 'Std' is missing"):
        sensor.predict_attack_risk(window)
    with pytest.raises(UserError, match="empty"):
        sensor.predict_attack_risk([])
    with pytest.raises(UserError, match=r"\(N, 6, 5\)"):
        sensor.read(windows("test")[:, :3])
    bad = windows("test").copy()
    bad[5, 2, FEATURES.index("Telnet")] = np.inf
    with pytest.raises(UserError, match="'Telnet' holds a value that is not finite"):
        sensor.read(bad)
    assert sensor.read(windows("test")[:0]).table().shape == (0, 11)


def test_anomaly_is_uniform_on_benign_and_high_on_strange_traffic(sensor: EnhancedAttackPredictor) -> None:
    model, rng = sensor.model, np.random.default_rng(0)
    plain = Scaler(len(FEATURES))

    def benign(count: int) -> torch.Tensor:
        squashed = rng.normal(size=(count, T, len(FEATURES)))
        return torch.from_numpy((np.sign(squashed) * np.expm1(np.abs(squashed))).astype(np.float32))

    space = BenignSubspace.fit(plain, benign(2000), benign(1500), kept=0.5)
    fresh = space.anomaly(benign(1500).numpy())
    assert stats.kstest(fresh, "uniform").statistic < 0.06
    assert space.anomaly(benign(200).numpy() * 1000).min() > 0.9
    rare = sensor.read(windows("test", 0) * np.float32(1e6)).anomaly
    assert np.median(rare) > 0.95
    assert 0.2 < np.median(sensor.read(windows("test", 0)).anomaly) < 0.8
    assert model.scaler is sensor.scaler


def test_subspace_error_is_the_distance_from_the_plane() -> None:
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]

    def raw(scaled: np.ndarray) -> torch.Tensor:
        """What the scaler makes these of."""
        return torch.from_numpy((np.sign(scaled) * np.expm1(np.abs(scaled))).reshape(-1, 2, 3))

    inside = rng.normal(size=(500, 2)) @ basis[:, :2].T
    space = BenignSubspace.fit(Scaler(3).double(), raw(inside), raw(inside))
    assert len(space.components) == 2
    np.testing.assert_allclose(space.error(raw(inside[:5] + 1.5 * basis[:, 4])).numpy(), 2.25, rtol=1e-6)
    with pytest.raises(UserError, match="too few"):
        BenignSubspace.fit(Scaler(3), raw(inside[:1]), raw(inside))


def test_temperature_mends_confidence_that_is_too_high() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 4, generator=generator)
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator)[:, 0]
    assert fit_temperature(logits[None] * 3, labels) == pytest.approx(3, rel=0.1)
    found = fit_temperature(logits[None] / 2, labels)
    assert found == pytest.approx(0.5, rel=0.1)
    assert functional.cross_entropy(logits / 2 / found, labels) < functional.cross_entropy(logits / 2, labels)


def test_scale_is_what_the_model_sees(sensor: EnhancedAttackPredictor) -> None:
    rows = DATA.splits["test"].features
    scaled = sensor.scale(rows)
    assert scaled.shape == rows.shape
    assert np.abs(scaled).max() <= 5
    assert (scaled[:, FEATURES.index("Telnet")] == 0).all()  # constant on `fit`


def test_a_saved_sensor_reads_the_same(tmp_path: Path, sensor: EnhancedAttackPredictor) -> None:
    folder = tmp_path / "sensor"
    sensor.save(folder, {"seed": 0})
    loaded = EnhancedAttackPredictor.load(folder)
    batch = windows("test")
    np.testing.assert_array_equal(loaded.read(batch).table(), sensor.read(batch).table())
    np.testing.assert_array_equal(_load_pyfunc(str(folder)).predict(batch), sensor.read(batch).table())
    assert {file.suffix for file in folder.iterdir()} == {".safetensors", ".json"}
    text = (folder / "meta.json").read_text()
    for key, source in {**ALONE, **sensor.detector.stated()}.items():
        assert f'"{key}": "{source}"' in text
    (folder / "anomaly.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"'anomaly.safetensors' was altered"):
        EnhancedAttackPredictor.load(folder)


def test_a_model_without_a_sensor_is_refused(tmp_path: Path, sensor: EnhancedAttackPredictor) -> None:
    from src.models.lstm_attack_predictor import save_predictor

    meta = {"class_names": CLASSES, "feature_names": FEATURES}
    save_predictor(tmp_path / "bare", sensor.model, meta)
    with pytest.raises(UserError, match="no usable sensor"):
        EnhancedAttackPredictor.load(tmp_path / "bare")
    save_predictor(tmp_path / "odd", sensor.model, meta, {"anomaly": {**sensor.detector.tensors(), "mean": torch.zeros(7, dtype=torch.float64)}})
    with pytest.raises(UserError, match="no usable sensor"):
        EnhancedAttackPredictor.load(tmp_path / "odd")
