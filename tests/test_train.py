"""One update is one Adam step on traces of exactly this policy."""

import math
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from score_cli.config import SampleConfig, Stage1Config, Stage2Config, VerifyConfig
from score_cli.errors import JobError, UserError
from score_cli.stages.sample import sample
from score_cli.stages.train import train
from score_cli.stages.verify import verify
from score_cli.tables.checkpoints import load_optimizer, load_policy
from score_cli.tables.records import Trace
from score_cli.tables.traces import read_traces, read_verdicts
from score_cli.training.trainer import Trainer
from tests.conftest import make_batch, rewrite, take_gradient, write_checkpoint

STAGE1 = Stage1Config(learning_rate=1e-3, kl="full", threads=1)
STAGE2 = Stage2Config(learning_rate=1e-3, kl="full", threads=1)


def reward_some(folder: Path) -> None:
    """Make every third attempt correct: an untrained policy is never right, and equal rewards teach nothing."""
    counter = iter(range(10**6))

    def change(row: dict[str, object]) -> None:
        row["rewards"] = [float(next(counter) % 3 == 0) for _ in range(2)]
        row["verdicts"] = ["correct" if value else "incorrect" for value in row["rewards"]]  # type: ignore[attr-defined]

    rewrite(folder / "rewards.parquet", change)


def step(folder: Path, out: str, config: Stage1Config | Stage2Config = STAGE2, **other: object) -> Path:
    arguments: dict[str, object] = {
        "model": folder / "ckpt",
        "reference": None,
        "traces": folder / "traces.parquet",
        "rewards": folder / "rewards.parquet",
    }
    train(config, out=folder / out, **(arguments | other))  # type: ignore[arg-type]
    return folder / out


@pytest.fixture
def rewarded(batch: Path) -> Path:
    reward_some(batch)
    return batch


def test_a_first_batch_without_a_signal_leaves_the_policy_where_it_is(batch: Path) -> None:
    """Its log-ratios are rounding, which Adam's first step would make as large as any gradient."""
    base = load_policy(batch / "ckpt").state.fingerprint
    for config in (Stage1Config(threads=1, kl="sampled"), Stage2Config(threads=1, kl="sampled")):
        out = step(batch, config.__class__.__name__, config)
        assert load_policy(out).state.fingerprint == base
    reward_some(batch)
    assert load_policy(step(batch, "learned", Stage1Config(threads=1, kl="sampled"))).state.fingerprint != base


def gradient_of(folder: Path, config: Stage1Config | Stage2Config) -> list[torch.Tensor]:
    """The clipped gradient of the folder's batch, from the parts that the trainer puts together."""
    policy, traces = load_policy(folder / "ckpt"), read_traces(folder / "traces.parquet")
    rewards = [
        [math.nan if r is None else r for r in verdict.rewards] for verdict in read_verdicts(folder / "rewards.parquet")
    ]
    take_gradient(policy.model, load_policy(folder / "ckpt").model, traces, torch.tensor(rewards), config)
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.max_grad_norm)
    return [parameter.grad for parameter in policy.model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("config", [STAGE1, STAGE2], ids=["stage1", "stage2"])
def test_the_first_update_is_adams_first_step_by_hand(rewarded: Path, config: Stage1Config | Stage2Config) -> None:
    """With fresh moments Adam moves each weight by lr * g / (|g| + eps)."""
    before = load_policy(rewarded / "ckpt").model
    gradients = gradient_of(rewarded, config)
    after = load_policy(step(rewarded, "next", config)).model
    moved = 0
    for old, new, gradient in zip(before.parameters(), after.parameters(), gradients, strict=True):
        expected = old - config.learning_rate * gradient / (gradient.abs() + 1e-8)
        assert torch.allclose(new, expected, atol=2e-6)
        moved += int((old != new).sum())
    assert moved > 1000


def test_moments_and_step_are_carried_from_one_command_to_the_next(rewarded: Path) -> None:
    """Two commands against torch's Adam run by hand over the same two gradients."""
    first_gradient = gradient_of(rewarded, STAGE2)
    first = step(rewarded, "first")
    second_folder = rewarded / "second-batch"
    second_folder.mkdir()
    first.rename(second_folder / "ckpt")
    make_batch(second_folder, second_folder / "ckpt", rewarded / "problems.parquet")
    reward_some(second_folder)
    second_gradient = gradient_of_with_reference(second_folder, rewarded / "ckpt")
    by_hand = load_policy(rewarded / "ckpt").model
    adam = torch.optim.Adam(by_hand.parameters(), lr=STAGE2.learning_rate, betas=(0.9, 0.95))
    for gradients in (first_gradient, second_gradient):
        for parameter, gradient in zip(by_hand.parameters(), gradients, strict=True):
            parameter.grad = gradient
        adam.step()
    found = load_policy(step(second_folder, "next", reference=rewarded / "ckpt"))
    for expected, parameter in zip(by_hand.parameters(), found.model.parameters(), strict=True):
        assert torch.allclose(parameter, expected, atol=2e-6)
    moments = load_optimizer(second_folder / "next")
    assert moments is not None and {v.item() for k, v in moments.items() if k.startswith("step.")} == {2.0}
    assert found.state.iteration == 2


def gradient_of_with_reference(folder: Path, reference: Path) -> list[torch.Tensor]:
    policy = load_policy(folder / "ckpt")
    base = load_policy(reference)
    trainer = Trainer(STAGE2, policy, base)
    taken: list[torch.Tensor] = []

    def keep() -> None:
        taken.extend(p.grad.clone() for p in policy.model.parameters() if p.grad is not None)

    trainer._learner.optimizer._adam.step = lambda closure=None: keep()  # type: ignore[method-assign,assignment,misc]
    trainer.update(read_traces(folder / "traces.parquet"), read_verdicts(folder / "rewards.parquet"))
    return taken


def test_a_schedule_goes_on_from_one_command_to_the_next_and_ends(rewarded: Path) -> None:
    config = replace(STAGE2, warmup_updates=1, schedule="linear", schedule_updates=2, learning_rate=4e-3)
    folder, rates = rewarded, []
    for name in ("first", "second"):
        made = step(folder, "next", config, reference=rewarded / "ckpt")
        metrics = pl.read_parquet(made / "trainer" / "metrics.parquet")
        rates += metrics.filter(pl.col("name") == "learning_rate")["value"].to_list()
        folder = rewarded / name
        folder.mkdir()
        made.rename(folder / "ckpt")
        make_batch(folder, folder / "ckpt", rewarded / "problems.parquet", samples=2)
        reward_some(folder)
    assert rates == [4e-3, 4e-3]
    with pytest.raises(UserError, match="ended after 2 updates, and this is update 3"):
        step(folder, "next", config, reference=rewarded / "ckpt")
    longer = replace(config, schedule_updates=5)
    metrics = pl.read_parquet(step(folder, "next", longer, reference=rewarded / "ckpt") / "trainer" / "metrics.parquet")
    assert metrics.filter(pl.col("name") == "learning_rate")["value"].to_list() == [3e-3]


def test_a_new_stage_starts_with_fresh_moments(rewarded: Path) -> None:
    step(rewarded, "first", STAGE1)
    folder = rewarded / "b"
    folder.mkdir()
    (rewarded / "first").rename(folder / "ckpt")
    make_batch(folder, folder / "ckpt", rewarded / "problems.parquet")
    reward_some(folder)
    moments = load_optimizer(step(folder, "next", STAGE2, reference=rewarded / "ckpt"))
    assert moments is not None and {v.item() for k, v in moments.items() if k.startswith("step.")} == {1.0}


def test_equal_rewards_and_no_kl_leave_the_policy_as_it_is(batch: Path) -> None:
    config = Stage2Config(beta1=0.0, kl="sampled", threads=1)
    rewrite(batch / "rewards.parquet", lambda row: row.update(rewards=[0.0, 0.0], verdicts=["incorrect"] * 2))
    before, after = load_policy(batch / "ckpt"), load_policy(step(batch, "next", config))
    assert all(torch.equal(a, b) for a, b in zip(before.model.parameters(), after.model.parameters(), strict=True))


@pytest.mark.parametrize("kl", ["sampled", "full"])
def test_equal_rewards_count_as_no_advantage_whatever_their_kl(batch: Path, kl: str) -> None:
    """A reference of other weights gives every trace a KL of its own, which must not pass for a signal."""
    rewrite(batch / "rewards.parquet", lambda row: row.update(rewards=[0.0, 0.0], verdicts=["incorrect"] * 2))
    policy = load_policy(batch / "ckpt")
    other = load_policy(write_checkpoint(batch / "other", seed=1))
    config = Stage2Config(beta1=1.0, kl=kl, threads=1)  # type: ignore[arg-type]
    rewards = torch.zeros(len(read_traces(batch / "traces.parquet")), 2)
    taken, _ = take_gradient(policy.model, other.model, read_traces(batch / "traces.parquet"), rewards, config)
    assert not taken.reward_advantages.any()
    assert bool(taken.advantages.any()) == (kl == "sampled")
    metrics = pl.read_parquet(step(batch, "next", config) / "trainer" / "metrics.parquet")
    assert metrics.filter(pl.col("name") == "frac_zero_advantage")["value"].to_list() == [1.0, 1.0]


def test_unscored_attempts_take_no_part(rewarded: Path) -> None:
    """A trace whose attempts are all unscored gives the gradient of the batch without it."""
    config = replace(STAGE2, baseline="leave-one-out")
    traces, rewards = pl.read_parquet(rewarded / "traces.parquet"), pl.read_parquet(rewarded / "rewards.parquet")
    rewrite(
        rewarded / "rewards.parquet",
        lambda row: row.update(rewards=[None, None], verdicts=["unscored"] * 2) if row["sample_index"] == 3 else None,
    )
    # Gradients, not weights: Adam's first step has the size of the learning rate however small a gradient is.
    with_hole = gradient_of(rewarded, config)
    keep = traces["sample_index"] != 3
    traces.filter(keep).write_parquet(rewarded / "traces.parquet")
    rewards.filter(keep).write_parquet(rewarded / "rewards.parquet")
    without = gradient_of(rewarded, config)
    assert max(gradient.abs().max().item() for gradient in without) > 1e-3
    for a, b in zip(with_hole, without, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_an_offline_first_attempt_is_not_trained_on(rewarded: Path) -> None:
    traces = read_traces(rewarded / "traces.parquet")
    offline = [replace(trace, offline_attempts=1) for trace in traces]
    policy = load_policy(rewarded / "ckpt")
    rewards = torch.tensor([verdict.rewards for verdict in read_verdicts(rewarded / "rewards.parquet")])
    config = replace(STAGE2, log_grad_norm_by_attempt=True)

    def loss_parts(chosen: list[Trace]) -> list[float]:
        return take_gradient(policy.model, policy.model, chosen, rewards, config)[1].grad_norms_by_attempt

    online_first, online_second = loss_parts(traces)
    offline_first, offline_second = loss_parts(offline)
    assert online_first > 0 and offline_first == 0
    assert offline_second == pytest.approx(online_second, rel=1e-5)


def test_the_first_attempts_kl_pulls_on_the_first_attempt(rewarded: Path) -> None:
    """With no reward to gain, only KL acts; a pin of 10 on y1 must move y1's tokens, not y2's alone."""
    first = step(rewarded, "first")
    folder = rewarded / "b"
    folder.mkdir()
    first.rename(folder / "ckpt")
    make_batch(folder, folder / "ckpt", rewarded / "problems.parquet")
    rewrite(folder / "rewards.parquet", lambda row: row.update(rewards=[0.0, 0.0], verdicts=["incorrect"] * 2))
    config = Stage1Config(beta1=0.0, beta2=10.0, kl="full", log_grad_norm_by_attempt=True, threads=1)
    done = step(folder, "next", config, reference=rewarded / "ckpt")
    rows = pl.read_parquet(done / "trainer" / "metrics.parquet")
    norms = dict(rows.filter(pl.col("name") == "grad_norm").drop_nulls("attempt").select("attempt", "value").rows())
    assert norms[1] > 1.0
    assert norms[2] == 0.0


def test_logged_accuracy_is_the_share_of_correct_attempts_not_the_mean_reward(rewarded: Path) -> None:
    metrics = pl.read_parquet(step(rewarded, "next") / "trainer" / "metrics.parquet")
    logged = {(name, attempt): value for name, attempt, value in metrics.select("name", "attempt", "value").rows()}
    rewards = [reward.rewards for reward in read_verdicts(rewarded / "rewards.parquet")]
    first = sum(r[0] for r in rewards) / len(rewards)  # type: ignore[misc]
    second = sum(r[1] for r in rewards) / len(rewards)  # type: ignore[misc]
    assert logged["accuracy", 1] == pytest.approx(first)
    assert logged["accuracy", 2] == pytest.approx(second)
    assert logged["reward", 2] == pytest.approx(second + 10 * (second - first), abs=1e-5)
    assert logged["delta@t2", None] == pytest.approx(second - first)


def test_every_metric_of_the_design_is_logged(rewarded: Path) -> None:
    config = replace(STAGE2, log_grad_norm_by_attempt=True)
    metrics = pl.read_parquet(step(rewarded, "next", config) / "trainer" / "metrics.parquet")
    per_attempt = "reward accuracy kl k3 full_kl entropy length truncated advantage_sd frac_zero_advantage grad_norm"
    per_attempt += " logprob_diff logprob_diff_abs"
    overall = "grad_norm grad_clipped learning_rate delta@t2 i_to_c@t2 c_to_i@t2 edit_ratio@t2 changed@t2 unscored"
    found = set(metrics.select("name", "attempt").rows())
    for name in per_attempt.split():
        assert {(name, 1), (name, 2)} <= found, name
    assert {(name, None) for name in overall.split()} <= found


def test_an_update_says_whether_its_gradient_was_scaled_down(rewarded: Path) -> None:
    found = {}
    for limit in (1e-6, 1e6):
        out = step(rewarded, f"next{limit}", replace(STAGE2, max_grad_norm=limit))
        metrics = pl.read_parquet(out / "trainer" / "metrics.parquet")
        found[limit] = metrics.filter(pl.col("name") == "grad_clipped")["value"].to_list()
    assert found == {1e-6: [1.0], 1e6: [0.0]}


def test_sampler_and_trainer_agree_on_their_own_traces(rewarded: Path) -> None:
    metrics = pl.read_parquet(step(rewarded, "next") / "trainer" / "metrics.parquet")
    gaps = metrics.filter(pl.col("name") == "logprob_diff_abs")["value"]
    assert len(gaps) == 2 and gaps.max() < 1e-5  # type: ignore[operator]


def test_traces_of_another_policy_are_refused(rewarded: Path) -> None:
    other = write_checkpoint(rewarded / "other", seed=1)
    with pytest.raises(UserError, match="was sampled from policy .* but --model is .*: resample"):
        step(rewarded, "next", model=other)
    assert not (rewarded / "next").exists()


def test_logprobs_that_are_not_the_policys_fail_the_proof(rewarded: Path) -> None:
    """The fingerprint fits, the tokens were drawn with other logprobs: only the numbers can tell."""
    rewrite(
        rewarded / "traces.parquet",
        lambda row: row.update(logprobs=[value - 0.1 if value else 0.0 for value in row["logprobs"]]),  # type: ignore[attr-defined]
    )
    verify(
        VerifyConfig(),
        traces=rewarded / "traces.parquet",
        problems=rewarded / "problems.parquet",
        out=rewarded / "rewards.parquet",
        overwrite=True,
    )
    with pytest.raises(JobError, match="not on policy.* differ by 0.1 nats"):
        step(rewarded, "next")
    assert not (rewarded / "next").exists()


def test_rewards_of_other_traces_are_refused(rewarded: Path) -> None:
    sample(
        SampleConfig(samples=4, max_tokens=6, seed=9, threads=1),
        policy=load_policy(rewarded / "ckpt"),
        problems=rewarded / "problems.parquet",
        out=rewarded / "traces.parquet",
        overwrite=True,
    )
    with pytest.raises(UserError, match="was made from other traces than .*: run `score verify` again"):
        step(rewarded, "next")


def test_tables_without_footer_need_leave(rewarded: Path) -> None:
    rewrite(rewarded / "traces.parquet", lambda row: None, keep_footer=False)
    with pytest.raises(UserError, match="was not made by score.*--allow-foreign"):
        step(rewarded, "next")
    rewrite(rewarded / "rewards.parquet", lambda row: None, keep_footer=False)
    assert load_policy(step(rewarded, "next", allow_foreign=True)).state.iteration == 1


def test_one_sample_a_problem_is_refused(tmp_path: Path, checkpoint: Path, problems: Path) -> None:
    make_batch(tmp_path, checkpoint, problems, samples=1)
    with pytest.raises(UserError, match="one trace a problem.*--samples 2 or more"):
        step(tmp_path, "next")


def test_greedy_traces_are_refused(tmp_path: Path, checkpoint: Path, problems: Path) -> None:
    make_batch(tmp_path, checkpoint, problems, temperature=0.0)
    with pytest.raises(UserError, match="was decoded greedily"):
        step(tmp_path, "next")


@pytest.mark.parametrize(
    ("settings", "message"), [({"top_p": 0.9}, "top_p 0.9 and top_k 0"), ({"top_k": 3}, "top_p 1 and top_k 3")]
)
def test_traces_of_a_truncated_distribution_are_refused(
    tmp_path: Path, checkpoint: Path, problems: Path, settings: dict[str, object], message: str
) -> None:
    make_batch(tmp_path, checkpoint, problems, **settings)
    with pytest.raises(UserError, match=f"{message}, expected the policy's whole distribution"):
        step(tmp_path, "next")


def test_another_reference_than_the_chains_is_refused(rewarded: Path) -> None:
    other = write_checkpoint(rewarded / "other", seed=1)
    with pytest.raises(UserError, match="was trained against reference"):
        step(rewarded, "next", reference=other)
    first = step(rewarded, "first")
    make_batch(first, first, rewarded / "problems.parquet")
    with pytest.raises(UserError, match="pass --reference with the checkpoint its chain started from"):
        train(
            STAGE2,
            model=first,
            reference=None,
            traces=first / "traces.parquet",
            rewards=first / "rewards.parquet",
            out=rewarded / "next",
        )


def test_a_new_phase_has_fresh_moments_and_a_reference_of_its_own(rewarded: Path) -> None:
    """The paper's Stage I (b) is pinned to the policy that (a) ends with; then the chain keeps that reference."""
    first = step(rewarded, "first", STAGE1)
    folder = rewarded / "b"
    folder.mkdir()
    make_batch(folder, first, rewarded / "problems.parquet")
    reward_some(folder)
    done = step(folder, "next", STAGE1, model=first, new_phase=True)
    state = load_policy(done).state
    assert state.reference == load_policy(first).state.fingerprint and state.iteration == 2
    moments = load_optimizer(done)
    assert moments is not None and {v.item() for k, v in moments.items() if k.startswith("step.")} == {1.0}
    with pytest.raises(UserError, match="was trained against reference"):
        step(folder, "other", STAGE1, model=done, reference=rewarded / "ckpt")


def test_training_uses_the_temperature_of_the_traces(tmp_path: Path, checkpoint: Path, problems: Path) -> None:
    make_batch(tmp_path, checkpoint, problems, temperature=0.7)
    reward_some(tmp_path)
    metrics = pl.read_parquet(step(tmp_path, "next") / "trainer" / "metrics.parquet")
    gaps = metrics.filter(pl.col("name") == "logprob_diff_abs")["value"].to_list()
    assert max(gaps) < 1e-5 and not math.isnan(sum(gaps))


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_other_architectures_pass_through_both_stages(architecture: str, tmp_path: Path, problems: Path) -> None:
    """Sample, verify, Stage I, sample, verify, Stage II: the policy is proved at each update."""
    base = write_checkpoint(tmp_path / "ckpt", architecture)
    policies = [load_policy(base).state.fingerprint]
    model = base
    for number, config in enumerate((STAGE1, STAGE2)):
        folder = tmp_path / f"iteration{number}"
        folder.mkdir()
        make_batch(folder, model, problems)
        reward_some(folder)
        out = folder / "next"
        traces, rewards = folder / "traces.parquet", folder / "rewards.parquet"
        train(config, model=model, reference=base, traces=traces, rewards=rewards, out=out)
        model = out
        policies.append(load_policy(out).state.fingerprint)
    assert len(set(policies)) == 3
    assert load_policy(model).state.parent == policies[1]
    assert load_policy(model).state.reference == policies[0]


def test_another_chat_template_than_the_traces_had_is_refused(rewarded: Path) -> None:
    (rewarded / "ckpt" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(UserError, match="sampled with another tokenizer, chat template or stop token"):
        step(rewarded, "next")


def test_a_footer_is_proved_even_where_foreign_tables_are_allowed(rewarded: Path) -> None:
    rewrite(
        rewarded / "traces.parquet",
        lambda row: row.update(logprobs=[value - 0.5 if value else 0.0 for value in row["logprobs"]]),  # type: ignore[attr-defined]
    )
    rewrite(rewarded / "rewards.parquet", lambda row: None, keep_footer=False)
    with pytest.raises(JobError, match="not on policy"):
        step(rewarded, "next", allow_foreign=True)


def test_sampled_kl_of_another_engines_traces_is_the_trainers_own(rewarded: Path) -> None:
    """Policy and reference agree, so there is no KL, whatever the other engine's logprobs say."""
    rewrite(rewarded / "rewards.parquet", lambda row: row.update(rewards=[0.0, 0.0], verdicts=["incorrect"] * 2))
    for name in ("traces", "rewards"):
        rewrite(rewarded / f"{name}.parquet", lambda row: None, keep_footer=False)
    rewrite(
        rewarded / "traces.parquet",
        lambda row: row.update(logprobs=[v - 0.05 * row["sample_index"] if v else 0.0 for v in row["logprobs"]]),  # type: ignore[attr-defined,operator]
        keep_footer=False,
    )
    config = Stage2Config(beta1=1.0, kl="sampled", threads=1)
    metrics = pl.read_parquet(step(rewarded, "next", config, allow_foreign=True) / "trainer" / "metrics.parquet")
    assert metrics.filter(pl.col("name") == "grad_norm")["value"].to_list() == [pytest.approx(0.0, abs=1e-4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(token_ids=[99] * len(row["token_ids"])), "outside the model's vocabulary"),
        (lambda row: row.update(attempt_ids=row["attempt_ids"][::-1]), "does not begin with context"),
        (
            lambda row: row.update(attempt_ids=[min(a, 1) for a in row["attempt_ids"]]),
            "do not run through attempts 1 to 2",
        ),
        (lambda row: row.update(logprobs=[5.0] * len(row["logprobs"])), "a logprob is above 0"),
        (lambda row: row.update(logprobs=[0.0] * len(row["logprobs"])), "no logprobs but 0"),
        (lambda row: row.update(offline_attempts=-5), "-5 offline attempts"),
        (lambda row: row.update(offline_attempts=2), "nothing to learn from"),
    ],
)
def test_tokens_that_this_model_cannot_have_sampled_are_refused(rewarded: Path, change: object, message: str) -> None:
    rewrite(rewarded / "traces.parquet", change, keep_footer=False)  # type: ignore[arg-type]
    rewrite(rewarded / "rewards.parquet", lambda row: None, keep_footer=False)
    with pytest.raises((UserError, JobError), match=message):
        step(rewarded, "next", allow_foreign=True)
    assert not (rewarded / "next").exists()
