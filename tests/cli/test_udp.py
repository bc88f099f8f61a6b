"""The messages and events of --udp, --udp-only and --no-udp."""

import json
import socket
import subprocess
from pathlib import Path

import pytest

from ftpkit import Address
from ftpkit.client.transfer import udp_session
from tests.cli.conftest import HERE, Run, Serve, Served, command
from tests.faults.relay import Relay
from tests.support.udp import port_taken_for_udp

BLOCK = 4 * 1024 * 1024


def test_up_and_down_as_datagrams(run: Run, served: Served) -> None:
    content = bytes(range(256)) * (BLOCK // 256) + b"end"
    Path("large.bin").write_bytes(content)
    up = run("put", "large.bin", "--udp-only")
    assert (up.exit_code, up.stderr) == (0, "")
    assert up.stdout.startswith("large.bin: 4.19 MB in ")
    assert run("get", "large.bin", "--udp-only", "-o", "copy").exit_code == 0
    assert Path("copy").read_bytes() == content == (served.root / "large.bin").read_bytes()


def test_blocked_udp_is_reported_and_continues_over_tcp(
    run: Run, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp_session, "_BLOCKED_S", 0.5)
    Path("large.bin").write_bytes(bytes(BLOCK + 1))
    with Relay(Address.parse(served.url)) as relay:
        url = str(relay.address)
        result = run("put", "large.bin", "--udp", "--to", url)
        assert result.exit_code == 0
        assert result.stderr == f"ftpkit: UDP to {url} is blocked; continuing over TCP\n"
        events = [
            json.loads(line)
            for line in run(
                "get", "large.bin", "--udp", "--json", "-o", "copy", "--from", url
            ).stdout.splitlines()
        ]
        (retry,) = [event for event in events if event["event"] == "retry"]
        assert (retry["code"], retry["seconds"]) == ("udp-blocked", 0)
        assert events[-1]["event"] == "done"
        for refused in (
            run("put", "large.bin", "--udp-only", "--to", url, "--retry-for", "1m"),
            run(
                "get", "large.bin", "--udp-only", "-o", "other", "--from", url, "--retry-for", "1m"
            ),
        ):
            assert refused.exit_code == 4
            assert refused.stderr == (
                f"ftpkit: large.bin: UDP to {url} is blocked; use --udp to continue over TCP\n"
            )
    assert not Path("other").exists()


def test_a_server_without_udp(run: Run, serve: Serve) -> None:
    served = serve("--no-udp")
    Path("large.bin").write_bytes(bytes(BLOCK + 1))
    port = Address.parse(served.url).port
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))
    result = run("put", "large.bin", "--udp", "--to", served.url)
    assert result.exit_code == 0
    assert result.stderr == f"ftpkit: {served.url} does not accept UDP; continuing over TCP\n"
    assert run("put", "large.bin", "--udp-only", "--to", served.url).exit_code == 4


def test_a_udp_port_in_use_is_a_one_line_error(tmp_path: Path) -> None:
    with port_taken_for_udp() as port:
        done = subprocess.run(
            command("serve", str(tmp_path / "inbox"), "--port", str(port), *HERE),
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        f"ftpkit: cannot listen on ftpk://127.0.0.1:{port}: Address already in use, for UDP; "
        "choose another port with --port\n"
    )
