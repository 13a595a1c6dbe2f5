"""`score run`: a whole recipe in one process: the loop with its actors kept warm, and the files the commands write."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from score_cli.config import (
    BaseConfig,
    DataConfig,
    EvalConfig,
    RunConfig,
    SampleConfig,
    SftConfig,
    Stage1Config,
    Stage2Config,
    VerifyConfig,
)
from score_cli.errors import UserError
from score_cli.loop import Loop, run_updates
from score_cli.phases import BASE, Phase, plan_phases
from score_cli.progress import SILENT, Progress, Task
from score_cli.recipe import Recipe
from score_cli.run_folder import RunFolder
from score_cli.sampling.engine import engine_name, policy_device
from score_cli.sampling.offline import OfflineAttempts, read_offline
from score_cli.sampling.sampler import SampleJob, Sampler, problems_of_iteration
from score_cli.stages.base import build_base
from score_cli.stages.data import SPLITS, write_problems
from score_cli.stages.evaluate import check_plan, compare_policies, evaluate_policy, samplings, write_metrics
from score_cli.stages.sample import sample, traces_footer, write_traces
from score_cli.stages.train import save_sft_round, write_examples
from score_cli.stages.verify import rewards_footer, write_verdicts
from score_cli.tables.checkpoints import METRICS_FILE, TRAINER, Policy, load_optimizer, load_policy
from score_cli.tables.device import setup_device
from score_cli.tables.parquet import PROBLEMS, TRAIN_METRICS, write_table
from score_cli.tables.problems import read_problems, write_problems_table
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.records import Problem, Trace, Verdict
from score_cli.training.base_policy import untrained_policy
from score_cli.training.sft import make_examples, sft_round
from score_cli.training.trainer import Trainer
from score_cli.verification.grader import Grader, check_unscored


@dataclass(frozen=True)
class RunConfigs:
    """Everything a run depends on, resolved."""

    base: BaseConfig
    sample: SampleConfig
    verify: VerifyConfig
    stage1: Stage1Config
    stage2: Stage2Config
    sft: SftConfig
    eval: EvalConfig
    run: RunConfig

    @staticmethod
    def of(recipe: Recipe) -> "RunConfigs":
        """The settings that a recipe gives."""
        return RunConfigs(
            base=recipe.settings("base", BaseConfig),
            sample=recipe.settings("sample", SampleConfig),
            verify=recipe.settings("verify", VerifyConfig),
            stage1=recipe.settings("train-stage1", Stage1Config),
            stage2=recipe.settings("train-stage2", Stage2Config),
            sft=recipe.settings("train-sft", SftConfig),
            eval=recipe.settings("eval", EvalConfig),
            run=recipe.settings("run", RunConfig),
        )


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """What a run starts from; without a model and problems, the built-in task and its base policy."""

    model: Path | None = None
    problems: Path | None = None
    eval_problems: Path | None = None
    limit: int | None = None


class Run:
    """One run, and the work still to be done in its folder."""

    def __init__(
        self, recipe: Recipe, folder: Path, inputs: RunInputs = RunInputs(), progress: Progress = SILENT
    ) -> None:
        """Raises:
        UserError: the recipe cannot be run.
        """
        self.configs = _resolved(recipe, inputs)
        self.phases = plan_phases(
            self.configs.run,
            stage1=self.configs.stage1,
            stage2=self.configs.stage2,
            sft=self.configs.sft,
            attempts=self.configs.sample.attempts,
        )
        for sampling in (self.configs.sample, self.configs.eval):
            engine_name(sampling)  # an engine that is not there is refused before anything is trained
        self.inputs = inputs
        self.folder = RunFolder(folder)
        self.progress = progress
        self.device = setup_device(self.configs.sample)
        self._given = None if inputs.model is None else _start_of_chain(inputs.model, self.device)

    def execute(self) -> list[dict[str, Any]]:
        """Do what is not done yet; returns the rows of metrics.parquet.

        Raises:
            UserError: the folder holds a run with other settings, or another process works in it.
        """
        with self.folder.locked():
            self._pin()
            self._prepare_problems()
            check_plan(self.configs.eval, read_problems(self.folder.problems("test")))
            with Grader(self.configs.verify) as grader:
                work = _Work(self, grader, self._base())
                try:
                    for phase in self.phases:
                        work.do(phase)
                finally:
                    work.close_sampler()
                self.folder.join_train_metrics(self.phases[-1].last if self.phases else 0)
                return self._evaluate(work, grader)

    def _pin(self) -> None:
        given = {
            "model": None if self._given is None else self._given.state.fingerprint,
            "problems": _digest(self.inputs.problems),
            "eval_problems": _digest(self.inputs.eval_problems),
            "limit": self.inputs.limit,
        }
        defaults = asdict(RunConfigs.of(Recipe({})))
        for change in self.folder.pin(asdict(self.configs) | {"inputs": given}, defaults):
            self.progress.line(f"{self.folder.root}: goes on with another setting than it began with: {change}")

    def _prepare_problems(self) -> None:
        """Put the problems of each part into the run folder, so that it stands by itself."""
        given = {"train": self.inputs.problems, "test": self.inputs.eval_problems}
        for split in SPLITS:
            out, source = self.folder.problems(split), given.get(split)
            if out.exists() or (source is None and self.inputs.problems is not None):
                continue
            if source is None:
                write_problems("division", DataConfig(split=split, limit=self.inputs.limit), out=out)
            else:
                footer = Footer(table=PROBLEMS.name, stage="run", inputs={"problems": file_sha256(source)})
                write_problems_table(out, read_problems(source)[: self.inputs.limit], footer)

    def _base(self) -> Policy:
        """The policy that the run starts from: given, or built here."""
        if self._given is not None:
            self._check_room(self._given)
            return self._given
        path = self.folder.policy(BASE)
        if not path.exists():
            self._check_room(untrained_policy(self.configs.base))
            build_base(self.configs.base, out=path, progress=self.progress)
            setup_device(self.configs.sample)
        base = load_policy(path, device=self.device)
        self._check_room(base)
        return base

    def _check_room(self, base: Policy) -> None:
        """Refuse problems and settings that would outgrow the context, now and not at the evaluation hours later."""
        sampler = Sampler(self.configs.sample, base)
        whole = replace(self.configs.sample, problems_per_iteration=None, iteration=0)
        sampler.plan(read_problems(self.folder.problems("train")), whole)
        # Decodings of as many attempts are as long.
        for config in {plan.attempts: plan for plan in samplings(self.configs.eval).values()}.values():
            sampler.plan(read_problems(self.folder.problems("test")), config)

    def _evaluate(self, work: "_Work", grader: Grader) -> list[dict[str, Any]]:
        """Measure the base and the policy at each phase's end on the held-out problems."""
        measured = self.folder.measured()
        if measured is not None:
            return measured
        config, problems, folder = self.configs.eval, self.folder.problems("test"), self.folder.evaluation
        device = policy_device(config, setup_device(config))
        rows: list[dict[str, Any]] = []
        with Sampler(next(iter(samplings(config).values())), work.base) as sampler:
            for name in work.ends:
                policy = work.load(name, device)
                sampler.load(policy)
                rows += evaluate_policy(
                    config,
                    policy=policy,
                    name=name,
                    problems=problems,
                    folder=folder,
                    progress=self.progress,
                    grading=self.configs.verify,
                    sampler=sampler,
                    grader=grader,
                )
        rows += compare_policies(config, names=list(work.ends), folder=folder)
        write_metrics(rows, config, problems=problems, folder=folder, names=list(work.ends), out=self.folder.metrics)
        return rows


class _Work:
    """What the phases of a run share: problems, the grader, the sampler, and the newest policy, all kept warm."""

    def __init__(self, run: Run, grader: Grader, base: Policy) -> None:
        self.run = run
        self.folder = run.folder
        self.grader = grader
        self.base = base
        self.ends: dict[str, Path] = {BASE: run.inputs.model or run.folder.policy(BASE)}
        train = run.folder.problems("train")
        self.problems: list[Problem] = read_problems(train)
        self.by_id = {problem.problem_id: problem for problem in self.problems}
        self._problems_sha256 = file_sha256(train)
        self._newest: Policy | None = base
        self._sampler: Sampler | None = None

    def do(self, phase: Phase) -> None:
        """Run a phase, or what is left of it, and keep its policy under RUN/name."""
        pinned_to = (
            self.base.state.fingerprint if phase.reference == BASE else self.load(phase.reference).state.fingerprint
        )
        done = self.folder.finished(phase, None if phase.stage == "sft" else pinned_to)
        if done is not None:
            if phase.stage == "sft":
                self.folder.copy_metrics(done)
            self._newest = None
        else:
            kept = self.folder.kept(phase)
            if isinstance(phase.config, SftConfig):
                self._do_sft_rounds(phase, phase.config, kept)
            else:
                self._train(phase, phase.config, kept)
            self.folder.drop_kept()
        self.ends[phase.name] = self.folder.policy(phase.name)

    def load(self, name: str, device: str | None = None) -> Policy:
        """The policy that a phase ended in, from memory where it is still there."""
        device = self.run.device if device is None else device
        held = self.base if name == BASE else self._newest if name == next(reversed(self.ends)) else None
        if held is None:
            return load_policy(self.ends[name], device=device)
        held.model.to(device)
        return held

    def sampler(self, policy: Policy) -> Sampler:
        """The sampler, holding a policy."""
        if self._sampler is None:
            self._sampler = Sampler(self.run.configs.sample, policy)
        else:
            self._sampler.load(policy)
        return self._sampler

    def close_sampler(self) -> None:
        """Give the engine back."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None

    def write_update(self, job: SampleJob, traces: Sequence[Trace], verdicts: Sequence[Verdict]) -> dict[str, str]:
        """Write the traces and rewards of an update as the commands do; returns the sha256 of each table.

        Files left by a killed run are replaced: they would be the same, but nothing proves it.
        """
        assert self._sampler is not None and job.config.iteration is not None
        folder = self.folder.iteration(job.config.iteration)
        footer = traces_footer(job, self._sampler, problems=self._problems_sha256)
        write_traces(folder / "traces.parquet", job, traces, footer)
        digest = file_sha256(folder / "traces.parquet")
        inputs = {"traces": digest, "problems": self._problems_sha256}
        tasks = {problem.task for problem in self.problems}
        footer = rewards_footer(self.grader, tasks, inputs=inputs, policy=footer.policy)
        write_verdicts(folder / "rewards.parquet", verdicts, footer)
        return {"traces": digest, "rewards": file_sha256(folder / "rewards.parquet")}

    def _begin(self, kept: Path | None, reference: Policy) -> Policy:
        """The policy to train: the checkpoint kept, or the newest end of a phase.

        It is a copy where the newest must stay as it is, because KL is measured from it, now or later.
        """
        if kept is not None:
            return load_policy(kept, device=self.run.device)
        newest = self.load(next(reversed(self.ends)))
        frozen = newest.model in (self.base.model, reference.model)
        return replace(newest, model=copy.deepcopy(newest.model)) if frozen else newest

    def _train(self, phase: Phase, config: Stage1Config | Stage2Config, kept: Path | None) -> None:
        """The updates of a phase of reinforcement learning, from its start or from the checkpoint kept."""
        offline, share = None, self.run.configs.run.offline_first_attempts
        if share and isinstance(config, Stage2Config):
            offline = self._offline_first_attempts()
        reference = self.load(phase.reference)
        policy = self._begin(kept, reference)
        moments = None if kept is None else load_optimizer(kept)
        trainer = Trainer(config, policy, reference, moments, new_phase=kept is None and phase.first > 0)
        with self.run.progress.phase(phase.name, phase.last - phase.first) as task:
            task.advance(policy.state.iteration - phase.first)
            run_updates(
                Loop(
                    sampler=self.sampler(policy),
                    grader=self.grader,
                    trainer=trainer,
                    problems=self.problems,
                    attempts=phase.attempts,
                    offline=offline,
                    offline_share=share,
                ),
                phase.last,
                _Journal(self, phase, task),
            )
        self._newest = trainer.policy

    def _offline_first_attempts(self) -> OfflineAttempts:
        """First attempts of the base at every training problem, drawn once for the whole run."""
        out, config = self.folder.first_attempts, self.run.configs.sample
        if not out.exists():
            setup_device(config)
            sample(
                replace(config, attempts=1, problems_per_iteration=None, iteration=0),
                policy=self.base,
                problems=self.folder.problems("train"),
                out=out,
                sampler=self.sampler(self.base),
                progress=self.run.progress,
            )
        return read_offline(out)

    def _do_sft_rounds(self, phase: Phase, config: SftConfig, kept: Path | None) -> None:
        """Rounds of a supervised baseline: collect with the newest policy, grade, train on the examples, again."""
        if kept is not None:
            self.folder.copy_metrics(kept)
        policy, configs = self._begin(kept, self.base), self.run.configs
        most = configs.run.sft_problems
        count = None if most is None else min(most, len(self.problems))
        sampling = replace(configs.sample, problems_per_iteration=count, attempts=phase.attempts)
        while policy.state.iteration < phase.last:
            iteration = policy.state.iteration
            sampler = self.sampler(policy)
            drawn = problems_of_iteration(self.problems, sampling, iteration)
            job = sampler.plan(drawn, replace(sampling, iteration=iteration))
            traces = sampler.run(job)
            verdicts = self.grader.grade(traces, self.by_id)
            digests = self.write_update(job, traces, verdicts)
            check_unscored(verdicts, configs.verify.unscored_limit)
            setup_device(config)
            examples = make_examples(config, policy, traces, verdicts)
            table = self.folder.iteration(iteration) / "sft.parquet"
            write_examples(table, examples, config, policy, traces=digests["traces"], rewards=digests["rewards"])
            done = sft_round(config, policy, traces, verdicts, examples, progress=self.run.progress)
            self.run.progress.line(f"{phase.name}: {done.summary}")
            policy = self._newest = done.policy
            finished = policy.state.iteration
            last = finished == phase.last
            out = self.folder.policy(phase.name) if last else self.folder.next_kept(finished)
            save_sft_round(out, done, examples=file_sha256(table))
            self.folder.copy_metrics(out)
            self.folder.drop_kept(finished)


class _Journal:
    """Keeps what each update of a phase makes in the run's folder."""

    def __init__(self, work: _Work, phase: Phase, task: Task) -> None:
        self._work = work
        self._phase = phase
        self._task = task

    def sampled(self, job: SampleJob, traces: Sequence[Trace], verdicts: Sequence[Verdict]) -> None:
        """See `loop.Journal`."""
        self._work.write_update(job, traces, verdicts)

    def updated(self, trainer: Trainer) -> None:
        """See `loop.Journal`."""
        folder, finished = self._work.folder, trainer.policy.state.iteration
        metrics = folder.iteration(finished - 1) / METRICS_FILE
        write_table(metrics, TRAIN_METRICS, trainer.metrics, trainer.metrics_footer())
        if finished == self._phase.last:
            trainer.save(folder.policy(self._phase.name))
        elif finished % self._work.run.configs.run.save_every == 0:
            trainer.save(folder.next_kept(finished))
            folder.drop_kept(finished)
        self._task.advance(1, _headline(trainer.metrics))


def _resolved(recipe: Recipe, inputs: RunInputs) -> RunConfigs:
    """The settings of a recipe, once it is seen that a run can take them.

    Raises:
        UserError: they ask for what a run does itself, or for what it cannot train on.
    """
    configs = RunConfigs.of(recipe)
    if inputs.limit is not None and inputs.limit < 1:
        raise UserError(f"limit is {inputs.limit}, expected at least 1")
    if inputs.limit is not None and configs.sample.problems_per_iteration is not None:
        fewer = min(inputs.limit, configs.sample.problems_per_iteration)
        configs = replace(configs, sample=replace(configs.sample, problems_per_iteration=fewer))
    if recipe.has("data") or configs.sample.iteration is not None or configs.sample.temperature == 0:
        raise UserError(
            "a run takes its problems from --problems, counts its iterations itself and trains on samples: "
            "leave [data], sample.iteration and sample.temperature = 0 out of the recipe"
        )
    _check_sampling(configs.sample)
    _check_first_attempts(configs)
    if configs.eval.correction is None:
        configs = replace(configs, eval=replace(configs.eval, correction=configs.sample.correction))
    return configs


def _check_sampling(config: SampleConfig) -> None:
    """Refuse settings under which a run's traces could not be trained on, before anything is trained."""
    if config.shard is not None or config.offline_share is not None:
        raise UserError(
            "a run samples all of its traces itself: leave sample.shard and sample.offline_share out of the recipe"
        )
    if config.top_p < 1 or config.top_k > 0:
        raise UserError(
            "a run trains on samples of the whole distribution: leave sample.top_p and sample.top_k out of the recipe"
        )


def _check_first_attempts(configs: RunConfigs) -> None:
    """Refuse first attempts that no stage could go on from, before anything is trained."""
    if not configs.run.offline_first_attempts:
        return
    if not configs.run.stage2_iterations or configs.sample.attempts < 2:
        raise UserError("run.offline_first_attempts is for a Stage II of two attempts or more: leave it out, or add it")
    if configs.sample.max_tokens is None:
        raise UserError("run.offline_first_attempts needs attempts of one length: set sample.max_tokens")


def _headline(metrics: list[dict[str, Any]]) -> str:
    found = {(row["name"], row["attempt"]): row["value"] for row in metrics}
    accuracies = [f"t{a} {100 * v:.0f}%" for (name, a), v in found.items() if name == "accuracy"]
    return " ".join(accuracies)


def _start_of_chain(model: Path, device: str) -> Policy:
    """The policy that the user gave, once it is seen that the run can count its updates from it."""
    policy = load_policy(model, device=device)
    if policy.state.iteration:
        raise UserError(
            f"{model} is a policy after {policy.state.iteration} updates, and a run counts its own from 0: name the "
            f"base, or a copy of {model} without its folder {TRAINER} to take it as one"
        )
    return policy


def _digest(path: Path | None) -> str | None:
    """sha256 of a problems table that the user gave, once it is seen to be one."""
    if path is None:
        return None
    read_problems(path)
    return file_sha256(path)
