"""Addresses and login URLs: parsing, writing, and shells."""

import re
import shutil
import subprocess
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpkit.net.address import DEFAULT_PORT, Address, Url

TOKEN = "t0ken_-." + "x" * 24
PIN = "p1n-_" + "y" * 38


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("ftpk://example.org", "example.org", DEFAULT_PORT),
        ("ftpk://example.org/", "example.org", DEFAULT_PORT),
        ("ftpk://example.org:1", "example.org", 1),
        ("ftpk://example.org:65535/", "example.org", 65535),
        ("example.org", "example.org", DEFAULT_PORT),
        ("example.org:9", "example.org", 9),
        ("127.0.0.1:9", "127.0.0.1", 9),
        ("ftpk://[::1]", "::1", DEFAULT_PORT),
        ("ftpk://[::1]:9", "::1", 9),
        ("[fe80::1%eth0]:9", "fe80::1%eth0", 9),
        ("[::ffff:1.2.3.4]", "::ffff:1.2.3.4", DEFAULT_PORT),
        ("ftpk://my-host_1", "my-host_1", DEFAULT_PORT),
        ("ftpk://2001-db8--1.ipv6-literal.net:9", "2001:db8::1", 9),
        ("fe80--1seth0.1.IPv6-Literal.NET", "fe80::1%eth0.1", DEFAULT_PORT),
        ("bücher.example", "bücher.example", DEFAULT_PORT),
    ],
)
def test_an_address_is_host_and_port(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == Address(host, port)
    assert Url.parse(text) == Url(Address(host, port))


INVALID = [
    "", "ftpk://", ":9", "ftpk://:9", "host:9:9", "::1", "::1:9", "[::1", "::1]", "[]", "[]:9",
    "host:", "host:x", "host:-1", "http://host", "ftpk:///host", "ftpk://host/path", "@host",
    "ftpk://host?x", "ftpk://host#x", "my host", "host\n", " host", "ftpk://host:9 ", "[::1]9",
    "$(reboot)", "a;b", "a'b", "a|b", "a&b", "ftpk://@host", "host:٣",
]  # fmt: skip


@pytest.mark.parametrize("text", [*INVALID, "ftpk://user@host", f"ftpk://:{PIN}@host"])
def test_an_invalid_address_is_a_value_error_with_a_message(text: str) -> None:
    with pytest.raises(ValueError, match=r"invalid address: expected ftpk://HOST:PORT$"):
        Address.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        *INVALID,
        f"ftpk://{TOKEN}:short@host",
        f"ftpk://{TOKEN}:{PIN}z@host",
        f"ftpk://{TOKEN}:@host",
        f"ftpk://{'t' * 129}@host",
        f"ftpk://{TOKEN}:{PIN}@",
        f"ftpk://{TOKEN}@{TOKEN}@host",
        f"ftpk+plain://{TOKEN}:{PIN}@host",
        f"ftpk+plain://:{PIN}@host",
        f"ftpk+tls://{TOKEN}@host",
        f"ftpk://{TOKEN}:{PIN}",
        f"ftpk://to%20ken:{PIN}@host",
    ],
)
def test_an_invalid_login_url_is_a_value_error_that_does_not_quote_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"^invalid URL: expected ftpk://HOST:PORT or") as caught:
        Url.parse(text)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("port", ["0", "65536", "99999999", "9" * 30, "9" * 5000])
def test_an_invalid_port_is_a_value_error_with_a_message(port: str) -> None:
    for parse in (Address.parse, Url.parse):
        with pytest.raises(ValueError, match=r"invalid port: expected 1 to 65535$"):
            parse(f"host:{port}")


HOST = Address("example.org", 9)


@pytest.mark.parametrize(
    ("login_url", "url"),
    [
        (f"ftpk://{TOKEN}:{PIN}@example.org:9", Url(HOST, pin=PIN, token=TOKEN)),
        (f"ftpk://{TOKEN}@example.org:9", Url(HOST, token=TOKEN)),
        (f"ftpk://:{PIN}@example.org:9", Url(HOST, pin=PIN)),
        ("ftpk://example.org:9", Url(HOST)),
        ("ftpk+plain://example.org:9", Url(HOST, plain=True)),
        (f"ftpk+plain://{TOKEN}@example.org:9", Url(HOST, token=TOKEN, plain=True)),
        (
            f"ftpk://{TOKEN}:{PIN}@2001-db8--1.ipv6-literal.net:9",
            Url(Address("2001:db8::1", 9), pin=PIN, token=TOKEN),
        ),
    ],
)
def test_every_form_of_login_url_is_parsed_and_written(login_url: str, url: Url) -> None:
    assert Url.parse(login_url) == url
    assert url.login_url() == login_url


def test_an_ipv6_address_in_a_login_url_may_be_in_brackets() -> None:
    url = Url.parse(f"ftpk://{TOKEN}:{PIN}@[2001:db8::1]:9")
    assert url == Url(Address("2001:db8::1", 9), pin=PIN, token=TOKEN)


def test_a_non_ascii_host_is_written_in_its_idna_form() -> None:
    assert Url(Address("bücher.example")).login_url() == "ftpk://xn--bcher-kva.example:9021"


hosts = st.one_of(
    st.from_regex(r"[a-zA-Z0-9._-]{1,40}", fullmatch=True), st.ip_addresses().map(str)
)
ports = st.integers(1, 65535)
addresses = st.builds(Address, hosts, ports)
tokens = st.none() | st.from_regex(r"[A-Za-z0-9_.-]{16,40}", fullmatch=True)
pins = st.none() | st.from_regex(r"[A-Za-z0-9_-]{43}", fullmatch=True)
urls = st.one_of(
    st.builds(Url, addresses, pins, tokens),
    st.builds(Url, addresses, st.none(), tokens, st.just(True)),
)


@given(addresses)
def test_a_written_address_parses_to_itself(address: Address) -> None:
    assert Address.parse(str(address)) == address
    assert Address.parse(str(address).removeprefix("ftpk://")) == address


@given(urls)
def test_a_written_login_url_parses_to_itself(url: Url) -> None:
    assert Url.parse(url.login_url()) == url
    assert Url.parse(str(url)) == Url(url.address, plain=url.plain)


# None of these characters separates words, starts a comment, an option or a pattern, or is
# expanded by POSIX shells, zsh, fish or PowerShell.
UNTOUCHED = re.compile(r"ftpk(\+plain)?://[A-Za-z0-9._:/@+-]+")


@given(urls)
def test_a_login_url_has_no_character_that_shells_interpret(url: Url) -> None:
    assert UNTOUCHED.fullmatch(url.login_url())


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish"])
def test_shells_pass_an_unquoted_login_url_unchanged(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    login_urls = [
        Url(Address("fe80::1%eth0", 9), pin="-_" * 21 + "-", token="-_-" * 10).login_url(),
        Url(Address("10.0.0.1"), token="--help").login_url(),
        Url(Address("bücher.example"), token=TOKEN, plain=True).login_url(),
    ]
    done = subprocess.run(
        [shell, "-c", "".join(f"echo {login_url}\n" for login_url in login_urls)],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout.splitlines() == login_urls


@given(urls)
def test_only_the_login_url_contains_the_secrets(url: Url) -> None:
    for shown in (str(url), repr(url), f"{url}", repr([url])):
        assert url.token is None or url.token not in shown.replace(url.address.host, "")
    scheme = "ftpk+plain" if url.plain else "ftpk"
    assert str(url) == repr(url) == f"{scheme}:{str(url.address).partition(':')[2]}"


@given(st.text(max_size=30) | st.from_regex(r"(ftpk(\+plain)?://)?[a-z]*:?@?[a-z.0-9-]+(:[0-9]+)?"))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    for parse in (Address.parse, Url.parse):
        try:
            found = parse(text)
        except ValueError:
            continue
        address = found.address if isinstance(found, Url) else found
        assert 0 < address.port < 65536
        assert parse(str(found)) == found or isinstance(found, Url)
