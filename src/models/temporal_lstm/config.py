"""Shapes of the temporal LSTM: presets by purpose, checks, and what a hyperparameter search may vary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from src.config import nearest
from src.errors import UserError


@dataclass(frozen=True)
class ModelConfig:
    """Shape of an `AdvancedLSTMTemporal`; the defaults are the preset `default`.

    Raises:
        UserError: for a value out of its range, or of another type.
    """

    input_size: int = 115
    """Features of a row."""
    num_classes: int = 2
    """Classes told apart."""
    num_domains: int = 1
    """Devices or sites told apart by the discriminator; 1 builds none."""
    sequence_length: int = 100
    """Rows in a window. Windows of any other length from 2 on are read, too."""
    hidden_size: int = 256
    """Units of each level and direction, and width of everything between levels."""
    num_levels: int = 3
    """Levels of the hierarchy; each reads at half the rate of the one below."""
    num_heads: int = 8
    """Heads of each attention layer."""
    head_size: int = 32
    """Width of a head."""
    attention_layers: int = 2
    """Attention layers above the hierarchy, all at the full rate."""
    num_periods: int = 8
    """Learned periods of the input gate, and of each head's temporal bias."""
    memory_slots: int = 128
    """Patterns that the memory bank holds."""
    memory_rate: float = 0.02
    """How far a training step moves a slot that one whole sample is written to."""
    readout: Literal["summary", "attention"] = "summary"
    """What the classifier sees: last, mean and largest state beside a weighted mean over rows, or that mean alone."""
    mc_samples: int = 10
    """Draws from the output layer's posterior that make up a prediction."""
    prior_deviation: float = 0.3
    """Deviation of the fixed Gaussian prior of the output layer's weights."""
    dropout: float = 0.2
    """Of the input, between blocks and before the output layer."""
    checkpoint_length: int = 0
    """Windows at least so long are trained with gradient checkpointing (less memory, a second forward pass); 0 is never."""

    def __post_init__(self) -> None:
        """Check types and ranges."""
        for name, value in asdict(self).items():
            kind, low, high = RANGES[name]
            if kind is str:
                if value not in READOUTS:
                    raise UserError(f"temporal model: {name} is {value!r}; allowed: {', '.join(READOUTS)}")
                continue
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole if kind is int else whole or isinstance(value, float)):
                raise UserError(f"temporal model: {name} is {value!r}, not {'a whole number' if kind is int else 'a number'}")
            if not low <= value <= high:
                raise UserError(f"temporal model: {name} is {value}; allowed: {low} to {high}")


READOUTS = ("summary", "attention")
RANGES: dict[str, tuple[type, float, float]] = {
    "input_size": (int, 1, 100_000),
    "num_classes": (int, 2, 10_000),
    "num_domains": (int, 1, 10_000),
    "sequence_length": (int, 2, 100_000),
    "hidden_size": (int, 4, 4096),
    "num_levels": (int, 1, 8),
    "num_heads": (int, 1, 64),
    "head_size": (int, 2, 512),
    "attention_layers": (int, 1, 16),
    "num_periods": (int, 1, 64),
    "memory_slots": (int, 1, 4096),
    "memory_rate": (float, 1e-6, 1.0),
    "readout": (str, 0, 0),
    "mc_samples": (int, 2, 1000),
    "prior_deviation": (float, 1e-3, 100.0),
    "dropout": (float, 0.0, 0.9),
    "checkpoint_length": (int, 0, 100_000),
}
"""Kind of each field, with its smallest and largest value."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "fast_training": {"hidden_size": 96, "num_levels": 2, "num_heads": 4, "head_size": 24, "attention_layers": 1, "num_periods": 4, "memory_slots": 64},
    "high_performance": {"hidden_size": 384, "num_levels": 4, "num_heads": 16, "attention_layers": 3, "memory_slots": 256, "checkpoint_length": 150},
    "interpretability_focus": {"hidden_size": 128, "num_heads": 4, "attention_layers": 1, "readout": "attention", "dropout": 0.1},
    "uncertainty_quantification": {"mc_samples": 50, "prior_deviation": 1.0, "dropout": 0.3},
    "online_learning": {"hidden_size": 128, "num_levels": 2, "num_heads": 4, "attention_layers": 1, "memory_slots": 256, "memory_rate": 0.1, "dropout": 0.1},
}
"""What each preset changes of the defaults."""

SEARCH_SPACES: dict[str, dict[str, tuple[Any, ...]]] = {
    "capacity": {
        "hidden_size": ("categorical", (64, 96, 128, 192, 256)),
        "num_levels": ("int", 1, 4, False),
        "attention_layers": ("int", 1, 3, False),
    },
    "attention": {"num_heads": ("categorical", (2, 4, 8, 16)), "head_size": ("categorical", (16, 24, 32)), "num_periods": ("int", 2, 16, True)},
    "memory": {"memory_slots": ("categorical", (64, 128, 256)), "memory_rate": ("float", 0.002, 0.2, True)},
    "uncertainty": {"mc_samples": ("int", 5, 50, True), "prior_deviation": ("float", 0.05, 2.0, True)},
    "regularisation": {"dropout": ("float", 0.0, 0.5, False)},
}
"""By group: name -> ("int" or "float", low, high, logarithmic) or ("categorical", choices)."""


def validate_config(values: Mapping[str, Any]) -> None:
    """Check keys and values of a configuration.

    Raises:
        UserError: for an unknown key (with the nearest known one), or a value that is not allowed.
    """
    known = [field.name for field in fields(ModelConfig)]
    for key in values:
        if key not in known:
            raise UserError(f"temporal model: unknown key '{key}': {nearest(str(key), known)}")
    ModelConfig(**values)


def create_custom_config(base: ModelConfig | str = "default", **overrides: Any) -> ModelConfig:
    """A configuration, or the preset of that name, with some keys changed.

    Raises:
        UserError: as `get_config` and `validate_config`.
    """
    start = get_config(base) if isinstance(base, str) else base
    validate_config({**asdict(start), **overrides})
    return replace(start, **overrides)


def get_config(name: str, **overrides: Any) -> ModelConfig:
    """The preset `name` with some keys changed.

    Raises:
        UserError: for an unknown preset (with the nearest known one), key or value.
    """
    if name not in PRESETS:
        raise UserError(f"temporal model: unknown preset '{name}': {nearest(str(name), PRESETS)}")
    return create_custom_config(ModelConfig(**PRESETS[name]), **overrides)
