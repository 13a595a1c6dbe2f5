"""Per-problem records as JSON lines, in the form that lm-evaluation-harness logs its samples in.

One object a trace. Each attempt is a request of its own, so `resps` and `filtered_resps` have one entry an attempt:

    doc_id           place of the problem in the problems table, from 0
    doc              the problem's row; {"problem_id": ...} where no problems table was given
    target           its gold answer, null where it has none (programs: see doc.tests)
    resps            [[first attempt], [second attempt], ...]
    filtered_resps   the extracted answers, null where there was none
    filter           "answer"
    metrics          names of the metrics that follow as keys: "acc" (the last attempt's), "acc@t1", "acc@t2", ...;
                     each 1.0, 0.0, or null where the attempt could not be scored (it counts as neither)
    doc_hash         sha256 of doc as JSON;  target_hash: of target as text

and, beyond the harness: policy, decoding, problem_id, sample_index, verdicts, finish_reasons; of a script's traces also
roles, one a turn. Their acc@t1, acc@t2, ... count solves.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from score_cli.metrics import solves_of
from score_cli.tables.atomic import replacing_file
from score_cli.tables.records import Problem, Trace, Verdict


def sample_records(
    rows: Iterable[tuple[Trace, Verdict]],
    *,
    policy: str,
    decoding: str,
    problems: Sequence[Problem] = (),
) -> Iterator[dict[str, Any]]:
    """One record a trace, with what it was judged.

    Without problems, `doc_id` counts them as they appear among the traces.
    """
    known = {problem.problem_id: problem for problem in problems}
    places = {name: place for place, name in enumerate(known)}
    for trace, reward in rows:
        problem = known.get(trace.problem_id)
        doc = problem.row() if problem is not None else {"problem_id": trace.problem_id}
        target = problem.answer if problem is not None else None
        right = [None if each is None else float(each) for each in solves_of(trace, reward)[1].correct]
        metrics = {"acc": right[-1]} | {f"acc@t{attempt}": value for attempt, value in enumerate(right, 1)}
        yield {
            "doc_id": places.setdefault(trace.problem_id, len(places)),
            "doc": doc,
            "target": target,
            "resps": [[text] for text in trace.attempts],
            "filtered_resps": reward.answers,
            "filter": "answer",
            "metrics": list(metrics),
            "doc_hash": _sha256(json.dumps(doc, indent=2, ensure_ascii=False, default=str)),
            "target_hash": _sha256(str(target)),
            **metrics,
            "policy": policy,
            "decoding": decoding,
            "problem_id": trace.problem_id,
            "sample_index": trace.sample_index,
            "verdicts": reward.verdicts,
            "finish_reasons": trace.finish_reasons,
        } | ({} if trace.roles is None else {"roles": trace.roles})


def write_samples(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records as JSON lines; the file appears whole or not at all."""
    with replacing_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
