import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.artifacts import open_artifact
from src.config import Config, load_config
from src.data.bank import SPLITS, TraceBank
from src.data.dataset import Rows, load_dataset
from src.errors import UserError
from src.models.lstm_attack_predictor import KIND, RealDataTrainer
from src.models.lstm_sae import SOURCE
from src.models.predictor_interface import FUSED, EnhancedAttackPredictor
from src.predictor.interface import SensorReading
from src.training.autoencoder import AutoencoderTrainer, loss_figure
from src.training.explanation_figures import log_explanations
from src.training.fused import TrainedSensor, train_sensor
from src.training.lstm_trainer import LSTMTrainer, confusion_figure, history_figure, remove_checkpoints, teacher_seed
from src.training.sensors import build_bank
from tests.datasets import CLASSES, FEATURES, SIZES, make_dataset

REAL = Path(__file__).parents[1] / ".." / "shared" / "data" / "ciciot2023"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="the real captures (../shared/data/ciciot2023) are not here")
T = 6
DATA = make_dataset()


def config(*more: str) -> Config:
    tiny = ["data.window=6", "lstm.model.hidden_size=16", "lstm.training.epochs=3", "lstm.training.learning_rate=0.01", "lstm.training.stride=1"]
    tiny += ["lstm.training.teachers=2"]
    tiny += ["temporal.model.hidden_size=8", "temporal.model.num_heads=2", "temporal.model.memory_slots=4", "temporal.training.epochs=2"]
    tiny += ["temporal.training.learning_rate=0.01", "temporal.training.stride=1", "temporal.training.batch_size=64"]
    tiny += ["sae.model.encoder_units=[8, 4]", "sae.model.decoder_units=[4, 8]", "sae.training.epochs=2"]
    return load_config(overrides=[*tiny, "lstm.training.batch_size=64", "compute.device=cpu", "compute.threads=1", *more], environ={})


class Notes:
    """Keeps what is logged; stops the training of a network after an epoch when told to."""

    def __init__(self, stop_after: tuple[str, int] | None = None) -> None:
        self.epochs: dict[int, dict[str, float]] = {}
        self.final: dict[str, float] = {}
        self.files: dict[str, Any] = {}
        self.stop_after = stop_after

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if step is None:
            self.final |= metrics
            return
        self.epochs.setdefault(step, {}).update(metrics)
        if self.stop_after is not None and step == self.stop_after[1] and f"{self.stop_after[0]}/learning_rate" in metrics:
            raise KeyboardInterrupt

    def log_figure(self, figure: Any, path: str) -> None:
        self.files[path] = figure

    def log_table(self, rows: Any, path: str) -> None:
        self.files[path] = rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedSensor, Notes]:
    notes = Notes()
    return train_sensor(config(), DATA, tmp_path_factory.mktemp("run") / "sensor", notes), notes


def weights(trained: TrainedSensor) -> list[torch.Tensor]:
    sensor = trained.sensor
    assert sensor.second is not None
    networks = [*sensor.model.state_dict().values(), *sensor.second.model.state_dict().values()]
    return [*networks, *sensor.detector.tensors().values(), *sensor.second.fusion.tensors().values(), torch.tensor(sensor.second.usual)]


def test_it_logs_epochs_results_figures_and_tables(run: tuple[TrainedSensor, Notes]) -> None:
    trained, notes = run
    assert list(notes.epochs) == [1, 2, 3]
    figures = {"learning_rate", "train/loss", "train/accuracy", "calibrate/loss", "calibrate/accuracy", "calibrate/macro_f1"}
    assert {f"{name}/{key}" for name in ("lstm", "temporal") for key in figures} <= set(notes.epochs[1])
    assert {f"test/{key}" for key in trained.metrics} <= set(notes.final)
    assert notes.final["test/macro_f1"] == trained.evaluation.metrics()["macro_f1"] > 0.5
    assert {"sae/train/loss", "sae/calibrate/loss", "sae/learning_rate"} <= set(notes.epochs[1])
    assert {"test/weighted_f1", "test/accuracy", "test/benign_false_positive_rate", "test/family/Web/macro_f1", "test/seconds"} <= set(notes.final)
    explained = {name for name in notes.files if name.startswith("explanations")}
    assert set(notes.files) - explained == {
        "sensor_classes.json", "sensor_confusion.png", "lstm_learning.png", "temporal_learning.png", "autoencoder_learning.png", "anomaly_families.json",
        "lstm_confusion.png", "temporal_confusion.png", "lstm_classes.json", "temporal_classes.json",
    }  # fmt: skip
    assert {"explanations.json", "explanations/DDoS_attributions.png", "explanations/DDoS_attention.png"} <= explained
    assert {row["feature"] for row in notes.files["explanations.json"]} <= set(FEATURES)
    assert {"temporal/attention/layer0_head0_entropy", "temporal/attention/layer0_head1_distance"} <= set(notes.epochs[1])
    assert [row["class"] for row in notes.files["sensor_classes.json"]] == list(CLASSES)
    assert "synthetic profile" in notes.files["sensor_confusion.png"].axes[0].get_title()


def test_a_family_without_a_window_to_explain_is_left_out(run: tuple[TrainedSensor, Notes]) -> None:
    second, notes = run[0].sensor.second, Notes()
    assert second is not None
    test = DATA.splits["test"]
    kept = test.label != CLASSES.index("DDoS-UDP_Fragmentation")
    lacking = Rows(**{field.name: getattr(test, field.name)[kept] for field in dataclasses.fields(Rows)})
    log_explanations(notes, second.model, dataclasses.replace(DATA, splits={**DATA.splits, "test": lacking}), T)
    told = {row["family"] for row in notes.files["explanations.json"]}
    assert told
    assert "DDoS" not in told  # which the same network explains where it has windows


def test_the_artifact_says_where_it_comes_from_and_loads(run: tuple[TrainedSensor, Notes]) -> None:
    trained, _ = run
    meta = open_artifact(trained.folder, KIND)
    assert meta["class_names"] == list(CLASSES)
    assert meta["feature_names"] == list(FEATURES)
    assert (meta["sequence_length"], meta["seed"], meta["data_hash"], meta["source"]) == (T, 0, "hash0", "synthetic profile")
    assert meta["config"]["lstm"]["training"]["learning_rate"] == 0.01
    assert meta["metrics"]["macro_f1"] == trained.metrics["macro_f1"]
    assert {key: meta[key] for key in FUSED} == FUSED
    assert meta["anomaly"] == SOURCE
    assert {path.name for path in trained.folder.parent.iterdir()} == {"networks", "autoencoder", "predictor"}  # the checkpoints are gone
    windows = DATA.splits["test"].features[:T][None]
    np.testing.assert_array_equal(EnhancedAttackPredictor.load(trained.folder).read(windows).table(), trained.sensor.read(windows).table())


def test_same_seed_same_sensor_another_seed_another(tmp_path: Path, run: tuple[TrainedSensor, Notes]) -> None:
    threads = torch.get_num_threads()
    again = train_sensor(config(), DATA, tmp_path / "a")
    other = train_sensor(config("compute.seed=1", "lstm.training.epochs=1"), DATA, tmp_path / "b")
    assert all(map(torch.equal, weights(again), weights(run[0])))
    assert not torch.equal(other.sensor.model.classifier[0].weight, again.sensor.model.classifier[0].weight)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("network", "epoch"), [("lstm", 2), ("temporal", 1), ("sae", 1)])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, run: tuple[TrainedSensor, Notes], network: str, epoch: int) -> None:
    folder = tmp_path / "sensor"
    with pytest.raises(KeyboardInterrupt):
        train_sensor(config(), DATA, folder, Notes(stop_after=(network, epoch)))
    left = "autoencoder.checkpoint.pt" if network == "sae" else f"networks.{network}.checkpoint.pt"
    assert left in {path.name for path in folder.iterdir()}
    assert not (folder / "predictor").exists()
    trainer = AutoencoderTrainer if network == "sae" else LSTMTrainer
    with pytest.raises(UserError, match="other settings or data"):
        trainer(config(), dataclasses.replace(DATA, data_hash="other")).train(folder / left.split(".")[0], resume=True)
    notes = Notes()
    resumed = train_sensor(config(), DATA, folder, notes, resume=True)
    assert all(map(torch.equal, weights(resumed), weights(run[0])))
    assert notes.epochs == run[1].epochs  # epochs done before are logged again, so that curves are whole


def test_finished_teachers_are_not_trained_again_and_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, steps = tmp_path / "base.checkpoint.pt", []
    step = RealDataTrainer._step
    monkeypatch.setattr(RealDataTrainer, "_step", lambda self, *given: (steps.append(self.seed), step(self, *given)))
    with pytest.raises(KeyboardInterrupt):
        LSTMTrainer(config(), DATA, Notes(stop_after=("lstm", 1))).train_base(checkpoint)
    assert [(seed, steps.count(seed)) for seed in dict.fromkeys(steps)] == [(teacher_seed(0, 0), 3), (teacher_seed(0, 1), 3), (0, 1)]
    steps.clear()
    LSTMTrainer(config(), DATA).train_base(checkpoint, resume=True)
    assert steps == [0, 0]
    assert len(list(tmp_path.iterdir())) == 3
    remove_checkpoints(checkpoint)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["teachers=0", "teachers=1", "teacher_share=0.2", "teacher_softening=4"])
def test_each_setting_of_the_teachers_changes_the_network(run: tuple[TrainedSensor, Notes], change: str) -> None:
    model, _ = LSTMTrainer(config(f"lstm.training.{change}"), DATA).train_base()
    assert not torch.equal(model.classifier[0].weight, run[0].sensor.model.classifier[0].weight)


def test_a_network_that_leaves_its_teachers_out_is_the_one_without() -> None:
    deaf, _ = LSTMTrainer(config("lstm.training.teacher_share=0"), DATA).train_base()
    alone, _ = LSTMTrainer(config("lstm.training.teachers=0"), DATA).train_base()
    assert all(map(torch.equal, deaf.state_dict().values(), alone.state_dict().values()))


def test_teachers_differ_from_each_other_and_from_every_network_of_a_series() -> None:
    seeds = [teacher_seed(seed, number) for seed in range(20) for number in range(5)]
    assert len({*seeds, *range(20)}) == 120


def test_fitted_parts_see_no_test_row(tmp_path: Path, run: tuple[TrainedSensor, Notes]) -> None:
    spoiled = {name: dataclasses.replace(rows, features=rows.features * 7 + 3) if name in ("test", "agent") else rows for name, rows in DATA.splits.items()}
    blind = train_sensor(config(), dataclasses.replace(DATA, splits=spoiled), tmp_path)
    assert all(map(torch.equal, weights(blind), weights(run[0])))


def test_settings_reach_the_model(tmp_path: Path) -> None:
    shape = LSTMTrainer(config("lstm.model.bidirectional=true", "lstm.model.num_layers=3", "lstm.model.dropout=0.4"), DATA).shape
    assert (shape.bidirectional, shape.num_layers, shape.dropout, shape.hidden_size, shape.sequence_length) == (True, 3, 0.4, 16, T)
    trainer = LSTMTrainer(config("data.window=500", "data.gap=500"), DATA)
    with pytest.raises(UserError, match="split 'fit' holds no window of 500 rows"):
        trainer.train(tmp_path / "x")


def test_figures_can_be_drawn(tmp_path: Path, run: tuple[TrainedSensor, Notes]) -> None:
    trained, _ = run
    history = [{"epoch": 1.0, **{f"{side}/{key}": 0.5 for side in ("train", "calibrate") for key in ("loss", "macro_f1")}}] * 2
    for figure in (confusion_figure(trained.evaluation, "real"), history_figure(history, "Base LSTM", "real"), loss_figure(history, "real")):
        figure.savefig(tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size > 5000


# the bank


class Echo:
    """A sensor whose risk is the first feature of the last step and whose anomaly that of the first: readings can be traced to rows."""

    feature_names = ("Std", "Rate")
    class_names = CLASSES
    sequence_length = T

    def read(self, windows: np.ndarray) -> SensorReading:
        count = len(windows)
        uniform = np.full((count, 8), 1 / 8, dtype=np.float32)
        half = np.full(count, 0.5, dtype=np.float32)
        return SensorReading(uniform[:, :4] * 2, uniform, windows[:, -1, 1] / 1e6, half, windows[:, 0, 1] / 1e6)


def numbered() -> Any:
    """`Rate` is the row's number in its split."""
    splits = {}
    for name, rows in DATA.splits.items():
        features = rows.features.copy()
        features[:, 0] = np.arange(len(features))
        splits[name] = dataclasses.replace(rows, features=features)
    return dataclasses.replace(DATA, splits=splits)


def bank(**more: Any) -> TraceBank:
    return build_bank(numbered(), Echo(), lambda x: np.clip(x / 1000, -5, 5), **more)


def test_the_bank_holds_every_window_of_each_held_back_split() -> None:
    built = bank(batch_size=17)
    for index, split in enumerate(SPLITS):
        counts = np.bincount(built.label[built.split == index], minlength=len(CLASSES))
        assert counts.tolist() == [2 * (SIZES[split] - T + 1)] * len(CLASSES)
    first = np.rint(built.sensors[:, -1] * 1e6)  # row at which each window starts
    last = np.rint(built.sensors[:, 8] * 1e6)
    np.testing.assert_array_equal(last - first, T - 1)
    np.testing.assert_allclose(built.features[:, 1], (first + (T - 1) / 2) / 1000, rtol=1e-5)  # window mean of the scaled feature
    assert (built.source, built.assembled, built.sensor) == ("synthetic profile", ("XSS",), "lstm")
    assert built.class_families == ("Benign", "DDoS", "Recon", "Web")


def test_successors_start_where_their_window_ends_in_the_same_run() -> None:
    built = bank()
    first = np.rint(built.sensors[:, -1] * 1e6).astype(int)
    linked = np.flatnonzero(built.successor >= 0)
    following = built.successor[linked]
    np.testing.assert_array_equal(first[following], first[linked] + T)
    np.testing.assert_array_equal(built.split[following], built.split[linked])
    for index, split in enumerate(SPLITS):
        segment = DATA.splits[split].segment
        mine = linked[built.split[linked] == index]
        np.testing.assert_array_equal(segment[first[mine]], segment[first[built.successor[mine]]])
        per_run = max(SIZES[split] - 2 * T + 1, 0)  # windows of a run that another can follow
        assert len(mine) == per_run * 2 * len(CLASSES)


def test_raw_rows_stand_once_and_are_what_the_sensor_read() -> None:
    for built in (bank(), bank(cap=20)):
        assert built.rows is not None
        windows = built.raw_windows(np.arange(len(built.label)))
        assert (windows.shape[1:], built.row_names, built.length) == ((T, 2), ("Std", "Rate"), T)
        np.testing.assert_array_equal(Echo().read(windows).table(), built.sensors)
    assert len(built.rows) == 3 * len(CLASSES) * (20 + T - 1)  # windows overlap, their rows are stored once
    whole = bank().rows
    assert whole is not None
    assert len(whole) == sum(len(DATA.splits[split].label) for split in SPLITS)


def test_a_trained_sensor_reads_the_bank_live_as_it_was_filled(run: tuple[TrainedSensor, Notes], tmp_path: Path) -> None:
    sensor = run[0].sensor
    build_bank(DATA, sensor, sensor.scale, batch_size=100).save(tmp_path / "bank", {})
    opened = TraceBank.load(tmp_path / "bank")
    everything = np.random.default_rng(0).permutation(len(opened.label))
    for part in np.array_split(everything, 20):
        np.testing.assert_allclose(sensor.read(opened.raw_windows(part)).table(), opened.sensors[part], atol=1e-5)


@needs_real
def test_real_windows_are_read_live_as_the_bank_was_filled(tmp_path: Path) -> None:
    small = ["temporal.model.hidden_size=8", "temporal.model.num_heads=2", "temporal.training.epochs=1", "sae.training.epochs=1"]
    given = load_config(
        overrides=[f"data.root={REAL}", "data.max_rows_per_class=1000", "lstm.model.hidden_size=16", "lstm.training.epochs=1", *small, "compute.threads=1"],
        environ={},
    )
    data = load_dataset(given.data, 0)
    sensor = train_sensor(given, data, tmp_path).sensor
    built = build_bank(data, sensor, sensor.scale)
    for part in np.array_split(np.arange(len(built.label)), 7):
        np.testing.assert_allclose(sensor.read(built.raw_windows(part)).table(), built.sensors[part], atol=1e-5)


def test_a_cap_keeps_the_first_windows_of_each_class() -> None:
    built, whole = bank(cap=20), bank()
    assert (np.bincount(built.split.astype(int) * len(CLASSES) + built.label) == 20).all()
    low, _ = whole.ranges("agent")[1]
    start, stop = built.ranges("agent")[1]
    np.testing.assert_array_equal(built.sensors[start:stop], whole.sensors[low : low + 20])
    kept = built.successor[start:stop]
    assert (kept[: 20 - T] == np.arange(start + T, stop)).all()
    assert (kept[20 - T :] == -1).all()  # what follows was cut off


def test_the_bank_keeps_the_features_asked_for(run: tuple[TrainedSensor, Notes], tmp_path: Path) -> None:
    sensor = run[0].sensor
    built = build_bank(DATA, sensor, sensor.scale, features=["Tot size", "Rate"], name="base")
    assert built.feature_names == ("Tot size", "Rate")
    whole = build_bank(DATA, sensor, sensor.scale)
    np.testing.assert_array_equal(built.features, whole.features[:, [4, 0]])
    assert np.abs(whole.features).max() <= 5
    attack = whole.label == CLASSES.index("DDoS-UDP_Fragmentation")
    assert whole.sensors[attack, 8].mean() > whole.sensors[whole.label == 0, 8].mean() + 0.3  # risk
    built.save(tmp_path / "bank", {})
    np.testing.assert_array_equal(TraceBank.load(tmp_path / "bank").sensors, built.sensors)
    with pytest.raises(UserError, match="the sensor has no feature 'Colour'"):
        build_bank(DATA, sensor, sensor.scale, features=["Colour"])
    with pytest.raises(UserError, match="the data set has no feature 'Std'"):
        build_bank(dataclasses.replace(DATA, feature_names=("a", "b", "c", "d", "e")), Echo(), sensor.scale)
