"""The phases, joined: data, sensor, trace bank, agents, evaluation. Imported by `main.py` and the main job's benchmark alone.

Artifacts are named by a digest of what they depend on, so a phase finds what an earlier invocation trained from the same
data, settings and seed, and nothing else. The phase that was asked for always runs; what it needs is reused if it is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from agents.benchmark import SCRIPTED, TEST_SEED, BenchmarkRunner
from agents.learned import load_policy
from agents.manager import Job, TrainingManager, groups
from agents.training import OnMetrics, identity
from envs.attackers import check_techniques
from envs.recording import write_html, write_png
from envs.scenarios import build_network, load_scenario
from src.artifacts import content_digest, write_text
from src.config import AGENT, Config, describe, nearest
from src.data.bank import SPLITS, TraceBank
from src.data.dataset import Dataset, load_dataset
from src.data.site import with_benign_site
from src.data.taxonomy import FAMILIES
from src.data.windows import gather, window_starts
from src.engines import Engine, engine
from src.errors import UserError
from src.evaluation.analysis import CONSTANT, SHUFFLED, BenchmarkAnalyzer
from src.evaluation.detection import reliability
from src.evaluation.detection_figures import confusion_figure, reliability_figure
from src.evaluation.figures import attacker_figure, comparison_figure, learning_figure, profile_figure, safety_figure
from src.evaluation.report import write_report
from src.evaluation.rollout import PLANNER, SIDES
from src.evaluation.statistics import Estimate
from src.evaluation.tables import Gate, print_table, result, save_result
from src.models.predictor_interface import EnhancedAttackPredictor
from src.tracking import Tracker, tracking
from src.training.fused import assemble
from src.training.sensors import build_bank

POLICY_COLUMNS = {
    "policy": "policy", "return": "return", "interval": "95 % interval", "held_out": "never met", "damage": "damage", "healthy_service": "healthy",
    "orders_per_hour": "orders/h", "false_downtime_hours_per_device_day": "false h/day",
}  # fmt: skip
"""`never met`: mean return against attackers that training never met; `healthy`: share of criticality x time both uncompromised and in
service; `false h/day`: hours that a device is cut off in a day without attack."""
GROUP_COLUMNS = {"agent": "group", "side": "attackers", "interval": "H", "improved": "probability of improvement"}
FAMILY_COLUMNS = {"family": "family", "macro_f1": "F1"}
DETECTION_COLUMNS = {"family": "family", "windows": "windows", "auroc": "AUROC", "alarms_01": "alarms at 1 %", "alarms_05": "alarms at 5 %"}

SENSOR = "fused sensor"
"""What the sensor that joins the networks is called, in banks and tags."""
PHASE_SPLIT = {"lstm": "fit", "sae": "fit", "rl": "agent", "eval": "test", "all": "test"}
"""Side of the traffic from which a phase's last figures are."""


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _short(name: str) -> str:
    """A policy's or a side's name, as metrics are called by it."""
    return name.replace(" ", "_").replace("-", "_") if name in SIDES else name.replace(" ", "_")


def _lines(heading: str, estimates: Mapping[str, Estimate]) -> list[dict[str, Any]]:
    return [{heading: name, "value": one.value, "low": one.low, "high": one.high} for name, one in estimates.items()]


@dataclass
class Run:
    """One invocation: its data, where it writes, and what it has found."""

    config: Config
    folder: Path
    """Of this run's results."""
    data: Dataset
    traces: Dataset
    """What fills the trace bank: `data`, with another site's benign traffic where one is named."""
    tracker: Tracker
    console: Console
    resume: bool
    engine: Engine
    """Who trains."""
    started: float = field(default_factory=time.perf_counter)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    figures: dict[str, Path] = field(default_factory=dict)

    def _place(self, room: str, *depends: Any) -> Path:
        """Folder in a room of the artifacts, by what its content depends on beside the data and the seed."""
        return self.config.compute.artifacts / room / _digest(self.data.data_hash, self.config.data.window, self.config.compute.seed, *depends)

    @property
    def networks(self) -> Path:
        """Where base LSTM and temporal LSTM lie."""
        return self._place("networks", self.config.lstm.model_dump(mode="json"), self.config.temporal.model_dump(mode="json"))

    @property
    def autoencoder(self) -> Path:
        """Where the LSTM autoencoder lies."""
        return self._place("autoencoders", self.config.sae.model_dump(mode="json"))

    @property
    def sensor_folder(self) -> Path:
        """Where the sensor that joins them and its banks lie."""
        return self._place("sensors", self.networks.name, self.autoencoder.name)

    @property
    def bank_folder(self) -> Path:
        """Where the trace bank lies."""
        return self.sensor_folder / ("bank" if self.traces is self.data else f"bank-{self.traces.data_hash[:12]}")

    def agents_folder(self, config: Config) -> Path:
        """Where the agents of a configuration lie: this run's, or a variant of it."""
        return self.config.compute.artifacts / "agents" / _digest(self.sensor_folder.name, self.bank_folder.name, identity(config))

    @property
    def source(self) -> str:
        """`real` or `synthetic profile`, for every table and figure."""
        return self.data.source

    def say(self, text: str) -> None:
        """A line to the user."""
        self.console.print(text, highlight=False)

    def keep(self, figure: Figure, name: str, log: Tracker) -> None:
        """Store a figure in the run's folder and in MLflow, with the nested run `log` and with the parent."""
        path = self.folder / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        log.log_figure(figure, f"figures/{name}.png")
        self.tracker.log_figure(figure, f"{name}.png")  # MLflow shows two runs' files side by side, but not those in folders
        self.figures[name] = path

    def train_networks(self, join: bool = True) -> None:
        """Train base LSTM and temporal LSTM on `fit`; then `join` them with the autoencoder, which is trained first if it is missing."""
        if not self._finished(self.networks):
            with self.tracker.nested("predictor", {"phase": "lstm", "split": "fit", "algorithm": "base LSTM, temporal LSTM"}) as log:
                rows, classes = len(self.data.splits["fit"].label), len(self.data.class_names)
                self.say(f"training the attack predictor (base LSTM, then temporal LSTM) on {self.source} traffic: {rows:,} rows, {classes} classes")
                self.engine.train_networks(self.config, self.data, _Keeping(self, log), self.networks, self.resume)
        if join:
            self._join()

    def train_autoencoder(self, join: bool = True) -> None:
        """Train the LSTM autoencoder on benign windows of `fit`; then `join` it with the networks, which are trained first if they are missing."""
        if not self._finished(self.autoencoder):
            with self.tracker.nested("autoencoder", {"phase": "sae", "split": "fit", "algorithm": "LSTM autoencoder"}) as log:
                self.say(f"training the LSTM autoencoder on benign {self.source} traffic")
                families = self.engine.train_autoencoder(self.config, self.data, log, self.autoencoder, self.resume)
                title = f"anomaly score on held-out {self.source} windows, each family against benign: alarms at 1 % and 5 % of calibration windows"
                print_table(title, families, DETECTION_COLUMNS, self.console)
                log.log_artifact(self.autoencoder, "autoencoder")
        if join:
            self._join()

    def _finished(self, folder: Path) -> bool:
        """Whether a run that goes on has this training behind it: its artifact is there, and no checkpoint of one that was cut off."""
        return self.resume and folder.exists() and not list(folder.parent.glob(f"{folder.name}.*checkpoint*"))

    def _joined(self) -> bool:
        """Whether the sensor was made of the networks and the autoencoder that lie there now."""
        if not all(place.exists() for place in (self.networks, self.autoencoder, self.sensor_folder / "predictor")):
            return False
        return self._meta()["made_of"] == [content_digest(self.networks), content_digest(self.autoencoder)]

    def _read(self) -> bool:
        """Whether the bank holds readings of the sensor that lies there now."""
        place = self.bank_folder / "meta.json"
        return place.exists() and json.loads(place.read_text(encoding="utf-8"))["predictor"] == content_digest(self.sensor_folder / "predictor")

    def _join(self) -> None:
        """Join what was trained to one sensor, and fill the trace bank with its readings."""
        if not self.autoencoder.exists():
            self.train_autoencoder(join=False)
        if not self.networks.exists():
            self.train_networks(join=False)
        target = self.sensor_folder / "predictor"
        if self.resume and self._joined():
            self.bank()
            self._print_sensor()
            return
        with self.tracker.nested("sensor", {"phase": "sensor", "split": "calibrate", "algorithm": SENSOR}) as log:
            joined = assemble(self.config, self.data, self.networks, self.autoencoder, target, log)
            example = self._windows(8)
            log.log_model("attack-predictor", target, "src.models.predictor_interface", example, joined.sensor.read(example).table())
            log.log_metrics({f"eval/{key}": joined.metrics[key] for key in ("accuracy", "macro_f1")})
        self._build_bank()
        self._log_sensor()
        self._print_sensor()

    def _windows(self, count: int) -> np.ndarray:
        """A few raw windows of `test`, at most (count, T, F)."""
        rows, length = self.data.splits["test"], self.config.data.window
        return gather(rows.features, window_starts(rows.segment, length)[:count], length)

    def _build_bank(self) -> TraceBank:
        sensor = EnhancedAttackPredictor.load(self.sensor_folder / "predictor")
        self.say("reading the held-back windows with the sensor, once")
        bank = build_bank(self.traces, sensor, sensor.scale, name=SENSOR)
        made_by = content_digest(self.sensor_folder / "predictor")
        bank.save(self.bank_folder, {"data_hash": self.traces.data_hash, "seed": self.config.compute.seed, "predictor": made_by})
        return bank

    def _meta(self) -> dict[str, Any]:
        return json.loads((self.sensor_folder / "predictor" / "meta.json").read_text(encoding="utf-8"))

    def _sensor_rows(self) -> list[dict[str, Any]]:
        metrics = self._meta()["metrics"]
        return [{"family": key.split("/")[1], "macro_f1": value} for key, value in metrics.items() if key.startswith("family/")]

    def _print_sensor(self) -> None:
        metrics = self._meta()["metrics"]
        alone = ", ".join(f"{name} alone {metrics[f'{key}/macro_f1']:.3f}" for key, name in (("lstm", "base LSTM"), ("temporal", "temporal LSTM")))
        scores = f"accuracy {metrics['accuracy']:.3f}, macro-F1 {metrics['macro_f1']:.3f} over {len(self.data.class_names)} classes ({alone})"
        title = f"attack predictor on held-out {self.source} windows: {scores}"
        print_table(title, self._sensor_rows(), FAMILY_COLUMNS, self.console)

    def bank(self) -> TraceBank:
        """The trace bank of this data, with the sensor trained first if it is missing."""
        if not self._joined():
            self._join()
        elif not self._read():
            self._build_bank()
        self._log_sensor()
        return TraceBank.load(self.bank_folder)

    def _log_sensor(self) -> None:
        """The sensor's scores on the parent run, whether it was trained in this invocation or is reused: two invocations compare in any case."""
        autoencoder = json.loads((self.autoencoder / "meta.json").read_text(encoding="utf-8"))["metrics"]
        found = {f"predictor/{key}": self._meta()["metrics"][key] for key in ("accuracy", "macro_f1")}
        found |= {f"autoencoder/{key}": autoencoder[key] for key in ("auroc", "benign_alarms_05") if key in autoencoder}
        self.tracker.log_metrics(found)

    def live_sensor(self) -> EnhancedAttackPredictor | None:
        """The predictor, where the environment runs it in the loop."""
        return EnhancedAttackPredictor.load(self.sensor_folder / "predictor") if self.config.env.sensors == "live" else None

    def _manager(self) -> TrainingManager:
        bank, sensor = self.bank(), self.live_sensor()
        trainers = {name: self.engine.trainer(config)(config, bank, self.agents_folder(config), sensor) for name, config in groups(self.config).items()}
        seeds = range(self.config.compute.seed, self.config.compute.seed + self.config.rl.seeds)
        return TrainingManager(trainers, seeds, self.engine.train_agents)

    def train_agents(self, reuse: bool = False) -> None:
        """Train one agent a seed and group, on the `agent` split; `reuse` (implied by `--resume`) keeps those that are trained already."""
        manager = self._manager()

        @contextlib.contextmanager
        def watch(job: Job) -> Iterator[OnMetrics]:
            config = job.trainer.config
            name = config.rl.algorithm if job.group == AGENT else job.group
            tags = {"phase": "rl", "seed": job.seed, "split": "agent", "algorithm": config.rl.algorithm, "group": job.group}
            with self.tracker.nested(f"{name} seed {job.seed}", tags, config) as log:
                curve: list[tuple[int, float]] = []

                def on_metrics(metrics: dict[str, float], step: int) -> None:
                    log.log_metrics(metrics, step)
                    if "rollout/reward_mean" in metrics:
                        curve.append((step, metrics["rollout/reward_mean"]))

                yield on_metrics
                log.log_artifact(job.trainer.target(job.seed), "agent")
                if curve and job.group == AGENT:
                    self.curves[f"seed {job.seed}"] = curve
                    write_text(self.folder / "curves.json", json.dumps(self.curves) + "\n")
                    self._log_learning()

        manager.train(watch, self.say, self.resume, reuse)

    def _log_learning(self) -> None:
        """The seeds' mean learning curve on the parent run, once all are trained: there two invocations are compared."""
        if len(self.curves) < self.config.rl.seeds:
            return
        together: dict[int, list[float]] = {}
        for step, value in (point for curve in self.curves.values() for point in curve):
            together.setdefault(step, []).append(value)
        for step, values in sorted(together.items()):
            self.tracker.log_metrics({"rollout/reward_mean": float(np.mean(values))}, step)

    def evaluate(self) -> None:
        """Play all policies on held-out traces; print, save and log how they compare."""
        bank = self.bank()
        self.train_agents(reuse=True)
        agents = self._manager().agents
        runner = BenchmarkRunner(self.config, bank, sensor=self.live_sensor())
        with self.tracker.nested("evaluation", {"phase": "eval", "scenario": self.config.env.scenario, "split": "test", "sensors": bank.sensor}) as log:
            contest = runner.run(agents, self.say)
            found = BenchmarkAnalyzer(self.config, contest, len(build_network(self.config.env.scenario).names))
            self._log(found, log)
            best = runner.champion(agents[AGENT])
            self._draw(found, runner, best, log)
            self._register(best, runner, log)
            self._finish(found, log)

    def everything(self) -> None:
        """Predictors first, then the agents, then the evaluation."""
        self.train_networks(join=False)
        self.train_autoencoder()
        self.train_agents()
        self.evaluate()

    def _log(self, found: BenchmarkAnalyzer, log: Tracker) -> None:
        named = {"return": "reward_mean", "length": "length_mean"}
        for side, rows in found.policies.items():
            place = "eval" if side == "seen" else f"eval_{_short(side)}"
            for row in rows:
                numbers = {named.get(key, key): value for key, value in row.items() if isinstance(value, float)}
                log.log_metrics({f"{place}/{_short(row['policy'])}/{key}": value for key, value in numbers.items()})
            log.log_table(rows, f"{place.replace('eval', 'evaluation')}.json")
        # The parent carries the headline figures, so that two invocations compare without opening their nested runs.
        self.tracker.log_metrics({f"return/{_short(row['policy'])}": row["return"] for row in found.policies["seen"]})
        for row in found.scores:
            name = f"score/H{'' if row['side'] == 'seen' else '_held_out'}"
            self.tracker.log_metrics({name if row["agent"] == AGENT else f"{name}/{_short(row['agent'])}": row["H"]})

    def _draw(self, found: BenchmarkAnalyzer, runner: BenchmarkRunner, agent: Path, log: Tracker) -> None:
        heuristic = found.contest.heuristic
        shown = list(dict.fromkeys([CONSTANT, heuristic, AGENT, PLANNER]))
        self.keep(comparison_figure(found.policies, AGENT, self.source), "comparison", log)
        self.keep(profile_figure(found.profile("held out", shown), AGENT, self.source), "profile", log)
        self.keep(attacker_figure(found.attackers, shown, AGENT, self.source), "attackers", log)
        self.keep(safety_figure(found.policies["attack-free"], AGENT, self.source), "safety", log)
        if self.curves:
            levels = {row["policy"]: row["return"] for row in found.policies["seen"] if row["policy"] in (CONSTANT, heuristic, PLANNER)}
            self.keep(learning_figure(self.curves, levels, self.source), "learning", log)
        self._draw_sensor(runner.bank, log)
        attacked = np.flatnonzero(found.contest.sides["seen"].start >= 0)
        seed = TEST_SEED + int(attacked[0]) if len(attacked) else TEST_SEED
        recording = runner.record(lambda simulation: load_policy(agent, simulation), seed, self.folder / "episode.jsonl")
        self.figures["episode"] = self.folder / "figures" / "episode.png"
        write_png(recording, self.figures["episode"])
        write_html(recording, self.folder / "episode.html")
        log.log_artifact(self.figures["episode"], "figures")
        log.log_artifact(self.folder / "episode.html")

    def _draw_sensor(self, bank: TraceBank, log: Tracker) -> None:
        """What the sensor says of the windows that are played, family by family: the bank holds it beside each."""
        held_out = bank.split == SPLITS.index("test")
        truth = np.array([FAMILIES.index(name) for name in bank.class_families])[bank.label[held_out]]
        columns = [bank.sensor_names.index(f"probability:{name}") for name in FAMILIES]
        said = np.array(bank.sensors[held_out])[:, columns]
        self.keep(confusion_figure(truth, said.argmax(axis=1), FAMILIES, self.source), "confusion", log)
        self.keep(reliability_figure({"families": reliability(truth, said)}, self.source), "reliability", log)

    def _register(self, agent: Path, runner: BenchmarkRunner, log: Tracker) -> None:
        env, steps = runner.env(1), 8
        policy, state = load_policy(agent, env.simulation), None
        observation, _ = env.reset(seed=TEST_SEED)
        seen, given = [], []
        for _ in range(steps):  # of one episode, as the served agent reads them
            action, state = policy.predict(observation, state, deterministic=True)
            seen.append(observation)
            given.append(action)
            observation, *_ = env.step(action)
        log.log_model("defence-agent", agent, "agents.serving", np.concatenate(seen), np.concatenate(given))

    def _finish(self, found: BenchmarkAnalyzer, log: Tracker) -> None:
        title = f"{self.config.eval.episodes} held-out episodes of '{self.config.env.scenario}', {self.source} traffic: mean return with 95 % interval"
        away = {row["policy"]: row["return"] for row in found.policies["held out"]}
        rows = [{**row, "interval": f"[{row['low']:.1f}, {row['high']:.1f}]", "held_out": away[row["policy"]]} for row in found.policies["seen"]]
        print_table(title, rows, POLICY_COLUMNS, self.console)
        best = found.contest.heuristic
        self.say(f"best heuristic on the traces of tuning: {found.contest.words[best] or best}")
        seen, held_out = (row for row in found.scores if row["agent"] == AGENT)
        score = "score of the agent between that heuristic (0) and the planner (1)"
        self.say(f"{score}, attackers never met: {_interval(held_out, 'H')}; known attackers: {_interval(seen, 'H')}")
        if len(found.contest.agents) > 1:
            rows = [{**row, "interval": _interval(row, "H"), "improved": _interval(row, "improvement")} for row in found.scores]
            print_table(f"groups of agents, as they compare with {best}", rows, GROUP_COLUMNS, self.console)
        gates = {**self._gates(found), **found.gates()}
        unmet = [key for key, gate in gates.items() if not gate.met]
        self.say(f"gates met: {len(gates) - len(unmet)} of {len(gates)}" + (f"; not met: {', '.join(unmet)}" if unmet else ""))
        seconds = time.perf_counter() - self.started
        data = "real" if self.source == "real" else "synthetic"
        results = result("main_job", data, seconds, self.config.compute.threads, gates, self._tables(found))
        save_result(self.folder / "results.json", results)
        report = write_report(self.folder / "report.html", f"IoT defence, {self.source} traffic", results, self.figures)
        log.log_artifact(self.folder / "results.json")
        log.log_artifact(report)
        self.say(f"results  {self.folder / 'results.json'}")
        self.say(f"report   {report}")
        self.say(f"replay   {self.folder / 'episode.html'}  (one held-out episode under the agent, step by step)")
        self.say(f"figures  {self.folder / 'figures'}")

    def _gates(self, found: BenchmarkAnalyzer) -> dict[str, Gate]:
        gates = {}
        for key, name in {"main.best_constant": CONSTANT, "main.noop": "no-op", "main.random": "random"}.items():
            ahead = found.difference("seen", AGENT, name)
            what = f"mean return on held-out traces: agent minus {name}"
            gates[key] = Gate(what, ahead.value, 0.0, ">", ahead.low, ahead.high, by_interval=True)
        return gates

    def _tables(self, found: BenchmarkAnalyzer) -> dict[str, Any]:
        metrics: Mapping[str, Any] = self._meta()["metrics"]
        shown = list(dict.fromkeys([CONSTANT, found.contest.heuristic, AGENT, PLANNER]))
        return {
            "policies": found.policies["seen"],
            "policies, held out": found.policies["held out"],
            "policies, attack-free": found.policies["attack-free"],
            "scores": found.scores,
            "by attacker": found.attackers,
            "agent minus policy": _lines("policy", found.differences("seen")),
            "agent minus policy, held out": _lines("policy", found.differences("held out")),
            "agent's loss by noise in a sensor": _lines("sensor", {name: one for name, one in found.ablations.items() if name != SHUFFLED}),
            "agent's loss by shuffled observations": _lines("control", {SHUFFLED: found.ablations[SHUFFLED]}),
            "exploits": [{"script": name, "return": played.mean} for name, played in found.contest.exploits.items()],
            "performance profile": found.profile("held out", shown),
            "predictor": metrics,
            "heuristic": found.contest.heuristic,
            "validation": [{"policy": name, "return": value} for name, value in found.contest.validation.items()],
            "agents": {"seeds": list(self._manager().seeds)},
        }


def _interval(row: Mapping[str, Any], name: str) -> str:
    return str(Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"]))


class _Keeping:
    """A log of the predictors' training that also keeps one picture of attention for the report: of the first family of attacks explained."""

    def __init__(self, run: Run, log: Tracker) -> None:
        self._run, self._log = run, log
        self.log_metrics, self.log_table = log.log_metrics, log.log_table

    def log_figure(self, figure: Figure, path: str) -> None:
        self._log.log_figure(figure, path)
        if path.endswith("_attention.png") and FAMILIES[0] not in path and "attention" not in self._run.figures:
            self._run.keep(figure, "attention", self._log)


@contextlib.contextmanager
def start(config: Config, phase: str, resume: str | None) -> Iterator[Run]:
    """Open a run: read the data, then the folder and the MLflow parent run, so that wrong input leaves nothing behind.

    Raises:
        UserError: for data that cannot be read, or a folder or store that cannot be written.
    """
    load_scenario(config.env.scenario)
    check_techniques(config.attackers)
    for name in groups(config):
        if name in SCRIPTED:
            raise UserError(f"rl.variants: '{name}' is the name of a scripted policy to compare with; choose another")
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a log file is as wide as the tables need
    data = load_dataset(config.data, config.compute.seed, config.compute.artifacts)
    traces = with_benign_site(data, config.data)
    unknown = [name for name in config.env.features if name not in data.feature_names]
    if unknown and phase not in ("lstm", "sae"):  # which train a sensor for whatever features there are
        raise UserError(f"env.features: this data has no feature '{unknown[0]}': {nearest(unknown[0], data.feature_names)}")
    with contextlib.ExitStack() as stack:
        trains, told = stack.enter_context(engine(config.compute))
        runs = config.compute.artifacts / "runs"
        folder = runs / resume if resume else _new_folder(runs, f"{datetime.now():%Y%m%d-%H%M%S-%f}-{phase}-seed{config.compute.seed}")
        name, former = folder.name, _former(folder) if resume else None
        tags = {
            "phase": phase, "split": PHASE_SPLIT[phase], "algorithm": config.rl.algorithm, "scenario": config.env.scenario,
            "attackers": config.env.attackers, "run": name, "sensors": SENSOR, "data_source": data.source, "data_hash": data.data_hash, "site": traces.site,
        }  # fmt: skip
        write_text(folder / "config.yml", describe(config))
        shown = f"{phase} {Path(config.env.scenario).stem} {config.rl.algorithm} seed {config.compute.seed}"
        tracker = stack.enter_context(tracking(config, shown, tags, former))
        write_text(folder / "run.json", json.dumps({"mlflow_run": tracker.run_id, "phase": phase}) + "\n")
        console.print(f"run [bold]{name}[/bold]  data: {data.source} ({sum(len(rows.label) for rows in data.splits.values()):,} rows)", highlight=False)
        if traces is not data:
            console.print(f"traces   {traces.site}", highlight=False)
        if told:
            console.print(f"cluster  {told}", highlight=False)
        run = Run(config, folder, data, traces, tracker, console, resume is not None, trains)
        with contextlib.suppress(FileNotFoundError):
            run.curves.update(json.loads((folder / "curves.json").read_text(encoding="utf-8")))
        yield run
        console.print(f"MLflow   {tracker.uri}\n         .venv/bin/mlflow ui --backend-store-uri {tracker.uri}", highlight=False, soft_wrap=True)
        console.print(f"done in {time.perf_counter() - run.started:.0f} s", highlight=False)


def _new_folder(runs: Path, name: str) -> Path:
    """A run's folder, its own: where the clock went back, or two runs start at once, the name is there already, and a number is added."""
    for count in itertools.count(1):
        folder = runs / (name if count == 1 else f"{name}-{count}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.is_dir():
                raise UserError(f"cannot make the folder '{folder}': a file stands in its place; choose another with --set compute.artifacts=FOLDER") from None
            continue
        except OSError as error:
            raise UserError(f"cannot make the folder '{folder}': {error.strerror}; choose a writable one with --set compute.artifacts=FOLDER") from error
        return folder
    raise AssertionError("unreachable")


def _former(folder: Path) -> str | None:
    """The MLflow run that an interrupted invocation opened, if it came so far."""
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))["mlflow_run"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"'{folder / 'run.json'}' cannot be read; start a new run without --resume") from error
