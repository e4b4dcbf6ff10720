"""Run a teacher's forward pass: eval mode, inference mode, channels-last, float32 logits."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from logitstore.errors import InputError
from logitstore.format.cards import Normalize, SnapshotPlan
from logitstore.precompute.networks.pixels import to_input
from logitstore.values import Precision

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Teacher:
    """A loaded network in eval mode, on its device, and the snapshot that it will fill."""

    model: nn.Module
    plan: SnapshotPlan
    normalize: Normalize | None


def forward(
    model: nn.Module, images: Tensor, normalize: Normalize | None, precision: Precision
) -> Tensor:
    """Return the logits float32 (N, C), on the CPU, of images uint8 (N, C, H, W) on the device."""
    device = images.device.type
    narrow = torch.autocast(device, _AUTOCAST[precision]) if precision != "fp32" else nullcontext()
    # TF32 keeps 10 bits of a convolution's inputs: "fp32" would not be what it says.  Fixed
    # algorithms make a resumed build give the same bits.
    cudnn = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with torch.inference_mode(), narrow, cudnn:
        inputs = to_input(images, normalize).contiguous(memory_format=torch.channels_last)
        output: Tensor = model(inputs)
        return output.float().cpu()


def pick_device(name: str | None) -> torch.device:
    """Return the named device, else a GPU if there is one; InputError if it is not usable."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {name}: not usable here ({reason})") from None
    return device
