"""`score replay`: an update of a run taken again from its files, to prove its policy or to see what tokens earned."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from score_cli.config import SftConfig, Stage1Config, Stage2Config
from score_cli.errors import JobError, UserError
from score_cli.phases import BASE, CONFIG_FILE, START, Phase, plan_phases
from score_cli.progress import SILENT, Progress
from score_cli.run_config import RunConfig
from score_cli.run_folder import RunFolder
from score_cli.settings import config_of
from score_cli.stages.train import GradedBatch, open_trainer, read_batch
from score_cli.tables.checkpoints import stored_state
from score_cli.tables.provenance import short_digest
from score_cli.training.token_credit import TokenCredit, token_credit
from score_cli.training.trainer import Trainer


class TraceName(NamedTuple):
    """One trace of an update."""

    problem_id: str
    sample_index: int


@dataclass(frozen=True)
class Replayed:
    """What was found.

    Attributes:
        policy: fingerprint after the update.
        proved_by: the file that holds the same fingerprint; None where the run has not come so far.
        credits: of the trace that was asked for.
    """

    policy: str
    proved_by: Path | None
    credits: Sequence[TokenCredit] = ()


def replay(
    root: Path,
    iteration: int,
    *,
    model: Path | None = None,
    trace: TraceName | None = None,
    progress: Progress = SILENT,
) -> Replayed:
    """Take an update of a run again, from the checkpoint nearest before it and the files of every update since.

    Args:
        iteration: the update's number, as its folder has it.
        model: the policy that the run was started from, where it was given one.
        trace: whose tokens' credit to tell.
    Raises:
        UserError: the folder holds no such update, or lacks a file.
        JobError: an update does not end in the policy that the run went on with.
    """
    folder = RunFolder(root)
    phases = _phases_of(_read_config(root))
    phase = _phase_of(root, phases, iteration)
    assert not isinstance(phase.config, SftConfig)
    kept = folder.kept(phase, iteration)
    before = phases[phases.index(phase) - 1].name if phase is not phases[0] else BASE
    trainer = open_trainer(
        phase.config,
        model=_policy(folder, before, model) if kept is None else kept,
        reference=_policy(folder, phase.reference, model),
        new_phase=kept is None and phase.first > 0,
        as_base=kept is None and before == BASE,
    )
    credits: list[TokenCredit] = []
    proof: Path | None = None
    with progress.phase("replaying", iteration + 1 - trainer.policy.state.iteration) as task:
        for number in range(trainer.policy.state.iteration, iteration + 1):
            with folder.updates.opened(number) as files:
                signals = files / "signals.parquet" if trainer.pay.signals else None
                batch = read_batch(trainer, files / "traces.parquet", files / "rewards.parquet", signals)
            if number == iteration and trace is not None:
                credits = _credits(trainer, batch, trace, folder.updates.place(number) / "traces.parquet")
            trainer.update(
                batch.traces,
                batch.verdicts,
                temperature=batch.temperature,
                other_engine=batch.other_engine,
                signals=batch.signals,
            )
            proof = _proof(folder, phase, number, trainer.policy.state.fingerprint)
            task.advance()
    return Replayed(trainer.policy.state.fingerprint, proof, credits)


def _read_config(root: Path) -> dict[str, dict[str, Any]]:
    try:
        return dict(json.loads((root / CONFIG_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{root} holds no run: name a folder that `score run` wrote into") from None


def _phases_of(config: dict[str, dict[str, Any]]) -> list[Phase]:
    return plan_phases(
        config_of(RunConfig, config["run"]),
        stage1=config_of(Stage1Config, config["stage1"]),
        stage2=config_of(Stage2Config, config["stage2"]),
        sft=config_of(SftConfig, config["sft"]),
        attempts=int(config["sample"]["attempts"]),
    )


def _phase_of(root: Path, phases: Sequence[Phase], iteration: int) -> Phase:
    """The phase that an update belongs to."""
    for phase in phases:
        if phase.first <= iteration < phase.last:
            if isinstance(phase.config, SftConfig):
                given = "--examples and the run's dialogues" if phase.name == START else "its traces and rewards"
                raise UserError(
                    f"update {iteration} is a supervised round: `score train-sft` on {given} takes it again, and "
                    "sft.parquet holds what it learned from"
                )
            return phase
    last = phases[-1].last - 1 if phases else -1
    raise UserError(f"{root} plans no update {iteration}, expected one from 0 to {last}")


def _policy(folder: RunFolder, name: str, model: Path | None) -> Path:
    """The checkpoint of a policy of the run."""
    if name == BASE and model is not None:
        return model
    path = folder.policy(name)
    if not path.exists():
        what = "name the policy that the run was started from with --model" if name == BASE else "restore it"
        raise UserError(f"{path} is not there, and the update started from it: {what}")
    return path


def _credits(trainer: Trainer, batch: GradedBatch, name: TraceName, path: Path) -> list[TokenCredit]:
    """What the tokens of one trace are credited with."""
    rows = [row for row, each in enumerate(batch.traces) if (each.problem_id, each.sample_index) == name]
    if not rows:
        known = sorted({trace.problem_id for trace in batch.traces})
        raise UserError(
            f"{path} has no trace {name.problem_id} {name.sample_index}, expected a problem such as {known[0]} and a "
            "sample from 0 on: `score show` lists them"
        )
    prepared = trainer.prepare(
        batch.traces,
        batch.verdicts,
        temperature=batch.temperature,
        other_engine=batch.other_engine,
        signals=batch.signals,
    )
    return token_credit(trainer, prepared, rows[0])


def _proof(folder: RunFolder, phase: Phase, iteration: int, found: str) -> Path | None:
    """The file in which the run went on with the policy after an update.

    Raises:
        JobError: the run went on with another.
    """
    nexts = folder.updates.traces_footer(iteration + 1)
    end = folder.policy(phase.name)
    if iteration + 1 == phase.last and end.exists():
        path, expected = end, stored_state(end).fingerprint
    elif iteration + 1 < phase.last and nexts is not None:
        path, expected = folder.updates.place(iteration + 1) / "traces.parquet", nexts.policy or ""
    else:
        return None
    if expected != found:
        raise JobError(
            f"update {iteration} taken again gives policy {short_digest(found)}, and {path} has "
            f"{short_digest(expected)}: the files were changed, or this machine or its libraries compute otherwise"
        )
    return path
