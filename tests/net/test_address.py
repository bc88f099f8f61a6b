"""Addresses: what people write, and what it means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftpkit.net.address import DEFAULT_PORT, Address


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
    ],
)
def test_an_address_is_host_and_port(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == Address(host, port)


@pytest.mark.parametrize(
    "text",
    ["", "ftpk://", ":9", "ftpk://:9", "host:9:9", "::1", "::1:9", "[::1", "::1]", "[]", "[]:9",
     "host:", "host:x", "host:-1", "http://host", "ftpk:///host", "ftpk://host/path", "ftpk://user@host",
     "ftpk://host?x", "ftpk://host#x", "my host", "host\n", " host", "ftpk://host:9 ", "[::1]9"],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no address: expected ftpk://HOST:PORT$"):
        Address.parse(text)


@pytest.mark.parametrize("port", ["0", "65536", "99999999", "9" * 30, "9" * 5000])
def test_a_port_that_does_not_exist_is_refused_with_a_sentence(port: str) -> None:
    with pytest.raises(ValueError, match=r"(no such port: expected 1 to 65535|is no address.*)$"):
        Address.parse(f"host:{port}")


hosts = st.from_regex(r"[a-zA-Z0-9._-]{1,40}", fullmatch=True)
ports = st.integers(1, 65535)


@given(st.one_of(hosts, st.ip_addresses().map(str)), ports)
def test_an_address_written_as_text_is_read_back(host: str, port: int) -> None:
    address = Address(host, port)
    assert Address.parse(str(address)) == address
    assert Address.parse(str(address).removeprefix("ftpk://")) == address


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = Address.parse(text)
    except ValueError:
        return
    assert 0 < address.port < 65536
    assert Address.parse(str(address)) == address
