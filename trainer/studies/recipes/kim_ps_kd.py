"""Do a network's own earlier predictions calibrate it?  Kim et al. say yes."""

from __future__ import annotations

from dataclasses import replace

from logitstore.trainer.studies.recipe import Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import (
    CIFAR100_PAPER,
    FASHION_SMALL,
    GUNZIP,
    VALIDATED_ON_TEST,
    cosine,
)


def recipe() -> Recipe:
    return Recipe(
        title="PS-KD: the student's own past as teacher",
        paper="Kim, Ji, Yoon, Hwang 2021, arXiv:2006.12000",
        claim=(
            "Labels softened by the network's own predictions of the epoch before make it more "
            "accurate and much better calibrated."
        ),
        notes=(
            "Clean images and no augmentation at small scale, so that the networks overfit, which "
            "is what is to be regularised."
        ),
        scales={
            "small": scale(
                replace(
                    FASHION_SMALL,
                    cost="3 to 8 min on two cores",
                    optimise=cosine(0.05),
                    student="mlp?hidden=256,256",
                    epochs=30,
                    notes=GUNZIP,
                )
            ),
            "paper": scale(
                replace(
                    CIFAR100_PAPER,
                    normalise="--normalize 0.4914,0.4822,0.4465/0.2023,0.1994,0.2010",
                    batch=128,
                    optimise=(
                        "--optimizer sgd --nesterov --lr 0.1 --momentum 0.9 --weight-decay 5e-4 "
                        "--schedule step --milestones 150,225 --lr-decay 0.1"
                    ),
                    student="$ROOT/networks.py:preact_resnet18",
                    epochs=300,
                    notes=(
                        "At paper scale networks.py has the factory preact_resnet18. "
                        f"{VALIDATED_ON_TEST}"
                    ),
                )
            ),
        },
        figures=(
            "test.top1",
            "test_best.top1",
            "test.nll",
            "test.ece10",
            "test.aurc",
            "test.eaurc",
            "test.ece10_fitted",
        ),
        baseline="ce",
        source=(
            "CIFAR-100, PreAct ResNet18, from the repository's README [README]; AURC times 1000"
        ),
        published=(
            ("method", "top-1 error", "top-5 error", "NLL", "ECE %", "AURC"),
            ("cross-entropy", "24.18", "6.90", "1.10", "11.84", "67.65"),
            ("label smoothing", "20.94", "6.02", ".98", "10.79", "57.74"),
            ("CS-KD", "21.30", "5.70", ".88", "6.24", "56.56"),
            ("Tf-KD", "22.88", "6.01", "1.05", "11.96", "61.77"),
            ("PS-KD", "20.82", "5.10", ".76", "1.77", "52.10"),
            ("an unrelated re-run: cross-entropy", "21.41", "-", "-", "5.14", "56.92"),
            ("an unrelated re-run: PS-KD", "19.94", "4.79", ".79", "4.21", "50.44"),
        ),
    )


def scale(s: Settings) -> Scale:
    return Scale(
        s,
        steps=(
            f"{s.learn} --method ce {s.augment} --out $OUT/ce-$SEED",
            f"{s.learn} --method label-smoothing --epsilon 0.1 {s.augment} "
            "--out $OUT/smoothing-$SEED",
            f"{s.learn} --method ps-kd --alpha 0.8 {s.augment} --out $OUT/ps-kd-$SEED",
        ),
        rows={"ce": "ce-$SEED", "label smoothing": "smoothing-$SEED", "PS-KD": "ps-kd-$SEED"},
        effects=(
            Effect("PS-KD is more accurate than cross-entropy", "PS-KD", over="ce"),
            Effect("PS-KD has a lower NLL", "PS-KD", over="ce", figure="test.nll", better="lower"),
            Effect(
                "PS-KD has a lower ECE", "PS-KD", over="ce", figure="test.ece10", better="lower"
            ),
            Effect(
                "PS-KD has a lower AURC", "PS-KD", over="ce", figure="test.aurc", better="lower"
            ),
            Effect("PS-KD is more accurate than label smoothing", "PS-KD", over="label smoothing"),
            Effect(
                "PS-KD has a lower AURC than label smoothing",
                "PS-KD",
                over="label smoothing",
                figure="test.aurc",
                better="lower",
            ),
        ),
    )
