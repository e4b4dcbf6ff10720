"""Does distilling in several steps help a small student?  Cho and Hariharan say no."""

from __future__ import annotations

from logitstore.trainer.studies.recipe import Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import CHO, CHO_SMALL, CIFAR10_PAPER, KD


def recipe() -> Recipe:
    return Recipe(
        title="Sequential distillation and born-again generations",
        paper=CHO,
        claim=(
            "Distilling large to medium to small does not help the small student over distilling "
            "it directly; nor do born-again generations in the long run."
        ),
        notes=(
            "The claim is that nothing is gained: the effects below are the hope that the paper "
            "refutes."
        ),
        scales={
            "small": scale(CHO_SMALL, medium="mlp?hidden=128"),
            "paper": scale(CIFAR10_PAPER, medium="$ROOT/networks.py:wrn16_3"),
        },
        baseline="ce",
        source="CIFAR-10, test error, best and mean ± sd, from a published summary [seed]",
        published=(
            ("teachers", "small student, error %"),
            ("large 16-8 to small", "7.98 (8.03 ± .14)"),
            ("medium 16-3 to small", "7.61 (7.68 ± .26)"),
            ("large to medium (4.80) to small", "8.04 (7.99 ± .24)"),
            ("medium after 5 generations (4.89) to small", "7.79 (7.67 ± .19)"),
            ("none", "8.759 ± .129"),
        ),
    )


def scale(s: Settings, medium: str) -> Scale:
    return Scale(
        s,
        steps=(
            s.train_teacher(s.teacher, "large"),
            s.build("$OUT/large", "large", "large"),
            s.train_teacher(medium, "medium"),
            s.build("$OUT/medium", "medium", "medium"),
            f"train --data {s.train} --student {medium} {KD} --store $OUT/large.zarr "
            f"--snapshot large {s.training(s.epochs, s.optimise)} --seed 1000 "
            "--out $OUT/taught-medium",
            s.build("$OUT/taught-medium", "taught-medium", "taught-medium"),
            f"{s.learn} --method ce --store $OUT/large.zarr --snapshot large --out $OUT/ce-$SEED",
            *(
                f"{s.learn} {KD} --store $OUT/{name}.zarr --snapshot {name} "
                f"--out $OUT/from-{name}-$SEED"
                for name in ("large", "medium", "taught-medium")
            ),
            s.build("$OUT/ce-$SEED", "generation-0-$SEED", "self"),
            f"{s.learn} {KD} --store $OUT/generation-0-$SEED.zarr --snapshot self "
            "--out $OUT/generation-1-$SEED",
            s.build("$OUT/generation-1-$SEED", "generation-1-$SEED", "self"),
            f"{s.learn} {KD} --store $OUT/generation-1-$SEED.zarr --snapshot self "
            "--out $OUT/generation-2-$SEED",
        ),
        rows={
            "ce": "ce-$SEED",
            "large to small": "from-large-$SEED",
            "medium to small": "from-medium-$SEED",
            "large to medium to small": "from-taught-medium-$SEED",
            "born again, generation 1": "generation-1-$SEED",
            "born again, generation 2": "generation-2-$SEED",
        },
        effects=(
            Effect(
                "Large to medium to small beats large to small",
                "large to medium to small",
                over="large to small",
            ),
            Effect(
                "Large to medium to small beats medium to small",
                "large to medium to small",
                over="medium to small",
            ),
            Effect(
                "A second born-again generation beats the first",
                "born again, generation 2",
                over="born again, generation 1",
            ),
        ),
    )
