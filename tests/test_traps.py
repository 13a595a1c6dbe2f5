"""Mistakes seen in public implementations, put in one at a time: each must be caught by the test that guards it.

The guards are facts stated in the other test files; here the product is broken on purpose around them.
"""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import Tensor

from score_cli import metrics
from score_cli.sampling.rollout import Rollout
from score_cli.sampling.transformers_engine import TransformersEngine
from score_cli.tables.records import Signal, Trace, Verdict
from score_cli.tasks.script import Script
from score_cli.training import credit, losses, step
from score_cli.training.batching import MicroBatch
from score_cli.training.head import Head
from score_cli.training.trainer import Trainer
from tests import (
    test_checkpoints,
    test_critic_objective,
    test_dialogue_objectives,
    test_logprobs,
    test_losses,
    test_metrics,
    test_objectives,
    test_sampling,
    test_script,
    test_train,
)
from tests.conftest import sampler_of, small_policy

CASE = ("stage2", 0.0, "leave-one-out", "sampled")


def caught(guard: Callable[[], object]) -> None:
    """The guard passes on the product as it stands on the other side of this call, and fails here."""
    with pytest.raises(AssertionError):
        guard()


def test_no_logprob_in_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    real = losses.policy_gradient_loss

    def without(logprobs: Tensor, advantages: Tensor, masks: Tensor, weights: Tensor | None = None) -> Tensor:
        return real(logprobs.exp().detach() + 0 * logprobs, advantages, masks, weights)

    monkeypatch.setattr(losses, "policy_gradient_loss", without)
    caught(lambda: test_objectives.test_expected_gradient_is_the_exact_gradient(CASE))


def test_first_attempts_kl_as_a_constant_on_the_second_attempts_logprobs(monkeypatch: pytest.MonkeyPatch) -> None:
    real = credit.returns

    def moved(shaped: Tensor, discount: float) -> Tensor:
        # All KL ends up on the last attempt: y1 is then never constrained.
        bonus = torch.zeros_like(shaped)
        bonus[:, 0] = shaped[:, 0] - torch.round(shaped[:, 0])
        bonus[:, -1] = -bonus[:, 0]
        return real(shaped - bonus, discount)

    monkeypatch.setattr(credit, "returns", moved)
    caught(
        lambda: test_objectives.test_expected_gradient_is_the_exact_gradient(
            ("stage1", 0.0, "leave-one-out", "sampled")
        )
    )


def test_tokens_charged_with_the_kl_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def backwards(returns: Tensor, log_ratios: Tensor, coefficients: Tensor) -> Tensor:
        called.append(returns)
        whole, before = log_ratios.sum(-1, keepdim=True), log_ratios.cumsum(-1)
        return returns[..., None] + coefficients[:, None] * (whole - before)

    monkeypatch.setattr(credit, "token_returns", backwards)
    caught(lambda: test_objectives.test_expected_gradient_is_the_exact_gradient(CASE))
    assert called


def test_second_attempt_trained_on_another_context(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Head.states

    def without_first_attempt(head: Head, batch: MicroBatch) -> Tensor:
        blanked = batch.token_ids.masked_fill(batch.attempt_ids == 1, 0)
        return real(head, batch._replace(token_ids=torch.where(batch.attempt_ids == 2, batch.token_ids, blanked)))

    monkeypatch.setattr(Head, "states", without_first_attempt)
    caught(lambda: test_logprobs.test_the_trainer_gives_the_logprobs_that_the_sampler_wrote(small_policy()))
    caught(lambda: test_objectives.test_expected_gradient_is_the_exact_gradient(CASE))


def test_tokens_after_the_first_end_of_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    def deaf(self: Rollout, token: int, logprob: float) -> None:
        self.token_ids.append(token)
        self.attempt_ids.append(self.attempt)
        self.logprobs.append(logprob)
        self.sampled += 1
        if self.sampled == self.max_tokens:
            self._end_attempt("stop")

    monkeypatch.setattr(Rollout, "append", deaf)
    caught(lambda: test_sampling.test_nothing_is_sampled_after_a_stop_token(small_policy()))


def test_logits_not_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Head.states

    def unshifted(head: Head, batch: MicroBatch) -> Tensor:
        return real(head, batch._replace(positions=torch.clamp(batch.positions + 1, max=batch.token_ids.shape[1] - 1)))

    monkeypatch.setattr(Head, "states", unshifted)
    caught(lambda: test_logprobs.test_padding_and_batching_do_not_change_logprobs(small_policy(), 10_000))
    caught(lambda: test_objectives.test_expected_gradient_is_the_exact_gradient(CASE))


def test_attention_mask_missing_on_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler pads on the left when it feeds prompts of different length."""
    monkeypatch.setattr(
        "score_cli.sampling.transformers_engine.attention_masks",
        lambda model, mask, positions: torch.ones_like(mask).tril(mask.shape[-1] - mask.shape[-2]),
    )
    caught(lambda: uneven_prompts_score_as_they_do_alone())


def uneven_prompts_score_as_they_do_alone() -> None:
    policy = small_policy()
    sequences = [[13, 5, 9], [13, 5, 9, 7, 14, 8], [13, 4, 4, 4, 4, 4, 4, 8, 1]]
    engine = TransformersEngine(policy.model, batch_size=3)
    for sequence, together in zip(sequences, engine.token_logprobs(sequences, 1.0), strict=True):
        alone = engine.token_logprobs([sequence], 1.0)[0]
        assert together == pytest.approx(alone, abs=1e-5)


def test_uneven_prompts_score_as_they_do_alone() -> None:
    uneven_prompts_score_as_they_do_alone()


def test_baseline_that_includes_the_sample_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def inclusive(values: Tensor, groups: Tensor) -> Tensor:
        size = int(groups.max()) + 1
        zeros = values.new_zeros(size, *values.shape[1:])
        sums = zeros.index_add(0, groups, values)
        return (sums / zeros.index_add(0, groups, torch.ones_like(values)))[groups]

    monkeypatch.setattr(credit, "group_baseline", inclusive)
    caught(lambda: test_objectives.test_expected_gradient_is_the_exact_gradient(CASE))


def test_fresh_adam_moments_at_every_iteration(monkeypatch: pytest.MonkeyPatch, batch: Path) -> None:
    monkeypatch.setattr(Trainer, "_load_moments", lambda self, saved: None)
    test_train.reward_some(batch)
    caught(lambda: test_train.test_moments_and_step_are_carried_from_one_command_to_the_next(batch))


def test_accuracy_that_is_really_mean_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    def mean_reward(attempt: int) -> pl.Expr:
        return pl.col("rewards").list.get(attempt - 1).fill_null(0.0)

    monkeypatch.setitem(metrics.SINGLE, "acc", mean_reward)
    caught(test_metrics.test_metrics_are_fractions_of_what_could_be_scored)


def test_credit_of_the_bonus_to_the_first_attempt_too(monkeypatch: pytest.MonkeyPatch) -> None:
    real = credit.returns
    monkeypatch.setattr(credit, "returns", lambda shaped, discount: real(shaped, 1.0))
    caught(lambda: test_objectives.test_expected_gradient_is_the_exact_gradient(CASE))


def test_mean_over_tokens_instead_of_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    real = losses.sum_by_attempt
    monkeypatch.setattr(losses, "sum_by_attempt", lambda v, m: real(v, m) / m.sum(-1).clamp(min=1))
    caught(lambda: test_objectives.test_expected_gradient_is_the_exact_gradient(CASE))


def test_stale_sampler_after_an_update(batch: Path) -> None:
    """An engine that still holds the policy before the update must stop the run."""
    from score_cli.errors import JobError
    from score_cli.loop import check_logprobs_match
    from score_cli.tables.checkpoints import load_policy
    from score_cli.tables.traces import read_traces, read_verdicts

    test_train.reward_some(batch)
    policy, stale = load_policy(batch / "ckpt"), load_policy(batch / "ckpt")
    trainer = Trainer(test_train.STAGE2, policy)
    traces, verdicts = read_traces(batch / "traces.parquet"), read_verdicts(batch / "rewards.parquet")
    sampler = sampler_of(TransformersEngine(stale.model, batch_size=8), policy)
    check_logprobs_match(trainer, sampler, traces[:8], 1.0)
    trainer.update(traces, verdicts)
    with pytest.raises(JobError, match="the sampler holds another policy"):
        check_logprobs_match(trainer, sampler, traces[:8], 1.0)
    sampler.load(trainer.policy)
    check_logprobs_match(trainer, sampler, traces[:8], 1.0)


def test_a_sampler_that_depends_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from score_cli.sampling import transformers_engine

    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        transformers_engine,
        "choose_tokens",
        lambda logprobs, uniforms: torch.multinomial(logprobs.exp(), 1, generator=generator)[:, 0],
    )
    caught(lambda: test_sampling.test_another_batch_size_gives_the_same_tokens(small_policy(), 3))


def test_weights_saved_in_half_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from score_cli.tables import checkpoints
    from tests import conftest

    real = checkpoints.save_policy
    monkeypatch.setattr(conftest, "save_policy", lambda path, model, *rest: real(path, model.bfloat16(), *rest))
    with pytest.raises(Exception, match="the weights were changed"):
        test_checkpoints.test_a_checkpoint_comes_back_bit_for_bit(tmp_path)


# Of released codes that train on dialogues.


def test_a_loss_made_of_negative_logprobs_with_the_usual_minus(monkeypatch: pytest.MonkeyPatch) -> None:
    """S2R's outcome level: the helper gives minus the logprob, and the loss takes minus its product again."""
    real = losses.policy_gradient_loss
    monkeypatch.setattr(losses, "policy_gradient_loss", lambda *args, **kw: -real(*args, **kw))
    for name in ("process", "outcome"):
        caught(lambda name=name: test_dialogue_objectives.test_what_was_paid_more_becomes_likelier(name))  # type: ignore[misc]


def inclusive_mean(values: Tensor, groups: Tensor) -> Tensor:
    known, scored = values.nan_to_num(0.0), (~values.isnan()).to(values.dtype)
    zeros = values.new_zeros(int(groups.max()) + 1, *values.shape[1:])
    return (zeros.index_add(0, groups, known) / zeros.index_add(0, groups, scored))[groups]


@pytest.mark.parametrize("name", ["process", "outcome"])
def test_a_mean_over_dialogues_that_includes_the_dialogue_itself(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It does not only shrink the gradient: where turns are reached by some alone, it tilts it."""
    monkeypatch.setattr(credit, "group_baseline", inclusive_mean)
    caught(lambda: exact_from_two_dialogues(name))
    _, discount, method = test_dialogue_objectives.PAYS[name]
    exact = test_dialogue_objectives.tiny.exact_gradient(
        test_dialogue_objectives.POLICY, test_dialogue_objectives.REFERENCE, method, discount=discount, beta=0.0
    )
    found = test_dialogue_objectives.expected_from_advantages(name, "conditional", 2)
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), dim=0).item()
    assert 0.5 < cosine < 0.999


def exact_from_two_dialogues(name: str) -> None:
    assert test_dialogue_objectives.gap_of_advantages(name, "leave-one-out", 2) < 1e-8


@pytest.mark.parametrize("name", ["process", "outcome"])
def test_an_advantage_of_nothing_where_all_siblings_ended_earlier(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = credit.advantages
    monkeypatch.setattr(credit, "advantages", lambda *args, present, kinds: real(*args, kinds=kinds))
    caught(lambda: exact_from_two_dialogues(name))


@pytest.mark.parametrize("default", [0, 1])
def test_a_claim_that_cannot_be_read_counted_as_one(monkeypatch: pytest.MonkeyPatch, default: int) -> None:
    """S2R takes a missing verdict for `correct` where the dialogue ends and for `incorrect` elsewhere."""
    real = Script.read_claim
    monkeypatch.setattr(
        Script, "read_claim", lambda self, role, text: real(self, role, text) or self.claims[role][default]
    )
    caught(lambda: test_script.test_a_claim_is_correct_where_it_tells_what_the_solve_is(42, "dunno", "no_answer"))
    if default == 1:
        caught(
            lambda: test_script.test_a_dialogue_goes_on_after_the_claim_that_the_solve_is_wrong_and_after_no_other(
                "no idea", 2
            )
        )


def test_a_ratio_of_mean_logprobs_in_place_of_each_tokens_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        losses,
        "importance_weights",
        lambda trainer, sampler, cap: (trainer - sampler).mean().exp().clamp(max=cap).expand_as(trainer),
    )
    caught(test_losses.test_importance_weights_are_ratios_cut_at_the_cap)


def test_turns_averaged_over_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    real = losses.sum_by_attempt
    monkeypatch.setattr(losses, "sum_by_attempt", lambda v, m: real(v, m) / m.sum(-1).clamp(min=1))
    caught(lambda: test_dialogue_objectives.test_the_expected_update_is_the_exact_gradient("process", "leave-one-out"))


def test_later_turns_pay_that_reaches_a_verdict_at_the_process_level(monkeypatch: pytest.MonkeyPatch) -> None:
    real = credit.returns
    monkeypatch.setattr(credit, "returns", lambda shaped, discount: real(shaped, 1.0))
    caught(lambda: exact_from_two_dialogues("process"))


def test_an_absent_turn_taken_for_an_unscored_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = step.shaped_rewards

    def unknown(config: object, rewards: Tensor, *rest: object) -> Tensor:
        return real(config, rewards, *rest).masked_fill(rewards.isnan(), torch.nan)  # type: ignore[arg-type]

    monkeypatch.setattr(step, "shaped_rewards", unknown)
    caught(test_dialogue_objectives.test_an_absent_turn_is_not_an_unscored_one)


# Of a critic's training.


def test_critiques_compared_with_a_mean_that_includes_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credit, "group_baseline", inclusive_mean)
    caught(test_critic_objective.test_the_expected_update_is_the_gradient_of_the_revisions_chance_to_be_right)


def test_critiques_advantages_divided_by_the_deviation_of_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    real = credit.advantages

    def normed(values: Tensor, groups: Tensor, *rest: object, **more: object) -> Tensor:
        spread = torch.stack([values[groups == group].std(correction=0) for group in groups])
        return real(values, groups, *rest, **more) / (spread[:, None] + 1e-4)  # type: ignore[arg-type]

    monkeypatch.setattr(credit, "advantages", normed)
    caught(test_critic_objective.test_the_expected_update_is_the_gradient_of_the_revisions_chance_to_be_right)


def test_critiques_of_two_solves_in_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "group_numbers", lambda traces: torch.zeros(len(traces), dtype=torch.long))
    caught(test_critic_objective.test_two_solves_of_one_problem_are_two_groups)


def test_a_critique_paid_for_the_revision_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The revisions stand in another order than the critiques."""

    def by_row(critiques: list[Trace], revisions: list[Trace], verdicts: list[Verdict]) -> list[Signal]:
        rows = zip(critiques, verdicts, strict=True)
        return [Signal(c.problem_id, c.sample_index, "revision", [None], [None], v.rewards) for c, v in rows]

    monkeypatch.setattr(test_critic_objective, "revision_signals", by_row)
    caught(test_critic_objective.test_the_expected_update_is_the_gradient_of_the_revisions_chance_to_be_right)
