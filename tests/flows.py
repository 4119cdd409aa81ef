"""Made-up flows in Unraveled's exact layout, NFStream's 89 columns and four labels, for tests of reading and training (not of detection)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.data.flows import LABEL_COLUMNS

_WAYS = ("bidirectional", "src2dst", "dst2src")
_FLAGS = ("syn", "cwr", "ece", "urg", "ack", "psh", "rst", "fin")
COLUMNS_89: tuple[str, ...] = (
    *("id", "expiration_id", "src_ip", "src_mac", "src_oui", "src_port", "dst_ip", "dst_mac", "dst_oui", "dst_port", "protocol", "ip_version"),
    *("vlan_id", "tunnel_id"),
    *(f"{way}_{name}" for way in _WAYS for name in ("first_seen_ms", "last_seen_ms", "duration_ms", "packets", "bytes")),
    *(f"{way}_{name}_ps" for way in _WAYS for name in ("min", "mean", "stddev", "max")),
    *(f"{way}_{name}_piat_ms" for way in _WAYS for name in ("min", "mean", "stddev", "max")),
    *(f"{way}_{name}_packets" for way in _WAYS for name in _FLAGS),
    *("splt_direction", "splt_ps", "splt_piat_ms", "application_name", "application_category_name", "application_is_guessed"),
    *("application_confidence", "requested_server_name", "client_fingerprint", "server_fingerprint", "user_agent", "content_type"),
)
"""Names of NFStream's columns with early packet statistics."""


def flow(**cells: str) -> dict[str, str]:
    """A row with the given cells set; texts are written as they stand, quoted or not."""
    given = {"src_ip": "10.1.1.1", "dst_ip": "10.1.1.2", "src_mac": "00:00:00:00:00:01", "dst_mac": "00:00:00:00:00:02", "src_oui": "00:00:00"}
    given |= {"dst_oui": "00:00:00", "application_name": "TLS", "application_category_name": "Web", "application_is_guessed": "0"}
    given |= {"bidirectional_first_seen_ms": "1622000000000", "Stage": "Benign", "Activity": "Normal", "DefenderResponse": "Benign", "Signature": "none"}
    empty = COLUMNS_89.index("splt_direction")
    return {**dict.fromkeys(COLUMNS_89[:empty], "0"), **dict.fromkeys(COLUMNS_89[empty:], ""), **given, **cells}


def write_unraveled(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    """One CSV; cells stand between the commas as they are."""
    names = (*COLUMNS_89, *LABEL_COLUMNS)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([",".join(names), *(",".join(row[name] for name in names) for row in rows), ""]))
    return path


def make_unraveled(folder: Path, rows: int, weeks: int = 2, networks: Sequence[str] = ("net1011x", "netgw"), seed: int = 0) -> Path:
    """`network-flows/Week1/net1011x_Flow_labeled.csv`, ...: four hosts, rows in no order of time, attacks in the later half of it."""
    stages = ("Reconnaissance", "Establish Foothold", "lateral movement", "Data Exfiltration", "Cover Up")
    for week in range(weeks):
        for number, name in enumerate(networks):
            rng = np.random.default_rng([seed, week, number])
            begin = 1_622_000_000_000 + week * 604_800_000
            flows = []
            for place in range(rows):
                host = int(rng.integers(4))
                harmful = place > rows // 2 and host == 3 and rng.random() < 0.3
                size = float(rng.lognormal(7 if harmful else 5, 0.5))
                agent = str(rng.choice(["curl", "Mozilla (KHTML, like Gecko)", '"Mozilla (X11, Linux)"', ""]))
                stage = str(rng.choice(stages)) if harmful else str(rng.choice(["Benign", "benign"]))
                more = {"src_ip": f"10.1.1.{host}", "dst_port": str(rng.choice([53, 80, 443])), "protocol": str(rng.choice([6, 17])), "user_agent": agent}
                more |= {"bidirectional_mean_ps": f"{size:.3f}", "bidirectional_packets": str(rng.integers(1, 50)), "Stage": stage}
                flows.append(flow(bidirectional_first_seen_ms=str(begin + place * 1000 + int(rng.integers(900))), **more))
            rng.shuffle(flows)
            write_unraveled(folder / "network-flows" / f"Week{week + 1}" / f"{name}_Flow_labeled.csv", flows)
    return folder
