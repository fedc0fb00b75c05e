"""Quadrotor in PyBullet: rigid body, four rotors with thrust curve and lag, on-board autopilot.

    state  x = (px, py, pz, vx, vy, vz, qw, qx, qy, qz)   m, m/s, -; world ENU, z up, q body→world
    input  u = (thrust, rate_x, rate_y, rate_z)           m/s² (collective / mass), rad/s body FLU
    held for 0.02 s; 10 steps of physics and autopilot (500 Hz) inside

    rotor i   ṅ_i = (n_cmd,i - n_i) / 0.030 s,  force k n_i² along body z,  yaw ±0.025 N m per N
    body      1.0 kg, inertia (0.006, 0.006, 0.011) kg m², rotors on a 0.25 m X, no drag

Per seed (variation = 1): mass ±5 %, thrust curve k ±10 %, uniform; the autopilot does not know.
The command reaches the rotors through `autopilot.RateAutopilot`, which clips it to 0 … 4 g and
±18 rad/s and gives up yaw, then collective, then tilt when the rotors saturate.

Measured on the nominal vehicle at hover, mean delay of a small step (test_plants_quadrotor.py):
rate_x and rate_y 30 ms, rate_z 29 ms, thrust 31 ms; the thrust curve scales the rates' by ±10 %.
Rotors saturate for steps beyond about 6 rad/s in roll and pitch but 0.23 rad/s in yaw, where the
vehicle has 22 rad/s² at hover. Idling rotors leave 0.1 m/s² at zero thrust.
The sign of q is continuous from x0 on, as in the model; odometry of a vehicle may flip it.
"""

import math
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.errors import PlantError

from .autopilot import (
    INERTIA,
    LEVER,
    MASS,
    REACTION,
    THRUST_COEFFICIENT,
    Four,
    RateAutopilot,
    mix,
)
from .base import BulletPlant, Color
from .scene import Camera, Painter
from .world import GRAVITY, PHYSICS_DT, add_floor, add_vehicle, pybullet

ROTOR_LAG = 0.030  # s, first order on rotor speed
CEILING = 3.0  # m, drawn only: nothing in the physics stops the vehicle there
GLASS = (4.0, 1.2)  # m, half lengths of the ceiling sheet as drawn


class QuadrotorPlant(BulletPlant):
    """See the module docstring for the physics and `BulletPlant` for the arguments."""

    robot = "quadrotor"
    period = 0.02
    state_names = ("px", "py", "pz", "vx", "vy", "vz", "qw", "qx", "qy", "qz")
    input_names = ("thrust", "rate_x", "rate_y", "rate_z")
    # m, m/s, rad; per axis
    NOISE_STD: ClassVar[dict[str, float]] = {
        "position": 0.002, "velocity": 0.005, "attitude": 0.001,
    }  # fmt: skip
    body_radius = 0.42

    @property
    def rest_state(self) -> NDArray[np.float64]:
        """Hover at (0, 0, 2) m, level, heading along x."""
        return np.array([0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])

    @property
    def neutral(self) -> NDArray[np.float64]:
        """Hover: thrust g, no rates."""
        return np.array([GRAVITY, 0.0, 0.0, 0.0])

    @property
    def angular_velocity(self) -> NDArray[np.float64]:
        """True body rates (3,), rad/s, body FLU."""
        self._check_running()
        return np.array(self._rates)

    @property
    def rotor_speeds(self) -> NDArray[np.float64]:
        """Present rotor speeds (4,), rad/s."""
        self._check_running()
        return np.array(self._speeds)

    def _build(self, rng: np.random.Generator) -> None:
        add_floor(self._client, friction=0.6, visible=self.gui)
        self._body = add_vehicle(self._client, "quadrotor.urdf")
        self.vehicle = {"mass": self._factor(rng, 0.05), "thrust_curve": self._factor(rng, 0.10)}
        self._curve = THRUST_COEFFICIENT * self.vehicle["thrust_curve"]
        pybullet.changeDynamics(
            self._body,
            -1,
            mass=MASS * self.vehicle["mass"],
            localInertiaDiagonal=list(INERTIA),  # else recomputed from the collision shape
            linearDamping=0.0,
            angularDamping=0.0,
            lateralFriction=0.6,
            restitution=0.1,
            activationState=pybullet.ACTIVATION_STATE_DISABLE_SLEEPING,
            physicsClientId=self._client,
        )

    def _start(self, x0: NDArray[np.float64], u0: NDArray[np.float64]) -> None:
        norm = float(np.linalg.norm(x0[6:]))
        if abs(norm - 1.0) > 1e-2:
            raise PlantError(f"quadrotor: x0[6:10] must be a unit quaternion, its norm is {norm}")
        w, x, y, z = (x0[6:] / norm).tolist()
        rates = (float(u0[1]), float(u0[2]), float(u0[3]))
        pybullet.resetBasePositionAndOrientation(
            self._body, x0[:3].tolist(), [x, y, z, w], physicsClientId=self._client
        )
        pybullet.resetBaseVelocity(
            self._body,
            x0[3:6].tolist(),
            _to_world(rates, w, x, y, z),
            physicsClientId=self._client,
        )
        self._quaternion = (w, x, y, z)
        self._read()
        self._autopilot = RateAutopilot(PHYSICS_DT)
        self._autopilot.reset(self._rates)
        forces = mix(MASS * float(u0[0]), 0.0, 0.0, 0.0)
        speed = math.sqrt(forces[0] / THRUST_COEFFICIENT)
        self._speeds: Four = (speed, speed, speed, speed)
        self._orders: Four = self._speeds
        self._queue.clear()
        self._queue.extend([tuple(u0.tolist())] * self.delay_steps)

    def _to_command(self, u: NDArray[np.float64]) -> tuple[float, ...]:
        return tuple(u.tolist())

    def _advance(self, command: tuple[float, ...]) -> None:
        body, client, curve = self._body, self._client, self._curve
        autopilot = self._autopilot.rotor_speeds
        follow = 1.0 - math.exp(-PHYSICS_DT / ROTOR_LAG)
        n0, n1, n2, n3 = self._speeds
        orders = self._orders
        for _ in range(self.substeps):
            # What the autopilot computes from this sample reaches the motors at the next one.
            c0, c1, c2, c3 = orders
            orders = autopilot(command, self._rates)
            n0 += follow * (c0 - n0)
            n1 += follow * (c1 - n1)
            n2 += follow * (c2 - n2)
            n3 += follow * (c3 - n3)
            f0, f1, f2, f3 = curve * n0 * n0, curve * n1 * n1, curve * n2 * n2, curve * n3 * n3
            # One wrench in body axes: the same as four forces at the rotors, at half the calls.
            pybullet.applyExternalForce(
                body, -1, (0.0, 0.0, f0 + f1 + f2 + f3), (0.0, 0.0, 0.0),
                pybullet.LINK_FRAME, client,
            )  # fmt: skip
            pybullet.applyExternalTorque(
                body, -1,
                (LEVER * (f0 + f1 - f2 - f3), LEVER * (-f0 + f1 + f2 - f3),
                 REACTION * (f0 - f1 + f2 - f3)),
                pybullet.LINK_FRAME, client,
            )  # fmt: skip
            pybullet.stepSimulation(client)
            self._read()
        self._speeds, self._orders = (n0, n1, n2, n3), orders

    def _read(self) -> None:
        """Pose, velocity and body rates from PyBullet (which gives q as xyzw, of either sign)."""
        self._pos, (x, y, z, w) = pybullet.getBasePositionAndOrientation(self._body, self._client)
        self._vel, spin = pybullet.getBaseVelocity(self._body, self._client)
        last = self._quaternion
        if w * last[0] + x * last[1] + y * last[2] + z * last[3] < 0.0:
            w, x, y, z = -w, -x, -y, -z
        self._quaternion = (w, x, y, z)
        self._rates = _to_world(spin, w, -x, -y, -z)

    def _true_state(self) -> NDArray[np.float64]:
        return np.array([*self._pos, *self._vel, *self._quaternion])

    def _add_noise(self, x: NDArray[np.float64], unit: NDArray[np.float64]) -> None:
        x[:3] += self.NOISE_STD["position"] * unit[:3]
        x[3:6] += self.NOISE_STD["velocity"] * unit[3:6]
        # A small rotation in the body frame: q ⊗ (1, θ/2), normalised.
        w, a, b, c = x[6:].tolist()
        i, j, k = (0.5 * self.NOISE_STD["attitude"] * unit[6:9]).tolist()
        q = np.array([w - a * i - b * j - c * k, a + w * i + b * k - c * j,
                      b + w * j + c * i - a * k, c + w * k + a * j - b * i])  # fmt: skip
        x[6:] = q / np.linalg.norm(q)

    def _position(self) -> tuple[float, float, float]:
        return self._pos

    def _camera(self, view: str) -> Camera:
        x, y, z = self._pos
        if view == "chase":
            # Behind the path, not behind the nose: in a loop the nose points everywhere.
            return Camera((x - 2.2, y - 1.6, z + 0.7), (x + 0.2, y, z), 50.0)
        # The task frame with a little of the motion in it, so that flight reads as flight.
        return Camera(
            (0.12 * x + 0.7, 0.1 * y - 6.0, 1.5), (0.12 * x, 0.1 * y, 1.70 + 0.04 * z), 35.0
        )

    def _paint_background(self, painter: Painter) -> None:
        painter.sky()
        painter.floor(shadow=(self._pos, 0.30))

    def _paint_foreground(self, painter: Painter) -> None:
        painter.glass(CEILING, GLASS)

    def _gui_lines(self) -> list[tuple[NDArray[np.float64], Color]]:
        a, b = GLASS
        corners = [(-a, -b), (a, -b), (a, b), (-a, b), (-a, -b)]
        return [(np.array([(p, q, CEILING) for p, q in corners]), (0.85, 0.2, 0.2))]


def _to_world(
    v: tuple[float, float, float], w: float, x: float, y: float, z: float
) -> tuple[float, float, float]:
    """R(q) v: body axes -> world axes (and back with the conjugate quaternion)."""
    a, b, c = v
    tx, ty, tz = 2.0 * (y * c - z * b), 2.0 * (z * a - x * c), 2.0 * (x * b - y * a)
    return (
        a + w * tx + y * tz - z * ty,
        b + w * ty + z * tx - x * tz,
        c + w * tz + x * ty - y * tx,
    )
