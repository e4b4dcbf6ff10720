"""Prepare data for a student that takes all classes but a few as one: ``--specialist``.

Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 5: begun with the generalist's weights
(``--init``), trained on labels, half of what an epoch shows being of its own classes.  The class
map of the run says which class is which output, to ``build`` and ``evaluate`` as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from logitstore.derive.specialists import read_plan
from logitstore.precompute.data.classes import Classes, ClassMap, renumbered
from logitstore.precompute.data.images import ImageDataset
from logitstore.trainer.config.specs import parse_specialist
from logitstore.trainer.data.source import Indices, Source


def specialised(dataset: ImageDataset, text: str) -> tuple[ImageDataset, ClassMap]:
    """Number the labels of a dataset with the generalist's classes as ``FILE.json:NAME`` does.

    The last class is all others.  Returns the class map that does it, too.  Raises InputError,
    NotFound, UnknownName with the plan's names, or MismatchError if the data have other classes
    than the generalist.
    """
    file, name = parse_specialist(text)
    plan = read_plan(file)
    cluster = plan.cluster(name)
    general = Classes(owner=file, count=plan.classes, names=plan.class_names)
    renumbered(dataset, general, remedy="make the plan from a store of these data")
    # A class map's key is a name first: where the data have names, only these are safe.
    keys: Sequence[str] = dataset.class_names or [str(number) for number in range(plan.classes)]
    if dataset.class_names is not None and plan.class_names is not None:
        keys = plan.class_names
    class_map = dict(zip(keys, plan.numbers(cluster).tolist(), strict=True))
    outputs = plan.outputs(cluster)
    classes = Classes(owner=f"specialist {name!r}", count=len(outputs), names=outputs)
    return renumbered(dataset, classes, class_map), class_map


def own_and_others(source: Source, samples: Indices) -> tuple[Indices, Indices]:
    """Split a specialist's samples, both parts ascending: its own classes', and the others'.

    Samples without a label are in neither.
    """
    labels = source.dataset.labels[samples]
    rest = source.classes - 1
    return samples[(labels >= 0) & (labels < rest)], samples[labels == rest]
