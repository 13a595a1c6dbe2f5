"""The best policy of a run's last phase, kept beside its last: by validation problems, or else by training.

RUN/best/      the policy, without moments: it is to be used, not to be trained on
RUN/best.json  what it was chosen by, and what every candidate had

Without validation problems the accuracy of the traces trained on decides, as in the paper. Each candidate is then
judged by the updates since the one before it: one batch is noise.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from score_cli.config import EvalConfig
from score_cli.evaluation.evaluate import GREEDY
from score_cli.phases import Phase
from score_cli.run_folder import BEST, RunFolder
from score_cli.sampling.sampler import Sampler
from score_cli.stages.evaluate import eval_samplings
from score_cli.tables.atomic import replacing_file
from score_cli.tables.checkpoints import stored_state
from score_cli.tables.records import Problem
from score_cli.training.trainer import Trainer
from score_cli.verification.grader import Grader

TRAINING = "accuracy of the last attempt on the traces trained on, over the updates since the candidate before"


class Candidate(NamedTuple):
    """What was found of a policy, in words; and its accuracy on the validation problems, where there are some."""

    words: str
    validation: float | None


@dataclass(frozen=True, kw_only=True)
class BestPolicy:
    """Chooses among the policies after every `every` updates of a phase and at its end.

    Attributes:
        phase: the last of the run.
        validation: problems that are neither trained on nor reported; none where the traces trained on decide.
    """

    folder: RunFolder
    phase: Phase
    every: int
    validation: Sequence[Problem]
    sampler: Sampler
    grader: Grader
    config: EvalConfig

    @property
    def measure(self) -> str:
        """What decides, in words."""
        if not self.validation:
            return TRAINING
        return f"accuracy of the last attempt, decoded greedily, on {len(self.validation)} validation problems"

    def consider(self, trainer: Trainer) -> Candidate | None:
        """Measure the policy after an update, if it is a candidate, and keep it if no earlier one was as good.

        To be called once the update's metrics are written, with a sampler that holds the policy.

        Returns:
            What was found; None where it is no candidate.
        """
        finished = trainer.policy.state.iteration
        if finished != self.phase.last and (finished - self.phase.first) % self.every:
            return None
        policy = trainer.policy.state.fingerprint
        known = self._candidates()
        # A run that was killed comes by policies again that it has measured already.
        again = [each for each in known if each["policy"] == policy]
        value: float = again[0]["value"] if again else self._value(finished)
        own = {"iteration": finished, "policy": policy, "value": value}
        # The one that is kept may lie ahead of the checkpoint that a killed run has gone on from. It stays known: an
        # engine that does not repeat itself may not come by it again.
        held = self._held()
        others = [
            each
            for each in known
            if each["iteration"] < finished or (each["policy"] == held and each["policy"] != policy)
        ]
        best = next((each for each in others if each["policy"] == held), None)
        chosen = own if best is None or value > best["value"] else best
        if chosen is own:
            trainer.save(self.folder.policy(BEST), moments=False)
        self._write(sorted([*others, own], key=lambda each: each["iteration"]), chosen)
        words = f"policy {finished} has {value:.1%} ({self.measure})" + (": the best so far" if chosen is own else "")
        return Candidate(words, value if self.validation else None)

    def _value(self, finished: int) -> float:
        return self._validated() if self.validation else self._trained(finished)

    def _validated(self) -> float:
        config = replace(eval_samplings(self.config)[GREEDY], attempts=self.phase.attempts)
        traces = self.sampler.run(self.sampler.plan(self.validation, config))
        verdicts = self.grader.grade(traces, {problem.problem_id: problem for problem in self.validation})
        scored = [right for verdict in verdicts if (right := verdict.correct[-1]) is not None]
        return sum(scored) / max(len(scored), 1)

    def _trained(self, finished: int) -> float:
        first = self.phase.first + (finished - 1 - self.phase.first) // self.every * self.every
        found: list[float] = []
        rows = [row for row in self.folder.updates.metrics(first, finished) if row["name"] == "accuracy"]
        for _, update in itertools.groupby(rows, key=lambda row: row["iteration"]):
            found.append(max(update, key=lambda row: row["attempt"])["value"])
        return sum(found) / max(len(found), 1)

    def _candidates(self) -> list[dict[str, Any]]:
        file = self.folder.best_record
        candidates: list[dict[str, Any]] = json.loads(file.read_text())["candidates"] if file.exists() else []
        return candidates

    def _held(self) -> str | None:
        """Fingerprint of the policy that is kept as the best, if there is one."""
        path = self.folder.policy(BEST)
        return stored_state(path).fingerprint if path.exists() else None

    def _write(self, candidates: list[dict[str, Any]], best: dict[str, Any]) -> None:
        record = {"chosen_by": self.measure, "phase": self.phase.name, "best": best, "candidates": candidates}
        with replacing_file(self.folder.best_record) as temporary:
            temporary.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
