"""RViz markers: the verified backup rollout as a line, the planes of the safe set as thin boxes.

The planes are read off the bundle's own safe-set function: a row that is affine in one position
coordinate vanishes on a plane, and nothing about the robot is written here.
"""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import Point
from numpy.typing import NDArray
from safe_rl_core.bundle import Bundle
from safe_rl_ros.stamps import write_ns
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

Array = NDArray[np.float64]

LINE_WIDTH = 0.03
PLANE_THICKNESS = 0.02
PLANE_SIZE = 8.0
MAX_POINTS = 25  # of the line; each costs 5 us
COLOURS = {
    "PASSED": (0.2, 0.7, 0.3, 0.9),
    "PROJECTED": (0.95, 0.6, 0.1, 0.9),
    "BACKUP": (0.85, 0.2, 0.2, 0.9),
}
PLANE_COLOUR = (0.85, 0.2, 0.2, 0.15)


def planes(bundle: Bundle) -> list[tuple[str, int, float]]:
    """(row name, axis 0..2, coordinate in m) of the safe-set rows that are planes."""
    names = [channel.name for channel in bundle.states]
    centre = np.asarray(bundle.program("reference", np.zeros(1)), dtype=np.float64)
    found = []
    for axis, name in enumerate(("px", "py", "pz")):
        if name not in names:
            continue
        line = np.tile(centre, (3, 1))
        line[:, names.index(name)] += (0.0, 1.0, 2.0)
        rows = np.asarray(bundle.program("safe_set", line))
        slope = rows[1] - rows[0]
        affine = np.abs(rows[2] - rows[1] - slope) < 1e-9
        for row in np.flatnonzero(affine & (np.abs(slope) > 1e-9)):
            at = centre[names.index(name)] - rows[0, row] / slope[row]
            found.append((bundle.safe_set_names[row], axis, float(at)))
    return found


class Markers:
    """The marker array of one bundle, built once; `fill` moves it to a new plan."""

    def __init__(self, bundle: Bundle, frame: str) -> None:
        names = [channel.name for channel in bundle.states]
        self._axes = [names.index(n) if n in names else -1 for n in ("px", "py", "pz")]
        self._line = _marker(frame, "backup_rollout", 0, Marker.LINE_STRIP, COLOURS["PASSED"])
        self._line.scale.x = LINE_WIDTH
        self._colours = {verdict: _colour(rgba) for verdict, rgba in COLOURS.items()}
        self._planes = []
        for i, (name, axis, at) in enumerate(planes(bundle)):
            box = _marker(frame, f"safe_set/{name}", i + 1, Marker.CUBE, PLANE_COLOUR)
            size = [PLANE_SIZE] * 3
            size[axis] = PLANE_THICKNESS
            box.scale.x, box.scale.y, box.scale.z = size
            self._planes.append((box, axis, at))
        self.message = MarkerArray(markers=[self._line, *(box for box, _, _ in self._planes)])

    def fill(self, stamp_ns: int, verdict: str, plan_states: Array) -> MarkerArray:
        """The array for this plan, states (k, n); the same object on each call."""
        plan_states = plan_states[:: max(1, len(plan_states) // MAX_POINTS)]
        points = np.zeros((len(plan_states), 3))
        for axis, column in enumerate(self._axes):
            if column >= 0:
                points[:, axis] = plan_states[:, column]
        while len(self._line.points) < len(points):
            self._line.points.append(Point())
        del self._line.points[len(points) :]
        for point, (x, y, z) in zip(self._line.points, points.tolist(), strict=True):
            point.x, point.y, point.z = x, y, z
        self._line.color = self._colours[verdict]
        for box, axis, at in self._planes:
            # The box follows the robot along the plane, so that a long lane stays in view.
            here = points[0].tolist()
            here[axis] = at
            box.pose.position.x, box.pose.position.y, box.pose.position.z = here
        for marker in self.message.markers:
            write_ns(stamp_ns, marker.header.stamp)
        return self.message


def _colour(rgba: tuple[float, float, float, float]) -> ColorRGBA:
    r, g, b, a = rgba
    return ColorRGBA(r=r, g=g, b=b, a=a)


def _marker(
    frame: str, namespace: str, number: int, kind: int, rgba: tuple[float, float, float, float]
) -> Marker:
    marker = Marker(ns=namespace, id=number, type=kind, action=Marker.ADD, color=_colour(rgba))
    marker.header.frame_id = frame
    return marker
