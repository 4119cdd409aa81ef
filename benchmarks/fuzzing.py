"""Wrong input in thousands of ways: what mutates it, and what watches a reader read it.

A target is one public function of the product with a few good inputs. Each case damages a copy of one of them and calls the function in a process
of its own kind of worker, which has so many seconds and so much memory. A case ends well in two ways: the input is accepted, and every number that
comes out is finite; or it is refused with a `UserError` of one clear line. Everything else is a defect: another exception, the death of the process,
a hang, more memory than allowed, a number that is not finite, a message that is empty, long, of several lines or names nothing.

Everything follows from a seed: case `i` of a target is the same wherever it is run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import importlib
import json
import logging
import multiprocessing
import os
import re
import resource
import shutil
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from pydantic import BaseModel

from src.errors import UserError

SECONDS = 20.0
"""Most that a case may take."""

MEMORY = 2 * 2**30
"""Bytes of address space that a worker may take beyond what it holds before the first case."""

LONGEST = 500
"""Characters of a message."""

DIRECTORY, LOOP, DANGLING = "directory", "loop", "dangling"
"""What may stand in place of a file: a folder, a link to itself, a link to nothing."""

Files = dict[str, bytes | str]
"""Content by path below the root; one of the words above in place of a content."""

ACCEPTED, REFUSED = "accepted", "refused"
TRACEBACK, CRASH, HANG, NOT_FINITE, UNCLEAR = "traceback", "crash", "hang", "not finite", "unclear message"
DEFECTS = (TRACEBACK, CRASH, HANG, NOT_FINITE, UNCLEAR)

_NAMES_SOMETHING = re.compile(r"'[^']+(?:'| \.\.\. )|--[a-z]|\b[a-z]+[._][a-z_]+\b")
"""A path or another thing in quotation marks, a flag, or a setting."""


@dataclass(frozen=True)
class Target:
    """One way into the product."""

    name: str
    kind: str
    """How its files are damaged, beside as bytes: `table`, `yaml`, `json` or `parquet`."""
    seeds: Callable[[Path | None], list[Files]]
    """Good inputs, made, and cut from real data where their folder is given. One file alone is handed over itself, several as a folder."""
    use: Callable[[Path, Path], Any]
    """Reads the input at the first path, may write below the second, and returns all that came out."""
    cases: int = 1000
    """Of a whole run."""
    folder: bool = False
    """Whether a single file, too, is handed over by its folder."""
    unknown: tuple[str, ...] = ()
    """Names of outputs that may be NaN, where NaN says that it is unknown."""


@dataclass
class Tally:
    """What became of a target's cases."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    """Seconds."""
    growth: int = 0
    """Most bytes that a worker held beyond what it held before the first case."""
    defects: list[tuple[int, str, str]] = field(default_factory=list)
    """Number of the case, what it is, and what was seen."""

    def add(self, index: int, outcome: str, detail: str, seconds: float, growth: int) -> None:
        """Count one case."""
        self.cases += 1
        self.outcomes[outcome] += 1
        self.slowest, self.growth = max(self.slowest, seconds), max(self.growth, growth)
        if outcome in DEFECTS:
            self.defects.append((index, outcome, detail))


# ------------------------------------------------------------------------------------------------------------------------------ damage to bytes


def damaged_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes flipped, deleted, inserted or repeated, or the end cut off."""
    found = bytearray(content)
    for _ in range(int(rng.integers(1, 8))):
        if not found:
            return b""
        place, span = int(rng.integers(0, len(found))), int(rng.integers(1, 40))
        kind = int(rng.integers(0, 6))
        if kind == 0:
            found[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            found[place : place + 4] = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xfe", b"\xed\xa0\x80"][int(rng.integers(0, 5))]
        elif kind == 2:
            del found[place : place + span]
        elif kind == 3:
            found[place:place] = rng.integers(0, 256, span, dtype=np.uint8).tobytes()
        elif kind == 4:
            found[place:place] = found[place : place + span]
        else:
            del found[place if rng.random() < 0.2 else max(len(found) - span, 0) :]
    return bytes(found)


NASTY: tuple[bytes, ...] = (
    *(b"NaN", b"nan", b"inf", b"-inf", b"Infinity", b"1e308", b"-1e308", b"1e400", b"1e-400", b"1e39", b"-1e39", b"3.5e38", b"1e-300", b"5e-324", b"-0", b"0"),
    *(b"", b" ", b"-", b"-1", b"(empty)", b"null", b"None", b"true", b"9" * 25, b"9" * 400, b"9223372036854775808", b"-9223372036854775809", b"1e19"),
    *(b"0x1F", b"1_000", b"1,5", b"1.2.3", b"1e", b"--1", b"+1", b".5", b'"', b'""', b"'", b'a"b', b'"a', b"=1+1", b"=cmd|'/C calc'!A0", b"@SUM(A1)", b"a,b"),
    *("\u0663".encode(), "\uff11\uff12".encode(), "\u00bd".encode(), "\u22125".encode(), "\u2028".encode(), "\u202e".encode()),
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80"),
    *(b"\r", b"\t", b"\x1b[31mred", b"../../etc/passwd", b"%s%n", b"{0}", b"A" * 5000, b"2020-06-10 02:50:54.631", b"9999-12-31 23:59:59.999"),
    *(b"0001-01-01 00:00:00", b"2020-13-45 99:99:99", b"1970-01-01T00:00:00Z", b"1e18", b"4102444800", b"Benign", b"Unknown", b"DDoS"),
)  # fmt: skip
"""Cells that readers stumble on."""


def damaged_table(content: bytes, rng: np.random.Generator) -> bytes:
    """Lines, columns, cells, delimiters or the form of a text table damaged."""
    lines = content.split(b"\n")
    mark = b"\t" if b"\t" in content else b","
    head = next((place for place, line in enumerate(lines) if not line.startswith(b"#")), 0)
    if b"#fields" in content:
        head = next(place for place, line in enumerate(lines) if line.startswith(b"#fields"))
    body = [place for place in range(head + 1, len(lines)) if lines[place] and not lines[place].startswith(b"#")]
    line = int(rng.choice(body)) if body else head
    width = max(lines[head].count(mark), lines[line].count(mark)) + 1
    column = int(rng.integers(0, width))
    nasty = NASTY[int(rng.integers(0, len(NASTY)))]

    def edit(place: int, change: Callable[[list[bytes]], object]) -> None:
        cells = lines[place].split(mark)
        with contextlib.suppress(IndexError):  # a line with fewer cells stays as it is
            change(cells)
        lines[place] = mark.join(cells)

    kind = int(rng.integers(0, 26))
    if kind <= 5:  # one cell
        edit(line, lambda cells: cells.__setitem__(column, nasty))
    elif kind <= 8:  # a whole column
        for place in body:
            edit(place, lambda cells: cells.__setitem__(column, nasty))
    elif kind == 9:
        edit(line, lambda cells: cells.insert(column, nasty))
    elif kind == 10:
        edit(line, lambda cells: cells.pop(column))
    elif kind == 11:  # a column is gone
        for place in [head, *body]:
            edit(place, lambda cells: cells.pop(column))
    elif kind == 12:  # a column stands twice
        for place in [head, *body]:
            edit(place, lambda cells: cells.insert(column, cells[column]))
    elif kind == 13:
        edit(head, lambda cells: cells.__setitem__(column, nasty))
    elif kind == 14:
        edit(head, lambda cells: cells.__setitem__(column, cells[column].swapcase() if rng.random() < 0.5 else cells[int(rng.integers(0, len(cells)))]))
    elif kind == 15:
        other = [b";", b"\t", b"|", b" ", b","][int(rng.integers(0, 5))]
        chosen = [line] if rng.random() < 0.5 else range(len(lines))
        for place in chosen:
            lines[place] = lines[place].replace(mark, other)
    elif kind == 16:
        lines.insert(line, lines[line])
    elif kind == 17:
        other = int(rng.integers(0, len(lines)))
        lines[line], lines[other] = lines[other], lines[line]
    elif kind == 18:
        del lines[int(rng.integers(0, len(lines)))]
    elif kind == 19:
        rng.shuffle(lines)  # type: ignore[arg-type]
    elif kind == 20:
        lines = lines[: head + 1] if rng.random() < 0.5 else lines[: line + 1]
    elif kind == 21:
        return [b"", b"\n", b"\0", b"\xff\xfe" + content.decode("utf-8", "replace").encode("utf-16-le"), b"\xef\xbb\xbf" + content][int(rng.integers(0, 5))]
    elif kind == 22:
        return content.replace(b"\n", b"\r\n" if rng.random() < 0.5 else b"\r")
    elif kind == 23:
        return gzip.compress(content) if rng.random() < 0.5 else content + content
    elif kind == 24:
        lines[int(rng.integers(0, len(lines)))] = [b"", b'"', mark * 5000, nasty * 50, b"#" + lines[line]][int(rng.integers(0, 5))]
    elif rng.random() < 0.3:  # megabytes in one line: a cell, cells, or names
        size = int(rng.integers(1, 4)) << 20
        if rng.random() < 0.5:
            edit(line if rng.random() < 0.7 else head, lambda cells: cells.__setitem__(column, b"7" * size))
        else:
            lines[line if rng.random() < 0.7 else head] += (mark + b"7") * (size // 2)
    else:
        for _ in range(int(rng.integers(2, 30))):
            place = int(rng.choice(body)) if body else head
            edit(place, lambda cells: cells.__setitem__(int(rng.integers(0, width)), NASTY[int(rng.integers(0, len(NASTY)))]))
    return b"\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------------------- damage to trees

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 10**9, 10**30, 10**400, -(10**400), 0.5, 1e-300, 1e308, -1e308, float("inf"), float("-inf"), float("nan")),
    *("", " ", "x", "a\nb", "\x00", "\x1b[31m", "ü", "\u2028", "../../../../etc/passwd", "/dev/null", "x.yml", "x\x00.yml", "A" * 5000, "null", "1e9"),
    *("${HOME}", "%s%n", "clinic", "=1+1", [], {}, [[]], [1, 2, 3], {"a": 1}, [None], ["x"] * 300, {"": ""}, [{"a": [{"b": []}]}], [1e400]),
)  # fmt: skip
"""Values where another kind is expected."""

SNIPPETS = (
    *("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!timestamp x", '!!int ""', '!!float ""', '!!binary "!"', "!!set {a, b}"),
    *("!!null x", "!!bool x", "!!int 0b", "!!int 0x", "!!float .", "!!omap [a]", "!!pairs [a]", "!!str {a: b}", "!!map [a]", "!!seq {a: b}", "!unknown x"),
    *("2020-99-99", "2020-01-01 99:99:99", "1:99:99:99", "0b", "0x", "0o8", "1_2_3", "._", ".inf", "-.inf", ".nan", "1e400", "9" * 5000, "0x" + "f" * 5000),
    *("&a [*a]", "&a {b: *a}", "*nowhere", "{[a]: b}", "{{a: b}: c}", "{? a}", "? [x]", "<<: x", "{<<: [1]}", "{<<: {a: 1}}", "[", "{", "]", '"', "'"),
    *("|", ">", "|99\n x", "%", "@x", "`x", "\t", "- - - -", "a: b: c", "--- x\n--- y", "...\nx", "# x", '"\\x"', '"\\ud800"', '"\\0"', "~", "="),
    *("NaN", "Infinity", "-Infinity"),
)  # fmt: skip
"""Values as YAML or JSON might spell them."""


def laughs(levels: int = 12, merged: bool = False) -> str:
    """Lines of YAML of which each names the one before it nine times: small to write, 9^12 when written out."""
    if merged:
        lines = ["m0: &m0 {a: 1, b: 2, c: 3}"]
        lines += [f"m{i}: &m{i}\n  <<: [{', '.join([f'*m{i - 1}'] * 9)}]" for i in range(1, levels)]
    else:
        lines = ["m0: &m0 [x, x, x]"]
        lines += [f"m{i}: &m{i} [{', '.join([f'*m{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Each container with each of its keys."""
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        found += [(node, key) for key in keys]
        waiting += [node[key] for key in keys]
    return found


def damaged_tree(tree: Any, rng: np.random.Generator) -> Any:
    """A copy of a tree with values replaced, keys renamed, added, dropped or moved."""
    tree = json.loads(json.dumps(tree))
    for _ in range(int(rng.integers(1, 4))):
        places = _places(tree)
        if not places:
            return ODD[int(rng.integers(0, len(ODD)))]
        node, key = places[int(rng.integers(0, len(places)))]
        odd = ODD[int(rng.integers(0, len(ODD)))]
        kind = int(rng.integers(0, 8))
        if kind <= 3:
            node[key] = odd
        elif kind == 4:
            del node[key]
        elif kind == 5 and isinstance(node, dict):
            node[f"{key}{['s', '_', ' ', '.'][int(rng.integers(0, 4))]}" if rng.random() < 0.7 else str(odd)[:50]] = node.pop(key)
        elif kind == 6:
            other, place = places[int(rng.integers(0, len(places)))]
            with contextlib.suppress(KeyError, IndexError):  # it may lie in what was moved
                node[key] = json.loads(json.dumps(other[place]))
        else:
            node[key] = [node[key]] if rng.random() < 0.5 else {"x": node[key]}
    return tree


def damaged_yaml(content: bytes, rng: np.random.Generator) -> bytes:
    """A YAML document damaged as text or as a tree."""
    text = content.decode()
    lines = text.split("\n")
    place = int(rng.integers(0, len(lines)))
    snippet = SNIPPETS[int(rng.integers(0, len(SNIPPETS)))]
    values = [number for number, line in enumerate(lines) if ":" in line]
    kind = int(rng.integers(0, 16))
    if kind <= 7:
        return yaml.safe_dump(damaged_tree(yaml.safe_load(text), rng), sort_keys=False, width=10**6).encode("utf-8", "replace")
    if kind <= 10 and values:  # a value as only text can spell it
        place = int(rng.choice(values))
        lines[place] = f"{lines[place].split(':')[0]}: {snippet}"
    elif kind == 11:
        lines.insert(place, lines[place])  # a key stands twice
    elif kind == 12:
        lines[place] = " " * int(rng.integers(1, 5)) + lines[place] if rng.random() < 0.5 else lines[place].lstrip()
    elif kind == 13:
        merged = rng.random() < 0.5
        if values:
            place = int(rng.choice(values))
            lines[place] = f"{lines[place].split(':')[0]}: *m11"
        return (laughs(merged=merged) + "\n".join(lines)).encode()
    elif kind == 14:
        depth = int(rng.choice([50, 500, 5000, 100_000]))
        opened, closed = [("[", "]"), ("{a: ", "}"), ("- ", "")][int(rng.integers(0, 3))]
        deep = opened * depth + closed * (depth if rng.random() < 0.5 else 0)
        if rng.random() < 0.5:
            return deep.encode()
        if values:
            place = int(rng.choice(values))
            lines[place] = f"{lines[place].split(':')[0]}: {deep}"
    elif rng.random() < 0.25:  # megabytes
        size = int(rng.integers(1, 4)) << 20
        return text.encode() + [b"x" * size, b"x: " + b"[1]," * (size // 4), b"# " + b"x" * size, b"a: 1\n" * (size // 5)][int(rng.integers(0, 4))]
    else:
        return [b"", b"\n", b"\0", text.encode("utf-16"), b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r\n"), content + b"\n---\n" + content][
            int(rng.integers(0, 7))
        ]
    return "\n".join(lines).encode("utf-8", "replace")


def damaged_json(content: bytes, rng: np.random.Generator) -> bytes:
    """A JSON document, or one of several lines of them, damaged as text or as a tree."""
    lines = content.decode().split("\n") if b"\n{" in content else [content.decode()]
    place = int(rng.integers(0, len(lines)))
    kind = int(rng.integers(0, 12))
    if kind <= 6 and lines[place].strip():
        lines[place] = json.dumps(damaged_tree(json.loads(lines[place]), rng))
    elif kind == 7 and ":" in lines[place]:
        colons = [match.end() for match in re.finditer(":", lines[place])]
        at = int(rng.choice(colons))
        lines[place] = lines[place][:at] + SNIPPETS[int(rng.integers(0, len(SNIPPETS)))] + (lines[place][at:] if rng.random() < 0.5 else "}")
    elif kind == 8:
        depth = int(rng.choice([50, 500, 5000, 100_000]))
        deep = "[" * depth + "]" * depth if rng.random() < 0.5 else '{"a":' * depth
        lines[place] = re.sub(r":\s*[^,{}\[\]]+", lambda _: f": {deep}", lines[place], count=1) if rng.random() < 0.7 else deep
    elif kind == 9:
        lines.insert(int(rng.integers(0, len(lines) + 1)), lines[place])
    elif kind == 10:
        del lines[place]
    else:
        return [b"", b"\n", b"null", b"[]", b"{}", b"0", content.decode().encode("utf-16"), b"\xef\xbb\xbf" + content, content + content][
            int(rng.integers(0, 9))
        ]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def damaged_parquet(content: bytes, rng: np.random.Generator) -> bytes:
    """A parquet file whose columns are of other kinds, names or number, with odd values."""
    import io

    frame = pl.read_parquet(io.BytesIO(content))
    name = frame.columns[int(rng.integers(0, frame.width))]
    kinds = (pl.String, pl.Int64, pl.Float64, pl.Float32, pl.Boolean, pl.Binary, pl.Datetime, pl.Date, pl.List(pl.String), pl.Null, pl.UInt8, pl.Categorical)
    kind = int(rng.integers(0, 8))
    if kind <= 2:
        chosen = kinds[int(rng.integers(0, len(kinds)))]
        column = pl.lit(None).cast(chosen)
        with contextlib.suppress(pl.exceptions.PolarsError):  # what cannot be cast is empty
            column = frame[name].cast(chosen, strict=False)
        frame = frame.with_columns(column.alias(name))
    elif kind == 3:
        odd = [float("nan"), float("inf"), float("-inf"), 1e308, 1e39, -1e308, 5e-324][int(rng.integers(0, 7))]
        rows = pl.int_range(pl.len()) % int(rng.integers(1, 9)) == 0
        frame = frame.with_columns(pl.when(rows).then(pl.lit(odd)).otherwise(pl.col(name).cast(pl.Float64, strict=False)).alias(name))
    elif kind == 4:
        frame = frame.drop(name)
    elif kind == 5:
        frame = frame.rename({name: name + "x"})
    elif kind == 6:
        text = NASTY[int(rng.integers(0, len(NASTY)))].decode("utf-8", "replace")
        frame = frame.with_columns(pl.lit(text).alias(name))
    else:
        frame = frame.clear() if rng.random() < 0.3 else frame.with_columns(pl.struct(frame.columns[:3]).alias(name))
    stream = io.BytesIO()
    frame.write_parquet(stream)
    return stream.getvalue()


_DAMAGES: Mapping[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "table": damaged_table, "yaml": damaged_yaml, "json": damaged_json, "parquet": damaged_parquet,
}  # fmt: skip


def damaged(files: Files, kind: str, rng: np.random.Generator) -> Files:
    """A copy of an input with one file damaged, or something else in its place."""
    found = dict(files)
    name = list(files)[int(rng.integers(0, len(files)))]
    content = files[name]
    assert isinstance(content, bytes)
    way = rng.random()
    if way < 0.04:
        found[name] = [DIRECTORY, LOOP, DANGLING][int(rng.integers(0, 3))]
    elif way < 0.08:
        stem, dot, end = name.rpartition("/")[2].partition(".")
        other = ["x[1]", "x*", "a b", "ä\u202e", "x\ny", "{0}", "x" * 200, stem.upper(), "-rf", "~", "null", "\udcff"][int(rng.integers(0, 12))]
        change = other + dot + end if rng.random() < 0.6 else stem + [".txt", ".csv", ".parquet", "", ".CSV", ".csv.gz", ".json"][int(rng.integers(0, 7))]
        found[name.rpartition("/")[0] + "/" * ("/" in name) + change] = found.pop(name)
    elif way < 0.1 and len(files) > 1:
        other = list(files)[int(rng.integers(0, len(files)))]
        found[other] = content
    elif way < 0.4:
        found[name] = damaged_bytes(content, rng)
    else:
        changed = _DAMAGES[kind](content, rng)
        found[name] = damaged_bytes(changed, rng) if rng.random() < 0.2 else changed
    return found


def write_files(root: Path, files: Files) -> Path:
    """Lay an input down below an empty folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == DIRECTORY:
            path.mkdir(exist_ok=True)
        else:
            path.symlink_to(path.name if content == LOOP else path.parent / "nowhere")
    return root


# --------------------------------------------------------------------------------------------------------------------------------- judgement


def not_finite(found: Any, unknown: Sequence[str] = (), where: str = "") -> str | None:
    """Where a number that came out is not finite; None if all are. Those under a name of `unknown` may be NaN."""
    known = where.rpartition(".")[2] not in unknown
    if isinstance(found, float | np.floating):
        return where if not np.isfinite(found) and (known or not np.isnan(found)) else None
    if isinstance(found, np.ndarray):
        if not np.issubdtype(found.dtype, np.floating):
            return None
        bad = ~np.isfinite(found) & (known | ~np.isnan(found))
        return where if bad.any() else None
    if isinstance(found, pl.DataFrame):
        return next((f"{where}.{column.name}" for column in found.select(pl.selectors.float()) if not column.drop_nulls().is_finite().all()), None)
    if isinstance(found, BaseModel):
        found = found.model_dump()
    elif dataclasses.is_dataclass(found) and not isinstance(found, type):
        found = {one.name: getattr(found, one.name) for one in dataclasses.fields(found)}
    parts = found.items() if isinstance(found, Mapping) else enumerate(found) if isinstance(found, list | tuple) else ()
    return next((fault for name, part in parts if (fault := not_finite(part, unknown, f"{where}.{name}")) is not None), None)


def unclear(message: str) -> str | None:
    """What is wrong with a message; None for one clear line."""
    if not message.strip():
        return "it is empty"
    if len(message) > LONGEST:
        return f"it has {len(message)} characters"
    if not message.isprintable():
        return "it has more than one line, or what cannot be printed"
    if "Traceback" in message:
        return "it is a traceback"
    return None if _NAMES_SOMETHING.search(message) else "it names neither file nor setting"


def judge(use: Callable[[], Any], unknown: Sequence[str] = ()) -> tuple[str, str]:
    """How a call ended, and what was seen where it is a defect."""
    try:
        found = use()
    except UserError as error:
        fault = unclear(str(error))
        return (REFUSED, str(error)) if fault is None else (UNCLEAR, f"{fault}: {str(error)[:300]!r}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of polars is no Exception
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        place = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last is not None else "?"
        return TRACEBACK, f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:300]}"
    fault = not_finite(found, unknown)
    return (ACCEPTED, "") if fault is None else (NOT_FINITE, fault)


def generator(name: str, seed: int, index: int) -> np.random.Generator:
    """The random numbers of one case."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), index])


def run_case(target: Target, seeds: Sequence[Files], seed: int, index: int, scratch: Path, keep: bool = False) -> tuple[str, str]:
    """Damage one input, hand it to the target and judge what it does; `keep` leaves the files where they are."""
    rng = generator(target.name, seed, index)
    whole = seeds[int(rng.integers(0, len(seeds)))]
    files = damaged(whole, target.kind, rng)
    place = scratch / "case"
    shutil.rmtree(place, ignore_errors=True)
    root, out = place / "in", place / "out"
    root.mkdir(parents=True)
    out.mkdir()
    try:
        write_files(root, files)
    except (OSError, ValueError):  # such a name cannot be given to a file here
        return REFUSED, "no such file can be"
    given = root if target.folder or len(whole) > 1 else root / next(iter(files))
    try:
        return judge(lambda: target.use(given, out), target.unknown)
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)


def _held(name: str) -> int:
    """Bytes of `/proc/self/status`."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) * 1024 if found else 0


def _work(connection: Connection, module: str, name: str, seed: int, shared: Path | None) -> None:
    """Body of a worker: takes ranges of cases, answers with what became of each."""
    os.environ["POLARS_MAX_THREADS"] = "1"
    warnings.simplefilter("ignore")
    target: Target = next(one for one in importlib.import_module(module).TARGETS if one.name == name)
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(EOFError, BrokenPipeError):
        scratch = Path(folder)
        seeds = target.seeds(shared)
        for number, files in enumerate(seeds):
            root, out = scratch / f"seed{number}", scratch / f"out{number}"
            root.mkdir()
            out.mkdir()
            write_files(root, files)
            outcome, detail = judge(lambda: target.use(root if target.folder or len(files) > 1 else root / next(iter(files)), out), target.unknown)  # noqa: B023
            if outcome != ACCEPTED:
                raise RuntimeError(f"{name}: seed {number} is {outcome}: {detail}")
        before = _held("VmRSS")
        most = _held("VmSize") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        said = (scratch / "said").open("w+b", buffering=0)
        os.dup2(said.fileno(), 2)  # native code tells of its panics there, whatever it raises then
        connection.send("ready")
        while True:
            first, last = connection.recv()
            for index in range(first, last):
                began = time.perf_counter()
                outcome, detail = run_case(target, seeds, seed, index, scratch)
                if os.fstat(2).st_size:
                    said.seek(0)
                    outcome, detail = TRACEBACK, f"{outcome}, with words on the standard error: {said.read(1000)!r}"
                    os.ftruncate(2, 0)
                    said.seek(0)
                connection.send((index, outcome, detail, time.perf_counter() - began, max(_held("VmHWM") - before, 0)))


@contextlib.contextmanager
def _worker(module: str, name: str, seed: int, shared: Path | None) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, module, name, seed, shared), daemon=True)
    process.start()
    theirs.close()
    try:
        try:
            ready = ours.poll(120) and ours.recv() == "ready"
        except EOFError:
            ready = False
        if not ready:
            raise RuntimeError(f"{name}: the worker did not start, or refused a good input")
        yield ours
    finally:
        process.kill()
        process.join()
        ours.close()


def fuzz(module: str, target: Target, cases: int, seed: int = 0, shared: Path | None = None, seconds: float = SECONDS) -> Tally:
    """Run cases 0 to `cases` - 1 of a target in worker processes; one that dies or hangs is counted, and another goes on behind it.

    Args:
        module: where `TARGETS` holds the target, for the worker to import.
        target: what is called.
        cases: how many.
        seed: of all random numbers.
        shared: folder of real data, None for made-up inputs alone.
        seconds: most that a case may take.
    """
    tally, at = Tally(), 0
    while at < cases:
        with _worker(module, target.name, seed, shared) as worker:
            worker.send((at, cases))
            while at < cases:
                if not worker.poll(seconds):
                    tally.add(at, HANG, f"more than {seconds:g} s", seconds, 0)
                    at += 1
                    break
                try:
                    tally.add(*worker.recv())
                except EOFError:
                    tally.add(at, CRASH, "the process died", 0.0, 0)
                    at += 1
                    break
                at += 1
    return tally
