"""Numbers of messages to arrays and back, by channel name. ROS-free.

State, from and to `nav_msgs/Odometry` (REP-103 units, REP-105 frames), whose numbers are here the
tuple (position x y z, orientation x y z w, twist.linear x y z):

    px py pz      pose.position             m      in header.frame_id (world, ENU)
    qw qx qy qz   pose.orientation          -      child_frame_id (body, FLU) to header.frame_id
    theta         yaw of pose.orientation   rad    counter-clockwise, in (-pi, pi]
    vx vy vz      twist.linear, rotated     m/s    body axes in the message, world in the state
    v             twist.linear.x            m/s    forward speed, body axis

Input, from and to `geometry_msgs/Twist`, whose numbers are (linear x y z, angular x y z):

    thrust                 linear.z         m/s^2  collective thrust / mass
    rate_x rate_y rate_z   angular.x y z    rad/s  body rates (FLU)
    turn_rate              angular.z        rad/s
    accel                  linear.x         m/s^2  sent as the speed set-point v + accel * period

`accel` needs the speed that the vehicle has when the command starts to act: the set-point is the
speed at the end of the period. Both ends take it from the newest state they know.

Every number that leaves is a plain Python float: an int or a numpy float32 in a float64 field of a
ROS message is sent as garbage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import SafeRLError

Array = NDArray[np.float64]
Numbers = Sequence[float]

QUATERNION = ("qw", "qx", "qy", "qz")
# An estimator's quaternion is off by rounding; one that is off by a percent is another quantity.
QUATERNION_TOLERANCE = 0.02
# A squared norm this close to 1 is a unit quaternion; any other is made one.
ROUNDED = 1e-9
REST = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
ZERO_TWIST = (0.0,) * 6


class ConversionError(SafeRLError):
    """The bundle names a channel that has no place in the message."""


class MessageFault(Exception):
    """A message that must not be used; `reason` is the counter it belongs to."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def _yaw(k: Numbers) -> float:
    """Heading of the orientation, rad in (-pi, pi]; needs no unit norm."""
    x, y, z, w = k[3:7]
    return math.atan2(2.0 * (w * z + x * y), w * w + x * x - y * y - z * z)


def _rotation(k: Numbers) -> tuple[tuple[float, float, float], ...]:
    """Rows of the body-to-world rotation; the quaternion need not be exactly unit."""
    x, y, z, w = k[3:7]
    s = 2.0 / (w * w + x * x + y * y + z * z)
    return (
        (1.0 - s * (y * y + z * z), s * (x * y - w * z), s * (x * z + w * y)),
        (s * (x * y + w * z), 1.0 - s * (x * x + z * z), s * (y * z - w * x)),
        (s * (x * z - w * y), s * (y * z + w * x), 1.0 - s * (x * x + y * y)),
    )


def _world_velocity(axis: int) -> Callable[[Numbers], float]:
    """Getter of one world component of the body velocity in the message."""

    def get(k: Numbers) -> float:
        a, b, c = _rotation(k)[axis]
        return a * k[7] + b * k[8] + c * k[9]

    return get


# name -> getter on the numbers of an odometry message
STATE_GETTERS: dict[str, Callable[[Numbers], float]] = {
    "px": lambda k: k[0],
    "py": lambda k: k[1],
    "pz": lambda k: k[2],
    "qx": lambda k: k[3],
    "qy": lambda k: k[4],
    "qz": lambda k: k[5],
    "qw": lambda k: k[6],
    "theta": _yaw,
    "vx": _world_velocity(0),
    "vy": _world_velocity(1),
    "vz": _world_velocity(2),
    "v": lambda k: k[7],
}
# names whose number stands in the message as it is -> place in its numbers
PLACES = {"px": 0, "py": 1, "pz": 2, "qx": 3, "qy": 4, "qz": 5, "qw": 6, "v": 7}
# name -> place in the numbers of a twist
INPUT_PLACES = {"thrust": 2, "rate_x": 3, "rate_y": 4, "rate_z": 5, "turn_rate": 5, "accel": 0}


def _require_known(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise for a channel without a place in the message, naming those that have one."""
    for name in names:
        if name not in known:
            raise ConversionError(
                f"{kind} {name!r} has no place in the message: expected names out of "
                f"{', '.join(known)}; rename the channel in the bundle or add it to "
                f"safe_rl_ros/convert.py"
            )
    if len(set(names)) != len(names):
        raise ConversionError(f"{kind} names must differ, got {', '.join(names)}")


class StateCodec:
    """Numbers of an odometry message <-> state vector (n,), compiled for one list of names."""

    def __init__(self, names: Sequence[str]) -> None:
        names = tuple(names)
        _require_known("state", names, tuple(STATE_GETTERS))
        index = {name: i for i, name in enumerate(names)}
        quaternion = [name in index for name in QUATERNION]
        if any(quaternion) and (not all(quaternion) or "theta" in index):
            raise ConversionError(
                f"a state has either all of {', '.join(QUATERNION)} or theta, got {names}"
            )
        if "v" in index and index.keys() & {"vx", "vy", "vz"}:
            raise ConversionError(f"a state has either v or vx, vy, vz, got {names}")
        self.names = names
        self._getters = tuple(STATE_GETTERS[name] for name in names)
        self._direct = tuple((index[n], place) for n, place in PLACES.items() if n in index)
        self._yaw = index.get("theta")
        world = tuple(index.get(n) for n in ("vx", "vy", "vz"))
        self._world = None if world == (None,) * 3 else world

    def state(self, numbers: Numbers) -> Array:
        """State (n,) from the numbers of a message; `MessageFault` when they cannot be one."""
        x, y, z, w = numbers[3:7]
        norm = w * w + x * x + y * y + z * z
        # Written so that NaN fails: every comparison with NaN is false.
        if not abs(norm - 1.0) < QUATERNION_TOLERANCE:
            reason = "quaternion_norm" if math.isfinite(norm) else "not_finite"
            raise MessageFault(reason, f"expected a unit quaternion, got squared norm {norm:.6g}")
        if abs(norm - 1.0) > ROUNDED:
            q = (part / math.sqrt(norm) for part in numbers[3:7])
            numbers = (*numbers[:3], *q, *numbers[7:])
        values = [get(numbers) for get in self._getters]
        if not all(map(math.isfinite, values)):
            bad = ", ".join(
                f"{name} = {value}"
                for name, value in zip(self.names, values, strict=True)
                if not math.isfinite(value)
            )
            raise MessageFault("not_finite", f"expected finite numbers, got {bad}")
        return np.array(values, dtype=np.float64)

    def numbers(self, x: ArrayLike) -> list[float]:
        """Numbers of the message that carries the state x (n,)."""
        values = np.asarray(x, dtype=np.float64).tolist()
        out = list(REST)
        for i, place in self._direct:
            out[place] = values[i]
        if self._yaw is not None:
            half = 0.5 * values[self._yaw]
            out[5], out[6] = math.sin(half), math.cos(half)
        if self._world is not None:
            velocity = [0.0 if i is None else values[i] for i in self._world]
            rows = _rotation(out)
            for axis in range(3):
                out[7 + axis] = sum(rows[k][axis] * velocity[k] for k in range(3))
        return out


class InputCodec:
    """Numbers of a twist message <-> input vector (m,), compiled for one bundle's channels."""

    def __init__(
        self, input_names: Sequence[str], state_names: Sequence[str], period: float
    ) -> None:
        names = tuple(input_names)
        _require_known("input", names, tuple(INPUT_PLACES))
        if "accel" in names and "v" not in tuple(state_names):
            raise ConversionError(
                f"input accel travels as a speed set-point and needs the state v, "
                f"got states {', '.join(state_names)}"
            )
        self.names, self.period = names, float(period)
        self._places = tuple(INPUT_PLACES[name] for name in names)
        self._accel = names.index("accel") if "accel" in names else None
        self._speed = tuple(state_names).index("v") if "accel" in names else -1

    def input(self, numbers: Numbers, x: Array) -> Array:
        """Input (m,) of a command that acts in state x (n,). Not-finite numbers come through."""
        u = [numbers[place] for place in self._places]
        if self._accel is not None:
            u[self._accel] = (u[self._accel] - float(x[self._speed])) / self.period
        return np.array(u, dtype=np.float64)

    def numbers(self, u: ArrayLike, x: Array) -> list[float]:
        """Numbers of the command with input u (m,) that acts in state x (n,)."""
        values = np.asarray(u, dtype=np.float64).tolist()
        if self._accel is not None:
            values[self._accel] = float(x[self._speed]) + values[self._accel] * self.period
        out = list(ZERO_TWIST)
        for place, value in zip(self._places, values, strict=True):
            out[place] = value
        return out

    def own(self, numbers: Numbers) -> list[float]:
        """The same numbers, bit for bit, with 0 in the fields that this robot does not use."""
        out = list(ZERO_TWIST)
        for place in self._places:
            out[place] = numbers[place]
        return out

    def stop(self, stop_action: ArrayLike, x: Array) -> Array:
        """Stop action (m,) in state x (n,), braking to standstill but never beyond it.

        Backward motion is braked no harder than forward motion.
        """
        u = np.array(stop_action, dtype=np.float64)
        if self._accel is not None:
            most, standstill = abs(u[self._accel]), -float(x[self._speed]) / self.period
            u[self._accel] = min(max(standstill, -most), most)
        return u


def codecs(bundle: Bundle) -> tuple[StateCodec, InputCodec]:
    """Both converters of a bundle's robot."""
    states = [channel.name for channel in bundle.states]
    inputs = [channel.name for channel in bundle.inputs]
    return StateCodec(states), InputCodec(inputs, states, bundle.period)
