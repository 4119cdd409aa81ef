import dataclasses
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from torch.nn import functional

from src.artifacts import new_artifact
from src.config import LSTMTrainingConfig, TaughtTrainingConfig
from src.data.windows import window_starts
from src.errors import UserError
from src.models.loop import WindowBatches, pick_device
from src.models.lstm_attack_predictor import (
    KIND,
    LSTMConfig,
    RealDataLSTMPredictor,
    RealDataTrainer,
    Scaler,
    TaughtTrainer,
    build_model,
    load_predictor,
)
from src.models.scores import Evaluation, class_scores, confusion_matrix, summary
from tests.datasets import CLASSES, FEATURES, make_dataset

T = 6
SHAPE = LSTMConfig(len(FEATURES), hidden_size=16, num_layers=2, num_classes=len(CLASSES), dropout=0.1, sequence_length=T)
META = {"class_names": CLASSES, "feature_names": FEATURES}
DATA = make_dataset()


def batches(split: str, shuffle: bool = False, size: int = 64) -> WindowBatches:
    rows = DATA.splits[split]
    starts = window_starts(rows.segment, T, 1)
    labels = torch.from_numpy(rows.label[starts].astype(np.int64))
    return WindowBatches(torch.from_numpy(rows.features), torch.from_numpy(starts), labels, T, size, torch.Generator() if shuffle else None)


def model(seed: int = 0, shape: LSTMConfig = SHAPE) -> RealDataLSTMPredictor:
    built = build_model(shape, seed)
    built.scaler.fit(DATA.splits["fit"].features)
    return built


def settings(**changes: object) -> LSTMTrainingConfig:
    return LSTMTrainingConfig(**{"epochs": 4, "learning_rate": 5e-3, **changes})  # type: ignore[arg-type]


def trained(path: Path | None = None, seed: int = 0, stop_after: int | None = None, resume: bool = False, **changes: object):
    def on_epoch(row: dict[str, float]) -> None:
        if row["epoch"] == stop_after:
            raise KeyboardInterrupt

    trainer = RealDataTrainer(model(seed), settings(**changes), seed=seed, device="cpu", class_counts=np.array([10, 20, 30, 40]))
    history = trainer.train(batches("fit", shuffle=True, size=32), batches("calibrate"), on_epoch=on_epoch, checkpoint=path, resume=resume)
    return trainer, history


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# the network


def test_the_documented_shape_has_the_documented_number_of_parameters() -> None:
    assert RealDataLSTMPredictor(LSTMConfig(46, 128, 2, 34)).count_parameters() == 232_674


def test_logits_probabilities_and_types_agree() -> None:
    windows, _ = next(iter(batches("test")))
    net = model().train()
    net.temperature.fill_(2.0)
    probability = net.predict_attack_probability(windows)
    assert net.training  # asking does not change the mode
    assert torch.equal(probability, net.predict_attack_probability(windows))  # no dropout
    net.eval()
    assert net(windows).shape == (64, 4)
    torch.testing.assert_close(probability, torch.softmax(net(windows) / 2.0, -1))
    assert torch.equal(net.predict_attack_type(windows), net(windows).argmax(-1))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_mean_of_all_states_can_stand_beside_the_last(bidirectional: bool) -> None:
    """Its columns of the first layer get a gradient, and rows before the last reach the logits even where the cell forgets all."""
    shape = dataclasses.replace(SHAPE, pooling="last_mean", bidirectional=bidirectional)
    made = build_model(shape, 0).eval()
    windows = torch.from_numpy(DATA.splits["test"].features[:T][None])
    with torch.no_grad():
        states, _ = made.lstm(made.scaler(windows))
        hidden = shape.hidden_size
        last = torch.cat([states[:, -1, :hidden], states[:, 0, hidden:]], dim=1)  # an LSTM in one direction has nothing beyond `hidden`
        expected = made.classifier(torch.cat([last, states.mean(dim=1)], dim=1))
        torch.testing.assert_close(made(windows), expected)
    assert made.classifier[0].in_features == 2 * RealDataLSTMPredictor(dataclasses.replace(shape, pooling="last")).classifier[0].in_features


def test_bidirectional_reads_forward_last_with_backward_first() -> None:
    net = model(shape=LSTMConfig(len(FEATURES), 8, 2, 4, 0.0, True, T)).eval()
    assert net.classifier[0].in_features == 16
    windows, _ = next(iter(batches("test")))
    _, (hidden, _) = net.lstm(net.scaler(windows))  # the final state of each direction of the last layer stands in hidden[-2:]
    torch.testing.assert_close(net(windows), net.classifier(torch.cat([hidden[-2], hidden[-1]], dim=1)))


def test_one_layer_has_no_dropout_between_layers_and_builds_without_a_warning() -> None:
    assert RealDataLSTMPredictor(LSTMConfig(5, 1, 1, 2, 0.5)).lstm.dropout == 0.0


# scaling


def test_scaler_standardises_the_signed_logarithm() -> None:
    rows = np.random.default_rng(0).lognormal(3, 2, (4000, 2)).astype(np.float32) * np.array([1, -1], dtype=np.float32)
    scaled = Scaler(2).fit(rows)(torch.from_numpy(rows).double()).numpy()
    expected = np.sign(rows) * np.log1p(np.abs(rows.astype(np.float64)))
    np.testing.assert_allclose(scaled, ((expected - expected.mean(0)) / expected.std(0)).clip(-5, 5), atol=1e-5)


def test_scaler_bounds_outliers_and_silences_constant_columns() -> None:
    scaler = Scaler(2).fit(np.array([[1, 7], [2, 7], [3, 7]], dtype=np.float32))
    assert scaler(torch.tensor([[1e30, 7.0], [-1e30, 1e9]])).tolist() == [[5.0, 0.0], [-5.0, 0.0]]


def test_scaling_is_saved_but_is_no_parameter() -> None:
    names = dict(model().named_parameters())
    assert "scaler.centre" in model().state_dict()
    assert "scaler.centre" not in names


# batches and loss


def test_window_batches_are_the_windows_of_the_rows() -> None:
    source = batches("test", size=50)
    parts = list(source)
    assert len(parts) == len(source)
    windows = torch.cat([part[0] for part in parts])
    rows = DATA.splits["test"].features
    expected = np.stack([rows[start : start + T] for start in source.starts.numpy()])
    np.testing.assert_array_equal(windows.numpy(), expected)


def test_shuffled_batches_hold_every_window_once_with_its_label() -> None:
    shuffled = batches("test", shuffle=True)
    assert isinstance(shuffled.generator, torch.Generator)
    shuffled.generator.manual_seed(1)
    labels = torch.cat([part[1] for part in shuffled])
    plain = torch.cat([part[1] for part in batches("test")])
    assert not torch.equal(labels, plain)
    assert torch.equal(labels.sort().values, plain.sort().values)


@pytest.mark.parametrize("weights", ["none", "sqrt", "balanced"])
def test_focal_loss_without_focus_is_cross_entropy(weights: str) -> None:
    counts = np.array([1, 10, 100, 0])
    logits, labels = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3
    losses = [
        RealDataTrainer(model(), settings(class_weights=weights, **more), device="cpu", class_counts=counts).loss(logits, labels)
        for more in ({"loss": "cross_entropy"}, {"loss": "focal", "focal_gamma": 0.0}, {"loss": "focal", "focal_gamma": 2.0})
    ]
    torch.testing.assert_close(losses[0], losses[1])
    assert losses[2] < losses[0]


def test_class_weights_follow_frequency() -> None:
    counts = np.array([100, 400, 0, 25])
    weights = {w: RealDataTrainer(model(), settings(class_weights=w), device="cpu", class_counts=counts).class_weights for w in ("none", "sqrt", "balanced")}
    assert weights["none"] is None
    np.testing.assert_allclose(weights["sqrt"] / weights["sqrt"][0], [1, 0.5, 0, 2], rtol=1e-6)
    np.testing.assert_allclose(weights["balanced"] / weights["balanced"][0], [1, 0.25, 0, 4], rtol=1e-6)


def test_batches_carry_what_teachers_said_of_their_windows() -> None:
    shuffled = batches("fit", shuffle=True)
    shuffled.taught = torch.nn.functional.one_hot(shuffled.labels, len(CLASSES)).float()
    seen = [(labels, taught.argmax(dim=1)) for _, labels, taught in shuffled]
    assert all(torch.equal(labels, told) for labels, told in seen)
    assert not torch.equal(torch.cat([labels for labels, _ in seen]), shuffled.labels)
    ordered = list(shuffled.in_order())
    assert {len(batch) for batch in ordered} == {2}
    assert torch.equal(torch.cat([labels for _, labels in ordered]), shuffled.labels)


def test_loss_with_teachers_is_the_mixture_of_hinton() -> None:
    share, softening, counts = 0.6, 3.0, np.array([1, 10, 100, 1])
    given = TaughtTrainingConfig(teacher_share=share, teacher_softening=softening)
    trainer = TaughtTrainer(model(), given, device="cpu", class_counts=counts)
    windows, labels = next(iter(batches("fit")))
    taught = torch.softmax(torch.randn(len(labels), len(CLASSES), generator=torch.Generator().manual_seed(0)), dim=-1)
    trainer.model.eval()
    hard, logits = trainer.objective((windows, labels, taught))
    torch.testing.assert_close(hard, trainer.loss(logits, labels))
    trainer.model.train()
    trainer.model.dropout_layer.p = trainer.model.lstm.dropout = trainer.model.classifier[2].p = 0.0
    loss, _ = trainer.objective((windows, labels, taught))
    weight = np.sqrt(1 / counts)[labels.numpy()]
    soft = torch.log_softmax(logits / softening, dim=-1).detach().numpy()
    apart = softening**2 * -(weight[:, None] * taught.numpy() * soft).sum() / weight.sum()
    assert float(loss.detach()) == pytest.approx((1 - share) * float(hard.detach()) + share * apart, rel=1e-5)


# training


@pytest.fixture(scope="module")
def reference() -> tuple[RealDataTrainer, list[dict[str, float]]]:
    return trained()


def test_it_learns_what_no_single_row_shows() -> None:
    trainer, history = trained(epochs=15, learning_rate=0.01, patience=15, class_weights="none")
    assert history[-1]["train/loss"] < history[0]["train/loss"] / 2
    assert set(history[0]) == {"epoch", "learning_rate"} | {f"{a}/{b}" for a in ("train", "calibrate") for b in ("loss", "accuracy", "macro_f1", "weighted_f1")}
    assert trainer.evaluate_detailed(batches("test"), CLASSES).metrics()["macro_f1"] > 0.9


def test_same_seed_same_weights_and_the_global_generator_is_left_alone(reference: tuple[RealDataTrainer, list[dict[str, float]]]) -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    again, history = trained()
    assert torch.equal(before, torch.random.get_rng_state())
    assert same(again.model, reference[0].model)
    assert history == reference[1]
    assert not same(trained(seed=1, epochs=1)[0].model, trained(epochs=1)[0].model)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path: Path, schedule: str) -> None:
    whole, history = trained(schedule=schedule)
    file = tmp_path / "a" / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        trained(file, stop_after=2, schedule=schedule)
    assert os.listdir(file.parent) == ["checkpoint.pt"]  # no half-written rest
    resumed, again = trained(file, resume=True, schedule=schedule)
    assert same(resumed.model, whole.model)
    assert again == history
    finished, third = trained(file, resume=True, schedule=schedule)  # nothing left to do
    assert same(finished.model, whole.model)
    assert third == history


def test_a_checkpoint_written_without_mixed_precision_is_resumed_with_it(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        trained(file, stop_after=2)
    later = RealDataTrainer(model(), settings(), device="cpu", class_counts=np.array([10, 20, 30, 40]))
    later.gradient_scaler = torch.amp.GradScaler("cpu", enabled=True)  # as on a GPU
    history = later.train(batches("fit", shuffle=True, size=32), batches("calibrate"), checkpoint=file, resume=True)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    trained(file, epochs=1)
    with pytest.raises(UserError, match=r"other settings or data"):
        trained(file, resume=True, epochs=2)
    with pytest.raises(UserError, match=r"other settings or data"):
        trained(file, resume=True, epochs=1, seed=3)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"altered or cut off"):
        trained(file, resume=True, epochs=1)


def test_a_checkpoint_holds_nothing_that_runs(tmp_path: Path) -> None:
    trained(tmp_path / "c.pt", epochs=1)
    stored = torch.load(tmp_path / "c.pt", weights_only=True)
    assert {"model", "optimizer", "scheduler", "best_weights", "epoch", "history"} <= set(stored)


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float], **changes: object) -> tuple[RealDataTrainer, list[dict[str, float]], list[float]]:
    """Training whose macro-F1 on `calibrate` follows a script; the third value holds the classifier's bias after each epoch."""
    trainer = RealDataTrainer(model(), settings(**{"epochs": len(scores), **changes}), device="cpu")
    script, marks = itertools.count(), []

    def validate(_: object) -> dict[str, float]:
        marks.append(float(trainer.model.classifier[3].bias[0].detach()))
        return {"loss": 1.0, "accuracy": 0.5, "macro_f1": scores[next(script)], "weighted_f1": 0.5}

    monkeypatch.setattr(trainer, "validate_epoch", validate)
    return trainer, trainer.train(batches("fit", shuffle=True, size=256), [], on_epoch=lambda _: None), marks


@pytest.mark.parametrize(
    ("scores", "patience", "epochs", "best"),
    [
        ([0.1, 0.5, 0.4, 0.4, 0.9], 2, 4, 2),  # stops before the late rise
        ([0.1, 0.2, 0.3, 0.4], 2, 4, 4),  # rises to the end
        ([0.5, 0.5, 0.5, 0.5], 3, 4, 1),  # equal is not better
        ([0.0, 0.0, 0.0], 5, 3, 1),  # the first epoch counts even at 0
    ],
)
def test_early_stopping_restores_the_best_epoch(monkeypatch: pytest.MonkeyPatch, scores: list[float], patience: int, epochs: int, best: int) -> None:
    trainer, history, marks = scripted(monkeypatch, scores, patience=patience)
    assert len(history) == epochs
    assert float(trainer.model.classifier[3].bias[0].detach()) == marks[best - 1]


def test_schedules_move_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {s: [row["learning_rate"] for row in scripted(monkeypatch, [0.5] * 6, schedule=s, patience=6)[1]] for s in ("constant", "cosine", "plateau")}
    assert len(set(rates["constant"])) == 1
    np.testing.assert_allclose(rates["cosine"], [5e-3 * 0.5 * (1 + np.cos(np.pi * e / 6)) for e in range(6)], rtol=1e-6)
    assert rates["plateau"][0] == 5e-3
    assert rates["plateau"][-1] < 5e-3


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    trainer = RealDataTrainer(model(), settings(clip_norm=1e-3), device="cpu")
    step = trainer.optimizer.step
    monkeypatch.setattr(
        trainer.optimizer, "step", lambda *a, **k: (norms.append(float(torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm())), step(*a, **k))
    )
    trainer.train_epoch(batches("fit", size=256))
    assert norms
    assert max(norms) <= 1e-3 * (1 + 1e-4)


def test_weight_decay_reaches_the_optimiser() -> None:
    trainer = RealDataTrainer(model(), settings(weight_decay=0.5, learning_rate=0.01), device="cpu")
    assert trainer.optimizer.defaults["weight_decay"] == 0.5
    assert trainer.optimizer.defaults["lr"] == 0.01


def test_training_that_diverges_ends_in_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = RealDataTrainer(model(), settings(), device="cpu")
    monkeypatch.setattr(trainer, "loss", lambda logits, labels: functional.cross_entropy(logits, labels) * float("nan"))
    with pytest.raises(UserError, match=r"no longer finite; lower lstm.training.learning_rate"):
        trainer.train_epoch(batches("fit"))
    with pytest.raises(UserError, match="no window"):
        trainer.validate_epoch([])


def test_a_dataloader_will_do_as_well() -> None:
    windows, labels = (torch.cat(parts) for parts in zip(*batches("fit"), strict=True))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(windows, labels), 64, shuffle=True, generator=torch.Generator())
    runs = [RealDataTrainer(model(), settings(epochs=1), device="cpu") for _ in range(2)]
    for trainer in runs:
        trainer.train(loader, batches("calibrate"))
    assert same(runs[0].model, runs[1].model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert pick_device("auto").type == "cpu"
    with pytest.raises(UserError, match="no GPU"):
        pick_device("cuda")


# scores


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 4, 500), rng.integers(0, 3, 500)
    confusion = confusion_matrix(truth, guess, 5)  # class 4 occurs nowhere, class 3 is never predicted
    figures = summary(confusion)
    assert figures["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert figures["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro"))
    assert figures["weighted_f1"] == pytest.approx(f1_score(truth, guess, average="weighted"))
    precision, recall, f1, _ = precision_recall_fscore_support(truth, guess, labels=range(5), zero_division=0)
    scores = class_scores(confusion)
    np.testing.assert_allclose([scores["precision"], scores["recall"], scores["f1"]], [precision, recall, f1])


def test_evaluation_by_family_and_false_positives() -> None:
    confusion = np.array([[8, 2, 0, 0], [0, 5, 5, 0], [0, 0, 10, 0], [1, 0, 0, 9]])
    evaluation = Evaluation(("BenignTraffic", "SqlInjection", "XSS", "Recon-PortScan"), confusion, 0.5)
    figures = evaluation.metrics()
    assert figures["benign_false_positive_rate"] == pytest.approx(0.2)
    assert figures["family_accuracy"] == pytest.approx(37 / 40)  # one web attack taken for the other costs nothing
    assert figures["family/Web/macro_f1"] == pytest.approx((2 * 5 / 17 + 2 * 10 / 25) / 2)
    assert evaluation.rows()[2] == {"class": "XSS", "family": "Web", "precision": 0.6667, "recall": 1.0, "f1": 0.8, "support": 10}


# artifacts


def test_a_saved_model_comes_back(tmp_path: Path, reference: tuple[RealDataTrainer, list[dict[str, float]]]) -> None:
    trainer, _ = reference
    trainer.save_model(tmp_path / "lstm", {**META, "seed": 0})
    loaded, meta = load_predictor(tmp_path / "lstm")
    assert same(loaded, trainer.model)
    assert not loaded.training
    assert meta["sequence_length"] == T
    fresh = RealDataTrainer(build_model(SHAPE, 9), settings(), device="cpu")
    assert fresh.load_model(tmp_path / "lstm")["seed"] == 0
    assert same(fresh.model, trainer.model)
    other = RealDataTrainer(build_model(LSTMConfig(5, 8, 1, 4), 0), settings(), device="cpu")
    with pytest.raises(UserError, match="hidden_size=16"):
        other.load_model(tmp_path / "lstm")


def test_an_altered_model_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "lstm"
    RealDataTrainer(model(), settings(), device="cpu").save_model(folder, META)
    weights = load_file(folder / "model.safetensors")
    save_file({name: value + 1e-6 for name, value in weights.items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"'model.safetensors' was altered"):
        load_predictor(folder)
    with pytest.raises(UserError, match="train it first"):
        load_predictor(tmp_path / "nothing")


def write(folder: Path, weights: dict[str, torch.Tensor], meta: dict[str, object]) -> None:
    with new_artifact(folder, KIND, meta) as target:
        save_file(weights, target / "model.safetensors")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    RealDataTrainer(model(), settings(), device="cpu").save_model(tmp_path / "a", META)
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    weights = load_file(tmp_path / "a" / "model.safetensors")
    write(tmp_path / "b", {**weights, "classifier.3.bias": torch.zeros(9)}, meta)
    with pytest.raises(UserError, match=r"size mismatch for classifier.3.bias"):
        load_predictor(tmp_path / "b")
    write(tmp_path / "c", {name: value for name, value in weights.items() if name != "temperature"}, meta)
    with pytest.raises(UserError, match="temperature"):
        load_predictor(tmp_path / "c")
    write(tmp_path / "d", weights, {**meta, "class_names": ["BenignTraffic"]})
    with pytest.raises(UserError, match="names 1 classes"):
        load_predictor(tmp_path / "d")
    write(tmp_path / "e", weights, {key: value for key, value in meta.items() if key != "model"})
    with pytest.raises(UserError, match="does not fit"):
        load_predictor(tmp_path / "e")
