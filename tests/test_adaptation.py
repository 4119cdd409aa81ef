"""Taking a detector to another site: on made-up sites whose every difference from home is known, and on real captures where they are at hand."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from src.config import DataConfig, TemporalTrainingConfig
from src.data.ciciot2023 import FEATURES_39, FEATURES_46, Capture
from src.data.dataset import Dataset, Rows, load_dataset
from src.data.site import read_site
from src.data.synthetic import Profile
from src.data.transplant import AT, MOVED, VOLUME, Move, blend, capture_windows, column_distances, divide_captures, finite_rates
from src.data.windows import gather, window_starts
from src.errors import UserError
from src.models.lstm_attack_predictor import LSTMConfig, RealDataLSTMPredictor, build_model
from src.models.predictor_interface import EnhancedAttackPredictor
from src.models.temporal_lstm import create_model
from src.training.adaptation import HOME, SITE, AdaptationSettings, SiteBatches, SiteDetector, adapt, threshold_for, unread_columns
from src.training.temporal_trainer import IGNORED

T = 5
SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
needs_real = pytest.mark.skipif(not (SHARED / "ciciot39" / "iot_sentinel").exists(), reason="the real captures (../shared/data) are not here")
TRAINING = TemporalTrainingConfig(epochs=3, batch_size=128, class_weights="none", learning_rate=5e-3)
SETTINGS = AdaptationSettings(batches=30)


def profile_dataset() -> Dataset:
    """Benign traffic, a scan, spoofing and a flood of the embedded profile; columns are the real ones."""
    names = ("BenignTraffic", "DDoS-UDP_Fragmentation", "Recon-PingSweep", "Spoofing")
    splits = {}
    for side, size in {"fit": 500, "calibrate": 200, "test": 200}.items():
        parts = [Profile.embedded().draw(name, size, np.random.default_rng([len(side), index])) for index, name in enumerate(names)]
        label = np.repeat(np.arange(len(names)), size).astype(np.int16)
        none = np.full(len(label), np.nan)
        features = np.concatenate(parts).astype(np.float32)
        splits[side] = Rows(features, label, label.astype(np.int32), none, none, np.zeros(len(label), np.int16))
    return Dataset(FEATURES_39, names, splits, "synthetic profile", "home", (), "hash", {}, ("home",))


def elsewhere(rows: np.ndarray) -> np.ndarray:
    """Rows as at a site with other hop counts, pace and ports: what `unlike` must find."""
    moved = rows.copy()
    moved[:, AT["Time_To_Live"]] = moved[:, AT["Time_To_Live"]] / 4 + 5
    moved[:, AT["Rate"]] /= 100
    moved[:, AT["IAT"]] *= 100
    moved[:, AT["HTTPS"]] = 0
    return moved


def captures(count: int, size: int, seed: int, device: str = "Benign:Cam") -> list[Capture]:
    """Ordinary traffic of the site."""
    found = []
    for index in range(count):
        rows = elsewhere(Profile.embedded().draw("BenignTraffic", size, np.random.default_rng([seed, index])).astype(np.float32))
        found.append(Capture(device, True, rows, np.zeros(size, np.int32), 1e4 * index + np.arange(size, dtype=np.float64), np.ones(size)))
    return found


@pytest.fixture(scope="module")
def home() -> Dataset:
    return profile_dataset()


@pytest.fixture(scope="module")
def model(home: Dataset) -> RealDataLSTMPredictor:
    fresh = build_model(LSTMConfig(len(FEATURES_39), 24, 1, len(home.class_names), 0.1, sequence_length=T), 0)
    fresh.scaler.fit(home.splits["fit"].features)
    return fresh


@pytest.fixture(scope="module")
def site() -> list[Capture]:
    return captures(10, 60, 7)


@pytest.fixture(scope="module")
def adapted(model: RealDataLSTMPredictor, home: Dataset, site: list[Capture]) -> SiteDetector:
    return adapt(model, home, site, SETTINGS, TRAINING, seed=0)


def windows_of(dataset: Dataset, label: int, side: str = "test") -> np.ndarray:
    rows = dataset.splits[side]
    starts = window_starts(rows.segment, T)
    return gather(rows.features, starts[rows.label[starts] == label], T)


def rows_of(frames: np.ndarray) -> np.ndarray:
    """One row of frames (N, 4): size, SYN, TTL, header length; deviations are those of the population, so that mixtures are exact."""
    row = np.zeros((1, len(FEATURES_39)), dtype=np.float32)
    size, syn, ttl, header = frames.T
    values = {
        "AVG": size.mean(), "Tot size": size.mean(), "Tot sum": size.sum(), "Std": size.std(), "Variance": size.var(), "Min": size.min(), "Max": size.max(),
        "syn_flag_number": syn.mean(), "syn_count": syn.sum(), "Time_To_Live": ttl.mean(), "Header_Length": header.mean(), "Number": len(frames),
    }  # fmt: skip
    for name, value in values.items():
        row[0, AT[name]] = value
    return row


def frames(count: int, rng: np.random.Generator) -> np.ndarray:
    return np.column_stack([rng.integers(60, 1500, count), rng.integers(0, 2, count), rng.integers(30, 250, count), rng.integers(8, 41, count)])


# Rows of another site


def test_a_blended_row_is_the_row_of_the_mixed_frames() -> None:
    rng = np.random.default_rng(0)
    a, b = frames(4, rng), frames(6, rng)
    whole = rows_of(np.concatenate([a, b]))
    mixed = blend(rows_of(a), rows_of(b), np.array([0.4]))
    for name in ("AVG", "Tot size", "Std", "Variance", "Min", "Max", "syn_flag_number", "Time_To_Live", "Header_Length"):
        np.testing.assert_allclose(mixed[0, AT[name]], whole[0, AT[name]], rtol=1e-5, err_msg=name)
    assert mixed[0, AT["syn_count"]] == pytest.approx(4 * whole[0, AT["syn_flag_number"]])  # a row keeps its number of frames


def test_a_blend_of_everything_from_home_changes_nothing(home: Dataset) -> None:
    rows = home.splits["fit"].features[400:700]
    np.testing.assert_allclose(blend(rows, elsewhere(rows), np.ones(len(rows)))[:, AT["Time_To_Live"]], rows[:, AT["Time_To_Live"]], rtol=1e-5)
    none = blend(rows, elsewhere(rows), np.full(len(rows), 0.01))
    assert abs(np.median(none[:, AT["Rate"]]) / np.median(elsewhere(rows)[:, AT["Rate"]]) - 1) < 0.2


def test_moved_rows_have_the_quantiles_of_the_site_and_columns_still_follow_from_one_another(home: Dataset, site: list[Capture]) -> None:
    ordinary = home.splits["fit"].features[home.splits["fit"].label == 0]
    there = np.concatenate([capture.features for capture in site])
    moved = Move(ordinary, there)(ordinary)
    for name in ("Time_To_Live", "Rate", "IAT"):
        np.testing.assert_allclose(np.quantile(moved[:, AT[name]], [0.25, 0.5, 0.75]), np.quantile(there[:, AT[name]], [0.25, 0.5, 0.75]), rtol=0.1)
        assert column_distances(ordinary, there)[AT[name]] > 0.4 > column_distances(moved, there)[AT[name]] + 0.3
    np.testing.assert_allclose(moved[:, AT["Variance"]], moved[:, AT["Std"]] ** 2, rtol=1e-5)
    np.testing.assert_allclose(moved[:, AT["Tot sum"]], moved[:, AT["AVG"]] * moved[:, AT["Number"]], rtol=1e-5)
    assert (moved[:, AT["Min"]] <= moved[:, AT["AVG"]]).all()
    assert (moved[:, AT["AVG"]] <= moved[:, AT["Max"]]).all()
    untouched = [AT[name] for name in ("HTTPS", "syn_flag_number", "Protocol Type", "ARP", "Number")]
    np.testing.assert_array_equal(moved[:, untouched], ordinary[:, untouched])


def test_what_stands_out_at_home_stands_out_as_far_at_the_site(home: Dataset, site: list[Capture]) -> None:
    ordinary = home.splits["fit"].features[home.splits["fit"].label == 0]
    there = np.concatenate([capture.features for capture in site])
    flood = ordinary[:1].copy()
    flood[0, AT["Rate"]] = 1000 * ordinary[:, AT["Rate"]].max()
    moved = Move(ordinary, there)(flood)
    assert moved[0, AT["Rate"]] / there[:, AT["Rate"]].max() == pytest.approx(1000, rel=0.05)


def test_a_move_to_where_one_is_goes_nowhere(home: Dataset) -> None:
    ordinary = home.splits["fit"].features[home.splits["fit"].label == 0]
    columns = [AT[name] for name in MOVED]
    np.testing.assert_allclose(Move(ordinary, ordinary)(ordinary)[:, columns], ordinary[:, columns], rtol=1e-4, atol=1e-6)


def test_the_distance_of_columns_is_that_of_kolmogorov_and_smirnov() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 2)).astype(np.float32), rng.normal(0.5, 2, size=(200, 2)).astype(np.float32)
    stats = pytest.importorskip("scipy.stats")
    np.testing.assert_allclose(column_distances(a, b), [stats.ks_2samp(a[:, column], b[:, column]).statistic for column in range(2)])
    assert column_distances(a, a).max() == 0
    assert column_distances(a, a + 100).min() == 1


def test_windows_of_captures_never_cross_a_gap_and_short_ones_are_filled_with_their_oldest_row() -> None:
    def capture(runs: list[int]) -> Capture:
        size = sum(runs)
        rows = np.repeat(np.arange(size, dtype=np.float32)[:, None], len(FEATURES_39), axis=1)
        return Capture("Benign:Cam", True, rows, np.repeat(np.arange(len(runs)), runs).astype(np.int32), np.arange(size, dtype=np.float64), np.ones(size))

    windows, of = capture_windows([capture([6, 5]), capture([2])], T)
    np.testing.assert_array_equal(windows[:, :, 0], [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [0, 0, 0, 0, 1]])
    np.testing.assert_array_equal(of, [0, 0, 0, 1])
    with pytest.raises(UserError, match="captures hold too few rows"):
        capture_windows([], T)


def test_the_earliest_captures_of_each_device_are_learned_and_an_only_one_is_cut_in_time() -> None:
    both = [*captures(5, 8, 0), *captures(1, 10, 1, "Benign:Plug")]
    early, late = divide_captures(both, 0.6)
    assert [capture.start[0] for capture in early] == [0, 1e4, 2e4, 0]
    assert [capture.start[0] for capture in late] == [3e4, 4e4, 6]
    assert [len(capture.features) for capture in (early[-1], late[-1])] == [6, 4]
    early, late = divide_captures(both[:2], 0.99)
    assert (len(early), len(late)) == (1, 1)  # neither side goes empty


def test_infinite_rates_become_the_largest_one_of_home(site: list[Capture]) -> None:
    broken = site[0].features.copy()
    broken[3, AT["Rate"]] = np.inf
    [mended] = finite_rates([dataclasses.replace(site[0], features=broken)], 123.0)
    assert mended.features[3, AT["Rate"]] == 123
    assert mended.features.dtype == np.float32
    assert np.isfinite(mended.features).all()


# Batches


def drawn(home: Dataset, captured: list[Capture], **changes: float) -> list[tuple[np.ndarray, ...]]:
    settings = dataclasses.replace(SETTINGS, **changes)
    batches = SiteBatches(home, capture_windows(captured, T)[0], settings, 200, domains=True)
    batches.generator.manual_seed(0)
    return [tuple(part.numpy() for part in batch) for batch in batches]


def test_half_of_a_batch_is_ordinary_and_attack_classes_come_equally_often(home: Dataset, site: list[Capture]) -> None:
    labels = np.concatenate([batch[1] for batch in drawn(home, site)])
    counts = np.bincount(labels, minlength=4) / len(labels)
    np.testing.assert_allclose(counts, [0.5, *[1 / 6] * 3], atol=0.02)


def test_only_ordinary_windows_as_they_came_have_a_domain(home: Dataset, site: list[Capture]) -> None:
    there = {row.tobytes() for capture in site for row in capture.features}
    here = {row.tobytes() for row in home.splits["fit"].features}
    seen: Counter[int] = Counter()
    for windows, labels, domains in drawn(home, site):
        for window, label, domain in zip(windows, labels, domains, strict=True):
            seen[int(domain)] += 1
            if domain == IGNORED:
                continue
            assert label == 0
            assert all(row.tobytes() in (there if domain == SITE else here) for row in window)
    total = sum(seen.values())
    assert seen[HOME] / total == pytest.approx(0.15, abs=0.02)
    assert seen[SITE] / total == pytest.approx(0.15, abs=0.02)


def test_attacks_are_never_taken_from_the_site_and_come_as_they_were_moved_and_blended(home: Dataset, site: list[Capture]) -> None:
    there = {row.tobytes() for capture in site for row in capture.features}
    here = {row.tobytes() for row in home.splits["fit"].features}
    plain = total = 0
    for windows, labels, _ in drawn(home, site):
        for window in windows[labels > 0]:
            assert not any(row.tobytes() in there for row in window)
            plain += all(row.tobytes() in here for row in window)
            total += 1
    assert plain / total == pytest.approx(3 / 7, abs=0.04)


@pytest.mark.parametrize(("shuffled", "apart"), [(0.0, False), (1.0, True)])
def test_rows_are_drawn_apart_in_every_class_or_in_none(home: Dataset, site: list[Capture], shuffled: float, apart: bool) -> None:
    place = {row.tobytes(): index for index, row in enumerate(home.splits["fit"].features)}
    steps: dict[int, list[bool]] = {label: [] for label in range(4)}
    for windows, labels, _ in drawn(home, site, moved=0, blended=0, site=0, shuffled=shuffled):
        for window, label in zip(windows, labels, strict=True):
            steps[int(label)].append(bool((np.diff([place[row.tobytes()] for row in window]) == 1).all()))
    for label, runs in steps.items():
        assert np.mean(runs) == pytest.approx(0.0 if apart else 1.0, abs=0.02), label  # the profile repeats hardly a row


def test_a_site_of_no_weight_and_a_home_of_no_weight_do_without_one_another(home: Dataset, site: list[Capture]) -> None:
    there = {row.tobytes() for capture in site for row in capture.features}
    for windows, labels, _ in drawn(home, site, own=0, moved=0, blended=0):
        assert all((row.tobytes() in there) == (label == 0) for window, label in zip(windows, labels, strict=True) for row in window)
    for windows, _, domains in drawn(home, site, site=0, blended=0):
        assert not any(row.tobytes() in there for window in windows for row in window)
        assert SITE not in domains


def test_batches_follow_from_the_generator(home: Dataset, site: list[Capture]) -> None:
    for one, other in zip(drawn(home, site), drawn(home, site), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


# The adapted detector


def test_a_site_that_was_all_alarms_is_quiet_and_attacks_are_still_seen(adapted: SiteDetector, model: RealDataLSTMPredictor, home: Dataset) -> None:
    """The same training without the site (weights 0, all columns) is the detector as it was at home."""
    later = capture_windows(captures(8, 60, 99), T)[0]
    alone = dataclasses.replace(SETTINGS, unlike=2.0, read_volume=True, moved=0, blended=0, site=0)
    plain = adapt(model, home, captures(10, 60, 7), alone, TRAINING, seed=0)
    at_home = threshold_for([plain.score(windows_of(home, 0, "calibrate"))], 0.1)
    assert (plain.score(later) > at_home).mean() > 0.3
    assert adapted.alarms(later).mean() < 0.2
    assert adapted.alarms(windows_of(home, 0)).mean() < 0.25
    attacks = [adapted.alarms(windows_of(home, label)).mean() for label in (1, 2, 3)]
    before = [plain.alarms(windows_of(home, label)).mean() for label in (1, 2, 3)]  # the threshold alone, moved up to the site's traffic
    assert np.mean(attacks) > 0.6
    assert np.mean(attacks) > np.mean(before) + 0.03


def test_columns_that_tell_the_site_and_those_that_count_frames_are_not_read(adapted: SiteDetector, home: Dataset) -> None:
    assert {"Time_To_Live", "Rate", "IAT", "HTTPS", *VOLUME} <= set(adapted.unread)
    assert {"ARP", "syn_flag_number", "Protocol Type"} & set(adapted.unread) == set()
    windows = windows_of(home, 2)[:50]
    altered = windows.copy()
    altered[:, :, [AT[name] for name in adapted.unread]] *= 7
    np.testing.assert_array_equal(adapted.score(windows), adapted.score(altered))
    altered[:, :, AT["syn_flag_number"]] = 0
    assert np.abs(adapted.score(windows) - adapted.score(altered)).max() > 0.05


def test_the_threshold_flags_no_more_than_asked_for_of_ordinary_windows_of_either_site(adapted: SiteDetector, home: Dataset, site: list[Capture]) -> None:
    held = capture_windows(divide_captures(site, SETTINGS.learned)[1], T)[0]
    shares = [adapted.alarms(windows).mean() for windows in (held, windows_of(home, 0, "calibrate")[::3])]
    assert max(shares) <= 0.1
    assert max(shares) > 0.08  # and no less than it must


def test_a_threshold_is_the_lowest_that_keeps_its_rate() -> None:
    scores = np.arange(100) / 100
    assert threshold_for([scores], 0.1) == pytest.approx(0.9)
    assert threshold_for([scores, scores + 0.05], 0.1) == pytest.approx(0.95)


def test_the_model_that_is_given_stays_as_it_is_and_a_seed_says_everything(
    adapted: SiteDetector, model: RealDataLSTMPredictor, home: Dataset, site: list[Capture]
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = adapt(model, home, site, SETTINGS, TRAINING, seed=0)
    other = adapt(model, home, site, SETTINGS, TRAINING, seed=1)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    windows = windows_of(home, 1)
    np.testing.assert_array_equal(again.score(windows), adapted.score(windows))
    assert again.threshold == adapted.threshold
    assert other.threshold != adapted.threshold


def test_without_weight_the_site_is_not_learned(model: RealDataLSTMPredictor, home: Dataset) -> None:
    alone = dataclasses.replace(SETTINGS, unlike=2.0, read_volume=True, moved=0, blended=0, site=0, batches=5)
    one, other = (adapt(model, home, captures(6, 30, seed), alone, TRAINING, seed=0) for seed in (1, 2))
    for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_training_goes_on_from_the_weights_that_the_model_has(adapted: SiteDetector, home: Dataset, site: list[Capture]) -> None:
    still = TRAINING.model_copy(update={"epochs": 1, "learning_rate": 1e-9})
    assert isinstance(adapted.model, RealDataLSTMPredictor)
    after = adapt(adapted.model, home, site, SETTINGS, still, seed=3).model
    for one, other in zip(adapted.model.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_an_adapted_detector_is_saved_whole_and_opens_as_a_sensor(adapted: SiteDetector, home: Dataset, tmp_path: Path) -> None:
    adapted.save(tmp_path / "site", {"seed": 0})
    opened, sensor = SiteDetector.load(tmp_path / "site"), EnhancedAttackPredictor.load(tmp_path / "site")
    windows = windows_of(home, 1)
    assert (opened.threshold, opened.unread, opened.class_names) == (adapted.threshold, adapted.unread, adapted.class_names)
    np.testing.assert_array_equal(opened.alarms(windows), adapted.alarms(windows))
    np.testing.assert_allclose(1 - sensor.read(windows).probabilities[:, 0], opened.score(windows), atol=1e-6)
    assert np.isfinite(sensor.read(windows).anomaly).all()
    adapted.sensor().save(tmp_path / "plain", {})
    with pytest.raises(UserError, match="was not adapted to a site"):
        SiteDetector.load(tmp_path / "plain")


def test_a_temporal_model_is_adapted_against_its_discriminator(home: Dataset, site: list[Capture], tmp_path: Path) -> None:
    shape = {"input_size": len(FEATURES_39), "num_classes": len(home.class_names), "num_domains": 2, "sequence_length": T, "hidden_size": 8, "num_heads": 1}
    temporal = create_model("fast_training", **shape, head_size=4, memory_slots=4)
    temporal.scaler.fit(home.splits["fit"].features)
    found = adapt(temporal, home, site, dataclasses.replace(SETTINGS, batches=3), TRAINING.model_copy(update={"epochs": 1}), seed=0)
    assert temporal.discriminator is not None
    assert not isinstance(found.model, RealDataLSTMPredictor)
    assert found.model.discriminator is not None
    moved = [not torch.equal(a, b) for a, b in zip(temporal.discriminator.parameters(), found.model.discriminator.parameters(), strict=True)]
    assert all(moved)
    assert found.alarms(windows_of(home, 0)).shape == (len(windows_of(home, 0)),)
    with pytest.raises(UserError, match="AdvancedLSTMTemporal cannot be saved as a base sensor"):
        found.save(tmp_path / "temporal", {})


def test_what_cannot_be_adapted_is_said(model: RealDataLSTMPredictor, home: Dataset, site: list[Capture]) -> None:
    with pytest.raises(UserError, match=r"give data\.root in that release"):
        adapt(model, dataclasses.replace(home, feature_names=FEATURES_46), site, SETTINGS, TRAINING, seed=0)
    with pytest.raises(UserError, match=r"load the data set without data\.benign_root"):
        adapt(model, dataclasses.replace(home, class_names=("Benign:Cam", "Benign:Plug", "XSS", "DoS")), site, SETTINGS, TRAINING, seed=0)
    with pytest.raises(UserError, match="captures hold too few rows"):
        adapt(model, home, [], SETTINGS, TRAINING, seed=0)
    with pytest.raises(UserError, match="shuffled is 2; allowed: 0 to 1"):
        AdaptationSettings(shuffled=2)
    with pytest.raises(UserError, match="one of own, moved, blended and site must be above 0"):
        AdaptationSettings(own=0, moved=0, blended=0, site=0)
    with pytest.raises(UserError, match=r"raise settings\.unlike"):
        unread_columns(np.zeros((5, 39), np.float32), np.ones((5, 39), np.float32), SETTINGS)


@pytest.mark.slow
@needs_real
def test_real_devices_elsewhere_are_quiet_and_attacks_are_seen() -> None:
    """Requirement D13 for one seed: IoT Sentinel's later captures, after its earlier ones were learned."""
    data = load_dataset(DataConfig(root=SHARED / "ciciot2023"), 0)
    everything = finite_rates(read_site(SHARED / "ciciot39" / "iot_sentinel", Counter()), float(data.splits["fit"].features[:, AT["Rate"]].max()))
    known, later = divide_captures(everything, 0.5)
    fresh = build_model(LSTMConfig(39, 64, 1, len(data.class_names)), 0)
    fresh.scaler.fit(data.splits["fit"].features)
    training = TemporalTrainingConfig(epochs=5, class_weights="none")
    found = adapt(fresh, data, known, AdaptationSettings(), training, seed=0)
    rows = data.splits["test"]
    starts = window_starts(rows.segment, 10, 3)
    alarms, label = found.alarms(gather(rows.features, starts, 10)), rows.label[starts]
    assert found.alarms(capture_windows(later, 10)[0]).mean() < 0.13
    assert np.mean([alarms[label == one].mean() for one in range(1, len(data.class_names))]) > 0.75
    assert alarms[label == 0].mean() < 0.2
