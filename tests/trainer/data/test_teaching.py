"""Who teaches when: the text of --snapshot, and the students that snapshots in turn have taught."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitstore.derive.transcode import transcode
from logitstore.errors import InputError, MismatchError, UnknownName
from logitstore.format.choice import EncodingRequest
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.run import build
from logitstore.precompute.networks.factory import build_model
from logitstore.reading.ensemble import Ensemble
from logitstore.reading.opening import NO_TOKEN, open_store
from logitstore.trainer import TrainConfig, evaluate, train
from logitstore.trainer.config.teacher_spec import Member, Stage, parse_teachers
from logitstore.trainer.data.batches import batches
from logitstore.trainer.data.bind import open_source
from logitstore.trainer.data.order import BatchOrder, views_seen
from logitstore.trainer.data.teaching import open_schedule
from logitstore.trainer.schedules import teacher_at
from tests.support.runs import Listener, run_logits

DATA, SAMPLES = "digits?train=true&samples=0:200", 200


@pytest.fixture(scope="module")
def store(bound_store: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three teachers in two views each."""
    path = tmp_path_factory.mktemp("teaching") / "s.zarr"
    for number, name in enumerate("abc"):
        bound_store(path, DATA, rows_of(number), name=name)
    return path


def rows_of(number: int) -> np.ndarray:
    drawn = np.random.default_rng(number).standard_normal((2, SAMPLES, 10)) * 3
    return drawn.astype(np.float32)


@pytest.fixture
def config(store: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data=DATA,
        student="mlp?hidden=8&dropout=0.2",
        store=str(store),
        snapshot="a",
        method="kd",
        epochs=5,
        batch_size=64,
        out=str(tmp_path / "run"),
        device="cpu",
    )


def named(*names: str) -> tuple[Member, ...]:
    return tuple(Member(names=(name,)) for name in names)


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("epoch-0030", [Stage(members=named("epoch-0030"))]),
        ("a+b", [Stage(members=(Member(names=("a", "b")),))]),
        (
            "mean(a, b*2)",
            [Stage(kind="arithmetic", members=(*named("a"), Member(names=("b",), weight=2.0)))],
        ),
        (
            "logits(o.zarr::a*0.5,http://[::1]:80/c@1::b+c)",
            [
                Stage(
                    kind="geometric",
                    members=(
                        Member(names=("a",), store="o.zarr", weight=0.5),
                        Member(names=("b", "c"), store="http://[::1]:80/c@1"),
                    ),
                )
            ],
        ),
        (
            "e5,o.zarr::e30@11 , mean(a,b)@31",
            [
                Stage(members=named("e5")),
                Stage(members=(Member(names=("e30",), store="o.zarr"),), first=10),
                Stage(members=named("a", "b"), kind="arithmetic", first=30),
            ],
        ),
        ("a,b@2,a@3", [Stage(members=named(n), first=i) for i, n in enumerate("aba")]),
    ],
)
def test_the_text_says_who_teaches_and_from_which_epoch_on(text: str, stages: list[Stage]) -> None:
    assert parse_teachers(text) == tuple(stages)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"''.*character 1: '' is no snapshot's name"),
        ("a,,b@3", r"character 3: each stage but the first says .* like NAME@11"),
        ("a,b", r"'b', character 3: each stage but the first says .* mean\(A,B\) or logits\(A,B\)"),
        ("a@1", r"character 1: the first stage begins with the run: leave its '@'"),
        ("a@5,b@9", r"'a@5', character 1: the first stage begins with the run"),
        (
            "a,b@9,c@9",
            r"'c@9', character 7: this stage begins in epoch 9, .* order of their epochs",
        ),
        (
            "a,b@9,c@4",
            r"'c@4', character 7: this stage begins in epoch 4, the one before it in epoch 9",
        ),
        ("a,b@1", r"begins in epoch 1, the one before it in epoch 1"),
        ("a,b@0", r"'0', character 5: an epoch follows the '@', a whole number that counts from 1"),
        ("a,b@x", r"'x', character 5: an epoch follows the '@'"),
        ("a,a@3", r"'a@3', character 3: the stage before it has the same teacher"),
        ("mean(a,a)", r"'a', character 8: named twice in one ensemble: give it a weight"),
        ("mean(a,b*0)", r"'b\*0', character 8: '0' is no weight: a number above 0"),
        ("mean(a*nan)", r"'nan' is no weight"),
        ("mean(a*b)", r"'b' is no weight"),
        ("a*2", r"a weight belongs inside mean\(…\) or logits\(…\)"),
        ("epoch-*", r"a pattern to `logitstore sweep`"),
        ("mean()", r"character 6: '' is no snapshot's name"),
        ("mean(a", r"character 5: close this parenthesis"),
        ("mean(a))", r"character 8: this parenthesis belongs to no other"),
        ("mean(logits(a,b),c)", r"character 12: this parenthesis .* holds no further ones"),
        ("max(a,b)", r"an ensemble is mean\(A,B\), of distributions, or logits\(A,B\), of logits"),
        ("mean(a)b", r"an ensemble is mean\(A,B\)"),
        ("mean(::a)", r"'::a', character 6: a store's path or URL stands before '::'"),
        ("a/b", r"'a/b' is no snapshot's name"),
        ("mean(a@3,b)", r"'a@3' is no snapshot's name"),
    ],
)
def test_a_text_that_says_nothing_is_refused_with_its_place_and_a_way_out(
    text: str, says: str, config: TrainConfig
) -> None:
    with pytest.raises(InputError, match=says) as refused:
        replace(config, snapshot=text)
    assert repr(text) in str(refused.value)


def test_a_turn_that_never_comes_is_refused_before_anything_is_opened(config: TrainConfig) -> None:
    assert replace(config, snapshot="a,b@5", store="nowhere").snapshot == "a,b@5"
    with pytest.raises(
        InputError, match=r"begins in epoch 6, the run ends after epoch 5: .*--epochs"
    ):
        replace(config, snapshot="a,b@6", store="nowhere")


def test_distributions_are_averaged_where_the_method_looks_at_them_or_not_at_all(
    config: TrainConfig,
) -> None:
    teachers = [
        open_source(replace(config, snapshot="mean(a,b)", **changes), None)[0].snapshot
        for changes in (
            {"temperature": 3.0},
            {"method": "ttm", "gamma": 0.5},
            {"method": "ce"},
        )
    ]
    assert [t.temperature for t in teachers if isinstance(t, Ensemble)] == [3.0, 2.0, 1.0]
    for changes in ({"method": "nkd", "temperature": 2.0}, {"standardize": True}):
        with pytest.raises(InputError, match=r"mean\(…\) averages .* with logits\(…\), or use"):
            replace(config, snapshot="c,mean(a,b)@2", **changes)
    assert replace(config, snapshot="logits(a,b)", standardize=True).standardize


def test_an_absent_snapshot_is_answered_with_those_that_there_are(
    config: TrainConfig, store: Path
) -> None:
    for text in ("d", "a,d@3", "mean(a,d)", f"logits(a,{store}::d)", "a+d"):
        with pytest.raises(UnknownName, match=rf"snapshot in {store} 'd':.* known: a, b, c"):
            train(replace(config, snapshot=text))
    assert not Path(config.out).exists()


def test_each_epoch_is_taught_by_its_turn(config: TrainConfig) -> None:
    source, _ = open_source(replace(config, snapshot="a,logits(b,c*3)@2,c@4"), None)
    order = BatchOrder(samples=source.samples(), seed=0, batch_size=90, view_count=2, epochs=5)
    expected = [rows_of(0), *[(rows_of(1) + 3 * rows_of(2)) / 4] * 2, *[rows_of(2)] * 2]
    epochs = []
    for batch in batches(source, order):
        asked = batch.request
        assert batch.teacher is not None
        rows = expected[asked.epoch][asked.view, asked.indices]
        np.testing.assert_allclose(batch.teacher.logits(), rows, atol=1e-6)
        epochs.append(asked.epoch)
    assert epochs == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert views_seen(source, 5) == (3, 2)


def test_who_teaches_is_a_function_of_the_epoch() -> None:
    stages = [(0, "a"), (10, "b"), (30, "c")]
    found = [teacher_at(epoch, turns=stages) for epoch in (0, 9, 10, 29, 30, 300)]
    assert found == ["a", "a", "b", "b", "c", "c"]


def inputs(config: TrainConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(config.out) / "inputs.json").read_text())
    return found


def test_a_plain_name_teaches_and_is_recorded_as_the_snapshot_itself(
    config: TrainConfig, store: Path
) -> None:
    root = open_store(store).snapshots["a"].root
    train(config)
    assert inputs(config)["root"] == root
    elsewhere = replace(config, snapshot=f"{store}::a", out=f"{config.out}-elsewhere")
    train(elsewhere)
    assert weights(elsewhere) == weights(config)
    assert inputs(elsewhere) == inputs(config)


def weights(config: TrainConfig) -> bytes:
    return (Path(config.out) / "model.safetensors").read_bytes()


def test_the_root_of_a_schedule_covers_its_turns_and_their_epochs(
    config: TrainConfig, store: Path
) -> None:
    opened = open_store(store)
    a, b = opened.snapshots["a"].root, opened.snapshots["b"].root
    expected = sha256(f'[[0,"{a}"],[2,"{b}"]]\n'.encode()).hexdigest()
    scheduled = replace(config, snapshot="a,b@3", expect_root=expected)
    train(scheduled)
    assert inputs(scheduled)["root"] == expected
    roots = {open_schedule(opened, text).root for text in ("a,b@3", "a,b@4", "b,a@3", "a", "b")}
    assert len(roots) == 5


def test_turns_of_equal_teachers_train_the_student_of_one_teacher_bit_for_bit(
    config: TrainConfig, bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "twins.zarr"
    for name in ("one", "two"):
        bound_store(path, DATA, rows_of(0), name=name)
    train(replace(config, snapshot="a"))
    stages = replace(
        config, store=str(path), snapshot="one,two@3,logits(one)@4", out=f"{config.out}2"
    )
    train(stages)
    assert weights(stages) == weights(config)


def test_a_run_interrupted_inside_an_epoch_goes_on_with_the_teacher_of_that_epoch(
    config: TrainConfig,
) -> None:
    whole = replace(config, snapshot="a,mean(b,c)@3,c@4", checkpoint_seconds=1e-9)
    train(whole)
    other = replace(whole, snapshot="a", out=f"{config.out}-other")
    train(other)
    assert weights(other) != weights(whole)
    part = replace(whole, out=f"{config.out}-part")
    for steps in (3, 7, 6):
        with pytest.raises(KeyboardInterrupt):
            train(part, progress=Listener(steps))
    with pytest.raises(MismatchError, match=r"with snapshot = 'a,mean\(b,c\)@3,c@4', asked for is"):
        train(replace(part, snapshot="a,mean(b,c)@3,c@5"))
    train(part)
    assert weights(part) == weights(whole)


def test_turns_that_show_other_images_are_refused(
    config: TrainConfig, bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "shake.json").write_text(
        json.dumps([{"name": "RandomCrop", "size": 8, "padding": 2}])
    )
    path = tmp_path / "views.zarr"
    bound_store(path, DATA, rows_of(0), name="plain")
    bound_store(path, DATA, rows_of(0), name="shaken", view_spec=str(tmp_path / "shake.json"))
    bound_store(path, DATA, rows_of(0)[:1], name="short")
    for text, says in (
        ("plain,shaken@2", r"shaken of .* cannot teach together with plain of .*: view\.spec"),
        ("logits(plain,short)", r"views is 2 there and 1 here"),
    ):
        with pytest.raises(MismatchError, match=says):
            train(replace(config, store=str(path), snapshot=text))
    less = bound_store(tmp_path / "less.zarr", f"{DATA[:-3]}100", rows_of(0)[:, :100], name="less")
    with pytest.raises(
        MismatchError, match=r"less of .* samples of .*dataset\.length is 200 there"
    ):
        train(replace(config, snapshot=f"{less}::less"))
    assert not Path(config.out).exists()


def test_a_student_is_measured_against_an_ensemble_but_not_against_a_schedule(
    config: TrainConfig, store: Path
) -> None:
    result = train(replace(config, epochs=1))
    ours, _ = run_logits(result.run, DATA)
    a, b = rows_of(0)[0], rows_of(1)[0]
    powers = [np.exp(rows / 2) / np.exp(rows / 2).sum(1, keepdims=True) for rows in (a, b)]
    for text, teacher in (("logits(a,b)", (a + b) / 2), ("mean(a,b*3)", powers[0] + 3 * powers[1])):
        found = evaluate(result.run, DATA, store=str(store), snapshot=text, temperature=2.0)
        assert found["kd_error"] == (ours.argmax(1) != teacher.argmax(1)).mean()
    with pytest.raises(InputError, match=r"schedule over the epochs .* name one of its stages"):
        evaluate(result.run, DATA, store=str(store), snapshot="a,b@2")


@pytest.fixture(scope="module")
def top(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store's snapshots a and b with three classes of each row."""
    path, opened = tmp_path_factory.mktemp("top") / "top.zarr", open_store(store)
    for name in ("a", "b"):
        transcode(opened, opened.snapshots[name], str(path), EncodingRequest(text="topk:3"))
    return path


def test_rows_without_their_tail_serve_only_methods_that_can_do_without_it(
    config: TrainConfig, top: Path
) -> None:
    small = replace(config, store=str(top), epochs=1)
    for changes, says in (
        ({"method": "dkd"}, r"'dkd' renormalises the classes beside the label"),
        ({"method": "nkd"}, r"'nkd' renormalises"),
        ({"method": "dist"}, r"'dist' correlates each class over the batch"),
        ({"standardize": True}, r"'kd' standardises logits by the mean and deviation of all"),
        ({"method": "wttm", "gamma": 0.5}, r"'wttm' takes the teacher at several temperatures"),
    ):
        wanted = (
            rf"keeps 3 of 10 classes, and method {says}.*--encoding uint8 or auto, or --method kd"
        )
        with pytest.raises(InputError, match=wanted):
            train(replace(small, **changes))
    for text in ("a,b@2", "logits(a,b)"):
        with pytest.raises(InputError, match="keeps 3 of 10 classes: its loss at temperature 4 is"):
            train(replace(small, epochs=2, snapshot=text))
    with pytest.raises(InputError, match="snapshot 'b' keeps 3 of 10"):
        train(replace(config, epochs=2, snapshot=f"a,{top}::b@2"))
    assert not Path(config.out).exists()
    for number, changes in enumerate(
        ({"temperature": 1.0}, {"method": "ttm", "gamma": 1.0}, {"method": "ce"})
    ):
        assert train(replace(small, out=f"{config.out}{number}", **changes)).epochs == 1


def test_one_label_methods_are_refused_where_images_have_two_labels_or_none(
    config: TrainConfig, bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    arch = "mlp?hidden=8"
    torch.save(build_model(arch, classes=10, shape=(1, 8, 8)).state_dict(), tmp_path / "t.pth")
    build(
        BuildConfig(
            teachers=[str(tmp_path / "t.pth")],
            arch=[arch],
            data=DATA,
            out=str(tmp_path / "mixed.zarr"),
            snapshots=["mixed"],
            mix="mixup:0.5",
            device="cpu",
        )
    )
    mixed = replace(config, store=str(tmp_path / "mixed.zarr"), snapshot="mixed", epochs=1)
    images = np.zeros((60, 8, 8), np.uint8)
    labels = np.arange(60) % 10
    np.savez(tmp_path / "part.npz", x=images, y=np.where(np.arange(60) < 57, labels, -1))
    data = f"npz:{tmp_path}/part.npz?classes=10"
    half = replace(
        config,
        data=data,
        store=str(bound_store(tmp_path / "half.zarr", data, rows_of(0)[:, :60])),
        snapshot=None,
        epochs=1,
    )
    for method in ("dkd", "tckd", "nckd", "nkd"):
        with pytest.raises(InputError, match=r"mixed views .* have two labels: use --method kd"):
            train(replace(mixed, method=method))
        with pytest.raises(InputError, match=r"3 of 60 labels .* are unknown: use --method kd"):
            train(replace(half, method=method))
    assert not Path(config.out).exists()
    assert train(replace(mixed, method="dist")).epochs == 1
    assert train(replace(half, out=f"{config.out}2")).epochs == 1


def test_a_loss_that_couples_a_batch_is_refused_in_parts_of_it(config: TrainConfig) -> None:
    for setting in ({"micro_batch": 8}, {"memory_limit": "1GiB", "device": None}):
        with pytest.raises(InputError, match=r"'dist' couples the samples of a batch .* drop --m"):
            replace(config, method="dist", **setting)


@pytest.mark.parametrize(
    ("store", "member", "sent"),
    [
        ("http://a:8000/c10", "http://a:8000/other", True),
        ("/data/c10.zarr", "https://a/other", True),
        ("http://a:8000/c10", "http://a:9000/other", False),
        ("https://a/c10", "http://a/c10", False),
        ("https://a/c10", "https://a.evil/c10", False),
    ],
)
def test_a_token_goes_to_no_other_server_than_the_store_s(
    store: str, member: str, sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = []

    class Asked(Exception):
        pass

    class Main:
        url = store

    def asked(location: str, token: str | None, *, patience: float) -> None:
        tokens.append(token)
        raise Asked

    monkeypatch.setattr("logitstore.trainer.data.teaching.open_store", asked)
    with pytest.raises(Asked):
        open_schedule(Main(), f"mean(a,{member}::b)", temperature=4.0, token="secret")  # type: ignore[arg-type]  # only its URL is looked at
    assert tokens == ["secret" if sent else NO_TOKEN]
