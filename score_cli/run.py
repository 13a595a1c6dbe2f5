"""`score run`: a whole recipe in one process: the loop with its actors kept warm, and the files the commands write."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from score_cli.config import DataConfig
from score_cli.errors import UserError
from score_cli.phases import AUTHOR, BASE, plan_phases
from score_cli.progress import SILENT, Progress
from score_cli.recipe import Recipe
from score_cli.run_best import BestPolicy
from score_cli.run_checks import check_adapters, check_best, check_passes, resolved
from score_cli.run_disk import check_room, predicted_disk
from score_cli.run_folder import BEST, RunFolder
from score_cli.run_log import RunLog, check_sinks
from score_cli.run_phases import RunConfigs, RunPhases
from score_cli.sampling.engine import engine_name, policy_device
from score_cli.sampling.given_dialogues import render_dialogues
from score_cli.sampling.sampler import Sampler
from score_cli.sampling.samplers import make_sampler
from score_cli.stages.base import build_base
from score_cli.stages.critics import evaluate_critics
from score_cli.stages.data import SPLITS, write_problems
from score_cli.stages.dialogues import make_dialogues
from score_cli.stages.evaluate import check_eval_config, eval_samplings, evaluate_policies
from score_cli.stages.signal import check_problems
from score_cli.tables.atomic import replacing_file
from score_cli.tables.checkpoints import Policy, load_policy
from score_cli.tables.device import setup_device
from score_cli.tables.parquet import PROBLEMS
from score_cli.tables.problems import overlapping, read_problems, write_problems_table
from score_cli.tables.processes import team
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.records import Problem
from score_cli.tasks.dialogues import read_dialogues
from score_cli.training.base_policy import untrained_policy
from score_cli.training.sft import make_given_examples
from score_cli.verification.grader import Grader, check_gold
from score_cli.verification.own_grader import find_source


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """What a run starts from; without a model and problems, the built-in task and its base policy."""

    model: Path | None = None
    problems: Path | None = None
    eval_problems: Path | None = None
    validation_problems: Path | None = None
    limit: int | None = None


class Run:
    """One run, and the work still to be done in its folder."""

    def __init__(
        self, recipe: Recipe, folder: Path, inputs: RunInputs = RunInputs(), progress: Progress = SILENT
    ) -> None:
        """Raises:
        UserError: the recipe cannot be run.
        """
        self.configs = resolved(recipe, inputs.limit)
        self.phases = plan_phases(
            self.configs.run,
            stage1=self.configs.stage1,
            stage2=self.configs.stage2,
            sft=self.configs.sft,
            attempts=self.configs.sample.attempts,
        )
        check_best(
            self.configs.run,
            self.phases,
            problems=inputs.problems,
            validation_problems=inputs.validation_problems,
        )
        for sampling in (self.configs.sample, self.configs.eval):
            engine_name(sampling)  # an engine that is not there is refused before anything is trained
        check_sinks(self._sinks)
        self.inputs = inputs
        if self._start_file is not None:
            read_dialogues(self._start_file)
        self.folder = RunFolder(folder)
        self._check_problem_files()
        self.progress = progress
        device = setup_device(self.configs.sample)
        # Several processes train shards: a whole policy is where its sampler takes it from.
        self.device = device if team() is None else policy_device(self.configs.sample, device)
        self._given = None if inputs.model is None else load_policy(inputs.model, device=self.device).as_base()

    def execute(self) -> list[dict[str, Any]]:
        """Do what is not done yet; returns the rows of metrics.parquet.

        Raises:
            UserError: the folder holds a run with other settings, or another process works in it.
        """
        with self.folder.locked():
            self._pin()
            self.folder.updates.tidy()
            measured = self.folder.measured(self.phases)
            if measured is not None:
                return measured
            self._prepare_problems()
            self._prepare_dialogues()
            train, test = (read_problems(self.folder.problems(split)) for split in ("train", "test"))
            validation = self._validation()
            check_eval_config(self.configs.eval, test, self.configs.verify)
            self._check_gold(train, test)
            if self.configs.stage2.pay is not None and self.configs.stage2.pay.signals:
                check_problems(self.configs.signal, train)
            with Grader(self.configs.verify) as grader:
                # A task that nobody grades, or a grader that cannot be loaded, is refused before anything is trained.
                grader.start({problem.task for problem in [*train, *test]})
                sampler = make_sampler(self.configs.sample, self._base(train, test))
                self._check_disk()
                phases = self._learn(sampler, grader, train, validation)
                return self._evaluate(phases, grader)

    def _learn(
        self, sampler: Sampler, grader: Grader, train: Sequence[Problem], validation: Sequence[Problem]
    ) -> RunPhases:
        """Do every phase, and close the sampler: an evaluation of another engine or length needs its memory."""
        updates = self.phases[-1].last if self.phases else 0
        log = RunLog(self.folder.root, updates, self._sinks)
        phases = RunPhases(
            self.configs,
            self.folder,
            sampler,
            grader,
            train,
            base_path=self._base_path,
            log=log,
            progress=self.progress,
        )
        if self.configs.run.best_every is not None:
            phases.best = BestPolicy(
                folder=self.folder,
                phase=self.phases[-1],
                every=self.configs.run.best_every,
                validation=validation,
                sampler=sampler,
                grader=grader,
                config=self.configs.eval,
            )
        try:
            for phase in self.phases:
                phases.do(phase)
        finally:
            log.close()
            sampler.close()
            phases.close()
        if self.configs.run.evaluate == "best":
            phases.end_with_best()
        self.folder.join_train_metrics(updates)
        return phases

    @property
    def result(self) -> Path:
        """The policy that the run ends with."""
        if self.configs.run.evaluate == "best":
            return self.folder.policy(BEST)
        return self.folder.policy(self.phases[-1].name) if self.phases else self._base_path

    @property
    def _sinks(self) -> list[str]:
        return [name.strip() for name in self.configs.run.log_to.split(",") if name.strip()]

    def _pin(self) -> None:
        given = {
            "model": None if self._given is None else self._given.state.fingerprint,
            "problems": _digest(self.inputs.problems),
            "eval_problems": _digest(self.inputs.eval_problems),
            "validation_problems": _digest(self.inputs.validation_problems),
            "limit": self.inputs.limit,
            "start": None if self._start_file is None else file_sha256(self._start_file),
            "signal": None if self.configs.signal.by is None else load_policy(self.configs.signal.by).state.fingerprint,
            "grader": None if self.configs.verify.grader is None else find_source(self.configs.verify.grader).sha256,
        }
        defaults = asdict(RunConfigs.of(Recipe({})))
        for change in self.folder.pin(asdict(self.configs) | {"inputs": given}, defaults):
            self.progress.line(f"{self.folder.root}: goes on with another setting than it began with: {change}")

    def _check_problem_files(self) -> None:
        """Refuse files of problems before a model is fetched and loaded; a run that has begun holds its own copies."""
        given = (self.inputs.problems, self.inputs.eval_problems, self.inputs.validation_problems)
        if not self.folder.problems("train").exists():
            for file in given:
                if file is not None:
                    read_problems(file)

    def _prepare_problems(self) -> None:
        """Put the problems of each part into the run folder, so that it stands by itself."""
        if self.inputs.problems is None or self.inputs.eval_problems is None:
            for split in SPLITS:
                out = self.folder.problems(split)
                if not out.exists():
                    write_problems("division", DataConfig(split=split, limit=self.inputs.limit), out=out)
            return
        if self.folder.problems("train").exists() and self.folder.problems("test").exists():
            return
        train, test = read_problems(self.inputs.problems), read_problems(self.inputs.eval_problems)
        train = self._without_overlap(train, test, self.inputs.eval_problems)
        parts = [("train", self.inputs.problems, train), ("test", self.inputs.eval_problems, test)]
        if self.inputs.validation_problems is not None:
            validation = read_problems(self.inputs.validation_problems)
            train = self._without_overlap(train, validation, self.inputs.validation_problems)
            parts = [("train", self.inputs.problems, train), parts[1]]
            parts.insert(0, ("validation", self.inputs.validation_problems, validation))
        for split, source, problems in parts:
            out = self.folder.problems(split)
            if not out.exists():
                footer = Footer(table=PROBLEMS.name, stage="run", inputs={"problems": file_sha256(source)})
                write_problems_table(out, problems[: self.inputs.limit], footer)

    @property
    def _start_file(self) -> Path | None:
        """The file of dialogues that the user gave."""
        start = self.configs.run.start
        return None if start in (None, AUTHOR) else Path(str(start))

    def _prepare_dialogues(self) -> None:
        """Put the dialogues of the supervised start into the run folder."""
        start = self.configs.run.start
        if start is None or (out := self.folder.dialogues(start)).exists():
            return
        if self._start_file is None:
            make_dialogues(self.configs.dialogues, problems=self.folder.problems("train"), out=out)
            return
        with replacing_file(out) as temporary:
            shutil.copyfile(self._start_file, temporary)

    def _validation(self) -> list[Problem]:
        """The problems that the best policy is chosen by; none where the run has none, or no best policy is kept."""
        path = self.folder.problems("validation")
        return read_problems(path) if self.configs.run.best_every is not None and path.exists() else []

    def _without_overlap(self, train: list[Problem], test: list[Problem], asking: Path) -> list[Problem]:
        """The problems to train on, where some ask what the evaluation or the validation asks.

        Raises:
            UserError: some do, and the recipe does not say what is to become of them; or none is left.
        """
        asked_twice = [] if self.configs.run.overlap == "keep" else overlapping(train, test)
        if not asked_twice:
            return train
        said = (
            f"{len(asked_twice)} of {len(train)} training problems ask a question of {asking} "
            f"({asked_twice[0].problem_id} first)"
        )
        if self.configs.run.overlap == "refuse" or len(asked_twice) == len(train):
            raise UserError(f"{said}: give other problems, or leave these out (--set run.overlap=drop) or in (keep)")
        self.progress.line(f"{said}: they are left out of training")
        left_out = {problem.problem_id for problem in asked_twice}
        return [problem for problem in train if problem.problem_id not in left_out]

    @property
    def _base_path(self) -> Path:
        return self.inputs.model or self.folder.policy(BASE)

    def _base(self, train: Sequence[Problem], test: Sequence[Problem]) -> Policy:
        """The policy that the run starts from, given or built here, once problems and settings are seen to fit it."""
        if self._given is None and not self._base_path.exists():
            # Checked as long as it is cheap: what is built has the same tokens and the same context.
            self._check_room(untrained_policy(self.configs.base), train, test)
            build_base(self.configs.base, out=self._base_path, progress=self.progress)
            setup_device(self.configs.sample)
            return load_policy(self._base_path, device=self.device)
        base = self._given or load_policy(self._base_path, device=self.device)
        self._check_room(base, train, test)
        return base

    def _check_disk(self) -> None:
        """Refuse a disk without room for the checkpoints, and warn of one that the traces may fill."""
        configs = self.configs
        predicted = predicted_disk(
            self._base_path, sample=configs.sample, train=configs.stage2, evaluate=configs.eval, run=configs.run
        )
        warning = None if predicted is None else check_room(self.folder, predicted)
        if warning is not None:
            self.progress.line(f"warning: {warning}")

    def _check_room(self, base: Policy, train: Sequence[Problem], test: Sequence[Problem]) -> None:
        """Refuse problems and settings that would outgrow the context, now and not at the evaluation hours later, and
        adapters that the policy has no place for.
        """
        check_adapters(self.phases, base)
        if (script := self.configs.sample.script) is not None and script.needs_solves:
            check_passes(self.configs, base, train, test)
            return
        sampler = Sampler(self.configs.sample, base)
        sampler.plan(train, replace(self.configs.sample, problems_per_iteration=None, iteration=0))
        if self.configs.run.start is not None:
            dialogues = read_dialogues(self.folder.dialogues(self.configs.run.start))
            make_given_examples(self.configs.sft, base, render_dialogues(dialogues, base, self.configs.sample))
        # Decodings of as many attempts are as long.
        for config in {plan.attempts: plan for plan in eval_samplings(self.configs.eval).values()}.values():
            sampler.plan(test, config)

    def _check_gold(self, train: Sequence[Problem], test: Sequence[Problem]) -> None:
        """Refuse problems that nothing tells the answers of, but to train on where no reward is paid for them."""
        graded = [(test, self.inputs.eval_problems or self.folder.problems("test"))]
        pay = self.configs.stage2.pay
        if pay is None or pay.reads_rewards or self.configs.run.stage1_iterations or self.configs.run.sft_rounds:
            graded.append((train, self.inputs.problems or self.folder.problems("train")))
        for problems, path in graded:
            check_gold(problems, path, self.configs.verify)

    def _evaluate(self, phases: RunPhases, grader: Grader) -> list[dict[str, Any]]:
        """Measure the base and the policy at each phase's end on the held-out problems."""
        config = self.configs.eval
        device = policy_device(config, setup_device(config))
        if phases.reviser is not None and config.script is not None:
            generator = phases.reviser.sampler.policy
            generator.model.to(device)
            return evaluate_critics(
                config,
                config.script,
                generator=generator,
                critics=((name, phases.load(name, device)) for name in phases.ends),
                rounds=self.configs.run.critique_rounds,
                problems=self.folder.problems("test"),
                folder=self.folder.evaluation,
                out=self.folder.metrics,
                grader=grader,
                progress=self.progress,
            )
        with make_sampler(next(iter(eval_samplings(config).values())), phases.base) as sampler:
            return evaluate_policies(
                config,
                policies=((name, phases.load(name, device)) for name in phases.ends),
                problems=self.folder.problems("test"),
                folder=self.folder.evaluation,
                out=self.folder.metrics,
                progress=self.progress,
                grading=self.configs.verify,
                sampler=sampler,
                grader=grader,
            )


def _digest(path: Path | None) -> str | None:
    """sha256 of a problems table that the user gave, once it is seen to be one."""
    if path is None:
        return None
    read_problems(path)
    return file_sha256(path)
