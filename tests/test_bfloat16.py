"""The arithmetic of a GPU, on the CPU: autocast to bfloat16 through engine and trainer."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from score_cli import Grader, Loop, SampleConfig, Sampler, Stage2Config, Trainer, VerifyConfig, run_updates
from score_cli.errors import JobError
from score_cli.sampling.engine import Decoding
from score_cli.sampling.transformers_engine import TransformersEngine
from score_cli.sampling.vllm_weights import sampler_weights
from score_cli.tables import adapters, device
from score_cli.tables.checkpoints import Policy, TrainerState
from score_cli.tables.records import Problem, Trace, Verdict
from score_cli.tasks import division
from score_cli.training import step
from score_cli.training.batching import micro_batches
from score_cli.training.gradients import Gradients
from score_cli.training.head import Head
from score_cli.training.logprobs import add_gradient, batch_logprobs
from score_cli.training.on_policy import logprob_limit
from score_cli.training.step import StepStats, TrainBatch
from tests.conftest import small_model, small_policy
from tests.runs import GRADE, invented
from tests.test_adapters import moved
from tests.test_logprobs import traces_of
from tests.test_sampling import rollouts


@pytest.fixture(autouse=True)
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "BFLOAT16_DEVICES", {"cpu"})


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_the_engines_own_check_passes_in_bfloat16(policy: Policy) -> None:
    TransformersEngine(policy.model, batch_size=2).check()


def test_sampled_logprobs_stay_near_those_of_float32(policy: Policy) -> None:
    """They differ (so bfloat16 is at work), and by no more than its eight bits explain."""
    grown = rollouts(policy)
    TransformersEngine(policy.model, batch_size=7).generate(grown, Decoding())
    gaps = []
    for rollout in grown:
        with torch.no_grad():
            scores = policy.model(input_ids=torch.tensor([rollout.token_ids])).logits[0].log_softmax(-1)
        gaps += [
            abs(own - float(scores[place - 1, rollout.token_ids[place]]))
            for place, own in enumerate(rollout.logprobs)
            if rollout.attempt_ids[place]
        ]
    assert 1e-4 < mean(gaps) < 0.05


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
def test_logits_are_the_float32_product_of_bfloat16_operands(architecture: str) -> None:
    """Values against float64, gradients of head and embeddings against float32 within bfloat16's eight bits."""
    model = small_policy(architecture).model  # type: ignore[arg-type]
    head, tokens, seen = model.get_output_embeddings(), torch.tensor([[1, 5, 9, 7]]), []
    with torch.no_grad():
        head.weight.mul_(20)
    pulls = torch.randn(1, 4, head.out_features, generator=torch.Generator().manual_seed(0))

    def gradients(logits: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        (logits.log_softmax(-1) * pulls).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    exact = gradients(model(input_ids=tokens).logits)
    hook = head.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    with device.compute_precision(model):
        logits = model(input_ids=tokens).logits
        with device.compute_precision(model), torch.no_grad():
            again = model(input_ids=tokens).logits
    hook.remove()
    expected = seen[0].bfloat16().double() @ head.weight.detach().bfloat16().double().t()
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < 1e-5 < (logits - logits.bfloat16()).abs().max()
    assert torch.equal(logits, again)
    assert "forward" not in vars(head)
    for own, other in zip(gradients(logits), exact, strict=True):
        assert (own - other).norm() <= 0.05 * other.norm() + 1e-6


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
def test_an_updates_logprobs_are_those_of_the_models_own_pass_and_its_gradient_near_that_of_float32(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_policy(architecture).model  # type: ignore[arg-type]
    batch = next(micro_batches(traces_of(small_policy(architecture)), 10_000))  # type: ignore[arg-type]
    taken = batch.sampled_attempt_ids > 0
    pulls = torch.randn(taken.shape, generator=torch.Generator().manual_seed(0))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        add_gradient(
            Head(model),
            batch,
            1.0,
            lambda tokens: (tokens.logprobs * pulls.flatten()[tokens.places]).sum(0, True),
            added,
        )
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    added = Gradients(model)
    found = batch_logprobs(Head(model), batch, 1.0)
    with device.compute_precision(model), torch.no_grad():
        logits = model(input_ids=batch.token_ids).logits[:, batch.positions - 1]
    expected = logits.log_softmax(-1).gather(-1, batch.token_ids[:, batch.positions][..., None])[..., 0]
    assert logits.dtype == torch.float32
    assert (found - expected)[taken].abs().max() < 1e-5
    ours = gradients()
    monkeypatch.setattr(device, "BFLOAT16_DEVICES", set())
    exact = gradients()
    assert any(not torch.equal(own, other) for own, other in zip(ours, exact, strict=True))
    for own, other in zip(ours, exact, strict=True):
        assert own.dtype == torch.float32
        assert (own - other).norm() <= 0.05 * other.norm() + 1e-5


class Casts(TorchDispatchMode):
    """Counts how often a tensor of each shape is cast to bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and kwargs.get("dtype") is torch.bfloat16:
            self.shapes[tuple(args[0].shape)] += 1
        return function(*args, **kwargs)


def test_a_weight_is_cast_once_for_all_passes_of_a_batch_and_anew_for_the_next() -> None:
    policy = small_policy("qwen2")
    engine = TransformersEngine(policy.model, batch_size=7)
    up, head = (2, (96, 32)), (1, (23, 32))  # two layers have a gate and an up projection each; one embedding
    for passes in (1, 2):
        with Casts() as casts:
            for _ in range(passes):
                engine.generate(rollouts(policy), Decoding())
        assert casts.shapes[up[1]] == 2 * up[0] * passes and casts.shapes[head[1]] == head[0] * passes
    with Casts() as casts:
        engine.token_logprobs([[1, 2, 3]] * 20, 1.0)
    assert casts.shapes[head[1]] == 1


def test_updates_from_bfloat16_are_proved_on_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's own checks compare sampler and trainer, before each update and after it."""

    def grade(grader: Grader, traces: Sequence[Trace], problems: Mapping[str, Problem]) -> list[Verdict]:
        return [invented(verdict) for verdict in GRADE(grader, traces, problems)]

    monkeypatch.setattr(Grader, "grade", grade)
    policy = small_policy("qwen2")
    config = Stage2Config(learning_rate=1e-3, logprob_tolerance=0.05, threads=1)
    trainer = Trainer(config, policy, small_policy("qwen2"))
    sampler = Sampler(SampleConfig(samples=4, problems_per_iteration=3, max_tokens=6, threads=1), policy)
    batches: list[TrainBatch] = []
    real = step.forward_backward
    monkeypatch.setattr(step, "forward_backward", lambda *given: (batches.append(given[2]), real(*given))[1])
    made = Loop(
        sampler=sampler,
        grader=Grader(VerifyConfig()),
        trainer=trainer,
        problems=division.split_problems("train")[:12],
    )
    run_updates(made, 2)
    assert len(batches) == 2 and all(batch.other_engine for batch in batches)
    assert trainer.policy.state.iteration == 2
    assert all(parameter.dtype == torch.float32 for parameter in trainer.policy.model.parameters())
    differences = [row["value"] for row in trainer.metrics if row["name"] == "logprob_diff_abs"]
    assert all(1e-6 < difference < 0.05 for difference in differences) and differences


def difference(traces: list[Trace], trainer: Trainer, temperature: float) -> StepStats:
    verdicts = [Verdict(t.problem_id, t.sample_index, [None] * 2, ["incorrect"] * 2, [0.0] * 2) for t in traces]
    return trainer.forward_backward(trainer.prepare(traces, verdicts, temperature=temperature))


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
@pytest.mark.parametrize(
    ("scale", "temperature", "entropies"),
    [(12.0, 0.1, (0.02, 0.2)), (12.0, 1.0, (0.5, 1.5)), (1.0, 1.0, (2.9, 3.14)), (1.0, 3.0, (3.1, 3.14))],
)
def test_a_strangers_batch_is_refused_and_rounding_is_not_at_any_entropy(
    architecture: str, scale: float, temperature: float, entropies: tuple[float, float]
) -> None:
    """From one token sure to all tokens alike; small weights make policies of other seeds as alike as they get."""
    own, other = (
        Policy(
            small_model(architecture, seed, scale), small_policy().tokenizer, TrainerState(fingerprint=str(seed)), ""
        )
        for seed in (0, 1)
    )
    config = SampleConfig(samples=4, max_tokens=10, temperature=temperature, threads=1)
    traces = Sampler(config, own).sample(division.split_problems("train")[:8])
    trainer, stranger = (Trainer(Stage2Config(kl="full", threads=1), policy) for policy in (own, other))
    stats = difference(traces, trainer, temperature)
    assert entropies[0] < stats.entropy < entropies[1]
    assert 1e-5 < stats.logprob_diff < 0.2 * trainer.logprob_tolerance
    trainer.check_batch_is_on_policy(stats)
    assert not trainer.warnings
    with pytest.raises(JobError, match="not on policy"):
        stranger.check_batch_is_on_policy(difference(traces, stranger, temperature))


def test_a_difference_that_rounding_may_just_explain_is_warned_of(policy: Policy) -> None:
    traces = Sampler(SampleConfig(samples=2, max_tokens=6, threads=1), policy).sample(
        division.split_problems("train")[:4]
    )
    moved = [replace(trace, logprobs=trace.logprobs - np.float32(0.08) * (trace.attempt_ids > 0)) for trace in traces]
    trainer = Trainer(Stage2Config(threads=1), policy)
    stats = difference(moved, trainer, 1.0)
    trainer.check_batch_is_on_policy(stats)
    assert len(trainer.warnings) == 1
    assert re.search(r"differ by 0.08\d? nats a token at update 0 \(limit 0.15\)", trainer.warnings[0])


def test_limits_by_hand() -> None:
    """0.15 x min(1, entropy) / temperature, at least 0.075; float32 has one of its own."""
    assert logprob_limit(2.5, 1.0, bfloat16=True) == pytest.approx(0.15)
    assert logprob_limit(0.8, 1.0, bfloat16=True) == pytest.approx(0.12)
    assert logprob_limit(0.3, 1.0, bfloat16=True) == logprob_limit(3.0, 3.0, bfloat16=True) == 0.075
    assert logprob_limit(0.2, 0.1, bfloat16=True) == pytest.approx(0.3)
    assert logprob_limit(2.5, 1.0, bfloat16=False) == 1e-3


def rounded_policy() -> Policy:
    """A policy as it is published: every weight a bfloat16 number."""
    policy = small_policy("qwen2")
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.copy_(parameter.bfloat16())
    return policy


def token_logprobs(policy: Policy) -> torch.Tensor:
    scores = TransformersEngine(policy.model, batch_size=4).token_logprobs(SEQUENCES, 1.0)
    return torch.tensor([score for row in scores for score in row[1:]])


SEQUENCES = [[1 + (3 * row + 5 * place) % 20 for place in range(24)] for row in range(4)]


def test_frozen_layers_are_held_in_bfloat16_where_that_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings, norms and the head stay in float32, and so do weights that are no bfloat16 numbers."""
    made = moved(rounded_policy())
    held = {name: weight.dtype for name, weight in made.model.named_parameters() if ".lora_" not in name}
    assert {name.split(".")[-3] for name, kind in held.items() if kind is torch.bfloat16} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert held["model.embed_tokens.weight"] is held["model.norm.weight"] is torch.float32
    odd = moved(small_policy("qwen2")).model
    assert {weight.dtype for weight in odd.parameters() if weight.dim() == 2} == {torch.float32}
    monkeypatch.setattr(adapters, "settle_precision", lambda model: None)
    wide = moved(rounded_policy())
    assert {weight.dtype for weight in wide.model.parameters()} == {torch.float32}
    assert torch.equal(token_logprobs(made), token_logprobs(wide))
    monkeypatch.undo()
    monkeypatch.setattr(device, "BFLOAT16_DEVICES", {"cuda"})
    adapters.settle_precision(made.model)  # as a policy that moves to the CPU
    assert torch.equal(token_logprobs(made), token_logprobs(wide))


def test_a_merged_adapter_differs_by_the_rounding_of_its_sums() -> None:
    """What another engine samples from: off the trainer's policy as far as bfloat16 is, whom it is compared with."""
    made = moved(rounded_policy())
    weights = sampler_weights(made.model, torch.bfloat16)
    merged = rounded_policy()
    for name, weight in merged.model.named_parameters():
        weight.data.copy_(weights.pop(name))
    assert not weights
    own, other = token_logprobs(made), token_logprobs(merged)
    with pytest.MonkeyPatch.context() as exactly:
        exactly.setattr(device, "BFLOAT16_DEVICES", set())
        adapters.settle_precision(made.model)
        exact = token_logprobs(made)
        base = token_logprobs(rounded_policy())
    gaps = [(a - b).abs().mean().item() for a, b in ((own, exact), (other, exact), (own, other), (own, base))]
    assert all(1e-4 < gap < 0.02 for gap in gaps[:3]) and gaps[3] > 0.1, gaps


def test_updates_of_an_adapter_from_bfloat16_are_proved_on_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    def grade(grader: Grader, traces: Sequence[Trace], problems: Mapping[str, Problem]) -> list[Verdict]:
        return [invented(verdict) for verdict in GRADE(grader, traces, problems)]

    monkeypatch.setattr(Grader, "grade", grade)
    policy = rounded_policy()
    trainer = Trainer(Stage2Config(learning_rate=1e-3, logprob_tolerance=0.05, threads=1, lora_rank=2), policy)
    sampler = Sampler(SampleConfig(samples=4, problems_per_iteration=3, max_tokens=6, threads=1), policy)
    problems = division.split_problems("train")[:12]
    run_updates(Loop(sampler=sampler, grader=Grader(VerifyConfig()), trainer=trainer, problems=problems), 2)
    kinds = {weight.dtype for weight in adapters.adapter_parameters(trainer.policy.model).values()}
    assert trainer.policy.state.iteration == 2 and kinds == {torch.float32}
    for own, other in zip(policy.model.parameters(), rounded_policy().model.parameters(), strict=True):
        assert torch.equal(own.float(), other)
