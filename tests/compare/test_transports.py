"""Every transport is measured correctly and leaves nothing on the server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ftpkit import Server
from ftpkit.compare.tcp_info import congestion_controls
from ftpkit.compare.transport_process import Transport, TransportResult
from ftpkit.compare.transports import STREAMS, Comparison, comparing
from ftpkit.errors import CannotConnectError, FtpkitError, LocalFileError
from ftpkit.lab.child import ChildError, ChildProcess
from ftpkit.lab.model import NetworkProfile
from ftpkit.net.address import Url
from tests.support.network import PATIENCE_S
from tests.support.trees import published, staged

TOTAL = 9_500_000  # three blocks, the last of them short


@pytest.fixture(autouse=True)
def _own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "file.bin"
    path.write_bytes(os.urandom(TOTAL))
    return str(path)


def measured(comparison: Comparison) -> dict[str, TransportResult]:
    outcomes = [comparison.measure(transport) for transport in comparison.transports()]
    return {outcome.transport: outcome for outcome in outcomes}


def assert_adds_up(outcome: TransportResult, total: int) -> None:
    """The numbers of an outcome are consistent."""
    assert (outcome.error, outcome.stopped) == (None, False)
    assert outcome.first_byte_s is not None
    assert 0 < outcome.first_byte_s <= outcome.seconds
    assert outcome.goodput_bits_per_s == outcome.bytes * 8 / outcome.seconds
    assert 0 < outcome.client_cpu_s < PATIENCE_S
    assert 0 < outcome.bytes <= total
    if outcome.sent_bytes is not None and outcome.resent_bytes is not None:
        assert outcome.sent_bytes - outcome.resent_bytes >= outcome.bytes


def test_every_transport_of_this_machine_is_measured(path: str, tmp_path: Path) -> None:
    with comparing(path) as comparison:
        outcomes = measured(comparison)
        assert comparison.network_counts() is None
    names = ["tcp", f"tcp-{STREAMS}", *(f"tcp-{name}" for name in congestion_controls()[1:])]
    assert list(outcomes) == [*names, "udp-raw", "udp"]
    raw = outcomes.pop("udp-raw")
    for outcome in (raw, *outcomes.values()):
        assert_adds_up(outcome, TOTAL)
        assert outcome.server_cpu_s is not None
        assert outcome.server_cpu_s >= 0
    for outcome in outcomes.values():
        assert (outcome.verified, outcome.bytes) == (True, TOTAL)
    assert (raw.verified, raw.resent_bytes) == (False, 0)
    assert [raw.congestion, outcomes.pop("udp").congestion] == [None, None]
    if sys.platform == "linux":
        default, *others = congestion_controls()
        assert [outcome.congestion for outcome in outcomes.values()] == [default, default, *others]
        for outcome in outcomes.values():
            assert outcome.sent_bytes is not None
            assert outcome.sent_bytes >= TOTAL
            assert outcome.lost_bytes is None
    assert not list((tmp_path / "tmp").iterdir())


def test_a_given_server_is_left_as_it_was(path: str, server: Server, root: Path) -> None:
    (root / "mine").write_text("stays")
    with comparing(path, to=Url(server.address)) as comparison:
        outcomes = measured(comparison)
    assert [outcome.server_cpu_s for outcome in outcomes.values()] == [None] * len(outcomes)
    assert {name for name, outcome in outcomes.items() if not outcome.verified} == {"udp-raw"}
    assert published(root) == {"mine": b"stays"}
    assert staged(root) == []


def test_a_transport_over_the_limit_is_stopped_and_cleaned_up(
    tmp_path: Path, server: Server, root: Path
) -> None:
    huge = tmp_path / "huge.bin"
    with huge.open("wb") as file:
        file.truncate(2**30)
    with comparing(str(huge), to=Url(server.address), limit_s=0.15) as comparison:
        for outcome in measured(comparison).values():
            assert (outcome.stopped, outcome.verified, outcome.error) == (True, False, None), (
                outcome
            )
            assert 0 <= outcome.bytes < 2**30
            assert 0.15 <= outcome.seconds < PATIENCE_S
    assert published(root) == {}
    assert staged(root) == []


def test_a_failure_is_in_the_outcome(path: str, root: Path) -> None:
    with (
        Server(root, port=0, datagrams=False) as server,
        comparing(path, to=Url(server.address)) as comparison,
    ):
        outcomes = measured(comparison)
    for name in ("udp", "udp-raw"):
        error = outcomes[name].error
        assert error is not None
        assert "datagrams" in error
        assert (outcomes[name].bytes, outcomes[name].goodput_bits_per_s) == (0, 0.0)
        assert outcomes[name].first_byte_s is None
    assert outcomes["tcp"].verified
    assert published(root) == {}
    assert staged(root) == []


def test_a_missing_congestion_control_is_in_the_outcome(path: str) -> None:
    with comparing(path) as comparison:
        outcome = comparison.measure(Transport(name="tcp-none", streams=1, congestion="none"))
    if sys.platform == "linux":
        assert outcome.error == ("cannot use congestion control none: No such file or directory")


def test_an_unusable_file_is_refused_at_once(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    cases: list[tuple[type[FtpkitError], Path, str]] = [
        (LocalFileError, empty, "is empty"),
        (LocalFileError, tmp_path / "none", "cannot read"),
        (LocalFileError, tmp_path, "is a directory"),
    ]
    for kind, path, message in cases:
        with pytest.raises(kind, match=message), comparing(str(path)):
            pass


def test_a_missing_server_is_reported_at_once(path: str) -> None:
    with Server(os.path.dirname(path) + "/gone", port=0) as server:
        address = server.address
    with pytest.raises(CannotConnectError), comparing(path, to=Url(address)):
        pass


# Over an emulated network


@pytest.mark.net
@pytest.mark.usefixtures("make_network")
def test_over_a_lossy_network_raw_loses_and_repaired_repairs(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(os.urandom(2_000_000))
    with comparing(str(path), profile=NetworkProfile.parse("20M,10ms,1%")) as comparison:
        transports = {transport.name: transport for transport in comparison.transports()}
        before = comparison.network_counts()
        raw = comparison.measure(transports["udp-raw"])
        after = comparison.network_counts()
        repaired = comparison.measure(transports["udp"])
        plain = comparison.measure(transports["tcp"])
    for outcome in (raw, repaired, plain):
        assert_adds_up(outcome, 2_000_000)
    assert before is not None
    assert after is not None
    # Raw loses what the network lost, and not a byte less.
    lost = after.to_far.lost + after.to_far.dropped - before.to_far.lost - before.to_far.dropped
    assert raw.lost_bytes is not None
    assert raw.sent_bytes is not None
    assert 0 < raw.lost_bytes <= lost * 1500
    assert raw.sent_bytes - raw.lost_bytes == pytest.approx(raw.bytes, abs=100)
    assert (raw.verified, raw.resent_bytes) == (False, 0)
    assert (repaired.verified, repaired.bytes) == (True, 2_000_000)
    assert repaired.resent_bytes is not None
    assert repaired.lost_bytes is not None
    assert repaired.resent_bytes > 0
    assert repaired.lost_bytes > 0
    assert plain.verified
    assert plain.resent_bytes is not None
    assert plain.resent_bytes > 0


@pytest.mark.net
@pytest.mark.usefixtures("make_network")
def test_a_stopped_transport_does_not_disturb_the_next(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(os.urandom(4_000_000))
    with comparing(str(path), profile=NetworkProfile.parse("4M,5ms"), limit_s=0.5) as comparison:
        stopped = comparison.measure(Transport(name="tcp", streams=2))
        counts = comparison.network_counts()
    assert stopped.stopped
    assert 0 < stopped.bytes < 4_000_000
    assert stopped.sent_bytes is not None
    assert counts is not None
    # Sockets buffer megabytes, of which little was sent after the stop.
    assert counts.to_far.bytes < 2 * stopped.sent_bytes + 200_000


# The processes


def test_a_child_that_exits_early_is_an_error() -> None:
    with (
        pytest.raises(ChildError, match="exited with status"),
        ChildProcess("ftpkit.compare.server_process", {"host": "192.0.2.1"}) as child,
    ):
        child.receive()


def test_a_child_exits_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import os; from ftpkit.lab.child import ChildProcess; "
        "child = ChildProcess('ftpkit.compare.server_process', {'host': None}); "
        "child.receive(); print(os.listdir(os.environ['TMPDIR'])); os.kill(os.getpid(), 9)"
    )
    # The child shares stderr, so run() waits for it as well.
    done = subprocess.run(
        [sys.executable, "-u", "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (-9, "")
    assert done.stdout.startswith("['ftpkit-compare-")
    assert not list((tmp_path / "tmp").iterdir())
