"""The shared limits of several processes: the supervisor's side and the workers' side."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count as counter
from typing import Any

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.frame import Header
from ftpkit.server.auth.shared_limits import LocalLimits, Quotas
from ftpkit.storage.quota import NO_RESERVATION, Reservation

Reply = Callable[..., None]


class SharedLimitsServer:
    """Answers the requests of ``RemoteLimits`` from ``limits``.

    ``receive`` does not wait: a reservation that needs a count is made in a thread of its own.
    """

    def __init__(self, limits: LocalLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._numbers = counter(1)
        self._shares: dict[int, _WorkerShare] = {}

    def join(self, worker: int) -> None:
        with self._lock:
            self._shares[worker] = _WorkerShare()

    def leave(self, worker: int) -> None:
        """Release what a worker has that ended."""
        with self._lock:
            share = self._shares.pop(worker)
        for user in share.connections.elements():
            self._limits.release(user)
        for reservation in share.reservations.values():
            reservation.commit()
        if share.reservations:
            # These bytes may be stored or not: a count tells.
            self._limits.quotas.note_deleted("")

    def move(self, user: str, worker: int, successor: int | None) -> None:
        """Note that a connection of ``user`` went to another worker, or to none."""
        with self._lock:
            self._shares[worker].connections[user] -= 1
            if successor is not None:
                self._shares[successor].connections[user] += 1
        if successor is None:
            self._limits.release(user)

    def receive(self, worker: int, header: Header, reply: Reply) -> None:
        match header["what"]:
            case "acquire":
                acquired = self._limits.acquire(header["user"], header["max"])
                if acquired:
                    with self._lock:
                        self._shares[worker].connections[header["user"]] += 1
                reply(acquired=acquired)
            case "release":
                self.move(header["user"], worker, None)
            case "login_failed":
                reply(delay_s=self._limits.login_failed(header["host"]))
            case "reserve":
                self._reserve(worker, header, reply)
            case "commit" | "cancel" as what:
                with self._lock:
                    reservation = self._shares[worker].reservations.pop(header["number"])
                (reservation.commit if what == "commit" else reservation.cancel)()
                reply()
            case "deleted":
                self._limits.quotas.note_deleted(header["name"])
                reply()
            case "renamed":
                self._limits.quotas.note_renamed(header["name"], header["to"])
                reply()

    def _reserve(self, worker: int, header: Header, reply: Reply) -> None:
        args = header["name"], header["count"], header["under"], header["quota"]
        quotas = self._limits.quotas

        def attempt(reserve: Callable[[str, int, str, int | None], Reservation | None]) -> bool:
            try:
                reservation = reserve(*args)
            except RefusedError as refusal:
                reply(refused=refusal.code, message=str(refusal))
                return True
            if reservation is not None:
                reply(number=self._add(worker, reservation))
            return reservation is not None

        if not attempt(quotas.try_reserve):
            threading.Thread(
                target=attempt, args=(quotas.reserve,), name="ftpkit-reserve", daemon=True
            ).start()

    def _add(self, worker: int, reservation: Reservation) -> int:
        with self._lock:
            number, share = next(self._numbers), self._shares.get(worker)
            if share is not None:
                share.reservations[number] = reservation
        if share is None:
            reservation.cancel()
        return number


@dataclass(slots=True)
class _WorkerShare:
    """The connections of users and the open reservations of one worker."""

    connections: Counter[str] = field(default_factory=Counter)
    reservations: dict[int, Reservation] = field(default_factory=dict)


class RemoteLimits:
    """The ``SharedLimits`` that the supervisor keeps, and their ``Quotas``.

    ``request`` sends a message and returns the reply, ``send`` sends one that has none. While
    ``has_quotas`` returns false no user has one, and nothing is sent about quotas. What is sent
    has a reply, as a request through another worker may follow it.
    """

    def __init__(
        self,
        request: Callable[..., Header],
        send: Callable[..., object],
        has_quotas: Callable[[], bool],
    ) -> None:
        self._request, self._send, self._has_quotas = request, send, has_quotas

    @property
    def quotas(self) -> Quotas:
        return self

    def acquire(self, user: str, max_connections: int | None) -> bool:
        return bool(self._request(what="acquire", user=user, max=max_connections)["acquired"])

    def release(self, user: str) -> None:
        self._send(what="release", user=user)

    def login_failed(self, host: str) -> float:
        return float(self._request(what="login_failed", host=host)["delay_s"])

    def reserve(self, name: str, count: int, under: str, quota: int | None) -> Reservation:
        if quota is None and not self._has_quotas():
            return NO_RESERVATION
        reply = self._request(what="reserve", name=name, count=count, under=under, quota=quota)
        if "refused" in reply:
            raise RefusedError(Code(reply["refused"]), reply["message"])
        return Reservation(partial(self._release, reply["number"]))

    def note_deleted(self, name: str) -> None:
        self._note(what="deleted", name=name)

    def note_renamed(self, name: str, to: str) -> None:
        self._note(what="renamed", name=name, to=to)

    def _note(self, **message: Any) -> None:
        if self._has_quotas():
            self._request(**message)

    def _release(self, number: int, committed: bool) -> None:
        self._request(what="commit" if committed else "cancel", number=number)
