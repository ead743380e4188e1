"""The option that changes keys of a job file from the command line."""

import argparse


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds ``--set SECTION.KEY=VALUE``, which may be repeated, to a command."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one key of the job file; may be repeated",
    )
