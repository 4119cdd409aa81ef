"""The speed benchmark of the temporal LSTM: the plain stack is an equal one, and a path that is not exact does not count."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import temporal_speed
from benchmarks.temporal_speed import BATCH, FEATURES, ROWS, SENSOR_CLASSES, SENSOR_FEATURES, SENSOR_ROWS
from src.models.temporal_lstm import create_model, get_config
from src.models.temporal_lstm.blocks import TemporalAttention


def test_multiply_adds_are_those_of_the_modules_that_run() -> None:
    model, counted = create_model("default").eval(), {"lstm": 0, "linear": 0}

    def count(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        rows = inputs[0].shape[0] * inputs[0].shape[1] if inputs[0].ndim == 3 else 0  # sums over a window's summary do not count
        if isinstance(module, nn.LSTM):
            counted["lstm"] += rows * sum(p.numel() for name, p in module.named_parameters() if "weight" in name)
        elif isinstance(module, TemporalAttention):  # reads the weights of its projections itself
            counted["linear"] += rows * module.project.weight.numel()
        elif isinstance(module, nn.Linear) and module.out_features > 1:
            counted["linear"] += rows * module.in_features * module.out_features

    for module in model.modules():
        module.register_forward_hook(count)
    with torch.inference_mode():
        model(torch.randn(2, ROWS, FEATURES))
    inside, elsewhere = temporal_speed.multiply_adds(get_config("default"))
    attended = sum(2 * BATCH * ROWS * ROWS * layer.heads * layer.head_size for layer in model.attention)  # type: ignore[operator]
    assert counted["lstm"] * BATCH // 2 == inside
    assert counted["linear"] * BATCH // 2 + attended == elsewhere


def test_the_stack_has_equal_multiply_adds() -> None:
    config = get_config("default")
    width = temporal_speed.equal_width(config)
    stack = nn.LSTM(FEATURES, width, config.num_levels)
    weights = sum(p.numel() for name, p in stack.named_parameters() if "weight" in name)
    assert weights * BATCH * ROWS == temporal_speed.stack_multiply_adds(width, config.num_levels)
    assert weights * BATCH * ROWS / sum(temporal_speed.multiply_adds(config)) == pytest.approx(1, abs=0.01)


def test_rounds_time_everybody_alike() -> None:
    asked: list[str] = []
    spent = temporal_speed.rounds({name: lambda name=name: asked.append(name) for name in "ab"}, 20, np.random.default_rng(0))
    assert [len(values) for values in spent.values()] == [20, 20]
    pairs = np.reshape(asked, (22, 2))
    assert np.sort(pairs, axis=1).tolist() == [["a", "b"]] * 22
    assert len(set(pairs[:, 0])) == 2


def test_an_exported_sensor_reads_what_the_model_reads(tmp_path: Path) -> None:
    model = create_model("fast_training", input_size=SENSOR_FEATURES, num_classes=SENSOR_CLASSES, sequence_length=SENSOR_ROWS).eval()
    model.temperature.fill_(2.0)
    windows = torch.randn(16, SENSOR_ROWS, SENSOR_FEATURES)
    found = temporal_speed.exported(temporal_speed.Probabilities(model), windows, tmp_path / "model.onnx")()
    np.testing.assert_allclose(found, model.predict_attack_probability(windows).numpy(), atol=temporal_speed.EXACT)
