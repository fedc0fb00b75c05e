"""The benchmarks' own arithmetic, and one short run of each script."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1]
sys.path.insert(0, str(FOLDER))

from safe_rl_core.program import Program, parse  # noqa: E402
from toolbox.flops import function_flops  # noqa: E402
from toolbox.report import Report, Table, Target, text, write_between_markers  # noqa: E402
from toolbox.timing import quantiles, round_robin  # noqa: E402

PROGRAM = """safe_rl_program 1
function f(x:2, u:1)
v0 = input x 0
v1 = input x 1
v2 = const 3.0
v3 = mul v0 v1
v4 = mul v3 v2
v5 = sin v4
v6 = input u 0
v7 = add v5 v6
d8 = dense layer tanh v0 v1
v9 = element d8 0
return v7 v9
"""


@pytest.fixture
def program() -> Program:
    weights = {"layer.weight": np.ones((3, 2)), "layer.bias": np.zeros(3)}
    return Program(parse(PROGRAM), weights)


def test_flops_counted_by_hand(program: Program) -> None:
    # mul, mul, sin, add: 4; layer: 2 * 3 * 2 and three tanh
    assert function_flops(program, "f") == 4 + 12 + 3
    # per direction: x * y 3, times constant 1, sin 1, sum with a constant u 0; the sine's slope 1;
    # layer: 2 * 3 * 2 and the product with the slope 3; the slopes 1 - y² 2 * 3
    assert function_flops(program, "f", ("x",), 5) == 19 + 5 * (3 + 1 + 1) + 1 + 5 * (12 + 3) + 6
    # only u varies: one sum, which costs nothing more
    assert function_flops(program, "f", ("u",), 5) == 19


def test_round_robin_gives_everybody_every_input() -> None:
    heard: list[tuple[str, int]] = []
    calls = {name: (lambda i, name=name: heard.append((name, i))) for name in "ab"}
    times = round_robin(calls, (4, 7, 9), repetitions=2, block=2)
    first = [("a", 4), ("a", 7), ("b", 4), ("b", 7), ("a", 9), ("b", 9)]
    turned = [("a", 7), ("a", 4), ("b", 7), ("b", 4), ("a", 9), ("b", 9)]
    assert heard == first + turned
    assert times["a"].shape == (2, 3) and (times["b"] >= 0.0).all()


def test_quantiles_of_nothing_are_not_numbers() -> None:
    assert np.isnan(quantiles([])["p99"])
    assert quantiles([1.0, 2.0, 4.0])["p50"] == 2.0


def test_a_report_is_markdown_and_json(tmp_path: Path) -> None:
    machine = {
        "processor": "p", "cores": 2, "load": 0.1, "commit": "c", "python": "3",
        "compiler": "cc", "versions": {"numpy": "2"},
    }  # fmt: skip
    report = Report("name", "question?", machine)
    report.tables.append(
        Table("title", ("by", "µs"), [["ours", 12.345], ["theirs", float("nan")]])
    )
    report.targets += [Target("a", 3.0, ">=", 4.0, "×"), Target("b", float("nan"), "<=", 1.0)]
    assert "| ours | 12.3 |" in report.markdown() and "| theirs | – |" in report.markdown()
    data = json.loads(report.finish().json())
    assert [t["met"] for t in data["targets"]] == [False, False]
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin name -->\nold\n<!-- end name -->\nafter\n")
    write_between_markers(page, "name", "new")
    assert page.read_text() == "before\n<!-- begin name -->\n\nnew\n\n<!-- end name -->\nafter\n"
    with pytest.raises(ValueError, match="begin other"):
        write_between_markers(page, "other", "new")


@pytest.mark.parametrize(
    ("cell", "expected"), [(0.0, "0"), (1.5, "1.50"), (1e-16, "1.0e-16"), (12345, "12 345")]
)
def test_numbers_have_three_digits(cell: float, expected: str) -> None:
    assert text(cell) == expected


def test_every_script_has_its_place_in_the_page() -> None:
    page = (FOLDER / "README.md").read_text()
    spec = importlib.util.spec_from_file_location("benchmarks_main", FOLDER / "__main__.py")
    benchmarks_main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmarks_main)
    for name in (*benchmarks_main.SCRIPTS, *benchmarks_main.LONG, *benchmarks_main.PRINTING):
        assert f"<!-- begin {name} -->" in page and f"<!-- end {name} -->" in page


def _run(script: str, *arguments: str, target: Path) -> dict:
    command = [sys.executable, str(FOLDER / script), "--quick", "--json", str(target), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(target.read_text())


@pytest.mark.slow
def test_shield_step_runs(tmp_path: Path) -> None:
    answer = _run("shield_step.py", target=tmp_path / "a.json")
    numbers = answer["numbers"]["quadrotor_analytic_100"]
    assert numbers["worst_violation"] <= 1e-9
    assert numbers["ratio"] > 1.0, "faster than the machine's peak: the flops are miscounted"
    assert answer["numbers"]["quadrotor_neural_100"]["ratio"] > 1.0


@pytest.mark.slow
def test_peers_agree_and_run(tmp_path: Path) -> None:
    pytest.importorskip("jax", reason="the peers are installed by make bench")
    pytest.importorskip("casadi", reason="the peers are installed by make bench")
    pytest.importorskip("qpax", reason="the peers are installed by make bench")
    answer = _run("peers.py", target=tmp_path / "a.json")
    assert answer["numbers"]["rollout_unicycle_neural_50"]["ours"]["ratio"] == 1.0


@pytest.mark.slow
def test_robust_runs(tmp_path: Path) -> None:
    answer = _run("robust.py", "--jobs", "2", target=tmp_path / "a.json")
    for robot in ("unicycle_robust", "quadrotor_robust"):
        scores = answer["numbers"][robot]
        assert scores["adversarial / robust"]["runs"] == scores["policy / robust"]["runs"] == 20
        assert scores["adversarial / robust"]["unsafe"] == 0.0
        assert scores["policy / robust"]["no_way_out"] == 0.0
    # the comparison means something only if others do leave the safe set
    assert answer["numbers"]["unicycle_robust"]["policy / backup-CBF QP"]["unsafe"] > 0.0


def test_robust_goes_on_where_it_stopped(tmp_path: Path) -> None:
    memory = tmp_path / "blocks.jsonl"
    options = ("--jobs", "1", "--bundles", "unicycle_robust", "--resume", str(memory))
    first = _run("robust.py", *options, target=tmp_path / "a.json")
    assert len(memory.read_text().splitlines()) == 1
    again = _run("robust.py", *options, target=tmp_path / "b.json")
    assert len(memory.read_text().splitlines()) == 1
    assert again["numbers"] == first["numbers"]


@pytest.mark.slow
def test_evidence_is_accepted(tmp_path: Path) -> None:
    answer = _run("evidence.py", target=tmp_path / "a.json")
    assert answer["numbers"]["unicycle_robust"]["accepted"]
    assert answer["numbers"]["quadrotor_robust"]["accepted"]


@pytest.mark.slow
def test_certification_runs(tmp_path: Path) -> None:
    answer = _run("certification.py", target=tmp_path / "a.json")
    rows = {row[0]: row[1] for table in answer["tables"] for row in table["rows"]}
    assert rows["unicycle_robust"] == "proved"


@pytest.mark.slow
@pytest.mark.ros
def test_ros_round_trip_runs(tmp_path: Path) -> None:
    pytest.importorskip("rclpy")
    answer = _run("ros_round_trip.py", "--periods", "200", target=tmp_path / "a.json")
    assert answer["numbers"]["lockstep"]["chain alone"] > 10.0
    assert answer["numbers"]["100 Hz"]["state_to_command_us"]["p50"] > 0.0
