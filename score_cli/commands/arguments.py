"""Arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Problems = Annotated[Path, typer.Option(help="Problems table, made by `score data`.")]
Traces = Annotated[Path, typer.Option(help="Traces table, made by `score sample`.")]
Rewards = Annotated[Path, typer.Option(help="Rewards table, made by `score verify`.")]
Model = Annotated[Path, typer.Option(help="Policy: a checkpoint folder, or a Hugging Face model id.")]
Reference = Annotated[
    Path | None,
    typer.Option(help="Policy the KL terms are measured from: the start of the chain; left out, --model is the start."),
]
AllowForeign = Annotated[
    bool, typer.Option("--allow-foreign", help="Train on tables without a score footer; the policy is not proved.")
]
NewPhase = Annotated[
    bool,
    typer.Option(
        "--new-phase",
        help="--model ends one phase and starts another: fresh Adam moments, and --reference may be another policy "
        "than before (the model itself if left out).",
    ),
]
