"""The architecture controller: growth keeps the function, removal keeps what matters, and the optimiser follows."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from src.errors import UserError
from src.models.temporal_lstm import AdvancedLSTMTemporal, ArchitectureController, ControllerSettings, create_model
from src.models.temporal_lstm.adaptive import add_head, add_level, add_slots, remove_head, remove_level, remove_slots
from tests.test_temporal_model import C, build, difference, full_loss, labels, windows

SETTINGS = ControllerSettings(patience=2, slots=(4, 24), heads=(1, 3), levels=(1, 4))


def learned(steps: int = 15) -> tuple[AdvancedLSTMTemporal, torch.optim.Optimizer]:
    """A model that has seen a few steps, so that memory, moments and weights are no initial ones."""
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    train(model, optimizer, steps)
    return model, optimizer


def train(model: AdvancedLSTMTemporal, optimizer: torch.optim.Optimizer, steps: int) -> None:
    model.train()
    for step in range(steps):
        loss = full_loss(model, windows(32, seed=step % 3), labels(32, seed=step % 3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def probe() -> tuple[Tensor, Tensor]:
    return windows(64, seed=7), labels(64, seed=7)


def controller(model: AdvancedLSTMTemporal, optimizer: torch.optim.Optimizer | None = None, **changes: object) -> ArchitectureController:
    settings = ControllerSettings(**{**SETTINGS.__dict__, **changes})  # type: ignore[arg-type]
    return ArchitectureController(model, probe(), settings, optimizer=optimizer)


@pytest.mark.parametrize("grow", [lambda model: add_slots(model, 5), add_head, add_level], ids=["slots", "head", "level"])
def test_growth_leaves_the_logits_unchanged_and_its_parameters_learn(grow: Callable[[AdvancedLSTMTemporal], None]) -> None:
    model, _ = learned()
    x, before = windows(), model.eval()(windows())
    size = model.count_parameters()["total"] + model.memory.slots.numel()
    grow(model)
    after = model(x)
    assert model.count_parameters()["total"] + model.memory.slots.numel() > size
    for key in ("logits", "epistemic", "aleatoric"):
        assert difference(before[key], after[key]) < 1e-5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    train(model, optimizer, 2)  # a part whose output is 0 passes gradients on from its second step
    full_loss(model, windows(32), labels(32)).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize("change", [lambda m: add_slots(m, 5), add_head, add_level, lambda m: remove_slots(m, 5), remove_head, remove_level])
def test_the_configuration_always_states_the_shape(change: Callable[[AdvancedLSTMTemporal], None]) -> None:
    model, _ = learned(2)
    change(model)
    fresh = create_model(model.config)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(windows())["logits"], model.eval()(windows())["logits"])
    assert all(part.shape[1] == model.config.num_heads for part in model(windows(), return_attention=True)["attention_weights"])


def test_what_was_added_last_and_never_used_is_what_goes_first() -> None:
    model, _ = learned()
    before = model.eval()(windows())["logits"]
    for add, remove in ((add_head, remove_head), (add_level, remove_level)):
        add(model)
        remove(model)
        assert difference(before, model(windows())["logits"]) < 1e-6


def test_least_used_slots_are_forgotten() -> None:
    model, _ = learned()
    bank = model.memory
    expected = bank.slots[bank.usage.argsort(descending=True)[:7].sort().values]
    remove_slots(model, 5)
    assert torch.equal(model.memory.slots, expected)


def test_halves_of_a_used_slot_part_when_written() -> None:
    model, _ = learned()
    twin = int(model.memory.usage.argmax())
    add_slots(model, 1)
    assert torch.equal(model.memory.slots[twin], model.memory.slots[-1])
    model.train()
    for step in range(5):
        model(windows(32, seed=step))
    assert (model.memory.slots[twin] - model.memory.slots[-1]).norm() > 1e-3


def test_the_last_head_and_level_stay() -> None:
    model = build(num_heads=1, num_levels=1)
    for remove in (remove_head, remove_level):
        with pytest.raises(UserError, match="last"):
            remove(model)


def test_levels_are_weighted_by_what_the_probe_misses() -> None:
    model, _ = learned()
    watch = controller(model)
    x, y = probe()

    def loss() -> float:
        with torch.inference_mode():
            return float(nn.functional.cross_entropy(model.eval()(x)["logits"], y))

    start = loss()
    rows = [watch.update({"macro_f1": 0.1 * step})[0] for step in range(8)]
    kept = [row for row in rows if row["kept"]]
    assert kept
    assert loss() < start
    assert not torch.equal(model.hierarchy.level_scale, torch.ones(3))
    assert rows[-1]["after" if rows[-1]["kept"] else "before"] == model.hierarchy.level_scale.tolist()
    assert all((row["loss_after"] <= row["loss_before"]) == row["kept"] for row in rows)
    assert all(0.25 <= value <= 4 for value in model.hierarchy.level_scale.tolist())


def shapes(watch: ArchitectureController, scores: list[dict[str, float]]) -> list[tuple[str, str]]:
    rows = [row for score in scores for row in watch.update(score)]
    return [(row["action"], row["block"]) for row in rows if row["action"] != "weigh"]


def test_a_plateau_makes_the_model_grow_in_turn_up_to_its_limits() -> None:
    model, _ = learned(2)
    watch = controller(model, patience=1)
    found = shapes(watch, [{"calibrate/macro_f1": 0.5, "train/macro_f1": 0.5}] * 8)
    assert found[:3] == [("add", "slots"), ("add", "heads"), ("add", "levels")]
    assert found[-1] == ("none", "all")
    assert (model.config.num_heads, model.config.num_levels) == (3, 4)
    assert model.config.memory_slots <= 24


def test_progress_changes_no_shape() -> None:
    assert shapes(controller(build()), [{"macro_f1": 0.1 * step} for step in range(6)]) == []


def test_overfitting_makes_the_model_shrink_only_as_far_as_the_probe_allows() -> None:
    model, _ = learned(2)
    scores = [{"macro_f1": 0.5, "train_macro_f1": 0.9}] * 3
    watch = controller(model, loss_rise=10.0)
    assert [action for action, _ in shapes(watch, scores)] == ["remove"]
    before = model.config
    strict = controller(model, loss_rise=-10.0)
    assert [action for action, _ in shapes(strict, scores)] == ["remove"]
    assert not strict.records[-1]["kept"]
    assert model.config == before


def test_the_optimiser_follows_and_keeps_the_moments_of_what_stays() -> None:
    model, optimizer = learned()
    watch = controller(model, optimizer, patience=1)
    staying = model.gate.content.weight
    moment = optimizer.state[staying]["exp_avg"].clone()
    shapes(watch, [{"macro_f1": 0.5}] * 4)
    assert [id(parameter) for parameter in optimizer.param_groups[0]["params"]] == [id(parameter) for parameter in model.parameters()]
    assert set(optimizer.state) <= set(model.parameters())
    assert torch.equal(optimizer.state[staying]["exp_avg"], moment)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, optimizer, 3)
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []


def test_the_same_seed_grows_the_same_model_and_leaves_the_global_generator() -> None:
    def grown() -> AdvancedLSTMTemporal:
        model = build()
        state = torch.get_rng_state()
        shapes(controller(model, patience=1), [{"macro_f1": 0.5}] * 4)
        assert torch.equal(state, torch.get_rng_state())
        return model

    first, second = grown(), grown()
    assert first.config == second.config
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_a_controller_goes_on_from_its_state_and_a_model_adopts_a_former_shape() -> None:
    scores = [{"macro_f1": 0.5}] * 3
    model = build()
    whole = controller(model, patience=1)
    shapes(whole, scores)
    config, weights, state = model.config, copy.deepcopy(model.state_dict()), whole.state()
    expected = shapes(whole, scores)
    other = build(seed=3)
    other.adopt(config, weights)
    assert other.config == config
    resumed = controller(other, patience=1)
    resumed.restore(state)
    assert shapes(resumed, scores) == expected
    assert resumed.records == whole.records
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(UserError, match="do not fit"):
        other.adopt(build(num_classes=C + 1).config, weights)


def test_wrong_use_is_refused() -> None:
    model = build()
    with pytest.raises(UserError, match="macro_f1"):
        controller(model).update({"loss": 1.0})
    groups = torch.optim.AdamW([{"params": [parameter]} for parameter in model.parameters()])
    with pytest.raises(UserError, match="one parameter group"):
        controller(model, groups)
