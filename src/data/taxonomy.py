"""One taxonomy for every label: class, family, kill-chain stage, ATT&CK tactic and severity.

The 34 classes and their grouping into families are those of CICIoT2023 (Neto et al. 2023, Sensors 23(13):5941), in the
spelling of its first release. Stages are those of the intrusion kill chain (Hutchins et al. 2011), tactics those of
MITRE ATT&CK Enterprise. Labels of other data sets that are none of the 34 classes stand beside them in the same families: the
botnets' traffic of N-BaIoT (Meidan et al. 2018; a botnet's flood is a distributed one, its search for devices reconnaissance) and
command and control of IoT-23, whose bots are Mirai and its kin, with what they download, their attempts on other devices, and Okiru's
traffic, which mostly tries one vulnerable port. Severities order classes by how much harm a device in that state does to the network; they are
a stated judgement of this product, not a measurement, and every risk score is a mean of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.errors import UserError

FAMILIES = ("Benign", "DDoS", "DoS", "Mirai", "Recon", "Spoofing", "Web", "BruteForce")
"""Families in their fixed order, benign first."""

BENIGN_OF = "Benign:"
"""Prefix of a class that holds the benign traffic of one device, e.g. `Benign:HueBridge`; it means what `BenignTraffic` means."""

STAGES = ("none", "reconnaissance", "delivery", "exploitation", "installation", "command and control", "actions on objectives")
"""Kill-chain stages in use; weaponisation leaves no traffic."""


@dataclass(frozen=True)
class Label:
    """What one label means."""

    name: str
    """Canonical spelling."""
    family: str
    """One of `FAMILIES`."""
    stage: str
    """One of `STAGES`."""
    tactic: str
    """ATT&CK tactic, `none` for benign traffic."""
    severity: float
    """0 (benign) to 1."""
    resolution: str
    """`class` for one of the 34, `family` where a file says no more than the family, `other` for a label of another data set."""


def _table() -> dict[str, Label]:
    recon, exploit, objective = "reconnaissance", "exploitation", "actions on objectives"
    rows: list[tuple[str, str, str, str, float]] = [("BenignTraffic", "Benign", "none", "none", 0.0)]
    for name in ("ICMP_Flood", "UDP_Flood", "TCP_Flood", "PSHACK_Flood", "SYN_Flood", "RSTFINFlood", "SynonymousIP_Flood"):
        rows.append((f"DDoS-{name}", "DDoS", objective, "Impact", 0.8))
    for name in ("ICMP_Fragmentation", "UDP_Fragmentation", "ACK_Fragmentation"):
        rows.append((f"DDoS-{name}", "DDoS", objective, "Impact", 0.8))
    rows += [("DDoS-HTTP_Flood", "DDoS", objective, "Impact", 0.8), ("DDoS-SlowLoris", "DDoS", objective, "Impact", 0.7)]
    rows += [(f"DoS-{name}_Flood", "DoS", objective, "Impact", 0.7) for name in ("UDP", "TCP", "SYN", "HTTP")]
    rows += [(f"Mirai-{name}", "Mirai", objective, "Impact", 0.9) for name in ("greeth_flood", "greip_flood", "udpplain")]
    rows += [
        ("Recon-HostDiscovery", "Recon", recon, "Discovery", 0.2),
        ("Recon-OSScan", "Recon", recon, "Reconnaissance", 0.25),
        ("Recon-PortScan", "Recon", recon, "Reconnaissance", 0.3),
        ("Recon-PingSweep", "Recon", recon, "Discovery", 0.2),
        ("VulnerabilityScan", "Recon", recon, "Reconnaissance", 0.35),
        ("MITM-ArpSpoofing", "Spoofing", exploit, "Credential Access", 0.6),
        ("DNS_Spoofing", "Spoofing", exploit, "Credential Access", 0.55),
        ("BrowserHijacking", "Web", exploit, "Collection", 0.6),
        ("CommandInjection", "Web", exploit, "Execution", 0.75),
        ("SqlInjection", "Web", exploit, "Initial Access", 0.65),
        ("XSS", "Web", exploit, "Initial Access", 0.5),
        ("Backdoor_Malware", "Web", "installation", "Persistence", 0.85),
        ("Uploading_Attack", "Web", "delivery", "Persistence", 0.7),
        ("DictionaryBruteForce", "BruteForce", exploit, "Credential Access", 0.5),
    ]
    labels = {row[0]: Label(*row, resolution="class") for row in rows}
    coarse: list[tuple[str, str, str, float]] = [
        ("DDoS", objective, "Impact", 0.8),
        ("DoS", objective, "Impact", 0.7),
        ("Mirai", objective, "Impact", 0.9),
        ("Recon", recon, "Reconnaissance", 0.3),
        ("Spoofing", exploit, "Credential Access", 0.6),
        ("Web", exploit, "Initial Access", 0.65),
        ("BruteForce", exploit, "Credential Access", 0.5),
    ]
    labels |= {name: Label(name, name, stage, tactic, severity, "family") for name, stage, tactic, severity in coarse}
    others = [(f"Gafgyt-{name}", "DDoS", objective, "Impact", 0.8) for name in ("combo", "junk", "tcp", "udp")]
    others += [(f"Mirai-{name}", "Mirai", objective, "Impact", 0.9) for name in ("ack", "syn", "udp")]
    others += [(f"{name}-scan", "Recon", recon, "Discovery", 0.3) for name in ("Gafgyt", "Mirai")]
    others += [("C&C", "Mirai", "command and control", "Command and Control", 0.85), ("FileDownload", "Mirai", "installation", "Command and Control", 0.8)]
    others += [(name, "Mirai", exploit, "Lateral Movement", 0.6) for name in ("Okiru", "Bot-exploit")]
    return labels | {row[0]: Label(*row, resolution="other") for row in others}


LABELS: dict[str, Label] = _table()
"""Every known label by canonical name: the 34 classes, the seven attack families, and labels of other data sets."""

CLASSES: tuple[str, ...] = tuple(name for name, label in LABELS.items() if label.resolution == "class")
"""The 34 classes of CICIoT2023."""


def _plain(name: str) -> str:
    """Lower case without file suffixes, punctuation and the running number of a capture."""
    stem = re.sub(r"(\.(pcap|csv|parquet))+$", "", name.strip().lower())
    return re.sub(r"[^a-z]", "", re.sub(r"[\s_-]*\d+$", "", stem))


_ALIASES = {
    "benign": "BenignTraffic",
    "benignfinal": "BenignTraffic",
    "normal": "BenignTraffic",
    "malware": "Backdoor_Malware",
    "backdoor": "Backdoor_Malware",
    "uploading": "Uploading_Attack",
    "webattack": "Web",
    "webbased": "Web",
    "reconnaissance": "Recon",
    "reconvulnerabilityscan": "VulnerabilityScan",
    "arpspoofing": "MITM-ArpSpoofing",
    "mitmdnsspoofing": "DNS_Spoofing",
    "dictionarybrute": "DictionaryBruteForce",
}
_BY_PLAIN = {_plain(name): name for name in LABELS} | _ALIASES


def canonical(name: str) -> str:
    """The canonical spelling of a label or of a capture's file name, of either release.

    Args:
        name: e.g. `DDOS-ACK_FRAGMENTATION`, `DDoS-ACK_Fragmentation12.pcap.csv`, `BENIGN`, `WebAttack`.

    Returns:
        A key of `LABELS`.

    Raises:
        UserError: for a label that is not known; it names the nearest one.
    """
    found = _BY_PLAIN.get(_plain(name))
    if found is None:
        close = difflib.get_close_matches(_plain(name), _BY_PLAIN, n=1, cutoff=0.5)
        hint = f"did you mean '{_BY_PLAIN[close[0]]}'? " if close else ""
        raise UserError(f"unknown label '{name}': {hint}known: {', '.join(LABELS)}")
    return found


def _of(class_names: Sequence[str]) -> list[Label]:
    return [LABELS["BenignTraffic" if name.startswith(BENIGN_OF) else canonical(name)] for name in class_names]


def family_index(class_names: Sequence[str]) -> NDArray[np.int64]:
    """(C,) index into `FAMILIES` of each class.

    Raises:
        UserError: for an unknown class.
    """
    return np.array([FAMILIES.index(label.family) for label in _of(class_names)], dtype=np.int64)


def severity(class_names: Sequence[str]) -> NDArray[np.float32]:
    """(C,) severity of each class, 0 for benign traffic up to 1.

    Raises:
        UserError: for an unknown class.
    """
    return np.array([label.severity for label in _of(class_names)], dtype=np.float32)


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """The given canonical names, each once, in the order of the families and of `LABELS`: benign first."""
    order = list(LABELS)
    return tuple(sorted(set(names), key=lambda name: (FAMILIES.index(LABELS[name].family), order.index(name))))
