"""The whole pipeline, tiny: what it leaves, what it refuses, that it resumes bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import CertificateError, ModelError
from safe_rl_core.policy import Policy
from safe_rl_systems.robot import unicycle_robust
from safe_rl_training import learners, pipeline, proof
from safe_rl_training.montecarlo import evaluate_in_pieces
from safe_rl_training.pipeline import train
from safe_rl_training.plan import Plan
from safe_rl_training.robot_source import load_robot
from safe_rl_training.study import points, read_sweep, run_study, summarise

TINY = {"iterations": 4, "robots": 4, "periods": 8, "random_steps": 32, "update_after": 32}
OWN = Path(__file__).with_name("short_lane.py")
PLAN = Plan(
    source=str(OWN), backup="analytic", learner="sac", quick=True, threads=1,
    changes={**TINY, "batch": 16},
)  # fmt: skip


@pytest.fixture(autouse=True)
def few_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "episodes", (4, 8))


def silent(text: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "episodes", (4, 8))
        train(PLAN, out, say=silent)
    return out


def weights(out: Path) -> list[bytes]:
    """What the exported network computes with; its notes may differ in the sources' hash."""
    graph = onnx.load(out / "phase2" / "policy.onnx").graph
    return [tensor.SerializeToString() for tensor in graph.initializer]


def test_it_leaves_a_bundle_that_loads_and_an_account_of_itself(finished: Path) -> None:
    bundle = Bundle.load(finished / "short_lane")
    policy = Policy(bundle)
    x = bundle.program("initial_state", np.zeros((1, 3)))[0]
    assert np.isfinite(policy.act(x, 0.0)).all()
    record = json.loads((bundle.path / "training.json").read_text())
    assert record["phase2"]["violations"] == 0 < record["phase2"]["env_steps"]
    assert set(record["evaluation"]) == {"ps2", "backup", "stop", "unshielded"}
    assert record["provenance"]["command"].startswith("safe-rl train ps2 short_lane.py --seed 0")
    assert {"phase1", "phase2", "evaluation"} <= set(record["seconds"])
    assert str(finished) not in json.dumps(record)  # nothing of this machine's folders
    card = (bundle.path / "CARD.md").read_text()
    for words in ("A quick run", "Where it fails", "0 states outside of the safe set", "of 8 |"):
        assert words in card
    assert (finished / "learning_curve.png").stat().st_size > 1000


def test_an_interrupted_and_resumed_run_gives_the_same_bundle(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, make = tmp_path / "run", learners.make

    def interrupted(*arguments: Any) -> Any:
        learner = make(*arguments)
        iterate = learner.iterate

        def once() -> dict[str, float]:
            if learner.iteration == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return iterate()

        learner.iterate = once
        return learner

    monkeypatch.setattr(learners, "make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(PLAN, out, say=silent)
    monkeypatch.undo()
    monkeypatch.setattr(Plan, "episodes", (4, 8))
    assert not (out / "short_lane").exists()
    with pytest.raises(ModelError, match="--resume, or name another --out"):
        train(PLAN, out, say=silent)
    with pytest.raises(ModelError, match="seed 0, now 1"):
        train(replace(PLAN, seed=1), out, resume=True, say=silent)
    record = train(PLAN, out, resume=True, say=silent)
    assert weights(out) == weights(finished)
    expected = json.loads((finished / "training.json").read_text())
    timeless = ("iterations", "env_steps", "validations", "best_return", "best_at_iteration")
    assert all(record["phase2"][k] == expected["phase2"][k] for k in timeless)


def test_an_evaluation_in_pieces_is_that_of_one_go(finished: Path) -> None:
    names = ("ps2", "unshielded")
    found = evaluate_in_pieces(
        finished, PLAN.source, PLAN.backup, {name: pipeline.PROPOSALS[name] for name in names},
        episodes=8, seed=pipeline.EVALUATION_SEED, threads=1, cluster=None, piece=3, say=silent,
    )  # fmt: skip
    expected = json.loads((finished / "training.json").read_text())["evaluation"]
    assert len(list((finished / "evaluation").iterdir())) == 6
    for name in names:
        assert set(found[name]) == set(expected[name]) - {"steps_per_s"}
        for key, value in found[name].items():
            near = pytest.approx(value, rel=1e-6) if isinstance(value, float | dict) else value
            assert expected[name][key] == near, key


def test_a_finished_run_is_not_run_again(finished: Path) -> None:
    said: list[str] = []
    before = (finished / "training.json").read_bytes()
    train(PLAN, finished, resume=True, say=said.append)
    assert "is finished" in said[0] and len(said) == 1
    assert (finished / "training.json").read_bytes() == before


def test_a_violation_in_training_leaves_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = learners.make

    def unsafe(*arguments: Any) -> Any:
        learner: Any = make(*arguments)
        learner.env.violations = 1
        return learner

    monkeypatch.setattr(learners, "make", unsafe)
    with pytest.raises(ModelError, match="1 states outside of the safe set"):
        train(PLAN, tmp_path / "run", say=silent)
    assert not (tmp_path / "run" / "short_lane").exists()


def test_what_is_asked_for_is_checked_first(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no learner 'dqn'; choose one of staged"):
        replace(PLAN, learner="dqn")
    with pytest.raises(ModelError, match="no backup 'none'; choose one of"):
        replace(PLAN, backup="none")
    with pytest.raises(ModelError, match="staged runs on the CPU"):
        Plan(source="unicycle_lane", device="cuda")
    with pytest.raises(ModelError, match=r"no run in .*; start it without --resume"):
        train(PLAN, tmp_path / "run", resume=True)
    with pytest.raises(ModelError, match="sac has no setting speed; it has iterations"):
        train(replace(PLAN, changes={"speed": 1}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_the_robot_lacks_for_its_backup_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    robot = load_robot(str(OWN))
    bare = SimpleNamespace(states=robot.system.states, period=robot.system.period)
    for changes, backup, reason in (
        ({"backup_policy": lambda x: robot.backup_policy(x)}, "tuned", "attribute `tunable`"),
        ({"system": bare}, "learned", "SimpleNamespace has no method features"),
    ):
        lacking = replace(robot, **changes)
        monkeypatch.setattr(pipeline, "load_robot", lambda _, found=lacking: found)
        with pytest.raises(ModelError, match=reason):
            train(replace(PLAN, backup=backup), tmp_path / "run", say=silent)
        assert not (tmp_path / "run").exists()


def test_a_robot_of_ones_own_file(tmp_path: Path) -> None:
    path, text = tmp_path / "my_robot.py", OWN.read_text()
    path.write_text(text)
    assert load_robot(str(path)).name == load_robot(f"{path}:short_lane").name == "short_lane"
    with pytest.raises(ModelError, match=r"no function 'fast'; name one of .*:short_lane"):
        load_robot(f"{path}:fast")
    with pytest.raises(ModelError, match="no robot 'boat': expected one of quadrotor_powerloop"):
        load_robot("boat")
    with pytest.raises(ModelError, match="no file"):
        load_robot(str(tmp_path / "other.py"))
    path.write_text(text + "\ndef other() -> Robot:\n    return short_lane()\n")
    with pytest.raises(ModelError, match=r"more than one robot; name one of .*, .*:other"):
        load_robot(str(path))
    path.write_text("x = (")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_robot(str(path))
    path.write_text("def boat(): ...")
    with pytest.raises(ModelError, match="defines no robot"):
        load_robot(str(path))


@pytest.mark.slow
def test_a_robust_robot_gets_its_certificate_before_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, order = tmp_path / "run", []
    prove, make = pipeline.prove, learners.make
    monkeypatch.setattr(
        pipeline, "prove", lambda *a, **k: (order.append("proof"), prove(*a, **k))[1]
    )
    monkeypatch.setattr(learners, "make", lambda *a: (order.append("learner"), make(*a))[1])
    backup_of = pipeline.backup_of
    monkeypatch.setattr(
        pipeline, "backup_of", lambda *a, **k: (order.append("phase I"), backup_of(*a, **k))[1]
    )
    # A robot of one's own: no bundle of this name is shipped.
    monkeypatch.setattr(
        pipeline, "load_robot", lambda _: replace(unicycle_robust(), name="own_robust")
    )
    record = train(replace(PLAN, source="own_robust", backup="learned"), out, say=silent)
    assert order == ["proof", "phase I", "proof", "learner"]
    bundle = Bundle.load(out / "own_robust")
    assert bundle.robust is not None
    assert record["phase1"]["judged_by"] == "VALID"
    assert record["certificate"]["command"] == record["provenance"]["command"]
    robot = replace(unicycle_robust(), name="own_robust")
    said: list[str] = []
    before = proof.prove(robot, out / "certificate", 1, {}, say=said.append)
    assert said == ["  as it was proved before"]
    # The program is another one, and no number of its certificate is.
    assert before.program.hash != bundle.program.hash == bundle.robust.program
    first, last = vars(before.robust), vars(bundle.robust)
    for name in set(first) - {"program", "base", "provenance"}:
        np.testing.assert_array_equal(first[name], last[name], err_msg=name)
    # What cannot be proved is not trained on.
    assert robot.robust is not None
    worse = replace(robot.robust, disturbance=tuple(9.0 * w for w in robot.robust.disturbance))
    with pytest.raises(CertificateError, match="the base set is"):
        proof.prove(replace(robot, robust=worse), out / "certificate", 1, {}, say=silent)


def test_seeds_are_summarised_and_never_counted_twice(tmp_path: Path) -> None:
    out = tmp_path / "study"
    said: list[str] = []
    summary = run_study(PLAN, out, seeds=2, grid={}, say=said.append)
    assert json.loads((out / "summary.json").read_text()) == summary
    figures = summary["points"]["short_lane"]
    values = figures["return"]["values"]
    assert len(values) == 2 and figures["return"]["mean"] == pytest.approx(sum(values) / 2)
    assert figures["return"]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert figures["training violations"]["mean"] == 0.0
    assert any(line.startswith("  return") for line in said)
    with pytest.raises(ModelError, match="--resume, or name another"):
        run_study(PLAN, out, seeds=2, grid={})
    shutil.rmtree(out / "seed=0")  # its result is kept under its key
    assert run_study(PLAN, out, seeds=2, grid={}, resume=True, say=silent) == summary
    assert not (out / "seed=0").exists()


def test_a_sweep_is_a_grid_of_options_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("learner: [sac, ppo]\ndiscount: [0.98, 0.99]\n")
    found = points(replace(PLAN, changes={}), read_sweep(path))
    assert list(found) == [
        f"learner={name},discount={value}" for name in ("sac", "ppo") for value in (0.98, 0.99)
    ]
    assert found["learner=ppo,discount=0.98"].changes == {"discount": 0.98}
    with pytest.raises(ModelError, match="ppo has no setting replay"):
        points(replace(PLAN, changes={}), {"learner": ["ppo"], "replay": [100]})
    for text, reason in (("- 1", "per line"), ("a: 1", "must be a list"), ("a: [", "no YAML")):
        path.write_text(text)
        with pytest.raises(ModelError, match=reason):
            read_sweep(path)
    with pytest.raises(ModelError, match="no sweep file"):
        read_sweep(tmp_path / "none.yaml")


def test_a_summary_by_hand() -> None:
    results = [{"minutes": 1.0}, {"minutes": 3.0}]
    assert summarise(results) == {
        "minutes": {"mean": 2.0, "std": pytest.approx(2.0**0.5), "values": [1.0, 3.0]}
    }
    assert summarise(results[:1])["minutes"]["std"] is None
