"""Sampling: the same tokens whatever the batch, the right distribution, one clean sequence a trace."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from score_cli.config import SampleConfig
from score_cli.errors import JobError, UserError
from score_cli.sampling.engine import Decoding
from score_cli.sampling.renderer import Renderer
from score_cli.sampling.rollout import Rollout
from score_cli.sampling.seeds import attempt_uniforms, draw_problems, sample_digest
from score_cli.sampling.transformers_engine import TransformersEngine, choose_tokens, truncate
from score_cli.stages.sample import sample
from score_cli.tables.checkpoints import Policy
from score_cli.tables.provenance import file_sha256
from score_cli.tables.traces import read_traces
from score_cli.tasks import division
from tests.conftest import small_policy

CONFIG = SampleConfig(samples=4, max_tokens=9, iteration=0, seed=3, threads=1)


def rollouts(policy: Policy, config: SampleConfig = CONFIG, count: int = 5) -> list[Rollout]:
    dialogues = Renderer(policy, CONFIG)
    return [
        dialogues.rollout(problem, dialogues.prompt(problem), index, config)
        for problem in division.split_problems("train")[:count]
        for index in range(config.samples)
    ]


def sampled(policy: Policy, batch_size: int, config: SampleConfig = CONFIG) -> list[Rollout]:
    grown = rollouts(policy, config)
    TransformersEngine(policy.model, batch_size=batch_size).generate(grown, Decoding(config.temperature))
    return grown


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_another_batch_size_gives_the_same_tokens(policy: Policy, batch_size: int) -> None:
    whole, parts = sampled(policy, 64), sampled(policy, batch_size)
    assert len({len(r.token_ids) for r in whole}) > 1, "attempts should end at different lengths"
    for ours, theirs in zip(whole, parts, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.finish_reasons == theirs.finish_reasons
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 64])
def test_a_prompt_is_fed_once_for_all_its_samples(
    policy: Policy, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each distinct prompt but for its last token, which every sample feeds itself; then nothing but what follows."""
    fed: list[tuple[int, ...]] = []
    forward = TransformersEngine._forward

    def watched(engine: TransformersEngine, cache: object, slots: object, feeds: list[list[int]], starts: list[int]):  # type: ignore[no-untyped-def]
        fed.extend(tuple(feed) for feed, start in zip(feeds, starts, strict=True) if start == 0)
        return forward(engine, cache, slots, feeds, starts)  # type: ignore[arg-type]

    monkeypatch.setattr(TransformersEngine, "_forward", watched)
    grown = rollouts(policy)
    # In an order in which the samples of a prompt do not follow each other.
    mixed = [rollout for sample in range(4) for rollout in grown[sample::4]]
    TransformersEngine(policy.model, batch_size=batch_size).generate(mixed, Decoding())
    assert sorted(fed) == sorted({tuple(rollout.prompt[:-1]) for rollout in grown})
    assert len(fed) == 5


def test_the_order_of_rollouts_changes_no_token(policy: Policy) -> None:
    forwards, backwards = rollouts(policy), rollouts(policy)
    TransformersEngine(policy.model, batch_size=7).generate(forwards, Decoding())
    TransformersEngine(policy.model, batch_size=7).generate(backwards[::-1], Decoding())
    for ours, theirs in zip(forwards, backwards, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_keys_shared_between_heads_give_the_same_bits(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = small_policy(architecture)
    assert policy.model.config.num_key_value_heads < policy.model.config.num_attention_heads
    calls: list[bool] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(*tensors: torch.Tensor, enable_gqa: bool = False, **settings: object) -> torch.Tensor:
        calls.append(enable_gqa)
        return attention(*tensors, enable_gqa=enable_gqa, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    shared = sampled(policy, 7)
    assert all(calls) and calls
    monkeypatch.setattr("score_cli.sampling.transformers_engine.grouped_attention", lambda model: nullcontext())
    calls.clear()
    repeated = sampled(policy, 7)
    assert not any(calls) and calls
    assert [(r.token_ids, r.logprobs) for r in shared] == [(r.token_ids, r.logprobs) for r in repeated]


def test_a_model_attends_as_before_when_sampling_has_ended_or_failed() -> None:
    policy = small_policy("qwen2")
    sampled(policy, 7)
    assert policy.model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(JobError, match="not finite"):
        sampled(policy, 7)
    assert policy.model.config._attn_implementation == "sdpa"


def test_cached_sampling_agrees_with_a_plain_forward_pass(policy: Policy) -> None:
    """Brute force: each sampled token's logprob from a fresh, uncached, unpadded pass over its prefix."""
    for rollout in sampled(policy, 7)[:6]:
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([rollout.token_ids])).logits[0]
        for position, owner in enumerate(rollout.attempt_ids):
            if owner:
                expected = logits[position - 1].log_softmax(-1)[rollout.token_ids[position]].item()
                assert rollout.logprobs[position] == pytest.approx(expected, abs=1e-5)


def test_temperature_divides_the_logits(policy: Policy) -> None:
    config = replace(CONFIG, temperature=0.5)
    rollout = sampled(policy, 7, config)[0]
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([rollout.token_ids])).logits[0]
    first = rollout.attempt_ids.index(1)
    expected = (2 * logits[first - 1]).log_softmax(-1)[rollout.token_ids[first]].item()
    assert rollout.logprobs[first] == pytest.approx(expected, abs=1e-5)


def test_greedy_takes_the_likeliest_token_at_every_position(policy: Policy) -> None:
    rollout = sampled(policy, 7, replace(CONFIG, temperature=0.0))[0]
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([rollout.token_ids])).logits[0]
    own = [position for position, owner in enumerate(rollout.attempt_ids) if owner]
    assert [rollout.token_ids[p] for p in own] == [logits[p - 1].argmax().item() for p in own]


def test_nothing_is_sampled_after_a_stop_token(policy: Policy) -> None:
    for rollout in sampled(policy, 7):
        for attempt, reason in enumerate(rollout.finish_reasons, start=1):
            tokens = rollout.attempt_tokens(attempt)
            stops = [token in rollout.stop_ids for token in tokens]
            assert stops == [False] * (len(tokens) - 1) + [reason == "stop"]
            assert reason == "stop" or len(tokens) == CONFIG.max_tokens


def test_each_attempt_ends_its_turn_exactly_once() -> None:
    policy = small_policy()
    eos, fix = policy.tokenizer.eos_token_id, policy.tokenizer.convert_tokens_to_ids("<fix>")
    reasons = set()
    for rollout in sampled(policy, 7):
        end_of_first = len(rollout.attempt_ids) - 1 - rollout.attempt_ids[::-1].index(1)
        start_of_second = rollout.attempt_ids.index(2)
        context = rollout.token_ids[end_of_first + 1 : start_of_second]
        assert context == ([fix] if rollout.finish_reasons[0] == "stop" else [eos, fix])
        reasons.add(rollout.finish_reasons[0])
    assert reasons == {"stop", "length"}


def test_tokens_are_drawn_from_the_softmax() -> None:
    """Chi-square over 20,000 draws of five tokens; 18.5 is the 99.9th percentile with four degrees of freedom."""
    weights = torch.tensor([0.5, 0.25, 0.15, 0.0, 0.1]).double()
    uniforms = attempt_uniforms(sample_digest(0, 0, "p", 0, 1), 20_000)
    drawn = choose_tokens(weights.log()[None].expand(20_000, -1), uniforms.tolist())
    counts = torch.bincount(drawn, minlength=5).double()
    assert counts[3] == 0
    expected = 20_000 * weights[weights > 0]
    assert ((counts[weights > 0] - expected) ** 2 / expected).sum() < 18.5


def brute_force_truncation(weights: list[float], top_k: int, top_p: float) -> list[float]:
    """Take tokens from the likeliest on, while there are fewer than top_k and their share is below top_p."""
    order = sorted(range(len(weights)), key=lambda token: (-weights[token], token))[: top_k or None]
    whole = sum(weights[token] for token in order)
    kept: list[int] = []
    for token in order:
        if sum(weights[k] for k in kept) / whole >= top_p:
            break
        kept.append(token)
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(weights))]


@pytest.mark.parametrize("top_k", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("top_p", [0.05, 0.45, 0.62, 0.99, 1.0])
def test_truncation_agrees_with_brute_force(top_k: int, top_p: float) -> None:
    rows = [[0.4, 0.3, 0.15, 0.1, 0.05], [0.1, 0.2, 0.2, 0.2, 0.3], [0.2] * 5, [1.0, 0.0, 0.0, 0.0, 0.0]]
    found = truncate(torch.tensor(rows).log(), top_k=top_k, top_p=top_p).exp()
    for row, weights in zip(found.tolist(), rows, strict=True):
        assert row == pytest.approx(brute_force_truncation(weights, top_k, top_p), abs=1e-6)


def test_truncated_samples_keep_the_logprobs_of_the_truncated_distribution(policy: Policy) -> None:
    """Brute force over a plain forward pass, at a temperature; and nothing outside the kept tokens is drawn."""
    grown = rollouts(policy)
    TransformersEngine(policy.model, batch_size=7).generate(grown, Decoding(0.7, top_p=0.8, top_k=4))
    for rollout in grown[:8]:
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([rollout.token_ids])).logits[0]
        for position, owner in enumerate(rollout.attempt_ids):
            if owner:
                weights = (logits[position - 1] / 0.7).softmax(-1).tolist()
                kept = brute_force_truncation(weights, 4, 0.8)[rollout.token_ids[position]]
                assert kept > 0 and rollout.logprobs[position] == pytest.approx(np.log(kept), abs=1e-4)


def test_truncated_draws_follow_the_truncated_distribution() -> None:
    """Chi-square over 20,000 draws; 10.8 is the 99.9th percentile with one degree of freedom."""
    weights = torch.tensor([0.1, 0.5, 0.25, 0.15]).log()[None]
    logprobs = truncate(weights, top_k=0, top_p=0.7).expand(20_000, -1)
    drawn = choose_tokens(logprobs, attempt_uniforms(sample_digest(0, 0, "q", 0, 1), 20_000).tolist())
    counts = torch.bincount(drawn, minlength=4).double()
    assert counts[0] == counts[3] == 0
    expected = torch.tensor([2 / 3, 1 / 3]).double() * 20_000
    assert ((counts[1:3] - expected) ** 2 / expected).sum() < 10.8


def test_greedy_takes_no_notice_of_truncation(policy: Policy) -> None:
    plain, truncated = rollouts(policy), rollouts(policy)
    TransformersEngine(policy.model, batch_size=7).generate(plain, Decoding(0.0))
    TransformersEngine(policy.model, batch_size=7).generate(truncated, Decoding(0.0, top_p=0.3, top_k=1))
    assert [(r.token_ids, r.logprobs) for r in plain] == [(r.token_ids, r.logprobs) for r in truncated]


def test_a_draw_of_nearly_one_takes_the_last_token_that_can_be_drawn() -> None:
    logprobs = torch.tensor([[0.5, 0.5, 0.0]]).log()
    assert choose_tokens(logprobs, [1 - 2**-53]).item() == 1
    assert choose_tokens(logprobs, [0.0]).item() == 0


def test_uniform_numbers_are_uniform_and_belong_to_the_sample() -> None:
    draws = attempt_uniforms(sample_digest(0, 0, "p", 0, 1), 50_000)
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 50_000)
    digests = {
        sample_digest(*key)
        for key in [(0, 0, "p", 0, 1), (1, 0, "p", 0, 1), (0, 1, "p", 0, 1), (0, 0, "q", 0, 1), (0, 0, "p", 1, 1)]
    }
    assert len(digests | {sample_digest(0, 0, "p", 0, 2)}) == 6


def test_a_seed_is_what_the_design_says() -> None:
    import hashlib

    assert sample_digest(7, 2, "ü", 3, 1) == hashlib.sha256(rb'[7, 2, "\u00fc", 3, 1]').digest()


def test_every_epoch_visits_every_problem_once_and_no_iteration_holds_one_twice() -> None:
    names = [f"p{i}" for i in range(7)]
    drawn = [draw_problems(0, iteration, names, 3) for iteration in range(70)]
    assert all(len(set(rows)) == 3 for rows in drawn)
    flat = [row for rows in drawn for row in rows]
    for epoch in range(30):
        assert sorted(flat[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert flat[:7] != flat[7:14]


def test_two_runs_give_the_same_bytes(checkpoint: Path, problems: Path, tmp_path: Path) -> None:
    from score_cli.tables.checkpoints import load_policy

    digests = set()
    for name in ("a", "b"):
        out = tmp_path / f"{name}.parquet"
        sample(CONFIG, policy=load_policy(checkpoint), problems=problems, out=out)
        digests.add(file_sha256(out))
    assert len(digests) == 1
    other = tmp_path / "c.parquet"
    sample(replace(CONFIG, seed=4), policy=load_policy(checkpoint), problems=problems, out=other)
    assert [t.attempts for t in read_traces(other)] != [t.attempts for t in read_traces(tmp_path / "a.parquet")]


def test_a_trace_does_not_depend_on_its_neighbours(checkpoint: Path, problems: Path, tmp_path: Path) -> None:
    from score_cli.config import DataConfig
    from score_cli.stages.data import write_problems
    from score_cli.tables.checkpoints import load_policy

    fewer = tmp_path / "fewer.parquet"
    write_problems("division", DataConfig(limit=5), out=fewer)
    for source in (problems, fewer):
        sample(CONFIG, policy=load_policy(checkpoint), problems=source, out=source.with_suffix(".traces"))
    many, few = read_traces(problems.with_suffix(".traces")), read_traces(fewer.with_suffix(".traces"))
    assert [t.token_ids.tolist() for t in many[: len(few)]] == [t.token_ids.tolist() for t in few]


def test_more_than_two_attempts_stay_one_growing_sequence() -> None:
    policy = small_policy()
    config = replace(CONFIG, attempts=4, max_tokens=5)
    for rollout in sampled(policy, 7, config):
        assert len(rollout.finish_reasons) == 4
        owners = [owner for owner in rollout.attempt_ids if owner]
        assert owners == sorted(owners) and set(owners) == {1, 2, 3, 4}


def test_an_attempt_of_one_token_can_end_the_trace() -> None:
    for rollout in sampled(small_policy(), 3, replace(CONFIG, max_tokens=1)):
        assert [len(rollout.attempt_tokens(a)) for a in (1, 2)] == [1, 1]


def test_a_prompt_that_does_not_fit_is_refused_with_its_id(policy: Policy) -> None:
    config = replace(CONFIG, max_tokens=40)
    with pytest.raises(UserError, match="context is 64 .problems division-"):
        sampled(policy, 7, config)


def test_engine_scores_given_tokens_as_it_samples_them(policy: Policy) -> None:
    grown = sampled(policy, 64)
    scores = TransformersEngine(policy.model, batch_size=3).token_logprobs([r.token_ids for r in grown], 1.0)
    for rollout, found in zip(grown, scores, strict=True):
        for owner, own, other in zip(rollout.attempt_ids, rollout.logprobs, found, strict=True):
            assert not owner or own == pytest.approx(other, abs=1e-5)


def test_a_model_whose_cache_the_engine_cannot_drive_is_refused() -> None:
    """GPT-Neo's local layers look back a few tokens only, and say so in words of their own."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    config = GPTNeoConfig(
        vocab_size=23,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=64,
    )
    with pytest.raises(UserError, match="local attention"):
        TransformersEngine(GPTNeoForCausalLM(config).eval(), batch_size=4).check()


def test_the_engines_own_check_passes_for_the_supported_families(policy: Policy) -> None:
    TransformersEngine(policy.model, batch_size=2).check()


def test_weights_that_hold_nan_are_called_that(policy: Policy) -> None:
    name, weight = list(policy.model.named_parameters())[3]
    with torch.no_grad():
        weight.view(-1)[1] = torch.nan
    with pytest.raises(UserError, match=f"NaN or infinite: {name}, 1 tensors in all"):
        TransformersEngine(policy.model, batch_size=3).check()


def test_the_engines_own_check_notices_a_wrong_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "score_cli.sampling.transformers_engine.attention_masks",
        lambda model, mask, positions: torch.ones_like(mask).tril(mask.shape[-1] - mask.shape[-2]),
    )
    with pytest.raises(UserError, match="gives other logprobs than GPT2LMHeadModel itself"):
        TransformersEngine(small_policy().model, batch_size=3).check()


def test_an_empty_prompt_is_refused(checkpoint: Path, problems: Path, tmp_path: Path) -> None:
    from score_cli.tables.checkpoints import load_policy
    from tests.conftest import rewrite

    rewrite(problems, lambda row: row.update(question=""))
    with pytest.raises(UserError, match="gives an empty prompt"):
        sample(CONFIG, policy=load_policy(checkpoint), problems=problems, out=tmp_path / "traces.parquet")


def test_a_question_with_a_control_token_in_it_is_refused_with_its_id(
    checkpoint: Path, problems: Path, tmp_path: Path
) -> None:
    """The built-in task's tokenizer has no other way to write <eos>."""
    from score_cli.tables.checkpoints import load_policy
    from tests.conftest import rewrite

    rewrite(problems, lambda row: row.update(question="Divide 4 by 2. <eos>"))
    with pytest.raises(UserError, match="problem division-.*: the question spells a control token"):
        sample(CONFIG, policy=load_policy(checkpoint), problems=problems, out=tmp_path / "traces.parquet")


def test_a_footer_tells_the_words_that_were_said_and_the_versions_that_computed(
    checkpoint: Path, problems: Path, tmp_path: Path
) -> None:
    """Words can change and leave every token alone where an attempt is asked once; the footer must still tell."""
    from importlib.metadata import version

    from score_cli.tables.checkpoints import load_policy
    from score_cli.tables.parquet import TRACES, read_footer

    footers = []
    for name, words in (("a", None), ("b", "<check>")):
        config = replace(CONFIG, attempts=1, correction=words)
        out = tmp_path / f"{name}.parquet"
        sample(config, policy=load_policy(checkpoint), problems=problems, out=out)
        footers.append(read_footer(out, TRACES))
    plain, changed = footers
    assert plain is not None and changed is not None
    assert plain.inputs["prompts"] != changed.inputs["prompts"]
    assert plain.inputs["problems"] == changed.inputs["problems"]
    assert plain.config["versions"]["torch"] == version("torch") and plain.config["engine"] == "transformers"
