"""Build of safe_rl_systems, for pip and for colcon."""

from setuptools import find_packages, setup

PACKAGE = "safe_rl_systems"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="Robots in PyTorch, and the tracer that turns them into programs",
    author="safe_rl contributors",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={f"{PACKAGE}.designs": ["*.json"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
    ],
    install_requires=["numpy", "scipy", "torch", "pyyaml"],
    extras_require={"test": ["pytest"]},
    zip_safe=False,
)
