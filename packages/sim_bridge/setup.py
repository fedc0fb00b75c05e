"""Build of sim_bridge, for pip and for colcon."""

from setuptools import find_packages, setup

PACKAGE = "sim_bridge"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="Simulated plants and the bridge to a real vehicle",
    author="safe_rl contributors",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: ["**/*.urdf"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
    ],
    install_requires=["numpy", "pybullet"],
    extras_require={"test": ["pytest"]},
    entry_points={
        "console_scripts": [
            "sim = sim_bridge.node:main",
            "hardware = sim_bridge.hardware_node:main",
        ],
    },
    zip_safe=False,
)
