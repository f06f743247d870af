"""`python -m wpray.serve --config FILE`: serves a policy of wpray by openpi's websocket protocol."""

from __future__ import annotations

import ipaddress
import logging
import os
import sys
from collections.abc import Sequence

from wpray.cli.command import run_command
from wpray.cli.configuration import read_config
from wpray.cli.parser import ArgumentParser
from wpray.config import Config
from wpray.errors import BadInputError

_ABOUT = (
    "Serves the configured policy by openpi's websocket protocol until Ctrl-C: any client of that protocol can use it, "
    "wpray's own `policy: openpi` included. Requests of many clients are computed in one batch."
)


def main(argv: Sequence[str]) -> int:
    """Serve until interrupted. Raises BadInputError for a policy that no client can feed."""
    parser = ArgumentParser(prog="python -m wpray.serve", description=_ABOUT)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on, 0: any (default: %(default)s)")
    parser.add_argument(
        "--token_env", metavar="NAME", help="environment variable that holds the token that clients must send"
    )
    config = read_config(argv, parser)
    options = parser.parse_known_args(argv)[0]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    token = _token(options.token_env)
    serve_policy(config, options.host, options.port, token)
    return 0


def serve_policy(config: Config, host: str, port: int, token: str | None) -> None:
    """Load the policy and serve it until interrupted."""
    from wpray.orchestration.loop_options import loop_options
    from wpray.policies.factory import build_policy, policy_spec
    from wpray.policies.relay import answering

    try:
        from wpray.serve.server import PolicyService
        from wpray.serve.session import SharedPolicy
        from wpray.serve.walk import space_of
    except ModuleNotFoundError as error:
        raise BadInputError(f"serve: {error}; pip install 'wpray[remote]'") from error

    log = logging.getLogger("wpray.serve")
    if policy_spec(config).privileged:
        raise BadInputError(f"policy: {config.policy} sees simulator truth, which no client sends; serve another")
    _refuse_what_clients_decide(config)
    policy = build_policy(config)
    if config.replan_on_deviation and space_of(policy) is None:
        raise BadInputError(f"replan_on_deviation: {config.policy} has no space of waypoints (space); leave it out")
    sources = getattr(policy, "sources", None)
    for line in (*sources.lines, *sources.warnings) if sources else ():
        log.info("%s", line)
    service = SharedPolicy(policy, answering(policy, config.batching), config, loop_options(config))
    server = PolicyService(service, host, port, token)
    if token is None and not _is_loopback(host):
        log.warning("anybody who reaches %s can use the policy; --token_env NAME asks for a token", host)
    log.info("serving %s at ws://%s:%d; Ctrl-C ends it", config.policy, host, server.port)
    server.run()


def _refuse_what_clients_decide(config: Config) -> None:
    """Raise BadInputError for a variant of the episode's loop that the server has no part in."""
    wanted = {
        "strict_step_budget": (not config.strict_step_budget, "the limit of steps is the client's"),
        "latency.extra_ms": (config.latency.extra_ms, "policy: openpi has it in its own configuration"),
    }
    for name, (given, remedy) in wanted.items():
        if given:
            raise BadInputError(f"{name}: needs the episode's own loop, which is the client's; leave it out ({remedy})")


def _token(name: str | None) -> str | None:
    if name is None:
        return None
    token = os.environ.get(name)
    if not token:
        raise BadInputError(f"--token_env: the environment variable {name} is not set; export it or leave this out")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
