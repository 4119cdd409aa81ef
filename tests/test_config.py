"""Configuration: merging, checking, saying what is wrong, and being what config.yml says."""

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from src.config import PRESETS, Config, describe, leaves, load_config
from src.errors import UserError

ROOT = Path(__file__).parents[1]


def test_config_yml_is_the_default_configuration() -> None:
    assert (ROOT / "config.yml").read_text(encoding="utf-8") == describe()
    assert load_config(ROOT / "config.yml", environ={}) == Config()


def test_every_field_has_a_docstring() -> None:
    def walk(model: type[BaseModel]) -> None:
        for name, info in model.model_fields.items():
            assert info.description, f"{model.__name__}.{name}"
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                walk(info.annotation)

    walk(Config)


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text("lstm: {training: {epochs: 3, batch_size: 7}}\nrl: {total_timesteps: 11}\neval: {episodes: 77}\n")
    config = load_config(
        file, "quick", ["lstm.training.patience=2"], {"IOTDEF__RL__TOTAL_TIMESTEPS": "13", "IOTDEF__LSTM__TRAINING__PATIENCE": "9", "HOME": "/"}
    )
    assert config.lstm.training.batch_size == 7  # the file over the defaults
    assert config.eval.episodes == PRESETS["quick"]["eval.episodes"]  # the preset over the file
    assert config.rl.total_timesteps == 13  # the environment over the preset
    assert config.lstm.training.patience == 2  # --set over all
    assert config.lstm.training.weight_decay == Config().lstm.training.weight_decay


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset: str) -> None:
    load_config(preset=preset, environ={})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("env: {scenari: home}", "did you mean 'scenario'"),
        ("enf: {}", "did you mean 'env'"),
        ("rl: {n_envs: many}", "rl.n_envs"),
        ("rl: {ppo: {learning_rate: .inf}}", "rl.ppo.learning_rate"),
        ("data: {gap: 3}", "data.gap"),
        ("data: {fractions: {fit: 0.9}}", "must be 1"),
        ("env: {attackers: both}", "'train', 'held_out' or 'all'"),
        ("attackers: {botnet: {stealth: 2}}", "attackers.botnet.stealth"),
        ("[1, 2]", "sections"),
        ("a: [", "not valid YAML"),
        ("lstm: 3", "lstm"),
    ],
)
def test_wrong_files_are_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "wrong.yml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(file, environ={})
    assert said in str(caught.value)
    assert "wrong.yml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("item", ["rl.n_envs", "rl.n_env=3", "rl=3", "=3", "rl.n_envs=[", "rl.n_envs=x"])
def test_wrong_overrides_are_one_clear_line(item: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(overrides=[item], environ={})
    assert "\n" not in str(caught.value)


def test_missing_file_and_unknown_preset() -> None:
    with pytest.raises(UserError, match=r"nowhere\.yml"):
        load_config("nowhere.yml")
    with pytest.raises(UserError, match="did you mean 'quick'"):
        load_config(preset="quik")


def test_leaves_reach_every_setting() -> None:
    tree = yaml.safe_load(describe())
    for key in leaves():
        node = tree
        for part in key.split("."):
            node = node[part]
