"""Every error that can reach a route has an answer that says what the client can do about it."""

from __future__ import annotations

import pytest

from logitstore import errors
from logitstore.api.guard.problems import Refusal
from logitstore.format.wire import PROBLEM

ANSWERS = {
    errors.InputError: (422, "bad-request"),
    errors.MismatchError: (412, "another-build"),
    errors.NoCache: (503, "busy"),
    errors.CacheInUse: (503, "busy"),
    errors.CacheFull: (503, "busy"),
    errors.UnknownName: (404, "unknown-name"),
    errors.NotFound: (404, "unknown-name"),
    errors.Denied: (503, "unreadable"),
    errors.MissingExtra: (500, "internal"),
    errors.Unreachable: (503, "unreadable"),
    errors.PatienceExhausted: (503, "unreadable"),
    errors.Damaged: (503, "damaged"),
    errors.NonFinite: (503, "damaged"),
    errors.Unfinished: (503, "unreadable"),
    OSError: (503, "unreadable"),
    MemoryError: (503, "busy"),
    KeyError: (500, "internal"),
}


def all_below(kind: type) -> set[type]:
    return {kind}.union(*map(all_below, kind.__subclasses__())) - {errors.LogitstoreError}


def test_every_error_of_the_project_is_decided_here() -> None:
    ours = {one for one in all_below(errors.LogitstoreError) if one.__module__ == errors.__name__}
    assert ours <= set(ANSWERS)


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_error_has_its_answer(kind: type[Exception]) -> None:
    refusal = Refusal.of(kind("/a/path of the server"))
    status, name = ANSWERS[kind]
    assert (refusal.status, refusal.kind) == (status, PROBLEM + name)
    if name in ("unreadable", "busy", "internal"):
        assert "/a/path" not in refusal.detail, "such an error speaks of this machine"
    assert ("retry-after" in refusal.headers) == (name in ("unreadable", "busy"))
