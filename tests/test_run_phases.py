"""Runs of several phases on an untrained policy: who is sampled from, pinned to what, and kills that do not show."""

import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from score_cli import loop, run_phases
from score_cli import run as run_module
from score_cli.config import SampleConfig, SftConfig, Stage1Config, Stage2Config, VerifyConfig
from score_cli.errors import JobError, UserError
from score_cli.recipe import Recipe
from score_cli.replay import replay
from score_cli.run import Run, RunInputs
from score_cli.run_folder import RunFolder
from score_cli.run_log import read_log
from score_cli.sampling import sampler
from score_cli.sampling.engine import Engine
from score_cli.sampling.sampler import make_engine
from score_cli.stages.sample import sample
from score_cli.stages.train import train
from score_cli.stages.train_sft import train_sft
from score_cli.stages.verify import verify
from score_cli.status import status_lines
from score_cli.tables.checkpoints import Policy, load_optimizer, load_policy, stored_state
from score_cli.tables.parquet import TRACES, read_footer
from score_cli.tables.problems import read_problems, write_problems_table
from score_cli.tables.provenance import Footer, file_sha256
from score_cli.training.trainer import Trainer
from score_cli.verification.grader import Grader
from tests.runs import ROUNDS, THREE, digests, recipe, stop_and_go_on

pytestmark = pytest.mark.pipeline


def test_rounds_sample_from_the_newest_policy_and_the_next_stage_goes_on_from_the_last(
    start: RunInputs, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    rows = Run(recipe(**ROUNDS), folder, start).execute()
    policies = dict.fromkeys(row["policy"] for row in rows if " - " not in row["policy"])
    assert list(policies) == ["base", "stage1", "sft", "stage2"]
    states = {name: load_policy(folder / name).state for name in ("stage1", "sft", "stage2")}
    assert [states[name].iteration for name in states] == [2, 5, 7]
    base = load_policy(tmp_path / "ckpt").state.fingerprint
    assert {state.reference for state in states.values()} == {base}
    sampled = [read_footer(path, TRACES) for path in sorted(folder.glob("iterations/*/traces.parquet"))]
    policies = [footer.policy for footer in sampled if footer is not None]
    assert len(set(policies)) == 7
    assert (policies[0], policies[2], policies[5]) == (base, states["stage1"].fingerprint, states["sft"].fingerprint)
    assert states["sft"].parent == policies[4]
    counts = [len(pl.read_parquet(path)) for path in sorted(folder.glob("iterations/*/traces.parquet"))]
    assert counts == [24, 24, 32, 32, 32, 24, 24]
    assert [path.parent.name for path in sorted(folder.glob("iterations/*/sft.parquet"))] == ["0002", "0003", "0004"]
    curve = pl.read_parquet(folder / "train_metrics.parquet")
    assert curve.filter(pl.col("name") == "loss_after")["iteration"].to_list() == [2, 3, 4]
    moments = load_optimizer(folder / "stage2")
    assert moments is not None and {v.item() for k, v in moments.items() if k.startswith("step.")} == {2.0}


def test_tables_are_written_while_the_policy_learns_and_lie_there_before_it_is_kept(
    start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing waits for the step, and a save looks for what was written."""
    learned, beside, found = threading.Event(), [], []
    write, step, save = run_phases.write_verdicts, Trainer.optim_step, Trainer.save

    def write_late(*given: Any) -> None:
        beside.append(learned.wait(20))
        write(*given)

    def say_so(trainer: Trainer) -> None:
        step(trainer)
        learned.set()

    def look(trainer: Trainer, out: Path) -> None:
        found.append(sorted(each.name for each in (tmp_path / "run" / "iterations" / "0000").iterdir()))
        save(trainer, out)

    monkeypatch.setattr(run_phases, "write_verdicts", write_late)
    monkeypatch.setattr(Trainer, "optim_step", say_so)
    monkeypatch.setattr(Trainer, "save", look)
    Run(recipe(stage1_iterations=1), tmp_path / "run", start).execute()
    assert beside == [True]
    assert found == [["metrics.parquet", "rewards.parquet", "traces.parquet"]]


def test_a_run_says_of_each_update_as_it_ends_what_the_tables_hold(start: RunInputs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Run(recipe(stage1_iterations=2, stage2_iterations=1, offline_first_attempts=0.5), folder, start).execute()
    entries = read_log(folder / "log.jsonl")
    assert [(entry["update"], entry["phase"], entry["run_last"]) for entry in entries] == [
        (0, "stage1", 3),
        (1, "stage1", 3),
        (2, "stage2", 3),
    ]
    for entry in entries:
        assert set(entry["seconds"]) == {"sample", "verify", "write", "train", "refresh"}
        update = folder / "iterations" / f"{entry['update']:04d}"
        rows = pl.read_parquet(update / "traces.parquet").iter_rows(named=True)
        assert entry["sampled_tokens"] == sum(a > row["offline_attempts"] for row in rows for a in row["attempt_ids"])
        second = pl.read_parquet(update / "rewards.parquet")["verdicts"].list.get(1)
        assert entry["verdicts"]["t2"]["correct"] == (second == "correct").mean()
        metrics = pl.read_parquet(update / "metrics.parquet").filter(pl.col("name") == "kl", pl.col("attempt") == 2)
        assert [entry["metrics"]["kl@t2"]] == metrics["value"].to_list()
    assert status_lines(folder)[:2] == [f"{folder}: finished", "stage2: update 1 of 1; 3 of the run's 3"]


def test_the_stages_called_one_by_one_give_the_bytes_of_a_runs_rounds(start: RunInputs, tmp_path: Path) -> None:
    folder, config = tmp_path / "run", SftConfig(method="pair-sft", learning_rate=1e-3, batch_size=8, threads=1, seed=3)
    Run(recipe(sft_rounds=2), folder, start).execute()
    model = tmp_path / "ckpt"
    for number in range(2):
        files = {name: tmp_path / f"{name}{number}.parquet" for name in ("traces", "rewards", "learned")}
        settings = SampleConfig(samples=4, max_tokens=16, threads=1, seed=3)
        sample(settings, policy=load_policy(model), problems=folder / "train.parquet", out=files["traces"])
        verify(VerifyConfig(), traces=files["traces"], problems=folder / "train.parquet", out=files["rewards"])
        train_sft(config, model=model, out=tmp_path / f"next{number}", **files)
        model = tmp_path / f"next{number}"
        for name, kept in (("traces", "traces"), ("rewards", "rewards"), ("learned", "sft")):
            assert files[name].read_bytes() == (folder / "iterations" / f"000{number}" / f"{kept}.parquet").read_bytes()
    assert file_sha256(model / "model.safetensors") == file_sha256(folder / "sft" / "model.safetensors")


@pytest.mark.parametrize("adapter", [{}, {"lora_rank": 2}], ids=["whole", "adapter"])
def test_a_run_starts_from_a_trained_policy_as_from_its_weights_alone(
    start: RunInputs, tmp_path: Path, adapter: dict[str, int]
) -> None:
    """Neither the number of the updates that trained it nor their moments or reference are taken over."""
    learning = Recipe(dict.fromkeys(("train-sft", "train-stage1", "train-stage2"), adapter))
    Run(recipe(sft_rounds=1).extended(learning), tmp_path / "first", start).execute()
    trained, bare = tmp_path / "first" / "sft", tmp_path / "bare"
    shutil.copytree(trained, bare)
    shutil.rmtree(bare / "trainer")
    folders = []
    for model in (trained, bare):
        folders.append(tmp_path / f"from-{model.name}")
        asked = recipe(stage1_iterations=2).extended(learning)
        Run(asked, folders[-1], replace(start, model=model)).execute()
    assert digests(folders[0]) == digests(folders[1])
    assert stored_state(folders[0] / "stage1").iteration == 2
    assert stored_state(folders[0] / "stage1").reference == stored_state(trained).fingerprint
    assert replay(folders[0], 0, model=trained).proved_by == folders[0] / "iterations" / "0001" / "traces.parquet"


def test_an_evaluation_that_outgrows_the_context_is_refused_before_any_update(start: RunInputs, tmp_path: Path) -> None:
    """Five attempts of 16 tokens, closed and asked to go on, are over the 64 that the model can count."""
    asked = recipe(stage1_iterations=2).extended(Recipe({"eval": {"attempts": 5, "max_tokens": 16}}))
    with pytest.raises(UserError, match="can reach 95 tokens, the model's context is 64"):
        Run(asked, tmp_path / "run", start).execute()
    assert not (tmp_path / "run" / "iterations").exists()
    with pytest.raises(UserError, match="can reach 95 tokens, the model's context is 64"):
        Run(asked, tmp_path / "built-in", RunInputs(limit=4)).execute()
    assert not (tmp_path / "built-in" / "base").exists()


def test_one_engine_is_held_at_a_time(start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two vLLM engines do not fit on a GPU: rounds between the stages have their own, so a stage gives its up."""
    held: list[Engine] = []
    counts: list[int] = []

    def make(config: SampleConfig, policy: Policy) -> Engine:
        engine = make_engine(config, policy)
        held.append(engine)
        counts.append(len(held))
        monkeypatch.setattr(engine, "close", lambda: held.remove(engine))
        return engine

    monkeypatch.setattr(sampler, "make_engine", make)
    Run(recipe(**ROUNDS), tmp_path / "run", start).execute()
    assert set(counts) == {1} and not held


def test_a_runs_schedule_ends_with_its_stage_and_cannot_be_stretched_afterwards(
    start: RunInputs, tmp_path: Path
) -> None:
    def made(iterations: int) -> Recipe:
        falling = Recipe({"train-stage1": {"schedule": "linear", "warmup_updates": 1}})
        return recipe(stage1_iterations=iterations).extended(falling)

    Run(made(3), tmp_path / "run", start).execute()
    curve = pl.read_parquet(tmp_path / "run" / "train_metrics.parquet").filter(pl.col("name") == "learning_rate")
    assert curve["value"].to_list() == pytest.approx([1e-3, 1e-3, 0.5e-3])
    with pytest.raises(UserError, match="train-stage1.schedule_updates was 3, is 4"):
        Run(made(4), tmp_path / "run", start).execute()
    short = made(3)
    short.change(["train-stage1.schedule_updates=2"])
    with pytest.raises(UserError, match="train-stage1.schedule_updates is 2, and the stage has 3 iterations"):
        Run(short, tmp_path / "run", start)


def test_the_newest_checkpoints_stay_as_many_as_asked_for(start: RunInputs, tmp_path: Path) -> None:
    for count, expected in ((1, []), (3, ["0002", "0003"])):
        folder = tmp_path / str(count)
        Run(recipe(stage1_iterations=4, keep_checkpoints=count), folder, start).execute()
        assert sorted(path.name for path in folder.glob("latest/*")) == expected


def test_a_run_with_rounds_stopped_anywhere_ends_with_the_same_bytes(
    start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(**ROUNDS, compact_every=2)
    Run(made, tmp_path / "whole", start).execute()
    tables = tmp_path / "whole" / "iterations"
    assert [path.name for path in sorted(tables.iterdir())] == ["0000-0001", "0002-0003", "0004", "0005", "0006"]
    curve = pl.read_parquet(tables.parent / "train_metrics.parquet")
    assert pl.read_parquet(tables / "*" / "metrics.parquet").equals(curve)
    moments: list[tuple[Any, str, int]] = [
        (Grader, "grade", 4),
        (run_phases, "sft_round", 2),
        (RunFolder, "copy_metrics", 1),
        (RunFolder, "copy_metrics", 3),
        (RunFolder, "compact", 5),
        (loop, "check_logprobs_match", 4),
    ]
    for module, function, call in moments:
        folder = tmp_path / f"{function}{call}"
        stop_and_go_on(made, start, folder, monkeypatch, module, function, call)
        assert digests(folder) == digests(tmp_path / "whole"), (function, call)


def test_a_run_that_goes_on_from_an_older_checkpoint_does_old_updates_again_to_the_same_bytes(
    start: RunInputs, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    made = recipe(stage1_iterations=5, compact_every=1, keep_checkpoints=5)
    Run(made, folder, start).execute()
    before = digests(folder)
    for lost in ("stage1", "latest/0004", "latest/0003"):
        shutil.rmtree(folder / lost)
    for lost in ("metrics.parquet", "train_metrics.parquet"):
        (folder / lost).unlink()
    Run(made, folder, start).execute()
    assert digests(folder) == before
    assert "iterations/0003-0003/traces.parquet" in before


def test_a_policy_that_the_plan_did_not_make_is_not_taken_for_its_own(start: RunInputs, tmp_path: Path) -> None:
    Run(recipe(stage1_iterations=2), tmp_path / "other", replace(start, limit=8)).execute()
    for name, made, message in (
        ("longer", recipe(stage1_iterations=1), "holds a policy after 2 updates .stage1., and this run's plan has one"),
        ("same", recipe(stage1_iterations=2), "was not made from the traces of .*iterations/0001"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "forked_from.json").write_text("{}")  # a fork begins with policies in it
        shutil.copytree(tmp_path / "other" / "stage1", folder / "stage1")
        with pytest.raises(UserError, match=message):
            Run(made, folder, start).execute()
        assert not (folder / "iterations").exists()


def test_a_finished_run_goes_on_to_more_iterations_as_if_it_had_been_told_at_once(
    start: RunInputs, tmp_path: Path
) -> None:
    Run(recipe(stage1_iterations=2, stage2_iterations=3), tmp_path / "whole", start).execute()
    folder = tmp_path / "raised"
    Run(recipe(stage1_iterations=2, stage2_iterations=1), folder, start).execute()
    rows = Run(recipe(stage1_iterations=2, stage2_iterations=3, save_every=5), folder, start).execute()
    assert digests(folder) == digests(tmp_path / "whole")
    assert rows and stored_state(folder / "stage2").iteration == 5
    # Stage II has gone on from the end of Stage I, which can have no more.
    with pytest.raises(UserError, match="later updates went on from it"):
        Run(recipe(stage1_iterations=3, stage2_iterations=3), folder, start).execute()


def test_a_finished_run_loads_no_model(start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(stage1_iterations=1)
    rows = Run(made, tmp_path / "run", start).execute()
    again = Run(made, tmp_path / "run", start)
    monkeypatch.setattr(run_module, "load_policy", lambda *_, **__: pytest.fail("a model was loaded"))
    assert again.execute() == rows


def test_a_request_to_stop_is_met_between_updates_with_the_policy_kept(
    start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(stage1_iterations=4, save_every=100)
    Run(made, tmp_path / "whole", start).execute()
    folder = tmp_path / "stopped"
    own = loop.check_logprobs_match
    calls = iter(range(100))

    def ask(*arguments: Any) -> None:
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        own(*arguments)

    monkeypatch.setattr(loop, "check_logprobs_match", ask)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        Run(made, folder, start).execute()
    assert signal.getsignal(signal.SIGTERM) == before
    assert stored_state(folder / "latest" / "0002").iteration == 2
    monkeypatch.setattr(loop, "check_logprobs_match", own)
    Run(made, folder, start).execute()
    assert digests(folder) == digests(tmp_path / "whole")


def test_an_alarm_stops_a_run_whose_policy_is_kept_and_goes_on_under_another_limit(
    start: RunInputs, tmp_path: Path
) -> None:
    Run(recipe(stage1_iterations=3, save_every=10), tmp_path / "whole", start).execute()
    folder, plan = tmp_path / "run", recipe(stage1_iterations=3, save_every=10)
    plan.change(["run.alarms.kl=stop", "run.alarms.kl_limit=1e-9"])
    # The first update's policy is its reference, the second's has moved.
    with pytest.raises(JobError, match=r"stopped after update 1 by an alarm: kl@t\d is .* \(limit 1e-09\)"):
        Run(plan, folder, start).execute()
    assert [path.name for path in (folder / "latest").iterdir()] == ["0002"]
    assert status_lines(folder)[-1].startswith("alarm kl: kl@t")
    plan.change(["run.alarms.kl=warn"])
    Run(plan, folder, start).execute()
    assert digests(folder) == digests(tmp_path / "whole")


def test_a_fork_goes_on_under_other_settings_and_leaves_the_run_as_it_was(start: RunInputs, tmp_path: Path) -> None:
    run, fork = tmp_path / "run", tmp_path / "fork"
    Run(recipe(stage1_iterations=2, stage2_iterations=1), run, start).execute()
    before = digests(run)
    changed = recipe(stage1_iterations=2, stage2_iterations=3)
    changed.change(["train-stage2.learning_rate=0.01"])
    with pytest.raises(UserError, match="train-stage2.learning_rate was 0.001, is 0.01.*--fork FOLDER"):
        Run(changed, run, start).execute()
    RunFolder(run).fork(fork)
    Run(changed, fork, start).execute()
    assert digests(run) == before
    own = digests(fork)
    assert all(own[name] == before[name] for name in before if name.startswith(("iterations", "stage1", "train.")))
    assert stored_state(fork / "stage2").iteration == 5
    assert json.loads((fork / "forked_from.json").read_text())["stage2"]["learning_rate"] == 0.001
    with pytest.raises(UserError, match="fork exists, expected a new folder for --fork"):
        RunFolder(run).fork(fork)
    with pytest.raises(UserError, match="holds no run to fork"):
        RunFolder(tmp_path / "nothing").fork(tmp_path / "other")


@pytest.mark.parametrize("named", ["problems", "eval_problems", "validation_problems"])
def test_problems_that_are_not_there_are_refused_before_a_model_is_loaded(
    tmp_path: Path, start: RunInputs, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setattr(run_module, "load_policy", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match="none.parquet does not exist: `score data` makes it"):
        Run(
            recipe(stage1_iterations=1, best_every=1),
            tmp_path / "run",
            replace(start, **{named: tmp_path / "none.parquet"}),
        )
    assert not (tmp_path / "run").exists()


def test_training_problems_that_the_evaluation_asks_too_are_refused_or_dropped(
    tmp_path: Path, start: RunInputs
) -> None:
    assert start.problems is not None
    train = read_problems(start.problems)
    shouted = [replace(p, problem_id=f"other-{p.problem_id}", question=f" {p.question.upper()}") for p in train[:5]]
    write_problems_table(tmp_path / "eval.parquet", shouted, Footer(table="problems", stage="by hand"))
    inputs = replace(start, eval_problems=tmp_path / "eval.parquet")
    with pytest.raises(UserError, match=r"5 of 12 training problems ask a question of .*eval.parquet \(division-"):
        Run(recipe(overlap="refuse"), tmp_path / "run", inputs).execute()
    Run(recipe(overlap="drop"), tmp_path / "run", inputs).execute()  # what the refusal says to do, in the same folder
    kept = read_problems(tmp_path / "run" / "train.parquet")
    assert [problem.problem_id for problem in kept] == [problem.problem_id for problem in train[5:]]
    with pytest.raises(UserError, match=r"12 of 12 training problems ask a question"):
        Run(recipe(overlap="drop"), tmp_path / "none", start).execute()


LORA = {"lora": {"rank": 2, "targets": "c_attn,c_fc"}}
ADAPTER = "adapter_model.safetensors"


def test_an_adapter_without_a_place_is_refused_before_the_base_is_trained(tmp_path: Path) -> None:
    made = recipe(stage1_iterations=1).extended(Recipe({"lora": {"rank": 2, "targets": "q_prj"}}))
    expected = "lora_targets is q_prj, expected all-linear, or of the linear layers c_attn, c_fc, c_proj"
    with pytest.raises(UserError, match=expected):
        Run(made, tmp_path / "run").execute()
    assert not (tmp_path / "run" / "base").exists()


def test_the_stages_called_one_by_one_give_the_bytes_of_a_run_with_adapters(start: RunInputs, tmp_path: Path) -> None:
    folder, made = tmp_path / "run", recipe(stage1_iterations=2, stage2_iterations=2).extended(Recipe(LORA))
    Run(made, folder, start).execute()
    base = model = tmp_path / "ckpt"
    for number in range(4):
        files = {name: tmp_path / f"{name}{number}.parquet" for name in ("traces", "rewards")}
        settings = made.settings("sample", SampleConfig)
        sample(settings, policy=load_policy(model), problems=folder / "train.parquet", out=files["traces"])
        verify(VerifyConfig(), traces=files["traces"], problems=folder / "train.parquet", out=files["rewards"])
        table, kind = ("train-stage1", Stage1Config) if number < 2 else ("train-stage2", Stage2Config)
        train(made.settings(table, kind), model=model, reference=base, out=tmp_path / f"next{number}", **files)
        model = tmp_path / f"next{number}"
        for name in files:
            kept = folder / "iterations" / f"000{number}" / f"{name}.parquet"
            assert files[name].read_bytes() == kept.read_bytes(), (name, number)
    for name in (ADAPTER, "trainer/state.json", "trainer/optimizer.safetensors", "trainer/base.json"):
        assert (model / name).read_bytes() == (folder / "stage2" / name).read_bytes(), name
    assert json.loads((model / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert stored_state(model).reference == stored_state(base).fingerprint


def test_a_run_with_adapters_stopped_anywhere_ends_with_the_same_bytes(
    start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Supervised rounds between the stages go on from the adapter too."""
    made = recipe(**ROUNDS).extended(Recipe(LORA))
    Run(made, tmp_path / "whole", start).execute()
    whole = digests(tmp_path / "whole")
    assert {f"{name}/{ADAPTER}" for name in ("stage1", "sft", "stage2")} <= set(whole)
    assert not {f"{name}/model.safetensors" for name in ("stage1", "sft", "stage2")} & set(whole)
    moments: list[tuple[Any, str, int]] = [(run_phases, "sft_round", 2), (loop, "check_logprobs_match", 4)]
    for module, function, call in moments:
        folder = tmp_path / f"{function}{call}"
        stop_and_go_on(made, start, folder, monkeypatch, module, function, call)
        assert digests(folder) == whole, (function, call)


def test_parts_of_stage_one_are_pinned_to_adapters_over_one_base(
    start: RunInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is loaded once, whoever is the reference, and the files are those of a run that was stopped between."""
    loads = []
    own = load_policy

    def counted(name: Path, **more: Any) -> Policy:
        loads.append((str(name), more.get("beside") is not None))
        return own(name, **more)

    made = recipe(3, **THREE).extended(Recipe(LORA))
    monkeypatch.setattr(run_phases, "load_policy", counted)
    folder = tmp_path / "run"
    Run(made, folder, start).execute()
    assert loads and all(shared for _, shared in loads)
    base = stored_state(tmp_path / "ckpt").fingerprint
    part_a, part_b, score = (stored_state(folder / name) for name in ("stage1-t2", "stage1-t3", "stage2"))
    assert (part_a.reference, part_b.reference, score.reference) == (base, part_a.fingerprint, base)
    curve = pl.read_parquet(folder / "train_metrics.parquet").filter(pl.col("name") == "full_kl")
    kl = {iteration: part["value"].to_list() for (iteration,), part in curve.group_by("iteration")}
    assert max(kl[2]) < 1e-9 < 1e-8 < min(kl[4])
    stop_and_go_on(made, start, tmp_path / "stopped", monkeypatch, loop, "check_logprobs_match", 4)
    assert digests(tmp_path / "stopped") == digests(folder)
