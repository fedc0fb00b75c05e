"""Build of safe_rl_ros, for pip and for colcon."""

from setuptools import find_packages, setup

PACKAGE = "safe_rl_ros"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="What the ROS 2 nodes share, and the recorder",
    author="safe_rl contributors",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
    ],
    install_requires=["numpy", "mcap"],
    extras_require={"test": ["pytest"]},
    entry_points={
        "console_scripts": ["recorder = safe_rl_ros.recorder:main"],
    },
    zip_safe=False,
)
