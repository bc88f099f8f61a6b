"""A server started by root that changes to another user."""

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import ftpkit
from ftpkit import Client, UdpMode
from ftpkit.cli.serve.run_as import SystemUser
from ftpkit.net.address import Address
from ftpkit.osapi import sockets as os_sockets
from tests.cli.conftest import HERE, WAIT_S, Run
from tests.support.trees import published

NAME = "nobody"

is_root = os.name == "posix" and os.geteuid() == 0
pytestmark = pytest.mark.skipif(not is_root, reason="only root can change to another user")


@pytest.fixture
def account() -> SystemUser:
    return SystemUser.find(NAME)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of root that all users can read."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def everybodys_python() -> list[str]:
    """A command that everybody may run: a Python that knows this ftpkit."""
    code = "import ftpkit.cli.serve.runner"
    for python in (sys.executable, "/usr/bin/python3"):
        command = ["env", f"PYTHONPATH={os.pathsep.join(_paths())}", python]
        if (
            shutil.which(python)
            and not subprocess.run(
                [*command, "-c", code], user=NAME, check=False, capture_output=True, cwd="/"
            ).returncode
        ):
            return command
    pytest.skip("no Python here may be run by everybody")


def _paths() -> list[str]:
    top = str(Path(ftpkit.__file__).parent.parent)
    return [top, *(path for path in sys.path if path.endswith("-packages"))]


class Serving:
    """``ftpkit serve --user`` until the block ends."""

    def __init__(self, stack: ExitStack, python: list[str], place: Path, *options: str) -> None:
        argv = ["-m", "ftpkit", "serve", str(place / "a" / "inbox"), "--port", "0", *HERE]
        argv += ["--user", NAME, "--state", str(place / "b" / "state"), *options]
        self.process = stack.enter_context(
            subprocess.Popen(
                [*python, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        stack.callback(self.process.kill)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        self.address = Address.parse(line.split()[-1])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def ids(pid: int) -> list[set[int]]:
    """The users, the groups, and the further groups of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    rows = [re.search(rf"^{key}:(.*)$", status, re.MULTILINE) for key in ("Uid", "Gid", "Groups")]
    return [set(map(int, row[1].split())) for row in rows if row]


def children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for each in threads for child in each.read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_has_the_rights_of_that_user_alone(
    account: SystemUser,
    place: Path,
    stack: ExitStack,
    everybodys_python: list[str],
    tmp_path: Path,
    workers: str,
) -> None:
    serving = Serving(stack, everybodys_python, place, "--workers", workers)
    processes = [serving.process.pid, *children(serving.process.pid)]
    assert len(processes) >= int(workers)
    for pid in processes:
        assert ids(pid) == [{account.uid}, {account.groups[0]}, {*account.groups}]
    (tmp_path / "f").write_bytes(bytes(3_000_000))
    with Client(
        serving.address, udp=UdpMode.ONLY if os_sockets.HAS_SHARED_PORTS else UdpMode.NO
    ) as client:
        client.put(tmp_path / "f")
    root, state = place / "a" / "inbox", place / "b" / "state"
    assert set(published(root)) == {"f"}
    made = [root, root / "f", root / ".ftpkit", state, *state.iterdir(), state.parent]
    assert {path.stat().st_uid for path in made} == {account.uid}
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    serving.process.terminate()
    _, log = serving.process.communicate(timeout=WAIT_S)
    assert (serving.process.returncode, "Traceback" in log) == (0, False)


def test_the_server_exits_if_root_privileges_cannot_be_dropped(
    place: Path, everybodys_python: list[str]
) -> None:
    if shutil.which("capsh") is None:
        pytest.skip("there is no capsh here")
    # Root's rights then outlive a change of the user.
    keep = ["capsh", "--secbits=4", "--", "-c", 'exec "$@"', "sh"]
    done = subprocess.run(
        [*keep, *everybodys_python, "-m", "ftpkit", "serve", str(place / "inbox"), *HERE,
         "--port", "0", "--user", NAME, "--state", str(place / "state")],
        capture_output=True, text=True, check=False, timeout=WAIT_S,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        f"ftpkit: --user {NAME}: cannot drop root privileges and become {NAME}\n"
    )
    assert done.stdout == ""


def test_a_user_without_a_home_needs_a_place_for_the_state(
    place: Path, everybodys_python: list[str]
) -> None:
    done = subprocess.run(
        [*everybodys_python, "-m", "ftpkit", "serve", str(place / "inbox"), "--port", "0",
         "--user", NAME],
        capture_output=True, text=True, check=False, timeout=WAIT_S,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "/nonexistent" in done.stderr
    assert "choose another directory with --state" in done.stderr


def test_only_root_can(everybodys_python: list[str]) -> None:
    done = subprocess.run(
        [*everybodys_python, "-m", "ftpkit", "serve", "--user", "daemon"],
        user=NAME, capture_output=True, text=True, check=False, timeout=WAIT_S, cwd="/",
    )  # fmt: skip
    assert done.returncode == 2
    assert "--user: only root can change to another user" in done.stderr


@pytest.mark.parametrize(
    ("name", "fault"), [("root", "has user ID 0"), ("no-such-user", "no such user")]
)
def test_whom_it_cannot_become(run: Run, name: str, fault: str) -> None:
    result = run("serve", "--user", name)
    assert result.exit_code == 2
    assert fault in result.stderr


def test_its_home_and_directory_are_that_users(
    account: SystemUser, place: Path, everybodys_python: list[str], tmp_path: Path
) -> None:
    code = (
        "import os; from ftpkit.cli.serve.run_as import SystemUser\n"
        f"SystemUser('x', {account.uid}, {account.groups!r}, {str(place)!r}).become()\n"
        "print(os.environ['HOME'], os.environ['USER'], 'XDG_STATE_HOME' in os.environ, os.getcwd())"
    )
    done = subprocess.run(
        [*everybodys_python, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == [str(place), "x", "False", "/"]


# What root makes for it


def test_the_topmost_missing_directory_is_made(account: SystemUser, place: Path) -> None:
    account.make_directory(str(place / "a" / "b" / "c"), 0o700)
    status = (place / "a").stat()
    assert (status.st_uid, status.st_gid) == (account.uid, account.groups[0])
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert not (place / "a" / "b").exists()


def test_what_is_there_stays_as_it_is(account: SystemUser, place: Path) -> None:
    (place / "a").mkdir(0o755)
    (place / "link").symlink_to("nowhere")
    for name in ("a", "link"):
        account.make_directory(str(place / name), 0o700)
    assert (place / "a").stat().st_uid == 0
    assert not (place / "nowhere").exists()


def test_root_makes_nothing_where_others_decide(account: SystemUser, place: Path) -> None:
    theirs, secret = place / "theirs", place / "secret"
    for path in (theirs, secret):
        path.mkdir(0o755)
    (theirs / "link").symlink_to(secret)
    (place / "shared").mkdir()
    (place / "shared").chmod(0o777)
    for path in (theirs, theirs / "link"):
        os.chown(path, account.uid, account.groups[0], follow_symlinks=False)
    for path in (theirs / "a", theirs / "link" / "a", place / "shared" / "a"):
        account.make_directory(str(path), 0o700)
    assert not list(secret.iterdir())
    assert not list((place / "shared").iterdir())
    assert [path.name for path in theirs.iterdir()] == ["link"]
