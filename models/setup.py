"""Build of safe_rl_models (data only), for pip and for colcon.

Every folder beside this file that holds a bundle.yaml is installed as it is, because a bundle is
refused when one of its bytes differs; and the trackers that training begins with.
"""

from pathlib import Path

from setuptools import setup

PACKAGE = "safe_rl_models"


def bundle_files() -> list[tuple[str, list[str]]]:
    """(folder to install to, files) of all bundles and trackers, relative to this file."""
    here = Path(__file__).resolve().parent
    installed = []
    for top in [*(m.parent for m in sorted(here.glob("*/bundle.yaml"))), here / "trackers"]:
        folders = [top, *(p for p in sorted(top.rglob("*")) if p.is_dir())]
        for folder in folders:
            files = sorted(str(p.relative_to(here)) for p in folder.iterdir() if p.is_file())
            installed.append((f"share/{PACKAGE}/{folder.relative_to(here)}", files))
    return installed


setup(
    name=PACKAGE,
    version="0.1.0",
    description="Bundles: what is trained, certified, flown and audited",
    author="safe_rl contributors",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        *bundle_files(),
    ],
    extras_require={"test": ["pytest"]},
    zip_safe=False,
)
