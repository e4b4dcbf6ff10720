"""Write a snapshot shard by shard, and commit it.

Order of writes: a shard's objects, its mark in ``.build/NAME/``, and so on; at the end the
snapshot's ``zarr.json``, then ``commit.json``, which is created only if it is absent.  A mark is
written after its data, so a shard with a mark is finished; everything else is written again.  The
files that result do not depend on interruptions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitstore.errors import Damaged, InputError, MismatchError, NonFinite, NotFound, Unfinished
from logitstore.format.cards import SnapshotMeta, SnapshotPlan
from logitstore.format.commits import (
    ATTRIBUTE,
    Commit,
    ObjectEntry,
    ShardMark,
    build_folder,
    commit_key,
    group_document,
    mark_key,
    plan_key,
    root_of,
    snapshot_folder,
)
from logitstore.format.encodings.base import LIMITS, Logits, unusable
from logitstore.format.encodings.rows import Rows
from logitstore.format.encodings.table import encoding
from logitstore.format.fidelity import compare, summarise
from logitstore.format.grid import Span, chunk_rows
from logitstore.format.row_digests import ROW_DIGESTS, digests_of, stored_layout
from logitstore.storage import Storage, get_or_none
from logitstore.writing.zarr_writer import WriterStore, create_array


class SnapshotWriter:
    """Write one snapshot, shard by shard, in any order; ``commit`` makes it visible.

    Made by ``open_writer``.  ``root`` is set if the snapshot was committed before.
    """

    def __init__(self, storage: Storage, plan: SnapshotPlan, store_entries: dict[str, ObjectEntry]):
        self.storage, self.plan = storage, plan
        self.root: str | None = None
        self._encoding = encoding(plan.encoding.name, plan.classes, plan.encoding.parameters)
        self.grid = plan.grid
        self._store_entries = store_entries
        self._folder = snapshot_folder(plan.name)
        self._zarr = WriterStore(storage)
        self._arrays: dict[str, Any] = {}
        self._marks: dict[Span, ShardMark] = {}

    def start(self) -> bool:
        """Write the plan and the arrays' metadata, and find out which shards are finished.

        False if another build has committed the snapshot meanwhile; nothing of it is touched.
        """
        if not self.storage.create(plan_key(self.plan.name), self.plan.to_bytes()):
            self._check_plan()
            if self.root is not None:
                return False
        elif self.storage.size(commit_key(self.plan.name)) is not None:
            # Who commits removes the plan afterwards, so that ours could be created.
            self._remove_plan()
            return False
        in_shard = self.grid.shard_rows
        rows = (in_shard, chunk_rows(in_shard, self._encoding.widest))
        layout = stored_layout(self._encoding, digests=self.plan.row_digests)
        for name, (dtype, width) in layout.items():
            shape = (self.plan.views, self.plan.samples, width)
            self._arrays[name] = create_array(
                self._zarr, f"{self._folder}/{name}", dtype, shape, rows
            )
        marks = {shard: self._read_mark(shard) for shard in self.grid.shards()}
        self._marks = {shard: mark for shard, mark in marks.items() if mark is not None}
        return True

    def missing(self) -> list[Span]:
        """Return the shards that are still to be written, in order."""
        shards = [] if self.root else self.grid.shards()
        return [shard for shard in shards if shard not in self._marks]

    def write(self, shard: Span, logits: Logits, labels: NDArray[np.int32]) -> None:
        """Encode and write one shard: float32 (rows, C), with its labels (rows,).

        NonFinite names the samples whose logits are not finite or too large; nothing is written
        then.  Nothing is written either once an equal build beside this one has committed the
        snapshot.
        """
        broken = unusable(logits)
        if len(broken):
            raise NonFinite(
                f"{self.plan.name}: the logits of {len(broken)} samples are NaN, infinite or too "
                f"large: samples {_listed(broken + shard.start)} (view {shard.view}); {LIMITS}: "
                "check the checkpoint, --normalize and --precision"
            )
        self._check_plan()
        if self.root is not None:
            return
        arrays = self._encoding.encode(logits, labels)
        if self.plan.row_digests:
            arrays = {**arrays, ROW_DIGESTS: digests_of(Rows(self._encoding, arrays))}
        objects: dict[str, ObjectEntry] = {}
        for name, array in self._arrays.items():
            array[shard.view, shard.samples] = arrays[name]
            key = f"{self._folder}/{name}/{self.grid.key(shard)}"
            objects[key] = self._zarr.entries[key]
        kl, agrees = compare(logits, self._encoding.decode(arrays), self.plan.temperatures)
        known = labels >= 0
        mark = ShardMark(
            view=shard.view,
            start=shard.start,
            stop=shard.stop,
            objects=objects,
            kl_sum=tuple(kl.sum(axis=0).tolist()),
            kl_max=tuple(kl.max(axis=0).tolist()),
            agreeing=int(agrees.sum()),
            labelled=int(known.sum()),
            correct=int((logits.argmax(axis=1) == labels)[known].sum()),
        )
        self.storage.put(self._mark_key(shard), mark.to_bytes())
        self._marks[shard] = mark

    def commit(self) -> str:
        """Make the snapshot visible and return its root; doing it again changes nothing."""
        if self.root is None:
            missing = self.missing()
            if missing:
                raise InputError(f"{self.plan.name}: {len(missing)} shards are not written yet")
            self.root = self._commit()
        self._remove_plan()
        return self.root

    def _remove_plan(self) -> None:
        """Delete the plan and the marks; the snapshot is committed."""
        for key in list(self.storage.keys(f"{build_folder(self.plan.name)}/")):
            self.storage.delete(key)
        self.storage.sweep(emptied=".build/")

    def _commit(self) -> str:
        marks = [self._marks[shard] for shard in self.grid.shards()]
        fidelity, top1 = summarise(marks, self.plan.temperatures)
        meta = SnapshotMeta(**self.plan.model_dump(), fidelity=fidelity, top1=top1)
        document = group_document({ATTRIBUTE: meta.model_dump(mode="json")})
        objects = dict(self._store_entries)
        objects[f"{self._folder}/zarr.json"] = ObjectEntry.of(document)
        for name in self._arrays:
            key = f"{self._folder}/{name}/zarr.json"
            objects[key] = self._zarr.entries[key]
        for mark in marks:
            objects.update(mark.objects)
        commit = Commit.seal(self.plan.name, objects).to_bytes()
        self._refuse_other(commit)
        self.storage.put(f"{self._folder}/zarr.json", document)
        self._check_objects(objects)
        if not self.storage.create(commit_key(self.plan.name), commit):
            self._refuse_other(commit)
        return root_of(commit)

    def _refuse_other(self, commit: bytes) -> None:
        """Raise MismatchError with both roots if another build has committed other bytes."""
        existing = get_or_none(self.storage, commit_key(self.plan.name))
        if existing is not None and existing != commit:
            raise MismatchError(
                f"{self.storage.url}: snapshot {self.plan.name!r} was committed by another build "
                f"meanwhile: its root is {root_of(existing)}, this one's {root_of(commit)}; use "
                "another --snapshot name"
            )

    def _check_objects(self, objects: dict[str, ObjectEntry]) -> None:
        """Read everything once more: a commit must never promise what is not there.

        Another build may have written here, and a disk may have lost what an earlier run wrote.
        """
        spoilt = {key for key, entry in objects.items() if not self._is_whole(key, entry)}
        if not spoilt:
            return
        for shard, mark in self._marks.items():
            if spoilt & mark.objects.keys():
                self.storage.delete(self._mark_key(shard))
        raise Unfinished(
            f"{self.storage.url}: {len(spoilt)} objects changed after they were written "
            f"({min(spoilt)}, …): nothing is committed; run the same command again to redo them"
        )

    def _is_whole(self, key: str, entry: ObjectEntry) -> bool:
        data = get_or_none(self.storage, key)
        return data is not None and ObjectEntry.of(data) == entry

    def _check_plan(self) -> None:
        """Notice a build beside this one: an equal one that is finished, or another one."""
        plan = get_or_none(self.storage, plan_key(self.plan.name))
        if plan == self.plan.to_bytes():
            return
        commit = get_or_none(self.storage, commit_key(self.plan.name))
        if plan is None and commit is not None:
            self.root = root_of(commit)
            return
        raise MismatchError(
            f"{self.storage.url}: another build of {self.plan.name!r} has taken this one's place "
            "(begun with --fresh, or at the same moment): wait for it, or use another --snapshot"
        )

    def _mark_key(self, shard: Span) -> str:
        return mark_key(self.plan.name, shard.view, self.grid.number(shard))

    def _read_mark(self, shard: Span) -> ShardMark | None:
        key = self._mark_key(shard)
        try:
            mark = ShardMark.parse(key, self.storage.get(key))
        except (NotFound, Damaged):
            return None
        expected = {f"{self._folder}/{name}/{self.grid.key(shard)}" for name in self._arrays}
        if (mark.view, mark.start, mark.stop) != shard or mark.objects.keys() != expected:
            return None
        sizes_agree = all(self.storage.size(k) == entry.length for k, entry in mark.objects.items())
        return mark if sizes_agree else None


def _listed(numbers: NDArray[Any], most: int = 5) -> str:
    text = ", ".join(str(number) for number in numbers[:most])
    return text + (f", … ({len(numbers)} in all)" if len(numbers) > most else "")
