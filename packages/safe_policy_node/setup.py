"""Build of safe_policy_node, for pip and for colcon."""

from setuptools import find_packages, setup

PACKAGE = "safe_policy_node"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="ROS 2 node: the policy of a bundle proposes commands",
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
        "console_scripts": ["policy = safe_policy_node.node:main"],
    },
    zip_safe=False,
)
