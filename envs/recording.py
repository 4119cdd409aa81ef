"""Episodes kept as JSON lines, and shown again: as a GIF, as one self-contained HTML page, or played anew to check that they repeat.

    env = EpisodeRecorder(IoTEnv("clinic"), "episode.jsonl", truth=True)
    ...  # reset and step as usual; the file appears when the episode ends

    python -m envs.recording episode.jsonl --html episode.html --gif episode.gif

The first line is the header (schema, scene, settings and seed), the second the frame after the reset, then a line a step,
and last what the episode came to. A file without that last line was cut off.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import Autoreset
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from envs.dynamics import Order
from envs.iot_env import IoTEnv
from envs.rendering import CONTROL_COLOURS, CONTROLS, LETTERS, RISK_RAMP, STAGE_COLOURS, TERM_COLOURS, Frame, Scene, Stage, frame, scene
from envs.scenarios import MOST_ZONES
from src.artifacts import write_text
from src.config import Config
from src.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

SCHEMA = 1
"""Version of the file's form; readers refuse others."""

LIMIT = 64 * 2**20
"""Most bytes of a recording."""

LONGEST = 100_000
"""Most steps of an episode, as for `env.horizon`."""


@dataclass(frozen=True)
class Header:
    """What an episode was played with."""

    schema: int
    scene: Scene
    seed: int | None
    """Given to `reset`; None where the environment went on with its own generator."""
    generator: dict[str, Any] | None
    """State of that generator before the reset, where no seed was given."""
    action_mode: str
    config: dict[str, Any]
    """Sections `env`, `attackers` and `reward`."""
    digest: str
    """SHA-256 of `config`."""
    origin: dict[str, str]
    """`info` at reset: traffic, site, sensor, split."""
    truth: bool


@dataclass(frozen=True)
class Step:
    """One step: the action as it was given, and the environment after it."""

    action: int | tuple[int, ...]
    frame: Frame


@dataclass(frozen=True)
class Footer:
    """What the episode came to."""

    end: str
    steps: int
    total: float
    summary: dict[str, float]


@dataclass(frozen=True)
class Recording:
    """A whole episode."""

    header: Header
    first: Frame
    steps: tuple[Step, ...]
    footer: Footer

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The frame after the reset, and one a step."""
        return (self.first, *(step.frame for step in self.steps))


_HEADER, _FRAME, _STEP, _FOOTER = TypeAdapter(Header), TypeAdapter(Frame), TypeAdapter(Step), TypeAdapter(Footer)


def _settings(config: Config) -> dict[str, Any]:
    """The sections that decide an episode, without what only decides how it is shown; the network itself is in the scene."""
    kept = {name: getattr(config, name).model_dump(mode="json") for name in ("env", "attackers", "reward")}
    kept["env"] = {key: value for key, value in kept["env"].items() if key not in ("scenario", "flatten", "expose_truth")}
    return kept


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _unwrapped(env: gym.Env) -> IoTEnv:
    inner = getattr(env, "unwrapped", env)
    if not isinstance(inner, IoTEnv):
        raise UserError(f"{type(inner).__name__} cannot be recorded or played again: record one IoTEnv; a batch or a duel is not recorded")
    return inner


def _footer(inner: IoTEnv, last: Frame) -> Footer:
    return Footer(last.end or "truncated", last.step, last.total, inner.simulation.summary(0))


class EpisodeRecorder(gym.Wrapper):
    """Writes each finished episode of an `IoTEnv` to a file.

    The lines are held until the episode ends and then written whole, so that an episode which is broken off leaves nothing.
    """

    def __init__(self, env: gym.Env, path: Path | str, *, truth: bool = False) -> None:
        """Record `env`, which may be wrapped already.

        Args:
            env: an `IoTEnv` or wrappers around one.
            path: the file. `{episode}` in it becomes the number of the finished episode, from 0; without, the latest episode stays.
            truth: whether to record what the defender does not see.

        Raises:
            UserError: for another environment, one that resets itself, or a path that cannot be written.
        """
        self._inner = _unwrapped(env)
        super().__init__(env)
        layer: Any = env
        while isinstance(layer, gym.Wrapper):
            if isinstance(layer, Autoreset):
                raise UserError("the recorder does not see the resets of an Autoreset inside of it: put Autoreset outside of it")
            layer = layer.env
        self.path, self.truth = Path(path), truth
        self.finished = 0
        """Episodes written."""
        self._lines: list[bytes] = []
        self._last: Frame | None = None
        """The last frame noted; None where no episode is being recorded."""
        target = self._target()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=target.parent):
                folder = target.is_dir()
        except OSError as error:
            raise UserError(f"cannot write the recording '{target}': {error.strerror}") from error
        if folder:
            raise UserError(f"cannot write the recording '{target}': it is a folder; name a file")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode and its recording.

        Raises:
            UserError: when a recording of an episode this long would grow beyond the limit.
        """
        self._lines, self._last = [], None
        generator = dict(self._inner.np_random.bit_generator.state) if seed is None else None
        observation, info = self.env.reset(seed=seed, options=options)
        sim = self._inner.simulation
        first = frame(sim, truth=self.truth)
        settings = _settings(sim.config)
        header = Header(
            schema=SCHEMA,
            scene=scene(sim),
            seed=None if seed is None else int(seed),
            generator=generator,
            action_mode=sim.config.env.action_mode,
            config=settings,
            digest=_digest(settings),
            origin={name: str(value) for name, value in sim.describe().items()},
            truth=self.truth,
        )
        self._lines = [_HEADER.dump_json(header), _FRAME.dump_json(first)]
        # A line grows by little as the episode goes on: timers instead of zeros, longer fractions, an order in words.
        horizon = sim.config.env.horizon
        if (size := 2 * len(self._lines[1]) * horizon) > LIMIT:
            raise UserError(f"a recording of {horizon} steps may take {size / 2**20:.0f} MB, more than {LIMIT // 2**20}; lower env.horizon")
        self._last = first
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act, and note it. A refused action leaves the episode as it was; one that is interrupted ends its recording.

        Raises:
            UserError: for an action that is no integer or list of them, when a wrapper inside of this one does not make one step of it,
                or when the file cannot be written.
        """
        given = _plain(action)
        sim = self._inner.simulation
        # Between the step and its note there is nothing to go on from: an interrupt there must not leave a gap in the file.
        last, self._last = self._last, None
        before = int(sim.sites[0]["step"]) if last is None else last.step
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except UserError:
            if int(sim.sites[0]["step"]) == before:
                self._last = last
            raise
        if (step := int(sim.sites[0]["step"])) != before + 1:
            raise UserError(f"the environment went from step {before} to {step} under the recorder: put Autoreset and what repeats steps outside of it")
        if last is not None:
            now = frame(sim, truth=self.truth, before=last)
            self._lines.append(_STEP.dump_json(Step(given, now)))
            if terminated or truncated:
                self._write(now)
            else:
                self._last = now
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Drop an unfinished episode."""
        self._lines, self._last = [], None
        super().close()

    def _target(self) -> Path:
        return Path(str(self.path).replace("{episode}", str(self.finished)))

    def _write(self, last: Frame) -> None:
        lines = [*self._lines, _FOOTER.dump_json(_footer(self._inner, last)), b""]
        target = self._target()
        try:
            write_text(target, b"\n".join(lines).decode())
        except UserError as error:
            raise UserError(f"cannot write the recording '{target}': {error.__cause__ or error}") from error
        self._lines = []
        self.finished += 1


def _plain(action: Any) -> int | tuple[int, ...]:
    """An action as it is written down."""
    try:
        given = np.asarray(action)
    except ValueError:  # lists of different lengths
        given = np.empty(0)
    if given.ndim > 1 or not np.issubdtype(given.dtype, np.integer):
        raise UserError(f"action {action!r} cannot be recorded: an integer, or a list of one a device, is needed")
    return tuple(map(int, given)) if given.ndim else int(given)


def read_recording(path: Path | str) -> Recording:
    """A recording, checked.

    Raises:
        UserError: when the file is missing, of another schema, cut off or malformed; the line is named.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LIMIT:
            raise UserError(f"recording '{path}' is larger than {LIMIT // 2**20} MB, the most that is read")
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recording '{path}': {getattr(error, 'strerror', None) or 'it is no text'}") from error
    try:
        version = json.loads(lines[0])["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"'{path}' is no recording of an episode: its first line is no header") from error
    if version != SCHEMA:
        raise UserError(f"recording '{path}' has schema {version!r}, and this version reads {SCHEMA}; record it again")
    if lines[-1] or len(lines) < 4:
        raise UserError(f"recording '{path}' is cut off after line {len(lines) - (not lines[-1])}; record it again")
    kinds = [_HEADER, _FRAME, *[_STEP] * (len(lines) - 4), _FOOTER]
    read: list[Any] = []
    for number, (kind, line) in enumerate(zip(kinds, lines, strict=False), 1):
        try:
            read.append(kind.validate_json(line))
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "the line"
            cut = "; the file may be cut off" if number == len(kinds) else ""
            raise UserError(f"recording '{path}', line {number}: {where}: {fault['msg'].lower()}{cut}; record it again") from error
    header, first, *steps, footer = read
    frames = [first, *(step.frame for step in steps)]
    faults = [_flaw(header.scene) or _endless(header), *(_misfit(header, one, step) for step, one in enumerate(frames)), _mismatch(footer, frames[-1])]
    for number, fault in enumerate(faults, 1):
        if fault:
            raise UserError(f"recording '{path}', line {number}: {fault}; record it again")
    return Recording(header, first, tuple(steps), footer)


def _flaw(here: Scene) -> str | None:
    """Why no picture could be made of a scene; None if it can."""
    if not 1 <= here.horizon <= LONGEST or not 0 < here.step_seconds * here.horizon < np.inf:
        return f"a horizon of {here.horizon} steps of {here.step_seconds} s: 1 to {LONGEST} steps of a finite length are read"
    if not all(0 <= c < np.inf for c in here.criticality) or not sum(here.criticality) > 0:
        return "criticality must be finite and not negative, and not 0 everywhere"
    if len(here.zones) > MOST_ZONES:
        return f"{len(here.zones)} zones: {MOST_ZONES} at most are read"
    return None if all(here.devices) else "a device has no name"


def _endless(header: Header) -> str | None:
    """Whether a setting is no finite number, as `1e400` is not; None if all are."""
    try:
        json.dumps((header.config, header.generator), allow_nan=False)
    except ValueError:
        return "a setting is not finite"
    return None


def _mismatch(footer: Footer, last: Frame) -> str | None:
    """What does not fit between the last line and the last step; None if all does."""
    if not np.isfinite([footer.total, *footer.summary.values()]).all():
        return "a number is not finite"
    for name, said, found in (("steps", footer.steps, last.step), ("total", footer.total, last.total), ("end", footer.end, last.end or "truncated")):
        if said != found:
            return f"{name} is {said}, and the last step says {found}"
    return None


def _misfit(header: Header, one: Frame, step: int) -> str | None:
    """What does not fit between a frame and its scene; None if all does."""
    count, here = len(header.scene.devices), header.scene
    columns = {name: getattr(one, name) for name in ("controls", "pending", "risk", "uncertainty", "anomaly", "service", "silent", "allowed")}
    if one.truth is not None:
        columns |= {name: getattr(one.truth, name) for name in ("stage", "shown", "evaded")}
    fixed = {name: getattr(here, name) for name in ("types", "zone", "criticality", "protected")}
    for name, column in (columns | fixed).items():
        if len(column) != count:
            return f"{name} has {len(column)} entries for {count} devices"
    if len(one.losses) != len(here.terms):
        return f"losses has {len(one.losses)} entries for {len(here.terms)} terms"
    if one.step != step or step > here.horizon:
        return f"step {one.step} where {step} was expected"
    if (one.truth is None) is header.truth:
        return "the truth is missing" if header.truth else "it holds a truth that the header denies"
    zones = range(len(here.zones))
    if not all(z in zones for z in (*here.zone, *here.exposed, *(z for pair in here.reach for z in pair))):
        return "the scene names a zone that it does not have"
    if not np.isfinite([*one.risk, *one.uncertainty, *one.anomaly, *one.service, *one.losses, one.reward, one.total]).all():
        return "a number is not finite"
    if not all(0 <= share <= 1 for share in (*one.risk, *one.service)):
        return "a risk or a service lies outside of 0 to 1"
    if not all(0 <= order < len(Order) for order in one.pending) or not all(left >= 0 for timers in one.controls for left in timers):
        return "an order on its way or the time left of a control is out of range"
    if any(not 0 <= d < count or not 1 <= order < len(Order) for d, order, _ in one.orders) or (
        one.truth and not all(0 <= s < len(Stage) for s in one.truth.stage)
    ):
        return "an order or a stage is out of range"
    return None


def replay(path: Path | str, env: gym.Env) -> Recording:
    """Play a recording's actions anew and check that every frame comes out the same, rewards to the last bit.

    Args:
        path: the recording.
        env: an environment like the recorded one, with the same wrappers; it is reset.

    Raises:
        UserError: when the environment is another one, at the first step that differs, or when the episode came to something else.
    """
    recording = read_recording(path)
    header, inner = recording.header, _unwrapped(env)
    settings = _settings(inner.simulation.config)
    if _digest(settings) != header.digest or header.config != settings:
        changed = [
            f"{s}.{k}" for s in settings for k in sorted({*settings[s], *header.config.get(s, {})}) if settings[s].get(k) != header.config.get(s, {}).get(k)
        ]
        raise UserError(f"recording '{path}' was played with other settings: {', '.join(changed[:4]) or 'the digest does not fit them'}")
    if scene(inner.simulation) != header.scene:
        raise UserError(
            f"recording '{path}' was played on another network: '{header.scene.scenario}', not '{inner.simulation.network.name}', or one that was changed"
        )
    origin = {name: str(value) for name, value in inner.simulation.describe().items()}
    if origin != header.origin:
        raise UserError(f"recording '{path}' was played on other traffic: {header.origin}, not {origin}")
    if header.generator is not None:
        try:
            generator = np.random.Generator(np.random.PCG64())
            generator.bit_generator.state = header.generator
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"recording '{path}', line 1: generator: it is no state of a PCG64") from error
        inner.np_random = generator
    env.reset(seed=header.seed)
    made = frame(inner.simulation, truth=header.truth)
    if made != recording.first:
        raise UserError(f"recording '{path}' does not repeat: {_difference(made, recording.first)} after the reset")
    for number, step in enumerate(recording.steps, 1):
        if made.end:
            raise UserError(f"recording '{path}' does not repeat: the episode ends at step {number - 1}, and the recording goes on")
        try:
            env.step(np.array(step.action) if isinstance(step.action, tuple) else step.action)
        except UserError as error:
            raise UserError(f"recording '{path}' does not repeat at step {number}: {error}") from error
        made = frame(inner.simulation, truth=header.truth, before=made)
        if made != step.frame:
            raise UserError(f"recording '{path}' does not repeat at step {number}: {_difference(made, step.frame)}")
    if (came := _footer(inner, made)) != recording.footer:
        raise UserError(f"recording '{path}' does not repeat in its last line: {_difference(came, recording.footer)}")
    return recording


def _difference(made: Frame | Footer, recorded: Frame | Footer) -> str:
    names = sorted((field.name for field in fields(made)), key=lambda name: name != "reward")  # it says more than what comes before it
    name = next(name for name in names if getattr(made, name) != getattr(recorded, name))
    one, other = getattr(made, name), getattr(recorded, name)
    return f"{name} is {one}, and was {other}" if isinstance(one, float) else f"{name} differs"


def write_png(recording: Recording, path: Path | str, step: int | None = None) -> None:
    """The picture of one step, the last where none is named, with the timeline up to it.

    Raises:
        UserError: for a step that the recording does not have, a network too large for a picture, or a file that cannot be written.
    """
    from PIL import Image

    from envs.picture import Picture

    steps = recording.footer.steps
    if step is not None and not 0 <= step <= steps:
        raise UserError(f"there is no step {step} in the recording: 0 to {steps}")
    frames = recording.frames if step is None else recording.frames[: step + 1]
    _save(Image.fromarray(Picture(recording.header.scene, recording.header.truth).draw(frames)), path, "PNG")


def _save(image: Image, path: Path | str, form: str, **settings: Any) -> None:
    """Write an image; its form does not hang on the file's name."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        image.save(path, format=form, optimize=True, **settings)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from error


def write_gif(recording: Recording, path: Path | str, every: int = 2, fps: float = 6.0) -> None:
    """The episode as an animated picture, a frame every `every` steps; one palette for all frames keeps it small.

    Raises:
        UserError: for a pace that a GIF does not have, a network too large for a picture, or a file that cannot be written.
    """
    from PIL import Image

    from envs.picture import PALETTE, Picture

    if every < 1 or not 0.01 <= fps <= 100:
        raise UserError(f"a GIF of every {every} steps at {fps} frames a second: every must be at least 1, and fps lie in 0.01 to 100")

    picture, frames = Picture(recording.header.scene, recording.header.truth), recording.frames
    shown = sorted({*range(0, len(frames), every), len(frames) - 1})
    images = [Image.fromarray(picture.draw(frames[: i + 1])) for i in shown]
    # Colours that carry meaning are fixed, or rare ones would be merged; the rest is what the last picture needs.
    found = images[-1].quantize(256 - len(PALETTE), dither=Image.Dither.NONE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(value for colour in PALETTE for value in colour), *found][: 3 * 256])
    small = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    duration = [round(1000 / fps)] * (len(small) - 1) + [3000]
    _save(small[0], path, "GIF", save_all=True, append_images=small[1:], duration=duration, loop=0)


def write_html(recording: Recording, path: Path | str) -> None:
    """The episode as one page that needs nothing else: no network, no other file.

    Raises:
        UserError: when the file cannot be written.
    """
    header = recording.header
    data = {
        "scene": asdict(header.scene),
        "truth": header.truth,
        "origin": header.origin,
        "seed": header.seed,
        "frames": [asdict(one) for one in recording.frames],
        "footer": asdict(recording.footer),
        "palette": {"stages": STAGE_COLOURS, "controls": CONTROL_COLOURS, "terms": TERM_COLOURS, "risk": RISK_RAMP},
        "names": {
            "stages": [stage.name.lower() for stage in Stage],
            "controls": [order.name.lower().replace("_", " ") for order in CONTROLS],
            "letters": LETTERS,
        },
    }
    # Inside <script> only "<" could end the data; written as an escape it is the same JSON.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    page = (Path(__file__).parent / "assets" / "replay.html").read_text(encoding="utf-8")
    title = html.escape(f"{header.scene.scenario}, {recording.footer.steps} steps, {recording.footer.end}")
    try:
        write_text(Path(path), page.replace("@TITLE@", title).replace("@DATA@", text))
    except UserError as error:
        raise UserError(f"cannot write '{path}': {error.__cause__ or error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m envs.recording", description="Show a recorded episode.")
    parser.add_argument("recording", type=Path, help="what EpisodeRecorder wrote")
    parser.add_argument("--html", type=Path, help="page to write")
    parser.add_argument("--gif", type=Path, help="animated picture to write")
    parser.add_argument("--every", type=int, default=2, help="steps from one picture of the GIF to the next (default 2)")
    given = parser.parse_args(arguments)
    if given.every < 1:
        parser.error("--every must be at least 1")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        recording = read_recording(given.recording)
        for path, write in ((given.html, write_html), (given.gif, lambda r, p: write_gif(r, p, given.every))):
            if path:
                write(recording, path)
                console.print(f"{path} ({path.stat().st_size / 1000:.0f} kB)")
    except UserError as error:
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"error: {error}")
        return 2
    footer = recording.footer
    console.print(f"{recording.header.scene.scenario}: {footer.steps} steps, ended by {footer.end}, return {footer.total:z.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
