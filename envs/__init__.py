"""Defend a network of IoT devices: `from envs import IoTEnv`, or `gymnasium.make("IoTDefense-v0")` after `import envs`."""

from gymnasium.envs.registration import register

from envs.dynamics import Order
from envs.iot_env import IoTEnv
from envs.vector_env import IoTVectorEnv
from src.data.bank import TraceBank

__all__ = ["IoTEnv", "IoTVectorEnv", "Order", "TraceBank"]

# The environment counts its own horizon and checks its own input, so no wrapper is put around it.
register(
    id="IoTDefense-v0",
    entry_point="envs.iot_env:IoTEnv",
    vector_entry_point="envs.vector_env:IoTVectorEnv",
    disable_env_checker=True,
    order_enforce=False,
)
register(id="IoTDefenseClassic-v0", entry_point="envs.wrappers:classic", disable_env_checker=True, order_enforce=False)
