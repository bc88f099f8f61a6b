"""Saved login URLs, and the servers that run on this computer."""

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ftpkit import LocalFileError
from ftpkit.client.known_hosts import KnownHosts, LocalServer, LocalServers, SavedUrls
from ftpkit.net.address import Address, Url
from ftpkit.osapi import files as os_files

WAIT_S = 20
NEAR = Url(Address("10.0.0.1", 9), pin="p" * 43, token="near-secret")
FAR = Url(Address("far.example"), token="far-secret", plain=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config" / "hosts.json"


@pytest.fixture
def hosts(path: Path) -> KnownHosts:
    return KnownHosts(str(path))


@pytest.fixture
def running(tmp_path: Path) -> LocalServers:
    return LocalServers(str(tmp_path / "state" / "running"))


needs_owners = pytest.mark.skipif(not os_files.HAS_OWNERS, reason="files have no owners here")


def test_nothing_is_saved_at_first(hosts: KnownHosts, path: Path) -> None:
    assert hosts.load() == SavedUrls()
    assert not hosts.forget(NEAR.address)
    assert not path.parent.exists(), "reading creates nothing"


def test_a_saved_url_is_found_by_host_and_port(hosts: KnownHosts) -> None:
    hosts.save(NEAR, default=True)
    hosts.save(FAR, default=False)
    saved = hosts.load()
    assert saved == SavedUrls((NEAR, FAR), NEAR.address)
    assert (saved.find(NEAR.address), saved.find(FAR.address)) == (NEAR, FAR)
    assert saved.find(NEAR.address._replace(port=10)) is None
    assert saved.find(None) is None


def test_one_url_is_saved_for_each_host_and_port(hosts: KnownHosts) -> None:
    hosts.save(NEAR, default=True)
    other = Url(NEAR.address, pin="q" * 43)
    hosts.save(other, default=False)
    assert hosts.load() == SavedUrls((other,), NEAR.address)


def test_the_default_is_forgotten_with_its_host(hosts: KnownHosts) -> None:
    hosts.save(FAR, default=True)
    hosts.save(NEAR, default=True)
    assert hosts.forget(NEAR.address)
    assert hosts.load() == SavedUrls((FAR,), None)
    assert not hosts.forget(NEAR.address)


@needs_owners
def test_only_its_owner_can_read_the_file(hosts: KnownHosts, path: Path) -> None:
    before = os.umask(0)
    try:
        hosts.save(NEAR, default=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@needs_owners
def test_a_file_that_others_can_read_is_refused_with_the_command_that_mends_it(
    hosts: KnownHosts, path: Path
) -> None:
    hosts.save(NEAR, default=True)
    path.chmod(0o640)
    for refused in (hosts.load, lambda: hosts.save(FAR, default=True)):
        with pytest.raises(LocalFileError, match=f"chmod 600 {path}"):
            refused()
    assert "far" not in path.read_text()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"links": [], "default": "ftpk://10.0.0.1:9"}',
        '{"links": ["ftpk://near-secret"]}',
        '{"links": ["ftpk://near-secret@10.0.0.1:99999"], "default": null}',
        '{"links": ["ftpk://near-secret:p@host"], "default": null}',
        '{"links": [7], "default": null}',
        '{"links": null, "default": null}',
        '{"links": [], "default": 7}',
    ],
)
def test_a_damaged_file_is_an_error_without_secrets_and_is_left_alone(
    hosts: KnownHosts, path: Path, text: str
) -> None:
    hosts.save(NEAR, default=True)
    path.write_text(text)
    for refused in (hosts.load, lambda: hosts.save(NEAR, default=True)):
        with pytest.raises(LocalFileError, match="is damaged: remove it") as caught:
            refused()
        assert "secret" not in str(caught.value)
    assert path.read_text() == text


@pytest.mark.skipif(not os_files.HAS_LOCKS, reason="there are no locks on files")
def test_processes_that_save_at_the_same_time_lose_nothing(path: Path) -> None:
    program = (
        "import sys\n"
        "from ftpkit.client.known_hosts import KnownHosts\n"
        "from ftpkit.net.address import Address, Url\n"
        "sys.stdin.read()\n"
        "for port in range(1, 11):\n"
        "    KnownHosts(sys.argv[1]).save(Url(Address(sys.argv[2], port)), default=True)\n"
    )
    names = [f"host{number}" for number in range(4)]
    processes = [
        subprocess.Popen([sys.executable, "-c", program, path, name], stdin=subprocess.PIPE)
        for name in names
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(WAIT_S) for process in processes] == [0] * len(names)
    saved = KnownHosts(str(path)).load()
    assert {(host, port) for host, port in map(tuple, (url.address for url in saved.urls))} == {
        (name, port) for name in names for port in range(1, 11)
    }


def test_a_server_is_announced_while_it_runs(running: LocalServers, tmp_path: Path) -> None:
    assert running.servers() == []
    with running.announce(NEAR, root="/srv", state="/var"):
        assert running.servers() == [LocalServer(NEAR, "/srv", "/var")]
        assert len(list((tmp_path / "state/running").glob(f"9-{os.getpid()}-*.json"))) == 1
    assert running.servers() == []
    assert list((tmp_path / "state/running").iterdir()) == []


def test_the_newest_server_comes_first(running: LocalServers) -> None:
    with running.announce(NEAR, root="old"), running.announce(FAR, root="new"):
        assert [server.root for server in running.servers()] == ["new", "old"]


@pytest.mark.parametrize(("host", "here"), [("0.0.0.0", "127.0.0.1"), ("::", "::1")])
def test_a_server_on_every_interface_is_announced_on_loopback(
    running: LocalServers, host: str, here: str
) -> None:
    with running.announce(Url(Address(host, 9)), root=""):
        assert [server.url.address for server in running.servers()] == [Address(here, 9)]


@contextmanager
def another_server(running: Path, port: int) -> Iterator["subprocess.Popen[str]"]:
    """Announce a server from another process."""
    program = (
        "import sys\n"
        "from ftpkit.client.known_hosts import LocalServers\n"
        "from ftpkit.net.address import Address, Url\n"
        "url = Url(Address('127.0.0.1', int(sys.argv[2])))\n"
        "with LocalServers(sys.argv[1]).announce(url, root='there'):\n"
        "    print('announced', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, running, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "announced\n"
            yield process
        finally:
            process.kill()


def test_a_server_that_was_killed_is_removed(running: LocalServers, tmp_path: Path) -> None:
    directory = tmp_path / "state/running"
    with another_server(directory, 9) as process, another_server(directory, 10):
        assert [server.url.address.port for server in running.servers()] == [10, 9]
        process.kill()
        process.wait(WAIT_S)
        assert len(list(directory.glob("9-*.json"))) == 1
        assert [server.url.address.port for server in running.servers()] == [10]
        assert list(directory.glob("9-*")) == []


def test_threads_read_the_servers_at_the_same_time(running: LocalServers, tmp_path: Path) -> None:
    directory = tmp_path / "state/running"
    with another_server(directory, 9):
        pass
    directory.joinpath("9-1-" + "0" * 16 + ".json").write_text("left by a dead process")
    seen: list[list[LocalServer]] = []
    with another_server(directory, 10):
        threads = [
            threading.Thread(target=lambda: seen.extend(running.servers() for _ in range(20)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {len(servers) for servers in seen} == {1}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"link": "ftpk://"}', '{"link": 7, "root": "", "state": null}']
)
def test_an_invalid_announcement_is_ignored(
    running: LocalServers, tmp_path: Path, text: str
) -> None:
    with running.announce(NEAR, root=""), running.announce(FAR, root=""):
        spoilt = next((tmp_path / "state/running").glob("9-*.json"))
        spoilt.write_text(text)
        assert [server.url for server in running.servers()] == [FAR]


@needs_owners
def test_an_announcement_that_others_could_have_written_is_ignored(
    running: LocalServers, tmp_path: Path
) -> None:
    with running.announce(NEAR, root=""):
        (path,) = (tmp_path / "state/running").glob("*.json")
        path.chmod(0o644)
        assert running.servers() == []
        path.chmod(0o600)
        path.parent.chmod(0o777)
        assert running.servers() == []
        path.parent.chmod(0o700)
        assert len(running.servers()) == 1
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        assert running.servers() == []


def test_the_file_holds_the_login_url(running: LocalServers, tmp_path: Path) -> None:
    with running.announce(NEAR, root="/srv"):
        (path,) = (tmp_path / "state/running").glob("*.json")
        assert json.loads(path.read_text()) == {
            "link": NEAR.login_url(), "root": "/srv", "state": None,
        }  # fmt: skip
