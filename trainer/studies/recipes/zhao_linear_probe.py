"""Do features of decoupled distillation transfer better?  Zhao et al. say yes."""

from __future__ import annotations

from dataclasses import replace

from logitstore.trainer.studies.recipe import Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import (
    CIFAR100_PAPER,
    FASHION_SMALL,
    KD,
    MNIST_SMALL,
    RESNETS,
    ZHAO,
    images,
    raw_files,
)

PROBE_DATA = images("MNIST", train=True, samples="0:2000")


def recipe() -> Recipe:
    return Recipe(
        title="Linear probes of the students' features",
        paper=ZHAO,
        claim="Features of a student taught by DKD transfer better to other data than those of KD.",
        notes=(
            "Students of Fashion-MNIST, probed on MNIST: 2,000 images train the probe, 10,000 "
            "test it."
        ),
        scales={
            "small": scale(
                replace(
                    FASHION_SMALL,
                    needs=(*raw_files("FashionMNIST"), *raw_files("MNIST")),
                    student="mlp?hidden=64,32",
                ),
                beta=2.0,
                warmup=1,
                probe=f"--data {PROBE_DATA} --test {MNIST_SMALL.test}",
            ),
            "paper": scale(
                replace(
                    CIFAR100_PAPER,
                    needs=(*CIFAR100_PAPER.needs, "stl10_binary/train_X.bin"),
                    notes=RESNETS,
                ),
                beta=8.0,
                warmup=20,
                probe=(
                    "--data torchvision:STL10?root=$ROOT&split=train "
                    "--test torchvision:STL10?root=$ROOT&split=test --size 32"
                ),
            ),
        },
        figures=("top1", "train_top1"),
        baseline="ce",
        source="its table of STL-10 and Tiny-ImageNet probes: numbers not recovered",
    )


def scale(s: Settings, beta: float, warmup: int, probe: str) -> Scale:
    return Scale(
        s,
        steps=(
            *s.teacher_steps,
            f"{s.taught} --method ce --out $OUT/ce-$SEED",
            f"{s.taught} {KD} --out $OUT/kd-$SEED",
            f"{s.taught} --method dkd --alpha 1 --beta {beta} --temperature 4 --kd-warmup {warmup} "
            "--out $OUT/dkd-$SEED",
            *(
                f"probe $OUT/{name}-$SEED {probe} --json > $OUT/probe-{name}-$SEED.json"
                for name in ("ce", "kd", "dkd")
            ),
        ),
        rows={name: f"probe-{name}-$SEED.json" for name in ("ce", "kd", "dkd")},
        effects=(
            Effect("DKD's features beat KD's", "dkd", over="kd", figure="top1"),
            Effect("KD's features beat cross-entropy's", "kd", over="ce", figure="top1"),
        ),
    )
