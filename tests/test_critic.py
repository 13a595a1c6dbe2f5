"""A critic's three passes through the commands: solves, critiques of them, revisions after the critiques; and pay."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from score_cli.cli import run_command
from score_cli.config import BaseConfig, SampleConfig, VerifyConfig
from score_cli.errors import UserError
from score_cli.sampling.given import CRITIQUE_PART, Given, starts_of_critiques
from score_cli.sampling.sampler import Sampler
from score_cli.stages.given import Sources
from score_cli.stages.sample import merge, sample
from score_cli.tables.checkpoints import load_policy
from score_cli.tables.parquet import SIGNALS, TRACES, read_footer, read_table
from score_cli.tables.problems import read_problems
from score_cli.tables.provenance import file_sha256
from score_cli.tables.records import Trace
from score_cli.tables.traces import read_traces, read_verdicts
from score_cli.tasks.division import problems
from score_cli.tasks.script import read_script
from score_cli.training.base_policy import untrained_policy
from score_cli.verification.grader import Grader
from tests.conftest import rewrite
from tests.critics import CRITIC, critic_script, make_passes, score, write_pair
from tests.scripts import dialogue, script
from tests.test_chat_templates import CASES, Case, byte_tokenizer, conversation, special_ids


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of one update; no test changes them."""
    folder = tmp_path_factory.mktemp("critic")
    write_pair(folder)
    score("data", "division", "--limit", 12, "--out", folder / "problems.parquet")
    make_passes(folder, folder / "problems.parquet")
    make_another_round(folder)
    return folder


def make_another_round(folder: Path) -> None:
    """Critiques of the revisions, and what they claim."""
    about = ["--problems", folder / "problems.parquet"]
    score(
        *("sample", "--config", folder / "recipe.toml", "--model", folder / "critic", "--script", "critique"),
        *("--from", folder / "revisions.parquet", "--critiques", folder / "critiques.parquet", "--samples", 1),
        *(*about, "--out", folder / "again.parquet"),
    )
    given = ["--given-rewards", folder / "revisions.rewards.parquet", "--out", folder / "again.rewards.parquet"]
    score("verify", "--traces", folder / "again.parquet", *about, *given)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "critic"))


def by_name(path: Path) -> dict[tuple[str, int], Trace]:
    return {(trace.problem_id, trace.sample_index): trace for trace in read_traces(path)}


def plain(text: str) -> bool:
    """Whether a text spells no control token, and so is tokenized as it stands."""
    return "<" not in text


def claim_of(critique: Trace) -> str | None:
    """The last of the claims that a critique makes."""
    words = "".join(letter if letter.isalnum() else " " for letter in critique.attempts[0]).split()
    return next((word for word in reversed(words) if word in ("by", "remainder")), None)


def test_a_critique_is_of_the_problem_and_the_solves_text_in_a_conversation_of_its_own(made: Path) -> None:
    known = {problem.problem_id: problem for problem in read_problems(made / "problems.parquet")}
    solves = by_name(made / "solves.parquet")
    critiques, encode = read_traces(made / "critiques.parquet"), load_policy(made / "critic").tokenizer.encode
    assert len(solves) == 24 and len(critiques) == 48
    checked = 0
    for critique in critiques:
        assert critique.roles == ["critique"] and critique.offline_attempts == 0
        assert critique.given_index == critique.sample_index // 2
        solve = solves[critique.problem_id, critique.given_index]
        if plain(solve.attempts[0]):
            asked = f"{known[critique.problem_id].question}{solve.attempts[0]}<judge>"
            context = critique.token_ids[critique.attempt_ids == 0].tolist()
            assert context == encode(asked, add_special_tokens=False)
            checked += 1
    assert checked >= 4


def test_a_revision_follows_the_solves_own_tokens_and_the_critiques_text(made: Path) -> None:
    policy = load_policy(made / "generator")
    solves, critiques = by_name(made / "solves.parquet"), by_name(made / "critiques.parquet")
    encode, end = policy.tokenizer.encode, policy.tokenizer.eos_token_id
    checked = 0
    for revision in read_traces(made / "revisions.parquet"):
        critique = critiques[revision.problem_id, revision.given_index or 0]
        assert critique.sample_index == revision.given_index == revision.sample_index
        solve = solves[critique.problem_id, critique.given_index or 0]
        assert revision.roles is None and revision.offline_attempts == 1
        assert revision.attempts[0] == solve.attempts[0]
        start = len(solve.token_ids)
        assert revision.token_ids[:start].tolist() == solve.token_ids.tolist()
        if not plain(critique.attempts[0]):
            continue
        said = encode(f"{critique.attempts[0]}<again>", add_special_tokens=False)
        said = said if solve.finish_reasons[0] == "stop" else [end, *said]
        second = int(np.flatnonzero(revision.attempt_ids == 2)[0])
        assert revision.token_ids[start:second].tolist() == said
        with torch.no_grad():  # the generator's own logprobs, by a plain pass
            logits = policy.model(input_ids=torch.tensor(revision.token_ids[None].astype(np.int64))).logits[0]
        for place in np.flatnonzero(revision.attempt_ids == 2):
            expected = logits[place - 1].log_softmax(-1)[revision.token_ids[place]].item()
            assert revision.logprobs[place] == pytest.approx(expected, abs=1e-5)
        checked += 1
    assert checked >= 4


def test_no_two_passes_and_no_two_rounds_draw_the_same_random_numbers(made: Path) -> None:
    policy, solves = load_policy(made / "critic"), read_traces(made / "solves.parquet")
    known = {problem.problem_id: problem for problem in read_problems(made / "problems.parquet")}
    config = SampleConfig(samples=2, max_tokens=6, threads=1, iteration=0, seed=3)
    given = Given(CRITIQUE_PART, critic_script(), starts_of_critiques(known, solves))
    plans = [Sampler(config, policy).plan_given(replace(given, round=number)) for number in (1, 2)]
    first = Sampler(replace(config, attempts=1), policy).plan(list(known.values()))
    jobs = [(plans[0], 24), (plans[1], 24), (first, 12)]
    seeds = [seed for job, rows in jobs for row in range(rows) for n in (0, 1) for seed in job.rollout(row, n).seeds]
    assert len(set(seeds)) == len(seeds) == 2 * 48 + 24


def test_a_claim_is_judged_by_the_exact_verdict_of_the_given_solve(made: Path) -> None:
    right = {
        (verdict.problem_id, verdict.sample_index): verdict.verdicts[0] == "correct"
        for verdict in read_verdicts(made / "solves.rewards.parquet")
    }
    found: Counter[str] = Counter()
    critiques, verdicts = read_traces(made / "critiques.parquet"), read_verdicts(made / "critiques.rewards.parquet")
    for critique, verdict in zip(critiques, verdicts, strict=True):
        said, cut = claim_of(critique), critique.finish_reasons[0] == "length"
        true = (said == "by") == right[critique.problem_id, critique.given_index or 0]
        expected = "truncated" if cut else "no_answer" if said is None else "correct" if true else "incorrect"
        assert verdict.verdicts == [expected]
        found[expected] += 1
    assert {"truncated", "incorrect"} <= found.keys()


@pytest.mark.parametrize(
    ("claim", "given", "verdict"),
    [
        ("by", "correct", "correct"),
        ("by", "incorrect", "incorrect"),
        ("remainder", "incorrect", "correct"),
        ("remainder", "truncated", "correct"),
        ("remainder", "correct", "incorrect"),
        ("neither", "correct", "no_answer"),
        ("by", "unscored", "unscored"),
    ],
)
def test_claims_on_given_solves_by_hand(claim: str, given: str, verdict: str) -> None:
    critique, _ = dialogue(("critique", f"lower {claim}", "no_answer"), problem="division-100-7", index=5)
    problem = next(problem for problem in problems() if problem.problem_id == "division-100-7")
    with Grader(VerifyConfig(script=critic_script())) as grader:
        grader.given = {(problem.problem_id, 2): given}
        [found] = grader.grade([replace(critique, given_index=2)], {problem.problem_id: problem})
        with pytest.raises(UserError, match="sample 3 of problem division-100-7, which the given rewards lack"):
            grader.grade([replace(critique, given_index=3)], {problem.problem_id: problem})
    assert found.verdicts == [verdict] and found.rewards == [{"correct": 1.0, "unscored": None}.get(verdict, 0.0)]


def test_a_critique_earns_the_reward_of_the_revision_after_it(made: Path) -> None:
    rewards = {
        (trace.problem_id, trace.given_index): verdict.rewards[1]
        for trace, verdict in zip(
            read_traces(made / "revisions.parquet"), read_verdicts(made / "revisions.rewards.parquet"), strict=True
        )
    }
    signals = read_table(made / "signals.parquet", SIGNALS).to_pylist()
    critiques = read_traces(made / "critiques.parquet")
    assert [(s["problem_id"], s["sample_index"]) for s in signals] == [
        (critique.problem_id, critique.sample_index) for critique in critiques
    ]
    assert [s["values"] for s in signals] == [[rewards[s["problem_id"], s["sample_index"]]] for s in signals]
    assert {s["name"] for s in signals} == {"revision"}


def test_footers_name_who_wrote_what_and_what_it_was_built_from(made: Path) -> None:
    generator, critic = (load_policy(made / name).state.fingerprint for name in ("generator", "critic"))
    footers = {name: read_footer(made / f"{name}.parquet", TRACES) for name in ("solves", "critiques", "revisions")}
    assert [footer and footer.policy for footer in footers.values()] == [generator, critic, generator]
    critiques, revisions = footers["critiques"], footers["revisions"]
    assert critiques is not None and revisions is not None
    digests = {name: file_sha256(made / f"{name}.parquet") for name in ("solves", "critiques")}
    assert critiques.inputs["solves"] == revisions.inputs["solves"] == digests["solves"]
    assert revisions.inputs["critiques"] == digests["critiques"]
    assert (critiques.config["pass"], revisions.config["pass"]) == ("critique", "revise")
    signals = read_footer(made / "signals.parquet", SIGNALS)
    assert signals is not None and signals.policy == critic and signals.config["by"] == generator


def test_training_moves_the_critic_and_leaves_the_generator(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every critique is compared with the other one of its solve: where both earn alike, nothing is learned of them."""
    files = [folder / "generator" / "model.safetensors", folder / "critic" / "model.safetensors"]
    before = [file_sha256(path) for path in files]
    # No revision of a random model is right: some critiques are paid by hand.
    rewrite(folder / "signals.parquet", lambda row: row.update(values=[float(int(str(row["sample_index"])) % 4 == 1)]))
    score(
        *("train-stage2", "--config", folder / "recipe.toml", "--model", folder / "critic", "--out", folder / "next"),
        *("--traces", folder / "critiques.parquet", "--rewards", folder / "critiques.rewards.parquet"),
        *("--signals", folder / "signals.parquet"),
    )
    assert [file_sha256(path) for path in files] == before
    old, new = load_policy(folder / "critic"), load_policy(folder / "next")
    assert new.state.parent == old.state.fingerprint != new.state.fingerprint
    rows = {
        (row["name"], row["attempt"]): row["value"]
        for row in pl.read_parquet(folder / "next" / "trainer" / "metrics.parquet").to_dicts()
    }
    assert rows["revision", None] == 0.25 and rows["frac_zero_advantage", 1] == 0.5
    verdicts = read_verdicts(folder / "critiques.rewards.parquet")
    true = sum(v.verdicts[0] == "correct" for v in verdicts)
    assert rows["verify_acc", None] == true / 48
    assert f"update 1 (stage2); of its claims true: {100 * true / 48:.1f}%; KL by attempt: " in capsys.readouterr().err


def test_another_round_is_of_the_newest_solves_that_were_not_called_correct(made: Path) -> None:
    critiques = by_name(made / "critiques.parquet")
    ended = {
        name
        for name, critique in critiques.items()
        if critique.finish_reasons[0] == "stop" and claim_of(critique) == "by"
    }
    found = read_traces(made / "again.parquet")
    assert ended and {(trace.problem_id, trace.given_index) for trace in found} == critiques.keys() - ended
    revisions = by_name(made / "revisions.parquet")
    known = {problem.problem_id: problem for problem in read_problems(made / "problems.parquet")}
    encode = load_policy(made / "critic").tokenizer.encode
    for trace in found:
        newest = revisions[trace.problem_id, trace.given_index or 0].attempts[1]
        if plain(newest):
            asked = f"{known[trace.problem_id].question}{newest}<judge>"
            assert trace.token_ids[trace.attempt_ids == 0].tolist() == encode(asked, add_special_tokens=False)
    footer = read_footer(made / "again.parquet", TRACES)
    assert footer is not None and footer.config["round"] == 2


def test_a_further_revision_is_told_the_newest_solve_and_nothing_before_it(folder: Path) -> None:
    score(
        *("sample", "--config", folder / "recipe.toml", "--model", folder / "generator", "--script", "revise"),
        *("--from", folder / "revisions.parquet", "--critiques", folder / "again.parquet", "--samples", 1),
        *("--problems", folder / "problems.parquet", "--out", folder / "more.parquet"),
    )
    again, revisions = by_name(folder / "again.parquet"), by_name(folder / "revisions.parquet")
    for trace in read_traces(folder / "more.parquet"):
        critique = again[trace.problem_id, trace.given_index or 0]
        newest = revisions[critique.problem_id, critique.given_index or 0]
        assert trace.attempts[0] == newest.attempts[1] and len(trace.attempts) == 2
        prompt = int(np.flatnonzero(newest.attempt_ids == 1)[0])
        tokens = newest.token_ids[newest.attempt_ids == 2].tolist()
        assert trace.token_ids[: prompt + len(tokens)].tolist() == newest.token_ids[:prompt].tolist() + tokens


@pytest.mark.parametrize("part", ["critiques", "revisions"])
def test_shards_and_small_batches_of_a_pass_are_the_whole(folder: Path, part: str) -> None:
    name = "critic" if part == "critiques" else "generator"
    config = SampleConfig(
        samples=2 if part == "critiques" else 1,
        max_tokens=8,
        threads=1,
        seed=3,
        script=critic_script(),
        chunk_problems=20,
        batch_size=5,
    )
    critiques = None if part == "critiques" else folder / "critiques.parquet"
    sources = Sources("critique" if part == "critiques" else "revise", folder / "solves.parquet", critiques)
    shards = [folder / f"{number}.parquet" for number in (1, 2)]
    for number, out in enumerate(shards, start=1):
        chosen = replace(config, shard=f"{number}/2")
        sample(
            chosen, policy=load_policy(folder / name), problems=folder / "problems.parquet", out=out, sources=sources
        )
    merge(shards, out=folder / "merged.parquet")
    found, whole = read_traces(folder / "merged.parquet"), read_traces(folder / f"{part}.parquet")
    assert [trace.token_ids.tolist() for trace in found] == [trace.token_ids.tolist() for trace in whole]


# Text of the model in the user's words.


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("spelled", ["<|eos|>", "<|im_end|>", "a<end_of_turn>b", "<s>", "plain"])
def test_a_solve_in_a_critics_prompt_never_speaks_in_control_tokens(case: Case, spelled: str) -> None:
    tokenizer = byte_tokenizer(case)
    tokens = conversation(tokenizer, case.stops)
    prompt = tokens.prompt_with("{question} Judge {solve} now", {"question": "What?", "solve": spelled})
    assert special_ids(tokenizer, prompt) == special_ids(tokenizer, tokens.prompt("x"))
    assert f"What? Judge {spelled} now" in tokenizer.decode(prompt, skip_special_tokens=False)


def test_the_words_of_such_a_script_come_into_its_bases_tokens_and_into_no_others() -> None:
    words = set(untrained_policy(BaseConfig(script=critic_script())).tokenizer.get_vocab())
    usual = set(untrained_policy(BaseConfig()).tokenizer.get_vocab())
    assert words - usual == {"<judge>", "<again>", "lower ", "raise ", "keep ", "by", "remainder"}
    verify = set(untrained_policy(BaseConfig(script=script())).tokenizer.get_vocab())
    assert verify - usual == {"<verify>", "right", "wrong"}


# What cannot be meant.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"most_turns": 2}, "can have 2 turns, and a critique of a given solve is a conversation by itself"),
        ({"turns": ["critique", "solve"], "most_turns": 4}, "can have 4 turns"),
        ({"most_turns": None}, "can never end"),
        ({"critique": {"ask": "{question}", "claim": "a|b"}}, r"\[script.critique\] ask holds no {solve}"),
        ({"critique": {"ask": "{solve}"}}, "nothing says how its claim is read"),
        ({"solve": {"ask": "again"}}, r"\[script.solve\] ask holds no {critique}"),
        ({"solve": None}, r"\[script.solve\] ask holds no {critique}"),
        ({"verify": {"ask": "?", "claim": "a|b"}}, "turns holds no verify"),
        ({"critique": {"ask": "{solve} is {answer}?", "claim": "a|b"}}, "speaks of {answer}"),
        ({"critique": {"ask": "{solve}{critique}", "claim": "a|b"}}, "speaks of {critique}, expected {question}"),
    ],
)
def test_a_script_that_no_critic_could_follow_is_one_line(changes: dict[str, Any], message: str) -> None:
    table = {key: value for key, value in (CRITIC | changes).items() if value is not None}
    with pytest.raises(UserError, match=message):
        read_script(table)


def test_a_dialogue_that_holds_the_question_is_not_told_it_again() -> None:
    with pytest.raises(UserError, match="speaks of {question}, which the dialogue holds already"):
        script(verify={"ask": "{question}?", "claim": "right|wrong"})


def sampling(folder: Path) -> list[object]:
    recipe = ["--config", folder / "recipe.toml", "--problems", folder / "problems.parquet"]
    return ["sample", *recipe, "--model", folder / "critic"]


CRITIQUE, REVISE, FROM, OF = ["--script", "critique"], ["--script", "revise"], "--from", "--critiques"
VERIFY, SIGNAL, RELATED = ["verify", "--traces"], ["signal", "--kind", "revision", "--traces"], "--revisions"
Refusal = tuple[Callable[[Path], Sequence[object]], str]
REFUSALS: dict[str, Refusal] = {
    "no pass": (lambda f: [], "begins with critique, and no solves are given to criticise"),
    "no solves": (lambda f: CRITIQUE, "--script critique is built from solves, and none are given"),
    "no critiques": (lambda f: [*REVISE, FROM, f / "solves.parquet"], "answers critiques, and none are given"),
    "unknown pass": (lambda f: ["--script", "revision"], "expected one of solve, critique, revise"),
    "solves for nothing": (lambda f: [FROM, f / "solves.parquet"], "--from and --critiques are for --script"),
    "critiques as solves": (lambda f: [*CRITIQUE, FROM, f / "critiques.parquet"], "holds turns that are no solves"),
    "solves as critiques": (
        lambda f: [*REVISE, FROM, f / "solves.parquet", OF, f / "solves.parquet"],
        "holds other turns than critiques",
    ),
    "other solves": (
        lambda f: [*REVISE, FROM, f / "revisions.parquet", OF, f / "critiques.parquet"],
        "was not made from",
    ),
    "other critiques": (
        lambda f: [*CRITIQUE, FROM, f / "solves.parquet", OF, f / "critiques.parquet"],
        "was not made from",
    ),
    "no rewards of the solves": (
        lambda f: [*VERIFY, f / "critiques.parquet", "--problems", f / "problems.parquet"],
        "nothing says whether that is correct: name the rewards of the solves with --given-rewards",
    ),
    "rewards of other solves": (
        lambda f: [
            *(*VERIFY, f / "critiques.parquet", "--problems", f / "problems.parquet"),
            *("--given-rewards", f / "revisions.rewards.parquet"),
        ],
        "grades other solves than",
    ),
    "no revisions": (lambda f: [*SIGNAL, f / "critiques.parquet"], "nothing says what became of the critiques"),
    "signal of solves": (
        lambda f: [*SIGNAL, f / "solves.parquet", RELATED, f / "revisions.parquet"],
        "holds solve turns, and the signal is of critiques",
    ),
    "signal of other critiques": (
        lambda f: [*SIGNAL, f / "again.parquet", RELATED, f / "revisions.parquet"],
        "was made from other critiques than",
    ),
    "revisions for another kind": (
        lambda f: ["signal", "--by", f / "critic", RELATED, f / "revisions.parquet"],
        "--revisions are for --kind revision",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_belong_together_is_one_line(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    more, message = REFUSALS[name][0](made), REFUSALS[name][1]
    command = [*sampling(made), *more] if not more or str(more[0]).startswith("--") else more
    assert run_command([str(argument) for argument in (*command, "--out", tmp_path / "x.parquet")]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said and not (tmp_path / "x.parquet").exists()


def test_signals_of_other_critiques_are_refused_in_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--traces", folder / "again.parquet", "--rewards", folder / "again.rewards.parquet"]
    train = ["train-stage2", "--config", folder / "recipe.toml", "--model", folder / "critic", *files]
    assert run_command([str(a) for a in (*train, "--signals", folder / "signals.parquet", "--out", folder / "x")]) == 2
    assert "was made from other traces" in capsys.readouterr().err


def test_a_pass_without_its_recipe_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", folder / "critic", "--problems", folder / "problems.parquet", "--out", folder / "x.parquet"]
    assert run_command([str(a) for a in ("sample", *model, *CRITIQUE, FROM, folder / "solves.parquet")]) == 2
    assert "is a pass of a [script] that begins with critique" in capsys.readouterr().err
