"""Does an ensemble teach a small student better than one network?  Cho and Hariharan say no."""

from __future__ import annotations

from dataclasses import replace

from logitstore.trainer.studies.recipe import Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import CHO, CHO_SMALL, CIFAR10_PAPER, KD


def recipe() -> Recipe:
    return Recipe(
        title="An ensemble of teachers",
        paper=CHO,
        claim=(
            "An ensemble is a better classifier than each member, but not for that a better "
            "teacher of a small student."
        ),
        notes=(
            "Arithmetic is the mean of the distributions at the method's temperature, geometric "
            "that of the logits."
        ),
        scales={
            "small": scale(replace(CHO_SMALL, teacher="mlp?hidden=256,256")),
            "paper": scale(replace(CIFAR10_PAPER, teacher="$ROOT/networks.py:wrn16_3")),
        },
        baseline="ce",
        source="numbers not recovered",
    )


def scale(s: Settings) -> Scale:
    members = "member-1000,member-1001,member-1002"
    training = s.training(s.epochs, s.optimise)
    learn = (
        f"train --data {s.train} --student {s.student} {training} --store $OUT/teachers.zarr "
        "--seed $SEED"
    )
    return Scale(
        s,
        steps=(
            *(
                s.train_teacher(s.teacher, f"member-{seed}", seed=seed)
                for seed in (1000, 1001, 1002)
            ),
            *(
                s.build(f"$OUT/member-{seed}", "teachers", f"member-{seed}")
                for seed in (1000, 1001, 1002)
            ),
            f"{learn} --method ce --snapshot member-1000 --out $OUT/ce-$SEED",
            f"{learn} {KD} --snapshot member-1000 --out $OUT/one-$SEED",
            f"{learn} {KD} --snapshot mean({members}) --out $OUT/arithmetic-$SEED",
            f"{learn} {KD} --snapshot logits({members}) --out $OUT/geometric-$SEED",
        ),
        rows={
            "ce": "ce-$SEED",
            "kd from one": "one-$SEED",
            "kd from three, arithmetic": "arithmetic-$SEED",
            "kd from three, geometric": "geometric-$SEED",
        },
        effects=(
            Effect(
                "Three teachers beat one (the paper: not for small students)",
                "kd from three, arithmetic",
                over="kd from one",
            ),
            Effect(
                "Arithmetic beats geometric",
                "kd from three, arithmetic",
                over="kd from three, geometric",
            ),
        ),
    )
