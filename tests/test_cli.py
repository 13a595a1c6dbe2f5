"""The surface: every option explained, every mistake one line and the right exit code."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from score_cli import config
from score_cli.cli import run_command
from score_cli.errors import UserError
from score_cli.recipe import TABLES, read_recipe
from score_cli.run_config import AlarmsConfig, RunConfig
from score_cli.tables.checkpoints import load_policy
from score_cli.tables.traces import read_traces

COMMANDS = [name for name in TABLES if name not in ("run", "run.alarms", "lora")]
PIPELINES = Path(__file__).parents[1] / "pipelines"
RECIPES = sorted(PIPELINES.rglob("*.toml"))


def run(*arguments: object) -> int:
    return run_command([str(argument) for argument in arguments])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("score: ")
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_every_option_with_its_meaning_and_default(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for field in (field for field in dataclasses.fields(TABLES[command]) if "help" in field.metadata):
        assert f"--{field.name.replace('_', '-')}" in shown
        # Help is folded to the terminal's width, even inside long words.
        assert field.metadata["help"].replace(" ", "") in shown.replace(" ", ""), field.name
        if field.default is not None and not isinstance(field.default, bool):
            assert f"[default: {field.default}]".replace(" ", "") in shown.replace(" ", ""), field.name


def test_the_paper_defaults_stand() -> None:
    assert config.Stage1Config().beta1 == 0.01 and config.Stage1Config().beta2 == 0.1
    assert config.Stage2Config().alpha == 10.0 and config.Stage2Config().learning_rate == 5e-6
    assert config.Stage2Config().discount == 0.0 and config.SampleConfig().temperature == 1.0


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        ("score_cli.sampling.transformers_engine.TransformersEngine._forward", "lower batch_size or max_tokens"),
        (
            "score_cli.training.head.compute_precision",
            "lower micro_batch_tokens or scoring_tokens of the training stage",
        ),
    ],
)
def test_a_gpu_without_memory_is_one_line_that_names_what_to_lower(
    place: str, advice: str, batch: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\na total of 80.")

    monkeypatch.setattr(place, full)
    command = ["sample", "--max-tokens", 6] if "sampling" in place else ["train-stage1"]
    monkeypatch.chdir(batch)
    assert run(*command, "--model", "ckpt", "--out", "out") == 1
    line = one_line(capsys)
    assert line.startswith("score: the GPU has no memory left (CUDA out of memory. Tried to allocate 2.00 GiB)")
    assert advice in line and not (batch / "out").exists()


BAD_SETTINGS = [
    ("train-stage1", "learning_rate", "-1", "expected more than 0"),
    ("train-stage1", "learning_rate", "nan", "expected"),
    ("train-stage2", "max_grad_norm", "-1", "expected more than 0"),
    ("train-stage2", "discount", "7", "expected at most 1"),
    ("train-stage2", "beta1", "nan", "expected"),
    ("train-stage2", "adam_beta1", "1.5", "expected at most"),
    ("base", "steps", "0", "expected at least 1"),
    ("base", "heads", "5", "expected a multiple of heads"),
    ("base", "latent_share", "7", "expected at most 1"),
    ("sample", "attempts", "130", "expected at most 127"),
    ("sample", "iteration", "-5", "expected at least 0"),
    ("sample", "top_p", "0", "expected more than 0"),
    ("sample", "offline_share", "1.5", "expected at most 1"),
    ("eval", "top_k", "-1", "expected at least 0"),
    ("verify", "unscored_limit", "nan", "expected"),
    ("eval", "threads", "0", "expected at least 1"),
]


@pytest.mark.parametrize(("command", "name", "value", "message"), BAD_SETTINGS)
def test_values_out_of_bounds_are_refused(
    command: str, name: str, value: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(command, f"--{name.replace('_', '-')}", value, "--out", out) == 2
    assert message in one_line(capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--temprature", "1"], "--temprature"),
        (
            ["sample", "--samples", "many"],
            r"^score: --samples is many, expected a whole number \(see `score sample --help`",
        ),
        (["sample", "--temperature=hot"], "^score: --temperature is hot, expected a number "),
        (["sampel"], "sampel"),
        (["sample", "--engine", "tgi"], "^score: --engine is tgi, expected one of auto, transformers, vllm "),
        (
            ["sample", "--model", "nowhere"],
            "nowhere is not a checkpoint folder: name one",
        ),
        (["verify"], "traces.parquet does not exist: `score sample` makes it|problems.parquet does not exist"),
        (["train-stage2"], "ckpt is not a checkpoint folder"),
        (["data", "sums"], "no data set is named sums: known are division, stories, math"),
        (["data", "division", "--split", "dev"], "no split dev, expected one of train, validation, test"),
        (["data", "division", "--limit", "0"], "limit is 0, expected at least 1"),
        (["run", "nowhere.toml"], "nowhere.toml does not exist"),
        (["run", "."], r"^score: \. is no text, expected a recipe: name one such as pipelines/quickstart.toml"),
        (["show", "nowhere.parquet"], "nowhere.parquet does not exist"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_two(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert re.search(message, one_line(capsys))
    assert list(tmp_path.iterdir()) == []


def test_bad_settings_are_refused_before_any_work(batch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in [
        (["--samples", "0"], "samples is 0, expected at least 1"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--problems-per-iteration", "13"], "there are 12 problems"),
        (["--max-tokens", "60"], "the model's context is 64"),
        (["--attempts", "60"], "leaves no room for 60 attempts"),
        (["--threads", "0"], "threads is 0"),
    ]:
        code = run(
            "sample",
            "--model",
            batch / "ckpt",
            "--problems",
            batch / "problems.parquet",
            "--out",
            batch / "o",
            *options,
        )
        assert code == 2
        assert message in one_line(capsys)
        assert not (batch / "o").exists()


def test_an_existing_output_is_refused_and_kept(batch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (batch / "traces.parquet").read_bytes()
    code = run(
        "sample", "--model", batch / "ckpt", "--problems", batch / "problems.parquet", "--out", batch / "traces.parquet"
    )
    assert code == 2
    assert "exists: pass --overwrite" in one_line(capsys)
    assert (batch / "traces.parquet").read_bytes() == before


def test_a_failed_proof_is_exit_code_one(batch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--traces", batch / "traces.parquet", "--rewards", batch / "rewards.parquet", "--out", batch / "next"]
    code = run("train-stage1", "--model", batch / "ckpt", "--logprob-tolerance", "1e-12", *arguments)
    assert code == 1
    assert "the batch is not on policy" in one_line(capsys)
    assert not (batch / "next").exists()


@pytest.mark.pipeline
def test_a_full_disk_leaves_earlier_files_whole(batch: Path) -> None:
    """A file-size limit stands for the full disk: the kernel refuses the write in the same way."""
    before = (batch / "traces.parquet").read_bytes()
    code = (
        "import resource, signal, sys; from score_cli.cli import run_command; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512)); "
        "sys.exit(run_command(sys.argv[1:]))"
    )
    arguments = ["sample", "--model", "ckpt", "--max-tokens", "6", "--overwrite"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=batch, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "no space to write" in done.stderr.splitlines()[-1]
    assert (batch / "traces.parquet").read_bytes() == before
    assert sorted(p.name for p in batch.iterdir()) == ["ckpt", "problems.parquet", "rewards.parquet", "traces.parquet"]


@pytest.mark.pipeline
@pytest.mark.parametrize("request_to_stop", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_with_one_line_and_leaves_nothing_half_written(
    batch: Path, request_to_stop: signal.Signals
) -> None:
    arguments = ["sample", "--samples", "4000", "--out", "long.parquet", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "score_cli", *arguments], cwd=batch, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(batch.glob(".long.parquet.*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(request_to_stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1].startswith("score: interrupted")
    assert "Traceback" not in errors
    assert sorted(p.name for p in batch.iterdir()) == ["ckpt", "problems.parquet", "rewards.parquet", "traces.parquet"]


def write_recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sample]\nsampels = 8", r"\[sample\] has no key sampels: did you mean samples\?"),
        ("[train-stage1]\nalpha = 10.0", r"\[train-stage1\] has no key alpha: it is a key of \[train-stage2\]"),
        ("[smaple]\nsamples = 8", r"no table is called \[smaple\]: did you mean sample\?"),
        ('[sample]\nsamples = "8"', 'samples is "8", expected a whole number'),
        ("[sample]\nsamples = true", "samples is true, expected a whole number"),
        ('[sample]\nengine = "tgi"', 'engine is "tgi", expected one of auto, transformers'),
        ("sample = 3", "sample is a value, expected a table"),
        ("[sample", "is not a TOML file"),
        ("[sample]\nsamples = 0", "sample.samples is 0, expected at least 1"),
        ('[pay]\nsolve = { "rewrd" = 1.0 }', "solve has no source rewrd: expected one of right, gain, stuck, final"),
        ('[script]\nturns = ["solve", "verfy"]', r"\[script\] turns holds verfy: did you mean verify\?"),
        ('[script]\nturns = "solve"', r"\[script\] turns is 'solve', expected a list of solve, verify"),
        ("seed = 1.5", "seed is 1.5, expected a whole number"),
        ('[prompts.math]\nfrist = "x"', "prompts have no field frist: did you mean first"),
        ('[prompts.math]\nfirst = "x"', "lacks {question}"),
        ('[prompts.maths]\nfirst = "x"', "no task is named maths"),
        ("extends = 3", "extends is 3, expected text"),
        ('extends = "recipe.toml"', "recipe.toml extends itself"),
        ('extends = "nowhere.toml"', "nowhere.toml does not exist"),
        ('extend = "recipe.toml"', r"no table is called \[extend\]: did you mean extends\?"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(tmp_path, text)
    assert run("sample", "--config", path) == 2
    assert re.search(message, one_line(capsys))


def test_the_command_line_beats_the_recipe_and_the_recipe_beats_the_default(tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(tmp_path, "seed = 5\n[sample]\nsamples = 3\ntemperature = 1"))
    settings = recipe.settings("sample", config.SampleConfig, samples=7, attempts=None)
    assert (settings.samples, settings.attempts, settings.seed) == (7, 2, 5)
    assert recipe.settings("sample", config.SampleConfig).samples == 3
    assert type(settings.temperature) is float


def test_a_recipes_lora_is_that_of_every_stage_that_trains_and_has_none_of_its_own(tmp_path: Path) -> None:
    text = "seed = 5\n[lora]\nrank = 16\ntargets = 'q_proj'\n[train-stage2]\nlora_rank = 4"
    recipe = read_recipe(write_recipe(tmp_path, text))
    recipe.change(["lora.alpha=8"])
    kinds = {"train-stage1": config.Stage1Config, "train-stage2": config.Stage2Config, "train-sft": config.SftConfig}
    found = [recipe.settings(table, kind) for table, kind in kinds.items()]
    assert [(each.lora_rank, each.lora_alpha, each.lora_targets, each.lora_seed) for each in found] == [
        *((rank, 8.0, "q_proj", 5) for rank in (16, 4, 16))
    ]
    assert recipe.settings("train-sft", config.SftConfig, lora_rank=2).lora_rank == 2
    with pytest.raises(UserError, match=r"\[lora\] has no key ranks: did you mean rank"):
        recipe.change(["lora.ranks=8"])


def test_a_recipes_prompts_reach_the_conversation(tmp_path: Path, batch: Path) -> None:
    recipe = write_recipe(tmp_path, '[prompts.division]\ncorrection = "<check>"')
    arguments = ["--model", batch / "ckpt", "--problems", batch / "problems.parquet", "--out", batch / "asked"]
    assert run("sample", "--config", recipe, "--max-tokens", "6", *arguments) == 0
    tokenizer = load_policy(batch / "ckpt").tokenizer
    for trace in read_traces(batch / "asked"):
        assert tokenizer.convert_tokens_to_ids("<check>") in trace.token_ids[trace.attempt_ids == 0]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_the_repository_is_valid(path: Path) -> None:
    recipe = read_recipe(path)
    for table, kind in TABLES.items():
        recipe.settings(table, kind)


def test_show_prints_the_chosen_traces_with_verdicts(batch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.test_train import reward_some

    reward_some(batch)
    assert (
        run("show", batch / "traces.parquet", "--only", "i-c", "--limit", 2, "--tokens", "--model", batch / "ckpt") == 0
    )
    shown = capsys.readouterr().out
    assert "2 of 16 matching traces, of 48 that the file holds" in shown
    assert shown.count("attempt 1 incorrect") == 2 and shown.count("attempt 2 correct") == 2
    assert "Divide |" in shown and "sampled tokens, logprob -" in shown
    name = read_traces(batch / "traces.parquet")[0].problem_id
    assert run("show", batch / "traces.parquet", "--only", "c-c-c") == 0
    assert capsys.readouterr().out == f"none of the 48 traces of {batch / 'traces.parquet'} has the verdicts c-c-c\n"
    assert run("show", batch / "traces.parquet", "--only", "c-c-c", "--problem", name) == 0
    assert capsys.readouterr().out == f"none of the 4 traces of problem {name} has the verdicts c-c-c\n"
    assert run("show", batch / "traces.parquet", "--only", "x-c") == 2
    assert "expected letters like i-c" in one_line(capsys)
    assert run("show", batch / "traces.parquet", "--problem", "div-typo") == 2
    assert f"holds no trace of problem div-typo: give a problem_id of its own, such as {name}" in one_line(capsys)


def test_python_m_is_the_same_program(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "score_cli", "--version"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "0.1.0"


def test_an_evaluation_that_keeps_one_token_samples_the_greedy_traces(
    checkpoint: Path, problems: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "eval"
    files = ["--model", checkpoint, "--problems", problems, "--traces-folder", folder, "--out", tmp_path / "metrics"]
    assert run("eval", *files, "--samples", 1, "--max-tokens", 6, "--top-k", 1, "--threads", 1) == 0
    sampled, greedy = (read_traces(folder / f"ckpt-{name}.traces.parquet") for name in ("sampled", "greedy"))
    assert [trace.token_ids.tolist() for trace in sampled] == [trace.token_ids.tolist() for trace in greedy]
    assert all(trace.logprobs.max() == trace.logprobs.min() == 0 for trace in sampled), "one token has all the share"
    assert any(trace.logprobs.min() < 0 for trace in greedy)


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ("sample.shard='1/2'", "leave sample.shard and sample.offline_share out of the recipe"),
        ("sample.offline_share=0.5", "leave sample.shard and sample.offline_share out of the recipe"),
        ("sample.top_p=0.9", "leave sample.top_p and sample.top_k out of the recipe"),
        ("sample.top_k=3", "leave sample.top_p and sample.top_k out of the recipe"),
        ("sample.samples=1", "sample.samples is 1, and the baseline is a mean over a problem's other traces"),
    ],
)
def test_a_run_refuses_sampling_that_it_could_not_train_on(
    change: str, advice: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("run", PIPELINES / "quickstart.toml", "--set", change, "--out", tmp_path / "run") == 2
    assert advice in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_help_of_run_names_every_key_of_a_recipe_that_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "--help") == 0
    page = capsys.readouterr().out
    for kind in (RunConfig, AlarmsConfig):
        assert [field.name for field in dataclasses.fields(kind) if f"\n    {field.name} " not in page] == []
    assert re.search(r"overlap +refuse\|drop\|keep: What becomes of", page)


def test_a_try_out_cuts_what_is_long_and_leaves_what_is_short() -> None:
    quickstart, math = (read_recipe(PIPELINES / name) for name in ("quickstart.toml", "math.toml"))
    quickstart.try_out()
    math.try_out()
    assert quickstart.settings("base", config.BaseConfig).steps == 50
    assert [each.settings("sample", config.SampleConfig).max_tokens for each in (quickstart, math)] == [14, 64]
    assert [each.settings("eval", config.EvalConfig).max_tokens for each in (quickstart, math)] == [14, 64]
    run_settings = math.settings("run", RunConfig)
    assert (run_settings.stage1_iterations, run_settings.stage2_iterations, run_settings.sft_rounds) == (2, 2, 0)
    assert (run_settings.overlap, run_settings.best_every) == ("drop", None)
    assert math.settings("sample", config.SampleConfig).samples == 8


def test_a_try_out_leaves_attempts_as_long_as_the_dialogues_of_a_start_may_be() -> None:
    recipe = read_recipe(PIPELINES / "math.toml")
    recipe.change(["run.start=dialogues.jsonl", "run.start_rounds=3", "train-sft.epochs=2"])
    whole = recipe.settings("sample", config.SampleConfig).max_tokens
    recipe.try_out()
    assert recipe.settings("sample", config.SampleConfig).max_tokens == whole != 64
    assert recipe.settings("eval", config.EvalConfig).max_tokens == 64
    assert recipe.settings("run", RunConfig).start_rounds == 1
    assert recipe.settings("train-sft", config.SftConfig).epochs == 1


def test_a_try_out_of_a_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", PIPELINES / "study.toml", "--try-out", "--out", tmp_path / "out") == 2
    assert "try it out with --limit" in one_line(capsys)


def test_a_usage_error_names_the_help_of_its_own_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sample", "--modle", "ckpt") == 2
    assert one_line(capsys).endswith("(see `score sample --help`)")


def test_a_refused_run_leaves_nothing_that_the_corrected_one_would_clash_with(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[1] / "pipelines" / "quickstart.toml"
    assert run("run", str(recipe), "--out", str(tmp_path / "out"), "--limit", "0") == 2
    assert not (tmp_path / "out").exists()
