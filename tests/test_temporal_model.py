"""The temporal LSTM: each part does something, windows of a batch do not touch each other, and evaluation is deterministic."""

import itertools
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from src.errors import UserError
from src.models.loop import seeded
from src.models.temperature import fit_temperature
from src.models.temporal_lstm import PRESETS, AdvancedLSTMTemporal, ModelConfig, create_model, domain_schedule
from src.models.temporal_lstm.blocks import MemoryBank, TemporalAttention

F, C, T = 7, 4, 10
SMALL = ModelConfig(F, C, 3, T, hidden_size=16, num_heads=2, head_size=8, num_periods=3, memory_slots=12, dropout=0.0)


def build(seed: int = 0, **changes: Any) -> AdvancedLSTMTemporal:
    with seeded(seed, 0):
        return create_model(SMALL, **changes)


def windows(count: int = 6, length: int = T, seed: int = 0, features: int = F) -> Tensor:
    return 10 * torch.randn(count, length, features, generator=torch.Generator().manual_seed(seed))


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def labels(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randint(0, C, (count,), generator=torch.Generator().manual_seed(seed))


def full_loss(model: AdvancedLSTMTemporal, x: Tensor, y: Tensor) -> Tensor:
    found = model(x, domain_lambda=0.5)
    return (
        nn.functional.cross_entropy(found["logits"].float(), y) + found["kl"] / 1000 + nn.functional.cross_entropy(found["discriminator_output"].float(), y % 3)
    )


# the contract


@pytest.mark.parametrize("length", [2, 3, 5, 10, 100])
def test_outputs_have_the_documented_shapes_for_windows_of_any_length(length: int) -> None:
    model = build().eval()
    found = model(windows(4, length), return_attention=True, domain_lambda=0.1)
    assert found["logits"].shape == (4, C)
    assert found["epistemic"].shape == found["aleatoric"].shape == (4,)
    assert found["kl"].shape == ()
    assert found["discriminator_output"].shape == (4, 3)
    assert [tuple(part.shape) for part in found["attention_weights"]] == [(4, 2, length, length)] * SMALL.attention_layers
    assert model.embed(windows(4, length)).shape == (4, 16)
    assert set(model(windows(4, length))) == {"logits", "epistemic", "aleatoric", "kl"}


def test_default_has_the_documented_number_of_parameters_and_every_one_gets_a_gradient() -> None:
    model = create_model("default", num_domains=2)
    total = create_model("default").count_parameters()["total"]
    assert abs(total - 7_118_253) < 0.1 * 7_118_253
    found = model(windows(4, 100, features=115), domain_lambda=0.5)
    (nn.functional.cross_entropy(found["logits"], labels(4) % 2) + found["kl"] + found["discriminator_output"].square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 1e-12, name


@pytest.mark.parametrize("readout", ["summary", "attention"])
def test_every_parameter_gets_a_gradient_that_is_no_rounding(readout: str) -> None:
    model = build(readout=readout).double()
    full_loss(model, windows(32).double(), labels(32)).backward()
    dead = [name for name, parameter in model.named_parameters() if parameter.grad is None or float(parameter.grad.abs().max()) < 1e-10]
    assert dead == []


# windows of a batch


@pytest.mark.parametrize("training", [False, True])
def test_changing_one_window_leaves_the_others_logits_unchanged(training: bool) -> None:
    first, second = windows(), windows()
    second[2] = 50 * torch.randn(T, F, generator=torch.Generator().manual_seed(9))

    def read(x: Tensor) -> dict[str, Any]:
        model = build().train(training)  # anew: a training pass writes the memory
        with seeded(1, 1):
            return model(x, return_attention=True, domain_lambda=0.1)

    before, after = read(first), read(second)
    others = torch.tensor([0, 1, 3, 4, 5])
    for key in ("logits", "epistemic", "aleatoric", "discriminator_output"):
        torch.testing.assert_close(before[key][others], after[key][others], atol=1e-5, rtol=0)
        assert not torch.allclose(before[key][2], after[key][2], atol=1e-5), key
    for a, b in zip(before["attention_weights"], after["attention_weights"], strict=True):
        torch.testing.assert_close(a[others], b[others], atol=1e-5, rtol=0)


def test_a_window_reads_the_same_alone_and_in_a_batch() -> None:
    model = build().eval()
    x = windows()
    together = model(x)
    for index in range(len(x)):
        alone = model(x[index : index + 1])
        for key in ("logits", "epistemic", "aleatoric"):
            torch.testing.assert_close(alone[key][0], together[key][index], atol=1e-5, rtol=0)


def test_evaluation_is_deterministic_and_follows_from_the_seed() -> None:
    x, model = windows(), build().eval()
    first = model(x)["logits"]
    torch.randn(5)  # moves the global generator
    assert torch.equal(first, model(x)["logits"])
    assert torch.equal(first, build().eval()(x)["logits"])
    assert not torch.equal(first, build(seed=1).eval()(x)["logits"])
    model.train()
    assert torch.equal(model.predict_attack_probability(x), model.predict_attack_probability(x))
    assert model.training


# attention


def test_attention_rows_sum_to_one_and_the_map_explains_what_is_computed() -> None:
    model, x = build().eval(), windows()
    found = model(x, return_attention=True)
    for part in found["attention_weights"]:
        torch.testing.assert_close(part.sum(-1), torch.ones(6, 2, T))
    torch.testing.assert_close(found["logits"], model(x)["logits"], atol=1e-5, rtol=0)  # the fused path computes the same


def test_temporal_bias_varies_with_distance_and_period() -> None:
    with seeded(0, 0):
        layer = TemporalAttention(8, 3, 4, 5, 20, 0.0)
    bias = layer.temporal_bias(20)
    assert bias.shape == (3, 20, 20)
    torch.testing.assert_close(bias[:, 1:, 1:], bias[:, :-1, :-1])  # distance alone counts
    assert (bias[:, 19].std(dim=-1) > 0.05).all()
    near, far = layer.temporal_bias(20)[0, 19, 18], layer.temporal_bias(20)[0, 19, 0]
    assert near > far
    with torch.no_grad():
        layer.log_slope.fill_(-50.0)
        layer.log_period.fill_(float(torch.tensor(4.0).log()))
        layer.shift.zero_()
    wave = layer.temporal_bias(20)
    torch.testing.assert_close(wave[:, :, :16], wave[:, :, 4:], atol=1e-4, rtol=0)  # a period of four rows
    assert not torch.allclose(wave[:, :, :17], wave[:, :, 3:], atol=1e-2)


@pytest.mark.parametrize("part", ["bias", "temperature"])
def test_bias_and_temperature_change_the_logits(part: str) -> None:
    model, x = build().eval(), windows()
    before = model(x)["logits"]
    with torch.no_grad():
        for layer in model.attention:
            if part == "bias":
                layer.log_slope.fill_(-50.0)
                layer.amplitude.zero_()
            else:
                layer.log_temperature.fill_(1.5)
    assert difference(before, model(x)["logits"]) > 1e-4


# hierarchy and gates


def test_levels_run_at_halving_rates() -> None:
    model, seen = build().eval(), []
    for level in model.hierarchy.levels:
        level.register_forward_hook(lambda _, inputs, outputs: seen.append(len(inputs[0])))
    model(windows(2, 100))
    model(windows(2, 10))
    assert seen == [100, 50, 25, 10, 5, 3]


@pytest.mark.parametrize("gate", ["up", "down"])
@pytest.mark.parametrize("index", [0, 1])
def test_each_flow_gate_and_level_changes_the_logits(gate: str, index: int) -> None:
    model, x = build().eval(), windows()
    before = model(x)["logits"]
    with torch.no_grad():
        getattr(model.hierarchy, gate)[index].bias.fill_(-30.0)  # shut
    shut = model(x)["logits"]
    assert difference(before, shut) > 1e-5


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_level_reaches_the_logits(level: int) -> None:
    model, x = build().eval(), windows()
    before = model(x)["logits"]
    model.hierarchy.level_scale[level] = 0.0
    assert difference(before, model(x)["logits"]) > 1e-4


def test_periods_of_the_input_gate_change_the_logits() -> None:
    model, x = build().eval(), windows()
    before = model(x)["logits"]
    with torch.no_grad():
        model.gate.log_period.add_(0.5)
    assert difference(before, model(x)["logits"]) > 1e-5


def test_the_order_of_rows_counts() -> None:
    model, x = build().eval(), windows()
    assert not torch.allclose(model(x)["logits"], model(x.flip(1))["logits"], atol=1e-4)


# memory


def test_memory_is_written_in_training_only_and_survives_saving(tmp_path: Any) -> None:
    model, x = build(), windows(32)
    start = model.memory.slots.clone()
    model.eval()
    model(x)
    model.train()
    model.embed(x)
    model.predict_attack_probability(x)
    assert torch.equal(start, model.memory.slots)
    model(x)
    written = model.memory.slots.clone()
    assert not torch.equal(start, written)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = build(seed=5)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other.memory.slots, written)
    torch.testing.assert_close(other.eval()(x)["logits"], model.eval()(x)["logits"], rtol=0, atol=0)


def test_memory_is_read_and_written_by_content() -> None:
    bank = MemoryBank(8, 6, 0.5)
    query = nn.functional.normalize(torch.randn(1, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    bank.slots.copy_(nn.functional.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), dim=-1))
    bank.slots[3] = nn.functional.normalize(query[0] + 0.1 * torch.ones(8), dim=-1)
    assert int(bank.address(query, bank.slots).argmax()) == 3
    before = bank.slots.clone()
    bank.write(query)
    moved = (bank.slots - before).norm(dim=-1)
    closeness = (bank.slots - query).norm(dim=-1) - (before - query).norm(dim=-1)
    assert int(bank.address(query, before).argmax()) == 3
    assert closeness[3] < 0
    assert moved.argmin() == bank.address(query, before).argmin()


def test_memory_content_changes_the_logits() -> None:
    model, x = build().eval(), windows()
    before = model(x)["logits"]
    model.memory.slots.copy_(model.memory.slots.roll(1, dims=1))
    assert difference(before, model(x)["logits"]) > 1e-4


@pytest.mark.slow
def test_memory_norm_stays_within_twice_its_start_over_a_thousand_training_steps() -> None:
    model = build(hidden_size=8, num_levels=1, attention_layers=1, memory_slots=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    start, norms = float(model.memory.slots.norm()), []
    x, y = windows(512), labels(512)
    for step in range(1000):
        chosen = torch.arange(16) + 16 * (step % 32)
        loss = full_loss(model, x[chosen], y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        norms.append(float(model.memory.slots.norm()))
    assert start / 2 <= min(norms) <= max(norms) <= 2 * start
    assert torch.isfinite(model.memory.slots).all()


# uncertainty


def test_uncertainty_is_per_window_and_comes_from_the_weights() -> None:
    model, x = build().eval(), windows()
    found = model(x)
    assert found["epistemic"].unique().numel() == 6
    total = found["epistemic"] + found["aleatoric"]
    probability = found["logits"].exp()
    torch.testing.assert_close(total, -(probability * found["logits"]).sum(-1), atol=1e-5, rtol=0)
    with torch.no_grad():
        model.output.spread.fill_(-30.0)
        model.output.bias_spread.fill_(-30.0)
    certain = model(x)
    assert difference(certain["epistemic"], torch.zeros(6)) < 1e-6  # no spread of weights, nothing that more rows could tell
    assert (certain["aleatoric"] > 1e-3).all()


def test_temperature_is_applied_to_each_draw() -> None:
    model, x = build().eval(), windows()
    torch.testing.assert_close(model.predict_attack_probability(x), model(x)["logits"].exp())
    model.temperature.fill_(3.0)
    expected = torch.softmax(model.sample_logits(x) / 3.0, -1).mean(0)
    torch.testing.assert_close(model.predict_attack_probability(x), expected)
    found = model.uncertainties(x)
    torch.testing.assert_close(found["probabilities"], expected)
    assert (found["aleatoric"] > model(x)["aleatoric"]).all()


def test_the_fitted_temperature_makes_the_labels_likeliest() -> None:
    model, x = build().eval(), windows(400)
    y = torch.multinomial(torch.softmax(model.sample_logits(x) / 0.5, -1).mean(0), 1, generator=torch.Generator().manual_seed(0))[:, 0]

    def loss(temperature: float) -> float:
        model.temperature.fill_(temperature)
        return float(nn.functional.nll_loss(model.predict_attack_probability(x).log(), y))

    found = fit_temperature(model.sample_logits(x), y)
    assert loss(found) < min(loss(found * 0.95), loss(found * 1.05))
    assert 0.3 < found < 0.8  # the labels were drawn at 0.5


def test_kl_is_the_divergence_of_gaussians_and_pulls_to_the_prior() -> None:
    model = build()
    layer = model.output
    deviation = nn.functional.softplus(layer.spread)
    posterior = torch.distributions.Normal(layer.mean, deviation)
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, layer.prior)).sum()
    bias = torch.distributions.Normal(layer.bias_mean, nn.functional.softplus(layer.bias_spread))
    expected = expected + torch.distributions.kl_divergence(bias, torch.distributions.Normal(0.0, layer.prior)).sum()
    torch.testing.assert_close(layer.divergence(), expected)


# learning


def test_it_learns_classes_that_differ_by_the_order_of_rows_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(256, T, F, generator=draw).sort(dim=1).values
    y = torch.arange(256) % 2
    x[y == 1] = x[y == 1].flip(1)
    model = build(num_classes=2, num_domains=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with seeded(0, 1):
        for step in range(40):
            chosen = torch.arange(32) + 32 * (step % 6)
            found = model(x[chosen])
            loss = nn.functional.cross_entropy(found["logits"], y[chosen]) + found["kl"] / 1e5
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert (model.predict_attack_probability(x[192:]).argmax(-1) == y[192:]).float().mean() > 0.95


# domains


def test_the_discriminator_learns_domains_while_the_embedding_unlearns_them() -> None:
    def gradients(scale: float) -> tuple[Tensor, Tensor]:
        model = build().train()
        nn.functional.cross_entropy(model(windows(), domain_lambda=scale)["discriminator_output"], labels() % 3).backward()
        assert model.discriminator is not None
        head, body = model.discriminator[0].weight.grad, model.gate.content.weight.grad  # type: ignore[union-attr]
        assert isinstance(head, Tensor)
        assert isinstance(body, Tensor)
        return head, body

    (head, body), (stronger_head, stronger_body) = gradients(0.5), gradients(1.0)
    torch.testing.assert_close(head, stronger_head)
    torch.testing.assert_close(2 * body, stronger_body)
    plain = build().train()
    assert plain.discriminator is not None
    nn.functional.cross_entropy(plain.discriminator(plain.embed(windows())), labels() % 3).backward()  # nothing is reversed here
    torch.testing.assert_close(plain.gate.content.weight.grad, -stronger_body)


def test_domain_schedule_rises_from_nothing_to_its_peak() -> None:
    assert domain_schedule(0.0) == 0.0
    assert domain_schedule(1.0, peak=0.1) == pytest.approx(0.1, rel=1e-3)
    values = [domain_schedule(step / 10) for step in range(11)]
    assert values == sorted(values)


def test_a_model_of_one_domain_refuses_to_tell_domains() -> None:
    with pytest.raises(UserError, match="num_domains"):
        build(num_domains=1)(windows(), domain_lambda=0.1)


# precision and memory


def test_autocast_runs_and_is_finite() -> None:
    model = build().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(windows(), return_attention=True, domain_lambda=0.1)
        loss = full_loss(model, windows(), labels())
    loss.backward()
    assert all(torch.isfinite(found[key]).all() for key in ("logits", "epistemic", "aleatoric", "kl", "discriminator_output"))
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)
    plain = build().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = plain(windows())["logits"]
    torch.testing.assert_close(rough.float(), plain(windows())["logits"], atol=0.15, rtol=0)


def test_gradient_checkpointing_saves_activations_and_gives_equal_gradients() -> None:
    def run(threshold: int) -> tuple[dict[str, Tensor], int, Tensor]:
        model, saved = build(checkpoint_length=threshold, dropout=0.2).train(), 0

        def pack(value: Tensor) -> Tensor:
            nonlocal saved
            saved += value.numel()
            return value

        with seeded(3, 3), torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            loss = full_loss(model, windows(8, 40), labels(8))
        loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}, saved, model.memory.slots.clone()

    (plain, much, slots), (frugal, little, again) = run(0), run(40)
    assert little < much / 2
    assert plain.keys() == frugal.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], frugal[name], atol=1e-6, rtol=1e-4)
    assert torch.equal(slots, again)  # the second forward pass does not write the memory again
    assert run(41)[1] == much  # windows below the threshold are trained as ever


# presets


def test_presets_build_models_of_different_shapes() -> None:
    models = {name: create_model(name, input_size=F, num_classes=C, sequence_length=T) for name in PRESETS}
    shapes = {name: [(key, tuple(value.shape)) for key, value in model.state_dict().items()] for name, model in models.items()}
    for (a, first), (b, second) in itertools.combinations(shapes.items(), 2):
        assert first != second, (a, b)


@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_of_every_preset_gets_a_gradient(name: str) -> None:
    with seeded(0, 0):
        model = create_model(name, input_size=F, num_classes=C, num_domains=3, sequence_length=T)
        full_loss(model, windows(), labels()).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_parameters_are_counted_by_block() -> None:
    model = build()
    counts = model.count_parameters()
    assert counts.pop("total") == sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert {"gate", "hierarchy", "attention", "memory", "output", "discriminator"} <= set(counts)
