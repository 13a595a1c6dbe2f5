"""Prompts and bridges as tokens, for templates with and without ends of turn."""

import pytest

from score_cli.errors import UserError
from score_cli.sampling.renderer import TaskRenderer
from score_cli.tasks.prompts import Prompts
from tests.conftest import small_policy

PROMPTS = Prompts(first="{question}", correction="<fix>")


def conversation(template: str | None, prompts: Prompts = PROMPTS) -> TaskRenderer:
    policy = small_policy()
    policy.tokenizer.chat_template = template
    return TaskRenderer(policy.tokenizer, policy.model, prompts)


def spelled(conversation: TaskRenderer, tokens: list[int]) -> str:
    return str(small_policy().tokenizer.decode(tokens))


def test_the_bridge_is_what_stands_between_an_attempt_and_the_next_prompt() -> None:
    tokens = conversation(small_policy().tokenizer.chat_template)
    assert spelled(tokens, tokens.bridge.after("stop")) == "<fix>"
    assert spelled(tokens, tokens.bridge.after("length")) == "<eos><fix>"


def test_a_template_that_strips_earlier_turns_does_not_change_the_bridge() -> None:
    stripping = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content | trim }}<eos>"
        "{% elif loop.last %}+{{ m.content }}-{% else %}{{ m.content | trim }}{% endif %}{% endfor %}"
    )
    tokens = conversation(stripping)
    assert spelled(tokens, tokens.bridge.after("stop")) == "+<fix>-"


def test_without_a_template_a_truncated_attempt_still_gets_its_end() -> None:
    tokens = conversation(None)
    stopped, cut = tokens.bridge.after("stop"), tokens.bridge.after("length")
    assert cut == [small_policy().tokenizer.eos_token_id, *stopped]


def test_a_template_that_drops_earlier_attempts_is_refused() -> None:
    with pytest.raises(UserError, match="does not repeat an assistant turn"):
        conversation("{{ messages[-1].content }}")


def test_a_system_prompt_stands_before_the_question() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}+{{ m.content }}+{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    tokens = conversation(template, Prompts(first="{question}", correction="<fix>", system="7"))
    assert spelled(tokens, tokens.prompt("5")) == "+7+5"


def test_an_attempts_text_leaves_its_stop_token_out() -> None:
    tokens = conversation(small_policy().tokenizer.chat_template)
    ids = small_policy().tokenizer.encode("\\boxed{53}: product 265<eos>", add_special_tokens=False)
    assert tokens.text(ids) == "\\boxed{53}: product 265"
    assert tokens.text(ids[:-1]) == "\\boxed{53}: product 265"


def test_a_template_that_tells_the_date_does_not_put_the_clock_into_the_prompt() -> None:
    tokens = conversation("{{ strftime_now('%d') }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert spelled(tokens, tokens.prompt("5")) == "265"


def test_a_space_before_the_end_of_turn_does_not_double_it() -> None:
    template = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %} <eos>{% endif %}{% endfor %}"
    tokens = conversation(template)
    assert spelled(tokens, tokens.bridge.after("length")) == "<eos><fix>"
    assert spelled(tokens, tokens.bridge.after("stop")) == "<fix>"


def test_a_broken_template_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be rendered"):
        conversation("{% for m in messages %}")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0].content + 1 }}", "cannot be rendered .can only concatenate str"),
        ("{{ 1 // 0 }}", "cannot be rendered .integer division"),
        (
            "{% if messages[0].role == 'system' %}{{ [].index(5) }}{% endif %}",
            "takes no system prompt .5 is not in list",
        ),
    ],
)
def test_whatever_a_template_raises_is_one_line(template: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        conversation(template, Prompts(first="{question}", correction="<fix>", system="7"))
