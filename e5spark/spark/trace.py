"""A trace of what workers do: one line of JSON per event."""

import json
import os
import time
from pathlib import Path


def trace(event: str, **values: object) -> None:
    """Appends an event to ``$E5SPARK_TRACE/<pid>.jsonl``, if ``E5SPARK_TRACE`` is set."""
    directory = os.environ.get("E5SPARK_TRACE")
    if directory:
        line = json.dumps({"event": event, "pid": os.getpid(), "time": time.time(), **values})
        with open(Path(directory) / f"{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")
