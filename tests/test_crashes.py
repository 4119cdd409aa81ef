"""The main job is killed, interrupted, and robbed of disk, server and clock, as a user's machine would do it; nothing is lost and nothing is half written."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from benchmarks import faults

pytestmark = pytest.mark.slow

mounts = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="disks can be mounted by root on Linux only")
PHASES = (faults.START, "predictor", "autoencoder", "sensor", "ppo seed 0", "evaluation")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> faults.Straight:
    found = faults.straight(tmp_path_factory.mktemp("straight") / "artifacts")
    assert {*PHASES, "ppo seed 1"} == set(found.phases)
    assert not faults.ends_the_same(found, found.artifacts)["corrupt_artifacts"]
    return found


def check(fault: faults.Fault) -> None:
    assert not fault.wrong, f"{fault.fault}: {fault.wrong}"


@pytest.mark.parametrize("moment", range(faults.MOMENTS))
def test_killed_at_any_moment_it_goes_on_to_the_same_end(moment: int, straight: faults.Straight, tmp_path: Path) -> None:
    found = faults.killed(straight, moment, tmp_path)
    assert faults.same(found), found


@pytest.mark.parametrize("phase", PHASES)
def test_an_interrupt_ends_within_seconds(phase: str, tmp_path: Path) -> None:
    check(faults.interrupted(phase, tmp_path))


@mounts
@pytest.mark.parametrize("megabytes", faults.SIZES)
def test_a_full_disk_is_said_in_one_line_and_the_run_goes_on_once_there_is_room(megabytes: int, straight: faults.Straight, tmp_path: Path) -> None:
    check(faults.full_disk(straight, tmp_path / "disk", megabytes))


@mounts
def test_a_read_only_folder_is_said_in_one_line(tmp_path: Path) -> None:
    check(faults.read_only_from_the_start(tmp_path / "disk"))


def test_a_file_in_place_of_the_folder_is_said_in_one_line(tmp_path: Path) -> None:
    check(faults.no_folder(tmp_path / "file"))


@mounts
def test_a_folder_that_turns_read_only_is_said_in_one_line_and_the_run_goes_on_later(straight: faults.Straight, tmp_path: Path) -> None:
    check(faults.read_only_midway(straight, tmp_path / "disk"))


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSTOP])
def test_a_tracking_server_that_goes_away_costs_one_warning(by: signal.Signals, straight: faults.Straight, tmp_path: Path) -> None:
    check(faults.server_away(straight, tmp_path / "tracked", by))


def test_a_tracking_server_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    check(faults.no_server(tmp_path))


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="the clock wants a C compiler, on Linux")
def test_a_clock_that_steps_back_changes_nothing(straight: faults.Straight, tmp_path: Path) -> None:
    check(faults.clock_back(straight, tmp_path / "clock"))
