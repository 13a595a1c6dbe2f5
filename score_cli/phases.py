"""What a run does, in order: phases of updates, each ending in a policy that is kept. No files here."""

from dataclasses import dataclass

from score_cli.config import DIALOGUE_METHODS, SftConfig, Stage1Config, Stage2Config
from score_cli.errors import UserError
from score_cli.run_config import RunConfig

BASE, START, STAGE1, SFT, STAGE2 = "base", "start", "stage1", "sft", "stage2"
# By this file in it a folder is known to be a run's.
CONFIG_FILE = "config.json"
# What `run.start` says in a file's place: the dialogues are an author's.
AUTHOR = "author"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Updates `first` to `last` (the last not included), counted through the whole run.

    Attributes:
        name: of the policy it ends in.
        attempts: how many attempts its traces have.
        reference: name of the policy that KL terms are measured from.
    """

    name: str
    config: Stage1Config | Stage2Config | SftConfig
    first: int
    last: int
    attempts: int
    reference: str = BASE

    @property
    def stage(self) -> str:
        """What a checkpoint of this phase says it was made by: `stage1`, `stage2` or `sft`."""
        return {Stage1Config: STAGE1, Stage2Config: STAGE2, SftConfig: SFT}[type(self.config)]


def plan_phases(
    run: RunConfig, *, stage1: Stage1Config, stage2: Stage2Config, sft: SftConfig, attempts: int
) -> list[Phase]:
    """The phases of a run, each starting from the policy of the one before, the first from the base.

    After a supervised start KL is measured from the policy that it ended in.

    Args:
        attempts: of the traces that reinforcement learning trains on.
    Raises:
        UserError: supervised rounds are to follow a stage that the run does not have, or Stage I is to be split
            by attempt where there is one.
    """
    updates = {BASE: 1, STAGE1: run.stage1_iterations, STAGE2: run.stage2_iterations}
    if run.sft_rounds and not updates[run.sft_after]:
        raise UserError(
            f"run.sft_after is {run.sft_after}, which has no iterations: give it some, or let the rounds follow base"
        )
    if run.stage1_by_attempt and run.stage1_iterations and attempts < 2:
        raise UserError(
            f"run.stage1_by_attempt splits Stage I from the second attempt on, and sample.attempts is {attempts}: "
            "sample more, or leave it out"
        )
    planned: list[Phase] = []

    def add(name: str, config: Stage1Config | Stage2Config | SftConfig, count: int, attempts: int) -> None:
        if count:
            first = planned[-1].last if planned else 0
            start = START if planned and planned[0].name == START else BASE
            # The paper's second part of Stage I pins to the policy of the first part, not to the base.
            pinned_to = planned[-1].name if config is stage1 and planned and planned[-1].config is stage1 else start
            last = first + count
            planned.append(
                Phase(name=name, config=config, first=first, last=last, attempts=attempts, reference=pinned_to)
            )

    def add_rounds(after: str) -> None:
        if run.sft_after == after:
            add(SFT, sft, run.sft_rounds, attempts if sft.method in DIALOGUE_METHODS else 2)

    if run.start is not None:
        add(START, sft, run.start_rounds, attempts)
    add_rounds(BASE)
    parts = range(2, attempts + 1) if run.stage1_by_attempt else range(attempts, attempts + 1)
    for last_attempt in parts:
        name = STAGE1 if len(parts) == 1 else f"{STAGE1}-t{last_attempt}"
        add(name, stage1, run.stage1_iterations, last_attempt)
    add_rounds(STAGE1)
    add(STAGE2, stage2, run.stage2_iterations, attempts)
    add_rounds(STAGE2)
    return planned
