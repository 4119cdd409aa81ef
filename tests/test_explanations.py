"""What explanations must be true of: on networks whose reasons are known, and on both real ones with random weights."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src.data.windows import gather, window_starts
from src.errors import UserError
from src.models.explanations import AttentionTracker, BenignReference, Explanation, _tensor, attribute, curves, explain, place_in_words, predict
from src.models.loop import seeded
from src.models.lstm_attack_predictor import LSTMConfig, build_model
from src.models.temporal_lstm import create_model
from src.training.explanation_figures import attention_figure, attribution_figure, curve_figure, tracking_figure
from tests.datasets import CLASSES, FEATURES, make_dataset

T, F, C = 6, len(FEATURES), len(CLASSES)
DATA = make_dataset()


def windows(split: str, label: int | None = None, stride: int = 5) -> np.ndarray:
    rows = DATA.splits[split]
    starts = window_starts(rows.segment, T, stride)
    return gather(rows.features, starts if label is None else starts[rows.label[starts] == label], T)


REFERENCE = BenignReference.fit(windows("fit", 0))


def network(kind: str) -> Any:
    """Random weights, made large so that probabilities differ from window to window."""
    if kind == "base":
        model = build_model(LSTMConfig(F, 16, 2, C, 0.3, False, T), 0)
        with torch.no_grad():
            model.classifier[3].weight.mul_(20)
    else:
        with seeded(0, 0):
            shape = {"hidden_size": 16, "num_levels": 2, "num_heads": 2, "head_size": 8, "memory_slots": 8}
            model = create_model("fast_training", input_size=F, num_classes=C, sequence_length=T, **shape)
        with torch.no_grad():
            model.output.mean.mul_(5)
    model.scaler.fit(DATA.splits["fit"].features)
    return model


class Planted(nn.Module):
    """Class 1 is as likely as step 3 of feature 2 is large, in signed logarithms; nothing else is read."""

    def forward(self, x: Tensor) -> Tensor:
        value = torch.sign(x[:, 3, 2]) * torch.log1p(x[:, 3, 2].abs())
        return torch.stack([torch.zeros_like(value), 3 * value], dim=1)  # (B, 2)

    def predict_attack_probability(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.softmax(self(x), dim=1)


class Attending(Planted):
    """The same, with attention maps that the test sets."""

    maps: tuple[Tensor, ...] = ()

    def forward(self, x: Tensor, return_attention: bool = False) -> Any:
        logits = super().forward(x)
        return {"logits": logits, "attention_weights": tuple(one.expand(len(x), *one.shape) for one in self.maps)} if return_attention else {"logits": logits}

    def predict_attack_probability(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.softmax(self(x)["logits"], dim=1)


def planted_windows(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.lognormal(1.0, 1.0, (count, T, F)).astype(np.float32)


@pytest.mark.parametrize("kind", ["base", "temporal"])
def test_attributions_add_up_to_the_rise_of_the_logit(kind: str) -> None:
    model, chosen = network(kind), windows("test")[::9]
    target = np.arange(len(chosen)) % C
    attributions, rise = attribute(model, chosen, REFERENCE.baseline, target, steps=500)
    assert np.abs(rise).max() > 0.1
    np.testing.assert_allclose(attributions.sum(axis=(1, 2)), rise, atol=0.01 * np.abs(rise).max())
    with torch.inference_mode():
        ends = [model.eval()(torch.from_numpy(array)) for array in (chosen, REFERENCE.baseline[None])]
    logits = [found if isinstance(found, Tensor) else found["logits"] for found in ends]
    measured = (logits[0] - logits[1]).numpy()[np.arange(len(chosen)), target]
    np.testing.assert_allclose(rise, measured, atol=1e-4)


@pytest.mark.parametrize("kind", ["base", "temporal"])
def test_what_cannot_matter_gets_nothing(kind: str) -> None:
    model = network(kind)
    chosen = np.concatenate([windows("test")[:5], REFERENCE.baseline[None]])
    attributions, _ = attribute(model, chosen, REFERENCE.baseline, np.ones(6, dtype=np.int64), steps=8)
    assert np.abs(attributions[:, :, FEATURES.index("Telnet")]).max() == 0  # constant in `fit`, so the scaler sets it to 0
    assert np.abs(attributions[:5]).max() > 0
    assert np.abs(attributions[5]).max() == 0  # the baseline itself


@pytest.mark.parametrize("kind", ["base", "temporal"])
def test_explaining_changes_nothing_and_repeats(kind: str) -> None:
    model = network(kind).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (explain(model, windows("test")[:3], REFERENCE, FEATURES, CLASSES, steps=4) for _ in range(2))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.attributions, other.attributions)
    alone = explain(model, windows("test")[1:2], REFERENCE, FEATURES, CLASSES, steps=4)[0]
    np.testing.assert_allclose(alone.attributions, first[1].attributions, atol=1e-4)
    assert len(first[0].attention) == (0 if kind == "base" else 1)
    for weights in first[0].attention:
        np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-5)


def test_the_planted_reason_is_found_and_told_in_words() -> None:
    rng = np.random.default_rng(0)
    reference = BenignReference.fit(planted_windows(200, rng))
    window = planted_windows(1, rng)
    window[0, 3, 2] = 5000.0
    found = explain(Planted(), window, reference, FEATURES, CLASSES[:2])[0]
    assert found.predicted == CLASSES[1]
    assert found.top(3) == [2]  # no other feature speaks for it
    assert np.abs(np.delete(found.attributions.ravel(), 3 * F + 2)).max() == 0
    assert found.reasons() == [f"{FEATURES[2]} higher than all benign"]
    row = found.rows()[0]
    assert (row["feature"], row["strongest step"]) == (FEATURES[2], 3)
    assert row["attribution"] == pytest.approx(found.rise, rel=1e-4)
    assert found.incomplete < 1e-3


def test_deletion_and_insertion_tell_a_true_order_from_a_false_one() -> None:
    rng = np.random.default_rng(1)
    model, baseline = Planted(), np.zeros((T, F), dtype=np.float32)
    chosen = planted_windows(40, rng)
    attributions, _ = attribute(model, chosen, baseline, np.ones(40, dtype=np.int64), steps=4)
    true = curves(model, chosen, attributions, baseline, np.random.default_rng(2))
    assert (true.areas()["deletion"] - true.areas()["deletion_random"]).mean() < -0.1
    assert (true.areas()["insertion"] - true.areas()["insertion_random"]).mean() > 0.1
    false = curves(model, chosen, -attributions, baseline, np.random.default_rng(2))
    assert (false.areas()["deletion"] - false.areas()["deletion_random"]).mean() > 0.05
    assert (false.areas()["insertion"] - false.areas()["insertion_random"]).mean() < -0.05
    whole = predict(model, chosen)[:, 1]
    for values, ends in ((true.deletion, (whole, 0.5)), (true.insertion, (0.5, whole)), (true.deletion_random, (whole, 0.5))):
        np.testing.assert_allclose(values[:, 0], ends[0], atol=1e-6)
        np.testing.assert_allclose(values[:, -1], ends[1], atol=1e-6)


def test_attention_is_decoded_to_layer_head_query_and_key() -> None:
    model, even = Attending(), torch.full((2, T, T), 1 / T)
    causal = torch.tril(torch.ones(T, T)) / torch.arange(1, T + 1)[:, None]  # query 0 has one key, of weight 1: no discovery
    second = torch.stack([causal, causal])
    second[1, 4] = torch.tensor([0.0, 0.8, 0.05, 0.05, 0.1, 0.0])
    model.maps = (even, second)
    reference = BenignReference.fit(planted_windows(20, np.random.default_rng(0)))
    found = explain(model, planted_windows(2, np.random.default_rng(1)), reference, FEATURES, CLASSES[:2], steps=2)[1]
    top = found.top_attention(3)[0]
    assert (top["layer"], top["head"], top["query"], top["key"]) == (1, 1, 4, 1)
    assert top["weight"] == pytest.approx(0.8)
    assert top["above even"] == pytest.approx(0.8 - 1 / 4)
    assert len(found.top_attention(3)) == 3


def test_tracking_tells_even_attention_from_attention_to_itself() -> None:
    model = Attending()
    tracker = AttentionTracker(model, planted_windows(3, np.random.default_rng(0)))
    model.maps = (torch.full((1, T, T), 1 / T),)
    tracker.record(1)
    model.maps = (torch.eye(T)[None],)
    tracker.record(2)
    first, second = tracker.rows
    apart = np.abs(np.arange(T)[:, None] - np.arange(T)).mean()
    assert first == {"epoch": 1, "layer": 0, "head": 0, "entropy": pytest.approx(1), "distance": pytest.approx(apart)}
    assert second == {"epoch": 2, "layer": 0, "head": 0, "entropy": pytest.approx(0), "distance": pytest.approx(0)}


def test_places_among_benign_windows() -> None:
    reference = BenignReference.fit(np.arange(100, dtype=np.float32)[:, None, None] * np.ones((1, T, 2), dtype=np.float32))
    place = reference.percentile(np.array([[97.5, -1.0]] * T, dtype=np.float32))
    np.testing.assert_allclose(place, [98, 0])
    assert place_in_words(98.0) == "high (98th percentile of benign)"
    assert place_in_words(1.2) == "low (1st percentile of benign)"
    assert place_in_words(52.0) == "usual (52nd percentile of benign)"
    assert place_in_words(99.9) == "high (99th percentile of benign)"
    assert [place_in_words(end) for end in (0.0, 100.0)] == ["lower than all benign", "higher than all benign"]
    assert [place_in_words(value).split()[1] for value in (11, 12, 13, 23)] == ["(11th", "(12th", "(13th", "(23rd"]


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(UserError, match=r"windows have shape \(2, 6, 4\); the benign reference is for \(N, 6, 5\)"):
        explain(network("base"), np.zeros((2, T, F - 1), dtype=np.float32), REFERENCE, FEATURES, CLASSES)
    with pytest.raises(UserError, match="no benign window"):
        BenignReference.fit(np.zeros((0, T, F), dtype=np.float32))


def words(figure: Any) -> str:
    """All text of a figure."""
    figure.canvas.draw()
    texts = [text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text"))]
    return "\n".join([figure.get_suptitle(), *texts])


@pytest.mark.parametrize("kind", ["base", "temporal"])
def test_figures_name_the_class_its_confidence_and_the_features(kind: str) -> None:
    model = network(kind)
    found: Explanation = explain(model, windows("test", 1)[:1], REFERENCE, FEATURES, CLASSES, steps=4)[0]
    for figure in (attention_figure(found), attribution_figure(found)):
        text = words(figure)
        assert f"Predicted {found.predicted}, {100 * found.confidence:.0f} % sure" in text
        for feature in found.top(3):
            assert FEATURES[feature] in text
        assert found.reasons(1)[0] in " ".join(text.split())
    assert ("layer 1, head 2" in words(attention_figure(found))) == (kind == "temporal")
    chosen = windows("test")[:4]
    drawn = curves(model, chosen, np.zeros(chosen.shape), REFERENCE.baseline, np.random.default_rng(0), points=3, orders=1)
    assert "Base: do the attributions find what matters? (4 windows)" in words(curve_figure(drawn, "Base"))
    tracker = AttentionTracker(model, chosen)
    tracker.record(1)
    if kind == "temporal":
        assert "layer 1, head 2" in words(tracking_figure(tracker.rows))
    else:
        assert tracker.rows == []


def test_windows_go_to_the_device_of_the_weights() -> None:
    assert _tensor(windows("test")[:2], network("base").to("meta")).device.type == "meta"
    assert _tensor(windows("test")[:2], Planted()).device.type == "cpu"  # it has no weights


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("kind", ["base", "temporal"])
def test_a_network_on_a_gpu_is_explained_as_on_the_cpu(kind: str) -> None:
    model, chosen = network(kind), windows("test")[::40]
    here, there = (explain(model.to(device), chosen, REFERENCE, FEATURES, CLASSES, steps=8) for device in ("cpu", "cuda"))
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(other.probabilities, one.probabilities, atol=1e-3)
        np.testing.assert_allclose(other.attributions, one.attributions, atol=0.02 * np.abs(one.attributions).max())
        assert [layer.shape for layer in other.attention] == [layer.shape for layer in one.attention]
