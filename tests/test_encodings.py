"""Every encoding against the bound that it states, with logits made to break it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from logitstore.encodings import ENCODINGS, Rows, encoding
from logitstore.errors import UnknownName
from logitstore.fidelity import compare, kl_divergence

finite = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
some_logits = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 12)), elements=finite
)


@pytest.mark.parametrize("name", ENCODINGS)
@given(logits=some_logits)
def test_every_encoding_stays_within_its_own_bound(name: str, logits: np.ndarray) -> None:
    entry = encoding(name)
    decoded = entry.decode(entry.encode(logits))
    assert decoded.dtype == np.float32
    error = np.abs(decoded.astype(np.float64) - logits).max(axis=1)
    assert (error <= entry.bound(logits)).all()


@pytest.mark.parametrize("name", ENCODINGS)
@given(logits=some_logits)
def test_no_encoding_changes_the_argmax(name: str, logits: np.ndarray) -> None:
    entry = encoding(name)
    assert (entry.decode(entry.encode(logits)).argmax(1) == logits.argmax(1)).all()


@pytest.mark.parametrize("name", ENCODINGS)
def test_layout_tells_what_encode_makes(name: str) -> None:
    entry = encoding(name)
    arrays = entry.encode(np.zeros((3, 7), np.float32))
    layout = entry.layout(7)
    assert {key: (a.dtype.str, a.shape) for key, a in arrays.items()} == {
        key: (np.dtype(kind).str, (3, width)) for key, (kind, width) in layout.items()
    }
    assert entry.bytes_per_row(7) * 3 == sum(array.nbytes for array in arrays.values())


@pytest.mark.parametrize("name", ENCODINGS)
@given(logits=some_logits)
def test_a_tensor_is_decoded_to_the_same_bits_as_an_array(name: str, logits: np.ndarray) -> None:
    rows = Rows(encoding(name), encoding(name).encode(logits))
    assert (rows.tensor().numpy() == rows.logits()).all()
    assert rows.tensor().dtype == torch.float32


def test_a_close_second_does_not_become_first_in_float16() -> None:
    top = np.float32(0.001)
    logits = np.array([[np.nextafter(top, np.float32(0)), top, -5.0]], np.float32)
    entry = encoding("float16")
    assert entry.decode(entry.encode(logits)).argmax() == 1


def test_kl_divergence_is_that_of_the_textbook() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.25, 0.5]])
    expected = 0.5 * np.log(2) - 0.25 * np.log(2)
    assert kl_divergence(np.log(p), np.log(q), temperature=1.0) == pytest.approx([expected])
    squared = p**2 / (p**2).sum()  # temperature 1/2 squares probabilities
    other = q**2 / (q**2).sum()
    half = (squared * np.log(squared / other)).sum()
    assert kl_divergence(np.log(p), np.log(q), temperature=0.5) == pytest.approx([half])


def test_float16_loses_almost_nothing_of_realistic_logits() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2000, 100)).astype(np.float32) * 4
    entry = encoding("float16")
    kl, agrees = compare(logits, entry.decode(entry.encode(logits)))
    assert kl.max() < 1e-6
    assert agrees.all()


def test_an_unknown_encoding_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match="did you mean 'float16'"):
        encoding("flaot16")
