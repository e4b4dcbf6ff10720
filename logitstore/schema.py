"""Everything that is written to disk or sent over HTTP, as frozen pydantic models.

A document either parses completely or is refused with its path and field; no other file spells an
attribute key as a string.  Nothing here may depend on when, where or by whom a store was built, or
two builds of the same inputs would not be byte-identical.  The prose is ``FORMAT.md``.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from logitstore.errors import Damaged, InputError

FORMAT_VERSION = 1
ATTRIBUTE = "logitstore"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
THUMBNAIL_TOLERANCE = 2
MAX_VIEWS, MAX_SAMPLES, MAX_CLASSES = 1 << 20, 1 << 40, 1 << 24

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Key = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$")
]
Precision = Literal["fp32", "bf16", "fp16"]
Temperature = Annotated[float, Field(gt=0, le=1000)]
Temperatures = Annotated[tuple[Temperature, ...], Field(min_length=1, max_length=8)]


def check_name(what: str, name: str) -> str:
    """Return ``name`` if it may name a store or a snapshot, else raise InputError."""
    if not re.fullmatch(NAME_PATTERN[1:-1], name):
        raise InputError(
            f"{what} name {name!r} is not usable: letters, digits, '.', '_' and '-', at most 64, "
            "starting with a letter or digit"
        )
    return name


def canonical(document: object) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, one final newline."""
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return (text + "\n").encode()


class Document(BaseModel):
    """Base: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, where: str, data: bytes | dict[str, Any]) -> Self:
        """Parse JSON bytes or a decoded object; Damaged names ``where`` and the first bad field."""
        try:
            if isinstance(data, bytes):
                return cls.model_validate_json(data)
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "(document)"
            raise Damaged(f"{where}: field {field}: {first['msg']}") from None

    def to_bytes(self) -> bytes:
        """This document as canonical JSON."""
        return canonical(self.model_dump(mode="json"))


class DatasetCard(Document):
    """What binds a store to its dataset; ``sha256`` covers labels (little-endian) and keys."""

    name: str
    length: Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
    sha256: Sha256


class StoreMeta(Document):
    """Attributes of the root group."""

    format_version: Literal[1] = 1
    classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)]
    class_names: tuple[str, ...] | None = None
    dataset: DatasetCard

    @model_validator(mode="after")
    def _name_each_class(self) -> Self:
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(f"{len(self.class_names)} class_names for {self.classes} classes")
        return self


class Normalize(Document):
    """Per-channel mean and standard deviation of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class TeacherCard(Document):
    """Which network, weights and arithmetic produced a snapshot."""

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
    """Where logits computed elsewhere came from."""

    file: str
    sha256: Sha256


class Canary(Document):
    """One view's fingerprint: sha256 of its uint8 bytes and an 8x8 thumbnail (hex, C*8*8 bytes)."""

    view: int
    sample: int
    shape: tuple[int, int, int]
    sha256: Sha256
    thumbnail: str

    def resembles(self, other: Canary) -> bool:
        """Equal views, or thumbnails within 2/255, as another image decoder makes them."""
        if self.sha256 == other.sha256:
            return True
        ours, theirs = bytes.fromhex(self.thumbnail), bytes.fromhex(other.thumbnail)
        near = all(abs(a - b) <= THUMBNAIL_TOLERANCE for a, b in zip(ours, theirs, strict=False))
        return self.shape == other.shape and near


class ViewCard(Document):
    """How samples became network inputs: transforms, size, seed, and fingerprints of the result.

    ``mix`` says which samples were blended with which (None: none were).  The snapshot's view 0 is
    number ``first_view`` of the sequence that spec, size, mix and seed define; canaries count in
    that sequence.
    """

    spec: tuple[dict[str, Any], ...]
    size: int | None
    mix: dict[str, float] | None = None
    seed: int
    first_view: int = 0
    canaries: tuple[Canary, ...]


class EncodingCard(Document):
    """Name and parameters of the row encoding."""

    name: str
    parameters: dict[str, int] = {}


class Divergence(Document):
    """KL(teacher || decoded) in nats at one temperature, over all rows."""

    temperature: float
    mean: float
    max: float


class Fidelity(Document):
    """What an encoding lost, measured on every row."""

    divergence: tuple[Divergence, ...]
    top1_agreement: float


class TranscodeCard(Document):
    """The snapshot whose decoded rows were encoded again, and what its own encoding had lost."""

    root: Sha256
    encoding: EncodingCard
    fidelity: Fidelity


class SpecialistCard(Document):
    """One specialist that took part: its name in the plan, and the root of its snapshot."""

    name: str
    root: Sha256


class CombinedCard(Document):
    """The generalist and the specialists whose distributions became one, and how.

    ``min-kl``: per row the q that minimises KL(generalist || q) plus, for each specialist that has
    the generalist's best class, KL(specialist || q with one class for the rest), at T=1.
    ``dustbin`` is how the specialists' rest class was corrected for their training data;
    ``plan_sha256`` is that of the plan's canonical JSON.
    """

    rule: Literal["min-kl"] = "min-kl"
    dustbin: Literal["share", "odds"]
    plan_sha256: Sha256
    generalist: Sha256
    specialists: Annotated[tuple[SpecialistCard, ...], Field(min_length=1)]


class SnapshotPlan(Document):
    """All that is known before the first row: a resumed build must have an equal plan.

    ``temperatures`` are those at which the fidelity of the rows is measured; of a ``transcoded``
    snapshot it is against the rows of the snapshot that was transcoded.  ``teacher`` and ``view``
    of a ``combined`` one are the generalist's.
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
    temperatures: Temperatures = (1.0, 4.0)
    packages: dict[str, str]

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.teacher is None) == (self.imported is None):
            raise ValueError("exactly one of teacher and imported must be given")
        return self

    @model_serializer(mode="wrap")
    def _without_what_few_have(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Written out as null it would change the bytes, and the root, of every other snapshot.
        document: dict[str, Any] = handler(self)
        if self.combined is None:
            document.pop("combined", None)
        return document


class SnapshotMeta(SnapshotPlan):
    """Attributes of a snapshot's group: the plan and what the finished build measured.

    ``top1`` is the share of labelled rows whose argmax is the label; None without labels.
    """

    fidelity: Fidelity
    top1: float | None


class ObjectEntry(Document):
    """Length in bytes and sha256 of one object."""

    length: Annotated[int, Field(ge=0)]
    sha256: Sha256

    @classmethod
    def of(cls, data: bytes | memoryview) -> ObjectEntry:
        return cls(length=len(data), sha256=hashlib.sha256(data).hexdigest())


class ShardMark(Document):
    """``.build/NAME/SHARD.json``: a finished shard's objects and its part of the statistics.

    ``kl_sum`` and ``kl_max`` (nats) have one entry per temperature of the plan.
    """

    view: int
    start: int
    stop: int
    objects: dict[Key, ObjectEntry]
    kl_sum: tuple[float, ...]
    kl_max: tuple[float, ...]
    agreeing: int
    labelled: int
    correct: int


class Commit(Document):
    """``snapshots/NAME/commit.json``: every object of the snapshot and the store-level ones.

    ``sha256`` covers the rest of the document, so that damage to the commit is seen when it is
    opened and not only when the damaged entry is used.
    """

    format_version: Literal[1] = 1
    snapshot: Name
    objects: dict[Key, ObjectEntry]
    sha256: Sha256

    @classmethod
    def seal(cls, snapshot: str, objects: dict[str, ObjectEntry]) -> Commit:
        """Make a commit with its own digest filled in."""
        draft = cls(snapshot=snapshot, objects=objects, sha256="0" * 64)
        return draft.model_copy(update={"sha256": draft._digest()})

    def _digest(self) -> str:
        rest = self.model_dump(mode="json", exclude={"sha256"})
        return hashlib.sha256(canonical(rest)).hexdigest()

    @classmethod
    def open(cls, where: str, data: bytes, snapshot: str) -> Commit:
        """Parse a commit and check that it is whole, canonical and about ``snapshot``."""
        commit = cls.parse(where, data)
        if commit.to_bytes() != data or commit._digest() != commit.sha256:
            raise Damaged(f"{where}: the commit's bytes are not what its own digest covers")
        if commit.snapshot != snapshot:
            raise Damaged(f"{where}: this is the commit of {commit.snapshot!r}, not {snapshot!r}")
        return commit


def root_of(commit: bytes) -> str:
    """A snapshot's root: the sha256 of its commit's bytes, as hex."""
    return hashlib.sha256(commit).hexdigest()


def first_difference(old: BaseModel, new: BaseModel) -> tuple[str, Any, Any] | None:
    """Dotted name and both values of the first field in which two documents differ, or None."""
    return _difference("", old.model_dump(mode="json"), new.model_dump(mode="json"))


def _difference(path: str, old: Any, new: Any) -> tuple[str, Any, Any] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            found = _difference(f"{path}.{key}".lstrip("."), old.get(key), new.get(key))
            if found:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for position, (left, right) in enumerate(zip(old, new, strict=True)):
            found = _difference(f"{path}[{position}]", left, right)
            if found:
                return found
        return None
    return None if old == new else (path, old, new)


class _Group(Document):
    attributes: dict[str, dict[str, Any]]
    node_type: Literal["group"]
    zarr_format: Literal[3]


def snapshot_folder(name: str) -> str:
    """Where a snapshot lies under its store's root."""
    return f"snapshots/{name}"


def build_folder(name: str) -> str:
    """Where an unfinished build of a snapshot keeps its plan and marks."""
    return f".build/{name}"


def group_document(attributes: dict[str, Any]) -> bytes:
    """A zarr v3 group's ``zarr.json``."""
    return canonical({"attributes": attributes, "node_type": "group", "zarr_format": 3})


def group_attributes(where: str, data: bytes) -> dict[str, Any]:
    """Our attributes in a group's ``zarr.json``."""

    group = _Group.parse(where, data)
    if ATTRIBUTE not in group.attributes:
        raise Damaged(f"{where}: no {ATTRIBUTE!r} attribute: this group is not a logit store")
    return group.attributes[ATTRIBUTE]
