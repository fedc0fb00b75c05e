"""Terms of docs/theory.md that the generator must not lose, each against a number by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from safe_rl_core.program import Program, parse
from safe_rl_systems.verification.assumptions import Assumptions
from safe_rl_systems.verification.base_problem import BaseProblem
from safe_rl_systems.verification.sampling import sampling_margin

PERIOD = 0.1
#: A cart on a straight line, safe left of 1: the push is its acceleration.
CART = """safe_rl_program 1
function dynamics(x:2, u:1)
v0 = input x 1
v1 = input u 0
v2 = const 1.0
v3 = mul v2 v0
v4 = mul v2 v1
return v3 v4
function safe_set(x:2)
v0 = input x 0
v1 = const 1.0
v2 = sub v1 v0
return v2
function safe_at(z:2, e:2)
v0 = input z 0
v1 = input e 0
v2 = add v0 v1
v3 = const 1.0
v4 = sub v3 v2
return v4
function error_map(s:1, e:2, v:1, w:2)
v0 = input e 0
v1 = input e 1
v2 = input v 0
v3 = const 0.1
v4 = const 0.005
v5 = mul v3 v1
v6 = mul v4 v2
v7 = add v0 v5
v8 = add v7 v6
v9 = mul v3 v2
v10 = add v1 v9
v11 = input w 0
v12 = input w 1
v13 = add v8 v11
v14 = add v10 v12
return v13 v14
"""
PUSH = np.array([0.005, 0.1])
GIVEN = Assumptions(
    period=PERIOD,
    delay_steps=1,
    jitter=0.0,
    disturbance=[0.001, 0.002],
    estimate_error=[0.01, 0.01],
    error_domain=[0.5, 0.5],
    input_domain=[1.0],
    base_extent=[0.5, 0.5],
    input_low=[-3.0],
    input_high=[2.0],
    state_low=[-1.0, -1.0],
    state_high=[1.0, 1.0],
    schedule_low=[-3.0],
    schedule_high=[2.0],
    schedule_cells=[1],
)
BASE = BaseProblem(
    program=Program(parse(CART), {}),
    schedule=np.zeros(1),
    input=np.array([0.25]),
    input_low=np.array([-3.0]),
    input_high=np.array([2.0]),
    gain=np.array([[-2.0, -2.5]]),
    factor=np.array([[5.0, 0.0], [2.0, 3.0]]),
    disturbance=np.array([0.001, 0.002]),
    tracking_error=np.array([0.01, 0.02]),
    cell_directions=np.array([[1.0, 0.0]]),
)


def test_a_row_sags_by_an_eighth_of_its_acceleration_and_by_the_disturbance() -> None:
    """Lemma 2: 1 - p bends upwards, away from its chord, only while the push is negative."""
    alone = sampling_margin(BASE.program, replace(GIVEN, disturbance=np.zeros(2)), None, 64)
    sag = PERIOD**2 / 8.0 * 3.0
    assert sag <= alone[0] <= 1.0001 * sag
    both = sampling_margin(BASE.program, GIVEN, None, 64)
    assert sag + 0.001 <= both[0] <= 1.0001 * (sag + 0.001)


def test_the_inputs_keep_room_for_gain_and_measured_error() -> None:
    """B1: what is left to the nearer bound."""
    shape = np.linalg.inv(BASE.factor @ BASE.factor.T)
    need = np.sqrt(BASE.gain @ shape @ BASE.gain.T)[0, 0] + 2.0 * 0.01 + 2.5 * 0.02
    left = 2.0 - 0.25 - need
    assert BASE.input_slack() == pytest.approx([left], rel=1e-9)
    assert BASE.input_slack()[0] <= left
    tight = replace(BASE, input_high=np.array([0.25 + need]))
    assert abs(tight.input_slack()[0]) < 1e-12


def test_what_disturbance_and_measured_error_move_in_the_norm_of_the_set() -> None:
    """B3: the cart is linear, so the worst corner is the bound."""
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=2)))
    omega, nu = BASE.perturbation_norms(-BASE.cell_reach[None], BASE.cell_reach[None])
    by_w = np.linalg.norm(signs * BASE.disturbance @ BASE.factor, axis=1).max()
    by_eta = np.linalg.norm(
        (signs * BASE.tracking_error @ BASE.gain.T) * PUSH @ BASE.factor, axis=1
    ).max()
    assert by_w <= omega[0] <= (1.0 + 1e-9) * by_w
    assert by_eta <= nu[0] <= (1.0 + 1e-9) * by_eta
