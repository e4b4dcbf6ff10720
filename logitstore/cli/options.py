"""Define the options that several commands have, as types with their help, and read their texts.

Nothing but the standard library and typer is imported here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from logitstore.errors import InputError, NotFound

Store = Annotated[str, typer.Argument(metavar="STORE|URL", help="A store's path or URL.")]

SnapshotName = Annotated[
    str | None, typer.Option("--snapshot", help="Name of the snapshot, if there are several.")
]

Trained = Annotated[str, typer.Argument(metavar="RUN|CKPT", help="A training run or a checkpoint.")]

Student = Annotated[str | None, typer.Option(metavar="ARCH", help="Network of a checkpoint.")]

ForwardSize = Annotated[
    int, typer.Option("--batch-size", min=1, help="Images in one forward pass.")
]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

TrustRun = Annotated[
    bool,
    typer.Option("--trust-run", help="Run the code that a run's own files name."),
]

Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="Data: npz:FILE?x=X&y=Y, torchvision:NAME?root=R&train=true, imagefolder:PATH, "
        "digits, module:factory or file.py:factory; any of them with samples=START:STOP.",
    ),
]

Fresh = Annotated[bool, typer.Option("--fresh", help="Forget an unfinished build of this name.")]

TokenFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the server's bearer token, if not the environment's LOGITSTORE_TOKEN."
    ),
]

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="TOML file with settings, such as a run's config.toml. Options win over it.",
    ),
]

Encoding = Annotated[
    str | None,
    typer.Option(
        metavar="ENCODING",
        help="How rows are kept: float32, float16, uint8[:LEVELS], topk:K, or auto, the smallest "
        "within --max-kl. Without it uint8 for 33 to 4,096 classes, else float16.",
    ),
]

MaxKl = Annotated[
    float | None,
    typer.Option(
        help="Most nats of KL that may be lost on average; without it 1e-4 for auto, else no bound."
    ),
]

AtTemperature = Annotated[
    float | None,
    typer.Option(help="Temperature at which --max-kl holds; without it 4, or 1 for topk."),
]

RowDigests = Annotated[
    Literal["auto", "yes", "no"],
    typer.Option(
        help="Keep a digest of each row, by which rows that a server streams are proven to be "
        "those of the root; auto: if a row has at least 128 bytes."
    ),
]

Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N; without it a GPU if there is one.")
]

Normalization = Annotated[
    str | None,
    typer.Option(
        help="How pixels are scaled: imagenet, cifar10, none or MEAN/STD such as "
        "0.5,0.5,0.5/0.2,0.2,0.2."
    ),
]

MatchBy = Annotated[
    Literal["index", "key"],
    typer.Option(help="How samples are found in the store: by their order or by their file names."),
]

CacheDir = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Folder of the decoded copies; without it the environment's LOGITSTORE_CACHE or "
        "~/.cache/logitstore.",
    ),
]

ClassMap = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="JSON object from the data's class to the store's class."),
]


def split_listed(texts: list[str] | None) -> tuple[str, ...] | None:
    """Return the parts of an option that is repeated or has commas, None if it is absent."""
    if texts is None:
        return None
    return tuple(part.strip() for text in texts for part in text.split(","))


def read_token(path: Path | None) -> str | None:
    """Return the client's token: from a file, else from the environment."""
    if path is None:
        return os.environ.get("LOGITSTORE_TOKEN")
    try:
        words = path.read_text().split()
    except FileNotFoundError:
        raise NotFound(f"{path}: there is no such token file") from None
    except OSError as error:
        raise InputError(f"{path}: the token file cannot be read: {error.strerror}") from None
    if len(words) != 1:
        raise InputError(f"{path}: expected exactly one token, found {len(words)} words")
    return words[0]
