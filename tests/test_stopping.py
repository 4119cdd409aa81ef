"""When training ends, and which epoch is kept."""

import json
import math

import numpy as np
import pytest
import torch

from src.errors import UserError
from src.models.stopping import AdaptiveEarlyStopping, SmartEarlyStopping, StandardEarlyStopping, Stopping, create_smart_callbacks

EPOCHS = 60


def play(stopping: Stopping, values: list[float], rates: list[float] | None = None) -> tuple[int, int]:
    """Last epoch, and the one whose weights are restored."""
    for epoch, value in enumerate(values, 1):
        if stopping.update(epoch, value, None if rates is None else rates[epoch - 1]):
            return epoch, stopping.best_epoch
    return len(values), stopping.best_epoch


def steady(per_cent: float, start: float = 1.0) -> list[float]:
    """A loss that falls by `per_cent` of itself each epoch."""
    return [start * (1 - per_cent / 100) ** epoch for epoch in range(EPOCHS)]


EARLY = [1.0, 0.5, 0.3, *[0.31] * 57]
"""A best that is reached in the first five epochs, and a plateau above it."""
NOISE = [1.0, 0.5, *(0.3 + 0.02 * np.random.default_rng(3).random(58)).tolist()]
"""A plateau with noise of several per cent, so that one epoch often beats the one before."""
NAN = [1.0, 0.5, 0.4, math.nan, 0.3]
CASES = {
    # values: (last epoch, epoch restored) of the standard, smart and adaptive strategy
    "plateau after an early best": (EARLY, (8, 3), (8, 3), (8, 3)),
    "steady 0.1 %": (steady(0.1), (60, 60), (6, 6), (60, 60)),
    "steady 0.4 %": (steady(0.4), (60, 60), (60, 60), (60, 60)),
    "steady 1 %": (steady(1), (60, 60), (60, 60), (60, 60)),
    "steady 2 %": (steady(2), (60, 60), (60, 60), (60, 60)),
    "a creeping descent": ([1.0, *steady(0.01, 0.02)[:-1]], (60, 60), (7, 7), (7, 7)),
    "not a number": (NAN, (4, 3), (4, 3), (4, 3)),
}
STRATEGIES = (StandardEarlyStopping, SmartEarlyStopping, AdaptiveEarlyStopping)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("number", range(3), ids=[strategy.__name__ for strategy in STRATEGIES])
def test_table_of_cases(case: str, number: int) -> None:
    values, *expected = CASES[case]
    stopping = STRATEGIES[number]()
    assert play(stopping, values) == expected[number]
    finite = [value for value in values[: expected[number][0]] if math.isfinite(value)]
    assert stopping.best == min(finite)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_noise_on_a_plateau_stops_within_patience_of_the_last_significant_best(strategy: type[Stopping]) -> None:
    stopping = strategy()
    last, best = play(stopping, NOISE)
    assert last < 20
    assert NOISE[best - 1] == min(NOISE[:last])
    assert np.sum(np.diff(NOISE[2:last]) < -0.01 * 0.3) >= 2  # compared with the epoch before, these would have counted


def test_a_best_of_the_first_epoch_is_kept_and_restored() -> None:
    for strategy in STRATEGIES:
        assert play(strategy(), [0.1, *[0.2 * 0.95**epoch for epoch in range(10)]])[1] == 1


def test_an_epoch_is_compared_with_the_best_not_with_the_one_before() -> None:
    zigzag = [1.0, 0.5, *[0.9, 0.7] * 10]  # every second epoch is far better than the one before, none than the best
    for strategy in STRATEGIES:
        assert play(strategy(), zigzag) == (7, 2)


def test_the_smallest_improvement_is_the_best_although_it_is_not_significant() -> None:
    stopping = SmartEarlyStopping(patience=3)
    assert play(stopping, [1.0, 0.999, 0.998, 0.9975]) == (4, 4)
    assert (stopping.reference, stopping.best, stopping.improved) == (1.0, 0.9975, True)
    assert stopping.reason == "no significant improvement for 3 epochs"


def test_improvements_below_the_bound_add_up() -> None:
    stopping, references = SmartEarlyStopping(), []
    for epoch, value in enumerate(steady(0.4)[:7], 1):
        assert not stopping.update(epoch, value)
        references.append(stopping.reference)
    assert references == [steady(0.4)[index] for index in (0, 0, 2, 2, 4, 4, 6)]  # every second epoch


def test_the_size_of_the_loss_does_not_matter() -> None:
    for scale in (1e-6, 1.0, 1e6):
        assert play(SmartEarlyStopping(), [scale * value for value in steady(1)]) == (60, 60)
        assert play(AdaptiveEarlyStopping(), [scale * value for value in EARLY]) == (8, 3)
    assert play(SmartEarlyStopping(min_improvement_abs=0.0005), steady(1, start=0.002)) == (6, 6)  # why the absolute bound is off by default
    assert play(SmartEarlyStopping(min_improvement_abs=0.0005), steady(1))[0] == 60  # both bounds are met while the loss is about 1
    assert play(SmartEarlyStopping(min_improvement_abs=0.02), steady(1)) == (60, 60)  # every third epoch
    assert play(SmartEarlyStopping(min_improvement_abs=0.2), steady(1)) == (6, 6)


def test_what_a_window_of_epochs_brings_together_must_be_enough() -> None:
    slow = steady(0.15)  # significant every fourth epoch, 1.5 % in ten
    stopping = SmartEarlyStopping()
    assert play(stopping, slow) == (11, 11)
    assert stopping.reason == "1.49 % improvement in 10 epochs; 2 % wanted"
    assert play(SmartEarlyStopping(min_window_improvement=1.4), slow) == (60, 60)
    stopping = SmartEarlyStopping(min_window_improvement=0, min_improvement_rate=0.2)
    assert play(stopping, slow) == (11, 11)
    assert stopping.reason == "0.149 % improvement an epoch over 10 epochs; 0.2 % wanted"


@pytest.mark.parametrize("strategy", [SmartEarlyStopping, AdaptiveEarlyStopping])
def test_a_fall_of_the_rate_restarts_patience_once(strategy: type[Stopping]) -> None:
    burst = [1.0, 0.5, *[0.5] * 6, *[0.3] * 20]  # plateau from epoch 3; the lower rate of epoch 7 pays from epoch 9 on
    assert play(strategy(), burst, [1e-3] * 28) == (7, 2)
    assert play(strategy(), burst, [*[1e-3] * 6, *[2e-4] * 22]) == (14, 9)
    falling = [1e-3 * 0.2 ** (epoch // 4) for epoch in range(28)]  # a plateau makes the rate fall again and again
    assert play(strategy(), [1.0, *[0.5] * 27], falling)[0] < 12


def test_a_fall_of_the_rate_begins_a_new_window() -> None:
    values = [*steady(0.15)[:8], *(steady(0.15)[7] * (1 - np.arange(1, 30) * 0.003)).tolist()]
    assert play(SmartEarlyStopping(), steady(0.15), [1e-3] * 60)[0] == 11
    assert play(SmartEarlyStopping(), values, [*[1e-3] * 8, *[2e-4] * 29])[0] > 20


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", ["plateau after an early best", "steady 0.1 %", "a creeping descent"])
def test_state_goes_through_json_and_on(strategy: type[Stopping], case: str) -> None:
    values = CASES[case][0]
    whole, first, second = strategy(), strategy(), strategy()
    expected = play(whole, values, [1e-3] * 60)
    half = expected[0] // 2
    play(first, values[:half], [1e-3] * half)
    second.restore(json.loads(json.dumps(first.state())))
    for epoch in range(half + 1, len(values) + 1):
        if second.update(epoch, values[epoch - 1], 1e-3):
            break
    assert second.state() == whole.state()
    second.reset()
    assert second.state() == strategy().state()


def test_standard_stopping_can_watch_a_score() -> None:
    assert play(StandardEarlyStopping(2, "max"), [0.0, 0.5, 0.4, 0.5, 0.9]) == (4, 2)
    assert play(StandardEarlyStopping(2, "max"), [0.0, 0.0, 0.0]) == (3, 1)


def test_the_factory_makes_a_strategy_and_a_schedule() -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    stopping, scheduler = create_smart_callbacks("smart", optimizer=optimizer, min_improvement_pct=1.5, patience=3)
    assert isinstance(stopping, SmartEarlyStopping)
    assert (stopping.min_improvement_pct, stopping.patience) == (1.5, 3)
    rates = []
    for _ in range(40):
        scheduler.step(0.5)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:4] == [1e-3] * 4  # the first value is a best; three epochs are waited for
    assert rates[4] == pytest.approx(2e-4)
    assert rates[-1] == 1e-7
    assert isinstance(create_smart_callbacks("adaptive", optimizer=optimizer)[0], AdaptiveEarlyStopping)
    assert isinstance(create_smart_callbacks("standard", optimizer=optimizer, patience=9)[0], StandardEarlyStopping)
    with pytest.raises(UserError, match="did you mean 'smart'"):
        create_smart_callbacks("smrt", optimizer=optimizer)
