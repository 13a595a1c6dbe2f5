"""On a GPU, in a minute: sample, update, refresh and check with both engines, on a two-layer Qwen2 in bfloat16."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from score_cli import Grader, Loop, SampleConfig, Sampler, Stage2Config, Trainer, VerifyConfig, run_updates
from score_cli.config import BaseConfig
from score_cli.errors import JobError
from score_cli.loop import check_logprobs_match
from score_cli.sampling.engine import Decoding
from score_cli.sampling.renderer import Renderer
from score_cli.sampling.rollout import Rollout
from score_cli.sampling.transformers_engine import TransformersEngine
from score_cli.tables.checkpoints import Policy, TrainerState, fingerprint
from score_cli.tables.records import Problem, Trace, Verdict
from score_cli.tasks import division
from score_cli.tasks.division_tokenizer import make_tokenizer
from score_cli.training.base_policy import make_model
from tests.runs import GRADE, invented

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]

ENGINES = [
    "transformers",
    pytest.param("vllm", marks=pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")),
]
SAMPLE = SampleConfig(
    samples=8, problems_per_iteration=16, max_tokens=14, device="cuda", threads=1, gpu_memory_utilization=0.2
)
TRAIN = Stage2Config(learning_rate=1e-3, kl="sampled", device="cuda", threads=1)


def qwen2(seed: int = 0, device: str = DEVICE) -> Policy:
    """An untrained two-layer Qwen2 with grouped heads of 64 numbers, for which every GPU kernel is made."""
    model = make_model(BaseConfig(architecture="qwen2", width=256, heads=4, seed=seed), make_tokenizer())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 2.0
    policy = Policy(model, make_tokenizer(), TrainerState(fingerprint=fingerprint(model)), f"qwen2-{seed}")
    model.to(device)
    return policy


@pytest.fixture(autouse=True)
def verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the attempts is right: an untrained policy never is."""

    def grade(grader: Grader, traces: Sequence[Trace], problems: Mapping[str, Problem]) -> list[Verdict]:
        return [invented(verdict) for verdict in GRADE(grader, traces, problems)]

    monkeypatch.setattr(Grader, "grade", grade)


@pytest.mark.parametrize("engine", ENGINES)
def test_three_updates_each_proved_on_policy(engine: str) -> None:
    """Sample, update, refresh, check: the loop stops by itself where sampler and trainer hold different policies."""
    policy = qwen2()
    with Sampler(replace(SAMPLE, engine=engine), policy) as sampler:  # type: ignore[arg-type]
        trainer = Trainer(TRAIN, policy, qwen2())
        made = Loop(
            sampler=sampler,
            grader=Grader(VerifyConfig()),
            trainer=trainer,
            problems=division.split_problems("train")[:64],
        )
        run_updates(made, 3)
        assert trainer.policy.state.iteration == 3
        assert trainer.policy.state.fingerprint != qwen2().state.fingerprint
        # The check can fail: another policy's logprobs are further off than rounding.
        probe = sampler.sample(made.problems[:4])
        check_logprobs_match(trainer, sampler, probe, 1.0)
        with pytest.raises(JobError, match="the sampler holds another policy"):
            check_logprobs_match(Trainer(TRAIN, qwen2(seed=1), qwen2(seed=1)), sampler, probe, 1.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_three_updates_of_an_adapter_leave_its_base_as_it_was(engine: str) -> None:
    """The frozen matrices lie in bfloat16, over which the adapter is float32; vLLM is sent the sum of both."""
    policy, before = qwen2(), qwen2(device="cpu").model
    with torch.no_grad():
        for model in (policy.model, before):
            for weight in model.parameters():
                weight.copy_(weight.bfloat16())
    policy = replace(policy, state=TrainerState(fingerprint=fingerprint(policy.model)))
    with Sampler(replace(SAMPLE, engine=engine), policy) as sampler:  # type: ignore[arg-type]
        trainer = Trainer(replace(TRAIN, learning_rate=1e-2, lora_rank=8), policy)
        problems = division.split_problems("train")[:64]
        run_updates(Loop(sampler=sampler, grader=Grader(VerifyConfig()), trainer=trainer, problems=problems), 3)
        assert trainer.policy.state.iteration == 3 and trainer.reference is policy
        kinds = {name.split(".")[-3]: weight.dtype for name, weight in trainer.policy.model.named_parameters()}
        assert kinds["lora_A"] == kinds["lora_B"] == torch.float32 and kinds["q_proj"] == torch.bfloat16
        for own, other in zip(policy.model.parameters(), before.parameters(), strict=True):
            assert torch.equal(own.cpu().float(), other)
        probe = sampler.sample(problems[:4])
        check_logprobs_match(trainer, sampler, probe, 1.0)
        with pytest.raises(JobError, match="the sampler holds another policy"):
            check_logprobs_match(Trainer(TRAIN, qwen2(seed=1), qwen2(seed=1)), sampler, probe, 1.0)


def rollouts(policy: Policy) -> list[Rollout]:
    config = replace(SAMPLE, iteration=0)
    renderer = Renderer(policy, config)
    return [
        renderer.rollout(problem, renderer.prompt(problem), index, config)
        for problem in division.split_problems("train")[:8]
        for index in range(config.samples)
    ]


def test_bfloat16_on_the_gpu_stays_near_float32_on_the_cpu() -> None:
    """One token's logprob may be a rounding step off; their mean is not, and is not zero either."""
    policy = qwen2()
    grown = rollouts(policy)
    TransformersEngine(policy.model, batch_size=64).generate(grown, Decoding())
    plain = qwen2(device="cpu").model
    gaps = []
    for rollout in grown:
        with torch.no_grad():
            scores = plain(input_ids=torch.tensor([rollout.token_ids])).logits[0].log_softmax(-1)
        gaps += [
            abs(own - float(scores[place - 1, rollout.token_ids[place]]))
            for place, own in enumerate(rollout.logprobs)
            if rollout.attempt_ids[place]
        ]
    assert 0 < sum(gaps) / len(gaps) < 0.05
    assert max(gaps) < 0.5
