"""`python -m wpray.jobs.remote`: entry point of a submitted run on the cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from wpray.cli.command import run_command
from wpray.cli.configuration import expand_paths
from wpray.cluster import process_env
from wpray.config import Config, path_fields
from wpray.jobs.manifest import RUN_INFO, make_manifest
from wpray.jobs.names import LOG, manifest_name, results_name
from wpray.jobs.package import Submission, unpack
from wpray.system.paths import is_url


def main(argv: Sequence[str] = ()) -> int:
    """Perform the submitted run; return the exit code that `wpray.launch` would have on the cluster."""
    process_env.prepare(joins_a_cluster=True)
    what = unpack(Path.cwd())
    os.chdir(Path.home())  # because Ray deletes the working directory
    config = from_home(Config.model_validate(what.config), Path.home())
    if what.plan:
        from wpray.run.plan import show_plan

        return show_plan(config)
    return _evaluate(config, what)


def from_home(config: Config, home: Path) -> Config:
    """Return `config` with expanded, absolute paths: actors on other nodes have another working directory.

    Raises BadInputError for a path that cannot be expanded here.
    """
    config = expand_paths(config)
    given = {name: getattr(config, name) for name in path_fields()}
    paths = {name: str(home / path) for name, path in given.items() if path is not None and not is_url(path)}
    return config.model_copy(update=paths)


def _evaluate(config: Config, what: Submission) -> int:
    from wpray.run.evaluation import evaluate
    from wpray.run.output import choose_folder

    if config.output_dir is not None and is_url(config.output_dir):
        return evaluate(config)
    folder = choose_folder(config, claim=True).path.absolute()
    try:
        return evaluate(config.model_copy(update={"output_dir": str(folder)}))
    finally:
        if config.ray.fetch and (folder / RUN_INFO).exists():
            try:
                offer(folder, _logs_folder(what.job_id), what.job_id)
            except (OSError, ValueError, KeyError) as error:  # the results exist even if they cannot be listed
                print(f"warning: the results in {folder} cannot be fetched: {error}", file=sys.stderr)


def offer(folder: Path, logs: Path, job_id: str) -> None:
    """Put a link to `folder` and its manifest among Ray's logs, which the dashboard serves."""
    link, manifest = logs / results_name(job_id), logs / manifest_name(job_id)
    link.unlink(missing_ok=True)
    link.symlink_to(folder, target_is_directory=True)
    manifest.write_bytes(make_manifest(folder).as_json())


def _logs_folder(job_id: str) -> Path:
    """Return the folder of this Ray session's logs, which the job's output reveals."""
    log = Path(os.readlink("/proc/self/fd/1"))
    if log.name != LOG.format(job_id=job_id):
        raise ValueError(f"not started by Ray as the job {job_id}: the output goes to {log}")
    return log.parent


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
