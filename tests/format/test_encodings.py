"""Every encoding against the bound that it states, with logits made to break it."""

import pickle
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numcodecs import zstd

from logitstore.errors import Damaged, InputError, UnknownName
from logitstore.format.encodings.base import Encoding, unusable
from logitstore.format.encodings.rows import Rows
from logitstore.format.encodings.table import ENCODINGS, encoding, parse_encoding, spelled
from logitstore.format.encodings.topk import TopK
from logitstore.format.fidelity import compare, kl_divergence

SPELLINGS = ["float32", "float16", "uint8", "uint8:160", "uint8:16", "uint8:2"]
SPELLINGS += ["topk:1", "topk:3", "topk:11"]
MOST_CLASSES = 14


def least_classes(spelling: str) -> int:
    name, _, value = spelling.partition(":")
    return int(value) + 1 if name == "topk" else 1


@st.composite
def rows_for(draw: st.DrawFn, spelling: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 (N, C) up to 1e6 and labels (N,), some unknown.

    Any values; or neighbours in float32, whose distance a rounding swallows; or values far apart.
    """
    classes = draw(st.integers(least_classes(spelling), MOST_CLASSES))
    shape = (draw(st.integers(1, 5)), classes)
    finite = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
    kind = draw(st.sampled_from(["any", "neighbours", "outliers"]))
    if kind == "any":
        logits = draw(hnp.arrays(np.float32, shape, elements=finite))
    elif kind == "neighbours":
        start = np.float32(draw(finite))
        spacings = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 6)))
        logits = (start + spacings * np.abs(np.spacing(start)).astype(np.float64)).astype(
            np.float32
        )
    else:
        steps = st.sampled_from([0.0, -1e-6, 0.25, 1.0, 7.0, -1e4, -1e6])
        logits = draw(hnp.arrays(np.float32, shape, elements=steps))
    labels = draw(hnp.arrays(np.int32, shape[0], elements=st.integers(-1, classes - 1)))
    return logits, labels


def unknown(logits: np.ndarray) -> np.ndarray:
    """No labels."""
    return np.full(len(logits), -1, np.int32)


def encoded(
    spelling: str, logits: np.ndarray, labels: np.ndarray | None = None
) -> tuple[Encoding, Rows]:
    entry = parse_encoding(spelling, logits.shape[1])
    return entry, Rows(entry, entry.encode(logits, unknown(logits) if labels is None else labels))


def decoded(spelling: str, logits: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    return encoded(spelling, logits, labels)[1].logits()


def realistic(samples: int = 2000, classes: int = 100) -> np.ndarray:
    """One to three high classes over a bulk, as an image classifier gives them."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(samples, classes)) * 2
    rows = np.arange(samples)
    for mean in (9.0, 5.0, 3.0):
        logits[rows, rng.integers(0, classes, samples)] += rng.normal(mean, 2, samples)
    return logits.astype(np.float32)


def test_every_encoding_is_tested_here() -> None:
    assert {spelling.partition(":")[0] for spelling in SPELLINGS} == {*ENCODINGS}


@pytest.mark.parametrize("spelling", SPELLINGS)
@given(data=st.data())
def test_every_encoding_stays_within_its_own_bound(spelling: str, data: st.DataObject) -> None:
    logits, labels = data.draw(rows_for(spelling))
    entry, rows = encoded(spelling, logits, labels)
    again = rows.logits()
    assert again.dtype == np.float32
    assert np.isfinite(again).all()
    error = np.abs(again.astype(np.float64) - logits).max(axis=1)
    assert (error <= entry.bound(logits)).all()


@pytest.mark.parametrize(
    ("spelling", "most"),
    [("float16", 0.0007), ("uint8", 0.0063), ("uint8:160", 0.0089), ("uint8:16", 0.083)],
)
def test_bounds_of_dense_encodings_are_small_against_the_range(spelling: str, most: float) -> None:
    logits = realistic()
    entry = parse_encoding(spelling, logits.shape[1])
    assert (entry.bound(logits) <= most * np.ptp(logits, axis=1)).all()


@pytest.mark.parametrize("spelling", SPELLINGS)
@given(data=st.data())
def test_no_encoding_changes_the_argmax(spelling: str, data: st.DataObject) -> None:
    logits, labels = data.draw(rows_for(spelling))
    assert (decoded(spelling, logits, labels).argmax(1) == logits.argmax(1)).all()


def test_topk_never_changes_the_argmax() -> None:
    equal = np.ones((1, 9), np.float32)
    almost = np.array([[1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.9999999]], np.float32)
    for logits in (equal, almost, equal * 1e6, almost - 3):
        for label in (-1, 0, 8):
            labels = np.array([label], np.int32)
            assert decoded("topk:1", logits, labels).argmax() == logits.argmax()


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(
    ("top", "spread"),
    [
        (0.001, 25),
        (1.0, 25),
        (20.0, 25),
        (999_999.0, 25),
        (-999_999.0, 25),
        (-0.9999, 25),  # its maximum is rounded to -1, below which float32 is coarser
        (1_000_000.0, 1984),  # a code of 1 stands for less than half of float32's spacing
    ],
)
def test_a_close_second_does_not_become_first(spelling: str, top: float, spread: float) -> None:
    logits = np.full((1, MOST_CLASSES), top - spread, np.float32)
    logits[0, 5] = top
    logits[0, 2] = np.nextafter(np.float32(top), np.float32(-np.inf))
    again = decoded(spelling, logits)[0]
    assert again.argmax() == 5
    assert (np.delete(again, 5) < again[5]).all()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_largest_logits_that_are_taken_keep_finite_and_keep_their_argmax(spelling: str) -> None:
    most, least, classes = np.float32(2.0**38), np.float32(-(2.0**126)), MOST_CLASSES
    for top in (most, -most, np.float32(3)):
        for rest in (np.nextafter(top, np.float32(-np.inf)), np.float32(-1e30), least):
            logits = np.full((1, classes), rest)
            logits[0, 4] = top
            assert not len(unusable(logits))
            again = decoded(spelling, logits)
            assert np.isfinite(again).all()
            assert (np.delete(again[0], 4) < again[0, 4]).all()


def test_rows_that_are_not_finite_or_too_large_are_named() -> None:
    outside = [np.nan, np.inf, -np.inf, 2.0**38 * 1.001, np.finfo(np.float32).min]
    logits = np.zeros((2 * len(outside), 3), np.float32)
    logits[1::2, 1] = outside
    assert unusable(logits).tolist() == [1, 3, 5, 7, 9]
    assert unusable(np.full((1, 3), -(2.0**38) * 1.001, np.float32)).tolist() == [0]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_layout_tells_what_encode_makes(spelling: str) -> None:
    entry, rows = encoded(spelling, np.zeros((3, MOST_CLASSES), np.float32))
    assert {key: (a.dtype.str, a.shape) for key, a in rows.arrays.items()} == {
        key: (np.dtype(kind).str, (3, width)) for key, (kind, width) in entry.layout.items()
    }
    assert entry.bytes_per_row * 3 == sum(array.nbytes for array in rows.arrays.values())


@pytest.mark.parametrize("spelling", SPELLINGS)
@given(data=st.data())
def test_a_tensor_is_decoded_to_the_same_bits_as_an_array(
    spelling: str, data: st.DataObject
) -> None:
    _, rows = encoded(spelling, *data.draw(rows_for(spelling)))
    assert rows.tensor().dtype == torch.float32
    assert rows.tensor().numpy().tobytes() == rows.logits().tobytes()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_row_is_encoded_alike_alone_and_among_others(spelling: str) -> None:
    logits = realistic(700, 300)
    labels = np.arange(700, dtype=np.int32) % 300
    entry, rows = encoded(spelling, logits, labels)
    for name, array in rows.arrays.items():
        alone = entry.encode(logits[650:651], labels[650:651])[name]
        assert array[650:651].tobytes() == alone.tobytes()
    assert (rows.logits()[650:] == decoded(spelling, logits[650:], labels[650:])).all()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_encoding_is_the_same_after_pickling_and_spelling(spelling: str) -> None:
    entry = parse_encoding(spelling, MOST_CLASSES)
    assert pickle.loads(pickle.dumps(entry)) == entry
    assert parse_encoding(spelled(entry), MOST_CLASSES) == entry
    assert encoding(entry.name, MOST_CLASSES, entry.parameters) == entry


def test_uint8_codes_are_square_roots_of_distances() -> None:
    logits = np.array([[20.0, 19.0, 16.0, 11.0, 4.0, 4.0]], np.float32)  # 0 1 4 9 16 16 below
    rows = encoded("uint8:5", logits)[1]
    assert rows.arrays["codes"].tolist() == [[0, 1, 2, 3, 4, 4]]
    assert rows.arrays["scalars"].tolist() == [[20.0, 16.0]]
    assert (rows.logits() == logits).all()
    between = np.array([[20.0, 19.9, 15.0, 4.0]], np.float32)  # 5**0.5 is nearest to 2
    assert decoded("uint8:5", between).tolist() == [[20.0, 19.0, 16.0, 4.0]]


def test_uint8_takes_a_range_rounded_up_to_five_bits() -> None:
    logits = np.array([[0.0, -34.0, -33.0 * 0.25], [0.0, -33.0, -1.0]], np.float32)
    scalars = encoded("uint8", logits)[1].arrays["scalars"]
    assert scalars.tolist() == [[0.0, 34.0], [0.0, 34.0]]


def test_scalars_cost_half_of_what_the_exact_ones_would() -> None:
    logits = realistic()
    exact = np.stack([logits.max(axis=1), np.ptp(logits, axis=1)], axis=1)
    whole = len(zstd.compress(exact.tobytes(), 3))
    for spelling, share in (("uint8", 0.55), ("float16", 0.7)):
        rounded = encoded(spelling, logits)[1].arrays["scalars"]
        assert len(zstd.compress(rounded.tobytes(), 3)) < share * whole


@pytest.mark.parametrize("spelling", ["float16", "uint8"])
def test_rounding_the_maximum_shifts_a_row_and_changes_no_distance(spelling: str) -> None:
    logits = realistic(50)
    moved = logits + np.float32(1 / 1024)  # exact, and below the grid of the maxima
    first, second = (encoded(spelling, each)[1].arrays["codes"] for each in (logits, moved))
    assert ((first != second).mean(axis=1) < 0.02).all()
    assert (np.abs(decoded(spelling, logits).max(1) - logits.max(1)) < 0.05).all()


def test_topk_holds_the_largest_the_label_and_the_mass_of_all_others() -> None:
    logits = np.log(np.array([[1, 8, 2, 4, 3, 6], [1, 8, 2, 4, 3, 6]], np.float32))
    rows = encoded("topk:2", logits, np.array([0, 5], np.int32))[1]
    assert rows.arrays["indices"].tolist() == [[1, 5, 0], [1, 5, 3]]
    expected = [[0, np.log(6 / 8), np.log(1 / 8)], [0, np.log(6 / 8), np.log(4 / 8)]]
    assert rows.arrays["codes"] == pytest.approx(np.array(expected), rel=2**-11)
    tail = rows.arrays["scalars"][:, 1]
    assert tail == pytest.approx(np.log([(2 + 4 + 3) / 8, (1 + 2 + 3) / 8]), rel=1e-6)
    again = np.exp(rows.logits() - rows.logits().max(axis=1, keepdims=True)) * 8
    assert again[0] == pytest.approx([1, 8, 3, 3, 3, 6], rel=1e-3)
    assert again[1] == pytest.approx([2, 8, 2, 4, 2, 6], rel=1e-3)


def test_topk_takes_the_lower_of_equal_classes_first() -> None:
    logits = np.array([[-0.0, 5.0, 0.0, 5.0, 0.0, -1.0]], np.float32)
    assert encoded("topk:3", logits)[1].arrays["indices"].tolist() == [[1, 3, 0, 2]]


@given(data=st.data())
def test_topk_keeps_the_label_whatever_it_is(data: st.DataObject) -> None:
    logits, labels = data.draw(rows_for("topk:3"))
    rows = encoded("topk:3", logits, labels)[1]
    known = labels >= 0
    assert (rows.arrays["indices"] == labels[:, None]).any(axis=1)[known].all()
    assert (np.sort(rows.arrays["indices"], axis=1)[:, 1:] > 0).all()
    for indices in rows.arrays["indices"]:
        assert all(one < other for one, other in pairwise(sorted(indices)))
    of_label = np.take_along_axis(rows.logits(), labels[:, None].astype(np.int64), axis=1)[:, 0]
    exact = np.take_along_axis(logits, labels[:, None].astype(np.int64), axis=1)[:, 0]
    spread = np.maximum(np.ptp(logits, axis=1), 1e-6)
    within = (np.abs(exact) + 1) * 1e-6 + spread * 2.0**-10 + np.maximum(spread - 65504, 0)
    assert (np.abs(of_label - exact) <= within)[known].all()


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_the_mass_of_topk_s_tail_is_exact_at_temperature_one(scale: float) -> None:
    logits = realistic() * np.float32(scale)
    rows = encoded("topk:10", logits)[1]
    outside = np.ones(logits.shape, bool)
    np.put_along_axis(outside, rows.arrays["indices"].astype(np.int64), False, axis=1)
    top = rows.arrays["scalars"][:, :1].astype(np.float64)
    stored = (np.exp(rows.logits() - top) * outside).sum(axis=1)
    exact = (np.exp(logits - logits.max(axis=1, keepdims=True).astype(np.float64)) * outside).sum(1)
    assert stored == pytest.approx(exact, rel=1e-5 * scale)


def test_topk_that_keeps_all_classes_has_no_tail_and_needs_no_labels() -> None:
    logits = realistic(20, 8)
    entry, rows = encoded("topk:7", logits)
    assert np.isfinite(rows.arrays["scalars"]).all()
    assert (np.abs(rows.logits() - logits).max(axis=1) <= entry.bound(logits)).all()
    assert (entry.bound(logits) < 0.1).all()


def test_topk_numbers_many_classes_in_four_bytes() -> None:
    logits = np.zeros((2, 70_000), np.float32)
    logits[[0, 1], [69_999, 65_536]] = 5
    rows = encoded("topk:2", logits)[1]
    assert rows.arrays["indices"].dtype == np.uint32
    assert rows.logits().argmax(axis=1).tolist() == [69_999, 65_536]
    assert (rows.tensor().numpy() == rows.logits()).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TopK(classes=10, k=10), "k must be 1 to 9"),
        (lambda: TopK(classes=10, k=0), "at least one class, not 0"),
        (lambda: parse_encoding("uint8:1", 10), "2 to 256 levels, not 1"),
        (lambda: parse_encoding("uint8:257", 10), "2 to 256 levels, not 257"),
        (lambda: parse_encoding("topk", 10), "topk needs its K: write topk:K, like topk:10"),
        (lambda: encoding("topk", 10, {}), "topk needs its K"),
        (lambda: parse_encoding("topk:ten", 10), "a whole number follows the colon"),
        (lambda: parse_encoding("float16:3", 10), "takes no parameter"),
        (lambda: encoding("uint8", 10, {"level": 3}), "did you mean 'levels'"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(make: Callable[[], Encoding], says: str) -> None:
    with pytest.raises((InputError, UnknownName), match=says):
        make()


def test_an_unknown_encoding_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match="did you mean 'float16'"):
        encoding("flaot16", 10)


def test_kl_divergence_is_that_of_the_textbook() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.25, 0.5]])
    expected = 0.5 * np.log(2) - 0.25 * np.log(2)
    assert kl_divergence(np.log(p), np.log(q), temperature=1.0) == pytest.approx([expected])
    squared = p**2 / (p**2).sum()  # temperature 1/2 squares probabilities
    other = q**2 / (q**2).sum()
    half = (squared * np.log(squared / other)).sum()
    assert kl_divergence(np.log(p), np.log(q), temperature=0.5) == pytest.approx([half])


def precise_kl(teacher: np.ndarray, copy: np.ndarray, temperature: float) -> np.ndarray:
    """The textbook's sum, in extended precision."""
    t, q = (logits.astype(np.longdouble) / temperature for logits in (teacher, copy))
    t, q = (each - each.max(axis=1, keepdims=True) for each in (t, q))
    t, q = (each - np.log(np.exp(each).sum(axis=1, keepdims=True)) for each in (t, q))
    return (np.exp(t) * (t - q)).sum(axis=1).astype(np.float64)


@pytest.mark.parametrize("spelling", ["float16", "uint8", "uint8:64", "uint8:4", "topk:10"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_compare_is_right_to_one_percent_from_tiny_to_large(spelling: str, scale: float) -> None:
    logits = realistic(300) * np.float32(scale)
    again = decoded(spelling, logits)
    kl, agrees = compare(logits, again, (1.0, 4.0, 20.0))
    assert agrees.all()
    for column, temperature in enumerate((1.0, 4.0, 20.0)):
        exact = precise_kl(logits, again, temperature)
        assert kl[:, column] == pytest.approx(exact, rel=0.01, abs=1e-10)


def test_compare_survives_errors_of_any_size() -> None:
    teacher = np.array([[0, 1, -1e6], [0, 1, 2], [5, 5, 5], [0, 0, 1e6]], np.float32)
    copy = np.array([[0, 1, -60], [2, 1, 0], [6, 6, 6], [0, 0, 1e6]], np.float32)
    kl, agrees = compare(teacher, copy, (1.0, 4.0))
    assert agrees.tolist() == [True, False, True, True]
    assert (kl[2:] == 0).all()
    for column, temperature in enumerate((1.0, 4.0)):
        exact = precise_kl(teacher, copy, temperature)
        assert kl[:, column] == pytest.approx(exact, rel=0.01, abs=1e-10)


def test_compare_measures_a_row_alike_wherever_it_lies() -> None:
    rng = np.random.default_rng(1)
    teacher = rng.normal(size=(9, 20_000)).astype(np.float32) * 4
    again = teacher + rng.normal(size=teacher.shape).astype(np.float32) * 0.01
    together = compare(teacher, again, (1.0, 4.0))[0]
    alone = [compare(teacher[i : i + 1], again[i : i + 1], (1.0, 4.0))[0] for i in range(9)]
    assert (together == np.concatenate(alone)).all()


@pytest.mark.parametrize(
    ("spelling", "at_one", "at_four"),
    [
        ("float16", 2e-7, 4e-7),
        ("uint8", 6e-5, 6e-5),
        ("uint8:160", 2e-4, 2e-4),
        ("topk:10", 0.1, np.inf),
    ],
)
def test_realistic_logits_lose_as_little_as_stated(
    spelling: str, at_one: float, at_four: float
) -> None:
    logits = realistic()
    kl, agrees = compare(logits, decoded(spelling, logits), (1.0, 4.0))
    assert agrees.all()
    assert kl[:, 0].mean() < at_one
    assert kl[:, 1].mean() < at_four


def test_a_class_that_there_is_not_is_damage_and_never_a_crash() -> None:
    logits = np.arange(10, dtype=np.float32)[None]
    entry = encoding("topk", 10, {"k": 3})
    rows = Rows(entry, entry.encode(logits, np.zeros(1, np.int32)))
    rows.arrays["indices"][0, 2] = 10
    for decode in (rows.logits, rows.tensor):
        with pytest.raises(Damaged, match="class 10 in rows of 10 classes"):
            decode()
