"""Runs fuzzers: ``python -m tests.fuzz [KIND=CASES ...] [--seed N] [--processes N]``."""

import argparse
import json
import sys
import time

from tests.fuzz import pool

CASES = {"jobs": 20_000, "models": 20_000, "states": 5_000, "tables": 300}
SECONDS = {"jobs": 10.0, "models": 60.0, "states": 30.0, "tables": 120.0}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND=CASES", help=f"default: {CASES}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the number of the first case")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    chosen = dict(kind.partition("=")[::2] for kind in options.kinds) or dict.fromkeys(CASES, "")
    failed = 0
    for kind, cases in chosen.items():
        began = time.monotonic()
        outcomes = pool.run(
            kind,
            cases=int(cases or CASES[kind]),
            seed=options.seed,
            start=options.start,
            processes=options.processes,
            seconds=SECONDS[kind],
        )
        failed += len(outcomes.failures)
        document = {
            "kind": kind,
            "seed": options.seed,
            "seconds": round(time.monotonic() - began),
            "outcomes": dict(sorted(outcomes.counts.items())),
            "failures": sorted(outcomes.failures),
        }
        print(json.dumps(document), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
