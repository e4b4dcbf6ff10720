"""Can a small student teach its large teacher?  Yuan et al. say yes."""

from __future__ import annotations

from dataclasses import replace

from logitstore.trainer.studies.recipe import Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import CODE_WEIGHTS, YUAN, YUAN_PAPER, YUAN_SMALL


def recipe() -> Recipe:
    return Recipe(
        title="Re-KD: a student teaches its teacher",
        paper=YUAN,
        claim=(
            "A large network distilled from a smaller and weaker one ends better than without it."
        ),
        notes=CODE_WEIGHTS,
        scales={
            "small": scale(
                replace(YUAN_SMALL, teacher="mlp?hidden=16", student="mlp?hidden=256,256"),
                kd_weight=0.06,
            ),
            "paper": scale(
                replace(
                    YUAN_PAPER,
                    teacher="$ROOT/networks.py:mobilenetv2",
                    student="$ROOT/networks.py:resnet18",
                ),
                kd_weight=0.006,
            ),
        },
        baseline="large, ce",
        source="CIFAR-100, top-1, read off its figures [fig]",
        published=(
            ("large network", "alone", "small teacher", "Re-KD"),
            ("ResNet18", "75.87", "MobileNetV2 68.38", "77.28 ± .28"),
            ("ResNet18", "75.87", "ShuffleNetV2 70.34", "77.35"),
            ("ResNet50", "78.16", "MobileNetV2", "79.30"),
            ("DenseNet121", "79.04", "MobileNetV2", "79.55"),
            ("ResNeXt29", "81.03", "ResNet18", "81.62"),
        ),
    )


def scale(s: Settings, kd_weight: float) -> Scale:
    return Scale(
        s,
        steps=(
            *s.teacher_steps,
            f"{s.taught} --method ce --out $OUT/ce-$SEED",
            f"{s.taught} --method kd --temperature 20 --ce-weight 0.4 --kd-weight {kd_weight} "
            "--out $OUT/re-kd-$SEED",
        ),
        rows={
            "small, ce (the teacher)": "teacher",
            "large, ce": "ce-$SEED",
            "large, Re-KD": "re-kd-$SEED",
        },
        effects=(Effect("Re-KD beats cross-entropy", "large, Re-KD", over="large, ce"),),
    )
