"""``e5spark verify``: a checkpoint against transformers."""

import argparse
from typing import Any

from e5spark.cli.overrides import add_overrides
from e5spark.job import job_file
from e5spark.model.spec import model_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument(
        "model", help="a name on the hub, a directory, or a jar or zip of an ONNX model"
    )
    parser.add_argument("--known-answers", help="a JSON file of texts and published scores")
    add_overrides(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    # Imported here, because the other commands run on drivers that have no engine.
    from e5spark.encoder.verify import verify

    model = job_file.load_model(options.model, options.set)
    return verify(model_spec(model.name, model.options), options.known_answers)
