"""Stable-Baselines3's PPO with its own MLP policy, on the compiled batch."""

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

from agents.vec_env import IoTSB3VecEnv
from envs import IoTVectorEnv
from examples.common import Clock, compare, flags, launch


def main() -> None:
    """Train, then compare."""
    args = flags(__doc__, timesteps=1_000_000, n_envs=64).parse_args()
    # All environments in one compiled call. `make_vec_env("envs:IoTDefense-v0", args.n_envs)` works too, an object an environment.
    batch = IoTSB3VecEnv(IoTVectorEnv(args.n_envs, scenario=args.scenario, split="agent", flatten=True))
    # Returns are in the hundreds, and the critic learns better of smaller rewards; observations are bounded as they come.
    env = VecNormalize(batch, norm_obs=False, gamma=0.98)
    model = PPO("MlpPolicy", env, n_steps=128, batch_size=1024, n_epochs=4, learning_rate=1e-3, gamma=0.98, seed=args.seed, device="cpu")
    clock = Clock()
    model.learn(args.timesteps)
    compare("SB3 PPO", model, args, model.num_timesteps, clock)


if __name__ == "__main__":
    launch(main)
