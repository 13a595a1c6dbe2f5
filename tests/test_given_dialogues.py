"""Given dialogues: the tokens they become, which of them are learned, and what is refused."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config

from score_cli.cli import run_command
from score_cli.config import DialoguesConfig, SampleConfig, SftConfig
from score_cli.errors import UserError
from score_cli.sampling.given_dialogues import render_dialogues
from score_cli.sampling.sampler import Sampler
from score_cli.tables.checkpoints import Policy, TrainerState, load_policy
from score_cli.tables.provenance import file_sha256
from score_cli.tables.records import Problem, Trace
from score_cli.tasks import division
from score_cli.tasks.authors import author_dialogues
from score_cli.tasks.dialogues import GivenDialogue, Said, read_dialogues, write_dialogues
from score_cli.tasks.loss_mask import learned_turns
from score_cli.tasks.script import Script, read_script
from score_cli.training.sft import learned_trace, make_given_examples, sft_forward_backward
from tests.scripts import S2R, S2R_TOML, script, scripted_policy, write_scripted
from tests.test_chat_templates import CASES, Case, byte_tokenizer

MASK = "verify,last-solve"
QUESTION = "Divide 264 by 5. "
WRONG, RIGHT = "\\boxed{53}: product 265, remainder -01", "\\boxed{52}: product 260, remainder +04"
TURNS = [("solve", WRONG), ("verify", "wrong"), ("solve", RIGHT), ("verify", "right")]
# The tokens of that dialogue, spelled out by hand: who is 0 is the user.
BY_HAND = [
    *((0, word) for word in ["Divide ", "2", "6", "4", " by ", "5", ". "]),
    *(
        (1, word)
        for word in ["\\boxed{", "5", "3", "}: product ", "2", "6", "5", ", remainder ", "-", "0", "1", "<eos>"]
    ),
    (0, "<verify>"),
    *((2, word) for word in ["wrong", "<eos>"]),
    (0, "<fix>"),
    *(
        (3, word)
        for word in ["\\boxed{", "5", "2", "}: product ", "2", "6", "0", ", remainder ", "+", "0", "4", "<eos>"]
    ),
    (0, "<verify>"),
    *((4, word) for word in ["right", "<eos>"]),
]


def given(*turns: tuple[str, str], question: str = QUESTION, task: str = "division") -> GivenDialogue:
    problem = Problem(problem_id="p", task=task, question=question, source="test")
    return GivenDialogue(problem, [Said(*turn) for turn in turns], "d.jsonl line 1")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return scripted_policy(script())


def render(policy: Policy, *dialogues: GivenDialogue, follows: Script | None = None, **settings: object) -> list[Trace]:
    chosen = {"max_tokens": 14, "threads": 1, "script": follows or script()} | settings
    return render_dialogues(dialogues, policy, SampleConfig(**chosen))  # type: ignore[arg-type]


def test_a_dialogues_tokens_and_owners_are_those_spelled_out_by_hand(policy: Policy) -> None:
    (trace,) = render(policy, given(*TURNS))
    assert trace.token_ids.tolist() == policy.tokenizer.convert_tokens_to_ids([word for _, word in BY_HAND])
    assert trace.attempt_ids.tolist() == [turn for turn, _ in BY_HAND]
    assert trace.roles == [role for role, _ in TURNS] and trace.attempts == [text for _, text in TURNS]


def test_a_dialogue_that_stops_early_ends_with_its_last_token(policy: Policy) -> None:
    (trace,) = render(policy, given(*TURNS[:2]))
    assert trace.attempt_ids.tolist() == [turn for turn, _ in BY_HAND][:22]


QUOTING = script(verify={"ask": "{solve}<verify>", "claim": "right|wrong"}, most_solves=1)
DRAWN = read_script({"turns": ["solve"], "most_solves": 3, "solve": {"ask": ["<fix>", "<check>"]}})


@pytest.mark.parametrize("follows", [script(), QUOTING, DRAWN], ids=["s2r", "quotes the solve", "words drawn"])
def test_a_dialogue_has_the_tokens_of_a_policy_that_samples_it(follows: Script) -> None:
    """The tokens go one by one into the rollout of a sampling job, as an engine puts them there."""
    policy = scripted_policy(follows)
    problems = division.split_problems("train")[:20]
    rows = list(author_dialogues(problems, DialoguesConfig(size=20, script=follows)))
    config = SampleConfig(samples=20, max_tokens=14, threads=1, script=follows, iteration=0)
    job = Sampler(config, policy).plan([row.problem for row in rows])
    given_traces = render_dialogues(rows, policy, config)
    for index, (row, prompt, trace) in enumerate(zip(rows, job.prompts, given_traces, strict=True)):
        rollout = job.renderer.rollout(row.problem, prompt, index, job.config)
        for turn in row.turns:
            for token in [*policy.tokenizer.encode(turn.text), policy.tokenizer.eos_token_id]:
                rollout.append(token, -1.0)
        sampled = job.renderer.trace(rollout, row.problem)
        assert trace.token_ids.tolist() == sampled.token_ids.tolist()
        assert trace.attempt_ids.tolist() == sampled.attempt_ids.tolist()
        assert (trace.roles, trace.attempts) == (sampled.roles, sampled.attempts)
        assert trace.offline_attempts == len(row.turns) and not trace.logprobs.any()


def test_words_of_a_list_are_drawn_by_the_turns_seed_and_all_of_them_are() -> None:
    policy = scripted_policy(DRAWN)
    rows = [given(*[("solve", WRONG)] * 3)] * 40
    fix, check = policy.tokenizer.convert_tokens_to_ids(["<fix>", "<check>"])
    said = [
        [t for t, owner in zip(r.token_ids, r.attempt_ids, strict=True) if not owner][7:]
        for r in render(policy, *rows, follows=DRAWN)
    ]
    for index, words in enumerate(said):
        digests = [hashlib.sha256(json.dumps([0, 0, "p", index, turn]).encode()).digest() for turn in (2, 3)]
        draws = [int(hashlib.sha256(b"ask" + digest).hexdigest(), 16) % 2 for digest in digests]
        assert words == [(fix, check)[draw] for draw in draws]
    counts = Counter(word for words in said for word in words)
    # Of 80 draws of one half, five standard deviations are 22.
    assert all(abs(counts[word] - 40) < 22 for word in (fix, check))


CHAT = [case for case in CASES if not case.thinking]


@pytest.mark.parametrize("case", CHAT, ids=lambda case: case.name)
def test_any_chat_template_is_rendered_as_sampling_renders_it(case: Case) -> None:
    """The reference is the template's text, written by hand in the case: attempt, end of turn, request, opening."""
    tokenizer = byte_tokenizer(case)
    ids = [tokenizer.convert_tokens_to_ids(stop) for stop in case.stops]
    model = SimpleNamespace(config=GPT2Config(n_positions=4096, eos_token_id=ids), generation_config=None)
    policy = Policy(model, tokenizer, TrainerState(fingerprint="x"), "chat")  # type: ignore[arg-type]
    follows = read_script(S2R | {"solve": {"ask": "FIX"}, "verify": {"ask": "FIX", "claim": "right|wrong"}})
    config = SampleConfig(script=follows, threads=1, max_tokens=99)
    dialogue = given(("solve", "é 1"), ("verify", "it is wrong"), ("solve", "2"), task="math")
    (trace,) = render_dialogues([dialogue], policy, config)
    start = int(np.argmax(trace.attempt_ids == 1))
    prompt = Sampler(config, policy).plan([dialogue.problem]).prompts[0]
    assert trace.token_ids[:start].tolist() == prompt
    rest = f"{case.end}{case.rest}"
    text = f"é 1{rest}it is wrong{rest}2{case.end}"
    assert trace.token_ids[start:].tolist() == tokenizer.encode(text, add_special_tokens=False)
    learned = [tokenizer.decode(trace.token_ids[trace.attempt_ids == turn]) for turn in (1, 2, 3)]
    assert learned == [f"é 1{case.end}", f"it is wrong{case.end}", f"2{case.end}"]


# Masks.

ROLES = ["solve", "verify", "solve", "verify", "solve"]


@pytest.mark.parametrize(
    ("loss_on", "turns"),
    [
        ("all", [1, 2, 3, 4, 5]),
        ("verify,last-solve", [2, 4, 5]),
        ("solve", [1, 3, 5]),
        ("first-solve, last-verify", [1, 4]),
        ("critique", []),
        ("last-solve,solve", [1, 3, 5]),
    ],
)
def test_turns_are_named_by_role_and_place(loss_on: str, turns: list[int]) -> None:
    assert learned_turns(loss_on, ROLES) == turns


def test_second_and_both_are_of_two_solves() -> None:
    assert learned_turns("second", ["solve"] * 2) == [2] and learned_turns("both", ["solve"] * 2) == [1, 2]
    with pytest.raises(UserError, match="loss_on second is for two solves, and a dialogue is solve, verify"):
        learned_turns("second", ["solve", "verify"])
    with pytest.raises(UserError, match="'last-sovle' names no turns: did you mean last-solve"):
        SftConfig(loss_on="verify,last-sovle")


def test_of_s2rs_mask_verdicts_and_the_last_solve_are_learned_with_their_ends(policy: Policy) -> None:
    config = SftConfig(loss_on=MASK, threads=1)
    (example,) = make_given_examples(config, policy, render(policy, given(*TURNS)))
    row = learned_trace(example, MASK)
    assert row.attempt_ids.tolist() == [turn if turn in (2, 3, 4) else 0 for turn, _ in BY_HAND]
    with pytest.raises(UserError, match="loss_on is 'critique', and no dialogue has such a turn"):
        make_given_examples(replace(config, loss_on="critique"), policy, render(policy, given(*TURNS)))


@pytest.mark.parametrize("budget", [1, 4096])
def test_the_loss_is_torchs_cross_entropy_over_the_marked_tokens(policy: Policy, budget: int) -> None:
    """Dialogues of one, two and four turns in one batch; labels are written by hand for each."""
    marked = [
        {1},
        {1, 2},
        {2, 3, 4},
    ]  # a solve alone is the last; of two turns both are learned; the first of two is not
    rows = render(policy, given(*TURNS[:1]), given(*TURNS[:2]), given(*TURNS))
    config = SftConfig(loss_on=MASK, micro_batch_tokens=budget, threads=1)
    policy.model.zero_grad()
    batch = [learned_trace(example, MASK) for example in make_given_examples(config, policy, rows)]
    loss = sft_forward_backward(policy.model, batch, config)
    ours = [p.grad.clone() for p in policy.model.parameters() if p.grad is not None]
    policy.model.zero_grad()
    total, count = torch.zeros(()), 0
    for length, owners in zip((19, 22, len(BY_HAND)), marked, strict=True):
        words = BY_HAND[:length]
        tokens = torch.tensor(policy.tokenizer.convert_tokens_to_ids([word for _, word in words]))
        labels = torch.where(torch.tensor([owner in owners for owner, _ in words]), tokens, -100)
        logits = policy.model(input_ids=tokens[None]).logits[0, :-1]
        total = total + cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
        count += int((labels != -100).sum())
    assert count == 12 + 14 + 16
    (total / count).backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx((total / count).item(), rel=1e-5)
    theirs = [p.grad for p in policy.model.parameters() if p.grad is not None]
    assert len(ours) == len(theirs) and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))
    policy.model.zero_grad()


# What is refused.


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([("verify", "wrong")], "line 1, turn 1 is a verify turn, and there the recipe has a solve turn"),
        ([("solve", WRONG), ("critique", "x")], "turn 2 is a critique turn, and there the recipe has a verify turn"),
        (
            [("solve", WRONG), ("verify", "right"), ("solve", RIGHT)],
            r"turn 3 is a solve turn, and \[script\] ends the dialogue after turn 2",
        ),
        ([*TURNS[:3], ("verify", "wrong"), ("solve", RIGHT)], "ends the dialogue after turn 4"),
        ([("solve", "\\boxed{5<eos>}")], "turn 1: its text spells <eos>, which ends a turn"),
        (
            [("solve", "fifty")],
            "turn 1: its text 'fifty' holds characters that the tokenizer has no tokens for: mend the row, leave it",
        ),
        ([("solve", WRONG + "0000")], "turn 1 has 16 tokens, its end with them, and an attempt may have 14"),
    ],
)
def test_a_dialogue_that_the_script_cannot_produce_is_refused(
    policy: Policy, turns: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        render(policy, given(*turns))


def test_without_a_script_attempts_bound_the_turns(policy: Policy) -> None:
    with pytest.raises(UserError, match="turn 3 is a solve turn, and attempts is 2"):
        render_dialogues([given(*[("solve", WRONG)] * 3)], policy, SampleConfig(threads=1, max_tokens=14))


GOOD = {"question": QUESTION, "task": "division", "turns": [{"role": "solve", "text": WRONG}]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": QUESTION}, "line 2 lacks turns: expected a dialogue, which has question, turns"),
        (GOOD | {"turns": []}, r"line 2: turns holds \[\], expected a list of turns with role and text"),
        (GOOD | {"turns": "solve"}, "line 2: turns holds 'solve', expected a list"),
        (GOOD | {"turns": [{"role": "solve"}]}, "line 2, turn 1 is .* expected an object of role and text alone"),
        (GOOD | {"turns": [{"role": "sovle", "text": "x"}]}, "line 2, turn 1 has role 'sovle', expected one of solve"),
        (GOOD | {"turns": [{"role": "solve", "text": " "}]}, "line 2, turn 1 has no text"),
        (GOOD | {"turns": [{"role": "solve", "text": None}]}, "line 2, turn 1 holds NoneType, expected text"),
        (GOOD | {"question": " "}, "line 2: question is empty"),
    ],
)
def test_a_bad_row_is_named_by_its_number(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        read_dialogues(path)


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no file: name the dialogues to learn from"):
        read_dialogues(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no rows, expected a dialogue in each"):
        read_dialogues(tmp_path / "empty.jsonl")


# The built-in task's author, and the commands.


def test_the_author_follows_the_script_and_judges_truly_in_two_of_three(policy: Policy) -> None:
    problems = division.split_problems("train")
    dialogues = list(author_dialogues(problems, DialoguesConfig(size=500, seed=1, script=script())))
    render(policy, *dialogues)  # refuses what the script could not produce
    assert len({dialogue.problem.problem_id for dialogue in dialogues}) == 500
    truths, firsts = [], []
    for dialogue in dialogues:
        dividend, divisor = division.operands(dialogue.problem)
        right = None
        for number, (role, text) in enumerate(dialogue.turns):
            if role == "solve":
                right = text.startswith(f"\\boxed{{{dividend // divisor}}}")
                firsts += [right] if not number else []
            else:
                truths.append((text == "right") == right)
    # Right first in 0.65 of what is not rounded up, which 0.6 of a quarter is.
    assert np.mean(truths) == pytest.approx(0.67, abs=0.08)
    assert 0.45 < np.mean(firsts) < 0.7


def test_dialogues_are_written_as_they_are_read_and_depend_on_their_seed(tmp_path: Path) -> None:
    problems = division.split_problems("train")[:20]
    one, other = (list(author_dialogues(problems, DialoguesConfig(size=30, seed=seed))) for seed in (0, 1))
    write_dialogues(tmp_path / "d.jsonl", one)
    again = read_dialogues(tmp_path / "d.jsonl")
    assert [d.turns for d in again] == [d.turns for d in one] != [d.turns for d in other]
    assert [d.problem.question for d in again] == [d.problem.question for d in one]
    assert all(len(d.turns) == 2 for d in one)
    with pytest.raises(UserError, match="nobody here writes dialogues of task math, only of division"):
        list(author_dialogues([replace(problems[0], task="math")], DialoguesConfig()))


@pytest.fixture
def folder(tmp_path: Path, problems: Path) -> Path:
    write_scripted(tmp_path / "ckpt", script())
    sizes = "[sample]\nmax_tokens = 14\nthreads = 1\n[dialogues]\nsize = 24\n"
    (tmp_path / "r.toml").write_text(
        f'{S2R_TOML}\n{sizes}\n[train-sft]\nthreads = 1\nlearning_rate = 1e-3\nloss_on = "{MASK}"\nbatch_size = 8\n'
    )
    run(tmp_path, "dialogues", "--problems", problems, "--out", tmp_path / "d.jsonl")
    return tmp_path


def run(folder: Path, command: str, *arguments: object) -> None:
    assert run_command([command, "--config", str(folder / "r.toml"), *map(str, arguments)]) == 0


def start(folder: Path, out: str, *arguments: object) -> Path:
    files = ["--model", folder / "ckpt", "--out", folder / out, "--learned", folder / f"{out}.parquet"]
    run(folder, "train-sft", *files, *arguments)
    return folder / out


def test_the_command_learns_from_json_lines_and_from_parquet_alike(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = start(folder, "next", "--examples", folder / "d.jsonl")
    assert "round 1 (given); 24 examples, 3 steps" in capsys.readouterr().err
    pl.read_ndjson(folder / "d.jsonl").write_parquet(folder / "d.parquet")
    again = start(folder, "again", "--examples", folder / "d.parquet")
    assert file_sha256(done / "model.safetensors") == file_sha256(again / "model.safetensors")
    table = pl.read_parquet(folder / "next.parquet")
    for row in table.iter_rows(named=True):
        roles = row["roles"]
        last = max(turn for turn, role in enumerate(roles, start=1) if role == "solve")
        assert row["learned"] == [t for t, role in enumerate(roles, start=1) if role == "verify" or t == last]
    assert set(table["method"]) == {"given"}
    values = dict(pl.read_parquet(done / "trainer" / "metrics.parquet").select("name", "value").rows())
    assert values["loss_after"] < values["loss_before"] and values["examples"] == 24


def test_an_adapter_learns_from_given_dialogues_too(folder: Path) -> None:
    pytest.importorskip("peft")
    done = start(folder, "next", "--examples", folder / "d.jsonl", "--lora-rank", 2, "--lora-targets", "c_fc")
    policy = load_policy(done)
    assert policy.base is not None and policy.base.state.fingerprint == load_policy(folder / "ckpt").state.fingerprint
    values = dict(pl.read_parquet(done / "trainer" / "metrics.parquet").select("name", "value").rows())
    assert values["loss_after"] < values["loss_before"]


def test_examples_take_the_place_of_traces(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--examples", folder / "d.jsonl", "--traces", folder / "t.parquet"]
    assert run_command(["train-sft", *map(str, files)]) == 2
    assert "in place of --traces and --rewards: leave those out" in capsys.readouterr().err
    # Without the recipe's script the second turn of a row is no attempt.
    files = ["--model", folder / "ckpt", "--examples", folder / "d.jsonl", "--out", folder / "x"]
    assert run_command(["train-sft", "--learned", str(folder / "x.parquet"), *map(str, files)]) == 2
    assert "line 1, turn 2 is a verify turn, and without a [script] every turn is a solve" in capsys.readouterr().err
    assert not (folder / "x").exists() and not (folder / "x.parquet").exists()
