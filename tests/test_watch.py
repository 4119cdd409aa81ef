"""The watch: whose frames are whose, observations in the environment's own layout, findings, calibration, and the commands as a user runs them."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from agents.training import RLTrainer
from envs.dynamics import NOTHING, Order
from envs.world import KINDS
from main import main
from src.config import Config, load_config
from src.data.ciciot2023 import FEATURES_39, Capture
from src.data.dataset import load_dataset
from src.data.packets import CaptureReader, Frames, decode
from src.errors import UserError
from src.models.predictor_interface import EnhancedAttackPredictor
from src.training.fused import train_sensor
from src.training.sensors import build_bank
from src.watch.advisor import Advisor, find_agent, trained_with
from src.watch.calibration import calibrate, figures, raised, windows
from src.watch.extract import read_captures
from src.watch.observer import Feed, Observer
from src.watch.sensor import SiteSensor, home_bank
from src.watch.site import NOBODY, Roster, Site, load_site
from src.watch.watch import Watch
from tests.captures import MAC, OUTSIDE, A, B, C, Timed, arp, pcap, pcapng, tcp, traffic, udp
from tests.test_agents import TINY

ROOT = Path(__file__).parents[1]
SMALL = [
    "data.synthetic_rows_per_class=400", "lstm.training.epochs=1", "lstm.model.hidden_size=16", "lstm.model.num_layers=1", "lstm.training.teachers=0",
    "temporal.training.epochs=1", "temporal.model.hidden_size=16", "sae.training.epochs=1", *TINY,
]  # fmt: skip


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sensor with its bank, and an agent that was trained on it."""
    folder = tmp_path_factory.mktemp("artifacts")
    config = load_config(overrides=[*SMALL, f"compute.artifacts={folder}"], environ={})
    data = load_dataset(config.data, 0)
    train_sensor(config, data, folder / "sensors" / "small")
    sensor = EnhancedAttackPredictor.load(folder / "sensors" / "small" / "predictor")
    bank = build_bank(data, sensor, sensor.scale, cap=60)
    bank.save(folder / "sensors" / "small" / "bank", {})
    RLTrainer(config, bank, folder / "agents" / "small").train(0)
    return folder


@pytest.fixture(scope="module")
def home(artifacts: Path) -> SiteSensor:
    return SiteSensor.load(artifacts / "sensors" / "small" / "predictor")


@pytest.fixture(autouse=True)
def own_artifacts(monkeypatch: pytest.MonkeyPatch, artifacts: Path) -> None:
    monkeypatch.setenv("IOTDEF__COMPUTE__ARTIFACTS", str(artifacts))
    monkeypatch.setenv("IOTDEF__COMPUTE__THREADS", "1")


def batch(frames: Timed) -> Frames:
    return next(CaptureReader(io.BytesIO(pcap(frames)), "made up").batches())


def mac(address: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in MAC[address])


def two_devices(count: int, begin: float = 1_600_000_000.0) -> Timed:
    """Interleaved traffic of two devices and the way out."""
    return sorted([*traffic(count, begin, A), *traffic(count, begin + 0.03, B)], key=lambda one: one[0])


def test_addresses_of_a_site_file_say_whose_a_frame_is(tmp_path: Path) -> None:
    (tmp_path / "site.yml").write_text(f"scenario: home\ndevices:\n  hub-1: {mac(A)}\n  camera-1: [192.168.0.2, '{mac(C)}']\n")
    roster = Roster(load_site(str(tmp_path / "site.yml")))
    owners, mistaken = roster.owners(decode(batch([(1, udp(A, B, 60)), (2, tcp(OUTSIDE, A)), (3, arp(C, B)), (4, udp(OUTSIDE, OUTSIDE, 60))])))
    assert owners.tolist() == [[0, 1], [NOBODY, 0], [1, 1], [NOBODY, NOBODY]]
    assert mistaken == []
    assert roster.report["frames of no device"] == 1
    assert roster.addresses() == {"hub-1": [mac(A)], "camera-1": [mac(C), "192.168.0.2"]}


def test_devices_are_learned_as_they_speak_and_the_way_out_is_none() -> None:
    roster = Roster(Site(scenario="home"))
    owners, _ = roster.owners(decode(batch([(1, arp(OUTSIDE, A)), (2, arp(B, A))])))
    assert owners.tolist() == [[0, NOBODY], [1, NOBODY]]  # nobody knows yet that the first is the way out
    owners, mistaken = roster.owners(decode(batch([(3, tcp(OUTSIDE, B)), (4, arp(A, B))])))
    assert mistaken == [0]
    assert owners.tolist() == [[NOBODY, 1], [0, 1]]
    assert roster.addresses() == {"hub-1": [mac(A)], "camera-1": [mac(B)]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scenario: home\ndevices: {hub-2: 00:00:00:00:00:01}\n", "unknown device 'hub-2' of scenario 'home': did you mean 'hub-1'"),
        ("scenario: home\ndevices: {hub-1: somewhere}\n", "'somewhere' is no MAC address"),
        ("scenario: home\ndevices: {hub-1: 10.0.0.1, lock-1: 10.0.0.1}\n", "'10.0.0.1' is both hub-1 and lock-1"),
        ("scenario: nowhere\n", "unknown scenario 'nowhere'"),
        ("scenario: home\nattacks_a_week: -1\n", "attacks_a_week"),
        ("scenario: home\ndevice: {}\n", "unknown setting 'device': did you mean 'devices'"),
        ("- 1\n", "must hold 'scenario'"),
        ("{", "is not valid YAML"),
    ],
)
def test_a_wrong_site_file_ends_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "site.yml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        Roster(load_site(str(tmp_path / "site.yml")))
    assert "\n" not in str(caught.value)


def advisor_of(artifacts: Path, scenario: str = "home") -> Advisor:
    trained = trained_with(find_agent(None, artifacts), artifacts)
    return Advisor(trained, Site(scenario=scenario), home_bank(trained.sensor), SiteSensor.load(trained.sensor))


def test_the_sensor_of_an_agent_is_found_by_its_readings(artifacts: Path) -> None:
    trained = trained_with(find_agent(str(artifacts / "agents" / "small"), artifacts), artifacts)
    assert trained.sensor == artifacts / "sensors" / "small" / "predictor"
    assert isinstance(trained.config, Config)
    with pytest.raises(UserError, match="no trained agent at"):
        find_agent(str(artifacts / "nowhere"), artifacts)


@pytest.mark.parametrize("scenario", ["home", "clinic"])
def test_the_observation_is_the_environments(artifacts: Path, scenario: str) -> None:
    """What the environment itself shows of the same windows, step by step, but for what a live site cannot know."""
    advisor = advisor_of(artifacts, scenario)
    env = advisor.simulation
    bank, rng = env.bank, np.random.default_rng(0)
    from envs.world import Simulation

    twin = Simulation(env.config, bank, "test", 1)
    twin.begin(np.zeros(1, np.int64), np.array([5], np.uint64))
    table = np.concatenate([bank.select_features(env.config.env.features), np.array(bank.sensors)], axis=1, dtype=np.float32)
    for _ in range(5):
        theirs = twin.layout.split(twin.step(np.zeros(1, np.int64)))
        shown = twin.trails[0, :, twin.sites[0]["step"] % twin.trails.shape[2]]
        ours = advisor.layout.split(advisor.observe({d: table[w] for d, w in enumerate(shown) if w != NOTHING}))
        for name in ("features", "sensors", "controls", "service", "silent", "valid", "device"):
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
        assert ours["context"].tolist() == [[1.0, 1.0]]
    quiet = advisor.layout.split(advisor.observe({0: table[int(rng.integers(len(table)))]}))
    assert quiet["silent"][0, :, 0].tolist() == [0.0] + [1.0] * (advisor.layout.devices - 1)
    assert not quiet["sensors"][0, 1:].any()


def test_trends_are_the_environments_running_means(artifacts: Path) -> None:
    advisor, rng = advisor_of(artifacts), np.random.default_rng(0)
    expected, decay = np.zeros(3), advisor.simulation.config.env.smoothing
    for _ in range(4):
        row = rng.random(advisor.layout.features + 11).astype(np.float32)
        expected = decay * expected + (1 - decay) * row[-3:]
        parts = advisor.layout.split(advisor.observe({2: row}))
        np.testing.assert_allclose(parts["trend"][0, 2], expected, rtol=1e-5)
    parts = advisor.layout.split(advisor.observe({}))
    np.testing.assert_allclose(parts["trend"][0, 2], expected, rtol=1e-5)


def test_advice_is_the_policys_and_the_belief_knows_that_it_was_not_followed(artifacts: Path) -> None:
    advisor = advisor_of(artifacts)
    bank = advisor.simulation.bank
    table = np.concatenate([bank.select_features(advisor.features), np.array(bank.sensors)], axis=1, dtype=np.float32)
    hostile = table[[i for i, label in enumerate(bank.label) if bank.class_families[label] == "Mirai"]]
    assert advisor.policy.belief is not None
    held = []
    for row in np.repeat(hostile, 3, axis=0)[:25]:
        advice = advisor.step({0: row})
        for device, order in [*advice.orders.items(), *advice.rule.items()]:
            assert order in advisor.actions
            assert order.endswith(f" {advisor.simulation.network.names[device]}")
        held.append(advice.held[0])
    assert not advisor._rule_state.restoring.any()  # nobody restores anything here
    assert held[-1] > held[0]


def test_one_device_does_not_keep_others_from_their_orders(artifacts: Path) -> None:
    advisor = advisor_of(artifacts)
    observation = advisor.observe({})

    class Eager:
        """Restores the first two devices, the second first, whenever it may."""

        def predict(self, observation: np.ndarray, state: object, deterministic: bool) -> tuple[np.ndarray, object]:
            may = advisor.layout.split(observation)["valid"][0, :, Order.RESTORE - 1] > 0
            device = next((one for one in (1, 0) if may[one]), None)
            return np.array([0 if device is None else device * KINDS + Order.RESTORE]), "later" if device == 1 else "last"

    before = observation.copy()
    orders, memory = advisor._orders(Eager(), observation, None)  # type: ignore[arg-type]
    names = advisor.simulation.network.names
    assert list(orders.items()) == [(1, f"RESTORE {names[1]}"), (0, f"RESTORE {names[0]}")]
    assert memory == "later"  # what it remembers is of the interval as it was seen
    np.testing.assert_array_equal(observation, before)
    alone, _ = advisor.policy.predict(observation, None, deterministic=True)
    first = next(iter(advisor._orders(advisor.policy, observation, None)[0].values()), "MONITOR")
    assert first == advisor.actions[alone[0]]


def test_windows_follow_one_another_and_the_newest_of_an_interval_is_read(home: SiteSensor) -> None:
    site = Site(scenario="home", devices={"hub-1": mac(A), "camera-1": mac(B)})
    observer = Observer(home, Roster(site), ("Rate", "IAT"), seconds=10.0)
    frames = two_devices(500)
    whole, _ = observer.add(batch(frames))
    # 0.1 s a frame: a window of 100 frames in each interval of 10 s (a frame between the two counts for both)
    assert observer.finished >= len(whole.device) == observer.read > 8
    assert len({(interval, device) for interval, device in zip(whole.interval, whole.device, strict=True)}) == len(whole.device)
    parts = Observer(home, Roster(site), ("Rate", "IAT"), seconds=10.0)
    found = [parts.add(batch(frames[first : first + 33]))[0] for first in range(0, len(frames), 33)]
    ends = {(int(i), int(d)): end for one in found for i, d, end in zip(one.interval, one.device, one.end, strict=True)}
    assert ends == {(int(i), int(d)): end for i, d, end in zip(whole.interval, whole.device, whole.end, strict=True)}
    assert whole.shown.shape == (len(whole.device), 2 + 11)
    np.testing.assert_array_equal(whole.reading.risk, home.sensor.read(whole.windows).risk)


def test_a_clock_that_jumps_stops_nothing(artifacts: Path, home: SiteSensor) -> None:
    site = Site(scenario="home", devices={"hub-1": mac(A)})
    roster, advisor = Roster(site), advisor_of(artifacts)
    watch = Watch(Observer(home, roster, advisor.features, advisor.seconds), advisor, roster)
    found = []
    for begin in (1_600_000_000.0, 4_000_000_000.0, 5.0, 1_600_000_000.0):
        found += watch.take(batch(traffic(210, begin)))
    found += watch.finish()
    assert watch.counters.windows == 8
    assert [one.end for one in found] == sorted((one.end for one in found), key=[one.end for one in found].index)
    assert watch.counters.intervals == 8


class Slow:
    """A live capture that is faster than its reader."""

    def __init__(self, content: bytes) -> None:
        self.stream = io.BytesIO(content)

    def read(self, size: int, /) -> bytes:
        return self.stream.read(1000)


def test_what_comes_too_fast_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.watch.observer.MOST_WAITING", 3)
    frames = traffic(2000)
    feed = Feed(CaptureReader(Slow(pcap(frames)), "fast"), live=True)
    taken = 0
    for one in feed:
        if taken == 0:
            while feed.dropped == 0:  # the thread reads on
                pass
            assert feed.backlog > 0
        taken += len(one.time)
    assert taken + feed.dropped == 2000
    assert feed.backlog == 0
    waiting = Feed(CaptureReader(Slow(pcap(frames)), "file"), live=False)
    assert sum(len(one.time) for one in waiting) == 2000


def test_a_damaged_live_capture_ends_in_its_error() -> None:
    feed = Feed(CaptureReader(io.BytesIO(pcap(traffic(3)) + b"\xff" * 40), "live"), live=True)
    taken = []
    with pytest.raises(UserError, match="'live' is damaged"):
        taken += [len(one.time) for one in feed]
    assert taken == []


def ordinary(seed: int, rows: int = 400, shift: float = 0.0) -> Capture:
    """Traffic of a site: its frames are larger by `shift` in logarithms, its pace is slower."""
    rng = np.random.default_rng(seed)
    features = np.abs(rng.normal(1, 0.3, (rows, 39))) * np.exp(shift)
    return Capture("hub-1", True, features.astype(np.float32), np.zeros(rows, np.int32), np.arange(rows, dtype=float) + 1000 * seed, np.ones(rows), "hub-1")


def test_calibration_brings_false_alarms_to_what_was_asked(home: SiteSensor, artifacts: Path, tmp_path: Path) -> None:
    bank = home_bank(artifacts / "sensors" / "small" / "predictor")
    known, later = [ordinary(1, shift=2.0)], windows(home, [ordinary(2, shift=2.0)])[0]
    found = calibrate(home, bank, known, 0.1)
    numbers = figures(found, bank, later, infected=windows(home, [ordinary(3, shift=5.0)])[0])
    assert set(numbers) == {"site flagged", "attacks of home flagged", "ordinary windows of home flagged", "infected device flagged"}
    assert numbers["site flagged"] < 0.25
    assert abs(found.sensor.scale(later).mean()) < abs(home.sensor.scale(later).mean())  # the site now reads as home does
    assert figures(raised(home, known, 0.1), bank, later)["site flagged"] < 0.25
    read = found.readings(bank, "calibrate")
    (first, end), benign = bank.ranges("calibrate")[0], bank.class_families[0]
    assert benign == "Benign"
    assert {tuple(row) for row in read.sensors[first:end].tolist()} <= {tuple(row) for row in found.ordinary.tolist()}
    np.testing.assert_array_equal(read.sensors[bank.split != 0], bank.sensors[bank.split != 0])
    assert home.readings(bank, "calibrate") is bank
    found.save(tmp_path / "site", {})
    again = SiteSensor.load(tmp_path / "site")
    assert (again.alarm, again.site) == (found.alarm, "site")
    np.testing.assert_allclose(again.risk(later[:20]), found.risk(later[:20]), atol=1e-6)
    with pytest.raises(UserError, match="calibrated before"):
        calibrate(again, bank, known)


def run(*words: str) -> int:
    return main(list(words))


def test_features_as_a_user_runs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.pcap").write_bytes(pcap(two_devices(60)))
    assert run("features", str(tmp_path / "in.pcap"), "--out", str(tmp_path / "mixed.parquet")) == 0
    assert "120 frames: 12 rows of ciciot39" in capsys.readouterr().err
    mixed = pl.read_parquet(tmp_path / "mixed.parquet")
    assert mixed.columns == ["window_start", "window_end", "duration", *FEATURES_39]
    assert run("features", str(tmp_path / "in.pcap"), "--schema", "nbaiot115", "--out", str(tmp_path / "packets.parquet")) == 0
    assert pl.read_parquet(tmp_path / "packets.parquet").shape == (120, 116)
    assert run("features", str(tmp_path / "in.pcap"), "--scenario", "home", "--out", str(tmp_path / "apart.parquet")) == 0
    assert set(pl.read_parquet(tmp_path / "apart.parquet")["device"]) >= {"hub-1", "camera-1"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apart.parquet", "in.pcap", "mixed.parquet", "packets.parquet"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["features", "{in}", "--out", "{out}", "--schema", "ciciot93"], "unknown schema 'ciciot93': did you mean 'ciciot39'"),
        (["features", "{in}", "--out", "{out}", "--frames", "20"], "--frames 20: allowed: 10, 100"),
        (["features", "{in}", "--out", "{out}", "--schema", "nbaiot115", "--frames", "100"], "a row of nbaiot115 is a packet"),
        (["features", "{gone}", "--out", "{out}"], "cannot be opened: No such file"),
        (["features", "{text}", "--out", "{out}"], "is no capture"),
        (["features", "{cut}", "--out", "{out}"], "is damaged at byte"),
        (["features", "{none}", "--out", "{out}"], "holds no IPv4 or ARP frame"),
        (["features", "{in}"], "the following arguments are required: --out"),
        (["watch", "{in}", "--policy", "{text}"], "no trained agent at"),
        (["watch", "{text}"], "is no capture"),
        (["watch", "{in}", "--scenario", "nowhere"], "unknown scenario"),
        (["calibrate", "{in}", "--out", "{out}", "--false-alarms", "2"], "--false-alarms 2: allowed"),
        (["calibrate", "{none}", "--out", "{out}"], "no capture holds 10 IPv4 or ARP frames"),
        (["calibrate", "{in}", "--out", "{out}", "--addresses", "{out}"], "give both"),
        (["feature", "{in}"], "unknown command 'feature': did you mean 'features'"),
    ],
)
def test_wrong_input_ends_in_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    place = {name: tmp_path / f"{name}.pcap" for name in ("in", "text", "cut", "none", "gone")} | {"out": tmp_path / "out"}
    place["in"].write_bytes(pcap(traffic(50)))
    place["text"].write_bytes(b"hello, world")
    place["cut"].write_bytes(pcap(traffic(50)) + b"\xff" * 40)
    place["none"].write_bytes(pcapng([]))
    assert run(*(word.format(**place) for word in words)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ") or "\nerror: " in said
    assert not place["out"].exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.pcap", "in.pcap", "none.pcap", "text.pcap"]


REQUIRED = ("activity_id", "category_uid", "class_uid", "finding_info", "metadata", "severity_id", "time", "type_uid")


def test_watch_as_a_user_runs_it(tmp_path: Path, artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.pcap").write_bytes(pcap(two_devices(700)))
    (tmp_path / "site.yml").write_text(f"scenario: home\ndevices:\n  hub-1: {mac(A)}\n  lock-1: {mac(B)}\n")
    words = ["watch", str(tmp_path / "in.pcap"), "--scenario", str(tmp_path / "site.yml"), "--report", str(tmp_path / "page.html")]
    assert run(*words) == 0
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert len(lines) >= 14
    assert "1,400 frames (0 waiting, 0 dropped" in said.err
    for one in lines:
        assert all(name in one for name in REQUIRED)
        assert (one["class_uid"], one["type_uid"], one["category_uid"]) == (2004, 200401, 2)
        assert one["finding_info"].keys() >= {"uid", "title"}
        assert one["metadata"].keys() >= {"product", "version"}
        assert one["resources"][0]["name"] in ("hub-1", "lock-1")
        assert 0 <= one["risk_score"] <= 100
        assert one["is_alert"] == (one["unmapped"]["flagged"] or one["unmapped"]["order"] != "MONITOR")
    alerts = [one for one in lines if one["unmapped"]["flagged"]]
    assert any(one["unmapped"]["because"] for one in alerts) or not alerts
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "hub-1" in page
    assert "data:image/png;base64" in page
    assert "What is not known" in page
    assert run(*words[:4], "--out", str(tmp_path / "lines.jsonl")) == 0
    assert [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()] == lines


def test_watch_reads_a_pipe(tmp_path: Path, artifacts: Path) -> None:
    done = subprocess.run(
        [sys.executable, "main.py", "watch", "-", "--scenario", "home"], input=pcapng(two_devices(500)), capture_output=True, check=False, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["resources"][0]["name"] for one in lines} <= {"hub-1", "camera-1"}
    assert lines


def test_calibrate_as_a_user_runs_it(tmp_path: Path, artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(2):
        (tmp_path / f"{index}.pcap").write_bytes(pcap(two_devices(1500, 1_600_000_000.0 + 1000 * index)))
    captures = [str(tmp_path / f"{index}.pcap") for index in range(2)]
    more = ["--scenario", "home", "--addresses", str(tmp_path / "site.yml"), "--infected", captures[0]]
    assert run("calibrate", *captures, "--out", str(tmp_path / "site"), *more) == 0
    assert "calibrated" in capsys.readouterr().out
    meta = json.loads((tmp_path / "site" / "meta.json").read_text())
    assert [row["sensor"] for row in meta["calibration"]] == ["as it was trained", "its threshold alone", "calibrated"]
    assert load_site(str(tmp_path / "site.yml")).devices["hub-1"] == [mac(A)]
    assert run("watch", captures[1], "--scenario", str(tmp_path / "site.yml"), "--sensor", str(tmp_path / "site")) == 0
    assert capsys.readouterr().out


def test_captures_are_read_in_time_order_by_device(tmp_path: Path) -> None:
    for name, begin in (("late", 2000.0), ("early", 1000.0)):
        (tmp_path / name).write_bytes(pcap(traffic(35, begin)))
    found = read_captures([str(tmp_path / "late"), str(tmp_path / "early")])
    assert [one.start[0] for one in found] == [1000, 2000]
    assert [len(one.features) for one in found] == [3, 3]
    assert np.isfinite(found[0].features).all()
    same = replace(found[0], domain="x")
    assert same.label == "site"
