"""What the workers say they did, in $E5SPARK_TRACE: loads of a model, windows that went through."""

import json
from pathlib import Path
from typing import Any


class Trace:
    """The events of all worker processes since the mark."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.mark()

    def mark(self) -> None:
        """Forget everything so far."""
        self._seen = {path: path.stat().st_size for path in self._directory.glob("*.jsonl")}

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Every "load", "window" or "canaries" event since the mark."""
        lines = [
            line
            for path in sorted(self._directory.glob("*.jsonl"))
            for line in path.read_bytes()[self._seen.get(path, 0) :].splitlines()
        ]
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def rows(self) -> int:
        """Texts that went through a model since the mark."""
        return sum(event["rows"] for event in self.events("window"))
