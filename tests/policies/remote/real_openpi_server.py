"""Serve a policy with the package openpi-server, unchanged; run by a Python that has it. Prints the port first.

Its policy answers with numbers that show what has arrived: each action is (sum of the images, state, chunk's row).
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import numpy as np
from openpi_server import WebsocketPolicyServer


class EchoPolicy:
    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        if "fail" in obs["prompt"]:
            raise ValueError("cannot do that")
        image, wrist, state = obs["observation/image"], obs["observation/wrist_image"], obs["observation/state"]
        assert image.shape == wrist.shape == (224, 224, 3) and image.dtype == wrist.dtype == np.uint8
        assert state.shape == (8,) and state.dtype == np.float64
        actions = np.zeros((10, 7), np.float32)
        actions[:, 0] = np.arange(10) / 10
        actions[:, 1] = image.mean() / 255
        actions[:, 2] = wrist.mean() / 255
        actions[:, 3:6] = state[:3]
        actions[:, 6] = -1
        return {"actions": actions, "policy_timing": {"infer_ms": 1.0}}


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    print(port, flush=True)
    WebsocketPolicyServer(EchoPolicy(), "127.0.0.1", port, {"checkpoint": "echo"}).serve_forever()
