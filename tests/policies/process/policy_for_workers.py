"""A policy as somebody else's Python holds it: numpy only, nothing of wpray."""

import os
import signal
import sys
import time

import numpy as np


class InvalidRequestError(ValueError):
    pass


class Echo:
    def __init__(self, offset=0.0, fail_to_start=False):
        if fail_to_start:
            raise OSError("no weights at hand")
        self.offset = offset
        self.died = os.environ.get("DIED_BEFORE")

    def predict(self, requests):
        print("words on stdout harm nothing")
        assert "wpray" not in sys.modules
        return [self._answer(request, len(requests)) for request in requests]

    def _answer(self, request, count):
        words = request["instruction"]
        if "raise" in words:
            raise ArithmeticError("cannot count that")
        if "refuse" in words:
            raise InvalidRequestError("not this request")
        if "die" in words and (count > 1 or "always" in words):
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in words:
            time.sleep(1000)
        actions = np.zeros((4, 7))
        actions[:, 0] = request["proprio"][0] + self.offset
        actions[:, 1] = request["images"]["wrist"].mean()
        actions[:, 2] = request["init_state"]
        return {"actions": actions, "metrics": {"count": count}}
