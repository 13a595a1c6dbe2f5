"""The folder of a run: where its files lie, what it was started with, which of it is done.

RUN/config.json                 what the run was started with; who goes on in it must agree
RUN/train.parquet ...           problems of each split
RUN/base/ stage1/ sft/ stage2/  the policies: base, after Stage I, after supervised rounds, after Stage II
RUN/dialogues.jsonl, start/     dialogues of a supervised start, and the policy after it, where asked for
RUN/first_attempts.parquet      first attempts of the base that Stage II goes on from, where asked for
RUN/solves.parquet ...          the frozen generator's solves that a critic is trained on, with their rewards
RUN/iterations/0007/            traces, rewards, signals where paid for, metrics: the update from policy 7 to policy 8
RUN/iterations/0000-0099/       the same of a hundred old updates
RUN/latest/0010/                the newest checkpoints between those, to go on from
RUN/best/, best.json            the best policy of the last phase, where asked for, and why it is the best
RUN/eval/, metrics.parquet      what the policies do on held-out problems
RUN/train_metrics.parquet       every logged metric of every update
RUN/log.jsonl                   a line an update as it ends: seconds by part, verdicts, metrics
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from score_cli.errors import UserError
from score_cli.phases import BASE, CONFIG_FILE, SFT, STAGE1, STAGE2, START, Phase
from score_cli.recipe import PAY, PROMPTS, SCRIPT
from score_cli.run_config import AlarmsConfig
from score_cli.tables.atomic import check_output, locked_folder, replacing_file, replacing_folder
from score_cli.tables.checkpoints import METRICS_FILE, TRAINER, TrainerState, stored_state
from score_cli.tables.parquet import METRICS, TRAIN_METRICS, read_table, write_table
from score_cli.tables.provenance import Footer
from score_cli.tables.updates import Updates

Settings = Mapping[str, Mapping[str, Any]]  # stage -> key -> value

LOG_FILE = "log.jsonl"
FORKED_FROM = "forked_from.json"
BEST = "best"
# What a run that goes on may be told otherwise: none of it changes what is computed beyond the last bits.
FREE = {
    *((stage, key) for stage in ("sample", "eval") for key in ("batch_size", "gpu_memory_utilization")),
    *((stage, key) for stage in ("sample", "eval") for key in ("tensor_parallel_size", "ray", "ray_samplers")),
    *((stage, "ray_weights") for stage in ("sample", "eval")),
    *((stage, key) for stage in ("stage1", "stage2", "sft") for key in ("micro_batch_tokens", "scoring_tokens")),
    *((stage, "gradient_checkpointing") for stage in ("stage1", "stage2", "sft")),
    ("signal", "scoring_tokens"),
    *((stage, "logprob_tolerance") for stage in ("stage1", "stage2")),
    *(
        (stage, key)
        for stage in ("sample", "signal", "stage1", "stage2", "sft", "eval")
        for key in ("device", "threads")
    ),
    *(("verify", key) for key in ("workers", "ray", "ray_graders")),
    ("run", "save_every"),
    ("run", "keep_checkpoints"),
    ("run", "compact_every"),
    ("run", "log_to"),
    *(("alarms", field.name) for field in fields(AlarmsConfig)),
}
# What a run writes before it samples or trains anything.
PREPARED = (
    *(CONFIG_FILE, "train.parquet", "validation.parquet", "test.parquet"),
    *("dialogues.jsonl", "dialogues.parquet"),
)
# What a fork takes besides the policies: problems, updates, the newest checkpoint.
FORKED = (
    *("train.parquet", "validation.parquet", "test.parquet", "first_attempts.parquet"),
    *("solves.parquet", "solves.rewards.parquet", "dialogues.jsonl", "dialogues.parquet", "iterations", "latest"),
)
# What a run takes as its own work where it finds it.
TAKEN = (*FORKED, BASE, START, STAGE1, SFT, STAGE2, BEST, "metrics.parquet", LOG_FILE)
# What may be raised: the run then goes on to more.
RAISED = {("run", "stage1_iterations"), ("run", "stage2_iterations")}
# A table of config.json -> that of a recipe, where they are called otherwise.
_TABLES = {"stage1": "train-stage1", "stage2": "train-stage2", "sft": "train-sft", "alarms": "run.alarms"}
# What of config.json is no key of a recipe, as the user knows it.
_NAMED = {
    ("inputs", "model"): "--model",
    ("inputs", "problems"): "--problems",
    ("inputs", "eval_problems"): "--eval-problems",
    ("inputs", "validation_problems"): "--validation-problems",
    ("inputs", "limit"): "--limit",
    ("inputs", "start"): "the file of run.start",
    ("inputs", "signal"): "the policy of signal.by",
    ("inputs", "grader"): "the source of verify.grader",
    ("study", "limit"): "--limit",
}
# Settings that tables of a recipe's own fill, in every stage that has them.
_OWN_TABLES = (SCRIPT, PROMPTS, PAY)
_SHOWN_CHANGES = 4
_SHOWN_CHARACTERS = 60


class RunFolder:
    """One run's folder; every path in it is asked for here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.metrics = root / "metrics.parquet"
        self.evaluation = root / "eval"
        self.first_attempts = root / "first_attempts.parquet"
        self.solves = root / "solves.parquet"
        self.best_record = root / "best.json"
        self.updates = Updates(root / "iterations")
        self._latest = root / "latest"

    def problems(self, split: str) -> Path:
        """The problems of a split."""
        return self.root / f"{split}.parquet"

    def policy(self, name: str) -> Path:
        """The checkpoint of a phase's end, or of the base."""
        return self.root / name

    def iteration(self, number: int) -> Path:
        """The folder of one update's traces, rewards and metrics."""
        return self.updates.folder(number)

    def dialogues(self, source: str) -> Path:
        """The dialogues of the supervised start, in the form of the file that they come from."""
        return self.root / ("dialogues.parquet" if source.endswith(".parquet") else "dialogues.jsonl")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out of the folder.

        Raises:
            UserError: another process works in it.
        """
        with locked_folder(self.root):
            yield

    def pin(self, settings: Settings, defaults: Settings) -> list[str]:
        """As `pin_config`, for this run; where nothing has been sampled or trained yet, it begins anew.

        Raises:
            UserError: as `pin_config`; or the folder holds no run, and files that a run would take for its own.
        """
        if (self.root / "settings.json").exists():
            raise UserError(f"{self.root} holds a run of an earlier version of score: name another --out, or delete it")
        if not (self.root / CONFIG_FILE).exists() and not (self.root / FORKED_FROM).exists():
            strange = next((name for name in TAKEN if (self.root / name).exists()), None)
            if strange is not None:
                raise UserError(
                    f"{self.root} holds no run, and {strange}, which a run would take for its own: name another --out"
                )
        if self._only_prepared():
            for name in PREPARED:
                (self.root / name).unlink(missing_ok=True)
        return pin_config(self.root / CONFIG_FILE, settings, free=FREE, raised=RAISED, defaults=defaults, forks=True)

    def _only_prepared(self) -> bool:
        """Whether all that the run has done is to put its problems here, before a wrong setting ended it."""
        found = {path.name for path in self.root.iterdir()}
        return CONFIG_FILE in found and found <= set(PREPARED)

    def fork(self, out: Path) -> None:
        """Take what this run has done into another folder, to go on there under other settings.

        Files are linked, not copied: nothing in a run's folder is ever changed in place. What was measured at the
        end is left out. `forked_from.json` keeps the settings of what came before.

        Raises:
            UserError: there is no run here, or the other folder exists.
        """
        if not (self.root / CONFIG_FILE).exists():
            raise UserError(f"{self.root} holds no run to fork: name the folder of one with --out")
        if out.exists():
            raise UserError(f"{out} exists, expected a new folder for --fork: name another, or go on there with --out")
        check_output(out, overwrite=False)
        with self.locked(), replacing_folder(out) as folder:
            for name in FORKED:
                source = self.root / name
                if source.is_dir():
                    shutil.copytree(source, folder / name, copy_function=os.link)
                elif source.exists():
                    os.link(source, folder / name)
            shutil.copyfile(self.root / CONFIG_FILE, folder / FORKED_FROM)
            if (self.root / LOG_FILE).exists():  # the one file that grows
                shutil.copyfile(self.root / LOG_FILE, folder / LOG_FILE)
            for path in self.root.iterdir():
                if (path / TRAINER).is_dir():
                    shutil.copytree(path, folder / path.name, copy_function=os.link)

    def finished(self, phase: Phase, reference: str | None) -> Path | None:
        """The checkpoint that a phase ended in, if it did; one that this run's plan did not make is refused.

        Args:
            reference: fingerprint of the policy that the phase's KL is measured from; None where it has none.
        Raises:
            UserError: a folder of the phase's name is another's.
        """
        path = self.policy(phase.name)
        if not path.exists():
            return None
        state = stored_state(path)
        inside = phase.first < state.iteration < phase.last
        if state.stage != phase.stage or not (inside or state.iteration == phase.last):
            raise UserError(
                f"{path} holds a policy after {state.iteration} updates ({state.stage}), and this run's plan has one "
                f"after {phase.last} ({phase.stage}): move it away, or name another --out"
            )
        if reference is not None and state.reference != reference:
            raise UserError(f"{path} was trained against another reference than this run's: move it away")
        self._check_parent(path, state)
        if inside:
            self._reopen(path, state.iteration)
            return None
        return path

    def _reopen(self, path: Path, iteration: int) -> None:
        """Go on with a phase that ended earlier than it now shall."""
        if self.updates.has(iteration):
            raise UserError(
                f"{path} ended after {iteration} updates and later updates went on from it, so it can have no more: "
                "name another --out"
            )
        self.metrics.unlink(missing_ok=True)
        self._latest.mkdir(exist_ok=True)
        path.rename(self.next_kept(iteration))

    def _check_parent(self, path: Path, state: TrainerState) -> None:
        """See that a policy was made from the last traces that lie here, or from given dialogues."""
        footer = self.updates.source_footer(state.iteration - 1)
        if footer is None or footer.policy != state.parent:
            place = self.updates.place(state.iteration - 1)
            raise UserError(f"{path} was not made from the traces of {place}: move it away, or name another --out")

    def checkpoints(self) -> list[Path]:
        """Every checkpoint that the run has made: ends of phases, the best, and what is kept to go on from.

        A base that was built here is none of them.
        """
        ends = [path for path in self.root.iterdir() if path.name != BASE and (path / TRAINER).is_dir()]
        return [*ends, *self._latest.glob("[0-9]*")]

    def kept(self, phase: Phase, most: int | None = None) -> Path | None:
        """The newest checkpoint inside a phase, of at most so many updates."""
        last = phase.last - 1 if most is None else most
        inside = [path for path in self._latest.glob("[0-9]*") if phase.first < int(path.name) <= last]
        return max(inside, key=lambda path: int(path.name), default=None)

    def next_kept(self, finished: int) -> Path:
        """Where the checkpoint after so many updates is kept for a killed run to go on from."""
        return self._latest / f"{finished:04d}"

    def drop_kept(self, newest: int = 0) -> None:
        """Remove the checkpoints kept in between, but for so many of the newest."""
        kept = sorted(self._latest.glob("[0-9]*"), key=lambda path: int(path.name))
        for older in kept[: max(0, len(kept) - newest)]:
            shutil.rmtree(older)
        if not newest:
            shutil.rmtree(self._latest, ignore_errors=True)

    def compact(self, finished: int, count: int) -> None:
        """Keep the tables of every `count` old updates in one folder; the newest `count` keep a folder each.

        To be called when the policy after `finished` updates is kept: what it was made of is not done again.
        """
        for first in range(0, finished - 2 * count + 1, count) if count else ():
            self.updates.compact(first, count)

    def copy_metrics(self, checkpoint: Path) -> None:
        """Put the metrics of the update that made a checkpoint into its iteration's folder."""
        iteration = stored_state(checkpoint).iteration - 1
        if self.updates.place(iteration) != self.iteration(iteration):
            return  # they stand with those of other updates
        with replacing_file(self.iteration(iteration) / METRICS_FILE) as temporary:
            shutil.copyfile(checkpoint / TRAINER / METRICS_FILE, temporary)

    def join_train_metrics(self, iterations: int) -> None:
        """Write the metrics of all updates into one table."""
        rows = list(self.updates.metrics(0, iterations))
        if rows:
            footer = Footer(table=TRAIN_METRICS.name, stage="run")
            write_table(self.root / "train_metrics.parquet", TRAIN_METRICS, rows, footer)

    def measured(self, phases: Sequence[Phase]) -> list[dict[str, Any]] | None:
        """The rows of metrics.parquet, if all phases have come to their ends and been measured."""
        ends = [(self.policy(phase.name), phase.last) for phase in phases]
        if self.metrics.exists() and all(path.exists() and stored_state(path).iteration == last for path, last in ends):
            return list(read_table(self.metrics, METRICS).to_pylist())
        return None


def pin_config(
    path: Path,
    settings: Settings,
    *,
    free: Collection[tuple[str, str]] = (),
    raised: Collection[tuple[str, str]] = (),
    defaults: Settings | None = None,
    forks: bool = False,
) -> list[str]:
    """Write down what a folder's work is started with, or see that it was started with the same.

    Args:
        free: (stage, key) of what may differ from now on; raised: of numbers that may have grown.
        defaults: what a key that an earlier version did not write down stood for.
        forks: whether the work can be gone on with elsewhere under other settings.
    Returns:
        What differs from before and may, in words.
    Raises:
        UserError: the folder was begun with other settings.
    """
    now = json.loads(json.dumps(settings))
    known = _read_config(path) if path.exists() else None
    changed: list[str] = []
    allowed: list[str] = []
    for stage, values in now.items() if known is not None else ():
        for key, value in values.items():
            assert known is not None
            before = known.get(stage, {}).get(key, (defaults or {}).get(stage, {}).get(key))
            if before == value:
                continue
            may = (stage, key) in free or ((stage, key) in raised and before is not None and value > before)
            (allowed if may else changed).append(_change(stage, key, before, value))
    if changed:
        raise UserError(_refusal(path.parent, list(dict.fromkeys(changed)), forks=forks))
    if known is None or allowed:
        with replacing_file(path) as temporary:
            temporary.write_text(json.dumps(now, indent=2, sort_keys=True) + "\n")
    return allowed


def _refusal(folder: Path, changed: Sequence[str], *, forks: bool) -> str:
    shown = "; ".join(changed[:_SHOWN_CHANGES])
    more = len(changed) - _SHOWN_CHANGES
    if more > 0:
        shown += f"; and {more} more"
    fork = ", or go on from it under these with --fork FOLDER" if forks else ""
    return f"{folder} was begun with other settings ({shown}): set them back, or name another --out{fork}"


def _change(stage: str, key: str, before: Any, value: Any) -> str:
    """A setting that differs, by the name under which the user writes it."""
    if key in _OWN_TABLES:
        name = f"[{key}]"
    elif key == "recipe":  # of a study's row
        name = f"the recipe of row {stage}"
    else:
        name = _NAMED.get((stage, key), f"{table_of(stage)}.{key}")
    was, now = _shown(before), _shown(value)
    return f"{name} is another" if was == now else f"{name} was {was}, is {now}"


def table_of(stage: str) -> str:
    """The table of a recipe that holds the settings which config.json has under this name."""
    return _TABLES.get(stage, stage)


def _shown(value: Any) -> str:
    """A setting as a recipe has it; of a fingerprint the first digits, of what takes many lines that it is there."""
    if value is None or value == []:
        return "left out"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return f"{value[:12]}..."
    if isinstance(value, dict | list) or (isinstance(value, str) and "\n" in value):
        return "given"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _read_config(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return {stage: dict(values) for stage, values in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path} cannot be read: name another --out, or delete the folder") from None
