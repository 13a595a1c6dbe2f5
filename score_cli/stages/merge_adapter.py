"""`score merge-adapter`: a policy that was trained with LoRA, as a whole model."""

from pathlib import Path

import torch

from score_cli.config import Stored
from score_cli.errors import UserError
from score_cli.tables.adapters import merge_into
from score_cli.tables.atomic import check_output, replacing_folder
from score_cli.tables.checkpoints import TrainerState, fingerprint, load_policy, save_policy
from score_cli.tables.provenance import short_digest

STAGE = "merged"


def merge_adapter(model: Path, *, out: Path, dtype: Stored = "float32", overwrite: bool = False) -> str:
    """Add a policy's adapter to its base, and write the sum as a checkpoint that starts a chain of its own.

    Args:
        dtype: that the sum is rounded to, once.
    Returns:
        One line that says what it is.
    Raises:
        UserError: the checkpoint has no adapter; nothing is written.
    """
    check_output(out, overwrite=overwrite, folder=True)
    policy = load_policy(model)
    if policy.base is None:
        raise UserError(f"{model} has no adapter: it is a whole model already")
    whole = policy.base.model
    merge_into(whole, policy.model)
    stored: torch.dtype = getattr(torch, dtype)
    # A policy is known by its weights as they are loaded: rounded, and in float32.
    known = fingerprint(whole.to(stored).float())
    state = TrainerState(stage=STAGE, fingerprint=known, parent=policy.state.fingerprint)
    with replacing_folder(out) as folder:
        save_policy(folder, whole.to(stored), policy.tokenizer, state)
    return f"policy {short_digest(state.fingerprint)}, merged from {short_digest(policy.state.fingerprint)}"
