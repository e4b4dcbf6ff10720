"""Does target-class distillation help where labels are noisy?  Zhao et al. say yes."""

from __future__ import annotations

from dataclasses import replace

from logitstore.trainer.studies.recipe import Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import CIFAR100_PAPER, FASHION_SMALL, ZHAO


def recipe() -> Recipe:
    return Recipe(
        title="Target-class distillation on noisy labels",
        paper=ZHAO,
        claim=(
            "Target-class distillation helps where the training data are difficult: with noisy "
            "labels, the more the noisier."
        ),
        notes=(
            "Noise is symmetric, on the labels that the student sees; the teacher, trained on "
            "clean labels, keeps its logits. Whether the paper's own base line has NCKD in it is "
            "not recovered: both comparisons are here."
        ),
        scales={
            "small": scale(
                replace(FASHION_SMALL, cost="3 to 8 min on two cores"), noises=(0.1, 0.3), warmup=1
            ),
            "paper": scale(CIFAR100_PAPER, noises=(0.1, 0.2, 0.3), warmup=20),
        },
        source="its table of noisy labels: numbers not recovered",
    )


def scale(s: Settings, noises: tuple[float, ...], warmup: int) -> Scale:
    part = f"--temperature 4 --kd-warmup {warmup} --ce-weight 1 --kd-weight 1"
    methods = {
        "ce": "--method ce",
        "tckd": f"--method tckd {part}",
        "nckd": f"--method nckd {part}",
        "both": f"--method dkd --alpha 1 --beta 1 {part}",
    }
    return Scale(
        s,
        steps=(
            *s.teacher_steps,
            *(
                f"{s.taught} {method} --label-noise {noise} --label-noise-seed $SEED "
                f"--out $OUT/{name}-{noise}-$SEED"
                for name, method in methods.items()
                for noise in noises
            ),
        ),
        rows={
            f"{'tckd + nckd' if name == 'both' else name}, noise {noise}": f"{name}-{noise}-$SEED"
            for name in methods
            for noise in noises
        },
        effects=(
            Effect(
                "TCKD beats cross-entropy at noise 0.1", "tckd, noise 0.1", over="ce, noise 0.1"
            ),
            Effect(
                "TCKD beats cross-entropy at noise 0.3", "tckd, noise 0.3", over="ce, noise 0.3"
            ),
            Effect(
                "TCKD adds to NCKD at noise 0.1", "tckd + nckd, noise 0.1", over="nckd, noise 0.1"
            ),
            Effect(
                "TCKD adds to NCKD at noise 0.3", "tckd + nckd, noise 0.3", over="nckd, noise 0.3"
            ),
        ),
    )
