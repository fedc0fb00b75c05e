"""Run the task policy of a bundle: state and task time in, proposed action out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import BundleError

Array = NDArray[np.float64]


class Policy:
    """The ONNX network behind the bundle's observation function.

    The graph takes `observation` (1, k) float32 in the units that the bundle names and returns
    `action` (1, m) in SI units; normalisation is inside. Raises BundleError if the file does not
    fit the bundle. Nothing is clipped here: judging an action is the shield's work.
    """

    def __init__(self, bundle: Bundle) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = _open(bundle, options)
        self._observe = bundle.compiled
        self._input = np.zeros((1, len(bundle.task.observation)), np.float32)
        self._time = np.zeros(1)
        _check_io(self._session, bundle)

    def act(self, x: Array, t: float) -> Array:
        """Proposed action (m,) in SI units for the state x (n,) at task time t in s."""
        self._time[0] = t
        self._input[0] = self._observe("observation", x, self._time)
        (action,) = self._session.run(("action",), {"observation": self._input})
        return action[0].astype(np.float64)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the exporter wrote into the file: names, units, seed, command, commit."""
        return dict(self._session.get_modelmeta().custom_metadata_map)


def _open(bundle: Bundle, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(
            str(bundle.policy_path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise BundleError(
            f"{bundle.policy_path} is not a policy that onnxruntime can load: {error}; "
            "export the bundle again"
        ) from error


def _check_io(session: onnxruntime.InferenceSession, bundle: Bundle) -> None:
    expected = {"observation": len(bundle.task.observation), "action": len(bundle.inputs)}
    found = {
        value.name: value.shape[-1] for value in (*session.get_inputs(), *session.get_outputs())
    }
    if found != expected:
        raise BundleError(
            f"{bundle.policy_path}: expected input and output sizes {expected}, got {found}; this "
            "network was trained for another task or robot"
        )
    metadata = session.get_modelmeta().custom_metadata_map
    wanted = {"robot": bundle.robot, "task": bundle.task.name, "period_s": f"{bundle.period:g}"}
    for key, value in wanted.items():
        got = metadata.get(key, value)
        if got != value:
            raise BundleError(
                f"{bundle.policy_path}: its {key} is '{got}', the bundle's is '{value}'; export "
                "the bundle with the policy that was trained for it"
            )
