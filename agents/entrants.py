"""Policies from elsewhere: opened from where their author says, asked for actions, and never trusted with anything else.

The environment stays on this side. A submission gets copies of observations and gives back actions; seeds, rewards and summaries are
taken from the environment. Opening one executes its file.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs import IoTEnv, IoTVectorEnv
from envs.dynamics import End
from envs.world import Layout, Simulation, action_names
from src.config import Config, nearest
from src.data.bank import TraceBank
from src.errors import UserError
from src.evaluation.rollout import Episodes, play

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.\-]{0,39}")
"""What a submission may be called."""


@dataclass(frozen=True)
class PublicFacts:
    """What a submission may know of the world before it plays: what a defender could read in the manual. D devices."""

    scenario: str
    device_names: tuple[str, ...]
    """(D,) in the order of action indices and of observations."""
    action_names: tuple[str, ...]
    """(1 + 5 D,) e.g. `BLOCK camera-1`; index 0 is MONITOR."""
    layout: Layout
    """`layout.split(flat)` gives the named parts of flat observations, (..., D, floats)."""
    observation_space: spaces.Box
    """One environment's flat observations."""
    dict_space: spaces.Dict
    """One environment's named observations, which an object with `single = True` gets."""
    action_space: spaces.Discrete
    """One environment's actions."""
    horizon: int
    """Steps in an episode."""
    step_seconds: float
    """Length of a step."""

    @classmethod
    def of(cls, simulation: Simulation) -> PublicFacts:
        """The facts of a world, without a way back to it."""
        names, env = simulation.network.names, simulation.config.env
        actions = action_names(names)
        layout = simulation.layout
        return cls(
            simulation.network.name, names, actions, layout, layout.flat_space(), layout.dict_space(), spaces.Discrete(len(actions)), env.horizon,
            env.step_seconds,
        )  # fmt: skip


@dataclass(frozen=True)
class Submission:
    """An object with `predict`, checked at every step. Itself a policy, with `predict` over a batch of flat observations."""

    inner: Any
    name: str
    source: str
    """What was given to open it."""
    digest: str
    """SHA-256 of the file that was executed; empty where there is none."""
    actions: int
    """How many actions there are."""

    @property
    def single(self) -> bool:
        """Whether it declares (`single = True`) that it reads one Dict observation at a time."""
        return bool(getattr(self.inner, "single", False))

    def predict(
        self, observation: NDArray[np.float32], state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[np.int64], Any]:
        """Actions (E,) for observations (E, size), and its memory.

        Raises:
            UserError: when it fails, or answers anything but E whole numbers that are actions.
        """
        answer, state = self._ask(observation.copy(), state, np.array(episode_start), deterministic)
        return self._checked(answer, (len(observation),)), state

    def predict_one(self, observation: dict[str, NDArray[np.float32]], state: Any, episode_start: bool) -> tuple[int, Any]:
        """The action for one Dict observation, and its memory.

        Raises:
            UserError: when it fails, or answers anything but one whole number that is an action.
        """
        answer, state = self._ask({name: part.copy() for name, part in observation.items()}, state, episode_start, True)
        return int(self._checked(answer, ())), state

    def _ask(self, observation: Any, state: Any, episode_start: Any, deterministic: bool) -> tuple[Any, Any]:
        with _blaming(f"submission '{self.name}': predict"):
            answer = self.inner.predict(observation, state=state, episode_start=episode_start, deterministic=deterministic)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise UserError(f"submission '{self.name}': predict must return a pair (actions, state), not {_kind(answer)}")
        return answer

    def _checked(self, answer: Any, shape: tuple[int, ...]) -> NDArray[np.int64]:
        wanted = f"{shape[0]} whole numbers, shape {shape}" if shape else "one whole number"
        try:
            given = np.asarray(answer)
        except Exception as error:
            raise UserError(f"submission '{self.name}': predict must answer {wanted}, not {_kind(answer)}") from error
        if given.shape != shape:
            hint = "; an object that reads one Dict observation at a time declares single = True" if given.shape == () else ""
            raise UserError(f"submission '{self.name}': predict must answer {wanted}, not an array of shape {given.shape}{hint}")
        if not np.issubdtype(given.dtype, np.integer):
            raise UserError(f"submission '{self.name}': predict must answer {wanted}, not {given.dtype}")
        outside = given[(given < 0) | (given >= self.actions)]
        if outside.size:
            raise UserError(f"submission '{self.name}': predict answered action {int(outside.flat[0])}; allowed: 0 .. {self.actions - 1}")
        return given.astype(np.int64)


def play_submission(submission: Submission, config: Config, bank: TraceBank, split: str, episodes: int, seed: int) -> Episodes:
    """Episodes in a fresh, unwrapped environment, with seeds `seed`, `seed` + 1, ...: one after the other for a `single` object, else all at once.

    Both give the same episodes for the same decisions.
    """
    if not submission.single:
        return play(IoTVectorEnv(episodes, bank=bank, split=split, config=config, flatten=True, action_mode="discrete"), submission, seed)
    env = IoTEnv(bank=bank, split=split, config=config, flatten=False, action_mode="discrete", expose_truth=False)
    returns, end, summaries = np.zeros(episodes), np.zeros(episodes, np.int64), []
    for i in range(episodes):
        observation, info = env.reset(seed=seed + i)
        state, start, over = None, True, False
        while not over:
            action, state = submission.predict_one(observation, state, start)
            observation, reward, terminated, truncated, info = env.step(action)
            returns[i] += float(reward)
            start, over = False, terminated or truncated
        end[i] = End[info["end"].upper()]
        summaries.append(info["summary"])
    return Episodes(returns, {name: np.array([one[name] for one in summaries]) for name in summaries[0]}, end)


def open_submission(source: str, facts: PublicFacts) -> Submission:
    """Open `module:attribute` or `file.py:attribute`, which executes that file with all that it may do.

    The attribute is an object with `predict`, or a class or function that makes one: called without arguments where it can be, else
    with `facts`. Its `name`, if it has one, is its name, else the attribute's.

    Raises:
        UserError: when there is no such thing, it fails, or it has no `predict`.
    """
    place, _, attribute = source.rpartition(":")
    if not place or not attribute:
        raise UserError(f"--submit wants module:attribute or file.py:attribute, not '{source}'")
    module = _load(place)
    if not hasattr(module, attribute):
        public = [name for name, value in vars(module).items() if not name.startswith("_") and (callable(value) or hasattr(value, "predict"))]
        raise UserError(f"'{place}' has no '{attribute}': {nearest(attribute, public) if public else 'it holds nothing that could play'}")
    inner = getattr(module, attribute)
    if inspect.isclass(inner) or (callable(inner) and not hasattr(inner, "predict")):
        inner = _made(inner, source, facts)
    if not callable(getattr(inner, "predict", None)):
        raise UserError(f"'{source}' is {_kind(inner)} without a method predict(observation, state, episode_start, deterministic)")
    name = str(getattr(inner, "name", attribute))
    if not NAME.fullmatch(name):
        raise UserError(f"'{source}' calls itself {name!r}: a name has at most 40 letters, digits, spaces, '_', '.' and '-', a letter or digit first")
    path = getattr(module, "__file__", None)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""
    return Submission(inner, name, source, digest, int(facts.action_space.n))


def _load(place: str) -> ModuleType:
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise UserError(f"no file '{place}' to submit")
        spec = importlib.util.spec_from_file_location(f"submission_{path.stem}", path)
        assert spec is not None  # a .py file always has one
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look themselves up there
        sys.path.insert(0, str(path.resolve().parent))  # as for a script, so that it finds its neighbours
        with _blaming(f"'{place}'"):
            spec.loader.exec_module(module)
        return module
    with _blaming(f"'{place}'"):
        try:
            found = importlib.util.find_spec(place)
        except (ModuleNotFoundError, ValueError):  # of a package above it, or a name that is none
            found = None
        if found is not None:
            return importlib.import_module(place)
    raise UserError(f"no module '{place}' to submit; a file ends in .py, as in path/to/file.py:attribute")


def _made(maker: Any, source: str, facts: PublicFacts) -> Any:
    """What a class or function makes."""
    try:
        signature = inspect.signature(maker)
    except (TypeError, ValueError):  # of some built-ins nothing is known
        signature = inspect.Signature()
    for given in ((), (facts,)):
        try:
            signature.bind(*given)
        except TypeError:
            continue
        with _blaming(f"'{source}'"):
            return maker(*given)
    raise UserError(f"'{source}' takes {signature}: what makes a policy takes no argument, or one (the facts of PublicFacts in agents/entrants.py)")


@contextlib.contextmanager
def _blaming(what: str) -> Iterator[None]:
    """Whatever somebody's code raises is one line that says where."""
    try:
        yield
    except (Exception, SystemExit) as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__ and "importlib" not in frame.filename]
        where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
        text = " ".join(str(error).split())[:300]
        raise UserError(f"{what} raised {type(error).__name__}{f': {text}' if text else ''}{where}") from error


def _kind(value: Any) -> str:
    return f"an object of type {type(value).__name__}"
