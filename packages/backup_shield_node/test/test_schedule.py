"""When the shield answers: every rule of the schedule, on a clock made by hand."""

import numpy as np
import pytest
from backup_shield_node.schedule import Schedule
from hypothesis import given
from hypothesis import strategies as st

MS = 1_000_000
T = 20 * MS
X = np.zeros(4)


def schedule(lockstep=False):
    return Schedule(T, lockstep, 200 * MS if lockstep else T // 2)


def healthy(s, k, now):
    """State and proposal k, answered at once."""
    s.add_state(k * T, X, now)
    assert s.due(now) is None
    s.add_proposal(k * T, (k,))
    tick = s.due(now + MS)
    assert tick.stamp_ns == k * T and tick.proposal == (k,) and tick.x is X
    return tick


def test_nothing_before_the_first_state():
    s = schedule()
    s.add_proposal(0, (0,))
    assert all(s.due(now * T) is None for now in range(100))


@pytest.mark.parametrize("lockstep", [False, True])
def test_state_and_proposal_are_answered_at_once_and_once(lockstep):
    s = schedule(lockstep)
    for k in range(5):
        healthy(s, k, k * T)
        assert s.due(k * T + 2 * MS) is None


def test_a_proposal_may_come_before_its_state():
    s = schedule()
    healthy(s, 0, 0)
    s.add_proposal(T, (1,))
    assert s.due(T) is None
    s.add_state(T, X, T)
    assert s.due(T).proposal == (1,)


def test_a_dead_policy_is_answered_without_it_in_the_second_period():
    s = schedule()
    healthy(s, 0, 0)
    s.add_state(T, X, T)
    assert s.due(T + 9 * MS) is None  # it may only be late
    assert s.due(T + 10 * MS).proposal == (0,)  # 1 T old: still allowed
    s.add_state(2 * T, X, 2 * T)
    assert s.due(2 * T).proposal is None  # at once: it missed a whole period
    s.add_state(3 * T, X, 3 * T)
    assert s.due(3 * T).proposal is None


def test_a_policy_that_is_always_late_is_used_one_period_late():
    s = schedule()
    healthy(s, 0, 0)
    for k in range(1, 6):
        s.add_state(k * T, X, k * T)
        assert s.due(k * T + 10 * MS).proposal == (k - 1,)
        s.add_proposal(k * T, (k,))
        assert s.due(k * T + 12 * MS) is None


def test_a_hung_policy_that_repeats_one_proposal_is_dead():
    s = schedule()
    healthy(s, 0, 0)
    for k in range(1, 6):
        s.add_proposal(0, (0,))
        s.add_state(k * T, X, k * T)
        tick = s.due(k * T + 10 * MS)
        assert tick.proposal == ((0,) if k == 1 else None)


def test_a_proposal_for_a_later_state_is_not_used():
    s = schedule()
    s.add_state(0, X, 0)
    s.add_proposal(5 * T, (5,))
    assert s.due(10 * MS).proposal is None


def test_a_silent_estimator_is_answered_every_period():
    s = schedule()
    healthy(s, 0, 0)
    answered = [now for now in range(MS, 10 * T, MS) if s.due(now) is not None]
    assert answered[0] == 3 * T // 2
    assert np.diff(answered).tolist() == [T] * (len(answered) - 1) and len(answered) == 9


def test_those_answers_have_no_state_and_end_with_the_next_one():
    s = schedule()
    healthy(s, 0, 0)
    tick = s.due(2 * T)
    assert tick.x is None and tick.proposal is None and tick.stamp_ns == 0
    healthy(s, 5, 5 * T)


def test_a_pause_of_the_process_gives_one_answer_and_not_a_burst():
    s = schedule()
    healthy(s, 0, 0)
    now = 500 * T
    assert s.due(now).x is None
    assert s.due(now + MS) is None
    assert s.due(now + T).x is None


@pytest.mark.parametrize("divisor", [2, 4, 7, 10])
def test_a_faster_source_is_thinned_to_the_period(divisor):
    s, answers, n = schedule(), 0, 700
    for k in range(n):
        stamp = k * T // divisor
        s.add_state(stamp, X, stamp)
        s.add_proposal(stamp, (k,))
        answers += s.due(stamp) is not None
    assert answers == pytest.approx(n / divisor, abs=2)


def test_lockstep_takes_its_own_proposal_or_none():
    s = schedule(lockstep=True)
    healthy(s, 0, 0)
    s.add_state(T, X, 0)
    assert s.due(199 * MS) is None
    assert s.due(200 * MS).proposal is None  # not the one of state 0
    s.add_state(2 * T, X, 300 * MS)
    assert s.due(300 * MS).proposal is None  # presumed dead: no waiting
    s.add_proposal(2 * T, (2,))
    s.add_state(3 * T, X, 400 * MS)
    assert s.due(400 * MS) is None  # it spoke again: waited for
    s.add_proposal(3 * T, (3,))
    assert s.due(401 * MS).proposal == (3,)


def test_lockstep_never_invents_a_tick():
    s = schedule(lockstep=True)
    healthy(s, 0, 0)
    assert all(s.due(now * T) is None for now in range(1, 1000))


events = st.lists(st.tuples(st.sampled_from("sp."), st.integers(0, 30)), max_size=200)


@given(events, st.booleans())
def test_for_any_order_of_messages_there_is_one_answer_per_state_and_no_old_proposal(
    plan, lockstep
):
    s, now, newest = schedule(lockstep), 0, -1
    answered = []
    for what, step in plan:
        now += step * MS
        if what == "s":
            newest += 1
            s.add_state(newest * T, X, now)
        elif what == "p":
            s.add_proposal(max(newest + step % 4 - 2, 0) * T, (newest,))
        tick = s.due(now)
        if tick is None:
            continue
        assert newest >= 0 and tick.stamp_ns == newest * T
        assert s.due(now) is None
        if tick.x is not None:
            assert tick.stamp_ns not in answered
            answered.append(tick.stamp_ns)
    assert answered == sorted(answered)
