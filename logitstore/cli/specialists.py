"""Work on classes: the commands ``correct-bias``, ``specialists plan`` and ``combine``.

What is heavy is imported inside the bodies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from logitstore.cli.console import emit, note, progress_on_stderr
from logitstore.cli.options import (
    AtTemperature,
    Data,
    Device,
    Encoding,
    ForwardSize,
    Fresh,
    Json,
    MaxKl,
    Normalization,
    RowDigests,
    Store,
    Student,
    TokenFile,
    Trained,
    TrustRun,
    read_token,
    split_listed,
)
from logitstore.cli.show.training import bias_lines
from logitstore.errors import InputError
from logitstore.text import percent

commands = typer.Typer()


@commands.command("correct-bias")
def correct_bias(
    run: Trained,
    data: Data,
    class_: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            help="Name or number of a class, with commas, or repeat; without it those that the "
            "run omitted.",
        ),
    ] = None,
    by: Annotated[
        Literal["validation", "prior"],
        typer.Option(
            help="Choose the shift that is most accurate on --data (validation), or the one that "
            "predicts the class as often as the prior says, without labels (prior)."
        ),
    ] = "validation",
    prior: Annotated[
        str | None,
        typer.Option(
            metavar="uniform|STORE|SHARE,…",
            help="For --by prior: uniform, a store whose label shares are taken, or shares of "
            "--class. Without it uniform.",
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Data that are measured too; nothing is chosen on them."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="CKPT.safetensors", help="File of the corrected weights."),
    ] = None,
    student: Student = None,
    normalize: Normalization = None,
    batch_size: ForwardSize = 256,
    device: Device = None,
    trust_run: TrustRun = False,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Raise the bias of classes that a student never saw.

    After train --omit-class. One shift for all of them by validation, one for each by the prior.

    \b
    logitstore correct-bias runs/without-3 --data npz:val.npz --test npz:test.npz \\
        --out new.safetensors
    logitstore correct-bias runs/without-3 --class 3 --data npz:train.npz --by prior --prior 0.1
    """
    from logitstore.trainer.evaluation.bias import correct_bias as shift_bias

    if prior is not None and by != "prior":
        raise InputError("--prior belongs to --by prior: give both, or drop it")
    shifted = shift_bias(
        run,
        data,
        split_listed(class_) or (),
        by=by,
        prior=_prior(prior),
        test=test,
        out=out,
        student=student,
        normalize=normalize,
        token=read_token(token_file),
        batch_size=batch_size,
        device=device,
        trust_run=trust_run,
    )
    emit(as_json, shifted, bias_lines(shifted))


specialists = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Specialists for the classes that a generalist confuses.

    plan them from its stored logits, train each with train --specialist, build their stores,
    combine all into one snapshot.""",
)


commands.add_typer(specialists, name="specialists")


@specialists.command("plan")
def plan(
    store: Store,
    clusters: Annotated[int, typer.Option(help="Number of groups that K-means finds.")],
    out: Annotated[Path, typer.Option(metavar="PLAN.json", help="File of the plan.")],
    snapshot: Annotated[
        str | None, typer.Option(help="The generalist, if there are several snapshots.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of K-means.")] = 0,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Group the classes that a generalist confuses.

    K-means on the columns of the covariance of its predictions. A class alone in its group gets no
    specialist.

    \b
    logitstore specialists plan digits.zarr --snapshot generalist --clusters 3 --out plan.json
    """
    from logitstore.derive.specialists import plan_specialists, write_plan
    from logitstore.reading.opening import open_snapshot

    opened, chosen = open_snapshot(store, snapshot, read_token(token_file))
    with progress_on_stderr() as progress:
        groups, notes = plan_specialists(
            opened, chosen, clusters=clusters, seed=seed, progress=progress
        )
    write_plan(groups, out)
    for text in notes:
        note(f"note: {text}")
    lines = [
        f"{group.name}: {len(group.classes)} classes, {percent(group.share)} of the samples: "
        f"{', '.join(groups.names_of(group.classes))}"
        for group in groups.specialists
    ]
    emit(as_json, groups.model_dump(mode="json"), lines)


@commands.command()
def combine(
    stores: Annotated[
        list[str],
        typer.Argument(metavar="STORE", help="The specialists' stores, each STORE[::SNAPSHOT]."),
    ],
    generalist: Annotated[
        str, typer.Option(metavar="STORE[::SNAPSHOT]", help="The generalist's logits.")
    ],
    specialists: Annotated[
        Path, typer.Option(metavar="PLAN.json", help="The plan that the specialists were made by.")
    ],
    out: Annotated[str, typer.Option(metavar="STORE", help="The store to make or add to.")],
    snapshot: Annotated[str, typer.Option(help="The new snapshot's name.")],
    dustbin: Annotated[
        Literal["share", "odds"],
        typer.Option(
            help="Correction of a specialist's rest class, its own being the share f of the data: "
            "log(0.5 / f), as the paper says, or log((1 - f) / f), the exact odds."
        ),
    ] = "share",
    encoding: Encoding = None,
    max_kl: MaxKl = None,
    at_temperature: AtTemperature = None,
    row_digests: RowDigests = "auto",
    fresh: Fresh = False,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Join a generalist and its specialists to one teacher.

    For each row the distribution with the least KL from the generalist and from the specialists of
    its best class; an ordinary snapshot, that teaches like any other. The same command resumes.

    \b
    logitstore combine --generalist digits.zarr::generalist --specialists plan.json \\
        s1.zarr s2.zarr --out digits.zarr --snapshot combined
    """
    from logitstore.cli.show.builds import print_built
    from logitstore.derive.combine import Specialist
    from logitstore.derive.combine import combine as run
    from logitstore.derive.specialists import read_plan
    from logitstore.format.choice import EncodingRequest

    request = EncodingRequest(
        text=encoding, max_kl=max_kl, at_temperature=at_temperature, row_digests=row_digests
    )
    token, groups = read_token(token_file), read_plan(specialists)
    opened, chosen = _open_named(generalist, token, besides=snapshot)
    others = [Specialist(*_open_named(store, token)) for store in stores]
    if chosen.root != groups.generalist:
        note(f"note: the plan was made from another snapshot, root {groups.generalist}")
    with progress_on_stderr() as progress:
        run(
            opened,
            chosen,
            groups,
            others,
            out,
            snapshot,
            request,
            dustbin=dustbin,
            fresh=fresh,
            progress=progress,
        )
    print_built(out, [snapshot], as_json, request)


def _open_named(text: str, token: str | None, besides: str | None = None) -> Any:
    """Open ``STORE[::SNAPSHOT]``: return the store and the snapshot."""
    from logitstore.reading.opening import open_snapshot

    place, colons, name = text.rpartition("::")
    if not colons:
        return open_snapshot(text, None, token, besides=besides)
    return open_snapshot(place, name, token)


def _prior(text: str | None) -> str | list[float]:
    """Return ``uniform``, shares, or else a store's path or URL."""
    try:
        return [float(part) for part in (text or "").split(",")]
    except ValueError:
        return text or "uniform"
