"""Refuse settings of a run that contradict each other, with the ways out, before any work.

Only the settings are looked at: no file is opened and no device is asked.
"""

from __future__ import annotations

from logitstore.cache.modes import not_served
from logitstore.errors import InputError
from logitstore.storage import is_url
from logitstore.text import parse_size
from logitstore.trainer.config.fields import Settings
from logitstore.trainer.config.specs import parse_specialist, split_share
from logitstore.trainer.config.teacher_spec import parse_teachers
from logitstore.trainer.methods.base import Method

_WITH_STORE = (
    "snapshot",
    "expect_root",
    "match_by",
    "class_map",
    "allow_unbound",
    "allow_mismatch",
    "read",
    "cache",
)
"""Settings that mean nothing without a store."""


def refuse_contradictions(config: Settings, method: Method) -> None:
    """Refuse the first thing that cannot be, with an InputError or UnknownName.

    ``method`` is the method that the settings name.
    """
    _check_specialist(config, method)
    _check_source(config, method)
    _check_optimisation(config)
    _check_memory(config, method)


def _check_specialist(config: Settings, method: Method) -> None:
    """Refuse a teacher for a specialist: no row of a generalist is about its classes."""
    if config.specialist is None:
        return
    parse_specialist(config.specialist)
    if config.omit_classes:
        raise InputError(
            "--omit-class with --specialist, whose classes have other numbers: drop one of them"
        )
    if config.store is not None:
        raise InputError(
            "--specialist with --store: a specialist has other classes than the store's teacher "
            "and learns from labels: drop --store"
        )
    if method.needs_teacher or method.predictions_needed:
        raise InputError(
            f"--specialist with --method {config.method}: a specialist learns from labels, and not "
            "from all samples in each epoch: use --method ce or label-smoothing"
        )


def _check_source(config: Settings, method: Method) -> None:
    split_share(config.val)
    if config.test is not None and config.test.startswith("split:"):
        raise InputError(
            f"--test {config.test}: test data are never taken from the training data: give --test "
            f"DATA, or --val {config.test}"
        )
    if config.teach != "all" and not method.needs_teacher:
        raise InputError(
            f"--teach {config.teach} chooses where a teacher's term counts, and method "
            f"{config.method!r} has none: drop it, or use --method kd with a store"
        )
    method.refuse_run(config.epochs)
    if config.store is None:
        if method.needs_teacher:
            raise InputError(
                f"method {config.method!r} needs a teacher's logits: give --store STORE "
                "(and --snapshot NAME), or use --method ce"
            )
        for name in _WITH_STORE:
            if getattr(config, name) != getattr(type(config), name):
                raise needs_store(name)
        return
    if config.snapshot is not None:
        _check_stages(config, config.snapshot, method)
    if config.read == "stream" and not is_url(config.store):
        raise not_served(config.store)


def _check_stages(config: Settings, text: str, method: Method) -> None:
    stages = parse_teachers(text)
    if stages[-1].first >= config.epochs:
        raise InputError(
            f"--snapshot {text!r}: its last stage begins in epoch {stages[-1].first + 1}, the run "
            f"ends after epoch {config.epochs}: leave that stage out, or raise --epochs"
        )
    averaged = any(stage.kind == "arithmetic" for stage in stages)
    if averaged and method.ensemble_temperature is None:
        raise InputError(
            f"--snapshot {text!r}: mean(…) averages distributions at one temperature, and method "
            f"{config.method!r}, as it is set here, does not take the teacher's at a single one: "
            "average the logits instead, with logits(…), or use another method"
        )


def _check_optimisation(config: Settings) -> None:
    if config.nesterov and (config.optimizer != "sgd" or config.momentum == 0):
        raise InputError(
            "nesterov needs --optimizer sgd and a --momentum above 0: give both or drop it"
        )
    if config.schedule == "step" and not config.milestones:
        raise InputError(
            "schedule 'step' needs --milestones, the epochs of the steps: give some, or use "
            "--schedule constant"
        )
    if config.schedule != "step" and config.milestones:
        raise InputError(
            f"milestones belong to --schedule step, not {config.schedule!r}: change the schedule "
            "or drop --milestones"
        )
    inside = all(0 < milestone < config.epochs for milestone in config.milestones)
    if not inside or list(config.milestones) != sorted(set(config.milestones)):
        raise InputError(
            f"milestones {config.milestones} must rise and lie inside 1..{config.epochs - 1}: "
            "change them or --epochs"
        )
    if config.warmup_epochs >= config.epochs:
        raise InputError(
            f"{config.warmup_epochs} warm-up epochs leave nothing of {config.epochs}: fewer "
            "--warmup-epochs or more --epochs"
        )
    if isinstance(config.snapshots, tuple):
        for epoch in config.snapshots:
            if not 1 <= epoch <= config.epochs:
                raise InputError(
                    f"snapshots: there is no epoch {epoch} in a run of {config.epochs}: change "
                    "--snapshots or --epochs"
                )
    if config.device is not None and config.device.split(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"device {config.device!r} is not known: use cpu, cuda or cuda:N")
    if config.device == "cpu" and config.precision != "fp32":
        raise InputError(
            f"precision {config.precision!r} needs a GPU: use --device cuda or --precision fp32"
        )


def _check_memory(config: Settings, method: Method) -> None:
    if config.micro_batch is not None and config.micro_batch > config.batch_size:
        raise InputError(
            f"micro_batch {config.micro_batch} is more than batch_size {config.batch_size}: a "
            "smaller --micro-batch, or a larger --batch-size"
        )
    if method.per_batch:
        for name in ("micro_batch", "memory_limit"):
            if getattr(config, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise InputError(
                    f"method {config.method!r} couples the samples of a batch in its loss, so that "
                    f"parts of a batch would teach something else: drop {flag}, use a smaller "
                    "--batch-size or --recompute, or another method"
                )
    if config.memory_limit is not None:
        parse_size("memory_limit", config.memory_limit)
        if config.device == "cpu":
            raise needs_gpu(config.memory_limit)


def needs_store(name: str) -> InputError:
    """Return what to do about a setting that means nothing without a store."""
    flag = "--" + name.replace("_", "-")
    return InputError(f"{flag} without a store: give --store STORE, or drop {flag}")


def refuse_stages(text: str | None) -> None:
    """Refuse a schedule of teachers where a student is compared with one of them."""
    if text is not None and len(parse_teachers(text)) > 1:
        raise InputError(
            f"--snapshot {text!r} is a schedule over the epochs of a training run: name one of its "
            "stages, to be measured against it"
        )


def needs_gpu(limit: str) -> InputError:
    """Return the error for a memory limit on the CPU."""
    return InputError(
        f"--memory-limit {limit} caps a GPU's memory, and this run is on the CPU: drop it, or "
        "train in parts with --micro-batch N"
    )
