"""Families that no sensor has seen: taking one out of the data, and telling its windows by distance."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.spatial.distance import mahalanobis
from sklearn.metrics import roc_auc_score

from src.data.dataset import Rows, content_hash, without_family
from src.data.taxonomy import FAMILIES, family_index
from src.data.windows import gather, window_starts
from src.errors import UserError
from src.models.loop import seeded
from src.models.lstm_attack_predictor import LSTMConfig, build_model
from src.models.novelty import ClassDistance, Novelty, views
from src.models.temporal_lstm import create_model
from tests.datasets import CLASSES, FEATURES, make_dataset

T = 6
DATA = make_dataset()


def windows(rows: Rows, stride: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    starts = window_starts(rows.segment, T, stride)
    return torch.from_numpy(gather(rows.features, starts, T)), torch.from_numpy(rows.label[starts].astype(np.int64))


def network(kind: str, classes: int) -> Any:
    """Random weights: what is tested here holds for any."""
    if kind == "base":
        model: Any = build_model(LSTMConfig(len(FEATURES), 16, 2, classes, 0.3, False, T), 0)
    else:
        with seeded(0, 0):
            model = create_model("fast_training", input_size=len(FEATURES), num_classes=classes, sequence_length=T, hidden_size=16)
    model.scaler.fit(DATA.splits["fit"].features)
    return model


@pytest.mark.parametrize("family", ["DDoS", "Recon", "Web"])
def test_a_family_is_taken_out_of_every_side(family: str) -> None:
    known, taken = without_family(DATA, family)
    held = {name for name, found in zip(CLASSES, family_index(CLASSES), strict=True) if FAMILIES[found] == family}
    assert known.class_names == tuple(name for name in CLASSES if name not in held)
    assert known.assembled == tuple(name for name in DATA.assembled if name not in held)
    assert known.data_hash == content_hash(known.splits, FEATURES, known.class_names, known.domain_names)
    assert set(taken) == set(known.splits) == set(DATA.splits)
    for side, rows in DATA.splits.items():
        names = np.array(CLASSES)[rows.label]
        out = np.isin(names, list(held))
        assert out.any()
        np.testing.assert_array_equal(np.array(known.class_names)[known.splits[side].label], names[~out])
        np.testing.assert_array_equal(np.array(CLASSES)[taken[side].label], names[out])
        for field in dataclasses.fields(Rows):
            if field.name != "label":
                np.testing.assert_array_equal(getattr(known.splits[side], field.name), getattr(rows, field.name)[~out])
                np.testing.assert_array_equal(getattr(taken[side], field.name), getattr(rows, field.name)[out])


@pytest.mark.parametrize("family", ["Benign", "Mirai", "Floods"])
def test_a_family_that_cannot_be_left_out_is_told(family: str) -> None:
    with pytest.raises(UserError, match=f"family '{family}' cannot be left out; attack families in these data: DDoS, Recon, Web"):
        without_family(DATA, family)


def test_distance_is_that_to_the_nearest_class_under_the_pooled_covariance() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(3, 3))
    labels = np.repeat([0, 4], 4000)  # a class without a window in between
    values = rng.normal(size=(8000, 3)) @ mix + np.where(labels[:, None] == 0, 0.0, 5.0)
    constant = np.full((8000, 1), 7.0)
    found = ClassDistance.fit(torch.from_numpy(np.hstack([values, constant])), torch.from_numpy(labels))
    probe = rng.normal(size=(50, 3)) * 4
    means = [values[labels == label].mean(axis=0) for label in (0, 4)]
    inverse = np.linalg.inv(np.cov((values - np.array(means)[labels // 4]).T))
    expected = [min(mahalanobis(row, mean, inverse) ** 2 for mean in means) for row in probe]
    for last in (7.0, 70.0):  # what never varied in `fit` says nothing later
        read = found(torch.from_numpy(np.hstack([probe, np.full((50, 1), last)]))).numpy()
        np.testing.assert_allclose(read, expected, rtol=0.02)


def test_values_that_differ_between_classes_alone_are_told() -> None:
    labels = torch.arange(3).repeat_interleave(20)
    with pytest.raises(UserError, match="windows of each class are all but equal"):
        ClassDistance.fit(torch.stack([labels, labels**2], dim=1), labels)


@pytest.mark.parametrize("kind", ["base", "temporal"])
def test_a_family_that_was_left_out_is_new_and_the_known_ones_are_not(kind: str) -> None:
    known, taken = without_family(DATA, "DDoS")
    model = network(kind, len(known.class_names))
    novelty = Novelty.fit(model, *windows(known.splits["fit"]), windows(known.splits["calibrate"])[0])
    seen, unseen = (novelty.score(model, windows(rows)[0]).numpy() for rows in (known.splits["test"], taken["test"]))
    assert ((seen >= 0) & (seen < 1)).all()
    assert abs(seen.mean() - 0.5) < 0.1  # uniform on what is like `calibrate`
    assert (seen > 0.9).mean() < 0.25
    assert unseen.min() > 0.9
    assert roc_auc_score(np.repeat([0, 1], [len(seen), len(unseen)]), np.concatenate([seen, unseen])) > 0.95
    # Control: for one that has seen the family, it is as the others.
    full = network(kind, len(CLASSES))
    familiar = Novelty.fit(full, *windows(DATA.splits["fit"]), windows(DATA.splits["calibrate"])[0]).score(full, windows(taken["test"])[0])
    assert familiar.mean() < 0.7


@pytest.mark.parametrize("kind", ["base", "temporal"])
def test_a_window_reads_the_same_alone_in_a_batch_and_after_saving(kind: str, tmp_path: Path) -> None:
    model = network(kind, len(CLASSES)).train()
    calibrate = windows(DATA.splits["calibrate"])[0]
    novelty = Novelty.fit(model, *windows(DATA.splits["fit"]), calibrate)
    scores = novelty.score(model, calibrate)  # ties with the reference, each
    assert model.training
    assert scores.min() >= 0
    alone = torch.cat([novelty.score(model, window[None]) for window in calibrate[::17]])
    np.testing.assert_allclose(alone, scores[::17], atol=2.5 / len(calibrate))
    save_file(novelty.tensors(), tmp_path / "novelty.safetensors")
    again = Novelty.from_tensors(load_file(tmp_path / "novelty.safetensors"))
    assert torch.equal(again.score(model, calibrate), scores)


@pytest.mark.parametrize("kind", ["base", "temporal"])
def test_the_embedding_is_what_the_output_layer_reads(kind: str) -> None:
    model = network(kind, len(CLASSES)).eval()
    probe = windows(DATA.splits["test"], 20)[0]
    embedded, spread = views(model, probe)
    with torch.inference_mode():
        found = model(probe)
        read = model.classifier[2:](embedded.float()) if kind == "base" else model.output.samples(embedded.float()).mean(dim=0)
        expected = found if kind == "base" else model.sample_logits(probe).mean(dim=0)
    torch.testing.assert_close(read, expected, atol=1e-5, rtol=1e-5)
    assert spread.shape == (len(probe), 2 * len(FEATURES))


def test_too_few_windows_are_told() -> None:
    model, (held, labels) = network("base", len(CLASSES)), windows(DATA.splits["fit"])
    with pytest.raises(UserError, match="1 windows to fit and 5 to calibrate"):
        Novelty.fit(model, held[:1], labels[:1], held[:5])
    with pytest.raises(UserError, match="0 to calibrate"):
        Novelty.fit(model, held, labels, held[:0])
