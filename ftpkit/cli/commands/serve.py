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
    "host", "Listen on this host name or address.", metavar="HOST", show_default="all interfaces"
)
@setting("port", "Listen on this TCP and UDP port; 0 picks a free one.", PORT, str(DEFAULT_PORT))
@setting("user", "Run as this user after opening the port; requires root.", metavar="NAME")
@setting(
    "state",
    "Directory of the server's key, certificate and tokens.",
    metavar="DIR",
    show_default="~/.local/state/ftpkit",
)
@setting(
    "cert", "Use this certificate chain (PEM) instead of a self-signed certificate.", metavar="FILE"
)
@setting(
    "key",
    "Private key of the certificate (PEM). Login URLs contain its pin, so keep the key when "
    "you renew the certificate.",
    metavar="FILE",
)
@setting(
    "plain",
    "Also accept unencrypted connections (anyone on the network path can read and change data).",
    bool,
)
@setting(
    "open",
    "Require no token (anyone who can reach the port can read, change and delete all files).",
    bool,
)
@setting("max-connections", "Maximum number of connections.", COUNT, "1024")
@setting(
    "max-connections-per-address", "Maximum number of connections from one address.", COUNT, "1000"
)
@setting(
    "idle-timeout", "Close a connection that has sent no request for this long.", TIMEOUT, "5m"
)
@setting(
    "stall-timeout",
    "Close a connection whose transfer has made no progress for this long.",
    TIMEOUT,
    "30s",
)
@setting(
    "expire-uploads",
    "Delete an unfinished upload that has not been resumed for this long.",
    DURATION,
    "7d",
)
@setting(
    "no-fsync", "Acknowledge uploads before they are durable (a power failure can lose them).", bool
)
@setting("no-udp", "Do not offer transfers over UDP.", bool)
@setting(
    "rate",
    "Limit the total rate in each direction, in bytes per second, like 100M. Set it slightly "
    "below the network's capacity to let --schedule decide which transfer moves.",
    RATE,
)
@setting("slots", "Limit the number of transfers that move at the same time; 0 is no limit.", SLOTS)
@setting(
    "schedule",
    "Policy that picks the next transfer when --rate or --slots make transfers wait: fcfs, "
    "sjf, rr, mlfq or fair.",
    SCHEDULE,
    "fair",
)
@setting("workers", "Number of worker processes; auto is one per core.", WORKERS, "1")
@setting("grace", "When stopping, wait this long for active transfers to finish.", DURATION, "30s")
@setting("verbose", "Log debug messages, too.", bool, flags=("-v", "--verbose"))
@quiet_option("Log warnings and errors only.")
@setting("log-json", "Log JSON, one object per line.", bool)
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
