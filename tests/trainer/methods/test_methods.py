"""Methods: their defaults, weights and schedules, and what each asks for.

Tests parametrised over ``METHODS`` examine a new method without being told of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import logitstore.trainer as trainer
from logitstore.trainer import losses
from logitstore.trainer.methods.base import Mixed, Outputs
from logitstore.trainer.methods.table import METHODS, hyper_parameters, make_method

TAUGHT = sorted(name for name, kind in METHODS.items() if kind.needs_teacher)
PLAIN = sorted(name for name, kind in METHODS.items() if not kind.one_label)
MODIFIERS = {"standardize": False, "stop_kd_at": None}
TAUGHT_ONCE = {"ce_weight": 1.0, "kd_weight": 1.0, **MODIFIERS}
WARM = {"temperature": 4.0, "kd_warmup": 20, **TAUGHT_ONCE}
# MobileNetV2 on 100 classes: alpha 0.95, and its KL is a mean over the classes too.
SELF = {"temperature": 20.0, "ce_weight": 0.05, "kd_weight": 0.0095, **MODIFIERS}
# ResNet18.
BY_HAND = {"correct": 0.99, "temperature": 20.0, "ce_weight": 0.9, "kd_weight": 0.1}
DEFAULTS: dict[str, dict[str, Any]] = {
    "ce": {},
    "label-smoothing": {"epsilon": 0.1},
    "kd": {"temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9, **MODIFIERS},
    "dkd": {"alpha": 1.0, "beta": 8.0, **WARM},
    "tckd": WARM,
    "nckd": WARM,
    "tf-kd-self": SELF,
    "tf-kd-reg": {"variant": "paper", **BY_HAND},
    "ps-kd": {"alpha": 0.8, "history": 1, "past": "training"},
    "dist": {"beta": 1.0, "gamma": 1.0, "temperature": 4.0, **TAUGHT_ONCE, "kd_weight": 2.0},
    "nkd": {"gamma": 1.5, "temperature": 1.0, **TAUGHT_ONCE},
    "ttm": {"gamma": 0.1, **TAUGHT_ONCE, "kd_weight": 45.0},
    "wttm": {"gamma": 0.2, **TAUGHT_ONCE, "kd_weight": 4.0},
}


def drawn(seed: int) -> Tensor:
    values = np.random.default_rng(seed).standard_normal((6, 5)) * 3
    return torch.tensor(values, dtype=torch.float64)


def outputs(**other: Any) -> Outputs:
    """Six samples of five classes with everything that any method may ask for."""
    batch = Outputs(
        drawn(1).requires_grad_(),
        torch.arange(6) % 5,
        drawn(2),
        past=drawn(3).softmax(1),
        epochs=300,
    )
    return batch._replace(**other)


def cross_entropy(batch: Outputs) -> Tensor:
    return losses.cross_entropy(batch.student, batch.labels)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("epoch", [0, 299])
def test_a_method_gives_finite_terms_that_add_up_to_its_loss(name: str, epoch: int) -> None:
    batch, method = outputs(), make_method(name, {})
    terms = method.terms(batch, epoch)
    for term in terms.values():
        assert term.shape == (6,)
        assert term.isfinite().all()
    loss = method.loss(batch, epoch)
    torch.testing.assert_close(loss, torch.stack([*terms.values()]).sum(0))
    (slope,) = torch.autograd.grad(loss.sum(), batch.student)
    assert slope.isfinite().all()
    assert (slope.abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_does_not_say_it_needs_it_does_not_look_at(name: str) -> None:
    kind, batch = METHODS[name], outputs()
    if not kind.needs_teacher:
        batch = batch._replace(teacher=None)
    if kind().predictions_needed is None:
        batch = batch._replace(past=None)
    loss = make_method(name, {}).loss(batch, 1)
    if kind.per_batch:
        return
    for row in range(6):
        one = slice(row, row + 1)
        cut = {key: value[one] for key, value in batch._asdict().items() if torch.is_tensor(value)}
        alone = make_method(name, {}).loss(batch._replace(**cut), 1)
        torch.testing.assert_close(alone, loss[one])


def test_needs_are_those_of_the_formulas() -> None:
    def having(need: str) -> set[str]:
        return {name for name in DEFAULTS if getattr(METHODS[name], need)}

    assert having("one_label") == {"dkd", "tckd", "nckd", "nkd", "ps-kd"}
    assert having("per_batch") == {"dist"}
    assert {name for name in DEFAULTS if METHODS[name]().predictions_needed} == {"ps-kd"}
    labels_only = {"ce", "label-smoothing", "tf-kd-reg", "ps-kd"}
    assert DEFAULTS.keys() - having("needs_teacher") == labels_only


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_the_documented_ones(name: str) -> None:
    assert hyper_parameters(make_method(name, {})) == DEFAULTS[name]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_row_in_the_document(name: str) -> None:
    document = (Path(trainer.__file__).parent / "METHODS.md").read_text()
    assert f"| `{name}` |" in document


def test_the_squared_temperature_multiplies_the_kl_only() -> None:
    batch = outputs()
    method = make_method("kd", {"temperature": 5.0, "ce_weight": 0.3, "kd_weight": 0.6})
    terms = method.terms(batch, 0)
    assert batch.teacher is not None
    soft = losses.kl(batch.student / 5, batch.teacher / 5)
    torch.testing.assert_close(terms["ce"], 0.3 * cross_entropy(batch))
    torch.testing.assert_close(terms["kd"], 0.6 * 25 * soft)


@pytest.mark.parametrize("name", sorted(set(TAUGHT) | {"tf-kd-reg"}))
def test_weights_multiply_their_terms(name: str) -> None:
    batch = outputs()
    single = make_method(name, {"ce_weight": 1.0, "kd_weight": 1.0}).terms(batch, 50)
    double = make_method(name, {"ce_weight": 0.0, "kd_weight": 7.0}).terms(batch, 50)
    torch.testing.assert_close(single["ce"], cross_entropy(batch))
    assert not double["ce"].any()
    torch.testing.assert_close(double["kd"], 7 * single["kd"])


@pytest.mark.parametrize("name", ["dkd", "tckd", "nckd"])
def test_dkd_and_its_parts_warm_up_from_a_twentieth_in_the_first_epoch(name: str) -> None:
    batch, method = outputs(), make_method(name, {})
    full = method.terms(batch, 100)
    for epoch, share in {0: 1 / 20, 1: 2 / 20, 18: 19 / 20, 19: 1.0, 20: 1.0}.items():
        terms = method.terms(batch, epoch)
        torch.testing.assert_close(terms["kd"], share * full["kd"])
        torch.testing.assert_close(terms["ce"], cross_entropy(batch))
    at_once = make_method(name, {"kd_warmup": 0}).terms(batch, 0)
    torch.testing.assert_close(at_once["kd"], full["kd"])


def test_tckd_and_nckd_are_the_parts_of_dkd() -> None:
    batch = outputs()
    whole, target, rest = (
        make_method(name, {}).terms(batch, 3)["kd"] for name in ("dkd", "tckd", "nckd")
    )
    torch.testing.assert_close(whole, target + 8 * rest)


def test_trust_in_the_past_grows_to_alpha_in_the_last_epoch() -> None:
    batch = outputs()
    assert batch.past is not None
    for epoch, alpha in {0: 0.8 / 300, 149: 0.4, 299: 0.8}.items():
        expected = losses.ps_kd(batch.student, batch.labels, batch.past, alpha=alpha)
        torch.testing.assert_close(make_method("ps-kd", {}).loss(batch, epoch), expected)
    # In the first epoch nothing is known, and the past holds the labels.
    labels = torch.eye(5, dtype=torch.float64)[batch.labels]
    first = make_method("ps-kd", {}).loss(batch._replace(past=labels), 0)
    torch.testing.assert_close(first, cross_entropy(batch))


@pytest.mark.parametrize("name", TAUGHT)
def test_after_the_last_epoch_of_distillation_cross_entropy_has_weight_1(name: str) -> None:
    batch = outputs()
    method = make_method(name, {"stop_kd_at": 3, "ce_weight": 0.25})
    third, fourth = method.terms(batch, 2), method.terms(batch, 3)
    assert third["kd"].any()
    torch.testing.assert_close(third["ce"], 0.25 * cross_entropy(batch))
    assert fourth.keys() == {"ce"}
    torch.testing.assert_close(fourth["ce"], cross_entropy(batch))


@pytest.mark.parametrize("name", TAUGHT)
def test_standardising_forgets_how_large_logits_are(name: str) -> None:
    batch = outputs()
    assert batch.teacher is not None
    method = make_method(name, {"standardize": True})
    larger = batch._replace(teacher=4 * batch.teacher + 2)
    found, other = method.terms(batch, 30), method.terms(larger, 30)
    torch.testing.assert_close(found["kd"], other["kd"], rtol=1e-5, atol=1e-6)
    weight = hyper_parameters(method)["ce_weight"]
    torch.testing.assert_close(found["ce"], weight * cross_entropy(batch))
    assert method.teacher_temperature is None
    assert "mean and deviation of all classes" in str(method.needs_tail)


@pytest.mark.parametrize("name", ["kd", "dkd", "tckd", "nckd"])
def test_standardising_changes_defaults_but_not_what_was_asked_for(name: str) -> None:
    changed = hyper_parameters(make_method(name, {"standardize": True}))
    expected = {"temperature": 2.0, "kd_weight": 9.0, "standardize": True}
    assert changed == {**DEFAULTS[name], **expected}
    asked = {"standardize": True, "temperature": 4.0, "kd_weight": 0.9}
    assert hyper_parameters(make_method(name, asked)) == {**DEFAULTS[name], **asked}
    assert hyper_parameters(make_method(name, {"standardize": False})) == DEFAULTS[name]


def test_the_released_tf_kd_reg_has_its_weight_in_its_own_units() -> None:
    assert hyper_parameters(make_method("tf-kd-reg", {"variant": "code"}))["kd_weight"] == 10.0
    asked = {"variant": "code", "kd_weight": 0.5}
    assert hyper_parameters(make_method("tf-kd-reg", asked))["kd_weight"] == 0.5


@pytest.mark.parametrize("name", TAUGHT)
def test_the_teacher_s_term_counts_only_where_it_is_asked(name: str) -> None:
    taught = torch.tensor([True, False, True, False, False, True])
    batch = outputs()
    everywhere = make_method(name, {}).terms(batch, 30)
    there = make_method(name, {}).terms(batch._replace(taught=taught), 30)
    assert not there["kd"][~taught].any()
    torch.testing.assert_close(there["kd"][taught], everywhere["kd"][taught])
    torch.testing.assert_close(there["ce"], everywhere["ce"])


@pytest.mark.parametrize("name", PLAIN)
def test_mixed_images_weigh_both_labels_and_the_teacher_as_it_is(name: str) -> None:
    own, partners = torch.arange(6) % 5, (torch.arange(6) + 2) % 5
    weight = torch.linspace(0, 1, 6)
    method = make_method(name, {})
    mixed = method.terms(outputs(mixed=Mixed(partners, weight)), 30)
    first, second = (method.terms(outputs(labels=labels), 30) for labels in (own, partners))
    for key, term in mixed.items():
        torch.testing.assert_close(term, weight * first[key] + (1 - weight) * second[key])


@pytest.mark.parametrize("name", PLAIN)
def test_a_sample_without_a_label_counts_nothing_where_labels_count(name: str) -> None:
    batch = outputs()
    unknown = torch.tensor([False, True, False, False, True, False])
    hidden = batch._replace(labels=batch.labels.masked_fill(unknown, -1))
    method = make_method(name, {})
    known_terms, terms = method.terms(batch, 30), method.terms(hidden, 30)
    assert not terms["ce"][unknown].any()
    torch.testing.assert_close(method.loss(hidden, 30)[~unknown], method.loss(batch, 30)[~unknown])
    if METHODS[name].needs_teacher:
        torch.testing.assert_close(terms["kd"], known_terms["kd"])
    else:
        assert not method.loss(hidden, 30)[unknown].any()


def test_the_teacher_s_temperature_is_that_of_its_one_distribution() -> None:
    def temperatures(name: str, **given: Any) -> tuple[float | None, float | None]:
        method = make_method(name, given)
        return method.teacher_temperature, None if method.needs_tail else method.teacher_temperature

    assert temperatures("kd", temperature=3.0) == (3.0, 3.0)
    assert temperatures("ttm", gamma=0.25) == (4.0, 4.0)
    assert temperatures("dkd", temperature=3.0) == (3.0, None)
    assert temperatures("dist", temperature=3.0) == (3.0, None)
    assert temperatures("nkd", temperature=3.0) == (None, None)
    assert temperatures("nkd", temperature=1.0) == (1.0, None)
    assert temperatures("wttm", gamma=0.25) == (None, None)
    assert temperatures("ce") == temperatures("ps-kd") == (None, None)
