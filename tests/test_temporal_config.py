"""Presets, checks and search spaces of the temporal LSTM."""

from typing import Any

import optuna
import pytest

from src.errors import UserError
from src.models.temporal_lstm import PRESETS, SEARCH_SPACES, ModelConfig, create_custom_config, create_model, get_config, validate_config
from tests.test_temporal_model import windows


def test_default_is_the_documented_shape() -> None:
    config = get_config("default")
    assert config == ModelConfig()
    assert (config.hidden_size, config.num_levels, config.num_heads, config.memory_slots, config.mc_samples) == (256, 3, 8, 128, 10)


def test_overrides_and_all_ways_to_a_model_agree() -> None:
    config = create_custom_config("fast_training", num_classes=5)
    assert config == get_config("fast_training", num_classes=5) == create_custom_config(get_config("fast_training"), num_classes=5)
    assert create_model("fast_training", num_classes=5).config == create_model(config).config == create_model(config.__dict__).config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hiden_size": 4}, "did you mean 'hidden_size'"),
        ({"hidden_size": "big"}, "not a whole number"),
        ({"num_heads": 2.5}, "not a whole number"),
        ({"num_heads": True}, "not a whole number"),
        ({"dropout": 1.5}, "allowed: 0.0 to 0.9"),
        ({"dropout": float("nan")}, "allowed"),
        ({"sequence_length": 1}, "allowed: 2"),
        ({"readout": "last"}, "allowed: summary, attention"),
    ],
)
def test_wrong_keys_and_values_are_refused_in_one_line(values: dict[str, Any], words: str) -> None:
    for make in (validate_config, create_model, lambda given: create_custom_config("default", **given)):
        with pytest.raises(UserError, match=words) as caught:
            make(values)
        assert "\n" not in str(caught.value)


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'fast_training'"):
        get_config("fast-trainin")


@pytest.mark.parametrize("group", SEARCH_SPACES)
def test_optuna_draws_models_that_run_from_every_space(group: str) -> None:
    def draw(trial: optuna.Trial) -> float:
        values: dict[str, Any] = {}
        for name, (kind, *rest) in SEARCH_SPACES[group].items():
            if kind == "categorical":
                values[name] = trial.suggest_categorical(name, rest[0])
            elif kind == "int":
                values[name] = trial.suggest_int(name, rest[0], rest[1], log=rest[2])
            else:
                values[name] = trial.suggest_float(name, rest[0], rest[1], log=rest[2])
        model = create_model("fast_training", input_size=7, num_classes=4, sequence_length=10, **values).eval()
        assert all(getattr(model.config, name) == value for name, value in values.items())
        return float(model(windows(2))["kl"].detach())

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.create_study(sampler=optuna.samplers.RandomSampler(0)).optimize(draw, n_trials=3)


def test_every_space_names_fields_and_presets_change_only_fields() -> None:
    known = set(ModelConfig.__dataclass_fields__)
    assert {name for space in SEARCH_SPACES.values() for name in space} <= known
    assert {name for preset in PRESETS.values() for name in preset} <= known
