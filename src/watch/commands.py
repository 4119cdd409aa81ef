"""The commands that read packets: `main.py features`, `watch` and `calibrate`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.live import Live

from src.artifacts import write_text
from src.config import load_config, nearest
from src.data.packets39 import FRAMES
from src.errors import UserError
from src.evaluation.tables import print_table
from src.watch.extract import SCHEMAS, SIZES, TableOptions, opened, read_captures, write_table
from src.watch.site import Roster, Site, load_site, site_text


def run(words: Sequence[str], new_parser: Callable[..., argparse.ArgumentParser]) -> int:
    """Run one command and return its exit status.

    Args:
        words: of the command line, the command first.
        new_parser: makes a parser that ends wrong input in one line.

    Raises:
        UserError: for wrong input.
    """
    name = words[0]
    parser = new_parser(prog=f"python main.py {name}", description=_COMMANDS[name].__doc__, allow_abbrev=False)
    _OPTIONS[name](parser)
    _COMMANDS[name](parser.parse_args(list(words[1:])))
    return 0


def _features_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("capture", metavar="IN.pcap|-", help="pcap or pcapng of Ethernet; - for standard input")
    parser.add_argument("--schema", default=SCHEMAS[0], metavar="|".join(SCHEMAS), help="features, a row a window or a packet (default: %(default)s)")
    parser.add_argument("--out", required=True, type=Path, metavar="X.parquet", help="table to write")
    parser.add_argument("--frames", type=int, default=FRAMES, metavar="|".join(map(str, SIZES)), help="in a window of ciciot39 (default: %(default)s)")
    parser.add_argument("--scenario", metavar="NAME|SITE.yml", help="keep the windows of this site's devices apart (ciciot39)")


def _features(given: argparse.Namespace) -> None:
    """Write the features of a capture's packets as a parquet table."""
    if given.schema not in SCHEMAS:
        raise UserError(f"unknown schema '{given.schema}': {nearest(given.schema, SCHEMAS)}")
    if given.frames not in SIZES:
        raise UserError(f"--frames {given.frames}: allowed: {', '.join(map(str, SIZES))}, as CICIoT2023 has them")
    if given.schema != SCHEMAS[0] and (given.scenario is not None or given.frames != FRAMES):
        raise UserError(f"--frames and --scenario go with {SCHEMAS[0]}: a row of {given.schema} is a packet")
    roster = None if given.scenario is None else Roster(load_site(given.scenario))
    written = write_table(given.capture, given.out, TableOptions(given.schema, given.frames, roster))
    lost = "".join(f", {count:,} {name}" for name, count in written.report.items() if count and name not in ("frames", "bytes"))
    _say(f"{written.frames:,} frames{lost}: {written.rows:,} rows of {given.schema} in {given.out}")


def _watch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "capture", metavar="IN.pcap|-", help="pcap or pcapng of Ethernet; - for standard input: sudo tcpdump -i br0 -w - | python main.py watch -"
    )
    parser.add_argument("--policy", metavar="RUN", help="folder of a trained agent (default: the one trained last)")
    parser.add_argument("--scenario", metavar="NAME|SITE.yml", help="scenario, or a site file with its devices' addresses (default: the agent's)")
    parser.add_argument("--sensor", type=Path, metavar="FOLDER", help="a calibrated sensor (default: the one that the agent was trained on)")
    parser.add_argument("--out", type=Path, metavar="X.jsonl", help="append findings here, not to standard output")
    parser.add_argument("--report", type=Path, metavar="X.html", help="write a page of it all at the end")


def _watch(given: argparse.Namespace) -> None:
    """Watch traffic in shadow mode: read it, judge it, say what the agent would do. Nothing is sent to the network."""
    from src.training.lstm_trainer import torch_threads
    from src.watch.advisor import RULE, Advisor, find_agent, trained_with
    from src.watch.findings import live_table
    from src.watch.observer import Feed, Observer
    from src.watch.page import Incident
    from src.watch.sensor import SiteSensor, home_bank
    from src.watch.watch import Watch, findings

    config = load_config()
    artifacts = config.compute.artifacts
    site = None if given.scenario is None else load_site(given.scenario)
    trained = trained_with(find_agent(given.policy, artifacts), artifacts, None)
    site = site or Site(scenario=trained.config.env.scenario)
    roster, bank = Roster(site), home_bank(trained.sensor)
    sensor = SiteSensor.load(given.sensor or trained.sensor)
    advisor = Advisor(trained, site, bank, sensor)
    observer = Observer(sensor, roster, advisor.features, advisor.seconds)
    watch, incident, console = Watch(observer, advisor, roster), Incident(), Console(stderr=True)
    with torch_threads(config.compute.threads), opened(given.capture) as reader, _lines(given.out) as write, _live(console, write is not None) as show:
        feed = Feed(reader, live=given.capture == "-")

        def seen() -> None:
            watch.counters.backlog, watch.counters.dropped = feed.backlog, feed.dropped
            show(lambda: live_table(watch.newest, roster.names, watch.counters, RULE))

        try:
            for finding in findings(watch, iter(feed), seen):
                incident.findings.append(finding)
                if write is not None:
                    write(json.dumps(finding.ocsf(RULE)) + "\n")
        except KeyboardInterrupt:
            seen()
        finally:
            if given.report is not None:
                words = {
                    "capture": reader.name, "scenario": roster.network.name, "agent": str(trained.policy), "sensor": str(given.sensor or trained.sensor),
                    "flagged above": f"risk {sensor.alarm:.3f}", "assumed": f"{site.attacks_a_week:g} attacks a week",
                }  # fmt: skip
                incident.write(given.report, "Traffic watched in shadow mode", roster.names, watch.counters, words)
    _say(watch.counters.words())


def _calibrate_options(parser: argparse.ArgumentParser) -> None:
    from src.watch.calibration import FALSE_ALARMS

    parser.add_argument("captures", nargs="+", metavar="SITE.pcap", help="captures of the site's own traffic, free of attacks, in time order")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="calibrated sensor to write; give it to `watch --sensor`")
    parser.add_argument("--sensor", type=Path, metavar="FOLDER", help="a trained sensor (default: that of the agent trained last)")
    parser.add_argument("--scenario", metavar="NAME|SITE.yml", help="keep the devices of this site apart, as `watch` will")
    parser.add_argument("--addresses", type=Path, metavar="SITE.yml", help="write the devices' addresses that were learned, as a site file")
    parser.add_argument("--false-alarms", type=float, default=FALSE_ALARMS, metavar="SHARE", help="of windows that may be flagged (default: %(default)s)")
    parser.add_argument("--adapt", metavar="DATA", help="train both LSTMs further too; DATA is the folder of CSVs that the sensor was trained on")
    parser.add_argument("--infected", metavar="OTHER.pcap", help="a capture of an infected device elsewhere, for the fourth number")


def _calibrate(given: argparse.Namespace) -> None:
    """Take a sensor to a site by an hour of its own traffic, without labels, and say what that changed."""
    from src.data.transplant import divide_captures
    from src.training.lstm_trainer import torch_threads
    from src.watch.advisor import find_agent, trained_with
    from src.watch.calibration import adapted, calibrate, figures, raised, windows
    from src.watch.sensor import SiteSensor, home_bank

    if not 0 < given.false_alarms < 1:
        raise UserError(f"--false-alarms {given.false_alarms:g}: allowed: above 0 and below 1")
    config = load_config(overrides=[f"data.root={given.adapt}"] if given.adapt else [])
    artifacts = config.compute.artifacts
    place = given.sensor or trained_with(find_agent(None, artifacts), artifacts).sensor
    home, bank = SiteSensor.load(place), home_bank(place)
    site = None if given.scenario is None else load_site(given.scenario)
    roster = None if site is None else Roster(site)
    if given.addresses is not None and site is None:
        raise UserError("--addresses writes what --scenario learned; give both")
    known, held = divide_captures(read_captures(given.captures, roster), 0.7)
    infected = None if given.infected is None else windows(home, read_captures([given.infected]), 5)[0]
    looked_at = windows(home, held, 5)[0]
    rows = []
    with torch_threads(config.compute.threads):
        made = [("as it was trained", lambda: home), ("its threshold alone", lambda: raised(home, known, given.false_alarms))]
        made.append(("calibrated", lambda: calibrate(home, bank, known, given.false_alarms)))
        if given.adapt:
            from src.data.dataset import load_dataset

            dataset = load_dataset(config.data, config.compute.seed)
            made.append(("trained further", lambda: adapted(home, dataset, known, given.false_alarms)))
        found = home
        for name, make in made:
            found = make()
            rows.append({"sensor": name, **figures(found, bank, looked_at, infected)})
    columns = {key: key for key in rows[-1]}
    print_table("share of windows flagged (of the site: its latest traffic, which nothing was learned from)", rows, columns, Console())
    found.save(given.out, {"calibration": rows, "captures": [str(one) for one in given.captures], "trained": str(place)})
    _say(f"calibrated sensor in {given.out}")
    if given.addresses is not None and site is not None and roster is not None:
        write_text(given.addresses, site_text(site.scenario, roster.addresses()))
        _say(f"addresses in {given.addresses}")


_OPTIONS: dict[str, Callable[[argparse.ArgumentParser], None]] = {"features": _features_options, "watch": _watch_options, "calibrate": _calibrate_options}
_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {"features": _features, "watch": _watch, "calibrate": _calibrate}


def _say(text: str) -> None:
    """A line to the user, where it does not mix with findings."""
    Console(stderr=True).print(text, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _lines(out: Path | None) -> Iterator[Callable[[str], Any] | None]:
    """What writes a line of findings: to a file, each line whole and at once, since others read along; to standard output; nowhere, on a terminal."""
    if out is None:
        yield None if sys.stdout.isatty() else _flushing(sys.stdout)
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as stream:
            yield _flushing(stream)
    except OSError as error:
        raise UserError(f"cannot write '{out}': {error.strerror or error}; choose a writable place with --out") from error


def _flushing(stream: IO[str]) -> Callable[[str], None]:
    def write(text: str) -> None:
        try:
            stream.write(text)
            stream.flush()
        except BrokenPipeError:  # whoever read along has gone, e.g. `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            raise KeyboardInterrupt from None

    return write


@contextlib.contextmanager
def _live(console: Console, piped: bool) -> Iterator[Callable[[Callable[[], Any]], None]]:
    """What redraws the table, where there is a terminal to draw on."""
    if not console.is_terminal:
        yield lambda table: None
        return
    with Live(console=console, refresh_per_second=4, vertical_overflow="crop") as live:
        yield lambda table: live.update(table())
