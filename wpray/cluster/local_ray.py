"""A local Ray without the processes that no run uses: on two cores they are half of its start and all of its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ray._private.node import Node

# Ray's methods that start the autoscaler, the server of dashboard and jobs, for which `ray.init` waits although the
# dashboard is off, and the reader of logs, which are not shown. `ray.init` has no options for them.
UNUSED = ("start_monitor", "start_api_server", "start_log_monitor")


@contextlib.contextmanager
def without_unused_processes() -> Iterator[None]:
    """Let `ray.init` start none of them meanwhile; those that a version of Ray starts by another method, it starts."""
    stock = {name: vars(Node)[name] for name in UNUSED if name in vars(Node)}
    for name in stock:
        setattr(Node, name, _nothing)
    try:
        yield
    finally:
        for name, method in stock.items():
            setattr(Node, name, method)


def _nothing(*_: Any, **__: Any) -> None:
    """Start no process."""
