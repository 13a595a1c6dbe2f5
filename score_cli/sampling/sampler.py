"""Problems to traces: a policy's engine and renderer, kept warm, and what one job samples with them.

Work is cut into chunks of problems. A chunk's traces depend on the policy, the settings and the
problems in it alone: not on the file, the shard or the process that they are sampled in.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from score_cli.config import SampleConfig
from score_cli.errors import UserError
from score_cli.sampling.engine import VLLM, Decoding, Engine, engine_name
from score_cli.sampling.given import CRITIQUE_PART, Given, GivenSolves
from score_cli.sampling.offline import OfflineAttempts
from score_cli.sampling.renderer import Renderer
from score_cli.sampling.rollout import Rollout, check_lengths
from score_cli.sampling.seeds import draw_problems, offline_samples
from score_cli.sampling.transformers_engine import TransformersEngine
from score_cli.sampling.vllm_engine import VllmEngine
from score_cli.settings import check_config
from score_cli.tables.checkpoints import Policy, renderer_digest
from score_cli.tables.device import setup_device
from score_cli.tables.records import SOLVE, Problem, Trace
from score_cli.tables.schemas import LENGTH

Ended = Callable[[Problem, str], None]


@dataclass(frozen=True)
class SampleJob:
    """What is to be sampled: settings with nothing left open, the problems, their prompts, and what is given.

    Attributes:
        offline: first attempts that `config.offline_share` of each problem's samples go on from.
        given: earlier traces that the conversations are built from, row by row with `problems`.
    """

    config: SampleConfig
    problems: Sequence[Problem]
    prompts: Sequence[list[int]]
    renderer: Renderer
    offline: OfflineAttempts | None = None
    given: Given | None = None

    @property
    def names_roles(self) -> bool:
        """Whether the traces say what their turns are."""
        if self.given is not None:
            return self.given.part == CRITIQUE_PART
        return self.config.script is not None and not self.config.script.only_solves

    @property
    def chunks(self) -> list[range]:
        """The rows of `problems`, in pieces of `config.chunk_problems`."""
        count, size = len(self.problems), self.config.chunk_problems
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def rollout(self, row: int, number: int) -> Rollout:
        """The `number`-th trace of a row, as far as it is given.

        Raises:
            UserError: what is given does not fit this policy.
        """
        problem, prompt = self.problems[row], self.prompts[row]
        if self.given is not None:
            return self.given.rollout(self.renderer, row, prompt, number, self.config)
        rollout = self.renderer.rollout(problem, prompt, number, self.config)
        if self.offline is not None and number in self.offline_samples(problem):
            self.offline.give_to(rollout)
        return rollout

    def offline_samples(self, problem: Problem) -> list[int]:
        """Which of a problem's samples go on from a given first attempt."""
        config = self.config
        if self.offline is None:
            return []
        assert config.iteration is not None and config.offline_share is not None
        return offline_samples(config.seed, config.iteration, problem.problem_id, config.samples, config.offline_share)

    def check_offline(self) -> None:
        """See that every first attempt needed is there and fits, before any trace is begun.

        Raises:
            UserError: one does not.
        """
        if self.offline is None:
            return
        wanted = [(problem, index) for problem in self.problems for index in self.offline_samples(problem)]
        self.offline.check_keys([(problem.problem_id, index) for problem, index in wanted])
        for problem, prompt in zip(self.problems, self.prompts, strict=True):
            for index in self.offline_samples(problem):
                self.offline.give_to(self.renderer.rollout(problem, prompt, index, self.config))


class Sampler:
    """Samples traces from a policy. The renderer is made once, the engine at the first trace; both stay warm.

    Args:
        config: how to sample; a call may bring other settings for the same engine.
    Attributes:
        solves: of another policy, to be criticised by this one in every update. Whoever trains a critic sets it.
    """

    def __init__(self, config: SampleConfig, policy: Policy) -> None:
        """Raises:
        UserError: a setting is out of bounds, or the engine is not installed.
        """
        check_config(config)
        self.config = config
        self.policy = policy
        self.engine_name = engine_name(config)
        self.solves: GivenSolves | None = None
        self._engine: Engine | None = None
        self._renderers: dict[tuple[object, ...], Renderer] = {}

    def sample(self, problems: Sequence[Problem], config: SampleConfig | None = None) -> list[Trace]:
        """`samples` traces of each problem, sampled from the policy as it is now.

        Args:
            config: in place of the sampler's own; its iteration says which random numbers are drawn, and is the
                number of the policy's updates if left out.
        Returns:
            The traces problem by problem, sample by sample.
        Raises:
            UserError: a problem cannot be asked of this policy, or its traces could outgrow the context.
        """
        return self.run(self.plan(problems, config))

    def run(self, job: SampleJob, ended: Ended | None = None) -> list[Trace]:
        """All traces of a job, problem by problem, sample by sample.

        Args:
            ended: told of each solve that is sampled and not cut off, when it ends; where other processes sample, when
                its chunk does, and of solves that were given too.
        """
        setup_device(job.config)
        finished = dict(self.sample_chunks(job, list(enumerate(job.chunks)), ended))
        return [trace for number in range(len(finished)) for trace in finished[number]]

    def plan(
        self, problems: Sequence[Problem], config: SampleConfig | None = None, offline: OfflineAttempts | None = None
    ) -> SampleJob:
        """Write the prompts, and settle what the settings leave open; no engine is started.

        Args:
            offline: first attempts that `config.offline_share` of each problem's samples go on from.
        Raises:
            UserError: as `sample`.
        """
        config = self._settled(config)
        if config.script is not None and config.script.needs_solves:
            raise UserError(
                "[script] begins with critique, and no solves are given to criticise: sample them first with --script "
                "solve, then --script critique --from TRACES"
            )
        if config.script is not None:
            config = replace(config, attempts=config.script.longest)
        renderer = self._renderer(config)
        prompts = [renderer.prompt(problem) for problem in problems]
        if config.max_tokens is None:
            config = replace(config, max_tokens=renderer.room(prompts, config.attempts))
        if offline is not None:
            config = replace(config, offline_share=1.0 if config.offline_share is None else config.offline_share)
            self._check_offline(config, offline)
        elif config.offline_share is not None:
            raise UserError(
                "offline_share is set, but no first attempts are given: pass --first-attempts, or leave it out"
            )
        job = SampleJob(config, problems, prompts, renderer, offline)
        drafts = (renderer.rollout(*drafted, 0, config) for drafted in zip(problems, prompts, strict=True))
        check_lengths(drafts, renderer.context)
        job.check_offline()
        return job

    def plan_given(self, given: Given, config: SampleConfig | None = None) -> SampleJob:
        """The job of conversations that are built from earlier traces: `samples` of each.

        Raises:
            UserError: there are none, or as `sample`.
        """
        if not given.starts:
            raise UserError("no conversation is left to sample: the tables given hold none of these problems")
        config = replace(self._settled(config), script=given.script, attempts=given.attempts)
        renderer = self._renderer(config)
        prompts = [given.prompt(renderer, start) for start in given.starts]
        if config.max_tokens is None:
            config = replace(config, max_tokens=given.room(renderer, prompts))
        job = SampleJob(config, given.problems, prompts, renderer, given=given)
        check_lengths((job.rollout(row, 0) for row in range(len(prompts))), renderer.context)
        return job

    def plan_iteration(
        self,
        problems: Sequence[Problem],
        iteration: int,
        attempts: int | None = None,
        offline: OfflineAttempts | None = None,
        offline_share: float | None = None,
    ) -> SampleJob:
        """The job of one update: its own problems out of all, its own random numbers; errors as `plan`.

        Of a critic, whose sampler has `solves`, it is critiques of those of the problems.
        """
        config = replace(
            self.config,
            iteration=iteration,
            attempts=self.config.attempts if attempts is None else attempts,
            offline_share=None if offline is None else offline_share,
        )
        drawn = problems_of_iteration(problems, config, iteration)
        if self.solves is not None:
            return self.plan_given(self.solves.critiques(drawn), config)
        return self.plan(drawn, config, offline)

    def sample_chunks(
        self, job: SampleJob, chunks: Sequence[tuple[int, range]], ended: Ended | None = None
    ) -> Iterator[tuple[int, list[Trace]]]:
        """The finished traces of numbered chunks, each with its number, in the order in which they are done."""
        for number, chunk in chunks:
            yield number, self.sample_chunk(job, chunk, ended)

    def sample_chunk(self, job: SampleJob, chunk: range, ended: Ended | None = None) -> list[Trace]:
        """The finished traces of some of a job's problems."""
        config = job.config
        asked = [job.problems[row] for row in chunk for _ in range(config.samples)]
        rollouts = [job.rollout(row, number) for row in chunk for number in range(config.samples)]
        if ended is not None:
            for rollout, problem in zip(rollouts, asked, strict=True):
                rollout.ended = _teller(ended, problem, job.renderer)
        self.engine.generate(rollouts, Decoding(config.temperature, config.top_p, config.top_k))
        return [job.renderer.trace(rollout, problem) for rollout, problem in zip(rollouts, asked, strict=True)]

    def token_logprobs(self, traces: Sequence[Trace], temperature: float) -> list[list[float]]:
        """The engine's own logprob of every token of some traces; 0.0 for each first token."""
        return self.engine.token_logprobs([trace.token_ids.tolist() for trace in traces], temperature)

    def text_of_tokens(self, tokens: Sequence[int]) -> str:
        """The text that the policy's tokenizer makes of tokens, control tokens included."""
        decoded = self.policy.tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(decoded)

    def load(self, policy: Policy) -> None:
        """Sample from another policy of the same architecture from now on."""
        self.policy = policy
        if self._engine is not None:
            self._engine.refresh(policy)

    @property
    def engine(self) -> Engine:
        """The engine, started when it is first needed.

        Raises:
            UserError: it cannot sample from this kind of model.
        """
        if self._engine is None:
            self._engine = make_engine(self.config, self.policy)
        return self._engine

    def close(self) -> None:
        """Give back what the engine holds; the next trace starts another."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def __enter__(self) -> "Sampler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settled(self, config: SampleConfig | None) -> SampleConfig:
        """Checked settings, the sampler's own if there are no others, with the iteration filled in."""
        config = self.config if config is None else config
        check_config(config)
        if config.iteration is None:
            config = replace(config, iteration=self.policy.state.iteration)
        return config

    def _renderer(self, config: SampleConfig) -> Renderer:
        words = tuple(tuple(change) for change in config.prompts)
        # A dataclass of lists has no hash; its text names it.
        key = (config.correction, words, config.max_model_len, repr(config.script))
        if key not in self._renderers:
            self._renderers[key] = Renderer(self.policy, config)
        return self._renderers[key]

    def _check_offline(self, config: SampleConfig, offline: OfflineAttempts) -> None:
        if config.attempts < 2:
            raise UserError(
                "first attempts are given and attempts is 1, so nothing is left to sample: raise --attempts"
            )
        if offline.renderer not in (None, renderer_digest(self.policy)):
            raise UserError(
                f"{offline.name} was sampled with another tokenizer, chat template or stop token than this policy has: "
                "give first attempts of the same family of policies"
            )


def _teller(ended: Ended, problem: Problem, renderer: Renderer) -> Callable[[Rollout], None]:
    """Tell somebody of a rollout's solves as they end."""

    def tell(rollout: Rollout) -> None:
        if rollout.roles[-1] == SOLVE and rollout.finish_reasons[-1] != LENGTH:
            ended(problem, renderer.text(rollout.attempt_tokens(rollout.attempt), problem))

    return tell


def make_engine(config: SampleConfig, policy: Policy) -> Engine:
    """The engine that `config.engine` asks for, holding this policy.

    Raises:
        UserError: the engine is not installed, or cannot sample from this kind of model.
    """
    if engine_name(config) == VLLM:
        return VllmEngine(policy, config)
    engine = TransformersEngine(policy.model, batch_size=config.batch_size)
    engine.check()
    return engine


def problems_of_iteration(problems: Sequence[Problem], config: SampleConfig, iteration: int) -> list[Problem]:
    """The problems of one update; all of them where the settings do not say how many.

    Raises:
        UserError: there are fewer problems than an update draws.
    """
    if config.problems_per_iteration is None:
        return list(problems)
    if config.problems_per_iteration > len(problems):
        raise UserError(
            f"problems_per_iteration is {config.problems_per_iteration}, but there are {len(problems)} problems: "
            "lower it, or make more problems"
        )
    names = [problem.problem_id for problem in problems]
    rows = draw_problems(config.seed, iteration, names, config.problems_per_iteration)
    return [problems[row] for row in rows]
