"""Checkpoints by name: from this machine's hub cache, or from the hub if that is allowed."""

import os
from pathlib import Path

from e5spark.errors import ModelError, TransientError
from e5spark.model import registry
from e5spark.model.json_file import read_json

_TOKENIZER = ["*.json", "*.txt", "*.model"]
_WEIGHTS = ["*.safetensors"]
_NOT_FETCHED = ["onnx/*", "openvino/*", "coreml/*"]


def snapshot(
    name: str, *, revision: str | None = None, download: bool = False, weights: bool = True
) -> Path:
    """Returns the directory of a checkpoint's files in the hub cache of this machine.

    Args:
        name: The checkpoint's name on the hub.
        revision: The commit; by default the one that e5spark pins, else the commit of the first
            fetch.
        download: Whether missing files may be fetched from the hub.
        weights: Whether the weights are needed as well as the tokenizer.

    Raises:
        ModelError: If it is not in the cache and may not be fetched, or the hub does not have it.
        TransientError: If the hub did not answer.
    """
    published = registry.CHECKPOINTS.get(name)
    revision = revision or (published.revision if published else None)
    patterns = [*_TOKENIZER, *(_WEIGHTS if weights else [])]
    # The cache first, whether or not downloading is allowed: a checkpoint without a pin stays at
    # the commit of its first fetch.
    directory = _snapshot(name, revision, patterns, local=True)
    if directory is not None and weights and not _has_weights(directory):
        directory = None  # only its tokenizer was fetched, or the fetch was interrupted
    if directory is None and download:
        directory = _snapshot(name, revision, patterns, local=False)
    if directory is None:
        raise ModelError(
            f"{name} at revision {revision or 'main'} is not in the hub cache of this machine "
            f"({_cache()}), and downloading is off. Allow it (download=True, in a job file "
            f"model.download = true), or fetch it where the hub can be reached (hf download {name}"
            f"{f' --revision {revision}' if revision else ''} --local-dir DIR) and use that "
            f"directory (model='/absolute/DIR', checkpoint={name!r}), or ship that directory with "
            "spark-submit --archives model.tar.gz#model and model='archive:model'."
        )
    return directory


def _has_weights(directory: Path) -> bool:
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return any(directory.glob("*.safetensors"))
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        return False
    return all((directory / str(shard)).is_file() for shard in set(map(str, shards.values())))


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _snapshot(name: str, revision: str | None, patterns: list[str], *, local: bool) -> Path | None:
    # Imported here: a worker that loads from a directory never needs the hub's client.
    from huggingface_hub import errors, snapshot_download

    try:
        path = snapshot_download(
            name,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=_NOT_FETCHED,
            local_files_only=local,
        )
    except errors.LocalEntryNotFoundError as error:
        if local:
            return None
        raise TransientError(
            f"The hub ({_endpoint()}) could not be reached for {name}: {_first_line(error)} Run "
            "the same command again, or provide the checkpoint as a directory."
        ) from error
    except errors.HFValidationError as error:
        raise ModelError(
            f"{name!r} is not a valid name on the hub: {_first_line(error)} Use 'owner/name', or "
            "write a directory as an absolute path or './relative'."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ModelError(
            f"The hub ({_endpoint()}) has no {name} at revision {revision or 'main'}: "
            f"{_first_line(error)} Check the name and the revision."
        ) from error
    # The client's own HTTPError as well: a broken connection is not an HfHubHTTPError.
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise TransientError(
            f"Fetching {name} from the hub ({_endpoint()}) failed: {_first_line(error)} Run the "
            "same command again."
        ) from error
    return Path(path)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
