import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from src.evaluation import detection
from src.evaluation.detection import Blocks, Bootstrap

CLASSES = 4


def windows(rng: np.random.Generator, runs: int = 12, length: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, runs and probabilities of windows whose errors last: three runs a class."""
    truth = np.repeat(np.arange(runs) % CLASSES, length)
    segment = np.repeat(np.arange(runs), length)
    logits = rng.normal(size=(runs * length // 20, CLASSES)).repeat(20, axis=0) + 1.5 * np.eye(CLASSES)[truth]
    likely = np.exp(logits)
    return truth, segment, np.round(likely / likely.sum(axis=1, keepdims=True), 2)  # rounded: scores have ties


@pytest.fixture(scope="module")
def case() -> tuple[np.ndarray, np.ndarray, Bootstrap]:
    truth, segment, probabilities = windows(np.random.default_rng(0))
    return truth, probabilities, Bootstrap(Blocks.cut(truth, segment, 15), resamples=40, seed=3)


def repeated(sample: Bootstrap, row: int) -> np.ndarray:
    """Windows of one resample, each as often as its block was drawn."""
    return np.repeat(np.arange(len(sample.blocks.of)), sample.weights[row, sample.blocks.of].astype(int))


def test_a_block_is_of_one_run_and_about_as_long_as_asked() -> None:
    segment = np.repeat([0, 1, 2, 3], [105, 14, 386, 50])
    label = np.repeat([0, 0, 1, 2], [105, 14, 386, 50])
    blocks = Blocks.cut(label, segment, 50)
    assert (np.diff(blocks.of) >= 0).all()
    for block in range(len(blocks.label)):
        mine = blocks.of == block
        assert len(np.unique(segment[mine])) == 1
        assert (label[mine] == blocks.label[block]).all()
        assert 33 <= mine.sum() <= 75 or mine.sum() == 14
    assert np.bincount(blocks.label).tolist() == [3, 8, 1]


def test_every_resample_holds_every_class_with_as_many_blocks_as_it_has(case: tuple[np.ndarray, np.ndarray, Bootstrap]) -> None:
    sample = case[2]
    for label in range(CLASSES):
        mine = sample.blocks.label == label
        assert (sample.weights[:, mine].sum(axis=1) == mine.sum()).all()


def test_scores_are_those_of_the_windows_and_of_each_resample_written_out(case: tuple[np.ndarray, np.ndarray, Bootstrap]) -> None:
    truth, probabilities, sample = case
    predicted = probabilities.argmax(axis=1)
    wrong, doubt = predicted != truth, detection.entropy(probabilities)
    counts = detection.confusions(sample, predicted, CLASSES)
    found = {
        "macro": detection.macro_f1(counts),
        "accuracy": detection.accuracy(counts),
        "auroc": detection.auroc(sample, doubt, wrong),
        "risk": detection.selective_risk(sample, doubt, wrong, 0.8),
        "ece": detection.calibration_error(sample, truth, probabilities),
        "share": sample.share(predicted > 0, truth == 0),
    }
    for row in range(41):
        at = repeated(sample, row)
        order = at[np.argsort(doubt[at], kind="stable")][: int(0.8 * len(at))]
        bins = np.minimum((probabilities[at] * 15).astype(int), 14)
        gaps = [
            sum(abs((probabilities[at, c] - (truth[at] == c))[bins[:, c] == b].sum()) for b in range(15)) / len(at)
            for c in range(CLASSES)
        ]  # fmt: skip
        assert found["macro"][row] == pytest.approx(f1_score(truth[at], predicted[at], average="macro"))
        assert found["accuracy"][row] == pytest.approx(accuracy_score(truth[at], predicted[at]))
        assert found["auroc"][row] == pytest.approx(roc_auc_score(wrong[at], doubt[at]))
        assert found["ece"][row] == pytest.approx(np.mean(gaps))
        assert found["share"][row] == pytest.approx((predicted[at][truth[at] == 0] > 0).mean())
        assert found["risk"][row] == pytest.approx(wrong[order].mean(), abs=0.02)  # a block stands together at the edge


def test_chunks_of_resamples_give_the_same_risk(case: tuple[np.ndarray, np.ndarray, Bootstrap], monkeypatch: pytest.MonkeyPatch) -> None:
    truth, probabilities, sample = case
    wrong, doubt = probabilities.argmax(axis=1) != truth, detection.entropy(probabilities)
    once = detection.selective_risk(sample, doubt, wrong, 0.8)
    monkeypatch.setattr(detection, "_AT_ONCE", 3 * len(truth))
    np.testing.assert_allclose(detection.selective_risk(sample, doubt, wrong, 0.8), once)


def test_blocks_make_the_interval_as_wide_as_errors_that_last_demand() -> None:
    # Ten windows in a row are right or wrong together, so there are a tenth as many independent ones, and the deviation is sqrt(10) as large.
    rng = np.random.default_rng(1)
    right = np.repeat(rng.random(400) < 0.7, 10)
    truth, segment = np.zeros(4000, dtype=int), np.zeros(4000, dtype=int)
    widths = []
    for length in (1, 40):
        sample = Bootstrap(Blocks.cut(truth, segment, length), 2000, seed=0)
        estimate = sample.mean(sample.share(right, truth == 0))
        assert estimate.low < right.mean() < estimate.high
        widths.append(estimate.high - estimate.low)
    assert widths[1] / widths[0] == pytest.approx(np.sqrt(10), rel=0.15)


def test_differences_are_paired_by_block_and_resampled_by_seed(case: tuple[np.ndarray, np.ndarray, Bootstrap]) -> None:
    _, probabilities, sample = case
    one = detection.macro_f1(detection.confusions(sample, probabilities.argmax(axis=1), CLASSES))
    same = sample.difference(one, one)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    shifted = sample.difference(one + 0.01, one)
    assert shifted.low == pytest.approx(0.01) == pytest.approx(shifted.high)
    single, several = sample.mean(one), sample.mean(np.stack([one - 0.2, one, one + 0.2]))
    assert several.value == pytest.approx(single.value)
    assert several.high - several.low > single.high - single.low + 0.1
    again = Bootstrap(sample.blocks, 40, seed=3)
    assert again.mean(one) == single


def test_calibration_error_is_nothing_for_honest_probabilities_and_the_lie_for_others() -> None:
    rng = np.random.default_rng(2)
    p = rng.random(60_000)
    truth = (rng.random(60_000) < p).astype(int)
    honest = np.column_stack([1 - p, p])
    sample = Bootstrap(Blocks.cut(np.zeros(60_000, dtype=int), np.zeros(60_000, dtype=int), 50), 10, seed=0)
    assert detection.calibration_error(sample, truth, honest)[0] < 0.01
    assert detection.top_calibration_error(sample, truth, honest)[0] < 0.01
    sure = np.eye(2)[np.ones(60_000, dtype=int)]
    assert detection.calibration_error(sample, truth, sure)[0] == pytest.approx(1 - truth.mean())
    confidence, right, share = detection.reliability(truth, honest)
    held = share > 0
    assert share.sum() == pytest.approx(1)
    np.testing.assert_allclose(confidence[held], right[held], atol=0.03)


def test_the_threshold_lets_no_more_than_its_rate_through() -> None:
    rng = np.random.default_rng(3)
    for scores in (rng.random(1000), rng.integers(0, 5, 1000) / 5.0, np.zeros(10)):
        assert (scores > detection.threshold_at(scores, 0.01)).mean() <= 0.01
    assert (np.arange(1000) > detection.threshold_at(np.arange(1000.0), 0.01)).mean() == pytest.approx(0.01, abs=0.002)


def test_prevalence_changes_precision_and_not_recall() -> None:
    confusion = np.array([[90.0, 10.0], [5.0, 5.0]])
    natural = detection.at_prevalence(confusion, np.array([1000.0, 1000.0]))
    np.testing.assert_allclose(natural, [[900, 100], [500, 500]])
    assert detection.accuracy(natural) == pytest.approx(0.7)
    assert detection.macro_f1(natural) == pytest.approx((2 * 900 / 2400 + 2 * 500 / 1600) / 2)


def test_confusions_merge_into_families() -> None:
    confusion = np.arange(9.0).reshape(3, 3)
    np.testing.assert_allclose(detection.merged(confusion, np.array([0, 1, 1]), 2), [[0, 3], [9, 24]])


def test_the_risk_curve_falls_where_doubt_knows_and_ends_at_all_errors() -> None:
    wrong = np.array([True] * 20 + [False] * 80)
    kept, risk = detection.risk_curve(wrong + 0.0, wrong)
    assert kept[-1] == 1
    assert risk[-1] == pytest.approx(0.2)
    assert risk[79] == 0
