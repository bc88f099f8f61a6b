"""The scripts run, and say what they promise to say; how fast anything was does not matter."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ftpkit.compare.tcp_info import congestion_controls
from ftpkit.osapi import sockets as os_sockets
from tests.support.network import network_unavailable

__all__ = ["network_unavailable"]

pytestmark = [
    pytest.mark.bench,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"),
]

TOP = Path(__file__).parents[2]
SMALL = ("--size", "4M", "--runs", "1")


def run(
    script: str, *arguments: str, path: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a script; only the commands in ``path`` are there for it, where that is given."""
    return subprocess.run(
        [sys.executable, "-m", f"tests.bench.{script}", *arguments],
        cwd=TOP,
        env=os.environ | ({"PATH": str(path)} if path else {}),
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_single_stream_reports_every_way_in_both_directions(tmp_path: Path) -> None:
    done = run("single_stream", *SMALL, "--directory", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report.keys() == {
        "size",
        "runs",
        "directory",
        "machine",
        "left_out",
        "peak_floor",
        "rows",
    }
    assert (report["size"], report["runs"]) == (4_000_000, 1)
    ways = {"ftpkit serve, put, get", "cp"}
    if "pyftpdlib" not in report["left_out"]:
        ways.add("pyftpdlib, curl")
    assert {(row["direction"], row["name"]) for row in report["rows"]} == {
        (direction, way) for direction in ("upload", "download") for way in ways
    }
    for row in report["rows"]:
        assert row.keys() == {"direction", "name", "verified", "median_s", "ratios", "samples"}
        assert len(row["ratios"]) == len(row["samples"]) == 1
        assert row["verified"] is row["name"].startswith("ftpkit")
        assert row["samples"][0].keys() == {
            "seconds",
            "client_cpu_s",
            "client_peak",
            "server_cpu_s",
            "server_peak",
        }
    assert list(tmp_path.iterdir()) == []


def test_single_stream_measures_the_peer_where_it_is_installed(tmp_path: Path) -> None:
    if importlib.util.find_spec("pyftpdlib") is None or shutil.which("curl") is None:
        pytest.skip("needs pyftpdlib and curl")
    done = run("single_stream", *SMALL, "--directory", str(tmp_path))
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 2 * 3
    assert len({line.count("|") for line in table}) == 1
    assert sum("| pyftpdlib, curl |" in line for line in table) == 2


def test_single_stream_says_in_one_line_what_it_leaves_out(tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("cp", "cmp"):
        (commands / name).symlink_to(shutil.which(name) or name)
    done = run("single_stream", *SMALL, "--directory", str(tmp_path), "--json", path=commands)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["left_out"].keys() == {"pyftpdlib"}
    assert done.stderr.count("pyftpdlib is left out: ") == 1


def test_eight_clients_find_the_server_as_it_was(tmp_path: Path) -> None:
    done = run("eight_clients", "--size", "4M", "--directory", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every file equal" in done.stdout


def test_a_big_file_arrives_at_flat_memory(tmp_path: Path) -> None:
    done = run("big_file", "--size", "4M", "--directory", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "byte for byte" in done.stdout


def test_tls_is_measured_beside_who_is_there(tmp_path: Path) -> None:
    done = run("tls", *SMALL, "--directory", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:3] for line in done.stdout.splitlines() if line.startswith("|")][2:]
    for direction in ("upload", "download"):
        assert [f" {direction} ", " ftpkit, TLS "] in rows
        for program, name in (("nginx", "nginx, curl"), ("sshd", "scp, aes128-gcm")):
            left_out = f"{program} is left out: " in done.stderr
            assert ([f" {direction} ", f" {name} "] in rows) is not left_out
    assert list(tmp_path.iterdir()) == []


def test_udp_is_measured_over_loopback_beside_tcp_and_its_bounds() -> None:
    if not os_sockets.HAS_UDP_SEGMENTS:
        pytest.skip("needs UDP_SEGMENT")
    done = run("udp", "loopback", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" GiB/s") == 3 + len({"bbr", "cubic"} & set(congestion_controls()))
    assert "  udp  " in done.stdout
    assert "  bare datagrams  " in done.stdout
    assert "  digested and stored  " in done.stdout
    assert "target 1.5, 1 of 1 verified" in done.stdout


def test_udp_is_measured_on_a_link(network_unavailable: str | None) -> None:
    if network_unavailable is not None:
        pytest.skip(network_unavailable)
    done = run("udp", "100M,50ms,5%", *SMALL, "--limit", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" Mbit/s") == 1 + len({"bbr", "cubic"} & set(congestion_controls()))
    assert "target 88, 1 of 1 verified" in done.stdout
    assert "% of the data, target at most 7.26" in done.stdout


def test_scheduling_prints_what_a_turn_costs() -> None:
    done = run("scheduling", "--transfers", "20", "--turns", "200", "--runs", "1")
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()[2:]
    assert [row.split()[1] for row in rows] == ["fcfs", "sjf", "rr", "mlfq", "fair"]
    assert all(row.count("µs") == 3 for row in rows)


def test_rates_prints_how_near_each_way_comes() -> None:
    few = ("--seconds", "0.1", "--workers", "1", "--transfers", "2", "--rate-of", "token")
    done = run("rates", *few)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in row.split("|")] for row in done.stdout.splitlines()[2:]]
    ways = ["up", "down", "up beside the other", "down beside the other"]
    assert [(row[1], row[4]) for row in rows] == [("token", way) for way in ways]


@pytest.mark.parametrize("how", [[], ["--tls"]])
def test_workers_reports_both_servers_and_how_they_compare(tmp_path: Path, how: list[str]) -> None:
    done = run("workers", "--files", "20", "--runs", "1", "--directory", str(tmp_path), *how)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("1 worker: ")
    assert lines[1].startswith("2 workers: ")
    assert lines[2].endswith(" times as fast")
