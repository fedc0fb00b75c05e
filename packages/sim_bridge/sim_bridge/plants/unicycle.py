"""Unicycle in PyBullet: a differential-drive base with wheels, contact and motor limits.

    state  x = (px, py, theta, v)      m, m, rad, m/s; middle of the axle, world; theta continuous,
                                       counter-clockwise from x; v forward speed of that point
    input  u = (accel, turn_rate)      m/s², rad/s, held for 0.05 s; 25 steps of 500 Hz inside

    body     10 kg with wheels, wheel radius 0.15 m, track 0.50 m, two sprung frictionless casters
    wheels   torque ≤ 6 N m each (together 7 m/s²), tyre friction 1.1, a little bearing drag
    firmware speed and turn rate arrive as a velocity command, as a ROS base gets `cmd_vel`; a
             motion profile (acceleration lag 15 ms, at most 6 m/s²; turn-rate lag 45 ms) feeds a
             500 Hz wheel speed loop with feed-forward of the nominal vehicle

`step(u)` sends speed = measured v + accel·period, exactly what the simulator node sends, so both
paths are one. Clipped by the base: accel ±5 m/s², turn rate ±1 rad/s, speed 0 … 13 m/s.

Per seed (variation = 1): mass ±5 %, tyre friction ±10 %, motor torque ±10 %, uniform.
Measured on the nominal vehicle at 5 m/s (test_plants_unicycle.py): mean delay of accel 15 ms, of
turn_rate 43 ms; a step of the velocity command is followed within 75 ms, with 20 % overshoot
because a base that follows `v + accel·period` without loss cannot also be slow; coasting loses
0.04 m/s². Tyres hold about 10 m/s² in all: 5 m/s allows full braking in a full turn, 10 m/s does
not, and the vehicle then slides as a real one would.
"""

import math
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import BulletPlant, Color
from .scene import Camera, Painter
from .world import PHYSICS_DT, add_floor, add_vehicle, pybullet

WHEEL_RADIUS, TRACK = 0.15, 0.50  # m
BODY_MASS, WHEEL_MASS = 8.0, 1.0  # kg
BODY_COM = -0.06  # m, above the axle: batteries low, else braking lifts the load off the wheels
WHEEL_INERTIA, YAW_INERTIA = 0.015, 0.48  # kg m²: wheel spin; whole vehicle about z
MAX_TORQUE = 6.0  # N m per wheel
MAX_ACCEL, MAX_TURN_RATE, MAX_SPEED = 5.0, 1.0, 13.0  # m/s², rad/s, m/s
RAMP_LIMIT = 6.0  # m/s²
ACCEL_LAG, TURN_LAG = 0.015, 0.045  # s, first order, of the firmware's motion profile
WHEEL_GAIN = 5.0  # N m per rad/s of wheel speed error
# Feed-forward of the nominal vehicle: wheel torque per acceleration and per turn acceleration.
PUSH = 0.5 * (BODY_MASS + 2.0 * WHEEL_MASS) * WHEEL_RADIUS + WHEEL_INERTIA / WHEEL_RADIUS
TWIST = YAW_INERTIA * WHEEL_RADIUS / TRACK + 0.5 * TRACK * WHEEL_INERTIA / WHEEL_RADIUS
TYRE_FRICTION = 1.1
LANE = 1.8  # m, border of the lane; drawn only


class UnicyclePlant(BulletPlant):
    """See the module docstring for the physics and `BulletPlant` for the arguments."""

    robot = "unicycle"
    period = 0.05
    state_names = ("px", "py", "theta", "v")
    input_names = ("accel", "turn_rate")
    # m per axis, rad, m/s
    NOISE_STD: ClassVar[dict[str, float]] = {"position": 0.01, "heading": 0.01, "speed": 0.03}
    body_radius = 0.48

    @property
    def rest_state(self) -> NDArray[np.float64]:
        """At rest in the middle of the lane, heading along x."""
        return np.zeros(4)

    @property
    def neutral(self) -> NDArray[np.float64]:
        """No acceleration, no turn."""
        return np.zeros(2)

    @property
    def angular_velocity(self) -> NDArray[np.float64]:
        """True body rates (3,), rad/s, body FLU."""
        self._check_running()
        _, q = pybullet.getBasePositionAndOrientation(self._body, self._client)
        rotation = np.reshape(pybullet.getMatrixFromQuaternion(q), (3, 3))
        return rotation.T @ np.array(self._spin)

    def step_cmd_vel(self, speed: float, turn_rate: float) -> NDArray[np.float64]:
        """As `step`, with the command a base receives: speed (m/s), turn rate (rad/s)."""
        self._check_running()
        names = ("speed", "turn_rate")
        return self._apply(tuple(self._vector("cmd_vel", (speed, turn_rate), names).tolist()))

    def _build(self, rng: np.random.Generator) -> None:
        self.vehicle = {
            "mass": self._factor(rng, 0.05),
            "friction": self._factor(rng, 0.10),
            "torque": self._factor(rng, 0.10),
        }
        client = self._client
        add_floor(client, friction=1.0, visible=self.gui)
        self._body = add_vehicle(self._client, "unicycle.urdf")
        self._joints = [0, 1]  # left, right: the order in the file
        pybullet.changeDynamics(
            self._body,
            -1,
            mass=BODY_MASS * self.vehicle["mass"],
            localInertiaDiagonal=pybullet.getDynamicsInfo(self._body, -1, client)[2],
            linearDamping=0.0,
            angularDamping=0.0,
            activationState=pybullet.ACTIVATION_STATE_DISABLE_SLEEPING,
            physicsClientId=client,
        )
        for joint in self._joints:
            # Friction alone: next to a whole-body option such as damping, PyBullet would apply
            # it to the base (and its casters) instead of to this wheel.
            friction = TYRE_FRICTION * self.vehicle["friction"]
            pybullet.changeDynamics(
                self._body, joint, lateralFriction=friction, physicsClientId=client
            )
        # PyBullet holds every joint with a hidden motor until told otherwise.
        pybullet.setJointMotorControlArray(
            self._body, self._joints, pybullet.VELOCITY_CONTROL, forces=[0.0, 0.0],
            physicsClientId=client,
        )  # fmt: skip

    def _start(self, x0: NDArray[np.float64], u0: NDArray[np.float64]) -> None:
        px, py, theta, v = x0.tolist()
        turn = min(max(float(u0[1]), -MAX_TURN_RATE), MAX_TURN_RATE)
        client = self._client
        pybullet.resetBasePositionAndOrientation(
            self._body,
            [px, py, WHEEL_RADIUS + BODY_COM],
            [0.0, 0.0, math.sin(theta / 2.0), math.cos(theta / 2.0)],
            physicsClientId=client,
        )
        pybullet.resetBaseVelocity(
            self._body,
            [v * math.cos(theta), v * math.sin(theta), 0.0],
            [0.0, 0.0, turn],
            physicsClientId=client,
        )
        for joint, side in zip(self._joints, (-1.0, 1.0), strict=True):
            spin = (v + side * turn * TRACK / 2.0) / WHEEL_RADIUS
            pybullet.resetJointState(self._body, joint, 0.0, spin, physicsClientId=client)
        self._theta = theta
        self._speed_ref, self._accel_ref, self._turn_ref = v, 0.0, turn
        self._read()
        self._queue.clear()
        self._queue.extend([(v, turn)] * self.delay_steps)

    def _to_command(self, u: NDArray[np.float64]) -> tuple[float, ...]:
        accel = min(max(float(u[0]), -MAX_ACCEL), MAX_ACCEL)
        return (float(self._measured[3]) + accel * self.period, float(u[1]))

    def _advance(self, command: tuple[float, ...]) -> None:
        speed = min(max(command[0], 0.0), MAX_SPEED)
        turn = min(max(command[1], -MAX_TURN_RATE), MAX_TURN_RATE)
        # Anchored at the speed the base expects to have now: then `measured v + accel * period`
        # becomes accel, whatever the lag.
        demand = (speed - self._speed_ref) / self.period
        demand = min(max(demand, -RAMP_LIMIT), RAMP_LIMIT)
        rise = 1.0 - math.exp(-PHYSICS_DT / ACCEL_LAG)
        follow = 1.0 - math.exp(-PHYSICS_DT / TURN_LAG)
        strength = self.vehicle["torque"]
        body, client, joints, torques = self._body, self._client, self._joints, [0.0, 0.0]
        for _ in range(self.substeps):
            self._accel_ref += rise * (demand - self._accel_ref)
            self._speed_ref += self._accel_ref * PHYSICS_DT
            change = follow * (turn - self._turn_ref)
            self._turn_ref += change
            push, twist = PUSH * self._accel_ref, TWIST * change / PHYSICS_DT
            for i, side in ((0, -1.0), (1, 1.0)):
                target = (self._speed_ref + side * self._turn_ref * TRACK / 2.0) / WHEEL_RADIUS
                spin = pybullet.getJointState(body, joints[i], client)[1]
                torque = strength * (push + side * twist + WHEEL_GAIN * (target - spin))
                torques[i] = min(max(torque, -MAX_TORQUE), MAX_TORQUE)
            pybullet.setJointMotorControlArray(
                body, joints, pybullet.TORQUE_CONTROL, forces=torques, physicsClientId=client
            )
            pybullet.stepSimulation(client)
        self._read()

    def _read(self) -> None:
        self._pos, (x, y, z, w) = pybullet.getBasePositionAndOrientation(self._body, self._client)
        velocity, self._spin = pybullet.getBaseVelocity(self._body, self._client)
        heading = math.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))
        self._theta += math.remainder(heading - self._theta, 2.0 * math.pi)
        self._v = velocity[0] * math.cos(heading) + velocity[1] * math.sin(heading)

    def _true_state(self) -> NDArray[np.float64]:
        return np.array([self._pos[0], self._pos[1], self._theta, self._v])

    def _add_noise(self, x: NDArray[np.float64], unit: NDArray[np.float64]) -> None:
        std = self.NOISE_STD
        x += unit * np.array([std["position"], std["position"], std["heading"], std["speed"]])

    def _position(self) -> tuple[float, float, float]:
        return (self._pos[0], self._pos[1], self._pos[2])

    def _trail_point(self) -> tuple[float, float, float]:
        return (self._pos[0], self._pos[1], 0.01)

    def _camera(self, view: str) -> Camera:
        x, y, _ = self._pos
        if view == "chase":
            c, s = math.cos(self._theta), math.sin(self._theta)
            return Camera((x - 2.8 * c, y - 2.8 * s, 1.4), (x + 1.5 * c, y + 1.5 * s, 0.1), 50.0)
        # From behind and above, near the lane's middle: both borders stay in the picture.
        return Camera((x - 3.3, 0.45 * y - 0.9, 2.1), (x + 1.9, 0.45 * y, 0.0), 44.0)

    def _paint_background(self, painter: Painter) -> None:
        painter.sky()
        painter.road(LANE, shadow=((self._pos[0], self._pos[1], 0.0), 0.38))

    def _paint_foreground(self, painter: Painter) -> None:
        pass  # nothing is in front of the robot here

    def _gui_lines(self) -> list[tuple[NDArray[np.float64], Color]]:
        ends = (-10.0, 200.0)
        return [
            (np.array([(x, side * LANE, 0.01) for x in ends]), (1.0, 1.0, 1.0))
            for side in (-1.0, 1.0)
        ]
