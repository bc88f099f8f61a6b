import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ftpkit.cli import main, server_option
from ftpkit.cli.exit_codes import Tally, exit_code, print_error, reported
from ftpkit.errors import CannotConnectError, Code, CorruptDataError, FtpkitError, RefusedError
from ftpkit.net.address import Address, Url
from tests.cli.conftest import WAIT_S, Run, Served, command, commands


def test_help_documents_the_exit_codes(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert run().stdout == result.stdout
    for line in (
        "0    success",
        "1    a transfer failed",
        "2    usage error",
        "3    refused by the server",
        "4    cannot connect",
        "130  interrupted",
    ):
        assert line in result.stdout


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_has_help_with_an_example(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"Example:  ftpkit {name}" in result.stdout


def test_version(run: Run) -> None:
    assert run("--version").stdout.startswith("ftpkit 0.")


def test_the_version_needs_no_protocol() -> None:
    program = "import sys, ftpkit.cli.main; sys.exit('ftpkit.protocol' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=WAIT_S)


def test_0_all_done(run: Run, served: Served) -> None:
    assert run("ping").exit_code == 0


def test_1_a_transfer_failed(run: Run, served: Served) -> None:
    result = run("put", "missing")
    assert result.exit_code == 1
    assert result.stderr == "ftpkit: cannot read 'missing': No such file or directory\n"
    result = run("put", ".")
    assert result.exit_code == 1
    assert result.stderr == "ftpkit: cannot upload '.': it is a directory\n"


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["--nonsense"],
        ["put"],
        ["put", "a", "--to", "http://x/y"],
        ["put", "a", "b", "--as", "c"],
        ["put", "d/a", "e/a"],
        ["get", "d/a", "e/a"],
        ["get", "a", "b", "-o", "no-directory"],
        ["put", "a", "--rate", "fast"],
        ["mv", "a"],
        ["serve", "--port", "70000"],
        ["serve", "--cert", "x.pem"],
        ["serve", "--key", "x.pem"],
        ["serve", "--user", "no-such-user"],
    ],
)
def test_2_usage(run: Run, args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stderr.startswith("ftpkit: ")
    assert "--help')" in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_3_refused(run: Run, served: Served) -> None:
    for args in (["get", "nix"], ["stat", "nix"], ["ls", "nix"], ["rm", "nix"], ["mv", "a", "b"]):
        result = run(*args)
        assert result.exit_code == 3
        assert result.stderr.startswith("ftpkit: ")
        assert result.stderr.count("\n") == 1


def test_without_any_server_the_error_says_how_to_choose_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_option, "NOT_CHOSEN", Url(Address("127.0.0.1", 1)))
    result = run("ls")
    assert result.exit_code == 4
    assert result.stderr == (
        "ftpkit: cannot connect to ftpk://127.0.0.1:1: Connection refused; no server was chosen: "
        "run 'ftpkit login URL', or name one with --to\n"
    )


def test_4_cannot_connect(run: Run) -> None:
    result = run("ls", "--to", "127.0.0.1:1")
    assert result.exit_code == 4
    assert result.stderr == ("ftpkit: cannot connect to ftpk://127.0.0.1:1: Connection refused\n")
    Path("a").touch()
    Path("b").touch()
    result = run("put", "a", "b", "--to", "127.0.0.1:1")
    assert result.exit_code == 4
    assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("interruptible")
def test_130_interrupted(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = subprocess.Popen(
            command("ping", "--to", f"127.0.0.1:{silent.getsockname()[1]}"),
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(WAIT_S)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            _, printed = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert printed == "ftpkit: interrupted\n"


def test_130_interrupted_while_it_loads() -> None:
    program = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from ftpkit.__main__ import run\n"
        "run()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )
    assert result.returncode == 130
    assert result.stderr == "ftpkit: interrupted\n"


def test_a_source_that_may_not_be_read_fails_alone(run: Run, served: Served) -> None:
    Path("unread").write_bytes(b"secret")
    Path("unread").chmod(0)
    Path("good").write_bytes(b"good")
    program = (
        "import encodings.idna, os\n"
        "import ftpkit.cli.commands.put, ftpkit.client.pool\n"
        "from ftpkit.cli import main\n"
        "if os.geteuid() == 0:\n"  # who may read everything
        "    os.setgroups([])\n"
        "    os.setgid(65534)\n"
        "    os.setuid(65534)\n"
        "main(['put', 'unread', 'good'])\n"
    )
    Path().chmod(0o755)
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "XDG_CONFIG_HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )
    assert result.stderr == "ftpkit: cannot read 'unread': Permission denied\n"
    assert result.returncode == 1
    assert (served.root / "good").read_bytes() == b"good"


def test_several_files_go_on_after_a_failure(run: Run, served: Served) -> None:
    Path("good").write_bytes(b"good")
    result = run("put", "missing", "good", ".")
    assert result.exit_code == 1
    assert (served.root / "good").read_bytes() == b"good"
    result = run("get", "nix", "good", "nax", "-o", ".")
    assert result.exit_code == 3
    assert result.stdout.startswith("good: 4 B in ")
    Path("taken").mkdir()
    (served.root / "taken").touch()
    assert run("get", "nix", "taken").exit_code == 1, "refused and failed: just failed"
    result = run("rm", "nix", "good")
    assert result.exit_code == 3
    assert not (served.root / "good").exists()


def test_the_reader_of_the_output_may_leave(served: Served) -> None:
    for number in range(50):
        (served.root / f"file-{number}").touch()
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        command("ls"), stdout=write, stderr=subprocess.PIPE, timeout=WAIT_S, check=False
    )
    os.close(write)
    assert result.stderr == b""


def test_codes_of_errors() -> None:
    refused, unreachable = RefusedError(Code.EXISTS, "no"), CannotConnectError("no")
    assert [exit_code(e) for e in (FtpkitError(), refused, unreachable)] == [1, 3, 4]
    tally = Tally()
    assert tally.exit_code == 0
    tally.add(refused)
    tally.add(refused)
    assert tally.exit_code == 3
    tally.add(CorruptDataError("no"))
    assert tally.exit_code == 1


@pytest.mark.parametrize("debug", ["", "1"])
def test_an_unexpected_exception_is_a_one_line_error(
    debug: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FTPKIT_DEBUG", debug)
    with pytest.raises(click.exceptions.Exit) as caught, reported():
        raise ZeroDivisionError("two\nlines\x1b")
    assert caught.value.exit_code == 1
    printed = capsys.readouterr().err
    assert "ftpkit: unexpected ZeroDivisionError: two lines\\x1b" in printed
    assert ("Traceback" in printed) is bool(debug)


def test_a_message_names_its_file_once(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("no such file or directory: 'a'", "a")
    print_error("the disk is full", "x")
    print_error("cannot read 'dir/a'", "a")
    print_error("interrupted at 3 B", "a")
    print_error("bad name 'x\\x1b'", "x\x1b")
    assert capsys.readouterr().err.splitlines() == [
        "ftpkit: no such file or directory: 'a'",
        "ftpkit: x: the disk is full",
        "ftpkit: cannot read 'dir/a'",
        "ftpkit: a: interrupted at 3 B",
        "ftpkit: bad name 'x\\x1b'",
    ]


def test_a_terminal_that_lacks_characters_sees_all_names(served: Served) -> None:
    (served.root / "名").touch()
    result = subprocess.run(
        command("ls"),
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=WAIT_S,
        check=True,
    )
    assert result.stdout.strip().endswith(b"\\u540d")


def test_importing_the_package_imports_no_click() -> None:
    code = "import sys, ftpkit; sys.exit('click' in sys.modules or 'tqdm' in sys.modules)"
    subprocess.run([*command()[:1], "-c", code], check=True, timeout=WAIT_S)


def test_a_control_character_on_the_command_line_is_escaped() -> None:
    result = CliRunner().invoke(main, ["put", "--evil\x1b[31m"])
    assert result.exit_code == 2
    assert "\x1b" not in result.stderr
