"""Scripts of turns: who speaks after whom, what is said between, how claims are read and graded."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from score_cli.config import SampleConfig, VerifyConfig
from score_cli.errors import UserError
from score_cli.evaluation.evaluate import metric_rows
from score_cli.evaluation.layout import metric_tables
from score_cli.evaluation.measured import measure_traces
from score_cli.metrics import clustered_mean, measure_dialogues, solves_of
from score_cli.recipe import Recipe, read_recipe
from score_cli.sampling.renderer import Renderer
from score_cli.sampling.sampler import Sampler
from score_cli.sampling.transformers_engine import TransformersEngine
from score_cli.stages.sample import merge, sample
from score_cli.tables.checkpoints import Policy, load_policy
from score_cli.tables.records import Problem, Trace
from score_cli.tables.traces import read_traces
from score_cli.tasks.script import Script, fill, read_script
from score_cli.verification.grader import Grader
from tests.conftest import rewrite
from tests.scripts import S2R, S2R_TOML, dialogue, script, scripted_policy, write_scripted
from tests.test_chat_templates import CASES, Case, byte_tokenizer, conversation, special_ids

PROBLEMS = [
    Problem(problem_id=f"p{a}", task="division", question=f"Divide {a} by 7. ", answer=str(a // 7), source="test")
    for a in range(100, 112)
]
# Words that a random model does say.
LOOSE = script(verify={"ask": "<verify>", "claim": "by|remainder"})
CONFIG = SampleConfig(samples=4, max_tokens=6, threads=1, seed=3, iteration=0)


def play(follows: Script, *said: str | None) -> list[str]:
    """The roles of a dialogue whose turns say these things; None was cut off."""
    roles = [follows.turns[0]]
    while (role := follows.next_role(roles, lambda: said[len(roles) - 1])) is not None:
        roles.append(role)
    return roles


def test_turns_repeat_until_the_solves_are_used_up_and_the_last_of_them_is_judged() -> None:
    endless = script(ends_when="never", most_solves=3)
    assert play(endless, *["x"] * 9) == ["solve", "verify"] * 3
    assert endless.longest == 6 and endless.roles == ["solve", "verify"] * 3
    assert play(script(ends_when="never", most_turns=3), *["x"] * 9) == ["solve", "verify", "solve"]


@pytest.mark.parametrize(
    ("claim", "turns"), [("right", 2), ("wrong", 4), ("no idea", 2), (None, 2), ("wrong, so right", 2)]
)
def test_a_dialogue_goes_on_after_the_claim_that_the_solve_is_wrong_and_after_no_other(
    claim: str | None, turns: int
) -> None:
    assert len(play(script(), "42", claim, "43", "wrong")) == turns


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is correct", "correct"),
        ("the answer is Incorrect.", "incorrect"),
        ("It seemed correct; it is incorrect", "incorrect"),
        ("incorrect at first, now CORRECT!", "correct"),
        ("incorrectly copied", None),
        ("cannot be verified", None),
        ("", None),
    ],
)
def test_the_last_claim_that_stands_as_a_word_of_its_own_is_read(text: str, found: str | None) -> None:
    judge = script(verify={"ask": "?", "claim": "correct|incorrect"})
    assert judge.read_claim("verify", text) == found
    assert judge.read_claim("solve", text) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"most_solves": None}, "can never end: its turns .solve, verify. repeat, and nothing bounds them"),
        ({"turns": ["verify"]}, "can never end.*most_solves counts solves, and there are none"),
        ({"turns": ["solve", "verify", "reflect"]}, "has reflect turns and no words that ask for them"),
        ({"verify": {"ask": " ", "claim": "right|wrong"}}, "has verify turns and no words"),
        ({"verify": {"ask": "<verify>"}, "ends_when": "never"}, "nothing says how their claim is read"),
        ({"verify": {"ask": "<verify>"}}, "none of its turns .solve, verify. makes a claim"),
        ({"verify": {"ask": "?", "claim": "right"}}, "claim is 'right', which could not be read"),
        ({"verify": {"ask": "?", "claim": "right|Right"}}, "could not be read"),
        ({"turns": ["verify", "solve"]}, "begins with verify, and there is nothing yet to speak of"),
        ({"turns": ["solve", "judge"]}, "turns holds judge: expected one of solve, verify, critique, reflect"),
        ({"turns": []}, "expected a list of solve"),
        ({"most_solves": 0}, "most_solves is 0, expected a whole number from 1"),
        ({"most_solves": 100}, "can have 200 turns, expected at most 127"),
        ({"ends_when": "answer correct"}, "ends_when is 'answer correct', expected one of never, verdict correct"),
        ({"most_turn": 3}, "no key most_turn: did you mean most_turns"),
        ({"critique": {"ask": "?"}}, "turns holds no critique"),
        ({"solve": {"claim": "right|wrong"}}, "only verify and critique turns judge"),
        ({"verify": "<verify>"}, r"write \[script.verify\]"),
        ({"verify": {"ask": "of {critique}?", "claim": "right|wrong"}}, "speaks of {critique}, and turns holds no"),
    ],
)
def test_a_script_that_cannot_be_followed_is_one_line(changes: dict[str, Any], message: str) -> None:
    table = {key: value for key, value in (S2R | changes).items() if value is not None}
    with pytest.raises(UserError, match=message) as error:
        read_script(table)
    assert "\n" not in str(error.value)


def test_recipes_hand_scripts_down_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "parent.toml").write_text(S2R_TOML)
    (tmp_path / "child.toml").write_text(
        'extends = "parent.toml"\n[script]\nmost_solves = 3\n[script.verify]\nask = "?"'
    )
    recipe = read_recipe(tmp_path / "child.toml")
    found = recipe.settings("sample", SampleConfig)
    assert found.script == script(most_solves=3, verify={"ask": "?", "claim": "right|wrong"})
    assert found.attempts == 6
    recipe.change(["script.most_solves=1", "script.verify.ask=why"])
    assert recipe.settings("verify", VerifyConfig).script == script(
        most_solves=1, verify={"ask": "why", "claim": "right|wrong"}
    )
    (tmp_path / "again.toml").write_text(recipe.as_toml())
    again = read_recipe(tmp_path / "again.toml")
    assert again.settings("sample", SampleConfig) == recipe.settings("sample", SampleConfig)
    with pytest.raises(UserError, match=r"sample.attempts is 3, and \[script\] says what the turns are"):
        recipe.settings("sample", SampleConfig, attempts=3)
    assert Recipe({}).settings("sample", SampleConfig).script is None


# Sampling.


def sampled(policy: Policy, follows: Script | None, config: SampleConfig = CONFIG) -> list[Trace]:
    return Sampler(replace(config, script=follows), policy).sample(PROBLEMS)


def retold(policy: Policy, trace: Trace, follows: Script) -> tuple[list[int], list[int]]:
    """Tokens and owners of a trace, told again from the script, the texts and the tokenizer alone."""

    def encode(text: str) -> list[int]:
        return list(policy.tokenizer.encode(text, add_special_tokens=False))

    problem = next(p for p in PROBLEMS if p.problem_id == trace.problem_id)
    words = {"solve": "<fix>", **follows.asks}
    tokens, owners = encode(problem.question), [0] * len(encode(problem.question))
    for turn, role in enumerate(trace.turn_roles):
        said = trace.token_ids[trace.attempt_ids == turn + 1].tolist()
        if turn:
            cut = trace.finish_reasons[turn - 1] == "length"
            newest = {r: trace.attempts[t] for t, r in enumerate(trace.turn_roles[:turn])}
            context = encode("<eos>") * cut + encode(fill(words[role], newest))
            tokens, owners = tokens + context, owners + [0] * len(context)
        tokens, owners = tokens + said, owners + [turn + 1] * len(said)
    return tokens, owners


@pytest.mark.parametrize("follows", [script(), LOOSE, script(most_solves=3, ends_when="never")])
def test_sampled_dialogues_follow_their_script_token_by_token(follows: Script) -> None:
    policy = scripted_policy(follows)
    traces = sampled(policy, follows)
    for trace in traces:
        said = [
            text if reason == "stop" else None
            for text, reason in zip(trace.attempts, trace.finish_reasons, strict=True)
        ]
        assert play(follows, *said) == trace.roles
        tokens, owners = retold(policy, trace, follows)
        assert trace.token_ids.tolist() == tokens and trace.attempt_ids.tolist() == owners
        with torch.no_grad():
            scores = policy.model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
        for place, owner in enumerate(owners):
            expected = scores[place - 1, tokens[place]].item() if owner else 0.0
            assert trace.logprobs[place] == pytest.approx(expected, abs=1e-5)
    if follows is LOOSE:
        assert {len(trace.attempts) for trace in traces} == {2, 4}, "dialogues of both lengths, or this shows nothing"


def test_batch_size_and_neighbours_do_not_change_a_dialogue() -> None:
    policy = scripted_policy(LOOSE)
    whole = sampled(policy, LOOSE)
    alone = sampled(policy, LOOSE, replace(CONFIG, batch_size=3))
    assert [trace.token_ids.tolist() for trace in whole] == [trace.token_ids.tolist() for trace in alone]


def test_a_script_of_nothing_but_solves_is_attempts_in_other_words(tmp_path: Path, problems: Path) -> None:
    follows = read_script({"turns": ["solve"], "most_solves": 3})
    policy = write_scripted(tmp_path / "ckpt", follows)
    for name, config in (("said", replace(CONFIG, attempts=3)), ("scripted", replace(CONFIG, script=follows))):
        sample(config, policy=load_policy(policy), problems=problems, out=tmp_path / f"{name}.parquet")
    assert (tmp_path / "said.parquet").read_bytes() == (tmp_path / "scripted.parquet").read_bytes()


def test_words_of_a_solves_own_take_the_place_of_the_correction() -> None:
    follows = read_script({"turns": ["solve"], "most_solves": 2, "solve": {"ask": "<check>"}})
    policy = scripted_policy(follows)
    for trace in sampled(policy, follows):
        assert trace.roles is None
        assert trace.token_ids.tolist() == retold(policy, trace, follows)[0]


def test_a_turns_words_may_hold_the_newest_solve() -> None:
    follows = script(verify={"ask": "<verify>{solve}<verify>", "claim": "right|wrong"}, ends_when="never")
    policy = scripted_policy(follows)
    context = replace(CONFIG, max_tokens=4)
    traces = sampled(policy, follows, context)
    plain = [trace for trace in traces if "<" not in "".join(trace.attempts)]
    assert len(plain) >= 4
    for trace in plain:
        assert trace.token_ids.tolist() == retold(policy, trace, follows)[0]
    for trace in traces:
        # Padding and ends of turns are what the model alone may write; the user never repeats them.
        ends = sum(reason == "length" for reason in trace.finish_reasons[:-1])
        said = trace.token_ids[trace.attempt_ids == 0].tolist()
        assert said.count(policy.tokenizer.pad_token_id) == 0 and said.count(policy.tokenizer.eos_token_id) == ends
        assert len(trace.token_ids) <= policy.model.config.n_positions


def test_a_filled_in_text_takes_no_more_room_than_a_turn() -> None:
    follows = script(verify={"ask": "{solve}", "claim": "right|wrong"})
    renderer = Renderer(scripted_policy(follows), replace(CONFIG, script=follows))
    bridge = renderer.task("division").bridge_with("{solve}", {"solve": "123456789"}, 4)
    assert bridge.rest == list(scripted_policy(follows).tokenizer.encode("1234", add_special_tokens=False))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("spelled", ["<|eos|>", "<|eot|>", "<|im_end|>", "a<end_of_turn>b", "<s>", "plain"])
def test_what_the_model_wrote_never_becomes_a_control_token_in_the_users_words(case: Case, spelled: str) -> None:
    tokenizer = byte_tokenizer(case)
    tokens = conversation(tokenizer, case.stops)
    bridge = tokens.bridge_with("Judge {solve} now", {"solve": spelled}, 200).after("length")
    assert special_ids(tokenizer, bridge) == special_ids(tokenizer, tokens.bridge.after("length"))
    assert f"Judge {spelled} now" in tokenizer.decode(bridge, skip_special_tokens=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_filled_in_bridge_is_what_the_template_writes(case: Case) -> None:
    tokens = conversation(byte_tokenizer(case), case.stops)
    assert tokens.bridge_with("{solve}", {"solve": "FIX"}, 50) == tokens.bridge


def test_the_context_holds_the_longest_dialogue_and_no_more_is_asked_for() -> None:
    follows = script(most_solves=3, ends_when="never")
    policy = scripted_policy(follows)
    job = Sampler(SampleConfig(script=follows, threads=1), policy).plan(PROBLEMS)
    context = job.renderer.context
    # Prompt, six turns, and between them five ends of turn with a word each.
    longest = max(map(len, job.prompts)) + 6 * job.config.max_tokens + 5 * 2
    assert longest <= context < longest + 6
    with pytest.raises(UserError, match=r"can reach \d+ tokens, the model's context is"):
        Sampler(SampleConfig(script=follows, threads=1, max_tokens=job.config.max_tokens + 1), policy).plan(PROBLEMS)


@pytest.fixture
def folder(tmp_path: Path, problems: Path) -> Path:
    write_scripted(tmp_path / "ckpt", LOOSE)
    return tmp_path


def test_shards_of_dialogues_are_the_whole(folder: Path) -> None:
    policy, problems = load_policy(folder / "ckpt"), folder / "problems.parquet"
    config = replace(CONFIG, chunk_problems=3, script=LOOSE)
    sample(config, policy=policy, problems=problems, out=folder / "whole.parquet")
    shards = [folder / f"{part}.parquet" for part in (1, 2)]
    for part, out in enumerate(shards, start=1):
        sample(replace(config, shard=f"{part}/2"), policy=policy, problems=problems, out=out)
    merge(shards, out=folder / "merged.parquet")
    assert (folder / "merged.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()
    assert {len(trace.attempts) for trace in read_traces(folder / "whole.parquet")} == {2, 4}


def test_a_dialogue_goes_on_from_a_given_first_solve(folder: Path) -> None:
    policy, problems = load_policy(folder / "ckpt"), folder / "problems.parquet"
    sample(replace(CONFIG, seed=9, attempts=1), policy=policy, problems=problems, out=folder / "given.parquet")
    sample(
        replace(CONFIG, script=LOOSE),
        policy=policy,
        problems=problems,
        first_attempts=folder / "given.parquet",
        out=folder / "traces.parquet",
    )
    given = read_traces(folder / "given.parquet")
    for trace, first in zip(read_traces(folder / "traces.parquet"), given, strict=True):
        assert trace.attempts[0] == first.attempts[0] and trace.offline_attempts == 1
        assert trace.roles == ["solve", "verify"] * (len(trace.attempts) // 2)


def test_roles_that_do_not_fit_the_attempts_are_refused(folder: Path) -> None:
    out = folder / "traces.parquet"
    sample(
        replace(CONFIG, script=LOOSE),
        policy=load_policy(folder / "ckpt"),
        problems=folder / "problems.parquet",
        out=out,
    )
    rewrite(out, lambda row: row.update(roles=["solve"]))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="row 0: roles solve of . attempts, expected one of solve, verify"):
        read_traces(out)


# Grading.


def judged(traces: Sequence[Trace], follows: Script | None = None) -> list[list[str]]:
    problems = {"p": Problem(problem_id="p", task="division", question="q", answer="42", source="test")}
    with Grader(VerifyConfig(script=follows or script(ends_when="never", most_solves=3))) as grader:
        return [verdict.verdicts for verdict in grader.grade(traces, problems)]


def answer(number: int) -> str:
    return f"\\boxed{{{number}}}: product 42, remainder +00"


def trace_of(*turns: tuple[str, str], finish: dict[int, str] | None = None) -> Trace:
    return dialogue(*((role, text, "") for role, text in turns), finish=finish)[0]


@pytest.mark.parametrize(
    ("number", "claim", "verdict"),
    [
        *((42, "right", "correct"), (42, "wrong", "incorrect"), (41, "right", "incorrect"), (41, "wrong", "correct")),
        *((42, "dunno", "no_answer"), (41, "dunno", "no_answer"), (42, "", "no_answer")),
    ],
)
def test_a_claim_is_correct_where_it_tells_what_the_solve_is(number: int, claim: str, verdict: str) -> None:
    [verdicts] = judged([trace_of(("solve", answer(number)), ("verify", claim))])
    assert verdicts == ["correct" if number == 42 else "incorrect", verdict]


def test_a_claim_is_of_the_newest_solve_and_one_that_was_cut_off_is_truncated() -> None:
    turns = [
        ("solve", answer(41)),
        ("verify", "wrong"),
        ("solve", answer(42)),
        ("verify", "right"),
        ("verify", "wrong"),
    ]
    assert judged([trace_of(*turns)]) == [["incorrect", "correct", "correct", "correct", "incorrect"]]
    cut = trace_of(("solve", answer(42)), ("verify", "right"), finish={1: "length"})
    assert judged([cut]) == [["correct", "truncated"]]


def test_a_truncated_or_answerless_solve_is_wrong_and_a_claim_may_say_so() -> None:
    cut = trace_of(("solve", answer(42)), ("verify", "wrong"), finish={0: "length"})
    empty = trace_of(("solve", "hm"), ("verify", "right"))
    assert judged([cut, empty]) == [["truncated", "correct"], ["no_answer", "incorrect"]]


def test_a_claim_on_an_unscored_solve_is_unscored_and_a_turn_without_claim_is_ungraded(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def grade(problem, response):\n    raise ValueError\n")
    problems = {"p": PROBLEMS[0]}
    follows = script(turns=["solve", "reflect", "verify"], ends_when="never", reflect={"ask": "think"})
    config = VerifyConfig(script=follows, grader=f"{tmp_path}/own.py:grade", workers=1, unscored_limit=1.0)
    with Grader(config) as grader:
        [verdict] = grader.grade([trace_of(("solve", answer(42)), ("reflect", "so"), ("verify", "right"))], problems)
    assert verdict.verdicts == ["unscored", "ungraded", "unscored"] and verdict.rewards == [None] * 3


def test_dialogues_without_a_script_are_refused_in_one_line() -> None:
    trace = trace_of(("solve", answer(1)), ("verify", "right"))
    expected = "has turns of verify, and nothing says how their claims are read.*--config"
    with Grader(VerifyConfig()) as grader, pytest.raises(UserError, match=expected):
        grader.grade([trace], {"p": PROBLEMS[0]})


# Measures.


def test_the_measures_of_dialogues_by_hand() -> None:
    pairs = [
        # right, called right; wrong, found, mended, called right; wrong, missed; right, called wrong, broken, unread.
        dialogue(("solve", "a", "correct"), ("verify", "right", "correct"), problem="p", index=0),
        dialogue(
            *(("solve", "b", "incorrect"), ("verify", "wrong", "correct")),
            *(("solve", "c", "correct"), ("verify", "right", "correct")),
            problem="p",
            index=1,
        ),
        dialogue(("solve", "b", "incorrect"), ("verify", "right", "incorrect"), problem="q", index=0),
        dialogue(
            *(("solve", "a", "correct"), ("verify", "wrong", "incorrect")),
            *(("solve", "d", "incorrect"), ("verify", "hm", "no_answer")),
            problem="q",
            index=1,
        ),
        dialogue(("solve", "e", "unscored"), ("verify", "right", "unscored"), problem="r", index=0),
    ]
    found = {
        name: clustered_mean([value for _, value in values], [problem for problem, _ in values])
        for name, values in measure_dialogues(*zip(*pairs, strict=True)).items()  # type: ignore[arg-type]
    }
    assert {name: (estimate.value, estimate.count) for name, estimate in found.items()} == {
        "verify_acc": (3 / 6, 6),
        "unreadable": (1 / 6, 6),
        "error_recall": (1 / 3, 3),
        "correct_precision": (2 / 3, 3),
        "acc@final": (2 / 4, 4),
        "delta@final": (0.0, 4),
        "i_to_c@final": (1 / 4, 4),
        "c_to_i@final": (1 / 4, 4),
        "mean_trials": (7 / 5, 5),
    }


def test_trials_are_counted_by_level_where_problems_have_levels() -> None:
    """Level 1: dialogues of one and of two solves; level 2: one of two, that nobody could score."""
    once, again = ("solve", "a", "correct"), ("solve", "b", "unscored")
    judged = ("verify", "wrong", "ungraded")
    pairs = [
        dialogue(once, problem="p"),
        dialogue(once, judged, once, problem="p", index=1),
        dialogue(again, judged, again, problem="q"),
    ]
    problems = [
        Problem(problem_id=name, task="math", question="", answer="1", level=level, source="by hand")
        for name, level in (("p", "1"), ("q", "2"))
    ]
    rows = metric_rows(measure_traces(*zip(*pairs, strict=True)), policy="s2r", decoding="sampled", problems=problems)
    trials = {row["name"]: (row["value"], row["count"]) for row in rows if row["name"].startswith("mean_trials")}
    assert trials == {"mean_trials": (5 / 3, 3), "mean_trials|level=1": (1.5, 2), "mean_trials|level=2": (2.0, 1)}
    (table,) = [table for table in metric_tables(rows, 2) if "by level" in table.caption]
    assert table.titles[2:] == ["level 1", "level 2"]
    assert table.lines == [["s2r", "sampled", "1.50 of 2", "2.00 of 1"]]


def test_solves_are_counted_anew_and_keep_their_tokens() -> None:
    trace, verdict = dialogue(
        *(("solve", "a", "incorrect"), ("verify", "wrong", "correct"), ("solve", "b", "correct")), index=3
    )
    kept, judged = solves_of(replace(trace, offline_attempts=2), verdict)
    assert kept.attempts == ["a", "b"] and judged.verdicts == ["incorrect", "correct"] and kept.roles is None
    assert kept.attempt_ids.tolist() == [0, 1, 0, 2] and kept.offline_attempts == 1
    assert np.array_equal(kept.token_ids, trace.token_ids)


def test_traces_of_solves_alone_have_no_measures_of_dialogues() -> None:
    trace, verdict = dialogue(("solve", "a", "correct"))
    assert measure_dialogues([replace(trace, roles=None)], [verdict]) == {}


def test_the_engine_never_sees_the_gold_answer() -> None:
    """Other answers in the problems, the same dialogues to the bit."""
    policy = scripted_policy(LOOSE)
    sampler = Sampler(replace(CONFIG, script=LOOSE), policy)
    sampler._engine = TransformersEngine(policy.model, batch_size=64)
    other = [replace(problem, answer="0") for problem in PROBLEMS]
    assert [t.token_ids.tolist() for t in sampler.sample(PROBLEMS)] == [
        t.token_ids.tolist() for t in sampler.sample(other)
    ]
