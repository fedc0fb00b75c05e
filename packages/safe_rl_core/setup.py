"""Build of safe_rl_core, for pip and for colcon."""

from setuptools import find_packages, setup

PACKAGE = "safe_rl_core"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="Shield, programs, kernel, bundles and policy, without ROS and without torch",
    author="safe_rl contributors",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: ["kernel/*.c"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
    ],
    install_requires=["numpy", "scipy", "osqp", "onnxruntime", "pyyaml", "pynacl"],
    extras_require={"test": ["pytest"]},
    zip_safe=False,
)
