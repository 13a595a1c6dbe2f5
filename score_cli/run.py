"""`score run`: the whole recipe in one process, with the model kept warm, writing the files the commands write.

RUN/config.json               what the run was started with; a resumed run must agree
RUN/train.parquet ...           problems of each split
RUN/base/ stage1/ sft/ score/   the policies: base, after Stage I, after supervised rounds, after Stage II
RUN/first_attempts.parquet      first attempts of the base that Stage II goes on from, where asked for
RUN/iterations/0007/            traces, rewards and metrics of the update from policy 7 to policy 8
RUN/latest/0010/                the newest checkpoint between those, to go on from
RUN/eval/, metrics.parquet      what the policies do on held-out problems
RUN/train_metrics.parquet               every logged metric of every update
"""

import shutil
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
from score_cli.loop import check_logprobs_match, choose_probe
from score_cli.phases import BASE, Phase, plan_phases
from score_cli.progress import SILENT, Progress
from score_cli.recipe import Recipe
from score_cli.run_folder import pin_config
from score_cli.sampling.engine import Engine
from score_cli.sampling.engines import engine_name, make_engine, policy_device
from score_cli.sft_rounds import keep_round_metrics, run_sft_rounds
from score_cli.stages.base import build_base
from score_cli.stages.data import SPLITS, write_problems
from score_cli.stages.evaluate import check_plan, compare_policies, evaluate_policy, samplings, write_metrics
from score_cli.stages.sample import check_room, sample
from score_cli.stages.verify import verify
from score_cli.tables.checkpoints import METRICS_FILE, TRAINER, Policy, load_optimizer, load_policy
from score_cli.tables.device import setup_device
from score_cli.tables.parquet import METRICS, PROBLEMS, TRAIN_METRICS, count_rows, read_table, write_table
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.tables.records import Trace
from score_cli.tables.traces import read_problems, read_traces
from score_cli.training.base_policy import untrained_policy
from score_cli.training.trainer import Reference, Trainer


@dataclass(frozen=True)
class RunSettings:
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
    def of(recipe: Recipe) -> "RunSettings":
        """The settings that a recipe gives."""
        return RunSettings(
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
    """One run folder, and the work still to be done in it."""

    def __init__(
        self, recipe: Recipe, folder: Path, inputs: RunInputs = RunInputs(), progress: Progress = SILENT
    ) -> None:
        """Raises:
        UserError: the folder holds a run with other settings.
        """
        self.settings = RunSettings.of(recipe)
        if inputs.limit is not None and inputs.limit < 1:
            raise UserError(f"limit is {inputs.limit}, expected at least 1")
        if inputs.limit is not None and self.settings.sample.problems_per_iteration is not None:
            fewer = min(inputs.limit, self.settings.sample.problems_per_iteration)
            limited = replace(self.settings.sample, problems_per_iteration=fewer)
            self.settings = replace(self.settings, sample=limited)
        if recipe.has("data") or self.settings.sample.iteration is not None or self.settings.sample.temperature == 0:
            raise UserError(
                "a run takes its problems from --problems, counts its iterations itself and trains on samples: "
                "leave [data], sample.iteration and sample.temperature = 0 out of the recipe"
            )
        _check_sampling(self.settings.sample)
        _check_first_attempts(self.settings)
        if self.settings.eval.correction is None:
            asked_alike = replace(self.settings.eval, correction=self.settings.sample.correction)
            self.settings = replace(self.settings, eval=asked_alike)
        self.phases = plan_phases(
            self.settings.run,
            stage1=self.settings.stage1,
            stage2=self.settings.stage2,
            sft=self.settings.sft,
            attempts=self.settings.sample.attempts,
        )
        for sampling in (self.settings.sample, self.settings.eval):
            engine_name(sampling)  # an engine that is not there is refused before anything is trained
        self.inputs = inputs
        self.folder = folder
        self.progress = progress
        self._engine: Engine | None = None
        self.device = setup_device(self.settings.sample)
        self._start = None if inputs.model is None else _start_of_chain(inputs.model, self.device)
        given = {
            "model": self._start,
            "problems": _digest(inputs.problems),
            "eval_problems": _digest(inputs.eval_problems),
            "limit": inputs.limit,
        }
        pin_config(folder / "config.json", asdict(self.settings) | {"inputs": given})

    def execute(self) -> list[dict[str, Any]]:
        """Do what is not done yet; returns the rows of metrics.parquet."""
        self._prepare_problems()
        check_plan(self.settings.eval, read_problems(self.folder / "test.parquet"))
        base = self.inputs.model or self.folder / "base"
        to_build = not self.inputs.model and not base.exists()
        if to_build or not all((self.folder / phase.name).exists() for phase in self.phases):
            self._check_room(untrained_policy(self.settings.base) if to_build else load_policy(base))
        if to_build:
            build_base(self.settings.base, out=base, progress=self.progress)
        policies = {BASE: base}
        start = base
        try:
            for phase in self.phases:
                policies[phase.name] = start = self._do_phase(phase, start, policies[phase.reference])
        finally:
            self._release()
        self._write_curve(self.phases[-1].last if self.phases else 0)
        return self._evaluate(policies)

    def _check_room(self, base: Policy) -> None:
        """Refuse problems and settings that would outgrow the context, now and not at the evaluation hours later."""
        check_room(replace(self.settings.sample, iteration=0), policy=base, problems=self.folder / "train.parquet")
        # Decodings of as many attempts are as long.
        for settings in {plan.attempts: plan for plan in samplings(self.settings.eval).values()}.values():
            check_room(settings, policy=base, problems=self.folder / "test.parquet")

    def _do_phase(self, phase: Phase, start: Path, reference: Path) -> Path:
        """Run a phase, or what is left of it, and keep its policy under RUN/name."""
        done = self.folder / phase.name
        if done.exists():
            if isinstance(phase.config, SftConfig):
                keep_round_metrics(done, self.folder)
            return done
        latest = (self.folder / "latest").glob("[0-9]*")
        kept = max(
            (p for p in latest if phase.first < int(p.name) < phase.last), key=lambda p: int(p.name), default=None
        )
        if isinstance(phase.config, SftConfig):
            self._release()  # a round has an engine of its own, and a GPU no room for two
            problems, most = self.folder / "train.parquet", self.settings.run.sft_problems
            count = None if most is None else min(most, count_rows(problems, PROBLEMS))
            run_sft_rounds(
                phase,
                sampling=replace(self.settings.sample, problems_per_iteration=count),
                grading=self.settings.verify,
                problems=problems,
                start=start,
                kept=kept,
                folder=self.folder,
                progress=self.progress,
            )
        else:
            self._train(phase, start, reference, kept)
        shutil.rmtree(self.folder / "latest", ignore_errors=True)
        return done

    def _prepare_problems(self) -> None:
        """Put the problems of each part into the run folder, so that it stands by itself."""
        given = {"train": self.inputs.problems, "test": self.inputs.eval_problems}
        for split in SPLITS:
            out, source = self.folder / f"{split}.parquet", given.get(split)
            if out.exists() or (source is None and self.inputs.problems is not None):
                continue
            if source is None:
                write_problems("division", DataConfig(split=split, limit=self.inputs.limit), out=out)
            else:
                rows = [asdict(problem) for problem in read_problems(source)[: self.inputs.limit]]
                inputs = {"problems": file_sha256(source)}
                write_table(out, PROBLEMS, rows, Footer(table=PROBLEMS.name, stage="run", inputs=inputs))

    def _train(self, phase: Phase, start: Path, reference: Path, kept: Path | None) -> None:
        """The iterations of a phase of reinforcement learning, from its start or from the checkpoint kept."""
        assert not isinstance(phase.config, SftConfig)
        policy = load_policy(kept or start, device=self.device)
        pinned_to = load_policy(reference, device=self.device)
        trainer = Trainer(
            phase.config,
            policy,
            Reference(pinned_to.model, pinned_to.state.fingerprint),
            load_optimizer(kept or start),
            new_phase=kept is None and phase.first > 0,
        )
        share, given = self.settings.run.offline_first_attempts, None
        if share and isinstance(phase.config, Stage2Config):
            given = self._draw_first_attempts(pinned_to)  # the reference of Stage II is the base
        engine = self._hold(policy)
        probe: list[Trace] = []
        with self.progress.phase(phase.name, phase.last - phase.first) as task:
            task.advance(policy.state.iteration - phase.first)
            for iteration in range(policy.state.iteration, phase.last):
                traces, rewards = self._iterate(trainer, engine, iteration, phase.attempts, given)
                probe = probe or choose_probe(read_traces(traces))
                # Each stage on its own number of threads, as its command would.
                setup_device(phase.config)
                trainer.update(traces, rewards)
                engine.refresh(trainer.policy)
                check_logprobs_match(trainer, engine, probe, self.settings.sample.temperature)
                self._write_metrics(trainer, iteration)
                finished = iteration + 1
                if finished == phase.last:
                    trainer.save(self.folder / phase.name)
                elif finished % self.settings.run.save_every == 0:
                    self._keep(trainer, finished)
                task.advance(1, _headline(trainer.metrics))

    def _hold(self, policy: Policy) -> Engine:
        """The engine of this run, kept warm from stage to stage, holding a policy."""
        if self._engine is None:
            self._engine = make_engine(self.settings.sample, policy)
        else:
            self._engine.refresh(policy)
        return self._engine

    def _release(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _draw_first_attempts(self, base: Policy) -> Path:
        """First attempts of a policy at every training problem, drawn once for the whole run."""
        out, settings = self.folder / "first_attempts.parquet", self.settings.sample
        if not out.exists():
            setup_device(settings)
            sample(
                replace(settings, attempts=1, problems_per_iteration=None, iteration=0),
                policy=base,
                problems=self.folder / "train.parquet",
                out=out,
                engine=self._hold(base),
                progress=self.progress,
            )
        return out

    def _iterate(
        self, trainer: Trainer, engine: Engine, iteration: int, attempts: int, given: Path | None
    ) -> tuple[Path, Path]:
        """Traces and rewards of one iteration; `given` holds first attempts that some traces go on from."""
        folder, share = self.folder / "iterations" / f"{iteration:04d}", self.settings.run.offline_first_attempts
        problems, traces, rewards = self.folder / "train.parquet", folder / "traces.parquet", folder / "rewards.parquet"
        setup_device(self.settings.sample)
        # A file left by a killed run is made again: it would be the same, but nothing proves it.
        sample(
            replace(self.settings.sample, attempts=attempts, offline_share=share if given else None),
            policy=trainer.policy,
            problems=problems,
            first_attempts=given,
            out=traces,
            overwrite=True,
            engine=engine,
        )
        verify(self.settings.verify, traces=traces, problems=problems, out=rewards, overwrite=True)
        return traces, rewards

    def _write_metrics(self, trainer: Trainer, iteration: int) -> None:
        footer = Footer(table=TRAIN_METRICS.name, stage=trainer.stage, policy=trainer.policy.state.parent)
        write_table(
            self.folder / "iterations" / f"{iteration:04d}" / METRICS_FILE, TRAIN_METRICS, trainer.metrics, footer
        )

    def _keep(self, trainer: Trainer, finished: int) -> None:
        latest = self.folder / "latest"
        trainer.save(latest / f"{finished:04d}")
        for older in latest.glob("[0-9]*"):
            if int(older.name) < finished:
                shutil.rmtree(older)

    def _write_curve(self, iterations: int) -> None:
        rows: list[dict[str, Any]] = []
        for iteration in range(iterations):
            path = self.folder / "iterations" / f"{iteration:04d}" / METRICS_FILE
            rows += read_table(path, TRAIN_METRICS).to_pylist()
        if rows:
            write_table(
                self.folder / "train_metrics.parquet",
                TRAIN_METRICS,
                rows,
                Footer(table=TRAIN_METRICS.name, stage="run"),
            )

    def _evaluate(self, policies: dict[str, Path]) -> list[dict[str, Any]]:
        out, problems = self.folder / "metrics.parquet", self.folder / "test.parquet"
        if out.exists():
            return list(read_table(out, METRICS).to_pylist())
        setup_device(self.settings.eval)
        rows: list[dict[str, Any]] = []
        for name, path in policies.items():
            rows += evaluate_policy(
                self.settings.eval,
                policy=load_policy(path, device=policy_device(self.settings.eval, self.device)),
                name=name,
                problems=problems,
                folder=self.folder / "eval",
                progress=self.progress,
                grading=self.settings.verify,
            )
        names = list(policies)
        rows += compare_policies(self.settings.eval, names=names, folder=self.folder / "eval")
        write_metrics(rows, self.settings.eval, problems=problems, folder=self.folder / "eval", names=names, out=out)
        return rows


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


def _check_first_attempts(settings: RunSettings) -> None:
    """Refuse first attempts that no stage could go on from, before anything is trained."""
    if not settings.run.offline_first_attempts:
        return
    if not settings.run.stage2_iterations or settings.sample.attempts < 2:
        raise UserError("run.offline_first_attempts is for a Stage II of two attempts or more: leave it out, or add it")
    if settings.sample.max_tokens is None:
        raise UserError("run.offline_first_attempts needs attempts of one length: set sample.max_tokens")


def _headline(metrics: list[dict[str, Any]]) -> str:
    found = {(row["name"], row["attempt"]): row["value"] for row in metrics}
    accuracies = [f"t{a} {100 * v:.0f}%" for (name, a), v in found.items() if name == "accuracy"]
    return " ".join(accuracies)


def _start_of_chain(model: Path, device: str) -> str:
    """Fingerprint of the policy that the user gave, once it is seen that the run can count its updates from it."""
    state = load_policy(model, device=device).state
    if state.iteration:
        raise UserError(
            f"{model} is a policy after {state.iteration} updates, and a run counts its own from 0: name the base, or "
            f"a copy of {model} without its folder {TRAINER} to take it as one"
        )
    return state.fingerprint


def _digest(path: Path | None) -> str | None:
    """sha256 of a problems table that the user gave, once it is seen to be one."""
    if path is None:
        return None
    read_problems(path)
    return file_sha256(path)
