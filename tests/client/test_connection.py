"""TLS, trust and authentication of a connection."""

import contextlib
import logging
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ftpkit import CannotConnectError, Client, FtpkitError, RefusedError, Server, UntrustedError
from ftpkit.client.connection import Connection
from ftpkit.lab.child import ChildProcess
from ftpkit.lab.model import NetworkProfile
from ftpkit.lab.network import EmulatedNetwork, NetworkUnavailableError
from ftpkit.net.address import Address, Url
from ftpkit.net.tls_identity import Identity
from tests.support.hostile import listening
from tests.support.scripted_server import USER, Guard, guarded
from tests.support.trees import published

WAIT_S = 20.0
TOKEN = "secret-token"
OTHER_PIN = "A" * 43

PLAINTEXT, TLS = b"\0", b"\x16"


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Identity.make()


@pytest.fixture
def secured(identity: Identity) -> Iterator[Guard]:
    """A server with TLS that requires a token."""
    with guarded(Guard(identity, TOKEN)) as guard:
        yield guard


@pytest.fixture
def plain() -> Iterator[Guard]:
    """A server without TLS that requires no token."""
    with guarded(Guard()) as guard:
        yield guard


def connect(url: Url, ask: Callable[[str], bool] | None = None) -> Connection:
    return Connection(lambda: url, timeout_s=WAIT_S, limiter=None, confirm_pin=ask)


def failure(url: Url, kind: type[FtpkitError], ask: Callable[[str], bool] | None = None) -> str:
    """Return the message of the error of a connection."""
    with pytest.raises(kind) as caught:
        connect(url, ask)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


def test_a_login_url_connects_and_authenticates(secured: Guard) -> None:
    with closing(connect(secured.url)) as connection:
        assert connection.auth is not None
        assert (connection.auth.user, connection.auth.can) == (USER, ["write", "read"])
        assert (connection.address, connection.url) == (secured.address, secured.url)
        assert connection.usable
    assert (secured.firsts, secured.heard) == ([TLS], ["hello", "auth"])


def test_a_client_accepts_urls_addresses_and_functions(secured: Guard) -> None:
    for url in (secured.url.login_url(), secured.url, lambda: secured.url):
        with Client(url, timeout_s=WAIT_S) as client:
            assert client.address == secured.address
            client.ping()
            client.ping()
            assert TOKEN not in repr(vars(client))
    assert secured.firsts == [TLS] * 3, "the connection is reused"


def test_a_server_whose_key_does_not_match_the_pin_receives_nothing(secured: Guard) -> None:
    message = failure(replace(secured.url, pin=OTHER_PIN), UntrustedError)
    assert "does not match the pinned key" in message
    assert secured.heard == []


def test_no_token_is_sent_to_an_untrusted_server(secured: Guard) -> None:
    failure(Url(secured.address, token=TOKEN), UntrustedError)
    assert (secured.firsts, secured.heard) == ([TLS], [])


def test_no_token_is_sent_in_plaintext(plain: Guard) -> None:
    plain.token = TOKEN
    for url in (Url(plain.address, token=TOKEN), Url(plain.address, OTHER_PIN, TOKEN)):
        failure(url, CannotConnectError)
    assert plain.heard == []


def test_a_plain_url_sends_the_token_in_plaintext(plain: Guard) -> None:
    plain.token = TOKEN
    with closing(connect(Url(plain.address, token=TOKEN, plain=True))) as connection:
        assert connection.auth is not None
    assert (plain.firsts, plain.heard) == ([PLAINTEXT], ["hello", "auth"])


def test_a_user_can_confirm_the_pin_of_a_key(secured: Guard, identity: Identity) -> None:
    shown: list[str] = []

    def answer(yes: bool) -> Callable[[str], bool]:
        def ask(pin: str) -> bool:
            shown.append(pin)
            return yes

        return ask

    url = replace(secured.url, pin=None)
    failure(url, UntrustedError, answer(False))
    assert secured.heard == []
    connect(url, answer(True)).close()
    assert shown == [identity.pin] * 2
    connect(secured.url, answer(False)).close()
    assert len(shown) == 2, "the URL has a pin"


def test_without_pin_and_token_a_local_connection_uses_plaintext(plain: Guard) -> None:
    with closing(connect(Url(plain.address))) as connection:
        assert connection.auth is None
    assert plain.firsts == [PLAINTEXT]


def test_a_local_server_that_requires_tls_gets_it_if_its_url_is_found(secured: Guard) -> None:
    found = iter([Url(secured.address), secured.url])
    connection = Connection(lambda: next(found), timeout_s=WAIT_S, limiter=None)
    connection.close()
    assert connection.url == secured.url
    assert (secured.firsts, secured.heard) == ([PLAINTEXT, TLS], ["hello", "auth"])


def test_a_local_server_that_requires_tls_must_be_trusted(secured: Guard) -> None:
    assert "cannot verify the TLS certificate" in failure(Url(secured.address), UntrustedError)
    assert (secured.firsts, secured.heard) == ([PLAINTEXT, TLS], [])


def test_a_local_server_that_requires_a_token_gets_it_if_its_url_is_found(plain: Guard) -> None:
    plain.token = TOKEN
    found = iter([Url(plain.address), plain.url])
    connection = Connection(lambda: next(found), timeout_s=WAIT_S, limiter=None)
    connection.close()
    assert connection.auth is not None
    plain.firsts.clear()
    with pytest.raises(RefusedError, match="requires a token"):
        connect(Url(plain.address))
    assert len(plain.firsts) == 1, "the URL provider has no other URL"


@pytest.mark.net
def test_a_remote_server_gets_no_plaintext_unless_the_url_is_plain() -> None:
    program = "import sys; from ftpkit import Client; Client(sys.argv[1], timeout_s=20).ping()"
    try:
        network = EmulatedNetwork(NetworkProfile(1e9, 0.0))
    except NetworkUnavailableError as error:
        pytest.skip(str(error))
    with (
        network,
        ChildProcess(
            "ftpkit.compare.server_process", {"host": network.far.v4}, network.far
        ) as server,
    ):
        address = Address(**server.receive())

        def failure(url: Url) -> str:
            command = network.near.command([sys.executable, "-c", program, url.login_url()])
            done = subprocess.run(
                command, stderr=subprocess.PIPE, text=True, timeout=60, check=False
            )
            return done.stderr

        assert "does not speak TLS" in failure(Url(address))
        assert failure(Url(address, plain=True)) == ""


def test_a_plain_url_is_not_upgraded_to_tls(secured: Guard) -> None:
    with pytest.raises(RefusedError) as caught:
        connect(Url(secured.address, plain=True))
    assert caught.value.code == "tls-required"
    assert secured.firsts == [PLAINTEXT]


def test_a_missing_token_is_an_error_that_says_what_to_do(secured: Guard) -> None:
    with pytest.raises(RefusedError, match="requires a token: log in with the URL") as caught:
        connect(replace(secured.url, token=None))
    assert caught.value.code == "auth-required"


def test_a_wrong_token_is_an_error_that_says_what_to_do(secured: Guard) -> None:
    secured.token = "another"
    with pytest.raises(RefusedError, match="rejected the token") as caught:
        connect(Url(secured.address, secured.url.pin, TOKEN))
    assert caught.value.code == "auth-failed"
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


def test_a_token_is_accepted_by_a_server_that_requires_none(secured: Guard) -> None:
    url = secured.url
    secured.token = None
    with Client(url, timeout_s=WAIT_S) as client:
        client.ping()
        client.ping()
    assert secured.heard == ["hello", "auth", "ping", "ping"]
    assert secured.firsts == [TLS]


@pytest.mark.parametrize("secure", [True, False])
def test_the_url_provider_is_called_before_each_connection(
    secured: Guard, plain: Guard, secure: bool
) -> None:
    here = secured if secure else plain
    urls = [here.url]
    with Client(lambda: urls[-1], timeout_s=WAIT_S) as client:
        client.ping()
        with guarded(Guard(here.identity, here.token)) as there:
            urls.append(there.url)
            client.ping()
            assert there.heard == [], "an open connection is reused"
            client.close()
            client.ping()
            assert "ping" in there.heard


def test_a_put_that_began_before_the_server_succeeds(root: Path, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"data")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        urls = [Url(Address("127.0.0.1", unused.getsockname()[1]))]
    failed = threading.Event()
    with Client(lambda: urls[-1], timeout_s=WAIT_S, retry_for_s=WAIT_S) as client:
        put = client.submit_put(tmp_path / "f", on_retry=lambda error, delay: failed.set())
        assert failed.wait(WAIT_S)
        with Server(root, port=0) as server:
            urls.append(Url(server.address))
            put.result(WAIT_S)
    assert published(root) == {"f": b"data"}


@pytest.mark.parametrize("wrong", ["pin", "token"])
def test_a_wrong_pin_or_token_is_not_retried(secured: Guard, tmp_path: Path, wrong: str) -> None:
    (tmp_path / "f").write_bytes(b"data")
    url = secured.url
    url = replace(url, pin=OTHER_PIN) if wrong == "pin" else replace(url, token="x")
    retries: list[FtpkitError] = []
    with (
        Client(url, timeout_s=WAIT_S, retry_for_s=600) as client,
        pytest.raises((UntrustedError, RefusedError)),
    ):
        client.put(tmp_path / "f", on_retry=lambda error, delay: retries.append(error))
    assert retries == []
    assert len(secured.firsts) == 1


def test_a_transfer_can_be_cancelled_in_the_middle_of_a_handshake(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"data")
    begun, over = threading.Event(), threading.Event()

    def silent(sock: socket.socket) -> None:
        assert sock.recv(1, socket.MSG_PEEK) == TLS
        begun.set()
        with contextlib.suppress(OSError):
            while sock.recv(4096):
                pass
        over.set()

    with listening(silent) as address:
        client = Client(Url(Address(*address), OTHER_PIN, TOKEN), timeout_s=10 * WAIT_S)
        put = client.submit_put(tmp_path / "f")
        assert begun.wait(WAIT_S)
        put.cancel()
        assert over.wait(WAIT_S)
        client.close()
    assert put.cancelled()


def test_a_connection_closed_in_the_handshake_is_retryable() -> None:
    with listening(lambda sock: None) as address:
        url = Url(Address(*address), OTHER_PIN, TOKEN)
        with pytest.raises(CannotConnectError, match="cannot connect to ftpk://127") as caught:
            connect(url)
    assert not caught.value.permanent


def test_a_server_that_closes_at_once_is_named_as_such() -> None:
    def close_after_hello(sock: socket.socket) -> None:
        sock.recv(65536)

    with (
        listening(close_after_hello) as address,
        pytest.raises(CannotConnectError, match="it closed the connection; is it an ftpkit"),
    ):
        connect(Url(Address(*address), plain=True))


def test_no_token_is_logged(secured: Guard, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        connect(secured.url).close()
    assert TOKEN not in caplog.text
