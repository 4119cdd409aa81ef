from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from src.artifacts import open_artifact
from src.errors import UserError
from src.sae import visualisation
from src.sae.evaluation import EvaluationSettings, evaluate
from src.sae.layout import Layout, finish
from src.sae.visualisation import KIND, Scored, VisualisationSettings, latent_sample, visualise
from tests.encoded import make_run, write_encoded, write_model

FIGURES = {"roc_curve", "precision_recall_curve", "error_distribution", "latent_space", "confusion_matrix", "temporal_analysis"}


def drawn(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Layout, dict[str, str]]:
    """A run through stages 4 and 5, and all that its figures say, by name."""
    layout = make_run(folder, **options)
    evaluate(layout, EvaluationSettings(target_fpr=0.05, resamples=20), lambda _: None)
    said: dict[str, str] = {}
    save = Figure.savefig

    def listen(figure: Figure, path: Path, **others: Any) -> None:
        save(figure, path, **others)
        said[path.stem] = "\n".join(text.get_text() for text in figure.findobj(Text))  # type: ignore[attr-defined]

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", listen)
        patch.setattr(visualisation, "VisualisationSettings", lambda: VisualisationSettings(points=60))
        assert finish(visualisation.run, ["--dataset", layout.dataset, "--version", layout.version, "--out", str(folder)]) == 0
    return layout, said


def test_six_figures_say_what_they_are_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, said = drawn(tmp_path, monkeypatch)
    open_artifact(layout.vis, KIND)
    assert set(said) == FIGURES
    for name, words in said.items():
        assert "iot23 v1 (synthetic data), 240 test windows, 10.0 % with an attack" in words
        path = layout.vis / f"{name}.png"
        assert 10_000 < path.stat().st_size < 200_000
        with Image.open(path) as image:
            assert image.width >= 700
    assert "prevalence 0.100" in said["precision_recall_curve"]
    for words in ("threshold", "reconstruction error, one part of the score; no threshold is on it", "mean squared error of a window, scaled units"):
        assert words in said["error_distribution"]
    assert "reconstruction error alone: area" in said["roc_curve"]
    assert "3 + 6 sessions" in said["roc_curve"]
    assert "score of a window, log scale" in said["temporal_analysis"]
    assert "attack: 24 windows, 100.0 % above" in said["error_distribution"]
    assert "t-SNE of 60 windows" in said["latent_space"]
    assert "DDoS" in said["latent_space"]
    assert "24\n100.0 %" in said["confusion_matrix"]
    assert "host 0: 40 windows, 8 with an attack" in said["temporal_analysis"]
    assert "minutes since its first window" in said["temporal_analysis"]
    assert "host 3" not in said["temporal_analysis"], "sessions without an attack are not shown beside those that have one"


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"attacked": 0}, "no window is of an attack"), ({"unknown": True, "timed": False}, "no window is known to be benign or of an attack")],
)
def test_without_attacks_figures_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, int | bool], reason: str) -> None:
    layout, said = drawn(tmp_path, monkeypatch, **options)
    assert {path.stem for path in layout.vis.glob("*.png")} == FIGURES
    for name in ("roc_curve", "precision_recall_curve"):
        assert f"Not drawn: {reason}." in said[name]
    for name in ("error_distribution", "temporal_analysis"):
        assert "no window is known to be of an attack" in said[name]
    assert "no such" in said["confusion_matrix"]
    assert ("order of the capture" in said["temporal_analysis"]) == (not options.get("timed", True))


def test_a_latent_code_of_one_unit_is_a_histogram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, said = drawn(tmp_path, monkeypatch, latent=1)
    assert {path.stem for path in layout.vis.glob("*.png")} == FIGURES
    assert "one unit: nothing to project" in said["latent_space"]
    assert "DDoS" in said["latent_space"]


def test_the_sample_gives_each_class_its_room(tmp_path: Path) -> None:
    layout = make_run(tmp_path)
    evaluate(layout, EvaluationSettings(target_fpr=0.05, resamples=5), lambda _: None)
    scored = Scored.read(layout)
    chosen = latent_sample(scored, 100, np.random.default_rng(0))
    assert len(np.unique(chosen)) == 100
    assert (scored.marks.attack[chosen] == 1).sum() == 24, "all of a small class"
    assert (scored.marks.attack[latent_sample(scored, 20, np.random.default_rng(0))] == 1).sum() == 10
    np.testing.assert_array_equal(chosen, latent_sample(scored, 100, np.random.default_rng(0)))


def test_a_run_that_was_not_evaluated_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = make_run(tmp_path)
    assert finish(visualisation.run, ["--dataset", "iot23", "--version", "v1", "--out", str(tmp_path)]) == 2
    assert "error: no sae-evaluation artifact" in capsys.readouterr().err
    assert not layout.vis.exists()


def test_what_was_not_evaluated_is_not_drawn(tmp_path: Path) -> None:
    layout = make_run(tmp_path)
    evaluate(layout, EvaluationSettings(target_fpr=0.05, resamples=5), lambda _: None)
    write_model(layout, latent=4)
    with pytest.raises(UserError, match=rf"another content than '{layout.model}' now holds; run stage 4 again"):
        visualise(layout, VisualisationSettings(), lambda _: None)
    write_encoded(layout.encoded, sessions=7)
    with pytest.raises(UserError, match=rf"another content than '{layout.encoded}' now holds; run stage 4 again"):
        visualise(layout, VisualisationSettings(), lambda _: None)
    (layout.encoded / "y_test.npy").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"'y_test\.npy' was altered"):
        visualise(layout, VisualisationSettings(), lambda _: None)
    assert not layout.vis.exists()
