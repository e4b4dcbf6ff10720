"""Does a poorly trained teacher still help its student?  Yuan et al. say yes."""

from __future__ import annotations

from dataclasses import replace

from logitstore.trainer.studies.recipe import Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import (
    CODE_WEIGHTS,
    FIVE_TIMES,
    YUAN,
    YUAN_PAPER,
    YUAN_SMALL,
)


def recipe() -> Recipe:
    return Recipe(
        title="De-KD: a poorly trained teacher",
        paper=YUAN,
        claim=(
            "A teacher that is worse than its student, stopped after an epoch, still makes the "
            "student better."
        ),
        notes=(
            f"{CODE_WEIGHTS} {FIVE_TIMES} The poor teacher is one epoch at a hundredth of the "
            "learning rate."
        ),
        scales={
            "small": scale(
                replace(YUAN_SMALL, teacher="mlp?hidden=256,256"),
                poor="--epochs 1 --lr 0.0005",
                ce_weight=0.25,
                kd_weight=0.475,
            ),
            "paper": scale(
                replace(
                    YUAN_PAPER,
                    teacher="$ROOT/networks.py:resnet18",
                    student="$ROOT/networks.py:mobilenetv2",
                ),
                poor="--epochs 1 --lr 0.1",
                ce_weight=0.05,
                kd_weight=0.0095,
            ),
        },
        baseline="ce",
        source="CIFAR-100, top-1, read off its figures [fig]",
        published=(
            (
                "poor teacher",
                "its top-1",
                "MobileNetV2 (alone 68.38)",
                "ShuffleNetV2 (70.34)",
                "ResNet18 (75.87)",
            ),
            ("ResNet18, 1 epoch", "15.48", "70.65", "71.82", "-"),
            ("ResNet50, epoch 50", "45.82", "71.45", "72.11", "77.23"),
            ("ResNeXt29, epoch 50", "51.94", "71.52", "72.26", "77.28"),
        ),
    )


def scale(s: Settings, poor: str, ce_weight: float, kd_weight: float) -> Scale:
    teacher = (
        f"train --data {s.train} --student {s.teacher} --method ce {s.augment} "
        f"--batch-size {s.batch} {s.normalise} {s.workers} --val {s.val} --test {s.test} "
        "--seed 1000"
    )
    taught = f"{s.learn} --store $OUT/teachers.zarr"
    kd = f"--method kd --temperature 20 --ce-weight {ce_weight} --kd-weight {kd_weight}"
    return Scale(
        s,
        steps=(
            f"{teacher} --epochs {s.epochs} {s.optimise} --out $OUT/trained",
            f"{teacher} {poor} --out $OUT/poor",
            s.build("$OUT/trained", "teachers", "trained"),
            s.build("$OUT/poor", "teachers", "poor"),
            f"{taught} --snapshot poor --method ce --out $OUT/ce-$SEED",
            f"{taught} --snapshot poor {kd} --out $OUT/de-kd-$SEED",
            f"{taught} --snapshot trained {kd} --out $OUT/kd-$SEED",
            f"{s.learn} --method label-smoothing --epsilon 0.1 {s.augment} "
            "--out $OUT/smoothing-$SEED",
        ),
        rows={
            "the poor teacher": "poor",
            "the trained teacher": "trained",
            "ce": "ce-$SEED",
            "label smoothing": "smoothing-$SEED",
            "De-KD, poor teacher": "de-kd-$SEED",
            "kd, trained teacher": "kd-$SEED",
        },
        effects=(
            Effect("De-KD beats cross-entropy", "De-KD, poor teacher", over="ce"),
            Effect(
                "KD from the trained teacher beats De-KD",
                "kd, trained teacher",
                over="De-KD, poor teacher",
            ),
        ),
    )
