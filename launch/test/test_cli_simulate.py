"""`safe-rl simulate` and `safe-rl inspect` on the committed bundles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safe_rl import scores
from safe_rl.cli import main
from safe_rl.episodes import Episode
from safe_rl_core.record import FlightLog

MODELS = Path(__file__).parents[2] / "models"
LANE, LOOP = str(MODELS / "unicycle_lane"), str(MODELS / "quadrotor_powerloop")


def simulate(folder: Path, *words: str) -> tuple[int, dict]:
    code = main(["simulate", *words, "--json", str(folder / "scores.json")])
    return code, json.loads((folder / "scores.json").read_text())


def test_result_does_not_depend_on_the_number_of_jobs(tmp_path: Path) -> None:
    words = (LANE, "--episodes", "6", "--seed", "11", "--policy", "random")
    (one_code, one), (two_code, two) = (simulate(tmp_path, *words, "--jobs", n) for n in "12")
    for result in (one, two):  # what depends on the machine, not on the flight
        for key in ("wall_s", "shield_us"):
            del result[key]
    assert one == two
    assert one_code == two_code == 0
    assert one["episodes"] == 6
    assert one["unsafe_episodes"] == 0


def test_an_episode_can_be_flown_again(tmp_path: Path) -> None:
    words = ("--policy", "adversarial", "--jobs", "1", "--log", str(tmp_path / "worst.npz"))
    _, many = simulate(tmp_path, LANE, "--episodes", "3", "--seed", "5", *words)
    log = FlightLog.load(tmp_path / "worst.npz")
    seed = str(many["worst_seed"])
    _, single = simulate(tmp_path, LANE, "--episodes", "1", "--seed", seed, *words)
    again = FlightLog.load(tmp_path / "worst.npz")
    np.testing.assert_array_equal(log.x_true, again.x_true)
    assert single["worst_margin"] == many["worst_margin"]


def test_unshielded_says_so_and_does_not_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (LANE, "--episodes", "2", "--policy", "random", "--no-shield", "--jobs", "1")
    code, result = simulate(tmp_path, *words)
    assert code == 0
    assert not result["shielded"]
    assert result["shield_us"] is None
    assert result["unsafe_episodes"] == 2
    assert "UNSHIELDED" in capsys.readouterr().out


def test_paper_flies_the_paper_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--plant", "paper", "--policy", "random", "--episodes", "1", "--jobs", "1")
    code, result = simulate(tmp_path, LANE, *words)
    assert code == 0
    assert result["bundle"] == "unicycle_lane_paper"
    assert result["steps_per_episode"] == 400
    assert "the paper variant of unicycle_lane" in capsys.readouterr().out


def test_table_has_every_score(capsys: pytest.CaptureFixture[str]) -> None:
    main(["simulate", LANE, "--episodes", "4", "--policy", "random", "--jobs", "1"])
    out = capsys.readouterr().out
    for words in (
        "safety probability", "95 % interval", "3/N = 0.75", "violations", "worst margin",
        "return", "RMSE", "verdicts", "reasons", "fallback rate", "changes of verdict", "slack",
        "p50", "p99", "max", "certificate: none (nominal)",
    ):  # fmt: skip
        assert words in out, words


@pytest.mark.sim
def test_laps_in_bullet(tmp_path: Path) -> None:
    pytest.importorskip("pybullet")
    words = ("--plant", "bullet", "--laps", "2", "--episodes", "1", "--jobs", "1", "--noise", "1")
    _, result = simulate(tmp_path, LOOP, *words)
    assert result["steps_per_episode"] == 210  # 2 laps of 2.0944 s in periods of 0.02 s
    assert result["noise"] == 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "no bundle 'nowhere'"),
        ((LANE, "--noise", "1"), "plant model has no noise"),
        ((LANE + "_paper", "--plant", "bullet"), "use --plant paper"),
        ((LANE, "--json", "no/such/folder/x.json"), "does not exist"),
    ],
)
def test_errors_are_one_line(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("safe-rl simulate: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["--episodes", "0"], ["--seed", "-1"], ["--policy", "none"]])
def test_wrong_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["simulate", LANE, *words])
    assert stop.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_aggregate_by_hand() -> None:
    def episode(seed: int, violations: int, margin: float, total: float, error: float) -> Episode:
        summary = {
            "steps": 10,
            "violations": violations,
            "worst_margin": margin,
            "worst_row": f"row{seed}",
            "return": total,
            "rmse": {"py": error},
            "interventions": {"PASSED": 6, "PROJECTED": 3, "BACKUP": 1},
            "reasons": {"proposal_safe": 6, "projected": 3, "no_proposal": 1},
            "mean_intervention": 0.2,
            "chatter_per_s": 2.0 * seed,
            "qp_share": 0.3,
        }
        return Episode(seed, summary, np.full(10, 100.0 * seed, dtype=np.float32))

    result = scores.aggregate([episode(1, 0, 0.5, -10.0, 3.0), episode(2, 4, -0.1, -14.0, 4.0)])
    assert result["safety_probability"] == 0.5
    assert result["unsafe_seeds"] == [2]
    assert result["violations"] == 4
    assert (result["worst_margin"], result["worst_row"], result["worst_seed"]) == (-0.1, "row2", 2)
    assert result["return"]["mean"] == -12.0
    assert result["return"]["std"] == pytest.approx(np.sqrt(8.0))
    assert result["rmse"]["py"] == pytest.approx(np.sqrt(12.5))
    assert result["interventions"] == {"PASSED": 12, "PROJECTED": 6, "BACKUP": 2}
    assert result["intervention_rate"] == pytest.approx(0.4)
    assert result["fallback_rate"] == pytest.approx(0.1)
    assert result["chatter_per_s"] == 3.0
    assert result["shield_us"]["max"] == 200.0


def test_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", LOOP, "--verify"]) == 0
    out = capsys.readouterr().out
    for words in (
        "quadrotor_powerloop", "certificate: none (nominal)", "thrust", "m/s^2", "0 … 39.24",
        "0.02 s", "100 steps = 2 s", "ceiling", "step(x:10, u:4) -> 10", "program.txt  unchanged",
    ):  # fmt: skip
        assert words in out, words
    assert "CHANGED" not in out


def test_inspect_refuses_a_changed_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in Path(LANE).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "CARD.md").open("a") as card:
        card.write("!")
    assert main(["inspect", str(tmp_path)]) == 2
    assert "CARD.md was changed" in capsys.readouterr().err
