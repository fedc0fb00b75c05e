"""Build of safe_rl, the front door, for pip and for colcon."""

from glob import glob

from setuptools import find_packages, setup

PACKAGE = "safe_rl"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="Start, record and judge shielded flights: launch files and the safe-rl command",
    author="safe_rl contributors",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: ["**/*.html", "**/*.css", "**/*.js", "**/*.svg"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", sorted(glob("*.launch.py"))),
        (f"share/{PACKAGE}/config", sorted(glob("config/*"))),
    ],
    install_requires=["numpy", "matplotlib", "pillow", "mcap", "mcap-ros2-support"],
    extras_require={"test": ["pytest"]},
    entry_points={
        "console_scripts": ["safe-rl = safe_rl.cli:main"],
    },
    zip_safe=False,
)
