"""Quality of service of every topic of the stack, and what to say when it does not match.

Publishers offer reliable: that is compatible with every subscriber. Subscribers to the state ask
for best effort in real time (a late copy of an old state is worth nothing) and for reliable in
lockstep (every message counts there). Depth 10 everywhere; depth 1 loses messages under load.
"""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.qos import (
    HistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
    qos_policy_name_from_kind,
)

DEPTH = 10
# A recorder may fall behind for a moment without losing anything.
RECORDER_DEPTH = 1000


def reliable(depth: int = DEPTH) -> QoSProfile:
    """What publishers offer, and what subscribers to commands ask for."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.RELIABLE
    )


def best_effort(depth: int = DEPTH) -> QoSProfile:
    """Compatible with every publisher; may lose messages, never resends old ones."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT
    )


def state_request(lockstep: bool, depth: int = DEPTH) -> QoSProfile:
    """What a subscriber to the state asks for."""
    return reliable(depth) if lockstep else best_effort(depth)


def command_offer(period: float, lockstep: bool) -> QoSProfile:
    """Reliable; in real time it also promises a command every three control periods."""
    profile = reliable()
    if not lockstep:
        profile.deadline = Duration(seconds=3.0 * period)
    return profile


def mismatch(topic: str, kind: QoSPolicyKind, wanted: QoSProfile, others: list[str]) -> str:
    """Text for an incompatible-QoS event on `topic`."""
    policy = qos_policy_name_from_kind(kind)
    name = policy.lower()
    ours = getattr(wanted, name, "?")
    return (
        f"no data on {topic}: {policy} differs; this node has {getattr(ours, 'name', ours)}, "
        f"the other side is {', '.join(others) or 'unknown'}; give both ends the same {name} "
        f"(a publisher of RELIABLE data suits everybody)"
    )
