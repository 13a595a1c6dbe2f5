"""Sampling with vLLM: every attempt is a request, and an attempt's end queues the next at once.

Tokens go in and tokens come out; text, stop strings and chat templates stay outside. The next
attempt's prompt is everything so far, so its keys and values are found in the prefix cache.
vLLM runs in processes of its own and starts at the first batch.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from score_cli.config import SampleConfig
from score_cli.errors import JobError, UserError
from score_cli.sampling.engine import Decoding, context_limit
from score_cli.sampling.rollout import Rollout, check_lengths
from score_cli.sampling.vllm_watch import Watcher
from score_cli.sampling.vllm_weights import (
    Held,
    Taken,
    WeightsFolder,
    check_same,
    difference,
    held_difference,
    sampler_weights,
    shared_weights,
    tensor_digest,
)
from score_cli.tables.checkpoints import STATE_FILE, TRAINER, Policy, stored_state
from score_cli.tables.device import release_memory

# What vLLM clamps or refuses beyond, silently below and by an error above.
LEAST_TEMPERATURE = 0.01
MOST_TEMPERATURE = 2.0
# GiB of keys and values on CPU, unless the variable is set.
CPU_CACHE = {"VLLM_CPU_KVCACHE_SPACE": "2"}
# Traces that vLLM works on at a time, at most: it sets memory apart for the logits of so many.
MOST_SEQUENCES = {"cuda": 512, "cpu": 256}


class PolicyGoneError(Exception):
    """vLLM has to start, and the policy that it held was never in this process: it is to be handed over again."""


class VllmEngine:
    """Samples from a policy in vLLM's own processes, on GPUs or on the CPU, as vLLM was built."""

    name = "vllm"

    def __init__(self, policy: Policy, config: SampleConfig) -> None:
        """Args:
            policy: vLLM starts from its folder, or from one written for that; later weights come through memory.
        Raises:
            UserError: vLLM cannot run this model here.
        """
        # None once vLLM's workers have taken another from elsewhere.
        self._policy: Policy | None = policy
        self._config = config
        self._cuda = config.device != "cpu" and torch.cuda.is_available()
        self._dtype = torch.bfloat16 if self._cuda else torch.float32
        self._context = context_limit(policy, config.max_model_len)
        self._engine: Any = None
        self._group = ""
        self._watcher: Watcher | None = None
        self._folder = WeightsFolder()
        self._requests = 0
        # The longest trace asked for so far, and the longest that vLLM was started for.
        self._reach = 0
        self._length = 0
        with _environment():
            _check_build(policy, cuda=self._cuda)

    def generate(self, rollouts: Sequence[Rollout], decoding: Decoding) -> None:
        """Sample every rollout to its end, in place.

        Raises:
            UserError: a trace could outgrow the context, or vLLM does not sample at this temperature.
            JobError: vLLM failed.
        """
        check_lengths(rollouts, self._context)
        if not decoding.greedy and not LEAST_TEMPERATURE <= decoding.temperature <= MOST_TEMPERATURE:
            raise UserError(
                f"temperature is {decoding.temperature:g}, expected 0 or {LEAST_TEMPERATURE} to {MOST_TEMPERATURE:g} "
                "with vLLM: use --engine transformers"
            )
        self._start(max((rollout.longest for rollout in rollouts), default=0))
        waiting = {self._queue_attempt(rollout, decoding): rollout for rollout in rollouts}
        while waiting:
            for output in self._step(waiting):
                rollout = waiting.pop(output.request_id)
                _take_attempt(rollout, output.outputs[0])
                if not rollout.done:
                    waiting[self._queue_attempt(rollout, decoding)] = rollout

    def token_logprobs(self, sequences: Sequence[Sequence[int]], temperature: float) -> list[list[float]]:
        """See `Engine.token_logprobs`.

        vLLM scores a prompt at temperature 1 alone. Elsewhere each token is asked for by itself,
        through the sampler, with the tokens before it as the prompt.
        """
        scores = [[0.0] * len(sequence) for sequence in sequences]
        self._start(max(map(len, sequences), default=0))
        starts = [len(sequence) - 1 if temperature == 1.0 else 1 for sequence in sequences]
        waiting = {
            self._queue_score(sequence[:end], sequence[end], temperature): (row, end)
            for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True))
            for end in range(start, len(sequence))
        }
        while waiting:
            for output in self._step(waiting):
                row, end = waiting.pop(output.request_id)
                scores[row][end] = output.outputs[0].logprobs[0][sequences[row][end]].logprob
                for place, given in enumerate(output.prompt_logprobs or []):
                    if given is not None:
                        scores[row][place] = given[sequences[row][place]].logprob
        return scores

    def refresh(self, policy: Policy) -> None:
        """Take another policy's weights in place; see `vllm_worker` for what that needs.

        Raises:
            JobError: vLLM failed; it then holds no policy that could be named.
        """
        self._policy = policy
        if self._engine is None:
            return
        weights = sampler_weights(policy.model, self._dtype)
        expected = {name: tensor_digest(weight) for name, weight in weights.items()}
        self._folder.remove()  # vLLM has started, and needs its files no more
        release_memory()
        with shared_weights(weights) as (path, places), failures("take the new policy's weights"):
            given = self._engine.collective_rpc(
                "load_policy_weights", kwargs={"path": str(path), "places": [list(place) for place in places]}
            )
            # Cached keys and values belong to the old policy.
            fresh = self._engine.reset_prefix_cache()
        if not fresh:
            raise JobError("vLLM did not empty its prefix cache after a change of policy: run the command again")
        check_same([difference(expected, digests or {}) for digests in given])
        self._check_held(policy)

    @property
    def group(self) -> str | None:
        """The group that vLLM's workers have joined, "" if none; None where vLLM does not run."""
        return None if self._engine is None else self._group

    def join(self, group: str, seat: Mapping[str, Any]) -> None:
        """Let vLLM's workers join a group in which weights are sent, in place of the one before.

        Args:
            seat: what vLLM's weight transfer is told of the group.
        Raises:
            JobError: they could not.
        """
        with failures("join the processes that weights are sent among"):
            if self._group:
                self._engine.collective_rpc("shutdown_weight_transfer_engine")
            self._group = ""
            self._engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": dict(seat)})
        self._group = group

    def receive(self, coming: Mapping[str, Any]) -> list[Taken]:
        """Take the weights that are sent in the group; whoever sends them compares what each worker took.

        Args:
            coming: what vLLM's weight transfer is told of the weights.
        Raises:
            JobError: vLLM failed, and is stopped.
        """
        self._policy = None
        self._folder.remove()
        try:
            with failures("take the new policy's weights"):
                given = self._engine.collective_rpc("receive_policy_weights", kwargs={"coming": dict(coming)})
                if not self._engine.reset_prefix_cache():
                    raise JobError(
                        "vLLM did not empty its prefix cache after a change of policy: run the command again"
                    )
                held = self._shown()
        except BaseException:
            self.close()  # some layers may have been taken, and some not
            raise
        return [Taken(digests or {}, shown) for digests, shown in zip(given, held, strict=True)]

    def _shown(self) -> list[dict[str, Held]]:
        """What each worker shows of its weights."""
        held = self._engine.collective_rpc("held_weights")
        return [{name: Held(*weight) for name, weight in (worker or {}).items()} for worker in held]

    def _check_held(self, policy: Policy) -> None:
        """See that what the workers' memory shows of their weights is the policy's, to the bit.

        In bfloat16 one small step moves logprobs less than rounding does, so that the probe of logprobs would pass
        an engine that had kept the old policy.

        Raises:
            JobError: a weight is another's, or a worker shows none.
        """
        with failures("show its weights"):
            shown = self._shown()
        check_same([held_difference(policy.model, worker) for worker in shown])

    def close(self) -> None:
        """Stop vLLM's processes and remove what was written for them."""
        if self._engine is not None:
            self._engine.engine_core.shutdown()
            self._engine, self._group = None, ""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        self._folder.remove()

    def _queue_attempt(self, rollout: Rollout, decoding: Decoding) -> str:
        """Queue what a rollout writes next; its prompt is all that stands there so far."""
        return self._queue(
            rollout.token_ids,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            seed=None if decoding.greedy else attempt_seed(rollout.seeds[rollout.attempt - 1]),
            max_tokens=rollout.max_tokens,
            stop_token_ids=sorted(rollout.stop_ids),
            logprobs=0,
        )

    def _queue_score(self, prompt: Sequence[int], token: int, temperature: float) -> str:
        """Ask how likely a token is after a prompt, and at temperature 1 the prompt's own tokens too."""
        return self._queue(
            prompt,
            temperature=temperature,
            max_tokens=1,
            logprob_token_ids=[token],
            prompt_logprobs=0 if temperature == 1.0 else None,
        )

    def _queue(self, prompt: Sequence[int], **settings: Any) -> str:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        self._requests += 1
        request = str(self._requests)
        params = SamplingParams(detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **settings)
        with failures("queue a request"):
            self._engine.add_request(request, TokensPrompt(prompt_token_ids=list(prompt)), params)
        return request

    def _step(self, waiting: dict[str, Any]) -> list[Any]:
        """Requests that one step of vLLM finished; on an interruption the others are taken back."""
        try:
            with failures("sample"):
                return [output for output in self._engine.step() if output.finished]
        except KeyboardInterrupt:
            self._engine.abort_request(list(waiting))
            raise

    def _start(self, length: int) -> None:
        """Start vLLM for traces of so many tokens, if it does not run; anew where it was started for shorter ones."""
        self._reach = max(self._reach, length)
        if self._engine is not None and self._reach > self._length:
            self.close()
        if self._engine is None:
            if self._policy is None:
                raise PolicyGoneError
            self._length = self._longest_served()
            release_memory()
            self._watcher = self._watcher or Watcher()
            with _environment(), failures("start"), self._watcher.starting():
                from vllm import EngineArgs
                from vllm.usage.usage_lib import UsageContext
                from vllm.v1.engine.llm_engine import LLMEngine

                # Offline work is given larger batches than vLLM's other defaults.
                self._engine = LLMEngine.from_engine_args(
                    EngineArgs(**self._arguments()), usage_context=UsageContext.LLM_CLASS
                )
            self._check_held(self._policy)

    def _longest_served(self) -> int:
        """The longest trace to start vLLM for: it sets memory apart for one such, and a model's context may be long.

        A quarter more than asked for yet, since later prompts may be longer.
        """
        if self._config.max_model_len is not None:
            assert self._context is not None
            return self._context
        ample = max(self._reach * 5 // 4, 64)
        return ample if self._context is None else min(ample, self._context)

    def _arguments(self) -> dict[str, Any]:
        config, policy = self._config, self._policy
        assert policy is not None
        problems = min(config.chunk_problems, config.problems_per_iteration or config.chunk_problems)
        most = MOST_SEQUENCES["cuda" if self._cuda else "cpu"]
        return {
            "model": str(_own_folder(policy) or self._write_policy(policy)),
            "max_num_seqs": min(problems * config.samples, most),
            "skip_tokenizer_init": True,
            # Stop tokens come with each request; vLLM would add those of the model's folder.
            "generation_config": "vllm",
            "dtype": str(self._dtype).removeprefix("torch."),
            # As the trainer: bfloat16 logits round logprobs by more than an update changes them.
            "hf_overrides": {"head_dtype": "float32"},
            "max_model_len": self._length,
            "logprobs_mode": "processed_logprobs",
            "enable_prefix_caching": True,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "tensor_parallel_size": config.tensor_parallel_size,
            "enforce_eager": not self._cuda,
            # A prompt that is only begun when a step has no room for more takes its draw back afterwards, which random
            # generators on CPU cannot: vLLM dies. Whole prompts draw once.
            "enable_chunked_prefill": None if self._cuda else False,
            "worker_extension_cls": "score_cli.sampling.vllm_worker.PolicyRefresh",
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "seed": 0,
        } | self._transfer()

    def _transfer(self) -> dict[str, Any]:
        """What vLLM is told where it is to receive weights that are sent in a group."""
        if self._config.ray_weights == "store":
            return {}
        return {
            "worker_extension_cls": "score_cli.sampling.vllm_transfer.PolicyReceiver",
            "weight_transfer_config": {"backend": "nccl" if self._cuda else "gloo"},
        }

    def _write_policy(self, policy: Policy) -> Path:
        """Write a policy into a new folder for vLLM to start from."""
        return self._folder.write(policy, sampler_weights(policy.model, self._dtype))


def attempt_seed(digest: bytes) -> int:
    """vLLM's seed of one attempt: 63 bits of its digest, so that it is neither negative nor too long."""
    return int.from_bytes(digest[:8], "little") >> 1


def _take_attempt(rollout: Rollout, completion: Any) -> None:
    """Append what vLLM sampled; the rollout itself sees where the attempt ends."""
    ended = len(rollout.finish_reasons)
    for token, choices in zip(completion.token_ids, completion.logprobs, strict=True):
        logprob = choices[token].logprob
        if not math.isfinite(logprob):
            raise JobError(
                "the policy gives logprobs that are not finite: go back a checkpoint, or raise --temperature"
            )
        rollout.append(token, logprob)
    if len(rollout.finish_reasons) != ended + 1:
        raise JobError(
            f"vLLM ended attempt {ended + 1} of problem {rollout.problem_id} after {len(completion.token_ids)} tokens "
            f"(it says {completion.finish_reason}), at no stop token and before {rollout.max_tokens}: run it again"
        )


def _own_folder(policy: Policy) -> Path | None:
    """The folder this policy was loaded from, where it holds exactly this policy, and not its adapter alone."""
    folder = Path(policy.name)
    if policy.base is not None:
        return None
    if (folder / TRAINER / STATE_FILE).is_file():
        same = stored_state(folder).fingerprint == policy.state.fingerprint
    else:
        # A folder made elsewhere: a policy that was never updated since is still what was loaded from it.
        same = (folder / "config.json").is_file() and policy.state.parent is None
    return folder.resolve() if same else None


def _check_build(policy: Policy, *, cuda: bool) -> None:
    """Refuse what this build of vLLM could not run, since it would fail only at its first batch.

    Raises:
        UserError: built for another device, or without a kernel for the model's heads.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu() == cuda:
        built, device = ("the CPU", "a GPU") if cuda else ("GPUs", "the CPU")
        raise UserError(f"the installed vLLM is built for {built}, the device is {device}: use --engine transformers")
    if not cuda:
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        config = policy.model.config.get_text_config()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        known = CPUAttentionBackend.get_supported_head_sizes()
        if size not in known:
            raise UserError(
                f"{policy.name} has attention heads of size {size}, expected one of {', '.join(map(str, known))} with "
                "vLLM on CPU: use --engine transformers, or a base of --width 128"
            )


@contextmanager
def _environment() -> Iterator[None]:
    """What vLLM is told through variables; it sets more of its own, which other child processes must not inherit."""
    before = dict(os.environ)
    for name, value in {**CPU_CACHE, "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}.items():
        os.environ.setdefault(name, value)
    # A fork would inherit the locks of torch's threads.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def failures(doing: str) -> Iterator[None]:
    """Turn whatever vLLM raises into one line; a boundary, since its errors share no class."""
    try:
        yield
    except (UserError, JobError):
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise JobError(
            f"vLLM could not {doing} ({type(error).__name__}: {reason}): see its messages above, or set "
            "VLLM_LOGGING_LEVEL=INFO for more"
        ) from None
