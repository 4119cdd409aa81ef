"""How fast is the temporal LSTM, and how fast do the sensors read? `python -m benchmarks.temporal_speed [--quick]`.

The default model reads and learns batches of 32 windows of 100 rows of 115 features on two threads, in turn with a plain `nn.LSTM` stack of as many
layers as it has levels, whose width is chosen for equal multiply-adds. Then the sensors of the main job (10 rows of 39 features, 17 classes) read
windows on one thread, through torch and through ONNX Runtime (`torch.compile` took minutes to compile for each size, and is left out). A path
counts only if what it says is what eager torch says, to 1e-5.

Everything is timed in rounds: each times every contestant once, in an order drawn anew, so that whatever else the machine does meets
all of them alike. Figures are medians over rounds, ratios are taken within a round, and their intervals come from resampling rounds.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common import Gate, launch, parser, write_result
from src.config import SAEModelConfig
from src.evaluation.statistics import interval
from src.models.loop import seeded
from src.models.lstm_attack_predictor import LSTMConfig, build_model
from src.models.lstm_sae import AnomalyDetector, SAEConfig, build_autoencoder
from src.models.subspace import BenignSubspace
from src.models.temporal_lstm import AdvancedLSTMTemporal, ModelConfig, create_model, get_config

BATCH, ROWS, FEATURES = 32, 100, 115
"""Of the gate."""
SENSOR_ROWS, SENSOR_FEATURES, SENSOR_CLASSES = 10, 39, 17
"""Of the main job on CICIoT2023."""
EXACT = 1e-5
"""Largest difference of a probability, or of a rebuilt value in scaled units, that a path may show."""
CONFIDENCE = 0.95


def main() -> None:
    """Measure, print and write."""
    quick = parser(__doc__).parse_args().quick
    rng = np.random.default_rng(0)
    torch.set_num_threads(2)
    config = get_config("default")
    with seeded(0, 0):
        model = create_model(config)
        width = equal_width(config)
        stack = nn.LSTM(FEATURES, width, config.num_levels, batch_first=True)
        windows, labels = torch.randn(BATCH, ROWS, FEATURES), torch.randint(0, 2, (BATCH,))
    names = {"model": "temporal LSTM, default", "stack": f"plain nn.LSTM, {config.num_levels} layers of {width}"}
    spent = {
        "forward": rounds({"model": reading(model, windows), "stack": reading(stack, windows)}, 7 if quick else 41, rng),
        "training step": rounds({"model": learning(model, windows, labels), "stack": learning(stack, windows, labels)}, 3 if quick else 15, rng),
    }
    tables = {
        f"{BATCH} windows of {ROWS} x {FEATURES}, two threads": [
            {"what": what, "who": names[who], **summary(values[who]), "times the stack": float(np.median(values[who] / values["stack"]))}
            for what, values in spent.items()
            for who in names
        ],
        "parameters": [{"block": block, "parameters": count} for block, count in model.count_parameters().items()],
        "multiply-adds a batch": [
            {"who": names["model"], "in LSTMs": multiply_adds(config)[0], "elsewhere": multiply_adds(config)[1]},
            {"who": names["stack"], "in LSTMs": stack_multiply_adds(width, config.num_levels), "elsewhere": 0},
        ],
        "memory of a process": memory(),
    }
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tables["sensors, one thread"] = sensors(Path(folder), quick, rng)
    forward = spent["forward"]
    gates = {
        "D12.forward": gate(
            f"seconds of a forward pass of the default model, {BATCH} x {ROWS} x {FEATURES}, evaluation, 2 threads", forward["model"], 0.30, rng
        ),
        "D12.ratio": gate(
            "forward pass of the default temporal LSTM, its time as a multiple of a plain nn.LSTM stack of equal multiply-adds",
            forward["model"] / forward["stack"],
            1.5,
            rng,
        ),
    }
    torch.set_num_threads(2)  # what the gates were measured with
    write_result("temporal_speed", "synthetic", gates, tables, quick)


def lstm_multiply_adds(inputs: int, hidden: int, rows: int, directions: int = 1) -> int:
    """Of one LSTM layer over a batch."""
    return BATCH * rows * directions * 4 * hidden * (inputs + hidden)


def multiply_adds(config: ModelConfig) -> tuple[int, int]:
    """Multiply-adds of a forward pass over a batch: in the LSTMs, and in all other matrix products (those of a window's summary are left out)."""
    hidden, inner, inside = config.hidden_size, config.num_heads * config.head_size, 0
    elsewhere = BATCH * ROWS * FEATURES * 2 * hidden
    lengths = [ROWS]
    while len(lengths) < config.num_levels:
        lengths.append(-(-lengths[-1] // 2))
    for level, rows in enumerate(lengths):
        inside += lstm_multiply_adds(hidden if level == 0 else 2 * hidden, hidden, rows, 2)
        elsewhere += BATCH * rows * 2 * hidden * hidden  # projection
        if level > 0:
            elsewhere += BATCH * rows * 4 * hidden * hidden + BATCH * lengths[level - 1] * 2 * hidden * hidden  # gates up and down
    elsewhere += config.attention_layers * BATCH * (4 * ROWS * hidden * inner + 2 * ROWS * ROWS * inner)
    return inside, elsewhere


def stack_multiply_adds(width: int, layers: int) -> int:
    """Of a plain stack."""
    return sum(lstm_multiply_adds(FEATURES if layer == 0 else width, width, ROWS) for layer in range(layers))


def equal_width(config: ModelConfig) -> int:
    """Width at which a plain stack of as many layers as levels needs the most multiply-adds that are no more than the model's."""
    width = 1
    while stack_multiply_adds(width + 1, config.num_levels) <= sum(multiply_adds(config)):
        width += 1
    return width


def reading(network: nn.Module, windows: Tensor) -> Callable[[], Any]:
    """A forward pass in evaluation mode."""

    def run() -> Any:
        network.eval()
        with torch.inference_mode():
            return network(windows)

    return run


def learning(network: nn.Module, windows: Tensor, labels: Tensor) -> Callable[[], Any]:
    """A training step with AdamW; the plain stack is read out by its first two units."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)

    def run() -> None:
        network.train()
        found = network(windows)
        loss = functional.cross_entropy(found["logits"], labels) + found["kl"] / 1e4 if isinstance(found, dict) else None
        if loss is None:
            loss = functional.cross_entropy(found[0][:, -1, :2], labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return run


def rounds(runs: Mapping[str, Callable[[], Any]], count: int, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """(count,) seconds of each, once a round in an order drawn anew, after two rounds that warm up."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(count + 2):
        for name in rng.permutation(list(runs)):
            began = time.perf_counter()
            runs[name]()
            spent[name].append(time.perf_counter() - began)
    return {name: np.array(values[2:]) for name, values in spent.items()}


def memory() -> list[dict[str, Any]]:
    """Peak resident memory of processes that each do one thing, above that of one that only builds the model."""
    tasks = {
        "forward": ("forward", ROWS, 0),
        "training step": ("training", ROWS, 0),
        f"training step, {2 * ROWS} rows": ("training", 2 * ROWS, 0),
        f"training step, {2 * ROWS} rows, gradient checkpointing": ("training", 2 * ROWS, 1),
    }
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        built = pool.apply(peak, ("nothing", ROWS, 0))
        found = [(name, pool.apply(peak, task)) for name, task in tasks.items()]
    return [{"what": "model built", "MB": built, "MB above it": 0.0}, *({"what": name, "MB": value, "MB above it": value - built} for name, value in found)]


def peak(task: str, rows: int, checkpoint_length: int) -> float:
    """Peak resident megabytes of this process after a task of the default model on a batch of windows of so many rows."""
    torch.set_num_threads(2)
    with seeded(0, 0):
        model = create_model("default", sequence_length=rows, checkpoint_length=checkpoint_length)
        windows, labels = torch.randn(BATCH, rows, FEATURES), torch.randint(0, 2, (BATCH,))
        if task != "nothing":
            (reading(model, windows) if task == "forward" else learning(model, windows, labels))()
    # The kernel's own mark of this process: that of `getrusage` is handed down from the parent.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


class Probabilities(nn.Module):
    """The calibrated probabilities of a sensor's model as one graph, for export."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, windows: Tensor) -> Tensor:
        """(B, C) of raw windows (B, T, F)."""
        if isinstance(self.model, AdvancedLSTMTemporal):
            return torch.softmax(self.model.output.samples(self.model.embed(windows)) / self.model.temperature, dim=-1).mean(dim=0)
        return torch.softmax(self.model(windows) / self.model.temperature, dim=-1)


def sensors(folder: Path, quick: bool, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Windows a second of each sensor by path and batch; the fastest exact path of each is marked."""
    with seeded(0, 0):
        base = build_model(LSTMConfig(SENSOR_FEATURES, num_classes=SENSOR_CLASSES, sequence_length=SENSOR_ROWS), 0).eval()
        temporal = create_model("fast_training", input_size=SENSOR_FEATURES, num_classes=SENSOR_CLASSES, sequence_length=SENSOR_ROWS).eval()
        windows = 10 * torch.randn(2048, SENSOR_ROWS, SENSOR_FEATURES)
    subspace = BenignSubspace.fit(base.scaler, windows[:1024], windows[1024:])
    found: list[dict[str, Any]] = []
    shape = SAEModelConfig()
    sae = build_autoencoder(SAEConfig(SENSOR_FEATURES, SENSOR_ROWS, shape.encoder_units, shape.decoder_units, shape.dropout), 0, windows[0].numpy()).eval()

    detector = AnomalyDetector.fit(sae, windows[:1024].numpy(), windows[1024:].numpy())

    def rebuilt(part: Tensor) -> Tensor:
        with torch.inference_mode():
            return sae(part)

    for name, model, eager in (
        ("base LSTM", Probabilities(base), base.predict_attack_probability),
        ("temporal LSTM, fast_training", Probabilities(temporal), temporal.predict_attack_probability),
        ("LSTM autoencoder, reconstruction", sae, rebuilt),
        ("LSTM autoencoder, anomaly", None, lambda part: detector.anomaly(part.numpy())),
        ("anomaly subspace", None, lambda part: subspace.anomaly(part.numpy())),
    ):
        rows = []
        for size in (128, 512, 2048):
            part = windows[:size]
            runs: dict[str, Callable[[], Any]] = {"torch": lambda part=part, eager=eager: eager(part)}
            if model is not None:
                runs["onnxruntime"] = exported(model, part, folder / f"{name.split()[0]}{size}.onnx")
            expected = np.asarray(runs["torch"]())
            spent = rounds(runs, 3 if quick else 15, rng)
            for path, seconds in spent.items():
                difference = float(np.abs(np.asarray(runs[path]()) - expected).max())
                rate = {"windows a second": size / float(np.median(seconds)), "slowest": size / seconds.max(), "fastest": size / seconds.min()}
                rows.append({"sensor": name, "path": path, "batch": size, **rate, "largest difference": difference, "exact": difference <= EXACT})
        best = max((row for row in rows if row["exact"]), key=lambda row: row["windows a second"])
        found += [{**row, "fastest exact": row is best} for row in rows]
    return found


def exported(model: nn.Module, windows: Tensor, path: Path) -> Callable[[], Any]:
    """ONNX Runtime on one thread, exported for batches of this size."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter warns of its successor, which needs a package more
        torch.onnx.export(model.eval(), (windows,), str(path), input_names=["windows"], output_names=["read"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session, fed = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]), {"windows": windows.numpy()}
    return lambda: session.run(None, fed)[0]


def summary(seconds: NDArray[np.float64]) -> dict[str, float]:
    """Median, fastest and slowest round."""
    return {"seconds": float(np.median(seconds)), "fastest": float(seconds.min()), "slowest": float(seconds.max())}


def gate(what: str, values: NDArray[np.float64], target: float, rng: np.random.Generator) -> Gate:
    """At most `target`, in the median round."""
    samples = np.median(values[rng.integers(0, len(values), (2000, len(values)))], axis=1)
    return Gate(what, float(np.median(values)), target, "<=", *interval(samples, CONFIDENCE))


if __name__ == "__main__":
    launch(main)
