"""What holds for all workers together: who is connected, who serves whom, who has which upload."""

import contextlib
import logging
import socket
import threading
from collections import Counter
from enum import Enum, auto
from functools import partial
from typing import Any, Final

from ftpkit.errors import ConnectionLostError, WrongWorkerError
from ftpkit.protocol.frame import Header
from ftpkit.server.admission import Admission
from ftpkit.server.channel import Channel, close_all
from ftpkit.server.housekeeping import Housekeeper
from ftpkit.server.listener import peer_name
from ftpkit.server.relay import is_session_of

# The number of the supervisor itself, which only ever has uploads to sweep them.
KEEPER: Final = 0
# In place of a host: the connection has its place where its keys are.
_LENT: Final = ""

log = logging.getLogger("ftpkit.server")


class State(Enum):
    """What may be given to a worker."""

    STARTING = auto()
    SERVING = auto()
    LEAVING = auto()  # it finishes what it has, and gets what belongs to that
    ENDED = auto()


class Member:
    """A worker as the broker knows it."""

    def __init__(self, number: int, channel: Channel) -> None:
        self.number, self.channel = number, channel
        self.inboxes: list[socket.socket] = []
        """Where datagrams for its sessions go, one for each port."""
        self.state = State.STARTING
        self.settled = threading.Event()
        """Set when it serves, or never will."""
        self.connections = 0
        self.hosts: Counter[str] = Counter()

    def count(self, host: str, change: int) -> None:
        """Note a connection that has come, or gone."""
        self.connections += change
        self.hosts[host] += change
        if not self.hosts[host]:
            del self.hosts[host]

    def tell(self, op: str, **message: Any) -> None:
        """Send a message; that it is gone, who receives from it will find."""
        with contextlib.suppress(ConnectionLostError):
            self.channel.send(op=op, **message)

    def offer(self, op: str, **message: Any) -> bool:
        """Send a message as ``tell`` does, if that takes no wait; False says that it would."""
        try:
            return self.channel.offer(op=op, **message)
        except ConnectionLostError:
            return True

    def close(self) -> None:
        """Close what leads to it."""
        self.channel.close()
        for inbox in self.inboxes:
            inbox.close()


class Broker:
    """Hands connections to workers, and answers what they ask about each other.

    Every new connection goes to the worker that has fewest. One that names an upload
    which another worker has open is passed on to that one.
    """

    def __init__(self, admission: Admission, housekeeper: Housekeeper) -> None:
        self._admission, self._housekeeper = admission, housekeeper
        self._changed = threading.Condition()
        self._members: dict[int, Member] = {}
        self._holders: dict[str, int] = {}
        self._waiting: list[tuple[str, int, int]] = []
        self._stopping = False

    def join(self, member: Member) -> None:
        """Receive from a worker that starts."""
        self._housekeeper.join(member.number)
        with self._changed:
            self._members[member.number] = member

    def replace(self, members: list[Member]) -> None:
        """Let these alone get new connections; the others finish what they have."""
        with self._changed:
            old = [each for each in self.serving() if each not in members]
            for member in old:
                member.state = State.LEAVING
        for member in old:
            member.tell("leave")
            self._let_end(member)

    def serving(self) -> list[Member]:
        """Return the workers that get new connections, or soon will."""
        with self._changed:
            return [
                member
                for member in self._members.values()
                if member.state in (State.STARTING, State.SERVING)
            ]

    def stop(self) -> None:
        """Hand out nothing more, and let nobody wait for a worker."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            members = list(self._members.values())
        for member in members:
            member.settled.set()

    def hand_out(self, sock: socket.socket, address: tuple[Any, ...], at: int) -> None:
        """Give a connection that was admitted to a worker; without any, wait for one."""
        host = address[0]
        with sock:
            while (member := self._next(host)) is not None:
                with contextlib.suppress(ConnectionLostError):
                    member.channel.send(
                        op="serve", fds=[sock.fileno()], peer=peer_name(address), host=host, at=at
                    )
                    return
                if not self._take_back(member, host):
                    return
        self._admission.leave(host)

    def receive(self, member: Member, header: Header, body: bytes, fds: list[int]) -> None:
        """Do what a worker asks for."""
        match header["op"]:
            case "ready":
                with self._changed:
                    if member.state is State.STARTING:
                        member.state = State.SERVING
                    self._changed.notify_all()
                member.settled.set()
            case "claim":
                self._answer(header["key"], member.number, header["call"])
            case "give_up":
                self.give_up(member.number, header["key"])
            case "house":
                answer = partial(member.tell, "answer", call=header.get("call"))
                self._housekeeper.receive(member.number, header, answer)
            case "pass":
                self._pass(member, header, body, fds)
            case "left":
                if self._take_back(member, header["host"]):
                    self._leave(header["host"])
        self._let_end(member)

    def bury(self, member: Member) -> None:
        """Forget a worker whose process has ended, and all that it had."""
        with self._changed:
            del self._members[member.number]
            member.state = State.ENDED
            hosts, member.hosts, member.connections = member.hosts, Counter(), 0
            free = [key for key, holder in self._holders.items() if holder == member.number]
            for key in free:
                del self._holders[key]
        for host in hosts.elements():
            self._leave(host)
        self._housekeeper.leave(member.number)
        for key in free:
            self._answer_waiting(key)

    def inbox(self, at: int, session: int) -> socket.socket | None:
        """Return where datagrams for a session go that arrived at port number ``at``."""
        with self._changed:
            for member in self._members.values():
                if is_session_of(member.number, session):
                    return member.inboxes[at]
        return None

    def claim(self, number: int, key: str) -> int | None:
        """Return which worker has an upload from now on; None is told as soon as one is free."""
        with self._changed:
            holder = self._holders.get(key)
            if holder is not None:
                ended = holder != KEEPER and self._members[holder].state is State.ENDED
                return None if ended or holder == KEEPER != number else holder
            member = self._members.get(number)
            if member is not None and member.state is State.LEAVING:
                heir = self._fewest()
                if heir is not None:
                    return heir.number
            self._holders[key] = number
            return number

    def give_up(self, number: int, key: str) -> None:
        """Note that an upload is open in no worker."""
        with self._changed:
            if self._holders.get(key) == number:
                del self._holders[key]
        self._answer_waiting(key)

    def _answer(self, key: str, number: int, call: int) -> None:
        with self._changed:
            holder = self.claim(number, key)
            if holder is None:
                self._waiting.append((key, number, call))
                return
            member = self._members.get(number)
        if member is not None:
            member.tell("answer", call=call, holder=holder)

    def _answer_waiting(self, key: str) -> None:
        with self._changed:
            found = [each for each in self._waiting if each[0] == key]
            self._waiting = [each for each in self._waiting if each[0] != key]
        for each in found:
            self._answer(*each)

    def _next(self, host: str) -> Member | None:
        """Return who gets the next connection, and count it there; None while we stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._fewest() is not None)
            member = None if self._stopping else self._fewest()
            if member is not None:
                member.count(host, 1)
            return member

    def _fewest(self) -> Member | None:
        serving = [each for each in self._members.values() if each.state is State.SERVING]
        return min(serving, key=lambda member: member.connections, default=None)

    def _take_back(self, member: Member, host: str) -> bool:
        """Count a connection at a worker no more; False: that was done when it was buried."""
        with self._changed:
            if not member.hosts[host]:
                return False
            member.count(host, -1)
            return True

    def _pass(self, member: Member, header: Header, body: bytes, fds: list[int]) -> None:
        """Give a connection that one worker had to another; one that is lent stays there, too."""
        host = _LENT if header["lent"] else header["host"]
        with self._changed:
            if not header["lent"]:
                member.count(host, -1)
            heir = self._members.get(header["to"])
            if heir is None or heir.state not in (State.SERVING, State.LEAVING):
                heir = self._fewest()
            if heir is not None:
                heir.count(host, 1)
            if header["user"]:
                # Before the heir can be buried, or say that the connection has ended.
                self._housekeeper.passed(
                    header["user"], member.number, heir.number if heir else None
                )
        if heir is None:
            self._leave(host)
        else:
            rest = {key: header[key] for key in ("peer", "at", "moved")}
            heir.tell("serve", body=body, fds=fds, host=host, **rest)
        close_all(fds)

    def _leave(self, host: str) -> None:
        """Give the place of a connection free, if it has one of its own."""
        if host != _LENT:
            self._admission.leave(host)

    def _let_end(self, member: Member) -> None:
        """Tell a worker that was to leave to end, once it serves nobody."""
        with self._changed:
            if member.state is not State.LEAVING or member.connections:
                return
            member.state = State.ENDED
        member.tell("stop", grace_s=0.0)


class KeeperClaims:
    """The claims of the supervisor itself."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def claim(self, key: str) -> None:
        """Have an upload, unless a worker has it."""
        holder = self._broker.claim(KEEPER, key)
        if holder != KEEPER:
            raise WrongWorkerError(holder or KEEPER)

    def give_up(self, key: str) -> None:
        """Let workers have it again."""
        self._broker.give_up(KEEPER, key)
