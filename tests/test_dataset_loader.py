import numpy as np
import pytest
import torch

from src.config import DataConfig
from src.data.dataset import Dataset, load_dataset
from src.data.windows import gather, window_starts
from src.errors import UserError
from src.utils.dataset_loader import CICIoTDataLoader, CICIoTDataset, LoaderConfig


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(DataConfig(synthetic_rows_per_class=400), 0)


def test_a_window_is_rows_of_one_run_with_their_label(data: Dataset) -> None:
    part = data.splits["calibrate"]
    windows = CICIoTDataset(part, length=10, stride=4)
    starts = window_starts(part.segment, 10, 4)
    assert len(windows) == len(starts)
    window, label = windows[7]
    assert (window.shape, window.dtype, label.dtype) == ((10, 39), torch.float32, torch.int64)
    np.testing.assert_array_equal(window.numpy(), part.features[starts[7] : starts[7] + 10])
    assert int(label) == part.label[starts[7]]


def test_ordered_batches_hold_every_window_once_in_order(data: Dataset) -> None:
    loader = CICIoTDataLoader(data, LoaderConfig(batch_size=100, ordered_stride=2))
    part = data.splits["test"]
    starts = window_starts(part.segment, 10, 2)
    batches = list(loader.ordered("test"))
    assert [len(labels) for _, labels in batches[:-1]] == [100] * (len(batches) - 1)
    assert len(batches) == len(loader.ordered("test"))
    np.testing.assert_array_equal(torch.cat([windows for windows, _ in batches]).numpy(), gather(part.features, starts, 10))
    np.testing.assert_array_equal(torch.cat([labels for _, labels in batches]).numpy(), part.label[starts])


def test_fit_is_shuffled_by_the_generator_that_is_passed(data: Dataset) -> None:
    loader = CICIoTDataLoader(data, LoaderConfig(batch_size=64, seed=5))

    def passes(generator: torch.Generator | None) -> list[torch.Tensor]:
        batches = loader.fit(generator)
        return [torch.cat([windows[:, 0] for windows, _ in batches]) for _ in range(2)]

    first, second = passes(torch.Generator().manual_seed(1))
    again, _ = passes(torch.Generator().manual_seed(1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    torch.testing.assert_close(passes(None)[0], passes(torch.Generator().manual_seed(5))[0], rtol=0, atol=0)
    assert not torch.equal(first, second)
    part = data.splits["fit"]
    expected = part.features[window_starts(part.segment, 10, 3)]
    assert len(first) == len(expected)
    np.testing.assert_array_equal(np.sort(first.numpy().sum(axis=1)), np.sort(torch.from_numpy(expected).numpy().sum(axis=1)))


def test_wrong_settings_are_named(data: Dataset) -> None:
    with pytest.raises(UserError, match=r"batch_size is 0: it must be at least 1"):
        LoaderConfig(batch_size=0)
    with pytest.raises(UserError, match="unknown side 'tset': did you mean 'test'"):
        CICIoTDataLoader(data, LoaderConfig()).ordered("tset")
    with pytest.raises(UserError, match="has no run of 400 rows"):
        CICIoTDataLoader(data, LoaderConfig(length=400)).fit()
