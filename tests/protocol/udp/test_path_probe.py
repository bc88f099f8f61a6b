"""Path probing: the largest datagram, and proof of the address."""

from ftpkit.protocol.udp.packet import (
    FROM_SERVER,
    MIN_DATAGRAM,
    OVERHEAD,
    Datagram,
    Header,
    Kind,
    Probe,
    pack_probe,
    read_header,
    read_probe,
)
from ftpkit.protocol.udp.path_probe import PathProber, echo_of

SIZES = [9000, 1472, 1232]
PROOF = 0xABC


def numbered(datagram: Datagram) -> Header:
    header = read_header(datagram.header + bytes(16))
    assert header is not None
    return header


def told(datagram: Datagram) -> Probe:
    return read_probe(datagram.payload)


def lengths(datagrams: list[Datagram]) -> list[int]:
    return [len(datagram.payload) + OVERHEAD for datagram in datagrams]


def echo(path: PathProber, probe: Datagram, now: float, proof: int = PROOF) -> None:
    answer = echo_of(numbered(probe), len(probe.payload) + OVERHEAD, Probe(proof, 0, 0))
    assert len(answer.payload) == len(probe.payload)
    path.receive(numbered(answer), answer.payload, now)


def test_it_probes_every_size_twice_until_an_echo_comes() -> None:
    path = PathProber(7, SIZES, 0.0)
    probes = path.datagrams_to_send(0.0)
    assert lengths(probes) == [9000, 9000, 1472, 1472, 1232, 1232]
    assert [numbered(probe) for probe in probes] == [
        Header(7, number, 0, 0, Kind.PROBE) for number in range(1, 7)
    ]
    assert {told(probe) for probe in probes} == {Probe(0, 0, 0)}
    assert path.datagrams_to_send(0.1) == []
    assert lengths(path.datagrams_to_send(path.next_event(0.1))) == lengths(probes)
    assert not path.is_open


def test_an_echo_of_the_largest_size_decides_at_once() -> None:
    path = PathProber(7, SIZES, 0.0)
    probes = path.datagrams_to_send(0.0)
    echo(path, probes[0], 0.1)
    (first, second) = path.datagrams_to_send(0.1)
    assert (path.piece, path.rtt_s) == (9000 - OVERHEAD, 0.1)
    assert told(first) == told(second) == Probe(PROOF, path.piece, 100_000)
    assert lengths([first]) == [MIN_DATAGRAM]


def test_otherwise_the_largest_echo_in_time_decides() -> None:
    path = PathProber(7, SIZES, 0.0)
    probes = path.datagrams_to_send(0.0)
    echo(path, probes[4], 0.1)
    assert path.piece == 0
    echo(path, probes[2], 0.15)
    path.datagrams_to_send(0.15)
    assert path.piece == 0
    assert path.next_event(0.15) == 0.2
    path.datagrams_to_send(0.2)
    assert path.piece == 1472 - OVERHEAD
    echo(path, probes[0], 0.5)
    path.datagrams_to_send(0.5)
    assert path.piece == 1472 - OVERHEAD, "the piece does not change"


def test_it_returns_the_proof_until_the_server_accepts_it() -> None:
    path = PathProber(7, SIZES, 0.0)
    echo(path, path.datagrams_to_send(0.0)[0], 0.1)
    (probe, _) = path.datagrams_to_send(0.1)
    echo(path, probe, 0.2)
    assert path.datagrams_to_send(0.2) == []
    assert path.datagrams_to_send(path.next_event(0.2)) != []
    path.note_received(0.5)
    assert path.next_event(0.5) == 1.5, "then only after a second of silence"
    assert path.datagrams_to_send(1.4) == []
    assert lengths(path.datagrams_to_send(1.5)) == [MIN_DATAGRAM] * 2


def test_a_new_address_is_proven_at_once() -> None:
    path = PathProber(7, SIZES, 0.0)
    echo(path, path.datagrams_to_send(0.0)[0], 0.1)
    path.datagrams_to_send(0.1)
    path.note_received(0.2)
    (probe, _) = path.datagrams_to_send(1.2)
    echo(path, probe, 1.3, proof=PROOF + 1)
    assert path.next_event(1.3) == 1.3
    assert told(path.datagrams_to_send(1.3)[0]).proof == PROOF + 1


def test_an_echo_without_a_probe_is_ignored() -> None:
    path = PathProber(7, SIZES, 0.0)
    header = Header(7, 99, 0, 0, Kind.ECHO | FROM_SERVER)
    path.receive(header, pack_probe(Probe(PROOF, 0, 0), 9000), 0.1)
    assert not path.is_open


def test_only_the_last_probes_are_remembered() -> None:
    path = PathProber(7, SIZES, 0.0)
    (first, *_) = path.datagrams_to_send(0.0)
    for step in range(1, 20):
        path.datagrams_to_send(float(step))
    echo(path, first, 20.0)
    assert not path.is_open


def test_a_replayed_echo_is_ignored() -> None:
    """An attacker could restore the proof of another address."""
    path = PathProber(7, SIZES, 0.0)
    probes = path.datagrams_to_send(0.0)
    echo(path, probes[0], 0.1)
    path.note_received(0.2)
    before = path.datagrams_to_send(1.3)
    echo(path, before[0], 1.4, proof=PROOF + 2)
    echo(path, probes[0], 1.5)
    assert {told(probe).proof for probe in path.datagrams_to_send(1.6)} == {PROOF + 2}
