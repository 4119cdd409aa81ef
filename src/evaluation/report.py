"""One self-contained HTML page of a run: what was found, how sure that is, and what it was compared with."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.artifacts import write_text

STYLE = """
:root{--ink:#1f2933;--muted:#66717d;--line:#dde2e7;--accent:#0b7285}
body{font:15px/1.55 system-ui,sans-serif;color:var(--ink);max-width:1260px;margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.7rem;margin-bottom:.2rem}h2{font-size:1.2rem;margin:2.2rem 0 .4rem;border-bottom:1px solid var(--line);padding-bottom:.2rem}
p.note,figcaption{color:var(--muted);font-size:.88rem;margin:.2rem 0 .6rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;margin:.6rem 0;font-size:.88rem;font-variant-numeric:tabular-nums}
td,th{padding:.25rem .5rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}th{font-weight:600;vertical-align:bottom;white-space:normal}
td:first-child,th:first-child,td.text,th.text{text-align:left}td.text{white-space:normal}tr.mine td{background:#e6f4f6;font-weight:600}
small{color:var(--muted);font-weight:400}figure{margin:1rem 0}img{max-width:100%}code{background:#f1f3f5;padding:.1rem .3rem;overflow-wrap:anywhere}
.cards{display:flex;flex-wrap:wrap;gap:1rem;margin:1.2rem 0}.card{border:1px solid var(--line);border-radius:.5rem;padding:.8rem 1.1rem;flex:1 1 14rem}
.card b{display:block;font-size:2rem;line-height:1.2;color:var(--accent)}.card b small{display:block;font-size:1rem}
.no{color:#a3123a;font-weight:600}.yes{color:#2b8a3e}
"""

CAPTIONS = {
    "comparison": "Mean return of every policy on the same episodes. What was tuned was tuned on other traces, against the attackers of training.",
    "learning": "Mean return of the episodes that ended while the agents learned; they still explore there, so this lies below what they do in the end.",
    "profile": "Share of runs and episodes that end above each return (performance profile). The higher a curve on the left, the rarer the disasters.",
    "attackers": "The same policies, attacker by attacker.",
    "safety": "What each policy does to a network that nobody attacks.",
    "episode": "One held-out episode under the agent: device by device, how far the attacker was, and what was ordered.",
    "confusion": "What the sensor takes the windows of each family for, on held-out traces.",
    "reliability": "How often the sensor is right when it says how sure it is.",
}
"""What a figure shows, by its name; others go without."""

MEASURES = {
    "iqm": "IQM", "cvar": "CVaR 5 %", "damage": "damage", "availability": "availability", "healthy_service": "healthy service",
    "steps_to_detect": "steps to detect", "steps_to_contain": "steps to contain", "orders_per_hour": "orders an hour",
}  # fmt: skip
"""Columns of the policies' table beside the returns."""

BEFORE, SENSOR = ("comparison", "profile", "attackers"), ("confusion", "reliability", "attention")
"""Figures that belong to the policies' section, and to the sensor's."""


def write_report(path: Path, title: str, found: Mapping[str, Any], figures: Mapping[str, Path]) -> Path:
    """Write a result's tables and figures, embedded, as one page; tables and figures that are not there are left out.

    Args:
        path: of the page.
        title: above it.
        found: a result as `src.evaluation.tables.result` makes it.
        figures: PNG files by name; `CAPTIONS` has what is said below the known ones.

    Returns:
        `path`.
    """
    tables = found["tables"]
    shown = {name: _figure(name, file) for name, file in figures.items() if file.exists()}
    rest = [shown[name] for name in shown if name not in (*BEFORE, *SENSOR, "safety")]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p class=note><code>{html.escape(found['command'])}</code>, commit <code>{html.escape(found['commit'])}</code>, "
        f"data: {html.escape(found['data'])}, {found['seconds']:,.0f} s</p>",
        _headline(tables.get("scores", [])),
        _section("Policies", _policies(tables), *(shown[name] for name in BEFORE if name in shown), _attackers(tables)),
        _section("Safety on days without an attack", _safety(tables.get("policies, attack-free", [])), shown.get("safety", "")),
        _section("What the agent reads", _ablations(tables)),
        _section("Gates", _gates(found["gates"])),
        _section("Training and play", *rest),
        _section("Attack predictor", _predictor(tables.get("predictor", {})), *(shown[name] for name in SENSOR if name in shown)),
    ]  # fmt: skip
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    write_text(path, page)
    return path


def _section(heading: str, *parts: str) -> str:
    body = "".join(parts)
    return f"<h2>{html.escape(heading)}</h2>{body}" if body else ""


def _headline(scores: Sequence[Mapping[str, Any]]) -> str:
    """The score of the first group of agents on each side, and the probability of improvement."""
    mine = [row for row in scores if row["agent"] == scores[0]["agent"]]
    where = {"seen": "attackers of training", "held out": "attackers never met"}
    cards = []
    for row in sorted(mine, key=lambda row: row["side"]):
        cards.append(
            _card(_spread(row, "H", 2), f"score H, {where[row['side']]}: 0 is the best heuristic ({row['heuristic']}), 1 a planner that sees the truth")
        )
    for row in mine:
        if row["side"] == "held out":
            cards.append(_card(_spread(row, "improvement", 2), f"probability of improvement over {row['heuristic']}, attackers never met"))
            cards.append(_card(_spread(row, "constant_scale", 2), "place between the best constant (0) and the planner (1), attackers never met"))
    return f"<div class=cards>{''.join(cards)}</div>" if cards else ""


def _card(number: str, words: str) -> str:
    return f"<div class=card><b>{number}</b>{html.escape(words)}</div>"


def _policies(tables: Mapping[str, Any]) -> str:
    """A row a policy: returns on all sides, and what can be measured apart from the reward, on the side of attackers never met where it was played."""
    seen, away, calm = tables.get("policies", []), tables.get("policies, held out", []), tables.get("policies, attack-free", [])
    if not seen:
        return ""
    others = [{row["policy"]: row for row in rows} for rows in (away, calm)]
    rows = []
    for row in sorted(seen, key=lambda row: -row["return"]):
        far, quiet = (one.get(row["policy"], {}) for one in others)
        main = far or row
        rows.append(
            {
                "policy": row["policy"], "seen": _spread(row, "return", 1), "away": _spread(far, "return", 1), "calm": _spread(quiet, "return", 1),
                **{key: main.get(key) for key in MEASURES},
            }
        )  # fmt: skip
    columns = {
        "policy": "policy", "seen": "return, attackers of training", "away": "return, attackers never met", "calm": "return, attack-free",
        **MEASURES,
    }  # fmt: skip
    note = (
        "Mean return an episode with its 95 % interval. From IQM on: against attackers never met. IQM is the mean of the middle half of the episodes, "
        "CVaR the mean of the worst 5 %. Availability is the share of legitimate traffic delivered, weighed by criticality; healthy service, the share that "
        "is neither lost nor served by a compromised device. Steps to detect: from the attack's beginning until a device under attack is first cut off, "
        "or the episode's end (so a lower bound); steps to contain: how long a foothold stays in reach, until the episode's end at most."
    )
    tuned = "; ".join(f"<b>{html.escape(row['policy'])}</b>: {html.escape(row['rule'])}" for row in seen if row.get("rule") and row["policy"] != "planner")
    rules = f"<p class=note>As tuned on other traces, against the attackers of training. {tuned}.</p>" if tuned else ""
    return f"<p class=note>{note}</p>{_table(rows, columns, _mine(tables))}{rules}"


def _attackers(tables: Mapping[str, Any]) -> str:
    """A row an attacker: the score, and mean returns of the policies that make the scale."""
    rows, scores = tables.get("by attacker", []), tables.get("scores", [])
    if not rows or not scores:
        return ""
    policies = list(dict.fromkeys(["no-op", "best constant", scores[0]["heuristic"], scores[0]["agent"], "planner"]))
    listed = [{**row, "met": "yes" if row["side"] == "seen" else "never", "score": _spread(row, "H", 2)} for row in rows]
    columns = {"attacker": "attacker", "met": "met in training", "episodes": "episodes", "score": "H of the agent", **{name: name for name in policies}}
    return _table(listed, columns)


def _safety(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = {
        "policy": "policy", "false_isolations_per_device_day": "cut off for nothing, times a device-day",
        "false_downtime_hours_per_device_day": "hours cut off for nothing, a device-day", "orders_per_hour": "orders an hour",
        "violations": "steps a protected device was cut off, an episode", "availability": "availability",
    }  # fmt: skip
    return _table(rows, columns) if rows else ""


def _ablations(tables: Mapping[str, Any]) -> str:
    rows = [{"what": f"noise for {row['sensor']}", **row} for row in tables.get("agent's loss by noise in a sensor", [])]
    rows += [{"what": row["control"], **row} for row in tables.get("agent's loss by shuffled observations", [])]
    listed = [{"what": row["what"], "lost": _spread({**row, "return": row["value"]}, "return", 2)} for row in rows]
    return _table(listed, {"what": "control", "lost": "mean return that the agent loses"}) if listed else ""


def _gates(gates: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        {
            "gate": key, "what": one["what"], "value": _spread({**one, "return": one["value"]}, "return", 2),
            "target": f"{one['op']} {one['target']:g}", "met": one["met"],
        }
        for key, one in gates.items()
    ]  # fmt: skip
    return _table(rows, {"gate": "gate", "what": "what", "value": "value", "target": "target", "met": ""}) if rows else ""


def _predictor(metrics: Mapping[str, Any]) -> str:
    names = {
        "accuracy": "accuracy", "macro_f1": "macro-F1 over classes", "family_macro_f1": "macro-F1 over families", "lstm/macro_f1": "macro-F1, base LSTM alone",
        "temporal/macro_f1": "macro-F1, temporal LSTM alone",
    }  # fmt: skip
    rows = [{"measure": words, "value": metrics[key]} for key, words in names.items() if key in metrics]
    rows += [{"measure": f"F1, {key.split('/')[1]}", "value": value} for key, value in metrics.items() if key.startswith("family/")]
    return _table(rows, {"measure": "measure, held-out windows", "value": "value"}) if rows else ""


def _mine(tables: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(row["agent"] for row in tables.get("scores", []))


def _figure(name: str, path: Path) -> str:
    picture = base64.b64encode(path.read_bytes()).decode()
    caption = html.escape(CAPTIONS.get(name, name))
    return f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{picture}"><figcaption>{caption}</figcaption></figure>'


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], marked: frozenset[str] = frozenset()) -> str:
    texts = {"what", "rule", "met"} & set(columns)
    head = "".join(f"<th{' class=text' if key in texts else ''}>{html.escape(heading)}</th>" for key, heading in columns.items())
    body = "".join(
        f"<tr{' class=mine' if row.get('policy') in marked else ''}>"
        + "".join(f"<td{' class=text' if key in texts else ''}>{_cell(row.get(key))}</td>" for key in columns)
        + "</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>"


class _Markup(str):
    """HTML already."""

    __slots__ = ()


def _spread(row: Mapping[str, Any], name: str, digits: int) -> str:
    """A value and, small, its interval; nothing where there is none."""
    if row.get(name) is None:
        return _Markup("")
    low, high = (row.get(f"{name}_{end}", row.get(end)) for end in ("low", "high"))
    spread = "" if low is None or high is None else f" <small>[{low:.{digits}f}, {high:.{digits}f}]</small>"
    return _Markup(f"{row[name]:.{digits}f}{spread}")


def _cell(value: Any) -> str:
    if isinstance(value, _Markup):
        return value
    if isinstance(value, bool):
        return '<span class="yes">met</span>' if value else '<span class="no">not met</span>'
    if isinstance(value, float):
        size = abs(value)
        digits = 0 if size >= 1000 or size == 0 else 1 if size >= 10 else 2 if size > 1 else 3
        return f"{value:,.{digits}f}"
    return html.escape(str("" if value is None else value))
