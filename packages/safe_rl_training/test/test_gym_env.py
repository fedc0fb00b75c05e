"""The Gymnasium wrapper: gymnasium's own checker, and Stable-Baselines3 for real."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.robot import ROBOTS

gymnasium = pytest.importorskip("gymnasium")
from gymnasium.utils.env_checker import check_env  # noqa: E402
from safe_rl_training.gym_env import ShieldedGymEnv  # noqa: E402

PAGE = Path(__file__).parents[3] / "docs" / "gymnasium.md"
NAME = "unicycle_lane_paper"


@cache
def env() -> ShieldedGymEnv:
    """One env for all tests: every one of them begins with a reset."""
    return ShieldedGymEnv(NAME)


def test_gymnasiums_own_checker_finds_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Observations in SI units have no bounds, which the checker would rather see.
        warnings.filterwarnings("ignore", message=r".*Box observation space (min|max)imum value")
        made = gymnasium.make(f"safe_rl_training.gym_env:safe_rl/{NAME}-v0")
        check_env(made.unwrapped, skip_render_check=True)


def test_every_robot_is_registered() -> None:
    assert {f"safe_rl/{name}-v0" for name in ROBOTS} <= set(gymnasium.registry)


def test_actions_are_those_of_the_unit_box() -> None:
    """accel in ± 5 m/s², turn rate in ± 1 rad/s; gentle inputs pass at the start of the task."""
    env().reset(seed=0)
    info = env().step(np.array([0.1, -0.1], np.float32))[4]
    np.testing.assert_allclose(info["action"], [0.5, -0.1], rtol=1e-6)
    assert info["verdict"] == "PASSED" and info["margin"] > 0.0 and info["violation"] is False


def test_the_worst_proposals_are_blocked_and_the_time_limit_truncates() -> None:
    """Full throttle and full turn for an episode; nan proposes nothing and gets the backup."""
    env().reset(seed=1)
    verdicts, ends = set(), []
    for k in range(400):
        action = np.array([1.0, 1.0 if k % 80 < 40 else -1.0], np.float32)
        action = np.full(2, np.nan, np.float32) if k == 7 else action
        _, _, terminated, truncated, info = env().step(action)
        verdicts.add(info["verdict"])
        ends.append(truncated)
        assert not terminated and not info["violation"] and info["margin"] >= -1e-9
        assert (info["verdict"] == "BACKUP") or k != 7
    assert verdicts >= {"PROJECTED", "BACKUP"} and ends == [False] * 399 + [True]
    assert env().violations == 0


def test_violations_are_counted_over_resets() -> None:
    """Of a safe set that the shield does not know: no state is in it."""
    flying = ShieldedGymEnv(NAME)
    flying.reset(seed=0)
    kernel = flying._env.kernel
    flying._env.kernel = Narrow(kernel)
    found = [flying.step(np.zeros(2))[4]["violation"] for _ in range(3)]
    assert found == [True] * 3 and flying.violations == 3
    flying._env.kernel = kernel
    flying.reset()
    assert flying.violations == 3


class Narrow:
    """A kernel for which every state is unsafe."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)

    def evaluate(self, name: str, *inputs: np.ndarray) -> np.ndarray:
        out = self._kernel.evaluate(name, *inputs)
        return out - 100.0 if name == "safe_set" else out


def test_an_unknown_robot_is_named() -> None:
    with pytest.raises(ModelError, match=r"no robot 'boat': expected one of quad"):
        ShieldedGymEnv("boat")


def test_what_is_not_installed_is_named() -> None:
    """As on a machine without the packages: their import fails."""
    code = """
import sys
from importlib import import_module
from safe_rl_core.errors import ModelError
for module, package in (("sb3", "stable_baselines3"), ("gym_env", "gymnasium")):
    sys.modules[package] = None
    sys.modules.pop("safe_rl_training.gym_env", None)
    try:
        import_module(f"safe_rl_training.{module}")
    except ModelError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert len(said) == 2, done.stdout + done.stderr
    assert 'needs Stable-Baselines3, which is not installed: "pip install stable-ba' in said[0]
    assert 'needs gymnasium, which is not installed: "pip install gymnasium"' in said[1]


def snippet(page: str, number: int) -> str:
    """The python block of that number."""
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)[number]


def test_stable_baselines3_learns_behind_the_shield_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's own code: a run of a few thousand steps, zero violations, the same policy out."""
    pytest.importorskip("stable_baselines3")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(snippet(PAGE.read_text(), 0), str(PAGE), "exec"), found)
    robots, model, network = found["robots"], found["model"], found["network"]
    assert robots.violations == 0 and model.num_timesteps >= 4000
    assert (tmp_path / "policy.onnx").is_file()
    observation = found["env"].get_original_obs()
    unit, _ = model.predict(found["env"].normalize_obs(observation), deterministic=True)
    with torch.no_grad():
        ours = network(torch.from_numpy(observation))
    expected = network.centre + network.half_range * torch.from_numpy(unit)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert float(ours.std()) > 0.0


def test_the_gymnasium_snippet_of_the_page_runs() -> None:
    found: dict[str, Any] = {}
    exec(compile(snippet(PAGE.read_text(), 1), str(PAGE), "exec"), found)
    assert found["env"].unwrapped.violations == 0


def test_the_ends_of_many_robots_are_time_limits() -> None:
    sb3 = pytest.importorskip("safe_rl_training.sb3")
    robots = sb3.ShieldedVecEnv(NAME, 3, duration=0.2)
    robots.seed(5)
    first = robots.reset()
    for _ in range(3):
        robots.step_async(np.zeros((3, 2), np.float32))
        assert not robots.step_wait()[2].any()
    robots.step_async(np.zeros((3, 2), np.float32))
    after, _, ended, infos = robots.step_wait()
    assert ended.all() and all(info["TimeLimit.truncated"] for info in infos)
    assert not np.allclose(infos[1]["terminal_observation"], after[1])
    robots.seed(5)
    assert np.array_equal(robots.reset(), first)
    assert not np.array_equal(robots.reset(), first)
    assert robots.get_attr("violations", [0, 2]) == [0, 0]


def test_policies_that_a_bundle_cannot_hold_are_refused() -> None:
    sb3 = pytest.importorskip("safe_rl_training.sb3")
    robot, linear = ROBOTS[NAME](), torch.nn.Linear
    model = SimpleNamespace(policy=SimpleNamespace(), get_vec_normalize_env=lambda: None)
    with pytest.raises(ModelError, match="train with SAC, TD3 or DDPG"):
        sb3.policy_network(model, robot)
    relu = torch.nn.ReLU()
    for latent in ([linear(8, 4), relu], [linear(8, 4), relu, linear(4, 5), relu]):
        model.policy.actor = SimpleNamespace(latent_pi=latent, mu=linear(5, 2))
        with pytest.raises(ModelError, match="two hidden layers of the same width"):
            sb3.policy_network(model, robot)
    latent = [linear(8, 5), torch.nn.ELU(), linear(5, 5), torch.nn.ELU()]
    model.policy.actor = SimpleNamespace(latent_pi=latent, mu=linear(5, 2))
    with pytest.raises(ModelError, match="got 'ELU'"):
        sb3.policy_network(model, robot)
