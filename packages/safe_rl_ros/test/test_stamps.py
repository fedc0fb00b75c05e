"""Which stamps are believed."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from safe_rl_ros.stamps import REARM_NS, SECOND, StampGate, to_ns, write_ns

MS = 1_000_000


@given(st.integers(0, 4_000_000_000 * SECOND))
def test_a_stamp_comes_back(ns):
    stamp = SimpleNamespace(sec=0, nanosec=0)
    write_ns(ns, stamp)
    assert to_ns(stamp) == ns and 0 <= stamp.nanosec < SECOND
    assert type(stamp.sec) is int and type(stamp.nanosec) is int


def test_in_order_once_each():
    gate = StampGate(60 * MS)
    verdicts = [gate.check(stamp * MS, 0) for stamp in (0, 20, 20, 10, 40)]
    assert verdicts == ["ok", "ok", "duplicate", "out_of_order", "ok"]
    assert gate.counts["ok"] == 3


def test_the_window_has_two_sides():
    gate = StampGate(60 * MS)
    assert gate.check(1061 * MS, 0, ros_ns=1000 * MS) == "future"
    assert gate.check(939 * MS, 0, ros_ns=1000 * MS) == "late"
    assert gate.check(1060 * MS, 0, ros_ns=1000 * MS) == "ok"
    # A rejected stamp leaves no trace: an honest one after it is still in order.
    assert gate.check(1061 * MS, 0, ros_ns=1002 * MS) == "ok"


def test_a_source_that_started_again_is_believed_after_a_second():
    gate = StampGate(60 * MS)
    assert gate.check(90 * SECOND, 0) == "ok"
    assert gate.check(0, 1 * MS) == "out_of_order"
    assert gate.check(20 * MS, REARM_NS) == "out_of_order"
    assert gate.check(40 * MS, REARM_NS + 1 * MS) == "restart"
    assert gate.check(60 * MS, REARM_NS + 2 * MS) == "ok"


def test_a_stray_old_message_does_not_add_up_to_a_restart():
    gate = StampGate(60 * MS)
    for k in range(200):
        assert gate.check(k * 20 * MS + SECOND, k * 20 * MS) == "ok"
        assert gate.check(5 * MS, k * 20 * MS) == "out_of_order"


@given(st.lists(st.integers(0, 10_000), max_size=60))
def test_accepted_stamps_always_rise(stamps):
    gate = StampGate(60 * MS)
    accepted = [s for k, s in enumerate(stamps) if gate.check(s, k) == "ok"]
    assert accepted == sorted(set(accepted))
