"""The paths of a user's files."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ftpkit.cli.paths import default_state, local_servers_directory
from ftpkit.osapi import files as os_files
from tests.cli.conftest import WAIT_S, Served


def test_the_default_is_in_the_home_of_the_account(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "states"))
    if sys.platform == "linux":
        assert default_state() == str(tmp_path / "states" / "ftpkit")
    assert local_servers_directory() == os.path.join(default_state(), "running")


NOBODY = """
import os
from ftpkit.cli.paths import LocalFileError, default_state
os.setuid(54321)
try:
    print(default_state())
except LocalFileError as error:
    print(error)
"""


@pytest.mark.skipif(
    not os_files.HAS_OWNERS or os.geteuid() != 0, reason="only root can become somebody unknown"
)
def test_an_account_without_a_home_is_an_error() -> None:
    environment = {
        key: os.environ[key] for key in os.environ if key not in ("HOME", "XDG_STATE_HOME")
    }
    done = subprocess.run(
        [sys.executable, "-c", NOBODY],
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.stderr == ""
    assert done.stdout == "this user has no home directory for the server's key and tokens\n"


@pytest.mark.skipif(
    not os_files.HAS_OWNERS or os.geteuid() != 0, reason="only root can become somebody unknown"
)
def test_an_account_without_a_home_can_be_a_client() -> None:
    program = (
        "import encodings.idna, os\n"
        "import ftpkit.cli.commands.ping\n"
        "from ftpkit.cli import main\n"
        "os.setuid(54321)\n"
        "main(['ping', '--to', '127.0.0.1:1'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={}, stderr=subprocess.PIPE, text=True, timeout=WAIT_S
    )
    assert done.stderr == "ftpkit: cannot connect to ftpk://127.0.0.1:1: Connection refused\n"
    assert done.returncode == 4


HOMELESS = """
import encodings.idna, os, sys
import ftpkit.cli.commands.put, ftpkit.cli.commands.login, ftpkit.net.trust
from ftpkit.cli import main
os.setuid(54321)
main(sys.argv[1:])
"""


@pytest.mark.skipif(
    not os_files.HAS_OWNERS or os.geteuid() != 0, reason="only root can become somebody unknown"
)
def test_without_a_home_nothing_is_cached_or_saved(served: Served, tmp_path: Path) -> None:
    def run(*args: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", HOMELESS, *args],
            env={},
            cwd=here,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    here = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        here.chmod(0o777)
        (here / "f").write_bytes(b"data")
        os.utime(here / "f", (1, 1))
        put = run("put", "f", "--to", served.url)
        assert (put.stderr, put.returncode) == ("", 0)
        login = run("login", "ftpk://TOKEN@127.0.0.1:1")
        assert login.stderr == (
            "ftpkit: this user has no home directory to save login URLs in: set HOME\n"
        )
        assert login.returncode == 1
        assert os.listdir(here) == ["f"]
    finally:
        shutil.rmtree(here)
