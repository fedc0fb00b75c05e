"""Build of backup_shield_node, for pip and for colcon."""

from setuptools import find_packages, setup

PACKAGE = "backup_shield_node"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="ROS 2 node: every command passes the shield",
    author="safe_rl contributors",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
    ],
    install_requires=["numpy"],
    extras_require={"test": ["pytest"]},
    entry_points={
        "console_scripts": ["shield = backup_shield_node.node:main"],
    },
    zip_safe=False,
)
