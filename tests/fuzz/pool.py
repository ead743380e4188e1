"""Cases in processes of their own, each with a limit of time."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Outcomes:
    """What became of the cases.

    Attributes:
        counts: How many ended how.
        failures: Number of a case to what is wrong.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)


def run(
    kind: str, *, cases: int, seed: int, processes: int, seconds: float, start: int = 0
) -> Outcomes:
    """Runs the cases of a kind; a process that hangs or ends is started again after its case."""
    outcomes, lock, began = Outcomes(), threading.Lock(), time.monotonic()

    def work(first: int) -> None:
        following = first
        while following < start + cases:
            following = _child(
                kind, following, start + cases, processes, seed, seconds, outcomes, lock
            )

    def report() -> None:
        done = sum(outcomes.counts.values())
        rate = done / max(time.monotonic() - began, 1e-9)
        print(
            f"{kind}: {done} of {cases}, {rate:.0f}/s, {dict(outcomes.counts)}",
            file=sys.stderr,
            flush=True,
        )

    threads = [threading.Thread(target=work, args=(start + n,)) for n in range(processes)]
    for thread in threads:
        thread.start()
    last = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.2)
        if time.monotonic() - last > 30:
            report()
            last = time.monotonic()
    report()
    return outcomes


def _child(  # noqa: C901  # starts, listens, ends
    kind: str, first: int, end: int, step: int, seed: int, seconds: float,
    outcomes: Outcomes, lock: threading.Lock,
) -> int:  # fmt: skip
    """Runs cases in one process until it ends; returns the case to go on with."""
    command = [sys.executable, "-m", "tests.fuzz.child", kind, *map(str, (first, end, step, seed))]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if not os.environ.get("FUZZ_STDERR") else None,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    tail: list[str] = []

    def pump() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put(None)

    def drain() -> None:
        for line in process.stderr or ():
            tail.append(line)
            del tail[:-30]

    threading.Thread(target=pump, daemon=True).start()
    threading.Thread(target=drain, daemon=True).start()
    current, limit = first, 300.0  # to start: the models are made first
    running = False
    while True:
        try:
            line = lines.get(timeout=limit)
        except queue.Empty:
            process.kill()
            process.wait()
            return _failed(outcomes, lock, current, f"hangs: no answer in {limit:.0f} s", step)
        if line is None:
            code = process.wait()
            if code == 0 and not running:
                return end
            return _failed(
                outcomes,
                lock,
                current,
                f"ended its process with {code}: {''.join(tail)[-2000:]}",
                step,
            )
        message = json.loads(line)
        if "begins" in message:
            current, limit, running = message["begins"], seconds, True
            continue
        running, limit = False, 300.0
        with lock:
            outcomes.counts[message["outcome"]] += 1
            if message["problem"]:
                outcomes.failures[current] = message["problem"]
                print(f"{kind} {current}: {message['problem']}", flush=True)


def _failed(outcomes: Outcomes, lock: threading.Lock, case: int, problem: str, step: int) -> int:
    with lock:
        outcomes.counts["failed"] += 1
        outcomes.failures[case] = problem
        print(f"case {case}: {problem}", flush=True)
    return case + step
