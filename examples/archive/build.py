"""Builds an archive of all that an executor needs for a prepared model, for ``--archives``.

    python examples/archive/build.py build/e5spark-env.tar.gz [--python 3.12] [--machine aarch64]

The archive has e5spark, OpenVINO, tokenizers, NumPy, PyArrow and pandas as a plain directory of
packages, and ``bin/python``, which runs the machine's own Python with them. It can be built on any
machine for any other: only wheels are fetched, for the Python and the processor that are asked for.
"""

import argparse
import gzip
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
# pandas is not for executors of Spark 4.1: drivers need it where they plan a function of Arrow
# batches, and executors of Spark 3.5 and 4.0. It is a tenth of the archive.
PACKAGES = ("openvino", "tokenizers", "numpy", "pyarrow", "pandas", "python-dateutil", "tzdata")
# The newest glibc that an archive may ask for, 2.n: RHEL 8, Amazon Linux 2023 and Debian 10 have it
# on x86-64; OpenVINO's wheels for ARM want that of Debian 12 and Ubuntu 22.04.
GLIBC = {"x86_64": 28, "aarch64": 35}
TESTED = ("3.11", "3.12", "3.13")
# Neither e5spark nor what it imports loads any of this: devices that are not CPUs, converters,
# Arrow's network clients, tests, headers.
UNUSED = (
    "bin",
    "openvino/libs/cache.json",
    "openvino/libs/libopenvino_intel_[gn]pu_plugin.so",
    "openvino/libs/libopenvino_*_frontend.so.*",
    "openvino/frontend/*/py_*_frontend.*.so",
    "openvino/include",
    "openvino/tools",
    "pyarrow/*flight*.so*",
    "pyarrow/libarrow_s3.so.*",
    "pyarrow/_s3fs.*.so",
    "pyarrow/_pyarrow_cpp_tests.*.so",
    "pyarrow/include",
    "pyarrow/src",
    "numpy/f2py",
    "numpy/_core/include",
    "numpy/_core/lib",
    "**/*.pxd",
    "**/*.pyi",
    "**/tests",
    "**/__pycache__",
)
USED = re.compile(r"libopenvino_ir_frontend\.so")


def main() -> int:
    """Builds the archive and prints, as JSON, its size and what it demands of a machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="the .tar.gz to write")
    parser.add_argument(
        "--python",
        default=f"{sys.version_info.major}.{sys.version_info.minor}",
        choices=TESTED,
        help="the minor version of the cluster's Python (this one's)",
    )
    parser.add_argument("--machine", default="x86_64", choices=GLIBC, help="its processor (x86_64)")
    parser.add_argument("--keep-unused", action="store_true", help="remove nothing from packages")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        packages = root / "site-packages"
        install(packages, options.python, options.machine)
        glibc = needed_glibc(packages)
        if not options.keep_unused:
            strip(packages)
        write_launcher(root / "bin" / "python", options.python, options.machine, glibc)
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        write_archive(root, options.archive)
    document = {
        "archive": str(options.archive),
        "megabytes": round(options.archive.stat().st_size / 1e6, 1),
        "unpacked_megabytes": round(size / 1e6, 1),
        "python": options.python,
        "machine": options.machine,
        "glibc": glibc,
    }
    print(json.dumps(document))
    return 0


def install(target: Path, python: str, machine: str) -> None:
    """Installs the pinned packages of another machine, and this repository's e5spark."""
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    pip += ["--no-deps", "--no-compile", "--target", str(target)]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC[machine], 16, -1)]
    platforms += [f"manylinux2014_{machine}", "any"]
    foreign = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    foreign += [part for name in platforms for part in ("--platform", name)]
    foreign += ["--constraint", str(REPOSITORY / "conf" / "constraints.txt")]
    subprocess.run([*pip, *foreign, *PACKAGES], check=True)
    subprocess.run([*pip, str(REPOSITORY)], check=True)


def needed_glibc(packages: Path) -> str:
    """Returns the oldest glibc that all installed wheels run on."""
    versions = [17]
    for wheel in packages.glob("*.dist-info/WHEEL"):
        text = wheel.read_text("utf-8").replace("manylinux2014", "manylinux_2_17")
        if minors := re.findall(r"manylinux_2_(\d+)_", text):
            versions.append(min(map(int, minors)))
    return f"2.{max(versions)}"


def strip(packages: Path) -> None:
    """Removes what no executor loads."""
    for pattern in UNUSED:
        for path in packages.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            elif not USED.search(path.name):
                path.unlink()


def write_launcher(path: Path, python: str, machine: str, glibc: str) -> None:
    """Writes bin/python, which checks the machine before it runs the machine's Python."""
    text = (HERE / "python").read_text("utf-8")
    for name, value in (("VERSION", python), ("MACHINE", machine), ("GLIBC", glibc)):
        text = text.replace(f"@{name}@", value)
    path.parent.mkdir()
    path.write_text(text, "utf-8")
    path.chmod(0o755)


def write_archive(root: Path, archive: Path) -> None:
    """Writes a tar.gz whose bytes depend on its files alone."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    temporary = archive.with_name(f"{archive.name}.tmp")
    with (
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for path in sorted(root.rglob("*")):
            tar.add(path, str(path.relative_to(root)), recursive=False, filter=_anonymous)
    temporary.replace(archive)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    sys.exit(main())
