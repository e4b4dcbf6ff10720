"""Views: exactly what a network sees of a sample, reproducible bit for bit.

The build and the trainer make the same call.  A draw depends on (seed, view, sample) and on
nothing else: not on workers, order, ranks or a resumed run.  All steps of a spec work at the
image's own resolution; the output size comes last and is kept apart from the spec, so that networks
of different input sizes see the same region.  Images are PIL images until the end (tensors
give other bits on other CPUs).  A view is uint8; scaling and normalisation belong to the network
(``pixels``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from logitstore.errors import InputError
from logitstore.format.cards import ViewCard
from logitstore.precompute.data.images import MOST_PIXELS, as_image
from logitstore.precompute.views.mix import check_mix
from logitstore.precompute.views.presets import evaluation_spec, parse_view_spec
from logitstore.precompute.views.transforms import Spec, cuts_regions, grown, is_random, transforms


class Views:
    """``views(image, sample=i, view=v)`` -> uint8 (C, H, W): the same call for teacher and student.

    ``size`` is the side of the result: a cut-out region is resized to it, anything else has its
    shorter side resized and the centre cut out; None keeps what the spec gives.  ``mix`` is only
    kept here: ``ViewItems`` mixes samples with their partners, a call here shows one sample alone.
    Raises InputError or UnknownName for a transform or an argument that is not allowed.

    A random view seeds torch's global CPU generator and puts it back; not from two threads of one
    process at a time.
    """

    def __init__(
        self,
        spec: Iterable[Mapping[str, Any]],
        size: int | None = None,
        seed: int = 0,
        mix: Mapping[str, float] | None = None,
    ) -> None:
        self.spec: Spec = tuple(dict(step) for step in spec)
        self.size, self.seed = size, seed
        self.mix = None if mix is None else check_mix(mix, "mix")
        self._steps: list[tuple[tuple[str, Any], Mapping[str, Any]]] = list(
            zip(transforms(self.spec), self.spec, strict=True)
        )
        self._draws = is_random(self.spec)
        if size is not None and not 1 <= size <= 4096:
            raise InputError(f"--size must be in 1..4096, not {size}")
        if size is None and cuts_regions(self.spec):
            raise InputError("RandomResizedCrop needs a size to resize its regions to: give --size")
        if size is not None:
            self._steps += _sizing(size, exactly=cuts_regions(self.spec))

    @property
    def random(self) -> bool:
        """Tell whether two views of a sample may differ."""
        return self._draws or self.mix is not None

    def evaluation(self) -> Views:
        """Return the same preparation without anything random, for measuring."""
        return Views(evaluation_spec(self.spec), self.size)

    def __call__(self, image: Any, *, sample: int, view: int) -> Tensor:
        """Make one view; ``sample`` and ``view`` are all that a draw may depend on.

        ``image`` is whatever ``as_image`` accepts.  InputError if a step cannot be done to it.
        """
        if not self._steps and _is_plain(image):
            return _pixels(image)  # what the way through PIL gives, at a tenth of its time
        image = as_image(image, f"sample {sample}")
        image = self._drawn(image, sample, view) if self._draws else self._applied(image)
        return _pixels(np.asarray(image))

    def _drawn(self, image: Image.Image, sample: int, view: int) -> Image.Image:
        generator = torch.default_generator
        before = generator.get_state()
        try:
            generator.manual_seed(draw_seed(self.seed, view, sample))
            return self._applied(image)
        finally:
            generator.set_state(before)

    def _applied(self, image: Image.Image) -> Image.Image:
        for (where, step), arguments in self._steps:
            width, height = grown(arguments, image.width, image.height)
            if width * height > max(MOST_PIXELS, image.width * image.height):
                raise InputError(
                    f"{where} would make {width}x{height} pixels of an image of "
                    f"{image.width}x{image.height}; at most {MOST_PIXELS:,} are made"
                )
            try:
                image = step(image)
            except (ValueError, TypeError, MemoryError) as error:
                raise InputError(
                    f"{where} cannot be done to an image of {image.width}x{image.height} "
                    f"({image.mode}): {error}"
                ) from None
        return image


def draw_seed(seed: int, view: int, sample: int) -> int:
    """Return the seed of one view of one sample: 63 bits of a hash; torch uses the low 32.

    >>> draw_seed(0, 0, 0) == draw_seed(0, 0, 1)
    False
    """
    digest = sha256(f"view {seed} {view} {sample}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def parse_views(
    text: str, size: int | None, seed: int = 0, mix: Mapping[str, float] | None = None
) -> Views:
    """Make views from a preset's name or a JSON file; without a size they have the preset's own."""
    preset = parse_view_spec(text)
    return Views(preset.spec, preset.size if size is None else size, seed, mix)


def views_of(card: ViewCard, size: int | None = None) -> Views:
    """Return the views that a snapshot was built from, at the teacher's size or another one."""
    return Views(card.spec, card.size if size is None else size, card.seed, card.mix)


def _sizing(size: int, *, exactly: bool) -> list[tuple[tuple[str, Any], Mapping[str, Any]]]:
    """Return the last steps of a view, each with its arguments as in a spec."""
    if exactly:
        return [((f"the resize to {size}x{size}", v2.Resize((size, size))), {"size": (size, size)})]
    return [
        ((f"the resize to {size}", v2.Resize(size)), {"size": size}),
        (("the cut", v2.CenterCrop(size)), {"size": (size, size)}),
    ]


def _is_plain(image: Any) -> bool:
    return (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3)))
    )


def _pixels(image: NDArray[np.uint8]) -> Tensor:
    """Turn uint8 (H, W) or (H, W, C) into (C, H, W)."""
    planes = image[:, :, None] if image.ndim == 2 else image
    return torch.from_numpy(planes.transpose(2, 0, 1).copy())
