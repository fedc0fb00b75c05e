"""Make `.venv` fit the checkout: wheels as pinned, our packages as they are on disk now.

    python3.11 requirements/environment.py run   as `make run` does; also test, train, bench, lint

What is already right is left alone (told by hashes kept in .venv), so a second call takes a
fraction of a second. Needs only a bare Python: of 3.10 or 3.11, or 3.12 with a C++ compiler.
"""

from __future__ import annotations

import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
NOTES = VENV / "installed"

ROBOT = ("safe_rl_core", "safe_rl_ros", "safe_policy_node", "backup_shield_node", "sim_bridge")
#: what needs torch
WORKSHOP = ("safe_rl_systems", "safe_rl_training")
#: goal -> (requirement files with hashes, without, our packages)
GOALS = {
    "run": (("robot", "ros", "sim"), (), ROBOT),
    "test": (("robot", "ros", "sim", "test", "train"), ("torch",), ROBOT + WORKSHOP),
    "train": (("robot", "ros", "sim", "test", "train"), ("torch",), ROBOT + WORKSHOP),
    "bench": (("robot", "ros", "sim", "test", "bench"), ("torch",), ROBOT + WORKSHOP),
    "lint": (("robot", "ros", "sim", "test", "train", "lint"), ("torch",), ROBOT + WORKSHOP),
}
#: what is not part of a package, or does not change what is installed
LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "*.py[cod]", "build", "*.egg-info", "test", ".pytest_cache", ".hypothesis"
)


class SetupError(Exception):
    """The environment cannot be made."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"set-up: {text}", flush=True)


def check_machine() -> None:
    """Refuse what has no ROS wheels, before anything is downloaded."""
    version, machine = sys.version_info[:2], platform.machine()
    if not (3, 10) <= version <= (3, 12):
        raise SetupError(
            f"expected Python 3.10 or 3.11, got {version[0]}.{version[1]} ({sys.executable}); "
            f"install one of them (`apt install python3.11 python3.11-venv`, or pyenv), or name "
            f"it: make run PYTHON=/path/to/python3.11"
        )
    if (sys.platform, machine) != ("linux", "x86_64"):
        raise SetupError(
            f"the wheels of ROS 2 exist for Linux on x86_64 only, this is {sys.platform} on "
            f"{machine}; use docker/README.md, or ros2_ws/README.md with an installed ROS 2"
        )
    if version == (3, 12) and not shutil.which("c++"):
        raise SetupError(
            "on Python 3.12 PyBullet is built from source, and there is no C++ compiler; "
            "`apt install g++ python3-dev`, or use Python 3.10 or 3.11: make run PYTHON=python3.11"
        )


def make_venv() -> None:
    """Create .venv; again when it has moved (its scripts name their place) or changes Python."""
    version = ".".join(platform.python_version_tuple()[:2])
    note, wanted = VENV / "place", f"{VENV} with Python {version}"
    if note.exists():
        if PYTHON.exists() and note.read_text() == wanted:
            return
        say(f"making {VENV} again: it was {note.read_text()}")
        for path in VENV.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
    say(f"virtual environment in .venv with Python {platform.python_version()}")
    # Not from within another virtual environment, whose libraries would come along.
    base = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run([base, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if done.returncode:
        raise SetupError(
            f"{base} -m venv failed:\n{done.stdout}{done.stderr}\n"
            f"On Debian and Ubuntu this module is a package of its own: "
            f"apt install python{version}-venv"
        )
    NOTES.mkdir(parents=True, exist_ok=True)
    note.write_text(wanted)


def pip(what: str, *words: str) -> None:
    """Install, quietly unless it fails."""
    start = time.monotonic()
    say(f"{what} …")
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SetupError(
            f"could not install {what}: pip ended with {done.returncode}\n{done.stdout}\n"
            f"Is the network there? If files on disk are damaged, `make clean` starts afresh."
        )
    say(f"{what}: done in {time.monotonic() - start:.0f} s")


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def installed(name: str) -> str:
    """Hash of what was installed under this name; empty when nothing was."""
    note = NOTES / name
    return note.read_text() if note.exists() else ""


def install_requirements(hashed: Sequence[str], plain: Sequence[str]) -> None:
    """Bring the pinned wheels up to date, all hash-checked ones in one go."""
    folder = ROOT / "requirements"
    # The locked files are complete but for torch, which some of them need, and which comes last.
    for names, options in ((hashed, ["--require-hashes", "--no-deps"]), (plain, [])):
        hashes = {name: file_hash(folder / f"{name}.txt") for name in names}
        stale = [name for name in names if installed(name) != hashes[name]]
        if not stale:
            continue
        if "sim" in stale and sys.version_info[:2] == (3, 12):
            say("Python 3.12: PyBullet has no wheel and is built from source, about 10 minutes")
        files = [word for name in stale for word in ("-r", str(folder / f"{name}.txt"))]
        pip(f"wheels ({', '.join(stale)})", *options, *files)
        for name in stale:
            (NOTES / name).write_text(hashes[name])


def files_of(folder: Path) -> Iterator[Path]:
    """The files of a package, without what is left out, in a fixed order."""
    names = sorted(path.name for path in folder.iterdir())
    for name in sorted(set(names) - LEFT_OUT(str(folder), names)):
        path = folder / name
        if path.is_dir():
            yield from files_of(path)
        else:
            yield path


def package_hash(folder: Path) -> str:
    """SHA-256 over names and contents of a package."""
    digest = hashlib.sha256()
    for path in files_of(folder):
        digest.update(f"{path.relative_to(folder)} {file_hash(path)}\n".encode())
    return digest.hexdigest()


def install_packages(names: Sequence[str]) -> None:
    """Install those of our packages that differ from what is installed.

    Not editable: pip would leave out the data files. Built from a copy: setuptools keeps what it
    once built, and would go on installing modules that are deleted here.
    """
    folders = {name: ROOT / "packages" / name for name in names}
    folders |= {"safe_rl": ROOT / "launch", "safe_rl_models": ROOT / "models"}
    hashes = {name: package_hash(folder) for name, folder in folders.items()}
    stale = [name for name in folders if installed(name) != hashes[name]]
    if not stale:
        return
    with tempfile.TemporaryDirectory() as scratch:
        copies = [Path(scratch) / name for name in stale]
        for name, copy in zip(stale, copies, strict=True):
            shutil.copytree(folders[name], copy, ignore=LEFT_OUT)
        options = ["--no-deps", "--no-build-isolation", "--use-pep517", "--force-reinstall"]
        pip(f"our packages ({', '.join(stale)})", *options, *map(str, copies))
    for name in stale:
        (NOTES / name).write_text(hashes[name])


def main(goal: str) -> int:
    """Everything that a goal needs."""
    start = time.monotonic()
    hashed, plain, packages = GOALS[goal]
    try:
        check_machine()
        VENV.mkdir(exist_ok=True)
        with (VENV / "lock").open("w") as lock:
            # Two calls at once must not install into each other.
            fcntl.flock(lock, fcntl.LOCK_EX)
            make_venv()
            install_requirements(hashed, plain)
            install_packages(packages)
    except (SetupError, OSError) as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 2
    seconds = time.monotonic() - start
    if seconds > 2.0:
        say(f"ready after {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in GOALS:
        sys.exit(f"{__doc__}\nexpected one of: {', '.join(GOALS)}")
    sys.exit(main(sys.argv[1]))
