"""`score merge-adapter`: a policy that was trained with LoRA, as a whole model."""

from pathlib import Path

from score_cli.errors import UserError
from score_cli.tables.adapters import merge_into
from score_cli.tables.atomic import check_output, replacing_folder
from score_cli.tables.checkpoints import TrainerState, fingerprint, load_policy, save_policy
from score_cli.tables.provenance import short_digest

STAGE = "merged"


def merge_adapter(model: Path, *, out: Path, overwrite: bool = False) -> str:
    """Add a policy's adapter to its base, and write the sum as a checkpoint that starts a chain of its own.

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
    state = TrainerState(stage=STAGE, fingerprint=fingerprint(whole), parent=policy.state.fingerprint)
    with replacing_folder(out) as folder:
        save_policy(folder, whole, policy.tokenizer, state)
    return f"policy {short_digest(state.fingerprint)}, merged from {short_digest(policy.state.fingerprint)}"
