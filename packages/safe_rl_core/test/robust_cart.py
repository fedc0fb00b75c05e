"""A robot whose certificate is written down by hand: a cart on a rail with cubic drag.

    p+ = p + D v + D^2/2 a        v+ = v + D a - D c v^3        |p| <= 2, v^2 <= 1, |a| <= 1

Errors are plain differences. The error map depends on the reference through its speed v alone:

    e_v+ = e_v + D (da - c (3 v^2 e_v + 3 v e_v^2 + e_v^3)),   second derivative -6 D c (v + e_v)

so every bound below is a line of algebra, and the table differs from cell to cell. The schedule is
(v, a) for the sake of cells in two dimensions.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from safe_rl_core.bundle import Bundle, Channel, Task
from safe_rl_core.certificate import BaseCertificate, Certificate
from safe_rl_core.program import Program, parse

D, DRAG, HORIZON, DELAY = 0.1, 0.2, 40, 1
REACH, TOP, INPUT, HOME = 2.0, 1.0, 1.0, 1.2
GAIN = np.array([[-1.2, -1.6]])
DISTURBANCE, ESTIMATE = np.array([2e-4, 2e-3]), np.array([1e-3, 2e-3])
DOMAIN, CELLS = np.array([0.4, 0.4]), (4, 3)
RATE = 0.93

_STEP = f"""d = const {D}
h = const {D * D / 2}
c = const {-D * DRAG}
dv = mul d v
ha = mul h a
p1 = add p dv
p2 = add p1 ha
da = mul d a
vv = mul v v
vvv = mul vv v
drag = mul c vvv
v1 = add v da
v2 = add v1 drag
"""


def _law(factor: np.ndarray) -> str:
    (kp, kv), shape = GAIN[0].tolist(), factor.tolist()
    return f"""function base_set(x:2)
p = input x 0
v = input x 1
low = const {-HOME}
high = const {HOME}
b0 = max p low
b1 = min b0 high
e = sub p b1
l00 = const {shape[0][0]!r}
l10 = const {shape[1][0]!r}
l11 = const {shape[1][1]!r}
y0 = mul l00 e
y1 = mul l10 v
y2 = add y0 y1
y3 = mul l11 v
q0 = mul y2 y2
q1 = mul y3 y3
q2 = add q0 q1
one = const 1.0
r = sub one q2
return r
function backup_policy(x:2)
p = input x 0
v = input x 1
low = const {-HOME}
high = const {HOME}
b0 = max p low
b1 = min b0 high
e = sub p b1
kp = const {kp}
kv = const {kv}
u0 = mul kp e
u1 = mul kv v
u2 = add u0 u1
most = const 0.7
least = const -0.7
u3 = min u2 most
u4 = max u3 least
return u4
"""


def text(factor: np.ndarray) -> str:
    """The whole program."""
    return f"""safe_rl_program 1
function dynamics(x:2, u:1)
v = input x 1
a = input u 0
return v a
function step(x:2, u:1)
p = input x 0
v = input x 1
a = input u 0
{_STEP}return p2 v2
function safe_set(x:2)
p = input x 0
v = input x 1
reach = const {REACH}
right = sub reach p
left = add reach p
vv = mul v v
top = const {TOP**2}
speed = sub top vv
return right left speed
{_law(factor)}function operating_state(w:2)
a = input w 0
b = input w 1
reach = const {REACH}
p = mul reach a
one = const 1.0
v = mul one b
return p v
function difference(x:2, z:2)
a = input x 0
b = input x 1
c = input z 0
d = input z 1
p = sub a c
v = sub b d
return p v
function retract(z:2, e:2)
a = input z 0
b = input z 1
c = input e 0
d = input e 1
p = add a c
v = add b d
return p v
function schedule(x:2, u:1)
v = input x 1
a = input u 0
one = const 1.0
s = mul one v
t = mul one a
return s t
function error_map(s:2, e:2, v:1, w:2)
v = input s 0
ep = input e 0
ev = input e 1
a = input v 0
wp = input w 0
wv = input w 1
d = const {D}
h = const {D * D / 2}
c = const {-D * DRAG}
dev = mul d ev
ha = mul h a
p1 = add ep dev
p2 = add p1 ha
p3 = add p2 wp
far = add v ev
ff = mul far far
fff = mul ff far
vv = mul v v
vvv = mul vv v
bend = sub fff vvv
drag = mul c bend
da = mul d a
v1 = add ev da
v2 = add v1 drag
v3 = add v2 wv
return p3 v3
function shifted(e:2, d:2)
a = input e 0
b = input e 1
c = input d 0
d = input d 1
p = add a c
v = add b d
return p v
function safe_at(z:2, e:2)
a = input z 0
b = input z 1
c = input e 0
d = input e 1
p = add a c
v = add b d
reach = const {REACH}
right = sub reach p
left = add reach p
vv = mul v v
top = const {TOP**2}
speed = sub top vv
return right left speed
function base_point(x:2)
p = input x 0
low = const {-HOME}
high = const {HOME}
b0 = max p low
b1 = min b0 high
zero = const 0.0
return b1 zero
"""


def factor() -> np.ndarray:
    """L of an ellipsoid that the closed loop without drag shrinks by RATE, |v| <= 0.45 in it."""
    a = np.array([[1.0, D], [0.0, 1.0]]) + np.array([[D * D / 2], [D]]) @ GAIN
    p = q = np.eye(2)
    for _ in range(400):
        q = a.T @ q @ a / RATE**2
        p = p + q
    return np.linalg.cholesky(p * np.linalg.inv(p)[1, 1] / 0.45**2)


def _base() -> BaseCertificate:
    shape = factor()
    extent = np.sqrt(np.diag(np.linalg.inv(shape @ shape.T)))
    signs = np.array([[1.0, 1.0], [1.0, -1.0]])
    held = np.array([[D * D / 2], [D]]) @ GAIN
    noise = np.abs(held) @ prediction_error()
    bend = np.array([0.0, D * DRAG * extent[1] ** 3])

    def norm(box: np.ndarray) -> float:
        return float(max(np.linalg.norm(shape.T @ (s * box)) for s in signs))

    base = BaseCertificate(
        input=np.zeros(1),
        schedule=np.zeros(2),
        gain=GAIN,
        factor=shape,
        contraction=RATE + norm(bend),
        disturbance_norm=norm(DISTURBANCE),
        estimate_norm=norm(noise),
        extent=extent * (1.0 + 1e-12),
        cell_directions=np.array([[0.0, 1.0]]),
        cell_splits=np.ones(1),
        leaves_low=np.zeros((1, 1)),
        leaves_high=np.zeros((1, 1)),
        leaves_multipliers=np.zeros((1, 2)),
        symmetries=np.zeros((0, 5)),
    )
    total = base.contraction + base.disturbance_norm + base.estimate_norm
    most = np.linalg.norm(np.linalg.solve(shape, GAIN[0])) + np.abs(GAIN) @ prediction_error()
    if total > 1.0 or most > INPUT:
        raise ValueError(f"the cart's base set is not invariant: {total}, input {most}")
    return base


def prediction_error() -> np.ndarray:
    """|d e+/d e| eta + remainder + w: the speed's slope lies in [1 - 3 D c v^2, 1]."""
    ahead = np.array([[1.0, D], [0.0, 1.0]]) @ ESTIMATE + DISTURBANCE
    return ahead + np.array([0.0, 3.0 * D * DRAG * 2.0 * ESTIMATE[1] ** 2])


def certificate(program: Program) -> Certificate:
    """The bounds, each as derived above."""
    edges = np.linspace(-1.2, 1.2, CELLS[0] + 1)
    fastest = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:]))
    remainder = np.zeros((CELLS[0] * CELLS[1], 2, 5, 5))
    remainder[:, 1, 1, 1] = np.repeat(6.0 * D * DRAG * (fastest + DOMAIN[1]), CELLS[1])
    curved = np.zeros((3, 2, 2))
    curved[2, 1, 1] = 2.0
    return Certificate(
        program=program.hash,
        period=D,
        delay_steps=DELAY,
        error_names=("p", "v"),
        error_units=("m", "m/s"),
        disturbance=DISTURBANCE,
        estimate_error=ESTIMATE,
        jitter=0.0,
        input_low=np.array([-INPUT]),
        input_high=np.array([INPUT]),
        tracking_gain=GAIN,
        error_domain=DOMAIN,
        input_domain=np.array([1.0]),
        state_low=np.array([-2.5, -1.2]),
        state_high=np.array([2.5, 1.2]),
        schedule_low=np.array([-1.2, -INPUT]),
        schedule_high=np.array([1.2, INPUT]),
        schedule_cells=np.array(CELLS, np.float64),
        remainder_splits=np.ones(7),
        remainder=remainder,
        shift_remainder=np.zeros((2, 4, 4)),
        safe_remainder=curved,
        prediction_error=prediction_error(),
        tracking_error=prediction_error(),
        sampling_margin=np.array([2e-3, 2e-3, 1e-2]),
        base=_base(),
    )


@cache
def cart() -> Bundle:
    """The bundle, as if it had been loaded."""
    program = Program(parse(text(factor())), {})
    task = Task("rest", 10.0, None, 1, (), ())
    return Bundle(
        path=Path("cart_robust"),
        name="cart_robust",
        robot="cart",
        variant="robust",
        states=(Channel("p", "m", -REACH, REACH), Channel("v", "m/s", -TOP, TOP)),
        inputs=(Channel("accel", "m/s^2", -INPUT, INPUT),),
        period=D,
        horizon=HORIZON,
        delay_steps=DELAY,
        class_k=4.0,
        base_class_k=2.0,
        safe_set_names=("right", "left", "speed"),
        base_set_names=("ellipsoid",),
        margins={"right": 0.05, "left": 0.05, "speed": 0.05},
        input_scale=np.array([0.5]),
        stop_action=np.zeros(1),
        certificate="robust",
        task=task,
        variants={},
        program=program,
        hashes={},
        hash="0" * 64,
        robust=certificate(program),
    )


def with_bounds(**entries: object) -> Bundle:
    """The cart with other entries in its certificate; `base_<name>` for the base's."""
    bundle = cart()
    of_base = {k.removeprefix("base_"): v for k, v in entries.items() if k.startswith("base_")}
    own = {k: v for k, v in entries.items() if not k.startswith("base_")}
    base = replace(bundle.robust.base, **of_base)
    return shared(replace(bundle, robust=replace(bundle.robust, base=base, **own)))


def shared(bundle: Bundle) -> Bundle:
    """A bundle of the cart's program, compiled and self-tested once for all of them."""
    cart().kernel()
    vars(bundle).update(compiled=cart().compiled, _self_test=None)
    return bundle
