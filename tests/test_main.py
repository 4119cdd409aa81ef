"""The command line, as a user runs it, at tiny sizes."""

import contextlib
import itertools
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import main as command_line
from agents.baselines import cusum_candidates, playbook_candidates, threshold_candidates
from agents.bayes import bayes_candidates
from benchmarks.faults import TINY
from benchmarks.report import leaderboard
from src.artifacts import open_artifact
from src.config import Config, Section, leaves, load_config
from src.data.bank import TraceBank
from src.data.ciciot2023 import FEATURES_39, FEATURES_46
from src.pipeline import start
from src.tracking import mlflow  # not mlflow itself: it must find its environment set when it is imported

SHARED = Path(__file__).parents[2] / "shared" / "data" / "ciciot2023"


def words(artifacts: Path, phase: str, *more: str) -> list[str]:
    return ["--phase", phase, *(part for item in [*TINY, f"compute.artifacts={artifacts}", *more] for part in ("--set", item))]


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the tuning grids: these tests are about the plumbing."""
    thin_grids(monkeypatch)


def thin_grids(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("agents.benchmark.threshold_candidates", lambda layout, signal: list(threshold_candidates(layout, signal))[::20])
    patch.setattr("agents.benchmark.cusum_candidates", lambda layout: list(cusum_candidates(layout))[::10])
    patch.setattr("agents.benchmark.playbook_candidates", lambda layout: list(playbook_candidates(layout))[::10])
    patch.setattr("agents.benchmark.bayes_candidates", lambda *given: itertools.islice(bayes_candidates(*given), 3))
    patch.setattr("agents.benchmark.EXPLOITS", 5)


@pytest.fixture(scope="module")
def read_keys() -> Iterator[set[tuple[type, str]]]:
    """Settings that product code read while the module's runs went on."""
    seen: set[tuple[type, str]] = set()
    plain = Section.__getattribute__
    root = Path(__file__).parents[1]
    own = {str(root / "src" / "config.py")}

    def watched(self: Section, name: str) -> object:
        caller = sys._getframe(1).f_code.co_filename
        if name in type(self).model_fields and caller.startswith((str(root / "src"), str(root / "envs"), str(root / "agents"))) and caller not in own:
            seen.add((type(self), name))
        return plain(self, name)

    Section.__getattribute__ = watched  # type: ignore[method-assign]
    yield seen
    del Section.__getattribute__


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, read_keys: set[tuple[type, str]]) -> Path:
    """Artifacts of one `--phase all`."""
    artifacts = tmp_path_factory.mktemp("all") / "artifacts"
    with pytest.MonkeyPatch.context() as patch:
        thin_grids(patch)
        assert command_line.main(words(artifacts, "all")) == 0
    return artifacts


def runs_folder(artifacts: Path) -> Path:
    (folder,) = (artifacts / "runs").iterdir()
    return folder


def test_everything_is_written(whole_run: Path) -> None:
    folder = runs_folder(whole_run)
    assert {path.name for path in folder.iterdir()} == {
        "config.yml",
        "run.json",
        "curves.json",
        "results.json",
        "report.html",
        "episode.jsonl",
        "episode.html",
        "figures",
    }
    assert {path.name for path in (folder / "figures").iterdir()} - {"attention.png"} == {
        f"{name}.png" for name in ("comparison", "learning", "episode", "profile", "attackers", "safety", "confusion", "reliability")
    }  # a picture of attention is there only where the hardly trained network calls an attack rightly
    results = json.loads((folder / "results.json").read_text())
    assert results["data"] == "synthetic"
    assert {"name", "command", "commit", "data", "seconds", "machine", "gates", "tables"} == set(results)
    assert [row["policy"] for row in results["tables"]["policies"]][-2:] == ["agent", "planner"]
    assert {"main.noop", "G5.score", "G5.drop", "G5.noise.risk", "G5.shuffled", "G5.exploits"} <= set(results["gates"])
    assert "synthetic profile" in (folder / "report.html").read_text()
    (sensor,), (networks,), (autoencoder,) = ((whole_run / room).iterdir() for room in ("sensors", "networks", "autoencoders"))
    for kind, place in (("lstm-predictor", sensor / "predictor"), ("trace-bank", sensor / "bank"), ("lstm-predictor", networks), ("lstm-sae", autoencoder)):
        open_artifact(place, kind)
    assert TraceBank.load(sensor / "bank").sensor == "fused sensor"
    leftovers = [
        path
        for place in ("runs", "networks", "autoencoders", "sensors", "agents")
        for path in (whole_run / place).rglob("*")
        if re.search(r"^\.|checkpoint|tmp", path.name)
    ]
    assert leftovers == []
    assert load_config(folder / "config.yml", environ={}).rl.n_envs == 16


def test_mlflow_reads_back(whole_run: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{whole_run / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "iot-defense"]
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    named = {run.info.run_name: run for run in runs}
    assert {"predictor", "autoencoder", "sensor", "ppo seed 0", "ppo seed 1", "evaluation"} <= set(named)
    assert parents[0].data.params["rl.n_envs"] == "16"
    assert parents[0].data.tags["data_source"] == "synthetic profile"
    assert {"return/agent", "return/best_constant", "return/planner", "score/H", "score/H_held_out", "predictor/macro_f1"} <= set(parents[0].data.metrics)
    for run in runs:  # whichever is filtered, grouped or compared by
        assert {"phase", "algorithm", "scenario", "split", "sensors", "seed", "data_source"} <= set(run.data.tags), run.info.run_name
    assert {run.data.tags["phase"] for run in runs} == {"all", "lstm", "sae", "sensor", "rl", "eval"}
    assert [named[name].data.tags["split"] for name in ("predictor", "ppo seed 1", "evaluation")] == ["fit", "agent", "test"]
    seeds = [named[f"ppo seed {seed}"].data for seed in (0, 1)]
    assert [data.tags["seed"] for data in seeds] == [data.params["compute.seed"] for data in seeds] == ["0", "1"]
    assert seeds[0].params["rl.ppo.gamma"] == "0.995"
    curve = client.get_metric_history(parents[0].info.run_id, "rollout/reward_mean")
    last = [data.metrics["rollout/reward_mean"] for data in seeds]
    assert (curve[-1].step, curve[-1].value) == (2048, pytest.approx(sum(last) / 2))
    files = {item.path for item in client.list_artifacts(parents[0].info.run_id) if not item.is_dir}
    assert {"comparison.png", "learning.png"} <= files  # not in a folder: MLflow's compare page shows only such
    metrics = named["evaluation"].data.metrics
    for policy in ("agent", "no-op", "planner", "threshold_on_risk"):
        for measure in ("reward_mean", "length_mean", "share_restore", "end_overrun", "end_evicted", "end_horizon"):
            assert f"eval/{policy}/{measure}" in metrics
    assert metrics["eval/agent/reward_mean"] <= 0
    assert {"eval_held_out/agent/iqm_low", "eval_attack_free/playbook/false_isolations_per_device_day"} <= set(metrics)
    learned = client.get_metric_history(named["ppo seed 1"].info.run_id, "rollout/reward_mean")
    assert learned[-1].step == 2048
    for model in ("attack-predictor", "defence-agent"):
        assert client.get_model_version_by_alias(model, "champion").run_id in {run.info.run_id for run in runs}


def test_every_setting_is_live(whole_run: Path, read_keys: set[tuple[type, str]]) -> None:
    others = tuple(f"rl.{name}." for name in ("a2c", "dqn", "qrdqn", "maskable_ppo", "recurrent_ppo"))  # tests/test_agents.py tries each
    others += ("rl.rllib_ppo.", "compute.address", "compute.workers")  # tests/test_cluster.py
    dead = [key for key, section in leaves().items() if (section, key.rsplit(".", 1)[-1]) not in read_keys and not key.startswith(others)]
    assert dead == []


def test_what_reaches_the_kernel_is_read_there() -> None:
    from envs import attackers, dynamics

    source = Path(dynamics.__file__).read_text()
    for table in (attackers.PROFILE, dynamics.RULES, dynamics.CONTROL):
        for name in table.names or ():
            assert re.search(rf"\.{name}\b", source), name


def test_phases_reuse_what_they_need_and_the_same_seed_gives_the_same_numbers(whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((runs_folder(whole_run) / "results.json").read_text())["tables"]["policies"]
    artifacts = tmp_path / "artifacts"
    assert command_line.main(words(artifacts, "eval")) == 0  # trains what is missing first
    assert json.loads((runs_folder(artifacts) / "results.json").read_text())["tables"]["policies"] == before
    capsys.readouterr()
    assert command_line.main(words(artifacts, "eval")) == 0
    assert "training" not in capsys.readouterr().out


def test_variants_are_trained_with_the_same_seeds_and_compared(whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = tmp_path / "artifacts"
    for room in ("networks", "autoencoders", "sensors", "agents"):
        shutil.copytree(whole_run / room, artifacts / room)
    variants = "rl.variants={A2C: {algorithm: a2c, a2c.demonstrations: 50}, flat network: {network: flat}}"
    assert command_line.main(words(artifacts, "eval", variants)) == 0
    out = capsys.readouterr().out
    assert "training agent" not in out  # it is the same, whatever else is trained
    assert all(f"training {group}, seed {seed}" in out for group in ("A2C", "flat network") for seed in (0, 1))
    assert "groups of agents" in out
    tables = json.loads((runs_folder(artifacts) / "results.json").read_text())["tables"]
    assert [row["policy"] for row in tables["policies"]][-4:] == ["agent", "A2C", "flat network", "planner"]
    assert [(row["side"], row["agent"]) for row in tables["scores"]] == [
        (side, name) for side in ("seen", "held out") for name in ("agent", "A2C", "flat network")
    ]
    before = json.loads((runs_folder(whole_run) / "results.json").read_text())["tables"]["policies"]
    assert [row for row in tables["policies"] if row["policy"] not in ("A2C", "flat network")] == before
    client = mlflow.MlflowClient(f"sqlite:///{artifacts / 'mlflow.db'}")
    named = {run.info.run_name: run.data for run in client.search_runs([found.experiment_id for found in client.search_experiments()])}
    assert named["A2C seed 1"].tags["algorithm"] == named["A2C seed 1"].params["rl.algorithm"] == "a2c"
    assert named["flat network seed 0"].params["rl.network"] == "flat"


@pytest.mark.parametrize(
    ("variants", "told"),
    [
        ("{A2C: {algorthm: a2c}}", "rl.variants.A2C: unknown setting 'rl.algorthm': did you mean 'rl.algorithm'?"),
        ("{A2C: {algorithm: sac}}", "rl.variants.A2C: settings: rl.algorithm: Input should be"),
        ("{agent: {algorithm: a2c}}", "'agent' cannot name a group"),
        ("{a/b: {algorithm: a2c}}", "'a/b' cannot name a group"),
        ("{more: {seeds: 4}}", "'seeds' is the same for all groups"),
        ("{playbook: {algorithm: a2c}}", "'playbook' is the name of a scripted policy"),
        ("{same: {a2c: {gamma: 0.5}}}", "rl.variants.same would train the same agents as 'agent'"),
        ("{RLlib: {algorithm: rllib_ppo}}", "rl.variants.RLlib: settings: rl.algorithm 'rllib_ppo' goes with compute.engine 'ray'"),
        ("[a2c]", "rl.variants: Input should be a valid dictionary"),
    ],
)
def test_a_wrong_variant_is_refused_before_anything_is_written(variants: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(words(tmp_path / "artifacts", "rl", f"rl.variants={variants}")) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "artifacts").exists()


def test_each_predictor_is_trained_once_and_the_sensor_joins_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = tmp_path / "artifacts"
    assert command_line.main(words(artifacts, "sae")) == 0
    out = capsys.readouterr().out
    assert "anomaly score on held-out synthetic profile windows" in out
    assert out.index("training the LSTM autoencoder") < out.index("training the attack predictor")  # what is missing for the sensor
    assert command_line.main(words(artifacts, "lstm")) == 0
    assert "training the LSTM autoencoder" not in capsys.readouterr().out
    assert command_line.main(words(artifacts, "sae", "sae.training.patience=1")) == 0
    out = capsys.readouterr().out
    assert "training the attack predictor" not in out  # another autoencoder beside the same networks
    assert [len(list((artifacts / room).iterdir())) for room in ("networks", "autoencoders", "sensors")] == [1, 2, 2]


def test_resume_goes_on(whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = tmp_path / "artifacts"
    with monkeypatch.context() as patch:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("src.pipeline.Run.evaluate", stop)
        assert command_line.main(words(artifacts, "all")) == 130
    name = runs_folder(artifacts).name
    capsys.readouterr()
    assert command_line.main(["--phase", "all", "--resume", name, "--set", f"compute.artifacts={artifacts}"]) == 0
    out = capsys.readouterr().out
    assert "training the" not in out
    results = [json.loads((folder / "results.json").read_text())["tables"]["policies"] for folder in (runs_folder(artifacts), runs_folder(whole_run))]
    assert results[0] == results[1]
    client = mlflow.MlflowClient(f"sqlite:///{artifacts / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "iot-defense"]
    assert len([run for run in client.search_runs([experiment.experiment_id]) if "mlflow.parentRunId" not in run.data.tags]) == 1


def logged(artifacts: Path, name: str) -> Any:
    """The MLflow run of this name."""
    client = mlflow.MlflowClient(f"sqlite:///{artifacts / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("iot-defense")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")[0]


def test_one_policy_is_scored_on_another_scenario_without_training(whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = json.loads((runs_folder(whole_run) / "results.json").read_text())
    artifacts = shutil.copytree(whole_run, tmp_path / "artifacts")
    (agent,) = artifacts.glob("agents/*/ppo-1")
    before = set((artifacts / "runs").iterdir())
    played = {}
    for policy, scenario, attackers, label in (
        (str(agent), "solo", "held_out", "ppo seed 1 (trained on home)"),
        (str(agent), "home", "train", "ppo seed 1"),
        ("Threshold_on risk", "home", "train", "threshold on risk"),
    ):
        assert command_line.main([*words(artifacts, "eval"), "--policy", policy, "--scenario", scenario, "--attackers", attackers]) == 0
        shown = capsys.readouterr()
        assert f"{label} minus policy" in shown.out
        assert "training" not in shown.out
        (folder,) = set((artifacts / "runs").iterdir()) - before
        before.add(folder)
        found = json.loads((folder / "results.json").read_text())
        played[label] = {row["policy"]: row for row in found["tables"]["policies"]}
        assert set(played[label]) == {"no-op", "threshold on risk", "planner", label}
        assert (found["scenario"], found["attackers"]) == (scenario, attackers)
        run = logged(artifacts, f"evaluation of {label}")
        assert run.data.metrics["eval/policy/reward_mean"] == pytest.approx(played[label][label]["return"], rel=1e-5)
        assert [run.data.tags[tag] for tag in ("phase", "split", "scenario", "attackers", "policy")] == ["eval", "test", scenario, attackers, label]
    # The whole evaluation found the same.
    (no_op,) = [row["return"] for row in whole["tables"]["policies"] if row["policy"] == "no-op"]
    assert played["ppo seed 1"]["no-op"]["return"] == pytest.approx(no_op)
    assert played["ppo seed 1"]["ppo seed 1"]["return"] <= played["ppo seed 1"]["planner"]["return"]


def test_a_submission_gets_its_entry_which_the_leaderboard_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.scoring.RULES", {"eval.episodes": 20, "eval.tuning_episodes": 10, "eval.bootstrap": 100})
    monkeypatch.setattr("src.scoring.SCRIPTED", ("no-op", "threshold on risk", "planner"))
    given = ["--phase", "eval", "--submit", "examples/submission.py:Watchful", "--set", f"compute.artifacts={tmp_path / 'artifacts'}"]
    assert command_line.main(given) == 0
    shown = capsys.readouterr().out
    (place,) = tmp_path.glob("artifacts/runs/*/leaderboard/watchful-example.json")
    assert place.name in shown
    entry = json.loads(place.read_text())
    held_out = {row["policy"]: row for row in entry["tables"]["held out"]}
    assert (held_out["threshold on risk"]["H"], held_out["planner"]["H"]) == (0.0, 1.0)
    mine = held_out["watchful example"]
    assert mine["H_low"] <= mine["H"] <= mine["H_high"] < 1
    assert {"iqm", "iqm_low", "iqm_high", "return", "low", "high"} <= set(mine)
    assert (entry["name"], entry["data"], entry["rules"]["episodes"], entry["rules"]["first_seed"]) == ("watchful example", "synthetic", 20, 1_000_000)
    assert len(entry["code"]) == 64
    assert logged(tmp_path / "artifacts", "submission watchful example").data.metrics["eval/policy/H"] == pytest.approx(mine["H"], rel=1e-4)

    folder = tmp_path / "entries"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(entry))
    (folder / "b.json").write_text(json.dumps(renamed(entry, "second", level=mine["return"] + 1)))
    shown = leaderboard(folder)
    assert shown.index("**second**") < shown.index("**watchful example**") < shown.index("| no-op")
    assert shown.count("| planner") == 1
    (folder / "c.json").write_text(json.dumps({**renamed(entry, "third"), "bank": {**entry["bank"], "digest": "other"}}))
    assert leaderboard(folder).count("| planner") == 2  # another bank has a table of its own
    (folder / "d.json").write_text(json.dumps({**renamed(entry, "fourth"), "rules": {**entry["rules"], "episodes": 10}}))
    with pytest.raises(ValueError, match="not played by the same episodes"):
        leaderboard(folder)


def renamed(entry: dict[str, Any], name: str, level: float | None = None) -> dict[str, Any]:
    """The same entry under another name, and with another return where one is given."""

    def row(one: dict[str, Any]) -> dict[str, Any]:
        return one if one["policy"] != entry["name"] else {**one, "policy": name, "return": one["return"] if level is None else level}

    return {**entry, "name": name, "tables": {side: [row(one) for one in rows] for side, rows in entry["tables"].items()}}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--phase", "lsmt"], "did you mean 'lstm'"),
        ([], "--phase"),
        (["--phase", "lstm", "--preset", "quik"], "did you mean 'quick'"),
        (["--phase", "lstm", "--set", "lstm.training.epoch=3"], "did you mean 'lstm.training.epochs'"),
        (["--phase", "lstm", "--set", "lstm.training.epochs=few"], "lstm.training.epochs"),
        (["--phase", "lstm", "--config", "nowhere.yml"], "nowhere.yml"),
        (["--phase", "lstm", "--set", "data.root=nowhere"], "nowhere"),
        (["--phase", "sa"], "did you mean 'sae'"),
        (["--phase", "rl", "--resume", "never"], "no run 'never'"),
        (["--phase", "rl", "--resume", "never", "--preset", "quick"], "leave out"),
        (["--phase", "lstm", "--seed", "one"], "--seed"),
        (["--phase", "lstm", "--sed", "1"], "--sed"),
        (["--phase", "lstm", "--seed", "-1"], "compute.seed"),
        (["--phase", "rl", "--set", "env.scenario=klinic"], "did you mean 'clinic'"),
        (["--phase", "rl", "--set", "env.scenario=nowhere.yml"], "nowhere.yml"),
        (["--phase", "rl", "--set", "attackers.held_out_techniques=[XXS]"], "did you mean 'XSS'"),
        (["--phase", "rl", "--set", "data.benign_root=nowhere"], "nowhere"),
        (["--phase", "eval", "--scenario", "klinic"], "did you mean 'clinic'"),
        (["--phase", "eval", "--attackers", "heldout"], "did you mean 'held_out'"),
        (["--phase", "sae", "--scenario", "home"], "--scenario means nothing to --phase sae"),
        (["--phase", "rl", "--policy", "no-op"], "--policy goes with --phase eval"),
        (["--phase", "all", "--submit", "a.py:A"], "--submit goes with --phase eval"),
        (["--phase", "eval", "--policy", "no-op", "--submit", "a.py:A"], "not both"),
        (["--phase", "eval", "--policy", "no-op", "--resume", "never"], "leave out --resume"),
        (["--phase", "eval", "--policy", "Bayes filtre"], "did you mean 'Bayes filter'"),
        (["--phase", "eval", "--policy", "agents/nowhere/ppo-0"], "no saved agent at 'agents/nowhere/ppo-0'"),
        (["--phase", "eval", "--policy", "docs"], "no agent-policy artifact at 'docs'"),
        (["--phase", "eval", "--submit", "nowhere.py:A"], "no file 'nowhere.py'"),
        (["--phase", "eval", "--submit", "examples/submission.py:Watchfull"], "did you mean 'Watchful'"),
        (["--phase", "eval", "--submit", "examples/submission.py:Watchful", "--scenario", "home"], "leave out --scenario"),
        (["--phase", "eval", "--submit", "examples/submission.py:Watchful", "--set", "env.horizon=300"], "the default env.horizon"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = tmp_path / "artifacts"
    assert command_line.main([*given, "--set", f"compute.artifacts={artifacts}"]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert not artifacts.exists()


GOOD_ROW = ",".join(["1"] * 39)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("a,b\n1,2\n", "column"),
        ("{header}\n", ""),
        ("{header},label\n{row},Teapot\n", "Teapot"),
        ("{header},label\n{words},XSS\n", "one"),
        ("{header},label\n{hole},XSS\n{hole},BENIGN\n", "IAT"),
    ],
    ids=["empty", "other columns", "header only", "unknown label", "text cells", "a column without a number"],
)
def test_wrong_data_is_one_line_and_leaves_nothing(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = ",".join(FEATURES_39)
    hole = ",".join("" if name == "IAT" else "1" for name in FEATURES_39)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "part.csv").write_text(text.format(header=header, row=GOOD_ROW, words=GOOD_ROW.replace("1", "one"), hole=hole))
    artifacts = tmp_path / "artifacts"
    assert command_line.main(words(artifacts, "lstm", f"data.root={tmp_path / 'data'}")) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert not artifacts.exists()


def test_artifacts_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert command_line.main(words(tmp_path / "file", "lstm")) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "file").read_text() == ""


def test_runs_that_start_in_the_same_microsecond_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Still(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2026, 1, 2, tzinfo=tz)

    monkeypatch.setattr("src.pipeline.datetime", Still)
    config = load_config(overrides=[*TINY, f"compute.artifacts={tmp_path}"], environ={})
    for _ in range(3):
        with start(config, "lstm", None):
            pass
    names = ["20260102-000000-000000-lstm-seed0" + end for end in ("", "-2", "-3")]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == names
    assert len({json.loads((tmp_path / "runs" / name / "run.json").read_text())["mlflow_run"] for name in names}) == 3


def test_an_interrupt_that_a_library_swallows_is_raised_again() -> None:
    done: list[str] = []

    def work() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        try:
            time.sleep(10)
            done.append("slept on")
        finally:
            time.sleep(3 * command_line.INSISTENCE)  # what cleans up is left alone
            done.append("cleaned up")

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyboardInterrupt), command_line.insistent_interrupts():
        work()
    assert done == ["cleaned up"]
    time.sleep(2 * command_line.INSISTENCE)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)) == before


def test_altered_artifact_is_refused_by_name(whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(whole_run, tmp_path / "copy")
    (weights,) = (tmp_path / "copy" / "sensors").glob("*/bank/sensors.npy")
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert command_line.main(words(tmp_path / "copy", "eval")) == 2
    shown = capsys.readouterr().err
    assert "sensors.npy" in shown
    assert shown.count("\n") == 1


def test_the_classic_release_goes_all_the_way(tmp_path: Path) -> None:
    """46 features, `label` column, a handful of small part files: made-up numbers, since only the plumbing is looked at."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i, label in enumerate(("BenignTraffic", "Recon-PortScan", "DictionaryBruteForce", "Mirai-udpplain", "SqlInjection", "MITM-ArpSpoofing")):
        rows = rng.random((140, len(FEATURES_46))).round(4) + i
        lines = [",".join([*map(str, row), label]) for row in rows.tolist()]
        (tmp_path / "data" / f"part-0000{i}-363d1ba3.csv").write_text("\n".join([",".join([*FEATURES_46, "label"]), *lines]) + "\n")
    assert command_line.main(words(tmp_path / "artifacts", "all", f"data.root={tmp_path / 'data'}", "rl.seeds=1", "rl.total_timesteps=1024")) == 0


def test_a_feature_that_the_data_lacks_is_named_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(words(tmp_path / "artifacts", "all", "env.features=[Rate, Ratte]")) == 2
    assert "did you mean 'Rate'" in capsys.readouterr().err
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.skipif(not SHARED.exists(), reason="real CICIoT2023 rows are not beside this checkout (../shared/data/ciciot2023)")
def test_real_rows_say_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = tmp_path / "artifacts"
    assert command_line.main(words(artifacts, "all", f"data.root={SHARED}", "data.max_rows_per_class=400", "rl.seeds=1")) == 0
    assert "real traffic" in capsys.readouterr().out
    assert json.loads((runs_folder(artifacts) / "results.json").read_text())["data"] == "real"


def test_every_setting_has_a_section() -> None:
    assert set(Config.model_fields) == {"data", "lstm", "env", "attackers", "reward", "rl", "temporal", "sae", "eval", "mlflow", "compute"}
