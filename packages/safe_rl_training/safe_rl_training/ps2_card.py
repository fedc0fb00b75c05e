"""What CARD.md says of a policy that PS2 trained: how, what it scores, where it fails.

Every number is taken from the record of the run; what the record does not hold is not said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safe_rl_systems.robot import Robot

from safe_rl_training.parts.arrival_measures import CONFIDENCE

_TRAINING = (
    ("command", "command"),
    ("seed", "seed"),
    ("commit", "git_commit"),
    ("uncommitted changes", "git_dirty"),
    ("duration (s)", "duration_s"),
    ("hardware", "hardware"),
    ("threads", "threads"),
    ("date", "date"),
    ("torch", "torch_version"),
    ("SHA-256 of the sources", "source_sha256"),
)
_SETTINGS = {
    "ps2": "PS2: this policy behind the shield",
    "backup": "backup policy alone",
    "stop": "stop",
    "unshielded": "this policy **without** the shield",
}
_PARTS = {
    "phase1": "phase I",
    "certificate": "certificate",
    "phase2": "phase II",
    "evaluation": "evaluation",
}


def provenance_table(record: Mapping[str, Any]) -> str:
    """Command, seed, commit, machine and date of a training, as a table."""
    provenance = record["provenance"]
    rows = "\n".join(f"| {name} | {provenance[key]} |" for name, key in _TRAINING)
    return f"| | |\n|---|---|\n{rows}"


def ps2_section(robot: Robot, record: Mapping[str, Any]) -> str:
    """Training, scores and limits of a policy that learned behind the shield."""
    phase2 = record["phase2"]
    quick = "\n**A quick run, to try the tool: the policy is not trained out.**\n"
    return f"""{_backup(record["phase1"])}## The policy

Trained behind the shield from its first step (PS2, learner `{record["learner"]}`), on this robot's
own equations, with the {record["backup"]} backup policy. The shield was never off:
{phase2["env_steps"]} training steps, {phase2["violations"]} states outside of the safe set, no
slack. Kept is the policy with the best return on fixed validation starts: that of iteration
{phase2["best_at_iteration"]} of {phase2["iterations"]}. {_beginning(record["warm_start"])}
{quick if record["quick"] else ""}
{provenance_table(record)}

Wall time: {_times(record["seconds"])}. {phase2["env_steps_per_s"]:.0f} training steps per s.

On the model's equations, from the task's own starts, as measured by the trainer behind the nominal
shield (`training.json` has all of it):

{_scores(record["evaluation"])}

## Where it fails

{_limits(robot, record["evaluation"])}
"""


def _backup(phase1: Mapping[str, Any]) -> str:
    """What phase I found, if it measured anything; ends with an empty line."""
    shares = phase1.get("measures", {}).get("volume")
    if shares is None:
        return ""
    rows = "\n".join(
        f"| {name} | {found['share']:.3f} | {found['low']:.3f} to {found['high']:.3f} |"
        for name, found in shares.items()
    )
    states = next(iter(shares.values()))["states"]
    return f"""## The backup policy

A network that corrects the robot's analytic law; what it learned is in `backup.npz`, and in the
program that the shield rolls out. The shield does not trust it: it judges every plan.
How many of {states} states, drawn from the safe set within the operating box and seen by neither
training nor selection, the shield has a way out from with it:

| backup policy | share | {CONFIDENCE:.0%} interval |
|---|---|---|
{rows}

"""


def _beginning(warm_start: Mapping[str, str] | None) -> str:
    if warm_start is None:
        return "It began from nothing."
    return (
        f"It began\nwith the policy {warm_start['file']} (SHA-256 {warm_start['sha256'][:12]}…), "
        f"made without a\nshield by `{warm_start['command']}`: `models/trackers`."
    )


def _times(seconds: Mapping[str, float]) -> str:
    parts = [f"{name} {seconds[key]:.0f} s" for key, name in _PARTS.items() if key in seconds]
    return ", ".join(parts)


def _scores(evaluation: Mapping[str, Mapping[str, Any]]) -> str:
    axes = list(next(iter(evaluation.values()))["rmse"])
    header = ["", "return", "unsafe episodes", "corrected", "backup flown"]
    header += [f"RMSE {axis}" for axis in axes]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for key, name in _SETTINGS.items():
        if key not in evaluation:
            continue
        scores = evaluation[key]
        shielded = key != "unshielded"
        cells = [
            name,
            f"{scores['return_mean']:.4g} ± {scores['return_std']:.2g}",
            f"{scores['unsafe_episodes']} of {scores['episodes']}",
            f"{scores['intervention_rate']:.1%}" if shielded else "–",
            f"{scores['fallback_rate']:.1%}" if shielded else "–",
            *(f"{scores['rmse'][axis]:.3g}" for axis in axes),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _limits(robot: Robot, evaluation: Mapping[str, Mapping[str, Any]]) -> str:
    own = evaluation["ps2"]
    bare = evaluation.get("unshielded")
    points = []
    if bare is not None and bare["unsafe_episodes"]:
        points.append(
            f"Without the shield {bare['unsafe_episodes']} of {bare['episodes']} episodes leave "
            "the safe set: it learned to rely on the shield. Do not run it alone."
        )
    if not own["unsafe_episodes"]:
        points.append(
            f"0 unsafe in {own['episodes']} episodes bounds the rate by about "
            f"{3.0 / own['episodes']:.1g} (95 %), for these starts and these equations; the "
            "guarantee is the shield's, not this count."
        )
    points += [
        f"The reference leaves the safe set, so tracking errors stay: {_errors(own)}.",
        f"In {own['intervention_rate']:.1%} of the steps the shield corrects it, in "
        f"{own['fallback_rate']:.1%} it flies the backup action instead.",
        "Trained and measured in simulation only, without noise and lag"
        + (f" beyond the {robot.delay_steps} period(s) of delay." if robot.delay_steps else "."),
        "The policy sees the state and the task's phase, nothing else; it has no memory.",
    ]
    return "\n".join(f"- {point}" for point in points)


def _errors(scores: Mapping[str, Any]) -> str:
    return ", ".join(f"{axis} {value:.3g}" for axis, value in scores["rmse"].items())
