"""A search by Ray Tune: trials side by side, settings by the same Optuna study as a search without a cluster, which either goes on with.

A trial that does worse than the median of the others at its epoch is stopped (Golovin et al. 2017) and counts with what it had reached. What is tried
next depends on which trial ends first, so a search by several workers is not the same twice.
"""
# pyright: reportMissingImports=false
# (Ray is no part of requirements.txt)

from __future__ import annotations

import shutil
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from ray import tune
from ray.tune.schedulers import MedianStoppingRule
from ray.tune.search.optuna import OptunaSearch

from src.config import Config, changed
from src.data.dataset import Dataset
from src.errors import UserError
from src.training.lstm_trainer import LSTMTrainer
from src.training.search import (
    OBJECTIVE,
    RANDOM_TRIALS,
    UNPRUNED,
    Kind,
    OpenRun,
    Outcome,
    finished,
    open_study,
    outcome,
    plain,
    sampler,
    study_digest,
    words_of,
)

FOUND, REFUSED = "macro_f1", "refused"
TRIES = 3
"""How often a trial is started again whose node has died."""


def search(
    config: Config,
    dataset: Dataset,
    model: Kind,
    ranges: Mapping[str, tuple[Any, ...]],
    trials: int,
    store: Path,
    open_run: OpenRun,
    *,
    study: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Try settings until the study holds `trials` finished trials, as many at once as the cluster has room for. Arguments: `src.training.search.search`.

    Raises:
        UserError: when the named study was made with other settings or data, the store cannot be used, or every trial fails.
    """
    config = changed(config, {"lstm.training.teachers": 0})  # as the search without a cluster
    digest = study_digest(config, dataset, ranges, model)
    held = open_study(store, study or f"{model}-{digest[:12]}", digest)
    while (done := len(finished(held))) < trials:
        books = store.parent / f"tune-{uuid.uuid4().hex[:8]}"
        watch = _Watch(held, model, open_run, done, trials, say)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what SQLAlchemy and Tune deprecate is for them to mend
            suggest = OptunaSearch(
                _distributions(ranges), metric=FOUND, mode="max", study_name=held.study_name, sampler=sampler(config.compute.seed, done),
                storage=optuna.storages.RDBStorage(f"sqlite:///{store.resolve()}"),
            )  # fmt: skip
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(_try, config=config, dataset=dataset, model=model), {"cpu": config.compute.threads}),
                tune_config=tune.TuneConfig(
                    search_alg=suggest, num_samples=trials - done, metric=FOUND, mode="max",
                    scheduler=MedianStoppingRule(grace_period=UNPRUNED, min_samples_required=min(RANDOM_TRIALS, UNPRUNED)),
                ),
                run_config=tune.RunConfig(
                    name=held.study_name, storage_path=str(books.resolve()), verbose=0, callbacks=[watch], failure_config=tune.FailureConfig(max_failures=TRIES)
                ),
            )  # fmt: skip
            try:
                tuner.fit()
            finally:
                shutil.rmtree(books, ignore_errors=True)
        if not watch.sound:
            raise UserError(watch.refused or "every trial was lost on the Ray cluster; look at its nodes, then give the same command again")
    return outcome(held, ranges)


def _distributions(ranges: Mapping[str, tuple[Any, ...]]) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {}
    for key, (kind, *rest) in ranges.items():
        if kind == "categorical":
            found[key] = CategoricalDistribution(rest[0])
        else:
            low, high, logarithmic = rest
            found[key] = (IntDistribution if kind == "int" else FloatDistribution)(low, high, log=logarithmic)
    return found


class _Watch(tune.Callback):
    """Follows trials in the process that searches, and records each once it ends."""

    def __init__(self, held: optuna.Study, model: Kind, open_run: OpenRun, done: int, trials: int, say: Callable[[str], None]) -> None:
        self.held, self.model, self.open_run, self.done, self.trials, self.say = held, model, open_run, done, trials, say
        self.rows: dict[str, dict[int, dict[str, Any]]] = {}
        self.sound, self.refused = False, ""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune stores its callbacks to go on with a search, which the study does here."""
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Keep the figures of an epoch; those of a trial that was started again take the place of the former."""
        self.rows.setdefault(trial.trial_id, {})[int(result["training_iteration"])] = result

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial."""
        rows, settings = self.rows.pop(trial.trial_id, {}), plain(trial.config)
        last = rows[max(rows)] if rows else {FOUND: 0.0}
        self.refused = self.refused or last.get(REFUSED, "")
        self.sound = self.sound or not last.get(REFUSED, "")
        self.done += 1
        with self.open_run(f"trial {self.done}", {"study": self.held.study_name, "trial": self.done, "model": self.model}) as run:
            run.log_params({"trial": settings})
            for step, row in sorted(rows.items()):
                run.log_metrics(row.get("figures", {}), step)
            run.log_metrics({"objective": last[FOUND], "pruned": 0.0})
        self.say(f"trial {self.done} of {self.trials}: macro-F1 {last[FOUND]:.4f}  {words_of(settings)}")


class _Report:
    """A training's log in a trial: the best objective so far, and the figures, go to Tune after each epoch."""

    def __init__(self) -> None:
        self.best = 0.0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Report an epoch."""
        for key, value in metrics.items():
            if key.endswith(OBJECTIVE) and step is not None:
                self.best = max(self.best, value)
                tune.report({FOUND: self.best, REFUSED: "", "figures": dict(metrics)})

    def log_figure(self, figure: Figure, path: str) -> None:
        """Nothing: trials are compared by numbers."""

    def log_table(self, rows: Any, path: str) -> None:
        """Nothing: trials are compared by numbers."""


def _try(settings: dict[str, Any], config: Config, dataset: Dataset, model: Kind) -> None:
    """One trial, on whichever node."""
    try:
        trainer = LSTMTrainer(changed(config, plain(settings)), dataset, _Report())
        _ = trainer.train_base() if model == "base" else trainer.train_temporal()
    except UserError as error:
        tune.report({FOUND: 0.0, REFUSED: str(error), "figures": {}})
