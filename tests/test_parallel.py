"""A training shared by processes: the same as that of one process, as far as rounding allows, and told the same to each."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from src.config import LSTMTrainingConfig
from src.models.loop import WindowBatches
from src.models.lstm_attack_predictor import LSTMConfig, RealDataTrainer, build_model
from src.models.parallel import Peers

SETTINGS = {"epochs": 3, "batch_size": 16, "class_weights": "none", "patience": 3}


def batches(shuffled: bool) -> WindowBatches:
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(130, 4, generator=draws)
    starts = torch.arange(0, 96)
    labels = (rows[starts, 0] > 0).long()
    return WindowBatches(rows, starts, labels, 5, 16, torch.Generator() if shuffled else None)


def train(folder: Path, epochs: int = 3, resume: bool = False, checkpoint: bool = True) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    model = build_model(LSTMConfig(4, 8, 1, 2, 0.0, False, 5), 0)
    trainer = RealDataTrainer(model, LSTMTrainingConfig(**{**SETTINGS, "epochs": epochs}), seed=0, device="cpu")
    history = trainer.train(batches(True), batches(False), checkpoint=folder / "checkpoint.pt" if checkpoint else None, resume=resume)
    return model.state_dict(), history


def worker(rank: int, port: int, folder: Path, resume: bool) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    peers = Peers()
    assert peers.from_first(b"told" if rank == 0 else b"") == b"told"
    assert peers.from_first(b"") == b""
    assert peers.total(np.array([1.0, rank])).tolist() == [2.0, 1.0]
    assert [part.tolist() for part in peers.share((torch.arange(5),))] == [[0, 2, 4] if rank == 0 else [1, 3]]
    assert peers.share((torch.arange(1),))[0].tolist() == [0]
    weights, history = train(folder, resume=resume, checkpoint=rank == 0)
    torch.save({"weights": weights, "history": history}, folder / f"found-{rank}.pt")
    distributed.barrier()  # nobody leaves before the other has what it sent
    distributed.destroy_process_group()


def together(folder: Path, resume: bool = False) -> list[Any]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, (port, folder, resume), nprocs=2)
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    weights, history = train(tmp_path)
    first, second = together(tmp_path)
    for name, value in weights.items():
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(first["weights"][name], second["weights"][name])
    assert first["history"] == second["history"]
    for mine, alone in zip(first["history"], history, strict=True):
        assert mine == pytest.approx(alone, rel=1e-3, abs=1e-5)


def test_two_processes_go_on_from_the_first_ones_checkpoint(tmp_path: Path) -> None:
    straight, _ = together(tmp_path)
    (tmp_path / "checkpoint.pt").unlink()
    state = torch.load(_cut_off(tmp_path), weights_only=True)
    assert state["epoch"] == 2
    resumed, other = together(tmp_path, resume=True)
    assert resumed["history"] == other["history"]
    assert len(resumed["history"]) == 3
    for name, value in straight["weights"].items():
        torch.testing.assert_close(resumed["weights"][name], value, rtol=1e-4, atol=1e-5)


def _cut_off(folder: Path) -> Path:
    """A checkpoint after two of three epochs, of a single process: who goes on does not matter."""

    class EnoughError(Exception):
        pass

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise EnoughError

    trainer = RealDataTrainer(build_model(LSTMConfig(4, 8, 1, 2, 0.0, False, 5), 0), LSTMTrainingConfig(**SETTINGS), seed=0, device="cpu")
    with pytest.raises(EnoughError):
        trainer.train(batches(True), batches(False), checkpoint=folder / "checkpoint.pt", on_epoch=stop)
    return folder / "checkpoint.pt"
