"""The temporal LSTM on N-BaIoT, CICIoT2023, or drawn traffic where no path is given; prints scores with calibration and doubt, and draws its attention."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from examples.common import launch, natural, positive
from src.config import Config, changed, load_config
from src.data.dataset import Dataset, load_dataset
from src.data.taxonomy import family_index
from src.data.windows import gather, window_starts
from src.errors import UserError
from src.evaluation.detection import Blocks, Bootstrap, accuracy, auroc, calibration_error, confusions, macro_f1, selective_risk, top_calibration_error
from src.models.explanations import BenignReference, explain
from src.models.loop import WindowBatches, seeded
from src.models.temperature import fit_temperature
from src.models.temporal_lstm import PRESETS, AdvancedLSTMTemporal, create_model
from src.training.explanation_figures import attention_figure
from src.training.temporal_trainer import TemporalTrainer

RESAMPLES = 500
SHOWN = 2000
"""Benign windows that an explanation is told against at most."""


def arguments() -> argparse.Namespace:
    """The command line."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--data_path", type=Path, help="folder of the data set; without it traffic is drawn from CICIoT2023's synthetic profile")
    words.add_argument("--dataset", choices=["nbaiot", "ciciot2023"], default="nbaiot", help="what lies at --data_path (default: %(default)s)")
    words.add_argument("--sample_size", type=positive, default=3000, help="rows read of each file or class, from its start (default: %(default)s)")
    words.add_argument("--sequence_length", type=positive, default=20, help="rows in a window (default: %(default)s)")
    words.add_argument("--stride", type=positive, help="rows between two training windows (default: a quarter of a window)")
    words.add_argument("--preset", default="fast_training", help=f"{', '.join(PRESETS)} (default: %(default)s)")
    words.add_argument("--hidden_size", type=positive, help="units of each level (default: the preset's)")
    words.add_argument("--num_layers", type=positive, help="levels of the hierarchy (default: the preset's)")
    words.add_argument("--num_heads", type=positive, help="heads of each attention layer (default: the preset's)")
    words.add_argument("--memory_size", type=positive, help="slots of the memory bank (default: the preset's)")
    words.add_argument("--dropout", type=float, help="share of units left out in training (default: the preset's)")
    words.add_argument("--epochs", type=positive, default=10, help="passes over the training windows, at most (default: %(default)s)")
    words.add_argument("--batch_size", type=positive, default=128, help="windows a step (default: %(default)s)")
    words.add_argument("--learning_rate", type=float, default=2e-3, help="highest rate (default: %(default)s)")
    words.add_argument("--adversarial_weight", type=float, default=0.0, help="of a discriminator of devices that training deceives (default: none)")
    words.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="where to train (default: %(default)s)")
    words.add_argument("--seed", type=natural, default=0, help="of weights and training (default: %(default)s)")
    words.add_argument("--output", type=Path, default=Path("artifacts") / "temporal_lstm", help="folder of the figure (default: %(default)s)")
    return words.parse_args()


def settings(args: argparse.Namespace) -> Config:
    """The sections `data` and `temporal.training` as the command line has them, checked."""
    plain = load_config(environ={})
    chosen = {
        "data.window": args.sequence_length,
        "data.gap": max(args.sequence_length, plain.data.gap),
        "temporal.training.epochs": args.epochs,
        "temporal.training.batch_size": args.batch_size,
        "temporal.training.learning_rate": args.learning_rate,
        "temporal.training.domain_weight": args.adversarial_weight,
        "temporal.training.patience": 5,
    }
    if args.data_path is None:
        return changed(plain, {**chosen, "data.synthetic_rows_per_class": max(args.sample_size, 400)})
    return changed(plain, {**chosen, "data.root": args.data_path, "data.dataset": args.dataset, "data.max_rows_per_class": max(args.sample_size, 200)})


def build(args: argparse.Namespace, data: Dataset) -> AdvancedLSTMTemporal:
    """The model, scaled to the `fit` rows."""
    asked = {"hidden_size": args.hidden_size, "num_levels": args.num_layers, "num_heads": args.num_heads, "memory_slots": args.memory_size}
    asked |= {"dropout": args.dropout, "num_domains": len(data.domain_names) if args.adversarial_weight > 0 else 1}
    if args.adversarial_weight > 0 and len(data.domain_names) < 2:
        raise UserError("--adversarial_weight needs rows of at least two devices; this data names one")
    shape = {"input_size": len(data.feature_names), "num_classes": len(data.class_names), "sequence_length": args.sequence_length}
    with seeded(args.seed, 0):
        model = create_model(args.preset, **shape, **{key: value for key, value in asked.items() if value is not None})
    model.scaler.fit(data.splits["fit"].features)
    return model


def batches(data: Dataset, side: str, args: argparse.Namespace, domains: bool = False) -> WindowBatches:
    """Windows of a side: those of `fit` shuffled, the others in order."""
    rows, length, training = data.splits[side], args.sequence_length, side == "fit"
    starts = window_starts(rows.segment, length, (args.stride or max(1, length // 4)) if training else 1)
    label, domain = (torch.from_numpy(each[starts].astype(np.int64)) for each in (rows.label, rows.domain))
    generator = torch.Generator() if training else None
    size = args.batch_size if training else 1024
    return WindowBatches(torch.from_numpy(rows.features), torch.from_numpy(starts), label, length, size, generator, domain if domains else None)


def train(model: AdvancedLSTMTemporal, data: Dataset, args: argparse.Namespace, config: Config) -> None:
    """Train on `fit`, stop and calibrate by `calibrate`."""
    fit, calibrate = batches(data, "fit", args, args.adversarial_weight > 0), batches(data, "calibrate", args)
    counts = np.bincount(fit.labels.numpy(), minlength=len(data.class_names))
    trainer = TemporalTrainer(model, config.temporal.training, class_counts=counts, seed=args.seed, device=args.device)
    print(f"training on {len(fit.starts):,} windows of {args.sequence_length} rows ({trainer.device})")
    trainer.train(
        fit, calibrate, on_epoch=lambda row: print(f"  epoch {row['epoch']:2}  loss {row['train/loss']:.3f}  macro-F1 {row['calibrate/macro_f1']:.3f}")
    )
    model.to("cpu").eval()
    draws = torch.cat([model.sample_logits(batch[0]) for batch in calibrate], dim=1)  # (S, N, C)
    model.temperature.fill_(fit_temperature(draws, calibrate.labels))


def evaluate(model: AdvancedLSTMTemporal, data: Dataset, args: argparse.Namespace) -> NDArray[np.float32]:
    """Print what the model makes of `test`, with 95 % intervals over blocks of windows; probabilities (W, C)."""
    test = batches(data, "test", args)
    found = [model.uncertainties(batch[0]) for batch in test]
    probabilities, epistemic, aleatoric = (torch.cat([part[key] for part in found]).numpy() for key in ("probabilities", "epistemic", "aleatoric"))
    truth, runs = test.labels.numpy(), data.splits["test"].segment[test.starts.numpy()]
    sample = Bootstrap(Blocks.cut(truth, runs), RESAMPLES, args.seed)
    counts = confusions(sample, probabilities.argmax(axis=1), len(data.class_names))
    attack = ~np.isin(truth, np.flatnonzero(family_index(data.class_names) == 0))
    risk = 1 - probabilities[:, family_index(data.class_names) == 0].sum(axis=1)
    doubt, wrong = epistemic + aleatoric, probabilities.argmax(axis=1) != truth
    scores = {
        "accuracy": accuracy(counts),
        "macro-F1": macro_f1(counts),
        "AUROC of attack against benign": auroc(sample, risk, attack),
        "classwise calibration error": calibration_error(sample, truth, probabilities),
        "calibration error of the top class": top_calibration_error(sample, truth, probabilities),
        "errors among all windows": sample.share(wrong, np.ones_like(wrong)),
        "errors among the 80 % surest": selective_risk(sample, doubt, wrong, 0.8),
        "AUROC of doubt for errors": auroc(sample, doubt, wrong),
    }
    print(f"{len(truth):,} held-out windows of {len(data.class_names)} classes ({data.source}; {data.site}), temperature {float(model.temperature):.2f}:")
    for name, values in scores.items():
        one = sample.mean(values)
        print(f"  {name:<36} {one.value:.3f} [{one.low:.3f}, {one.high:.3f}]")
    print(f"  {'doubt: epistemic, aleatoric (nats)':<36} {epistemic.mean():.3f}, {aleatoric.mean():.3f}")
    if data.assembled:
        print(f"  rows that stand in no capture order: {', '.join(data.assembled)}")
    return probabilities


def draw(model: AdvancedLSTMTemporal, data: Dataset, probabilities: NDArray[np.float32], args: argparse.Namespace) -> Path:
    """Save the attention map of the attack window that the model is surest of, beside the features that spoke for it."""
    benign = family_index(data.class_names) == 0
    length, fit, test = args.sequence_length, data.splits["fit"], data.splits["test"]
    usual = window_starts(fit.segment, length)
    usual = usual[benign[fit.label[usual]]]
    reference = BenignReference.fit(gather(fit.features, usual[:: max(1, len(usual) // SHOWN)], length))
    surest = int(probabilities[:, ~benign].max(axis=1).argmax())
    window = gather(test.features, window_starts(test.segment, length)[[surest]], length)
    explanation = explain(model, window, reference, data.feature_names, data.class_names)[0]
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "attention.png"
    attention_figure(explanation).savefig(path)
    print(f"{explanation.predicted} ({explanation.confidence:.2f}): {'; '.join(explanation.reasons())}")
    return path


def main() -> None:
    """Read, train, evaluate, explain."""
    args = arguments()
    config = settings(args)
    data = load_dataset(config.data, args.seed)
    model = build(args, data)
    parameters = model.count_parameters()
    print("parameters  " + ", ".join(f"{block} {count:,}" for block, count in parameters.items()))
    train(model, data, args, config)
    print(f"figure      {draw(model, data, evaluate(model, data, args), args)}")


if __name__ == "__main__":
    launch(main)
