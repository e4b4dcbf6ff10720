"""The data, networks and schedules that several recipes share, with sentences about them."""

from __future__ import annotations

from dataclasses import replace

from logitstore.trainer.studies.recipe import Settings

HINTON = "Hinton, Vinyals, Dean 2015, arXiv:1503.02531"
CHO = "Cho, Hariharan 2019, arXiv:1910.01348"
YUAN = "Yuan, Tay, Li, Wang, Feng 2020, arXiv:1909.11723"
ZHAO = "Zhao, Cui, Song, Qiu, Liang 2022, arXiv:2203.08679"

KD = "--method kd --temperature 4 --ce-weight 0.1 --kd-weight 0.9"

KNOWING_TEACHER = (
    "The teacher has learned from 12,000 images, of which the students see 3,000: on their images "
    "it is not saturated."
)
LEARNING_RATE = (
    "The learning rate of the small scale, 0.02, was chosen on the validation images with another "
    "seed: distillation at T = 4 is unstable at 0.05, where cross-entropy is best."
)
GUNZIP = "The raw files must be gunzipped (gunzip -k), as torchvision reads them so."
JITTER = (
    'At paper scale jitter.json is [{"name": "RandomCrop", "size": 28, "padding": 2}]; optimiser, '
    "batch size and epochs of the paper are not recovered, and its weight constraint is not there: "
    "ours stand for them."
)
WIDE_RESNETS = (
    "At paper scale networks.py has factories of the Wide ResNets. Batch size, learning rate and "
    "weight decay are from memory of the paper."
)
RESNETS = "At paper scale networks.py has the factories resnet32x4 and resnet8x4."
ROTATED = (
    'At paper scale networks.py has the networks\' factories, and rotated.json is [{"name": '
    '"RandomCrop", "size": 32, "padding": 4}, {"name": "RandomHorizontalFlip"}, {"name": '
    '"RandomRotation", "degrees": 15}].'
)
VALIDATED_ON_TEST = (
    "At paper scale the validation data are the test data, as in the released code: its best-epoch "
    "figures were chosen on them, those of the last epoch (test) were not."
)

CODE_WEIGHTS = (
    "The weights are the released code's for its C classes: its KL is a mean over the classes too, "
    "so its 0.95 (0.6 for Re-KD) is 0.95 / C here."
)
FIVE_TIMES = (
    "At small scale both are five times that, in the same ratio, chosen on the validation images "
    "with another seed: 700 steps of the released size leave students untrained."
)
SEEN_BY_THE_TEACHER = (
    "The published teachers have seen all 7,292 training images of the subset, also those that "
    "validate the students here; the 761 test images are fresh to both."
)


def cosine(lr: float, weight_decay: str = "5e-4") -> str:
    """Return the options of SGD with a cosine schedule."""
    return (
        f"--optimizer sgd --lr {lr} --momentum 0.9 --weight-decay {weight_decay} --schedule cosine"
    )


def drops(lr: float, milestones: str, decay: float) -> str:
    """Return the options of SGD whose learning rate drops at some epochs."""
    return (
        f"--optimizer sgd --lr {lr} --momentum 0.9 --weight-decay 5e-4 --schedule step "
        f"--milestones {milestones} --lr-decay {decay}"
    )


def raw_files(name: str) -> tuple[str, str]:
    """Return the files of MNIST or Fashion-MNIST, below the folder of the data."""
    return f"{name}/raw/train-images-idx3-ubyte", f"{name}/raw/t10k-images-idx3-ubyte"


def images(name: str, *, train: bool, samples: str | None = None) -> str:
    """Return the spec of one of torchvision's data sets."""
    chosen = f"&samples={samples}" if samples else ""
    return f"torchvision:{name}?root=$ROOT&train={str(train).lower()}{chosen}"


FASHION_SMALL = Settings(
    cost="3 to 6 min on two cores",
    seeds=3,
    needs=raw_files("FashionMNIST"),
    train=images("FashionMNIST", train=True, samples="0:3000"),
    val=images("FashionMNIST", train=True, samples="50000:51000"),
    test=images("FashionMNIST", train=False),
    normalise="--normalize 0.2860/0.3530",
    batch=64,
    optimise=cosine(0.02),
    workers="--workers 0",
    student="mlp?hidden=32",
    epochs=15,
    teacher="mlp?hidden=512,512",
    teacher_data=images("FashionMNIST", train=True, samples="0:12000"),
    teacher_epochs=12,
    notes=f"{KNOWING_TEACHER} {LEARNING_RATE} {GUNZIP}",
)

CHO_SMALL = replace(
    FASHION_SMALL,
    teacher_data=FASHION_SMALL.train,
    teacher_epochs=15,
    notes=f"{LEARNING_RATE} {GUNZIP}",
)

MNIST_SMALL = replace(
    FASHION_SMALL,
    needs=raw_files("MNIST"),
    train=images("MNIST", train=True, samples="0:3000"),
    val=images("MNIST", train=True, samples="50000:51000"),
    test=images("MNIST", train=False),
    normalise="--normalize 0.1307/0.3081",
    student="mlp?hidden=64,64",
    teacher="mlp?hidden=400,400&dropout=0.3",
    teacher_data=images("MNIST", train=True, samples="0:12000"),
)

MNIST_PAPER = Settings(
    cost="a GPU-hour",
    seeds=5,
    needs=(*raw_files("MNIST"), "jitter.json"),
    train=images("MNIST", train=True),
    val="split:0.1",
    test=images("MNIST", train=False),
    normalise="--normalize none",
    batch=100,
    optimise=cosine(0.05, weight_decay="0"),
    augment="--augment $ROOT/jitter.json",
    student="mlp?hidden=800,800",
    epochs=200,
    teacher="mlp?hidden=1200,1200&dropout=0.5",
    teacher_data=images("MNIST", train=True),
    teacher_epochs=200,
    notes=JITTER,
)

CIFAR10_PAPER = Settings(
    cost="GPU-days",
    seeds=5,
    needs=("cifar-10-batches-py/data_batch_1", "networks.py"),
    train=images("CIFAR10", train=True),
    val=images("CIFAR10", train=False),
    test=images("CIFAR10", train=False),
    normalise="--normalize cifar10",
    batch=128,
    optimise=drops(0.1, "60,120,160", 0.2),
    views="--view-spec cifar-train --views 200",
    augment="--augment cifar-train",
    student="$ROOT/networks.py:wrn16_1",
    epochs=200,
    teacher="$ROOT/networks.py:wrn16_8",
    teacher_data=images("CIFAR10", train=True),
    teacher_epochs=200,
    notes=f"{WIDE_RESNETS} {VALIDATED_ON_TEST}",
)

CIFAR100_PAPER = Settings(
    cost="GPU-days",
    seeds=5,
    needs=("cifar-100-python/train", "networks.py"),
    train=images("CIFAR100", train=True),
    val=images("CIFAR100", train=False),
    test=images("CIFAR100", train=False),
    normalise="--normalize 0.5071,0.4867,0.4408/0.2675,0.2565,0.2761",
    batch=64,
    optimise=drops(0.05, "150,180,210", 0.1),
    views="--view-spec cifar-train --views 240",
    augment="--augment cifar-train",
    student="$ROOT/networks.py:resnet8x4",
    epochs=240,
    teacher="$ROOT/networks.py:resnet32x4",
    teacher_data=images("CIFAR100", train=True),
    teacher_epochs=240,
    notes=f"{RESNETS} {VALIDATED_ON_TEST}",
)

YUAN_SMALL = replace(CHO_SMALL, seeds=5, optimise=cosine(0.05), notes=GUNZIP)

YUAN_PAPER = replace(
    CIFAR100_PAPER,
    needs=("cifar-100-python/train", "networks.py", "rotated.json"),
    batch=128,
    optimise=f"{drops(0.1, '60,120,160', 0.2)} --warmup-epochs 1",
    views="--view-spec $ROOT/rotated.json --views 200",
    augment="--augment $ROOT/rotated.json",
    epochs=200,
    teacher_epochs=200,
    notes=f"{ROTATED} {VALIDATED_ON_TEST}",
)

NPZ = "npz:$ROOT/cifar10_lossless_subset.npz"

CIFAR10_SMALL = Settings(
    cost="10 min on two cores",
    seeds=3,
    needs=("cifar10_lossless_subset.npz", "teachers/resnet56-4bfd9763.th"),
    train=f"{NPZ}?x=x_train&y=y_train&samples=0:6000",
    val=f"{NPZ}?x=x_train&y=y_train&samples=6000:7292",
    test=f"{NPZ}?x=x_test&y=y_test",
    normalise="--normalize cifar10",
    batch=32,
    optimise=cosine(0.02),
    workers="--workers 0",
    student="cnn5",
    epochs=15,
    teacher="$ROOT/teachers/resnet56-4bfd9763.th --arch resnet56 --normalize imagenet",
)
