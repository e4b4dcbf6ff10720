"""Store each epoch's eval-mode logits as a snapshot of RUN/self.zarr: ``--record-logits``.

They are a store like any other: they can teach, be served, compared and drawn.
"""

from __future__ import annotations

import json

from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.run import build
from logitstore.precompute.views import Views
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.run.folder import RunFolder

STORE = "self.zarr"
_VIEW = "self-view.json"
_BATCH = 256


def record_logits(
    config: TrainConfig, run: RunFolder, views: Views, epoch: int, micro_batch: int | None
) -> None:
    """Build snapshot ``epoch-NNNN`` of RUN/self.zarr from that epoch's weights (1 is the first).

    The student sees the whole dataset without what is random.  A snapshot that exists stays as it
    is.  Raises what a build raises.
    """
    plain = views.evaluation()
    spec = "eval"
    if plain.spec:
        run.put(_VIEW, json.dumps(plain.spec).encode())
        spec = str(run.path / _VIEW)
    build(
        BuildConfig(
            teachers=[str(run.path / f"snapshots/epoch-{epoch:04d}.safetensors")],
            data=config.data,
            arch=[config.student],
            out=str(run.path / STORE),
            view_spec=spec,
            size=plain.size,
            batch_size=micro_batch or _BATCH,
            workers=config.workers,
            device=config.device,
        )
    )
