"""Agents: the vector interface, the network, training that resumes exactly, and saved policies."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.vec_env import VecNormalize

from agents.baselines import Constant, Random
from agents.factory import AlgorithmFactory
from agents.networks import MASKED, DeviceSetNetwork
from agents.training import RLTrainer, load_policy
from agents.vec_env import IoTSB3VecEnv
from envs import IoTVectorEnv
from envs.dynamics import TERMS, End
from envs.world import Layout
from src.config import Config, load_config
from src.data.bank import TraceBank
from src.errors import UserError
from src.evaluation.rollout import play
from tests.banks import make_bank

TINY = ["rl.n_envs=4", "rl.n_steps=16", "rl.batch_size=32", "rl.n_epochs=2", "rl.hidden_size=8", "rl.total_timesteps=512"]
TINY += ["rl.checkpoint_rollouts=2", "env.scenario=home", "env.horizon=30", "env.start_range=[2, 5]"]


@pytest.fixture(scope="module")
def bank() -> TraceBank:
    return make_bank(windows=30)


@pytest.fixture(scope="module")
def tiny() -> Config:
    return load_config(overrides=TINY)


@pytest.fixture(scope="module")
def trained(tiny: Config, bank: TraceBank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return RLTrainer(tiny, bank, tmp_path_factory.mktemp("agents")).train(seed=3)


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


# The network


def observations(bank: TraceBank, scenario: str, count: int = 16) -> tuple[Layout, torch.Tensor]:
    """Flat observations after some random steps, with controls in force."""
    env = IoTVectorEnv(count, bank=bank, scenario=scenario, flatten=True)
    flat, _ = env.reset(seed=0)
    policy = Random(env.simulation.layout, 0)
    for _ in range(30):
        flat = env.step(policy.predict(flat)[0])[0]
    return env.simulation.layout, torch.from_numpy(flat)


def test_reordering_devices_reorders_logits_only(bank: TraceBank) -> None:
    layout, flat = observations(bank, "clinic")
    torch.manual_seed(0)
    network = DeviceSetNetwork(layout, 16)
    order = torch.randperm(layout.devices)
    parts = layout.split(flat.numpy())
    shuffled = layout.join({name: part if name == "context" else part[:, order.numpy()] for name, part in parts.items()})
    np.testing.assert_array_equal(layout.join(parts), flat.numpy())
    logits, value = network(flat)
    moved, moved_value = network(torch.from_numpy(shuffled))
    torch.testing.assert_close(moved_value, value)
    torch.testing.assert_close(moved[:, 0], logits[:, 0])
    torch.testing.assert_close(moved[:, 1:].reshape(len(flat), layout.devices, 5), logits[:, 1:].reshape(len(flat), layout.devices, 5)[:, order])
    assert not torch.allclose(moved, logits)


def test_orders_that_change_nothing_are_never_drawn(bank: TraceBank) -> None:
    layout, flat = observations(bank, "clinic")
    logits, _ = DeviceSetNetwork(layout, 16)(flat)
    valid = torch.from_numpy(layout.split(flat.numpy())["valid"] > 0).flatten(1)
    assert (~valid).any()
    assert ((logits[:, 1:] == MASKED) == ~valid).all()
    assert (logits.softmax(1)[:, 1:][~valid] == 0).all()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert torch.isfinite(entropy).all()


def test_one_set_of_weights_fits_any_number_of_devices(bank: TraceBank) -> None:
    layout, _ = observations(bank, "clinic")
    network = DeviceSetNetwork(layout, 16)
    _, flat = observations(bank, "home")
    logits, value = network(flat)
    assert logits.shape == (16, 1 + 6 * 5)
    assert value.shape == (16,)


def test_every_weight_learns(bank: TraceBank) -> None:
    layout, flat = observations(bank, "clinic")
    network = DeviceSetNetwork(layout, 16)
    logits, value = network(flat)
    (logits.log_softmax(1)[:, 0].sum() + value.sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# The algorithm


def test_every_setting_reaches_the_algorithm(bank: TraceBank) -> None:
    values = {"n_steps": 8, "batch_size": 16, "n_epochs": 3, "gamma": 0.91, "gae_lambda": 0.83, "ent_coef": 0.017, "vf_coef": 0.31, "max_grad_norm": 0.7}
    config = load_config(
        overrides=[f"rl.{name}={value}" for name, value in values.items()]
        + ["rl.n_envs=4", "rl.hidden_size=12", "rl.learning_rate=0.004", "rl.clip_range=0.13"]
    )
    env = IoTVectorEnv(4, bank=bank, config=config, flatten=True)
    model = AlgorithmFactory(config).build("ppo", IoTSB3VecEnv(env), env.simulation.layout, seed=0)
    assert {name: getattr(model, name) for name in values} == values
    assert model.clip_range(1.0) == 0.13  # type: ignore[operator]
    assert (model.lr_schedule(1.0), model.lr_schedule(0.0)) == pytest.approx((0.004, 0.0004))
    assert model.policy.network.deepen.out_features == 12  # type: ignore[union-attr]


def test_unknown_algorithm_names_the_nearest(tiny: Config, bank: TraceBank) -> None:
    env = IoTVectorEnv(4, bank=bank, config=tiny, flatten=True)
    with pytest.raises(UserError, match="did you mean 'ppo'"):
        AlgorithmFactory(tiny).build("pppo", IoTSB3VecEnv(env), env.simulation.layout, seed=0)


def test_joint_mode_is_refused(bank: TraceBank, tmp_path: Path) -> None:
    config = load_config(overrides=[*TINY, "env.action_mode=joint"])
    with pytest.raises(UserError, match="discrete"):
        RLTrainer(config, bank, tmp_path).train(seed=0)


def test_batches_must_fit_the_rollout() -> None:
    with pytest.raises(UserError, match="batch_size"):
        load_config(overrides=["rl.n_envs=3", "rl.n_steps=5", "rl.batch_size=4"])


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
    other = load_config(overrides=[*TINY, "rl.gamma=0.5"])
    with pytest.raises(UserError, match="another configuration"):
        RLTrainer(other, bank, tmp_path).train(seed=3, resume=True)
    (checkpoint,) = tmp_path.glob("*.checkpoint")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
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
            "rl.batch_size=256",
            "rl.learning_rate=0.003",
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
