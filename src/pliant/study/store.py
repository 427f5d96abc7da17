"""The study's rows in one SQLite file, written by the coordinator alone, each as soon as it is finished.

Every row is its own committed transaction (write-ahead log, synchronous), so a kill at any moment leaves a file that a
resumed study continues. When the file cannot be written, finished rows go to a rescue file that the next opening reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pliant.core.errors import InputError

from .contract import Row
from .plan import StudyPlan, differences

SCHEMA = 1
"""Version of the file's layout."""
_WAIT = 20.0
"""Seconds to wait for another process's lock."""

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS looks (look INTEGER PRIMARY KEY, seeds TEXT NOT NULL, created TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rows (
    phase TEXT NOT NULL, arm TEXT NOT NULL, rate REAL NOT NULL, seed INTEGER NOT NULL, salt TEXT NOT NULL,
    record TEXT NOT NULL, PRIMARY KEY (phase, arm, rate, seed, salt));
CREATE TABLE IF NOT EXISTS failures (
    phase TEXT NOT NULL, arm TEXT NOT NULL, rate REAL NOT NULL, seed INTEGER NOT NULL, salt TEXT NOT NULL,
    attempts INTEGER NOT NULL, error TEXT NOT NULL, PRIMARY KEY (phase, arm, rate, seed, salt));
"""


@dataclasses.dataclass(frozen=True, order=True)
class Key:
    """What makes a run: the same key is the same run."""

    phase: str
    arm: str
    rate: float
    seed: int
    salt: str = ""

    def __str__(self) -> str:
        salt = f", salt {self.salt!r}" if self.salt else ""
        return f"{self.phase} run of arm {self.arm!r}, learning rate {self.rate:g}, seed {self.seed}{salt}"


class Store:
    """Rows by key, the plan, the looks and a few facts. `path` None keeps everything in memory."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._known: dict[Key, Row] = {}
        self._unsaved: list[tuple[Key, str]] = []
        with self._explained():
            self._database = sqlite3.connect(
                ":memory:" if self.path is None else self.path,
                timeout=_WAIT,
                isolation_level=None,
                # The garbage collector may close it from one of joblib's threads; nothing else leaves ours.
                check_same_thread=False,
            )
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_TABLES)
        for *key, record in self._read("SELECT phase, arm, rate, seed, salt, record FROM rows"):
            self._known[Key(*key)] = json.loads(record)
        if self.fact("schema", SCHEMA) != SCHEMA:
            raise InputError(f"{self.path} has layout {self.fact('schema')}, this version of pliant reads {SCHEMA}")

    # -- the plan ----------------------------------------------------------------------------------------------------

    def plan(self) -> StudyPlan:
        """The stored plan."""
        values = self.fact("plan")
        if values is None:
            raise InputError(f"{self.path} holds no study: check the path, or start one with pliant.compare(store=...)")
        return StudyPlan.from_json(values)

    def open(self, plan: StudyPlan, facts: Mapping[str, Any]) -> None:
        """Begin a study, or continue the one in the file; another plan's file is refused."""
        if self.fact("plan") is None:
            now = _now()
            for name, value in {"schema": SCHEMA, "created": now, **facts}.items():
                self.set_fact(name, value)
            self._write("INSERT OR IGNORE INTO looks VALUES (1, ?, ?)", json.dumps(plan.seeds), now)
            # The plan last: a kill in between leaves a file that counts as empty.
            self.set_fact("plan", plan.to_json())
        elif self.plan().hash != plan.hash:
            changed = "; ".join(differences(self.plan(), plan))
            raise InputError(
                f"{self.path} holds a study with another plan ({changed}). A plan is fixed before its runs: use "
                "another store for the new plan, or load the study and call .extend() for more seeds"
            )
        self._read_rescued()

    def looks(self) -> list[tuple[int, ...]]:
        """The seeds that each look added."""
        return [tuple(json.loads(seeds)) for (seeds,) in self._read("SELECT seeds FROM looks ORDER BY look")]

    def add_look(self, seeds: tuple[int, ...]) -> None:
        """Record an extension before its runs."""
        self._write("INSERT INTO looks VALUES (?, ?, ?)", len(self.looks()) + 1, json.dumps(seeds), _now())

    # -- facts and rows ----------------------------------------------------------------------------------------------

    def fact(self, name: str, default: Any = None) -> Any:
        """A stored JSON value."""
        found = self._read("SELECT value FROM facts WHERE name = ?", name)
        return json.loads(found[0][0]) if found else default

    def set_fact(self, name: str, value: Any) -> None:
        """Store a JSON value."""
        self._write("INSERT OR REPLACE INTO facts VALUES (?, ?)", name, json.dumps(value))

    def row(self, key: Key) -> Row | None:
        """A finished run."""
        return self._known.get(key)

    def rows(self) -> dict[Key, Row]:
        """All finished runs, sorted by key."""
        return dict(sorted(self._known.items()))

    def add(self, key: Key, row: Row) -> None:
        """Commit a finished run. A key that is there already keeps its first row."""
        if key in self._known:
            return
        record = json.dumps(row)
        self._known[key] = json.loads(record)
        self._unsaved.append((key, record))
        self.flush()

    def flush(self) -> None:
        """Write the rows that an earlier error kept from the file."""
        try:
            while self._unsaved:
                with self._explained():
                    self._insert(*self._unsaved[0])
                self._unsaved.pop(0)
        except InputError as error:
            raise InputError(f"{error}. {self._rescue()}") from error

    def failures(self) -> dict[Key, tuple[int, str]]:
        """Runs that could not be finished: attempts and the last error."""
        found = self._read("SELECT phase, arm, rate, seed, salt, attempts, error FROM failures")
        return {Key(*key): (attempts, error) for *key, attempts, error in found}

    def add_failure(self, key: Key, attempts: int, error: str) -> None:
        """Record a run that could not be finished; a later success clears it."""
        self._write(
            "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?, ?)", *dataclasses.astuple(key), attempts, error
        )

    def copy(self, path: str | Path) -> None:
        """Write everything to another file."""
        target = Store(path)
        with target._explained():
            self._database.backup(target._database)
        target.close()

    def close(self) -> None:
        """Close the file; a store that is forgotten closes itself."""
        self._database.close()

    def __del__(self) -> None:
        if hasattr(self, "_database"):
            self._database.close()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _insert(self, key: Key, record: str) -> None:
        values = dataclasses.astuple(key)
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.execute("INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?, ?)", (*values, record))
            where = "phase = ? AND arm = ? AND rate = ? AND seed = ? AND salt = ?"
            self._database.execute(f"DELETE FROM failures WHERE {where}", values)
            self._database.execute("COMMIT")
        except sqlite3.Error:
            # A full disk may already have rolled back.
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise

    def _read(self, query: str, *values: Any) -> list[Any]:
        with self._explained():
            return self._database.execute(query, values).fetchall()

    def _write(self, query: str, *values: Any) -> None:
        with self._explained():
            self._database.execute(query, values)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(f"the study's store {self.path}: {_explain(error, self.path)}") from error

    def _rescue_files(self) -> list[Path]:
        if self.path is None:
            return []
        identity = self.fact("plan") and self.plan().hash[:16]
        return [
            self.path.with_name(self.path.name + ".rescue.jsonl"),
            Path(tempfile.gettempdir()) / f"pliant-{self.path.name}-{identity}.rescue.jsonl",
        ]

    def _rescue(self) -> str:
        lines = "".join(json.dumps([dataclasses.astuple(key), record]) + "\n" for key, record in self._unsaved)
        for path in self._rescue_files():
            with contextlib.suppress(OSError):
                path.write_text(lines, encoding="utf-8")
                return f"Finished runs are safe in {path}; the same study run again takes them up from there"
        count = len(self._unsaved)
        return f"{count} finished runs are held in this process only: make room, then call .resume() on the study"

    def _read_rescued(self) -> None:
        for path in self._rescue_files():
            if not path.exists():
                continue
            for line in path.read_text(encoding="utf-8").splitlines():
                # The disk may have filled up in the middle of the last line.
                with contextlib.suppress(json.JSONDecodeError):
                    key, record = json.loads(line)
                    self.add(Key(*key), json.loads(record))
            path.unlink()


def _explain(error: sqlite3.Error, path: Path | None) -> str:
    text = str(error)
    if "full" in text:
        return "the disk is full; make room and run the same command again"
    if "readonly" in text or "read-only" in text:
        return "it is read-only; change its permissions or choose another store"
    if "unable to open" in text:
        folder = path.parent if path is not None else Path()
        why = "cannot be written to" if folder.is_dir() else "does not exist"
        return f"it cannot be opened, because the folder {folder} {why}; create it or choose another store"
    if "locked" in text:
        return f"another process has locked it for {_WAIT:g} s; stop that process, or wait for it"
    if "not a database" in text or "malformed" in text:
        return f"this is no intact study file ({text}); choose another path, or restore it from a copy"
    return f"{text}; check the disk, or choose another store"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
