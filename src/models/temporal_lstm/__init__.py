"""The advanced temporal LSTM."""

from src.models.temporal_lstm.adaptive import ArchitectureController, ControllerSettings
from src.models.temporal_lstm.augment import Augmentation
from src.models.temporal_lstm.blocks import domain_schedule
from src.models.temporal_lstm.config import PRESETS, SEARCH_SPACES, ModelConfig, create_custom_config, get_config, validate_config
from src.models.temporal_lstm.model import AdvancedLSTMTemporal, create_model

__all__ = [
    "PRESETS",
    "SEARCH_SPACES",
    "AdvancedLSTMTemporal",
    "ArchitectureController",
    "Augmentation",
    "ControllerSettings",
    "ModelConfig",
    "create_custom_config",
    "create_model",
    "domain_schedule",
    "get_config",
    "validate_config",
]
