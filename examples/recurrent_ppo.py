"""sb3-contrib's RecurrentPPO: an LSTM that remembers what the sensors said before."""

from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import VecNormalize

from agents.vec_env import IoTSB3VecEnv
from envs import IoTVectorEnv
from examples.common import Clock, compare, flags, launch


def main() -> None:
    """Train, then compare."""
    args = flags(__doc__, timesteps=500_000, n_envs=64).parse_args()
    batch = IoTSB3VecEnv(IoTVectorEnv(args.n_envs, scenario=args.scenario, split="agent", flatten=True))
    env = VecNormalize(batch, norm_obs=False, gamma=0.98)  # scales rewards
    model = RecurrentPPO(
        "MlpLstmPolicy",
        env,
        n_steps=64,
        batch_size=2048,  # a minibatch costs as many LSTM steps as `n_steps`, however wide it is
        n_epochs=6,
        learning_rate=2e-3,
        gamma=0.98,
        seed=args.seed,
        device="cpu",
        policy_kwargs={"lstm_hidden_size": 64, "enable_critic_lstm": False},
    )
    clock = Clock()
    model.learn(args.timesteps)
    # `compare` hands `predict` its own memory back, and says where episodes start.
    compare("RecurrentPPO", model, args, model.num_timesteps, clock)


if __name__ == "__main__":
    launch(main)
