"""Tables of the README and docs from the committed result files: `python -m benchmarks.report [--check]`.

Text between `<!-- results NAME -->` and `<!-- end -->` is replaced by what `TABLES[NAME]` makes of `benchmarks/results/`.
`--check` changes nothing and ends with status 1 where a document differs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT
from src.errors import UserError

ABLATION = "agent's loss by noise in a sensor"
DOCUMENTS = ("README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md"))))


def _load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *([_number(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _source(found: dict[str, Any], command: str) -> str:
    machine = found["machine"]
    return f"`{command}`, {found['data']} traffic, {found['seconds']:.0f} s on {machine['cpus']} CPUs."


def policies() -> str:
    """Returns of the main job."""
    found = _load("main_job")
    head = ["policy", "attackers of training", "95 % interval", "never met", "95 % interval", "damage", "healthy service", "orders an hour", "false h a day"]
    strange = {row["policy"]: row for row in found["tables"]["policies, held out"]}
    rows = [
        [
            row["policy"], row["return"], _ends(row), strange[row["policy"]]["return"], _ends(strange[row["policy"]]), row["damage"],
            row["healthy_service"], row["orders_per_hour"], row["false_downtime_hours_per_device_day"],
        ]
        for row in found["tables"]["policies"]
    ]  # fmt: skip
    scores = found["tables"]["predictor"]
    sensor = f"The predictor behind it: accuracy {scores['accuracy']:.3f}, macro-F1 {scores['macro_f1']:.3f}, over 8 families {scores['family_macro_f1']:.3f}."
    lost = ", ".join(f"{line['sensor']} {_number(line['value'])} [{_number(line['low'])}, {_number(line['high'])}]" for line in found["tables"][ABLATION])
    noise = f"With noise in place of a sensor's readings the agent loses, in return against attackers never met: {lost}."
    return f"{_source(found, 'python -m benchmarks.main_job')} {sensor}\n\n{_table(head, rows)}\n\n{noise}"


def _gate(key: str, one: dict[str, Any]) -> list[Any]:
    bounds = "" if one["low"] is None else f"[{_number(one['low'])}, {_number(one['high'])}]"
    return [f"{one['what']} (`{key}`)", one["value"], bounds, f"{one['op']} {_number(one['target'])}", "yes" if one["met"] else "**no**"]


def gates(*names: str) -> str:
    """Every gate of some result files."""
    rows = [_gate(key, one) for name in names for key, one in _load(name)["gates"].items()]
    said = " ".join(_source(_load(name), f"python -m benchmarks.{name}") for name in names)
    return f"{said}\n\n{_table(['gate', 'measured', '95 % interval', 'target', 'met'], rows)}"


def meetings() -> str:
    """Every attacker against every defender, of the duel."""
    found = _load("self_play")
    rules, rows = found["tables"].values()
    names = [row["defender"] for row in rules]
    head = ["attacker", *(part for name in names for part in (f"damage under {name}", "95 % interval", f"return of {name}"))]
    cells = [[row["attacker"], *(cell for name in names for cell in (row[f"{name}: damage"], _bounds(row, name), row[f"{name}: return"]))] for row in rows]
    said = "; ".join(f"{row['defender']} is {row['rule']}" for row in rules if row["defender"] != "no-op")
    return f"{_source(found, 'python -m benchmarks.self_play')} Here {said}.\n\n{_table(head, cells)}"


def _bounds(row: dict[str, Any], name: str) -> str:
    return f"[{_number(row[f'{name}: low'])}, {_number(row[f'{name}: high'])}]"


def clients() -> str:
    """The examples of client libraries."""
    found = _load("examples")
    head = ["`python -m examples.` ...", "steps", "s", "steps a second of CPU", "mean return", "standard error"]
    rows = [[row[key] for key in ("example", "steps", "seconds", "steps_per_cpu_second", "return", "standard_error")] for row in found["tables"]["clients"]]
    return f"{_source(found, 'python -m benchmarks.examples')}\n\n{_table(head, rows)}"


def speeds() -> str:
    """Steps a second of each front and of each peer."""
    found = _load("env_speed")
    columns = ("who", "scenario", "environments", "devices", "steps a second", "times CartPole")
    rows = [[row[column] for column in columns] for row in found["tables"]["steps a second"]]
    return f"{_source(found, 'python -m benchmarks.env_speed')}\n\n{_table(list(columns), rows)}"


def worlds() -> str:
    """Every scenario and side of attackers."""
    rows = _load("env_gates")["tables"]["worlds"]
    return _table(list(rows[0]), [list(row.values()) for row in rows])


def calm() -> str:
    """Attack-free episodes."""
    rows = _load("env_gates")["tables"]["attack-free episodes"]
    head = ["policy", "mean return", "service lost", "false downtime, h a device-day"]
    return _table(head, [[row["policy"], row["return"], row["service_loss"], row["false_downtime_hours_per_device_day"]] for row in rows])


HEADLINES = (
    "F.gate1", "F.gate1.prevented", "F.gate2.above_constants", "F.gate2.bayes", "F.gate2.room", "F.gate4.evolved", "F.gate5", "F.gate6.check_env",
)  # fmt: skip


def headlines() -> str:
    """The environment's gates that say most, and its speed."""
    shown = {"env_gates": HEADLINES, "env_speed": ("F.speed.single", "F.speed.vector", "F.speed.devices", "F.speed.ppo")}
    rows = [_gate(key, _load(name)["gates"][key]) for name, keys in shown.items() for key in keys]
    return _table(["gate", "measured", "95 % interval", "target", "met"], rows)


def part(title: str, where: dict[str, tuple[Any, ...]] | None = None, name: str = "predictors", /, **columns: str) -> Callable[[], str]:
    """Some columns of one table of a result file, each under its heading.

    Args:
        title: of the table.
        where: shows only rows whose values of these keys are among those named.
        name: of the result.
        columns: heading by key, with `_` for what cannot stand in a name; `KEY__interval` shows KEY's interval.
    """

    def show() -> str:
        rows = _load(name)["tables"][title]
        chosen = [row for row in rows if all(row[key] in allowed for key, allowed in (where or {}).items())]
        return _table(list(columns.values()), [[_of(row, key) for key in columns] for row in chosen])

    return show


def _of(row: dict[str, Any], key: str) -> Any:
    """A cell, or the ends of an interval: those named after the key, or else the row's only ones."""
    named = {re.sub(r"\W", "_", name): value for name, value in row.items()}
    if not key.endswith("__interval"):
        return named[key]
    stem = key.removesuffix("__interval")
    ends = next(pair for pair in ((f"{stem}_low", f"{stem}_high"), (f"{stem}__low", f"{stem}__high"), ("low", "high")) if pair[0] in named)
    low, high = (named[end] for end in ends)
    return "" if low is None else f"[{_number(low)}, {_number(high)}]"


def both(*shows: Callable[[], str]) -> Callable[[], str]:
    """Several tables below one another."""
    return lambda: "\n\n".join(show() for show in shows)


GATE_HEAD = ["gate", "measured", "95 % interval", "target", "met"]
AGENT_HEADLINES = ("G5.score", "G5.score.seen", "G5.improvement", "G5.drop", "G5.constant_scale", "G5.exploits", "G5.shuffled")

SENSOR_HEADLINES = (
    "C4.rows", "C4.pooled", "C4.stats", "D13.base", "D13.calibration", "D13.uncertainty", "D13.selective", "D13.site", "D13.site.false_alarms",
    "D13.site.shortcut", "D13.unknown", "D7.old", "D8.deletion",
)  # fmt: skip


def sensor_headlines() -> str:
    """The sensors' gates that say most."""
    found = _load("predictors")["gates"]
    return _table(["gate", "measured", "95 % interval", "target", "met"], [_gate(key, found[key]) for key in SENSOR_HEADLINES])


def once_measured(name: str, show: Callable[[], str]) -> Callable[[], str]:
    """A table of a result that may not be committed yet."""
    return lambda: show() if (RESULTS / f"{name}.json").exists() else f"Not measured yet: `python -m benchmarks.{name}`."


def base_ablation() -> str:
    """What each choice in the base LSTM's recipe adds or costs."""
    found = _load("base_ablation")
    columns = {
        "variant": "base LSTM",
        "calibrate": "macro-F1, calibrate",
        "test": "macro-F1, test",
        "compared_with": "compared with",
        "calibrate_change": "change on calibrate",
        "calibrate_change__interval": "95 % interval",
        "test_change": "change on test",
        "test_change__interval": "95 % interval",
        "parameters": "parameters",
        "training_seconds": "training, s",
    }
    rows = [[_of(row, key) for key in columns] for row in found["tables"]["choices"]]
    return f"{_source(found, 'python -m benchmarks.base_ablation')}\n\n{_table(list(columns.values()), rows)}"


SAE_HEADLINES = ("E5.ciciot2023", "E5.iot23", "E5.nbaiot", "E3.false_alarms", "E.memory", "B2.memory", "B2.rate", "E.speed.train", "E.speed.score")


def sae_headlines() -> str:
    """The autoencoder's gates that say most."""
    found = _load("sae")["gates"]
    return _table(["gate", "measured", "95 % interval", "target", "met"], [_gate(key, found[key]) for key in SAE_HEADLINES])


def sensor_speed() -> str:
    """How fast each sensor reads, by path and batch."""
    rows = _load("temporal_speed")["tables"]["sensors, one thread"]
    columns = ("sensor", "path", "batch", "windows a second", "exact")
    return _table(list(columns), [["yes" if row[key] is True else "no" if row[key] is False else row[key] for key in columns] for row in rows])


def agents(title: str, name: str = "agents", /, **columns: str) -> Callable[[], str]:
    """Some columns of one table of the agents' result, or of their choices'."""
    return once_measured(name, part(title, {}, name, **columns))


def agents_attackers() -> str:
    """Mean return of the policies that say most, and the agents' score, by attacker."""
    rows = _load("agents")["tables"]["contest: attackers"]
    names = ("best constant", "threshold on risk", "Bayes filter", "PPO", "planner")
    head = ["attacker", "side", "episodes", *names, "H", "95 % interval"]
    return _table(head, [[row["attacker"], row["side"], row["episodes"], *(row[name] for name in names), row["H"], _of(row, "H__interval")] for row in rows])


def agents_costs() -> str:
    """Habits of agents as taking devices down gets dearer."""
    rows = _load("agent_choices")["tables"]["costs: cost ratio"]
    return _table(list(rows[0]), [list(row.values()) for row in rows])


RULES = ("scenario", "split", "episodes", "first_seed", "tuning_episodes", "first_tuning_seed", "settings")


def leaderboard(folder: Path = RESULTS / "leaderboard") -> str:
    """Every submission's entry beside the scripted policies, a table for each bank of traffic, best on held-out attackers first.

    Raises:
        UserError: for two entries of one name, or entries on one bank that were not played by the same rules.
    """
    entries = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    banks: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        banks.setdefault(entry["bank"]["digest"], []).append(entry)
    parts = []
    for digest, group in sorted(banks.items(), key=lambda item: (item[1][0]["data"] != "synthetic", item[0])):
        first, names = group[0], [entry["name"] for entry in group]
        for entry in group:
            if names.count(entry["name"]) > 1:
                raise UserError(f"two entries of the leaderboard are called '{entry['name']}'")
            other = next((key for key in RULES if entry["rules"][key] != first["rules"][key]), None)
            if other is not None:
                raise UserError(f"'{entry['name']}' and '{first['name']}' were not played by the same {other}: submit the older one again")
        where = f"{first['bank']['source']} traffic, {first['bank']['site']}, bank `{digest}`, rules `{first['rules']['settings']}`"
        parts.append(f"### {where[0].upper()}{where[1:]}\n\n{_ranking(group)}")
    return "\n\n".join(parts) if parts else "No entry yet."


def _ranking(group: list[dict[str, Any]]) -> str:
    """Entries with the scripted policies that the first of them was played beside."""
    lines: list[tuple[dict[str, Any], str, dict[str, Any] | None]] = [
        (row, row["rule"], None) for row in group[0]["tables"]["held out"] if row["policy"] != group[0]["name"]
    ]
    for entry in group:
        (row,) = [row for row in entry["tables"]["held out"] if row["policy"] == entry["name"]]
        lines.append((row, f"`{entry['submitted']}`, commit `{entry['commit'][:10]}`", entry))
    lines.sort(key=lambda line: -line[0]["return"])
    seen = {row["policy"]: row for entry in group for row in entry["tables"]["seen"]}
    head = ["policy", "H", "95 % interval", "return, held-out attackers", "95 % interval", "IQM", "return, seen attackers", "damage", "orders an hour", "what"]
    rows = [
        [
            f"**{row['policy']}**" if entry else row["policy"], row["H"], _ends(row, "H_"), row["return"], _ends(row), row["iqm"],
            seen[row["policy"]]["return"], row["damage"], row["orders_per_hour"], what,
        ]
        for row, what, entry in lines
    ]  # fmt: skip
    return f"0 of H is the {group[0]['heuristic']}.\n\n{_table(head, rows)}"


def _ends(row: dict[str, Any], prefix: str = "") -> str:
    return f"[{_number(row[f'{prefix}low'])}, {_number(row[f'{prefix}high'])}]"


POLICIES = {
    "policy": "policy", "return": "mean return", "return__interval": "95 % interval", "iqm": "IQM", "cvar": "CVaR, worst 5 %", "damage": "damage",
    "availability": "availability", "healthy_service": "healthy service", "steps_to_detect": "steps to detect", "steps_to_contain": "steps to contain",
    "orders_per_hour": "orders an hour",
}  # fmt: skip
GROUPS = {"side": "attackers", "seeds": "seeds", "return": "mean return", "H": "H", "H__interval": "95 % interval"}


def as_it_is(name: str, title: str, *, leave_out: tuple[str, ...] = ()) -> Callable[[], str]:
    """The table of a benchmark whose title begins so, as it is; some columns left out."""

    def rows() -> str:
        found = next(rows for key, rows in _load(name)["tables"].items() if key.startswith(title))
        shown = [key for key in found[0] if key not in leave_out]
        return _table([key.replace("_", " ") for key in shown], [[row[key] for key in shown] for row in found])

    return once_measured(name, rows)


INCIDENT = "Risk of each window of both devices over time, with the orders that the agent (above) and the Bayes filter (below) would give"
PACKET_HEADLINES = (
    "B6.ciciot39",
    "B6.nbaiot115",
    "B6.speed.ciciot39.nfstream",
    "B6.speed.nbaiot115.nfstream",
    "B6.site.false_alarms",
    "B6.site.shortcut",
    "B6.watch",
)


SCALE_HEADLINES = (
    "H3.load_memory",
    "H3.bank_memory",
    "H3.rate",
    "H3.open",
    "H1.agents",
    "H1.figures",
    "A6.kills",
    "A6.interrupt",
    "H5.defects",
    "H5.artifacts",
)

TABLES: dict[str, Callable[[], str]] = {
    "scale_headlines": once_measured(
        "scale", lambda: _table(GATE_HEAD, [_gate(key, one) for key, one in _load("scale")["gates"].items() if key in SCALE_HEADLINES])
    ),
    "scale_gates": once_measured("scale", lambda: gates("scale")),
    "scale_stages": as_it_is("scale", "data: stages"),
    "scale_pandas": as_it_is("scale", "data: beside pandas"),
    "scale_cluster_experiment": as_it_is("scale", "cluster: experiment"),
    "scale_cluster_agents": as_it_is("scale", "cluster: agents side by side"),
    "scale_cluster_predictors": as_it_is("scale", "cluster: predictors"),
    "scale_kills": as_it_is("scale", "crashes: SIGKILL"),
    "scale_faults": as_it_is("scale", "crashes: other faults", leave_out=("wrong",)),
    "scale_inputs": as_it_is("scale", "fuzz: mutated input"),
    "scale_artifacts": as_it_is("scale", "fuzz: artifacts"),
    "packets_headlines": once_measured(
        "packets", lambda: _table(GATE_HEAD, [_gate(key, one) for key, one in _load("packets")["gates"].items() if key in PACKET_HEADLINES])
    ),
    "packets_gates": once_measured("packets", lambda: gates("packets")),
    "packets_equality": as_it_is("packets", "equality"),
    "packets_speed": as_it_is("packets", "speed"),
    "packets_calibration": as_it_is("packets", "calibration"),
    "packets_devices": as_it_is("packets", "false alarms by device"),
    "packets_incident": both(as_it_is("packets", "incident"), once_measured("packets", lambda: f"![{INCIDENT}](../benchmarks/results/packets_incident.png)")),
    "leaderboard": leaderboard,
    "agents_headlines": once_measured("agents", lambda: _table(GATE_HEAD, [_gate(key, _load("agents")["gates"][key]) for key in AGENT_HEADLINES])),
    "agents_gates": once_measured("agents", lambda: gates("agents")),
    "agents_seen": agents("contest: policies, seen", **POLICIES),
    "agents_held_out": agents("contest: policies, held out", **POLICIES),
    "agents_attackers": once_measured("agents", agents_attackers),
    "agents_algorithms": agents(
        "algorithms: algorithms", "agent_choices", agents="algorithm", **GROUPS, minus_ppo="minus PPO", minus_ppo__interval="its 95 % interval"
    ),
    "agents_ablations": agents(
        "ablations: ablations", "agent_choices", agents="PPO", **GROUPS, minus_as_it_is="minus as it is", minus_as_it_is__interval="its 95 % interval"
    ),
    "agents_losses": agents("contest: return lost, held out", without="noise for", value="return lost", value__interval="95 % interval"),
    "agents_transfer": agents(
        "transfer: other networks",
        network="network",
        **GROUPS,
        best_constant="best constant",
        threshold_on_risk="threshold on risk",
        Bayes_filter="Bayes filter",
        planner="planner",
    ),
    "agents_safety": agents(
        "contest: policies, attack-free",
        policy="policy",
        false_isolations_per_device_day="false isolations a device-day",
        false_downtime_hours_per_device_day="false downtime, h a device-day",
        orders_per_hour="orders an hour",
        availability="availability",
        violations="protected devices cut off, steps",
    ),
    "agents_ceiling": agents(
        "ceiling: perfect readings",
        readings="readings",
        side="attackers",
        threshold_on_risk="threshold on risk",
        Bayes_filter="Bayes filter",
        planner="planner",
        H_of_the_Bayes_filter="H of the Bayes filter",
    ),
    "agents_costs": once_measured("agent_choices", agents_costs),
    "sae": lambda: gates("sae"),
    "sae_headlines": sae_headlines,
    "sae_detection": both(
        part(
            "detection: detection of attacks (thresholds flag 0.05 of benign windows of calibrate)",
            {},
            "sae",
            data="data",
            score="score",
            auroc="AUROC",
            auroc__interval="95 % interval",
            pr_auc="PR-AUC",
            prevalence="prevalence",
            recall="recall",
            fpr="false alarms",
            fpr__interval="95 % interval of them",
            f1="F1",
        ),
        part(
            "detection: events, alerts and delay (first seed)",
            {},
            "sae",
            data="data",
            score="score",
            events="events",
            detected="detected",
            alerts_per_hour="alerts an hour",
            false_alerts_per_hour="false alerts an hour",
            delay__median_s="median delay, s",
        ),
    ),
    "sae_false_alarms": both(
        part(
            "false_alarms: false alarms on captures that were not calibrated on, of devices that were trained on",
            {},
            "sae",
            division="captures divided",
            target="target",
            share="realised",
            share__interval="95 % interval",
            share___target="realised / target",
        ),
        part(
            "false_alarms: false alarms of devices that nothing was trained on",
            {},
            "sae",
            calibrated_on="calibrated on",
            target="target",
            mean_over_devices="realised, mean over devices",
            mean_over_devices__interval="95 % interval",
            devices_above_target="devices above the target",
        ),
    ),
    "sae_stopping": both(
        part(
            "stopping: trainings on benign windows, real, at most 150 epochs, patience 5",
            {},
            "sae",
            data="data",
            strategy="strategy",
            epochs="epochs",
            seconds="seconds",
            loss_to_standard="validation loss, as a multiple of standard's",
            time_saved="time saved",
            seeds_with_equal_loss="seeds with equal loss",
            time_saved_at_equal_loss="time saved at equal loss",
        ),
        part(
            "stopping: loss curves, synthetic, at most 150 epochs, patience 5",
            {},
            "sae",
            case="synthetic loss curve",
            strategy="strategy",
            epochs="stopped after",
            restored="restored",
            reason="reason",
        ),
    ),
    "sae_memory": both(
        part(
            "memory: stages on the Sysmon table",
            {},
            "sae",
            times="times the data",
            stage="stage",
            rows="rows",
            seconds="seconds",
            rows_a_second="rows a second",
            peak_gb="peak resident, GB",
        ),
        part(
            "memory: aggregation of CICIoT2023's captures",
            {},
            "sae",
            copies="copies of the captures",
            rows="rows",
            seconds="seconds",
            rows_a_second="rows a second",
            peak_gb="peak resident, GB",
        ),
    ),
    "sae_speed": part(
        "speed: windows of 50 x 39, 64 a batch, synthetic values, one thread",
        {},
        "sae",
        who="who",
        work="work",
        version="version",
        windows_a_second="windows a second",
        times_keras="times Keras",
        times_keras__interval="95 % interval",
    ),
    "sae_return": part(
        "return: return with and without the anomaly",
        {},
        "sae",
        family_left_out="family left out",
        sensor="sensor",
        rule="rule",
        **{"return": "mean return"},
        return__interval="95 % interval",
        minus_without="minus without",
        difference__interval="95 % interval of it",
    ),
    "base_ablation": once_measured("base_ablation", base_ablation),
    "sensor_speed": sensor_speed,
    "sensor_headlines": sensor_headlines,
    "predictors": lambda: gates("predictors"),
    "temporal_speed": lambda: gates("temporal_speed"),
    "candidates": part(
        "protocol: candidates",
        candidate="trained detector",
        macro_f1="macro-F1",
        macro_f1__interval="95 % interval",
        accuracy="accuracy",
        family_macro_f1="macro-F1, 8 families",
        benign_fpr="benign called attack",
        recall_at_alarm="recall, alarm set for 1 % on calibrate",
        fpr_at_alarm="its false alarms on test",
        top_error="calibration error, top class",
        classwise_error="classwise",
        parameters="parameters",
        seconds="training, s",
    ),
    "controls": both(
        part("protocol: controls", candidate="trained detector", control="control", macro_f1="macro-F1", lost="lost", lost__interval="95 % interval"),
        part(
            "protocol: natural prevalence",
            candidate="at natural prevalence",
            macro_f1="macro-F1",
            macro_f1__interval="95 % interval",
            accuracy="accuracy",
            benign_fpr="benign called attack",
        ),
    ),
    "doubt": part(
        "protocol: doubt",
        candidate="trained detector",
        doubt="doubt",
        auroc="AUROC for errors",
        auroc__interval="95 % interval",
        risk="errors",
        risk_at_80_="errors at 80 % coverage",
        ratio="ratio",
    ),
    "fusion": part(
        "fusion: return in the environment by sensor",
        sensor="sensor",
        policy="policy",
        **{"return": "mean return"},
        return__interval="95 % interval",
        fused_minus_this="fused minus this",
        difference__interval="95 % interval of it",
    ),
    "site": both(
        part(
            "site: methods",
            method="method",
            site_false_alarms="alarms at the site",
            recall="recall on attacks",
            recall__interval="95 % interval",
            recall_small="recall, 10-frame classes",
            home_benign_flagged="home's benign flagged",
            infected_flagged="34-1 flagged",
            third_flagged="third place's benign flagged",
        ),
        part(
            "site: elsewhere",
            method="the chosen method elsewhere",
            site_false_alarms="alarms at the site",
            recall="recall on attacks",
            recall__interval="95 % interval",
            home_benign_flagged="home's benign flagged",
            infected_flagged="34-1 flagged",
            third_flagged="third place's benign flagged",
        ),
    ),
    "families": both(
        part(
            "families: AUROC of a family left out against known windows",
            network="network",
            family="family left out",
            windows="windows",
            **{"1___largest_probability": "1 - largest p"},
            entropy="entropy",
            Mahalanobis_of_embedding="Mahalanobis, embedding",
            Mahalanobis_of_rows="Mahalanobis, rows",
            PCA_of_benign="PCA of benign",
            LSTM_autoencoder_of_benign="LSTM autoencoder",
            novelty__both_distances_="novelty",
        ),
        part(
            "families: AUROC of a family left out against benign windows",
            {},
            network="network, against benign windows alone",
            family="family left out",
            entropy="entropy",
            Mahalanobis_of_rows="Mahalanobis, rows",
            PCA_of_benign="PCA of benign",
            LSTM_autoencoder_of_benign="LSTM autoencoder",
            novelty__both_distances_="novelty",
        ),
        part(
            "families: what becomes of a family left out (novelty (both distances) above 0.95 marks a window as new)",
            network="network",
            family="family left out",
            AUROC="novelty AUROC",
            AUROC__interval="95 % interval",
            called_benign="called benign",
            marked_as_new="marked as new",
            benign_and_not_marked="benign and not marked",
            known_windows_marked="known windows marked",
        ),
    ),
    "devices": both(
        *(
            part(
                f"devices: leave one device out, {schema}",
                arm=schema,
                devices="devices",
                device_left_out_flagged="its benign flagged",
                device_left_out_flagged__interval="95 % interval",
                worst_device="worst device",
                recall="recall",
                benign_of_the_attacks__site_flagged="benign of the attacks' site flagged",
                **more,
            )
            for schema, more in (("39 features", {"34_1_flagged": "34-1 flagged"}), ("115 features", {}))
        )
    ),
    "online": both(
        part(
            "online: before and after",
            {"new_family": ("mean",)},
            stream="stream",
            method="method",
            old_f1="macro-F1, old classes",
            old_change="change",
            old_change__interval="95 % interval",
            new_f1="F1, new family",
            all_f1="macro-F1, all",
            ms_a_batch="ms a batch",
        ),
        part(
            "online: drift",
            signal="drift signal",
            new_family="new family",
            streams="streams",
            missed="missed",
            median_delay_windows="median delay, windows",
            false_alarms="false alarms",
            unchanged_windows="in unchanged windows",
        ),
    ),
    "policies": policies,
    "env_gates": lambda: gates("env_gates"),
    "env_speed": lambda: gates("env_speed"),
    "headlines": headlines,
    "speeds": speeds,
    "worlds": worlds,
    "calm": calm,
    "examples": clients,
    "profile_fidelity": lambda: gates("profile_fidelity"),
    "self_play": meetings,
}


def rendered(text: str) -> str:
    """A document with its tables made anew."""

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}"

    return re.sub(r"(<!-- results (\w+) -->).*?(<!-- end -->)", fill, text, flags=re.DOTALL)


def main() -> int:
    """Write, or check."""
    words = argparse.ArgumentParser(description="Make the documents' tables from the committed result files.")
    words.add_argument("--check", action="store_true", help="change nothing; fail where a document differs")
    check = words.parse_args().check
    stale = []
    for name in DOCUMENTS:
        path = Path(ROOT / name)
        before = path.read_text(encoding="utf-8")
        try:
            after = rendered(before)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        if after != before:
            stale.append(name)
            if not check:
                path.write_text(after, encoding="utf-8")
    if check and stale:
        print(f"tables differ from benchmarks/results in {', '.join(stale)}: run python -m benchmarks.report", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
