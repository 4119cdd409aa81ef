"""One self-contained HTML page of a run."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.artifacts import write_text

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;max-width:1100px;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .7rem;border-bottom:1px solid #dde2e7;text-align:right}
td:first-child,th:first-child{text-align:left;white-space:nowrap}h2{text-transform:capitalize}
img{max-width:100%;margin:1rem 0}code{background:#f1f3f5;padding:.1rem .3rem}
.no{color:#a3123a;font-weight:600}.yes{color:#2b8a3e}
"""


def write_report(path: Path, title: str, found: Mapping[str, Any], figures: Sequence[Path]) -> Path:
    """Write tables of a result and its figures, embedded, as one page; returns `path`."""
    policies = found["tables"]["policies"]
    columns = {
        "policy": "policy", "return": "mean return", "low": "low", "high": "high", "damage": "damage",
        "service_loss": "service lost", "healthy_service": "healthy service", "steps_to_contain": "steps to contain",
        "orders_per_hour": "orders an hour", "false_downtime_hours_per_device_day": "false downtime, h a device-day", "length": "steps",
    }  # fmt: skip
    predictor = [{"measure": key, "value": value} for key, value in found["tables"]["predictor"].items()]
    gates = [{"gate": key, **value} for key, value in found["gates"].items()]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p><code>{html.escape(found['command'])}</code>, commit <code>{html.escape(found['commit'])}</code>, data: {html.escape(found['data'])}</p>",
        "<h2>Policies on held-out episodes</h2>", _table(policies, columns),
        "<h2>Gates</h2>", _table(gates, _same("gate", "what", "value", "low", "high", "op", "target", "met")),
        "<h2>Attack predictor</h2>", _table(predictor, _same("measure", "value")),
        *(_image(figure) for figure in figures),
    ]  # fmt: skip
    write_text(
        path,
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>\n",
    )
    return path


def _image(path: Path) -> str:
    name = html.escape(path.stem)
    return f'<h2>{name}</h2><img alt="{name}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in columns.values())
    body = "".join("<tr>" + "".join(f"<td>{_cell(row.get(column))}</td>" for column in columns) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return '<span class="yes">met</span>' if value else '<span class="no">not met</span>'
    if isinstance(value, float):
        return f"{value:,.0f}" if value == int(value) and abs(value) >= 10 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
    return html.escape(str("" if value is None else value))
