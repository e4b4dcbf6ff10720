"""Describe stores and snapshots: the documents in their ``zarr.json``.

No other file spells an attribute's name.  Nothing here depends on when, where or by whom a store
was built, so that builds of the same inputs are byte-identical.  ``FORMAT.md`` explains the fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from logitstore.format.documents import ByText, Document, Name, Sha256, Tuple
from logitstore.format.encodings.base import Encoding
from logitstore.format.grid import Grid
from logitstore.values import Precision

FORMAT_VERSION = 1
"""The version that every document names."""

THUMBNAIL_SIDE = 8
"""Pixels along each side of a thumbnail."""

THUMBNAIL_TOLERANCE = 2
"""Most difference, of 255, between the thumbnails that two image decoders make of one image."""

MAX_VIEWS, MAX_SAMPLES, MAX_CLASSES = 1 << 20, 1 << 40, 1 << 24
"""The largest numbers that a document may name."""

Temperature = Annotated[float, Field(gt=0, le=1000)]
Temperatures = Annotated[Tuple[Temperature], Field(min_length=1, max_length=8)]


class DatasetCard(Document):
    """Binds a store to its dataset; ``sha256`` covers labels (little-endian) and keys."""

    name: str
    length: Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
    sha256: Sha256


@dataclass(frozen=True)
class Samples:
    """Holds a dataset's samples: labels int32 (N,), -1 where unknown, and keys if it has any."""

    name: str
    labels: NDArray[np.int32]
    keys: Sequence[str] | None = None

    def card(self) -> DatasetCard:
        """Return the dataset's card; the keys in its digest are joined by zero bytes."""
        digest = sha256(np.ascontiguousarray(self.labels, "<i4").tobytes())
        if self.keys is not None:
            digest.update(b"\0".join(key.encode() for key in self.keys))
        return DatasetCard(name=self.name, length=len(self.labels), sha256=digest.hexdigest())


class StoreMeta(Document):
    """Holds the attributes of the root group."""

    format_version: Literal[1] = 1
    classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)]
    class_names: Tuple[str] | None = None
    dataset: DatasetCard

    @model_validator(mode="after")
    def _name_each_class(self) -> Self:
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(f"{len(self.class_names)} class_names for {self.classes} classes")
        return self


class Normalize(Document):
    """Holds the mean and standard deviation of each channel, of pixels in [0, 1]."""

    mean: Tuple[float]
    std: Tuple[float]


class TeacherCard(Document):
    """Names the network, weights and arithmetic that produced a snapshot."""

    file: str
    weights_sha256: Sha256
    weights_key: str | None = None
    architecture: str
    architecture_sha256: Sha256 | None = None
    parameters: int
    normalize: Normalize | None
    input_shape: tuple[int, int, int]
    precision: Precision
    device: str
    batch_size: Annotated[int, Field(ge=1)]


class ImportCard(Document):
    """Names the file that logits computed elsewhere came from."""

    file: str
    sha256: Sha256


class Canary(Document):
    """Fingerprints a view: sha256 of its uint8 bytes, and an 8x8 thumbnail (hex, C*8*8 bytes)."""

    view: Annotated[int, Field(ge=0)]
    sample: Annotated[int, Field(ge=0)]
    shape: tuple[int, int, int]
    sha256: Sha256
    thumbnail: Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]

    def resembles(self, other: Canary) -> bool:
        """Return whether the views are equal, or as close as another image decoder's would be."""
        if self.sha256 == other.sha256:
            return True
        ours, theirs = bytes.fromhex(self.thumbnail), bytes.fromhex(other.thumbnail)
        # Thumbnails of no pixels, or of too few, are like no view's.
        comparable = self.shape == other.shape
        comparable &= len(ours) == len(theirs) == THUMBNAIL_SIDE**2 * self.shape[0] > 0
        return comparable and all(
            abs(a - b) <= THUMBNAIL_TOLERANCE for a, b in zip(ours, theirs, strict=True)
        )


class ViewCard(Document):
    """Says how samples became network inputs: transforms, size, seed, fingerprints of the result.

    ``mix`` says which samples were blended with which (None: none were).  The snapshot's view 0 is
    number ``first_view`` of the sequence that spec, size, mix and seed define; canaries count in
    that sequence.
    """

    spec: Tuple[dict[str, Any]]
    size: int | None
    mix: ByText[float] | None = None
    seed: int
    first_view: int = 0
    canaries: Tuple[Canary]


class EncodingCard(Document):
    """Names the encoding of the rows, with its parameters."""

    name: str
    parameters: ByText[int] = Field(default_factory=dict)

    @classmethod
    def of(cls, encoding: Encoding) -> EncodingCard:
        """Return the card of an encoding; ``encoding_of`` is the inverse."""
        return cls(name=encoding.name, parameters=encoding.parameters)


class Divergence(Document):
    """Holds KL(teacher || decoded) in nats at one temperature, over all rows."""

    temperature: float
    mean: float
    max: float


class Fidelity(Document):
    """Says what an encoding lost, measured on every row."""

    divergence: Tuple[Divergence]
    top1_agreement: float


class TranscodeCard(Document):
    """Names the snapshot whose decoded rows were encoded again, and what its encoding had lost."""

    root: Sha256
    encoding: EncodingCard
    fidelity: Fidelity


class SpecialistCard(Document):
    """Names a specialist by its name in the plan and the root of its snapshot."""

    name: str
    root: Sha256


class CombinedCard(Document):
    """Names the generalist and the specialists whose distributions were combined, and the rule.

    ``min-kl``: per row the q that minimises KL(generalist || q) plus, for each specialist that has
    the generalist's best class, KL(specialist || q with one class for the rest), at T=1.
    ``dustbin`` is how the specialists' rest class was corrected for their training data;
    ``plan_sha256`` is that of the plan's canonical JSON.
    """

    rule: Literal["min-kl"] = "min-kl"
    dustbin: Literal["share", "odds"]
    plan_sha256: Sha256
    generalist: Sha256
    specialists: Annotated[Tuple[SpecialistCard], Field(min_length=1)]


class SnapshotPlan(Document):
    """Holds all that is known before the first row: a resumed build must have an equal plan.

    ``temperatures`` are those at which the fidelity of the rows is measured; of a ``transcoded``
    snapshot it is against the rows of the snapshot that was transcoded.  ``teacher`` and ``view``
    of a ``combined`` one are the generalist's.  With ``row_digests`` it has the array of that name.
    """

    format_version: Literal[1] = 1
    name: Name
    views: Annotated[int, Field(ge=1, le=MAX_VIEWS)]
    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
    classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)]
    rows_per_shard: Annotated[int, Field(ge=1, le=1 << 20)]
    teacher: TeacherCard | None = None
    imported: ImportCard | None = None
    transcoded: TranscodeCard | None = None
    combined: CombinedCard | None = None
    view: ViewCard | None = None
    encoding: EncodingCard
    row_digests: bool = False
    temperatures: Temperatures = (1.0, 4.0)
    packages: ByText[str]

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.teacher is None) == (self.imported is None):
            raise ValueError("exactly one of teacher and imported must be given")
        return self

    @property
    def grid(self) -> Grid:
        """The grid by which the rows are cut into shards."""
        return Grid(self.samples, self.views, self.rows_per_shard)

    @model_serializer(mode="wrap")
    def _without_what_few_have(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Written out as null it would change the bytes, and the root, of every other snapshot.
        document: dict[str, Any] = handler(self)
        if self.combined is None:
            document.pop("combined", None)
        if not self.row_digests:
            document.pop("row_digests", None)
        return document


class SnapshotMeta(SnapshotPlan):
    """Holds the attributes of a snapshot's group: the plan, and what the build measured.

    ``top1`` is the share of labelled rows whose argmax is the label; None without labels.
    """

    fidelity: Fidelity
    top1: float | None

    def plan(self) -> SnapshotPlan:
        """Return the plan by which the snapshot was built."""
        return SnapshotPlan(**self.model_dump(exclude={"fidelity", "top1"}))
