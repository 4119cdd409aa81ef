"""The optimum of one device: the environment's returns agree with a model that shares no code with it."""

import numpy as np
import pytest

from agents.baselines import Constant, Threshold, threshold_candidates
from agents.exact import ExactPolicy, Model, Solution, State, exact_config
from agents.planner import Planner
from envs import IoTVectorEnv
from envs.attackers import Stage
from envs.dynamics import Order
from src.config import Config
from src.errors import UserError
from src.evaluation.rollout import Episodes, play
from tests.banks import make_bank

BANK = make_bank(windows=30)
EPISODES = 20_000
CONFIDENCE_99 = 2.576


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(exact_config())


@pytest.fixture(scope="module")
def optimum(model: Model) -> Solution:
    return model.solve()


@pytest.fixture(scope="module")
def env() -> IoTVectorEnv:
    return IoTVectorEnv(EPISODES, bank=BANK, config=exact_config(), flatten=True)


@pytest.fixture(scope="module")
def fixed(model: Model) -> dict[str, np.ndarray]:
    """Orders by state, of policies that between them visit most corners."""
    return {
        "no-op": np.zeros(len(model.states), np.int64),
        "block": np.full(len(model.states), int(Order.BLOCK)),
        "planner": model.orders_of(Planner, BANK),
        "scattered": np.random.default_rng(1).integers(0, len(Order), len(model.states)),
    }


@pytest.fixture(scope="module")
def played(model: Model, env: IoTVectorEnv, fixed: dict[str, np.ndarray]) -> dict[str, Episodes]:
    return {name: play(env, ExactPolicy(env.simulation, model, model.evaluate(orders)), seed=0) for name, orders in fixed.items()}


def deviation(episodes: Episodes, value: float) -> float:
    """Of the mean return from `value`, in standard errors."""
    return (episodes.mean - value) / (episodes.returns.std(ddof=1) / len(episodes.returns) ** 0.5)


def test_the_environment_returns_what_the_optimum_is_worth(model: Model, optimum: Solution, env: IoTVectorEnv) -> None:
    assert abs(deviation(play(env, ExactPolicy(env.simulation, model, optimum), seed=0), optimum.value)) < CONFIDENCE_99


@pytest.mark.parametrize("name", ["no-op", "block", "planner", "scattered"])
def test_the_environment_returns_what_a_fixed_policy_is_worth(name: str, model: Model, fixed: dict[str, np.ndarray], played: dict[str, Episodes]) -> None:
    assert abs(deviation(played[name], model.evaluate(fixed[name]).value)) < CONFIDENCE_99


def test_a_state_by_state_policy_plays_as_the_policy_itself(env: IoTVectorEnv, played: dict[str, Episodes]) -> None:
    np.testing.assert_array_equal(play(env, Planner(env.simulation), seed=0).returns, played["planner"].returns)
    np.testing.assert_array_equal(play(env, Constant(int(Order.BLOCK)), seed=0).returns, played["block"].returns)


@pytest.mark.parametrize("factor", [0.8, 1.2])
@pytest.mark.parametrize("name", ["probe", "engage", "compromise", "impact", "rotate", "abandon"])
def test_a_model_with_one_wrong_probability_is_rejected(
    name: str, factor: float, model: Model, fixed: dict[str, np.ndarray], played: dict[str, Episodes]
) -> None:
    config = exact_config()
    botnet = config.attackers.botnet
    wrong = botnet.model_copy(update={name: getattr(botnet, name) * factor})
    other = Model(config.model_copy(update={"attackers": config.attackers.model_copy(update={"botnet": wrong})}))
    np.testing.assert_array_equal(other.states, model.states)
    assert max(abs(deviation(played[policy], other.evaluate(orders).value)) for policy, orders in fixed.items()) > CONFIDENCE_99


def test_no_policy_beats_the_optimum(model: Model, optimum: Solution, env: IoTVectorEnv, fixed: dict[str, np.ndarray], played: dict[str, Episodes]) -> None:
    rng = np.random.default_rng(0)
    spoiled = [np.where(rng.random(optimum.orders.shape) < 0.1, rng.integers(0, len(Order), optimum.orders.shape), optimum.orders) for _ in range(5)]
    for orders in (*fixed.values(), *spoiled):
        worse = model.evaluate(orders).values
        assert worse[0, 0] < optimum.value
        assert (worse <= optimum.values + 1e-9).all()  # in every state and at every step
    best = play(env, ExactPolicy(env.simulation, model, optimum), seed=0)
    rules = [rule for rule in threshold_candidates(env.simulation.layout) if isinstance(rule, Threshold) and rule.high in (0.3, 0.6)]
    small = IoTVectorEnv(1000, bank=BANK, config=exact_config(), flatten=True)
    for policy in (*rules, *(Constant(int(order)) for order in Order)):
        gain = play(small, policy, seed=0).returns - best.returns[:1000]  # paired: the same seeds
        assert gain.mean() < 3 * gain.std(ddof=1) / 1000**0.5
    assert played["planner"].mean < best.mean


def test_near_the_end_a_foothold_is_not_worth_a_restore(model: Model, optimum: Solution) -> None:
    foothold = [i for i, (state, _) in enumerate(model.describe(optimum, 0)) if state.stage == Stage.COMPROMISED and state.patience > 8 and not state.pending]
    foothold = [i for i in foothold if model.states[i, State._fields.index("restore")] == 0]
    assert (optimum.orders[20, foothold] == Order.RESTORE).mean() > 0.9
    assert (optimum.orders[-1, foothold] != Order.RESTORE).all()


def test_states_that_the_rules_cannot_reach_are_refused(model: Model, env: IoTVectorEnv) -> None:
    env.reset(seed=0)
    env.simulation.devices["stage"][7] = Stage.IMPACT  # before anybody has come
    with pytest.raises(UserError, match="cannot reach"):
        model.find(env.simulation)


def test_worlds_that_are_not_solved_exactly_are_refused() -> None:
    with pytest.raises(UserError, match="needs one device"):
        Model(Config())
