"""Does distillation teach by the label's class, or by the others?  Zhao et al. say the others."""

from __future__ import annotations

from logitstore.trainer.studies.recipe import Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import CIFAR100_PAPER, FASHION_SMALL, KD, ZHAO


def recipe() -> Recipe:
    return Recipe(
        title="The two parts of distillation alone",
        paper=ZHAO,
        claim=(
            "Non-target-class distillation alone does as well as or better than KD; target-class "
            "distillation alone does little or harm."
        ),
        scales={"small": scale(FASHION_SMALL, warmup=1), "paper": scale(CIFAR100_PAPER, warmup=20)},
        baseline="ce",
        source="its table 1: numbers not recovered",
    )


def scale(s: Settings, warmup: int) -> Scale:
    part = f"--temperature 4 --kd-warmup {warmup} --ce-weight 1 --kd-weight 1"
    return Scale(
        s,
        steps=(
            *s.teacher_steps,
            f"{s.taught} --method ce --out $OUT/ce-$SEED",
            f"{s.taught} {KD} --out $OUT/kd-$SEED",
            f"{s.taught} --method tckd {part} --out $OUT/tckd-$SEED",
            f"{s.taught} --method nckd {part} --out $OUT/nckd-$SEED",
            f"{s.taught} --method dkd --alpha 1 --beta 1 {part} --out $OUT/both-$SEED",
        ),
        rows={
            "ce": "ce-$SEED",
            "kd": "kd-$SEED",
            "tckd": "tckd-$SEED",
            "nckd": "nckd-$SEED",
            "tckd + nckd": "both-$SEED",
        },
        effects=(
            Effect("NCKD alone beats cross-entropy", "nckd", over="ce"),
            Effect("NCKD alone beats TCKD alone", "nckd", over="tckd"),
            Effect("TCKD alone beats cross-entropy (the paper: hardly)", "tckd", over="ce"),
        ),
    )
