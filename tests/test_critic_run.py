"""A run that trains a critic of a frozen generator: its tables, its arms side by side, and what they show by hand."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pytest

from score_cli.errors import UserError
from score_cli.evaluation.critics import critique_values, holds, round_values
from score_cli.metrics import clustered_mean
from score_cli.recipe import Recipe
from score_cli.replay import replay
from score_cli.run import Run, RunInputs
from score_cli.tables.checkpoints import load_policy
from score_cli.tables.parquet import TRACES, read_footer
from score_cli.tables.provenance import file_sha256
from score_cli.tables.records import Problem
from score_cli.tables.traces import read_traces, read_verdicts
from score_cli.tables.updates import Updates
from score_cli.tasks.division import advice
from tests.critics import CRITIC, score, write_pair
from tests.scripts import dialogue

# Of a random model no revision is right, and few claims can be read: these are paid too.
PAY = {"critique": {"signal:revision": 1.0, "right": 0.5, "format": 0.5}}
TRACES_OF_UPDATE = ("traces", "rewards", "revisions", "revisions.rewards", "signals")


def recipe(updates: int = 2, *, pay: Mapping[str, object] = PAY, **tables: dict[str, object]) -> Recipe:
    shared: dict[str, object] = {"threads": 1, "max_tokens": 8}
    settings = {
        "sample": {"samples": 2, "problems_per_iteration": 4, "seed": 3, **shared},
        "signal": {"kind": "revision", "threads": 1},
        "verify": {"workers": 1},
        "train-stage2": {"learning_rate": 1e-2, "kl": "sampled", "threads": 1},
        "eval": {"samples": 2, **shared},
        "run": {"stage2_iterations": updates, "given_solves": 2, "critique_rounds": 2, "save_every": 1},
    }
    merged = {name: settings.get(name, {}) | tables.get(name.replace("-", "_"), {}) for name in settings}
    return Recipe(merged, nested={"script": dict(CRITIC), "pay": dict(pay)})


def run(folder: Path, out: str, plan: Recipe) -> list[dict[str, object]]:
    inputs = RunInputs(
        model=folder / "generator", problems=folder / "problems.parquet", eval_problems=folder / "test.parquet"
    )
    return Run(plan, folder / out, inputs).execute()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two updates from a random policy, which is the generator and where the critic starts."""
    folder = tmp_path_factory.mktemp("critic-run")
    write_pair(folder)
    score("data", "division", "--limit", 8, "--out", folder / "problems.parquet")
    score("data", "division", "--split", "test", "--limit", 6, "--out", folder / "test.parquet")
    before = file_sha256(folder / "generator" / "model.safetensors")
    rows = run(folder, "run", recipe())
    (folder / "rows.json").write_text(json.dumps(rows))
    assert file_sha256(folder / "generator" / "model.safetensors") == before
    return folder


def test_the_generator_writes_all_solves_and_revisions_and_the_critic_alone_learns(ran: Path) -> None:
    generator = load_policy(ran / "generator").state.fingerprint
    critics = [read_footer(ran / "run" / "iterations" / f"000{n}" / "traces.parquet", TRACES) for n in (0, 1)]
    assert [footer and footer.policy == generator for footer in critics] == [True, False]
    assert load_policy(ran / "run" / "stage2").state.fingerprint not in {footer and footer.policy for footer in critics}
    own = [ran / "run" / "solves.parquet", *(ran / "run" / "eval").glob("solves-*d.parquet")]
    own += [*(ran / "run" / "iterations").glob("*/revisions.parquet"), *(ran / "run" / "eval").glob("*.traces.parquet")]
    own += [*(ran / "run" / "eval").glob("*.revisions.parquet"), ran / "run" / "eval" / "solves-greedy.parquet"]
    assert len(own) > 10
    assert {footer and footer.policy for footer in (read_footer(path, TRACES) for path in own)} == {generator}
    oracle = read_footer(ran / "run" / "eval" / "oracle-sampled.critiques.parquet", TRACES)
    assert oracle is not None and oracle.policy is None and oracle.config["critic"] == "oracle"


def test_an_update_writes_the_bytes_that_the_commands_write(ran: Path, tmp_path: Path) -> None:
    """From the solves that the run drew: critiques, their rewards, revisions, theirs, and the signal."""
    update = ran / "run" / "iterations" / "0000"
    text = (ran / "recipe.toml").read_text().replace("samples = 2", "samples = 2\nproblems_per_iteration = 4")
    (tmp_path / "recipe.toml").write_text(text)
    solves, problems = ran / "run" / "solves.parquet", ["--problems", ran / "run" / "train.parquet"]
    generator = ["--config", tmp_path / "recipe.toml", "--model", ran / "generator", *problems]
    made = {name: tmp_path / f"{name}.parquet" for name in TRACES_OF_UPDATE}
    score("sample", *generator, "--script", "critique", "--from", solves, "--out", made["traces"])
    given = ["--given-rewards", ran / "run" / "solves.rewards.parquet"]
    score("verify", "--traces", made["traces"], *problems, *given, "--out", made["rewards"])
    answers = ["--from", solves, "--critiques", made["traces"], "--samples", 1, "--out", made["revisions"]]
    score("sample", *generator, "--script", "revise", *answers)
    score("verify", "--traces", made["revisions"], *problems, "--out", made["revisions.rewards"])
    told = ["--traces", made["traces"], "--revisions", made["revisions"], "--out", made["signals"]]
    score("signal", "--kind", "revision", *told)
    for name, path in made.items():
        assert path.read_bytes() == (update / f"{name}.parquet").read_bytes(), name


@pytest.mark.pipeline
def test_a_run_that_goes_on_ends_as_one_that_did_not_stop(ran: Path) -> None:
    run(ran, "short", recipe(1))
    run(ran, "short", recipe(2))
    for name in ("stage2/model.safetensors", *(f"iterations/0001/{table}.parquet" for table in TRACES_OF_UPDATE)):
        assert (ran / "short" / name).read_bytes() == (ran / "run" / name).read_bytes(), name


def test_an_update_can_be_taken_again_from_its_files_also_where_they_lie_with_others(ran: Path) -> None:
    shutil.copytree(ran / "run", ran / "joined")
    updates = Updates(ran / "joined" / "iterations")
    assert updates.compact(0, 2)
    with updates.opened(1) as folder:
        for name in TRACES_OF_UPDATE:
            whole = (ran / "run" / "iterations" / "0001" / f"{name}.parquet").read_bytes()
            assert (folder / f"{name}.parquet").read_bytes() == whole
    end = load_policy(ran / "run" / "stage2").state.fingerprint
    assert replay(ran / "joined", 1, model=ran / "generator").policy == end


def test_all_arms_share_the_first_solves_to_the_last_decimal(ran: Path) -> None:
    rows = pl.read_parquet(ran / "run" / "metrics.parquet").filter(~pl.col("policy").str.contains(" - "))
    assert rows["policy"].unique(maintain_order=True).to_list() == ["none", "base", "stage2", "oracle"]
    for decoding in ("sampled", "greedy"):
        folder = ran / "run" / "eval"
        solves = [trace.attempts[0] for trace in read_traces(folder / f"solves-{decoding}.parquet")]
        for arm in ("none", "base", "stage2", "oracle"):
            found = read_traces(folder / f"{arm}-{decoding}.traces.parquet")
            assert [trace.attempts[0] for trace in found] == solves and {trace.offline_attempts for trace in found} == {
                1
            }
        own = rows.filter((pl.col("name") == "acc@t1") & (pl.col("decoding") == decoding))
        assert own["value"].n_unique() == 1 and len(own) == 4
    names = set(rows.filter(pl.col("policy") == "stage2")["name"])
    assert {"acc@t2", "i_to_c@t2", "c_to_i@t2", "verify_acc", "f1_wrong", "holds_answer", "acc@round2"} <= names


def test_the_oracle_tells_the_truth_of_every_solve(ran: Path) -> None:
    verdicts = read_verdicts(ran / "run" / "eval" / "oracle-sampled.critiques.rewards.parquet")
    assert {verdict.verdicts[0] for verdict in verdicts} == {"correct"}
    problem = Problem(problem_id="division-494-7", task="division", question="?", answer="70", source="me")
    told = {solve: advice(problem, solve) for solve in ("\\boxed{71}: product", "\\boxed{70}", "\\boxed{9}:", "71")}
    assert list(told.values()) == ["lower ", "keep ", "raise ", ""]


# By hand.


def test_what_critiques_show_by_hand() -> None:
    right = {("p", 0): True, ("p", 1): True, ("q", 0): False, ("q", 1): False, ("q", 2): False, ("r", 0): None}
    said = [
        (("p", 0), "keep right", "right", "correct"),
        (("p", 1), "lower wrong", "wrong", "incorrect"),
        (("q", 0), "raise wrong", "wrong", "correct"),
        (("q", 1), "it is 70, so right", "right", "incorrect"),
        (("q", 2), "hm", None, "no_answer"),
        (("r", 0), "raise wrong", "wrong", "unscored"),
    ]
    critiques, verdicts = [], []
    for index, ((problem, given), text, claim, verdict) in enumerate(said):
        trace, grade = dialogue(("critique", text, verdict), problem=problem, index=index)
        critiques.append(trace.__class__(**{**vars(trace), "given_index": given}))
        verdicts.append(grade.__class__(**{**vars(grade), "answers": [claim]}))
    found = critique_values(critiques, verdicts, right, lambda claim: claim == "right", {"p": "71", "q": "70"})
    means = {name: clustered_mean([v for _, v in pairs], [p for p, _ in pairs]) for name, pairs in found.items()}
    assert {name: mean.value for name, mean in means.items()} == {
        "verify_acc": pytest.approx(2 / 5),
        "unreadable": pytest.approx(1 / 5),
        "error_recall": pytest.approx(1 / 3),
        "correct_precision": pytest.approx(1 / 2),
        # Correct: 1 hit, 1 claimed in vain, 1 missed. Wrong: 1 hit, 1 in vain, 2 missed.
        "f1_correct": pytest.approx(2 / 4),
        "f1_wrong": pytest.approx(2 / 5),
        "holds_answer": pytest.approx(1 / 5),
    }
    assert means["error_recall"].count == 3


def test_an_answer_stands_in_a_text_as_a_word_of_its_own() -> None:
    assert holds("it is 70.", "70") and holds("70", "70") and holds("x = a/b", "a/b")
    assert not holds("it is 170", "70") and not holds("70.5", "70") and not holds("0.70", "70")


def test_accuracy_round_by_round_by_hand() -> None:
    first = {("p", 0): True, ("p", 1): False, ("q", 0): False, ("q", 1): None}
    history = [first, first | {("p", 0): False, ("p", 1): True}, first | {("p", 1): True, ("q", 0): True}]
    found = {name: [value for _, value in pairs] for name, pairs in round_values(history).items()}
    assert found == {
        "acc@round1": [0.0, 1.0, 0.0],
        "i_to_c@round1": [0.0, 1.0, 0.0],
        "c_to_i@round1": [1.0, 0.0, 0.0],
        "acc@round2": [1.0, 1.0, 1.0],
        "i_to_c@round2": [0.0, 1.0, 1.0],
        "c_to_i@round2": [0.0, 0.0, 0.0],
    }


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda: recipe(pay={"critique": {"right": 1.0}}), "a run pays critiques for revisions"),
        (lambda: recipe(signal={"kind": "judge"}), r"\[pay\] reads signal:revision, and a run makes judge"),
        (lambda: recipe(run={"best_every": 1}), "run.best_every measures solves"),
        (lambda: recipe(run={"stage1_iterations": 1}), "Stage I is for solves alone"),
        (lambda: recipe(eval={"calibration": True}), "eval.calibration is of a policy's own solves"),
        (lambda: recipe(sample={"max_tokens": 40}), "lower --max-tokens, or leave these"),
        (lambda: recipe(pay={"solve": {"signal:revision": 1.0}}), "which only critique turns can earn"),
    ],
)
def test_a_recipe_that_could_train_no_critic_is_one_line(ran: Path, plan: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(ran, "refused", plan())  # type: ignore[operator]
