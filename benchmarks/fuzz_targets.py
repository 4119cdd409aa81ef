"""What is given wrong input: every reader of files that users bring, with good inputs to begin from (`benchmarks.fuzzing`).

Good inputs are made up in each layout that a reader knows, small, so that a case takes milliseconds; beside them stand the first rows of real files
where their folder is given. Captures of packets have a fuzzer of their own (`tests/test_packets.py`).
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from benchmarks.fuzzing import Files, Target, write_files
from envs.iot_env import IoTEnv
from envs.recording import EpisodeRecorder, read_recording, write_html
from envs.scenarios import build_network
from src.config import Config, DataConfig, describe, load_config
from src.data.bank import TraceBank
from src.data.ciciot2023 import FEATURES_39, FEATURES_46
from src.data.dataset import load_dataset
from src.data.nbaiot import FEATURES_115
from src.data.site import with_benign_site
from src.data.synthetic import Profile
from src.data.sysmon import COLUMNS_44
from src.sae.aggregation import aggregate, read_schema
from src.sae.encoding import EncodingSettings, encode
from src.sae.features import check_config
from src.sae.layout import Layout, preset, read_json
from src.watch.site import Roster, load_site

ROWS = 48
"""Of each file; enough for a window of two rows on each side."""

CIC_CLASSES = {"BenignTraffic": "BenignTraffic.pcap.csv", "DDoS-UDP_Fragmentation": "DDoS-UDP_Fragmentation12.pcap.csv", "XSS": "XSS.pcap.csv"}
_SMALL: dict[str, Any] = {"window": 2, "gap": 2, "exclude_labels": []}


def _csv(frame: pl.DataFrame, separator: str = ",") -> bytes:
    stream = io.BytesIO()
    frame.write_csv(stream, separator=separator)
    return stream.getvalue()


def _lines(path: Path, count: int) -> bytes:
    """The first lines of a file."""
    with path.open("rb") as stream:
        return b"".join(itertools.islice(stream, count))


# ------------------------------------------------------------------------------------------------------------------- CICIoT2023, N-BaIoT, sites


def _draw(name: str, seed: int) -> pl.DataFrame:
    values = Profile.embedded().draw(name, ROWS, np.random.default_rng(seed)).astype(np.float64)
    return pl.DataFrame(values, schema=list(FEATURES_39), orient="row")


def _cic39(shared: Path | None) -> list[Files]:
    apart: Files = {path: _csv(_draw(name, seed)) for seed, (name, path) in enumerate(CIC_CLASSES.items())}
    merged = pl.concat([_draw(name, seed).with_columns(pl.lit(name).alias("label")) for seed, name in enumerate(CIC_CLASSES, 10)])
    mixed: Files = {"Merged01.csv": _csv(merged)}
    found: list[Files] = [apart, mixed, {**apart, **mixed}]
    if shared is not None:
        real = shared / "ciciot2023" / "per_attack"
        found.append({path.name: _lines(path, 60) for path in sorted(real.glob("*.csv"))[:3]})
    return found


def _cic46(shared: Path | None) -> list[Files]:
    def classic(name: str, seed: int) -> pl.DataFrame:
        drawn = _draw(name, seed)
        more = [name for name in FEATURES_46 if name not in drawn.columns]
        values = np.random.default_rng(seed).lognormal(1, 1, (ROWS, len(more)))
        return drawn.with_columns(pl.Series(name, values[:, place]) for place, name in enumerate(more)).select(FEATURES_46)

    merged = pl.concat([classic(name, seed).with_columns(pl.lit(name).alias("label")) for seed, name in enumerate(CIC_CLASSES)])
    return [{"part-00000.csv": _csv(merged)}, {path: _csv(classic(name, seed)) for seed, (name, path) in enumerate(CIC_CLASSES.items(), 10)}]


def _load_cic(root: Path, out: Path) -> Any:
    return load_dataset(DataConfig(root=root, **_SMALL), 0)


def _packets115(seed: int, *, clock: bool) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(rng.lognormal(1, 0.5, (ROWS, 115)).round(6), schema=list(FEATURES_115), orient="row")
    first = pl.int_range(pl.len()) == 0
    return frame.with_columns(pl.when(first & clock).then(1.5e9).otherwise("HH_jit_L5_mean").alias("HH_jit_L5_mean"))


def _nbaiot(shared: Path | None) -> list[Files]:
    numbered = ("1.benign.csv", "1.gafgyt.combo.csv", "2.mirai.udp.csv")
    named = ("Ecobee_Thermostat/benign_traffic.csv", "Ecobee_Thermostat/mirai_attacks/ack.csv", "Ennio_Doorbell/gafgyt_attacks/scan.csv")
    return [{name: _csv(_packets115(seed, clock=True)) for seed, name in enumerate(names)} for names in (numbered, named)]


def _nbaiot_parquet(shared: Path | None) -> list[Files]:
    def stored(frame: pl.DataFrame) -> bytes:
        stream = io.BytesIO()
        frame.write_parquet(stream)
        return stream.getvalue()

    made = _packets115(0, clock=False).with_columns(
        pl.Series("ts", 1.5e9 + np.arange(ROWS) / 10),
        pl.when(pl.int_range(pl.len()) < ROWS // 2).then(pl.lit("benign")).otherwise(pl.lit("C&C")).alias("label"),
    )
    found: list[Files] = [{"a_capture.parquet": stored(made)}]
    if shared is not None:
        path = min((shared / "nbaiot").glob("*.parquet"))
        found.append({path.name: stored(pl.read_parquet(path, n_rows=ROWS))})
    return found


def _load_nbaiot(root: Path, out: Path) -> Any:
    return load_dataset(DataConfig(root=root, dataset="nbaiot", **_SMALL), 0)


def _site(shared: Path | None) -> list[Files]:
    files: Files = {}
    for seed, device in enumerate(("Cam", "Plug 2")):
        place = pl.int_range(pl.len())
        named = [pl.format("{}.pcap", place // 12).alias("pcap"), (1e9 + place.cast(pl.Float64)).alias("window_start")]
        files[f"{device}.csv"] = _csv(_draw("BenignTraffic", seed).with_columns(*named))
    found = [files]
    if shared is not None:
        real = shared / "ciciot39" / "iot_sentinel"
        found.append({path.name: _lines(path, 80) for path in sorted(real.glob("*.csv"))[1:3]})
    return found


@functools.cache
def _home() -> Any:
    return load_dataset(DataConfig(synthetic_rows_per_class=400, **_SMALL), 0)


def _load_site(root: Path, out: Path) -> Any:
    return with_benign_site(_home(), DataConfig(benign_root=root, **_SMALL)).splits


# ----------------------------------------------------------------------------------------------------------------------------- tables of events


def _zeek_log(rows: Iterable[tuple[float, str, str]]) -> bytes:
    fields = ("ts", "uid", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto", "service", "duration", "orig_bytes", "resp_bytes", "conn_state")
    fields += ("local_orig", "local_resp", "missed_bytes", "history", "orig_pkts", "orig_ip_bytes", "resp_pkts", "resp_ip_bytes")
    lines = ["#separator \\x09", "#path\tconn", "\t".join(["#fields", *fields, "tunnel_parents   label   detailed-label"]), "#types\ttime\tstring"]
    for place, (clock, host, label) in enumerate(rows):
        cells = [f"{clock:.6f}", f"C{place}", host, "4000", "10.0.0.1", "80", "tcp", "-", f"{0.1 * place:.3f}", str(place), "-", "S0", "-", "-", "0", "S"]
        lines.append("\t".join([*cells, "1", "40", "0", "0", f"-   {label}"]))
    return "\n".join([*lines, "#close\t2019-03-15", ""]).encode()


def _zeek(shared: Path | None) -> list[Files]:
    labels = ("Benign   -", "Malicious   DDoS", "Malicious   C&C", "Benign   -")
    log = _zeek_log((1545403816 + place, f"10.0.0.{place % 3}", labels[place % 4]) for place in range(30))
    table = ["timestamp,orig_host,resp_port,protocol,service,conn_state,history,duration,orig_bytes,resp_bytes,missed_bytes,orig_pkts,orig_ip_bytes,"]
    table[0] += "resp_pkts,resp_ip_bytes,Label,Sub_Label"
    kinds = ("Malicious,DDoS", "BenignTraffic,BenignTraffic")
    table += [f"{1545454126 + place}.5,10.0.0.{place % 3},80,tcp,-,S0,S,-,{place},-,0,1,40,0,0,{kinds[place % 2]}" for place in range(30)]
    readable = ("\n".join(table) + "\n").encode()
    found: list[Files] = [{"a_conn.log.labeled": log}, {"some.csv": readable}, {"one/bro/conn.log.labeled": log, "two/some.csv": readable}]
    if shared is not None:
        found.append({path.name: _lines(path, 40) for path in sorted((shared / "iot23").glob("*conn*")) if path.is_file()})
    return found


def _flows(shared: Path | None) -> list[Files]:
    schema = json.loads(preset("unraveled").schema.read_text(encoding="utf-8"))
    texts = ("application_name", "application_category_name", "application_is_guessed", "user_agent", "content_type")
    numbers = [name for name in schema["core_features"] if name not in texts]
    names = ["src_ip", schema["time_column"], *numbers, *texts, "Activity", "Stage", "DefenderResponse", "Signature"]
    agents = ("curl", "Mozilla (KHTML, like Gecko)", '"Mozilla (X11, Linux)"', "")
    lines = [",".join(names)]
    for place in range(30):
        stage = "Reconnaissance" if place > 20 and place % 3 == 0 else "Benign"
        cells = [f"10.1.1.{place % 3}", str(1_622_000_000_000 + 1000 * place), *(f"{number * place}.5" for number in range(len(numbers)))]
        lines.append(",".join([*cells, "TLS", "Web", "0", agents[place % 4], "", "Normal", stage, "Benign", "none"]))
    made = ("\n".join(lines) + "\n").encode()
    found: list[Files] = [{"Week1/net1011x_Flow_labeled.csv": made, "Week2/netgw_Flow_labeled.csv": made}, {"net1011x_Flow_labeled.csv": made}]
    if shared is not None:
        real = _lines(shared / "flows" / "nfstream_iot23.csv", 30).decode().replace(",label_from_conn_log", ",Stage", 1)
        found.append({"netreal_Flow_labeled.csv": real.encode()})
    return found


def _bigbase_table(number: int, label: str = "TacticLabel", rows: int = 40, hosts: int = 2) -> bytes:
    rng = np.random.default_rng(number)
    events = []
    for place in range(rows):
        tool = str(rng.choice(["chrome", "excel", "svchost"]))
        given = {
            "EventID": str(rng.choice([1, 3, 7])),
            "Computer": f"PC{place % hosts}",
            "UtcTime": f"2020-06-{1 + number % 28:02d} {place // 60:02d}:{place % 60:02d}:54.631",
        }
        given |= {"Image": rf"C:\Tools\{tool}.exe", "CommandLine": rf'"C:\Tools\{tool}.exe" --run {place}', "User": rf"PC1\bob{place % 2}"}
        given[label] = "Execution" if label == "TacticLabel" and place % 10 == 9 else "Malicious" if place % 10 == 9 else "Normal"
        events.append({**dict.fromkeys(COLUMNS_44), **given, **({"Tactic": "Execution"} if label == "Label" and place % 10 == 9 else {})})
    names = [*COLUMNS_44, label, *(["Tactic"] if label == "Label" else [])]
    return _csv(pl.DataFrame(events, schema=dict.fromkeys(names, pl.String), orient="row"))


def _bigbase(shared: Path | None) -> list[Files]:
    return [
        {"dataset-1.csv": _bigbase_table(1)},
        {"dataset-1.csv": _bigbase_table(1), "dataset-47.csv": _bigbase_table(47), "dataset-50.csv": _bigbase_table(50, "Label")},
    ]


def _otrf(shared: Path | None) -> list[Files]:
    schema = json.loads(preset("otrf").schema.read_text(encoding="utf-8"))
    made = pl.read_csv(io.BytesIO(_bigbase_table(3)), infer_schema=False)
    missing = [name for name in schema["core_features"] if name not in made.columns]
    made = made.with_columns(*(pl.lit("-").alias(name) for name in missing), pl.lit("a_capture").alias("dataset_file"))
    stream = io.BytesIO()
    made.select(*schema["core_features"], "UtcTime", "Computer", "dataset_file").with_columns(pl.col("EventID").cast(pl.Int64)).write_parquet(stream)
    found: list[Files] = [{"events.parquet": stream.getvalue()}]
    if shared is not None:
        stream = io.BytesIO()
        pl.read_parquet(shared / "sysmon" / "otrf_sysmon_all.parquet", n_rows=200).write_parquet(stream)
        found.append({"sysmon.parquet": stream.getvalue()})
    return found


def _aggregated(dataset: str, config: str | None = None) -> Callable[[Path, Path], Any]:
    """Stage 1 on the input: the table that it wrote."""

    def use(root: Path, out: Path) -> Any:
        layout = Layout(out, dataset, "v1")
        metadata = aggregate(dataset, root, read_schema(preset(dataset, config).schema), layout, lambda _: None)
        return pl.read_parquet(layout.parquet), metadata

    return use


def _zeek_long(shared: Path | None) -> list[Files]:
    """One host for long enough to be divided."""
    return [{"a_conn.log.labeled": _zeek_log((1545403816 + place, "10.0.0.2", "Malicious   DDoS" if place > 70 else "Benign   -") for place in range(90))}]


def _bigbase_long(shared: Path | None) -> list[Files]:
    return [{"dataset-1.csv": _bigbase_table(1, rows=90, hosts=1)}]


def windows_of_events(folder: Path) -> Layout:
    """Encoded windows of a good log, made below a folder."""
    (folder / "in").mkdir(parents=True)
    write_files(folder / "in", _zeek_long(None)[0])
    _encoded("iot23", None, _BLOCKS)(folder / "in", folder)
    return Layout(folder, "iot23", "v1")


_BLOCKS = {"by": "blocks", "shares": [0.5, 0.25, 0.25]}
_TO_WINDOWS = EncodingSettings(seq_len=2, stride=1, max_features=8)


def _encoded(dataset: str, config: str | None, split: Mapping[str, Any]) -> Callable[[Path, Path], Any]:
    """Stages 1 and 2 on the input: the windows; the schema's own split wants more files than there are."""

    def use(root: Path, out: Path) -> Any:
        layout = Layout(out, dataset, "v1")
        aggregate(dataset, root, {**read_schema(preset(dataset, config).schema), "split": dict(split)}, layout, lambda _: None)
        metadata = encode(layout, read_json(preset(dataset, config).encoding), _TO_WINDOWS, lambda _: None)
        return [np.load(path) for path in sorted(layout.encoded.glob("*.npy"))], metadata

    return use


# -------------------------------------------------------------------------------------------------------------- settings, networks, recordings


def _config(shared: Path | None) -> list[Files]:
    whole = Config().model_dump(mode="json")
    groups = (("data", "compute", "mlflow"), ("lstm", "eval"), ("temporal",), ("sae", "reward"), ("env", "attackers"), ("rl",))
    return [{"own.yml": yaml.safe_dump({name: whole[name] for name in names}, sort_keys=False).encode()} for names in groups]


def _load_config(path: Path, out: Path) -> Any:
    config = load_config(path, environ={})
    return config, len(describe(config))


def _overrides(shared: Path | None) -> list[Files]:
    """Lines as they stand behind `--set` or `=` in an environment variable."""
    whole = Config().model_dump(mode="json")

    def lines(tree: Mapping[str, Any], prefix: str) -> list[str]:
        return [
            line
            for name, value in tree.items()
            for line in (lines(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}: {json.dumps(value)}"])
        ]

    every = lines(whole, "")
    return [{"words.yml": "\n".join(every[start::40]).encode()} for start in range(0, 40, 4)]


def _load_overrides(path: Path, out: Path) -> Any:
    words = [line.replace(": ", "=", 1) for line in path.read_bytes().decode("utf-8", "replace").split("\n") if line.strip()] if path.is_file() else []
    known = [word for word in words if "=" in word][:20]
    environ = {"IOTDEF__" + name.upper().replace(".", "__"): value for name, _, value in (word.partition("=") for word in known[::2])}
    return load_config(overrides=words[1:20:2], environ=environ)


_OWN_SCENARIO = """\
name: my lab
types:
  kettle: {criticality: 1.5, restore_time: 3, patchable: true, protected: false, weakness: {BruteForce: 0.5, Web: 0.25}}
zones:
  office: {exposed: true, reaches: [office, lab]}
  lab: {reaches: [lab]}
devices:
  - {type: gateway, zone: office}
  - {type: kettle, zone: lab, count: 3}
  - {type: camera, zone: lab}
"""


def _scenarios(shared: Path | None) -> list[Files]:
    import envs.scenarios

    folder = Path(envs.scenarios.__file__).parent / "networks"
    return [{"own.yml": _OWN_SCENARIO.encode()}, *({"own.yml": (folder / f"{name}.yml").read_bytes()} for name in ("home", "clinic"))]


def _sites(shared: Path | None) -> list[Files]:
    made = "scenario: home\ndevices:\n  hub-1: 00:17:88:0a:0b:0c\n  camera-1: [192.168.1.195, 00:17:88:0a:0b:0d]\nattacks_a_week: 1\n"
    own = made.replace("home", "own.yml").replace("hub-1", "gateway-1")
    return [{"site.yml": made.encode()}, {"site.yml": own.encode(), "own.yml": _OWN_SCENARIO.encode()}]


def _load_watched(root: Path, out: Path) -> Any:
    path = root / "site.yml" if root.is_dir() and not root.name.endswith(".yml") else root
    site = load_site(str(path))
    return site, Roster(site).network


def _schemas(shared: Path | None) -> list[Files]:
    named = [preset(name, choice) for name, choice in (("bigbase", "basic"), ("iot23", None), ("unraveled", None), ("otrf", None), ("ciciot2023", None))]
    return [{"schema.json": one.schema.read_bytes(), "encoding.json": one.encoding.read_bytes()} for one in named]


def _load_schema(root: Path, out: Path) -> Any:
    schema, encoding = read_schema(root / "schema.json"), read_json(root / "encoding.json")
    check_config(encoding, schema, schema["core_features"])
    return schema, encoding


@functools.cache
def _episodes() -> list[Files]:
    found: list[Files] = []
    with tempfile.TemporaryDirectory() as folder:
        for truth in (False, True):
            path = Path(folder) / "episode.jsonl"
            env = EpisodeRecorder(IoTEnv("home", bank=TraceBank.bundled(), horizon=10, start_range=(1, 2)), path, truth=truth)
            env.reset(seed=1)
            while not any(env.step(3)[2:4]):
                pass
            found.append({"episode.jsonl": path.read_bytes()})
    return found


def _load_recording(path: Path, out: Path) -> Any:
    recording = read_recording(path)
    write_html(recording, out / "page.html")
    return recording


_UNKNOWN_TIME = ("start", "duration")
"""NaN where rows have no clock, as documented."""

TARGETS: tuple[Target, ...] = (
    Target("CICIoT2023, 39 features", "table", _cic39, _load_cic, 2400, unknown=_UNKNOWN_TIME),
    Target("CICIoT2023, 46 features", "table", _cic46, _load_cic, 1200, unknown=_UNKNOWN_TIME),
    Target("N-BaIoT, CSV", "table", _nbaiot, _load_nbaiot, 1200, unknown=_UNKNOWN_TIME),
    Target("N-BaIoT, parquet", "parquet", _nbaiot_parquet, _load_nbaiot, 800, unknown=_UNKNOWN_TIME),
    Target("site of benign devices", "table", _site, _load_site, 1000, folder=True, unknown=_UNKNOWN_TIME),
    Target("CICIoT2023, events", "table", _cic39, _aggregated("ciciot2023"), 1000),
    Target("Zeek logs, events", "table", _zeek, _aggregated("iot23"), 2400),
    Target("NFStream flows, events", "table", _flows, _aggregated("unraveled"), 1600),
    Target("bigbase Sysmon, events", "table", _bigbase, _aggregated("bigbase", "basic"), 1600),
    Target("OTRF Sysmon, events", "parquet", _otrf, _aggregated("otrf"), 1000),
    Target("Zeek logs, windows", "table", _zeek_long, _encoded("iot23", None, _BLOCKS), 600),
    Target("bigbase Sysmon, windows", "table", _bigbase_long, _encoded("bigbase", "basic", _BLOCKS), 400),
    Target("configuration", "yaml", _config, _load_config, 2000),
    Target("settings in words", "yaml", _overrides, _load_overrides, 1000),
    Target("scenario", "yaml", _scenarios, lambda path, out: build_network(str(path)), 2000),
    Target("site file of a watch", "yaml", _sites, _load_watched, 1200, folder=True),
    Target("schemas of the pipeline", "json", _schemas, _load_schema, 1200, folder=True),
    Target("recorded episodes", "json", lambda shared: _episodes(), _load_recording, 1200),
)
"""All, with the cases of a whole run."""
