from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from src.config import DataConfig
from src.data.ciciot2023 import FEATURES_39
from src.data.dataset import load_dataset
from src.data.profile import SMALLEST, fit_profile, main, save_profile
from src.data.synthetic import EMBEDDED, VARIABLES, Profile, compose, decompose, violations
from src.data.taxonomy import FAMILIES, family_index
from src.errors import UserError

REAL = Path(__file__).parents[1] / ".." / "shared" / "data" / "ciciot2023"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="the real captures (../shared/data/ciciot2023) are not here")


@settings(max_examples=200)
@given(
    arrays(np.float64, (5, len(VARIABLES)), elements=st.one_of(st.floats(-20, 20), st.floats(-2000, 70_000))),
    st.sampled_from([2, 3, 10, 100]),
    st.sampled_from([6, 17, 47]),
)
def test_any_variables_make_a_row_that_could_have_been_measured(variables: np.ndarray, number: int, protocol: int) -> None:
    variables[:, -2:] = np.clip(variables[:, -2:], -20, 12)  # logarithms of seconds
    rows = compose(variables, number, np.full(5, protocol)).astype(np.float32)
    assert {name: count for name, count in violations(rows).items() if count} == {}


@pytest.mark.parametrize("name", ["BenignTraffic", "DDoS-UDP_Fragmentation", "Mirai-greip_flood"])
def test_a_row_taken_apart_and_put_together_is_the_same(name: str) -> None:
    profile = Profile.embedded()
    rows = profile.draw(name, 500, np.random.default_rng(0))
    index = profile.class_names.index(name)
    # Which protocol undecoded packets have is not in a row's variables; one of the class's components has it.
    versions = [
        compose(decompose(rows), int(profile.packets[index]), np.full(500, code)) for code in set(profile.other_protocol[profile.owner == index].tolist())
    ]
    same = np.stack([np.isclose(version, rows, rtol=1e-4, atol=1e-4).all(axis=1) for version in versions]).any(axis=0)
    assert same.mean() > 0.99


def test_each_identity_can_be_broken() -> None:
    rows = Profile.embedded().draw("XSS", 50, np.random.default_rng(0))
    assert sum(violations(rows).values()) == 0
    for column, change in {
        "TCP": 0.05, "ack_count": 1, "IPv": 0.1, "LLC": -0.1, "UDP": 2.0, "fin_flag_number": 3.0, "DNS": 3.0, "Header_Length": 0.07, "Time_To_Live": 0.03,
        "Protocol Type": 0.5, "AVG": 3.0, "Min": 0.5, "Max": -1e6, "Variance": 1e6, "Std": 5.0, "IAT": -1e3, "Rate": np.nan,
    }.items():  # fmt: skip
        broken = rows.copy()
        broken[:, FEATURES_39.index(column)] += change
        assert max(violations(broken).values()) == 50, f"changing {column} goes unseen"


def test_embedded_profile_is_small_and_covers_every_family() -> None:
    profile = Profile.embedded()
    assert EMBEDDED.stat().st_size < 2_000_000
    assert set(family_index(profile.class_names)) == set(range(len(FAMILIES)))
    assert {profile.class_names[index] for index in np.flatnonzero(profile.assembled)} == {"BenignTraffic", "DDoS", "DoS", "Recon", "Spoofing"}
    smallest = np.rint(profile.weight * profile.rows[profile.owner]).min()
    assert smallest >= SMALLEST, "quantiles of a few rows would be the rows"
    np.testing.assert_allclose(np.bincount(profile.owner, profile.weight), 1, rtol=1e-5)
    np.testing.assert_allclose(profile.transition.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(profile.mixing, axis=2), 1, rtol=1e-5)


def test_drawn_rows_obey_every_identity_and_are_new() -> None:
    profile = Profile.embedded()
    for index, name in enumerate(profile.class_names):
        rows = profile.draw(name, 2000, np.random.default_rng(7))
        assert rows.dtype == np.float32
        assert sum(violations(rows).values()) == 0, name
        assert (rows[:, FEATURES_39.index("Number")] == profile.packets[index]).all()
        assert len(np.unique(rows, axis=0)) > 1900, f"{name}: rows repeat"


def test_draws_are_seeded_and_of_any_length() -> None:
    profile = Profile.embedded()
    first = profile.draw("XSS", 300, np.random.default_rng(1))
    np.testing.assert_array_equal(first, profile.draw("XSS", 300, np.random.default_rng(1)))
    assert not np.array_equal(first, profile.draw("XSS", 300, np.random.default_rng(2)))
    assert [len(profile.draw("DoS", count, np.random.default_rng(1))) for count in (0, 1, 2, 1025)] == [0, 1, 2, 1025]
    with pytest.raises(UserError, match="has no class 'XXX': it holds BenignTraffic"):
        profile.draw("XXX", 3, np.random.default_rng(1))
    with pytest.raises(UserError, match="drops every class"):
        profile.captures(10, np.random.default_rng(1), profile.class_names)


def test_components_follow_their_chain_and_memory_is_in_the_rows() -> None:
    profile = Profile.embedded()

    def lag(used: Profile, name: str) -> float:
        column = np.log(used.draw(name, 8000, np.random.default_rng(3))[:, FEATURES_39.index("Rate")])
        return float(np.corrcoef(column[:-1], column[1:])[0, 1])

    ordered = [name for name, mixed in zip(profile.class_names, profile.assembled, strict=True) if not mixed]
    assert lag(profile, "BrowserHijacking") > 0.4
    assert abs(lag(profile, "DoS")) < 0.05, "shuffled rows have no memory"
    forgetful = replace(profile, memory=np.zeros_like(profile.memory))
    chainless = replace(profile, transition=np.ones_like(profile.transition))
    whole, without_memory, without_chain = (np.mean([lag(used, name) for name in ordered]) for used in (profile, forgetful, chainless))
    assert whole > without_memory + 0.05
    assert whole > without_chain + 0.15


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    profile = Profile.embedded()
    save_profile(profile, tmp_path / "p.npz")
    again = Profile.load(tmp_path / "p.npz")
    for field in fields(Profile):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(profile, field.name))
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    for name in ("bad.npz", "none.npz"):
        with pytest.raises(UserError, match=rf"{name}' is no traffic profile"):
            Profile.load(tmp_path / name)


def test_a_profile_of_drawn_data_describes_it(tmp_path: Path) -> None:
    data = load_dataset(DataConfig(synthetic_rows_per_class=1500, exclude_labels=["Mirai"]), 0)
    profile = fit_profile(data, 0, components=3)
    assert profile.class_names == data.class_names
    part = data.splits["fit"]
    for name in ("XSS", "Mirai-udpplain"):
        mine = part.features[part.label == data.class_names.index(name)]
        drawn = profile.draw(name, 4000, np.random.default_rng(0))
        for column in ("Rate", "Tot sum", "TCP", "Header_Length"):
            index = FEATURES_39.index(column)
            expected, found = np.quantile(mine[:, index], [0.25, 0.5, 0.75]), np.quantile(drawn[:, index], [0.25, 0.5, 0.75])
            np.testing.assert_allclose(found, expected, rtol=0.2, atol=1e-6, err_msg=f"{name} {column}")
    few = data.splits["fit"]
    few = replace(few, label=np.where((few.label == 1) & (np.arange(len(few.label)) % 8 > 0), np.int16(2), few.label))
    with pytest.raises(UserError, match=f"class '{data.class_names[1]}' has .* a profile needs {SMALLEST}, or it would repeat rows"):
        fit_profile(replace(data, splits={"fit": few}), 0)
    with pytest.raises(UserError, match="39-feature release; this data has 2 features"):
        fit_profile(replace(data, feature_names=("a", "b")), 0)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err


@needs_real
def test_embedded_profile_is_that_of_the_real_fit_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(REAL), "--out", str(tmp_path / "p.npz")]) == 0
    assert "17 classes" in capsys.readouterr().out
    made, shipped = Profile.load(tmp_path / "p.npz"), Profile.embedded()
    assert made.origin == shipped.origin, "make it again with: python -m src.data.profile --root FOLDER"
    np.testing.assert_array_equal(made.rows, shipped.rows)


@needs_real
def test_no_original_row_can_be_read_from_it() -> None:
    """No real row is drawn, and quantiles of one level across variables are no real rows, but for chance.

    Rows of some floods differ in two times alone, both whole microseconds: there a level can meet a row by chance.
    """
    data = load_dataset(DataConfig(root=REAL), 0)
    profile, met = Profile.embedded(), 0
    for index, name in enumerate(profile.class_names):
        real = {row.tobytes() for part in data.splits.values() for row in part.features[part.label == index]}
        drawn = profile.draw(name, 3000, np.random.default_rng(0))
        assert sum(row.tobytes() in real for row in drawn) == 0, name
        own = np.flatnonzero(profile.owner == index)
        stored = profile.quantiles[own].transpose(0, 2, 1).reshape(-1, len(VARIABLES)).astype(np.float64)
        again = compose(stored, int(profile.packets[index]), np.full(len(stored), 6)).astype(np.float32)
        met += sum(row.tobytes() in real for row in again)
    assert met <= 0.0005 * profile.quantiles.shape[0] * profile.quantiles.shape[2]


@needs_real
def test_rows_of_the_real_data_obey_the_identities() -> None:
    """The identities are those of the data, not of the generator."""
    data = load_dataset(DataConfig(root=REAL), 0)
    assert {name: count for name, count in violations(np.concatenate([part.features for part in data.splits.values()])).items() if count} == {}


@needs_real
def test_a_classifier_trained_on_drawn_rows_works_on_real_ones() -> None:
    """The gate's measurement at a small size; `benchmarks/profile_fidelity.py` is the full one."""
    lightgbm = pytest.importorskip("lightgbm")
    from sklearn.metrics import f1_score

    real = load_dataset(DataConfig(root=REAL), 0)
    drawn = load_dataset(DataConfig(synthetic_rows_per_class=2000), 0)
    family, part, rng = family_index(real.class_names), real.splits["test"], np.random.default_rng(0)

    def score(rows: np.ndarray, label: np.ndarray) -> float:
        tree = lightgbm.LGBMClassifier(n_estimators=40, num_threads=1, verbose=-1, random_state=0).fit(rows, family[label])
        return f1_score(family[part.label], tree.booster_.predict(part.features).argmax(axis=1), average="macro")

    fit = real.splits["fit"]
    chosen = rng.permutation(len(fit.label))[:17_000]
    assert drawn.class_names == real.class_names
    assert score(drawn.splits["fit"].features, drawn.splits["fit"].label) >= 0.9 * score(fit.features[chosen], fit.label[chosen])
