"""Submissions: how they are opened, what they get, and that what they answer is checked."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agents.baselines import Constant, Threshold
from agents.entrants import PublicFacts, Submission, open_submission, play_submission
from envs import IoTEnv, TraceBank
from envs.dynamics import Order
from src.config import load_config
from src.errors import UserError
from tests.banks import make_bank

ROOT = Path(__file__).parents[1]
CONFIG = load_config(overrides=["env.scenario=home"], environ={})
BANK = make_bank()
FACTS = PublicFacts.of(IoTEnv(bank=BANK, config=CONFIG).simulation)
RULE = Threshold(FACTS.layout, "risk", 0.3, Order.BLOCK, 0.5, Order.RESTORE)


def submission(inner: Any) -> Submission:
    return Submission(inner, "mine", "mine.py:mine", "", len(FACTS.action_names))


def answering(answer: Any) -> Any:
    return SimpleNamespace(predict=lambda observation, state, episode_start, deterministic: answer)


class OneByOne:
    """The same rule over one Dict observation; it counts its steps in its state, and on itself."""

    single = True

    def __init__(self) -> None:
        self.starts: list[bool] = []

    def predict(self, observation: Any, state: Any, episode_start: Any, deterministic: bool) -> tuple[int, int]:
        assert (state is None) == episode_start  # memory starts anew with each episode
        self.starts.append(episode_start)
        flat = np.concatenate([observation[name] for name in FACTS.layout.named(np.zeros(FACTS.layout.size, np.float32))])
        observation["sensors"][:] = 7.0  # its own copy
        return int(RULE.predict(flat[None])[0][0]), (state or 0) + 1


def test_one_by_one_and_all_at_once_are_the_same_episodes_and_those_of_play() -> None:
    alone = OneByOne()
    one = play_submission(submission(alone), CONFIG, BANK, "test", 6, seed=100)
    batch = play_submission(submission(RULE), CONFIG, BANK, "test", 6, seed=100)
    np.testing.assert_array_equal(one.returns, batch.returns)
    np.testing.assert_array_equal(one.end, batch.end)
    assert one.summary.keys() == batch.summary.keys()
    for name, column in one.summary.items():
        np.testing.assert_allclose(column, batch.summary[name])
    assert sum(alone.starts) == 6
    assert batch.returns.mean() > play_submission(submission(Constant(0)), CONFIG, BANK, "test", 6, seed=100).returns.mean()


def test_a_submission_gets_copies() -> None:
    seen = []

    def scribble(observation: Any, state: Any, episode_start: Any, deterministic: bool) -> tuple[Any, Any]:
        seen.append(observation)
        observation[:], episode_start[:] = 9.0, True
        return np.zeros(len(observation), int), state

    observation, starts = np.zeros((3, FACTS.layout.size), np.float32), np.zeros(3, np.bool_)
    submission(SimpleNamespace(predict=scribble)).predict(observation, None, starts, True)
    assert seen[0].max() == 9.0
    assert observation.max() == 0.0
    assert not starts.any()


def test_the_facts_lead_nowhere() -> None:
    stored = pickle.dumps(FACTS)
    assert b"Simulation" not in stored
    assert b"IoTEnv" not in stored
    assert len(stored) < 100_000  # the bank is not in them
    assert FACTS.action_names[FACTS.layout.devices * 5] == f"RELEASE {FACTS.device_names[-1]}"
    assert FACTS.observation_space.shape == (FACTS.layout.size,)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (np.zeros(3, int), "must return a pair (actions, state), not an object of type ndarray"),
        ((np.zeros(2, int), None), "3 whole numbers, shape (3,), not an array of shape (2,)"),
        ((0, None), "declares single = True"),
        ((np.zeros((3, 1), int), None), "shape (3, 1)"),
        ((np.zeros(3), None), "not float64"),
        ((np.zeros(3, bool), None), "not bool"),
        (([0, 31, 0], None), "action 31; allowed: 0 .. 30"),
        (([0, -1, 0], None), "action -1"),
        (([0, [1], 0], None), "3 whole numbers"),
    ],
)
def test_a_wrong_answer_is_one_line(answer: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        submission(answering(answer)).predict(np.zeros((3, 5), np.float32), None, np.ones(3, np.bool_))
    assert said in str(caught.value)
    assert "submission 'mine'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("answer", "said"), [((np.array([0]), None), "one whole number"), ((1.0, None), "not float64"), ((99, None), "0 .. 30")])
def test_a_wrong_single_answer_is_one_line(answer: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        submission(answering(answer)).predict_one({"sensors": np.zeros(3, np.float32)}, None, True)


def test_whole_numbers_of_any_type_are_actions() -> None:
    actions, state = submission(answering((np.array([1, 2, 30], np.uint8), "kept"))).predict(np.zeros((3, 5), np.float32))
    assert (actions.tolist(), actions.dtype, state) == ([1, 2, 30], np.int64, "kept")


CODE = """
from dataclasses import dataclass

class Policy:
    name = "no. 1"
    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return [0] * len(observation), state

class WithFacts(Policy):
    def __init__(self, facts):
        self.devices = facts.device_names

@dataclass
class Plain(Policy):
    level: float = 0.5

def maker():
    return Policy()

def greedy(one, two):
    return Policy()

def broken():
    raise KeyError("missing weights")

class Failing(Policy):
    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return 1 / 0

class Misnamed(Policy):
    name = "../../x"

ready, nothing = Policy(), 7
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "theirs.py").write_text(CODE)
    return tmp_path / "theirs.py"


@pytest.mark.parametrize("attribute", ["Policy", "WithFacts", "Plain", "maker", "ready"])
def test_objects_classes_and_functions_open(file: Path, attribute: str) -> None:
    opened = open_submission(f"{file}:{attribute}", FACTS)
    assert (opened.name, opened.single, len(opened.digest)) == ("no. 1", False, 64)
    assert opened.predict(np.zeros((2, 4), np.float32))[0].tolist() == [0, 0]
    assert getattr(opened.inner, "devices", FACTS.device_names) == FACTS.device_names


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("theirs.py", "module:attribute or file.py:attribute"),
        ("nowhere.py:Policy", "no file"),
        ("no.such.module:Policy", "no module 'no.such.module'"),
        ("{file}:Polcy", "did you mean 'Policy'"),
        ("{file}:nothing", "an object of type int without a method predict"),
        ("{file}:greedy", "takes (one, two)"),
        ("{file}:broken", "raised KeyError: 'missing weights' ("),
        ("{file}:Misnamed", "a name has at most 40 letters"),
    ],
)
def test_what_cannot_be_opened_is_one_line(file: Path, source: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        open_submission(source.format(file=file), FACTS)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failure_names_file_and_line(file: Path) -> None:
    line = next(i for i, text in enumerate(CODE.splitlines(), start=1) if "1 / 0" in text)
    with pytest.raises(UserError, match=rf"predict raised ZeroDivisionError: division by zero \(.*theirs.py, line {line}\)"):
        open_submission(f"{file}:Failing", FACTS).predict(np.zeros((2, 4), np.float32))
    (file.parent / "bad.py").write_text("import theirs\n\nx = theirs.ready +\n")
    with pytest.raises(UserError, match=r"bad.py' raised SyntaxError"):
        open_submission(f"{file.parent / 'bad.py'}:x", FACTS)


def test_the_worked_example_beats_doing_nothing() -> None:
    bank = TraceBank.bundled()
    config = load_config(environ={})
    opened = open_submission(f"{ROOT / 'examples' / 'submission.py'}:Watchful", PublicFacts.of(IoTEnv(bank=bank, config=config).simulation))
    returns = [play_submission(one, config, bank, "test", 20, 0).mean for one in (opened, submission(Constant(0)))]
    assert returns[0] > returns[1] / 2  # of losses: less than half
