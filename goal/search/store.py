"""An index on disk: the vector of every picture of a folder, made by one model.

pictures.sqlite has a card, which names the model and the pictures' folder, and one row per picture. SQLite
applies each change as a whole or not at all, also under kill -9. Letters: P pictures, D embedding width.
"""

import json
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from goal.errors import UserError
from goal.runtime import files

DATABASE = "pictures.sqlite"
# Paths are bytes, below the pictures' folder: a file's name need not be text. An id is never used twice: a
# page may still ask for a picture that was dropped since.
SCHEMA = (
    "CREATE TABLE card (content TEXT NOT NULL)",
    """
    CREATE TABLE pictures (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        path BLOB NOT NULL UNIQUE,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        vector BLOB NOT NULL
    )
    """,
)
INSERT = """
INSERT INTO pictures (path, size, mtime_ns, vector) VALUES (?, ?, ?, ?)
ON CONFLICT (path) DO UPDATE SET size = excluded.size, mtime_ns = excluded.mtime_ns, vector = excluded.vector
"""
# Seconds that a writer waits for a reader, and a reader for a commit.
PATIENCE = 60.0
ROWS = 4096


class Stamp(NamedTuple):
    """A file's size and time, by which a change is noticed."""

    size: int  # bytes
    mtime_ns: int


class Entry(NamedTuple):
    """A picture as the index knows it."""

    path: bytes  # relative to the card's folder
    stamp: Stamp
    vector: Float32[np.ndarray, " D"]  # L2-normalised


@dataclass(frozen=True)
class Card:
    """What an index depends on; bytes of `folder` that are not text are kept as surrogates."""

    folder: str  # absolute
    model: str  # as the user named it
    digest: str  # sha256 of the model's weights
    network: str
    width: int  # D


class Store:
    """The index in the folder `place`; make it with `create` or `opened`."""

    def __init__(self, place: Path, card: Card | None = None) -> None:
        """With a `card` the index is made if there is none."""
        self.place = place
        self._file = place / DATABASE
        with self._answering():
            # A page answers from several threads, one at a time.
            self._database = sqlite3.connect(self._file, timeout=PATIENCE, check_same_thread=False)
            if card:
                self._make(card)
            ((content,),) = self._database.execute("SELECT content FROM card")
        self.card = Card(**json.loads(content))

    def _make(self, card: Card) -> None:
        with self._database as transaction:
            # Of two processes at once, the second finds the first one's tables.
            transaction.execute("BEGIN IMMEDIATE")
            if not transaction.execute("SELECT name FROM sqlite_master").fetchone():
                for table in SCHEMA:
                    transaction.execute(table)
                transaction.execute("INSERT INTO card VALUES (?)", (json.dumps(asdict(card)),))
                # Random: the sketches of an earlier index in this folder must not match its version.
                transaction.execute(f"PRAGMA user_version = {secrets.randbelow(2**30)}")

    @property
    def root(self) -> bytes:
        """The pictures' folder."""
        return os.fsencode(self.card.folder)

    def version(self) -> int:
        """Grows with every change."""
        with self._answering():
            return self._database.execute("PRAGMA user_version").fetchone()[0]

    def __len__(self) -> int:
        with self._answering():
            return self._database.execute("SELECT count(*) FROM pictures").fetchone()[0]

    def stamps(self) -> dict[bytes, Stamp]:
        """Every picture's file as it was when it was embedded."""
        with self._answering():
            rows = self._database.execute("SELECT path, size, mtime_ns FROM pictures")
            return {path: Stamp(size, mtime_ns) for path, size, mtime_ns in rows}

    def change(self, entries: Sequence[Entry], dropped: Iterable[bytes]) -> None:
        """Add or renew pictures and drop others, all of it or nothing."""
        rows = [(path, *stamp, vector.astype("<f4").tobytes()) for path, stamp, vector in entries]
        gone = [(path,) for path in dropped]
        if not rows and not gone:
            return
        with self._answering(), self._database as transaction:
            transaction.executemany("DELETE FROM pictures WHERE path = ?", gone)
            transaction.executemany(INSERT, rows)
            # A pragma takes no parameters.
            transaction.execute(f"PRAGMA user_version = {self.version() + 1}")

    def vectors(self, every: int = 1) -> Iterator[tuple[Int64[np.ndarray, " P"], Float32[np.ndarray, "P D"]]]:
        """Ids and vectors in blocks, sorted by id; `every` n-th picture alone, for a sample."""
        with self._answering():
            rows = self._database.execute(
                "SELECT id, vector FROM pictures WHERE id % ? = 0 ORDER BY id", (every,)
            )
            while block := rows.fetchmany(ROWS):
                ids, vectors = zip(*block, strict=True)
                values = np.frombuffer(b"".join(vectors), "<f4").reshape(len(ids), self.card.width)
                yield np.array(ids, np.int64), values

    def paths(self, ids: Iterable[int]) -> dict[int, bytes]:
        """Where the pictures of these ids lie, below `root`."""
        wanted = list(ids)
        marks = ", ".join("?" * len(wanted))
        with self._answering():
            return dict(
                self._database.execute(f"SELECT id, path FROM pictures WHERE id IN ({marks})", wanted)
            )

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(
                f"{self._file}: {error}; make room or fix it, or remove {self.place} to index again"
            ) from error


def create(place: Path, card: Card) -> Store:
    """The index at `place`, made if need be; UserError where it is another model's or another folder's."""
    files.make_folder(place)
    found = Store(place, card)
    check_model(place, found.card, card.model, card.digest)
    if found.card.folder != card.folder:
        raise UserError(f"{place}: is the index of {shown(found.root)}; give another one with --index")
    return found


def opened(place: Path) -> Store:
    """The index at `place`; UserError where there is none."""
    if not (place / DATABASE).exists():
        raise UserError(f"{place}: no index; `goal index FOLDER --index {place}` makes it")
    return Store(place)


def check_model(place: Path, card: Card, model: str, digest: str) -> None:
    """Raise UserError for a model whose vectors cannot be compared with those of the index."""
    if card.digest == digest:
        return
    if card.model == model:
        raise UserError(
            f"{place}: {model} changed since (sha256 {card.digest[:12]}, now {digest[:12]}); index again "
            f"with another --index, or remove {place}"
        )
    raise UserError(
        f"{place}: made by {card.model} ({card.network}, sha256 {card.digest[:12]}), not by {model}"
        f" ({digest[:12]}); give that model, or index again with another --index"
    )


def shown(path: bytes) -> str:
    """A path for people: on one line, bytes that are not text as \\xNN."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
