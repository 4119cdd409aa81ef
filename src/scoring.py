"""Scores one policy: a saved agent, a scripted policy, or one that somebody submits to the leaderboard.

`--policy` plays it in the world of the configuration. `--submit` plays it in a world that is the same for all, or the leaderboard would
compare worlds: the default settings, 12 devices (`clinic`), held-out traces, 500 episodes against the attackers of training and 500
against those never met, on the bundled bank (or on that of real data, where `data.root` names some).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agents.benchmark import SCRIPTED, TEST_SEED, TUNING_SEED, BenchmarkRunner, Scripted
from agents.entrants import PublicFacts, Submission, open_submission, play_submission
from agents.learned import KIND, load_policy
from envs import IoTEnv
from envs.scenarios import build_network
from envs.world import Simulation
from src.artifacts import open_artifact
from src.config import Config, changed, nearest
from src.data.bank import TraceBank
from src.errors import UserError
from src.evaluation.analysis import BenchmarkAnalyzer
from src.evaluation.rollout import PLANNER, Contest, Episodes, Policy, Side, play
from src.evaluation.tables import print_table, result, save_result
from src.pipeline import Run
from src.tracking import Tracker

Job = Callable[[Run], None]

BESIDE = ("no-op", "threshold on risk", PLANNER)
"""Shown beside the one policy that `--policy` names."""

SIDES = ("seen", "held out")
"""Attackers that a submission meets: those of training, and those that training never met."""
EPISODES = 500
"""Episodes of a submission on each side."""
RULES: Mapping[str, Any] = {"eval.episodes": EPISODES, "eval.tuning_episodes": 200, "eval.bootstrap": 2000, "eval.confidence": 0.95, "compute.seed": 0}
"""Settings under which every submission is scored, whatever the configuration says."""

COLUMNS = {
    "policy": "policy", "return": "return", "interval": "95 % interval", "iqm": "IQM", "damage": "damage", "healthy_service": "healthy",
    "orders_per_hour": "orders/h", "false_downtime_hours_per_device_day": "false h/day",
}  # fmt: skip
ENTRY_COLUMNS = {
    "policy": "policy", "return": "return", "interval": "95 % interval", "iqm": "IQM", "H": "H", "H_interval": "95 % interval of H", "damage": "damage",
    "orders_per_hour": "orders/h",
}  # fmt: skip


def policy_job(config: Config, which: str) -> Job:
    """What `--policy` does; a wrong name is found before anything is trained.

    Args:
        config: of the run.
        which: folder of a saved agent, or a scripted policy's name.

    Raises:
        UserError: for a policy that is not there, or was altered.
    """
    folder = Path(which)
    if folder.is_dir():
        label = _saved(folder, config)
        return lambda run: _score_one(run, label, lambda simulation: load_policy(folder, simulation))
    spelled = {_plain(name): name for name in SCRIPTED}
    if _plain(which) in spelled:
        return lambda run: _score_one(run, spelled[_plain(which)], None)
    if folder.name != which:  # it has a slash
        raise UserError(f"no saved agent at '{which}': main.py keeps agents in {config.compute.artifacts / 'agents'}/KEY/ALGORITHM-SEED")
    raise UserError(f"no policy '{which}': {nearest(which, SCRIPTED)}, or the folder of a saved agent")


def submission_job(config: Config, source: str) -> Job:
    """What `--submit` does; the submission is opened, and its file executed, before anything else happens.

    Args:
        config: of the run, with the default `env`, `attackers` and `reward`.
        source: `module:attribute` or `file.py:attribute`.

    Raises:
        UserError: for settings that the leaderboard does not play, or a submission that cannot be opened.
    """
    fixed = Config()
    for section in ("env", "attackers", "reward"):
        for key, value in getattr(fixed, section):
            if getattr(getattr(config, section), key) != value:
                raise UserError(f"the leaderboard plays every submission with the default {section}.{key}; leave out what changes it")
    submission = open_submission(source, PublicFacts.of(IoTEnv(config=config).simulation))
    if _plain(submission.name) in {_plain(name) for name in SCRIPTED}:
        raise UserError(f"'{source}' calls itself '{submission.name}', as a scripted policy is called: give it another name")
    return lambda run: _score_submission(run, submission)


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]+", " ", name.casefold()).strip()


def _saved(folder: Path, config: Config) -> str:
    """What a saved agent is called in the table."""
    meta = open_artifact(folder, KIND)
    elsewhere = f" (trained on {meta['scenario']})" if meta["scenario"] != config.env.scenario else ""
    return f"{meta['algorithm']} seed {meta['seed']}{elsewhere}"


def _score_one(run: Run, label: str, opened: Callable[[Simulation], Policy] | None) -> None:
    """Play one policy beside those of `BESIDE`; print, save and log how they compare."""
    config, bank = run.config, run.bank()
    runner = BenchmarkRunner(config, bank, sensor=run.live_sensor())
    tags = {"phase": "eval", "split": "test", "sensors": bank.sensor, "policy": label}
    with run.tracker.nested(f"evaluation of {label}", tags) as log:
        run.say(f"tuning on the agent's traces, then playing {config.eval.episodes} held-out episodes a policy")
        scripted = runner.scripted(list(dict.fromkeys(BESIDE if opened else (label, *BESIDE))))
        side = runner.side(scripted, {})
        if opened is not None:
            env = runner.env(config.eval.episodes)
            side = _with(side, label, play(env, opened(env.simulation), TEST_SEED))
        found = _analysed(config, {"played": side}, label, scripted)
        others = [name for name in side.episodes if name != label]
        differences = [{"policy": name, **vars(found.difference("played", label, name))} for name in others]
        rows = found.policies["played"]
        what = f"{config.eval.episodes} held-out episodes of '{config.env.scenario}', {config.env.attackers} attackers, {run.source} traffic"
        _show(run, f"{what}: mean return with {config.eval.confidence:.0%} interval", rows, COLUMNS)
        shown = {"policy": "policy", "value": "mean", "low": "low", "high": "high"}
        print_table(f"{label} minus policy, paired by episode", differences, shown, run.console)
        _log(run, log, rows, label)
        tables = {"policies": rows, "policy minus another": differences}
        words = {"policy": label, "scenario": config.env.scenario, "attackers": config.env.attackers, "bank": _bank_digest(bank)}
        _keep(run, log, run.folder / "results.json", label, words, tables)


def _score_submission(run: Run, submission: Submission) -> None:
    """Play a submission beside every scripted policy; print, save and log its entry for the leaderboard."""
    bank = run.bank() if run.config.data.root is not None else TraceBank.bundled()
    config = changed(run.config, RULES)
    runner = BenchmarkRunner(config, bank)
    tags = {"phase": "eval", "split": "test", "sensors": bank.sensor, "policy": submission.name, "data_source": bank.source}
    with run.tracker.nested(f"submission {submission.name}", tags) as log:
        sides = {}
        for name in SIDES:  # the submission first, so that one that fails does so soon
            run.say(f"playing {submission.name}: {config.eval.episodes} held-out episodes, {name} attackers")
            played = play_submission(submission, runner.on(name).config, bank, "test", config.eval.episodes, TEST_SEED)
            sides[name] = played
        run.say("tuning the scripted policies on the agent's traces, and playing them (some minutes)")
        scripted = runner.scripted(SCRIPTED)
        contest = {name: _with(runner.on(name).side(scripted, {}), submission.name, played) for name, played in sides.items()}
        found = _analysed(config, contest, submission.name, scripted)
        tables: dict[str, list[dict[str, Any]]] = {}
        for name in SIDES:
            tables[name] = [{**row, **_score(found, name, row["policy"])} for row in found.policies[name]]
            tables[name].sort(key=lambda row: row["return"])
            title = f"{config.eval.episodes} held-out episodes of '{config.env.scenario}', {name} attackers, {bank.source} traffic"
            _show(run, f"{title}: mean return; H: 0 is the {found.contest.heuristic}, 1 the planner", tables[name], ENTRY_COLUMNS)
        _log(run, log, tables["held out"], submission.name)
        words = {
            "submitted": submission.source, "code": submission.digest, "single": submission.single, "heuristic": found.contest.heuristic,
            "bank": {"digest": _bank_digest(bank), "source": bank.source, "site": bank.site, "sensor": bank.sensor},
            "rules": {
                "scenario": config.env.scenario, "split": "test", "episodes": config.eval.episodes, "first_seed": TEST_SEED,
                "tuning_episodes": config.eval.tuning_episodes, "first_tuning_seed": TUNING_SEED, "settings": _settings_digest(config),
            },
        }  # fmt: skip
        _keep(run, log, run.folder / "leaderboard" / f"{_plain(submission.name).replace(' ', '-')}.json", submission.name, words, tables)
        run.say(f"to enter: copy it to benchmarks/results/leaderboard/, run `python -m benchmarks.report`, and commit both with {submission.source}")


def _with(side: Side, name: str, played: Episodes) -> Side:
    return dataclasses.replace(side, episodes={**side.episodes, name: [played]})


def _analysed(config: Config, sides: dict[str, Side], label: str, scripted: Mapping[str, Scripted]) -> BenchmarkAnalyzer:
    words, validation = ({name: getattr(one, what) for name, one in scripted.items()} for what in ("words", "validation"))
    contest = Contest(sides, (label,), words, validation, {}, [], {})
    return BenchmarkAnalyzer(config, contest, len(build_network(config.env.scenario).names))


def _score(found: BenchmarkAnalyzer, side: str, policy: str) -> dict[str, float]:
    """H of a policy, with its interval."""
    values = found.score(side, policy, found.contest.heuristic)
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {"H": float(values[0]), "H_low": float(low), "H_high": float(high)}


def _bank_digest(bank: TraceBank) -> str:
    """Sixteen hexadecimal digits of all that play reads of a bank."""
    found = hashlib.sha256()
    for array in (bank.features, bank.sensors, bank.successor, bank.label, bank.split):
        found.update(np.ascontiguousarray(array).data)
    found.update(json.dumps([bank.feature_names, bank.sensor_names, bank.class_names, bank.class_families]).encode())
    return found.hexdigest()[:16]


def _settings_digest(config: Config) -> str:
    """Eight hexadecimal digits of the rules of the game."""
    rules = {name: getattr(config, name).model_dump(mode="json") for name in ("env", "attackers", "reward")}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:8]


def _show(run: Run, title: str, rows: list[dict[str, Any]], columns: Mapping[str, str]) -> None:
    shown = [{**row, **{f"{key}interval": f"[{row[low]:.2f}, {row[high]:.2f}]" for key, low, high in _ENDS if low in row}} for row in rows]
    print_table(title, shown, columns, run.console)


_ENDS = (("", "low", "high"), ("H_", "H_low", "H_high"))


def _log(run: Run, log: Tracker, rows: list[dict[str, Any]], label: str) -> None:
    """The same names as the whole evaluation's; the policy that was asked for is `policy`, so that runs about different ones compare."""
    named = {"return": "reward_mean", "length": "length_mean"}
    for row in rows:
        name = "policy" if row["policy"] == label else row["policy"].replace(" ", "_")
        log.log_metrics({f"eval/{name}/{named.get(key, key)}": value for key, value in row.items() if isinstance(value, float)})
        run.tracker.log_metrics({f"return/{name}": row["return"]})
    log.log_table(rows, "evaluation.json")


def _keep(run: Run, log: Tracker, path: Path, name: str, words: Mapping[str, Any], tables: Mapping[str, Any]) -> None:
    data, seconds = "real" if run.source == "real" else "synthetic", time.perf_counter() - run.started
    save_result(path, {**result(name, data, seconds, run.config.compute.threads, {}, tables), **words})
    log.log_artifact(path)
    run.say(f"results  {path}")
