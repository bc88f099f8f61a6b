"""How near a server keeps to its rate, or to that of a token, over some seconds of transfers.

Run it with ``python -m tests.bench.rates [--rate 20M]``; it prints a Markdown table. What has moved
is what the server's status says.
"""

import argparse
import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Final

from ftpkit.client import Client, TransferResult
from ftpkit.client.pool import TransferFuture
from ftpkit.net.address import Url
from ftpkit.tokens import Grant, Tokens
from tests.bench.processes import HERE, fast_directory, ftpkit, parse_size, serving

_ANNOUNCES: Final = r" at (\S+);"
_LIMITED: Final = ["server", "token"]
_WAYS: Final = (("up",), ("down",), ("up", "down"))
# What was saved up, and the first turns, are over by then.
_SETTLE_S: Final = 0.5
# Within that all of them move.
_LONGEST_START_S: Final = 20.0


def main() -> None:
    """Measure, and print it."""
    options = _options()
    print("| rate of | workers | transfers | way | rate met |\n|---|---|---|---|---|")
    rows = product(options.rate_of, options.workers, options.transfers, _WAYS)
    for whose, workers, transfers, ways in rows:
        seen = _seen(options.rate, whose, workers, transfers, ways, options.seconds)
        for way in ways:
            beside = " beside the other" if len(ways) > 1 else ""
            share = seen[way] / options.rate
            print(
                f"| {whose} | {workers} | {transfers} | {way}{beside} | {share:.2%} |", flush=True
            )


def _seen(
    rate: int, whose: str, workers: int, transfers: int, ways: tuple[str, ...], seconds: float
) -> Mapping[str, float]:
    """Return the bytes a second of each way, over so many transfers in it."""
    with contextlib.ExitStack() as stack:
        here = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=fast_directory())))
        (here / "root").mkdir()
        # They take no room; a download that is measured takes what has arrived.
        for path in (here / "up", *(here / "root" / f"down{n}" for n in range(transfers))):
            with path.open("wb") as file:
                file.truncate(int(rate * (seconds + _LONGEST_START_S)))
        state = here / "state"
        limited: tuple[str, ...] = (*HERE, "--rate", str(rate))
        if whose == "token":
            limited = ("--host", "127.0.0.1", "--plain", "--state", str(state))
        command = ftpkit(
            *("serve", str(here / "root"), "--port", "0", "--no-fsync", "--quiet"),
            *("--workers", str(workers), *limited),
        )
        _, address = stack.enter_context(serving(command, _ANNOUNCES))
        token = None
        if whose == "token":
            token = Tokens(state / "tokens.json").add(Grant(user="bench", bytes_per_s=rate))
        url = Url(Url.parse(address).address, token=token, plain=True)
        futures = stack.enter_context(_under_way(url, here, transfers, ways))
        client = stack.enter_context(Client(url))
        while _moved(client)[1] < transfers * len(ways):
            for future in futures:
                if future.done():
                    raise RuntimeError("a transfer has ended") from future.exception()
            time.sleep(_SETTLE_S)
        time.sleep(_SETTLE_S)
        began, _, before = _moved(client)
        time.sleep(seconds)
        ended, _, after = _moved(client)
        return {way: (after[way] - before[way]) / (ended - began) for way in ways}


@contextlib.contextmanager
def _under_way(
    url: Url, here: Path, transfers: int, ways: tuple[str, ...]
) -> Iterator[list[TransferFuture[TransferResult]]]:
    """Let transfers go on until the block ends."""
    with Client(url, jobs=transfers * len(ways)) as client:
        futures = []
        for number in range(transfers):
            if "up" in ways:
                futures.append(client.submit_put(here / "up", f"up{number}"))
            if "down" in ways:
                futures.append(client.submit_get(f"down{number}", here / f"down{number}"))
        yield futures
        client.close(cancel_futures=True)


def _moved(client: Client) -> tuple[float, int, Counter[str]]:
    """Return when the server was asked, how many of its transfers move, and bytes of each way."""
    asked = time.monotonic()
    transfers = client.status()["transfers"]
    answered = time.monotonic()
    moved: Counter[str] = Counter()
    for each in transfers:
        moved[each["direction"]] += each["moved"]
    return (asked + answered) / 2, sum(each["moved"] > 0 for each in transfers), moved


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.rates", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rate", type=parse_size, default="20M", help="default: %(default)s")
    parser.add_argument("--rate-of", choices=_LIMITED, nargs="+", default=_LIMITED)
    parser.add_argument("--seconds", type=float, default=5.0, help="default: %(default)s")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--transfers", type=int, nargs="+", default=[1, 4])
    return parser.parse_args()


if __name__ == "__main__":
    main()
