"""Stop a run whose loss or weights are no longer finite, before a checkpoint holds them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from logitstore.errors import NonFinite

_CHECK_EVERY = 16
"""Steps between two looks at the losses, each of which waits for the device."""


class LossWatch:
    """Find the first step whose loss is not finite, looking only every few steps."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, int, Tensor]] = []

    def add(self, epoch: int, step: int, loss: Tensor) -> None:
        """Take a step's loss, and check all that came since the last look if they are many."""
        self._pending.append((epoch, step, loss))
        if len(self._pending) >= _CHECK_EVERY:
            self.check()

    def check(self) -> None:
        """Raise NonFinite with the epoch and the step, both counted from 1."""
        pending, self._pending = self._pending, []
        if not pending or torch.stack([loss for *_, loss in pending]).isfinite().all():
            return
        epoch, step, loss = next(entry for entry in pending if not entry[2].isfinite())
        raise NonFinite(
            f"the loss became {loss.item()} in epoch {epoch + 1}, step {step + 1}: lower --lr, add "
            "--warmup-epochs, or use --precision bf16 or fp32; no later checkpoint was written"
        )


def check_weights(model: nn.Module, epoch: int, step: int) -> None:
    """Raise NonFinite if a weight is not finite."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise NonFinite(
                f"weight {name} became NaN or infinite by epoch {epoch + 1}, step {step + 1}: "
                "lower --lr, add --warmup-epochs, or use --precision bf16 or fp32"
            )
