"""What a crash can leave on a disk: a model of a file system that gives minimal guarantees.

The rules, which every file system in use keeps at least:

*Files.* What was written since the last sync of a file may have survived or
not, each sector for itself and at any of the versions it had, and so may the
length, the attributes and the note (extended attribute), each for itself and
independent of every name. A sector that was never synced may hold zeros or
what was on the disk before. ``fsync`` makes all of it stable, ``fdatasync``
bytes and length. A single sector is written whole or not at all, as in ALICE
(Pillai et al., OSDI 2014, section 3).

*Names.* A change of a directory may have survived or not, in any combination,
until that directory is synced; syncing a file makes no name of it stable, nor
does syncing a directory the name of that directory. Two changes of the same
name keep their order, and a change needs the earlier ones of the names that it
reads. A directory is gone only when everything that left it has left it.

*Rename* replaces its target in one step. Across directories a file may
afterwards be found under both names, but never under none: that is what soft
updates promise (McKusick and Ganger, USENIX 1999: a pointer is not reset before
the new one is set; their rename is not atomic). A directory has one parent, so
it moves in one step.

ext4, XFS, btrfs and F2FS promise more: metadata in one order, and a rename in
one step (Chinner on linux-kernel, 2018-09-14; "strictly ordered metadata" in
the crash-recovery-guarantees proposed for Linux by Mohan, 2019, which
CrashMonkey tests). All of their states are among these.
"""

import copy
import itertools
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ftpkit.osapi import files as os_files
from ftpkit.storage.directory.filesystem import DIGEST_XATTR

SECTOR: Final = 512
# What a sector may hold that was given to a file, but never written for it.
STALE: Final = b"\xa5" * SECTOR
ZEROS: Final = bytes(SECTOR)
TOP: Final = 0

# Up to this many steps in flight, every set of survivors is looked at.
_FEW_STEPS: Final = 7


@dataclass(frozen=True, slots=True)
class Make:
    """A new file or directory under a name."""

    directory: int
    part: str
    label: int
    is_directory: bool
    mode: int


@dataclass(frozen=True, slots=True)
class HardLink:
    """A second name for a file."""

    source: int
    part: str
    target: int
    to: str


@dataclass(frozen=True, slots=True)
class Remove:
    """A name is removed: unlink or rmdir."""

    directory: int
    part: str


@dataclass(frozen=True, slots=True)
class Rename:
    """A rename, which replaces what ``to`` names."""

    source: int
    part: str
    target: int
    to: str


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes written to a file."""

    label: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    """A file gets another length."""

    label: int
    length: int


@dataclass(frozen=True, slots=True)
class Describe:
    """The new mode, modification time and digest attribute of a file."""

    label: int
    mode: int
    mtime: int
    note: bytes | None


@dataclass(frozen=True, slots=True)
class Sync:
    """fsync of a file, or fdatasync (``data`` alone)."""

    label: int
    data: bool


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    """fsync of a directory."""

    label: int


Event = Make | HardLink | Remove | Rename | Write | Resize | Describe | Sync | SyncDirectory


@dataclass(frozen=True, slots=True)
class FileImage:
    """The state of a file; ``mtime`` is None unless it was set."""

    content: bytes
    mode: int
    mtime: int | None
    note: bytes | None


@dataclass(frozen=True, slots=True)
class Image:
    """The state of a disk: the content of each directory and file, by label."""

    directories: Mapping[int, Mapping[str, int]]
    files: Mapping[int, FileImage]

    def fingerprint(self) -> str:
        """Return a text that is equal for images with equal content."""
        lines: list[str] = []
        names: dict[int, str] = {}
        for path, label in self.walk():
            if label in self.files:
                first = names.setdefault(label, path)
                lines.append(f"{path} = {first if first != path else self.files[label]}")
            else:
                lines.append(f"{path}/")
        return "\n".join(lines)

    def walk(self, label: int = TOP, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield path and label of everything below a directory, in order."""
        for part, inner in sorted(self.directories[label].items()):
            yield prefix + part, inner
            if inner not in self.files:
                yield from self.walk(inner, f"{prefix}{part}/")

    def build(self, path: Path) -> dict[tuple[int, int], int]:
        """Make this disk in an empty directory; return the label of each inode."""
        made: dict[int, Path] = {TOP: path}
        for name, label in self.walk():
            if label not in self.files:
                made[label] = path / name
                made[label].mkdir()
            elif label in made:
                (path / name).hardlink_to(made[label])
            else:
                made[label] = path / name
                self._build_file(self.files[label], made[label])
        return {identity(where.stat()): label for label, where in made.items()}

    def _build_file(self, file: FileImage, path: Path) -> None:
        with path.open("xb") as opened:
            opened.write(file.content)
            opened.flush()
            if file.note is not None:
                os_files.set_xattr(opened.fileno(), DIGEST_XATTR, file.note)
            path.chmod(file.mode)
            if file.mtime is not None:
                os.utime(path, ns=(file.mtime, file.mtime))


def identity(status: os.stat_result) -> tuple[int, int]:
    """Return device and inode number, which are unique at any one time."""
    return status.st_dev, status.st_ino


@dataclass(slots=True)
class File:
    """A file with all versions since its last sync; the kernel shows the last of each."""

    sectors: dict[int, list[bytes]] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=lambda: [0])
    attributes: list[tuple[int, int | None]] = field(default_factory=lambda: [(0o600, None)])
    notes: list[bytes | None] = field(default_factory=lambda: [None])

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        for number in range(offset // SECTOR, -(-end // SECTOR)):
            start = number * SECTOR
            piece = data[max(0, start - offset) : start + SECTOR - offset]
            self._patch(number, max(0, offset - start), piece)
        if end > self.lengths[-1]:
            self.lengths.append(end)

    def resize(self, length: int) -> None:
        for number in list(self.sectors):
            commit = max(0, length - number * SECTOR)
            if commit < SECTOR:
                self._patch(number, commit, bytes(SECTOR - commit))
        if length != self.lengths[-1]:
            self.lengths.append(length)

    def describe(self, mode: int, mtime: int, note: bytes | None) -> None:
        if (mode, mtime) != self.attributes[-1]:
            self.attributes.append((mode, mtime))
        if note != self.notes[-1]:
            self.notes.append(note)

    def sync(self, *, data: bool) -> None:
        for versions in self.sectors.values():
            del versions[:-1]
        del self.lengths[:-1]
        if not data:
            del self.attributes[:-1], self.notes[:-1]

    def _patch(self, number: int, at: int, piece: bytes) -> None:
        versions = self.sectors.setdefault(number, [ZEROS, STALE])
        old = versions[-1] if versions[-1] is not STALE else ZEROS
        new = old[:at] + piece + old[at + len(piece) :]
        if new != versions[-1]:
            versions.append(new)

    def widths(self) -> list[int]:
        """Return how many versions there are of each part."""
        sectors = [len(versions) for versions in self.sectors.values()]
        return [len(self.lengths), len(self.attributes), len(self.notes), *sectors]

    def image(self, choice: Sequence[int]) -> FileImage:
        """Return the file with the chosen version of each part."""
        length = self.lengths[choice[0]]
        mode, mtime = self.attributes[choice[1]]
        content = bytearray(length)
        for (number, versions), chosen in zip(self.sectors.items(), choice[3:], strict=True):
            start = number * SECTOR
            if start < length:
                content[start : start + SECTOR] = versions[chosen]
        return FileImage(bytes(content[:length]), mode, mtime, self.notes[choice[2]])


@dataclass(frozen=True, slots=True)
class Step:
    """Names that change atomically (None: removed), and the steps that this one needs."""

    number: int
    changes: tuple[tuple[int, str, int | None], ...]
    needs: frozenset[int]

    def touches(self, directory: int, part: str | None = None) -> bool:
        return any(d == directory and part in (None, p) for d, p, _ in self.changes)


class Disk:
    """A disk in use: what is on stable storage, and what is not yet."""

    def __init__(self, image: Image | None = None) -> None:
        self.files: dict[int, File] = {}
        self._stable: dict[int, dict[str, int]] = {TOP: {}}
        self._pending: list[Step] = []
        self._count = 0
        if image is not None:
            self._stable = {label: dict(names) for label, names in image.directories.items()}
            for label, found in image.files.items():
                file = File(attributes=[(found.mode, found.mtime)], notes=[found.note])
                file.write(0, found.content)
                file.sync(data=True)
                self.files[label] = file
        self._seen = copy.deepcopy(self._stable)

    def copy(self) -> "Disk":
        return copy.deepcopy(self)

    def new_label(self) -> int:
        """Return a label that was never used."""
        return max(*self.files, *self._stable, TOP) + 1

    def apply(self, event: Event) -> None:
        """Apply an event."""
        match event:
            case Make(directory, part, label, is_directory, mode):
                if is_directory:
                    self._stable[label], self._seen[label] = {}, {}
                else:
                    self.files[label] = File(attributes=[(mode, None)])
                self._step([(directory, part, label)])
            case HardLink(source, part, target, to):
                self._step([(target, to, self._seen[source][part])], reads=(source, part))
            case Remove(directory, part):
                self._step([(directory, part, None)])
            case Rename(source, part, target, to):
                self._rename(source, part, target, to)
            case Write(label, offset, data):
                self.files[label].write(offset, data)
            case Resize(label, length):
                self.files[label].resize(length)
            case Describe(label, mode, mtime, note):
                self.files[label].describe(mode, mtime, note)
            case Sync(label, data):
                self.files[label].sync(data=data)
            case SyncDirectory(label):
                self._settle(step for step in self._pending if step.touches(label))

    def settle(self) -> None:
        """Bring everything to stable storage, as time does."""
        self._settle(iter(self._pending))
        for file in self.files.values():
            file.sync(data=False)

    def _rename(self, source: int, part: str, target: int, to: str) -> None:
        label = self._seen[source][part]
        if self._seen[target].get(to) == label:
            return  # POSIX: two names of the same file stay as they are
        gone, there = (source, part, None), (target, to, label)
        if label in self.files and source != target:
            added = self._step([there], reads=(source, part))
            self._step([gone], after=added)
        else:
            self._step([gone, there])

    def _step(
        self,
        changes: list[tuple[int, str, int | None]],
        *,
        reads: tuple[int, str] | None = None,
        after: int | None = None,
    ) -> int:
        names = [(directory, part) for directory, part, _ in changes]
        emptied = [self._seen[d].get(p) for d, p, label in changes if label is None]
        moved = [label for _, _, label in changes]
        needs = {
            step.number
            for step in self._pending
            if any(step.touches(*name) for name in [*names, *([reads] if reads else [])])
            or any(e is not None and e not in moved and step.touches(e) for e in emptied)
        }
        if after is not None:
            needs.add(after)
        self._count += 1
        step = Step(self._count, tuple(changes), frozenset(needs))
        self._pending.append(step)
        _change(self._seen, step)
        return step.number

    def _settle(self, steps: Iterator[Step]) -> None:
        settled = self._closure({step.number for step in steps})
        for step in self._pending:
            if step.number in settled:
                _change(self._stable, step)
        self._pending = [step for step in self._pending if step.number not in settled]

    def _closure(self, numbers: set[int]) -> frozenset[int]:
        """Return the steps and all steps that they need."""
        wanted = set(numbers)
        for step in reversed(self._pending):
            if step.number in wanted:
                wanted |= step.needs
        return frozenset(step.number for step in self._pending if step.number in wanted)

    # What may be found

    def now(self) -> Image:
        """Return what the kernel shows, as after the death of a process alone."""
        everything = frozenset(step.number for step in self._pending)
        directories, labels = self._reach(everything)
        return Image(directories, {n: self._file(n, self._widths([n])) for n in labels})

    def crashes(self, randomness: random.Random, limit: int) -> Iterator[Image]:
        """Yield the possible states after a crash now: all, or a sample of about ``limit``."""
        found = [self._reach(numbers) for numbers in self._survivors(randomness, limit)]
        widths = [self._widths(labels) for _, labels in found]
        if sum(math.prod(width) for width in widths) <= limit:
            for reached, width in zip(found, widths, strict=True):
                for choice in itertools.product(*map(range, width)):
                    yield self._image(*reached, choice)
            return
        for at in range(len(found)):  # the ends come first: nothing survived, or all names
            for choice in _corners(widths[at], randomness, limit // 4 if at < 2 else 1):
                yield self._image(*found[at], choice)
        for _ in range(limit // 2):
            at = randomness.randrange(len(found))
            yield self._image(*found[at], _any_choice(widths[at], randomness))

    def _survivors(self, randomness: random.Random, limit: int) -> list[frozenset[int]]:
        """Return sets of steps that can have survived."""
        numbers = [step.number for step in self._pending]
        if len(numbers) <= _FEW_STEPS:
            sets = itertools.chain.from_iterable(
                itertools.combinations(numbers, size) for size in range(len(numbers) + 1)
            )
            closed = {self._closure(set(chosen)) for chosen in sets}
        else:
            closed = {frozenset(), frozenset(numbers)}
            closed |= {self._closure({number}) for number in numbers}
            closed |= {self._without(number) for number in numbers}
            for _ in range(limit):
                closed.add(self._closure({n for n in numbers if randomness.random() < 0.5}))
        ends = [frozenset[int](), frozenset(numbers)]
        between = sorted(closed - set(ends), key=sorted)
        if len(between) > limit // 2:
            between = randomness.sample(between, limit // 2)
        return list(dict.fromkeys(ends)) + between

    def _without(self, number: int) -> frozenset[int]:
        """Return all steps but one and those that need it."""
        lost = {number}
        for step in self._pending:
            if step.needs & lost:
                lost.add(step.number)
        return frozenset(step.number for step in self._pending if step.number not in lost)

    def _reach(self, numbers: frozenset[int]) -> tuple[dict[int, dict[str, int]], list[int]]:
        """Return directories and files that can be reached from the top."""
        names = {label: dict(inner) for label, inner in self._stable.items()}
        for step in self._pending:
            if step.number in numbers:
                _change(names, step)
        reached, files, waiting = dict[int, dict[str, int]](), set[int](), [TOP]
        while waiting:
            label = waiting.pop()
            if label in self.files:
                files.add(label)
            elif label not in reached:
                reached[label] = names[label]
                waiting += names[label].values()
        return reached, sorted(files)

    def _widths(self, labels: Sequence[int]) -> list[int]:
        return [width for label in labels for width in self.files[label].widths()]

    def _file(self, label: int, widths: Sequence[int]) -> FileImage:
        return self.files[label].image([width - 1 for width in widths])

    def _image(
        self, directories: dict[int, dict[str, int]], labels: list[int], choice: Sequence[int]
    ) -> Image:
        files, at = {}, 0
        for label in labels:
            count = len(self.files[label].widths())
            files[label] = self.files[label].image(choice[at : at + count])
            at += count
        return Image(directories, files)


def _change(directories: dict[int, dict[str, int]], step: Step) -> None:
    for directory, part, label in step.changes:
        if label is None:
            directories[directory].pop(part, None)
        else:
            directories[directory][part] = label


def _corners(widths: list[int], randomness: random.Random, limit: int) -> Iterator[tuple[int, ...]]:
    """Yield choices: all new, all old, one part old among new ones, one new among old ones."""
    newest, oldest = [width - 1 for width in widths], [0] * len(widths)
    singles = []
    for at in (at for at, last in enumerate(newest) if last):
        lost, kept = list(newest), list(oldest)
        lost[at], kept[at] = randomness.randrange(newest[at]), newest[at]
        singles += [tuple(lost), tuple(kept)]
    randomness.shuffle(singles)
    corners = dict.fromkeys([tuple(newest), tuple(oldest), *singles])
    yield from itertools.islice(corners, limit)


def _any_choice(widths: list[int], randomness: random.Random) -> tuple[int, ...]:
    """Return a choice in which most parts are old, most are new, or each is anything."""
    luck = randomness.choice([0.1, 0.5, 0.9])
    return tuple(
        width - 1 if randomness.random() < luck else randomness.randrange(width) for width in widths
    )
