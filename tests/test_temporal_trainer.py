"""What the temporal LSTM's trainer adds to the loop: divergence, domains, another site's windows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from src.config import TemporalTrainingConfig
from src.errors import UserError
from src.models.loop import WindowBatches, seeded
from src.models.temporal_lstm import AdvancedLSTMTemporal, create_model, domain_schedule
from src.training.temporal_trainer import IGNORED, PROBE, TRACKED, TemporalTrainer, _spread_over
from tests.datasets import CLASSES, FEATURES, make_dataset

T = 6
DATA = make_dataset()
SMALL = {"hidden_size": 8, "num_heads": 2, "head_size": 4, "memory_slots": 4, "memory_rate": 1e-6, "dropout": 0.0}


def model(domains: int = 1, seed: int = 0) -> AdvancedLSTMTemporal:
    with seeded(seed, 0):
        made = create_model("fast_training", **SMALL, input_size=len(FEATURES), num_classes=len(CLASSES), num_domains=domains, sequence_length=T)
    made.scaler.fit(DATA.splits["fit"].features)
    return made


def batches(split: str = "fit", domains: torch.Tensor | None = None, shift: float = 0.0) -> WindowBatches:
    rows = DATA.splits[split]
    starts = torch.arange(0, len(rows.label) - T, 3)
    generator = torch.Generator() if split == "fit" else None
    return WindowBatches(torch.from_numpy(rows.features) + shift, starts, torch.from_numpy(rows.label.astype(np.int64))[starts], T, 64, generator, domains)


COUNTS = np.bincount(batches().labels.numpy(), minlength=len(CLASSES))


def trainer(made: AdvancedLSTMTemporal, target: WindowBatches | None = None, **settings: object) -> TemporalTrainer:
    return TemporalTrainer(made, TemporalTrainingConfig(**{"epochs": 3, "learning_rate": 0.01, **settings}), class_counts=COUNTS, device="cpu", target=target)  # type: ignore[arg-type]


def test_it_learns_and_the_same_seed_gives_the_same_weights() -> None:
    made = [model() for _ in range(2)]
    found = [trainer(one, epochs=5).train(batches(), batches("calibrate")) for one in made]
    assert found[0] == found[1]
    assert found[0][-1]["calibrate/macro_f1"] > 0.6
    assert all(torch.equal(one, other) for one, other in zip(made[0].state_dict().values(), made[1].state_dict().values(), strict=True))


def test_the_divergence_is_part_of_the_loss() -> None:
    batch = next(iter(batches("calibrate")))
    losses = []
    for weight in (0.0, 1.0):
        one = trainer(model(), kl_weight=weight)
        one.model.train()
        with seeded(0, 5):
            losses.append(float(one.objective(batch)[0].detach()))
    assert losses[1] - losses[0] == pytest.approx(float(model()(batch[0])["kl"].detach()) / COUNTS.sum(), rel=1e-3)


def test_evaluation_asks_for_the_labelled_loss_alone() -> None:
    batch = next(iter(batches("calibrate")))
    one = trainer(model(), kl_weight=5.0)
    one.model.eval()
    loss, logits = one.objective(batch)
    assert float(loss.detach()) == pytest.approx(float(one.loss(logits, batch[1]).detach()))


def test_the_embedding_is_pushed_where_the_discriminator_fails() -> None:
    """The domain loss reaches the embedding as minus strength times its own gradient, from the batch and from the other site's windows."""
    windows, labels = next(iter(batches("calibrate")))
    other = WindowBatches(torch.from_numpy(DATA.splits["test"].features), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), T, 1)
    other.domains = torch.ones(1, dtype=torch.int64)
    gradients = []
    for weight in (0.0, 1.0):
        one = trainer(model(domains=2), other, domain_weight=weight)
        one.model.train()
        one._epoch = 1
        with seeded(0, 5):
            one.objective((windows, labels, torch.zeros_like(labels)))[0].backward()
        gradients.append(one.model.summary[0].weight.grad)
    plain = model(domains=2)
    assert plain.discriminator is not None
    plain.train()
    sides = [plain.discriminator(plain.embed(side)) for side in (windows, other.rows[:T].expand(len(labels), T, -1))]
    truth = torch.cat([torch.zeros_like(labels), torch.ones_like(labels)])
    functional.cross_entropy(torch.cat(sides), truth).backward()
    own = plain.summary[0].weight.grad
    assert own is not None
    torch.testing.assert_close(gradients[1] - gradients[0], -domain_schedule(1 / 3) * own, rtol=0.05, atol=1e-3 * float(own.abs().max()))


def test_ignored_windows_do_not_reach_the_discriminator() -> None:
    windows, labels = next(iter(batches("calibrate")))
    one = trainer(model(domains=2))
    one.model.train()
    one._epoch = 2  # late enough for a strong reversal
    assert one.model.discriminator is not None
    for domains, reached in ((torch.full_like(labels, IGNORED), False), (torch.zeros_like(labels), True)):
        one.model.zero_grad()
        one.objective((windows, labels, domains))[0].backward()
        gradients = [parameter.grad for parameter in one.model.discriminator.parameters()]
        assert any(bool(gradient.abs().sum() > 0) for gradient in gradients if gradient is not None) == reached


def test_a_target_needs_domains_and_a_discriminator() -> None:
    domains = torch.ones(len(batches("calibrate").starts), dtype=torch.int64)
    for made, target in ((model(2), batches("calibrate")), (model(1), batches("calibrate", domains))):
        with pytest.raises(UserError, match="num_domains of at least 2"):
            trainer(made, target)


def interrupted(folder: Path, **settings: object) -> tuple[AdvancedLSTMTemporal, list[dict[str, float]]]:
    """A training stopped after its third epoch and taken up again by a fresh model and trainer."""
    checkpoint = folder / "checkpoint.pt"

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(model(), **settings).train(batches(), batches("calibrate"), on_epoch=stop, checkpoint=checkpoint)
    fresh = model()
    return fresh, trainer(fresh, **settings).train(batches(), batches("calibrate"), checkpoint=checkpoint, resume=True)


def test_an_architecture_that_follows_its_data_survives_an_interruption(tmp_path: Path) -> None:
    """With a learning rate of nothing the score stands still, so parts must come; the best shape is given back."""
    settings = {"epochs": 7, "learning_rate": 1e-12, "patience": 7, "adaptive": True}
    whole = model()
    one = trainer(whole, **settings)
    history = one.train(batches(), batches("calibrate"))
    assert one.controller is not None
    actions = [record["action"] for record in one.controller.records]
    assert "weigh" in actions
    assert "add" in actions
    sizes = {(row["num_levels"], row["num_heads"], row["memory_slots"]) for row in history}
    assert len(sizes) > 1
    fresh, resumed = interrupted(tmp_path, **settings)
    assert resumed == history
    assert fresh.config == whole.config
    assert all(torch.equal(left, right) for left, right in zip(fresh.state_dict().values(), whole.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["noise", "scale", "jitter", "missing"])
def test_augmentation_changes_training_windows_only(name: str) -> None:
    batch = next(iter(batches("calibrate")))
    losses = []
    for value in (0, 1 if name == "jitter" else 0.5):
        one = trainer(model(), **{name: value})
        one.model.train()
        with seeded(0, 5):
            trained = float(one.objective(batch)[0].detach())
        one.model.eval()
        losses.append((trained, float(one.objective(batch)[0].detach())))
    assert losses[0][0] != losses[1][0]
    assert losses[0][1] == pytest.approx(losses[1][1], abs=1e-5)


@pytest.mark.parametrize("adaptive", [False, True])
def test_what_was_given_back_can_learn_on(adaptive: bool) -> None:
    """The optimiser moves the weights that the model has then, whether its shape went back or not."""
    one = trainer(model(), epochs=5, learning_rate=1e-12, patience=5, adaptive=adaptive)
    history = one.train(batches(), batches("calibrate"))
    assert adaptive == (len({(row.get("num_levels"), row.get("num_heads"), row.get("memory_slots")) for row in history}) > 1)
    assert one.model.config == model().config
    before = {name: value.detach().clone() for name, value in one.model.named_parameters()}
    one.optimizer.param_groups[0]["lr"] = 0.01
    with seeded(0, 9):
        one.train_epoch(batches())
    assert all(not torch.equal(value, before[name]) for name, value in one.model.named_parameters() if value.grad is not None)
    assert sum(value.grad is not None for value in one.model.parameters()) > 10


@pytest.mark.parametrize("count", [TRACKED, PROBE])
def test_windows_are_picked_evenly_from_every_batch(count: int) -> None:
    held = batches("calibrate")
    windows, labels = _spread_over(held, count)
    every = [torch.cat(parts) for parts in zip(*held, strict=True)]
    chosen = torch.linspace(0, len(every[1]) - 1, min(count, len(every[1]))).long()
    assert torch.equal(windows, every[0][chosen])
    assert torch.equal(labels, every[1][chosen])
    assert set(labels.tolist()) == set(range(len(CLASSES)))


def test_divergence_names_the_setting_that_the_network_has() -> None:
    made = model()
    with torch.no_grad():
        made.output.mean.fill_(torch.nan)
    with pytest.raises(UserError, match=r"no longer finite; lower temporal\.training\.learning_rate \(now 0\.01\)"):
        trainer(made).validate_epoch(batches("calibrate"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_it_trains_on_a_gpu() -> None:
    one = TemporalTrainer(model(domains=2), TemporalTrainingConfig(epochs=1, adaptive=True), class_counts=COUNTS, device="cuda")
    history = one.train(batches(domains=torch.zeros_like(batches().labels)), batches("calibrate"))
    assert "attention/layer0_head0_entropy" in history[0]
