"""Does a teacher made by hand beat label smoothing?  Yuan et al. say yes."""

from __future__ import annotations

from dataclasses import replace

from logitstore.trainer.studies.recipe import Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import YUAN, YUAN_PAPER, YUAN_SMALL


def recipe() -> Recipe:
    return Recipe(
        title="Tf-KD_reg: a teacher made by hand, against label smoothing",
        paper=YUAN,
        claim=(
            "A hand-made distribution that is 99 % sure of the label, softened, regularises a "
            "little better than label smoothing."
        ),
        notes=(
            "'paper' is the paper's formula, 'code' what was released: label smoothing by another "
            "name. The code's KL is a mean over classes: kd_weight is 0.1 times C."
        ),
        scales={
            "small": scale(YUAN_SMALL, code_weight=1.0),
            "paper": scale(
                replace(YUAN_PAPER, student="$ROOT/networks.py:resnet18"), code_weight=10.0
            ),
        },
        baseline="ce",
        source="CIFAR-100, top-1, read off its figures [fig]",
        published=(
            ("network", "alone", "label smoothing", "Tf-KD_reg"),
            ("MobileNetV2", "68.38", "69.32", "70.88"),
            ("ShuffleNetV2", "70.34", "70.83", "72.09"),
            ("ResNet18", "75.87", "77.26", "77.36"),
            ("GoogLeNet", "78.72", "79.07", "79.22"),
        ),
    )


def scale(s: Settings, code_weight: float) -> Scale:
    return Scale(
        s,
        steps=(
            f"{s.learn} --method ce {s.augment} --out $OUT/ce-$SEED",
            f"{s.learn} --method label-smoothing --epsilon 0.1 {s.augment} "
            "--out $OUT/smoothing-$SEED",
            *(
                f"{s.learn} --method tf-kd-reg --variant {variant} --correct 0.99 --temperature 20 "
                f"--ce-weight 0.9 --kd-weight {weight} {s.augment} --out $OUT/reg-{variant}-$SEED"
                for variant, weight in (("paper", 0.1), ("code", code_weight))
            ),
        ),
        rows={
            "ce": "ce-$SEED",
            "label smoothing": "smoothing-$SEED",
            "Tf-KD_reg, paper": "reg-paper-$SEED",
            "Tf-KD_reg, code": "reg-code-$SEED",
        },
        effects=(
            Effect("Tf-KD_reg (paper) beats cross-entropy", "Tf-KD_reg, paper", over="ce"),
            Effect("Tf-KD_reg (code) beats cross-entropy", "Tf-KD_reg, code", over="ce"),
            Effect(
                "Tf-KD_reg (paper) beats label smoothing",
                "Tf-KD_reg, paper",
                over="label smoothing",
            ),
        ),
    )
