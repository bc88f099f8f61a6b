"""Which server a client's command talks to."""

import os

import click

from ftpkit.cli.settings import TIMEOUT, URL, Command, config_option, setting
from ftpkit.client import Client, Udp
from ftpkit.net.address import DEFAULT_PORT, Address


def _settings_file() -> str:
    return os.path.join(click.get_app_dir("ftpkit"), "client.toml")


def target_options(command: Command) -> Command:
    """Add what every command of the client takes: ``url``, ``timeout``, and the settings file."""
    options = (
        setting(
            "url",
            "--to",
            "--from",
            type=URL,
            metavar="URL",
            default=f"ftpk://127.0.0.1:{DEFAULT_PORT}",
            show_default=True,
            help="The server; both spellings mean the same.",
        ),
        setting(
            "timeout",
            "--timeout",
            type=TIMEOUT,
            metavar="TIME",
            default="30s",
            show_default=True,
            help="Give up on a server that is silent for so long.",
        ),
        config_option("FTPKIT_CONFIG", _settings_file, where="~/.config/ftpkit/client.toml"),
    )
    for option in reversed(options):
        command = option(command)
    return command


def connect(
    url: Address,
    timeout: float,
    rate: float | None = None,
    retry_for: float = 0.0,
    udp: Udp = Udp.NO,
    jobs: int = 1,
) -> Client:
    """Return a client of ``url`` that connects when it is used; ``rate`` in bytes a second."""
    return Client(
        url,
        timeout_s=timeout,
        rate_bps=rate,
        retry_for_s=retry_for,
        memory=_memory_directory(),
        udp=udp,
        jobs=jobs,
    )


def _memory_directory() -> str:
    """Return where digests of sent blocks are kept: the place for what can be made again."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "ftpkit", "blocks")
