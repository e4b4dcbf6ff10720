"""Find trained weights, and prepare data as their network expects it.

A run, or a checkpoint inside one, knows its network; for any other checkpoint the caller says it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from logitstore.errors import InputError
from logitstore.precompute.data.classes import (
    Classes,
    ClassMap,
    map_for,
    read_class_map,
    renumbered,
)
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.networks.checkpoints import load_weights
from logitstore.precompute.networks.factory import build_model
from logitstore.precompute.networks.pixels import parse_normalize
from logitstore.precompute.networks.state_dicts import load_into
from logitstore.precompute.networks.teachers import find_teachers
from logitstore.precompute.views import Views, parse_views
from logitstore.storage.plain_files import MOST_JSON_BYTES, read_plain
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.config.specs import split_share
from logitstore.trainer.data.bind import open_held_out
from logitstore.trainer.data.source import Indices, Source
from logitstore.trainer.measure.network import Network, first_shape
from logitstore.trainer.run.device import own_randomness, training_device
from logitstore.trainer.run.folder import run_of, weights_file
from logitstore.trainer.run.result import CONFIG, INPUTS, Inputs


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A weights file; ``run`` and ``inputs`` are those of the run that it belongs to, if any.

    ``trust_run``: data that the run's file names may run code.
    """

    path: Path
    arch: str
    normalize: str | None
    run: Path | None
    inputs: Inputs | None
    trust_run: bool = False

    def source(
        self,
        data: str,
        *,
        untyped: Path | None = None,
        view_spec: str | None = None,
        size: int | None = None,
        class_map: str | None = None,
    ) -> Source:
        """Open data to measure on, prepared as the run's were but for what is random.

        Their classes are numbered as the network's outputs where the run knows these.  The ``val``
        of a run that held samples out, split:SHARE, stands for these samples.  ``untyped`` is
        the file that the data stand in, None if a user named them.
        """
        dataset, samples = self._opened(data, untyped)
        dataset, numbers = self._numbered(dataset, class_map)
        return Source(
            dataset=dataset,
            views=self.views(view_spec, size),
            classes=dataset.class_count if self.inputs is None else self.inputs.classes,
            subset=samples,
            class_map=numbers,
        )

    def views(self, view_spec: str | None, size: int | None) -> Views:
        """Return how to prepare images: as the caller says, else as in the run; nothing random."""
        if view_spec is None and self.inputs is not None:
            size = self.inputs.size if size is None else size
            return Views(self.inputs.view_spec, size).evaluation()
        return parse_views(view_spec or "eval", size).evaluation()

    def network(self, source: Source, device: str | None, batch_size: int) -> Network:
        """Load the network for a source's images; InputError or MismatchError if they do not fit.

        It is built for images of its run's shape, if it is in one.
        """
        place, shape = training_device(device, "fp32"), first_shape(source)
        built_for = shape if self.inputs is None else self.inputs.input_shape
        with own_randomness(0, place):  # initial weights are drawn and then replaced
            model = build_model(self.arch, classes=source.classes, shape=built_for)
        load_into(model, load_weights(self.path)[0], str(self.path))
        normalize = parse_normalize(self.normalize, shape[0])
        network = Network(model.to(place), normalize, place, batch_size)
        network.check(source)
        return network

    def _opened(self, data: str, untyped: Path | None) -> tuple[ImageDataset, Indices | None]:
        """Open a dataset, and say which of its samples are meant (None: all)."""
        if split_share(data) is None:
            return open_dataset(data, None if self.trust_run else untyped), None
        if self.run is None:
            raise InputError(f"{data}: {self.path} is in no run that held samples out: give DATA")
        config = TrainConfig.from_toml(self.run / CONFIG)
        file = None if self.trust_run else self.run / CONFIG
        return open_held_out(self.run, config, data, file)

    def _numbered(
        self, dataset: ImageDataset, class_map: str | None
    ) -> tuple[ImageDataset, ClassMap | None]:
        """Return the dataset with its classes numbered as the run's, and the map for other data."""
        if self.inputs is None:
            return dataset, None
        classes = Classes(
            owner=str(self.path), count=self.inputs.classes, names=self.inputs.class_names
        )
        if class_map is None:
            numbers = map_for(dataset, self.inputs.class_map)
            return renumbered(dataset, classes, numbers), self.inputs.class_map
        chosen = read_class_map(class_map)
        return renumbered(dataset, classes, chosen), chosen


def find_trained(
    run_or_checkpoint: str | Path,
    student: str | None = None,
    normalize: str | None = None,
    *,
    trust_run: bool = False,
) -> Trained:
    """Find weights; ``student`` and ``normalize`` replace what their run says.

    ``trust_run``: the run's file may name a network and data as a user may.  NotFound if there are
    no weights; InputError for a network that nobody names, or that a file names and could run code.
    """
    path = weights_file(Path(run_or_checkpoint))
    archs = [] if student is None else [student]
    checkpoint = find_teachers([str(path)], archs=archs, trust_run=trust_run)[0]
    arch = checkpoint.architecture("--student")
    run = run_of(path)
    return Trained(
        path=path,
        arch=arch,
        normalize=normalize or checkpoint.normalize,
        run=run,
        inputs=None
        if run is None
        else Inputs.parse(f"{run}/{INPUTS}", read_plain(run / INPUTS, MOST_JSON_BYTES)),
        trust_run=trust_run,
    )
