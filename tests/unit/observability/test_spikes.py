"""Spikes of the loss: all that are put in are found, nothing else is, a resumed run finds the same.

``k`` is 8: of Gaussian noise one loss in 1e15 lies beyond 8 sigma. What it has to make up for is
the deviation's own error: from 128 losses it is off by 10 % (one sigma), from 32 by 20 %.
"""

import json
from math import exp

import numpy as np
import pytest

from ovtrain.observability.spikes import SpikeDetector

STEPS = 10_000


def detector() -> SpikeDetector:
    return SpikeDetector(window=128, least=32, k=8.0, sustained=10)


def curve(seed: int) -> np.ndarray:
    """Falls fast, then slowly, from 8 to 1.5, with noise of 2 %."""
    rng = np.random.default_rng(seed)
    steps = np.arange(STEPS)
    trend = 1.5 + 4.0 * np.exp(-steps / 300) + 2.5 * np.exp(-steps / 5000)
    return trend * (1 + 0.02 * rng.standard_normal(STEPS))


def rows(losses: np.ndarray, first: int = 1) -> list[tuple[int, float]]:
    return [(first + i, float(loss)) for i, loss in enumerate(losses)]


@pytest.mark.parametrize("seed", range(6))
def test_falling_noisy_losses_raise_no_alarm(seed: int):
    assert detector().add(rows(curve(seed))) == []


@pytest.mark.parametrize("seed", range(2))
def test_injected_spikes_are_all_found_at_their_steps_and_nothing_else_is(seed: int):
    losses = curve(seed)
    places = np.arange(50, STEPS, 20)
    at = np.random.default_rng(seed).choice(places, 40, replace=False)
    losses[at] *= 1.5
    found = detector().add(rows(losses, first=0))
    assert [event.step for event in found] == sorted(at)
    assert {event.kind for event in found} == {"spike"}


def test_a_rise_is_told_of_at_its_start_when_it_lasts_and_never_again():
    losses = curve(0)[:2000]
    losses[1000:] += 2.0
    found = detector().add(rows(losses, first=0))
    assert [(event.kind, event.step) for event in found] == [("spike", 1000), ("rise", 1009)]


def test_a_spike_of_some_steps_is_one_event():
    losses = curve(0)[4800:5400]
    losses[200:206] += [3.0, 2.5, 2.0, 1.5, 1.2, 1.0]
    found = detector().add(rows(losses, first=0))
    assert [(event.kind, event.step) for event in found] == [("spike", 200)]


def test_losses_that_stand_still_may_move_a_little():
    still = np.full(300, 2.0)
    still[200] = 2.01
    assert detector().add(rows(still)) == []
    still[250] = 2.1
    assert [event.step for event in detector().add(rows(still))] == [251]


def test_nothing_is_judged_before_there_is_a_history():
    wild = np.array([exp(i % 5) for i in range(32)])
    assert detector().add(rows(wild)) == []


@pytest.mark.parametrize("cut", [20, 203, 209, 215, 500])
def test_a_resumed_detector_finds_what_an_uninterrupted_one_does(cut: int):
    losses = curve(1)[4800:5400]
    losses[200:] += 2.0
    losses[501] += 3.0
    straight = detector()
    expected = straight.add(rows(losses, first=0))
    before, after = detector(), detector()
    found = before.add(rows(losses[:cut], first=0))
    after.restore(json.loads(json.dumps(before.to_json())))
    found += after.add(rows(losses[cut:], first=cut))
    assert found == expected
    assert len(found) == 3
    assert after.to_json() == straight.to_json()


def test_an_event_says_what_happened():
    losses = np.full(100, 2.0)
    losses[50] = 4.0
    (event,) = detector().add(rows(losses))
    assert str(event) == ("step 51: loss 4.0000 is a spike; 2.0000 was expected, at most 2.0160")
