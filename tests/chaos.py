"""Scenarios of kills as data: which table, what is killed and when; and the figures of them all."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

What = Literal["driver", "jvm", "worker", "executor"]
Table = Literal["parquet", "delta", "columns"]

SEED = 20
# 0 to 59 are there before an update, which removes, changes and adds some.
ROWS = {number: f"text number {number} " * (1 + number % 9) for number in range(60)}
NEXT = {
    **{number: text for number, text in ROWS.items() if number >= 5},
    **{number: f"changed {number}" for number in (*range(10, 20), *range(30, 40))},
    **{number: f"new {number}" for number in range(100, 130)},
}
CHUNK, IN_FLIGHT = 10, 2

_CHUNKS = ("written", "recorded")  # failpoints of a chunk's commit
_REPLACES = ("rewritten", "replacing")
_FAILPOINTS: dict[tuple[Table, bool], tuple[str, ...]] = {
    ("parquet", False): (*_CHUNKS, "publishing"),
    ("parquet", True): (*_CHUNKS, "publishing", *_REPLACES, "removing"),
    ("delta", False): (*_CHUNKS, "publishing"),
    ("delta", True): (*_CHUNKS, "publishing", *_REPLACES, "merging"),
    ("columns", False): (*_CHUNKS, *_REPLACES, "merging", "publishing"),
    ("columns", True): (*_CHUNKS, *_REPLACES, "merging", "publishing"),
}
_PASSES = {"written": 4, "recorded": 4, "publishing": 3, "removing": 2}


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One SIGKILL.

    Attributes:
        what: The Python process of the driver, its JVM, a Python worker, or an executor's JVM.
        at: A failpoint of ``tables.ledger.failpoints``; or ``merging``: a MERGE has written a file
            and has not committed. Without one:
        share: Once this share of the rows has gone through the model,
        delay: and this many seconds later.
        cluster: Whether the run has a cluster, which retries a task, or a local master, which does
            not.
    """

    what: What
    at: str = ""
    share: float = 0.0
    delay: float = 0.0
    cluster: bool = False

    def earlier(self, attempt: int) -> "Kill":
        """For a run that was faster than this one."""
        return replace(self, share=self.share / 2**attempt, delay=self.delay / 2**attempt)

    def __str__(self) -> str:
        where = " of a cluster" * (self.cluster and self.what == "worker")
        return f"{self.what}{where} at {self.at or f'{self.share:.2f}+{self.delay:.2f}s'}"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A first run or an update of a table, killed once or more, then run to its end."""

    table: Table
    update: bool
    kills: tuple[Kill, ...]

    @property
    def rows(self) -> dict[int, str]:
        """What the table has in the end."""
        return NEXT if self.update else ROWS

    @property
    def todo(self) -> int:
        """Rows to embed."""
        return sum(not self.update or ROWS.get(id) != text for id, text in self.rows.items())

    def __str__(self) -> str:
        what = "update" if self.update else "first run"
        return f"{self.table}, {what}, {', '.join(map(str, self.kills))}"


@dataclass(frozen=True, kw_only=True)
class Played:
    """How a scenario ended; with each kill, the exit code of its run."""

    scenario: Scenario
    kills: tuple[tuple[Kill, int], ...]
    embedded: int
    difference: float


PLAYED: list[Played] = []


def scenarios() -> list[Scenario]:
    """Fifty on Parquet and 25 on Delta: every failpoint, and random moments."""
    chance = random.Random(SEED)
    parquet = [
        *_chosen("parquet", chance),
        *(_killed_again(scenario, chance) for scenario in _chosen("parquet", chance)),
        *_random("parquet", {"driver": 10, "jvm": 4, "worker": 10, "executor": 8}, chance),
    ]
    merging = Kill(what="executor", at="merging", cluster=True)
    delta = [
        *_chosen("delta", chance),
        *_chosen("columns", chance),
        Scenario(table="delta", update=True, kills=(merging,)),
        *_random("delta", {"driver": 1, "worker": 1}, chance),
        *_random("columns", {"jvm": 1}, chance),
    ]
    return [*parquet, *delta]


def sample(all_scenarios: list[Scenario]) -> list[Scenario]:
    """Three on Parquet and two on Delta: each process that can die, and a MERGE for each kind.

    ``test_crash_points`` ends a run at every operation of its storage, in memory, and one test for
    each kind of table kills a real one.
    """
    wanted = [
        lambda s, k: s.table == "parquet" and k.what == "jvm",
        lambda s, k: s.table == "parquet" and k.what == "worker" and not k.cluster,
        lambda s, k: s.table == "parquet" and k.what == "executor",
        lambda s, k: s.table == "columns" and k.at == "merging" and s.update,
        lambda s, k: s.table == "delta" and k.what == "executor",
    ]
    return [next(s for s in all_scenarios if fits(s, s.kills[0])) for fits in wanted]


def figures() -> list[str]:
    """The figures of all scenarios of this process, in lines."""
    if not PLAYED:
        return []
    kills = Counter(str(kill.what) for played in PLAYED for kill, _ in played.kills)
    ends = Counter(f"exit {code}:" for played in PLAYED for _, code in played.kills)
    tables = Counter(played.scenario.table for played in PLAYED)
    again = [played.embedded - played.scenario.todo for played in PLAYED]
    bound = sum(CHUNK * IN_FLIGHT * len(played.kills) for played in PLAYED)
    return [
        f"scenarios: {len(PLAYED)} ({_listed(tables)}); kills: {kills.total()} ({_listed(kills)})",
        f"runs that were hit: {_listed(ends)}",
        f"rows in the tables: {sum(len(played.scenario.rows) for played in PLAYED)}; to embed: "
        f"{sum(played.scenario.todo for played in PLAYED)}; embedded: "
        f"{sum(played.embedded for played in PLAYED)}",
        f"embedded twice: {sum(again)}, where chunks in flight allow {bound}; most in a scenario: "
        f"{max(again)}",
        f"worst difference of a component: {max(played.difference for played in PLAYED):.2g}",
    ]


def _chosen(table: Table, chance: random.Random) -> Iterator[Scenario]:
    for (kind, update), failpoints in _FAILPOINTS.items():
        for name in failpoints if kind == table else ():
            # One MERGE makes all columns visible.
            most = 1 if (table, name) == ("columns", "publishing") else _PASSES.get(name, 1)
            at = f"{name}:{chance.randint(1, most)}" if most > 1 else name
            yield Scenario(table=table, update=update, kills=(Kill(what="driver", at=at),))


def _random(table: Table, wanted: dict[What, int], chance: random.Random) -> Iterator[Scenario]:
    for what, number in wanted.items():
        for turn in range(number):
            update = turn % 2 == 1
            # A worker is known by what it has done; an update still has its rows to replace after.
            share = chance.uniform(
                0.02 if what in ("worker", "executor") else 0.0, 0.5 + update / 2
            )
            cluster = what == "executor" or (what == "worker" and turn % 4 > 1)
            kill = Kill(what=what, share=share, delay=chance.uniform(0, 0.4), cluster=cluster)
            scenario = Scenario(table=table, update=update, kills=(kill,))
            again = what == "driver" and turn % 4 > 1
            yield _killed_again(scenario, chance) if again else scenario


def _killed_again(scenario: Scenario, chance: random.Random) -> Scenario:
    """The same scenario, and the run that would finish it is killed too."""
    kill = Kill(what="driver", delay=chance.uniform(0, 6))
    return replace(scenario, kills=(*scenario.kills, kill))


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())
