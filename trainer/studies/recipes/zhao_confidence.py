"""Do the samples of which the teacher is sure teach most?  Zhao et al. say yes."""

from __future__ import annotations

from logitstore.trainer.studies.recipe import Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import CIFAR100_PAPER, FASHION_SMALL, ZHAO

HALVES = ("all", "confident", "unsure")


def recipe() -> Recipe:
    return Recipe(
        title="Non-target-class distillation on confident and on unsure samples",
        paper=ZHAO,
        claim=(
            "What non-target-class distillation teaches comes mostly from the samples of which "
            "the teacher is sure."
        ),
        notes=(
            "Half of the samples by the teacher's probability of the label; on the others there "
            "is cross-entropy alone."
        ),
        scales={"small": scale(FASHION_SMALL, warmup=1), "paper": scale(CIFAR100_PAPER, warmup=20)},
        baseline="ce",
        source="its table of sample halves: numbers not recovered",
    )


def scale(s: Settings, warmup: int) -> Scale:
    part = f"--temperature 4 --kd-warmup {warmup} --ce-weight 1 --kd-weight 1"
    return Scale(
        s,
        steps=(
            *s.teacher_steps,
            f"{s.taught} --method ce --out $OUT/ce-$SEED",
            *(
                f"{s.taught} --method nckd {part} --teach {half} --out $OUT/{half}-$SEED"
                for half in HALVES
            ),
        ),
        rows={"ce": "ce-$SEED", **{f"nckd, {half}": f"{half}-$SEED" for half in HALVES}},
        effects=(
            Effect(
                "The confident half teaches more than the unsure half",
                "nckd, confident",
                over="nckd, unsure",
            ),
        ),
    )
