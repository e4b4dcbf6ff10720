"""Reports: small real runs on one page, whose figures are those of the metrics."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from logitstore.cli import app
from logitstore.errors import InputError, MismatchError, NotFound, UnknownName
from logitstore.precompute.data.sources import open_dataset
from logitstore.trainer import TrainConfig, evaluate, report, train
from logitstore.trainer.metrics import reliability
from logitstore.trainer.reporting import analysis, figures, style

TRAIN, TEST = "digits?train=true&samples=0:200", "digits?train=false&samples=0:60"
SECTIONS = ("runs", "figures", "curves", "reliability", "coverage", "classes", "correlation", "map")
VOID = ("meta", "br", "img", "link", "input")
HOSTILE = '<img src=x onerror=alert(1)> & "q" $x_1$ {{ 7*7 }}'


class Page(HTMLParser):
    """A page's elements, its text by section, and what its attributes lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str]]] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.untitled: list[str] = []
        self.sections: dict[str, str] = dict.fromkeys(SECTIONS, "")
        self.text = ""
        self._awaited = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if self._awaited and tag != "title":
            self.untitled.append(tag)
        found = {name: value or "" for name, value in attributes}
        self._awaited = tag == "svg"
        self.elements.append((tag, found))
        if tag not in VOID:
            self.open.append((tag, found))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if any(tag == "style" for tag, _ in self.open):
            return
        self.text += data
        for tag, attributes in self.open:
            if tag == "section":
                self.sections[attributes["id"]] += data

    def values(self, name: str) -> list[str]:
        return [found[name] for _, found in self.elements if name in found]


def page_of(path: Path) -> Page:
    return Page(path.read_text())


def config(out: Path, **more: Any) -> TrainConfig:
    settings = {"data": TRAIN, "student": "mlp?hidden=8", "epochs": 3, "lr": 0.1, "device": "cpu"}
    return TrainConfig(**{**settings, "out": str(out), **more})


def teacher_logits(data: str) -> Any:
    labels = open_dataset(data).labels
    drawn = np.random.default_rng(0).standard_normal((1, len(labels), 10))
    return (drawn + 4 * np.eye(10)[labels]).astype(np.float32)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, bound_store: Callable[..., Path]) -> Path:
    """A folder with a teacher's logits of the training data, and of the test data."""
    folder = tmp_path_factory.mktemp("stores")
    for name, data in (("train.zarr", TRAIN), ("test.zarr", TEST)):
        bound_store(folder / name, data, teacher_logits(data))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, stores: Path) -> Path:
    """A folder with a run of its own and one with a teacher, ``ce`` and ``kd``."""
    folder = tmp_path_factory.mktemp("runs")
    train(config(folder / "ce", test=TEST))
    train(config(folder / "kd", test=TEST, store=str(stores / "train.zarr"), method="kd"))
    return folder


@pytest.fixture(scope="module")
def made(runs: Path, stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A report of both runs, with a teacher's logits of the test data."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    return report([runs / "ce", runs / "kd"], out, store=str(stores / "test.zarr"))


def test_a_page_needs_nothing_from_outside_and_runs_nothing(made: Any) -> None:
    text, page = made.path.read_text(), page_of(made.path)
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.elements}
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    for name in ("src", "href", "xlink:href"):
        assert all(value.startswith(("#", "data:image/png;base64,")) for value in page.values(name))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text
    assert len(text.encode()) < 1_000_000  # two runs; four must stay below 2 MB


def test_every_picture_says_what_it_shows_and_every_link_leads_somewhere(made: Any) -> None:
    page = page_of(made.path)
    assert page.untitled == []
    assert all(found.get("alt") for tag, found in page.elements if tag == "img")
    ids = Counter(page.values("id"))
    assert max(ids.values()) == 1
    targets = {v[1:] for n in ("href", "xlink:href") for v in page.values(n) if v[0] == "#"}
    targets |= set(re.findall(r"url\(#([^)]*)\)", made.path.read_text()))
    assert targets <= set(ids)
    assert set(SECTIONS) <= targets


def test_the_same_runs_give_the_same_bytes(runs: Path, stores: Path, made: Any) -> None:
    again = made.path.with_name("again.html")
    report([runs / "ce", runs / "kd"], again, store=str(stores / "test.zarr"))
    assert again.read_bytes() == made.path.read_bytes()


def test_figures_are_those_that_evaluate_measures(runs: Path, stores: Path, made: Any) -> None:
    text = page_of(made.path).sections["figures"]
    for entry, name in zip(made.figures["runs"], ("ce", "kd"), strict=True):
        weights = {"last": runs / name}
        if entry["best_epoch"] != 3:
            weights["best"] = runs / name / "best.safetensors"
        assert entry["figures"].keys() == weights.keys()
        for which, path in weights.items():
            expected = evaluate(path, TEST, store=str(stores / "test.zarr"), device="cpu")
            found = entry["figures"][which]
            assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-12)
            assert f"{100 * expected['top1']:.2f}" in text
            assert f"{expected['kd_loss']:.4f}" in text
        result = json.loads((runs / name / "result.json").read_text())
        fitted = result["test"]["fitted_temperature"]
        assert entry["figures"]["last"]["fitted_temperature"] == fitted
        assert f"{fitted:.4f}" in text


def test_the_page_shows_settings_with_their_defaults_and_the_teachers_root(made: Any) -> None:
    text = page_of(made.path).sections["runs"]
    ce, kd = made.figures["runs"]
    assert (kd["settings"]["temperature"], kd["settings"]["kd_weight"]) == (4.0, 0.9)
    assert "temperature" not in ce["settings"]
    assert len(kd["settings"]["root"]) == 64
    assert kd["settings"]["root"][:12] in text
    assert text.index("Settings that differ") < text.index("kd_weight") < text.index("share")
    assert text.index("share") < text.index("weight_decay")


def test_classes_have_the_accuracy_that_averages_to_top1(made: Any) -> None:
    for entry in made.figures["runs"]:
        counts = np.array(entry["class_samples"])
        assert counts.tolist() == np.bincount(open_dataset(TEST).labels, minlength=10).tolist()
        mean = np.average(entry["class_accuracy"], weights=counts)
        assert mean == pytest.approx(entry["figures"]["last"]["top1"])


def test_names_are_shown_as_they_are_and_never_obeyed(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(f"""
import numpy as np
class Odd:
    classes = [{HOSTILE!r}, "\\u732b"]
    targets = [0, 1] * 10
    def __len__(self): return 20
    def __getitem__(self, i): return np.full((8, 8), 100 + 90 * (i % 2), np.uint8), i % 2
""")
    data = f"{tmp_path}/odd.py:Odd"
    train(config(tmp_path / HOSTILE, data=data, val=data, epochs=1))
    found = report(
        [tmp_path / HOSTILE], tmp_path / "r.html", title=f"</title>{HOSTILE}", trust_run=True
    )
    page = page_of(found.path)
    assert page.open == []
    assert "img" not in {tag for tag, _ in page.elements}
    assert page.text.count(HOSTILE) > 10
    assert f"</title>{HOSTILE}" in page.text
    for section in ("runs", "figures", "reliability", "classes", "map"):
        assert HOSTILE in page.sections[section]
    assert "猫" in page.sections["classes"]


def test_an_unfinished_run_has_learning_curves_only_and_that_is_said(
    runs: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(runs / "ce", cut)
    (cut / "result.json").unlink()
    (cut / "model.safetensors").unlink()
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_text("".join(lines[:2]))
    found = report([runs / "ce", cut], tmp_path / "r.html")
    page = page_of(found.path)
    assert "cut is not finished (2 of 3 epochs" in page.text
    assert "cut" in page.sections["curves"]
    assert "cut" not in page.sections["figures"] + page.sections["reliability"]
    assert found.figures["runs"][1]["figures"] is None
    assert found.figures["runs"][1]["last_epoch"]["epoch"] == 2

    alone = page_of(report([cut], tmp_path / "alone.html").path)
    for section in ("figures", "reliability", "coverage", "classes", "correlation", "map"):
        assert "no run is finished" in alone.sections[section]


def test_what_is_not_there_is_said(tmp_path: Path, runs: Path) -> None:
    train(config(tmp_path / "plain", epochs=1))
    nothing = page_of(report([tmp_path / "plain"], tmp_path / "nothing.html").path)
    for section in ("figures", "reliability", "coverage", "classes", "correlation", "map"):
        assert "no finished run was tested or validated" in nothing.sections[section]
    assert "no run has validation data" in nothing.sections["curves"]
    assert "no run has a teacher's logits" in nothing.sections["curves"]

    few = "digits?train=false&samples=0:8"
    found = report([tmp_path / "plain"], tmp_path / "few.html", data=few)
    page = page_of(found.path)
    assert "plain is not drawn: there are fewer than 10 samples" in page.sections["map"]
    assert "plain is compared with no teacher: it was trained without" in page.text
    assert "No KD error" in page.sections["figures"]
    assert "No figures after one temperature" in page.sections["figures"]
    assert found.figures["runs"][0]["figures"]["last"]["samples"] == 8


def test_without_a_store_of_the_test_data_training_samples_are_compared(
    runs: Path, stores: Path, tmp_path: Path
) -> None:
    found = report([runs / "kd"], tmp_path / "r.html")
    entry, page = found.figures["runs"][0], page_of(found.path)
    assert f"teacher teacher; {TRAIN}" in page.sections["correlation"]
    assert 0 < entry["correlation_difference"] < 1
    assert "kd_error" not in entry["figures"]["last"]

    gone = tmp_path / "gone"
    shutil.copytree(runs / "kd", gone)
    text = (gone / "config.toml").read_text()
    (gone / "config.toml").write_text(text.replace(str(stores), str(tmp_path / "nowhere")))
    page = page_of(report([gone], tmp_path / "gone.html").path)
    assert "gone is compared with no teacher: its own store cannot be used" in page.text


def test_held_out_validation_samples_can_be_shown(tmp_path: Path, stores: Path) -> None:
    store = str(stores / "train.zarr")
    train(config(tmp_path / "run", val="split:0.2", store=store, method="kd"))
    found = report([tmp_path / "run"], tmp_path / "r.html")
    (entry,) = found.figures["runs"]
    assert found.figures["data"] == f"split:0.2 of {TRAIN} (limit_seed 0)"
    assert entry["figures"]["last"]["samples"] == 40
    assert entry["figures"]["last"]["top1"] == entry["last_epoch"]["val_accuracy"]
    assert 0 <= entry["figures"]["last"]["kd_error"] <= 1


def test_runs_that_cannot_be_side_by_side_are_refused(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    train(config(tmp_path / "other", epochs=1, val="digits?train=false&samples=60:90"))
    with pytest.raises(MismatchError, match="say with --data"):
        report([runs / "ce", tmp_path / "other"], out)
    assert report([runs / "ce", tmp_path / "other"], out, data=TEST).figures["data"] == TEST

    images = np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8)
    np.savez(tmp_path / "two.npz", x=images, y=np.arange(20) % 2)
    train(config(tmp_path / "two", epochs=1, data=f"npz:{tmp_path}/two.npz"))
    with pytest.raises(MismatchError, match="2 classes"):
        report([runs / "ce", tmp_path / "two"], out, data=TEST)


def test_bad_input_is_refused_before_anything_is_written(
    runs: Path, stores: Path, tmp_path: Path
) -> None:
    out, ce, other = tmp_path / "r.html", runs / "ce", str(stores / "train.zarr")
    refusals: list[tuple[list[Path], Path, dict[str, str], type[Exception], str]] = [
        ([tmp_path], out, {}, NotFound, "no training run is here"),
        ([tmp_path / "absent"], out, {}, NotFound, "no training run is here"),
        ([ce, runs / "kd" / ".." / "ce"], out, {}, InputError, "given twice"),
        ([ce] * (style.MOST_RUNS + 1), out, {}, InputError, "33 runs"),
        ([], out, {}, InputError, "0 runs"),
        ([ce], tmp_path / "absent" / "r.html", {}, NotFound, "no such folder"),
        ([ce], tmp_path, {}, InputError, "this is a folder"),
        ([ce], out, {"snapshot": "teacher"}, InputError, "--snapshot without a store"),
        ([ce], out, {"store": str(tmp_path / "absent.zarr")}, NotFound, "absent.zarr"),
        ([ce], out, {"store": other}, MismatchError, "200 samples there, 60 here"),
        ([ce], out, {"store": other, "snapshot": "absent"}, UnknownName, "known: teacher"),
        ([ce], out, {"data": "digit"}, UnknownName, "did you mean 'digits'"),
    ]
    for given, place, more, error, match in refusals:
        with pytest.raises(error, match=match):
            report(given, place, **more)
    assert list(tmp_path.iterdir()) == []


def test_runs_of_one_name_are_told_apart_by_their_folders(runs: Path, tmp_path: Path) -> None:
    for place in ("a", "b"):
        shutil.copytree(runs / "ce", tmp_path / place / "run")
    text = page_of(report([tmp_path / "a/run", tmp_path / "b/run"], tmp_path / "r.html").path).text
    assert "a/run" in text
    assert "b/run" in text


def test_a_page_replaces_the_one_before_and_leaves_nothing_else(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    out.write_text("<!DOCTYPE html>before")
    report([runs / "ce"], out)
    assert "before" not in out.read_text()
    assert list(tmp_path.iterdir()) == [out]
    other = tmp_path / "result.json"
    other.write_text("{}")
    with pytest.raises(InputError, match="another file, and no page of a report"):
        report([runs / "ce"], other)
    assert other.read_text() == "{}"


def test_the_command_writes_a_page_and_prints_its_figures(
    runs: Path, stores: Path, tmp_path: Path
) -> None:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["report", *map(str, arguments)])

    out = tmp_path / "r.html"
    done = run(runs / "ce", runs / "kd", "--out", out, "--title", "Side by side", "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["report"] == str(out)
    assert [each["settings"]["method"] for each in printed["runs"]] == ["ce", "kd"]
    assert "<h1>Side by side</h1>" in out.read_text()
    refused = run(tmp_path, "--out", out)
    assert refused.exit_code == 2
    assert "no training run is here" in refused.stderr


def test_correlations_do_not_see_scale_and_shift_and_equal_numpys() -> None:
    student, teacher = np.random.default_rng(0).normal(size=(2, 50, 6))
    expected = np.abs(np.corrcoef(student.T) - np.corrcoef(teacher.T))
    found = analysis.correlation_difference(student, teacher)
    assert found == pytest.approx(expected, abs=1e-12)
    assert analysis.mean_difference(found) == pytest.approx(expected.sum() / 30)
    scaled = teacher * np.arange(1, 7) - 3
    assert analysis.correlation_difference(scaled, teacher) == pytest.approx(0, abs=1e-12)
    constant = student.copy()
    constant[:, 2] = 5
    assert np.isfinite(analysis.correlation_difference(constant, teacher)).all()


def test_many_classes_are_listed_by_the_worst_and_the_best() -> None:
    count = np.full(100, 3)
    count[7] = 0
    accuracy = np.arange(100) / 100
    accuracy[7] = np.nan
    shown = analysis.shown_classes([accuracy, accuracy], count)
    assert shown == [n for n in range(16) if n != 7] + list(range(85, 100))
    assert analysis.shown_classes([accuracy[:10]], count[:10]) == [0, 1, 2, 3, 4, 5, 6, 8, 9]


def test_maps_of_points_repeat_and_part_what_is_apart() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    logits = (rng.normal(size=(90, 3)) + 30 * np.eye(3)[labels]).astype(np.float32)
    points = analysis.embed(logits, seed=0)
    again = analysis.embed(logits, seed=0)
    assert points is not None
    assert again is not None
    assert points.tobytes() == again.tobytes()
    middles = np.array([points[labels == number].mean(axis=0) for number in range(3)])
    nearest = np.linalg.norm(points[:, None] - middles, axis=2).argmin(axis=1)
    assert (nearest == labels).all()
    assert analysis.embed(logits[:9], seed=0) is None
    assert analysis.embed(np.ones((50, 3)), seed=0) is None
    assert len(analysis.embedded_samples(5000, 0)) == 2000
    assert analysis.embedded_samples(50, 0).tolist() == list(range(50))


def test_a_matrix_is_drawn_cell_by_cell_and_pooled_beyond_200_classes() -> None:
    values = np.random.default_rng(0).random((10, 10))
    (small, *_) = images(figures.matrix(values, most=1.0, title="t", scale="s"))
    levels = np.array(small.convert("L"), float)
    assert levels.shape == (10, 10)
    assert np.corrcoef(levels.ravel(), values.ravel())[0, 1] < -0.95  # darker is more
    wide = np.kron(np.eye(200), np.ones((2, 2)))
    (pooled, *_) = images(figures.matrix(wide, most=1.0, title="t", scale="s"))
    levels = np.array(pooled.convert("L"), float)
    assert levels.shape == (200, 200)
    assert (levels < levels.max()).sum() == 200


def images(svg: str) -> list[Image.Image]:
    found = re.findall(r"data:image/png;base64,\s*([^\"]+)", svg)
    decoded = [Image.open(BytesIO(base64.b64decode(re.sub(r"\s", "", each)))) for each in found]
    return sorted(decoded, key=lambda image: image.size[1] != image.size[0])


def test_curves_rise_where_values_rise_and_end_where_they_are_told() -> None:
    x = np.arange(1, 6)
    lines = [figures.Series(run=0, x=x, y=np.full(5, 0.0)), figures.Series(run=1, x=x, y=x * 1.0)]
    drawn = [path_of(figures.curves(lines, title="t", x="x", y="y", top=10.0), n) for n in (0, 1)]
    flat, rising = drawn
    assert len(set(flat[:, 1])) == 1
    assert (np.diff(flat[:, 0]) > 0).all()
    heights = flat[0, 1] - rising[:, 1]
    assert heights == pytest.approx(heights[-1] * x / 5, rel=1e-3)
    assert heights[-1] == pytest.approx((270 - 58) / 2, rel=1e-2)  # 5 of 10, of the axes' height


def path_of(svg: str, run: int) -> Any:
    """The corners (P, 2) of a run's line, downwards as in SVG."""
    found = re.findall(rf'<path d="([^"]*)"[^>]*style="[^"]*var\(--run-{run}\)', svg)
    return np.array(re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", found[0]), float)


def test_a_reliability_diagram_is_as_high_as_the_accuracy() -> None:
    probability = np.array([0.95, 0.95, 0.95, 0.95, 0.6, 0.6])
    logits = np.log(np.stack([probability, 1 - probability], axis=1))
    found = reliability(logits, np.array([0, 0, 0, 1, 0, 1]), 10)
    svg = figures.reliability_diagram(found, run=0, title="t")
    boxes = [
        np.array(re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path), float)
        for path in re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--run-0\)', svg)
    ]
    heights = sorted(np.ptp(box[:, 1]) for box in boxes if len(box))[-2:]
    assert heights == pytest.approx([0.585 * 370 / 2, 0.585 * 370 * 3 / 4], rel=1e-3)


def test_every_run_has_a_look_of_its_own_that_stands_out_from_the_paper() -> None:
    looks = {(style.light_hex(run), style.dashes(run)) for run in range(style.MOST_RUNS)}
    assert len(looks) == style.MOST_RUNS
    assert style.MOST_RUNS >= 30
    assert style.dashes(0) == ()
    for mode in (0, 1):
        paper = luminance(style.THEME["paper"][mode])
        for name, values in style.THEME.items():
            if name not in ("paper", "rule"):
                low, high = sorted((paper, luminance(values[mode])))
                assert (high + 0.05) / (low + 0.05) > (3 if name.startswith("run") else 4.5)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
