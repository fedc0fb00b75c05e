"""Build of safe_rl_training, for pip and for colcon."""

from setuptools import find_packages, setup

PACKAGE = "safe_rl_training"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="Training of task policies and their export into bundles",
    author="safe_rl contributors",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
    ],
    install_requires=[
        "numpy",
        "scipy",
        "torch",
        "onnx",
        "onnxruntime",
        "matplotlib",
        "pyyaml",
        "tensorboard",
    ],
    extras_require={
        "test": ["pytest"],
        "ray": ["ray"],
        "gym": ["gymnasium"],
        "sb3": ["gymnasium", "stable-baselines3"],
    },
    zip_safe=False,
)
