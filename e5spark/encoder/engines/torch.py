"""The torch engine: forward passes through transformers, pooling in fp32."""

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModel, PreTrainedModel

from e5spark.encoder.batching import Batch
from e5spark.encoder.engine import LoadedModel, Vectors
from e5spark.encoder.engines import packed
from e5spark.encoder.engines.packed import Kernel, PackedModel, Rows, kernel_for
from e5spark.encoder.engines.transfer import (
    BlockingTransfer,
    OverlappedTransfer,
    PendingVectors,
    Transfer,
)
from e5spark.encoder.memory import MemoryLimit
from e5spark.encoder.tokenizer import Tokenizer, appends_eos
from e5spark.errors import ModelError, OptionError, TransientError
from e5spark.model.checkpoint import Files
from e5spark.model.registry import Pooling

log = logging.getLogger(__name__)

# torch >= 2.8 tells a broken device from a bad input; it does not raise this for lack of memory.
_DeviceError: type[Exception] = getattr(torch, "AcceleratorError", TransientError)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The largest hidden size and its budget in tokens. CPUs are fastest with 512 to 2,048 (measured):
# the activations of more tokens do not fit the caches. GPUs need enough tokens to fill their cores
# (calculated, not measured): 65,536 tokens make about 0.2 GB of bf16 activations in the
# feed-forward layer of small and 0.4 GB in base; 32,768 make 0.3 GB in large.
_TOKEN_BUDGETS = {"cuda": ((768, 65_536), (math.inf, 32_768))}
_DEFAULT_BUDGETS = ((math.inf, 2048),)


def load(files: Files, *, precision: str, device: str, threads: int | None) -> LoadedModel:
    """Returns the tokenizer and the engine of a checkpoint; see ``TorchEngine.load``."""
    tokenizer = Tokenizer.load(files.tokenizer, appends_eos=appends_eos(files.model))
    engine = TorchEngine.load(
        files.model, precision=precision, device=device, threads=threads, pad_id=tokenizer.pad_id
    )
    return LoadedModel(tokenizer=tokenizer, engine=engine)


def check(files: Files, *, precision: str, device: str) -> str:
    """Checks that this process has the device; returns the precision, which torch never changes.

    Raises:
        OptionError: If it does not.
    """
    del files
    _device(device)
    return precision


class TorchEngine:
    """A loaded checkpoint that turns token ids into pooled vectors.

    Attributes:
        token_budget: See ``Engine``; lowered when the device runs out of memory.
        packed: See ``Engine``.
        step: See ``Engine``.
    """

    name = "torch"
    step = 1

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device,
        *,
        precision: str,
        pad_id: int,
        kernel: Kernel | None = None,
    ) -> None:
        """Wraps a transformers model that is in evaluation mode on the device.

        Args:
            model: A model of one of ``ARCHITECTURES``.
            device: The device of the model's weights.
            precision: The precision of the model's weights.
            pad_id: The padding token, for rows that are padded.
            kernel: The attention of packed rows; None pads rows instead.
        """
        self.precision = precision
        self._model = model
        self._device = device
        self._pad_id = pad_id
        self._vocabulary = model.get_input_embeddings().num_embeddings
        self._packed_model = None if kernel is None else PackedModel(model, kernel)
        self.packed = kernel is not None
        self._transfer: Transfer = (
            OverlappedTransfer(device) if device.type == "cuda" else BlockingTransfer(device)
        )
        self._memory = MemoryLimit()
        self._best_budget = _token_budget(device.type, model.config.hidden_size)
        self.token_budget = self._best_budget

    @classmethod
    def load(
        cls, directory: Path, *, precision: str, device: str, threads: int | None, pad_id: int
    ) -> "TorchEngine":
        """Returns the engine of a checkpoint.

        Args:
            directory: The directory of config.json and the safetensors weights.
            precision: ``fp32`` or ``bf16``.
            device: A torch device, or ``auto``.
            threads: CPU threads of this process's forward passes; None leaves torch's own choice.
            pad_id: The padding token.

        Raises:
            ModelError: If the weights do not fill the architecture.
            OptionError: If this process has no such device.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        target = _device(device)
        if precision == "bf16" and target.type == "cpu" and not _has_native_bf16():
            log.warning(
                "This CPU has no bf16 instructions: bf16 is emulated and slower than fp32. "
                "Use precision='fp32'."
            )
        if precision == "bf16" and target.type == "cuda" and not _gpu_has_bf16():
            log.warning(
                "This GPU has no bf16 arithmetic (it is older than Ampere): bf16 is emulated and "
                "slow. Use precision='fp32'."
            )
        dtype = _DTYPES[precision]
        model = load_model(directory, dtype=dtype)
        if hasattr(model, "pooler"):
            model.pooler = None
        kernel = kernel_for(model.config, dtype, target)
        return cls(model.to(target), target, precision=precision, pad_id=pad_id, kernel=kernel)

    def run(self, batches: Iterable[Batch], pooling: Pooling) -> Iterator[Vectors | Exception]:
        """Yields the vectors of each batch, or the exception that its content caused, in order.

        A batch that does not fit the device's memory runs in halves. Where copies can overlap, the
        next batch has started before a batch is yielded.

        Raises:
            TransientError: If the device failed.
        """
        started: deque[list[PendingVectors] | Exception] = deque()
        for batch in batches:
            started.append(self._start(batch, pooling))
            if len(started) > self._transfer.prefetch:
                yield self._finish(started.popleft())
        while started:
            yield self._finish(started.popleft())

    def _start(self, batch: Batch, pooling: Pooling) -> list[PendingVectors] | Exception:
        """Starts a batch; returns its parts in order, or the exception that its content caused."""
        try:
            return self._parts(batch, pooling)
        except _DeviceError as error:
            # A device that failed once fails every later call: no text is at fault.
            raise _device_failure(error) from error
        except Exception as error:  # anything that a text can cause
            # The traceback's frames hold the tensors of the failed pass.
            return error.with_traceback(None)

    def _finish(self, parts: list[PendingVectors] | Exception) -> Vectors | Exception:
        if isinstance(parts, Exception):
            return parts
        try:
            vectors = [fetch() for fetch in parts]
        except _DeviceError as error:
            raise _device_failure(error) from error
        return vectors[0] if len(vectors) == 1 else np.concatenate(vectors)

    def _parts(self, batch: Batch, pooling: Pooling) -> list[PendingVectors]:
        rows = len(batch.lengths)
        if rows == 1 or self._memory.allows(self._tokens(batch)):
            try:
                pending = self._transfer.to_host(self._forward(batch, pooling))
            except torch.OutOfMemoryError:
                if rows == 1:
                    raise
            else:
                self._memory.record_success()
                self.token_budget = self._memory.cap(self._best_budget)
                return [pending]
            # Outside of the except clause, where the error would still hold the memory.
            self._shrink(batch)
        return [part for half in _halves(batch) for part in self._parts(half, pooling)]

    def _shrink(self, batch: Batch) -> None:
        tokens = max(self._tokens(half) for half in _halves(batch))
        self._memory.shrink(tokens)
        self.token_budget = self._memory.cap(self._best_budget)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning(
            "A forward pass of %d tokens did not fit the device's memory; the next ones have at "
            "most %d.",
            self._tokens(batch),
            tokens,
        )

    def _tokens(self, batch: Batch) -> int:
        """The batch's share of a token budget."""
        if self.packed:
            return len(batch.ids)
        return len(batch.lengths) * int(batch.lengths.max(initial=0))

    @torch.inference_mode()
    def _forward(self, batch: Batch, pooling: Pooling) -> torch.Tensor:
        """The pooled vectors of a batch, in fp32 on the device.  # (rows, hidden)."""
        batch.check_ids(self._vocabulary)
        if self._packed_model is None:
            return self._padded(batch, pooling)
        offsets = np.zeros(len(batch.lengths) + 1, dtype=np.int32)
        np.cumsum(batch.lengths, out=offsets[1:])
        ids, on_device = self._transfer.to_device([batch.ids, offsets])
        rows = Rows(offsets=on_device, longest=int(batch.lengths.max(initial=0)))
        return packed.pool(self._packed_model(ids, rows), rows, pooling)

    def _padded(self, batch: Batch, pooling: Pooling) -> torch.Tensor:
        ids, counts = self._transfer.to_device([batch.padded(self._pad_id), batch.lengths])
        mask = torch.arange(ids.shape[1], device=self._device) < counts[:, None]  # (rows, longest)
        hidden = self._model(
            input_ids=ids, attention_mask=mask.long()
        ).last_hidden_state.float()  # (rows, longest, hidden)
        return _pool(hidden, mask, counts, pooling)


def _device_failure(error: Exception) -> TransientError:
    return TransientError(
        f"The device failed: {error}. Run the command again; if it fails again, check the device."
    )


def _token_budget(device_type: str, hidden: int) -> int:
    budgets = _TOKEN_BUDGETS.get(device_type, _DEFAULT_BUDGETS)
    return next(tokens for widest, tokens in budgets if hidden <= widest)


def _halves(batch: Batch) -> tuple[Batch, Batch]:
    rows = len(batch.lengths) // 2
    tokens = int(batch.lengths[:rows].sum())
    return (
        Batch(ids=batch.ids[:tokens], lengths=batch.lengths[:rows]),
        Batch(ids=batch.ids[tokens:], lengths=batch.lengths[rows:]),
    )


def load_model(directory: Path, *, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """Returns a checkpoint's transformer on the CPU, in evaluation mode.

    Raises:
        ModelError: If the weights do not fill the architecture.
    """
    # A progress bar for each worker would drown an executor's log, and so would transformers' table
    # of missing weights, which are checked below.
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        model, report = AutoModel.from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except Exception as error:  # a config.json with a wrong value ends in any error
        raise ModelError(
            f"{directory} could not be loaded: {error}. Check that it holds a complete checkpoint, "
            "or fetch it again."
        ) from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    # E5's pooler is never used, and some checkpoints ship without it.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ModelError(
            f"{directory} lacks {len(missing)} weights of its architecture, {missing[0]} "
            "among them; transformers would fill them with random numbers. Fetch the checkpoint "
            "again."
        )
    return model.eval()


def _pool(
    hidden: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor, pooling: Pooling
) -> torch.Tensor:
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), counts - 1]
    return hidden.masked_fill(~mask[..., None], 0.0).sum(dim=1) / counts[:, None]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"device is {name!r}; use auto, cpu or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device is {name!r}, but torch sees no GPU here; use auto or cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            f"device is {name!r}, but this process sees {torch.cuda.device_count()} GPUs, numbered "
            "from 0; use one of those. CUDA_VISIBLE_DEVICES decides which they are."
        )
    return device


def _gpu_has_bf16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _has_native_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
