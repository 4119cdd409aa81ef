"""The ablation of the base LSTM at small size: equal windows, kept trainings, and one setting at a time."""

from pathlib import Path

import pytest

from benchmarks import base_ablation
from benchmarks.base_ablation import ALONE, QUICK, RECIPE, VARIANTS, choices, settings
from src.config import changed, load_config
from src.training.lstm_trainer import LSTMTrainer
from tests.datasets import make_dataset


def test_every_variant_is_one_setting_away_from_labels_alone_and_not_the_default() -> None:
    default = load_config(environ={})
    assert settings(RECIPE) == {}
    assert settings(ALONE) == {"lstm.training.teachers": 0}
    for name in set(VARIANTS) - {RECIPE, ALONE}:
        assert len(VARIANTS[name]) == 1
        assert changed(default, VARIANTS[name]) != default
        assert settings(name).items() >= settings(ALONE).items()


def test_rows_compare_under_the_same_windows_and_what_was_trained_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IOTDEF__COMPUTE__ARTIFACTS", str(tmp_path))
    config = load_config(overrides=["data.window=6", "lstm.training.epochs=1", "lstm.model.hidden_size=8", "lstm.training.teachers=1", "compute.threads=1"])
    data = make_dataset()
    rows = choices(config, data, QUICK, 2, 50)
    assert [row["variant"] for row in rows] == list(QUICK)
    assert [row["compared with"] for row in rows] == [ALONE, RECIPE, ALONE]
    assert rows[0]["test change"] == pytest.approx(-rows[1]["test change"])
    for row in rows:
        assert all(row[f"{key} low"] <= row[key] <= row[f"{key} high"] for key in ("calibrate", "test"))
    assert rows[2]["test change"] == pytest.approx(rows[2]["test"] - rows[1]["test"])
    assert rows[0]["parameters"] == rows[1]["parameters"] < rows[2]["parameters"]

    def train(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(LSTMTrainer, "train_base", train)
    assert base_ablation.choices(config, data, QUICK, 2, 50) == rows
