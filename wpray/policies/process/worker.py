"""The other end of `policy: process`. Run by the policy's own Python (3.9 or later).

This file stands alone: it imports numpy and msgpack, and nothing of wpray. Frames are a length of 8 bytes and msgpack;
the first answer is JSON, because msgpack may be missing. The process ends when the other end is gone, even while the
policy computes.
"""

# ruff: noqa: UP006, UP035, UP045 - Python 3.9 runs it
import importlib
import json
import os
import select
import socket
import struct
import sys
import threading
import traceback
from typing import Any, Callable, Dict, List, Optional

_LENGTH = struct.Struct("<Q")


def main(descriptor: int) -> None:
    """Load the policy that the first frame names and answer until the other end is gone."""
    link = socket.socket(fileno=descriptor)
    threading.Thread(target=_end_with, args=(link,), daemon=True).start()
    start = json.loads(_received(link) or b"{}")
    ready = _tried(lambda: {"policy": _load(start), "codec": _Codec()})
    if "error" in ready:
        _send(link, json.dumps(ready).encode())
        return
    policy, codec = ready["policy"], ready["codec"]
    _send(link, json.dumps({"python": sys.version.split()[0], "numpy": codec.numpy.__version__}).encode())
    while True:
        data = _received(link)
        if data is None:
            return
        _send(link, codec.pack(_answer(policy, codec.unpack(data), codec)))


def _load(start: Dict[str, Any]) -> Any:
    sys.path[:0] = start["path"]
    module, _, name = start["target"].partition(":")
    return getattr(importlib.import_module(module), name)(**start["args"])


def _answer(policy: Any, requests: List[Dict[str, Any]], codec: "_Codec") -> Dict[str, Any]:
    return _tried(lambda: {"replies": [_reply(reply, codec) for reply in policy.predict(requests)]})


def _tried(work: Callable[[], Dict[str, Any]]) -> Dict[str, Any]:
    """Return what `work` returns, or its exception as `error`, because no policy may end the worker."""
    try:
        return work()
    except BaseException as error:
        return {"error": _described(error)}


def _reply(reply: Any, codec: "_Codec") -> Dict[str, Any]:
    """Return a policy's reply as a map; an array alone holds its actions."""
    if not isinstance(reply, dict):
        reply = {"actions": reply}
    actions = codec.numpy.asarray(reply["actions"], dtype="float64")
    metrics = {str(name): float(value) for name, value in reply.get("metrics", {}).items()}
    return {"actions": actions, "metrics": metrics}


def _described(error: BaseException) -> Dict[str, str]:
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {"kind": type(error).__name__, "message": str(error), "trace": text}


class _Codec:
    """Arrays in msgpack."""

    def __init__(self) -> None:
        import msgpack
        import numpy

        self.numpy, self._msgpack = numpy, msgpack

    def pack(self, value: Any) -> bytes:
        data = self._msgpack.packb(value, default=self._form)
        return bytes(data)

    def unpack(self, data: bytes) -> Any:
        return self._msgpack.unpackb(data, object_hook=self._value)

    def _form(self, value: Any) -> Any:
        array = self.numpy.asarray(value)
        return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}

    def _value(self, found: Dict[Any, Any]) -> Any:
        if b"__ndarray__" not in found:
            return found
        return self.numpy.frombuffer(found[b"data"], found[b"dtype"]).reshape(found[b"shape"]).copy()


def _send(link: socket.socket, data: bytes) -> None:
    link.sendall(_LENGTH.pack(len(data)) + data)


def _received(link: socket.socket) -> Optional[bytes]:
    head = _exactly(link, _LENGTH.size)
    return None if head is None else _exactly(link, _LENGTH.unpack(head)[0])


def _exactly(link: socket.socket, size: int) -> Optional[bytes]:
    parts, missing = [], size
    while missing:
        part = link.recv(min(missing, 1 << 20))
        if not part:
            return None
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _end_with(link: socket.socket) -> None:
    """End this process once the other end is gone: the policy may never return."""
    poll = select.poll()
    poll.register(link.fileno(), select.POLLHUP | select.POLLRDHUP)
    poll.poll()
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
