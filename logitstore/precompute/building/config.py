"""The settings of a build, checked when they are made; no file is opened here.

A field is also an option of ``logitstore build`` and ``plan``; the text under it is the option's
help.  None means the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from logitstore.errors import InputError
from logitstore.options import Written
from logitstore.values import Count, Precision, RowDigests, WholeNumber, check_values

if TYPE_CHECKING:
    from logitstore.format.choice import EncodingRequest


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """The settings of ``logitstore build``; ``encoding`` and its bound are an ``EncodingRequest``.

    Raises InputError for a value that cannot be.
    """

    teachers: Annotated[Sequence[str], Written("CKPT|GLOB|RUN", "teacher")]
    """Checkpoint, folder, glob or training run; repeat for several teachers. More checkpoints may
    follow as a shell's * gives them."""
    data: Annotated[str, Written("DATA")]
    """Data: npz:FILE?x=X&y=Y, torchvision:NAME?root=R&train=true, imagefolder:PATH, digits,
    module:factory or file.py:factory; any of them with samples=START:STOP."""
    out: Annotated[str, Written("STORE")]
    """Store to make, resume or add to."""
    arch: Annotated[Sequence[str], Written("ARCH")] = ()
    """Network of the teachers: torchvision:NAME, timm:NAME, module:factory, file.py:factory,
    resnet20 to resnet110, cnn5, mlp?hidden=256,256. One for all teachers, or repeat, one for each.
    A training run knows its own."""
    snapshots: Annotated[Sequence[str], Written("NAME", "snapshot")] = ()
    """Name of the snapshot; repeat, one for each teacher. Without it the checkpoint's name without
    its ending."""
    normalize: Annotated[str | None, Written("imagenet|cifar10|none|MEAN/STD")] = None
    """How pixels are scaled: MEAN/STD is such as 0.5,0.5,0.5/0.2,0.2,0.2."""
    view_spec: Annotated[str, Written("PRESET|FILE")] = "eval"
    """How views are made of a sample: eval, cifar-train, cifar-strong, cifar-autoaugment,
    imagenet-train, imagenet-eval or FILE.json."""
    size: int | None = None
    """Side of the view, if not the preset's or the image's own."""
    views: Count = 1
    """Number of views of each sample."""
    first_view: WholeNumber = 0
    """Number of the first view, to add views to those of another snapshot."""
    mix: Annotated[str | None, Written("MIX")] = None
    """Mix pairs of images: mixup:ALPHA, cutmix:ALPHA, or both with a comma."""
    seed: int = 0
    """Seed of the views."""
    encoding: Annotated[str | None, Written("ENCODING")] = None
    """How rows are kept: float32, float16, uint8[:LEVELS], topk:K, or auto, the smallest within
    --max-kl. Without it uint8 for 33 to 4,096 classes, else float16."""
    max_kl: float | None = None
    """Most nats of KL that may be lost on average; without it 1e-4 for auto, else no bound."""
    at_temperature: float | None = None
    """Temperature at which --max-kl holds; without it 4, or 1 for topk."""
    row_digests: RowDigests = "auto"
    """Keep a digest of each row, by which rows that a server streams are proven to be those of the
    root; auto: if a row has at least 128 bytes."""
    batch_size: Count = 256
    """Images in one forward pass."""
    workers: WholeNumber | None = None
    """Processes that read images; without it none for data that are in memory."""
    device: Annotated[str | None, Written("cpu|cuda|cuda:N")] = None
    """Where the teachers run; without it a GPU if there is one."""
    precision: Precision = "fp32"
    """Arithmetic of the forward pass."""
    weights_key: str | None = None
    """Place of the weights in the checkpoint: an entry such as model_ema, a prefix of the tensors'
    names such as teacher, or both, as in state_dict.teacher."""
    shard_rows: Annotated[int, Field(ge=1, le=16_384)] | None = None
    """Rows of a shard, a power of two: what an interruption loses at most."""
    fresh: bool = False
    """Forget an unfinished build of this name."""
    trust_run: bool = False
    """Run the code that a training run's own files name as its network."""

    def __post_init__(self) -> None:
        check_values(self)
        if self.shard_rows is not None and self.shard_rows.bit_count() != 1:
            raise InputError(f"shard_rows must be a power of two, not {self.shard_rows}")
        _ = self.request

    @property
    def request(self) -> EncodingRequest:
        """The request for an encoding; InputError if it contradicts itself."""
        from logitstore.format.choice import EncodingRequest

        return EncodingRequest(
            text=self.encoding,
            max_kl=self.max_kl,
            at_temperature=self.at_temperature,
            row_digests=self.row_digests,
        )
