"""Config from a YAML file and the command line; every mistake is one line that names the remedy."""

from __future__ import annotations

import argparse
import os
import reprlib
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from wpray.cli.parser import ArgumentParser, unknown_key
from wpray.cli.policy_args import add_policy_help, split_policy_args
from wpray.cli.training_yaml import flatten
from wpray.cli.unique_yaml import load_unique
from wpray.config import Config, path_fields
from wpray.errors import BadInputError
from wpray.system.paths import expand, is_url

_MAX_YAML_BYTES = 1_000_000
_OPEN_PIPES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  # such as `--config <(...)`: its other end is being written
_SUITE = Config.model_fields["task_suite"].default
_ABOUT = (
    f"Evaluate a policy in simulation, in parallel. Without --config: {_SUITE}, scripted policy, this machine. "
    "Every field below can be set in the YAML file and as --field VALUE; the command line wins."
)


def launch_parser() -> ArgumentParser:
    """Return the options of `python -m wpray.launch` that are no fields of the configuration."""
    parser = ArgumentParser(prog="python -m wpray.launch", description=_ABOUT)
    parser.add_argument(
        "--plan", action="store_true", help="start nothing: say how long the run will take, and what will limit it"
    )
    parser.add_argument(
        "--live", action="store_true", help="serve the report on this machine while the run is under way"
    )
    return parser


def read_config(argv: Sequence[str], parser: ArgumentParser | None = None) -> Config:
    """Return the configuration of `argv`: `[--config FILE] [--any.config.field VALUE ...]`.

    Paths are expanded (`expand_paths`) unless `ray.submit` sends them to a cluster. Raises BadInputError for anything
    that is not a valid configuration; `--help` prints every field and exits.
    """
    config = validate(read_settings(argv, parser or launch_parser()))
    return config if config.ray.submit is not None else expand_paths(config)


def read_settings(argv: Sequence[str], parser: ArgumentParser) -> dict[str, Any]:
    """Return the settings of the file that `argv` names and of `argv` itself, which wins, for `validate`.

    `parser` holds a command's own options. Raises BadInputError for an unknown setting; `--help` prints all and exits.
    """
    own = [_usage(action) for action in parser._actions]
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the fields below")
    parser.usage = f"{parser.prog} {' '.join(own)} [--config FILE] [--FIELD VALUE ...]"
    argv, policy_args = split_policy_args(argv)
    if not {"-h", "--help"}.isdisjoint(argv):
        add_policy_help(parser, _policy_of(argv))
    given = _merge(_given(argv, parser), {"policy_args": policy_args} if policy_args else {})
    return _merge(_file_of(argv), given)


def _usage(action: argparse.Action) -> str:
    name = action.option_strings[0]
    return f"[{name}]" if action.nargs == 0 else f"[{name} {action.metavar or action.dest.upper()}]"


def _file_of(argv: Sequence[str]) -> dict[str, Any]:
    """Return the settings of the file that `--config` names; empty without one."""
    path = _option(argv, "--config")
    return {} if path is None else read_yaml(Path(_config_name(path)))


def _policy_of(argv: Sequence[str]) -> str | None:
    """Return the policy that the command line or its file names."""
    name = _option(argv, "--policy") or _file_of(argv).get("policy")
    return None if name is None else str(name)


def _option(argv: Sequence[str], name: str) -> str | None:
    before = ArgumentParser(add_help=False)
    before.add_argument(name, dest="found")
    found: str | None = before.parse_known_args(list(argv))[0].found
    return found


def expand_paths(config: Config) -> Config:
    """Return `config` with `~` and environment variables of its paths expanded, on the machine that uses them.

    Raises BadInputError for a path that cannot be expanded, and for one of a pipe or a device.
    """
    given = {name: path for name in path_fields() if (path := getattr(config, name)) is not None}
    return config.model_copy(update={name: _expanded(name, path) for name, path in given.items()})


def _expanded(name: str, path: str) -> str:
    try:
        expanded = expand(path)
    except ValueError as error:
        raise BadInputError(f"{name}: {path}: {error}") from error
    if not is_url(expanded):
        _refuse_special_file(name, expanded)
    return expanded


def _refuse_special_file(name: str, path: str) -> None:
    """Raise BadInputError for a pipe or a device, which a reader would wait for; a missing file is accepted."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or (stat.S_ISFIFO(mode) and path.startswith(_OPEN_PIPES))):
        raise BadInputError(f"{name}: {path} is a pipe, a socket or a device; name a file")


def _config_name(path: str) -> str:
    if not path.strip():
        raise BadInputError("--config: the name is empty; name a YAML file or leave --config out")
    try:
        return expand(path)
    except ValueError as error:
        raise BadInputError(f"--config {path}: {error}") from error


def _given(argv: Sequence[str], parser: ArgumentParser) -> dict[str, Any]:
    """Return the fields that the command line sets."""
    _refuse_groups_beside_fields(argv)
    try:
        source: CliSettingsSource[ArgumentParser] = CliSettingsSource(
            _CliConfig, root_parser=parser, cli_parse_args=list(argv), formatter_class=argparse.HelpFormatter
        )
        return source()
    except SettingsError as error:  # a malformed list or mapping
        reason = " ".join(str(error).split())
        raise BadInputError(f"{reason}; write a mapping as NAME=VALUE, a list as A,B (see --help)") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, dotted keys expanded and a training file's sections flat (training_yaml.py).

    Raises BadInputError if there is none.
    """
    _refuse_special_file("--config", str(path))
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_YAML_BYTES + 1)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror}); name an existing YAML file") from error
    if len(raw) > _MAX_YAML_BYTES:
        raise BadInputError(f"{path}: larger than 1 MB, which no configuration is")
    data = _parse_yaml(path, raw)
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise BadInputError(f"{path}: must hold 'key: value' lines, such as 'task_suite: {_SUITE}'")
    return _expand_dots(path, flatten(data, _wrong_with_setting))


def _wrong_with_setting(name: str) -> str | None:
    """Return what is wrong with a dotted name; None if it is a setting, or a group of them."""
    is_setting = name in Config.model_fields or name in field_names()
    return None if is_setting else unknown_key(name, list(field_names()))


def validate(data: dict[str, Any]) -> Config:
    """Return the Config of a plain mapping. Raises BadInputError naming the first field that is wrong."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise BadInputError(_explain(error)) from error


def field_names(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Return every settable field by its dotted name."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from field_names(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


class _CliConfig(Config, BaseSettings):
    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_parse_none_str="null",
    )


def _parse_yaml(path: Path, raw: bytes) -> Any:
    try:
        data = load_unique(raw.decode("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInputError(f"{path}: not readable as YAML ({reason})") from error
    return {} if data is None else data


def _expand_dots(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Return `ray.address: auto` as `ray: {address: auto}`."""
    expanded: dict[str, Any] = {}
    for name, value in data.items():
        group, dot, field = name.partition(".")
        new = {group: {field: value}} if dot else {name: value}
        twice = next(_given_twice(expanded, new), None)
        if twice is not None:
            raise BadInputError(f"{path}: {twice} is given twice; keep one of them")
        if name not in expanded or value is not None:
            expanded = _merge(expanded, new)
    return expanded


def _given_twice(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names that both set; an empty group sets nothing."""
    for name in a.keys() & b.keys():
        if isinstance(a[name], dict) and isinstance(b[name], dict):
            yield from _given_twice(a[name], b[name], f"{prefix}{name}.")
        elif a[name] is not None and b[name] is not None:
            yield prefix + name


def _merge(below: dict[str, Any], above: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of both, `above` where they disagree. Raises BadInputError if only it nests a name."""
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        if isinstance(value, dict) and old is not None:
            if not isinstance(old, dict):
                raise BadInputError(f"{prefix}{name}: must hold its fields, not {_shorten(old)}")
            value = _merge(old, value, f"{prefix}{name}.")
        merged[name] = value
    return merged


def _refuse_groups_beside_fields(argv: Sequence[str]) -> None:
    """Raise BadInputError for `--ray '{...}'` beside `--ray.address`, because either could win."""
    options = [text[2:].partition("=")[0] for text in argv if text.startswith("--")]
    for name in {name.partition(".")[0] for name in field_names() if "." in name} & set(options):
        beside = next((option for option in options if option.startswith(f"{name}.")), None)
        if beside is not None or options.count(name) > 1:
            raise BadInputError(f"--{name}: is given beside {'--' + beside if beside else 'another'}; give its fields")


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"] if not _is_kind(part))
    if first["type"] == "extra_forbidden":
        return unknown_key(name, list(field_names()))
    reason = first["msg"].removeprefix("Value error, ")
    if not name:
        return reason
    return f"{name}: {reason}, not {_shorten(first['input'])}"


def _is_kind(part: int | str) -> bool:
    """Return whether a part of an error's place is one of the kinds that a value may be of, and no name."""
    return part in ("int", "constrained-int", "str") or "[" in str(part)


def _shorten(value: object) -> str:
    try:
        text = reprlib.repr(value)  # not repr, because YAML's aliases can make a small file a huge value
    except ValueError:  # Python prints no integer of over 4,300 digits
        return "so large a number"
    return text if len(text) <= 60 else text[:57] + "..."
