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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from envs.iot_env import IoTEnv
from envs.rendering import CONTROL_COLOURS, CONTROLS, LETTERS, RISK_RAMP, STAGE_COLOURS, TERM_COLOURS, Frame, Scene, Stage, frame, scene
from src.artifacts import write_text
from src.config import Config
from src.errors import UserError

SCHEMA = 1
"""Version of the file's form; readers refuse others."""

LIMIT = 64 * 2**20
"""Most bytes of a recording."""


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
    origin: dict[str, Any]
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
    inner = env.unwrapped
    if not isinstance(inner, IoTEnv):
        raise UserError(f"only an IoTEnv can be recorded and played again, not {type(inner).__name__}")
    return inner


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
            UserError: for another environment.
        """
        super().__init__(env)
        self.path, self.truth = Path(path), truth
        self.finished = 0
        """Episodes written."""
        self._inner = _unwrapped(env)
        self._lines: list[bytes] = []
        self._last: Frame | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode and its recording.

        Raises:
            UserError: when a recording of an episode this long would grow beyond the limit.
        """
        generator = dict(self._inner.np_random.bit_generator.state) if seed is None else None
        observation, info = self.env.reset(seed=seed, options=options)
        sim = self._inner.simulation
        self._last = frame(sim, truth=self.truth)
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
        self._lines = [_HEADER.dump_json(header), _FRAME.dump_json(self._last)]
        # A line grows by little as the episode goes on: timers instead of zeros, longer fractions, an order in words.
        if (size := 2 * len(self._lines[1]) * self._last_step()) > LIMIT:
            raise UserError(f"a recording of {self._last_step()} steps may take {size / 2**20:.0f} MB, more than {LIMIT // 2**20}; lower env.horizon")
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act, and note it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        sim = self._inner.simulation
        if self._last is not None:
            self._last = frame(sim, truth=self.truth, before=self._last)
            given = np.asarray(action)
            self._lines.append(_STEP.dump_json(Step(tuple(given.tolist()) if given.ndim else int(given), self._last)))
            if terminated or truncated:
                self._write(sim.summary(0))
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Drop an unfinished episode."""
        self._lines, self._last = [], None
        super().close()

    def _last_step(self) -> int:
        return self._inner.simulation.config.env.horizon

    def _write(self, summary: dict[str, float]) -> None:
        last = self._last
        assert last is not None
        footer = Footer(last.end or "truncated", last.step, last.total, summary)
        lines = [*self._lines, _FOOTER.dump_json(footer), b""]
        self._lines, self._last = [], None
        target = Path(str(self.path).replace("{episode}", str(self.finished)))
        try:
            write_text(target, b"\n".join(lines).decode())
        except UserError as error:
            raise UserError(f"cannot write the recording '{target}': {error.__cause__ or error}") from error
        self.finished += 1


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
    except (ValueError, KeyError, TypeError) as error:
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
    for number, one in enumerate([first, *(step.frame for step in steps)], 2):
        if fault := _misfit(header, one, number - 2):
            raise UserError(f"recording '{path}', line {number}: {fault}; record it again")
    return Recording(header, first, tuple(steps), footer)


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
    if any(not 0 <= d < count or not 1 <= order <= 5 for d, order, _ in one.orders) or (one.truth and not all(0 <= s < len(Stage) for s in one.truth.stage)):
        return "an order or a stage is out of range"
    return None


def replay(path: Path | str, env: gym.Env) -> Recording:
    """Play a recording's actions anew and check that every frame comes out the same, rewards to the last bit.

    Args:
        path: the recording.
        env: an environment like the recorded one, with the same wrappers; it is reset.

    Raises:
        UserError: when the environment is another one, or at the first step that differs.
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
    return recording


def _difference(made: Frame, recorded: Frame) -> str:
    names = ["reward", *(field.name for field in fields(Frame) if field.name != "reward")]
    name = next(name for name in names if getattr(made, name) != getattr(recorded, name))
    one, other = getattr(made, name), getattr(recorded, name)
    return f"{name} is {one}, and was {other}" if isinstance(one, float) else f"{name} differs"


def write_png(recording: Recording, path: Path | str, step: int | None = None) -> None:
    """The picture of one step, the last where none is named, with the timeline up to it.

    Raises:
        UserError: when the file cannot be written.
    """
    from PIL import Image

    from envs.picture import Picture

    frames = recording.frames if step is None else recording.frames[: step + 1]
    image = Image.fromarray(Picture(recording.header.scene, recording.header.truth).draw(frames))
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        image.save(path, optimize=True)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from error


def write_gif(recording: Recording, path: Path | str, every: int = 2, fps: float = 6.0) -> None:
    """The episode as an animated picture, a frame every `every` steps; one palette for all frames keeps it small.

    Raises:
        UserError: when the file cannot be written.
    """
    from PIL import Image

    from envs.picture import PALETTE, Picture

    picture, frames = Picture(recording.header.scene, recording.header.truth), recording.frames
    shown = sorted({*range(0, len(frames), every), len(frames) - 1})
    images = [Image.fromarray(picture.draw(frames[: i + 1])) for i in shown]
    # Colours that carry meaning are fixed, or rare ones would be merged; the rest is what the last picture needs.
    found = images[-1].quantize(256 - len(PALETTE), dither=Image.Dither.NONE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(value for colour in PALETTE for value in colour), *found][: 3 * 256])
    small = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        small[0].save(path, save_all=True, append_images=small[1:], duration=[round(1000 / fps)] * (len(small) - 1) + [3000], loop=0, optimize=True)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from error


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
    console.print(f"{recording.header.scene.scenario}: {footer.steps} steps, ended by {footer.end}, return {footer.total:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
