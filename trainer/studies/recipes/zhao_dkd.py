"""Does decoupled distillation beat plain distillation?  Zhao et al. say yes."""

from __future__ import annotations

from dataclasses import replace

from logitstore.trainer.studies.recipe import FIGURES, Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import (
    CIFAR10_SMALL,
    CIFAR100_PAPER,
    KD,
    SEEN_BY_THE_TEACHER,
    VALIDATED_ON_TEST,
    ZHAO,
)

RESNET20 = replace(
    CIFAR100_PAPER,
    needs=("cifar-100-python/train",),
    student="resnet20",
    teacher="resnet56",
    notes=VALIDATED_ON_TEST,
)


def recipe() -> Recipe:
    return Recipe(
        title="Decoupled distillation against plain distillation",
        paper=ZHAO,
        claim=(
            "Weighing target-class and non-target-class distillation apart beats plain "
            "distillation."
        ),
        notes=(
            f"{SEEN_BY_THE_TEACHER} Small scale has the settings of the CIFAR-10 table at the end "
            "of RESULTS.md; logit-methods compares DKD with KD on Fashion-MNIST, too."
        ),
        scales={"small": scale(CIFAR10_SMALL, warmup=1), "paper": scale(RESNET20, warmup=20)},
        figures=(*FIGURES, "metrics.train_kd_error"),
        baseline="ce",
        source=(
            "CIFAR-100, top-1, from the repository's README [README]; networks alone from "
            "zkxufo/TTM's"
        ),
        published=(
            ("teacher", "student", "alone", "KD", "DKD"),
            ("ResNet56 72.34", "ResNet20", "69.06", "70.66", "71.97"),
            ("ResNet110 74.31", "ResNet32", "71.14", "73.08", "74.11"),
            ("ResNet32x4 79.42", "ResNet8x4", "72.50", "73.33", "76.32"),
            ("WRN-40-2 75.61", "WRN-16-2", "73.26", "74.92", "76.23 (76.24)"),
            ("WRN-40-2", "WRN-40-1", "71.98", "73.54", "74.81"),
            ("VGG13 74.64", "VGG8", "70.36", "72.98", "74.68"),
            ("ResNet50 79.34", "MobileNetV2", "64.60", "67.35", "70.35"),
        ),
    )


def scale(s: Settings, warmup: int) -> Scale:
    return Scale(
        s,
        steps=(
            *s.teacher_steps,
            f"{s.taught} --method ce --out $OUT/ce-$SEED",
            f"{s.taught} {KD} --out $OUT/kd-$SEED",
            f"{s.taught} --method dkd --alpha 1 --beta 2.0 --temperature 4 --kd-warmup {warmup} "
            "--out $OUT/dkd-$SEED",
        ),
        rows={"ce": "ce-$SEED", "kd": "kd-$SEED", "dkd": "dkd-$SEED"},
        effects=(
            Effect("DKD beats KD", "dkd", over="kd"),
            Effect("KD beats cross-entropy", "kd", over="ce"),
        ),
    )
