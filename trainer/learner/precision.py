"""The precision in which a model is trained: full, with TF32 products, or with bfloat16 ones under autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from trainer.learner.config import TrainedIn

TF32_CAPABILITY = (8, 0)
"""The first compute capability that multiplies TF32."""


@dataclass(frozen=True, kw_only=True)
class TrainingPrecision:
    """`model.precision` on one device, as contexts for the parts of a training step.

    Whatever it is, weights, tables and their look-ups, gradients of weights, optimizer state and averages are float32,
    and the loss is to be taken of float32 logits. Nothing remains in force outside of the contexts.
    """

    name: TrainedIn = "float32"
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)

    def refuse_unsupported(self) -> None:
        """Raises: ValueError for bfloat16 on a GPU that has none."""
        if self.name == "bfloat16" and self.device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ValueError(
                f'model.precision is "bfloat16", which {torch.cuda.get_device_name(self.device)} cannot compute in; '
                'give "float32"'
            )

    def forward(self) -> AbstractContextManager[object]:
        """For the model's forward pass, in training and in measuring alike."""
        if self.name == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return self.backward()

    def backward(self) -> AbstractContextManager[object]:
        """For the backward pass: gradients have the types of the forward pass without a context, but not TF32."""
        return _tf32_products() if self.name == "tf32" and self.device.type == "cuda" else nullcontext()

    def without_effect(self) -> str | None:
        """Why training is in float32 here although something else is set; None if it is not."""
        if self.name != "tf32" or _multiplies_tf32(self.device):
            return None
        return (
            f'model.precision is "tf32", which is for GPUs of compute capability {TF32_CAPABILITY[0]}.'
            f"{TF32_CAPABILITY[1]} and above; this run trains in float32"
        )


@contextmanager
def _tf32_products() -> Iterator[None]:
    """Within it float32 matrix products on CUDA may round their factors to TF32, whichever thread launches them."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32"
    try:
        yield
    finally:
        products.fp32_precision = before


def _multiplies_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= TF32_CAPABILITY
