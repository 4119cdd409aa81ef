"""Encoders of columns: each is compared with an independent computation of what it should be."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from src.errors import UserError
from src.sae.features import CLIP, GAP, Encoder, account_kind, check_config, distinct, port_kind, seconds_since_previous, tokens
from src.sae.layout import SCHEMAS

LINES = [
    r"C:\Windows\System32\cmd.exe /c whoami",
    r"C:\Windows\System32\svchost.exe -k netsvcs -p",
    r"powershell.exe -enc SQBFAFgAIAAoAE4AZQB3AC0ATwBiAGoAZQBjAHQA",
    r"C:\Users\one\AppData\Local\Temp\a1b2c3d4e5.tmp",
    None,
]


def events(count: int = 400, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    size = rng.lognormal(3, 2, count)
    return pl.DataFrame({
        "CommandLine": [LINES[place] for place in rng.integers(0, len(LINES), count)],
        "Image": [rf"C:\Windows\tool{place}.exe" for place in rng.integers(0, 40, count)],
        "Protocol": [("tcp", "udp", None)[place] for place in rng.choice(3, count, p=[0.6, 0.3, 0.1])],
        "Port": rng.choice([22, 443, 8080, 60_000], count),
        "Size": [None if absent else value for absent, value in zip(rng.random(count) < 0.1, size, strict=True)],
        "Change": rng.normal(0, 50, count),
    })  # fmt: skip


CONFIG = {
    "tfidf_columns": ["CommandLine", "Image"],
    "tfidf_params": {"CommandLine": 100, "Image": 100},
    "categorical_columns": ["Protocol"],
    "port_columns": ["Port"],
    "numeric_columns": ["Size", "Change"],
}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"C:\Windows\System32\cmd.exe /c ping -n 4 10.0.0.1", "c windows system32 cmd .exe /c ping -n <num> <ip>"),
        (r"HKLM\System\Services\{4255c859-0ef3-4d18-923f-17b219819d83}\DhcpIPAddress", "hklm system services <guid> dhcpipaddress"),
        ("powershell -noP -W 1 -enc SQBGACgAJABQAFMAVgBFAFIAcwBpAG8ATgBUAA==", "powershell -nop -w <num> -enc <blob>"),
        (r"HKU\S-1-5-21-100-200-300\Run", "hku <sid> run"),
        ("c:/windows/drivers/x.sys", "c windows drivers x .sys"),
        ("DWORD (0x0000014a) 1a2b3c4d5e", "dword <hex> <hex>"),
        ("user=admin,mode_a", "user admin mode a"),
        ("", ""),
        (r"C:\Users\pgustavo\AppData\x.tmp", "c users <user> appdata x .tmp"),
        (r"C:\Users\Ann Lee\x.tmp", "c users <user> x .tmp"),
        (r"dir C:\Users\ann & whoami", "dir c users <user> whoami"),
        (r"C:\Users\Public\x.exe", "c users public x .exe"),
        (r"net use \\DC01\admin$ /user:DOMAIN\name", "net use <host> admin /user <named>"),
        (r"Invoke-Command -ComputerName DC01 -Credential SITE\ann", "invoke command -computername <named> -credential <named>"),
        (r"runas SITE\ann cmd", "runas <account> cmd"),
        (r"reg query HKLM\Software", "reg query hklm software"),
        ("curl https://files.site.example/a.ps1", "curl https <host> a .ps1"),
        ("curl http://10.0.0.5:8000/a", "curl http <ip> <num> a"),
        ("ping dc01.site.local", "ping <host>"),
        ("ssh ann@dc01.site.com", "ssh <user>"),
        ("ping fe80::1ff:fe23:4567:890a -n 2", "ping <ip6> -n <num>"),
        ("arp 00-1A-2B-3C-4D-5E 00:1a:2b:3c:4d:5e", "arp <mac> <mac>"),
        ("[Convert]::FromBase64String", "convert frombase64string"),
        (r"\\?\C:\x.sys \??\C:\y.sys \\.\pipe\z", "c x .sys c y .sys pipe z"),
        (r"InstallUtil.exe /u c:\ProgramData\x.dll", "installutil .exe /u c programdata x .dll"),
        ("net user ann /add", "net user <user> /add"),
        (r"bin\python.exe x\y.ps1", "bin python .exe x y .ps1"),
    ],
)
def test_tokens(text: str, found: str) -> None:
    assert tokens(text) == found.split()


NAMED = (
    r"C:\Users\{user}\AppData\Local\x.exe -a",
    r"net use \\{host}\c$ /user:{domain}\{user}",
    r"powershell.exe -File \\{host}.{domain}.local\share\go.ps1",
    r"wmic /node:{host} process call create cmd.exe",
    r"schtasks /create /ru {domain}\{user} /tn job",
    r"curl http://{host}.{domain}.com/x --user {user}",
    r"ssh {user}@{host}",
    r"net user {user} /domain",
    r"runas {domain}\{user}",
)


def test_who_and_where_do_not_show() -> None:
    """The same behaviour of other people on other hosts of another domain is the same vector."""
    here, there = (
        pl.DataFrame({"CommandLine": [line.format(**names) for line in NAMED] * 3})
        for names in ({"user": "pgustavo", "host": "DC01", "domain": "shire"}, {"user": "ann.lee-2", "host": "WORKSTATION5", "domain": "panda-lab"})
    )
    encoder = Encoder.fit(here, {"tfidf_columns": ["CommandLine"]}, 1000, seed=0)
    assert not [name for name in encoder.feature_names if any(word in name for word in ("pgustavo", "dc01", "shire"))]
    np.testing.assert_array_equal(encoder.encode(there), encoder.encode(here))
    assert Encoder.fit(there, {"tfidf_columns": ["CommandLine"]}, 1000, seed=0).feature_names == encoder.feature_names
    assert len(np.unique(encoder.encode(here), axis=0)) == len(NAMED), "different commands stay different"


def test_text_goes_through_tfidf() -> None:
    rows = events()
    encoder = Encoder.fit(rows, {"tfidf_columns": ["CommandLine"], "tfidf_params": {"CommandLine": 100}}, 100, seed=0)
    encoded = encoder.encode(rows)
    present = rows["CommandLine"].drop_nulls().to_list()
    expected = TfidfVectorizer(analyzer=tokens).fit(present)  # pyright: ignore[reportArgumentType]
    assert encoder.vocabulary["CommandLine"] == expected.get_feature_names_out().tolist()
    known = rows["CommandLine"].is_not_null().to_numpy()
    np.testing.assert_allclose(encoded[known, :-1], expected.transform(present).toarray(), atol=1e-6)
    assert (encoded[~known] == 0).all()
    assert encoder.feature_names == [f"CommandLine={word}" for word in encoder.vocabulary["CommandLine"]] + ["CommandLine:new"]


def test_a_vocabulary_holds_the_most_frequent_tokens_and_new_ones_are_counted() -> None:
    rows = pl.DataFrame({"Image": ["a b"] * 5 + ["a c"] * 3 + ["d"]})
    encoder = Encoder.fit(rows, {"tfidf_columns": ["Image"], "tfidf_params": {"Image": 2}}, 100, seed=0)
    assert encoder.vocabulary["Image"] == ["a", "b"]
    wide = Encoder.fit(rows, {"tfidf_columns": ["Image"]}, 100, seed=0)
    assert wide.vocabulary["Image"] == ["a", "b", "c"], "a token of a single row is no part of the vocabulary"
    new = pl.DataFrame({"Image": ["a b", "a x y z", "x", None, ""]})
    np.testing.assert_allclose(wide.encode(new)[:, -1], [0, 0.75, 1, 0, 0])


def test_categories_rare_and_missing() -> None:
    rows = pl.DataFrame({"Protocol": ["tcp"] * 1500 + ["udp"] * 500 + ["sctp"], "Kind": [1, 2, None] * 667})
    encoder = Encoder.fit(rows, {"categorical_columns": ["Protocol", "Kind"]}, 100, seed=0)
    assert encoder.feature_names == [
        *(f"Protocol={name}" for name in ("tcp", "udp", "other", "missing")),
        *(f"Kind={name}" for name in ("1", "2", "other", "missing")),
    ]
    encoded = encoder.encode(pl.DataFrame({"Protocol": ["udp", "sctp", "never seen", None], "Kind": [2, 3, None, 1]}))
    np.testing.assert_array_equal(encoded, [
        [0, 1, 0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 0, 0, 0],
    ])  # fmt: skip


def test_ports_are_kinds() -> None:
    assert port_kind(pl.Series([22, 1023, 1024, 37215, 49152, None])).to_list() == ["22", "1023", "registered", "registered", "dynamic", None]
    assert port_kind(pl.Series([443.0, None])).to_list() == ["443", None]


def test_accounts_are_kinds_so_that_no_host_or_person_is_known_by_them() -> None:
    accounts = pl.Series(["NT AUTHORITY\\SYSTEM", "Window Manager\\DWM-2", "SITE\\DC01$", "DESKTOP-1\\ann", "SITE\\bob", "NT AUTHORITY\\NETWORK SERVICE", None])
    assert account_kind(accounts).to_list() == ["system", "dwm", "machine", "person", "person", "network service", None]
    rows = pl.DataFrame({"User": accounts.to_list() * 3})
    encoder = Encoder.fit(rows, {"account_columns": ["User"]}, 100, seed=0)
    other_site = rows.with_columns(pl.col("User").str.replace("SITE|DESKTOP-1", "ELSEWHERE").str.replace("ann|bob", "eve"))
    np.testing.assert_array_equal(encoder.encode(other_site), encoder.encode(rows))


def test_a_column_that_few_rows_have_keeps_its_categories() -> None:
    rows = pl.DataFrame({"IntegrityLevel": ["High"] * 2 + ["Low"] * 4 + [None] * 9000})
    assert Encoder.fit(rows, {"categorical_columns": ["IntegrityLevel"]}, 100, seed=0).categories["IntegrityLevel"] == ["Low", "High"]


def test_numbers() -> None:
    rows = events()
    encoder = Encoder.fit(rows, {"numeric_columns": ["Size", "Change"]}, 100, seed=0)
    encoded = encoder.encode(rows)
    assert encoder.feature_names == ["Size", "Change", "Size:missing"], "only Size lacks values"
    absent = rows["Size"].is_null().to_numpy()
    np.testing.assert_array_equal(encoded[:, 2], absent)
    assert (encoded[absent, 0] == 0).all()
    for place, values in ((0, rows["Size"].drop_nulls().to_numpy()), (1, rows["Change"].to_numpy())):
        log = np.sign(values) * np.log1p(np.abs(values))
        shown = encoded[~absent, 0] if place == 0 else encoded[:, 1]
        np.testing.assert_allclose(shown, np.clip((log - log.mean()) / log.std(), -CLIP, CLIP), atol=1e-5)
    extreme = encoder.encode(pl.DataFrame({"Size": [1e300, None, np.inf, np.nan], "Change": [-1e300, None, -np.inf, 0.0]}))
    np.testing.assert_array_equal(extreme[:3], [[CLIP, -CLIP, 0], [0, 0, 1], [0, 0, 1]])
    assert np.isfinite(extreme).all()
    constant = Encoder.fit(pl.DataFrame({"Size": [7.0] * 5}), {"numeric_columns": ["Size"]}, 100, seed=0)
    assert constant.encode(pl.DataFrame({"Size": [7.0, 8e9]})).ravel().tolist() == [0.0, CLIP]


def test_the_reduction_is_the_svd_of_all_rows_and_makes_nothing_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = events()
    full = Encoder.fit(rows, CONFIG, 1000, seed=0)
    width = len(full.sparse_names)
    matrix, beside = np.split(full.encode(rows), [width], axis=1)
    assert width > 50

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a sparse matrix was made dense")

    monkeypatch.setattr(sparse.csr_array, "toarray", refuse)
    monkeypatch.setattr(sparse.csr_array, "todense", refuse)
    np.testing.assert_array_equal(full.encode(rows)[:, :width], matrix)
    encoder = Encoder.fit(rows, CONFIG, 8, seed=0)
    assert encoder.feature_names[:9] == [*(f"svd_{index}" for index in range(8)), "CommandLine:new"]
    reduced = encoder.encode(rows)
    svd = TruncatedSVD(8, algorithm="arpack").fit(matrix.astype(np.float64))
    assert encoder.components is not None
    ours, theirs = encoder.components.T @ encoder.components, svd.components_.T @ svd.components_  # projections: signs and order do not matter
    np.testing.assert_allclose(ours, theirs, atol=0.02)
    np.testing.assert_allclose(reduced[:, :8], matrix @ encoder.components.T, atol=1e-5)
    np.testing.assert_array_equal(reduced[:, 8:], beside)
    assert encoder.explained == pytest.approx(svd.explained_variance_ratio_.sum(), abs=0.01)


def test_rows_are_encoded_the_same_alone_and_after_a_reload(tmp_path: Path) -> None:
    rows, new = events(), events(seed=1).with_columns(pl.lit("other.exe --new").alias("CommandLine"))
    for most in (1000, 8):
        encoder = Encoder.fit(rows, CONFIG, most, seed=3)
        again = Encoder.fit(rows, CONFIG, most, seed=3)
        encoder.save(tmp_path)
        loaded = Encoder.load(tmp_path)
        assert loaded.feature_names == encoder.feature_names
        assert loaded.explained == encoder.explained
        for frame in (rows, new):
            whole = encoder.encode(frame)
            assert whole.dtype == np.float32
            assert whole.shape == (len(frame), len(encoder.feature_names))
            np.testing.assert_array_equal(loaded.encode(frame), whole)
            np.testing.assert_array_equal(again.encode(frame), whole)
            np.testing.assert_allclose(encoder.encode(frame[50:60]), whole[50:60], atol=1e-6)
    with pytest.raises(UserError, match="lack column 'Image'"):
        encoder.encode(rows.drop("Image"))
    (tmp_path / "encoder.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be read"):
        Encoder.load(tmp_path)


def test_seconds_since_the_previous_event_of_the_session() -> None:
    time = np.array([1000, 3500, 3500, 2000, 9000, -1, 9500, 10_000])
    session = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    ordered = np.array([True] * 7 + [False])
    np.testing.assert_array_equal(seconds_since_previous(time, session, ordered), [np.nan, 2.5, 0, 0, np.nan, np.nan, np.nan, np.nan])


def test_distinct_values() -> None:
    values, codes = distinct(pl.Series(["b", None, "a", "b", None]))
    assert [values[code] for code in codes] == ["b", None, "a", "b", None]
    assert len(values) == 3


ENCODINGS = sorted(SCHEMAS.glob("encoding-*.json"))


@pytest.mark.parametrize("path", ENCODINGS, ids=lambda path: path.stem)
def test_shipped_encodings_fit_their_schemas_and_leak_nothing(path: Path) -> None:
    schema = json.loads((SCHEMAS / path.name.replace("encoding-", "schema-").replace("-lstm-sae-", "-")).read_text())
    config = json.loads(path.read_text())
    check_config(config, schema, schema["core_features"])
    used = {name for key, names in config.items() if key.endswith("_columns") and key != "derived_columns" for name in names}
    assert used == set(schema["core_features"]), "nothing is kept that nothing reads"
    assert "leakage_report" not in config


def test_eight_encodings_are_shipped_and_the_extended_one_reads_more_text() -> None:
    assert len(ENCODINGS) == 8
    basic, extended = (json.loads((SCHEMAS / f"encoding-bigbase-lstm-sae-{number}.json").read_text())["tfidf_params"] for number in ("v1", "v2"))
    assert set(extended) - set(basic) == {"OriginalFileName", "TargetObject", "TargetFilename", "PipeName"}
    assert all(extended[name] > basic[name] for name in basic)


SYSMON = {"time_column": "UtcTime", "host_column": "Computer", "label_column": ["TacticLabel", "Label"]}
LEAKING = [
    *("UtcTime", "Computer", "ProcessId", "ProcessGuid", "ParentProcessGuid", "SourceProcessGUID", "TargetProcessId", "SourceThreadId", "SourceIp"),
    *("DestinationIp", "SourceHostname", "Hashes", "CreationUtcTime", "PreviousCreationUtcTime", "RecordNumber", "TacticLabel", "Label", "LogonId"),
    *(
        "src_ip",
        "dst_mac",
        "src_oui",
        "bidirectional_first_seen_ms",
        "dst2src_last_seen_ms",
        "id",
        "uid",
        "ts",
        "id.orig_h",
        "id.resp_h",
        "unique_id",
        "timestamp",
    ),
    *("EventTime", "EventReceivedTime", "TimeCreated", "SystemTime", "time", "date", "datetime", "window_start", "StartTime", "starttime"),
    *("IpAddress", "SourceAddress", "DestAddress", "ClientAddress", "saddr", "daddr", "Src IP Addr", "SourceIPv6"),
    *("Workstation", "WorkstationName", "QueryName", "requested_server_name", "device", "DestinationHostname", "Computer Name"),
    *("User", "SourceUser", "TargetUserName", "AccountName", "UserID", "UserSid", "Subject User Name"),
    *("dataset_file", "dataset_id", "pcap", "Flow ID", "tactic", "MD5", "server_fingerprint"),
    *("session", "time_ms", "label", "attack", "group", "ordered"),
]


@pytest.mark.parametrize("name", LEAKING)
@pytest.mark.parametrize("key", ["tfidf_columns", "categorical_columns", "numeric_columns"])
def test_time_hosts_addresses_and_identifiers_are_refused_as_features(name: str, key: str) -> None:
    config = {key: [name]}
    with pytest.raises(UserError, match="is a time, host, address, account, identifier or label"):
        check_config(config, SYSMON, [name, "Image"])
    check_config({**config, "leakage_report": True}, SYSMON, [name, "Image"])


def test_what_is_no_name_is_allowed() -> None:
    names = ["EventID", "id.resp_p", "Time_To_Live", "user_agent", "orig_ip_bytes", "ip_version", "SourceIsIpv6", "IPv", "DNS", "duration", "IAT", "Image"]
    check_config({"categorical_columns": names}, SYSMON, names)


def test_accounts_are_allowed_as_accounts_alone() -> None:
    names = ["User", "TargetUserName", "Computer", "UserID"]
    check_config({"account_columns": names[:2]}, SYSMON, names)
    for name in names[2:]:
        with pytest.raises(UserError, match=f"'{name}' is a time, host"):
            check_config({"account_columns": [name]}, {}, names)


def test_the_column_of_groups_is_refused() -> None:
    with pytest.raises(UserError, match="'Batch' is a time, host"):
        check_config({"categorical_columns": ["Batch"]}, {"group": "column:Batch"}, ["Batch"])


def test_a_host_column_of_any_name_is_refused() -> None:
    with pytest.raises(UserError, match="'Terminal'"):
        check_config({"categorical_columns": ["Terminal"]}, {"host_column": "Terminal"}, ["Terminal"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tfidf_column": ["Image"]}, "unknown key 'tfidf_column': did you mean 'tfidf_columns'"),
        ({}, "names no column"),
        ({"tfidf_columns": ["Imag"]}, "no column 'Imag': did you mean 'Image'"),
        ({"tfidf_columns": ["Image"], "categorical_columns": ["Image"]}, "named twice"),
        ({"tfidf_columns": ["Image"], "tfidf_params": {"User": 3}}, "none of tfidf_columns"),
        ({"tfidf_columns": ["Image"], "derived_columns": ["hour"]}, f"no derived column 'hour': allowed: {GAP}"),
        ({"tfidf_columns": "Image"}, "tfidf_columns must be a list of names"),
        ({"tfidf_columns": ["Image"], "tfidf_params": ["Image"]}, "tfidf_params must be an object"),
        ({"tfidf_columns": ["Image"], "tfidf_params": {"Image": True}}, "must be a whole number from 1"),
        ({"tfidf_columns": ["Image"], "leakage_report": "no"}, "leakage_report must be true or false"),
        ({"tfidf_columns": ["Image"], "tfidf_params": {"Image": 0}}, "must be a whole number from 1"),
    ],
)
def test_a_wrong_configuration_is_one_clear_line(config: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(config, SYSMON, ["Image", "User"])
