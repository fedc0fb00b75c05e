"""Write the hash-checked requirement files from the hand-written `*.in` ones.

    python3 requirements/lock.py python3.10 python3.11 python3.12

One interpreter per supported version, the oldest first: what it resolves binds the others, so a
package has one version everywhere unless that version does not exist for a newer Python. For each
interpreter pip says (dry run, nothing is installed) which files it would take; their hashes make
robot.txt, and ros.txt, sim.txt and test.txt with only what each adds. Run it on x86-64 Linux after
a change of an `.in` file, with no private package source in pip's configuration.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LAYERS = ("robot", "ros", "sim", "test")
# Sets beside the layers: each stands on the layers before it, but not on one another.
EXTRAS = ("lint", "bench", "train")
# Installed from torch.txt, without hashes: what only torch needs stands in no locked file.
TORCH = "torch.txt"

Pins = dict[str, tuple[str, str]]
"""Package name -> (version, sha256 of the file that this Python takes)."""


def _name(raw: str) -> str:
    return raw.lower().replace("_", "-").replace(".", "-")


def resolve(python: Path, files: Sequence[str], constraints: Path) -> Pins:
    """What `python` would install for these requirement files together."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += ["--report", "-", "--prefer-binary", "--constraint", str(constraints)]
    for name in files:
        command += ["--requirement", str(FOLDER / name)]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {
        _name(item["metadata"]["name"]): (
            item["metadata"]["version"],
            item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in report["install"]
    }


def _marker(versions: Sequence[str], known: Sequence[str]) -> str:
    """Environment marker for a pin that only some of the Pythons share."""
    if list(versions) == list(known):
        return ""
    return " ; " + " or ".join(f'python_version == "{v}"' for v in versions)


def render(title: str, by_python: dict[str, Pins], without: dict[str, Pins]) -> str:
    """The requirement file with every pin that `without` does not hold already."""
    lines = [f"# {title}.in and what it needs. Written by lock.py; do not edit."]
    names = sorted(
        {n for python, pins in by_python.items() for n in pins if n not in without[python]}
    )
    for name in names:
        pinned: dict[str, list[str]] = {}
        for python, pins in by_python.items():
            if name in pins and name not in without[python]:
                pinned.setdefault(pins[name][0], []).append(python)
        for version, pythons in pinned.items():
            hashes = sorted({by_python[python][name][1] for python in pythons})
            lines.append(f"{name}=={version}{_marker(pythons, list(by_python))} \\")
            lines.append(" \\\n".join(f"    --hash=sha256:{digest}" for digest in hashes))
    return "\n".join(lines) + "\n"


def lock(interpreters: Sequence[str], scratch: Path) -> None:
    """Resolve all sets with all interpreters and write the files."""
    empty = scratch / "empty.txt"
    empty.write_text("")
    constraints = empty
    resolved: dict[str, dict[str, Pins]] = {}
    torch: dict[str, Pins] = {}
    sets = {layer: LAYERS[: i + 1] for i, layer in enumerate(LAYERS)}
    sets |= {extra: (*LAYERS, extra) for extra in EXTRAS}
    for interpreter in interpreters:
        venv = scratch / interpreter
        subprocess.run([interpreter, "-m", "venv", str(venv)], check=True)
        python = venv / "bin" / "python"
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--upgrade", "pip"], check=True
        )
        version = interpreter.rpartition("python")[2]
        torch[version] = resolve(python, [TORCH], constraints)
        for title, names in reversed(list(sets.items())):
            files = [f"{name}.in" for name in names]
            # Together with torch: some of it needs torch, and both must agree on the rest.
            pins = resolve(python, [*files, TORCH] if title == "train" else files, constraints)
            resolved.setdefault(title, {})[version] = pins
            print(f"{interpreter}: {title}: {len(pins)} packages", flush=True)
            constraints = scratch / "constraints.txt"
            with constraints.open("a") as stream:
                stream.writelines(f"{n}=={v}\n" for n, (v, _) in pins.items())
    for title, names in sets.items():
        base = names[-2] if len(names) > 1 else None
        without = {v: dict(resolved[base][v]) if base else {} for v in resolved[title]}
        if title == "train":
            without = {v: torch[v] | pins for v, pins in without.items()}
        (FOLDER / f"{title}.txt").write_text(render(title, resolved[title], without))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        lock(sys.argv[1:], Path(folder))
