"""A robot whose certificate can be written down by hand, with an error chart that turns.

    px+ = px + D v cos(theta)     state (px, py, theta), input (v, turn)
    py+ = py + D v sin(theta)     error (R(theta_z)' (p - p_z), theta - theta_z)
    theta+ = theta + D turn

The error map depends on the input alone, s = (v, turn). `tube` is the open-loop tube in numpy, the
slow twin of the kernel's; `Tug` plays the plant and its estimator with any w and d.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from safe_rl_core.certificate import EPS, BaseCertificate, Certificate
from safe_rl_core.program import Program, parse

D, SPEED, TURN = 0.05, 2.0, 1.5
K, M = 3, 2
ANGLE = 0.6  # |error in theta| <= this
PROGRAM = f"""safe_rl_program 1
function step(x:3, u:2)
px = input x 0
py = input x 1
th = input x 2
v = input u 0
w = input u 1
d = const {D}
dv = mul d v
dw = mul d w
c = cos th
s = sin th
mx = mul dv c
my = mul dv s
nx = add px mx
ny = add py my
nt = add th dw
return nx ny nt
function difference(x:3, z:3)
ax = input x 0
ay = input x 1
at = input x 2
bx = input z 0
by = input z 1
bt = input z 2
dx = sub ax bx
dy = sub ay by
et = sub at bt
c = cos bt
s = sin bt
cx = mul c dx
sy = mul s dy
ex = add cx sy
cy = mul c dy
sx = mul s dx
ey = sub cy sx
return ex ey et
function retract(z:3, e:3)
bx = input z 0
by = input z 1
bt = input z 2
ex = input e 0
ey = input e 1
et = input e 2
c = cos bt
s = sin bt
cx = mul c ex
sy = mul s ey
dx = sub cx sy
sx = mul s ex
cy = mul c ey
dy = add sx cy
x = add bx dx
y = add by dy
t = add bt et
return x y t
function schedule(x:3, u:2)
v = input u 0
w = input u 1
one = const 1.0
a = mul one v
b = mul one w
return a b
function error_map(s:2, e:3, v:2, w:3)
sv = input s 0
sw = input s 1
ex = input e 0
ey = input e 1
et = input e 2
uv = input v 0
uw = input v 1
wx = input w 0
wy = input w 1
wt = input w 2
d = const {D}
speed = add sv uv
dspeed = mul d speed
dsv = mul d sv
c = cos et
s = sin et
fx = mul dspeed c
fy = mul dspeed s
gx = add ex fx
hx = sub gx dsv
hy = add ey fy
dsw = mul d sw
cc = cos dsw
ss = sin dsw
chx = mul cc hx
shy = mul ss hy
qx = add chx shy
chy = mul cc hy
shx = mul ss hx
qy = sub chy shx
duw = mul d uw
nt = add et duw
cn = cos nt
sn = sin nt
cwx = mul cn wx
swy = mul sn wy
px = sub cwx swy
swx = mul sn wx
cwy = mul cn wy
py = add swx cwy
rx = add qx px
ry = add qy py
rt = add nt wt
return rx ry rt
function shifted(e:3, d:3)
ex = input e 0
ey = input e 1
et = input e 2
dx = input d 0
dy = input d 1
dt = input d 2
c = cos et
s = sin et
cx = mul c dx
sy = mul s dy
px = sub cx sy
sx = mul s dx
cy = mul c dy
py = add sx cy
x = add ex px
y = add ey py
t = add et dt
return x y t
"""
NAMES, UNITS = ("p_x", "p_y", "theta"), ("m", "m", "rad")
DISTURBANCE = np.array([2e-3, 1e-3, 2e-3])
ESTIMATE_ERROR = np.array([4e-3, 8e-3, 1e-2])


def _certificate(program: Program) -> Certificate:
    remainder = np.zeros((1, K, 2 * K + M, 2 * K + M))
    shift = np.zeros((K, 2 * K, 2 * K))
    for row in (0, 1):
        entries = {
            (2, 2): D * (SPEED + 1.0) + 2.0 * DISTURBANCE.max(), (2, 3): D,
            (2, 4): 2.0 * D * DISTURBANCE.max(), (4, 4): 2.0 * D * D * DISTURBANCE.max(),
            (2, 5): 1.0, (2, 6): 1.0, (4, 5): D, (4, 6): D,
        }  # fmt: skip
        for (a, b), size in entries.items():
            remainder[0, row, a, b] = remainder[0, row, b, a] = size
        for a, b in ((2, 3), (2, 4)):
            shift[row, a, b] = shift[row, b, a] = 1.0
        shift[row, 2, 2] = 2.0
    inf, zero = np.full(3, np.inf), np.zeros
    angle = ESTIMATE_ERROR[2]
    base = BaseCertificate(
        input=zero(M), schedule=zero(2), gain=zero((M, K)), factor=np.eye(K), contraction=0.9,
        disturbance_norm=0.0, estimate_norm=0.0, extent=np.array([1.0, 1.0, ANGLE]),
        cell_directions=np.eye(K), cell_splits=np.ones(K), leaves_low=zero((1, K)),
        leaves_high=zero((1, K)), leaves_multipliers=zero((1, 1 + K)), symmetries=zero((0, 7)),
    )  # fmt: skip
    return Certificate(
        program=program.hash, period=D, delay_steps=1, error_names=NAMES, error_units=UNITS,
        disturbance=DISTURBANCE, estimate_error=ESTIMATE_ERROR, jitter=0.0,
        input_low=np.array([0.0, -TURN]), input_high=np.array([SPEED, TURN]),
        tracking_gain=zero((M, K)), error_domain=np.array([1.0, 1.0, ANGLE]),
        input_domain=np.ones(M), state_low=-inf, state_high=inf,
        schedule_low=np.array([0.0, -TURN]), schedule_high=np.array([SPEED, TURN]),
        schedule_cells=np.ones(2), remainder_splits=np.ones(2 * K + M + 2), remainder=remainder,
        shift_remainder=shift, safe_remainder=zero((1, K, K)), prediction_error=ESTIMATE_ERROR,
        tracking_error=np.array([2 * 8e-3, 2 * 8e-3, angle]), sampling_margin=zero(1), base=base,
    )  # fmt: skip


def bundle() -> SimpleNamespace:
    """What the monitor and identification need of a bundle."""
    program = Program(parse(PROGRAM), {})
    certificate = _certificate(program)
    errors = [
        {"name": n, "unit": u, "disturbance": float(w), "estimate_error": float(d)}
        for n, u, w, d in zip(NAMES, UNITS, DISTURBANCE, ESTIMATE_ERROR, strict=True)
    ]
    channels = tuple(SimpleNamespace(name=n) for n in ("px", "py", "theta"))
    inputs = tuple(SimpleNamespace(name=n) for n in ("v", "turn"))
    return SimpleNamespace(
        name="tug_robust", path="tug_robust", hash="ab" * 32, period=D, delay_steps=1,
        states=channels, inputs=inputs, program=program, compiled=program, robust=certificate,
        assumptions={"errors": errors, "jitter_s": 0.0}, stop_action=np.zeros(M),
    )  # fmt: skip


def changed(of: SimpleNamespace, **values: object) -> SimpleNamespace:
    """The same bundle with other entries in its certificate."""
    return SimpleNamespace(**(vars(of) | {"robust": replace(of.robust, **values)}))


def tube(
    program: Program, c: Certificate, x: np.ndarray, inputs: np.ndarray, e0: np.ndarray
) -> np.ndarray:
    """Row sums of the open-loop zonotope after every input (M, m), from x with |e| <= e0.

    Infinite outside of the certified domain.
    """
    k, m = len(c.error_names), len(c.input_low)
    counts = c.schedule_cells.astype(int)
    z, g = np.array(x), np.diag(e0)
    for u in inputs:
        s = program("schedule", z, u)
        known = ((s >= c.schedule_low) & (s <= c.schedule_high)).all()
        if not (known and ((z >= c.state_low) & (z <= c.state_high)).all()):
            return np.full(k, np.inf)
        share = (s - c.schedule_low) / (c.schedule_high - c.schedule_low) * counts
        cell = np.ravel_multi_index(np.clip(share.astype(int), 0, counts - 1), counts)
        zero = np.zeros((k, k))
        tangents = (np.zeros((k, len(s))), np.eye(k), np.zeros((k, m)), zero)
        at = (np.tile(s, (k, 1)), zero, np.zeros((k, m)), zero)
        a = program.jvp("error_map", at, tangents).T
        e = np.abs(g).sum(1)
        if not (e <= c.error_domain).all():
            return np.full(k, np.inf)
        xi = np.concatenate((e, np.zeros(m), c.disturbance))
        w = c.disturbance + 0.5 * (c.remainder[cell] @ xi) @ xi + EPS
        g, z = np.hstack((a @ g, np.diag(w))), program("step", z, u)
    return np.abs(g).sum(1)


class SlowKernel:
    """`tube` where a kernel is expected."""

    def __init__(self, of: SimpleNamespace) -> None:
        self._of = of

    def open_tube(self, x: np.ndarray, inputs: np.ndarray, start: np.ndarray) -> np.ndarray:
        return tube(self._of.program, self._of.robust, x, inputs, start)


class Tug:
    """Plant and estimator: `w` and `d` give disturbance and estimate error of period k, (3,)."""

    def __init__(self, of: SimpleNamespace, x: np.ndarray) -> None:
        self._program, self.x, self._k = of.program, np.array(x, np.float64), 0

    def estimate(self, d: np.ndarray) -> np.ndarray:
        """x_hat with difference(x, x_hat) = d: the chart turns with x_hat."""
        theta = self.x[2] - d[2]
        c, s = np.cos(theta), np.sin(theta)
        back = np.array([c * d[0] - s * d[1], s * d[0] + c * d[1]])
        return np.array([*(self.x[:2] - back), theta])

    def step(self, u: np.ndarray, w: np.ndarray) -> None:
        """One period with the input u in force and the disturbance w."""
        self.x = self._program("retract", self._program("step", self.x, u), w)


def fly(
    of: SimpleNamespace,
    steps: int,
    inputs: Callable[[int], np.ndarray],
    w: Callable[[int], np.ndarray],
    d: Callable[[int], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates (steps, 3) and the inputs in force from each of them on (steps, 2)."""
    tug, states, forces = Tug(of, np.zeros(3)), [], []
    for k in range(steps):
        states.append(tug.estimate(d(k)))
        forces.append(inputs(k))
        tug.step(forces[-1], w(k))
    return np.array(states), np.array(forces)
