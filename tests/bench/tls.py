"""How fast one file goes up and down over TLS, beside nginx, scp and the cipher alone.

How to run it, from the top of a checkout, with the extras ``dev`` and ``bench`` installed:

    python -m tests.bench.tls [--size 512Mi] [--runs 5] [--directory DIR]

Whole processes are measured, from start to exit, over loopback, one after the other, as
``tests.bench.single_stream`` does; a first round does not count. nginx takes the file with PUT
(DAV) from curl, scp has aes128-gcm and a server of its own; where a program is missing, or
does not start, its rows are left out. ftpkit verifies every block and brings the file to stable
storage, the others do neither. The bound is what OpenSSL encrypts with one core: no transfer can
be faster while each side has one.
"""

import argparse
import functools
import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from ftpkit.net.tls_identity import Identity
from tests.bench.processes import (
    HERE,
    CommandFailedError,
    MiB,
    check_equal,
    check_space,
    fast_directory,
    ftpkit,
    parse_size,
    run,
    serving,
    write_file,
)

_GiB: Final = 1024 * MiB
_CURL: Final = ("curl", "-q", "-sS", "-k", "--noproxy", "*")
# Where servers are is not in everybody's path.
_PATH: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
_CIPHER: Final = "aes-256-gcm"

_say: Final = functools.partial(print, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to move a file in one direction: a command, and where the file is then."""

    direction: str
    name: str
    command: list[str]
    result: str
    seconds: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    check_space(options.directory, 3 * options.size)
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir=options.directory))
        source = os.path.join(directory, "source")
        write_file(source, options.size)
        ways = [
            *_ftpkit(stack, directory, source, "TLS"),
            *_ftpkit(stack, directory, source, "plaintext", *HERE),
        ]
        for others, programs in ((_nginx, ("nginx", "curl")), (_scp, ("sshd", "scp"))):
            missing = [name for name in programs if shutil.which(name, path=_PATH) is None]
            if missing:
                _say(f"{programs[0]} is left out: there is no {' and no '.join(missing)} here")
                continue
            try:
                ways += others(stack, directory, source)
            except CommandFailedError as error:
                _say(f"{programs[0]} is left out: {error}")
        for number in range(options.runs + 1):
            _say(f"round {number} of {options.runs}" if number else "a round that does not count")
            for way in ways:
                seconds = run(way.command).seconds
                check_equal(source, way.result)
                os.unlink(way.result)
                if number:
                    way.seconds.append(seconds)
    print(_table(options, ways))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.tls", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--size", type=parse_size, default="512Mi", help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--directory", default=fast_directory(), help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("--runs: at least 1")
    return options


def _ftpkit(stack: ExitStack, directory: str, source: str, over: str, *how: str) -> list[Way]:
    root, down = _places(directory, f"ftpkit-{over}", source)
    command = ftpkit("serve", root, "--port", "0", "--host", "127.0.0.1", *how)
    _, url = stack.enter_context(serving(command, r"(?:login|--to) (ftpk\S+)"))
    name = f"ftpkit, {over}"
    put = ftpkit("put", source, "--as", "new", "--to", url)
    get = ftpkit("get", "held", "-o", down, "--from", url)
    return [
        Way(direction="upload", name=name, command=put, result=os.path.join(root, "new")),
        Way(direction="download", name=name, command=get, result=down),
    ]


def _nginx(stack: ExitStack, directory: str, source: str) -> list[Way]:
    root, down = _places(directory, "nginx", source)
    etc, port, identity = os.path.join(directory, "nginx.etc"), _free_port(), Identity.make()
    os.mkdir(etc)
    _write(os.path.join(etc, "certificate"), identity.certificate.decode())
    _write(os.path.join(etc, "key"), identity.key.decode())
    configuration = f"""
        daemon off; user {getpass.getuser()}; pid {etc}/pid; error_log stderr notice;
        events {{}}
        http {{
            access_log off; sendfile on; client_max_body_size 0; root {root};
            client_body_temp_path {etc}/body; proxy_temp_path {etc}/proxy;
            fastcgi_temp_path {etc}/fastcgi; uwsgi_temp_path {etc}/uwsgi;
            scgi_temp_path {etc}/scgi;
            server {{
                listen 127.0.0.1:{port} ssl; dav_methods PUT; ssl_protocols TLSv1.3;
                ssl_certificate {etc}/certificate; ssl_certificate_key {etc}/key;
            }}
        }}"""
    _write(os.path.join(etc, "conf"), configuration)
    server = [_found("nginx"), "-e", "stderr", "-p", etc, "-c", os.path.join(etc, "conf")]
    stack.enter_context(serving(server, r"(start worker processes)"))
    url = f"https://127.0.0.1:{port}"
    put, get = [*_CURL, "-T", source, f"{url}/new"], [*_CURL, "-o", down, f"{url}/held"]
    name = "nginx, curl"
    return [
        Way(direction="upload", name=name, command=put, result=os.path.join(root, "new")),
        Way(direction="download", name=name, command=get, result=down),
    ]


def _scp(stack: ExitStack, directory: str, source: str) -> list[Way]:
    root, down = _places(directory, "scp", source)
    etc, port = os.path.join(directory, "scp.etc"), _free_port()
    os.mkdir(etc, 0o700)
    for name in ("host", "user"):
        key = os.path.join(etc, name)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
    server = [
        _found("sshd"), "-D", "-e", "-f", os.devnull, "-h", os.path.join(etc, "host"),
        "-o", f"ListenAddress=127.0.0.1:{port}", "-o", f"PidFile={etc}/pid",
        "-o", f"AuthorizedKeysFile={etc}/user.pub", "-o", "StrictModes=no",
        "-o", "PermitRootLogin=yes", "-o", "Subsystem=sftp internal-sftp",
    ]  # fmt: skip
    stack.enter_context(serving(server, r"(listening on)"))
    scp = [
        "scp", "-q", "-F", os.devnull, "-c", "aes128-gcm@openssh.com", "-P", str(port),
        "-i", os.path.join(etc, "user"), "-o", "StrictHostKeyChecking=no",
        "-o", f"UserKnownHostsFile={os.devnull}", "-o", "LogLevel=ERROR",
    ]  # fmt: skip
    there, name = f"{getpass.getuser()}@127.0.0.1:{root}", "scp, aes128-gcm"
    put, get = [*scp, source, f"{there}/new"], [*scp, f"{there}/held", down]
    return [
        Way(direction="upload", name=name, command=put, result=os.path.join(root, "new")),
        Way(direction="download", name=name, command=get, result=down),
    ]


def _places(directory: str, name: str, source: str) -> tuple[str, str]:
    """Return a root that holds the source, and where it is to come to."""
    root = os.path.join(directory, name)
    os.mkdir(root)
    shutil.copyfile(source, os.path.join(root, "held"))
    return root, os.path.join(directory, f"{name}.down")


def _found(program: str) -> str:
    """Return where a program is; sshd starts itself again, and so must know."""
    return shutil.which(program, path=_PATH) or program


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _bound() -> float | None:
    """Return how many bytes a second one core encrypts, if there is an ``openssl`` to say so."""
    if shutil.which("openssl") is None:
        return None
    command = ["openssl", "speed", "-seconds", "1", "-bytes", "16384", "-evp", _CIPHER]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"([0-9.]+)k\s*$", said)
    return float(found[1]) * 1000 if found else None


def _table(options: argparse.Namespace, ways: Sequence[Way]) -> str:
    size = options.size
    lines = [
        f"{size / MiB:,.0f} MiB over loopback into {options.directory}, {options.runs} interleaved"
        " runs, medians (min to max).",
        "",
        "| | | seconds | GiB/s | ftpkit over TLS is |",
        "|---|---|---|---|---|",
    ]
    for direction in ("upload", "download"):
        own, *others = [way for way in ways if way.direction == direction]
        for way in (own, *others):
            ratios = [theirs / ours for ours, theirs in zip(own.seconds, way.seconds, strict=True)]
            cells = [
                direction,
                way.name,
                _spread(way.seconds),
                f"{size / median(way.seconds) / _GiB:.2f}",
                "" if way is own else f"{_spread(ratios)} times",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    bound = _bound()
    if bound is not None:
        lines += ["", f"openssl speed, {_CIPHER}, one core: {bound / _GiB:.2f} GiB/s"]
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
