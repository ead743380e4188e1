"""The torch engine: padded forward passes through transformers, pooling in fp32."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModel

from e5spark.batching import Batch
from e5spark.encoder.engine import Vectors
from e5spark.errors import ModelError, OptionError, TransientError
from e5spark.models import Pooling

log = logging.getLogger(__name__)

# torch 2.8 and later tell a broken device from a bad input; it is not raised for lack of memory.
_DeviceError: type[Exception] = getattr(torch, "AcceleratorError", TransientError)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchEngine:
    """A loaded checkpoint that turns token ids into pooled token vectors."""

    # On CPUs 512 to 2,048 tokens are fastest: the activations of more no longer fit the caches.
    token_budget = 2048
    packed = False

    def __init__(self, model: torch.nn.Module, device: torch.device, *, pad_id: int) -> None:
        """Takes a model in evaluation mode that lies on the device."""
        self._model = model
        self._device = device
        self._pad_id = pad_id

    @classmethod
    def load(
        cls, directory: Path, *, precision: str, device: str, threads: int | None, pad_id: int
    ) -> "TorchEngine":
        """Returns the engine of a checkpoint.

        Args:
            directory: config.json and safetensors weights.
            precision: ``fp32`` or ``bf16``.
            device: A torch device.
            threads: CPU threads of this process's forward passes; None leaves torch's own choice.
            pad_id: What fills up short rows.

        Raises:
            ModelError: If the weights do not fill the architecture.
            OptionError: If there is no such device.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        where = _device(device)
        if precision == "bf16" and where.type == "cpu" and not _has_native_bf16():
            log.warning("This CPU has no bf16 instructions; bf16 is emulated and slower than fp32.")
        try:
            # A progress bar for each worker would drown an executor's log.
            transformers.utils.logging.disable_progress_bar()
            model, found = AutoModel.from_pretrained(
                directory,
                dtype=_DTYPES[precision],
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{directory} could not be loaded: {error}") from error
        # E5's pooler is never used, and some checkpoints ship without it.
        missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
        if missing:
            raise ModelError(
                f"{directory} lacks {len(missing)} weights of its architecture, {missing[0]} "
                "among them; transformers would fill them with random numbers. Fetch it again."
            )
        return cls(model.eval().to(where), where, pad_id=pad_id)

    def run(self, batches: Iterable[Batch], pooling: Pooling) -> Iterator[Vectors | Exception]:
        """Yields for each batch, in order, one vector a row, or what its content made it raise.

        Raises:
            TransientError: If the device failed.
        """
        for batch in batches:
            try:
                found: Vectors | Exception = self._forward(batch, pooling)
            except _DeviceError as error:
                # A device that failed once fails every later call: no text is to blame.
                raise TransientError(f"The device failed: {error}") from error
            except Exception as error:  # whatever a text makes it raise
                found = error
            yield found

    @torch.inference_mode()
    def _forward(self, batch: Batch, pooling: Pooling) -> Vectors:
        ids = torch.from_numpy(batch.padded(self._pad_id)).to(self._device)
        counts = torch.from_numpy(batch.lengths).to(self._device)
        mask = torch.arange(ids.shape[1], device=self._device) < counts[:, None]  # (rows, longest)
        hidden = self._model(
            input_ids=ids, attention_mask=mask.long()
        ).last_hidden_state.float()  # (rows, longest, hidden)
        pooled: Vectors = _pool(hidden, mask, counts, pooling).cpu().numpy()
        return pooled


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
    return device


def _has_native_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
