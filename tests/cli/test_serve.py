import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from ftpkit import Client, __version__
from ftpkit.cli.paths import local_servers_directory
from ftpkit.cli.serve.banner import first_line, is_loopback, reachable
from ftpkit.client.known_hosts import LocalServers
from ftpkit.net.address import Address, Url
from ftpkit.net.tls_identity import Identity
from ftpkit.osapi import files as os_files
from ftpkit.osapi import process as os_process
from ftpkit.osapi import sockets as os_sockets
from ftpkit.protocol import encode_header
from tests.cli.conftest import WAIT_S, Run, Serve, ServeProcess, command
from tests.support.raw import Raw

needs_hangup = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no such signal")
needs_handing_over = pytest.mark.skipif(
    not os_sockets.HAS_FD_PASSING, reason="connections cannot be handed to another process"
)


def test_the_first_line_shows_the_address_and_the_next_command(
    serve: Serve, tmp_path: Path
) -> None:
    served = serve()
    assert re.fullmatch(r"ftpk://127\.0\.0\.1:\d+", served.url)
    assert served.line == (
        f"ftpkit {__version__} serves {tmp_path / 'inbox'} at {served.url}"
        f"; to upload a file, run: ftpkit put FILE --to {served.url}\n"
    )
    assert served.root.is_dir()
    code, log = served.end()
    assert code == 0
    assert "--" not in log


def test_the_first_line_shows_the_same_login_url_at_each_start(
    serve: Serve, tmp_path: Path
) -> None:
    login_urls = []
    for _ in range(2):
        served = serve("--log-json", "--verbose", default=True)
        url = Url.parse(served.url)
        assert url.token is not None
        assert served.line == (
            f"ftpkit {__version__} serves {served.root} at {url}"
            f"; on a client, run: ftpkit login {served.url}\n"
        )
        assert pin_of(url.address) == url.pin
        code, log = served.end()
        assert code == 0
        assert "warning" not in log
        assert url.token not in log
        login_urls.append((url.token, url.pin))
    assert login_urls[0] == login_urls[1]


def pin_of(address: Address) -> str:
    """The pin of the key that a server shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(address, timeout=WAIT_S) as sock,
        context.wrap_socket(sock) as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
    assert shown is not None
    return Identity(ssl.DER_cert_to_PEM_cert(shown).encode(), b"").pin


def test_connections_without_tls_or_token_are_refused(serve: Serve, tmp_path: Path) -> None:
    address = Url.parse(serve(default=True).url).address
    with Raw(address) as raw:
        raw.send({"op": "ping"})
        reply = raw.receive()
        assert (reply.code, reply.closes) == ("tls-required", True)
    with Raw(Url.parse(serve("--plain", default=True, root=tmp_path / "other").url).address) as raw:
        assert raw.refused("ping") == "auth-required"


def test_open_needs_no_token_but_tls(serve: Serve) -> None:
    served = serve("--open", default=True)
    url = Url.parse(served.url)
    assert (url.token, url.pin) == (None, pin_of(url.address))
    assert served.line.endswith(f"; to upload a file, run: ftpkit put FILE --to {served.url}\n")
    _, log = served.end()
    assert "--open: anyone who can reach the port can read, change and delete all files" in log
    assert "--plain" not in log


def test_plain_says_what_others_could_do(serve: Serve) -> None:
    served = serve("--plain", default=True)
    url = Url.parse(served.url)
    assert url.plain
    assert url.token is not None
    assert pin_of(url.address)
    _, log = served.end()
    assert "can read and change data, and steal tokens" in log
    assert "--open" not in log


def test_plain_and_open_admit_everybody_and_say_so(serve: Serve) -> None:
    served = serve("--plain", "--open", default=True)
    url = Url.parse(served.url)
    assert (url.plain, url.token, url.pin) == (True, None, None)
    for host in {url.address.host, "127.0.0.1"}:
        with Client(url.address._replace(host=host)) as client:
            client.ping()
    code, log = served.end()
    assert code == 0
    assert log.count(" --open: ") == log.count(" --plain: ") == 1
    assert "steal tokens" not in log


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_on_this_machine_nothing_is_warned_of(serve: Serve, host: str) -> None:
    for options in (["--plain"], ["--open"], ["--plain", "--open"]):
        code, log = serve("--host", host, *options, default=True).end()
        assert code == 0
        assert "--" not in log


def test_the_first_line_escapes_and_names_a_real_address() -> None:
    line = first_line("/srv/a\x1b[31m", Url(Address("h", 7)), open_to_all=True)
    assert "\x1b" not in line
    assert reachable(Address("0.0.0.0", 7)).host not in ("0.0.0.0", "::")
    assert reachable(Address("::", 7)).host not in ("0.0.0.0", "::")
    assert reachable(Address("::1", 7)) == Address("::1", 7)
    # A machine that has no address yet goes by its name.
    assert [is_loopback(host) for host in ("::1", "::", "vm")] == [True, False, False]


# Keys and certificates


def written(identity: Identity, directory: Path, name: str) -> tuple[str, ...]:
    """Write an identity to files; return the options that name them."""
    paths = directory / f"{name}.pem", directory / f"{name}.key"
    for path, data in zip(paths, (identity.certificate, identity.key), strict=True):
        path.write_bytes(data)
    return "--cert", str(paths[0]), "--key", str(paths[1])


@needs_hangup
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_certificate_of_ones_own_is_read_again(
    serve: Serve, tmp_path: Path, workers: str
) -> None:
    first, second = Identity.make(), Identity.make()
    options = written(first, tmp_path, "mine")
    served = serve("--host", "127.0.0.1", "--workers", workers, *options, default=True)
    url = Url.parse(served.url)
    assert (url.pin, pin_of(url.address)) == (first.pin, first.pin)
    (tmp_path / "mine.pem").write_bytes(second.certificate)
    served.process.send_signal(signal.SIGHUP)
    log = lines_until(served, "reloaded")
    assert "cannot reload the certificate, keeping it: the private key in" in log
    assert pin_of(url.address) == first.pin
    (tmp_path / "mine.key").write_bytes(second.key)
    served.process.send_signal(signal.SIGHUP)
    lines_until(served, "reloaded")
    assert pin_of(url.address) == second.pin
    assert not (tmp_path / "state" / "ftpkit" / "key.pem").exists()


@needs_hangup
@pytest.mark.parametrize("workers", ["1", "2"])
def test_new_login_urls_and_local_clients_use_a_new_key(
    serve: Serve, run: Run, tmp_path: Path, workers: str
) -> None:
    options = written(Identity.make(), tmp_path, "mine")
    served = serve("--host", "127.0.0.1", "--workers", workers, *options, default=True)
    assert run("ls").exit_code == 0
    written(second := Identity.make(), tmp_path, "mine")
    served.process.send_signal(signal.SIGHUP)
    lines_until(served, "the server's key has changed")
    assert Url.parse(run("token", "add", "ada").stdout.split()[0]).pin == second.pin
    (here,) = LocalServers(local_servers_directory()).servers()
    assert here.url.pin == second.pin
    assert run("ls").exit_code == 0


@needs_hangup
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_new_key_is_used_even_if_the_state_cannot_be_written(
    serve: Serve, tmp_path: Path, workers: str
) -> None:
    options = written(Identity.make(), tmp_path, "mine")
    served = serve("--host", "127.0.0.1", "--workers", workers, *options, default=True)
    written(second := Identity.make(), tmp_path, "mine")
    (tmp_path / "state" / "ftpkit").chmod(0o777)
    served.process.send_signal(signal.SIGHUP)
    log = lines_until(served, "key has changed")
    assert "new login URLs will not contain it: other users can write" in log
    assert pin_of(Url.parse(served.url).address) == second.pin
    assert served.end()[0] == 0


@pytest.mark.parametrize("wrong", ["missing", "garbage", "of another", "swapped"])
def test_a_certificate_that_cannot_be_used_is_one_line(
    run: Run, tmp_path: Path, wrong: str
) -> None:
    _, certificate, _, key = written(Identity.make(), tmp_path, "a")
    match wrong:
        case "missing":
            key = str(tmp_path / "none")
        case "garbage":
            Path(certificate).write_bytes(b"\xff")
        case "of another":
            key = written(Identity.make(), tmp_path, "b")[3]
        case "swapped":
            certificate, key = key, certificate
    result = run("serve", "--port", "0", "--cert", certificate, "--key", key)
    assert result.exit_code == 1
    assert result.stderr.startswith("ftpkit: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not Path("inbox").exists()


def test_without_a_place_for_its_state_it_says_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    result = run("serve", "--port", "0")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "choose another directory with --state" in result.stderr


def test_a_plain_and_open_server_needs_no_state_directory(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with Client(serve().url) as client:
        client.ping()


# Who finds it


def test_clients_on_this_machine_find_it_while_it_runs(serve: Serve, tmp_path: Path) -> None:
    running = LocalServers(local_servers_directory())
    state = tmp_path / "elsewhere"
    served = serve("--state", str(state), default=True)
    url = Url.parse(served.url)
    (found,) = running.servers()
    assert (found.url.token, found.url.pin) == (url.token, url.pin)
    assert found.url.address.port == url.address.port
    assert found.url.address.host in ("127.0.0.1", "::1")
    assert (found.root, found.state) == (str(served.root), str(state))
    assert (state / "key.pem").exists()
    other = serve(root=tmp_path / "other")
    assert len(running.servers()) == 2
    served.end()
    assert [str(each.url) for each in running.servers()] == [other.url]
    other.end(signal.SIGKILL)
    assert running.servers() == []


def test_where_it_cannot_be_found_it_serves_all_the_same(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    served = serve("--state", str(tmp_path / "elsewhere"))
    with Client(served.url) as client:
        client.ping()
    assert "clients on this machine cannot find the server without --to" in served.end()[1]


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
        command("serve", str(tmp_path / "other"), "--port", str(port), "--host", "127.0.0.1"),
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"ftpkit: cannot listen on ftpk://127.0.0.1:{port}: Address already in use; "
        "choose another port with --port\n"
    )


def test_a_root_that_is_a_file_and_a_port_in_use_are_named(
    serve: Serve, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    result = run("serve", str(file), "--port", "0")
    assert result.exit_code == 1
    assert result.stderr == f"ftpkit: cannot serve {file}: it is not a directory\n"
    port = Url.parse(serve().url).address.port
    result = run("serve", str(tmp_path / "other"), "--port", str(port))
    assert result.exit_code == 1
    assert result.stderr.endswith("; choose another port with --port\n")


@pytest.mark.skipif(not os_files.HAS_LOCKS, reason="there are no locks on files")
def test_a_root_in_use_is_one_line(serve: Serve, run: Run) -> None:
    served = serve()
    root = str(served.root)
    result = subprocess.run(
        command("serve", root, "--port", "0"),
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"ftpkit: cannot serve {root}: another ftpkit server already serves this directory\n"
    )
    login_url = Url.parse(run("token", "add", "ada").stdout.strip())
    assert str(login_url.address) == served.url, "login URLs name the running server"


def test_a_closed_stdout_does_not_stop_the_server(tmp_path: Path) -> None:
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


@needs_hangup
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
        log = lines_until(served, "reloaded")
        client.ping()
        with Raw(address) as other:
            other.granted("ping")
        settings.write_text("max-connections = -1")
        served.process.send_signal(signal.SIGHUP)
        log += lines_until(served, "cannot reload the settings")
        client.ping()
    served.end()
    assert log.count("restart the server to change no-udp") == 1
    # The command line says which port, whatever the file does.
    assert "port changes" not in log
    assert "max-connections: expected an integer" in log


def lines_until(served: ServeProcess, text: str) -> str:
    """Return the log up to a line with ``text``; the server is killed if that takes too long."""
    assert served.process.stderr is not None
    lines = []
    limit = threading.Timer(WAIT_S, served.process.kill)
    limit.start()
    try:
        for line in served.process.stderr:
            lines.append(line)
            if text in line:
                return "".join(lines)
    finally:
        limit.cancel()
        limit.join()
    raise AssertionError(f"{text!r} is not in the log:\n{''.join(lines)}")


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
    served = serve("--workers", "auto") if os_process.cores() > 1 else serve("--workers", "2")
    code, log = served.end(number)
    assert code == 0
    assert "Traceback" not in log
    assert "died" not in log
    assert "stopped" in log


@pytest.mark.parametrize("word", ["0", "many", "-1", "1001"])
def test_a_number_of_workers_that_is_none(run: Run, word: str) -> None:
    result = run("serve", "--workers", word)
    assert result.exit_code == 2
    assert "expected an integer from 1 to 1000, or auto" in result.stderr


def put(served: ServeProcess) -> None:
    path = served.root.parent / "a b"
    path.write_bytes(b"12345")
    with Client(served.url) as client:
        client.put(path)
