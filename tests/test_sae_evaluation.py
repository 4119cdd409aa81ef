import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from src.artifacts import open_artifact
from src.errors import UserError
from src.evaluation.detection import Blocks, Bootstrap
from src.models.lstm_sae import AnomalyDetector
from src.sae import evaluation, measures
from src.sae.evaluation import KIND, EvaluationSettings, alarm_threshold, evaluate
from src.sae.layout import Layout, finish
from src.sae.measures import Marks, judge, ranking, runs
from tests.encoded import make_run, write_encoded

FILES = {
    "evaluation_results.json",
    "reconstruction_errors.npy",
    "scores.npy",
    "anomaly_scores.npy",
    "predictions.npy",
    "threshold.json",
    "meta.json",
    "checksums.json",
}


def marks_of(attack: list[int], session: list[int], time: list[int] | None = None) -> Marks:
    y, where = np.array(attack, np.int8), np.array(session)
    when = np.full(len(y), -1) if time is None else np.array(time)
    return Marks(y, np.maximum(y, 0).astype(np.int64), where, where % 2, when, ("Benign", "DDoS"), ("a", "b"))


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return make_run(tmp_path_factory.mktemp("sae"))


@pytest.fixture(scope="module")
def results(layout: Layout) -> dict:
    return evaluate(layout, EvaluationSettings(target_fpr=0.05, resamples=200), lambda _: None)


def test_files_are_those_of_the_pipeline(layout: Layout, results: dict) -> None:
    open_artifact(layout.eval, KIND)
    assert {path.name for path in layout.eval.iterdir()} == FILES
    assert json.loads((layout.eval / "evaluation_results.json").read_text()) == results
    assert json.loads((layout.eval / "threshold.json").read_text()) == results["threshold"]


def test_measures_are_those_of_scikit_learn(layout: Layout, results: dict) -> None:
    y = np.load(layout.encoded / "y_test.npy")
    errors, said = (np.load(layout.eval / f"{name}.npy") for name in ("scores", "predictions"))
    test = results["test"]
    for name, value in {
        "roc_auc": roc_auc_score(y, errors),
        "pr_auc": average_precision_score(y, errors),
        "precision": precision_score(y, said),
        "recall": recall_score(y, said),
        "f1": f1_score(y, said),
        "fpr": said[y == 0].mean(),
        "prevalence": y.mean(),
    }.items():
        assert test[name]["value"] == pytest.approx(value), name
    assert 0.9 < test["roc_auc"]["value"] <= 1, "noise is not rebuilt like waves"
    for name in ("roc_auc", "pr_auc", "recall", "fpr", "event_recall"):
        assert test[name]["low"] <= test[name]["value"] <= test[name]["high"]
    assert sum(test["confusion"].values()) == len(y)


def test_an_alarm_is_an_anomaly_above_one_minus_the_rate(layout: Layout, results: dict) -> None:
    rarity, said, scores = (np.load(layout.eval / f"{name}.npy") for name in ("anomaly_scores", "predictions", "scores"))
    np.testing.assert_array_equal(said == 1, rarity > 1 - 0.05)
    np.testing.assert_array_equal(said == 1, scores > results["threshold"]["threshold"])


def test_reconstruction_errors_are_mean_squares_and_judged_apart(layout: Layout, results: dict) -> None:
    model = AnomalyDetector.load(layout.model)[0].model
    windows, y = (np.load(layout.encoded / f"{name}.npy") for name in ("X_test_sequences", "y_test"))
    errors = np.load(layout.eval / "reconstruction_errors.npy")
    with torch.inference_mode():
        by_hand = [float(model.loss(torch.from_numpy(window[None]))) for window in windows[:20]]
    np.testing.assert_allclose(errors[:20], by_hand, rtol=1e-4)
    assert not np.array_equal(errors, np.load(layout.eval / "scores.npy"))
    alone = results["test"]["reconstruction_error_alone"]
    assert alone["roc_auc"]["value"] == pytest.approx(roc_auc_score(y, errors))
    assert alone["pr_auc"]["value"] == pytest.approx(average_precision_score(y, errors))
    assert alone["roc_auc"]["low"] <= alone["roc_auc"]["value"] <= alone["roc_auc"]["high"]


def test_the_test_split_never_moves_the_threshold(tmp_path: Path, results: dict) -> None:
    def louder(folder: Path) -> None:
        path = folder / "X_test_sequences.npy"
        np.save(path, 5 * np.load(path))

    other = make_run(tmp_path, change=louder)
    assert evaluate(other, EvaluationSettings(target_fpr=0.05, resamples=20), lambda _: None)["threshold"] == results["threshold"]


@pytest.mark.parametrize(("count", "rate"), [(99, 0.05), (100, 0.05), (1000, 0.01), (250, 0.013), (30, 0.5)])
def test_the_threshold_is_conformal(count: int, rate: float) -> None:
    benign = np.random.default_rng(0).random(count)
    limit, nominal = alarm_threshold(benign, rate)
    grid = np.linspace(0, 1, 5000)
    p = (1 + (benign[None, :] >= grid[:, None]).sum(axis=1)) / (count + 1)
    near = np.abs(grid - limit) < 1e-3
    np.testing.assert_array_equal((grid > limit)[~near], (p < rate)[~near])
    assert p[grid > limit].max() == pytest.approx(nominal)
    assert nominal < rate


def test_too_few_windows_give_the_lowest_rate_that_they_can_tell(tmp_path: Path) -> None:
    limit, nominal = alarm_threshold(np.arange(50.0), 0.01)
    assert limit == pytest.approx(49, rel=1e-3)
    assert limit > 49
    assert nominal == pytest.approx(1 / 51)
    said: list[str] = []
    found = evaluate(make_run(tmp_path, size=10, attacked=0), EvaluationSettings(target_fpr=0.01, resamples=5), said.append)
    assert found["threshold"]["nominal_fpr"] == pytest.approx(1 / 61)
    assert "note: 60 benign validation windows cannot tell a rate below 0.0164: that is used instead of 0.01" in said
    assert any(line.startswith("at a threshold for 0.0164 false alarms (0.01 were asked for): ") for line in said)
    assert math.isfinite(found["threshold"]["threshold"])


def test_runs_end_where_a_session_ends() -> None:
    first, end = runs(np.array([1, 1, 0, 1, 1, 1, 0, 1], bool), np.array([0, 0, 0, 0, 1, 1, 2, 2]))
    assert list(zip(first, end, strict=True)) == [(0, 2), (3, 4), (4, 6), (7, 8)]
    assert [len(part) for part in runs(np.zeros(3, bool), np.zeros(3, int))] == [0, 0]


def test_events_are_detected_by_any_alarm_and_windows_are_not_credited() -> None:
    marks = marks_of([0, 1, 1, 1, 0, 1, 1, 0, 0, 0], [0] * 5 + [1] * 5)
    errors = np.array([0, 0, 0, 9, 0, 0, 0, 9, 0, 0], float)
    found = judge(marks, errors, 5.0, 50, 0)
    assert found["events"] == {"happened": 2, "detected": 1}
    assert found["event_recall"]["value"] == 0.5
    assert found["recall"]["value"] == pytest.approx(1 / 5)
    assert found["confusion"] == {"true_positives": 1, "false_positives": 1, "false_negatives": 4, "true_negatives": 4}


def test_alerts_an_hour_and_delay() -> None:
    minute = 60_000
    time = [10 * minute * i for i in range(6)] + [10 * minute * i + 20 * minute for i in range(6)]  # the sessions overlap: 0 to 50 and 20 to 70
    marks = marks_of([0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [0] * 6 + [1] * 6, time)
    alarm = np.array([0, 0, 0, 1, 1, 0, 1, 1, 0, 1, 0, 0], float)
    found = judge(marks, alarm, 0.5, 50, 0)["time"]
    assert found["hours"]["value"] == pytest.approx(70 / 60)
    assert (found["alerts"], found["false_alerts"]) == (3, 2)
    assert found["alerts_per_hour"]["value"] == pytest.approx(3 / (70 / 60))
    assert found["delay_seconds"]["value"] == pytest.approx(600)
    assert (found["delay_seconds"]["events"], found["delay_seconds"]["missed"]) == (1, 0)
    assert found["alerts_per_hour"]["low"] < found["alerts_per_hour"]["value"] < found["alerts_per_hour"]["high"]
    assert found["alerts_per_hour"]["sessions"] == {"timed": 2}
    assert judge(marks_of([0, 1], [0, 1]), np.ones(2), 0.5, 5, 0)["time"]["hours"] == {
        "value": None, "low": None, "high": None, "reason": "times of events are not known",
    }  # fmt: skip


def test_hours_that_sessions_share_are_divided_among_them() -> None:
    shares = measures._shares(np.array([0, 20, 100, 300]), np.array([50, 70, 130, 300]))
    np.testing.assert_allclose(shares, [20 + 15, 15 + 20, 30, 0])


def test_an_unknown_window_ends_an_event_for_all_measures() -> None:
    marks = marks_of([1, -1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [60_000 * i for i in range(6)])
    found = judge(marks, np.array([0, 0, 9, 0, 0, 0], float), 5.0, 20, 0)
    assert found["events"] == {"happened": 2, "detected": 1}
    assert (found["time"]["delay_seconds"]["events"], found["time"]["delay_seconds"]["missed"]) == (1, 1)
    assert [row["events"] for row in found["by_group"]] == [2, 0]


def test_missed_events_are_counted_and_censored() -> None:
    minute, count = 60_000, 8
    attack, time = ([0, 1, 1, 1] * count), [minute * i for i in range(4 * count)]
    session = np.repeat(np.arange(count), 4).tolist()
    delays = [0, 0, 1, 1, 2, None, None, None]  # minutes, by event
    alarm = np.zeros(4 * count)
    for event, delay in enumerate(delays):
        if delay is not None:
            alarm[4 * event + 1 + delay] = 1
    found = judge(marks_of(attack, session, time), alarm, 0.5, 200, 0)["time"]["delay_seconds"]
    assert (found["value"], found["worst"], found["events"], found["missed"]) == (60, 120, 5, 3)
    assert found["median_of_all"]["value"] == np.median([0, 0, 60, 60, 120, np.inf, np.inf, np.inf])
    assert found["low"] == 0
    assert found["value"] <= found["high"] <= 120
    assert found["sessions"] == {"attack": 5}
    alarm[np.arange(4 * count) >= 8] = 0  # two of eight
    found = judge(marks_of(attack, session, time), alarm, 0.5, 200, 0)["time"]["delay_seconds"]
    assert (found["events"], found["missed"], found["median_of_all"]["value"]) == (2, 6, None)


def test_medians_of_a_resample_are_those_of_the_repeated_values() -> None:
    rng = np.random.default_rng(0)
    values, weights = np.sort(rng.random(9)), rng.integers(0, 4, (40, 9)).astype(float)
    found = measures._medians(values, weights)
    np.testing.assert_allclose(found, [np.median(np.repeat(values, row.astype(int))) for row in weights])
    assert np.isnan(measures._medians(values, np.zeros((1, 9))))[0]


def test_without_resamples_there_is_no_interval_and_the_point_is_in_none() -> None:
    rng = np.random.default_rng(0)
    attack, session = (rng.random(120) < 0.3).astype(int).tolist(), np.repeat(np.arange(6), 20).tolist()
    marks, scores = marks_of(attack, session, list(range(120))), rng.random(120)
    none = judge(marks, scores, 0.5, 0, 0)
    assert none["recall"]["low"] is None
    assert none["recall"]["reason"] == none["time"]["alerts_per_hour"]["reason"] == "no resample was drawn"
    one = judge(marks, scores, 0.5, 1, 0)["recall"]
    assert one["low"] == one["high"] != one["value"], "the only resample is the interval"
    assert one["sessions"] == {"attack": 6}


def test_sessions_out_of_order_change_nothing() -> None:
    rng = np.random.default_rng(0)
    session, attack = np.repeat(np.arange(6), 20), (rng.random(120) < 0.3).astype(int)
    errors = rng.random(120) + attack
    mixed = np.concatenate([np.flatnonzero(session == one) for one in (3, 1, 5, 0, 2, 4)])
    plain = judge(marks_of(attack.tolist(), session.tolist()), errors, 0.9, 30, 0)
    assert judge(marks_of(attack[mixed].tolist(), session[mixed].tolist()), errors[mixed], 0.9, 30, 0) == plain


def test_a_resample_of_the_ranking_is_scikit_learns_with_weights() -> None:
    rng = np.random.default_rng(1)
    attack, of = rng.random(300) < 0.3, np.repeat(np.arange(30), 10)
    errors = np.round(rng.random(300) + 0.5 * attack, 1)  # ties
    sample = Bootstrap(Blocks(of, np.zeros(30, np.int64)), 5, 0)
    area, precision = ranking(errors, attack, sample)
    for i, weight in enumerate(sample.weights[:, of]):
        assert area[i] == pytest.approx(roc_auc_score(attack, errors, sample_weight=weight))
        assert precision[i] == pytest.approx(average_precision_score(attack, errors, sample_weight=weight))


@pytest.mark.parametrize(("value", "missing"), [(0, "of an attack"), (1, "benign")])
def test_a_single_class_gives_null_with_a_reason(value: int, missing: str) -> None:
    found = judge(marks_of([value] * 20, [0] * 10 + [1] * 10), np.arange(20.0), 17.0, 20, 0)
    assert found["roc_auc"]["value"] is None
    assert found["roc_auc"]["reason"] == f"no window is {missing}"
    defined = found["recall"] if value else found["fpr"]
    assert defined["value"] == pytest.approx(0.1)
    json.dumps(found, allow_nan=False)


def test_one_session_gives_no_interval() -> None:
    found = judge(marks_of([0, 1, 0, 1], [0] * 4), np.array([0.0, 2, 1, 3]), 1.5, 20, 0)
    assert found["roc_auc"]["value"] == 1
    assert found["roc_auc"]["low"] is None
    assert "one session" in found["roc_auc"]["reason"]


def test_unlabelled_data_are_scored_and_not_judged(tmp_path: Path) -> None:
    said: list[str] = []
    found = evaluate(make_run(tmp_path, unknown=True, timed=False), EvaluationSettings(target_fpr=0.05, resamples=20), said.append)
    assert found["test"]["windows"] == {"benign": 0, "attack": 0, "unknown": 240}
    assert found["test"]["roc_auc"]["value"] is None
    assert "without a label" in found["threshold"]["reference"]
    assert found["test"]["alarms"] > 0
    assert any("roc auc is not known" in line for line in said)


def test_groups_and_labels(results: dict) -> None:
    groups, labels = results["test"]["by_group"], results["test"]["by_label"]
    assert [row["group"] for row in groups] == ["camp", "farm"]
    assert [row["events"] for row in groups] == [4, 2]
    assert sum(row["windows"] for row in labels) == 240
    assert [row["attack"] for row in labels] == [False, True, True]
    assert labels[1]["roc_auc"] > 0.9


def damage_shape(folder: Path) -> None:
    np.save(folder / "time_test.npy", np.zeros(3, np.int64))


def damage_name(folder: Path) -> None:
    (folder / "label_test.npy").unlink()


def damage_index(folder: Path) -> None:
    np.save(folder / "label_test.npy", np.full(240, 7, np.int32))


def damage_windows(folder: Path) -> None:
    np.save(folder / "X_test_sequences.npy", np.zeros((240, 9, 5), np.float32))


def damage_attack(folder: Path) -> None:
    np.save(folder / "y_val.npy", np.ones(240, np.int8))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_shape, "time_test.npy has shape"),
        (damage_name, "label_test.npy' is missing"),
        (damage_index, "beyond the 3 names"),
        (damage_windows, "reads windows of 6 x 5"),
        (damage_attack, "no benign validation window"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(tmp_path: Path, damage: object, message: str) -> None:
    layout = make_run(tmp_path, change=damage)
    with pytest.raises(UserError, match=message):
        evaluate(layout, EvaluationSettings(), lambda _: None)
    assert not layout.eval.exists()


def test_altered_windows_and_a_model_of_other_windows_are_refused(tmp_path: Path) -> None:
    layout = make_run(tmp_path)
    path = layout.encoded / "y_test.npy"
    marks = path.read_bytes()
    np.save(path, 1 - np.load(path))
    with pytest.raises(UserError, match=r"file 'y_test\.npy' was altered"):
        evaluate(layout, EvaluationSettings(), lambda _: None)
    path.write_bytes(marks)
    evaluate(layout, EvaluationSettings(resamples=5), lambda _: None)
    before = (layout.eval / "meta.json").read_bytes()
    write_encoded(layout.encoded, sessions=7)
    with pytest.raises(UserError, match=r"was trained on other windows than .*run stage 3 again"):
        evaluate(layout, EvaluationSettings(), lambda _: None)
    assert (layout.eval / "meta.json").read_bytes() == before
    write_encoded(layout.encoded)  # the same windows, written later
    evaluate(layout, EvaluationSettings(resamples=5), lambda _: None)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = make_run(tmp_path)
    words = ["--dataset", "iot23", "--version", "v1", "--out", str(tmp_path), "--target-fpr", "0.05"]
    assert finish(evaluation.run, words) == 0
    assert "roc auc" in capsys.readouterr().out
    open_artifact(layout.eval, KIND)
    assert finish(evaluation.run, [*words[:-1], "1.5"]) == 2
    assert "--target-fpr is 1.5" in capsys.readouterr().err


def test_nothing_is_fitted(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AnomalyDetector, "fit", lambda *_: pytest.fail("fitted"))
    evaluate(layout, EvaluationSettings(target_fpr=0.05, resamples=5), lambda _: None)


def test_alarms_an_hour_are_not_told_of_thinned_windows(tmp_path: Path) -> None:
    def thinned(folder: Path) -> None:
        tree = json.loads((folder / "metadata.json").read_text())
        (folder / "metadata.json").write_text(json.dumps({**tree, "windows_before_reduction": {"test": 1000}}))

    said: list[str] = []
    whole = evaluate(make_run(tmp_path / "whole"), EvaluationSettings(resamples=20), said.append)["test"]["time"]
    assert whole["alerts_per_hour"]["value"] is not None
    found = evaluate(make_run(tmp_path / "thinned", change=thinned), EvaluationSettings(resamples=20), said.append)["test"]["time"]
    assert found["alerts_per_hour"]["value"] is found["false_alerts_per_hour"]["value"] is None
    assert "of 1,000 test windows were kept" in found["alerts_per_hour"]["reason"]
    assert found["delay_seconds"] == whole["delay_seconds"]
