"""The command ``serve``."""

from typing import Any

import click

from ftpkit.cli.settings import (
    COUNT,
    DURATION,
    PORT,
    RATE,
    SCHEDULE,
    SLOTS,
    TIMEOUT,
    WORKERS,
    ReloadableCommand,
    config_option,
    quiet_option,
    setting,
    variable,
)
from ftpkit.net.address import DEFAULT_PORT


@click.command(cls=ReloadableCommand)
@click.argument("root", envvar=variable("root"), default="inbox")
@setting(
    "host",
    metavar="HOST",
    show_default="all interfaces",
    help="Listen on this host name or address.",
)
@setting(
    "port",
    type=PORT,
    metavar="PORT",
    default=str(DEFAULT_PORT),
    help="Listen on this TCP and UDP port; 0 picks a free one.",
)
@setting("user", metavar="NAME", help="Run as this user after opening the port; requires root.")
@setting(
    "state",
    metavar="DIR",
    show_default="~/.local/state/ftpkit",
    help="Directory of the server's key, certificate and tokens.",
)
@setting(
    "cert",
    metavar="FILE",
    help="Use this certificate chain (PEM) instead of a self-signed certificate.",
)
@setting(
    "key",
    metavar="FILE",
    help="Private key of the certificate (PEM). Login URLs contain its pin, so keep the key when "
    "you renew the certificate.",
)
@setting(
    "plain",
    is_flag=True,
    help="Also accept unencrypted connections (anyone on the network path can read and change "
    "data).",
)
@setting(
    "open",
    is_flag=True,
    help="Require no token (anyone who can reach the port can read, change and delete all files).",
)
@setting(
    "max-connections",
    type=COUNT,
    metavar="N",
    default="1024",
    help="Maximum number of connections.",
)
@setting(
    "max-connections-per-address",
    type=COUNT,
    metavar="N",
    default="1000",
    help="Maximum number of connections from one address.",
)
@setting(
    "idle-timeout",
    type=TIMEOUT,
    metavar="TIME",
    default="5m",
    help="Close a connection that has sent no request for this long.",
)
@setting(
    "stall-timeout",
    type=TIMEOUT,
    metavar="TIME",
    default="30s",
    help="Close a connection whose transfer has made no progress for this long.",
)
@setting(
    "expire-uploads",
    type=DURATION,
    metavar="TIME",
    default="7d",
    help="Delete an unfinished upload that has not been resumed for this long.",
)
@setting(
    "no-fsync",
    is_flag=True,
    help="Acknowledge uploads before they are durable (a power failure can lose them).",
)
@setting("no-udp", is_flag=True, help="Do not offer transfers over UDP.")
@setting(
    "rate",
    type=RATE,
    metavar="RATE",
    help="Limit the total rate in each direction, in bytes per second, like 100M. Set it slightly "
    "below the network's capacity to let --schedule decide which transfer moves.",
)
@setting(
    "slots",
    type=SLOTS,
    metavar="N",
    help="Limit the number of transfers that move at the same time; 0 is no limit.",
)
@setting(
    "schedule",
    type=SCHEDULE,
    metavar="POLICY",
    default="fair",
    help="Policy that picks the next transfer when --rate or --slots make transfers wait: fcfs, "
    "sjf, rr, mlfq or fair.",
)
@setting(
    "workers",
    type=WORKERS,
    metavar="N",
    default="1",
    help="Number of worker processes; auto is one per core.",
)
@setting(
    "grace",
    type=DURATION,
    metavar="TIME",
    default="30s",
    help="When stopping, wait this long for active transfers to finish.",
)
@setting("verbose", "-v", "--verbose", is_flag=True, help="Log debug messages, too.")
@quiet_option("Log warnings and errors only.")
@setting("log-json", is_flag=True, help="Log JSON, one object per line.")
@config_option("FTPKIT_SERVER_CONFIG")
def serve(**values: Any) -> int:
    """Serve the files in the directory ROOT.

    ROOT is created if it does not exist.  [default: inbox]

    The first start creates a key and a token with all permissions, and prints a login URL for
    clients. 'ftpkit token add' creates login URLs with fewer permissions. Connections use TLS.
    Sockets passed by a service manager (socket activation) are used instead of --host and --port.

    SIGTERM and Ctrl-C stop the server after active transfers have finished, a second one stops it
    immediately. SIGHUP reloads the settings and the certificate without closing connections.

    \b
    Example:  ftpkit serve /srv/inbox
    """
    # Deferred: 'ftpkit --help' starts faster without the server.
    from ftpkit.cli.serve.options import ServeOptions
    from ftpkit.cli.serve.runner import run_server

    return run_server(ServeOptions.parse(values), click.get_current_context())
