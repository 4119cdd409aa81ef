"""One extractor over one capture, in a process of its own: `python packet_peers.py NAME CAPTURE`; the last line on standard output is JSON.

NAME is `nfstream` or `cicflowmeter`, run in the virtual environment of `requirements-packets.txt`, or one of ours: `ciciot39`, `devices39`
(each device apart), `nbaiot115`. Imports and compilation are over before the clock starts: each reads a copy of the capture's beginning first where
it compiles. Memory is the largest resident set of the process and of its children.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def nfstream() -> Callable[[str], int]:
    """NFStream: flows with statistics, no dissection of payloads."""
    from nfstream import NFStreamer  # type: ignore[import-not-found]  # of the other environment

    return lambda path: sum(flow.bidirectional_packets for flow in NFStreamer(source=path, statistical_analysis=True, n_dissections=0))


def cicflowmeter() -> Callable[[str], int]:
    """The cicflowmeter package: its session, fed packet by packet as scapy reads them (its own filter needs libpcap)."""
    from cicflowmeter.flow_session import FlowSession  # type: ignore[import-not-found]
    from scapy.utils import PcapReader  # type: ignore[import-not-found]

    def run(path: str) -> int:
        FlowSession.output_mode, FlowSession.output, FlowSession.fields, FlowSession.verbose = "csv", "/dev/null", None, False
        session, count = FlowSession(), 0
        with PcapReader(path) as packets:
            for packet in packets:
                session.on_packet_received(packet)
                count += 1
        session.garbage_collect(None)
        return count

    return run


def ours(schema: str) -> Callable[[str], int]:
    """This product's features."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from src.data.packets import CaptureReader, open_capture
    from src.data.packets115 import StreamExtractor
    from src.watch.extract import windows_of
    from src.watch.site import Roster, Site

    def run(path: str) -> int:
        with open_capture(path) as stream:
            reader = CaptureReader(stream, path)
            if schema == "nbaiot115":
                extractor = StreamExtractor()
                for batch in reader.batches():
                    extractor.add(batch)
            else:
                for _ in windows_of(reader, Roster(Site(scenario="home")) if schema == "devices39" else None):
                    pass
            return reader.report["frames"]

    return run


def peak() -> float:
    """Megabytes of this process's largest resident set since it began; `getrusage` would count that of the process which started it."""
    line = next(line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Run one, and say what it took."""
    name, path = sys.argv[1:3]
    makers: dict[str, Callable[[], Callable[[str], int]]] = {"nfstream": nfstream, "cicflowmeter": cicflowmeter}
    try:
        run = makers[name]() if name in makers else ours(name)
        if name not in makers:
            run(sys.argv[3])  # a short capture, to compile on
        began = time.perf_counter()
        packets = run(path)
        seconds = time.perf_counter() - began
    except Exception as error:  # a peer that fails is told, and takes nobody with it
        print(json.dumps({"failed": f"{error.__class__.__name__}: {error}"}))
        return
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    found: dict[str, Any] = {"packets": packets, "seconds": seconds, "megabytes": peak() + children}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
