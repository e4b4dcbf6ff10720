"""Do soft targets make 3 % of the data enough?  Hinton, Vinyals and Dean say yes."""

from __future__ import annotations

from dataclasses import replace

from logitstore.trainer.studies.recipe import Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import (
    CHO_SMALL,
    FASHION_SMALL,
    HINTON,
    KD,
    MNIST_PAPER,
)


def recipe() -> Recipe:
    return Recipe(
        title="Soft targets as regularisers: 3 % of the data",
        paper=HINTON,
        claim=(
            "With soft targets, 3 % of the data are enough for almost the accuracy of all; with "
            "hard labels the net overfits badly."
        ),
        notes=(
            "The paper's data (speech) are private: MNIST stands for them at paper scale, "
            "Fashion-MNIST at small scale."
        ),
        scales={
            "small": scale(
                replace(
                    FASHION_SMALL,
                    train=FASHION_SMALL.teacher_data,
                    student="mlp?hidden=128",
                    epochs=10,
                    notes=CHO_SMALL.notes,
                ),
                few_samples=360,
                few_epochs=60,
            ),
            "paper": scale(MNIST_PAPER, few_samples=1620, few_epochs=2000),
        },
        baseline="hard labels, 3 %",
        source="speech, frame accuracy: numbers not recovered",
    )


def scale(s: Settings, few_samples: int, few_epochs: int) -> Scale:
    common = (
        f"--student {s.student} --batch-size {s.batch} {s.optimise} {s.normalise} {s.workers} "
        f"--val {s.val} --test {s.test} --seed $SEED"
    )
    few = (
        f"train --data {s.train} {common} --store $OUT/teacher.zarr --snapshot teacher "
        f"--epochs {few_epochs} --limit {few_samples} --limit-seed $SEED"
    )
    return Scale(
        s,
        steps=(
            *s.teacher_steps,
            f"train --data {s.train} {common} --epochs {s.epochs} --method ce --out $OUT/all-$SEED",
            f"{few} --method ce --out $OUT/hard-$SEED",
            f"{few} {KD} --out $OUT/soft-$SEED",
        ),
        rows={
            "the teacher": "teacher",
            "hard labels, all": "all-$SEED",
            "hard labels, 3 %": "hard-$SEED",
            "soft targets, 3 %": "soft-$SEED",
        },
        effects=(
            Effect(
                "Soft targets beat hard labels on 3 % of the data",
                "soft targets, 3 %",
                over="hard labels, 3 %",
            ),
        ),
    )
