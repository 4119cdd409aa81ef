"""Agents: the vector interface, the network, training that resumes exactly, and saved policies."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.vec_env import VecNormalize

from agents.baselines import Constant, Random
from agents.bayes import BayesFilter
from agents.belief import Belief, Knowledge
from agents.demonstrations import _returns as discounted
from agents.factory import AlgorithmFactory
from agents.factory import sight as configured
from agents.learned import load_policy
from agents.networks import MASKED, Actor, Critic, Shape, Values
from agents.serving import ServedAgent
from agents.sight import TRUTH, Sight, hidden_state
from agents.training import VALIDATION_SEED, RLTrainer
from agents.vec_env import IoTSB3VecEnv, ShownVecEnv
from envs import IoTVectorEnv
from envs.dynamics import TERMS, End
from src.config import Config, load_config
from src.data.bank import TraceBank
from src.errors import UserError
from src.evaluation.rollout import play
from tests.banks import make_bank

ALGORITHMS = ("ppo", "a2c", "dqn", "qrdqn", "maskable_ppo", "recurrent_ppo")
TINY = ["rl.n_envs=4", "rl.hidden_size=8", "rl.total_timesteps=512", "rl.checkpoint_steps=128", "rl.validation_steps=192", "rl.validation_episodes=3"]
TINY += [f"rl.{name}.{item}" for name in ("ppo", "maskable_ppo", "recurrent_ppo") for item in ("n_steps=16", "batch_size=32", "n_epochs=2")]
TINY += [f"rl.{name}.{item}" for name in ("dqn", "qrdqn") for item in ("learning_starts=40", "batch_size=16", "buffer_size=200", "train_freq=2")]
TINY += [f"rl.{name}.demonstrations=0" for name in ("ppo", "a2c", "maskable_ppo")]
TINY += ["rl.recurrent_ppo.units=4", "rl.qrdqn.n_quantiles=5", "rl.dqn.target_update_interval=64", "rl.qrdqn.target_update_interval=64"]
TINY += ["env.scenario=home", "env.horizon=30", "env.start_range=[2, 5]"]


@pytest.fixture(autouse=True)
def frequent_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each rollout of PPO at these sizes."""
    monkeypatch.setattr("agents.training.REPORT_STEPS", 64)


@pytest.fixture(scope="module")
def bank() -> TraceBank:
    return make_bank(windows=30)


@pytest.fixture(scope="module")
def tiny() -> Config:
    return load_config(overrides=TINY)


@pytest.fixture(scope="module")
def trained(tiny: Config, bank: TraceBank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return RLTrainer(tiny, bank, tmp_path_factory.mktemp("agents")).train(seed=3)


def algorithm(name: str, *more: str) -> Config:
    return load_config(overrides=[*TINY, f"rl.algorithm={name}", *more])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "policy.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class InterruptedRunError(Exception):
    pass


# The vector interface


def test_episodes_equal_the_vector_environment(bank: TraceBank, tiny: Config) -> None:
    env = IoTSB3VecEnv(IoTVectorEnv(6, bank=bank, config=tiny, flatten=True))
    twin = IoTVectorEnv(6, bank=bank, config=tiny, flatten=True)
    assert env.seed(40) == [40, 41, 42, 43, 44, 45]
    observation, (expected, _) = env.reset(), twin.reset(seed=40)
    rng = np.random.default_rng(0)
    sums, lengths = np.zeros(6), np.zeros(6, int)
    ends = set()
    for _ in range(120):
        np.testing.assert_array_equal(observation, expected)
        actions = rng.integers(0, env.action_space.n, 6)  # type: ignore[attr-defined]
        observation, rewards, dones, infos = env.step(actions)
        expected, twin_rewards, terminated, truncated, info = twin.step(actions)
        assert rewards.dtype == np.float32
        np.testing.assert_array_equal(rewards, twin_rewards.astype(np.float32))
        np.testing.assert_array_equal(dones, terminated | truncated)
        sums += twin_rewards
        lengths += 1
        for e in range(6):
            if not dones[e]:
                assert infos[e] == {}
                continue
            np.testing.assert_array_equal(infos[e]["terminal_observation"], info["final_obs"][e])
            assert infos[e]["TimeLimit.truncated"] == truncated[e]
            assert infos[e]["episode"]["r"] == pytest.approx(sums[e])
            assert infos[e]["episode"]["l"] == lengths[e] == infos[e]["summary"]["steps"]
            weighted = -sum(getattr(tiny.reward, name) * infos[e]["summary"][name] for name in TERMS)
            assert weighted == pytest.approx(sums[e])  # the summary's terms are the return
            ends.add(End(infos[e]["end"]))
            sums[e] = lengths[e] = 0
    assert End.HORIZON in ends


def test_seeding_lasts_for_one_reset(bank: TraceBank) -> None:
    env = IoTSB3VecEnv(IoTVectorEnv(3, bank=bank, flatten=True))
    env.seed(7)
    first, second = env.reset(), env.reset()
    env.seed(7)
    np.testing.assert_array_equal(first, env.reset())
    assert not np.array_equal(first, second)


def test_attributes_and_methods(bank: TraceBank) -> None:
    env = IoTSB3VecEnv(IoTVectorEnv(3, bank=bank, flatten=True))
    env.seed(0)
    env.reset()
    masks = env.env_method("action_masks")
    assert len(masks) == 3
    assert masks[0].shape == (env.action_space.n,)  # type: ignore[attr-defined]
    assert len(env.env_method("action_masks", indices=[1])) == 1
    assert env.get_attr("num_envs") == [3, 3, 3]
    assert env.has_attr("action_masks")
    assert not env.has_attr("nonsense")
    with pytest.raises(UserError, match="share their attributes"):
        env.set_attr("spec", None, indices=[0])


def test_masks_are_found_by_maskable_ppo(bank: TraceBank) -> None:
    """An algorithm that knows nothing of this policy, but of masks, never orders what changes nothing."""
    env = IoTSB3VecEnv(IoTVectorEnv(2, bank=bank, scenario="home", flatten=True))
    assert is_masking_supported(env)
    model = MaskablePPO("MlpPolicy", env, n_steps=16, batch_size=32, n_epochs=1, seed=0, device="cpu")
    model.learn(32)
    masks = model.rollout_buffer.action_masks.reshape(32, -1)  # type: ignore[union-attr]
    taken = model.rollout_buffer.actions.astype(int).ravel()
    assert masks[np.arange(32), taken].all()
    assert not masks.all()


def test_flat_observations_are_demanded(bank: TraceBank) -> None:
    with pytest.raises(UserError, match="flatten=True"):
        IoTSB3VecEnv(IoTVectorEnv(2, bank=bank))


# What an agent is shown


def shown_batch(bank: TraceBank, count: int = 4, belief: bool = True, truth: bool = True, **settings: object) -> ShownVecEnv:
    env = IoTVectorEnv(count, bank=bank, flatten=True, **settings)  # type: ignore[arg-type]
    sim = env.simulation
    kept = Belief(Knowledge.learn(sim.config, bank), sim.config.env, sim.network, sim.layout) if belief else None
    return ShownVecEnv(IoTSB3VecEnv(env), Sight(sim.layout, belief, truth), kept)


@pytest.mark.parametrize("belief", [True, False])
def test_what_is_shown_keeps_to_its_space_and_tells_the_truth_last(belief: bool, bank: TraceBank) -> None:
    shown = shown_batch(bank, 6, belief, scenario="home", horizon=30, start_range=(2, 5), history=3)
    sim = shown.venv.env.simulation  # type: ignore[attr-defined]
    shown.seed(0)
    seen, policy = shown.reset(), Random(sim.layout, 0)
    for _ in range(70):
        assert shown.observation_space.contains(seen[0])
        assert np.abs(seen).max() <= 10
        each = seen[:, :-2].reshape(6, 6, -1)
        np.testing.assert_array_equal(each[..., -TRUTH:], hidden_state(sim))
        np.testing.assert_array_equal(each[..., :5] > 0, sim.allowed())
        np.testing.assert_allclose(each[..., 5], np.broadcast_to(sim.world.traits[:, 0], (6, 6)))
        seen, _, dones, infos = shown.step(policy.predict(sim.observe())[0])
        for e in np.flatnonzero(dones):
            assert not infos[e]["TimeLimit.truncated"]
            np.testing.assert_array_equal(infos[e]["terminal_observation"], seen[e])


def test_the_belief_shown_is_the_filters(bank: TraceBank) -> None:
    """Step for step, over the ends of episodes, what the environment shows is what a saved agent works out for itself."""
    shown = shown_batch(bank, 5, truth=False, scenario="home", horizon=30, start_range=(2, 5))
    sim, belief = shown.venv.env.simulation, shown.belief  # type: ignore[attr-defined]
    assert belief is not None
    shown.seed(3)
    seen, state, starts = shown.reset(), None, np.ones(5, np.bool_)
    policy = Random(sim.layout, 1)
    for _ in range(70):
        flat = sim.observe()
        parts, state = belief.hear(state, flat, starts)
        np.testing.assert_array_equal(seen, shown.sight.show(parts, belief.inputs(state, parts)))
        actions, _ = policy.predict(flat)
        state = belief.advance(state, parts, actions)
        seen, _, starts, _ = shown.step(actions)  # type: ignore[assignment]


# The networks


def shown(bank: TraceBank, scenario: str, truth: bool = True) -> tuple[Shape, torch.Tensor]:
    """What is shown after some random steps, with controls in force."""
    batch = shown_batch(bank, 16, truth=truth, scenario=scenario)
    sim = batch.venv.env.simulation  # type: ignore[attr-defined]
    batch.seed(0)
    seen, policy = batch.reset(), Random(sim.layout, 0)
    for _ in range(30):
        seen = batch.step(policy.predict(sim.observe())[0])[0]
    return Shape("devices", batch.sight.width, batch.sight.wide, sim.layout.devices, 16, True), torch.from_numpy(seen)


def reordered(seen: torch.Tensor, wide: int, order: torch.Tensor) -> torch.Tensor:
    return torch.cat([seen[:, :-2].reshape(len(seen), -1, wide)[:, order].flatten(1), seen[:, -2:]], dim=1)


def test_reordering_devices_reorders_scores_only(bank: TraceBank) -> None:
    shape, seen = shown(bank, "clinic")
    torch.manual_seed(0)
    order = torch.randperm(shape.devices)
    moved = reordered(seen, shape.wide, order)
    critic = Critic(shape)
    torch.testing.assert_close(critic(moved), critic(seen))
    for network in (Actor(shape), Values(shape)):
        scores, after = network(seen), network(moved)
        torch.testing.assert_close(after[:, 0], scores[:, 0])
        torch.testing.assert_close(after[:, 1:].reshape(16, shape.devices, 5), scores[:, 1:].reshape(16, shape.devices, 5)[:, order])
        assert not torch.allclose(after, scores)


def test_only_the_critic_reads_the_truth(bank: TraceBank) -> None:
    shape, seen = shown(bank, "clinic")
    torch.manual_seed(0)
    lied = seen.clone()
    lied[:, :-2].view(16, shape.devices, shape.wide)[..., -TRUTH:] = 1.0
    actor, critic, values = Actor(shape), Critic(shape), Values(shape)
    torch.testing.assert_close(actor(lied), actor(seen))
    torch.testing.assert_close(values(lied), values(seen))
    assert not torch.allclose(critic(lied), critic(seen))


def test_orders_that_change_nothing_are_never_drawn(bank: TraceBank) -> None:
    shape, seen = shown(bank, "clinic")
    logits, values = Actor(shape)(seen), Values(shape)(seen)
    valid = (seen[:, :-2].view(16, shape.devices, shape.wide)[..., :5] > 0).flatten(1)
    assert (~valid).any()
    assert ((logits[:, 1:] == MASKED) == ~valid).all()
    assert (logits.softmax(1)[:, 1:][~valid] == 0).all()
    assert torch.isfinite(torch.distributions.Categorical(logits=logits).entropy()).all()
    assert (values[:, 1:] == values[:, :1])[~valid].all()  # worth as much as doing nothing
    assert (Actor(shape._replace(masked=False))(seen) > MASKED / 2).all()


def test_quantiles_of_an_order_stand_beside_those_of_the_others(bank: TraceBank) -> None:
    shape, seen = shown(bank, "home")
    quantiles = Values(shape, 7)(seen).view(16, 7, -1)
    assert quantiles.shape[2] == 31
    idle = (seen[:, :-2].view(16, 6, shape.wide)[..., :5] <= 0).flatten(1)
    for e in range(16):
        assert (quantiles[e, :, 1:][:, idle[e]] == quantiles[e, :, :1]).all()


@pytest.mark.parametrize("made", [Actor, Critic, Values])
def test_one_set_of_weights_fits_any_number_of_devices(made: type, bank: TraceBank) -> None:
    shape, _ = shown(bank, "clinic")
    _, seen = shown(bank, "home")
    assert made(shape)(seen).shape == (16, 1 if made is Critic else 31)
    with pytest.raises(RuntimeError):
        made(shape._replace(kind="flat"))(seen)


@pytest.mark.parametrize("kind", ["devices", "flat"])
@pytest.mark.parametrize("made", [Actor, Critic, Values])
def test_every_weight_learns(made: type, kind: str, bank: TraceBank) -> None:
    shape, seen = shown(bank, "clinic")
    network = made(shape._replace(kind=kind))
    out = network(seen)
    (out.log_softmax(1)[:, 0] if out.shape[1] > 1 else out).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# The algorithms


def build(config: Config, bank: TraceBank, name: str) -> object:
    env = IoTVectorEnv(config.rl.n_envs, bank=bank, config=config, flatten=True)
    seen = configured(config, env.simulation.layout)
    belief = Belief(Knowledge.learn(config, bank), config.env, env.simulation.network, env.simulation.layout) if seen.belief else None
    return AlgorithmFactory(config).build(name, ShownVecEnv(IoTSB3VecEnv(env), seen, belief), seen, seed=0)


ON_POLICY = {"n_steps": 8, "gamma": 0.91, "gae_lambda": 0.83, "ent_coef": 0.017, "vf_coef": 0.31, "max_grad_norm": 0.7}
CLIPPED = {**ON_POLICY, "batch_size": 16, "n_epochs": 3}
OFF_POLICY = {"buffer_size": 444, "learning_starts": 33, "batch_size": 17, "gamma": 0.91, "n_steps": 4, "gradient_steps": 2, "max_grad_norm": 3.0}
OFF_POLICY |= {"target_update_interval": 77, "exploration_fraction": 0.4, "exploration_final_eps": 0.07}
SETTINGS = {"ppo": CLIPPED, "a2c": ON_POLICY, "maskable_ppo": CLIPPED, "recurrent_ppo": CLIPPED, "dqn": OFF_POLICY, "qrdqn": OFF_POLICY}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_setting_reaches_the_algorithm(name: str, bank: TraceBank) -> None:
    values = SETTINGS[name]
    taught = ["demonstrations=0"]
    own = {
        "ppo": taught,
        "a2c": taught,
        "maskable_ppo": taught,
        "recurrent_ppo": ["units=6"],
        "dqn": ["train_freq=3"],
        "qrdqn": ["train_freq=3", "n_quantiles=9"],
    }.get(name, [])
    clip = ["clip_range=0.13"] if "n_epochs" in values else []
    given = [f"{key}={value}" for key, value in values.items()] + ["learning_rate=0.004", *clip, *own]
    config = load_config(overrides=[*(f"rl.{name}.{item}" for item in given), "rl.n_envs=4", "rl.hidden_size=12", f"rl.algorithm={name}", "env.scenario=home"])
    model = build(config, bank, name)
    assert {key: getattr(model, key) for key in values} == values
    assert (model.lr_schedule(1.0), model.lr_schedule(0.0)) == pytest.approx((0.004, 0.0004))  # type: ignore[attr-defined]
    policy = model.policy  # type: ignore[attr-defined]
    if clip:
        assert model.clip_range(1.0) == 0.13  # type: ignore[attr-defined]
    if name == "recurrent_ppo":
        assert policy.lstm_actor.units == 6
    if name in ("dqn", "qrdqn"):
        assert model.train_freq.frequency == 3  # type: ignore[attr-defined]
    head = {"dqn": lambda: policy.q_net.q_net, "qrdqn": lambda: policy.quantile_net.quantile_net}.get(name, lambda: policy.action_net)()
    assert head.set.deepen.out_features == 12
    assert getattr(head, "quantiles", 1) == (9 if name == "qrdqn" else 1)
    covered = {*values, "learning_rate", *(item.split("=")[0] for item in clip + own)}
    assert covered == set(type(getattr(config.rl, name)).model_fields)  # none is left untried


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_trains_and_plays_as_it_was_trained(name: str, bank: TraceBank, tmp_path: Path) -> None:
    config = algorithm(name)
    seen: list[dict[str, float]] = []
    folder = RLTrainer(config, bank, tmp_path).train(seed=1, on_metrics=lambda metrics, _: seen.append(metrics))
    assert {"rollout/reward_mean", "rollout/length_mean", "actions/block", "ends/horizon", "reward/damage"} <= set(seen[-1])
    assert any("train/loss" in metrics or "train/value_loss" in metrics for metrics in seen)
    validations = [metrics["validation/reward_mean"] for metrics in seen if "validation/reward_mean" in metrics]
    env = IoTVectorEnv(config.rl.validation_episodes, bank=bank, config=config, flatten=True, split="agent")
    # The saved agent alone earns what Stable-Baselines3's evaluation of the whole policy found for the weights that were kept.
    played = play(env, load_policy(folder, env.simulation), VALIDATION_SEED).mean
    assert played == pytest.approx(max(validations), abs=1e-4)
    assert played == pytest.approx(load_policy(folder).meta["validation"], abs=1e-4)


@pytest.mark.parametrize("name", ALGORITHMS[1:])
def test_every_algorithm_goes_on_as_if_it_had_not_been_interrupted(name: str, bank: TraceBank, tmp_path: Path) -> None:
    config = algorithm(name)
    whole = RLTrainer(config, bank, tmp_path / "whole").train(seed=2)

    def interrupt(metrics: dict[str, float], step: int) -> None:
        if step >= 300:
            raise InterruptedRunError

    trainer = RLTrainer(config, bank, tmp_path / "parts")
    with pytest.raises(InterruptedRunError):
        trainer.train(seed=2, on_metrics=interrupt)
    steps: list[int] = []
    parts = trainer.train(seed=2, on_metrics=lambda _, step: steps.append(step), resume=True)
    assert 64 < steps[0] < steps[-1] == 512
    assert same(weights(parts), weights(whole))


def test_returns_are_whole_where_the_end_was_seen() -> None:
    rewards = np.array([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0], [8.0, 8.0]], np.float32)
    ends = np.array([[False, False], [True, False], [False, False], [False, True]])
    value, whole = discounted(rewards, ends, 0.5)
    np.testing.assert_array_equal(whole, [[True, True], [True, True], [False, True], [False, True]])
    np.testing.assert_allclose(value[:, 1], [1 + 1 + 1 + 1, 2 + 2 + 2, 4 + 4, 8])
    np.testing.assert_allclose(value[:2, 0], [2, 2])  # nothing of the next episode


def test_demonstrations_are_followed(bank: TraceBank, tmp_path: Path) -> None:
    """An actor that saw the Bayes filter at work starts near it; one that did not starts nowhere."""
    settings = ["rl.total_timesteps=64", "rl.ppo.learning_rate=1e-9", "rl.validation_episodes=50", "rl.hidden_size=32", "env.horizon=100"]
    returns = {}
    for steps in (0, 20_000):
        config = algorithm("ppo", *settings, f"rl.ppo.demonstrations={steps}")
        folder = RLTrainer(config, bank, tmp_path / str(steps)).train(seed=0)
        env = IoTVectorEnv(100, bank=bank, config=config, flatten=True)
        returns[steps] = play(env, load_policy(folder, env.simulation), 0).mean
        filtered = play(env, BayesFilter(config, bank, env.simulation.layout), 0).mean
    assert returns[20_000] > returns[0] + 0.5 * (filtered - returns[0])


def test_unknown_algorithm_names_the_nearest(tiny: Config, bank: TraceBank) -> None:
    with pytest.raises(UserError, match="did you mean 'ppo'"):
        build(tiny, bank, "pppo")


def test_joint_mode_is_refused(bank: TraceBank, tmp_path: Path) -> None:
    config = load_config(overrides=[*TINY, "env.action_mode=joint"])
    with pytest.raises(UserError, match="discrete"):
        RLTrainer(config, bank, tmp_path).train(seed=0)


def test_batches_must_fit_the_rollout() -> None:
    with pytest.raises(UserError, match="batch_size"):
        load_config(overrides=["rl.n_envs=3", "rl.ppo.n_steps=5", "rl.ppo.batch_size=4"])


# Training


def test_metrics_say_what_happened(tiny: Config, bank: TraceBank, tmp_path: Path) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    RLTrainer(tiny, bank, tmp_path).train(seed=1, on_metrics=lambda metrics, step: seen.append((step, metrics)))
    assert [step for step, _ in seen] == list(range(64, 513, 64))
    last = seen[-1][1]
    assert all(np.isfinite(list(metrics.values())).all() for _, metrics in seen)
    assert sum(value for name, value in last.items() if name.startswith("actions/")) == pytest.approx(1)
    assert sum(value for name, value in last.items() if name.startswith("ends/")) == pytest.approx(1)
    assert sum(value for name, value in last.items() if name.startswith("reward/")) == pytest.approx(last["rollout/reward_mean"])
    assert 0 < last["train/entropy"] < np.log(31)
    assert seen[0][1]["train/learning_rate"] > last["train/learning_rate"]


def test_global_randomness_and_threads_are_left_alone(tiny: Config, bank: TraceBank, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state(), torch.get_num_threads()  # noqa: NPY002
    RLTrainer(tiny, bank, tmp_path).train(seed=1)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.get_num_threads() == before[3]


def test_same_seed_same_weights(tiny: Config, bank: TraceBank, tmp_path: Path, trained: Path) -> None:
    again = RLTrainer(tiny, bank, tmp_path).train(seed=3)
    other = RLTrainer(tiny, bank, tmp_path).train(seed=4)
    assert same(weights(again), weights(trained))
    assert not same(weights(other), weights(trained))


@pytest.mark.parametrize("stop", [130, 320, 450])
def test_an_interrupted_run_ends_as_if_it_had_not_been(stop: int, tiny: Config, bank: TraceBank, tmp_path: Path, trained: Path) -> None:
    trainer = RLTrainer(tiny, bank, tmp_path)
    steps: list[int] = []

    def interrupt(metrics: dict[str, float], step: int) -> None:
        steps.append(step)
        if step >= stop:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        trainer.train(seed=3, on_metrics=interrupt)
    assert not trainer.target(3).exists()
    done = steps[-1]
    steps.clear()
    folder = trainer.train(seed=3, on_metrics=lambda _, step: steps.append(step), resume=True)
    assert steps[0] <= done + 64  # it went on from a checkpoint, not from the start
    assert steps[0] > 64
    assert steps[-1] == 512 == load_policy(folder).meta["timesteps"]
    assert same(weights(folder), weights(trained))
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]  # no checkpoint is left


def test_a_finished_run_is_not_repeated(tiny: Config, bank: TraceBank, trained: Path) -> None:
    stamp = (trained / "meta.json").stat().st_mtime_ns
    calls: list[int] = []
    assert RLTrainer(tiny, bank, trained.parent).train(seed=3, on_metrics=lambda _, step: calls.append(step), resume=True) == trained
    assert calls == []
    assert (trained / "meta.json").stat().st_mtime_ns == stamp


def test_a_checkpoint_of_another_run_is_refused(tiny: Config, bank: TraceBank, tmp_path: Path) -> None:
    def interrupt(metrics: dict[str, float], step: int) -> None:
        if step >= 128:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        RLTrainer(tiny, bank, tmp_path).train(seed=3, on_metrics=interrupt)
    other = load_config(overrides=[*TINY, "rl.ppo.gamma=0.5"])
    with pytest.raises(UserError, match="another configuration"):
        RLTrainer(other, bank, tmp_path).train(seed=3, resume=True)
    (checkpoint,) = tmp_path.glob("*.checkpoint")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match="altered or cut off"):
        RLTrainer(tiny, bank, tmp_path).train(seed=3, resume=True)


def test_rewards_are_scaled_only_when_asked(tiny: Config, bank: TraceBank, tmp_path: Path) -> None:
    losses = []
    for name, value in (("on", "true"), ("off", "false")):
        config = load_config(overrides=[*TINY, f"rl.normalize_reward={value}"])
        RLTrainer(config, bank, tmp_path / name).train(seed=1, on_metrics=lambda metrics, _: losses.append(metrics["train/value_loss"]))
    on, off = np.mean(losses[:8]), np.mean(losses[8:])
    assert on < off


# Saved policies


def test_a_saved_policy_plays(tiny: Config, bank: TraceBank, trained: Path) -> None:
    env = IoTVectorEnv(8, bank=bank, config=tiny, flatten=True, split="test")
    policy = load_policy(trained, env.simulation)
    first, second = play(env, policy, 100), play(env, load_policy(trained), 100)
    np.testing.assert_array_equal(first.returns, second.returns)
    flat, _ = env.reset(seed=0)
    valid = np.concatenate([np.ones((8, 1), bool), env.simulation.layout.split(flat)["valid"].reshape(8, -1) > 0], axis=1)
    for deterministic in (True, False):
        actions, _ = policy.predict(flat, deterministic=deterministic)
        assert actions.shape == (8,)
        assert valid[np.arange(8), actions].all()
    meta = policy.meta
    assert meta["devices"] == list(env.simulation.network.names)
    assert meta["actions"][0] == "MONITOR"
    assert len(meta["actions"]) == 31
    assert meta["config"]["rl"]["hidden_size"] == 8


def test_a_policy_of_one_network_acts_in_another(bank: TraceBank, trained: Path) -> None:
    env = IoTVectorEnv(4, bank=bank, scenario="clinic", flatten=True)
    policy = load_policy(trained, env.simulation)
    actions, _ = policy.predict(env.reset(seed=0)[0])
    assert actions.shape == (4,)


def test_a_served_agent_reads_an_episode_in_order(tiny: Config, bank: TraceBank, trained: Path) -> None:
    """What MLflow serves answers an episode's observations as the agent did when it played them; alone, a late one is answered without its past."""
    env = IoTVectorEnv(1, bank=bank, config=tiny, flatten=True)
    policy, state = load_policy(trained, env.simulation), None
    flat, _ = env.reset(seed=0)
    seen, given, beliefs = [], [], []
    for _ in range(25):
        action, state = policy.predict(flat, state, deterministic=True)
        seen.append(flat)
        given.append(action)
        beliefs.append(state.modes)
        flat = env.step(action)[0]
    np.testing.assert_array_equal(ServedAgent(load_policy(trained)).predict(np.concatenate(seen)), np.concatenate(given))
    _, alone = policy.predict(seen[-1], deterministic=True)
    assert not np.allclose(alone.modes, beliefs[-1])


def test_that_nobody_will_come_is_not_told(tiny: Config, bank: TraceBank, trained: Path) -> None:
    """In a world without attacks the agent believes what it does elsewhere, of the same observations."""
    env = IoTVectorEnv(16, bank=bank, config=tiny, flatten=True)
    calm = IoTVectorEnv(16, bank=bank, config=tiny, flatten=True, attack_free=1.0, start_range=(3, 3))
    one, other = load_policy(trained, env.simulation), load_policy(trained, calm.simulation)
    flat, _ = env.reset(seed=0)
    states: list[Any] = [None, None]
    for _ in range(20):
        actions, states[0] = one.predict(flat, states[0], deterministic=True)
        _, states[1] = other.predict(flat, states[1], deterministic=True)
        for mine, theirs in zip(*states, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        flat = env.step(actions)[0]
    assert states[0].modes[:, 0].max() < 0.99  # somebody may well have come


def test_altered_or_unfit_policies_are_refused(tiny: Config, bank: TraceBank, tmp_path: Path, trained: Path) -> None:
    env = IoTVectorEnv(4, bank=bank, config=tiny, flatten=True, features=["Rate", "IAT"])
    with pytest.raises(UserError, match="trained on the features"):
        load_policy(trained, env.simulation)
    with pytest.raises(UserError, match="flat observations"):
        load_policy(trained).predict(env.reset(seed=0)[0])
    joint = IoTVectorEnv(4, bank=bank, config=tiny, flatten=True, action_mode="joint")
    with pytest.raises(UserError, match="discrete"):
        load_policy(trained, joint.simulation)
    with pytest.raises(UserError, match="no agent-policy"):
        load_policy(tmp_path / "nothing")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in trained.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    load_policy(copy)
    damaged = bytearray((copy / "policy.safetensors").read_bytes())
    damaged[-1] ^= 1
    (copy / "policy.safetensors").write_bytes(damaged)
    with pytest.raises(UserError, match=r"policy\.safetensors.*altered"):
        load_policy(copy)


def test_training_pays(bank: TraceBank, tmp_path: Path) -> None:
    """Some seconds of training on the smallest network beat random orders and the best constant."""
    config = load_config(
        overrides=[
            "env.scenario=home",
            "rl.total_timesteps=61440",
            "rl.n_envs=32",
            "rl.ppo.batch_size=256",
            "rl.ppo.learning_rate=0.003",
            "env.horizon=60",
            "env.start_range=[2, 10]",
            "compute.threads=1",
        ]
    )
    env = IoTVectorEnv(200, bank=bank, config=config, flatten=True)
    policy = load_policy(RLTrainer(config, bank, tmp_path).train(seed=0), env.simulation)
    learned = play(env, policy, 500)
    constants = [play(env, Constant(action), 500).mean for action in range(env.simulation.action_space().n)]  # type: ignore[union-attr]
    chance = play(env, Random(env.simulation.layout, 0), 500)
    error = learned.returns.std() / np.sqrt(len(learned.returns))
    assert learned.mean > max(*constants, chance.mean) + 3 * error


def test_normalised_rewards_keep_episode_returns_raw(tiny: Config, bank: TraceBank) -> None:
    env = VecNormalize(IoTSB3VecEnv(IoTVectorEnv(4, bank=bank, config=tiny, flatten=True)), norm_obs=False)
    env.seed(0)
    env.reset()
    for _ in range(40):
        _, _, dones, infos = env.step(np.zeros(4, np.int64))
        for e in np.flatnonzero(dones):
            weighted = -sum(getattr(tiny.reward, name) * infos[e]["summary"][name] for name in TERMS)
            assert infos[e]["episode"]["r"] == pytest.approx(weighted)
            return
    pytest.fail("no episode ended")
