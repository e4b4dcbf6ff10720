"""Options that several commands have: their types, and what ``--help`` says of them.

Like ``cli``, this imports nothing but the standard library and typer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

Precision = Literal["fp32", "bf16", "fp16"]


Store = Annotated[str, typer.Argument(metavar="STORE|URL", help="A store's path or URL.")]


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="npz:FILE?x=X&y=Y, torchvision:NAME?root=R&train=true, imagefolder:PATH, digits, "
        "module:factory or file.py:factory; any of them with samples=START:STOP.",
    ),
]


Fresh = Annotated[bool, typer.Option("--fresh", help="Forget an unfinished build of that name.")]


TokenFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the server's bearer token (else the environment's LOGITSTORE_TOKEN)."
    ),
]


ConfigFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="TOML file with settings; options go before it."),
]


Encoding = Annotated[
    str | None,
    typer.Option(
        metavar="ENCODING",
        help="How rows are kept: float32, float16, uint8[:LEVELS], topk:K, or auto, the smallest "
        "within --max-kl. Default: uint8 for 33 to 4,096 classes, else float16.",
    ),
]


MaxKl = Annotated[
    float | None,
    typer.Option(help="Refuse to lose more nats of KL than this, on average; auto: 1e-4."),
]


AtTemperature = Annotated[
    float | None, typer.Option(help="Where --max-kl holds; default 4, or 1 for topk.")
]


Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")
]


Normalization = Annotated[
    str | None,
    typer.Option(help="imagenet, cifar10, none or MEAN/STD such as 0.5,0.5,0.5/0.2,0.2,0.2."),
]


MatchBy = Annotated[
    str | None,
    typer.Option(
        metavar="index|key",
        help="How samples are found in the store: by order (index, the default) or by file name.",
    ),
]


CacheDir = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Decoded copies; default: the environment's LOGITSTORE_CACHE or ~/.cache/logitstore.",
    ),
]


ClassMap = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="JSON object: the data's class -> the store's class."),
]


def listed(given: list[str] | None) -> tuple[str, ...] | None:
    """What an option that is repeated, or has commas, holds; None if it was not given."""
    if given is None:
        return None
    return tuple(part.strip() for each in given for part in each.split(","))


def read_token(path: Path | None) -> str | None:
    """The client's token: from a file, else from the environment."""
    if path is None:
        return os.environ.get("LOGITSTORE_TOKEN")
    from logitstore.errors import InputError, NotFound

    try:
        words = path.read_text().split()
    except FileNotFoundError:
        raise NotFound(f"{path}: there is no such token file") from None
    except OSError as error:
        raise InputError(f"{path}: the token file cannot be read: {error.strerror}") from None
    if len(words) != 1:
        raise InputError(f"{path}: expected exactly one token, found {len(words)} words")
    return words[0]
