import numpy as np
import pytest

from src.data.taxonomy import CLASSES, FAMILIES, LABELS, STAGES, canonical, family_index, in_order, severity
from src.errors import UserError

ROWS_PER_FAMILY = {"Benign": 1, "DDoS": 12, "DoS": 4, "Mirai": 3, "Recon": 5, "Spoofing": 2, "Web": 6, "BruteForce": 1}


def test_the_34_classes_fall_into_the_published_families() -> None:
    assert len(CLASSES) == 34
    assert {family: sum(LABELS[name].family == family for name in CLASSES) for family in FAMILIES} == ROWS_PER_FAMILY


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("DDoS-ACK_Fragmentation12.pcap.csv", "DDoS-ACK_Fragmentation"),
        ("DDOS-ACK_FRAGMENTATION", "DDoS-ACK_Fragmentation"),
        ("DDoS-HTTP_Flood-.pcap.csv", "DDoS-HTTP_Flood"),
        ("Mirai-greip_flood21", "Mirai-greip_flood"),
        ("MIRAI-UDPPLAIN", "Mirai-udpplain"),
        ("BENIGN", "BenignTraffic"),
        ("BenignTraffic3.pcap.csv", "BenignTraffic"),
        ("WebAttack", "Web"),
        ("Malware", "Backdoor_Malware"),
        ("Uploading", "Uploading_Attack"),
        ("recon-pingsweep", "Recon-PingSweep"),
        ("VULNERABILITYSCAN", "VulnerabilityScan"),
        (" DNS_SPOOFING ", "DNS_Spoofing"),
        ("DoS-UDP_Flood7.pcap", "DoS-UDP_Flood"),
        ("XSS", "XSS"),
        ("Mirai", "Mirai"),
        ("BruteForce", "BruteForce"),
    ],
)
def test_spellings_of_both_releases(given: str, expected: str) -> None:
    assert canonical(given) == expected


@pytest.mark.parametrize("name", LABELS)
def test_every_label_survives_case_and_numbering(name: str) -> None:
    for variant in (name, name.upper(), name.lower(), f"{name}12.pcap.csv", name.replace("_", "-")):
        assert canonical(variant) == name


def test_unknown_label_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown label 'DDoS-ICMP_Flod'.*did you mean 'DDoS-ICMP_Flood'.*known: BenignTraffic"):
        canonical("DDoS-ICMP_Flod")
    with pytest.raises(UserError, match="unknown label"):
        canonical("")


def test_every_label_is_complete() -> None:
    for label in LABELS.values():
        assert label.family in FAMILIES
        assert label.stage in STAGES
        assert (label.severity == 0.0) == (label.family == "Benign") == (label.tactic == "none")
        assert 0.0 <= label.severity <= 1.0
    assert LABELS["Mirai-udpplain"].family == "Mirai"
    assert {LABELS[family].resolution for family in FAMILIES[1:]} == {"family"}


def test_arrays_follow_the_given_order() -> None:
    names = ("XSS", "BENIGN", "Mirai-udpplain")
    np.testing.assert_array_equal(family_index(names), [6, 0, 3])
    values = severity(names)
    assert values.dtype == np.float32
    assert values[1] == 0.0
    assert values[2] > values[0] > 0.0
    assert in_order(["XSS", "DDoS", "BenignTraffic", "DDoS-UDP_Flood", "XSS"]) == ("BenignTraffic", "DDoS-UDP_Flood", "DDoS", "XSS")
