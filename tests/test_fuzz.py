"""Wrong input of every kind: refused in one clear line, or accepted with finite numbers. Mutated files, made-up values, and artifacts altered at any byte."""

import gzip
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz_targets
from benchmarks.fuzz_artifacts import check, make_kinds
from benchmarks.fuzzing import (
    ACCEPTED,
    CRASH,
    DEFECTS,
    HANG,
    NOT_FINITE,
    REFUSED,
    TRACEBACK,
    UNCLEAR,
    Target,
    fuzz,
    judge,
    laughs,
    not_finite,
    run_case,
    unclear,
)
from envs.recording import read_recording
from envs.scenarios import load_scenario
from src.artifacts import check_seal, new_artifact, open_artifact, seal
from src.config import Config, DataConfig, leaves, load_config, parse_yaml
from src.data.ciciot2023 import FEATURES_39
from src.data.dataset import load_dataset
from src.data.flows import read_flows
from src.data.site import read_site
from src.data.sysmon import read_otrf
from src.data.tables import LONGEST_HEADER, natural, readable, typed
from src.data.zeek import read_zeek
from src.errors import LONGEST, UserError
from src.sae.aggregation import read_schema
from src.sae.features import Encoder
from src.sae.windows import split_fault
from src.watch.site import load_site

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
REAL = SHARED if (SHARED / "iot23").is_dir() else None
LIKELY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


# ------------------------------------------------------------------------------------------------------------------------------ mutated files


@pytest.mark.parametrize("target", fuzz_targets.TARGETS, ids=lambda target: target.name)
@pytest.mark.filterwarnings("ignore")
def test_a_few_mutated_inputs_of_each_kind(target: Target, tmp_path: Path) -> None:
    seeds = target.seeds(None)
    outcomes = [(index, *run_case(target, seeds, 7, index, tmp_path)) for index in range(14)]
    assert not [one for one in outcomes if one[1] in DEFECTS]


@pytest.mark.slow
@pytest.mark.parametrize("target", fuzz_targets.TARGETS, ids=lambda target: target.name)
def test_twenty_thousand_mutated_inputs(target: Target) -> None:
    tally = fuzz("benchmarks.fuzz_targets", target, target.cases, 3, REAL)
    assert not tally.defects
    assert tally.outcomes[ACCEPTED] > 0, "all is refused: nothing was tried"
    assert tally.outcomes[REFUSED] > 0


def test_the_slow_ones_are_twenty_thousand() -> None:
    assert sum(target.cases for target in fuzz_targets.TARGETS) >= 20_000


def test_defects_are_seen() -> None:
    assert judge(lambda: 1 // 0)[0] == TRACEBACK
    assert judge(lambda: {"a": [np.array([1.0, np.inf])]}) == (NOT_FINITE, ".a.0")
    assert judge(lambda: (_ for _ in ()).throw(UserError("something is wrong")))[0] == UNCLEAR
    assert judge(lambda: (_ for _ in ()).throw(UserError("'x.csv' is empty")))[0] == REFUSED
    assert judge(lambda: pl.DataFrame({"a": [1.0, None]}))[0] == ACCEPTED
    assert not_finite(pl.DataFrame({"a": [1.0, math.nan]})) == ".a"
    assert not_finite({"start": np.array([math.nan])}, ("start",)) is None
    assert not_finite({"start": np.array([math.inf])}, ("start",)) == ".start"
    assert [unclear(text) is None for text in ("", "a", "'x'\n", "'x' Traceback", "'x'" * 300, "'x' is wrong")] == [False] * 5 + [True]


def _die(path: Path, out: Path) -> None:
    import os

    if out.parent.name == "case":  # the good input is read elsewhere
        os.abort()


def _hang(path: Path, out: Path) -> None:
    import time

    if out.parent.name == "case":
        time.sleep(60)


TARGETS = (
    Target("dies", "json", lambda _: [{"a.json": b"{}"}], _die),
    Target("hangs", "json", lambda _: [{"a.json": b"{}"}], _hang),
)
"""For a worker to import."""


@pytest.mark.parametrize(("place", "outcome"), [(0, CRASH), (1, HANG)])
def test_a_worker_that_dies_or_hangs_is_counted(place: int, outcome: str) -> None:
    tally = fuzz("tests.test_fuzz", TARGETS[place], 1, seconds=1)
    assert tally.outcomes == {outcome: 1}


# --------------------------------------------------------------------------------------------------------------------------------- artifacts


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    torch.set_num_threads(1)
    return list(make_kinds(tmp_path_factory.mktemp("kinds")))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_artifacts_altered_at_any_byte_are_refused(kinds: list[Any]) -> None:
    assert len(kinds) == 9
    for place, kind in enumerate(kinds):
        row = check(kind, 25, np.random.default_rng([5, place]), ("checksums.json",) if place == 1 else ())
        assert (row["refused"], row["accepted_wrongly"], row["tracebacks"]) == (row["alterations"], 0, 0), row


def test_checksums_in_another_spelling_are_refused(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "x", "test", {}) as target:
        (target / "a.txt").write_text("payload")
    path = tmp_path / "x" / "checksums.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match=r"checksums\.json' was altered"):
        open_artifact(tmp_path / "x", "test")
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be read"):
        open_artifact(tmp_path / "x", "test")


def test_a_sealed_file_is_known_from_an_altered_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(range(200)))
    with pytest.raises(UserError, match="older version"):
        check_seal(path, "delete it")
    seal(path)
    check_seal(path, "delete it")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match="altered or cut off"):
            check_seal(path, "delete it")
    for other in (whole[:-1], whole + b"\n", b""):
        path.write_bytes(other)
        with pytest.raises(UserError, match="altered or cut off"):
            check_seal(path, "delete it")


# ------------------------------------------------------------------------------------------------------------------- what was found, one by one


def test_a_message_is_one_line_of_bounded_length() -> None:
    assert str(UserError("'a\nb\x1b[31m\x00\udcff' is wrong")) == r"'a\nb\x1b[31m\x00\udcff' is wrong"
    long = str(UserError("begin " + "x" * 5000 + " end"))
    assert (len(long), long[:6], long[-4:]) == (LONGEST, "begin ", " end")
    assert str(UserError("über 'ä'")) == "über 'ä'"


@pytest.mark.parametrize(
    "text",
    ["2020-99-99", '!!int ""', "!!bool x", "!!timestamp x", "? [a]\n: b", "[" * 5000, "{a: " * 5000, "9" * 5000, "x" * 2**21, laughs(), laughs(merged=True)],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_yaml_that_is_no_settings_ends_in_one_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)
    (tmp_path / "x.yml").write_text(text)
    for read in (load_config, load_scenario, load_site):
        with pytest.raises(UserError, match=r"x\.yml"):
            read(str(tmp_path / "x.yml"))  # type: ignore[operator]
    with pytest.raises(UserError, match="not a YAML value"):
        load_config(overrides=[f"compute.seed={text}"], environ={})


def test_aliases_that_stand_for_little_are_read(tmp_path: Path) -> None:
    assert parse_yaml("a: &x [1, 2]\nb: *x\nc: {<<: {d: 3}, e: 4}") == {"a": [1, 2], "b": [1, 2], "c": {"d": 3, "e": 4}}


def test_a_site_file_says_each_key_once_and_a_number_of_any_length_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.yml").write_text("scenario: home\nscenario: clinic\n")
    with pytest.raises(UserError, match="stands twice"):
        load_site(str(tmp_path / "x.yml"))
    (tmp_path / "x.yml").write_text(f"scenario: 0x{'f' * 5000}\n")
    with pytest.raises(UserError, match="a number of 20000 bits"):
        load_site(str(tmp_path / "x.yml"))


def small(root: Path, **more: Any) -> DataConfig:
    return DataConfig(root=root, window=2, gap=2, exclude_labels=[], **more)


def write_all(folder: Path, files: Any) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("cell", ["1e39", "-1e39", "1e308", "1e400"])
def test_what_single_precision_does_not_hold_is_infinite(cell: str, tmp_path: Path) -> None:
    (files, *_) = fuzz_targets._cic39(None)
    text = files["XSS.pcap.csv"].decode().split("\n")
    for column in ("Tot sum", "Rate", "IAT"):
        cells = text[5].split(",")
        cells[FEATURES_39.index(column)] = cell
        whole = [*text[:5], ",".join(cells), *text[6:]]
        write_all(tmp_path, {**files, "XSS.pcap.csv": "\n".join(whole).encode()})
        found = load_dataset(small(tmp_path), 0)
        assert not_finite(found.splits, ("start", "duration")) is None
        assert found.report["rows incomplete"] == (column != "Rate")
    more = fuzz_targets._nbaiot(None)[0]
    lines = more["1.benign.csv"].decode().split("\n")
    lines[5] = cell + lines[5][lines[5].index(",") :]
    write_all(tmp_path / "n", {**more, "1.benign.csv": "\n".join(lines).encode()})
    assert not_finite(load_dataset(small(tmp_path / "n", dataset="nbaiot"), 0).splits, ("start", "duration")) is None


def test_a_site_needs_times_and_rates_of_nothing_last_no_time(tmp_path: Path) -> None:
    (files,) = fuzz_targets._site(None)
    frame = pl.read_csv(files["Cam.csv"]).with_columns(pl.lit(0.0).alias("Rate"))
    frame.write_csv(tmp_path / "Cam.csv")
    assert not any(np.any(capture.duration) for capture in read_site(tmp_path, Counter()))
    frame.with_columns(pl.lit(-1e308).alias("window_start")).write_csv(tmp_path / "Cam.csv")
    with pytest.raises(UserError, match="'window_start' is empty in some row, or no time"):
        read_site(tmp_path, Counter())


@pytest.mark.parametrize("dataset", ["ciciot2023", "nbaiot"])
def test_names_and_lines_that_polars_stumbles_on(dataset: str, tmp_path: Path) -> None:
    files = fuzz_targets._cic39(None)[0] if dataset == "ciciot2023" else fuzz_targets._nbaiot(None)[0]
    name = next(iter(files))
    for ending, words in ((b'"', "ends inside a quotation mark"), (b"", "is longer than 65,536 bytes")):
        content = files[name] + ending if ending else files[name].replace(b"\n", b"," + b"x" * LONGEST_HEADER + b"\n", 1)
        with pytest.raises(UserError, match=words):
            load_dataset(small(write_all(tmp_path / "a", {**files, name: content}), dataset=dataset), 0)
    with pytest.raises(UserError, match="no UTF-8 text; rename"):
        load_dataset(small(write_all(tmp_path / "a", {**files, f"\udcff{name}": files[name]}) / f"\udcff{name}", dataset=dataset), 0)
    with pytest.raises(UserError, match="cannot be looked up"):
        load_dataset(small(tmp_path / ("x" * 5000), dataset=dataset), 0)
    if dataset == "ciciot2023":
        brackets = load_dataset(small(write_all(tmp_path / "x[1]*", files)), 0)  # no pattern
        assert brackets.data_hash == load_dataset(small(write_all(tmp_path / "y", files)), 0).data_hash
        zipped = bytearray(gzip.compress(files[name]))
        zipped[-6] ^= 1
        with pytest.raises(UserError, match="gzip"):
            load_dataset(small(write_all(tmp_path / "z", {**files, name: bytes(zipped)})), 0)


def test_files_with_digits_that_are_no_numbers_are_sorted() -> None:
    assert sorted([Path("x12"), Path("x2"), Path("x1\u00b22"), Path("\u00b2"), Path("x\u0663")], key=natural)[1:3] == [Path("x2"), Path("x\u0663")]
    assert readable([]) == []


def test_texts_that_are_no_finite_numbers_are_refused() -> None:
    for cell in ("inf", "-inf", "NaN", "1e400"):
        with pytest.raises(UserError, match=f"must hold numbers, found '{cell}'"):
            typed(Path("x.csv"), pl.DataFrame({"a": ["1", cell]}), {"a": pl.Float64})


@pytest.mark.parametrize(
    ("change", "words"), [(("curl", "cu\rl"), "row 2: new-line"), (("curl", '"' + "c" * 200_000), "field larger"), (("src_ip", '"'), "missing|CSV")]
)
def test_flows_that_are_no_csv_are_refused(change: tuple[str, str], words: str, tmp_path: Path) -> None:
    text = fuzz_targets._flows(None)[1]["net1011x_Flow_labeled.csv"].decode().replace(*change, 1)
    if change[1] == "cu\rl":
        text = text.replace("cu\rl", '"cu\rl', 1)
    (tmp_path / "x.csv").write_bytes(text.encode())
    with pytest.raises(UserError, match=r"x\.csv"):
        read_flows(tmp_path / "x.csv", ["src_ip", "user_agent"], ["Stage"], ["Benign"], Counter())


def test_zeek_logs_with_a_column_twice_or_no_fields_are_refused(tmp_path: Path) -> None:
    log = fuzz_targets._zeek(None)[0]["a_conn.log.labeled"].decode()
    for changed, words in (
        (log.replace("\tproto\t", "\tservice\t", 1), "cannot be read"),
        (log.replace(log[log.index("#fields") : log.index("#types")], "#fields\n"), "no Zeek"),
    ):
        (tmp_path / "conn.log.labeled").write_text(changed)
        with pytest.raises(UserError, match=words):
            read_zeek(tmp_path / "conn.log.labeled", ["ts", "service"], ["label"], ["Benign"])


@pytest.mark.parametrize(
    "column", [pl.lit(math.inf).alias("EventID"), pl.lit(math.inf).alias("Image"), pl.struct(pl.lit(1)).alias("Image"), pl.lit([1]).alias("EventID")]
)
def test_event_tables_with_columns_of_other_kinds_are_refused(column: pl.Expr, tmp_path: Path) -> None:
    pl.DataFrame({"EventID": [1, 2], "Image": ["a", "b"]}).with_columns(column).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet"):
        read_otrf(tmp_path / "x.parquet", ["EventID", "Image"])


def test_a_text_column_without_a_word_that_repeats_is_encoded() -> None:
    rows = pl.DataFrame({"a": ["x", None, "y"], "b": [1.0, 2.0, 3.0]})
    encoder = Encoder.fit(rows, {"tfidf_columns": ["a"], "numeric_columns": ["b"]}, 8, 0)
    assert encoder.vocabulary == {"a": []}
    assert np.isfinite(encoder.encode(rows)).all()


def test_json_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a":' * 100_000)
    for read in (read_schema, read_recording):
        with pytest.raises(UserError, match=r"x\.json"):
            read(tmp_path / "x.json")


def test_a_recording_of_endless_settings_is_refused(tmp_path: Path) -> None:
    text = fuzz_targets._episodes()[0]["episode.jsonl"].decode()
    (tmp_path / "e.jsonl").write_text(text)
    assert read_recording(tmp_path / "e.jsonl").footer.steps
    (tmp_path / "e.jsonl").write_text(text.replace('"attack_free":', '"endless":1e400,"attack_free":', 1))
    with pytest.raises(UserError, match="line 1: a setting is not finite"):
        read_recording(tmp_path / "e.jsonl")


# --------------------------------------------------------------------------------------------------------------------------- made-up values

plain_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["clinic", "auto", "ppo", "1e9", "", "\x00"])
values = st.recursive(plain_values, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8)


def settled(read: Callable[[], Any]) -> None:
    outcome, detail = judge(read, ("start", "duration"))
    assert outcome in (ACCEPTED, REFUSED), detail


@LIKELY
@given(st.dictionaries(st.sampled_from(sorted(leaves())), values, min_size=1, max_size=4))
def test_any_value_of_any_setting_is_accepted_or_refused(tmp_path: Path, given_values: dict[str, Any]) -> None:
    tree: dict[str, Any] = {}
    for dotted, value in given_values.items():
        *sections, leaf = dotted.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    (tmp_path / "c.yml").write_text(yaml.safe_dump(tree), encoding="utf-8", errors="replace")
    settled(lambda: load_config(tmp_path / "c.yml", environ={}))
    settled(lambda: load_config(overrides=[f"{dotted}={yaml.safe_dump(value)}" for dotted, value in given_values.items()], environ={}))


devices = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["camera", "pump", "x"]) | values, "zone": st.sampled_from(["a", "b"]) | values, "count": values}
)
zones = st.dictionaries(st.sampled_from(["a", "b", "c d", ""]), st.fixed_dictionaries({}, optional={"exposed": values, "reaches": values}) | values, max_size=3)
scenarios = st.fixed_dictionaries(
    {}, optional={"name": values, "zones": zones | values, "devices": st.lists(devices, max_size=3) | values, "types": values, "more": values}
)


@LIKELY
@given(scenarios)
def test_any_scenario_is_accepted_or_refused(tmp_path: Path, tree: dict[str, Any]) -> None:
    (tmp_path / "s.yml").write_text(yaml.safe_dump(tree), encoding="utf-8", errors="replace")
    settled(lambda: load_scenario(str(tmp_path / "s.yml")))


cells = st.floats(width=64).map(repr) | st.sampled_from(["", "0", "1", "10", "inf", "-inf", "nan", '"', "x", "1e39", "1e-320"]) | st.text(max_size=3)


@LIKELY
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, len(FEATURES_39) - 1), cells), max_size=12), st.integers(6, 16))
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_any_table_of_cells_is_finite_or_refused(tmp_path: Path, changes: list[tuple[int, int, str]], rows: int) -> None:
    for name, content in fuzz_targets._cic39(None)[0].items():
        table = [line.split(",") for line in content.decode().split("\n")[1 : rows + 1]]
        for row, column, cell in changes:
            if row < len(table):
                table[row][column] = cell
        text = "\n".join([",".join(FEATURES_39), *(",".join(line) for line in table)])
        (tmp_path / name).write_text(text, encoding="utf-8", errors="replace")
    settled(lambda: load_dataset(small(tmp_path), 0))


def test_the_default_configuration_is_finite() -> None:
    assert not_finite(Config()) is None


def test_damaged_pages_of_a_parquet_are_refused_before_polars_panics(tmp_path: Path) -> None:
    pl.DataFrame({"EventID": [1, 2] * 50, "Image": ["a", None] * 50}).write_parquet(tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    refused = 0
    for place in range(4, len(whole), 7):
        (tmp_path / "x.parquet").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        outcome, detail = judge(lambda: read_otrf(tmp_path / "x.parquet", ["EventID", "Image"]))
        assert outcome in (ACCEPTED, REFUSED), detail
        refused += outcome == REFUSED
    assert refused > 10


def test_a_split_of_another_kind_is_told() -> None:
    for by in ({}, [], None, 1):
        assert "split: by is" in str(split_fault({"by": by}))
