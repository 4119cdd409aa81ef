import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.config import LSTMTrainingConfig
from src.data.windows import gather, window_starts
from src.errors import UserError
from src.models.loop import seeded
from src.models.lstm_attack_predictor import LSTMConfig, RealDataLSTMPredictor, RealDataTrainer, build_model
from src.models.scores import class_scores, confusion_matrix
from src.models.temporal_lstm import AdvancedLSTMTemporal, create_model
from src.training.online import DriftMonitor, OnlineLearner, OnlineSettings, Reservoir
from tests.datasets import CLASSES, FEATURES, make_dataset

T = 6
DATA = make_dataset()
OLD, NEW = CLASSES[:2], CLASSES[2]
"""`NEW` comes with the stream only; the fourth class is left out."""


def windows(side: str) -> tuple[torch.Tensor, np.ndarray]:
    rows = DATA.splits[side]
    starts = window_starts(rows.segment, T, 1)
    order = np.random.default_rng(0).permutation(len(starts))
    return torch.from_numpy(gather(rows.features, starts, T)[order]), np.array(CLASSES)[rows.label[starts][order]]


def chosen(part: tuple[torch.Tensor, np.ndarray], names: tuple[str, ...]) -> tuple[torch.Tensor, np.ndarray]:
    mine = np.isin(part[1], names)
    return part[0][torch.from_numpy(mine)], part[1][mine]


FIT, STREAM, TEST = (chosen(windows(side), (*OLD, NEW)) for side in ("fit", "agent", "test"))


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Of a model that knows `OLD`."""
    model = build_model(SHAPE, 0)
    model.scaler.fit(DATA.splits["fit"].features)
    x, names = chosen(FIT, OLD)
    y = torch.tensor([OLD.index(name) for name in names])
    batches = list(zip(x.split(64), y.split(64), strict=True))
    RealDataTrainer(model, LSTMTrainingConfig(epochs=4, learning_rate=0.02), device="cpu").train(batches, batches)
    return model.state_dict()


SHAPE = LSTMConfig(len(FEATURES), hidden_size=16, num_classes=len(OLD), dropout=0.1, sequence_length=T)


def learner(weights: dict[str, torch.Tensor], seed: int = 0, remember: bool = True, **changes: Any) -> OnlineLearner:
    model = RealDataLSTMPredictor(SHAPE)
    model.load_state_dict(weights)
    built = OnlineLearner(model, OLD, OnlineSettings(**{"capacity": 200, "replay": 32, "steps": 2, **changes}), seed)
    if remember:
        built.remember(*chosen(FIT, OLD))
    return built


def taught(built: OnlineLearner, part: tuple[torch.Tensor, np.ndarray] = STREAM, size: int = 16, batches: int = 10_000) -> list[float]:
    x, names = part
    return [built.learn(x[i : i + size], names[i : i + size]) for i in range(0, len(x), size)[:batches]]


def f1(built: OnlineLearner, part: tuple[torch.Tensor, np.ndarray]) -> dict[str, float]:
    x, names = part
    known = [*OLD, NEW]
    truth = np.array([known.index(name) for name in names])
    scores = class_scores(confusion_matrix(truth, built.model.predict_attack_type(x).numpy(), len(known)))
    return dict(zip(known, scores["f1"], strict=True))


def old_f1(built: OnlineLearner) -> float:
    scores = f1(built, chosen(TEST, OLD))
    return float(np.mean([scores[name] for name in OLD]))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_growing_leaves_old_logits_as_they_were(bidirectional: bool) -> None:
    model = build_model(LSTMConfig(5, hidden_size=8, num_classes=3, bidirectional=bidirectional, sequence_length=T), 0).eval()
    with torch.no_grad():
        before = model(TEST[0])
        model.grow_classes(2)
        after = model(TEST[0])
    assert after.shape == (len(before), 5)
    torch.testing.assert_close(after[:, :3], before, atol=1e-5, rtol=0)
    assert bool((after[:, 3:] <= before.max(dim=1, keepdim=True).values).all())
    assert model.config.num_classes == 5
    RealDataLSTMPredictor(model.config).load_state_dict(model.state_dict())  # shape and configuration agree


@pytest.mark.parametrize("size", [1, 31, 32, 33])
def test_batches_of_any_size_are_learned_with_and_without_a_memory(weights: dict[str, torch.Tensor], size: int) -> None:
    for remember in (True, False):
        built = learner(weights, remember=remember)
        before = [parameter.detach().clone() for parameter in built.model.parameters()]
        x, names = chosen(STREAM, OLD)
        losses = taught(built, (x[: 3 * size], names[: 3 * size]), size)
        assert np.isfinite(losses).all()
        assert built.steps == 3 * 2
        assert all(not torch.equal(a, b) for a, b in zip(before, built.model.parameters(), strict=True))
        assert built.memory.size == (200 if remember else min(200, 3 * size))


@pytest.mark.slow
def test_thousands_of_single_windows(weights: dict[str, torch.Tensor]) -> None:
    built = learner(weights, steps=1)
    x, names = (np.tile(part, (20, *[1] * (part.ndim - 1))) for part in (STREAM[0].numpy()[:200], STREAM[1][:200]))
    losses = taught(built, (torch.from_numpy(x), names), 1)
    assert len(losses) == built.steps == 4000
    assert np.isfinite(losses).all()
    assert all(bool(torch.isfinite(value).all()) for value in built.model.state_dict().values())
    assert old_f1(built) > 0.9


def test_it_learns_the_new_class_keeps_the_old_ones_and_naive_tuning_does_not(weights: dict[str, torch.Tensor]) -> None:
    new = chosen(STREAM, (NEW,))  # nothing but the new class: the hardest stream to remember under
    built, naive = learner(weights, steps=4), learner(weights, steps=4, replay=0)
    before = old_f1(built)
    assert f1(built, TEST)[NEW] == 0
    for each in (built, naive):
        taught(each, new)
        assert each.class_names == [*OLD, NEW]
    assert f1(built, TEST)[NEW] > 0.6
    assert old_f1(built) > before - 0.1
    assert old_f1(naive) < old_f1(built) - 0.2


def test_the_penalty_holds_replayed_logits_without_their_labels(weights: dict[str, torch.Tensor]) -> None:
    moved = []
    for penalty in (0.0, 1.0):
        built = learner(weights, label_weight=0.0, penalty=penalty)
        x, width = built.memory.windows.clone(), len(OLD)
        with torch.no_grad():
            before = built.model(x)
        taught(built, chosen(STREAM, (NEW,)))
        with torch.no_grad():
            moved.append(float((built.model(x)[:, :width] - before).square().mean()))
    assert moved[1] < 0.5 * moved[0]


def test_only_the_differences_of_logits_are_held(weights: dict[str, torch.Tensor]) -> None:
    a, b = learner(weights), learner(weights)
    b.memory.logits += 3.0  # the same probabilities
    taught(a, batches=3)
    taught(b, batches=3)
    for one, other in zip(a.model.parameters(), b.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_the_optimiser_outlasts_batches_and_growth(weights: dict[str, torch.Tensor]) -> None:
    built = learner(weights)
    x, names = chosen(STREAM, OLD)
    built.learn(x[:16], names[:16])
    head = built.model.classifier[-1].weight
    squares = built.optimizer.state[head]["sum"].clone()
    assert bool((squares > 0).any())
    built.learn(*(part[:1] for part in chosen(STREAM, (NEW,))))
    grown = built.optimizer.state[built.model.classifier[-1].weight]["sum"]
    assert grown.shape == (3, squares.shape[1])
    assert bool((grown[:2] >= squares).all())  # Adagrad's sums of squares only rise
    assert {int(state["step"]) for state in built.optimizer.state.values()} == {4}


def test_same_seed_same_numbers_and_the_global_generator_is_left_alone(weights: dict[str, torch.Tensor]) -> None:
    built = [learner(weights, seed=seed) for seed in (3, 3, 4)]
    state = torch.random.get_rng_state()
    a, b, other = (taught(each, batches=4) for each in built)
    assert a == b != other
    assert torch.equal(torch.random.get_rng_state(), state)


def test_saved_and_loaded_goes_on_to_the_same_weights(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    half = len(STREAM[0]) // 2
    first, second = ((STREAM[0][part], STREAM[1][part]) for part in (slice(half), slice(half, None)))
    straight = learner(weights)
    taught(straight, first)
    straight.save(tmp_path / "learner")
    loaded = OnlineLearner.load(tmp_path / "learner")
    assert loaded.class_names == [*OLD, NEW]
    assert taught(loaded, second) == taught(straight, second)
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[name]), name
    for name, value in straight.memory.tensors().items():
        assert torch.equal(value, loaded.memory.tensors()[name]), name


def test_saved_before_the_reservoir_is_full(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    straight = learner(weights, remember=False)
    taught(straight, (STREAM[0][:20], STREAM[1][:20]))
    straight.save(tmp_path / "learner")
    loaded = OnlineLearner.load(tmp_path / "learner")
    assert loaded.memory.size == 20
    assert taught(loaded, TEST, batches=20) == taught(straight, TEST, batches=20)


def test_a_saved_learner_is_plain_and_refused_when_altered(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = tmp_path / "learner"
    learner(weights).save(folder)
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    raw = bytearray((folder / "memory.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "memory.safetensors").write_bytes(raw)
    with pytest.raises(UserError, match=r"memory\.safetensors"):
        OnlineLearner.load(folder)
    with pytest.raises(UserError, match="missing"):
        OnlineLearner.load(tmp_path / "nowhere")


def test_a_saved_learner_of_another_shape_is_one_line(weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner(weights).save(tmp_path / "a")
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    for change in ({"model_kind": "Perceptron"}, {"model": {}}, {"settings": {"capacity": 5}}):
        altered = {**meta, "online": {**meta["online"], **change}}
        monkeypatch.setattr("src.training.online.open_artifact", lambda folder, kind, altered=altered: altered)
        with pytest.raises(UserError, match="does not fit this version"):
            OnlineLearner.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("x", "names", "said"),
    [
        (torch.zeros(0, T, 5), [], "with B labels, not"),
        (torch.zeros(2, T, 5), ["XSS"], "with 1"),
        (torch.zeros(2, T, 4), ["XSS", "XSS"], r"\(B, 6, 5\)"),
        (torch.full((1, T, 5), torch.nan), ["XSS"], "NaN"),
        (torch.zeros(1, T, 5), ["XXS"], "unknown label 'XXS': did you mean"),
        (torch.zeros(2, T, 5), ["XSS", 3], "a label is 3; labels are names"),
    ],
)
def test_wrong_batches_are_refused_and_change_nothing(weights: dict[str, torch.Tensor], x: torch.Tensor, names: list[str], said: str) -> None:
    built = learner(weights)
    for call in (built.learn, built.remember):
        with pytest.raises(UserError, match=said):
            call(x, names)
    assert built.class_names == list(OLD)
    assert built.steps == 0
    for name, value in built.model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_labels_are_read_in_any_spelling(weights: dict[str, torch.Tensor]) -> None:
    built = learner(weights)
    built.learn(FIT[0][:3], ["BENIGN", "ddos-udp_fragmentation12.pcap.csv", "Benign:HueBridge"])
    assert built.class_names == [*OLD, "Benign:HueBridge"]


@pytest.mark.parametrize("change", [{"capacity": 0}, {"steps": 0}, {"learning_rate": 0.0}, {"penalty": -1.0}])
def test_settings_out_of_range_are_named(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        OnlineSettings(**change)


def test_class_names_must_fit_the_model(weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UserError, match="1 class names for a model of 2 classes"):
        OnlineLearner(RealDataLSTMPredictor(SHAPE), OLD[:1])


# the reservoir


def filled(balanced: bool, labels: np.ndarray, seed: int = 0, capacity: int = 50) -> Reservoir:
    """Offered windows hold their own number."""
    memory, count = Reservoir(capacity, balanced, (1, 1)), len(labels)
    memory.offer(torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1), torch.from_numpy(labels), torch.zeros(count, 3), np.random.default_rng(seed))
    return memory


def test_every_window_offered_has_the_same_chance_to_stay() -> None:
    kept = np.zeros(500)
    for seed in range(100):
        kept[filled(False, np.zeros(500, dtype=np.int64), seed).windows.flatten().long().numpy()] += 1
    share = kept.reshape(10, 50).sum(axis=1) / (100 * 50)  # of each tenth of the stream
    np.testing.assert_allclose(share, 0.1, atol=4 * np.sqrt(0.1 * 0.9 / (100 * 50)))


def test_a_balanced_reservoir_gives_rare_classes_their_share_and_draws_evenly_inside_a_class() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [960, 30, 10]))
    assert np.bincount(filled(True, labels).labels.numpy()).tolist() == [20, 20, 10]
    assert np.bincount(filled(False, labels).labels.numpy(), minlength=3)[1:].sum() < 10
    held = np.zeros(1000)
    for seed in range(60):
        memory = filled(True, labels, seed)
        held[memory.windows.flatten().long().numpy()] += 1
    often = held[labels == 0]
    early, late = often[: len(often) // 2].mean(), often[len(often) // 2 :].mean()
    assert abs(early - late) < 0.2 * often.mean()


# the drift monitor


def probabilities(doubt: np.ndarray) -> np.ndarray:
    return np.column_stack([1 - doubt, doubt])


def test_an_alarm_follows_a_rise_in_doubt_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    calm, risen = rng.beta(1, 9, 4000), rng.beta(2, 5, 600)
    reference = probabilities(rng.beta(1, 9, 500))
    assert len(DriftMonitor(reference).watch(probabilities(calm))) == 0
    assert len(DriftMonitor(reference).watch(probabilities(calm / 4))) == 0
    monitor = DriftMonitor(reference)
    assert len(monitor.watch(probabilities(calm[:500]))) == 0
    (alarm, *_) = monitor.watch(probabilities(risen))
    assert 0 < alarm < 200


def test_a_stream_that_is_other_from_the_start_raises_an_alarm_whatever_its_batches() -> None:
    rng = np.random.default_rng(1)
    reference, stream = probabilities(rng.beta(1, 9, 500)), probabilities(rng.beta(2, 5, 600))
    whole = DriftMonitor(reference).watch(stream)
    monitor = DriftMonitor(reference)
    parts = [first + monitor.watch(stream[first : first + 7]) for first in range(0, 600, 7)]
    assert len(whole) > 0
    np.testing.assert_array_equal(np.concatenate(parts), whole)


# the temporal network


SMALL_TEMPORAL = {"hidden_size": 8, "num_levels": 2, "num_heads": 2, "head_size": 4, "attention_layers": 1, "num_periods": 2, "memory_slots": 8}


def temporal() -> AdvancedLSTMTemporal:
    with seeded(0, 0):
        model = create_model("default", **SMALL_TEMPORAL, input_size=len(FEATURES), num_classes=len(OLD), sequence_length=T)
    model.scaler.fit(DATA.splits["fit"].features)
    return model.eval()


def test_growing_the_temporal_network_leaves_old_draws_as_they_were() -> None:
    model = temporal()
    before = model.sample_logits(TEST[0])
    with seeded(1, 0):
        model.grow_classes(2)
    after = model.sample_logits(TEST[0])
    torch.testing.assert_close(after[..., : len(OLD)], before, atol=1e-5, rtol=0)
    assert after.shape[-1] == model.config.num_classes == len(OLD) + 2
    noise = model.output.noise
    torch.testing.assert_close(noise.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(noise.square().mean(dim=0), torch.ones(4), atol=1e-4, rtol=0)
    assert not torch.equal(noise[:, 2], noise[:, 3])


@pytest.mark.parametrize("size", [1, 33])
def test_the_temporal_network_learns_online_and_resumes(size: int, tmp_path: Path) -> None:
    built = OnlineLearner(temporal(), OLD, OnlineSettings(capacity=50, replay=8, steps=1))
    taught(built, STREAM, size, batches=4)
    built.learn(*(part[:size] for part in chosen(STREAM, (NEW,))))
    built.save(tmp_path / "learner")
    loaded = OnlineLearner.load(tmp_path / "learner")
    assert taught(loaded, TEST, size, batches=3) == taught(built, TEST, size, batches=3)
    for name, value in built.model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[name]), name
    assert loaded.model.predict_attack_probability(TEST[0][:5]).shape == (5, len(OLD) + 1)
