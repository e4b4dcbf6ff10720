"""Choose the encoding of a build's snapshots by some of their rows: one for all teachers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from logitstore.errors import InputError
from logitstore.format.choice import (
    AUTO,
    SAMPLE_ROWS,
    EncodingRequest,
    Pair,
    choose_encoding,
    sample_pairs,
)
from logitstore.format.encodings.base import Logits
from logitstore.format.encodings.table import encoding_of, spelled
from logitstore.precompute.building.prepared import Prepared, split_rows
from logitstore.progress import Progress
from logitstore.writing.plan import encoded_as


def choose_encodings(prepared: Prepared, progress: Progress) -> Prepared:
    """Return the build with the encoding chosen; no teacher is run if no bound is set."""
    config = prepared.config
    request = _continuing(prepared)
    if request.bound is None:
        return prepared
    pairs = sample_pairs(len(prepared.dataset), config.views, SAMPLE_ROWS)
    logits = _sample_logits(prepared, pairs, progress)
    labels = prepared.dataset.labels[[sample for _, sample in pairs]]
    names = ", ".join(teacher.plan.name for teacher in prepared.teachers)
    try:
        entry = choose_encoding(request, logits, labels, names)
    except InputError as error:
        if request == config.request:
            raise
        raise InputError(
            f"{error}; but only views in {request.text}, like those before these, go on with them: "
            f"--encoding {request.text} without --max-kl takes it all the same"
        ) from None
    fields = encoded_as(entry, config.shard_rows, config.row_digests)
    teachers = [replace(t, plan=t.plan.model_copy(update=fields)) for t in prepared.teachers]
    return replace(prepared, teachers=tuple(teachers))


def _continuing(prepared: Prepared) -> EncodingRequest:
    """Turn ``auto`` into the encoding of the views before these: only equal encodings join."""
    request = prepared.config.request
    if request.text != AUTO:
        return request
    previous = [prepared.target.continued_by(teacher.plan) for teacher in prepared.teachers]
    texts = {
        spelled(encoding_of(meta.encoding, meta.classes)) for meta in previous if meta is not None
    }
    if len(texts) != 1:
        return request
    return replace(
        request, text=texts.pop(), max_kl=request.bound, at_temperature=request.temperature
    )


def _sample_logits(prepared: Prepared, pairs: list[Pair], progress: Progress) -> list[Logits]:
    """Return each teacher's logits float32 (n, C) of n rows."""
    logits: list[list[Logits]] = [[] for _ in prepared.teachers]
    batches = split_rows(pairs, prepared.config.batch_size)
    progress.start("sample for the encoding", len(pairs), "images")
    for batch, images in zip(batches, prepared.images(batches), strict=True):
        moved = images.to(prepared.device)
        for teacher, parts in zip(prepared.teachers, logits, strict=True):
            parts.append(prepared.try_forward(teacher, moved, batch))
        progress.advance(len(batch))
    return [np.concatenate(parts) for parts in logits]
