"""Selection of a run's folder, and the content of its run.json."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wpray.benchmarks.factory import group_name
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.orchestration.actors import ActorHost
from wpray.orchestration.driver import RunRecord
from wpray.provenance import record
from wpray.provenance.origins import identity, named_versions, origins, part_versions
from wpray.provenance.settings import differing_fields, fingerprint, outcome_fields
from wpray.results.atomic import DiskFullError
from wpray.results.mirrored import MirroredFolder
from wpray.results.names import safe_name
from wpray.results.schema import SCHEMA_VERSION
from wpray.results.sessions import PROTOCOL, decisive_differences, gpus, noted, sessions
from wpray.results.writer import RunFolder
from wpray.storage.url import location_of

_LOG = logging.getLogger(__name__)
ROOT = Path("runs")
_OF_SESSIONS = ("renderer", "drawing")  # facts of a run that may change when it is resumed
_TRIALS = {"tasks": None, "task_start": 0, "task_end": None, "num_trials_per_task": 1}  # with what they are by default


def choose_folder(config: Config, claim: bool = False, software: Mapping[str, str] | None = None) -> RunFolder:
    """Return the configured folder; else the newest unfinished one of the same configuration; else a new one.

    New ones lie under runs/. `claim`: a new one is created at once, so that two runs that start together get two
    folders. `software` is what would run (default: this machine's); an unfinished run of another simulator is left
    alone. Raises BadInputError, changing nothing, if the configured folder holds something else than a run.
    """
    if config.output_dir is not None:
        place = location_of(config.output_dir)
        folder = RunFolder(place) if isinstance(place, Path) else MirroredFolder(place)
        _check_is_a_run_or_empty(folder)
        return folder
    stem = safe_name(f"{group_name(config.suites, config.benchmark)}_{config.policy}")
    if config.resume != "never":
        ours = _ours(config, software)
        for path in sorted(ROOT.glob(f"{stem}_*"), reverse=True):
            if _goes_on_with(path, config, ours):
                return RunFolder(path)
    return RunFolder(new_path(ROOT / f"{stem}_{datetime.now():%Y%m%d-%H%M%S}", claim and config.resume != "only"))


@contextlib.contextmanager
def opened(folder: RunFolder, config: Config, software: Mapping[str, str] | None = None) -> Iterator[RunFolder]:
    """Yield the folder, locked. Raises BadInputError if it holds results that `config` must not mix with.

    `software`: versions and digests of what will run, as `check_nodes` returns them; default: this machine's.
    """
    if config.resume == "only" and folder.read_info() is None:
        raise BadInputError(f"resume only: {folder.location} holds no run to go on with; use resume auto")
    check_what_is_there(folder, config, software)  # before anything is created
    folder.open()
    try:
        check_what_is_there(
            folder, config, software
        )  # checked again, because another driver may have written before the lock was ours
        yield folder
        folder.flush()
    finally:
        folder.close()


@dataclass(slots=True)
class RunInfo(RunRecord):
    """The content of run.json."""

    folder: RunFolder
    data: dict[str, Any]
    resumed: bool
    session: int | None = None  # index of this session; None if it runs no episode
    changes: tuple[str, ...] = ()  # differences from the session before that may change last bits

    @classmethod
    def read_or_new(
        cls,
        config: Config,
        folder: RunFolder,
        run_id: str,
        facts: Mapping[str, Any],
        software: Mapping[str, str] | None = None,
        works: bool = True,
    ) -> RunInfo:
        """Return the folder's run.json to continue, or a new one; `facts` are the run's own (renderer, policy).

        `software`: as `opened` takes it. `works`: True if this process has episodes to run. It is a session then, and
        the versions, origins, commit, host and renderer at the top level are the newest session's.
        """
        known = folder.read_info()
        earlier = sessions(known) if known else []
        fresh = {
            "schema_version": SCHEMA_VERSION,
            "run_id": known["run_id"] if known else run_id,
            "started_at": known["started_at"] if known else _now(),
            "config": config.model_dump(mode="json"),
            "outcome_fields": outcome_fields(config),
            "fingerprint": fingerprint(config),
            **facts,
        }
        info = cls(folder, {**(known or {}), **fresh}, known is not None)
        if works or not earlier:
            info._begin(_new_session(config, software, facts), earlier)
        else:
            info.data |= {name: earlier[-1][name] for name in _OF_SESSIONS if name in earlier[-1]}
        return info

    def _begin(self, session: dict[str, Any], earlier: list[dict[str, Any]]) -> None:
        self.session, self.changes = len(earlier), tuple(noted(earlier[-1], session)) if earlier else ()
        self.data |= {name: value for name, value in session.items() if name not in ("started", "ended", "hosts")}
        self.data["sessions"] = [*earlier, session]

    @property
    def run_id(self) -> str:
        """Name of the run in every row."""
        run_id: str = self.data["run_id"]
        return run_id

    def add_hosts(self, hosts: Mapping[str, ActorHost]) -> None:
        """Note the machines that take part: renderer, package versions, and the GPU of a policy."""
        if self.session is None:
            return
        before = gpus(self.data["sessions"])
        known = self.data["sessions"][self.session]["hosts"]
        for host in hosts.values():
            entry = known.setdefault(host.name, {"versions": host.versions, "renderer": None})
            entry["renderer"] = host.renderer or entry["renderer"]
            if host.gpu is not None:
                entry["gpu"] = host.gpu
                _warn_of_another_gpu(host.name, host.gpu, before)
        self.data["hosts"] = {**self.data.get("hosts", {}), **known}

    @property
    def knows_files(self) -> bool:
        """True if results exist and the policy's files that produced them are known by digest."""
        return bool(self.data.get("policy_files"))

    def add_files(self, hashes: Mapping[str, str]) -> None:
        """Write the SHA-256 of the policy's files. Raises BadInputError if the run was begun with others."""
        known = self.data.setdefault("policy_files", {})
        for path, digest in hashes.items():
            if known.setdefault(path, digest) != digest:
                raise BadInputError(
                    f"{path} has changed since the run in {self.folder.location} began; choose another output_dir"
                )
        with contextlib.suppress(DiskFullError):  # the run continues, and reports a full disk itself
            self.save("running")

    def add_sources(self, facts: Mapping[str, Any]) -> None:
        """Note what the policy took from its files: data set of the statistics, tensors left out."""
        if facts:
            self.data["policy_sources"] = dict(facts)

    def add_environments(self, number: int, because: str, save: bool = True) -> None:
        """Note the number of environments from now on, and why, in the session of this process.

        `save`: write run.json now, which must wait until the policy's files are compared with those of the results.
        """
        if self.session is None:
            return
        change = {"at": _now(), "number": number, "because": because}
        self.data["sessions"][self.session].setdefault("environments", []).append(change)
        if save:
            with contextlib.suppress(DiskFullError):  # the run continues, and reports a full disk itself
                self.save("running")

    def save(self, state: str, reason: str | None = None) -> None:
        """Write run.json; `state` is running, finished or stopped (for `reason`)."""
        self.data |= {"state": state, "stop_reason": reason, "written_at": _now()}
        if self.session is not None and state != "running":
            self.data["sessions"][self.session]["ended"] = self.data["written_at"]
        self.folder.write_info(self.data)


def _check_is_a_run_or_empty(folder: RunFolder) -> None:
    names, place = folder.list_names(), folder.location
    if names - {".lock", "parts", "trajectories"} and "run.json" not in names:
        raise BadInputError(f"output_dir: {place} holds files but no run.json, so not a run; choose another output_dir")
    if "run.json" not in names and folder.has_rows():
        raise BadInputError(f"output_dir: {place} holds results but no run.json; choose another output_dir")


def check_what_is_there(folder: RunFolder, config: Config, software: Mapping[str, str] | None = None) -> None:
    """Raise BadInputError if the folder holds results that `config` or `software` must not mix with."""
    info = folder.read_info()
    if info is None:
        return
    _check_same_run(info, config, folder.location)
    other = decisive_differences(sessions(info)[-1], _ours(config, software))
    if other:
        raise BadInputError(
            f"output_dir: {folder.location} holds results of other software, which differs in: {', '.join(other)}; "
            "go on with what made them, or choose another output_dir"
        )


def _ours(config: Config, software: Mapping[str, str] | None) -> dict[str, str]:
    found = identity(config.suites, config.benchmark, config.policy) if software is None else software
    return {**found, PROTOCOL: str(record.PROTOCOL_VERSION)}


def _new_session(config: Config, software: Mapping[str, str] | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Describe this process; versions are the nodes' where `software` holds them."""
    found = {name: origin.as_dict() for name, origin in origins(config.suites, config.benchmark).items()}
    session: dict[str, Any] = {"started": _now(), "ended": None, **record.collect().as_dict()}
    here = record.described(found)
    parts = part_versions(config.suites, config.benchmark, config.policy)
    parts |= named_versions(config.suites, config.benchmark)
    session["versions"] |= {name: text for name, text in (software or parts).items() if name not in here}
    session |= {"wpray_protocol": record.PROTOCOL_VERSION, "origins": found, "hosts": {}}
    return session | {name: facts[name] for name in _OF_SESSIONS if name in facts}


def _warn_of_another_gpu(host: str, gpu: str, before: set[str]) -> None:
    if before and gpu not in before:
        text = "the policy on %s answers on %s, earlier on %s: answers are equal to the bit on one kind of GPU only"
        _LOG.warning(text, host, gpu, ", ".join(sorted(before)))
        before.add(gpu)  # so that each kind of GPU is reported once


def _check_same_run(info: Mapping[str, Any], config: Config, place: str) -> None:
    if config.resume == "never":
        raise BadInputError(f"output_dir: {place} holds another run's results; choose another, or use resume auto")
    theirs = info.get("outcome_fields")
    if not isinstance(theirs, dict) or not isinstance(info.get("run_id"), str) or "started_at" not in info:
        raise BadInputError(f"output_dir: the run.json in {place} does not describe a run; choose another output_dir")
    different = differing_fields(theirs, config)
    if different:
        listed = ", ".join(f"{name} ({there!r} there, {here!r} here)" for name, there, here in different[:5])
        raise BadInputError(f"output_dir: {place} holds another configuration's results, which differs in: {listed}")


def is_finished(path: Path, config: Config) -> bool:
    """Return whether the folder holds a finished run of the trials and settings of `config`."""
    info = _readable_info(path)
    if info is None or info.get("state") != "finished":
        return False
    return _same_trials(info, config) and _same_settings(info, config)


def _goes_on_with(path: Path, config: Config, software: Mapping[str, str]) -> bool:
    """Return whether the run in `path` is unfinished and has the trials, settings and simulator of `config`."""
    info = _readable_info(path)
    if info is None or info.get("state") == "finished":
        return False
    same = _same_trials(info, config) and _same_settings(info, config)
    return same and not decisive_differences(sessions(info)[-1], software) and not RunFolder(path).is_locked()


def _readable_info(path: Path) -> dict[str, Any] | None:
    try:
        info = json.loads((path / "run.json").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return info if isinstance(info, dict) and isinstance(info.get("config"), dict) else None


def _same_settings(info: Mapping[str, Any], config: Config) -> bool:
    theirs = info.get("outcome_fields")
    return isinstance(theirs, dict) and not differing_fields(theirs, config)


def _same_trials(info: Mapping[str, Any], config: Config) -> bool:
    asked = config.model_dump(mode="json")
    return all(info["config"].get(name, default) == asked[name] for name, default in _TRIALS.items())


def new_path(path: Path, claim: bool) -> Path:
    """Return `path`, or it with a number, because many runs may start within a second.

    Raises BadInputError if it cannot be made.
    """
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], numbered) if _is_free(name, claim))


def _is_free(path: Path, claim: bool) -> bool:
    if not claim:
        return not path.exists()
    try:
        path.mkdir(parents=True)
    except FileExistsError as error:
        if not ROOT.is_dir():
            raise BadInputError(f"cannot write to {ROOT}: it is no folder; choose an output_dir") from error
        return False
    except OSError as error:
        raise BadInputError(f"cannot write to {path} ({error.strerror}); choose an output_dir") from error
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
