"""Do soft targets halve a small network's errors?  Hinton, Vinyals and Dean say yes."""

from __future__ import annotations

from dataclasses import replace

from logitstore.trainer.studies.recipe import Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import HINTON, MNIST_PAPER, MNIST_SMALL

KD_AT_20 = "--method kd --temperature 20 --ce-weight 0.1 --kd-weight 0.9"


def recipe() -> Recipe:
    return Recipe(
        title="Distillation on MNIST",
        paper=HINTON,
        claim=(
            "A small net without regularisation makes about half of its errors when it is trained "
            "on the soft targets (T = 20) of a large regularised one."
        ),
        notes="Small scale:",
        scales={"small": scale(replace(MNIST_SMALL, seeds=5)), "paper": scale(MNIST_PAPER)},
        baseline="ce",
        source="errors on the 10,000 test images, several copies agree [sec]",
        published=(
            ("net", "test errors"),
            ("teacher, 2 x 1200, dropout, jitter", "67"),
            ("2 x 800, plain", "146"),
            ("2 x 800, distilled at T = 20", "74"),
        ),
    )


def scale(s: Settings) -> Scale:
    return Scale(
        s,
        steps=(
            *s.teacher_steps,
            f"{s.taught} --method ce --out $OUT/ce-$SEED",
            f"{s.taught} {KD_AT_20} --out $OUT/kd-$SEED",
        ),
        rows={"the teacher": "teacher", "ce": "ce-$SEED", "kd, T = 20": "kd-$SEED"},
        effects=(Effect("KD beats cross-entropy", "kd, T = 20", over="ce"),),
    )
