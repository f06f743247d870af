"""Local server with S3's protocol that can stop, and start again with its content."""

from __future__ import annotations

import logging
import socket
import urllib.request

from moto.server import ThreadedMotoServer

BUCKET = "results"


class S3:
    """S3 server with an empty bucket."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs a line per request
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.start()
        self._post("moto-api/reset")
        self._post(BUCKET, method="PUT")

    @property
    def environ(self) -> dict[str, str]:
        """Environment variables that a run needs for this server, as it would for Amazon's."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "a-key",
            "AWS_SECRET_ACCESS_KEY": "do-not-write-me",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def url(self, path: str) -> str:
        return f"s3://{BUCKET}/{path}"

    def start(self) -> None:
        """Listen, with the content from before."""
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._server.stop()

    def let_nobody_in(self) -> None:
        """Reject every key from now on."""
        self._post("moto-api/reset-auth", b"0")

    def let_everybody_in(self) -> None:
        self._post("moto-api/reset-auth", b"inf")

    def _post(self, path: str, data: bytes = b"", method: str = "POST") -> None:
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", data, headers, method=method)
        urllib.request.urlopen(request, timeout=10).close()
