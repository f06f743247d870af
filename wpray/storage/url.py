"""Parsing of `output_dir` and of the readers' RUN: a folder, or the URL of a store. A URL never holds credentials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit
from urllib.request import url2pathname

from wpray.errors import BadInputError
from wpray.system.paths import LIKE_A_URL

# Options that locate a store. Credentials come from the environment.
_OPTIONS = frozenset(
    {"endpoint_override", "region", "scheme", "tls_ca_file_path", "retry_limit_seconds", "project_id", "enable_tls"}
    | {"blob_storage_authority", "dfs_storage_authority", "blob_storage_scheme", "dfs_storage_scheme"}
)
_USER_IS_NO_SECRET = frozenset({"abfs", "abfss", "hdfs", "sftp", "ssh"})  # CONTAINER@ACCOUNT, USER@HOST
_HAS_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss"})
_FROM_THE_ENVIRONMENT = (
    "credentials come from the environment or the configuration of the store's tools (such as ~/.aws), never from a URL"
)


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """Checked URL without credentials."""

    scheme: str
    base: str  # SCHEME://PLACE/PATH without a trailing slash
    query: str  # options of the connection; may be empty

    def __str__(self) -> str:
        return f"{self.base}?{self.query}" if self.query else self.base


def location_of(text: str | Path) -> Path | StoreUrl:
    """Return the folder (also for `file://`) or the store that `text` names.

    Raise BadInputError for a URL that is malformed or holds credentials; the message does not repeat them.
    """
    if isinstance(text, Path) or not (match := LIKE_A_URL.match(text)):
        return Path(text)
    scheme = match[1].lower()
    _refuse_credentials(scheme, text[match.end() :].lstrip("/"))
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise BadInputError(f"{text}: not a URL ({error}); write it as s3://BUCKET/PATH") from error
    if scheme == "file":
        return _local(text, parts.netloc, parts.path)
    place = parts.netloc.strip("@") if scheme in _HAS_BUCKETS else parts.netloc + parts.path.strip("/")
    if not text[match.end() :].startswith("/") or not place or parts.fragment:
        raise BadInputError(f"{text}: not a whole URL; write it as {scheme}://BUCKET/PATH")
    if {".", ".."} & set(unquote(parts.path).split("/")):
        raise BadInputError(f"{text}: a URL's path must not hold . or .. ; write it out")
    return StoreUrl(scheme, f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}", parts.query)


def _local(text: str, host: str, path: str) -> Path:
    if host not in ("", "localhost") or not path.startswith("/"):
        raise BadInputError(f"{text}: a file URL has three slashes (file:///mnt/results); or give the path as it is")
    local = url2pathname(path)
    if "\0" in local:
        raise BadInputError(f"{text}: names a file with a NUL, which no file has")
    return Path(local)


def _refuse_credentials(scheme: str, rest: str) -> None:
    place, _, query = rest.partition("?")
    user, at, _ = place.rpartition("@")  # the last @ of all, because a secret key may hold slashes
    port = place.partition("/")[0].rpartition("@")[2].partition(":")[2]
    if (at and (":" in user or scheme not in _USER_IS_NO_SECRET)) or (port and not port.isdecimal()):
        raise BadInputError(f"{scheme}://...: the URL seems to hold credentials; {_FROM_THE_ENVIRONMENT}")
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS or "@" in value:
            listed = ", ".join(sorted(_OPTIONS))
            raise BadInputError(f"{scheme}://{place}?...: after ? may come {listed}; {_FROM_THE_ENVIRONMENT}")
