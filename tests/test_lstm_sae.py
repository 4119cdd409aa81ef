"""Tests for src.models.lstm_sae: shapes, scaling, calibration, artifacts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from src.errors import UserError
from src.models.lstm_sae import AnomalyDetector, LSTMAutoencoder, SAEConfig, build_autoencoder

SHAPE = SAEConfig(input_size=4, sequence_length=6, encoder_units=(16, 8), decoder_units=(8, 12), dropout=0.1)


def benign(count: int, seed: int) -> NDArray[np.float32]:
    """(count, 6, 4) windows of four waves that share a phase; values span decades, as traffic does."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1)) + np.arange(6)[:, None] * 0.7
    waves = np.sin(phase + np.arange(4)) * 3 + rng.normal(0, 0.1, (count, 6, 4))
    return np.expm1(np.abs(waves)).astype(np.float32) * np.sign(waves).astype(np.float32)


def shuffled(windows: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """The same rows in another order in time: nothing but the order is wrong."""
    rng = np.random.default_rng(seed)
    return np.stack([window[rng.permutation(len(window))] for window in windows])


def train(model: LSTMAutoencoder, windows: NDArray[np.float32], steps: int) -> LSTMAutoencoder:
    data, optimizer = torch.from_numpy(windows), torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # dropout draws from torch's own numbers
        for _ in range(steps):
            loss = model.loss(data[torch.randint(len(data), (64,), generator=generator)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def detector() -> AnomalyDetector:
    windows = benign(1000, 0)
    model = train(build_autoencoder(SHAPE, 0, windows.reshape(-1, 4)), windows, 300)
    return AnomalyDetector.fit(model, windows, benign(400, 1))


def test_shapes_and_seed() -> None:
    """Reconstruction has the windows' shape, the code the encoder's last size; weights follow from the seed."""
    x = torch.from_numpy(benign(5, 0))
    model = build_autoencoder(SHAPE, 3, benign(50, 1).reshape(-1, 4)).eval()
    assert model(x).shape == (5, 6, 4)
    assert model.encode(x).shape == (5, 8)
    same, other = (build_autoencoder(SHAPE, seed) for seed in (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), model.parameters(), strict=True))
    assert not torch.equal(other.output.weight, model.output.weight)


def test_encoder_stands_alone() -> None:
    """What is taken out reads raw windows as the whole does, and shares its weights."""
    model = build_autoencoder(SHAPE, 0, benign(50, 1).reshape(-1, 4)).eval()
    encoder, x = model.encoder().eval(), torch.from_numpy(benign(7, 2))
    assert torch.equal(encoder(x), model.encode(x))
    assert sum(p.numel() for p in encoder.parameters()) < model.count_parameters()


def test_decoder_sees_the_code_alone() -> None:
    """Windows with equal codes are rebuilt equally: nothing but the code reaches the decoder."""
    model = build_autoencoder(SHAPE, 0).eval()
    x = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    code = model.encode(x)
    by_hand = model.output(model.decoder_layers(code[:, None].expand(-1, 6, -1)))
    assert torch.equal(by_hand, model(x))


def test_identity_scaling_without_rows() -> None:
    """Rows that are scaled already stay as they are."""
    model = build_autoencoder(SHAPE, 0)
    x = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.scaler(x), x)


def test_tells_what_is_out_of_order(detector: AnomalyDetector) -> None:
    """Trained on waves, it scores the same rows in another order higher; an untrained one cannot."""
    ordinary, wrong = benign(400, 2), shuffled(benign(400, 2), 3)
    blank = AnomalyDetector.fit(build_autoencoder(SHAPE, 0, benign(1000, 0).reshape(-1, 4)), benign(1000, 0), benign(400, 1))
    told, told_blank = ((one.score(ordinary)[:, None] < one.score(wrong)).mean() for one in (detector, blank))
    assert told > 0.99
    assert told_blank < 0.8


def test_tells_what_is_too_regular(detector: AnomalyDetector) -> None:
    """A window that the network rebuilds better than any benign one is abnormal: the error counts either way."""
    smooth = detector.model(torch.from_numpy(benign(200, 2))).detach()  # in scaled units
    model = LSTMAutoencoder(SHAPE)
    model.load_state_dict({name: value for name, value in detector.model.state_dict().items() if not name.startswith("scaler")})
    fit, calibrate = (detector.model.scaler(torch.from_numpy(benign(count, seed))).numpy() for count, seed in ((1000, 0), (400, 1)))
    twice = AnomalyDetector.fit(model.eval(), fit, calibrate)
    error = [np.median(np.square((model(windows) - windows).detach().numpy()).mean(axis=(1, 2))) for windows in (smooth, torch.from_numpy(calibrate))]
    assert error[0] < error[1]
    assert np.median(twice.anomaly(smooth.numpy())) > 0.9


def test_lasting_shift_beats_scatter(detector: AnomalyDetector) -> None:
    """A small shift that lasts over the window is told where the same one of changing sign is not: means over time count."""
    scale, rng = np.float32(0.4), np.random.default_rng(0)
    windows = benign(400, 2)
    sign = rng.choice(np.array([-1, 1], dtype=np.float32), (400, 6, 1))
    squash = np.sign(windows) * np.log1p(np.abs(windows))
    lasting, changing = (np.sign(moved) * np.expm1(np.abs(moved)) for moved in (squash + scale, squash + scale * sign))
    assert np.median(detector.score(lasting)) > np.median(detector.score(changing))


def test_anomaly_is_uniform_on_benign_windows(detector: AnomalyDetector) -> None:
    """One minus the p-value of fresh benign windows: as many above each level as the level says."""
    found = detector.anomaly(benign(2000, 4))
    assert found.min() >= 0
    assert found.max() < 1
    for level in (0.5, 0.9, 0.95):
        assert abs((found > level).mean() - (1 - level)) < 0.05  # 400 calibration windows: a deviation of .025 at .5


def test_calibration_windows_read_as_their_rank(detector: AnomalyDetector) -> None:
    """A calibration window counts itself: the largest of M reads (M - 1) / (M + 1), never 1."""
    found = np.sort(detector.anomaly(benign(400, 1)))
    assert found[-1] == pytest.approx(399 / 401)
    assert found[0] == 0


def test_alone_and_in_a_batch(detector: AnomalyDetector) -> None:
    """A window reads the same alone and in a batch, calibration windows included."""
    windows = np.concatenate([benign(200, 1), benign(100, 5)])
    together = detector.anomaly(windows)
    alone = np.concatenate([detector.anomaly(window[None]) for window in windows])
    np.testing.assert_array_equal(together, alone)


def test_artifact(detector: AnomalyDetector, tmp_path: Path) -> None:
    """A saved detector reads as before, scaling included; an altered or foreign one is refused in one line."""
    detector.save(tmp_path / "sae", {"seed": 0})
    found, meta = AnomalyDetector.load(tmp_path / "sae")
    windows = benign(50, 6)
    np.testing.assert_array_equal(found.anomaly(windows), detector.anomaly(windows))
    assert found.model.config == SHAPE
    assert meta["seed"] == 0
    (tmp_path / "sae" / "detector.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="was altered"):
        AnomalyDetector.load(tmp_path / "sae")


def test_arrays_beside_others(detector: AnomalyDetector) -> None:
    """Its arrays can lie among those of something else; a missing one is an error."""
    arrays = {**detector.tensors(), "other": torch.zeros(1)}
    again = AnomalyDetector.from_tensors(SAEConfig.of({**SHAPE.__dict__, "encoder_units": [16, 8]}), arrays)
    np.testing.assert_array_equal(again.score(benign(9, 0)), detector.score(benign(9, 0)))
    del arrays["sae.reference"]
    with pytest.raises(KeyError):
        AnomalyDetector.from_tensors(SHAPE, arrays)


def test_too_few_windows() -> None:
    """Nothing to fit or to calibrate with is said."""
    model = build_autoencoder(SHAPE, 0)
    with pytest.raises(UserError, match="1 benign windows to fit and 5 to calibrate"):
        AnomalyDetector.fit(model, benign(1, 0), benign(5, 0))
    with pytest.raises(UserError, match="0 to calibrate"):
        AnomalyDetector.fit(model, benign(5, 0), benign(0, 0))
