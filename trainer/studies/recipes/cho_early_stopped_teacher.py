"""Does a teacher that was stopped early teach better?  Cho and Hariharan say yes."""

from __future__ import annotations

from dataclasses import replace

from logitstore.trainer.studies.recipe import FIGURES, Effect, Recipe, Scale, Settings
from logitstore.trainer.studies.recipes.settings import (
    CHO,
    CHO_SMALL,
    CIFAR10_PAPER,
    KD,
    cosine,
    drops,
)


def recipe() -> Recipe:
    return Recipe(
        title="Early-stopped teachers",
        paper=CHO,
        claim=(
            "A teacher of a quarter to a third of the usual epochs, trained to the end of a "
            "shortened schedule, teaches a small student better than a fully trained one."
        ),
        notes=(
            "'cut' are checkpoints of the one long run, 'short' are runs of their own with the "
            "whole schedule in fewer epochs. Small scale: Fashion-MNIST, teacher and student "
            "learn from the same 3,000 images."
        ),
        scales={
            "small": scale(
                CHO_SMALL,
                kept=(2, 5, 10, 20, 40),
                short=(10, cosine(0.02)),
                third=(13, cosine(0.02)),
            ),
            "paper": scale(
                replace(CIFAR10_PAPER, teacher="$ROOT/networks.py:wrn28_8"),
                kept=(10, 35, 50, 100, 150, 200),
                short=(35, drops(0.1, "10,21,28", 0.2)),
                third=(50, drops(0.1, "15,30,40", 0.2)),
            ),
        },
        figures=(*FIGURES, "metrics.train_kd_error"),
        baseline="ce",
        source="its figures 4 to 6: numbers not recovered",
    )


def scale(
    s: Settings, kept: tuple[int, ...], short: tuple[int, str], third: tuple[int, str]
) -> Scale:
    snapshots = ",".join(map(str, kept))
    quarter = f"{kept[2]:04}"
    cuts = [f"{epoch:04}" for epoch in kept]
    learn = f"{s.learn} --store $OUT/teacher.zarr"
    teacher = (
        f"train --data {s.train} --student {s.teacher} --method ce {s.augment} "
        f"--batch-size {s.batch} {s.normalise} {s.workers} --val {s.val} --test {s.test} "
        "--seed 1000"
    )
    return Scale(
        s,
        steps=(
            f"{teacher} --epochs {kept[-1]} {s.optimise} --snapshots {snapshots} --out $OUT/long",
            f"{teacher} --epochs {short[0]} {short[1]} --out $OUT/short",
            f"{teacher} --epochs {third[0]} {third[1]} --out $OUT/third",
            f"build --teacher $OUT/long --data {s.train} {s.views} {s.workers} "
            "--out $OUT/teacher.zarr",
            s.build("$OUT/short", snapshot="short"),
            s.build("$OUT/third", snapshot="third"),
            f"{learn} --snapshot epoch-{cuts[-1]} --method ce --out $OUT/ce-$SEED",
            *(f"{learn} --snapshot epoch-{cut} {KD} --out $OUT/cut-{cut}-$SEED" for cut in cuts),
            *(
                f"{learn} --snapshot {name} {KD} --out $OUT/{name}-$SEED"
                for name in ("short", "third")
            ),
        ),
        rows={
            "ce": "ce-$SEED",
            **{f"kd, cut at epoch {cut}": f"cut-{cut}-$SEED" for cut in cuts},
            "kd, short schedule": "short-$SEED",
            "kd, third schedule": "third-$SEED",
        },
        effects=(
            Effect(
                "A teacher of a short schedule beats the fully trained one",
                "kd, short schedule",
                over=f"kd, cut at epoch {cuts[-1]}",
            ),
            Effect(
                "A teacher cut early from the long run beats the fully trained one",
                f"kd, cut at epoch {quarter}",
                over=f"kd, cut at epoch {cuts[-1]}",
            ),
        ),
    )
