"""Imports run one way: tables, tasks <- sampling, verification, training, evaluation <- stages, loop <- run, study."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "score_cli"
LEAVES = {"config", "errors", "metrics", "progress", "recipe", "run_config", "settings", "stopwatch"}
STAGES = {"sampling", "verification", "training", "evaluation"}
ALLOWED = {
    "tables": {"tables"},
    "tasks": {"tables", "tasks"},
    **{stage: {"tables", "tasks", stage} for stage in STAGES},
    "stages": {"tables", "tasks", "stages", *STAGES},
    "study": {"tables", "evaluation", "stages", "phases", "run_folder", "study"},
    "report": {"tables", "training", "evaluation", "phases", "study", "report"},
    "doctor": {"__version__", "tables", "sampling", "training", "verification", "phases", "tasks", "doctor"},
    "metrics.py": {"tables"},
    "loop.py": {"tables", "sampling", "verification", "training"},
    "phases.py": set(),
    "run_folder.py": {"tables", "phases"},
}
# Modules that compute and nothing else.
PURE = [
    "training/credit.py",
    "training/losses.py",
    "training/sft_examples.py",
    "phases.py",
    "alarms.py",
    "study/claims.py",
    "evaluation/layout.py",
    "report/plots.py",
    "evaluation/votes.py",
    "verification/number.py",
    "verification/math/answers.py",
    "verification/math/compare.py",
    "verification/math/extract.py",
    "verification/math/finish.py",
    "verification/math/restatement.py",
    "verification/math/values.py",
    "tasks/prompts.py",
    "metrics.py",
]
IMPURE_IMPORTS = {"os", "time", "datetime", "random", "typer", "rich", "shutil", "subprocess", "tempfile"}


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update({node.module} | {f"{node.module}.{alias.name}" for alias in node.names})
    return found


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_from_rooms_below_it(room: str) -> None:
    files = [ROOT / room] if room.endswith(".py") else list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        rooms = {name.split(".")[1] for name in imports(path) if name.startswith("score_cli.")}
        assert rooms <= ALLOWED[room] | LEAVES, f"{path.name} imports {rooms - ALLOWED[room] - LEAVES}"


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_know_no_files_clock_or_terminal(name: str) -> None:
    roots = {module.split(".")[0] for module in imports(ROOT / name)}
    assert not roots & IMPURE_IMPORTS
    text = (ROOT / name).read_text()
    assert "open(" not in text and "manual_seed" not in text


def test_vllm_is_imported_in_its_engine_and_its_workers_alone() -> None:
    users = {str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py") if any(m.split(".")[0] == "vllm" for m in imports(p))}
    assert users == {f"sampling/vllm_{name}.py" for name in ("engine", "transfer", "worker")}


def test_no_module_is_imported_by_one_that_it_imports() -> None:
    """Imports inside functions count too: a pair that needs one to hide is one module in two files."""
    names = {str(p.relative_to(ROOT).with_suffix("")).replace("/", "."): p for p in ROOT.rglob("*.py")}
    graph = {
        name: {short for module in imports(path) if (short := module.removeprefix("score_cli.")) in names}
        for name, path in names.items()
    }
    reached = {name: set(others) for name, others in graph.items()}
    for middle in names:
        for others in reached.values():
            if middle in others:
                others |= reached[middle]
    assert [name for name in names if name in reached[name]] == []


@pytest.mark.parametrize("module", ["stages.verify", "stages.evaluate_tables", "show", "report.run", "report.study"])
def test_what_reads_tables_needs_neither_torch_nor_transformers(module: str) -> None:
    code = (
        f"import sys, score_cli.{module}; sys.exit(', '.join({{'torch', 'transformers'}} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_needs_neither_torch_nor_transformers_nor_tables() -> None:
    code = (
        "import sys; from score_cli.cli import run_command; run_command(['sample', '--help']); "
        "heavy = {'torch', 'transformers', 'pyarrow', 'polars', 'sympy', 'numpy', 'vllm'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--temperature" in done.stdout
