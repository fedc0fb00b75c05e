"""A robot that can be checked by hand: a double integrator with quadratic drag, and its bundle.

    p+ = p + D v + D^2/2 u      v+ = v + D u - D c v^2      safe: |p| <= 1, v^2 <= 1

Errors are plain differences. The error map depends on the reference through its speed alone, and
its one second derivative is -2 D c, so that the certificate below can be written down.
`fly` is a small shield of its own; with the chain writer it makes the logs that the tests forge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml
from safe_rl_core.audit.plans import slacks
from safe_rl_core.audit.records import Theorem, load_theorem
from safe_rl_core.chain import ChainWriter, Kind, StepRecord, header_of
from safe_rl_core.program import Program, parse

D, DRAG, N, DELAY = 0.1, 0.2, 30, 1
PROGRAM = f"""safe_rl_program 1
function step(x:2, u:1)
p = input x 0
v = input x 1
a = input u 0
d = const {D}
h = const {D * D / 2}
c = const {-D * DRAG}
dv = mul d v
ha = mul h a
p1 = add p dv
p2 = add p1 ha
da = mul d a
vv = mul v v
cvv = mul c vv
v1 = add v da
v2 = add v1 cvv
return p2 v2
function schedule(x:2, u:1)
v = input x 1
one = const 1.0
s = mul one v
return s
function error_map(s:1, e:2, v:1, w:2)
s = input s 0
ep = input e 0
ev = input e 1
v = input v 0
wp = input w 0
wv = input w 1
d = const {D}
h = const {D * D / 2}
c = const {-D * DRAG}
two = const 2.0
dev = mul d ev
hv = mul h v
p1 = add ep dev
p2 = add p1 hv
p3 = add p2 wp
dv = mul d v
ss = mul two s
sum = add ss ev
bend = mul sum ev
cbend = mul c bend
v1 = add ev dv
v2 = add v1 cbend
v3 = add v2 wv
return p3 v3
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
one = const 1.0
right = sub one p
left = add one p
vv = mul v v
speed = sub one vv
return right left speed
function base_point(x:2)
p = input x 0
low = const -0.5
high = const 0.5
zero = const 0.0
a = max p low
b = min a high
return b zero
function backup_policy(x:2)
p = input x 0
v = input x 1
low = const -0.5
high = const 0.5
a = max p low
b = min a high
ep = sub p b
gp = const -1.2
gv = const -1.6
up = mul gp ep
uv = mul gv v
u = add up uv
least = const -0.6
most = const 0.6
u1 = max u least
u2 = min u1 most
return u2
"""
GAIN = np.array([[-1.2, -1.6]])
ROWS = ("right", "left", "speed")


def closed_loop() -> np.ndarray:
    return np.array([[1.0, D], [0.0, 1.0]]) + np.array([[D * D / 2], [D]]) @ GAIN


def factor() -> np.ndarray:
    """L of a base set {|L'e| <= 1} that the closed loop shrinks, speed at most 0.35."""
    a = closed_loop()
    p = q = np.eye(2)
    for _ in range(400):
        q = a.T @ q @ a / 0.93**2
        p = p + q
    return np.linalg.cholesky(p * np.linalg.inv(p)[1, 1] / 0.35**2)


def certificate(program: Program) -> dict[str, Any]:
    """Every entry, as the bundle's two files carry them together."""
    remainder = np.zeros((4, 2, 5, 5))
    remainder[:, 1, 1, 1] = 2 * D * DRAG
    curved = np.zeros((3, 2, 2))
    curved[2, 1, 1] = 2.0
    disturbance, estimate = np.array([2e-4, 2e-3]), np.array([1e-3, 2e-3])
    ahead = np.array([[1.0, D], [0.0, 1.0 + 2 * D * DRAG]])
    prediction = ahead @ estimate + disturbance + np.array([0.0, D * DRAG * 1e-3])
    shape = factor()
    extent = np.sqrt(np.diag(np.linalg.inv(shape @ shape.T)))
    return {
        "program": program.hash, "period": D, "delay_steps": DELAY,
        "error_names": ["p", "v"], "error_units": ["m", "m/s"],
        "disturbance": disturbance, "estimate_error": estimate, "jitter": 1e-4,
        "input_low": [-1.0], "input_high": [1.0], "tracking_gain": GAIN,
        "error_domain": [0.4, 0.4], "input_domain": [1.0],
        "state_low": [-1.5, -1.2], "state_high": [1.5, 1.2],
        "schedule_low": [-1.2], "schedule_high": [1.2], "schedule_cells": [4],
        "remainder": remainder, "shift_remainder": np.zeros((2, 4, 4)), "safe_remainder": curved,
        "prediction_error": prediction, "tracking_error": prediction,
        "sampling_margin": [2e-3, 2e-3, 4e-2],
        "base_input": [0.0], "base_schedule": [0.0], "base_gain": GAIN, "base_factor": shape,
        "base_extent": extent * (1 + 1e-12), "base_contraction": 0.93,
        "base_disturbance_norm": 0.02, "base_estimate_norm": 0.02,
    }  # fmt: skip


def write_bundle(folder: Path, changes: dict[str, Any] | None = None, **yaml_changes: Any) -> Path:
    """The robot's bundle; `changes` go into the certificate."""
    folder.mkdir(parents=True, exist_ok=True)
    program = Program(parse(PROGRAM), {})
    program.save(folder / "program.txt")
    entries = certificate(program) | (changes or {})
    tables = {name: entries.pop(name) for name in list(entries) if name.endswith("remainder")}
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in entries.items()}
    (folder / "certificate.json").write_text(json.dumps(plain))
    np.savez(folder / "certificate.npz", **tables)
    described = {
        "name": "cart_robust", "robot": "cart", "certificate": "robust",
        "states": [{"name": "p"}, {"name": "v"}],
        "inputs": [{"name": "accel", "low": -1.0, "high": 1.0}],
        "period_s": D, "horizon_steps": N, "delay_steps": DELAY,
        "safe_set": list(ROWS), "input_scale": [1.0], "stop_action": [0.0],
    }  # fmt: skip
    (folder / "bundle.yaml").write_text(yaml.safe_dump(described | yaml_changes))
    sign_folder(folder)
    return folder


def sign_folder(folder: Path) -> None:
    names = sorted(p.name for p in folder.iterdir() if p.name != "SHA256SUMS")
    lines = (f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    (folder / "SHA256SUMS").write_text("".join(lines))


def header(folder: Path) -> dict[str, Any]:
    """The header of a flight with the bundle in `folder`."""
    sums = (folder / "SHA256SUMS").read_bytes()
    lines = (line.split("  ") for line in sums.decode().splitlines())
    bundle = SimpleNamespace(
        name="cart_robust", hash=hashlib.sha256(sums).hexdigest(),
        hashes={name: digest for digest, name in lines},
        program=Program.load(folder / "program.txt"), states=(0, 1), inputs=(0,),
        horizon=N, delay_steps=DELAY, period=D,
    )  # fmt: skip
    return header_of(bundle, "simulated")


def theorem(folder: Path) -> Theorem:
    return load_theorem(folder, header(folder))


def plan_of(t: Theorem, x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """First inputs u (P, 1) at x (P, 2), then the backup: (P, N+1, 1)."""
    inputs = [u]
    for _ in range(N):
        x = t.program("step", x, inputs[-1])
        inputs.append(t.program("backup_policy", x))
    return np.stack(inputs, 1)


@dataclass
class Cart:
    """Plant, estimator and shield in one; every hook is a fault that a test may plant."""

    t: Theorem
    seed: int = 0
    adversary: float = 1.0
    outage: tuple[int, int] = (0, 0)
    clip_from: int = 10**9
    push: float = 1.0
    frozen: tuple[int, int] = (0, 0)
    records: list[StepRecord] = field(default_factory=list)
    worst: float = np.inf

    def fly(self, steps: int) -> list[StepRecord]:
        rng = np.random.default_rng(self.seed)
        t, c = self.t, self.t.c
        x, pending, inputs, states, index = np.zeros(2), [t.stop] * DELAY, None, None, 0
        corner = np.ones(2)
        for k in range(steps):
            corner = np.where(rng.random(2) < 0.1, -corner, corner)
            if not self.frozen[0] <= k < self.frozen[1]:
                x_hat = x - self.adversary * corner * c.estimate_error
            z = x_hat
            for u in pending:
                z = t.program("step", z, u)
            proposal = np.array([1.5 * np.sin(0.07 * k) + 0.3 * rng.normal()])
            kind, plan, slack = self._choose(k, z, proposal)
            if plan is not None:
                inputs, index = plan, 0
                states = [z]
                for u in plan[:N]:
                    states.append(t.program("step", states[-1], u))
                u_next = plan[0]
            else:
                index += 1
                held = index < N
                centre = states[index] if held else t.program("base_point", states[-1])
                feed = inputs[index] if held else c.base_input
                u_next = feed + GAIN @ (z - centre)
                kind, slack = Kind.CONTINUE if held else Kind.BASE, np.nan
            force, *pending = [*pending, u_next]
            self.records.append(
                StepRecord(
                    stamp_ns=round(k * D * 1e9),
                    kind=kind,
                    u_in_force=force,
                    u_next=u_next,
                    index=index,
                    slack=slack,
                    sigma=1.0,
                    x_hat=x_hat,
                    proposal=proposal,
                    z_0=None if plan is None else z,
                    ubar=plan,
                )  # fmt: skip
            )
            w = self.adversary * self.push * corner * c.disturbance
            x = t.program("step", x, force) + w
            self.worst = min(self.worst, t.program("safe_at", x, np.zeros(2)).min())
        return self.records

    def _choose(self, k: int, z: np.ndarray, proposal: np.ndarray) -> tuple[Any, Any, float]:
        t = self.t
        clipped = np.clip(proposal, -1.0, 1.0)
        safe = t.program("backup_policy", z)
        shares = np.array([[1.0], [0.75], [0.5], [0.25], [0.0]])
        first = np.where(shares == 1.0, clipped, safe + shares * (clipped - safe))
        plans = plan_of(t, np.repeat(z[None], 5, 0), first)
        found = slacks(t, np.repeat(z[None], 5, 0), plans, np.ones(5)).min(1)
        if k >= self.clip_from and found[0] < 0:
            return Kind.PROJECTED, plans[0], 0.01  # says that it holds; it does not
        if self.outage[0] <= k < self.outage[1] or not (found >= 0).any():
            return None, None, np.nan
        best = int(np.argmax(found >= 0))
        kind = Kind.BACKUP if best == 4 else Kind.BLENDED if best else Kind.PROJECTED
        if best == 0 and (clipped == proposal).all():
            kind = Kind.ACCEPT
        return kind, plans[best], float(found[best])


def write(
    folder: Path, records: list[StepRecord], key: bytes | None = None,
    edit: Callable[[dict[str, Any]], dict[str, Any]] = lambda h: h,
) -> list[bytes]:  # fmt: skip
    """The chain of a flight, one piece of bytes per record and the closing ones."""
    writer = ChainWriter(edit(header(folder)), key)
    pieces = [writer.append(record) for record in records]
    pieces.append(writer.close())
    assert not writer.faults, writer.last_fault
    return pieces
