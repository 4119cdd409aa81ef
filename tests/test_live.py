"""Sensors in the loop say what the trace bank stores."""

from pathlib import Path

import numpy as np
import pytest

from envs import IoTEnv, IoTVectorEnv
from src.config import load_config
from src.data.bank import TraceBank
from src.data.dataset import load_dataset
from src.errors import UserError
from src.models.predictor_interface import EnhancedAttackPredictor
from src.training.fused import train_sensor
from src.training.sensors import build_bank
from tests.banks import make_bank


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[EnhancedAttackPredictor, TraceBank]:
    """A small predictor, and a bank that it filled."""
    config = load_config(
        overrides=[
            "data.synthetic_rows_per_class=400",
            "lstm.training.epochs=1",
            "lstm.model.hidden_size=16",
            "lstm.model.num_layers=1",
            "temporal.training.epochs=1",
            "temporal.model.hidden_size=16",
            "sae.training.epochs=1",
        ],
        environ={},
    )
    data = load_dataset(config.data, 0)
    sensor = train_sensor(config, data, tmp_path_factory.mktemp("live")).sensor
    return sensor, build_bank(data, sensor, sensor.scale, cap=60)


@pytest.mark.parametrize("settings", [{}, {"history": 3, "telemetry_delay": 2, "sensor_dropout": 0.2, "detector_drift": 0.3}], ids=["plain", "with options"])
def test_live_and_stored_readings_agree_on_ten_thousand_steps(trained: tuple[EnhancedAttackPredictor, TraceBank], settings: dict[str, float]) -> None:
    sensor, bank = trained
    count = 50
    stored = IoTVectorEnv(count, bank=bank, flatten=True, **settings)
    live = IoTVectorEnv(count, bank=bank, sensor=sensor, flatten=True, sensors="live", **settings)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(live.reset(seed=3)[0], stored.reset(seed=3)[0], atol=1e-5)
    for _ in range(10_000 // count):
        actions = rng.integers(0, 61, count)
        (one, gained, *_), (other, also, *_) = live.step(actions), stored.step(actions)
        np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_array_equal(gained, also)


def test_the_model_is_really_in_the_loop(trained: tuple[EnhancedAttackPredictor, TraceBank]) -> None:
    sensor, bank = trained

    class Blind:
        feature_names, class_names, sequence_length = sensor.feature_names, sensor.class_names, sensor.sequence_length
        asked = 0

        def read(self, windows: np.ndarray) -> object:
            self.asked += len(windows)
            reading = sensor.read(windows)
            reading.risk[:] = 0.25
            return reading

    blind = Blind()
    env = IoTEnv("home", bank=bank, sensor=blind, sensors="live")  # type: ignore[arg-type]
    observation, info = env.reset(seed=0)
    assert info["sensors"] == "live"
    assert (observation["sensors"].reshape(6, 11)[:, 8] == 0.25).all()
    before = blind.asked
    env.step(0)
    assert blind.asked > before > 0


def test_wrong_use_of_live_sensors_is_one_clear_line(trained: tuple[EnhancedAttackPredictor, TraceBank], tmp_path: Path) -> None:
    sensor, bank = trained
    for arguments, said in (
        ({"bank": bank}, "no sensor was given"),
        ({"bank": make_bank(), "sensor": sensor}, "no raw rows"),
        ({"bank": bank, "sensor": _Renamed(sensor)}, "in another order"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            IoTEnv(sensors="live", **arguments)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


class _Renamed:
    def __init__(self, sensor: EnhancedAttackPredictor) -> None:
        self.feature_names = sensor.feature_names[::-1]
        self.class_names, self.sequence_length, self.read = sensor.class_names, sensor.sequence_length, sensor.read
