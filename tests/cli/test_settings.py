import re
import tomllib
from pathlib import Path

import click
import pytest

import ftpkit
from ftpkit.cli.serve.options import ServeOptions
from ftpkit.cli.server_option import find_server
from ftpkit.cli.settings import COUNT, DURATION, PORT, RATE, TIMEOUT, settings_of, variable
from ftpkit.net.address import Address, Url
from ftpkit.server.limits import Limits
from tests.cli.conftest import Run, Serve, ServeProcess, commands

CONF = Path(ftpkit.__file__).parent.parent / "conf" / "ftpkit.toml"

CLIENT = ("put", "get", "ls", "stat", "mv", "rm", "mkdir", "ping", "status")

# Says which server a command was about to talk to: nobody listens on port 1.
ASK = "ping"


def client_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config" / "ftpkit" / "client.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_flag_then_variable_then_file_then_default(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_file(tmp_path, 'url = "ftpk://127.0.0.3:1"')
    assert "ftpk://127.0.0.3:1" in run(ASK).stderr
    monkeypatch.setenv("FTPKIT_URL", "ftpk://127.0.0.4:1")
    assert "ftpk://127.0.0.4:1" in run(ASK).stderr
    assert "ftpk://127.0.0.5:1" in run(ASK, "--to", "ftpk://127.0.0.5:1").stderr
    assert "ftpk://127.0.0.5:1" in run(ASK, "--from", "127.0.0.5:1").stderr


@pytest.mark.parametrize("name", CLIENT)
def test_the_default_is_this_machine(run: Run, name: str) -> None:
    assert find_server(None) == Url(Address("127.0.0.1", 9021))
    assert "the last login, else the server on this machine" in " ".join(
        run(name, "--help").stdout.split()
    )


def test_a_file_may_be_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my.toml"
    path.write_text('url = "127.0.0.6:1"\nrate = 1000000\nquiet = true')
    assert "ftpk://127.0.0.6:1" in run(ASK, "--config", str(path)).stderr
    monkeypatch.setenv("FTPKIT_CONFIG", str(path))
    assert "ftpk://127.0.0.6:1" in run(ASK).stderr


def test_a_file_that_was_named_must_exist(run: Run) -> None:
    result = run(ASK, "--config", "nowhere.toml")
    assert result.exit_code == 2
    assert "nowhere.toml: No such file" in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "speed = 3",
            "speed: unknown key, expected one of jobs, json, quiet, rate, retry-for, timeout,"
            " udp, udp-only, url",
        ),
        ("as = 'x'", "as: unknown key"),
        ("config = 'x'", "config: unknown key"),
        ("rate = 'fast'", "rate: expected bytes per second like 20M"),
        ("rate = true", "rate: expected bytes per second like 20M or 20Mi, or 0 for no limit, got"),
        (
            "rate = [1]",
            "rate: expected bytes per second like 20M or 20Mi, or 0 for no limit, got '[1]'",
        ),
        ("timeout = 0", "timeout: expected a time like 30s"),
        ("timeout = '25d'", "timeout: expected a time like 30s"),
        ("url = 'http://x/'", "url: expected a login URL or ftpk://HOST:PORT"),
        ("quiet = 'yes'", "quiet: expected true or false, got 'yes'"),
        ("quiet = 1", "quiet: expected true or false, got 1"),
        ("[url]\nhost = 'x'", "url: expected a login URL or ftpk://HOST:PORT"),
        ('"a\\u001b[31m" = 1', "a\\x1b[31m: unknown key"),
        ("\n\nurl = =", "invalid TOML: Invalid value (at line 3"),
    ],
)
def test_a_bad_file_is_an_error_that_names_it(
    run: Run, tmp_path: Path, text: str, expected: str
) -> None:
    path = client_file(tmp_path, text)
    result = run(ASK)
    assert result.exit_code == 2
    assert f"ftpkit: --config: {path}: {expected}" in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_file_that_is_not_text_or_not_a_file_is_an_error(run: Run, tmp_path: Path) -> None:
    path = client_file(tmp_path, "")
    path.write_bytes(b"url = '\xff'")
    assert f"{path}: invalid TOML: not UTF-8 text" in run(ASK).stderr
    result = run(ASK, "--config", str(tmp_path))
    assert result.exit_code == 2
    assert f"{tmp_path}: Is a directory" in result.stderr


def test_a_bad_variable_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTPKIT_RATE", "fast")
    result = run("put", "x")
    assert result.exit_code == 2
    assert result.stderr.startswith("ftpkit: FTPKIT_RATE: expected bytes per second like 20M")
    result = run("put", "x", "--rate", "slow")
    assert result.stderr.startswith("ftpkit: --rate: expected bytes per second like 20M")


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_setting_has_a_variable_of_its_name(name: str) -> None:
    for key, param in settings_of(commands()[name]).items():
        assert param.envvar == variable(key)


def test_the_words_of_settings() -> None:
    assert [PORT("0"), PORT("65535"), COUNT("1"), COUNT("1024")] == [0, 65535, 1, 1024]
    assert [RATE("0"), RATE("20M"), RATE("1Ki/s")] == [None, 20_000_000, 1024]
    assert [DURATION("0"), TIMEOUT("24d")] == [0, 24 * 86400]
    for convert, text in [(PORT, "65536"), (PORT, "-1"), (COUNT, "0"), (TIMEOUT, "0s")]:
        with pytest.raises(click.BadParameter, match="expected"):
            convert(text)


def test_conf_documents_every_key_of_serve_with_its_default() -> None:
    serve = commands()["serve"]
    defaults = serve.make_context("serve", []).params
    assert serve.make_context("serve", ["--config", str(CONF)]).params == defaults
    text = CONF.read_text()
    commented = set(re.findall(r"^# ([a-z-]+) = ", text, re.MULTILINE))
    assert set(tomllib.loads(text)) | commented == set(settings_of(serve))
    # Only what is not set by default cannot be written down as its default.
    assert {key for key in commented if defaults[key] is None} == commented


def test_the_defaults_of_serve_are_those_of_limits() -> None:
    values = commands()["serve"].make_context("serve", []).params
    assert ServeOptions.parse(values).limits == Limits()


def test_serve_takes_conf_unchanged(serve: Serve) -> None:
    served = serve("--config", str(CONF))
    assert served.end()[0] == 0


def test_serve_takes_its_file_and_the_flag_wins(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text('log-json = true\nport = 1\nmax-connections = 7\nroot = "elsewhere"')
    served: ServeProcess = serve("--config", str(path))
    _, log = served.end()
    assert log.startswith('{"time": ')
    assert not Path("elsewhere").exists()


def test_serve_names_file_and_key(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    for text, expected in [
        ("port = 'http'", "port: expected a port from 0 to 65535, got 'http'"),
        ("host = 5", "host: expected a quoted string, got 5"),
        ("root = 5", "root: expected a quoted string, got 5"),
        ("jobs = 5", "jobs: unknown key"),
    ]:
        path.write_text(text)
        result = run("serve", "--config", str(path))
        assert result.exit_code == 2
        assert f"ftpkit: --config: {path}: {expected}" in result.stderr
