"""Do specialists help a generalist network?  Hinton, Vinyals and Dean say yes."""

from __future__ import annotations

from dataclasses import replace

from logitstore.trainer.studies.recipe import Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import (
    CHO_SMALL,
    CIFAR100_PAPER,
    FASHION_SMALL,
    HINTON,
    cosine,
    drops,
    images,
)


def recipe() -> Recipe:
    return Recipe(
        title="Specialists for classes that a generalist confuses",
        paper=HINTON,
        claim=(
            "Specialists of confusable classes, combined with the generalist, are more accurate "
            "than the generalist alone."
        ),
        notes=(
            "The paper's data (JFT) are private: CIFAR-100 stands for them at paper scale, with "
            "settings of ours, Fashion-MNIST at small scale. The sets come from the generalist of "
            "seed 0, by K-means, so their number depends on it: at paper scale name the plan's "
            "specialists in the recipe; the specialists begin with the weights of the generalist "
            "of their seed. Specialists are trained longer than the generalist: 'trained on' is "
            "the control, the generalist trained for as many epochs more. top1 is on the test "
            "images."
        ),
        scales={
            "small": scale(
                replace(
                    FASHION_SMALL,
                    train=images("FashionMNIST", train=True, samples="0:6000"),
                    student="mlp?hidden=64",
                    epochs=12,
                    notes=CHO_SMALL.notes,
                ),
                names=("s1", "s2"),
                clusters=8,
                more_epochs=8,
                more=cosine(0.02),
            ),
            "paper": scale(
                replace(
                    CIFAR100_PAPER,
                    needs=("cifar-100-python/train",),
                    batch=128,
                    epochs=200,
                    optimise=drops(0.1, "60,120,160", 0.2),
                    views="--view-spec eval",
                    student="resnet56",
                    notes="",
                ),
                names=("s1", "s2", "s3"),
                clusters=20,
                more_epochs=60,
                more=cosine(0.01),
            ),
        },
        figures=("snapshots.0.top1",),
        baseline="generalist",
        source="JFT, test accuracy, from memory [mem]; none on public data",
        published=(
            ("model", "top-1"),
            ("generalist", "25.0"),
            ("with 61 specialists", "26.1"),
        ),
    )


def scale(s: Settings, names: tuple[str, ...], clusters: int, more_epochs: int, more: str) -> Scale:
    learn = (
        f"train --data {s.train} --student {s.student} --method ce {s.augment} "
        f"--batch-size {s.batch} {s.normalise} {s.workers} --seed $SEED"
    )
    longer = f"--init $OUT/generalist-$SEED --epochs {more_epochs} {more}"
    build = f"build --data {s.test} {s.views} {s.workers} --snapshot"
    stores = " ".join(f"$OUT/{name}-$SEED.zarr" for name in names)
    return Scale(
        s,
        steps=(
            f"{learn} --epochs {s.epochs} {s.optimise} --out $OUT/generalist-$SEED",
            s.build("$OUT/generalist-0", "train", "generalist"),
            f"specialists plan $OUT/train.zarr --snapshot generalist --clusters {clusters} "
            "--out $OUT/plan.json",
            *(
                f"{learn} --specialist $OUT/plan.json:{name} {longer} --out $OUT/{name}-$SEED"
                for name in names
            ),
            f"{learn} {longer} --out $OUT/longer-$SEED",
            *(
                f"{build} {name} --teacher $OUT/{name}-$SEED --out $OUT/{name}-$SEED.zarr"
                for name in names
            ),
            *(
                f"{build} {name} --teacher $OUT/{name}-$SEED --out $OUT/test-$SEED.zarr"
                for name in ("generalist", "longer")
            ),
            *(
                "combine --generalist $OUT/test-$SEED.zarr::generalist "
                f"--specialists $OUT/plan.json {stores} --dustbin {dustbin} "
                f"--out $OUT/test-$SEED.zarr --snapshot {dustbin}"
                for dustbin in ("share", "odds")
            ),
            *(
                f"inspect $OUT/test-$SEED.zarr --snapshot {name} --json > $OUT/{name}-$SEED.json"
                for name in ("generalist", "longer", "share", "odds")
            ),
        ),
        rows={
            "generalist": "generalist-$SEED.json",
            "generalist, trained on": "longer-$SEED.json",
            "combined, dustbin by share": "share-$SEED.json",
            "combined, dustbin by odds": "odds-$SEED.json",
        },
        effects=(
            Effect(
                "The combination beats the generalist",
                "combined, dustbin by share",
                over="generalist",
                figure="snapshots.0.top1",
            ),
            Effect(
                "The combination beats a generalist trained as long",
                "combined, dustbin by share",
                over="generalist, trained on",
                figure="snapshots.0.top1",
            ),
            Effect(
                "The dustbin corrected by the share beats that by the odds",
                "combined, dustbin by share",
                over="combined, dustbin by odds",
                figure="snapshots.0.top1",
            ),
        ),
    )
