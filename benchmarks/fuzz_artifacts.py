"""Artifacts altered at any byte: one of each kind, made small, opened and used again after each alteration of one of its files.

A kind is opened as the product opens it, and all of its content is used, since what is checked late counts as well as what is checked at once. An
alteration must end in a `UserError` of one clear line. Where a JSON file was altered and what comes out is the same to the last bit, it is harmless.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.checkpoints import restore_checkpoint
from agents.learned import load_policy
from agents.training import RLTrainer, knowledge_of
from benchmarks.fuzz_targets import windows_of_events
from benchmarks.fuzzing import CRASH, NOT_FINITE, REFUSED, TRACEBACK, UNCLEAR, judge
from src.artifacts import open_artifact
from src.config import SAETrainingConfig, load_config
from src.data.bank import TraceBank
from src.data.ciciot2023 import FEATURES_39
from src.models.explanations import BenignReference
from src.models.fusion import Fusion
from src.models.lstm_attack_predictor import LSTMConfig, build_model, save_predictor
from src.models.lstm_sae import AnomalyDetector, SAEConfig, build_autoencoder
from src.models.predictor_interface import EnhancedAttackPredictor, Second, load_networks
from src.models.subspace import BenignSubspace
from src.models.temporal_lstm import ModelConfig, create_model
from src.sae import encoding
from src.sae.measures import read_array
from src.training.sae_trainer import ArrayBatches, SAETrainer
from src.watch.sensor import SiteSensor

CLASSES = ("BenignTraffic", "DDoS-UDP_Fragmentation", "XSS")
T, F = 4, len(FEATURES_39)


@dataclass(frozen=True)
class Kind:
    """One kind of artifact."""

    name: str
    path: Path
    """Folder, or single file."""
    use: Callable[[], Any]
    """Opens it, and returns all that it holds."""

    @property
    def files(self) -> list[Path]:
        """All that can be altered."""
        return [self.path] if self.path.is_file() else sorted(path for path in self.path.rglob("*") if path.is_file())


def _windows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(1, 0.5, (count, T, F)).astype(np.float32)


def _sensor() -> EnhancedAttackPredictor:
    model = build_model(LSTMConfig(F, 8, 1, len(CLASSES), 0.0, False, T), 0)
    model.scaler.fit(_windows(20, 0).reshape(-1, F))
    detector = BenignSubspace.fit(model.scaler, torch.from_numpy(_windows(30, 1)), torch.from_numpy(_windows(30, 2)))
    return EnhancedAttackPredictor(model, detector, FEATURES_39, CLASSES, _second())


def _second() -> Second:
    torch.manual_seed(0)
    temporal = create_model(ModelConfig(F, len(CLASSES), 1, T, hidden_size=8, num_heads=1, head_size=8, num_periods=2, memory_slots=4, dropout=0.0))
    rng = np.random.default_rng(0)
    members = rng.dirichlet(np.ones(len(CLASSES)), (2, 50))
    fusion = Fusion.fit(members, rng.random(50) * 0.9, rng.integers(0, len(CLASSES), 50), np.array([False, True, True]))
    return Second(temporal.eval(), fusion, 0.1)


def _small_bank() -> TraceBank:
    """Every thirtieth window of each class of the bank that ships, without successors; with rows."""
    bank = TraceBank.bundled()
    kept = np.concatenate([np.arange(first, end, 30) for split in ("calibrate", "agent", "test") for first, end in bank.ranges(split)])
    count = len(kept)
    words = {key: value for key, value in bank._words().items() if key not in ("row_names", "length")}
    arrays = {name: getattr(bank, name)[kept] for name in ("features", "sensors", "label", "split")}
    rows = np.arange(2.0 * (count + 2), dtype=np.float32).reshape(-1, 2)
    return TraceBank(**arrays, **words, successor=np.full(count, -1, np.int32), rows=rows, start=np.arange(count), row_names=("a", "b"), length=3)


def _state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def make_kinds(folder: Path) -> Iterator[Kind]:
    """One of each kind, below an empty folder."""
    bank = _small_bank()
    bank.save(folder / "bank", {})

    def use_bank() -> Any:
        found = TraceBank.load(folder / "bank")
        arrays = [np.array(getattr(found, name)) for name in ("features", "sensors", "successor", "label", "split", "rows", "start")]
        return arrays, found.raw_windows(np.arange(len(found.label))), found._words()

    yield Kind("trace bank", folder / "bank", use_bank)

    sensor, probe = _sensor(), _windows(3, 5)
    sensor.save(folder / "sensor", {})
    yield Kind("sensor", folder / "sensor", lambda: asdict(EnhancedAttackPredictor.load(folder / "sensor").read(probe)))

    assert sensor.second is not None
    stated = {"feature_names": FEATURES_39, "class_names": CLASSES, "temporal": asdict(sensor.second.model.config)}
    save_predictor(folder / "networks", sensor.model, stated, {"temporal": sensor.second.model.state_dict()})

    def use_networks() -> Any:
        base, temporal, meta = load_networks(folder / "networks")
        return _state(base), _state(temporal), meta

    yield Kind("networks", folder / "networks", use_networks)

    reference = BenignReference.fit(_windows(20, 3))
    SiteSensor(sensor, reference, 1e6, 0.5, "somewhere", sensor.read(_windows(5, 4)).table()).save(folder / "site", {})

    def use_site() -> Any:
        found = SiteSensor.load(folder / "site")
        return found.risk(probe), asdict(found.reference), found.alarm, found.largest_rate, found.ordinary, found.site

    yield Kind("sensor calibrated to a site", folder / "site", use_site)

    autoencoder = build_autoencoder(SAEConfig(F, T, (4,), (4,), 0.0), 0)
    AnomalyDetector.fit(autoencoder, _windows(30, 1), _windows(30, 2)).save(folder / "autoencoder", {})
    yield Kind("autoencoder", folder / "autoencoder", lambda: AnomalyDetector.load(folder / "autoencoder")[0].anomaly(probe))

    layout = windows_of_events(folder / "events")

    def use_encoded() -> Any:
        open_artifact(layout.encoded, encoding.KIND)
        return [np.array(read_array(path)) for path in sorted(layout.encoded.glob("*.npy"))]

    yield Kind("encoded windows", layout.encoded, use_encoded)
    yield from _agents(folder)
    yield _training(folder)


class _InterruptionError(Exception):
    """Ends a training between two checkpoints."""


def _agents(folder: Path) -> Iterator[Kind]:
    """A trained agent, and the checkpoint of one that was interrupted."""
    words = ["rl.n_envs=4", "rl.hidden_size=8", "rl.total_timesteps=128", "rl.checkpoint_steps=64", "rl.validation_steps=64", "rl.validation_episodes=2"]
    words += ["rl.ppo.n_steps=16", "rl.ppo.batch_size=32", "rl.ppo.demonstrations=0", "env.scenario=home", "env.horizon=20", "env.start_range=[2, 5]"]
    config, bank = load_config(overrides=words, environ={}), TraceBank.bundled()
    trainer = RLTrainer(config, bank, folder / "agents")
    agent = trainer.train(seed=0)
    assert (agent / "knowledge.safetensors").exists()
    policy = load_policy(agent)
    seen = np.zeros((1, policy.sight.layout.size), np.float32)

    def use_agent() -> Any:
        found = load_policy(agent)
        assert found.belief is not None
        return found.predict(seen, deterministic=True)[0], _state(found.network), vars(found.belief.knowledge), found.meta

    yield Kind("agent with its knowledge", agent, use_agent)

    path, calls = trainer.target(1).with_name(f"{trainer.target(1).name}.checkpoint"), []

    def interrupt(*metrics: Any) -> None:
        calls.append(metrics)
        if path.exists():
            raise _InterruptionError

    with contextlib.suppress(_InterruptionError):
        trainer.train(seed=1, on_metrics=interrupt)
    model, scaler = trainer._model(1, knowledge_of(config, bank))
    mark = trainer._mark(1)

    def use_checkpoint() -> Any:
        more = restore_checkpoint(path, mark, model, scaler)
        return _state(model.policy), more

    yield Kind("checkpoint of an agent", path, use_checkpoint)


def _training(folder: Path) -> Kind:
    """The checkpoint of a trained network's last epoch."""
    path, windows = folder / "network.checkpoint.pt", _windows(16, 6)

    def use() -> Any:
        model = build_autoencoder(SAEConfig(F, T, (4,), (4,), 0.0), 0)
        trainer = SAETrainer(model, SAETrainingConfig(epochs=1), seed=0)
        history = trainer.train(ArrayBatches(windows, 8, torch.Generator()), ArrayBatches(windows, 8), checkpoint=path, resume=path.exists(), identity="one")
        return _state(model), history

    use()
    return Kind("checkpoint of a network", path, use)


def content_of(found: Any) -> str:
    """Digest of all that came out."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, dict):
            for key in sorted(part):
                digest.update(str(key).encode())
                add(part[key])
        elif isinstance(part, list | tuple):
            digest.update(f"[{len(part)}".encode())
            for one in part:
                add(one)
        elif isinstance(part, torch.Tensor):
            add(part.numpy())
        elif isinstance(part, np.ndarray):
            digest.update(repr((part.dtype.str, part.shape)).encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, default=str).encode())

    add(found)
    return digest.hexdigest()


def altered(content: bytes, rng: np.random.Generator) -> bytes:
    """Another content: a bit flipped, bytes written over, deleted, inserted, added at the end, or the end cut off."""
    while True:
        found = bytearray(content)
        place, span, kind = int(rng.integers(0, max(len(found), 1))), int(rng.integers(1, 9)), int(rng.integers(0, 6))
        drawn = rng.integers(0, 256, span, dtype=np.uint8).tobytes()
        if kind == 0 and found:
            found[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            found[place : place + span] = drawn
        elif kind == 2:
            del found[place : place + span]
        elif kind == 3:
            found[place:place] = drawn if rng.random() < 0.5 else b" "
        elif kind == 4:
            found += drawn
        else:
            del found[place:]
        if bytes(found) != content:
            return bytes(found)


def check(kind: Kind, count: int, rng: np.random.Generator, every_byte: tuple[str, ...] = ()) -> dict[str, Any]:
    """A row of the table: `count` alterations at random, files chosen alike often, and a flip of every byte of the files in `every_byte`."""
    files = kind.files
    contents = {path: path.read_bytes() for path in files}
    whole, outcomes, began = content_of(kind.use()), Counter[str](), time.perf_counter()
    seen: list[str] = []

    def attempt(path: Path, content: bytes) -> None:
        path.write_bytes(content)
        try:
            found: list[str] = []
            outcome, detail = judge(lambda: found.append(content_of(kind.use())))
            if outcome not in (REFUSED, TRACEBACK, CRASH, UNCLEAR, NOT_FINITE):
                outcome = "harmless" if path.suffix == ".json" and found == [whole] else "accepted"
            outcomes[outcome] += 1
            if outcome not in (REFUSED, "harmless") and len(seen) < 5:
                seen.append(f"{path.name}: {outcome} {detail}")
        finally:
            path.write_bytes(contents[path])

    for _ in range(count):
        path = files[int(rng.integers(0, len(files)))]
        attempt(path, altered(contents[path], rng))
    for path in files:
        if path.name in every_byte:
            for place in range(len(contents[path])):
                changed = bytearray(contents[path])
                changed[place] ^= 1 << int(rng.integers(0, 8))
                attempt(path, bytes(changed))
    assert content_of(kind.use()) == whole
    total = sum(outcomes.values())
    defects = outcomes[TRACEBACK] + outcomes[UNCLEAR]
    return {
        "kind": kind.name, "files": len(files), "alterations": total, "refused": outcomes[REFUSED], "harmless": outcomes["harmless"],
        "accepted_wrongly": outcomes["accepted"], "tracebacks": defects, "seconds": round(time.perf_counter() - began, 1), "seen": "; ".join(seen),
    }  # fmt: skip


def check_all(folder: Path, count: int, seed: int = 0, every_byte: bool = True) -> list[dict[str, Any]]:
    """A row a kind; the first one's JSON files are altered at every byte, too."""
    logging.disable(logging.WARNING)
    rows = []
    try:
        for place, kind in enumerate(make_kinds(folder)):
            rng = np.random.default_rng([seed, place])
            rows.append(check(kind, count, rng, ("checksums.json", "meta.json") if every_byte and place == 0 else ()))
            print(f"{kind.name}: {rows[-1]['alterations']} alterations, {rows[-1]['refused']} refused", flush=True)
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(folder, ignore_errors=True)
    return rows
