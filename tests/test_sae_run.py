"""The runner, as a user starts it: what it runs, what it refuses, what its exit status says. All traffic is generated."""

import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from src.errors import UserError
from src.sae.layout import Layout, finish
from src.sae.run import NAMES, Stage, carry_out, chosen, flags, plan, run
from src.training.sae_trainer import SAETrainer
from tests.nbaiot import write_numbered

ROOT = Path(__file__).parents[1]
SMALL = [
    *("--seq-len", "5", "--stride", "2", "--epochs", "11", "--encoder-units", "8", "--decoder-units", "8", "--batch-size", "16"),
    *("--stopping-strategy", "standard", "--patience", "11", "--target-fpr", "0.2"),
]


def start(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    """`python -m src.sae.run` in a process of its own, on one thread like the tests, with nothing to read from."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "cwd": ROOT, "timeout": 120, "env": environment, **more}
    return subprocess.run([sys.executable, "-m", "src.sae.run", *words], check=False, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbered(tmp_path_factory.mktemp("raw"), 80, (1,))


@pytest.fixture(scope="module")
def whole(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, list[str], subprocess.CompletedProcess[str]]:
    """All five stages."""
    out = tmp_path_factory.mktemp("out")
    words = ["--dataset", "nbaiot", "--version", "v1", "--root", str(raw), "--out", str(out), *SMALL]
    return Layout(out, "nbaiot", "v1"), words, start(*words)


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, output and errors of a run in this process."""
    capsys.readouterr()
    status = finish(run, words)
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def copied(whole: tuple[Layout, list[str], object], folder: Path) -> tuple[Layout, list[str]]:
    """The same artifacts elsewhere, and the words that go on with them."""
    layout, words, _ = whole
    shutil.copytree(layout.root, folder / "out")
    return Layout(folder / "out", "nbaiot", "v1"), [*words, "--out", str(folder / "out")]


def test_all_stages_run_unattended_and_say_so(whole: tuple[Layout, list[str], subprocess.CompletedProcess[str]]) -> None:
    layout, _, done = whole
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout  # no colours where there is no terminal
    lines = done.stdout.splitlines()
    for number, name in NAMES.items():
        assert f"stage {number}: {name}" in lines
        assert sum(line.startswith(f"done: stage {number}, {name}, in ") for line in lines) == 1
    assert [line.split(":")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/11", "epoch 10/11"]
    assert any(line.startswith("stopped after epoch") for line in lines)
    assert any(line.startswith("done: 5 of 5 stages succeeded") for line in lines)
    named = [Path(line.split()[1]) for line in lines[-5:]]
    assert named == [layout.parquet, layout.encoded, layout.model, layout.eval, layout.vis]
    assert all(path.exists() for path in named)
    assert len(list(layout.vis.glob("*.png"))) == 6
    assert json.loads((layout.eval / "evaluation_results.json").read_text())["settings"]["target_fpr"] == 0.2


def test_the_plan_shows_commands_that_do_the_same(whole: tuple[Layout, list[str], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, words, _ = whole
    status, shown, _ = told([*words, "--out", str(tmp_path / "out"), "--dry-run"], capsys)
    assert status == 0
    assert not (tmp_path / "out").exists()
    commands = [shlex.split(line) for line in shown.splitlines() if line.startswith("  python -m ")]
    assert [command[2] for command in commands] == [f"src.sae.{name}" for name in NAMES.values()]
    for command in commands[:4]:
        module = __import__(command[2], fromlist=["run"])
        assert finish(module.run, command[3:]) == 0
    again = Layout(tmp_path / "out", "nbaiot", "v1")
    np.testing.assert_array_equal(np.load(again.encoded / "X_test_sequences.npy"), np.load(layout.encoded / "X_test_sequences.npy"))
    assert (again.model / "detector.safetensors").read_bytes() == (layout.model / "detector.safetensors").read_bytes()
    np.testing.assert_array_equal(np.load(again.eval / "predictions.npy"), np.load(layout.eval / "predictions.npy"))


def test_a_failed_stage_stops_the_run_and_is_named_and_the_exit_status_tells(
    whole: tuple[Layout, list[str], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout, words = copied(whole, tmp_path)
    (layout.encoded / "y_train.npy").write_bytes(b"damaged")
    before = (layout.eval / "meta.json").read_bytes()
    status, shown, errors = told([*words, "--start-from", "3"], capsys)
    assert (status, errors) == (1, "")
    assert "failed: stage 3, training, after" in shown
    assert "failed: 0 of 3 stages succeeded" in shown
    assert "failed: stage 3, training: artifact" in shown
    assert "'y_train.npy' was altered" in shown
    assert "failed: stage 5, visualisation: not run" in shown
    assert "stage 4: evaluation" not in shown
    assert (layout.eval / "meta.json").read_bytes() == before
    assert f"evaluation     {layout.eval} (of an earlier run)" in shown


def test_a_run_that_goes_on_after_a_failure_still_fails(whole: tuple[Layout, list[str], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, words = copied(whole, tmp_path)
    layout.parquet.write_bytes(b"damaged")
    status, shown, _ = told([*words, "--start-from", "2", "--stop-at", "4", "--epochs", "1", "--on-failure", "continue"], capsys)
    assert status == 1
    assert "failed: stage 2, encoding, after" in shown
    assert f"note: '{layout.encoded}' is of an earlier run" in shown
    assert "done: stage 4, evaluation, in" in shown
    assert "failed: 2 of 3 stages succeeded" in shown


def test_a_run_that_goes_on_does_not_use_what_is_not_there(whole: tuple[Layout, list[str], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, words = copied(whole, tmp_path)
    (layout.encoded / "y_val.npy").write_bytes(b"damaged")
    shutil.rmtree(layout.model)
    status, shown, _ = told([*words, "--start-from", "3", "--stop-at", "4", "--on-failure", "continue"], capsys)
    assert status == 1
    assert f"failed: stage 4, evaluation: '{layout.model}' is missing" in shown
    assert not any(line.startswith("  training ") for line in shown.splitlines())  # no path in the summary that is not there


def test_ask_stops_where_there_is_nobody_to_ask(whole: tuple[Layout, list[str], object], tmp_path: Path) -> None:
    layout, words = copied(whole, tmp_path)
    (layout.encoded / "y_train.npy").write_bytes(b"damaged")
    done = start(*words, "--start-from", "3", "--on-failure", "ask")
    assert done.returncode == 1
    assert "stopped: --on-failure ask, and there is no terminal to ask on" in done.stdout
    assert "not run" in done.stdout


def test_ask_asks_on_a_terminal(whole: tuple[Layout, list[str], object], tmp_path: Path) -> None:
    layout, words = copied(whole, tmp_path)
    (layout.encoded / "y_train.npy").write_bytes(b"damaged")
    ours, theirs = pty.openpty()
    try:
        os.write(ours, b"y\n")  # waits in the terminal until it is read
        done = start(*words, "--start-from", "3", "--stop-at", "4", "--on-failure", "ask", stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 1
    assert "go on with stage 4, evaluation? [y/N]" in done.stdout
    assert "stage 4: evaluation" in done.stdout


def test_ask_stops_where_there_is_no_input_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Callable[[str], None]) -> None:
        raise UserError("broken")

    monkeypatch.setattr("sys.stdin", None)
    stages = [Stage(3, (), (), "", fails), Stage(4, (), (), "", lambda _: pytest.fail("went on"))]
    assert carry_out(stages, "ask", lambda _: None) == {3: "broken", 4: "not run"}


def test_an_artifact_caught_between_two_renames_is_found(whole: tuple[Layout, list[str], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, words = copied(whole, tmp_path)
    layout.model.rename(layout.model.with_name(f".{layout.model.name}.x1y2.old"))
    status, shown, errors = told([*words, "--start-from", "4", "--stop-at", "4"], capsys)
    assert (status, errors) == (0, ""), shown
    assert layout.model.exists()


@pytest.mark.parametrize(("answer", "went_on"), [("y", True), ("Yes ", True), ("", False), ("n", False)])
def test_only_a_yes_goes_on(monkeypatch: pytest.MonkeyPatch, answer: str, went_on: bool) -> None:
    def fails(_: Callable[[str], None]) -> None:
        raise UserError("broken")

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    seen: list[str] = []
    stages = [Stage(3, (), (), "", fails), Stage(4, (), (), "", lambda _: seen.append("ran"))]
    assert carry_out(stages, "ask", lambda _: None) == {3: "broken"} | ({} if went_on else {4: "not run"})
    assert bool(seen) == went_on


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--start-from", "6"], "--start-from 6: no such stage; allowed: 1 (aggregation)"),
        (["--skip-stages", "0"], "no such stage"),
        (["--start-from", "4", "--stop-at", "3"], "no stage is left"),
        (["--start-from", "1", "--stop-at", "2", "--skip-stages", "1", "2"], "no stage is left"),
        (["--on-failure", "contnue"], "did you mean 'continue'"),
        (["--config-preset", "basic"], "does not fit data set 'nbaiot'"),
        (["--config-preset", "basic", "--start-from", "3"], "does not fit data set 'nbaiot'"),
        (["--dataset", "nbaiott"], "did you mean 'nbaiot'"),
        (["--root", "/nowhere/at/all"], "does not exist"),
        (["--subdir", "nothing"], "does not exist"),
        (["--learning-rate", "0"], "learning_rate"),
        (["--target-fpr", "1"], "--target-fpr is 1"),
        (["--seq-len", "1"], "--seq-len is 1"),
        (["--stopping-strategy", "smrt"], "did you mean 'smart'"),
        (["--version", "other", "--start-from", "3"], "stage 3 (training) needs"),
        (["--version", "other", "--skip-stages", "2"], "let stage 2 run too"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_wrong_input_ends_in_one_line_before_anything_runs(
    whole: tuple[Layout, list[str], object], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    layout, given, _ = whole
    before = sorted((str(path), path.stat().st_mtime_ns) for path in layout.root.rglob("*"))
    status, shown, errors = told([*given, *words], capsys)
    assert status == 2
    assert errors.startswith("error: ")
    assert message in errors
    assert (errors.count("\n"), shown) == (1, "")
    assert sorted((str(path), path.stat().st_mtime_ns) for path in layout.root.rglob("*")) == before


def test_wrong_input_is_status_2_for_the_shell() -> None:
    done = start("--dataset", "nbaiot", "--version", "v1")
    assert done.returncode == 2
    assert done.stderr == "error: stage 1 needs --root FOLDER, the raw files of nbaiot; or leave it out with --start-from 2\n"
    assert done.stdout == ""


def test_stages_are_chosen_by_all_three_flags() -> None:
    def found(*words: str) -> list[int]:
        return chosen(flags().parse_args(["--dataset", "nbaiot", "--version", "v1", *words]))

    assert found() == [1, 2, 3, 4, 5]
    assert found("--start-from", "3") == [3, 4, 5]
    assert found("--start-from", "2", "--stop-at", "4", "--skip-stages", "3") == [2, 4]


def test_a_preset_is_not_wanted_from_training_on(whole: tuple[Layout, list[str], object], tmp_path: Path) -> None:
    folder = tmp_path / "encoded" / "lstm-sae-bigbase-v1"
    folder.mkdir(parents=True)
    words = ["--dataset", "bigbase", "--version", "v1", "--out", str(tmp_path), "--stop-at", "3"]
    assert [stage.number for stage in plan(flags().parse_args([*words, "--start-from", "3"]), Layout(tmp_path, "bigbase", "v1"))] == [3]
    with pytest.raises(UserError, match="basic, extended"):
        plan(flags().parse_args([*words, "--root", str(tmp_path)]), Layout(tmp_path, "bigbase", "v1"))


def test_the_same_words_and_resume_go_on_with_an_interrupted_training(
    whole: tuple[Layout, list[str], object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*whole[1], "--out", str(tmp_path), "--stop-at", "3"]

    def stop(_: object, row: dict[str, float]) -> None:
        if row["epoch"] == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("src.sae.training._Progress.__call__", stop)
        patch.setattr("src.artifacts.command", lambda: "the words without --resume")
        assert told(words, capsys)[0] == 130
    layout = Layout(tmp_path, "nbaiot", "v1")
    earlier = (layout.encoded / "meta.json").read_bytes()
    epochs, train_epoch = [], SAETrainer.train_epoch
    monkeypatch.setattr(SAETrainer, "train_epoch", lambda self, batches: epochs.append(1) or train_epoch(self, batches))
    shown = told([*words, "--resume"], capsys)
    assert shown[0] == 0, shown
    assert (layout.encoded / "meta.json").read_bytes() != earlier, "stage 2 ran again, at another time and by other words"
    assert len(epochs) == 4, "7 of 11 epochs were done"
    name = "detector.safetensors"
    assert (layout.model / name).read_bytes() == (whole[0].model / name).read_bytes()


def test_an_unforeseen_error_is_a_failure_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_: Callable[[str], None]) -> None:
        raise MemoryError("no room")

    said: list[str] = []
    stages = [Stage(number, (), (), "", act) for number, act in ((1, lambda _: None), (2, broken), (3, lambda _: None))]
    assert carry_out(stages, "continue", said.append) == {2: "MemoryError: no room"}
    assert carry_out(stages, "stop", said.append) == {2: "MemoryError: no room", 3: "not run"}
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupted_run_is_no_success() -> None:
    def interrupted(_: Callable[[str], None]) -> None:
        raise KeyboardInterrupt

    stages = [Stage(1, (), (), "", interrupted)]
    assert finish(lambda _: int(bool(carry_out(stages, "continue", lambda _: None)))) == 130
