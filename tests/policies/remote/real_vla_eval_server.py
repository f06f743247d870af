"""Serve a policy with the package vla-eval, unchanged; run by a Python that has it. Prints the port first.

Each chunk holds three actions; they show the observation that began it, and which of the three they are.
"""

from __future__ import annotations

import socket
import sys

import numpy as np
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import serve
from vla_eval.specs import (
    GRIPPER_CLOSE_NEG,
    GRIPPER_CLOSE_POS,
    IMAGE_RGB,
    LANGUAGE,
    POSITION_DELTA,
    ROTATION_AA,
    STATE_EEF_POS_AA_GRIP,
)


class Echo(PredictModelServer):
    def __init__(self, gripper):
        super().__init__(chunk_size=3)
        self._gripper = gripper

    def get_action_spec(self):
        return {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": self._gripper}

    def get_observation_spec(self):
        return {"image": IMAGE_RGB, "state": STATE_EEF_POS_AA_GRIP, "language": LANGUAGE}

    def get_observation_params(self):
        return {"send_wrist_image": True, "send_state": True}

    def predict(self, obs, ctx):
        if "fail" in obs["task_description"]:
            raise ValueError("cannot do that")
        images = obs["images"]
        assert images["agentview"].shape == images["wrist"].shape == (256, 256, 3)
        actions = np.zeros((3, 7), np.float32)
        actions[:, 0] = np.arange(3)
        actions[:, 1] = images["agentview"].mean() / 255
        actions[:, 2] = images["wrist"].mean() / 255
        actions[:, 3:6] = obs["states"][:3]
        actions[:, 6] = [-0.2, 0, 0.7]
        return {"actions": actions}


if __name__ == "__main__":
    gripper = GRIPPER_CLOSE_NEG if sys.argv[1:] == ["negative"] else GRIPPER_CLOSE_POS
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    print(port, flush=True)
    serve(Echo(gripper), "127.0.0.1", port)
