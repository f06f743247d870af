"""Settings of every policy behind a server: addresses and time limits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt

from wpray.errors import BadInputError
from wpray.policies.base import PolicySpec
from wpray.policies.settings import NO_OUTCOME
from wpray.types import ImageSpec


def server_urls(default_port: int, *schemes: str) -> BeforeValidator:
    """Return a validator of URLs with one of `schemes`; the first of them and the port may be left out."""

    def read(value: Any) -> Any:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list) or not items:
            raise ValueError("must be a URL, or a list of URLs")
        found = [_whole(str(item).strip(), default_port, schemes) for item in items]
        if len(set(found)) < len(found):
            raise ValueError("names a server twice")
        return found

    return BeforeValidator(read)


def _whole(text: str, default_port: int, schemes: tuple[str, ...]) -> str:
    url = text if "://" in text else f"{schemes[0]}://{text}"
    parts = urlsplit(url)
    if parts.scheme not in schemes:
        raise ValueError(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError("has a port that is no number from 0 to 65535") from error
    if not parts.hostname:
        raise ValueError("names no host")
    if parts.username is not None:
        raise ValueError("holds a user's name; a key is given by the environment (api_key_env)")
    if port is None:
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        parts = parts._replace(netloc=f"{host}:{default_port}")
    return parts.geturl().rstrip("/") if not parts.query else parts.geturl()


class ServerSettings(BaseModel):
    """Common settings; the `url` differs in scheme and port."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: list[str]
    timeout_s: Annotated[PositiveFloat, NO_OUTCOME] = Field(
        300.0, le=86_400, description="seconds until a request without an answer is repeated"
    )
    connections: Annotated[PositiveInt | None, NO_OUTCOME] = Field(
        None, le=1000, description="requests at once to each server; default: as many as it says it takes, else 1"
    )
    api_key_env: Annotated[str | None, NO_OUTCOME] = Field(
        None, pattern=r"^[A-Za-z_]\w*$", description="environment variable that holds the servers' key"
    )

    def unbatched_spec(self, name: str, cameras: Mapping[str, ImageSpec], execute_steps: int = 0) -> PolicySpec:
        """Return the spec of a policy whose servers answer one request at a time."""
        return PolicySpec(
            *(name, True, False, 0),
            max_batch_size=1,
            kind="chunk",
            execute_steps=execute_steps,
            cameras=cameras,
            remote=True,
            servers=len(self.url) * (self.connections or 1),
        )

    @property
    def api_key(self) -> str | None:
        """Key that servers require; None if there is none. Raise BadInputError if the variable is not set."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env)
        if not key:
            raise BadInputError(f"policy_args.api_key_env: the environment variable {self.api_key_env} is not set")
        return key
