"""Scores one policy: a saved agent, a scripted policy, or one that somebody submits to the leaderboard.

`--policy` plays it in the world of the configuration. `--submit` plays it in a world that is the same for all, or the leaderboard would
compare worlds: the default settings, 12 devices (`clinic`), held-out traces, 500 episodes against the attackers of training and 500
against the held-out ones, on the bundled bank (or on that of real data, where `data.root` names some).
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

from agents.baselines import Constant, Random
from agents.benchmark import TEST_SEED, TUNING_SEED, BenchmarkRunner
from agents.entrants import PublicFacts, Submission, open_submission, play_submission
from agents.planner import Planner
from agents.training import KIND, load_policy
from envs import IoTEnv
from envs.world import Simulation
from src.artifacts import open_artifact, write_text
from src.config import Config, changed, nearest
from src.data.bank import TraceBank
from src.errors import UserError
from src.evaluation.rollout import Episodes, Policy, play
from src.evaluation.statistics import Estimate, difference_estimate, interval
from src.evaluation.tables import print_table, result, save_result
from src.pipeline import POLICY_COLUMNS, Run

Job = Callable[[Run], None]

SIDES = {"seen": "train", "held out": "held_out"}
"""Attackers that a submission meets, and what `env.attackers` calls them: those that training knows, and those that it does not."""
EPISODES = 500
"""Held-out episodes of a submission, on each side."""
TUNING = 200
"""Episodes on `agent` traces on which the policies that it is compared with are tuned."""
RESAMPLES = 2000
"""Of each interval of the leaderboard."""

BESIDE = ("no-op", "threshold on risk", "planner")
"""Shown beside the one policy that `--policy` names."""
HEURISTICS = ("threshold on risk", "threshold on anomaly", "Bayes filter")
"""Scripted policies that see what an agent sees. The score's zero is the one that does best on `agent` traces; its one is the planner."""
SCRIPTED = ("no-op", "random", "best constant", *HEURISTICS, "planner")

_ENTRY_COLUMNS = {
    "policy": "policy", "return": "return", "interval": "95 % interval", "iqm": "IQM", "score": "H", "score_interval": "95 % interval of H",
    "damage": "damage", "orders_per_hour": "orders/h",
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
        label, opened = _saved(folder, config), lambda simulation: load_policy(folder, simulation)
        return lambda run: _score_one(run, label, opened)
    spelled = {_plain(name): name for name in SCRIPTED}
    if _plain(which) not in spelled:
        if folder.name != which:  # it has a slash
            raise UserError(f"no saved agent at '{which}': main.py keeps agents in {config.compute.artifacts / 'agents'}/KEY/ALGORITHM-SEED")
        raise UserError(f"no policy '{which}': {nearest(which, SCRIPTED)}, or the folder of a saved agent")
    return lambda run: _score_one(run, spelled[_plain(which)], None)


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
    facts = PublicFacts.of(IoTEnv(config=config).simulation)
    submission = open_submission(source, facts)
    if submission.name in SCRIPTED:
        raise UserError(f"'{source}' calls itself '{submission.name}', as a scripted policy is called: give it another name")
    return lambda run: _score_submission(run, submission)


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]+", " ", name.casefold()).strip()


def _saved(folder: Path, config: Config) -> str:
    """What a saved agent is called in the table."""
    meta = open_artifact(folder, KIND)
    elsewhere = f" (trained on {meta['scenario']})" if meta["scenario"] != config.env.scenario else ""
    return f"{meta['algorithm']} seed {meta['seed']}{elsewhere}"


@dataclass(frozen=True)
class Scripted:
    """A policy to compare with, as tuning left it."""

    build: Callable[[Simulation], Policy]
    words: str
    validation: float
    mode: str = "discrete"

    def __call__(self, simulation: Simulation) -> Policy:
        """The policy, ready to act."""
        return self.build(simulation)


def _scripted(tuner: BenchmarkRunner, names: Iterable[str]) -> dict[str, Scripted]:
    """A scripted policy, tuned on `agent` traces."""
    env = tuner.env(tuner.config.eval.tuning_episodes, "agent")

    def constant() -> Scripted:
        found = tuner.constants(env, TUNING_SEED)
        order = list(found)
        name = max(found, key=lambda one: found[one].mean)
        best, devices = order.index(name), len(env.simulation.network.names)
        policy = Constant(best + 1) if best < 5 * devices else Constant(best - 5 * devices + 1, devices)
        return Scripted(lambda _: policy, name, found[name].mean, "joint" if policy.devices else "discrete")

    def of(build: Callable[[Simulation], Policy]) -> Scripted:
        return Scripted(build, "", play(env, build(env.simulation), TUNING_SEED).mean)

    def fixed(policy: Policy) -> Scripted:
        return of(lambda _: policy)

    made: dict[str, Callable[[], Scripted]] = {
        "no-op": lambda: fixed(Constant(0)),
        "random": lambda: of(lambda simulation: Random(simulation.layout, seed=tuner.config.compute.seed)),
        "best constant": constant,
        "threshold on risk": lambda: fixed(tuner.tune("risk")),
        "threshold on anomaly": lambda: fixed(tuner.tune("anomaly")),
        "Bayes filter": lambda: fixed(tuner.tune_bayes()),
        "planner": lambda: of(Planner),
    }
    return {name: made[name]() for name in names}


def _play(runner: BenchmarkRunner, policy: Callable[[Simulation], Policy], episodes: int) -> Episodes:
    env = runner.env(episodes, mode=policy.mode if isinstance(policy, Scripted) else "discrete")
    return play(env, policy(env.simulation), TEST_SEED)


def _runner(run: Run, bank: TraceBank, attackers: str, **settings: Any) -> BenchmarkRunner:
    return BenchmarkRunner(changed(run.config, {"env.attackers": attackers, **settings}), bank, sensor=run.live_sensor())


def _score_one(run: Run, label: str, opened: Callable[[Simulation], Policy] | None) -> None:
    """Play one policy beside those of `BESIDE`; print, save and log how they compare."""
    config, bank = run.config, run.bank()
    runner, tuner = _runner(run, bank, config.env.attackers), _runner(run, bank, "train")
    tags = {"phase": "eval", "split": "test", "sensors": bank.sensor, "attackers": config.env.attackers, "policy": label}
    with run.tracker.nested(f"evaluation of {label}", tags) as log:
        run.say(f"tuning on the agent's traces, then playing {config.eval.episodes} held-out episodes a policy")
        names = [name for name in BESIDE if name != label]
        scripted = _scripted(tuner, names if opened else [*names, label])
        found = {name: _play(runner, opened if name == label and opened else scripted[name], config.eval.episodes) for name in (*names, label)}
        rng = np.random.default_rng(config.compute.seed)
        rows = [runner._row(name, [played], rng) for name, played in found.items()]
        settings = (config.eval.bootstrap, config.eval.confidence, rng)
        differences = [
            {"policy": name, **vars(difference_estimate(found[label].returns, found[name].returns, *settings))} for name in names
        ]  # fmt: skip
        what = f"{config.eval.episodes} held-out episodes of '{config.env.scenario}', {config.env.attackers} attackers, {run.source} traffic"
        _show(run, f"{what}: mean return with {config.eval.confidence:.0%} interval", rows, POLICY_COLUMNS)
        shown = {"policy": "policy", "value": "mean", "low": "low", "high": "high"}
        print_table(f"{label} minus policy, paired by episode", differences, shown, run.console)
        _log(run, log, rows, {label: "policy"})
        tables = {"policies": rows, "policy minus another": differences, "attackers": config.env.attackers, "scenario": config.env.scenario}
        data = "real" if run.source == "real" else "synthetic"
        _keep(run, run.folder / "results.json", result("policy", data, time.perf_counter() - run.started, config.compute.threads, {}, tables))
        log.log_artifact(run.folder / "results.json")


def _score_submission(run: Run, submission: Submission) -> None:
    """Play a submission; print, save and log its entry for the leaderboard."""
    real = run.config.data.root is not None
    bank = run.bank() if real else TraceBank.bundled()
    digest = _bank_digest(bank)
    references = _references(run, bank, digest)
    with run.tracker.nested(f"submission {submission.name}", {"phase": "eval", "split": "test", "sensors": bank.sensor, "policy": submission.name}) as log:
        sides: dict[str, list[dict[str, Any]]] = {}
        for side, attackers in SIDES.items():
            run.say(f"playing {EPISODES} held-out episodes against {side} attackers")
            runner = _runner(run, bank, attackers)
            played = play_submission(submission, runner.config, bank, "test", EPISODES, TEST_SEED)
            sides[side] = _scored(
                references[side], submission.name, {**_row(runner, submission.name, played), "rule": "", "on_agent_traces": None}, played.returns
            )
            shown = [{**row, "score_interval": f"[{row['score_low']:.2f}, {row['score_high']:.2f}]"} for row in sides[side]]
            _show(run, f"{EPISODES} episodes of '{run.config.env.scenario}', {side} attackers, {bank.source} traffic: mean return", shown, _ENTRY_COLUMNS)
        _log(run, log, sides["held out"], {submission.name: "policy"})
        entry = {
            "submitted": submission.source, "code": submission.digest, "single": submission.single,
            "bank": {"digest": digest, "source": bank.source, "site": bank.site, "sensor": bank.sensor},
            "protocol": {
                "scenario": run.config.env.scenario, "split": "test", "episodes": EPISODES, "first_seed": TEST_SEED,
                "tuning_episodes": TUNING, "first_tuning_seed": TUNING_SEED, "settings": _settings_digest(run.config),
            },
        }  # fmt: skip
        seconds = time.perf_counter() - run.started
        found = {**result(submission.name, "real" if real else "synthetic", seconds, run.config.compute.threads, {}, sides), **entry}
        path = run.folder / "leaderboard" / f"{_plain(submission.name).replace(' ', '-')}.json"
        _keep(run, path, found)
        log.log_artifact(path)
        run.say(f"to enter: copy it to benchmarks/results/leaderboard/, run `python -m benchmarks.report`, and commit both with {submission.source}")


def _row(runner: BenchmarkRunner, name: str, played: Episodes) -> dict[str, Any]:
    """A policy's measures, the interquartile mean of its returns (Agarwal et al. 2021) among them."""
    rng = np.random.default_rng(0)
    row = runner._row(name, [played], rng)
    draws = played.returns[rng.integers(0, len(played.returns), (RESAMPLES, len(played.returns)))]  # (resamples, N)
    low, high = interval(trim_mean(draws, 0.25, axis=1), runner.config.eval.confidence)
    return {**row, "iqm": float(trim_mean(played.returns, 0.25)), "iqm_low": low, "iqm_high": high}


def _scored(references: Mapping[str, Mapping[str, Any]], name: str, row: dict[str, Any], returns: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Rows of the references and of the submission, worst first, each with its score H."""
    played = {**{other: np.array(one["returns"]) for other, one in references.items()}, name: returns}
    rows = [*(dict(one["row"]) for one in references.values()), row]
    best = max(HEURISTICS, key=lambda other: references[other]["row"]["on_agent_traces"])
    for one in rows:
        score = score_estimate(played[one["policy"]], played[best], played["planner"])
        one |= {"score": score.value, "score_low": score.low, "score_high": score.high, "zero_of_score": best}
    return sorted(rows, key=lambda one: one["return"])


def score_estimate(returns: NDArray[np.float64], heuristic: NDArray[np.float64], planner: NDArray[np.float64]) -> Estimate:
    """H = (R - heuristic) / (planner - heuristic) of mean returns, with its 95 % interval; all (N,), paired by episode.

    0 is the best tuned heuristic, 1 the planner, which sees the hidden state.
    """
    drawn = np.random.default_rng(0).integers(0, len(returns), (RESAMPLES, len(returns)))
    means = [values[drawn].mean(axis=1) for values in (returns, heuristic, planner)]
    samples = (means[0] - means[1]) / (means[2] - means[1])
    value = (returns.mean() - heuristic.mean()) / (planner.mean() - heuristic.mean())
    return Estimate(float(value), *interval(samples, 0.95))


def _references(run: Run, bank: TraceBank, digest: str) -> dict[str, dict[str, Any]]:
    """By side and name: how the scripted policies do. Kept in the artifacts, since tuning takes a minute, as long as neither code nor bank change."""
    mark = hashlib.sha256(json.dumps([digest, _code_digest(), _settings_digest(run.config), EPISODES, TUNING]).encode()).hexdigest()[:16]
    path = run.config.compute.artifacts / "leaderboard" / f"references-{mark}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    run.say("tuning the scripted policies on the agent's traces, once (a minute or two)")
    tuner = _runner(run, bank, "train", **{"eval.tuning_episodes": TUNING})
    runners = {side: _runner(run, bank, attackers) for side, attackers in SIDES.items()}
    found: dict[str, dict[str, Any]] = {side: {} for side in SIDES}
    for name, policy in _scripted(tuner, SCRIPTED).items():
        for side, runner in runners.items():
            played = _play(runner, policy, EPISODES)
            row = {**_row(runner, name, played), "rule": policy.words, "on_agent_traces": policy.validation}
            found[side][name] = {"returns": played.returns.tolist(), "row": row}
    write_text(path, json.dumps(found) + "\n")
    return found


def _bank_digest(bank: TraceBank) -> str:
    """Sixteen hexadecimal digits of all that play reads of a bank."""
    found = hashlib.sha256()
    for array in (bank.features, bank.sensors, bank.successor, bank.label, bank.split):
        found.update(np.ascontiguousarray(array).data)
    found.update(json.dumps([bank.feature_names, bank.sensor_names, bank.class_names, bank.class_families]).encode())
    return found.hexdigest()[:16]


def _settings_digest(config: Config) -> str:
    """Eight hexadecimal digits of the rules that are played."""
    rules = {name: getattr(config, name).model_dump(mode="json") for name in ("env", "attackers", "reward")}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:8]


def _code_digest() -> str:
    root = Path(__file__).resolve().parents[1]
    files = sorted(path for room in ("envs", "agents") for path in (root / room).rglob("*") if path.suffix in (".py", ".yml"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _show(run: Run, title: str, rows: list[dict[str, Any]], columns: Mapping[str, str]) -> None:
    print_table(title, [{**row, "interval": f"[{row['low']:.1f}, {row['high']:.1f}]"} for row in rows], columns, run.console)


def _log(run: Run, log: Any, rows: list[dict[str, Any]], short: Mapping[str, str]) -> None:
    """The same names as the whole evaluation's; the policy that was asked for is `policy`."""
    for row in rows:
        name = short.get(row["policy"], row["policy"].replace(" ", "_"))
        numbers = {key: value for key, value in row.items() if isinstance(value, float)}
        named = {"return": "reward_mean", "length": "length_mean"}
        log.log_metrics({f"eval/{name}/{named.get(key, key)}": value for key, value in numbers.items()})
        run.tracker.log_metrics({f"return/{name}": row["return"]})
    log.log_table(rows, "evaluation.json")


def _keep(run: Run, path: Path, found: dict[str, Any]) -> None:
    save_result(path, found)
    run.say(f"results  {path}")
