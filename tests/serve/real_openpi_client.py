"""Ask a server with the package openpi-client, unchanged; run by a Python that has it. Prints what it got as JSON."""

from __future__ import annotations

import json
import sys

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def question(prompt: str) -> dict[str, object]:
    image = np.zeros((224, 224, 3), np.uint8)
    shown = {"observation/image": image, "observation/wrist_image": image, "observation/state": np.arange(8.0)}
    return {**shown, "prompt": prompt}


if __name__ == "__main__":
    client = WebsocketClientPolicy(sys.argv[1], api_key="secret")
    answers = [client.infer(question("pick up the bowl")) for _ in range(3)]
    try:
        client.infer(question("raise"))
        failure = ""
    except RuntimeError as error:
        failure = str(error)
    first = answers[0]["actions"]
    found = {
        "metadata": client.get_server_metadata(),
        "actions": [answer["actions"][0].tolist() for answer in answers],
        "form": [str(first.dtype), list(first.shape), bool(first.flags.writeable)],
        "timing": sorted(answers[0]["policy_timing"]),
        "failure": failure,
    }
    print(json.dumps(found))
