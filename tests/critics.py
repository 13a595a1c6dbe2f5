"""A script that begins with a critique, with words that a random model does say, and policies that know them."""

from pathlib import Path

from score_cli.cli import run_command
from score_cli.tables.checkpoints import save_policy
from score_cli.tasks.script import Script, read_script
from tests.scripts import scripted_policy

CRITIC = {
    "turns": ["critique"],
    "most_turns": 1,
    "critique": {"ask": "{question}{solve}<judge>", "claim": "by|remainder"},
    "solve": {"ask": "{critique}<again>"},
}
CRITIC_TOML = """
[script]
turns = ["critique"]
most_turns = 1

[script.critique]
ask = "{question}{solve}<judge>"
claim = "by|remainder"

[script.solve]
ask = "{critique}<again>"

[pay]
critique = { "signal:revision" = 1.0 }

[signal]
kind = "revision"
threads = 1
"""
SETTINGS = """
[sample]
samples = 2
max_tokens = 8
threads = 1
seed = 3

[train-stage2]
threads = 1
learning_rate = 1e-2
kl = "sampled"
"""


def critic_script(**changes: object) -> Script:
    """The script, with some keys changed."""
    return read_script(CRITIC | changes)


def write_pair(folder: Path) -> None:
    """A generator and a critic of one family, with other weights, and the recipe of both."""
    for name, seed in (("generator", 0), ("critic", 1)):
        made = scripted_policy(critic_script(), seed=seed)
        (folder / name).mkdir()
        save_policy(folder / name, made.model, made.tokenizer, made.state)
    (folder / "recipe.toml").write_text(CRITIC_TOML + SETTINGS)


def score(*arguments: object) -> None:
    """A command that ends well."""
    assert run_command([str(argument) for argument in arguments]) == 0


def make_passes(folder: Path, problems: Path) -> None:
    """All tables of one update, made by the commands."""
    recipe, about = ["--config", folder / "recipe.toml"], ["--problems", problems]

    def table(name: str) -> list[object]:
        return ["--out", folder / f"{name}.parquet"]

    generator, critic = ["--model", folder / "generator"], ["--model", folder / "critic"]
    solves, critiques = folder / "solves.parquet", folder / "critiques.parquet"
    score("sample", *recipe, "--script", "solve", *generator, *about, *table("solves"))
    score("verify", "--traces", solves, *about, *table("solves.rewards"))
    score("sample", *recipe, "--script", "critique", "--from", solves, *critic, *about, *table("critiques"))
    given = ["--given-rewards", folder / "solves.rewards.parquet"]
    score("verify", "--traces", critiques, *about, *given, *table("critiques.rewards"))
    revise = ["--script", "revise", "--from", solves, "--critiques", critiques, "--samples", 1]
    score("sample", *recipe, *revise, *generator, *about, *table("revisions"))
    score("verify", "--traces", folder / "revisions.parquet", *about, *table("revisions.rewards"))
    answers = ["--revisions", folder / "revisions.parquet"]
    score("signal", "--kind", "revision", "--traces", critiques, *answers, *table("signals"))
