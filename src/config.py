"""Every tunable of the product, typed, checked where it is built, and printable as an annotated `config.yml`.

Precedence, lowest first: the defaults below, the YAML file, the preset, environment variables
(`IOTDEF__LSTM__TRAINING__EPOCHS=3`), `--set lstm.training.epochs=3`. All are merged before any object is built.
`python -m src.config` prints the default configuration with each field's docstring as a comment.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from src.errors import UserError

ENV_PREFIX = "IOTDEF__"

Share = Annotated[float, Field(ge=0.0, le=1.0)]
"""A number from 0 to 1."""

Units = Annotated[int, Field(ge=1, le=4096)]
"""Width of a layer."""


class Section(BaseModel):
    """A group of settings: unknown keys are refused, values are checked, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class FractionsConfig(Section):
    """Share of each capture that goes to each side, in capture order."""

    fit: float = Field(default=0.5, gt=0, lt=1)
    """Predictors, scalers and everything else that is fitted."""
    calibrate: float = Field(default=0.15, gt=0, lt=1)
    """Early stopping, thresholds, calibration of p-values."""
    agent: float = Field(default=0.15, gt=0, lt=1)
    """Traces on which agents train and heuristics are tuned."""
    test: float = Field(default=0.2, gt=0, lt=1)
    """Final evaluation only."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> FractionsConfig:
        total = self.fit + self.calibrate + self.agent + self.test
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"fit + calibrate + agent + test must be 1, not {total:g}")
        return self


class DataConfig(Section):
    """Where rows come from and how they are divided."""

    root: Path | None = None
    """Folder of CSVs of `dataset`; null draws rows of CICIoT2023 from the embedded synthetic profile."""
    dataset: Literal["ciciot2023", "nbaiot"] = "ciciot2023"
    """What lies there: CICIoT2023 (either release), or traffic in N-BaIoT's 115 features (layouts: `src.data.nbaiot`)."""
    benign_root: Path | None = None
    """Folder of another site's benign captures (format: `src.data.site`) that replace the data set's own in the trace bank, not in training; null: none."""
    exclude_labels: list[str] = ["Mirai"]
    """Labels whose rows are dropped. `Mirai` names only rows of a mixed file that repeats the Mirai captures at family level."""
    max_rows_per_class: int | None = Field(default=None, ge=200)
    """Rows read of each class (of N-BaIoT: of each file), from the start of its captures; null reads all."""
    synthetic_rows_per_class: int = Field(default=3000, ge=400)
    """Rows drawn of each class from the synthetic profile."""
    window: int = Field(default=10, ge=2, le=1000)
    """Rows in a window (the sequence length of every sensor)."""
    gap: int = Field(default=10, ge=2)
    """Rows left out between two sides of a capture; at least `window`."""
    fractions: FractionsConfig = FractionsConfig()
    """Share of each side."""

    @model_validator(mode="after")
    def _gap_covers_window(self) -> DataConfig:
        if self.gap < self.window:
            raise ValueError(f"data.gap ({self.gap}) must be at least data.window ({self.window}), or windows of two sides would touch")
        return self


class LSTMModelConfig(Section):
    """Shape of the base attack predictor."""

    hidden_size: int = Field(default=128, ge=1, le=4096)
    """Units of each LSTM layer and direction."""
    num_layers: int = Field(default=2, ge=1, le=16)
    """Stacked LSTM layers."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Between LSTM layers and in the classifier."""
    bidirectional: bool = False
    """Read the window both ways: the last forward state beside the first backward state."""
    pooling: Literal["last", "last_mean"] = "last_mean"
    """What the classifier reads: the last state, or the mean of all states beside it."""


class LSTMTrainingConfig(Section):
    """Training of an attack predictor."""

    epochs: int = Field(default=24, ge=1)
    """Largest number of epochs."""
    batch_size: int = Field(default=128, ge=1)
    """Windows a step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak rate of AdamW."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Of AdamW."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """Cross-entropy, or focal loss (Lin et al. 2017)."""
    focal_gamma: float = Field(default=2.0, ge=0)
    """Focusing of the focal loss; 0 is cross-entropy."""
    class_weights: Literal["none", "sqrt", "balanced"] = "sqrt"
    """Weights of classes in the loss: equal, inverse square root of frequency, inverse frequency."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    """Of the learning rate, an epoch at a time."""
    patience: int = Field(default=8, ge=1)
    """Epochs without a better macro-F1 on `calibrate` before training stops."""
    stride: int = Field(default=3, ge=1)
    """Rows between the starts of two training windows."""
    mixed_precision: bool = True
    """Autocast and gradient scaling, on a GPU only."""


class TaughtTrainingConfig(LSTMTrainingConfig):
    """Training of the base attack predictor: what either predictor's has, and its teachers."""

    teachers: int = Field(default=3, ge=0, le=16)
    """Networks of its shape that are trained first, to learn from their mean probabilities beside the labels (Hinton et al. 2015); 0: labels alone."""
    teacher_share: float = Field(default=0.7, ge=0, le=1)
    """Share of the teachers in the loss; the rest is that of the labels."""
    teacher_softening: float = Field(default=2.0, gt=0)
    """Temperature at which teachers are read and followed: the higher, the more they tell of the classes that are not the likeliest."""


class LSTMConfigSection(Section):
    """The base attack predictor."""

    model: LSTMModelConfig = LSTMModelConfig()
    """Shape."""
    training: TaughtTrainingConfig = TaughtTrainingConfig()
    """Training."""


class TemporalModelConfig(Section):
    """Shape of the temporal LSTM: a preset, and what is changed of it."""

    preset: Literal["default", "fast_training", "high_performance", "interpretability_focus", "uncertainty_quantification", "online_learning"] = "fast_training"
    """Starting point (src/models/temporal_lstm/config.py)."""
    hidden_size: int | None = Field(default=None, ge=4, le=4096)
    """Units of each level; null: the preset's."""
    num_levels: int | None = Field(default=None, ge=1, le=8)
    """Levels of the hierarchy, each at half the rate of the one below; null: the preset's."""
    num_heads: int | None = Field(default=None, ge=1, le=64)
    """Heads of each attention layer; null: the preset's."""
    attention_layers: int | None = Field(default=None, ge=1, le=16)
    """Attention layers; null: the preset's."""
    memory_slots: int | None = Field(default=None, ge=1, le=4096)
    """Patterns that the memory bank holds; null: the preset's."""
    mc_samples: int | None = Field(default=None, ge=2, le=1000)
    """Draws from the output layer's posterior; null: the preset's."""
    dropout: float | None = Field(default=None, ge=0, le=0.9)
    """Of the input, between blocks and before the output layer; null: the preset's."""


class TemporalTrainingConfig(LSTMTrainingConfig):
    """Training of the temporal LSTM: all that the base predictor's has, and what is its own."""

    epochs: int = Field(default=14, ge=1)
    """Largest number of epochs."""
    kl_weight: float = Field(default=1.0, ge=0)
    """Weight of the posterior's divergence from the prior (1: the evidence lower bound; less: a tempered one)."""
    domain_weight: float = Field(default=0.1, ge=0)
    """Weight of the discriminator's loss, where devices or sites are told apart."""
    noise: float = Field(default=0.0, ge=0)
    """Augmentation: deviation of noise on each value of a training window, as a share of the feature's own (of its signed logarithm)."""
    scale: float = Field(default=0.0, ge=0)
    """Augmentation: deviation of the logarithm of a factor that a window's values of one feature share."""
    jitter: int = Field(default=0, ge=0, le=1000)
    """Augmentation: most rows by which a training window is moved in time; rows that move out are lost."""
    missing: float = Field(default=0.0, ge=0, lt=1)
    """Augmentation: share of values that are lost, and filled by the last one seen."""
    adaptive: bool = False
    """Let levels be weighted, and levels, heads and memory slots be added or removed while training, by validation signals."""


class TemporalConfig(Section):
    """The advanced temporal LSTM."""

    model: TemporalModelConfig = TemporalModelConfig()
    """Shape."""
    training: TemporalTrainingConfig = TemporalTrainingConfig()
    """Training."""


class SAEModelConfig(Section):
    """Shape of the LSTM autoencoder."""

    encoder_units: tuple[Units, ...] = Field(default=(64, 32), min_length=1, max_length=8)
    """Units of the encoder's LSTM layers; the last one's are the latent code."""
    decoder_units: tuple[Units, ...] = Field(default=(32, 64), min_length=1, max_length=8)
    """Units of the decoder's LSTM layers."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Behind each LSTM layer."""


class SAETrainingConfig(Section):
    """Training of the LSTM autoencoder, on benign windows alone."""

    epochs: int = Field(default=50, ge=1)
    """Largest number of epochs."""
    batch_size: int = Field(default=64, ge=1)
    """Windows a step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of Adam at the start; a fifth of it after the fourth epoch in a row without a better loss, and so on."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    stopping: Literal["standard", "smart", "adaptive"] = "smart"
    """When training ends: no better validation loss, none that is better by enough, or by enough for its size (`src.models.stopping`)."""
    min_improvement: float = Field(default=0.5, ge=0, lt=100)
    """Per cent by which the smart strategy wants the validation loss below the last one that was better by as much."""
    patience: int = Field(default=5, ge=1)
    """Epochs without that before training stops."""
    mixed_precision: bool = True
    """Autocast and gradient scaling, on a GPU only."""


class SAEConfigSection(Section):
    """The LSTM autoencoder: an anomaly score that benign traffic alone teaches."""

    model: SAEModelConfig = SAEModelConfig()
    """Shape."""
    training: SAETrainingConfig = SAETrainingConfig()
    """Training."""


class RateLimitConfig(Section):
    """RATE_LIMIT: slows whatever the device sends and receives."""

    cost: float = Field(default=0.02, ge=0)
    """Charged once when ordered."""
    delay: int = Field(default=0, ge=0, le=100_000)
    """Steps from order to effect."""
    ttl: int = Field(default=20, ge=1, le=100_000)
    """Steps until it expires."""
    service_loss: Share
    """Share of legitimate traffic lost."""
    slows: Share
    """Share of the attacker's attempts that fail because of it."""
    contains: Share
    """Share of damage prevented while the device is in impact."""


class BlockConfig(Section):
    """BLOCK: drops the sources that look hostile; an attacker who moves to other sources gets round it."""

    cost: float = Field(default=0.04, ge=0)
    """Charged once when ordered."""
    delay: int = Field(default=0, ge=0, le=100_000)
    """Steps from order to effect."""
    ttl: int = Field(default=30, ge=1, le=100_000)
    """Steps until it expires."""
    service_loss: Share
    """Share of legitimate traffic lost (shared sources)."""
    slows: Share
    """Share of the attacker's attempts that fail while it holds."""
    contains: Share
    """Share of damage prevented while it holds."""


class IsolateConfig(Section):
    """ISOLATE: cuts the device off; nothing moves in or out, and its sensors fall silent."""

    cost: float = Field(default=0.05, ge=0)
    """Charged once when ordered."""
    delay: int = Field(default=0, ge=0, le=100_000)
    """Steps from order to effect."""
    ttl: int = Field(default=40, ge=1, le=100_000)
    """Steps until it expires."""


class RestoreConfig(Section):
    """RESTORE: re-images the device, down for its restore time; clean afterwards, and patched if it can be."""

    cost: float = Field(default=0.1, ge=0)
    """Charged once when ordered (the visit; the re-imaging itself is the `cleanup` term)."""
    delay: int = Field(default=1, ge=0, le=100_000)
    """Steps from order to effect."""
    patch_factor: Share = 0.35
    """Weakness left after a patch, as a share of the original."""


class ReleaseConfig(Section):
    """RELEASE: lifts rate limit, block and isolation at once."""

    cost: float = Field(default=0.01, ge=0)
    """Charged once when ordered."""
    delay: int = Field(default=0, ge=0, le=100_000)
    """Steps from order to effect."""


class ControlsConfig(Section):
    """The mitigations."""

    rate_limit: RateLimitConfig = RateLimitConfig(service_loss=0.2, slows=0.45, contains=0.4)
    """Throttle."""
    block: BlockConfig = BlockConfig(service_loss=0.1, slows=0.9, contains=0.3)
    """Block hostile sources."""
    isolate: IsolateConfig = IsolateConfig()
    """Cut off."""
    restore: RestoreConfig = RestoreConfig()
    """Re-image."""
    release: ReleaseConfig = ReleaseConfig()
    """Lift."""


class EnvConfig(Section):
    """The simulated network and its rules."""

    scenario: str = Field(default="clinic", min_length=1)
    """Which network: solo, home, clinic, factory or campus (1, 6, 12, 40, 105 devices), or the path of one's own .yml file."""
    attackers: Literal["train", "held_out", "all"] = "train"
    """Which of the profiles in `attackers` come; on `train` their held-out techniques are left out."""
    variation: Share = 0.3
    """New networks each reset: every device's weaknesses are multiplied by a number drawn from 1 - variation to 1 + variation."""
    action_mode: Literal["discrete", "joint"] = "discrete"
    """One addressed order a step, or one order for every device."""
    flatten: bool = False
    """One flat Box in place of the Dict of named parts."""
    features: list[str] = ["Header_Length", "Rate", "syn_flag_number", "ack_flag_number", "HTTPS", "TCP", "UDP", "Tot size", "Std", "IAT"]
    """Traffic features that the defender sees of each device (window means, scaled); these are in both releases of CICIoT2023."""
    horizon: int = Field(default=200, ge=10, le=100_000)
    """Steps in an episode."""
    step_seconds: float = Field(default=10.0, gt=0)
    """Length of a step; used where figures are given per hour or day."""
    attack_free: Share = 0.25
    """Share of episodes without an attacker."""
    start_range: tuple[int, int] = (5, 80)
    """First and last step at which an attacker may appear."""
    overrun_share: float = Field(default=0.5, gt=0, le=1)
    """Share of criticality in impact that counts as overrun."""
    overrun_steps: int = Field(default=10, ge=1, le=100_000)
    """Consecutive steps of it that end the episode."""
    protected: Literal["mask", "cost"] = "mask"
    """Isolating a protected device is masked, or allowed at the `safety` price."""
    budget: int = Field(default=120, ge=1, le=100_000_000)
    """Orders that may take effect in an episode."""
    smoothing: float = Field(default=0.7, ge=0, lt=1)
    """Decay a step of the running means of risk, uncertainty and anomaly in the observation."""
    history: int = Field(default=1, ge=1, le=64)
    """Windows of each device in an observation: the current one and the history - 1 before it."""
    telemetry_delay: int = Field(default=0, ge=0, le=64)
    """Steps by which features and sensor readings arrive late."""
    sensor_dropout: Share = 0.0
    """Chance, a device and step, that nothing of it arrives."""
    detector_drift: Share = 0.0
    """Share by which sensors are off at the horizon, growing evenly: a device's readings drift towards alarm or towards calm, by chance."""
    sensors: Literal["stored", "live"] = "stored"
    """Readings from the trace bank, or computed by the model at every step (the same to 1e-5; slow)."""
    expose_truth: bool = False
    """Put the hidden state into `info`."""
    controls: ControlsConfig = ControlsConfig()
    """The mitigations."""

    @model_validator(mode="after")
    def _start_in_horizon(self) -> EnvConfig:
        first, last = self.start_range
        if not 0 <= first <= last < self.horizon:
            raise ValueError(f"env.start_range {self.start_range} must be ordered and lie inside the horizon of {self.horizon} steps")
        if len(set(self.features)) != len(self.features) or not self.features:
            raise ValueError("env.features must name at least one feature, each once")
        return self


class AttackerConfig(Section):
    """How one kind of attacker behaves; probabilities are a step."""

    probe: Share
    """Of turning to a device drawn at random, for each free hand; one that is clean and within reach is opened."""
    breadth: int = Field(default=3, ge=1, le=64)
    """Devices worked on at once before any foothold."""
    spread: int = Field(default=1, ge=0, le=16)
    """Devices more that are worked on for each foothold."""
    engage: Share
    """Of going from probing to attacking a device."""
    compromise: Share
    """Of an attack's success, times the device's weakness to the technique."""
    impact: Share
    """Of going from a foothold to impact."""
    stealth: Share
    """Share of steps in which a device under attack or held shows only its ordinary traffic; half of it while it floods."""
    evasion: Share = 0.0
    """How far it picks, among the windows of its class, those that the sensors find least suspicious: 0 takes them as they come."""
    rotate: Share
    """Of getting round a block that holds, by moving to other sources, after a stopped attempt."""
    adapt: Share = 0.0
    """Of changing its technique after a stopped attempt."""
    abandon: Share
    """Of turning away from the device after a stopped attempt."""
    caution: Share = 0.0
    """How far a setback slows and hides it, fading by a tenth a step."""
    dormancy: int = Field(default=8, ge=0, le=100_000)
    """Mean number of quiet steps after a setback that shows the attacker that it was noticed; 0: it never hides."""
    patience: float = Field(default=20.0, gt=0)
    """Setbacks it takes: a stopped attempt to break in counts 0.5, an isolated foothold 1, a lost foothold 4."""
    insider: bool = False
    """Whether it starts inside: next to its entry device, which may stand in any zone."""


Profile = Literal["scanner", "botnet", "web_intruder", "brute_forcer", "spoofer", "stealth_apt", "worm"]


class AttackersConfig(Section):
    """Who attacks. Numbers are a judgement, tuned so that the environment's gates hold."""

    train: list[Profile] = Field(default=["scanner", "botnet", "web_intruder", "brute_forcer", "spoofer"], min_length=1)
    """Attackers of training, drawn with equal chance at each reset."""
    held_out: list[Profile] = Field(default=["stealth_apt", "worm"], min_length=1)
    """Attackers that only evaluation meets."""
    held_out_techniques: list[str] = ["XSS", "DDoS-ACK_Fragmentation"]
    """CICIoT2023 labels that only evaluation shows."""
    difficulty: Literal["easy", "normal", "hard"] = "normal"
    """Scales all profiles: slower and easier to see, as written, or faster, harder to see and more evasive."""
    scanner: AttackerConfig = AttackerConfig(
        probe=0.60, breadth=5, spread=0, engage=0.12, compromise=0.25, impact=0.05, stealth=0.82, rotate=0.05, abandon=0.40, dormancy=0, patience=20.0
    )
    """Noisy and shallow: scans widely, seldom breaks in."""
    botnet: AttackerConfig = AttackerConfig(
        probe=0.35, breadth=3, engage=0.40, compromise=0.40, impact=0.20, stealth=0.82, evasion=0.7, rotate=0.12, abandon=0.10, dormancy=0, patience=30.0
    )
    """Mirai-like: scans, forces passwords, infects, floods, spreads."""
    web_intruder: AttackerConfig = AttackerConfig(
        probe=0.20, breadth=2, engage=0.28, compromise=0.32, impact=0.11, stealth=0.91, evasion=0.8, rotate=0.20, adapt=0.2, abandon=0.10, caution=0.3,
        dormancy=8, patience=24.0,
    )  # fmt: skip
    """Scans, breaks in through web interfaces, spoofs inside, exfiltrates."""
    brute_forcer: AttackerConfig = AttackerConfig(
        probe=0.30, breadth=4, engage=0.50, compromise=0.30, impact=0.11, stealth=0.84, evasion=0.8, rotate=0.30, abandon=0.15, caution=0.1, dormancy=3,
        patience=26.0,
    )  # fmt: skip
    """Forces passwords from many sources, then takes what it finds."""
    spoofer: AttackerConfig = AttackerConfig(
        probe=0.25, breadth=2, engage=0.35, compromise=0.30, impact=0.11, stealth=0.90, evasion=0.8, rotate=0.10, abandon=0.10, caution=0.3, dormancy=6,
        patience=22.0, insider=True,
    )  # fmt: skip
    """Stands inside: poisons ARP and DNS, reads along, moves on."""
    stealth_apt: AttackerConfig = AttackerConfig(
        probe=0.12, breadth=1, engage=0.20, compromise=0.32, impact=0.08, stealth=0.92, evasion=0.9, rotate=0.30, adapt=0.4, abandon=0.05, caution=0.6,
        dormancy=15, patience=30.0,
    )  # fmt: skip
    """Low and slow: few devices, little to see, silent for long when noticed."""
    worm: AttackerConfig = AttackerConfig(
        probe=0.40, breadth=2, spread=2, engage=0.50, compromise=0.36, impact=0.14, stealth=0.76, evasion=0.6, rotate=0.15, adapt=0.3, abandon=0.10,
        dormancy=0, patience=36.0,
    )  # fmt: skip
    """Spreads by itself: every foothold works on two devices more."""

    @model_validator(mode="after")
    def _sides_are_apart(self) -> AttackersConfig:
        both = [*self.train, *self.held_out]
        if len(set(both)) != len(both):
            twice = next(name for name in both if both.count(name) > 1)
            raise ValueError(f"attacker '{twice}' stands twice in attackers.train and attackers.held_out; each belongs to one side, once")
        return self


class RewardConfig(Section):
    """Weights of the reward's terms; every term is a loss, so rewards are never positive."""

    service: float = Field(default=1.0, ge=0)
    """Legitimate traffic not delivered, times criticality (the network's criticalities sum to 1)."""
    damage: float = Field(default=2.0, ge=0)
    """Harm by stage, times criticality: 1 in impact, 0.25 with a foothold."""
    action: float = Field(default=1.0, ge=0)
    """Cost of orders."""
    cleanup: float = Field(default=9.0, ge=0)
    """Re-imaging, times the device's criticality."""
    safety: float = Field(default=2.0, ge=0)
    """A protected device cut off, a step."""


class OnPolicyConfig(Section):
    """What the algorithms have in common that learn from their last rollout."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Of the optimiser at the start; falls linearly to a tenth."""
    n_steps: int = Field(default=32, ge=2)
    """Steps of each environment between updates."""
    gamma: float = Field(default=0.995, gt=0, le=1)
    """Discount."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Of generalised advantage estimation."""
    ent_coef: float = Field(default=0.001, ge=0)
    """Weight of the entropy bonus."""
    vf_coef: float = Field(default=0.5, ge=0)
    """Weight of the value loss."""
    max_grad_norm: float = Field(default=0.5, gt=0)
    """Largest norm of the gradient."""


class ClippedConfig(OnPolicyConfig):
    """What PPO's kinds have in common."""

    batch_size: int = Field(default=1024, ge=2)
    """Samples a gradient step."""
    n_epochs: int = Field(default=4, ge=1)
    """Passes over the collected samples."""
    clip_range: float = Field(default=0.2, gt=0)
    """Of the probability ratio."""


class PPOConfig(ClippedConfig):
    """Proximal policy optimisation (Schulman et al. 2017)."""

    demonstrations: int = Field(default=100_000, ge=0)
    """Steps of the Bayes filter from which actor and critic learn before they learn from rewards; 0: none."""


class A2CConfig(OnPolicyConfig):
    """Advantage actor-critic (Mnih et al. 2016)."""

    demonstrations: int = Field(default=100_000, ge=0)
    """Steps of the Bayes filter from which actor and critic learn before they learn from rewards; 0: none."""


class MaskablePPOConfig(PPOConfig):
    """PPO that is also told which actions are ruled out (Huang and Ontañón 2022)."""


class RecurrentPPOConfig(ClippedConfig):
    """PPO with an LSTM, whose state is all that it remembers: it is never shown a belief."""

    units: int = Field(default=32, ge=1)
    """Of the LSTM, for each device."""


class DQNConfig(Section):
    """Deep Q-network (Mnih et al. 2015)."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Of the optimiser at the start; falls linearly to a tenth."""
    buffer_size: int = Field(default=50_000, ge=100)
    """Transitions that are remembered."""
    learning_starts: int = Field(default=5_000, ge=0)
    """Steps before the first update."""
    batch_size: int = Field(default=512, ge=2)
    """Samples a gradient step."""
    gamma: float = Field(default=0.99, gt=0, le=1)
    """Discount."""
    n_steps: int = Field(default=3, ge=1)
    """Rewards that are added up before a value is trusted."""
    train_freq: int = Field(default=1, ge=1)
    """Steps of all environments between updates."""
    gradient_steps: int = Field(default=2, ge=1)
    """Of an update."""
    target_update_interval: int = Field(default=8_192, ge=1)
    """Steps between copies of the network to its target."""
    exploration_fraction: float = Field(default=0.3, gt=0, le=1)
    """Share of training in which random actions become fewer."""
    exploration_final_eps: Share = 0.01
    """Share of random actions from then on."""
    max_grad_norm: float = Field(default=10.0, gt=0)
    """Largest norm of the gradient."""


class QRDQNConfig(DQNConfig):
    """DQN over quantiles of the return (Dabney et al. 2018)."""

    n_quantiles: int = Field(default=32, ge=1)
    """Quantiles."""


Algorithm = Literal["ppo", "a2c", "dqn", "qrdqn", "maskable_ppo", "recurrent_ppo"]


AGENT = "agent"
"""What the agents that `rl` itself describes are called among the policies, whatever their algorithm, so that runs compare."""


class RLConfig(Section):
    """Training of the agents. Each algorithm has a section of its own; only that of `algorithm` is used."""

    algorithm: Literal[Algorithm, "rllib_ppo"] = "ppo"
    """How it learns: Stable-Baselines3's and sb3-contrib's algorithms, and on a Ray cluster RLlib's PPO."""
    total_timesteps: int = Field(default=1_000_000, ge=1)
    """Environment steps a seed."""
    seeds: int = Field(default=3, ge=1)
    """Agents trained, with seeds `compute.seed`, +1, ..."""
    n_envs: int = Field(default=128, ge=1)
    """Environments stepped at once."""
    memory: Literal["belief", "none"] = "belief"
    """What the agent has of the past: a belief about each device, kept by Bayes' rule, or nothing but what the observation holds."""
    privileged_critic: bool = True
    """Show the hidden state to the critic of an actor-critic algorithm; the actor never sees it, and only the actor is kept."""
    network: Literal["devices", "flat"] = "devices"
    """One network that all devices share, which fits any number of them, or a perceptron bound to this network."""
    hidden_size: int = Field(default=32, ge=1)
    """Units of each hidden layer."""
    masked: bool = True
    """Rule out orders that would change nothing."""
    normalize_reward: bool = True
    """Divide rewards by a running scale of the return while training."""
    validation_steps: int = Field(default=100_000, ge=1)
    """Environment steps between validations; the weights that did best are kept."""
    validation_episodes: int = Field(default=100, ge=1)
    """Episodes of a validation, on `agent` traces, the same each time."""
    checkpoint_steps: int = Field(default=100_000, ge=1)
    """Environment steps between checkpoints, at the least."""
    ppo: PPOConfig = PPOConfig()
    """PPO."""
    a2c: A2CConfig = A2CConfig(learning_rate=3e-3, n_steps=16)
    """A2C."""
    dqn: DQNConfig = DQNConfig()
    """DQN."""
    qrdqn: QRDQNConfig = QRDQNConfig()
    """QR-DQN."""
    maskable_ppo: MaskablePPOConfig = MaskablePPOConfig()
    """MaskablePPO."""
    recurrent_ppo: RecurrentPPOConfig = RecurrentPPOConfig(learning_rate=2e-3)
    """RecurrentPPO."""
    rllib_ppo: ClippedConfig = ClippedConfig(gamma=0.98, ent_coef=5e-3, vf_coef=1e-3, batch_size=512, n_epochs=8)
    """RLlib's PPO, with a perceptron of two layers, without memory and masks."""
    variants: dict[str, dict[str, Any]] = {}
    """Further groups of agents to train and compare, by name, the settings of `rl` that differ, e.g. {A2C: {algorithm: a2c}, flat: {network: flat}}."""

    @model_validator(mode="after")
    def _batches_fit(self) -> RLConfig:
        for name in ("ppo", "maskable_ppo"):
            settings: ClippedConfig = getattr(self, name)
            if name == self.algorithm and (self.n_envs * settings.n_steps) % settings.batch_size:
                samples = self.n_envs * settings.n_steps
                raise ValueError(f"rl.{name}.batch_size ({settings.batch_size}) must divide rl.n_envs x rl.{name}.n_steps ({samples})")
        return self

    @model_validator(mode="after")
    def _variants_differ(self) -> RLConfig:
        for name, settings in self.variants.items():
            if name == AGENT or not re.fullmatch(r"\w[\w .+-]{0,39}", name):
                raise ValueError(f"rl.variants: '{name}' cannot name a group: at most 40 letters, digits and ' .+-_', and not '{AGENT}', which is `rl` itself")
            for key in {"seeds", "variants"} & set(settings):
                raise ValueError(f"rl.variants.{name}: '{key}' is the same for all groups")
        return self


class EvalConfig(Section):
    """Final evaluation."""

    episodes: int = Field(default=500, ge=10)
    """Held-out episodes a policy, the same seeds for each."""
    tuning_episodes: int = Field(default=200, ge=10)
    """Episodes on `agent` traces for each candidate setting of a heuristic."""
    bootstrap: int = Field(default=2000, ge=100)
    """Resamples of each confidence interval."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of intervals."""


class MLflowConfig(Section):
    """Where runs are tracked."""

    tracking_uri: str | None = None
    """Server or database; null is SQLite under `compute.artifacts`."""
    experiment: str = "iot-defense"
    """Name of the experiment."""
    register_models: bool = True
    """Put trained models into the registry."""


class ComputeConfig(Section):
    """The machine."""

    artifacts: Path = Path("artifacts")
    """Folder of everything that a run writes."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """One seed in, the same numbers out."""
    threads: int = Field(default=2, ge=1)
    """Threads of torch while predictors train; agents always train on one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks train; auto takes a GPU if there is one."""
    engine: Literal["local", "ray"] = "local"
    """Who trains: this process, one thing after another, or a Ray cluster, side by side (requirements-ray.txt, docs/cluster.md)."""
    address: str | None = None
    """Of the Ray cluster, `host:port`, or `auto` for the one that this machine belongs to; null starts one on this machine for the run."""
    workers: int = Field(default=1, ge=1, le=1024)
    """Processes of the Ray cluster that share each batch of a predictor's training."""

    @model_validator(mode="after")
    def _cluster_is_used(self) -> ComputeConfig:
        for name in ("address", "workers"):
            if self.engine == "local" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"compute.{name} goes with compute.engine 'ray', not with 'local'")
        return self


class Config(Section):
    """The whole configuration."""

    data: DataConfig = DataConfig()
    """Traffic."""
    lstm: LSTMConfigSection = LSTMConfigSection()
    """Base attack predictor."""
    temporal: TemporalConfig = TemporalConfig()
    """Advanced temporal LSTM."""
    sae: SAEConfigSection = SAEConfigSection()
    """LSTM autoencoder."""
    env: EnvConfig = EnvConfig()
    """Environment."""
    attackers: AttackersConfig = AttackersConfig()
    """Attackers."""
    reward: RewardConfig = RewardConfig()
    """Reward."""
    rl: RLConfig = RLConfig()
    """Agent."""
    eval: EvalConfig = EvalConfig()
    """Evaluation."""
    mlflow: MLflowConfig = MLflowConfig()
    """Tracking."""
    compute: ComputeConfig = ComputeConfig()
    """Machine."""

    @model_validator(mode="after")
    def _rllib_has_its_cluster(self) -> Config:
        if self.rl.algorithm == "rllib_ppo" and self.compute.engine != "ray":
            raise ValueError("rl.algorithm 'rllib_ppo' goes with compute.engine 'ray'")
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "lstm.training.epochs": 14,
        "lstm.training.teachers": 0,
        "temporal.training.epochs": 8,
        "rl.total_timesteps": 400_000,
        "eval.episodes": 200,
        "eval.tuning_episodes": 100,
        "eval.bootstrap": 1000,
    },
    "default": {},
    "full": {
        "lstm.training.epochs": 60,
        "lstm.training.patience": 10,
        "lstm.training.stride": 1,
        "temporal.training.epochs": 40,
        "temporal.training.stride": 1,
        "rl.total_timesteps": 6_000_000,
        "rl.seeds": 10,
        "eval.episodes": 1000,
        "eval.tuning_episodes": 400,
    },
}
"""Named sets of overrides, by dotted key."""


BASE_SPACE: dict[str, tuple[Any, ...]] = {
    "lstm.model.hidden_size": ("categorical", (64, 96, 128, 192, 256)),
    "lstm.model.num_layers": ("int", 1, 3, False),
    "lstm.model.dropout": ("float", 0.0, 0.5, False),
    "lstm.model.bidirectional": ("categorical", (False, True)),
}
TRAINING_SPACE: dict[str, tuple[Any, ...]] = {
    "batch_size": ("categorical", (128, 256, 512)),
    "learning_rate": ("float", 3e-4, 1e-2, True),
    "weight_decay": ("float", 1e-6, 1e-2, True),
    "class_weights": ("categorical", ("none", "sqrt", "balanced")),
    "loss": ("categorical", ("cross_entropy", "focal")),
    "kl_weight": ("float", 0.03, 1.0, True),
}
"""What a search of hyperparameters varies of the base LSTM's shape, and of either network's training as far as it has the setting:
("int" or "float", low, high, logarithmic) or ("categorical", choices). The temporal LSTM's shape: `src.models.temporal_lstm.SEARCH_SPACES`."""


def leaves(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, type[BaseModel]]:
    """Dotted name of every setting below `model`, each with the section class that holds it."""
    found: dict[str, type[BaseModel]] = {}
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= leaves(kind, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = model
    return found


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Half a sentence that names what is allowed, nearest match first when there is one."""
    names = list(allowed)
    match = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    if match and len(names) > 20:
        return f"did you mean '{match[0]}'?"
    return (f"did you mean '{match[0]}'? " if match else "") + "allowed: " + ", ".join(names)


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `a.b.c` in nested dictionaries; an unknown key is refused with the nearest match."""
    known = set(leaves())
    if dotted not in known:
        raise UserError(f"unknown setting '{dotted}': {nearest(dotted, sorted(known))}")
    *sections, leaf = dotted.split(".")
    node = tree
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise UserError(f"setting '{section}' must be a section of keys, not {_BRIEFLY.repr(child)}")
        node = child
    node[leaf] = value


def _merge(tree: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Lay `over` on `tree`, section by section, so that a file may name only what it changes."""
    for key, value in over.items():
        below = tree.get(key)
        if isinstance(below, dict) and isinstance(value, Mapping):
            _merge(below, value)
        else:
            tree[key] = value


LONGEST_YAML = 2**20
"""Most characters of a YAML document; a network of 10,000 devices takes half of them."""

MOST_VALUES = 200_000
"""Most values of a YAML document with every alias written out."""


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key stands once: of two, the first would be lost without a word.

    Aliases are counted as what they stand for, since a few lines of them can stand for more than any memory holds.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node, refused where it would be too many when written out."""
        alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)  # type: ignore[arg-type]
        if isinstance(node, yaml.CollectionNode) and not alias:
            parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            self._sizes[id(node)] = size = 1 + sum(self._sizes.get(id(part), 1) for part in parts)
            if size > MOST_VALUES:
                raise yaml.MarkedYAMLError(None, None, f"more than {MOST_VALUES:,} values with its aliases written out", node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, refused where a key repeats."""
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a section; keys are plain words", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Plain data of a YAML document.

    Raises:
        yaml.YAMLError: for what is no YAML, is longer than `LONGEST_YAML`, repeats a key, is nested hundreds of levels deep, or grows beyond
            `MOST_VALUES` by its aliases.
    """
    if len(text) > LONGEST_YAML:
        raise yaml.YAMLError(f"it is longer than {LONGEST_YAML:,} characters, the most that is read")
    try:
        return yaml.load(text, _UniqueKeys)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:  # how PyYAML ends on a date like 2020-99-99, `!!int ""` or `!!bool x`
        raise yaml.YAMLError(f"a value does not fit its kind ({' '.join(str(error).split())})") from error


def read_yaml(path: Path, what: str) -> Any:
    """Plain data of a YAML file; `what` it is (`scenario 'own.yml'`) begins an error.

    Raises:
        UserError: when it cannot be read, is too large, or is no YAML in which each key stands once.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(LONGEST_YAML + 1)  # not all of what may be a device, or another file given by mistake
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{what} is not valid YAML: {' '.join(str(error).split())}") from error
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a path with a NUL in it
        reason = getattr(error, "strerror", None) or ("not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error))
        raise UserError(f"cannot read {what}: {error.__class__.__name__}: {reason}") from error


def _scalar(text: str, origin: str) -> Any:
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{origin}: '{text}' is not a YAML value") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    tree = read_yaml(path, f"configuration '{path}'")
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"configuration '{path}' must hold sections of keys, not {type(tree).__name__}")
    return tree


class _Brief(reprlib.Repr):
    """Values in few words."""

    def repr_int(self, x: int, level: int) -> str:
        """A number; of thousands of digits Python makes no text."""
        return super().repr_int(x, level) if x.bit_length() < 1000 else f"a number of {x.bit_length()} bits"


_BRIEFLY = _Brief()
_BRIEFLY.maxlevel, _BRIEFLY.maxlist, _BRIEFLY.maxdict, _BRIEFLY.maxstring = 2, 4, 4, 80


def _below(node: Any, section: str) -> Any:
    """What stands at `section`: a field of a model, or an item of a list or dictionary of models."""
    if isinstance(node, type) and issubclass(node, BaseModel):
        return node.model_fields[section].annotation
    return get_args(node)[-1]


def explain(error: ValidationError, origin: str, root: type[BaseModel] | None = None) -> str:
    """First fault of a pydantic error as one line; `root` is the model that was validated."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        *sections, key = [str(part) for part in fault["loc"]]
        node: Any = root or Config
        for section in sections:
            node = _below(node, section)
        return f"{origin}: unknown setting '{where}': {nearest(key, node.model_fields)}"
    message = fault["msg"].removeprefix("Value error, ")
    more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
    given = "" if fault["type"] == "value_error" else f", given {_BRIEFLY.repr(fault['input'])}"
    return f"{origin}: {where + ': ' if where else ''}{message}{given}{more}"


def load_config(
    path: Path | str | None = None,
    preset: str | None = None,
    overrides: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Merge file, preset, environment variables and `key=value` overrides into a checked `Config`.

    Raises:
        UserError: for an unreadable file, an unknown preset or key, or a value of the wrong type or range.
    """
    tree = Config().model_dump()
    if path is not None:
        _merge(tree, _read_yaml(Path(path)))
        _validated(tree, str(path))
    if preset is not None:
        if preset not in PRESETS:
            raise UserError(f"unknown preset '{preset}': {nearest(preset, PRESETS)}")
        for key, value in PRESETS[preset].items():
            _put(tree, key, value)
    for name, text in sorted((os.environ if environ is None else environ).items()):
        if name.startswith(ENV_PREFIX):
            _put(tree, name.removeprefix(ENV_PREFIX).lower().replace("__", "."), _scalar(text, name))
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"--set wants key=value, not '{item}'")
        _put(tree, key.strip(), _scalar(text, f"--set {key.strip()}"))
    return _validated(tree, "settings")


def changed(config: Config, settings: Mapping[str, Any]) -> Config:
    """A configuration with some settings, by dotted name, put in place of its own.

    Raises:
        UserError: for an unknown name, or a value of the wrong type or range.
    """
    tree = config.model_dump()
    for key, value in settings.items():
        _put(tree, key, value)
    return _validated(tree, "settings")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def _validated(tree: dict[str, Any], origin: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, origin)) from error


def describe(config: Config | None = None) -> str:
    """The configuration as YAML, each field's docstring as a comment above it."""
    lines = [
        "# Every tunable. Precedence, lowest first: built-in defaults, this file, --preset, environment variables",
        "# (IOTDEF__LSTM__TRAINING__EPOCHS=3), --set lstm.training.epochs=3. Unknown keys are refused.",
        "# Written by `python -m src.config`.",
    ]

    def walk(node: BaseModel, indent: str) -> None:
        for name, info in type(node).model_fields.items():
            value = getattr(node, name)
            choices = f" One of: {', '.join(map(str, get_args(info.annotation)))}." if getattr(info.annotation, "__origin__", None) is Literal else ""
            lines.append(f"{indent}# {info.description}{choices}")
            if isinstance(value, BaseModel):
                lines.append(f"{indent}{name}:")
                walk(value, indent + "  ")
            else:
                plain = type(node).model_validate(node).model_dump(mode="json")[name]
                text = yaml.safe_dump(plain, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
                lines.append(f"{indent}{name}: {text}")

    walk(config or Config(), "")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(describe(), end="")
