"""Scenarios: the shipped ones, one's own from YAML, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from envs import IoTEnv
from envs.scenarios import DEVICE_TYPES, SCENARIOS, build_network, load_scenario
from src.errors import UserError
from tests.banks import make_bank

OWN = """
name: greenhouse
types:
  drone: {criticality: 2.5, restore_time: 9, patchable: false, protected: true, weakness: {Web: 0.4}}
  camera: {criticality: 7, restore_time: 1, weakness: {BruteForce: 1.0}}
zones:
  field: {exposed: true, reaches: [field, shed]}
  shed: {}
devices:
  - {type: camera, zone: field, count: 2}
  - {type: drone, zone: shed}
  - {type: sensor, zone: shed}
"""


def test_shipped_sizes_and_reach() -> None:
    sizes = {name: len(build_network(name).names) for name in SCENARIOS}
    assert sizes == {"solo": 1, "home": 6, "clinic": 12, "factory": 40, "campus": 105}
    for name in SCENARIOS:
        network = build_network(name)
        assert network.criticality.sum() == pytest.approx(1.0)
        assert len(set(network.names)) == len(network.names)
        reached = network.reach[0].copy()
        for _ in network.zones:  # what a patient attacker can get to in the end
            reached |= network.reach[1:][reached].any(axis=0)
        isolated = [zone for zone, open_ in zip(network.zones, reached, strict=True) if not open_]
        assert not isolated, f"{name}: nobody can reach {isolated}"
        assert (network.weakness.max(axis=1) > 0).all()
        assert (network.weakness[:, 0] == 0).all()


def test_ones_own_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "greenhouse.yml"
    file.write_text(OWN)
    network = build_network(str(file))
    assert network.names == ("camera-1", "camera-2", "drone-1", "sensor-1")
    assert network.restore_time.tolist() == [1, 1, 9, DEVICE_TYPES["sensor"].restore_time]
    assert network.protected.tolist() == [False, False, True, False]
    assert network.reach.tolist() == [[True, False], [True, True], [False, False]]
    env = IoTEnv(str(file), bank=make_bank(), flatten=True)
    _, info = env.reset(seed=0)
    assert info["scenario"] == "greenhouse"
    assert env.action_space.n == 21
    for _ in range(50):
        env.step(env.action_space.sample())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"zones": {"field": {"exposed": True, "reaches": ["shedd"]}}}, "unknown zone 'shedd'"),
        ({"zones": {"field": {}, "shed": {}}}, "exposed: true"),
        ({"devices": [{"type": "camra", "zone": "field"}]}, "did you mean 'camera'"),
        ({"devices": [{"type": "camera", "zone": "barn"}]}, "unknown zone 'barn'"),
        ({"devices": []}, "devices"),
        ({"devices": [{"type": "camera", "zone": "field", "count": 0}]}, "devices.0.count"),
        ({"colour": 1}, "unknown setting 'colour'"),
        ({"zones": {"field": {"exposd": True}}}, "unknown setting 'zones.field.exposd': did you mean 'exposed'"),
        ({"devices": [{"type": "camera", "zone": "field", "cuont": 2}]}, "unknown setting 'devices.0.cuont': did you mean 'count'"),
        ({"types": {"drone": {"criticality": 1, "restore_time": 1, "weakness": {}, "colour": 1}}}, "unknown setting 'types.drone.colour'"),
        ({"types": {"drone": {"criticality": 1, "restore_time": 1, "weakness": {"Magic": 1}}}}, "types.drone.weakness"),
        ({"types": {"drone": {"criticality": -1, "restore_time": 1, "weakness": {}}}}, "types.drone.criticality"),
        ({"zones": {f"z{i}": {"exposed": True} for i in range(70)}}, "zones"),
        ({"name": "x\n<script>"}, "name"),
        ({"devices": [{"type": "camera", "zone": "field", "count": 1000}] * 11}, "10,000"),
    ],
)
def test_faulty_files_are_one_clear_line(tmp_path: Path, change: dict[str, object], said: str) -> None:
    file = tmp_path / "faulty.yml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(OWN), **change}))
    with pytest.raises(UserError, match=said) as caught:
        load_scenario(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"), [("[1]", "must hold"), ("a: [", "not valid YAML"), ("", "must hold"), ("\x00", "not valid YAML"), ("name: a\nname: b", "stands twice")]
)
def test_what_is_no_scenario(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "no.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        load_scenario(str(file))
    with pytest.raises(UserError, match="cannot read"):
        load_scenario(str(tmp_path / "missing.yml"))


def test_a_file_that_unfolds_without_bound_is_one_short_line(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 7)), "name: *a6"]
    file = tmp_path / "bomb.yml"
    file.write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        load_scenario(str(file))
    assert len(str(caught.value)) < 1000


def test_weaknesses_differ_between_episodes_within_the_stated_range() -> None:
    env = IoTEnv("campus", bank=make_bank(), variation=0.3, expose_truth=True)
    draws = np.stack([env.reset(seed=seed)[1]["truth"]["weakness"] for seed in range(40)])
    assert draws.min() >= 0.7
    assert draws.max() <= 1.3
    assert draws.std() == pytest.approx(0.6 / 12**0.5, rel=0.1)
    assert len(np.unique(draws)) > 0.99 * draws.size
    still = IoTEnv("campus", bank=make_bank(), variation=0.0, expose_truth=True)
    assert (still.reset(seed=0)[1]["truth"]["weakness"] == 1).all()
