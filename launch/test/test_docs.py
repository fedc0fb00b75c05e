"""The pages say what is there: names of code and tests, links, pictures."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
THEORY = ROOT / "docs" / "theory.md"
SOURCES = ("packages", "launch", "docs")
PAGES = sorted(
    page
    for folder in (ROOT, ROOT / "docs", ROOT / "docs" / "adr", ROOT / "models")
    for page in folder.glob("*.md")
)
CODE = re.compile(r"`([^`\n]+)`")
#: `file.py: name, name`; `file.py::test`; `file.ext` with or without folders; a name.
PLACE = re.compile(r"([\w/]+\.(?:py|c)): (\w+(?:, \w+)*)")
TEST = re.compile(r"([\w/]+\.py)::(test_\w+)")
FILE = re.compile(r"[\w./-]+\.(?:py|c|md|json|yaml|npz|txt|png|html|mcap)")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?:\(\))?")
#: What a row of the table in theory.md must stand for.
ROWS = [
    *(f"A{i}" for i in range(1, 7)),
    *(f"V{i}" for i in range(6)),
    *("B1", "B2", "B3", "f", "tube", "γ", "η", "η_K", "R, H, D", "σ"),
]
LARGEST_PICTURE = 150 * 1024


@cache
def files() -> dict[str, list[Path]]:
    """Files by name, in the folders that hold code, bundles and pages."""
    found: dict[str, list[Path]] = {}
    for folder in (*SOURCES, "models", "benchmarks"):
        for path in (ROOT / folder).rglob("*.*"):
            if "build" not in path.parts and "__pycache__" not in path.parts:
                found.setdefault(path.name, []).append(path)
    return found


def of_name(name: str) -> list[Path]:
    """Files with this name, or whose path ends like this."""
    return [p for p in files().get(Path(name).name, []) if f"/{p.as_posix()}".endswith(f"/{name}")]


@cache
def defined(path: Path) -> frozenset[str]:
    """Functions, classes, attributes, arguments and assigned names of a Python or C file."""
    text = path.read_text()
    if path.suffix == ".c":
        return frozenset(re.findall(r"^(?:\w[\w *]*?)\b(\w+)\(", text, re.MULTILINE))
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
    return frozenset(names)


@cache
def known() -> frozenset[str]:
    """Every name that the code defines, functions of the shipped programs, members of enums."""
    names: set[str] = set()
    for paths in files().values():
        for path in paths:
            if path.suffix in (".py", ".c") and "test" not in path.parts:
                names |= defined(path)
            elif path.name == "program.txt":
                names |= set(re.findall(r"^function (\w+)", path.read_text(), re.MULTILINE))
            elif path.name == "certificate.json":
                names |= set(re.findall(r'^ "(\w+)":', path.read_text(), re.MULTILINE))
    code = [path for paths in files().values() for path in paths if path.suffix == ".py"]
    names |= {path.stem for path in code} | {path.parent.name for path in code}
    names |= {path.parent.name for path in files()["bundle.yaml"]}
    return frozenset(names | {name.lower() for name in names if name.isupper()})


def complaints(text: str) -> list[str]:
    """What a page names in backticks that is not there."""
    found = []
    for code in CODE.findall(text):
        if match := TEST.fullmatch(code):
            if not any(match[2] in defined(path) for path in of_name(match[1])):
                found.append(f"{code}: there is no such test")
        elif match := PLACE.fullmatch(code):
            for name in match[2].split(", "):
                if not any(name in defined(path) for path in of_name(match[1])):
                    found.append(f"{code}: no file of this name defines {name}")
        elif FILE.fullmatch(code):
            if not of_name(code):
                found.append(f"{code}: there is no such file")
        elif code.startswith("safe-rl "):
            if not of_name(f"commands/{code.split()[1]}.py"):
                found.append(f"{code}: there is no such command")
        elif code.startswith("python "):
            if not (ROOT / code.split()[1]).exists():
                found.append(f"{code}: there is no such script")
        elif NAME.fullmatch(code):
            parts = code.removesuffix("()").split(".")
            found += [f"{code}: nothing is called {p}" for p in parts if p not in known()]
    return found


def test_every_name_on_the_theory_page_exists() -> None:
    assert complaints(THEORY.read_text()) == []


@pytest.mark.parametrize(
    "code",
    ["`robust.c: addd`", "`sampling.py: sampling_margins`", "`nowhere.py`", "`error_mapp`",
     "`test_bounds.py::test_that_is_not_there`", "`RobustShield.stepp`", "`safe-rl prove x`",
     "`robust.c: added, nothing`", "`python docs/nothing`"],
)  # fmt: skip
def test_a_name_that_does_not_exist_is_found(code: str) -> None:
    right = "`robust.c: added`, `error_map`, `RobustShield.step`, `certificate.py: EPS`"
    assert complaints(right) == []
    assert len(complaints(f"{right}, {code}")) == 1


def theory_table() -> dict[str, list[str]]:
    """Rows of "Where it stands in the code", by their first cell."""
    section = THEORY.read_text().split("## Where it stands in the code")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    return {row[0]: row[1:] for row in cells[1:]}


def test_every_assumption_and_inequality_has_its_code_and_its_tests() -> None:
    table = theory_table()
    assert list(table) == [*ROWS[:6], *(row for row in table if row not in ROWS[:6])]
    assert set(table) == set(ROWS)
    for row, (_, code, tests) in table.items():
        assert any(PLACE.fullmatch(name) for name in CODE.findall(code)), row
        assert all(TEST.fullmatch(name) for name in CODE.findall(tests)), row
        assert CODE.findall(tests), row


def anchors(page: Path) -> set[str]:
    """What links to headings of a page may name, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_pictures_are_used_and_small() -> None:
    pages = "\n".join(page.read_text() for page in PAGES)
    for path in (ROOT / "docs" / "img").iterdir():
        assert f"img/{path.name}" in pages, path.name
        assert path.stat().st_size < LARGEST_PICTURE, path.name
