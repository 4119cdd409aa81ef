"""The temporal LSTM: classes of windows of raw traffic features with uncertainty, attention maps, memory and a domain discriminator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from src.errors import UserError
from src.models.loop import seeded
from src.models.lstm_attack_predictor import Scaler
from src.models.temporal_lstm.blocks import BayesianLinear, Hierarchy, MemoryBank, PeriodicGate, TemporalAttention, precise, reverse_gradient
from src.models.temporal_lstm.config import ModelConfig, create_custom_config, get_config, validate_config


class AdvancedLSTMTemporal(nn.Module):
    """Periodic gate, hierarchy of LSTMs, temporal attention, memory bank, variational output layer.

    Raw features go in, scaling and temperature are buffers, as of the base predictor. In training mode `logits` are one draw from the output layer's
    posterior and the memory is written after it was read; in evaluation they are the logarithm of the mean probability over fixed draws.
    A window's outputs never depend on the other windows of its batch.
    """

    temperature: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        hidden, dropout = config.hidden_size, config.dropout
        self.scaler = Scaler(config.input_size)
        self.gate = PeriodicGate(config.input_size, hidden, config.num_periods, config.sequence_length)
        self.hierarchy = Hierarchy(hidden, config.num_levels)
        self.attention = nn.ModuleList(
            TemporalAttention(hidden, config.num_heads, config.head_size, config.num_periods, config.sequence_length, dropout)
            for _ in range(config.attention_layers)
        )
        self.reader = nn.Linear(hidden, 1, bias=False)
        self.summary = nn.Sequential(nn.Linear(hidden * (4 if config.readout == "summary" else 1), hidden), nn.GELU())
        self.memory = MemoryBank(hidden, config.memory_slots, config.memory_rate)
        self.norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)
        self.output = BayesianLinear(hidden, config.num_classes, config.mc_samples, config.prior_deviation)
        self.discriminator = None
        if config.num_domains > 1:
            self.discriminator = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, config.num_domains))
        self.register_buffer("temperature", torch.ones(()))

    def _states(self, x: Tensor, need_maps: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """States (B, T, H) of raw windows (B, T, F), and the attention maps if they are needed."""
        frugal = self.training and 0 < self.config.checkpoint_length <= x.shape[1]

        def run(block: nn.Module, *inputs: Any) -> Any:
            return checkpoint(block, *inputs, use_reentrant=False) if frugal else block(*inputs)

        states = run(self.hierarchy, self.dropout(self.gate(self.scaler(x))))
        maps = []
        for layer in self.attention:
            states, weights = run(layer, states, need_maps)
            maps.append(weights)
        return states, tuple(maps) if need_maps else ()

    def _embed(self, x: Tensor, need_maps: bool = False) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        states, maps = self._states(x, need_maps)
        shares = torch.softmax(precise(self.reader(states)), dim=1).to(states.dtype)  # (B, T, 1)
        attended = (shares * states).sum(dim=1)  # (B, H)
        if self.config.readout == "summary":
            attended = torch.cat([states[:, -1], states.mean(dim=1), states.amax(dim=1), attended], dim=1)  # (B, 4H)
        recalled, query = self.memory(self.summary(attended))
        return self.norm(recalled), query, maps

    def embed(self, x: Tensor) -> Tensor:
        """(B, H) what the output layer, the discriminator and distance scores read, of raw windows (B, T, F). Writes nothing to the memory."""
        return self._embed(x)[0]

    def forward(self, x: Tensor, return_attention: bool = False, domain_lambda: float | None = None) -> dict[str, Any]:
        """Read raw windows.

        Args:
            x: (B, T, F), T at least 2.
            return_attention: also return the maps.
            domain_lambda: also ask the discriminator, whose gradient reaches the embedding reversed and times this.

        Returns:
            `logits` (B, C), `epistemic` (B,) (mutual information of class and weights, nats: what more training rows could tell), `aleatoric` (B,)
            (mean entropy of the draws, nats: what they could not), `kl` () in nats, to be divided by the number of training windows;
            `attention_weights`, a tuple of (B, h, T, T), one a layer; `discriminator_output` (B, domains), logits.

        Raises:
            UserError: when the discriminator is asked for and the model has none.
        """
        embedding, query, maps = self._embed(x, return_attention)
        if self.training:
            self.memory.write(query.detach())
            logits = self.output(self.dropout(embedding))
            with torch.no_grad():
                draws = self.output.samples(embedding)
        else:
            draws = self.output.samples(embedding)  # (S, B, C)
            logits = _mean_log_probability(draws)
        epistemic, aleatoric = _entropies(draws)
        found: dict[str, Any] = {"logits": logits, "epistemic": epistemic, "aleatoric": aleatoric, "kl": self.output.divergence()}
        if return_attention:
            found["attention_weights"] = maps
        if domain_lambda is not None:
            if self.discriminator is None:
                raise UserError("temporal model: domain_lambda was given to a model without discriminator; build it with num_domains of at least 2")
            found["discriminator_output"] = self.discriminator(reverse_gradient(embedding, domain_lambda))
        return found

    def sample_logits(self, x: Tensor) -> Tensor:
        """(S, B, C) logits of raw windows (B, T, F) under each fixed draw, before temperature; deterministic, whatever mode the model is in."""
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                return self.output.samples(self.embed(x))
        finally:
            self.train(training)

    def predict_attack_probability(self, x: Tensor) -> Tensor:
        """Calibrated probabilities (B, C) of raw windows (B, T, F): the mean over draws of softmax(logits / temperature)."""
        return _mean_log_probability(self.sample_logits(x) / self.temperature).exp()

    def uncertainties(self, x: Tensor) -> dict[str, Tensor]:
        """`probabilities` (B, C) as `predict_attack_probability`, with `epistemic` (B,) and `aleatoric` (B,) of the same draws, in nats."""
        draws = self.sample_logits(x) / self.temperature
        epistemic, aleatoric = _entropies(draws)
        return {"probabilities": _mean_log_probability(draws).exp(), "epistemic": epistemic, "aleatoric": aleatoric}

    def adopt(self, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
        """Take over shape and weights of a model whose architecture has changed since; the object stays the same, its parameters do not.

        Raises:
            UserError: when the weights do not fit the configuration.
        """
        with seeded(0, 0):
            other = AdvancedLSTMTemporal(config)
        try:
            other.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"temporal model: weights do not fit {config}: {' '.join(str(error).split())}") from error
        other.to(self.temperature.device)
        for name, block in other.named_children():
            setattr(self, name, block)
        self.config, self.temperature, self.discriminator = config, other.temperature, other.discriminator
        self.train(self.training)

    def grow_classes(self, count: int) -> None:
        """Append `count` classes. Logits of the others stay as they are, draw by draw; a new one starts at their mean, below any class that is likely."""
        self.output.grow(count)
        self.config = replace(self.config, num_classes=self.config.num_classes + count)

    def count_parameters(self) -> dict[str, int]:
        """Trainable parameters by block, and their `total`."""
        counts = {
            name: sum(parameter.numel() for parameter in block.parameters() if parameter.requires_grad)
            for name, block in self.named_children()
            if next(block.parameters(), None) is not None
        }
        return {**counts, "total": sum(counts.values())}


def _mean_log_probability(draws: Tensor) -> Tensor:
    """(B, C) logarithm of the mean probability of logits (S, B, C)."""
    return torch.logsumexp(functional.log_softmax(draws, dim=-1), dim=0) - math.log(len(draws))


def _entropies(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mutual information (B,) and expected entropy (B,) of logits (S, B, C), in nats (Depeweg et al. 2018)."""
    each = functional.log_softmax(draws, dim=-1)
    mean = _mean_log_probability(draws)
    aleatoric = -(each.exp() * each).sum(dim=-1).mean(dim=0)  # (B,)
    total = -(mean.exp() * mean).sum(dim=-1)  # (B,)
    return (total - aleatoric).clamp(min=0), aleatoric


def create_model(config: str | ModelConfig | Mapping[str, Any], **overrides: Any) -> AdvancedLSTMTemporal:
    """A model from the name of a preset, a configuration, or a mapping of its keys; initial weights from torch's global generator.

    Raises:
        UserError: for an unknown preset, key or value.
    """
    if isinstance(config, str):
        return AdvancedLSTMTemporal(get_config(config, **overrides))
    if isinstance(config, ModelConfig):
        return AdvancedLSTMTemporal(create_custom_config(config, **overrides))
    validate_config(config)
    return AdvancedLSTMTemporal(create_custom_config(ModelConfig(**config), **overrides))
