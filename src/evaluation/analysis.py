"""What a contest of policies comes to: scores with joint intervals, measures apart from the reward, and the gates.

All figures of a side are computed under the same resamples of episodes (inside each attacker) and of training runs, so that differences
and ratios are paired (`Resamples`). Three levels make the scales: the planner that sees the truth, the best heuristic and the best constant,
the last two chosen on the traces of tuning, so the same on every side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from src.config import Config
from src.evaluation.rollout import PLANNER, Contest
from src.evaluation.statistics import Estimate, Resamples, estimated, ratio
from src.evaluation.tables import Gate

CONSTANT, SHUFFLED = "best constant", "observations shuffled"

ORDERS = ("rate_limit", "block", "isolate", "restore", "release")
"""Kinds of order, as the episodes' summaries count them."""

ENDS = ("overrun", "evicted", "horizon")
"""From index 1 on, as the environment numbers them."""

TAIL = 0.05
"""Share of the episodes, the worst, that CVaR is the mean of."""

LEVELS = 41
"""Points of the performance profile."""

Values = NDArray[np.float64]
Rows = list[dict[str, Any]]


def detection_steps(summary: dict[str, Values], start: NDArray[np.int64]) -> Values:
    """(N,) steps from the attack's beginning until the first device under attack, or worse, is cut off; NaN where no attack began.

    Where that never happens, the steps until the episode's end: the mean of these is a restricted mean survival time, a lower bound.
    A policy that turns attacks away by blocks alone cuts nothing off, and is late by this measure.
    """
    until = np.where(summary["first_response"] >= 0, summary["first_response"], summary["steps"])
    return np.where(summary["attacked"] > 0, until - start, np.nan)


class BenchmarkAnalyzer:
    """Figures, tables and gates of a `Contest`; what needs an agent is empty where none played."""

    def __init__(self, config: Config, contest: Contest, devices: int) -> None:
        """Section `eval` says how many resamples and how wide intervals are; `devices` is how many the network has."""
        self.config, self.contest, self.devices = config, contest, devices
        rng = np.random.default_rng(config.compute.seed)
        counts = {len(runs) for side in contest.sides.values() for runs in side.episodes.values()}
        self.resamples: dict[str, Resamples] = {}
        for name, side in contest.sides.items():
            drawn = Resamples.draw(np.unique(side.attacker, return_inverse=True)[1], counts, config.eval.bootstrap, rng)
            # Runs are the same agents on every side, so they are drawn once; episodes are others.
            runs = next(iter(self.resamples.values())).runs if self.resamples else drawn.runs
            self.resamples[name] = Resamples(drawn.episodes, runs)

    @property
    def agent(self) -> str | None:
        """The group of agents that gates are about."""
        return self.contest.agents[0] if self.contest.agents else None

    # Levels and scores; (1 + R,) each, of the data and of every resample

    def returns(self, side: str, policy: str) -> Values:
        """Mean return."""
        return self.resamples[side].means(self.contest.sides[side].returns(policy))

    def score(self, side: str, policy: str, zero: str) -> Values:
        """(R - zero) / (planner - zero): 0 is as good as the policy `zero`, 1 as one that sees the truth."""
        floor = self.returns(side, zero)
        return ratio(self.returns(side, policy) - floor, self.returns(side, PLANNER) - floor)

    def drop(self, policy: str) -> Values:
        """From `seen` to `held out`: the fall of (R - best constant) / (planner - best constant), each side on its own levels."""
        return self.score("seen", policy, CONSTANT) - self.score("held out", policy, CONSTANT)

    def strictest(self, side: str) -> str:
        """The heuristic that turned out best on this very side."""
        return max((name for name in self.contest.validation if name != PLANNER), key=lambda name: self.contest.sides[side].returns(name).mean())

    def difference(self, side: str, mine: str, other: str) -> Estimate:
        """Mean return of one policy minus another's."""
        return self._estimate(self.returns(side, mine) - self.returns(side, other))

    def improvement(self, side: str, mine: str, other: str) -> Estimate:
        """Probability of improvement (Agarwal et al. 2021): tasks are the side's attackers, runs the training seeds, scores mean returns."""
        one = self.contest.sides[side]
        tasks = np.unique(one.attacker, return_inverse=True)[1]
        tasks = np.where(one.attacker == "", -1, tasks) if (one.attacker != "").any() else tasks
        return self._estimate(self.resamples[side].improvement(one.returns(mine), one.returns(other), tasks))

    def episodes_won(self, side: str, mine: str, other: str) -> Estimate:
        """Share of episodes, paired by seed, in which one policy does better than the other; ties count half."""
        a, b = (self.contest.sides[side].returns(name) for name in (mine, other))
        return self._estimate(self.resamples[side].means((a > b) + 0.5 * (a == b)))

    # Tables

    @cached_property
    def policies(self) -> dict[str, Rows]:
        """By side, a row a policy: its return, and what can be measured apart from the reward."""
        return {name: [self._row(name, policy) for policy in side.episodes] for name, side in self.contest.sides.items()}

    def differences(self, side: str) -> dict[str, Estimate]:
        """Mean return of the agent minus that of each other policy."""
        return {name: self.difference(side, self.agent, name) for name in self.contest.sides[side].episodes if name != self.agent} if self.agent else {}

    @cached_property
    def ablations(self) -> dict[str, Estimate]:
        """Mean return that the agent loses on the `held out` side by noise in each sensor, and by shuffled observations."""
        if self.agent is None:
            return {}
        whole = self.contest.sides["held out"].returns(self.agent)
        played = {**self.contest.blinded, SHUFFLED: self.contest.shuffled}
        lost = {name: whole - np.stack([run.returns for run in runs]) for name, runs in played.items()}
        return {name: self._estimate(self.resamples["held out"].means(values)) for name, values in lost.items()}

    @cached_property
    def scores(self) -> Rows:
        """A row a side with attackers and group of agents."""
        rows = []
        for side in ("seen", "held out"):
            for name in self.contest.agents:
                heuristic, strictest = self.contest.heuristic, self.strictest(side)
                rows.append(
                    {
                        "side": side, "agent": name, "heuristic": heuristic,
                        **_spread("H", self._estimate(self.score(side, name, heuristic))),
                        **_spread("improvement", self.improvement(side, name, heuristic)),
                        **_spread("episodes_won", self.episodes_won(side, name, heuristic)),
                        "best_here": strictest,
                        **_spread("H_over_best_here", self._estimate(self.score(side, name, strictest))),
                        **_spread("constant_scale", self._estimate(self.score(side, name, CONSTANT))),
                    }
                )  # fmt: skip
        return rows

    @cached_property
    def attackers(self) -> Rows:
        """A row an attacker of either side: mean return of each policy in the episodes that it comes in."""
        rows = []
        for name in ("seen", "held out"):
            side = self.contest.sides[name]
            for attacker in sorted(set(side.attacker) - {""}):
                inside = side.attacker == attacker
                means = {policy: float(side.returns(policy)[:, inside].mean()) for policy in side.episodes}
                row: dict[str, Any] = {"side": name, "attacker": str(attacker), "episodes": int(inside.sum()), **means}
                if self.agent:
                    values = [self.resamples[name].task_means(side.returns(policy), inside) for policy in (self.agent, self.contest.heuristic, PLANNER)]
                    runs = self.resamples[name].runs[values[0].shape[1]]
                    mine = (values[0] * runs).sum(axis=1) / runs.sum(axis=1)
                    row |= _spread("H", self._estimate(ratio(mine - values[1][:, 0], values[2][:, 0] - values[1][:, 0])))
                rows.append(row)
        return rows

    def profile(self, side: str, policies: Sequence[str]) -> Rows:
        """Performance profile (Dolan and More 2002): share of runs and episodes whose return is above a level, a row a policy and level."""
        one = self.contest.sides[side]
        lowest = min(float(np.quantile(one.returns(name), 0.01)) for name in policies)
        rows = []
        for name in policies:
            levels = np.linspace(lowest, 0.0, LEVELS)
            shares = self.resamples[side].profile(one.returns(name), levels)
            rows += [{"policy": name, "level": float(level), **_spread("share", self._estimate(shares[:, i]))} for i, level in enumerate(levels)]
        return rows

    def gates(self) -> dict[str, Gate]:
        """What is asked of the first group of agents; `held out` attackers where no side is named."""
        if self.agent is None:
            return {}
        agent, heuristic = self.agent, self.contest.heuristic
        score, seen = (self._estimate(self.score(side, agent, heuristic)) for side in ("held out", "seen"))
        better, drop = self.improvement("held out", agent, heuristic), self._estimate(self.drop(agent))
        strongest = max(self.contest.exploits, key=lambda name: self.contest.exploits[name].mean)
        ahead = self.contest.sides["held out"].returns(agent) - self.contest.exploits[strongest].returns
        place = self._estimate(self.score("held out", agent, CONSTANT))
        exploits = self._estimate(self.resamples["held out"].means(ahead))
        words = f"(R - {heuristic}) / (planner - {heuristic}), mean returns on held-out traces"
        gates = {
            "G5.score": _gate(f"{words}, attackers never met", score, ">=", 0.25, beyond=0.0),
            "G5.score.seen": _gate(f"{words}, attackers of training", seen, ">=", 0.25, beyond=0.0),
            "G5.improvement": _gate(f"probability of improvement over {heuristic}, over attackers never met and training seeds", better, ">=", 0.75),
            "G5.drop": _gate("fall of (R - best constant) / (planner - best constant) from attackers of training to those never met", drop, "<=", 0.1),
            "G5.constant_scale": _gate("(R - best constant) / (planner - best constant), attackers never met", place, ">", 0.0, by_interval=True),
            "G5.exploits": _gate(f"mean return minus that of the best script that reads no sensor ({strongest})", exploits, ">", 0.0, by_interval=True),
        }
        for name, lost in self.ablations.items():
            key, what = ("G5.shuffled", name) if name == SHUFFLED else (f"G5.noise.{name}", f"noise for {name}")
            gates[key] = _gate(f"mean return lost by {what}, attackers never met", lost, ">", 0.0, by_interval=True)
        return gates

    def _estimate(self, values: Values) -> Estimate:
        return estimated(values, self.config.eval.confidence)

    def _row(self, side: str, policy: str) -> dict[str, Any]:
        one, resamples = self.contest.sides[side], self.resamples[side]
        played, returns = one.episodes[policy], one.returns(policy)
        total = {key: np.concatenate([run.summary[key] for run in played]) for key in played[0].summary}
        mean, middle, tail = (
            self._estimate(values) for values in (resamples.means(returns), resamples.between(returns, 0.25, 0.75), resamples.between(returns, 0, TAIL))
        )
        ends = np.bincount(np.concatenate([run.end for run in played]), minlength=len(ENDS) + 1) / returns.size
        hours = self.config.env.step_seconds / 3600.0
        calm = total["attacked"] == 0
        calm_days = total["steps"][calm].sum() * hours / 24.0 * self.devices
        cut = total["isolate"] + total["restore"]
        given = {kind: total[kind].sum() for kind in ORDERS}
        attacked = total["attacked"] > 0
        detection = np.concatenate([detection_steps(run.summary, one.start) for run in played])
        return {
            "policy": policy,
            "rule": self.contest.words.get(policy, ""),
            "return": mean.value,
            "low": mean.low,
            "high": mean.high,
            **_spread("iqm", middle),
            **_spread("cvar", tail),
            "damage": float(total["damage"].mean()),
            "service_loss": float(total["service"].mean()),
            "availability": float(1.0 - total["service"].sum() / total["steps"].sum()),
            "healthy_service": float(total["healthy_service"].mean()),
            "steps_to_detect": float(np.nanmean(detection)) if attacked.any() else None,
            "detected": float((total["first_response"] >= 0)[attacked].mean()) if attacked.any() else None,
            "steps_to_contain": float(total["dwell"].sum() / max(total["compromises"].sum(), 1.0)),
            "orders_per_hour": float(total["orders"].sum() / (total["steps"].sum() * hours)),
            "false_isolations_per_device_day": float(cut[calm].sum() / calm_days) if calm.any() else None,
            "false_downtime_hours_per_device_day": float(total["false_isolation"][calm].sum() * hours / calm_days) if calm.any() else None,
            "violations": float(total["safety"].mean()),
            "length": float(total["steps"].mean()),
            **{f"end_{end}": float(ends[i]) for i, end in enumerate(ENDS, start=1)},
            **{f"share_{kind}": float(count / max(sum(given.values()), 1.0)) for kind, count in given.items()},
        }


def _gate(what: str, found: Estimate, op: Literal[">=", "<=", ">"], target: float, *, by_interval: bool = False, beyond: float | None = None) -> Gate:
    return Gate(what, found.value, target, op, found.low, found.high, by_interval=by_interval, beyond=beyond)


def _spread(name: str, estimate: Estimate) -> dict[str, float]:
    """`name`, `name_low`, `name_high`."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
