"""The example of the temporal LSTM at a tiny size."""

import re
import sys
from pathlib import Path

import pytest

from examples import temporal_lstm
from src.training.lstm_trainer import torch_threads
from tests.nbaiot import write_named

TINY = ["--preset", "fast_training", "--hidden_size", "16", "--num_layers", "2", "--num_heads", "2", "--memory_size", "8", "--sequence_length", "10"]


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["temporal_lstm", *TINY, "--device", "cpu", *words])
    with torch_threads(1):
        temporal_lstm.main()


def scores(printed: str) -> dict[str, tuple[float, float, float]]:
    """Score, and the ends of its interval, by name."""
    rows = re.findall(r"^  (\S.*?)  +(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]$", printed, flags=re.MULTILINE)
    return {name: (float(value), float(low), float(high)) for name, value, low, high in rows}


def test_it_learns_n_baiot_and_draws_its_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_named(tmp_path / "nbaiot", 200, (1, 2))
    run(monkeypatch, "--data_path", str(data), "--epochs", "4", "--batch_size", "32", "--adversarial_weight", "0.1", "--output", str(tmp_path / "out"))
    printed = capsys.readouterr().out
    blocks = dict(re.findall(r"(\w+) ([\d,]+)", printed.splitlines()[0]))
    count = {name: int(number.replace(",", "")) for name, number in blocks.items()}
    assert count.pop("total") == sum(count.values())
    assert "discriminator" in count
    found = scores(printed)
    assert found["macro-F1"][0] > 0.8  # 11 classes whose levels differ
    assert found["classwise calibration error"][0] < 0.05
    assert all(low <= value <= high for value, low, high in found.values())
    assert "(real; N-BaIoT)" in printed
    assert (tmp_path / "out" / "attention.png").stat().st_size > 10_000


def test_it_runs_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "--sample_size", "400", "--epochs", "1", "--stride", "20", "--output", str(tmp_path))
    assert "(synthetic profile; CICIoT2023)" in capsys.readouterr().out
    assert (tmp_path / "attention.png").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "fast"], "unknown preset 'fast'"),
        (["--adversarial_weight", "1"], "needs rows of at least two devices"),
        (["--data_path", "nowhere"], "does not exist: give a folder of N-BaIoT's CSVs"),
        (["--num_layers", "50"], "num_levels is 50"),
        (["--sequence_length", "1"], r"data\.window: .* greater than or equal to 2"),
        (["--learning_rate", "0"], r"learning_rate: .* greater than 0"),
        (["--adversarial_weight", "-1"], r"domain_weight: .* greater than or equal to 0"),
    ],
)
def test_wrong_input_is_one_line_and_a_failure(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["temporal_lstm", "--sample_size", "400", *words])
    with torch_threads(1), pytest.raises(SystemExit, match=said):
        temporal_lstm.launch(temporal_lstm.main)
