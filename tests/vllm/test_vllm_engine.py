"""vLLM samples from the trainer's policy: the same logprobs, distribution, bridges and stops; never stale weights."""

import copy
from collections import Counter
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from score_cli.config import Stage2Config
from score_cli.errors import JobError, UserError
from score_cli.loop import check_logprobs_match
from score_cli.sampling import vllm_engine
from score_cli.sampling.engine import Decoding
from score_cli.sampling.renderer import Renderer
from score_cli.sampling.rollout import Rollout
from score_cli.sampling.transformers_engine import TransformersEngine
from score_cli.sampling.vllm_engine import VllmEngine
from score_cli.sampling.vllm_weights import sampler_weights, shared_weights
from score_cli.tables.checkpoints import Policy
from score_cli.tables.records import SOLVE, VERIFY, Trace
from score_cli.tables.schemas import LENGTH, STOP
from score_cli.tasks import division
from score_cli.tasks.script import read_script
from score_cli.training.trainer import Trainer
from tests.conftest import sampler_of
from tests.vllm.conftest import CONFIG, MakeRollouts, noisy_policy

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")]


CLAIMS = read_script(
    {
        "turns": ["solve", "verify"],
        "most_solves": 2,
        "ends_when": "verdict correct",
        "verify": {"ask": division.LATENT_CORRECTION, "claim": "8|0"},  # words of the built-in tokenizer
    }
)


def grown(engine: VllmEngine | TransformersEngine, rollouts: list[Rollout], temperature: float = 1.0) -> list[Rollout]:
    engine.generate(rollouts, Decoding(temperature))
    return rollouts


def plain_scores(model: torch.nn.Module, tokens: list[int], temperature: float = 1.0) -> Tensor:
    """[T, V] logprobs after each token, from one uncached forward pass of the model itself."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens])).logits[0]
    return (logits / temperature).log_softmax(-1)


def plain_logprobs(model: torch.nn.Module, tokens: list[int], temperature: float = 1.0) -> list[float]:
    scores = plain_scores(model, tokens, temperature)
    return [0.0, *scores[:-1].gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()]


def largest_gap(engine: VllmEngine, model: torch.nn.Module, sequences: list[list[int]]) -> float:
    expected = [plain_logprobs(model, tokens) for tokens in sequences]
    given = engine.token_logprobs(sequences, 1.0)
    return max(abs(a - b) for x, y in zip(expected, given, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_of_sampled_tokens_are_the_trainers(
    engine: VllmEngine, policy: Policy, rollouts: MakeRollouts, temperature: float
) -> None:
    for rollout in grown(engine, rollouts(), temperature):
        expected = plain_logprobs(policy.model, rollout.token_ids, temperature)
        for owner, ours, own in zip(rollout.attempt_ids, rollout.logprobs, expected, strict=True):
            assert ours == (pytest.approx(own, abs=1e-4) if owner else 0.0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_given_tokens_are_scored_as_the_model_scores_them(
    engine: VllmEngine, policy: Policy, rollouts: MakeRollouts, temperature: float
) -> None:
    # The last sequence fills the context, where vLLM takes no whole prompt.
    full = [index % 11 + 1 for index in range(64)]
    sequences = [rollout.token_ids for rollout in grown(engine, rollouts())[:5]] + [full]
    for tokens, scores in zip(sequences, engine.token_logprobs(sequences, temperature), strict=True):
        assert scores == pytest.approx(plain_logprobs(policy.model, tokens, temperature), abs=1e-4)


def test_greedy_decoding_takes_the_likeliest_token_with_its_logprob_at_temperature_one(
    engine: VllmEngine, policy: Policy, rollouts: MakeRollouts
) -> None:
    for rollout in grown(engine, rollouts(replace(CONFIG, samples=1)), 0.0):
        scores = plain_scores(policy.model, rollout.token_ids)
        for place, owner in enumerate(rollout.attempt_ids):
            if owner:
                assert rollout.token_ids[place] == scores[place - 1].argmax()
                assert rollout.logprobs[place] == pytest.approx(scores[place - 1].max().item(), abs=1e-4)


def test_attempts_follow_each_other_through_the_bridge(engine: VllmEngine, rollouts: MakeRollouts) -> None:
    made = grown(engine, rollouts(replace(CONFIG, attempts=3, max_tokens=7)))
    assert {reason for rollout in made for reason in rollout.finish_reasons} == {STOP, LENGTH}
    for rollout in made:
        assert len(rollout.finish_reasons) == 3
        tokens, owners = list(rollout.prompt), [0] * len(rollout.prompt)
        for attempt, reason in enumerate(rollout.finish_reasons, start=1):
            sampled = rollout.attempt_tokens(attempt)
            bridge = [] if attempt == 3 else rollout.bridge.after(reason)
            tokens += sampled + bridge
            owners += [attempt] * len(sampled) + [0] * len(bridge)
        assert rollout.token_ids == tokens
        assert rollout.attempt_ids == owners


def test_a_scripts_dialogues_end_by_their_own_words_alike_in_both_engines(engine: VllmEngine, policy: Policy) -> None:
    """Random words claim little: some dialogues go on after a claim of 0, the others end with an unread one."""
    config = replace(CONFIG, script=CLAIMS, attempts=CLAIMS.longest)
    dialogues = Renderer(policy, config)
    further = {policy.tokenizer.convert_tokens_to_ids(word) for word in ("-", ". ", "+")}

    def made(samples: int) -> list[Rollout]:
        rollouts = [
            dialogues.rollout(problem, dialogues.prompt(problem), index, config)
            for problem in division.split_problems("train")[:12]
            for index in range(samples)
        ]
        for rollout in rollouts:
            rollout.stop_ids = rollout.stop_ids | further  # or too few turns end before they are cut off
        return rollouts

    sampled = grown(engine, made(4))
    assert {tuple(rollout.roles) for rollout in sampled} == {(SOLVE, VERIFY), (SOLVE, VERIFY, SOLVE, VERIFY)}
    for rollout in sampled:
        texts = [policy.tokenizer.decode(rollout.attempt_tokens(turn)) for turn in range(1, len(rollout.roles) + 1)]
        said = texts[1] if rollout.finish_reasons[1] == STOP else ""
        assert (len(rollout.roles) == 4) == (CLAIMS.read_claim(VERIFY, said) == "0")
        plain = plain_logprobs(policy.model, rollout.token_ids)
        expected = [score if owner else 0.0 for score, owner in zip(plain, rollout.attempt_ids, strict=True)]
        assert rollout.logprobs == pytest.approx(expected, abs=1e-4)
    theirs = grown(TransformersEngine(policy.model, batch_size=64), made(1), 0.0)
    ours = grown(engine, made(1), 0.0)
    assert {len(rollout.roles) for rollout in ours} == {2, 4}
    assert [(r.roles, r.token_ids, r.attempt_ids) for r in ours] == [
        (r.roles, r.token_ids, r.attempt_ids) for r in theirs
    ]


def test_every_stop_token_ends_an_attempt_and_is_kept(
    engine: VllmEngine, policy: Policy, rollouts: MakeRollouts
) -> None:
    made = rollouts()
    usual = Counter(token for rollout in grown(engine, rollouts()) for token in rollout.attempt_tokens(1))
    second = next(token for token, _ in usual.most_common() if token not in made[0].stop_ids)
    stops = made[0].stop_ids | {second}
    for rollout in made:
        rollout.stop_ids = stops
    ended_by = set()
    for rollout in grown(engine, made):
        for attempt, reason in enumerate(rollout.finish_reasons, start=1):
            tokens = rollout.attempt_tokens(attempt)
            assert not stops & set(tokens[:-1])
            assert (reason == STOP) == (tokens[-1] in stops)
            assert reason == STOP or len(tokens) == CONFIG.max_tokens
            ended_by.add(tokens[-1] if reason == STOP else None)
        assert rollout.logprobs == pytest.approx(
            [
                score if owner else 0.0
                for score, owner in zip(
                    plain_logprobs(policy.model, rollout.token_ids), rollout.attempt_ids, strict=True
                )
            ],
            abs=1e-4,
        )
    assert ended_by >= stops


def test_a_sample_does_not_depend_on_its_neighbours(engine: VllmEngine, rollouts: MakeRollouts) -> None:
    together = grown(engine, rollouts())
    backwards = grown(engine, rollouts()[::-1])[::-1]
    alone = [grown(engine, [rollout])[0] for rollout in rollouts()[:3]]
    for ours, theirs in [*zip(together, backwards, strict=True), *zip(together[:3], alone, strict=True)]:
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
    assert len({tuple(rollout.token_ids) for rollout in together[:4]}) > 1, "samples of a problem should differ"


def test_more_prompts_than_one_step_has_room_for_are_sampled_alike(engine: VllmEngine, rollouts: MakeRollouts) -> None:
    """vLLM begins a prompt that fits a step in part only, then takes its draw back: on CPU it dies of that."""
    config = replace(CONFIG, samples=16, max_tokens=2, attempts=1)
    few, many = rollouts(config, count=2), rollouts(config, count=24)
    for rollout in few + many:
        # Long prompts: as many of the usual ones as are sampled at a time fit into a step.
        rollout._add_context([7] * (60 - len(rollout.token_ids)))
    grown(engine, few)
    limits = engine._engine.vllm_config.scheduler_config
    assert 60 * min(len(many), limits.max_num_seqs) > limits.max_num_batched_tokens
    assert [rollout.token_ids for rollout in grown(engine, many)[:32]] == [rollout.token_ids for rollout in few]


def chi_square_p(observed: Tensor, expected: Tensor) -> float:
    """p-value of Pearson's test; outcomes expected fewer than five times count as one."""
    common = expected >= 5
    seen = torch.cat([observed[common], observed[~common].sum()[None]]).double()
    awaited = torch.cat([expected[common], expected[~common].sum()[None]]).double()
    kept = awaited > 0
    statistic = ((seen - awaited)[kept] ** 2 / awaited[kept]).sum()
    freedom = torch.tensor(kept.sum().item() - 1.0, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))


def test_both_engines_draw_from_the_policys_own_distribution(
    engine: VllmEngine, policy: Policy, rollouts: MakeRollouts
) -> None:
    """Seeds are fixed, so nothing is left to chance; the wrong temperature shows that a difference is seen."""
    draws = 3000
    config = replace(CONFIG, samples=draws, max_tokens=1)
    samplers = {"vllm": engine, "transformers": TransformersEngine(policy.model, batch_size=512)}
    for sampler in samplers.values():
        made = grown(sampler, rollouts(config, count=1))
        scores = plain_scores(policy.model, list(made[0].prompt))[-1]
        first = torch.bincount(torch.tensor([r.attempt_tokens(1)[0] for r in made]), minlength=len(scores))
        assert chi_square_p(first, draws * scores.exp()) > 0.001
        assert chi_square_p(first, draws * (scores / 0.8).softmax(-1)) < 1e-6
        # The second attempt, where the first wrote its most usual token.
        usual = int(first.argmax())
        followed = [r for r in made if r.attempt_tokens(1)[0] == usual]
        context = followed[0].token_ids[: -len(followed[0].attempt_tokens(2))]
        after = plain_scores(policy.model, context)[-1]
        second = torch.bincount(torch.tensor([r.attempt_tokens(2)[0] for r in followed]), minlength=len(after))
        assert chi_square_p(second, len(followed) * after.exp()) > 0.001


def traces_of(rollouts: list[Rollout]) -> list[Trace]:
    import numpy as np

    return [
        Trace(
            problem_id=rollout.problem_id,
            sample_index=rollout.sample_index,
            attempts=["", ""],
            finish_reasons=rollout.finish_reasons,
            token_ids=np.array(rollout.token_ids),
            attempt_ids=np.array(rollout.attempt_ids),
            logprobs=np.array(rollout.logprobs),
            offline_attempts=0,
        )
        for rollout in rollouts
    ]


@pytest.fixture
def after_an_update() -> Policy:
    return noisy_policy(1)


def test_a_bare_reload_leaves_a_policy_that_is_neither_and_the_proof_stops_it(
    engine: VllmEngine, policy: Policy, rollouts: MakeRollouts, after_an_update: Policy
) -> None:
    """The new body under the old head: vLLM's own reload does not pack a tied head anew, and fails in nothing."""
    made = grown(engine, rollouts())[:8]
    sequences = [rollout.token_ids for rollout in made]
    path = str(engine._write_policy(after_an_update))
    engine._engine.collective_rpc("reload_weights", kwargs={"weights_path": path})
    engine._engine.reset_prefix_cache()
    assert largest_gap(engine, policy.model, sequences) > 1
    assert largest_gap(engine, after_an_update.model, sequences) > 1
    mixed = noisy_policy(1).model
    mixed.lm_head.weight = torch.nn.Parameter(policy.model.lm_head.weight.detach().clone())
    assert largest_gap(engine, mixed, sequences) < 1e-4
    with pytest.raises(JobError, match="the sampler holds another policy"):
        check_logprobs_match(
            Trainer(Stage2Config(), after_an_update), sampler_of(engine, after_an_update), traces_of(made), 1.0
        )


def test_a_refresh_that_vllm_passed_over_is_seen_by_the_weights_themselves(
    engine: VllmEngine,
) -> None:
    """A change of one weight in its last bit, which no probe of logprobs could tell from rounding."""
    held = engine._policy
    moved = Policy(copy.deepcopy(held.model), held.tokenizer, held.state, held.name)
    weight = moved.model.get_input_embeddings().weight
    with torch.no_grad():
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    engine._check_held(held)
    with pytest.raises(JobError, match=r"vLLM did not take the policy's weights \(transformer.wte.weight and 0 more"):
        engine._check_held(moved)
    engine.refresh(moved)
    engine._check_held(moved)


@pytest.mark.parametrize(
    "name",
    ["transformer.h.1.mlp.c_proj.weight", "transformer.h.0.attn.c_attn.bias", "transformer.wpe.weight"],
)
def test_any_weight_that_vllm_was_given_otherwise_is_seen(
    engine: VllmEngine, after_an_update: Policy, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last bit, in a matrix that no worker shows, in a bias and in an embedding."""

    def wrong(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        changed = weights[name].clone()
        changed.view(-1)[7] = torch.nextafter(changed.view(-1)[7], torch.tensor(9.0))
        return {**weights, name: changed}

    monkeypatch.setattr(vllm_engine, "shared_weights", lambda weights: shared_weights(wrong(weights)))
    with pytest.raises(JobError, match=rf"vLLM did not take the policy's weights \({name} and 0 more of 28\)"):
        engine.refresh(after_an_update)


def test_the_weights_of_another_policy_are_seen(
    engine: VllmEngine, policy: Policy, after_an_update: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = sampler_weights(policy.model, torch.float32)
    monkeypatch.setattr(vllm_engine, "shared_weights", lambda weights: shared_weights(old))
    with pytest.raises(JobError, match="vLLM did not take the policy's weights .* and 27 more of 28"):
        engine.refresh(after_an_update)


@pytest.mark.parametrize("answer", [[], [None], [{}]])
@pytest.mark.parametrize("method", ["load_policy_weights", "held_weights"])
def test_a_worker_that_shows_nothing_is_no_proof(
    engine: VllmEngine, after_an_update: Policy, method: str, answer: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = engine._engine.collective_rpc

    def silent(asked: str, **kwargs: object) -> object:
        given = call(asked, **kwargs)
        return answer if asked == method else given

    monkeypatch.setattr(engine._engine, "collective_rpc", silent)
    with pytest.raises(JobError, match="vLLM did not take the policy's weights"):
        engine.refresh(after_an_update)


def test_a_weight_that_is_not_sent_is_missed(
    engine: VllmEngine, after_an_update: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM itself only warns."""

    def without(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: weight for name, weight in weights.items() if name != "transformer.h.1.ln_2.weight"}

    monkeypatch.setattr(vllm_engine, "shared_weights", lambda weights: shared_weights(without(weights)))
    with pytest.raises(JobError, match="no weight for transformer.h.1.ln_2.weight"):
        engine.refresh(after_an_update)


@pytest.mark.parametrize(
    ("context", "reach", "served"),
    [(64, 40, 64), (1024, 40, 64), (1024, 400, 500), (1024, 1000, 1024), (None, 80, 100)],
)
def test_vllm_is_started_for_a_quarter_more_than_the_traces_reach(
    policy: Policy, context: int | None, reach: int, served: int
) -> None:
    cold = VllmEngine(policy, CONFIG)
    cold._context, cold._reach = context, reach
    assert cold._longest_served() == served


def test_a_limit_that_was_set_is_what_vllm_serves_and_a_batch_what_it_works_on(policy: Policy) -> None:
    config = replace(CONFIG, max_model_len=48, samples=3, problems_per_iteration=5)
    with closing(VllmEngine(policy, config)) as cold:
        cold._reach = 20
        cold._length = cold._longest_served()
        made = cold._arguments()
    assert (made["max_model_len"], made["max_num_seqs"]) == (48, 15)


def test_traces_longer_than_vllm_was_started_for_start_it_anew(engine: VllmEngine, policy: Policy) -> None:
    before, tokens = engine._engine, [index % 11 + 1 for index in range(60)]
    engine._length = 48
    assert engine.token_logprobs([tokens], 1.0)[0] == pytest.approx(plain_logprobs(policy.model, tokens), abs=1e-4)
    assert engine._engine is not before and engine._engine.vllm_config.model_config.max_model_len == 64


def test_the_refresh_chosen_leaves_the_new_policy_and_the_proof_passes(
    engine: VllmEngine, policy: Policy, rollouts: MakeRollouts, after_an_update: Policy
) -> None:
    made = grown(engine, rollouts())[:8]
    sequences = [rollout.token_ids for rollout in made]
    engine.refresh(after_an_update)
    assert engine._folder.path is None  # they came through memory: no file is left, nor was one written
    assert largest_gap(engine, after_an_update.model, sequences) < 1e-4
    check_logprobs_match(
        Trainer(Stage2Config(), after_an_update), sampler_of(engine, after_an_update), traces_of(made), 1.0
    )
    # What it samples now, it samples from the new policy, prompts that the old one has cached included.
    for rollout in grown(engine, rollouts()):
        expected = plain_logprobs(after_an_update.model, rollout.token_ids)
        assert [s for s, o in zip(rollout.logprobs, rollout.attempt_ids, strict=True) if o] == pytest.approx(
            [s for s, o in zip(expected, rollout.attempt_ids, strict=True) if o], abs=1e-4
        )


def test_prompts_that_do_not_fit_are_named_before_vllm_starts(policy: Policy, rollouts: MakeRollouts) -> None:
    cold = VllmEngine(policy, replace(CONFIG, max_model_len=40))
    made = rollouts(replace(CONFIG, max_tokens=18, samples=1), count=2)
    with pytest.raises(UserError, match="traces of 2 problems can reach [0-9]+ tokens, .* is 40 .problems division-"):
        cold.generate(made, Decoding())
    assert cold._engine is None


def test_temperatures_that_vllm_would_change_are_refused(policy: Policy, rollouts: MakeRollouts) -> None:
    cold = VllmEngine(policy, CONFIG)
    for temperature in (0.001, 2.5):
        with pytest.raises(UserError, match="expected 0 or 0.01 to 2 with vLLM"):
            cold.generate(rollouts(), Decoding(temperature))
    assert cold._engine is None


def test_heads_without_a_kernel_are_refused_at_once() -> None:
    from tests.conftest import small_policy

    with pytest.raises(UserError, match="attention heads of size 8, expected one of 32, "):
        VllmEngine(small_policy(), CONFIG)
