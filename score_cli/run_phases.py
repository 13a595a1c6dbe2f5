"""The phases of a run, one after another: what they share stays warm, and what each update makes goes into files."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from score_cli.config import (
    BaseConfig,
    DialoguesConfig,
    EvalConfig,
    OptimizerConfig,
    SampleConfig,
    SftConfig,
    SignalConfig,
    Stage1Config,
    Stage2Config,
    VerifyConfig,
)
from score_cli.errors import JobError
from score_cli.interrupts import stopping_between_updates
from score_cli.loop import Loop, run_updates
from score_cli.phases import BASE, START, Phase
from score_cli.progress import Progress, Task
from score_cli.recipe import Recipe
from score_cli.run_best import BestPolicy
from score_cli.run_config import AlarmsConfig, RunConfig
from score_cli.run_disk import check_next_save
from score_cli.run_folder import BEST, RunFolder
from score_cli.run_log import Entry, RunLog, overhead
from score_cli.sampling.given import GivenSolves
from score_cli.sampling.given_dialogues import render_dialogues
from score_cli.sampling.offline import OfflineAttempts, read_offline
from score_cli.sampling.sampler import SampleJob, Sampler, problems_of_iteration
from score_cli.stages.revision import Reviser
from score_cli.stages.sample import sample, traces_footer, write_traces
from score_cli.stages.signal import Signaller, check_same_tokens, write_signals
from score_cli.stages.train_sft import save_sft_round, start_inputs, write_examples
from score_cli.stages.verify import rewards_footer, write_verdicts
from score_cli.stopwatch import Stopwatch
from score_cli.tables.adapters import has_adapter, settle_precision
from score_cli.tables.checkpoints import METRICS_FILE, Policy, load_optimizer, load_policy, renderer_digest
from score_cli.tables.device import setup_device
from score_cli.tables.parquet import TRACES, TRAIN_METRICS, read_footer, write_table
from score_cli.tables.provenance import file_sha256
from score_cli.tables.records import REVISION, Problem, Signal, Trace, Verdict
from score_cli.tables.schemas import CORRECT
from score_cli.tasks.dialogues import read_dialogues
from score_cli.training.adapt import copy_to_train
from score_cli.training.sft import SftRound, make_examples, make_given_examples, sft_round
from score_cli.training.trainer import Trainer
from score_cli.verification.grader import Grader, check_unscored


@dataclass(frozen=True)
class RunConfigs:
    """Everything a run depends on, resolved."""

    base: BaseConfig
    sample: SampleConfig
    verify: VerifyConfig
    signal: SignalConfig
    stage1: Stage1Config
    stage2: Stage2Config
    sft: SftConfig
    dialogues: DialoguesConfig
    eval: EvalConfig
    run: RunConfig
    alarms: AlarmsConfig

    @staticmethod
    def of(recipe: Recipe) -> "RunConfigs":
        """The settings that a recipe gives."""
        return RunConfigs(
            base=recipe.settings("base", BaseConfig),
            sample=recipe.settings("sample", SampleConfig),
            verify=recipe.settings("verify", VerifyConfig),
            signal=recipe.settings("signal", SignalConfig),
            stage1=recipe.settings("train-stage1", Stage1Config),
            stage2=recipe.settings("train-stage2", Stage2Config),
            sft=recipe.settings("train-sft", SftConfig),
            dialogues=recipe.settings("dialogues", DialoguesConfig),
            eval=recipe.settings("eval", EvalConfig),
            run=recipe.settings("run", RunConfig),
            alarms=recipe.settings("run.alarms", AlarmsConfig),
        )


class RunPhases:
    """What the phases of a run share: problems, the grader, the sampler, and the newest policy, all kept warm."""

    def __init__(
        self,
        configs: RunConfigs,
        folder: RunFolder,
        sampler: Sampler,
        grader: Grader,
        problems: Sequence[Problem],
        *,
        base_path: Path,
        log: RunLog,
        progress: Progress,
    ) -> None:
        """Args:
        sampler: holding the base.
        problems: to train on, all of them.
        """
        self.configs = configs
        self.folder = folder
        self.sampler = sampler
        self.grader = grader
        self.problems = problems
        self.log = log
        self.progress = progress
        self.best: BestPolicy | None = None
        self.base = sampler.policy
        self.ends: dict[str, Path] = {BASE: base_path}
        self._behind = ThreadPoolExecutor(1, thread_name_prefix="score-write")
        self._device = str(self.base.model.device)
        self._newest: Policy | None = self.base
        self._problems_sha256 = file_sha256(folder.problems("train"))
        paid = configs.stage2.pay is not None and configs.stage2.pay.signals
        self.reviser = self._generator() if paid and configs.signal.kind == REVISION else None
        self._signaller = self._frozen() if paid and self.reviser is None else None

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
            if phase.name == START:
                self._do_start(phase, self.configs.sft, kept)
            elif isinstance(phase.config, SftConfig):
                self._do_sft_rounds(phase, phase.config, kept)
            else:
                self._train(phase, phase.config, kept)
            # The phase's end is the newest of those to be kept.
            self.folder.drop_kept(self.configs.run.keep_checkpoints - 1)
        self.folder.compact(phase.last, self.configs.run.compact_every)
        self.ends[phase.name] = self.folder.policy(phase.name)

    def end_with_best(self) -> None:
        """Let the best policy of the last phase stand in its last one's place."""
        self.ends.popitem()
        self.ends[BEST] = self.folder.policy(BEST)
        self._newest = None

    def load(self, name: str, device: str | None = None) -> Policy:
        """The policy that a phase ended in, from memory where it is still there."""
        device = self._device if device is None else device
        held = self.base if name == BASE else self._newest if name == next(reversed(self.ends)) else None
        if held is None:
            return self._load(self.ends[name], device)
        held.model.to(device)
        settle_precision(held.model)
        return held

    def _load(self, path: Path, device: str) -> Policy:
        """Load a checkpoint; an adapter over the weights of a policy in memory, if it is their adapter."""
        beside = (self._newest or self.base) if has_adapter(path) else None
        return load_policy(path, device=device, beside=beside)

    def write_update(self, job: SampleJob, traces: Sequence[Trace], verdicts: Sequence[Verdict]) -> "Future[str]":
        """Begin to write the traces and rewards of an update as the commands do; gives the sha256 of the traces.

        Most of that time is waiting for the disk, so a thread does it while the policy learns. Files left by a killed
        run are replaced: they would be the same, but nothing proves it.
        """
        assert job.config.iteration is not None
        folder = self.folder.iteration(job.config.iteration)
        of_traces = traces_footer(job, self.sampler, problems=self._problems_sha256)
        inputs = {"problems": self._problems_sha256}
        if self.reviser is not None and self.reviser.solves is not None:
            inputs["given_rewards"] = self.reviser.solves.rewards_sha256
        of_rewards = rewards_footer(self.grader, self._tasks, inputs=inputs, policy=of_traces.policy)

        def write() -> str:
            write_traces(folder / "traces.parquet", job, traces, of_traces)
            digest = file_sha256(folder / "traces.parquet")
            footer = replace(of_rewards, inputs={"traces": digest, **inputs})
            write_verdicts(folder / "rewards.parquet", verdicts, footer)
            return digest

        return self._behind.submit(write)

    def write_signals(self, iteration: int, signals: Sequence[Signal]) -> None:
        """Write the signals of an update's traces as the command does."""
        folder = self.folder.iteration(iteration)
        if self.reviser is not None:
            self.reviser.write(folder, signals, problems=self._problems_sha256, tasks=self._tasks)
            return
        assert self._signaller is not None
        origin = read_footer(folder / "traces.parquet", TRACES)
        assert origin is not None
        footer = self._signaller.footer(traces=file_sha256(folder / "traces.parquet"), policy=origin.policy)
        write_signals(folder / "signals.parquet", signals, footer)

    def close(self) -> None:
        """Finish what is being written, and give back what a frozen generator holds; the sampler is its maker's."""
        self._behind.shutdown()
        if self.reviser is not None:
            self.reviser.sampler.close()

    @property
    def makes_signals(self) -> bool:
        """Whether traces of this run get signals."""
        return self.reviser is not None or self._signaller is not None

    @property
    def _tasks(self) -> set[str]:
        return {problem.task for problem in self.problems}

    def _generator(self) -> Reviser:
        """Whose solves are criticised: the checkpoint that the recipe names, or the base; never the critic."""
        config = self.configs.signal
        policy = self.base if config.by is None else load_policy(config.by, device=self._device)
        return Reviser(self.configs.sample, policy, self.grader, temperature=config.temperature)

    def _frozen(self) -> Signaller:
        """Who makes signals: the checkpoint that the recipe names, or the base; never the policy under training."""
        config = self.configs.signal
        frozen = self.base if config.by is None else load_policy(config.by, device=self._device)
        if config.kind == "confidence":
            check_same_tokens(frozen, renderer_digest(self.base), "the run")
        return Signaller(config, frozen)

    def _begin(self, config: OptimizerConfig, kept: Path | None, reference: Policy) -> Policy:
        """The policy to train: the checkpoint kept, or the newest end of a phase.

        It is a copy where the newest must stay as it is, because KL is measured from it, now or later.
        """
        if kept is not None:
            return self._load(kept, self._device)
        newest = self.load(next(reversed(self.ends)))
        frozen = newest.model in (self.base.model, reference.model)
        return copy_to_train(newest, config) if frozen else newest

    def _train(self, phase: Phase, config: Stage1Config | Stage2Config, kept: Path | None) -> None:
        """The updates of a phase of reinforcement learning, from its start or from the checkpoint kept."""
        offline, share = None, self.configs.run.offline_first_attempts
        if share and isinstance(config, Stage2Config):
            offline = self._offline_first_attempts()
        reference = self.load(phase.reference)
        solves = None if self.reviser is None else self._solves(self.reviser)
        policy = self._begin(config, kept, reference)
        moments = None if kept is None else load_optimizer(kept)
        trainer = Trainer(config, policy, reference, moments, new_phase=kept is None and phase.first > 0)
        if self.reviser is not None and solves is not None:
            self.reviser.begin(solves, lambda: trainer.policy.state.iteration)
            self.sampler.solves = solves
        with self.progress.phase(phase.name, phase.last - phase.first) as task:
            task.advance(policy.state.iteration - phase.first)
            self.sampler.load(trainer.policy)
            self._go_on_from(policy.state.iteration)
            loop = Loop(
                sampler=self.sampler,
                grader=self.grader,
                trainer=trainer,
                problems=self.problems,
                attempts=phase.attempts,
                offline=offline,
                offline_share=share,
                signaller=(self.reviser or self._signaller) if trainer.pay.signals else None,
            )
            with stopping_between_updates(self.progress) as asked:
                run_updates(loop, phase.last, _Journal(self, phase, loop.watch, task, asked))
        # An adapter of a later phase says where its base lies.
        self._newest = replace(trainer.policy, name=str(self.folder.policy(phase.name)))

    def _go_on_from(self, update: int) -> None:
        """Forget what was said of this update and later ones, and make room for their tables."""
        self.log.go_on_from(update)
        self.folder.updates.expand_from(update)

    def _solves(self, reviser: Reviser) -> GivenSolves:
        """The frozen generator's solves of every training problem, drawn once for the whole run."""
        script = self.configs.sample.script
        assert script is not None
        setup_device(self.configs.sample)
        return reviser.draw_solves(
            script,
            self.folder.solves,
            problems=self.folder.problems("train"),
            samples=self.configs.run.given_solves,
            progress=self.progress,
        )

    def _offline_first_attempts(self) -> OfflineAttempts:
        """First attempts of the base at every training problem, drawn once for the whole run."""
        out, config = self.folder.first_attempts, self.configs.sample
        if not out.exists():
            setup_device(config)
            self.sampler.load(self.base)
            sample(
                replace(config, attempts=1, script=None, problems_per_iteration=None, iteration=0),
                policy=self.base,
                problems=self.folder.problems("train"),
                out=out,
                sampler=self.sampler,
                progress=self.progress,
            )
        return read_offline(out)

    def _do_start(self, phase: Phase, config: SftConfig, kept: Path | None) -> None:
        """Rounds of learning from given dialogues, all of them in each."""
        if kept is not None:
            self.folder.copy_metrics(kept)
        policy = self._begin(config, kept, self.base)
        self._go_on_from(policy.state.iteration)
        watch = Stopwatch()
        dialogues = self.folder.dialogues(str(self.configs.run.start))
        setup_device(config)
        traces = render_dialogues(read_dialogues(dialogues), policy, self.configs.sample)
        examples = make_given_examples(config, policy, traces)
        while policy.state.iteration < phase.last:
            table = self.folder.iteration(policy.state.iteration) / "sft.parquet"
            write_examples(table, examples, config, policy, start_inputs(dialogues, policy))
            watch.lap("write")
            done = sft_round(config, policy, [], [], examples, progress=self.progress)
            policy = self._keep_round(phase, done, table, watch, [], [])
        self._newest = replace(policy, name=str(self.folder.policy(phase.name)))

    def _do_sft_rounds(self, phase: Phase, config: SftConfig, kept: Path | None) -> None:
        """Rounds of a supervised baseline: collect with the newest policy, grade, train on the examples, again."""
        if kept is not None:
            self.folder.copy_metrics(kept)
        policy, configs = self._begin(config, kept, self.base), self.configs
        most = configs.run.sft_problems
        count = None if most is None else min(most, len(self.problems))
        sampling = replace(configs.sample, problems_per_iteration=count, attempts=phase.attempts)
        self._go_on_from(policy.state.iteration)
        watch = Stopwatch()
        while policy.state.iteration < phase.last:
            iteration = policy.state.iteration
            self.sampler.load(policy)
            watch.lap("refresh")
            drawn = problems_of_iteration(self.problems, sampling, iteration)
            job = self.sampler.plan(drawn, replace(sampling, iteration=iteration))
            traces = self.sampler.run(job, self.grader.begin)
            watch.lap("sample")
            verdicts = self.grader.grade(traces, {problem.problem_id: problem for problem in drawn})
            watch.lap("verify")
            traces_sha256 = self.write_update(job, traces, verdicts).result()
            check_unscored(verdicts, configs.verify.unscored_limit, self.grader.reasons)
            setup_device(config)
            examples = make_examples(config, policy, traces, verdicts)
            table = self.folder.iteration(iteration) / "sft.parquet"
            rewards_sha256 = file_sha256(table.with_name("rewards.parquet"))
            write_examples(table, examples, config, policy, {"traces": traces_sha256, "rewards": rewards_sha256})
            watch.lap("write")
            done = sft_round(config, policy, traces, verdicts, examples, progress=self.progress)
            policy = self._keep_round(phase, done, table, watch, traces, verdicts)
        self._newest = replace(policy, name=str(self.folder.policy(phase.name)))

    def _keep_round(
        self,
        phase: Phase,
        done: SftRound,
        table: Path,
        watch: Stopwatch,
        traces: Sequence[Trace],
        verdicts: Sequence[Verdict],
    ) -> Policy:
        """Write what a supervised round ended in, and say so; returns the policy.

        Args:
            table: of its examples; traces, verdicts: that these are of, if they are.
        """
        watch.lap("train")
        self.progress.line(f"{phase.name}: {done.summary}")
        finished = done.policy.state.iteration
        out = self.folder.policy(phase.name) if finished == phase.last else self.folder.next_kept(finished)
        save_sft_round(out, done, examples=file_sha256(table))
        self.folder.copy_metrics(out)
        self.folder.drop_kept(self.configs.run.keep_checkpoints)
        self.folder.compact(finished, self.configs.run.compact_every)
        watch.lap("write")
        entry = self.log.entry(phase, finished - 1, traces=traces, verdicts=verdicts, metrics=done.metrics)
        self.log.write(entry, watch.take())
        if finished < entry["run_last"]:
            check_next_save(self.folder, out, finished, 1)
        return done.policy


class _Journal:
    """Keeps what each update of a phase makes in the run's folder."""

    def __init__(
        self, phases: RunPhases, phase: Phase, watch: Stopwatch, task: Task, asked_to_stop: Callable[[], bool]
    ) -> None:
        self._phases = phases
        self._phase = phase
        self._watch = watch
        self._task = task
        self._asked_to_stop = asked_to_stop
        self._iteration = 0
        self._graded: tuple[Sequence[Trace], Sequence[Verdict]] = (), ()
        self._written: Future[str] | None = None

    def sampled(self, job: SampleJob, traces: Sequence[Trace], verdicts: Sequence[Verdict]) -> None:
        """See `loop.Journal`."""
        self._written = self._phases.write_update(job, traces, verdicts)
        if self._phases.makes_signals:
            # They are made by the same tokenizer, which is not for two threads, and written beside these files.
            self._written.result()
        assert job.config.iteration is not None
        self._iteration = job.config.iteration
        self._graded = traces, verdicts

    def signalled(self, signals: Sequence[Signal]) -> None:
        """See `loop.Journal`."""
        self._phases.write_signals(self._iteration, signals)

    def updated(self, trainer: Trainer) -> None:
        """See `loop.Journal`."""
        assert self._written is not None
        self._written.result()
        folder, finished = self._phases.folder, trainer.policy.state.iteration
        metrics = folder.iteration(finished - 1) / METRICS_FILE
        write_table(metrics, TRAIN_METRICS, trainer.metrics, trainer.metrics_footer())
        for warning in trainer.warnings:
            self._phases.progress.line(f"warning: {warning}")
        self._watch.lap("write")
        best = self._phases.best
        found = best.consider(trainer) if best is not None and best.phase == self._phase else None
        if found is not None:
            self._phases.progress.line(f"{self._phase.name}: {found.words}")
            self._watch.lap("validate")
        traces, verdicts = self._graded
        log, configs = self._phases.log, self._phases.configs
        entry = log.entry(self._phase, finished - 1, traces=traces, verdicts=verdicts, metrics=trainer.metrics)
        if found is not None and found.validation is not None:
            entry["validation"] = found.validation
        alarms, new = log.alarms(entry, configs.alarms)
        stopping = [alarm.words for alarm in alarms if alarm.stops]
        saved = None
        if finished == self._phase.last:
            saved = folder.policy(self._phase.name)
            trainer.save(saved)
        elif finished % configs.run.save_every == 0 or self._asked_to_stop() or stopping:
            saved = folder.next_kept(finished)
            trainer.save(saved)
            folder.drop_kept(configs.run.keep_checkpoints)
            folder.compact(finished, configs.run.compact_every)
        self._watch.lap("write")
        log.write(entry, self._watch.take(), alarms)
        for alarm in new:
            self._phases.progress.line(f"{self._phase.name}, update {finished - 1}: alarm {alarm.name}: {alarm.words}")
        self._task.advance(1, _headline(entry))
        if stopping:
            raise JobError(
                f"stopped after update {finished - 1} by an alarm: {'; '.join(stopping)}. Its policy is kept: go on "
                "with another limit or `warn` in [run.alarms], or --fork under other settings"
            )
        if saved is not None and finished < entry["run_last"]:
            check_next_save(folder, saved, finished, configs.run.save_every)
        if self._asked_to_stop():
            raise KeyboardInterrupt


def _headline(entry: Entry) -> str:
    """What the line of a phase says of its latest update."""
    correct = [f"{attempt} {shares.get(CORRECT, 0.0):.0%}" for attempt, shares in entry["verdicts"].items()]
    seconds = entry["seconds"]
    return f"{' '.join(correct)} right; {sum(seconds.values()):.3g} s, overhead {overhead(seconds):.0%}"
