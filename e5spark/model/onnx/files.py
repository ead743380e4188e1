"""The files of an ONNX model: in a directory, or in a jar or zip, chosen by name."""

import errno
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from e5spark.errors import ModelError

ZIP_SUFFIXES = (".jar", ".zip")
TOKENIZER = "tokenizer.json"
# The other files that can decide a vector.
_SMALL_FILES = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
# Weights in a zip file take 60 % of their size (e5-small-v2), JSON a tenth; a bomb a thousandth.
_LARGEST_RATIO = 30
_LARGEST_SMALL_FILE = 1 << 27  # a multilingual tokenizer.json has 17 MB
_REMEDY = "Use the archive that its authors publish."


@dataclass(frozen=True, kw_only=True)
class OnnxFiles:
    """The names of a model's files.

    Attributes:
        graph: The ONNX file.
        small: Name that transformers expects to the name of the file.
    """

    graph: str
    small: dict[str, str]


def choose(names: Sequence[str], where: Path) -> OnnxFiles:
    """Returns the files of the model among these: one ONNX file, and those that belong to it.

    ``model.onnx`` is preferred, at the top or in ``onnx/``; any other name must be the only one.
    The tokenizer is ``tokenizer.json`` or the only file whose name ends in that.

    Args:
        names: Paths of files, relative, with ``/``.
        where: The directory or archive, for messages.

    Raises:
        ModelError: If there are several to choose from, or none.
    """
    graphs = [name for name in names if name.endswith(".onnx")]
    plain = [name for name in graphs if PurePosixPath(name).name == "model.onnx"]
    preferred = [name for name in plain if name in ("model.onnx", "onnx/model.onnx")]
    candidates = sorted(preferred)[:1] or plain or graphs
    if len(candidates) != 1:
        raise ModelError(
            f"{where} has {_several(candidates, 'ONNX file')}; it needs one, or one that is named "
            "model.onnx. Keep the model that you want, as it was exported in fp32."
        )
    folder = PurePosixPath(candidates[0]).parent
    folders = (folder, folder.parent) if folder.name == "onnx" else (folder,)
    small = {}
    for file in (TOKENIZER, *_SMALL_FILES):
        beside = [str(parent / file) for parent in folders if str(parent / file) in names]
        if beside:
            small[file] = beside[0]
    if TOKENIZER not in small:
        others = [
            name
            for name in names
            if name.endswith(TOKENIZER) and PurePosixPath(name).parent in folders
        ]
        if len(others) > 1:
            raise ModelError(
                f"{where} has {_several(others, 'tokenizer')}; it needs one, or one that is named "
                f"{TOKENIZER}."
            )
        if others:
            small[TOKENIZER] = others[0]
    return OnnxFiles(graph=candidates[0], small=small)


def _several(names: Sequence[str], kind: str) -> str:
    if not names:
        return f"no {kind}"
    return f"{len(names)} {kind}s ({', '.join(sorted(names)[:3])})"


class DirectoryFiles:
    """The files of a directory, of its ``onnx`` folder and its ``1_Pooling`` folder."""

    def __init__(self, directory: Path) -> None:
        """Lists the files of a directory."""
        self.where = directory
        folders = [directory, directory / "onnx", directory / "1_Pooling"]
        files = [path for folder in folders for path in sorted(folder.glob("*")) if path.is_file()]
        self.names = [path.relative_to(directory).as_posix() for path in files]

    def fetch(self, name: str, scratch: Path) -> Path:
        """Returns the path of a file, which stays where it is."""
        del scratch
        return self.where / name


class ZipFiles:
    """The members of a jar or zip, read by their names and never unpacked as a whole."""

    def __init__(self, path: Path) -> None:
        """Lists the members of an archive.

        Raises:
            ModelError: If it is not a zip file, or a member would lie outside of it.
        """
        self.where = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise ModelError(
                f"{path} is not a complete zip file ({error}); fetch it again."
            ) from error
        self._members = {member.filename: member for member in members}
        self.names = [member.filename for member in members]
        for name in self.names:
            parts = PurePosixPath(name.replace("\\", "/")).parts
            if not parts or ".." in parts or name.startswith(("/", "\\")) or ":" in parts[0]:
                raise ModelError(
                    f"{path} has a member {name!r}, outside of the archive; it cannot be trusted. "
                    f"{_REMEDY}"
                )

    def fetch(self, name: str, scratch: Path) -> Path:
        """Returns the path of a member's copy in the scratch directory.

        Raises:
            ModelError: If the member is damaged, encrypted, or larger than a model's can be.
        """
        member = self._members[name]
        size = member.file_size
        if name.endswith((".json", ".txt", ".model")):
            limit = _LARGEST_SMALL_FILE
        else:
            limit = max(_LARGEST_RATIO * self.where.stat().st_size, 1 << 20)
        if size > limit:
            raise ModelError(
                f"{self.where} unpacks {name} to {size} bytes from {member.compress_size}, more "
                f"than the {limit} that such a file can have; it cannot be trusted. {_REMEDY}"
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ModelError(f"{self.where} has a link in place of {name}. {_REMEDY}")
        # Under its whole path: a file that is mapped into memory must not be written over.
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                zipfile.ZipFile(self.where) as archive,
                archive.open(member) as source,
                open(target, "wb") as copy,
            ):
                shutil.copyfileobj(source, copy, 1 << 20)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            RuntimeError,
            NotImplementedError,
            ValueError,
            OSError,
        ) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            raise ModelError(
                f"{name} in {self.where} cannot be read ({error}); fetch the archive again."
            ) from error
        return target
