"""sb3-contrib's MaskablePPO: orders that would change nothing are never drawn."""

from typing import Any

from sb3_contrib import MaskablePPO
from stable_baselines3.common.vec_env import VecNormalize

from agents.vec_env import IoTSB3VecEnv
from envs import IoTVectorEnv
from envs.world import Layout
from examples.common import Clock, compare, flags, launch, masks


class Masked:
    """A trained MaskablePPO that reads the masks out of the observations: which orders are valid is part of what it sees."""

    def __init__(self, model: MaskablePPO, layout: Layout) -> None:
        """`layout` knows where in an observation the masks lie."""
        self.model, self.layout = model, layout

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Any, Any]:
        """Stable-Baselines3's `predict`, masked."""
        return self.model.predict(observation, deterministic=deterministic, action_masks=masks(self.layout, observation))


def main() -> None:
    """Train, then compare."""
    args = flags(__doc__, timesteps=1_000_000, n_envs=64).parse_args()
    batch = IoTVectorEnv(args.n_envs, scenario=args.scenario, split="agent", flatten=True)
    env = VecNormalize(IoTSB3VecEnv(batch), norm_obs=False, gamma=0.98)  # scales rewards
    # MaskablePPO asks its environment for `action_masks` before each step; a single IoTEnv needs no wrapper for it either.
    model = MaskablePPO("MlpPolicy", env, n_steps=128, batch_size=1024, n_epochs=4, learning_rate=1e-3, gamma=0.98, seed=args.seed, device="cpu")
    clock = Clock()
    model.learn(args.timesteps)
    compare("MaskablePPO", Masked(model, batch.simulation.layout), args, model.num_timesteps, clock)


if __name__ == "__main__":
    launch(main)
