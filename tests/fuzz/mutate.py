"""Mutations of bytes, of JSON-like values and of directories, from a seeded generator."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

TEXTS = (
    "", " ", "\0", "a\0b", "..", "../..", "/", "/etc/passwd", "~nobody-here", "~", ".", "a" * 300,
    "a/" * 3000, "é", "\ud800", "\u202e", "`", "``", "'; DROP TABLE x; --", "{", "${HOME}", "%s",
    "true", "1", "nan", "inf", "[[[", "s3a://KEY:SECRET@bucket/x", "file:///", "C:\\x", "\n", "*",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32, -(2**31), 2**53, 2**63 - 1, 2**63,
    -(2**63), 2**64, 10**30, 10**400, 0.0, -0.0, 0.5, 1e-300, 1e308, float("inf"), float("-inf"),
    float("nan"),
)  # fmt: skip


def nasty(rng: Random) -> Any:
    """A value of any type."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice((True, False, None))
    if kind == 3:
        return [nasty(rng) for _ in range(rng.randrange(3))]
    if kind == 4:
        return {rng.choice(("a", "type", "", "id")): nasty(rng) for _ in range(rng.randrange(3))}
    return rng.randrange(-5, 2000)


def near(value: Any, rng: Random) -> Any:
    """A value of the same type, for a mutation that types do not show."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -value, 2 * value, 0, rng.choice(NUMBERS)))
    if isinstance(value, float):
        return rng.choice((-value, 2 * value, 0.0, float("nan"), float("inf")))
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        return rng.choice(
            (value[:at], value[:at] + rng.choice("aZ0_./ ") + value[at + 1 :], value * 2)
        )
    return nasty(rng)


def mutate_value(value: Any, rng: Random) -> Any:  # noqa: C901  # a table of mutations
    """A copy of nested dicts and lists with one thing changed, at any depth."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        result = dict(value)
        key = rng.choice(list(result))
        action = rng.randrange(8)
        if action == 0:
            del result[key]
        elif action == 1:
            result[rng.choice((key + "x", key.upper(), *TEXTS[:6]))] = result.pop(key)
        elif action == 2:
            other = rng.choice(list(result))
            result[key], result[other] = result[other], result[key]
        elif action == 3:
            result[rng.choice(("extra", "", "format", "__class__"))] = nasty(rng)
        else:
            result[key] = mutate_value(result[key], rng)
        return result
    if isinstance(value, list) and value and rng.random() < 0.9:
        items = list(value)
        at = rng.randrange(len(items))
        action = rng.randrange(5)
        if action == 0:
            del items[at]
        elif action == 1:
            items.insert(at, items[rng.randrange(len(items))])
        elif action == 2:
            other = rng.randrange(len(items))
            items[at], items[other] = items[other], items[at]
        else:
            items[at] = mutate_value(items[at], rng)
        return items
    return near(value, rng) if rng.random() < 0.5 else nasty(rng)


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Bytes with one thing changed: flipped, cut, repeated, overwritten or inserted."""
    action = rng.randrange(9)
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 2, 4, 8, 64, 1000)))
    if action <= 2 and data:
        at = min(at, len(data) - 1)
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if action == 3:
        return data[:at]
    if action == 4:
        return data[:at] + data[end:]
    if action == 5:
        return data[:end] + data[at:]
    if action == 6:
        return data[:at] + rng.randbytes(end - at) + data[end:]
    if action == 7:
        filler = rng.choice((b"\0", b"\xff", b"{", b"[", b'"', b"9"))
        return data[:at] + filler * rng.choice((1, 100, 5000)) + data[at:]
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    return rng.choice(
        (b"", b"null", b"[]", b"{}", pointer, b"[" * 100_000, b'{"a":' * 50_000, b"1" * 5000,
         b"\xef\xbb\xbf" + data, data + data)
    )  # fmt: skip


def mutate_json(data: bytes, rng: Random) -> bytes:
    """A JSON file with one value or one byte changed, or with a key twice."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)
    action = rng.randrange(10)
    if action <= 6:
        return dump(mutate_value(value, rng))
    if action == 7 and isinstance(value, dict) and value:
        key = rng.choice(list(value))
        first, second = rng.sample((dump(value), dump({key: nasty(rng)})), 2)
        return first[:-1] + b"," + second[1:]
    return mutate_bytes(data, rng)


def dump(value: Any) -> bytes:
    """JSON as Python writes it, with NaN, infinities, huge numbers and lone surrogates."""
    return json.dumps(value, ensure_ascii=True).encode()


def mutate_directory(  # noqa: C901  # a table of mutations
    directory: Path,
    rng: Random,
    mutate_file: Callable[[str, bytes, Random], bytes],
    *,
    spare: str = "/",
) -> str:
    """Changes one thing in a directory, but for files whose name ends in ``spare``; returns what.

    The files may be hard links to another directory's.
    """
    names = sorted(
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink() and not path.name.endswith(spare)
    )
    if not names:
        return "nothing"
    name = rng.choice(names)
    path = directory / name
    action = rng.randrange(20)
    if action == 0:
        path.unlink()
        return f"removed {name}"
    if action == 1:
        path.unlink()
        path.mkdir()
        return f"{name} is a directory"
    if action == 2:
        path.unlink()
        target = rng.choice(
            ("/nowhere/x", name.split("/")[-1], "/dev/null", "..", "/proc/self/mem")
        )
        path.symlink_to(target)
        return f"{name} links to {target}"
    if action == 3:
        other = rng.choice(names)
        first, second = path.read_bytes(), (directory / other).read_bytes()
        for target, content in ((name, second), (other, first)):
            _write(directory / target, content)
        return f"swapped {name} and {other}"
    if action == 4:
        other = path.with_name(rng.choice(("x.bin", "model.bin", ".hidden", "a b.json", "é.json")))
        content = path.read_bytes()
        other.unlink(missing_ok=True)
        other.write_bytes(content)
        return f"copied {name} to {other.name}"
    if action == 5:
        path.rename(path.with_name(path.name + rng.choice((".bak", "x", ""))))
        return f"renamed {name}"
    if action == 6 and hasattr(os, "truncate"):
        content = path.read_bytes()
        _write(path, content)
        os.truncate(path, rng.choice((0, 1, 7, 8, 9, len(content) // 2, len(content) + 4096)))
        return f"truncated {name}"
    content = mutate_file(name, path.read_bytes(), rng)
    _write(path, content)
    return f"mutated {name}"


def _write(path: Path, content: bytes) -> None:
    """Replaces a file, which may be a hard link to another directory's."""
    path.unlink()
    path.write_bytes(content)
