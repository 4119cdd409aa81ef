"""Columns of events as numbers: what is fitted on benign training rows, and how rows are encoded with it.

Text. A path or command line is a bag of tokens (`tokens`): words, flags and file extensions, with numbers, hexadecimal strings, GUIDs,
SIDs, addresses, encoded blobs, names of people, hosts and domains each collapsed to one placeholder. Each text column has a vocabulary of
its own, of the tokens that the most training rows hold, weighted by TF-IDF (idf = ln((1 + n) / (1 + df)) + 1; Salton & Buckley 1988,
Information Processing & Management 24(5)) and scaled to length 1. Beside it stands the share of its tokens that are in no vocabulary
(`COLUMN:new`).
Categories are one-hot; rare ones share `other`, absent ones have `missing`. The sparse columns of both are reduced together by a truncated
SVD (Halko et al. 2011, SIAM Review 53(2)) when there are more than `max_features` of them; components keep their scale, so that each
text column weighs about as much as one number.
Numbers are sign(x) ln(1 + |x|), standardised and clipped to +-`CLIP`; an absent one is 0, the mean, with a column that says so where
training rows lack it.

Each distinct value is encoded once, so that a row costs one look-up a column; and because the reduction is linear it is applied to the
distinct values, so the sparse matrix of all rows is never made.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.preprocessing import normalize

from src.config import nearest
from src.errors import UserError

CLIP = 5.0
"""Largest size of an encoded number, in standard deviations."""

RARE = 1e-3
"""Share of the training rows that have the column, below which a category is `other`; so is one of a single row."""

MOST_CATEGORIES = 64
"""Categories of a column that get a column of their own, the most frequent first."""

LONGEST = 2048
"""Characters of a text that are read; what follows in a longer one (encoded scripts) is not."""

GAP = "seconds_since_previous"
"""Derived column: seconds since the event before it in the session."""

KEYS = {"tfidf_columns", "tfidf_params", "categorical_columns", "port_columns", "account_columns", "numeric_columns", "derived_columns", "leakage_report"}
"""Keys of an encoding configuration."""

PRIVATE = frozenset((
    "time", "times", "timestamp", "ts", "date", "datetime", "utc", "epoch", "seen", "start", "starttime", "endtime", "eventtime", "ip", "ipv4", "ipv6",
    "srcip", "dstip", "sourceip", "destip", "ipaddr", "addr", "saddr", "daddr", "address", "mac", "macaddr", "oui", "host", "hosts", "hostname",
    "computer", "computername", "workstation", "machine", "device", "server", "domain", "query", "fingerprint", "id", "ids", "uid", "guid", "pid", "tid",
    "userid", "flowid", "sessionid", "processid", "logonid", "record", "hash", "hashes", "md5", "sha1", "sha256", "imphash", "thumbprint", "tunnel",
    "dataset", "pcap", "capture", "campaign", "scenario", "session", "label", "tactic", "technique",
))  # fmt: skip
"""Words in names of columns that say when, where or what was recorded."""

ACCOUNTS = frozenset(("user", "users", "username", "account", "owner", "login", "sid"))
"""Words in names of columns that say who; such a column may be an account, of which only the kind is kept."""

MEASURES = frozenset(("bytes", "packets", "pkts", "count", "length", "version", "is"))
"""Words in names of columns that hold a measure of a host or address instead of its name: `orig_ip_bytes`."""

HARMLESS = {("event", "id"), ("id", "orig", "p"), ("id", "resp", "p"), ("time", "to", "live"), ("user", "agent")}
"""Names that have such a word and tell nothing of the kind: what an event is, ports, a header field, a program."""

_ADDRESS = r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![a-z0-9.-])"
TOKEN = re.compile(
    r"(?P<guid>[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
    r"|(?P<sid>s-1-[0-9]+(?:-[0-9]+)+)"
    r"|(?P<mac>(?<![0-9a-f:-])[0-9a-f]{2}(?:[:-][0-9a-f]{2}){5}(?![0-9a-f:-]))"
    r"|(?P<ip6>(?<![a-z0-9:.\]])(?=[0-9a-f:]*[0-9])(?:(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|(?:[0-9a-f]{1,4}(?::[0-9a-f]{1,4})*)?::"
    r"(?:[0-9a-f]{1,4}(?::[0-9a-f]{1,4})*)?)(?![a-z0-9:]))"
    r"|(?P<ip>(?<![0-9.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9.]))"
    # A value behind a flag that names one, as in /user:DOMAIN\name and -ComputerName DC01; the flag is a token, too.
    r"|(?P<named>(?:(?<=\s)|^)(?P<key>(?:--?|/)(?:(?:u|d|dc|s|p)(?=[:=])|user|username|ru|domain|computer|computername|server|node|hostname|credential))"
    r'(?:[:=]|\s+)"?(?![a-z]:[\\/])(?!' + _ADDRESS + r')[^\s"/,;-][^\s",;]*)'
    r"|(?P<user>(?:(?<=[\\/]users[\\/])|(?<=[\\/]users\\\\)|(?<=[\\/]home[\\/])|(?<=[\\/]documents and settings[\\/]))"
    r'(?!(?:public|default|default user|all users)(?![^\\/\s"]))(?:[^\\/"' + r"'" + r':\s]+(?: [^\\/"' + r"'" + r':\s]+){0,3}(?=[\\/])|[^\\/"' + r"'" + r"\s]+)"
    r'|(?<=net user )[^\s/"]+|(?<=net1 user )[^\s/"]+|(?<=vboxtrayipc-)[^\\\s]+'
    r"|(?<![a-z0-9._-])[a-z0-9._-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)*)"
    r"|(?P<host>(?<![a-z0-9:\\.\])}])\\{2,}(?!" + _ADDRESS + r")[a-z0-9][a-z0-9._-]*"
    r"|(?<=://)(?:[^\s/@\"']+@[^\s/:\"']+|(?!" + _ADDRESS + r")[a-z0-9][a-z0-9._-]*)"
    r"|(?<![a-z0-9\\/._-])[a-z0-9-]+(?:\.[a-z0-9-]+)*\.(?:local|lan|internal|corp|[a-z0-9-]+\.(?:com|net|org))(?![a-z0-9.-]))"
    r"|(?P<account>(?<![^\s\"'=,])(?!hk[a-z_]+\\)[a-z0-9][a-z0-9.-]*\\[a-z0-9][a-z0-9_-]*(?:\.[a-z0-9_-]{5,})?\$?(?![a-z0-9\\/.*$]))"
    r"|(?P<flag>(?:(?<=\s)|^)(?:--?|/)[a-z][a-z0-9]*(?![a-z0-9\\/]))"
    r"|(?P<blob>[a-z0-9+]{32,}=*)"
    r"|(?P<hex>0x[0-9a-f]+|(?<![a-z0-9])(?=[a-f]*[0-9])[0-9a-f]{8,}(?![a-z0-9]))"
    r"|(?P<num>[0-9]+(?![a-z0-9]))"
    r"|(?P<ext>(?<=[^\s\\/])\.[a-z][a-z0-9]{1,4}(?![a-z0-9]))"
    r"|(?P<word>[a-z0-9]*[a-z][a-z0-9]*)"
)
KEPT = {"flag", "ext", "word"}


def tokens(text: str) -> list[str]:
    r"""Tokens of a path or command line, in lower case; people, hosts and domains are placeholders where the text shows that they are.

    `C:\Windows\System32\cmd.exe /c ping -n 4 10.0.0.1` gives `c windows system32 cmd .exe /c ping -n <num> <ip>`,
    `net use \\DC01\c$ /user:SITE\ann` gives `net use <host> c /user <named>`.
    """
    found: list[str] = []
    for match in TOKEN.finditer(text[:LONGEST].lower()):
        if match.lastgroup == "named":
            found.append(match["key"])
        found.append(match[0] if match.lastgroup in KEPT else f"<{match.lastgroup}>")
    return found


def name_words(name: str) -> tuple[str, ...]:
    """Words of a column's name in lower case: `SourceProcessGUID`, `Src IP Addr` and `id.orig_h` have three each."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z]+[0-9]*|[0-9]+", name.replace("IPv", "Ipv")))


def leaks(name: str, account: bool) -> bool:
    """Whether a column's name says that it tells when, where or who; an `account` may tell who."""
    words = name_words(name)
    if words in HARMLESS or MEASURES.intersection(words):
        return False
    return bool((PRIVATE if account else PRIVATE | ACCOUNTS).intersection(words))


def check_config(config: Mapping[str, Any], schema: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Refuse an encoding configuration that does not fit the data or that lets a model recognise when, where or who.

    Args:
        config: the encoding configuration.
        schema: stage 1's schema: its `time_column`, `host_column`, `label_column` and column of groups are no features.
        columns: columns that stage 1 wrote.

    Raises:
        UserError: for an unknown key or column, a column named twice, no column at all, or a time, host, address or identifier
            as a feature where `leakage_report` is not true.
    """
    for key in config:
        if key not in KEYS:
            raise UserError(f"encoding configuration: unknown key '{key}': {nearest(key, sorted(KEYS))}")
        if key.endswith("_columns") and not (isinstance(config[key], list) and all(isinstance(name, str) for name in config[key])):
            raise UserError(f"encoding configuration: {key} must be a list of names, not {config[key]!r}")
    named = [name for key in ("tfidf_columns", "categorical_columns", "port_columns", "account_columns", "numeric_columns") for name in config.get(key, ())]
    if not named:
        raise UserError("encoding configuration names no column; give tfidf_columns, categorical_columns or numeric_columns")
    for name in named:
        if named.count(name) > 1:
            raise UserError(f"encoding configuration: column '{name}' is named twice; encode it one way")
        if name not in columns:
            raise UserError(f"encoding configuration: no column '{name}': {nearest(name, columns)}")
    if not isinstance(config.get("tfidf_params", {}), Mapping):
        raise UserError(f"encoding configuration: tfidf_params must be an object of column and number, not {config['tfidf_params']!r}")
    if not isinstance(config.get("leakage_report", False), bool):
        raise UserError(f"encoding configuration: leakage_report must be true or false, not {config['leakage_report']!r}")
    for name, size in config.get("tfidf_params", {}).items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UserError(f"encoding configuration: tfidf_params of '{name}' is {size!r}; it must be a whole number from 1")
        if name not in config.get("tfidf_columns", ()):
            raise UserError(f"encoding configuration: tfidf_params names '{name}', which is none of tfidf_columns")
    for name in config.get("derived_columns", ()):
        if name != GAP:
            raise UserError(f"encoding configuration: no derived column '{name}': allowed: {GAP}")
    if config.get("leakage_report") is True:
        return
    private: set[str] = set()
    for key in ("time_column", "host_column", "label_column"):
        found = schema.get(key) or []
        private |= {found} if isinstance(found, str) else set(found)
    private.add(str(schema.get("group")).removeprefix("column:"))
    reserved = {"label", "attack", "group", "session", "time_ms", "ordered"}
    for name in named:
        if name in private | reserved or leaks(name, account=name in config.get("account_columns", ())):
            raise UserError(
                f"encoding configuration: '{name}' is a time, host, address, account, identifier or label, by which a model would know the capture instead of "
                'the behaviour; leave it out (of an account, account_columns keep the kind), or set "leakage_report": true to measure how much it gives away'
            )


def seconds_since_previous(time_ms: NDArray[np.integer], session: NDArray[np.integer], ordered: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(N,) seconds since the row before in the same session; NaN where there is none, a time is unknown (negative) or rows are not in order."""
    gap = np.full(len(time_ms), np.nan, dtype=np.float32)
    known = (np.diff(session) == 0) & (time_ms[1:] >= 0) & (time_ms[:-1] >= 0) & ordered[1:]
    gap[1:][known] = np.maximum(np.diff(time_ms)[known], 0) / 1000.0
    return gap


def distinct(column: pl.Series) -> tuple[list[Any], NDArray[np.int64]]:
    """Distinct values of a column, None among them, and the (N,) index of each row's."""
    values = column.unique(maintain_order=True)
    codes = column.replace_strict(values, pl.Series(np.arange(len(values))), return_dtype=pl.Int64)
    return values.to_list(), codes.to_numpy()


def port_kind(column: pl.Series) -> pl.Series:
    """A well-known port (below 1024) by its number, others as `registered` (below 49152) or `dynamic` (RFC 6335)."""
    port = column.cast(pl.Int64, strict=False)
    frame = pl.DataFrame({"port": port})
    named = pl.when(pl.col("port") < 1024).then(pl.col("port").cast(pl.String)).when(pl.col("port") < 49152).then(pl.lit("registered"))
    return frame.select(pl.when(pl.col("port").is_not_null()).then(named.otherwise(pl.lit("dynamic")))).to_series()


def account_kind(column: pl.Series) -> pl.Series:
    r"""A Windows account by its kind, since names tell hosts and people: a built-in one by its name (`system`, `dwm`), else `machine` or `person`.

    `NT AUTHORITY\SYSTEM` is `system`, `Window Manager\DWM-2` is `dwm`, `SITE\DC01$` is `machine`, `SITE\ann` is `person`.
    """
    name = pl.col("account").str.to_lowercase()
    built_in = name.str.contains(r"^(nt authority|nt service|window manager|font driver host)\\")
    own = name.str.extract(r"\\(.*)$").str.replace(r"-?[0-9]+$", "")
    kind = pl.when(built_in).then(own).when(name.str.ends_with("$")).then(pl.lit("machine")).when(name.is_not_null()).then(pl.lit("person"))
    return pl.DataFrame({"account": column.cast(pl.String)}).select(kind).to_series()


@dataclass
class Encoder:
    """Encodes rows of one data set as float32 vectors; made by `fit` or `load`.

    Order of the features: the reduced (or kept) sparse columns, the shares of new tokens, the numbers, the indicators of absent numbers.
    """

    config: dict[str, Any]
    """The encoding configuration."""
    vocabulary: dict[str, list[str]] = field(default_factory=dict)
    """Tokens of each text column."""
    idf: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """(V,) weights of these tokens."""
    categories: dict[str, list[str]] = field(default_factory=dict)
    """Categories of each categorical column that are not rare."""
    numbers: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Mean and standard deviation of each number's signed logarithm."""
    absent: list[str] = field(default_factory=list)
    """Numbers that training rows lack at times."""
    components: NDArray[np.float32] | None = None
    """(K, S) the reduction of the S sparse columns; None where they are few enough to be kept."""
    explained: float | None = None
    """Share of the sparse columns' variance that the reduction keeps, on training rows."""

    @classmethod
    def fit(cls, rows: pl.DataFrame, config: Mapping[str, Any], max_features: int, seed: int) -> Encoder:
        """Fit on benign training rows.

        Args:
            rows: the columns that `config` names.
            config: an encoding configuration that `check_config` passed.
            max_features: components of the SVD, when the sparse columns are more.
            seed: of the SVD.
        """
        encoder = cls(dict(config))
        codes: list[NDArray[np.int64]] = []
        blocks: list[sparse.csr_array] = []
        for name in encoder.text_columns:
            values, code = distinct(rows[name])
            encoder._fit_text(name, values, np.bincount(code, minlength=len(values)))
            codes.append(code)
            blocks.append(encoder._text(name, values)[0])
        for name in encoder.category_columns:
            values, code = distinct(encoder._category(rows, name))
            counts = np.bincount(code, minlength=len(values))
            present = sum(int(count) for value, count in zip(values, counts, strict=True) if value is not None)
            least = max(2.0, RARE * present)
            often = [place for place in np.argsort(-counts, kind="stable") if values[place] is not None and counts[place] >= least]
            encoder.categories[name] = [values[place] for place in often[:MOST_CATEGORIES]]
            codes.append(code)
            blocks.append(encoder._one_hot(name, values))
        for name in encoder.number_columns:
            number = signed_log(rows[name])
            known = number[np.isfinite(number)]
            spread = float(known.std()) if len(known) else 0.0
            encoder.numbers[name] = (float(known.mean()) if len(known) else 0.0, spread if spread > 1e-6 else 1.0)
            if len(known) < len(number):
                encoder.absent.append(name)
        width = len(encoder.sparse_names)
        if width > max_features:
            encoder._reduce(codes, blocks, max_features, seed)
        return encoder

    @property
    def text_columns(self) -> list[str]:
        """Columns that go through TF-IDF."""
        return list(self.config.get("tfidf_columns", ()))

    @property
    def category_columns(self) -> list[str]:
        """Columns that become one-hot."""
        return [name for key in ("categorical_columns", "port_columns", "account_columns") for name in self.config.get(key, ())]

    @property
    def number_columns(self) -> list[str]:
        """Columns that are scaled, derived ones last."""
        return [*self.config.get("numeric_columns", ()), *self.config.get("derived_columns", ())]

    @property
    def columns(self) -> list[str]:
        """Columns that `encode` reads."""
        return [*self.text_columns, *self.category_columns, *self.number_columns]

    @property
    def sparse_names(self) -> list[str]:
        """Names of the S sparse columns."""
        text = [f"{name}={token}" for name in self.text_columns for token in self.vocabulary[name]]
        return text + [f"{name}={value}" for name in self.category_columns for value in (*self.categories[name], "other", "missing")]

    @property
    def feature_names(self) -> list[str]:
        """Names of the features, in order."""
        kept = self.sparse_names if self.components is None else [f"svd_{index}" for index in range(len(self.components))]
        return [*kept, *(f"{name}:new" for name in self.text_columns), *self.number_columns, *(f"{name}:missing" for name in self.absent)]

    def encode(self, rows: pl.DataFrame) -> NDArray[np.float32]:
        """(N, F) features of rows that hold `columns`.

        Raises:
            UserError: when a column is missing.
        """
        for name in self.columns:
            if name not in rows.columns:
                raise UserError(f"rows to encode lack column '{name}'; found: {', '.join(rows.columns)}")
        kept = len(self.sparse_names) if self.components is None else len(self.components)
        result = np.zeros((len(rows), kept + len(self.text_columns) + len(self.number_columns) + len(self.absent)), dtype=np.float32)
        first = 0
        for place, name in enumerate(self.text_columns):
            values, code = distinct(rows[name])
            block, new = self._text(name, values)
            last = first + len(self.vocabulary[name])
            self._add(result[:, :kept], block, code, slice(first, last))
            result[:, kept + place] = new[code]
            first = last
        for name in self.category_columns:
            values, code = distinct(self._category(rows, name))
            last = first + len(self.categories[name]) + 2
            self._add(result[:, :kept], self._one_hot(name, values), code, slice(first, last))
            first = last
        place = kept + len(self.text_columns)
        indicator = place + len(self.number_columns)
        for name, (mean, spread) in self.numbers.items():
            number = signed_log(rows[name])
            known = np.isfinite(number)
            result[known, place] = np.clip((number[known] - mean) / spread, -CLIP, CLIP)
            if name in self.absent:
                result[~known, indicator] = 1.0
                indicator += 1
            place += 1
        return result

    def save(self, folder: Path) -> None:
        """Write `encoder.json` and `encoder.npz` into a folder."""
        tree = {
            "config": self.config,
            "vocabulary": self.vocabulary,
            "categories": self.categories,
            "numbers": {name: list(pair) for name, pair in self.numbers.items()},
            "absent": self.absent,
            "explained_variance": self.explained,
            "features": len(self.feature_names),
        }
        (folder / "encoder.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
        arrays = {f"idf_{index}": self.idf[name] for index, name in enumerate(self.text_columns)}
        if self.components is not None:
            arrays["components"] = self.components
        np.savez(folder / "encoder.npz", **arrays)  # pyright: ignore[reportArgumentType]

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """Read what `save` wrote.

        Raises:
            UserError: when a file is missing or malformed.
        """
        try:
            tree = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
            encoder = cls(
                tree["config"], vocabulary=tree["vocabulary"], categories=tree["categories"], absent=tree["absent"], explained=tree["explained_variance"]
            )
            encoder.numbers = {name: (mean, spread) for name, (mean, spread) in tree["numbers"].items()}
            with np.load(folder / "encoder.npz", allow_pickle=False) as arrays:
                encoder.idf = {name: arrays[f"idf_{index}"] for index, name in enumerate(encoder.text_columns)}
                encoder.components = arrays["components"] if "components" in arrays.files else None
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise UserError(f"encoder in '{folder}' cannot be read ({error.__class__.__name__}: {error}); encode again") from error
        return encoder

    def _fit_text(self, name: str, values: list[Any], counts: NDArray[np.integer]) -> None:
        """Vocabulary of a text column: the tokens that the most rows hold, at least two; ties in alphabetical order."""
        rows_with: Counter[str] = Counter()
        total = 0
        for value, count in zip(values, counts.tolist(), strict=True):
            if value is not None:
                total += count
                for word in set(tokens(str(value))):
                    rows_with[word] += count
        size = int(self.config.get("tfidf_params", {}).get(name, 300))
        words = sorted(sorted(word for word, count in rows_with.items() if count > 1), key=lambda word: -rows_with[word])[:size]
        self.vocabulary[name] = sorted(words)
        found = np.array([rows_with[word] for word in self.vocabulary[name]], dtype=np.float64)
        self.idf[name] = (np.log((1 + total) / (1 + found)) + 1).astype(np.float32)

    def _text(self, name: str, values: Sequence[Any]) -> tuple[sparse.csr_array, NDArray[np.float32]]:
        """(U, V) TF-IDF of texts, each of length 1 or 0, and the (U,) share of their tokens that no vocabulary holds."""
        place = {word: index for index, word in enumerate(self.vocabulary[name])}
        indices: list[int] = []
        lengths = np.zeros(len(values) + 1, dtype=np.int64)
        new = np.zeros(len(values), dtype=np.float32)
        for row, value in enumerate(values):
            words = tokens(str(value)) if value is not None else []
            known = [place[word] for word in words if word in place]
            indices += known
            lengths[row + 1] = len(known)
            new[row] = 1 - len(known) / len(words) if words else 0.0
        shape = (len(values), len(place))
        matrix = sparse.csr_array((np.ones(len(indices), dtype=np.float32), np.array(indices, dtype=np.int64), np.cumsum(lengths)), shape=shape)
        matrix.sum_duplicates()
        matrix.data *= self.idf[name][matrix.indices]
        return sparse.csr_array(normalize(matrix, copy=False) if place else matrix), new

    def _category(self, rows: pl.DataFrame, name: str) -> pl.Series:
        if name in self.config.get("port_columns", ()):
            return port_kind(rows[name])
        return account_kind(rows[name]) if name in self.config.get("account_columns", ()) else rows[name].cast(pl.String)

    def _one_hot(self, name: str, values: Sequence[Any]) -> sparse.csr_array:
        """(U, C + 2) one-hot of categories: the known ones, `other`, `missing`."""
        known = {value: index for index, value in enumerate(self.categories[name])}
        indices = np.array([len(known) + 1 if value is None else known.get(value, len(known)) for value in values], dtype=np.int64)
        ones = np.ones(len(values), dtype=np.float32)
        return sparse.csr_array((ones, indices, np.arange(len(values) + 1)), shape=(len(values), len(known) + 2))

    def _reduce(self, codes: list[NDArray[np.int64]], blocks: list[sparse.csr_array], max_features: int, seed: int) -> None:
        """Fit the SVD. Rows that are equal in every column count once, with the root of their number as weight: the components are the same."""
        table, counts = np.unique(np.stack(codes, axis=1), axis=0, return_counts=True)
        matrix = sparse.csr_array(sparse.hstack([block[table[:, place]] for place, block in enumerate(blocks)], format="csr"))
        weighted = sparse.csr_array(sparse.diags_array(np.sqrt(counts)) @ matrix)
        svd = TruncatedSVD(n_components=max_features, n_iter=5, random_state=seed)
        svd.fit(weighted)
        components = np.asarray(svd.components_, dtype=np.float32)  # pyright: ignore[reportAttributeAccessIssue]
        self.components = components
        reduced = matrix @ components.T
        spread = np.average(reduced**2, axis=0, weights=counts) - np.average(reduced, axis=0, weights=counts) ** 2
        mean = np.asarray(counts @ matrix).ravel() / counts.sum()
        all_spread = float((counts @ matrix.multiply(matrix)).sum() / counts.sum() - (mean**2).sum())
        self.explained = float(spread.sum() / all_spread) if all_spread > 0 else None

    def _add(self, result: NDArray[np.float32], block: sparse.csr_array, code: NDArray[np.int64], place: slice) -> None:
        """Add the sparse columns `place` of rows, given those of their distinct values, to `result` (N, K)."""
        if self.components is None:
            picked = sparse.csr_array(block[code])
            result[np.repeat(np.arange(len(code)), np.diff(picked.indptr)), place.start + picked.indices] = picked.data
        else:
            result += (block @ self.components[:, place].T)[code]


def signed_log(column: pl.Series) -> NDArray[np.float64]:
    """(N,) sign(x) ln(1 + |x|) of a column of numbers or truths; NaN where absent or infinite."""
    number = column.cast(pl.Float64, strict=False).to_numpy()
    number = np.where(np.isfinite(number), number, np.nan)
    return np.sign(number) * np.log1p(np.abs(number))
