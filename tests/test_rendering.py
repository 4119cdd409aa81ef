"""What is seen of an episode: frames, table, picture, recordings, replay, GIF and page."""

import copy
import dataclasses
import json
import math
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import Autoreset, RenderCollection, TransformAction
from PIL import Image
from pydantic import TypeAdapter

from envs import IoTEnv, IoTVectorEnv
from envs.duel import IoTDuel
from envs.picture import Box, Picture, place
from envs.recording import EpisodeRecorder, main, read_recording, replay, write_gif, write_html, write_png
from envs.rendering import CONTROL_COLOURS, CONTROLS, STAGE_COLOURS, Frame, Scene, frame, headline, scene, table, words
from envs.scenarios import SCENARIOS
from src.errors import UserError
from tests.banks import make_bank

BANK = make_bank()
HOSTILE = '</script><img src=x onerror=alert(1)>&"$\\frac'


def play(env: gymnasium.Env, seed: int | None = 0, steps: int = 10**6, masked: bool = True) -> Iterator[dict[str, Any]]:
    """Steps of one episode under random orders; yields each step's `info`."""
    rng = np.random.default_rng(0)
    env.reset(seed=seed)
    inner: Any = env.unwrapped
    for _ in range(steps):
        if inner.simulation.joint:
            action: Any = rng.integers(0, 6, inner.simulation.layout.devices)
        else:
            action = int(rng.choice(np.flatnonzero(inner.action_masks()))) if masked else int(rng.integers(0, inner.action_space.n))
        _, reward, terminated, truncated, info = env.step(action)
        yield info | {"reward": reward}
        if terminated or truncated:
            return


def recorded(path: Path, seed: int | None = 0, truth: bool = True, **settings: Any) -> Path:
    """A recorded episode."""
    for _ in play(EpisodeRecorder(IoTEnv(bank=BANK, horizon=90, **settings), path, truth=truth), seed):
        pass
    return path


def altered(path: Path, line: int, change: Any) -> Path:
    """The recording with one line changed."""
    lines = path.read_text().split("\n")
    tree = json.loads(lines[line])
    change(tree)
    lines[line] = json.dumps(tree)
    out = path.with_name("altered.jsonl")
    out.write_text("\n".join(lines))
    return out


def network(zones: dict[str, int], names: dict[int, str] | None = None) -> Scene:
    """A scene of any size: a chain of zones, the first of which the internet reaches, and a way back to it from each."""
    count = sum(zones.values())
    devices = [f"thermostat-{d + 1}" for d in range(count)]
    for d, name in (names or {}).items():
        devices[d] = name
    last = len(zones) - 1
    return Scene(
        scenario="made up", devices=tuple(devices), types=("thermostat",) * count, zones=tuple(zones),
        zone=tuple(z for z, n in enumerate(zones.values()) for _ in range(n)), exposed=(0,),
        reach=tuple({*((z, z + 1) for z in range(min(last, 3))), *((0, z) for z in range(1, last + 1)), *((z, 0) for z in range(1, last + 1))}),
        criticality=tuple([1 / count] * count), protected=tuple(d % 7 == 3 for d in range(count)), horizon=60, step_seconds=10.0,
        terms=("service", "damage"), traffic="made up",
    )  # fmt: skip


def blank(here: Scene, step: int) -> Frame:
    """A frame in which every device is under every control."""
    count = len(here.devices)
    return Frame(
        step=step, orders=((0, 2, True),), controls=((3, 2, 1, 4),) * count, pending=(0,) * count, risk=(0.5,) * count, uncertainty=(0.1,) * count,
        anomaly=(0.2,) * count, service=(0.0,) * count, silent=(True,) * count, allowed=(0,) * count, given=step, reward=-1.0, losses=(0.4, 0.6),
        total=-float(step), end=None, truth=None,
    )  # fmt: skip


def test_frames_hold_no_truth_unless_asked() -> None:
    env = IoTEnv(bank=BANK, attack_free=0.0, start_range=(1, 1))
    for _ in play(env, steps=40):
        pass
    hidden, shown = frame(env.simulation, truth=False), frame(env.simulation, truth=True)
    assert hidden.truth is None
    assert shown.truth is not None
    assert max(shown.truth.stage) > 0
    assert dataclasses.replace(shown, truth=None) == hidden
    text = TypeAdapter(Frame).dump_json(hidden).decode()
    assert not [name for name in ("stage", "botnet", "web_intruder", "evaded", *BANK.class_names) if name in text]


@pytest.mark.parametrize("mode", ["discrete", "joint"])
@pytest.mark.parametrize("masked", [True, False])
def test_frames_add_up(mode: str, masked: bool) -> None:
    env = IoTEnv(bank=BANK, action_mode=mode)
    env.reset(seed=1)
    last = frame(env.simulation, truth=True)
    assert (last.step, last.orders, last.reward, last.end) == (0, (), 0.0, None)
    total, obeyed = 0.0, 0
    for info in play(env, seed=1, masked=masked):
        last = frame(env.simulation, truth=True, before=last)
        total += info["reward"]
        obeyed += sum(done for *_, done in last.orders)
        assert last.reward == info["reward"]
        assert sum(last.losses) == pytest.approx(-last.reward)
        assert last.total == pytest.approx(total)
        assert last.end == info.get("end")
    # The masks cannot say at which of several orders in one step the budget runs out.
    assert 0 <= obeyed - info["summary"]["orders"] < (1 if mode == "discrete" else len(last.pending))


def test_a_scene_names_who_reaches_whom() -> None:
    here = scene(IoTEnv(bank=BANK).simulation)
    reach = {(here.zones[a], here.zones[b]) for a, b in here.reach}
    assert ("office", "ward") in reach
    assert ("ward", "office") not in reach
    assert {here.zones[z] for z in here.exposed} == {"office", "building"}
    assert here.types[here.devices.index("pump-1")] == "pump"


def test_text_names_every_device_and_hides_the_stage() -> None:
    for truth in (False, True):
        env = IoTEnv(bank=BANK, render_mode="ansi", expose_truth=truth)
        for _ in play(env, steps=30):
            pass
        text = env.render()
        assert isinstance(text, str)
        assert all(name in text for name in env.device_names)
        assert "step 30 of 200" in text
        assert ("stage (hidden)" in text) is truth
        assert "\x1b" not in text


def test_a_table_may_be_cut_to_what_matters() -> None:
    env = IoTEnv(bank=BANK)
    env.reset(seed=0)
    env.step(1 + 5 * 11 + 2)  # ISOLATE the last device
    here, now = scene(env.simulation), frame(env.simulation, truth=False)
    short = table(here, now, most=4)
    assert short.row_count == 4
    assert "8 more devices" in str(short.caption)
    assert here.devices[11] in [str(cell) for cell in short.columns[0].cells]


def test_human_prints_plainly_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    env = IoTEnv("home", bank=BANK, render_mode="human")
    env.reset(seed=0)
    env.step(0)
    assert env.render() is None
    env.close()
    out = capsys.readouterr().out
    assert out.count("lock-1") == 3  # reset, step, render
    assert "\x1b" not in out


@pytest.mark.parametrize("mode", ["ansi", "human"])
def test_text_shortens_no_name(mode: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    env = IoTEnv("clinic", bank=BANK, render_mode=mode, expose_truth=True, action_mode="joint", budget=100)
    env.reset(seed=0)
    for kind in (1, 2, 3, 4):  # every control at once
        env.step(np.full(len(env.device_names), kind))
    capsys.readouterr()
    text = env.render()
    out = text if isinstance(text, str) else capsys.readouterr().out
    here = scene(env.simulation)
    assert "…" not in out
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert all(here.zones[z] in rows[name] for name, z in zip(here.devices, here.zone, strict=True))
    assert out.splitlines()[0] == headline(here, frame(env.simulation, truth=True))


def test_a_return_of_nothing_has_no_sign() -> None:
    env = IoTEnv(bank=BANK)
    env.reset(seed=0)
    now = frame(env.simulation, truth=False)
    assert math.copysign(1, now.total) == 1
    here = scene(env.simulation)
    assert "return 0.00, this step 0.000" in headline(here, now)
    assert "return 0.00, this step 0.000" in headline(here, dataclasses.replace(now, total=-0.001, reward=-0.0001))
    said = [getattr(text, "get_text", str)() for text in Picture(here, truth=False)._title(dataclasses.replace(now, total=-0.01, reward=-0.0001))]
    assert {"return 0.0", "this step 0.000"} <= {*said}


def test_human_redraws_in_place_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(IoTEnv, "metadata", {**IoTEnv.metadata, "render_fps": 1000})
    env = IoTEnv("home", bank=BANK, render_mode="human")
    env.reset(seed=0)
    env.step(0)
    env.close()
    assert "\x1b[1A" in capsys.readouterr().out  # the cursor goes up over the former table


@pytest.mark.parametrize("scenario", list(SCENARIOS))
@pytest.mark.parametrize("truth", [True, False])
def test_the_picture_is_an_array_of_one_shape(scenario: str, truth: bool) -> None:
    env = IoTEnv(scenario, bank=BANK, render_mode="rgb_array", expose_truth=truth, attack_free=0.0, start_range=(1, 1))
    env.reset(seed=0)
    first = env.render()
    for _ in play(env, steps=25):
        pass
    later = env.render()
    assert isinstance(first, np.ndarray)
    assert isinstance(later, np.ndarray)
    assert first.dtype == later.dtype == np.uint8
    assert first.shape == later.shape
    assert first.shape[1:] == (1280, 3)
    assert (first != later).any()
    assert (env.render() == later).all()


def test_the_picture_shows_the_truth_only_when_it_may() -> None:
    def shown(truth: bool) -> np.ndarray:
        env = IoTEnv(bank=BANK, render_mode="rgb_array", expose_truth=truth)
        env.reset(seed=0)
        env.render()
        env.step(0)
        env.simulation.devices["stage"][:] = stage
        picture = env.render()
        assert isinstance(picture, np.ndarray)
        return picture

    stage = 0
    calm, calm_hidden = shown(True), shown(False)
    stage = 4
    assert (shown(True) != calm).any()
    assert (shown(False) == calm_hidden).all()


@pytest.mark.parametrize(
    "zones",
    [{"only": 1}, {"a": 6}, {"a": 4, "b": 4, "c": 4}, dict(zip("abcdef", (10, 4, 8, 8, 5, 5), strict=True)),
     {f"building {i}": 15 for i in range(7)}, {f"building {i}": 9 for i in range(12)}, {"one": 105}],
    ids=["1", "6", "12", "40", "105 in 7", "108 in 12", "105 in 1"],
)  # fmt: skip
def test_devices_of_any_network_have_room(zones: dict[str, int]) -> None:
    here = network(zones)
    area = Box(100, 70, 1140, 440)
    places = place(here, area)
    w, h = places.cell
    for d, (x, y) in enumerate(places.nodes):
        box = places.zones[here.zone[d]]
        assert box.x <= x - w / 2 + 1e-6
        assert x + w / 2 <= box.right + 1e-6
        assert box.y <= y - h / 2
        assert y + h / 2 <= box.bottom + 1e-6
    offsets = np.abs(places.nodes[:, None] - places.nodes[None])
    apart = (offsets[..., 0] > 0.999 * w) | (offsets[..., 1] > 0.999 * h) | np.eye(len(here.devices), dtype=bool)
    assert apart.all()
    for box in places.zones:
        assert area.x - 1e-6 <= box.x
        assert box.right <= area.right + 1e-6
        assert area.y - 1e-6 <= box.y
        assert box.bottom <= area.bottom + 1e-6
    picture = Picture(here, truth=False).draw([blank(here, step) for step in range(1, 30)])
    assert picture.std() > 5


def test_names_are_drawn_as_they_are() -> None:
    here = network({"$a$": 3}, {0: HOSTILE, 1: "$x^", 2: "[red]name[/red]"})
    Picture(here, truth=False).draw([blank(here, 1)])  # matplotlib would refuse to read these as mathematics
    assert "[red]name[/red]" in [str(cell) for cell in table(here, blank(here, 1)).columns[0].cells]
    assert words(here, dataclasses.replace(blank(here, 1), orders=((2, 3, False),))) == "ISOLATE [red]name[/red] (passed over)"


def test_gymnasium_collects_pictures() -> None:
    env = RenderCollection(IoTEnv("home", bank=BANK, render_mode="rgb_array"))
    for _ in play(env, steps=3):
        pass
    pictures = env.render()
    assert len(pictures) == 4
    assert {picture.shape for picture in pictures} == {pictures[0].shape}


def test_an_episode_begun_again_starts_with_an_empty_picture() -> None:
    def late(env: IoTEnv) -> np.ndarray:
        env.reset(seed=0)
        for _ in range(8):
            env.step(0)
        picture = env.render()
        assert isinstance(picture, np.ndarray)
        return picture

    used, fresh = (IoTEnv("home", bank=BANK, render_mode="rgb_array") for _ in range(2))
    used.reset(seed=0)
    for _ in range(6):
        used.step(0)
        used.render()
    assert (late(used) == late(fresh)).all()


def test_a_network_too_large_for_a_picture_is_sent_to_the_table(tmp_path: Path) -> None:
    own = tmp_path / "own.yml"
    devices = ", ".join(f"{{type: {kind}, zone: hall, count: 1000}}" for kind in ("camera", "lock", "pump"))
    own.write_text(f"name: mill\nzones: {{hall: {{exposed: true}}}}\ndevices: [{devices}]")
    env = IoTEnv(str(own), bank=BANK, render_mode="rgb_array")
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"3000 devices does not fit the picture; .*'ansi'"):
        env.render()


@pytest.mark.parametrize("mode", ["human", "rgb_array"])
def test_an_environment_that_was_rendered_is_still_copied(mode: str) -> None:
    env = IoTEnv("home", bank=BANK, render_mode=mode)
    env.reset(seed=0)
    env.render()
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):  # noqa: S301  (our own bytes)
        twin.step(0)
        twin.render()


def test_nobody_pays_for_pictures_who_looks_at_none() -> None:
    code = "import sys, envs; env = envs.IoTEnv(); env.reset(seed=0); env.step(0); print([m for m in ('matplotlib', 'rich.live') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("settings", [{}, {"action_mode": "joint", "flatten": True}, {"scenario": "solo"}], ids=str)
@pytest.mark.parametrize("truth", [True, False])
def test_a_recording_comes_back_whole_and_repeats(settings: dict[str, Any], truth: bool, tmp_path: Path) -> None:
    path = recorded(tmp_path / "e.jsonl", truth=truth, **settings)
    found = read_recording(path)
    assert found.footer.steps == len(found.steps) == found.frames[-1].step
    assert found.footer.total == pytest.approx(sum(step.frame.reward for step in found.steps))
    assert found.frames[-1].end == found.footer.end
    assert found.footer.summary["steps"] == found.footer.steps
    assert found.header.origin["traffic"] == "made up for tests"
    assert ("stage" in path.read_text()) is truth
    assert replay(path, IoTEnv(bank=BANK, horizon=90, **settings)) == found
    assert list(tmp_path.iterdir()) == [path]


def test_later_episodes_repeat_without_a_seed_of_their_own(tmp_path: Path) -> None:
    env = EpisodeRecorder(IoTEnv("home", bank=BANK, horizon=90), tmp_path / "{episode}.jsonl")
    for seed in (4, None, None):
        for _ in play(env, seed):
            pass
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["0.jsonl", "1.jsonl", "2.jsonl"]
    assert env.finished == 3
    first, second = (replay(tmp_path / name, IoTEnv("home", bank=BANK, horizon=90)) for name in ("0.jsonl", "2.jsonl"))
    assert (first.header.seed, second.header.seed) == (4, None)
    assert first.steps != second.steps


def test_recording_changes_nothing(tmp_path: Path) -> None:
    plain = [info["reward"] for info in play(IoTEnv(bank=BANK), 2)]
    assert plain == [info["reward"] for info in play(EpisodeRecorder(IoTEnv(bank=BANK), tmp_path / "e.jsonl"), 2)]


def test_a_broken_off_episode_leaves_nothing(tmp_path: Path) -> None:
    env = EpisodeRecorder(IoTEnv(bank=BANK), tmp_path / "e.jsonl")
    for _ in play(env, steps=20):
        pass
    with pytest.raises(UserError):
        env.step(10**6)
    env.reset(seed=1)
    env.close()
    assert list(tmp_path.iterdir()) == []


def test_a_refused_action_is_not_recorded(tmp_path: Path) -> None:
    env = EpisodeRecorder(IoTEnv("home", bank=BANK, horizon=10, start_range=(1, 2)), tmp_path / "e.jsonl")
    env.reset(seed=0)
    with pytest.raises(UserError):
        env.step(-1)
    for _ in range(10):
        env.step(0)
    replay(tmp_path / "e.jsonl", IoTEnv("home", bank=BANK, horizon=10, start_range=(1, 2)))


def test_recordings_have_a_bound(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lower env\.horizon"):
        EpisodeRecorder(IoTEnv(bank=BANK, horizon=10**5), tmp_path / "e.jsonl").reset(seed=0)


class Interrupting(gymnasium.Wrapper):
    """Stops after the inner step, once."""

    armed = True

    def step(self, action: Any) -> Any:
        out = self.env.step(action)
        if self.armed and self.unwrapped.simulation.sites[0]["step"] == 5:  # type: ignore[attr-defined]
            self.armed = False
            raise KeyboardInterrupt
        return out


def test_an_interrupted_step_leaves_no_gap_in_a_file(tmp_path: Path) -> None:
    env = EpisodeRecorder(Interrupting(IoTEnv("home", bank=BANK, horizon=10, start_range=(1, 2))), tmp_path / "e.jsonl")
    env.reset(seed=0)
    for _ in range(4):
        env.step(0)
    with pytest.raises(KeyboardInterrupt):
        env.step(0)
    while not env.step(0)[3]:
        pass
    assert list(tmp_path.iterdir()) == []
    env.reset(seed=0)
    while not env.step(0)[3]:
        pass
    assert read_recording(tmp_path / "e.jsonl").footer.steps == 10


class Repeating(gymnasium.Wrapper):
    """Makes two steps of one."""

    def step(self, action: Any) -> Any:
        self.env.step(action)
        return self.env.step(action)


def test_what_resets_or_repeats_is_put_outside(tmp_path: Path) -> None:
    def small() -> IoTEnv:
        return IoTEnv("home", bank=BANK, horizon=10, start_range=(1, 2))

    with pytest.raises(UserError, match="put Autoreset outside of it"):
        EpisodeRecorder(Autoreset(small()), tmp_path / "e.jsonl")
    twice = EpisodeRecorder(Repeating(small()), tmp_path / "e.jsonl")
    twice.reset(seed=0)
    with pytest.raises(UserError, match=r"from step 0 to 2 .* outside of it"):
        twice.step(0)
    env = Autoreset(EpisodeRecorder(small(), tmp_path / "{episode}.jsonl"))
    env.reset(seed=0)
    for _ in range(22):
        env.step(0)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["0.jsonl", "1.jsonl"]


def test_an_action_that_cannot_be_written_down_is_refused_before_the_step(tmp_path: Path) -> None:
    words = TransformAction(IoTEnv("home", bank=BANK, horizon=10, start_range=(1, 2)), lambda _: 0, None)
    env = EpisodeRecorder(words, tmp_path / "e.jsonl")
    env.reset(seed=0)
    for action in ("MONITOR", None, {"order": 1}, 1.5, [[1], [1, 2]], [[1]]):
        with pytest.raises(UserError, match="cannot be recorded"):
            env.step(action)
    assert words.unwrapped.simulation.sites[0]["step"] == 0  # type: ignore[attr-defined]
    for _ in range(10):
        env.step(np.int64(0))
    assert read_recording(tmp_path / "e.jsonl").footer.steps == 10


@pytest.mark.parametrize("other", [lambda: IoTVectorEnv(2, scenario="home", bank=BANK), lambda: IoTDuel("home", bank=BANK)], ids=["batch", "duel"])
def test_only_one_environment_is_recorded(other: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="record one IoTEnv; a batch or a duel is not recorded"):
        EpisodeRecorder(other(), tmp_path / "e.jsonl")


def test_a_path_that_cannot_be_written_is_refused_before_the_episode(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="it is a folder"):
        EpisodeRecorder(IoTEnv(bank=BANK), tmp_path)
    for path in (tmp_path / "file" / "e.jsonl", "/proc/e.jsonl"):
        with pytest.raises(UserError, match=r"cannot write the recording '.*e\.jsonl'"):
            EpisodeRecorder(IoTEnv(bank=BANK), path)
    EpisodeRecorder(IoTEnv(bank=BANK), tmp_path / "new" / "e.jsonl")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_recording_that_was_not_written_is_still_held(tmp_path: Path) -> None:
    env = EpisodeRecorder(IoTEnv("home", bank=BANK, horizon=10, start_range=(1, 2)), tmp_path / "e.jsonl")
    env.reset(seed=0)
    for _ in range(9):
        env.step(0)
    (tmp_path / "e.jsonl").mkdir()
    with pytest.raises(UserError, match="cannot write the recording"):
        env.step(0)
    assert len(env._lines) == 12
    assert env.finished == 0


@pytest.mark.parametrize(
    ("line", "change", "said"),
    [
        (0, lambda t: t.update(schema=99), "schema 99"),
        (0, lambda t: t.pop("schema"), "no header"),
        (0, lambda t: t["scene"]["devices"].append("more"), "line 2: controls has 12 entries for 13 devices"),
        (0, lambda t: t["scene"]["zone"].__setitem__(0, 9), "zone that it does not have"),
        (0, lambda t: t.update(truth=False), "header denies"),
        (5, lambda t: t["frame"].pop("risk"), r"line 6: frame\.risk"),
        (5, lambda t: t["frame"]["risk"].pop(), "line 6: risk has 11 entries"),
        (5, lambda t: t["frame"].update(step=7), "step 7 where 4 was expected"),
        (5, lambda t: t["frame"]["orders"].append([99, 1, True]), "out of range"),
        (5, lambda t: t["frame"].update(total=float("nan")), "line 6"),
        (-2, lambda t: t.clear(), "cut off"),
        (-2, lambda t: t.update(total=float("nan")), "a number is not finite"),
        (-2, lambda t: t["summary"].update(steps=float("inf")), "a number is not finite"),
        (-2, lambda t: t.update(steps=7), "steps is 7, and the last step says"),
        (-2, lambda t: t.update(total=-0.5), r"total is -0\.5, and the last step says"),
        (-2, lambda t: t.update(end="won"), "end is won, and the last step says"),
        (0, lambda t: t["scene"].update(criticality=[0.0] * 12), "line 1: criticality"),
        (0, lambda t: t["scene"]["criticality"].__setitem__(0, -0.1), "line 1: criticality"),
        (0, lambda t: t["scene"]["criticality"].__setitem__(0, float("inf")), "line 1: criticality"),
        (0, lambda t: t["scene"].update(step_seconds=float("inf")), "line 1: a horizon of 90 steps of inf s"),
        (0, lambda t: t["scene"].update(step_seconds=1e308), "line 1: a horizon"),
        (0, lambda t: t["scene"].update(step_seconds=0.0), "line 1: a horizon"),
        (0, lambda t: t["scene"].update(horizon=10**9), "line 1: a horizon of 1000000000"),
        (0, lambda t: t["scene"].update(zones=[str(z) for z in range(5000)]), "line 1: 5000 zones"),
        (0, lambda t: t["origin"].update(site=float("nan")), r"line 1: origin\.site"),
        (0, lambda t: t["scene"].update(devices=[""] * 12), "line 1: a device has no name"),
        (5, lambda t: t["frame"]["pending"].__setitem__(0, 99), "line 6: an order on its way"),
        (5, lambda t: t["frame"]["controls"][0].__setitem__(0, -1), "line 6: an order on its way or the time left"),
        (5, lambda t: t["frame"]["risk"].__setitem__(0, 1.5), "line 6: a risk or a service"),
        (5, lambda t: t["frame"]["service"].__setitem__(0, -0.5), "line 6: a risk or a service"),
    ],
)
def test_broken_recordings_are_named(line: int, change: Any, said: str, tmp_path: Path) -> None:
    broken = altered(recorded(tmp_path / "e.jsonl"), line, change)
    with pytest.raises(UserError, match=said) as caught:
        read_recording(broken)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_recordings_are_refused(tmp_path: Path) -> None:
    whole = recorded(tmp_path / "e.jsonl").read_text()
    short = tmp_path / "short.jsonl"
    for text, said in ((whole[: len(whole) // 2], "cut off"), ("hello", "no header"), ("[]", "no header"), ("", "no header")):
        short.write_text(text)
        with pytest.raises(UserError, match=said):
            read_recording(short)
    short.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="it is no text"):
        read_recording(short)
    with pytest.raises(UserError, match="No such file"):
        read_recording(tmp_path / "nowhere")


def test_replay_notices_what_was_changed(tmp_path: Path) -> None:
    path = recorded(tmp_path / "e.jsonl")

    def env(**settings: Any) -> IoTEnv:
        return IoTEnv(bank=BANK, **{"horizon": 90, **settings})

    def nudge(tree: Any) -> None:
        tree["frame"]["reward"] = float(np.nextafter(tree["frame"]["reward"], 1.0))

    with pytest.raises(UserError, match="at step 9: reward is"):
        replay(altered(path, 10, nudge), env())
    with pytest.raises(UserError, match="at step 9: "):
        replay(altered(path, 10, lambda t: t.update(action=0 if t["action"] else 7)), env())
    with pytest.raises(UserError, match="at step 9: action 10000"):
        replay(altered(path, 10, lambda t: t.update(action=10000)), env())
    with pytest.raises(UserError, match=r"after the reset|at step"):
        replay(altered(path, 0, lambda t: t.update(seed=1)), env())
    with pytest.raises(UserError, match=r"other settings: env\.budget"):
        replay(path, env(budget=7))
    with pytest.raises(UserError, match="other settings: the digest"):
        replay(altered(path, 0, lambda t: t.update(digest="")), env())
    with pytest.raises(UserError, match="other traffic"):
        replay(path, env(split="test"))
    with pytest.raises(UserError, match="in its last line: summary differs"):
        replay(altered(path, -2, lambda t: t["summary"].update(orders=t["summary"]["orders"] + 1)), env())
    with pytest.raises(UserError, match="record one IoTEnv"):
        replay(path, gymnasium.make("CartPole-v1"))


def test_a_recording_without_its_last_steps_is_refused(tmp_path: Path) -> None:
    path = recorded(tmp_path / "e.jsonl")
    lines = path.read_text().split("\n")
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text("\n".join([*lines[:-4], *lines[-2:]]))
    with pytest.raises(UserError, match=r"steps is \d+, and the last step says"):
        read_recording(shorter)
    footer = json.loads(lines[-2])
    last = json.loads(lines[-5])["frame"]
    footer |= {"end": "truncated", "steps": last["step"], "total": last["total"]}
    shorter.write_text("\n".join([*lines[:-4], json.dumps(footer), ""]))
    read_recording(shorter)  # whole in itself
    with pytest.raises(UserError, match="in its last line: summary differs"):
        replay(shorter, IoTEnv(bank=BANK, horizon=90))


def test_the_page_stands_alone(tmp_path: Path) -> None:
    write_html(read_recording(recorded(tmp_path / "e.jsonl")), tmp_path / "e.html")
    page = (tmp_path / "e.html").read_text(encoding="utf-8")
    assert not re.findall(r"""http:|https:|//[a-z]|\bsrc\s*=|\bhref\s*=|@import|url\((?!#)|fetch\(|XMLHttp|import\(""", page)
    assert "default-src 'none'" in page
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert data
    assert len(json.loads(data[1])["frames"]) == read_recording(tmp_path / "e.jsonl").footer.steps + 1


def test_hostile_names_stay_text_on_the_page(tmp_path: Path) -> None:
    def rename(tree: Any) -> None:
        tree["scene"]["devices"][0] = tree["scene"]["scenario"] = tree["scene"]["zones"][0] = tree["origin"]["site"] = HOSTILE

    write_html(read_recording(altered(recorded(tmp_path / "e.jsonl"), 0, rename)), tmp_path / "e.html")
    page = (tmp_path / "e.html").read_text(encoding="utf-8")
    assert page.lower().count("<script") == page.lower().count("</script>") == 2
    assert "<img" not in page
    data = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert data
    assert json.loads(data[1])["scene"]["devices"][0] == HOSTILE
    assert "innerHTML" not in page


def test_the_gif_shows_the_episode(tmp_path: Path) -> None:
    found = read_recording(recorded(tmp_path / "e.jsonl", scenario="home"))
    write_gif(found, tmp_path / "e.gif", every=30)
    with Image.open(tmp_path / "e.gif") as gif:
        assert getattr(gif, "n_frames", 1) == len({*range(0, len(found.frames), 30), len(found.frames) - 1})
        assert gif.size[0] == 1280
        gif.seek(1)
        colours = {colour for _, colour in gif.convert("RGB").getcolors(1 << 24) or []}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in (*STAGE_COLOURS, *CONTROL_COLOURS)} <= colours  # the legend names them


def test_pictures_that_cannot_be_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recorded(tmp_path / "e.jsonl", scenario="solo")
    found = read_recording(path)
    for step in (-1, found.footer.steps + 1):
        with pytest.raises(UserError, match=rf"no step {step} in the recording: 0 to {found.footer.steps}"):
            write_png(found, tmp_path / "e.png", step)
    paces: list[dict[str, Any]] = [{"every": 0}, {"fps": 0.0}, {"fps": -1.0}, {"fps": float("nan")}, {"fps": 1e-6}]
    for pace in paces:
        with pytest.raises(UserError, match="every must be at least 1, and fps lie in"):
            write_gif(found, tmp_path / "e.gif", **pace)
    for write in (write_png, write_gif, write_html):
        with pytest.raises(UserError, match="cannot write"):
            write(found, tmp_path)
    assert main([str(path), "--gif", str(tmp_path), "--every", "80"]) == 2
    assert "error: cannot write" in capsys.readouterr().err
    assert main([str(path), "--gif", str(tmp_path / "out.foo"), "--every", "80"]) == 0
    write_png(found, tmp_path / "picture", 0)
    for name, form in (("out.foo", "GIF"), ("picture", "PNG")):
        with Image.open(tmp_path / name) as image:
            assert image.format == form


def test_the_command_as_a_user_runs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recorded(tmp_path / "e.jsonl", scenario="solo")
    command = [sys.executable, "-W", "error", "-m", "envs.recording", path, "--html", tmp_path / "new" / "e.html", "--gif", tmp_path / "e.gif", "--every", "40"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert "solo: " in done.stdout
    assert (tmp_path / "new" / "e.html").stat().st_size > 10_000
    assert (tmp_path / "e.gif").stat().st_size > 1_000
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "error: cannot read the recording" in capsys.readouterr().err


def test_networks_of_users_are_recorded_whole(tmp_path: Path) -> None:
    own = tmp_path / "own.yml"
    text = (
        "name: shed\nzones: {yard: {exposed: true, reaches: [cellar]}, cellar: {}}\ndevices: [{type: camera, zone: yard}, {type: lock, zone: cellar, count: 2}]"
    )
    own.write_text(text)
    path = recorded(tmp_path / "e.jsonl", scenario=str(own))
    found = read_recording(path)
    assert found.header.scene.zones == ("yard", "cellar")
    assert found.header.scene.reach == ((0, 1),)
    assert [len(controls) for controls in found.frames[-1].controls] == [len(CONTROLS)] * 3
    assert str(tmp_path) not in path.read_text()
    own.write_text(text.replace("count: 2", "count: 3"))
    with pytest.raises(UserError, match="another network"):
        replay(path, IoTEnv(str(own), bank=BANK, horizon=90))


@pytest.mark.parametrize("settings", [{"telemetry_delay": 3, "sensor_dropout": 0.3}, {"history": 3, "detector_drift": 1.0}], ids=str)
def test_frames_show_what_the_defender_received(settings: dict[str, Any]) -> None:
    env = IoTEnv(bank=BANK, **settings)
    observation, _ = env.reset(seed=0)
    for _ in range(30):
        observation, *_ = env.step(0)
        now = frame(env.simulation, truth=True)
        np.testing.assert_array_equal(now.silent, observation["silent"] > 0)
        np.testing.assert_allclose(now.risk, observation["trend"][::3], atol=1e-4)
