"""The quadrotor's on-board autopilot: body rates and collective in, four rotor speeds out.

Runs at 500 Hz. Per axis, with the measured body rate ω and its derivative (frames: body FLU)

    torque = J · ( KP (ω_cmd - ω) - KD ω̇ )

The derivative term works as a lead against the rotors' 30 ms lag: with torque lag T the loop is
T s² + (1 + KD) s + KP, so KP = 94 1/s, KD = 2 give a rate response 1 / (1 + 0.032 s + 0.00032 s²):
damping 0.89, and with the sampling a mean delay of 30 ms, like a first-order lag of 30 ms.

It knows the *nominal* mass and thrust curve only, which the real vehicle may not have.
Rotors (X layout): 0 front left, 1 rear left, 2 rear right, 3 front right.
"""

import math

MASS = 1.0  # kg
INERTIA = (0.006, 0.006, 0.011)  # kg m²
ARM = 0.25  # m, centre to rotor
LEVER = ARM / math.sqrt(2.0)  # m, rotor to the x and y axes
MAX_THRUST = 4.0 * 9.81  # m/s², nominal mass-normalised collective
MAX_RATE = 18.0  # rad/s
ROTOR_MAX_FORCE = MASS * MAX_THRUST / 4.0  # N
ROTOR_MAX_SPEED = 900.0  # rad/s
ROTOR_IDLE_SPEED = 45.0  # rad/s: motors never stop in the air
THRUST_COEFFICIENT = ROTOR_MAX_FORCE / ROTOR_MAX_SPEED**2  # N / (rad/s)²
ROTOR_IDLE_FORCE = THRUST_COEFFICIENT * ROTOR_IDLE_SPEED**2  # N
REACTION = 0.025  # N m of yaw torque per N of thrust
KP, KD = 94.0, 2.0  # 1/s, -

Four = tuple[float, float, float, float]


class RateAutopilot:
    """Rate loop and mixer. Plain floats: this runs ten times per control period."""

    def __init__(self, dt: float) -> None:
        """dt: sample time, s."""
        self._dt = dt
        self._previous = (0.0, 0.0, 0.0)

    def reset(self, rates: tuple[float, float, float]) -> None:
        """Forget the past; rates (rad/s) are the present body rates."""
        self._previous = rates

    def rotor_speeds(self, command: tuple[float, ...], rates: tuple[float, float, float]) -> Four:
        """Rotor speed commands (rad/s).

        Args:
            command: thrust (m/s²), rate_x, rate_y, rate_z (rad/s); clipped to what the vehicle
                accepts: 0 … 4 g and ±18 rad/s.
            rates: gyro, rad/s, body FLU.
        """
        thrust = min(max(command[0], 0.0), MAX_THRUST)
        torque = [0.0, 0.0, 0.0]
        for i in range(3):
            target = min(max(command[i + 1], -MAX_RATE), MAX_RATE)
            slope = (rates[i] - self._previous[i]) / self._dt
            torque[i] = INERTIA[i] * (KP * (target - rates[i]) - KD * slope)
        self._previous = rates
        f0, f1, f2, f3 = mix(MASS * thrust, torque[0], torque[1], torque[2])
        return (
            math.sqrt(f0 / THRUST_COEFFICIENT),
            math.sqrt(f1 / THRUST_COEFFICIENT),
            math.sqrt(f2 / THRUST_COEFFICIENT),
            math.sqrt(f3 / THRUST_COEFFICIENT),
        )


def mix(collective: float, torque_x: float, torque_y: float, torque_z: float) -> Four:
    """Rotor forces (N), each within its limits, for a collective (N) and a torque (N m, body).

    What does not fit is given up in the order yaw, collective, tilt: attitude decides where the
    thrust points, so roll and pitch come first even if the collective must move for them.
    """
    x, y = torque_x / (4.0 * LEVER), torque_y / (4.0 * LEVER)
    # torque_x = Σ y_i f_i and torque_y = -Σ x_i f_i over rotor positions (±LEVER, ±LEVER).
    tilt = (x - y, x + y, -x + y, -x - y)
    span = 2.0 * (abs(x) + abs(y))
    room = ROTOR_MAX_FORCE - ROTOR_IDLE_FORCE
    if span > room:
        scale = room / span
        tilt = (tilt[0] * scale, tilt[1] * scale, tilt[2] * scale, tilt[3] * scale)
        span = room
    base = min(max(collective / 4.0, ROTOR_IDLE_FORCE + span / 2.0), ROTOR_MAX_FORCE - span / 2.0)
    f0, f1, f2, f3 = base + tilt[0], base + tilt[1], base + tilt[2], base + tilt[3]
    z = torque_z / (4.0 * REACTION)
    if z >= 0.0:
        up, down = max(f0, f2), min(f1, f3)
    else:
        up, down = max(f1, f3), min(f0, f2)
    yaw = min(abs(z), max(ROTOR_MAX_FORCE - up, 0.0), max(down - ROTOR_IDLE_FORCE, 0.0))
    yaw = math.copysign(yaw, z)
    return (f0 + yaw, f1 - yaw, f2 + yaw, f3 - yaw)
