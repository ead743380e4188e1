"""The README and the pages of docs/: their code blocks and links, and a session to run blocks in.

As a script it runs blocks: ``python -m tests.pages BLOCKS.json RESULTS.json``.
"""

import contextlib
import io
import json
import re
import shlex
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>.*)\n(?P<code>(?:.*\n)*?)^```$",
    re.MULTILINE,
)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A code block of a page.

    Attributes:
        page: The file's path below the root.
        line: Where it begins.
        language: What its fence says.
        code: Its content.
        reason: Why it is not run; None if it is.
        output: The text block after it, which it prints; None if there is none.
    """

    page: str
    line: int
    language: str
    code: str
    reason: str | None = None
    output: str | None = None


def blocks(page: Path) -> list[Block]:
    """Returns the blocks of a page; a text block becomes the output of the block before it."""
    text = page.read_text("utf-8")
    result: list[Block] = []
    for match in _BLOCK.finditer(text):
        block = Block(
            page=str(page.relative_to(ROOT)),
            line=text.count("\n", 0, match.start("code")),
            language=match["language"],
            code=match["code"],
            reason=match["reason"],
        )
        if block.language == "text" and block.reason is None:
            result[-1] = Block(**{**asdict(result[-1]), "output": block.code})
        elif not block.language.startswith("{"):
            result.append(block)
    return result


def links(page: Path) -> list[str]:
    """Returns the targets of a page's links."""
    return _LINK.findall(_BLOCK.sub("", page.read_text("utf-8")))


def anchors(page: Path) -> set[str]:
    """Returns the names of a page's headings as links spell them."""
    headings = _HEADING.findall(_BLOCK.sub("", page.read_text("utf-8")))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(code: str) -> list[list[str]]:
    """Returns the commands of a shell block as lists of arguments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def command_arguments(words: list[str]) -> list[str]:
    """Returns the arguments of e5spark's command line that a command amounts to."""
    if words[0] == "e5spark":
        return words[1:]
    if words[0] == "spark-submit" and "jobs/embed.py" in words:
        return ["embed", *words[words.index("jobs/embed.py") + 1 :]]
    raise ValueError(f"Only e5spark's own commands can be run in the shared session: {words}")


def _run(block: Block, namespace: dict[str, object]) -> None:
    if block.language == "python":
        code = compile(block.code, f"{block.page}, line {block.line}", "exec")
        exec(code, namespace)  # the pages are this repository's own
        return
    from e5spark.cli import main

    for words in commands(block.code):
        if main(command_arguments(words)) != 0:
            raise RuntimeError(f"{' '.join(words)} failed.")


def _session(todo: list[Block]) -> list[dict[str, str | None]]:
    """Runs blocks in one Spark session, each page in a namespace of its own."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]").config("spark.task.cpus", "2")
    builder = builder.config("spark.ui.enabled", "false").config("spark.log.level", "ERROR")
    spark = builder.config("spark.sql.shuffle.partitions", "2").getOrCreate()
    namespaces: dict[str, dict[str, object]] = {}
    results: list[dict[str, str | None]] = []
    for block in todo:
        printed, failure = io.StringIO(), None
        try:
            with contextlib.redirect_stdout(printed):
                _run(block, namespaces.setdefault(block.page, {}))
        except Exception:
            failure = traceback.format_exc()
        results.append({"printed": printed.getvalue(), "failure": failure})
    spark.stop()
    return results


if __name__ == "__main__":
    todo = [Block(**fields) for fields in json.loads(Path(sys.argv[1]).read_text("utf-8"))]
    Path(sys.argv[2]).write_text(json.dumps(_session(todo)), "utf-8")
