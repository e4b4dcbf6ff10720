"""Each epoch's logits in eval mode, as snapshots of a store of the run's own: ``--record-logits``.

They teach, are served, compared and drawn like any teacher's: the student's own past.
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

    The whole dataset is shown as the student sees it, without what is random.  An epoch that is
    there already stays as it is.  Raises what a build raises.
    """
    shown = views.evaluation()
    spec = "eval"
    if shown.spec:
        run.put(_VIEW, json.dumps(shown.spec).encode())
        spec = str(run.path / _VIEW)
    build(
        BuildConfig(
            teachers=[str(run.path / f"snapshots/epoch-{epoch:04d}.safetensors")],
            data=config.data,
            out=str(run.path / STORE),
            view_spec=spec,
            size=shown.size,
            batch_size=micro_batch or _BATCH,
            workers=config.workers,
            device=config.device,
        )
    )
