"""Choosing an encoding by what it loses, on rows that can be checked by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from logitstore.cli import app
from logitstore.derive.files import import_logits
from logitstore.errors import InputError, MismatchError, UnknownName
from logitstore.format.choice import (
    EncodingRequest,
    candidates,
    choose_encoding,
    default_encoding,
    measure,
)
from logitstore.format.encodings.dense import Uint8
from logitstore.format.encodings.table import encoding, parse_encoding, spelled
from logitstore.format.fidelity import kl_divergence
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.prepare import prepare
from logitstore.precompute.building.run import build, write
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.networks.factory import build_model
from logitstore.reading.continued import Continued
from logitstore.reading.opening import chosen_views, open_store


def some(rows: int = 600, classes: int = 100, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits with a few classes far above the rest, and labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, classes)).astype(np.float32) * 2
    labels = rng.integers(0, classes, rows).astype(np.int32)
    logits[np.arange(rows), labels] += 9
    return logits, labels


def test_what_nobody_names_follows_from_the_number_of_classes() -> None:
    named = {classes: default_encoding(classes).name for classes in (2, 32, 33, 4096, 4097)}
    assert named == {2: "float16", 32: "float16", 33: "uint8", 4096: "uint8", 4097: "float16"}


def test_auto_takes_the_smallest_candidate_within_the_bound() -> None:
    logits, labels = some()
    for bound in (0.0, 1e-8, 1e-5, 1e-4, 1e-3, 1e-2):
        request = EncodingRequest(text="auto", max_kl=bound, at_temperature=4)
        chosen = choose_encoding(request, [logits], labels, "x")
        taken = measure(chosen, [logits], labels, (4.0,))
        assert taken.kl[4.0] <= 0.97 * bound
        for other in candidates(100):
            rival = measure(other, [logits], labels, (4.0,))
            assert rival.kl[4.0] > 0.97 * bound or rival.bytes_per_row >= taken.bytes_per_row
    assert chosen.name != "float32"


def test_measured_loss_is_the_textbook_s_mean_and_the_worst_of_several_teachers() -> None:
    (first, labels), (second, _) = some(), some(seed=1)
    entry = parse_encoding("uint8:64", 100)

    def mean(logits: np.ndarray, temperature: float) -> float:
        decoded = entry.decode(entry.encode(logits, labels))
        return float(kl_divergence(logits, decoded, temperature=temperature).mean())

    found = measure(entry, [first, second * 3], labels, (1.0, 4.0))
    for temperature in (1.0, 4.0):
        worst = max(mean(first, temperature), mean(second * 3, temperature))
        assert found.kl[temperature] == pytest.approx(worst, rel=0.02)


def test_a_named_encoding_beyond_its_bound_is_refused_with_figures_and_the_way_out() -> None:
    logits, labels = some()
    request = EncodingRequest(text="uint8:16", max_kl=1e-5)
    with pytest.raises(
        InputError, match=r"uint8:16 \(.* bytes per row, .* nats at T=4\)"
    ) as caught:
        choose_encoding(request, [logits], labels, "resnet56")
    text = str(caught.value)
    assert "600 rows of resnet56" in text
    suggested = text.rpartition("use --encoding ")[2].partition(",")[0]
    again = EncodingRequest(text=suggested, max_kl=1e-5)
    assert spelled(choose_encoding(again, [logits], labels, "x")) == suggested


def test_topk_is_taken_at_t_1_and_refused_above_unless_the_bound_holds() -> None:
    logits, labels = some()
    plain = choose_encoding(EncodingRequest(text="topk:12"), [logits], labels, "x")
    assert spelled(plain) == "topk:12"
    request = EncodingRequest(text="topk:12", at_temperature=4)
    with pytest.raises(InputError, match=r"topk:12 .* loses more than the 0.0001 nats at T=4"):
        choose_encoding(request, [logits], labels, "x")
    held = EncodingRequest(text="topk:90", max_kl=0.5, at_temperature=4)
    assert spelled(choose_encoding(held, [logits], labels, "x")) == "topk:90"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text": "uint9"}, "did you mean 'uint8'"),
        ({"text": "uint8:0"}, "2 to 256 levels"),
        ({"text": "uint8:1e2"}, "whole number"),
        ({"text": "topk:0"}, "keeps at least one class, not 0"),
        ({"text": "float16:3"}, "takes no parameter"),
        ({"text": "auto", "max_kl": -1.0}, "max-kl must be"),
        ({"text": "auto", "max_kl": float("nan")}, "max-kl must be"),
        ({"text": "auto", "at_temperature": 0.0}, "at-temperature must be"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_at_once(
    fields: dict[str, object], said: str
) -> None:
    with pytest.raises((InputError, UnknownName), match=said):
        EncodingRequest(**fields)


def test_an_asked_for_temperature_is_measured_on_every_row(tmp_path: Path) -> None:
    logits, labels = some()
    np.save(tmp_path / "l.npy", logits)
    np.save(tmp_path / "y.npy", labels)
    request = EncodingRequest(text="auto", max_kl=1e-3, at_temperature=2)
    out = tmp_path / "s.zarr"
    import_logits(
        str(tmp_path / "l.npy"), str(tmp_path / "y.npy"), str(out), "one", request=request
    )
    snapshot = open_store(out).snapshots["one"]
    decoded = snapshot.logits(np.arange(600))
    found = snapshot.meta.fidelity.divergence
    assert [each.temperature for each in found] == [1, 2, 4]
    for each in found:
        exact = kl_divergence(logits, decoded, temperature=each.temperature)
        assert each.mean == pytest.approx(exact.mean(), rel=0.01)
        assert each.max == pytest.approx(exact.max(), rel=0.01)
    assert found[1].mean <= 1e-3


def test_all_rows_beyond_the_bound_that_the_sample_met_are_a_failed_check(
    tmp_path: Path,
) -> None:
    """The sample is every second row here, and leaves nothing to lose."""
    logits, labels = some(2048)
    logits[::2] = np.where(np.arange(100) == labels[::2, None], 50, logits[::2])
    np.save(tmp_path / "l.npy", logits)
    np.save(tmp_path / "y.npy", labels)
    files = [str(tmp_path / "l.npy"), "--labels", str(tmp_path / "y.npy")]
    out = str(tmp_path / "s.zarr")
    request = ["--encoding", "uint8:32", "--max-kl", "1e-4", "--json"]
    done = CliRunner().invoke(app, ["import", *files, "--out", out, "--snapshot", "one", *request])
    assert done.exit_code == 1
    assert "all rows lose" in done.stderr
    assert json.loads(done.stdout)["snapshots"][0]["name"] == "one"
    assert CliRunner().invoke(app, ["verify", out]).exit_code == 0


def test_imported_and_transcoded_views_are_all_sampled(tmp_path: Path) -> None:
    """The second view is harder to keep than the first."""
    logits, labels = some()
    np.save(tmp_path / "l.npy", np.stack([logits * 0.3, logits * 3]))
    np.save(tmp_path / "y.npy", labels)
    files = ["import", str(tmp_path / "l.npy"), "--labels", str(tmp_path / "y.npy")]
    whole, request = str(tmp_path / "whole.zarr"), ["--encoding", "auto", "--max-kl", "1e-4"]
    for command in (
        [*files, "--snapshot", "one", "--out", str(tmp_path / "s.zarr"), *request],
        [*files, "--snapshot", "one", "--out", whole, "--encoding", "float32"],
        ["transcode", whole, "--out", str(tmp_path / "t.zarr"), *request],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    card = open_store(tmp_path / "t.zarr").snapshots["one"].meta.encoding
    assert f"bytes per row as uint8:{card.parameters['levels']}, mean KL " in done.stdout


def build_config(tmp_path: Path, **changes: object) -> BuildConfig:
    """Two teachers of 10 classes over 200 digits; the second is much surer than the first."""
    for name, factor in (("one", 1.0), ("two", 30.0)):
        torch.manual_seed(1)
        model = build_model("mlp?hidden=16", classes=10, shape=(1, 8, 8))
        state = {key: value * factor for key, value in model.state_dict().items()}
        torch.save(state, tmp_path / f"{name}.pth")
    values = {
        "teachers": [str(tmp_path / "one.pth"), str(tmp_path / "two.pth")],
        "arch": ["mlp?hidden=16"],
        "data": "digits?samples=0:200",
        "out": str(tmp_path / "s.zarr"),
        "device": "cpu",
        "encoding": "auto",
        **changes,
    }
    return BuildConfig(**values)


def test_a_build_chooses_one_encoding_that_does_for_all_its_teachers(tmp_path: Path) -> None:
    build(build_config(tmp_path))
    store = open_store(tmp_path / "s.zarr")
    cards = [snapshot.meta.encoding for snapshot in store.snapshots.values()]
    assert len(cards) == 2
    assert cards[0] == cards[1]
    losses = [s.meta.fidelity.divergence[1].mean for s in store.snapshots.values()]
    assert max(losses) <= 1e-4
    sizes = {}
    chosen = encoding(cards[0].name, 10, cards[0].parameters)
    fewer = Uint8(classes=10, levels=cards[0].parameters["levels"] - 8)
    for entry in [*candidates(10), chosen, fewer]:
        out = tmp_path / f"{spelled(entry)}.zarr"
        build(build_config(tmp_path, out=str(out), encoding=spelled(entry)))
        found = open_store(out).snapshots.values()
        if all(each.meta.fidelity.divergence[1].mean <= 0.97e-4 for each in found):
            sizes[spelled(entry)] = sum(each.stored_bytes() for each in found)
    assert sizes[spelled(chosen)] == min(sizes.values())
    assert spelled(fewer) not in sizes


def test_auto_keeps_the_encoding_of_the_views_that_it_goes_on_with(tmp_path: Path) -> None:
    """Alone, the views 2 and 3 would get another number of levels."""
    (tmp_path / "v.json").write_text('[{"name": "RandomErasing", "p": 1.0}]')
    views = {
        "view_spec": str(tmp_path / "v.json"),
        "views": 2,
        "data": "digits?samples=0:600",
        "max_kl": 3e-4,
    }
    build(build_config(tmp_path, **views))
    build(build_config(tmp_path, first_view=2, **views))
    build(build_config(tmp_path, first_view=2, out=str(tmp_path / "alone.zarr"), **views))
    store, alone = open_store(tmp_path / "s.zarr"), open_store(tmp_path / "alone.zarr")
    card = store.snapshots["two"].meta.encoding
    assert store.snapshots["two-view2"].meta.encoding == card
    assert alone.snapshots["two-view2"].meta.encoding != card
    assert chosen_views(store, "two+two-view2").meta.views == 4
    with pytest.raises(MismatchError, match="transcode both with one --encoding"):
        Continued([store.snapshots["two"], alone.snapshots["two-view2"]])
    with pytest.raises(InputError, match=r"1e-06 nats .* but only views in uint8:.* go on with"):
        build(build_config(tmp_path, first_view=4, **{**views, "max_kl": 1e-6}))


def test_the_same_auto_build_goes_on_where_it_stopped(tmp_path: Path) -> None:
    wanted = build_config(tmp_path, shard_rows=64)
    build(wanted)
    whole = {p: p.read_bytes() for p in (tmp_path / "s.zarr").rglob("*") if p.is_file()}
    (tmp_path / "s.zarr").rename(tmp_path / "kept.zarr")
    dataset = open_dataset(wanted.data)

    def until_150(sample: int) -> object:
        if sample == 150:
            raise KeyboardInterrupt
        return dataset.load(sample)

    interrupted = replace(prepare(wanted), dataset=replace(dataset, load=until_150))
    with pytest.raises(KeyboardInterrupt):
        write(interrupted)
    assert 0 < build(wanted)[0].rows_written < 200
    assert {p: p.read_bytes() for p in (tmp_path / "s.zarr").rglob("*") if p.is_file()} == whole


def test_masked_classes_that_spoil_the_default_encoding_are_noted(tmp_path: Path) -> None:
    logits, labels = some(64)
    logits[:, 0] = -1e6
    np.save(tmp_path / "l.npy", logits)
    np.save(tmp_path / "y.npy", labels)
    files = [str(tmp_path / "l.npy"), "--labels", str(tmp_path / "y.npy"), "--snapshot", "one"]
    done = CliRunner().invoke(app, ["import", *files, "--out", str(tmp_path / "s.zarr")])
    assert done.exit_code == 0
    assert "which is much (masked classes?)" in done.stderr
    quiet = ["--out", str(tmp_path / "t.zarr"), "--encoding", "auto"]
    assert "masked" not in CliRunner().invoke(app, ["import", *files, *quiet]).stderr
