"""Stage 5: six figures of what stage 4 measured, drawn from its files, the windows of stage 2 and the encoder of stage 3.

`python -m src.sae.visualisation --dataset NAME --version NAME [--out FOLDER]`

Every figure says which data it is of, how many windows, and how many of those are of attacks. Where a split holds no attack, or no label at
all, the figure says that in the place of what cannot be drawn.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import precision_recall_curve, roc_curve

from src.artifacts import content_digest, new_artifact, open_artifact
from src.errors import UserError
from src.models.lstm_sae import AnomalyDetector
from src.sae import encoding, evaluation
from src.sae.layout import Layout, Say, finish, layout_of, parser, read_json, teller
from src.sae.measures import Marks, read_array, runs
from src.training.explanation_figures import canvas

KIND = "sae-figures"
INK, MUTED, GRID, BENIGN, ATTACK, ALARM = "#1f2933", "#8a94a0", "#e4e7eb", "#0b7285", "#d9480f", "#c92a2a"
OTHERS = (ATTACK, "#5f3dc4", "#e67700", "#a61e4d", "#2b8a3e", "#1864ab", "#795548")
"""Colours of attack labels, the most frequent first; what is beyond shares one."""
STRETCHES = 400
"""Stretches of a long session, of which the least and the largest score are drawn."""


@dataclass(frozen=True)
class VisualisationSettings:
    """How stage 5 draws."""

    points: int = 900
    """Windows in the picture of the latent space."""
    seed: int = 0
    """Of their choice, and of t-SNE."""


@dataclass(frozen=True)
class Scored:
    """The test split with what stage 4 said of it."""

    marks: Marks
    scores: NDArray[np.float64]
    """(N,) the higher, the more abnormal."""
    errors: NDArray[np.float64]
    """(N,) mean squared errors of the reconstruction."""
    threshold: float
    """Of the scores."""
    results: dict[str, Any]
    """Stage 4's."""
    source: str
    """`real` or `synthetic`."""
    session_names: tuple[str, ...]

    @classmethod
    def read(cls, layout: Layout) -> Scored:
        """What stages 2 and 4 wrote.

        Raises:
            UserError: when stage 4 did not run, or ran on other windows or with another model.
        """
        judged = open_artifact(layout.eval, evaluation.KIND).get("judged", {})
        open_artifact(layout.encoded, encoding.KIND)
        for what, folder in (("encoded", layout.encoded), ("model", layout.model)):
            if judged.get(what) != content_digest(folder):
                raise UserError(f"'{layout.eval}' judges another content than '{folder}' now holds; run stage 4 again")
        marks = Marks.read(layout.encoded, "test")
        scores, errors = (np.array(read_array(layout.eval / f"{name}.npy")) for name in ("scores", "reconstruction_errors"))
        results, names = read_json(layout.eval / "evaluation_results.json"), read_json(layout.encoded / "metadata.json")
        return cls(
            marks,
            scores,
            errors,
            results["threshold"]["threshold"],
            results,
            "synthetic" if names.get("synthetic") else "real",
            tuple(read_json(layout.encoded / "sessions.json", ("sessions",))["sessions"]),
        )

    def classes(self) -> list[tuple[str, str, NDArray[np.bool_]]]:
        """Name, colour and windows of each kind that occurs: benign, attack, without a label."""
        kinds = (("benign", BENIGN, 0), ("attack", ATTACK, 1), ("no label", MUTED, -1))
        return [(name, colour, mine) for name, colour, value in kinds if (mine := self.marks.attack == value).any()]

    def labels(self) -> list[tuple[str, str, NDArray[np.bool_]]]:
        """Name, colour and windows of benign traffic, of unlabelled windows, and of each attack label; those beyond the colours as one."""
        found = [one for one in self.classes() if one[0] != "attack"]
        attack = self.marks.attack == 1
        known, count = np.unique(self.marks.label[attack], return_counts=True)
        ordered = known[np.argsort(-count, kind="stable")]
        shown = ordered if len(ordered) <= len(OTHERS) else ordered[: len(OTHERS) - 1]
        found += [(self.marks.label_names[one], colour, attack & (self.marks.label == one)) for one, colour in zip(shown, OTHERS, strict=False)]
        rest = ordered[len(shown) :]
        return [*found, (f"{len(rest)} other labels", INK, attack & np.isin(self.marks.label, rest))] if len(rest) else found

    def headline(self, title: str, layout: Layout) -> str:
        """Title, and below it what the figure is of."""
        counts = self.results["test"]["windows"]
        known = counts["benign"] + counts["attack"]
        share = f"{100 * counts['attack'] / known:.1f} % with an attack" if known else "none with a label"
        return f"{title}\n{layout.dataset} {layout.version} ({self.source} data), {len(self.marks):,} test windows, {share}"


def _open(scored: Scored, layout: Layout, title: str, width: float, height: float) -> Figure:
    figure = canvas(width, height)
    figure.suptitle(scored.headline(title, layout), x=0.012, ha="left", fontsize=11.5, color=INK, linespacing=1.4)
    return figure


def _plain(axes: Any, grid: str = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(axis=grid, color=GRID, lw=0.8)
    axes.set_axisbelow(True)


def _instead(figure: Figure, reason: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    axes = figure.subplots()
    axes.set_axis_off()
    axes.text(0.5, 0.5, f"Not drawn: {reason}.", ha="center", va="center", fontsize=12, color=INK, transform=axes.transAxes, wrap=True)
    return figure


def _told(measure: dict[str, Any], digits: int = 3) -> str:
    if measure["low"] is None:
        return f"{measure['value']:.{digits}f}"
    held = measure["sessions"]
    over = f"{held['attack']:,} + {held['benign']:,} sessions"
    return f"{measure['value']:.{digits}f} [{measure['low']:.{digits}f}, {measure['high']:.{digits}f}], {over}"


def roc_figure(scored: Scored, layout: Layout) -> Figure:
    """True over false positive rate, and the same where false alarms are rare."""
    figure = _open(scored, layout, "ROC curve of the anomaly score", 10.4, 5.2)
    test = scored.results["test"]
    if test["roc_auc"]["value"] is None:
        return _instead(figure, test["roc_auc"]["reason"])
    known = scored.marks.attack >= 0
    false, true, _ = roc_curve(scored.marks.attack[known], scored.scores[known])
    alone = roc_curve(scored.marks.attack[known], scored.errors[known])
    benign = test["windows"]["benign"]
    for axes, logarithmic in zip(figure.subplots(1, 2, sharey=True), (False, True), strict=True):
        smallest = 0.5 / benign if logarithmic else 0.0
        chance = np.geomspace(smallest, 1, 200) if logarithmic else np.array([0.0, 1.0])
        axes.plot(chance, chance, color=MUTED, lw=1, ls="--", label="chance")
        area = test["reconstruction_error_alone"]["roc_auc"]["value"]
        axes.plot(np.maximum(alone[0], smallest), alone[1], color=MUTED, lw=1.4, label=f"reconstruction error alone: area {area:.3f}", clip_on=False)
        axes.plot(np.maximum(false, smallest), true, color=BENIGN, lw=2, label=f"score: area {_told(test['roc_auc'])}", clip_on=False)
        place = max(test["fpr"]["value"], smallest), test["recall"]["value"]
        axes.plot(*place, "o", color=ATTACK, ms=8, mec="white", mew=1.2, zorder=5, clip_on=False, label="at the threshold")
        axes.set_ylim(0, 1)
        axes.set_xlim(smallest, 1)
        if logarithmic:
            axes.set_xscale("log")
            axes.set_xlabel(f"false positive rate, log scale (1 of {benign:,} is the least that shows)", fontsize=10)
        else:
            axes.set_xlabel("false positive rate", fontsize=10)
            axes.set_ylabel("true positive rate (recall)", fontsize=10)
            axes.legend(frameon=False, fontsize=8.5, loc="lower right")
        _plain(axes)
    return figure


def precision_recall_figure(scored: Scored, layout: Layout) -> Figure:
    """Precision over recall, beside the precision of alarms at random: the prevalence."""
    figure = _open(scored, layout, "Precision and recall of the anomaly score", 7.2, 4.9)
    test = scored.results["test"]
    if test["pr_auc"]["value"] is None:
        return _instead(figure, test["pr_auc"]["reason"])
    known = scored.marks.attack >= 0
    precision, recall, _ = precision_recall_curve(scored.marks.attack[known], scored.scores[known])
    axes = figure.subplots()
    axes.plot(recall, precision, color=BENIGN, lw=2, drawstyle="steps-post", label=f"average precision {_told(test['pr_auc'])}", clip_on=False)
    prevalence = test["prevalence"]["value"]
    axes.axhline(prevalence, color=MUTED, lw=1.2, ls="--", label=f"alarms at random: prevalence {prevalence:.3f}")
    if test["precision"]["value"] is not None:
        label = f"at the threshold: precision {test['precision']['value']:.3f}, recall {test['recall']['value']:.3f}"
        axes.plot(test["recall"]["value"], test["precision"]["value"], "o", color=ATTACK, ms=8, mec="white", mew=1.2, zorder=5, clip_on=False, label=label)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall", fontsize=10)
    axes.set_ylabel("precision", fontsize=10)
    axes.legend(frameon=True, facecolor="white", edgecolor="none", framealpha=0.85, fontsize=9.5, loc="best")
    _plain(axes)
    return figure


def distribution_figure(scored: Scored, layout: Layout) -> Figure:
    """How scores, with the threshold, and reconstruction errors are spread in each class, on logarithmic axes."""
    figure = _open(scored, layout, "Anomaly scores and reconstruction errors by class", 12.4, 4.8)
    left, right = figure.subplots(1, 2)
    rate = scored.results["threshold"]["nominal_fpr"]
    above = {name: f", {100 * (scored.scores[mine] > scored.threshold).mean():.1f} % above" for name, _, mine in scored.classes()}
    _spread(left, scored, scored.scores, above)
    left.axvline(scored.threshold, color=INK, lw=1.4, ls="--", label=f"threshold {scored.threshold:.3g}, for {100 * rate:.2g} % false alarms")
    left.set_xlabel("score of a window: squared distance from benign ones, log scale", fontsize=10)
    left.set_ylabel("share of the class", fontsize=10)
    left.set_title("score, on which the threshold is", loc="left", fontsize=10.5, color=INK)
    _spread(right, scored, scored.errors, dict.fromkeys(above, ""))
    right.set_xlabel("mean squared error of a window, scaled units, log scale", fontsize=10)
    right.set_title("reconstruction error, one part of the score; no threshold is on it", loc="left", fontsize=10.5, color=INK)
    note = None if (scored.marks.attack == 1).any() else "no window is known to be of an attack"
    for axes in (left, right):
        axes.legend(title=note, facecolor="white", edgecolor="none", framealpha=0.85, fontsize=8.5, title_fontsize=8.5, alignment="left", loc="upper right")
        _plain(axes)
    return figure


def _spread(axes: Any, scored: Scored, values: NDArray[np.float64], told: dict[str, str]) -> None:
    """Histogram of values (N,) by class on a logarithmic axis; `told` is added to the name of each class."""
    values = _positive(values)
    low, high = float(values.min()), float(values.max())
    high = high if high > low * 1.01 else low * 1.01
    bins = np.geomspace(low, high, 70).tolist()
    for name, colour, mine in scored.classes():
        weights, inside = np.full(mine.sum(), 1 / mine.sum()), np.clip(values[mine], bins[0], bins[-1])
        axes.hist(inside, bins=bins, weights=weights, color=colour, alpha=0.35, histtype="stepfilled")
        axes.hist(inside, bins=bins, weights=weights, color=colour, lw=1.6, histtype="step", label=f"{name}: {mine.sum():,} windows{told[name]}")
    axes.set_xscale("log")
    _decades(axes.xaxis, bins[0], bins[-1])
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _decades(axis: Any, low: float, high: float) -> None:
    """Plain numbers on a logarithmic axis, enough of them for its range."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values that a logarithmic axis can show."""
    return np.maximum(values, max(float(values[values > 0].min(initial=1.0)), 1e-12))


def latent_figure(scored: Scored, layout: Layout, codes: NDArray[np.float64], chosen: NDArray[np.int64], seed: int) -> Figure:
    """Latent codes (n, L) of the windows `chosen` (n,), in two dimensions: t-SNE (van der Maaten and Hinton 2008) beside the first principal components."""
    figure = _open(scored, layout, "Latent space", 11, 5.2)
    if len(codes) < 5:
        return _instead(figure, f"{len(codes)} windows are too few for a projection")
    spread = codes - codes.mean(axis=0)
    scale = spread.std()
    if scale == 0:
        return _instead(figure, "all latent codes are equal")
    labels = [(name, colour, mine[chosen]) for name, colour, mine in scored.labels() if mine[chosen].any()]
    if codes.shape[1] == 1:
        return _one_unit(figure, codes[:, 0], labels)
    linear = PCA(2, random_state=seed).fit(spread / scale)
    near = min(30.0, (len(codes) - 1) / 3)
    projected = TSNE(2, perplexity=near, init="pca", learning_rate="auto", random_state=seed).fit_transform(spread / scale)
    first, second = figure.subplots(1, 2)
    colours = np.full(len(chosen), MUTED, dtype="<U7")
    for _, colour, mine in labels:
        colours[mine] = colour
    above = np.random.default_rng(seed).permutation(len(chosen))  # no class lies over another
    for axes, places in ((first, projected), (second, linear.transform(spread / scale))):
        axes.scatter(*places[above].T, s=10, c=colours[above], alpha=0.6, lw=0)
        axes.spines[["top", "right", "left", "bottom"]].set_color(GRID)
    explained = 100 * linear.explained_variance_ratio_
    first.set_title(f"t-SNE of {len(chosen):,} windows (perplexity {near:.0f})", loc="left", fontsize=10.5, color=INK)
    first.set_xticks([])
    first.set_yticks([])
    first.set_xlabel("distances between far groups mean nothing", fontsize=9, color=MUTED)
    second.set_title("principal components of the same windows", loc="left", fontsize=10.5, color=INK)
    second.set_xlabel(f"first, {explained[0]:.0f} % of the variance", fontsize=9.5)
    second.set_ylabel(f"second, {explained[1]:.0f} %", fontsize=9.5)
    second.tick_params(labelsize=8, length=2, colors=INK)
    handles = [Line2D([], [], marker="o", ls="", ms=6, color=colour, label=f"{name} ({mine.sum():,})") for name, colour, mine in labels]
    figure.legend(handles=handles, loc="outside lower center", ncols=-(-len(handles) // -(-len(handles) // 6)), frameon=False, fontsize=9.5)
    return figure


def _one_unit(figure: Figure, codes: NDArray[np.float64], labels: list[tuple[str, str, NDArray[np.bool_]]]) -> Figure:
    """Latent codes (n,) of one unit, which is one dimension already: their histogram by label."""
    axes = figure.subplots()
    bins = np.histogram_bin_edges(codes, 60).tolist()
    for name, colour, mine in labels:
        weights = np.full(mine.sum(), 1 / mine.sum())
        axes.hist(codes[mine], bins=bins, weights=weights, color=colour, lw=1.6, histtype="step", label=f"{name} ({mine.sum():,})")
    axes.set_xlabel("latent code (one unit: nothing to project)", fontsize=10)
    axes.set_ylabel("share of the label", fontsize=10)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(frameon=False, fontsize=9.5)
    _plain(axes)
    return figure


def confusion_figure(scored: Scored, layout: Layout) -> Figure:
    """Counts and shares at the threshold, and the share of alarms by label."""
    rows = sorted(scored.results["test"]["by_label"], key=lambda row: (row["attack"] is not False, -row["windows"]))
    shown = rows[:14]
    figure = _open(scored, layout, "Alarms at the threshold", 10.4, max(4.4, 0.36 * len(shown) + 2.2))
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    counts = scored.results["test"]["confusion"]
    table = np.array([[counts["true_negatives"], counts["false_positives"]], [counts["false_negatives"], counts["true_positives"]]])
    total = table.sum(axis=1, keepdims=True)
    share = table / np.maximum(total, 1)
    left.imshow(share, cmap="Blues", vmin=0, vmax=1.15)
    for (row, column), count in np.ndenumerate(table):
        empty = total[row, 0] == 0
        text = "no such\nwindow" if empty else f"{count:,}\n{100 * share[row, column]:.1f} %"
        left.text(column, row, text, ha="center", va="center", fontsize=12, color="white" if share[row, column] > 0.7 else MUTED if empty else INK)
    left.set_xticks([0, 1], ["no alarm", "alarm"], fontsize=10, color=INK)
    left.set_yticks([0, 1], ["benign", "attack"], fontsize=10, color=INK)
    left.tick_params(length=0)
    left.spines[:].set_visible(False)
    left.set_title("windows, share of the row", loc="left", fontsize=10.5, color=INK)
    for place, row in enumerate(shown):
        colour = {True: ATTACK, False: BENIGN, None: MUTED}[row["attack"]]
        right.barh(place, 100 * row["alarmed"], color=colour, height=0.62)
        right.text(100 * row["alarmed"] + 1.2, place, f"{100 * row['alarmed']:.1f} % of {row['windows']:,}", va="center", fontsize=9, color=INK)
    right.set_yticks(range(len(shown)), [row["label"] for row in shown], fontsize=9.5)
    right.set_ylim(len(shown) - 0.4, -0.6)
    right.set_xlim(0, 135)
    right.set_xticks(range(0, 101, 25))
    right.set_xlabel("windows that raise an alarm, %", fontsize=10)
    more = f" (the {len(shown)} most frequent of {len(rows)})" if len(rows) > len(shown) else ""
    right.set_title(f"by label{more}", loc="left", fontsize=10.5, color=INK)
    _plain(right, "x")
    return figure


def temporal_figure(scored: Scored, layout: Layout, panels: int = 4) -> Figure:
    """Scores along the sessions that hold the most attack windows, attacks shaded."""
    marks = scored.marks
    sessions, of, sizes = np.unique(marks.session, return_inverse=True, return_counts=True)
    attacks = np.bincount(of, weights=marks.attack == 1)
    mixed = (attacks > 0) & (attacks < sizes)  # sessions that show a change come before those that are of one kind
    chosen = np.lexsort((-sizes, -attacks, ~mixed))[:panels]
    if attacks.any():
        chosen = chosen[attacks[chosen] > 0]
    figure = _open(scored, layout, "Anomaly scores over time", 10.4, 1.75 * len(chosen) + 1.6)
    drawn = np.atleast_1d(figure.subplots(len(chosen), 1, sharey=True))
    for axes, session in zip(drawn, chosen, strict=True):
        mine = np.flatnonzero(of == session)
        x, axis = _clock(marks.time[mine])
        _session(axes, x, _positive(scored.scores)[mine], marks.attack[mine] == 1, scored.threshold)
        name = scored.session_names[sessions[session]]
        told = f"{len(mine):,} windows, {int(attacks[session]):,} with an attack" if attacks.any() else f"{len(mine):,} windows"
        axes.set_title(f"{name if len(name) <= 64 else '…' + name[-63:]}: {told}", loc="left", fontsize=10, color=INK)
        axes.set_xlabel(axis, fontsize=9.5)
    _decades(drawn[0].yaxis, *drawn[0].get_ylim())
    figure.supylabel("score of a window, log scale", fontsize=10, color=INK)
    handles: list[Any] = [
        Line2D([], [], marker="o", ls="", ms=5, color=BENIGN, label="no alarm"),
        Line2D([], [], marker="o", ls="", ms=5, color=ALARM, label="alarm"),
        Line2D([], [], color=INK, lw=1.2, ls="--", label="threshold"),
        Patch(color=ATTACK, alpha=0.18, lw=0, label="windows with an attack")
        if attacks.any()
        else Line2D([], [], ls="", label="no window is known to be of an attack"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9.5)
    return figure


def _clock(time: NDArray[np.int64]) -> tuple[NDArray[np.float64], str]:
    """Places (n,) of a session's windows on an axis, and what the axis is: their times, or their order where those are not known or mostly a gap."""
    seconds = (time - time[0]) / 1000
    span, places = float(seconds[-1]), np.arange(len(time), dtype=np.float64)
    if (time < 0).any() or span <= 0:
        return places, "window, in the order of the capture"
    gap = float(np.diff(seconds).max())
    unit, scale = next((one for one in (("days", 86_400), ("hours", 3600), ("minutes", 60)) if span >= 2 * one[1]), ("seconds", 1))
    if gap > span / 2:
        return places, f"window, in order of time ({span / scale:.3g} {unit} in all, with a gap of {gap / scale:.3g})"
    return seconds / scale, f"{unit} since its first window"


def _session(axes: Any, x: NDArray[np.float64], scores: NDArray[np.float64], attack: NDArray[np.bool_], threshold: float) -> None:
    """One session; of a long one the extremes of each of `STRETCHES` stretches."""
    width = max(float(np.ptp(x)), 1e-9)
    first, end = runs(attack, np.zeros(len(x), np.int64))
    spans = [(x[a], max(x[min(b, len(x) - 1)] - x[a], 0.003 * width)) for a, b in zip(first, end, strict=True)]
    axes.broken_barh(spans, (0, 1), transform=axes.get_xaxis_transform(), color=ATTACK, alpha=0.14, lw=0)
    kept = np.arange(len(x))
    if len(x) > 2 * STRETCHES:
        edges = np.linspace(0, len(x), STRETCHES + 1).astype(int)
        kept = np.unique([a + pick(scores[a:b]) for a, b in itertools.pairwise(edges) for pick in (np.argmin, np.argmax)])
    size = 2.4 if len(kept) > 200 else 4.0
    alarm = scores[kept] > threshold
    axes.plot(x[kept][~alarm], scores[kept][~alarm], "o", ms=size, color=BENIGN, mew=0)
    axes.plot(x[kept][alarm], scores[kept][alarm], "o", ms=size + 0.4, color=ALARM, mew=0)
    axes.axhline(threshold, color=INK, lw=1.2, ls="--")
    axes.set_yscale("log")
    axes.set_xlim(x[0] - 0.01 * width, x[-1] + 0.01 * width)
    axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))
    _plain(axes, "y")


def latent_sample(scored: Scored, points: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Windows to be shown, in order: as many of each class as there is room for, at random, without repetition."""
    classes = sorted((np.flatnonzero(mine) for _, _, mine in scored.classes()), key=len)
    chosen: list[NDArray[np.int64]] = []
    for place, mine in enumerate(classes):  # what a small class leaves free goes to the larger ones
        room = (points - sum(map(len, chosen))) // (len(classes) - place)
        chosen.append(rng.choice(mine, min(room, len(mine)), replace=False))
    return np.sort(np.concatenate(chosen))


def visualise(layout: Layout, settings: VisualisationSettings, say: Say) -> None:
    """Draw the six figures into `vis/NAME`.

    Raises:
        UserError: when a former stage is missing or damaged.
    """
    scored = Scored.read(layout)
    detector, _ = AnomalyDetector.load(layout.model)
    chosen = latent_sample(scored, settings.points, np.random.default_rng(settings.seed))
    windows = read_array(layout.encoded / "X_test_sequences.npy")
    if len(windows) != len(scored.marks):
        raise UserError(f"'{layout.encoded}': {len(windows)} windows of test and {len(scored.marks)} marks; run stage 2 again")
    say(f"latent space: projecting {len(chosen):,} of {len(windows):,} windows")
    with torch.inference_mode():
        codes = detector.model.encoder()(torch.from_numpy(np.array(windows[chosen], dtype=np.float32))).double().numpy()
    figures = {
        "roc_curve": roc_figure(scored, layout),
        "precision_recall_curve": precision_recall_figure(scored, layout),
        "error_distribution": distribution_figure(scored, layout),
        "latent_space": latent_figure(scored, layout, codes, chosen, settings.seed),
        "confusion_matrix": confusion_figure(scored, layout),
        "temporal_analysis": temporal_figure(scored, layout),
    }
    with new_artifact(layout.vis, KIND, {"dataset": layout.dataset, "version": layout.version, "latent_windows": len(chosen)}) as target:
        for name, figure in figures.items():
            figure.savefig(target / f"{name}.png")
    say(f"six figures in {layout.vis}")


def run(words: list[str] | None) -> None:
    """Draw as the command line says.

    Raises:
        UserError: for wrong input.
    """
    given = parser("src.sae.visualisation", "Draw what the evaluation found (stage 5).").parse_args(words)
    visualise(layout_of(given), VisualisationSettings(), teller())


if __name__ == "__main__":
    sys.exit(finish(run))
