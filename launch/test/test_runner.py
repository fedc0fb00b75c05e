"""The runner with small real processes and real signals in the place of nodes."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safe_rl.runner import LOST_NODE, ros_environment, run_stack
from safe_rl.stack import NodeSpec, StackError

NODES = {
    "ends_well": "print('landed')",
    "ends_badly": "print('violated'); sys.exit(7)",
    "crashes": "print('one'); print('two', file=sys.stderr); raise RuntimeError('no bundle')",
    "crashes_late": "time.sleep(0.5); sys.exit(9)",
    "ends_late": "time.sleep(1.0); print('landed')",
    "runs": "signal.signal(signal.SIGINT, end); print('up'); time.sleep(60)",
    "ignores_int": "signal.signal(signal.SIGINT, signal.SIG_IGN); print('up'); time.sleep(60)",
    "stubborn": (
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up'); time.sleep(60)"
    ),
    "has_child": (
        "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\n"
        "signal.signal(signal.SIGINT, end); print('child', child.pid); time.sleep(60)"
    ),
    "says": (
        "print(sys.argv[1:]); print(os.environ['HELLO']); print('x' * 100_000)\n"
        "print('no end', end='')"
    ),
}
HEAD = """import os, signal, sys, time
def end(number, frame):
    print('told to end'); sys.exit(0)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the modules above, importable here and in the children."""
    for name, body in NODES.items():
        (tmp_path / f"dummy_{name}.py").write_text(HEAD + body + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def node(kind: str, name: str = "", **more: object) -> NodeSpec:
    return NodeSpec("dummy", name or kind, f"dummy_{kind}", **more)


def run(folder: Path, *specs: NodeSpec) -> tuple[int, list[str]]:
    lines: list[str] = []
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1", "HELLO": "hi"}
    code = run_stack(specs, env=env, echo=lines.append)
    return code, lines


def gone(pid: int) -> bool:
    """True when the process runs no more (a zombie does not), at the latest 5 s from now."""
    stat, deadline = Path(f"/proc/{pid}/stat"), time.monotonic() + 5.0
    while time.monotonic() < deadline:
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def patient(monkeypatch: pytest.MonkeyPatch, after_int: float, after_term: float) -> None:
    """Shorten the seconds that the nodes are given."""
    steps = (signal.SIGINT, after_int), (signal.SIGTERM, after_term), (signal.SIGKILL, 2.0)
    monkeypatch.setattr("safe_rl.runner.STEPS", steps)


@pytest.mark.parametrize(("kind", "code"), [("ends_well", 0), ("ends_badly", 7)])
def test_code_is_that_of_the_node_that_ends_the_stack(folder: Path, kind: str, code: int) -> None:
    got, lines = run(folder, node("runs"), node(kind, ends_stack=True))
    assert got == code
    assert f"[{kind}] {'landed' if code == 0 else 'violated'}" in lines
    assert not [line for line in lines if "exit code" in line]


def test_others_are_told_to_end(folder: Path) -> None:
    code, lines = run(folder, node("runs"), node("ends_late", ends_stack=True))
    assert code == 0
    assert lines[-1] == "[runs] told to end"


def test_a_required_node_that_dies_stops_the_stack_and_is_reported(folder: Path) -> None:
    start = time.monotonic()
    code, lines = run(folder, node("crashes"), node("runs", ends_stack=True))
    assert code == 1
    assert time.monotonic() - start < 5.0
    report = next(line for line in lines if "exit code 1" in line)
    assert report.startswith("crashes ended after")
    assert "one" in report and "two" in report and "RuntimeError: no bundle" in report


def test_a_required_node_that_ends_with_zero_too_early_is_a_failure(folder: Path) -> None:
    code, _ = run(folder, node("ends_well"), node("runs", ends_stack=True))
    assert code == 1


def test_a_node_that_is_not_required_may_die_but_is_not_forgotten(folder: Path) -> None:
    specs = node("crashes_late", required=False), node("ends_late", ends_stack=True)
    code, lines = run(folder, *specs)
    assert code == LOST_NODE
    assert "going on without crashes_late" in lines
    assert "[ends_late] landed" in lines


def test_a_violation_outranks_a_lost_node(folder: Path) -> None:
    (folder / "dummy_violates_late.py").write_text(HEAD + "time.sleep(1.0); sys.exit(1)\n")
    specs = node("crashes", required=False), node("violates_late", ends_stack=True)
    assert run(folder, *specs)[0] == 1


def test_a_node_that_ignores_sigint_gets_sigterm(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "safe_rl.runner.STEPS",
        ((signal.SIGINT, 0.3), (signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)),
    )
    code, _ = run(folder, node("ignores_int"), node("ends_late", ends_stack=True))
    assert code == 0


def test_a_stubborn_node_is_killed_and_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "safe_rl.runner.STEPS",
        ((signal.SIGINT, 0.2), (signal.SIGTERM, 0.2), (signal.SIGKILL, 2.0)),
    )
    code, lines = run(folder, node("stubborn"), node("ends_late", ends_stack=True))
    assert code == LOST_NODE
    assert any(line.startswith("stubborn ended") and "137" in line for line in lines)


def test_what_a_node_started_itself_does_not_stay(folder: Path) -> None:
    _, lines = run(folder, node("has_child"), node("ends_late", ends_stack=True))
    pid = next(int(line.split()[-1]) for line in lines if "child" in line)
    assert gone(pid)


def test_arguments_environment_and_long_lines_arrive(folder: Path) -> None:
    wiring = folder / "wiring.yaml"
    spec = node(
        "says",
        "talker",
        parameters={"bundle": "1", "seed": 3, "gui": False, "noise": 2.0, "who": ("a", "b")},
        remappings=(("odom", "vehicle/odom"),),
        parameter_file=wiring,
        ends_stack=True,
    )
    code, lines = run(folder, spec)
    assert code == 0
    words = ast.literal_eval(lines[0].partition(" ")[2])
    assert words[:3] == ["--ros-args", "-r", "__node:=talker"]
    assert words[3:7] == ["-r", "odom:=vehicle/odom", "--params-file", str(wiring)]
    assert words[8::2] == [
        'bundle:="1"', "seed:=3", "gui:=false", "noise:=2.0", 'who:=["a", "b"]',
    ]  # fmt: skip
    assert lines[1] == "[talker] hi"
    assert lines[2] == "[talker] " + "x" * 100_000
    assert lines[3] == "[talker] no end"


def test_same_name_twice_is_refused(folder: Path) -> None:
    with pytest.raises(StackError, match="unique"):
        run(folder, node("runs", "a"), node("ends_well", "a"))


def test_a_module_that_is_not_installed_is_refused_before_anything_starts(folder: Path) -> None:
    with pytest.raises(StackError, match="make run"):
        run(folder, node("runs"), NodeSpec("gone", "gone", "no_such_package.node"))


SCRIPT = """
import os, sys
from safe_rl.runner import run_stack
from safe_rl.stack import NodeSpec
specs = [NodeSpec("dummy", n, "dummy_runs", ends_stack=n == "b") for n in ("a", "b")]
print("pid", os.getpid(), flush=True)
sys.exit(run_stack(specs, env=dict(os.environ), echo=lambda line: print(line, flush=True)))
"""


def start_script(folder: Path) -> tuple[subprocess.Popen, list[int]]:
    """A runner in a process of its own, with its two nodes up, and the numbers of those."""
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    runner = int(process.stdout.readline().split()[1])
    assert {process.stdout.readline(), process.stdout.readline()} == {"[a] up\n", "[b] up\n"}
    listed = Path(f"/proc/{runner}/task/{runner}/children").read_text().split()
    assert len(listed) == 2
    return process, [int(pid) for pid in listed]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_everything(folder: Path, number: signal.Signals, code: int) -> None:
    process, pids = start_script(folder)
    process.send_signal(number)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == code
    assert output.count("told to end") == 2
    assert all(gone(pid) for pid in pids)


def test_nodes_die_with_a_runner_that_is_killed(folder: Path) -> None:
    process, pids = start_script(folder)
    process.kill()
    process.wait()
    assert all(gone(pid) for pid in pids)


def test_environment_keeps_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "77")
    monkeypatch.delenv("ROS_AUTOMATIC_DISCOVERY_RANGE", raising=False)
    monkeypatch.delenv("FASTRTPS_DEFAULT_PROFILES_FILE", raising=False)
    env = ros_environment()
    assert env["ROS_DOMAIN_ID"] == "77"
    assert env["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert env["ROS_PYTHON_CHECK_FIELDS"] == "1"
    assert Path(env["FASTRTPS_DEFAULT_PROFILES_FILE"]).name == "fastdds_profile.xml"
    monkeypatch.delenv("ROS_DOMAIN_ID")
    assert 1 <= int(ros_environment()["ROS_DOMAIN_ID"]) <= 100
    vehicle = ros_environment(private=False)
    assert "ROS_DOMAIN_ID" not in vehicle
    assert "ROS_AUTOMATIC_DISCOVERY_RANGE" not in vehicle
