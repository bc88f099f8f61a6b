import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ftpkit import Client, __version__, system
from ftpkit.cli.logs import JsonFormatter, TextFormatter
from ftpkit.cli.serving import first_line
from ftpkit.net.address import Address
from ftpkit.protocol import encode_header
from tests.cli.conftest import WAIT_S, Run, Serve, Served, command
from tests.support.raw import Raw

needs_handing_over = pytest.mark.skipif(
    not system.HAS_HANDING_OVER, reason="connections cannot be handed to another process"
)


def test_the_first_line_says_where_and_what_to_type(serve: Serve, tmp_path: Path) -> None:
    served = serve()
    assert re.fullmatch(r"ftpk://127\.0\.0\.1:\d+", served.url)
    assert served.line == (
        f"ftpkit {__version__} serves {tmp_path / 'inbox'} at {served.url}"
        f" - send a file with: ftpkit put FILE --to {served.url}\n"
    )
    assert served.root.is_dir()
    code, log = served.end()
    assert code == 0
    assert "only this machine can connect" in log


def test_the_first_line_escapes_and_names_a_real_address() -> None:
    line = first_line("/srv/a\x1b[31m", Address("0.0.0.0", 7))
    assert "\x1b" not in line
    assert "0.0.0.0" not in line
    assert "ftpk://[::1]:7" in first_line("x", Address("::1", 7))


def test_plain_and_open_admit_everybody_and_say_so(serve: Serve) -> None:
    served = serve("--plain", "--open")
    port = Address.parse(served.url).port
    with Client(Address("127.0.0.1", port)) as client:
        client.ping()
    code, log = served.end()
    assert code == 0
    assert "whoever reaches this port can read, change and delete" in log
    assert "only this machine" not in log


def test_one_of_them_is_not_enough(serve: Serve) -> None:
    _, log = serve("--plain").end()
    assert "only this machine can connect" in log


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_loopback_host_needs_no_leave(serve: Serve, host: str) -> None:
    assert serve("--host", host).end()[0] == 0


def test_another_host_says_what_to_add(run: Run) -> None:
    result = run("serve", "--host", "0.0.0.0", "--port", "0")
    assert result.exit_code == 2
    assert "add --plain and --open" in result.stderr
    assert not Path("inbox").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(serve: Serve, number: int) -> None:
    code, log = serve().end(number)
    assert code == 0
    assert "Traceback" not in log
    assert "stopped" in log


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_it_at_once(serve: Serve, number: int, expected: int) -> None:
    served = serve("--grace", "1h")
    address = Address.parse(served.url)
    with (served.root / "sparse").open("wb") as file:
        file.truncate(2**30)
    with socket.create_connection((address.host, address.port), timeout=WAIT_S) as download:
        download.sendall(encode_header({"op": "get", "name": "sparse"}))
        # Once the reply begins, the transfer is a running one; we never read its end.
        assert download.recv(4, socket.MSG_WAITALL)
        assert served.process.stderr is not None
        served.process.send_signal(number)
        assert any("stopping" in line for line in served.process.stderr)
        served.process.send_signal(number)
        served.process.communicate(timeout=WAIT_S)
    assert served.process.returncode == expected


def test_what_cannot_be_served_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in ("file", "file/below"):
        result = run("serve", str(tmp_path / root), "--port", "0")
        assert result.exit_code == 1
        assert result.stderr.startswith(f"ftpkit: cannot serve {tmp_path / root}: ")
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""


def test_a_port_in_use_is_one_line(serve: Serve, tmp_path: Path) -> None:
    port = Address.parse(serve().url).port
    result = subprocess.run(
        command("serve", str(tmp_path / "other"), "--port", str(port)),
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"ftpkit: cannot listen on ftpk://localhost:{port}: Address already in use\n"
    )


@pytest.mark.skipif(not system.HAS_LOCKS, reason="there are no locks on files")
def test_a_root_in_use_is_one_line(serve: Serve) -> None:
    root = str(serve().root)
    result = subprocess.run(
        command("serve", root, "--port", "0"),
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == f"ftpkit: cannot serve {root}: another server uses {root}\n"


def test_nobody_reads_its_first_line(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        command("serve", str(tmp_path / "inbox"), "--port", "0"),
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
        timeout=WAIT_S,
    )
    os.close(write)
    assert b"Traceback" not in result.stderr


def test_the_log_has_a_line_for_each_transfer_and_connection(serve: Serve) -> None:
    served = serve()
    put(served)
    _, log = served.end()
    assert (
        re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d transfer .*name=a b", log, re.MULTILINE) is None
    )
    assert re.search(r'^[-0-9]+ [:0-9]+ transfer .*name="a b" bytes=5 .*outcome=ok', log, re.M)
    assert re.search(r"^[-0-9]+ [:0-9]+ connection ", log, re.MULTILINE)


def test_the_log_as_json(serve: Serve) -> None:
    served = serve("--log-json")
    put(served)
    _, log = served.end()
    records = [json.loads(line) for line in log.splitlines()]
    (transfer,) = [record for record in records if record["event"] == "transfer"]
    assert transfer.items() >= {"level": "info", "name": "a b", "bytes": 5}.items()
    assert {"listening", "notice", "connection", "stopped"} <= {r["event"] for r in records}


def test_a_quiet_log_is_empty(serve: Serve) -> None:
    served = serve("-q")
    put(served)
    assert served.end() == (0, "")


# What changes while it runs


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no such signal")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_its_settings_are_read_again(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    settings = tmp_path / "ftpkit.toml"
    settings.write_text("max-connections = 1\nport = 1")
    options = ("--config", str(settings), "--workers", workers, "--log-json")
    served = serve(*options)
    address = Address.parse(served.url)
    with Client(served.url) as client:
        client.ping()
        with Raw(address) as other:
            assert other.receive().code == "too-many-connections"
        settings.write_text("max-connections = 2\nno-udp = true\nport = 2")
        served.process.send_signal(signal.SIGHUP)
        log = lines_until(served, "reloaded" if workers == "2" else "read again")
        client.ping()
        with Raw(address) as other:
            other.granted("ping")
        settings.write_text("max-connections = -1")
        served.process.send_signal(signal.SIGHUP)
        log += lines_until(served, "the settings stay as they are")
        client.ping()
    served.end()
    assert log.count("no-udp changes with the next start only") == 1
    # The command line says which port, whatever the file does.
    assert "port changes" not in log
    assert "max-connections: expected a whole number" in log


def lines_until(served: Served, text: str) -> str:
    """Return what is logged up to a line with ``text``."""
    assert served.process.stderr is not None
    lines = []
    for line in served.process.stderr:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


@needs_handing_over
def test_a_line_of_the_log_says_which_worker_it_is_of(serve: Serve) -> None:
    served = serve("--workers", "2", "--log-json")
    put(served)
    code, log = served.end()
    records = [json.loads(line) for line in log.splitlines()]
    assert code == 0
    by_event = {record["event"]: record for record in records}
    assert by_event["transfer"]["worker"] in (1, 2)
    assert by_event["connection"]["worker"] in (1, 2)
    assert "worker" not in by_event["listening"]
    assert [record["event"] for record in records].count("listening") == 1


@needs_handing_over
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_workers_cleanly(serve: Serve, number: int) -> None:
    served = serve("--workers", "auto") if system.cores() > 1 else serve("--workers", "2")
    code, log = served.end(number)
    assert code == 0
    assert "Traceback" not in log
    assert "died" not in log
    assert "stopped" in log


@pytest.mark.parametrize("word", ["0", "many", "-1", "1001"])
def test_a_number_of_workers_that_is_none(run: Run, word: str) -> None:
    result = run("serve", "--workers", word)
    assert result.exit_code == 2
    assert "expected a whole number from 1 to 1000, or auto" in result.stderr


def put(served: Served) -> None:
    path = served.root.parent / "a b"
    path.write_bytes(b"12345")
    with Client(served.url) as client:
        client.put(path)


def record(event: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("ftpkit.server", logging.ERROR, "", 0, event, (), None)
    made.fields = fields
    return made


def test_a_record_is_one_line_that_no_terminal_obeys() -> None:
    made = record("transfer", name="a\n\x1b[31m b", bytes=5, rate=1.1e9, seconds=0.25, left=["x"])
    line = TextFormatter().format(made)
    assert line.endswith(
        'transfer name="a\\\\n\\\\x1b[31m b" bytes=5 rate=1100000000 seconds=0.250 left=x'
    )
    assert json.loads(JsonFormatter().format(made))["name"] == "a\n\x1b[31m b"


def test_an_error_is_one_line_that_says_where() -> None:
    made = record("error", reference="r")
    try:
        _ = 1 // 0
    except ZeroDivisionError:
        made.exc_info = sys.exc_info()
    for line in (TextFormatter().format(made), JsonFormatter().format(made)):
        assert "\n" not in line
        assert "ZeroDivisionError" in line
        assert "test_serve.py:" in line
