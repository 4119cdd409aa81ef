"""Augmentation and repair of windows: each option does what it says, to what it should, and nothing else."""

import pytest
import torch
from torch import Tensor

from src.errors import UserError
from src.models.temporal_lstm.augment import Augmentation, drop_values, fill_missing, jitter, limit_outliers, outlier_limits, replace_spikes

SPREAD = torch.tensor([1.0, 2.0, 0.0])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def windows() -> Tensor:
    return torch.distributions.LogNormal(3.0, 2.0).sample((50, 8, 3)) * torch.tensor([1.0, -1.0, 1.0])


def changed(options: Augmentation, x: Tensor) -> Tensor:
    copy = x.clone()
    found = options(x, SPREAD, generator())
    assert torch.equal(x, copy)  # the input stays as it was
    assert torch.equal(found, options(x, SPREAD, generator()))
    assert found.isfinite().all()
    return found


@pytest.mark.parametrize("name", ["noise", "scale", "jitter", "missing"])
def test_each_option_is_live_and_off_at_zero(name: str) -> None:
    x = windows()
    assert not torch.equal(changed(Augmentation(**{name: 2 if name == "jitter" else 0.1}), x), x)  # type: ignore[arg-type]
    assert torch.equal(changed(Augmentation(), x), x)


def test_noise_has_the_stated_deviation_on_the_signed_logarithm_and_spares_constant_features() -> None:
    x = windows().repeat(40, 1, 1)
    found = changed(Augmentation(noise=0.1), x)

    def squash(value: Tensor) -> Tensor:
        return value.sign() * value.abs().log1p()

    noise = (squash(found) - squash(x)).flatten(0, 1)
    torch.testing.assert_close(noise.std(dim=0)[:2], torch.tensor([0.1, 0.2]), rtol=0.05, atol=0)
    assert torch.equal(found[..., 2], x[..., 2])


def test_scaling_shares_one_factor_by_window_and_feature() -> None:
    x = windows()
    factor = changed(Augmentation(scale=0.3), x) / x
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor))
    assert factor[:, 0].unique().numel() > 100
    assert (factor > 0).all()


def test_jitter_repeats_the_edge_and_never_wraps_around() -> None:
    x = torch.arange(8.0).repeat(200, 1)[:, :, None]
    found = jitter(x, 3, generator())[..., 0]
    steps = found.diff(dim=1)
    assert ((steps == 0) | (steps == 1)).all()  # rows stay in order: a wrap would step back
    assert set((found[:, 4] - 4).tolist()) == {-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0}
    moved_out = found[found[:, 4] == 7]
    assert (moved_out[:, 5:] == 7).all()


def test_lost_values_are_filled_as_asked() -> None:
    nan = float("nan")
    x = torch.tensor([[[nan, nan], [2.0, nan], [nan, nan], [float("inf"), nan], [6.0, nan]]])
    assert fill_missing(x, "last")[0, :, 0].tolist() == [2, 2, 2, 2, 6]
    assert fill_missing(x, "mean")[0, :, 0].tolist() == [4, 2, 4, 4, 6]
    assert fill_missing(x, "zero")[0, :, 0].tolist() == [0, 2, 0, 0, 6]
    for how in ("last", "mean", "zero"):
        assert not fill_missing(x, how)[0, :, 1].any()
        assert torch.equal(fill_missing(windows()[:3], how).shape and fill_missing(x.nan_to_num(1, 1), how), x.nan_to_num(1, 1))


def test_the_stated_share_of_values_is_lost() -> None:
    lost = drop_values(torch.zeros(100, 10, 10), 0.2, generator()).isnan()
    assert 0.18 < lost.float().mean() < 0.22


def test_outliers_are_limited_to_what_fit_rows_hold() -> None:
    rows = torch.arange(1000.0)[:, None] * torch.tensor([1.0, -1.0])
    low, high = outlier_limits(rows, 0.01)
    assert low.tolist() == [10, -989]
    assert high.tolist() == [989, -10]
    x = torch.tensor([[[5000.0, 5000.0], [-5000.0, -500.0]]])
    assert limit_outliers(x, low, high).tolist() == [[[989, -10], [10, -500]]]


def test_spikes_become_the_median_of_their_window() -> None:
    x = torch.tensor([10.0, 11, 12, 1e7, 11, 10, 12, 11])[None, :, None]
    found = replace_spikes(x)
    assert found[0, 3, 0] == 11
    keep = torch.arange(8) != 3
    assert torch.equal(found[:, keep], x[:, keep])
    flat = torch.tensor([0.0, 0, 0, 5, 0, 0])[None, :, None]
    assert torch.equal(replace_spikes(flat), flat)


@pytest.mark.parametrize("options", [{"noise": -1.0}, {"missing": 1.0}, {"jitter": -2}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        Augmentation(**options)  # type: ignore[arg-type]
