"""What a run folder was started with; who goes on in it must agree."""

import json
from pathlib import Path
from typing import Any

from score_cli.errors import UserError
from score_cli.tables.atomic import replacing_file


def pin_config(path: Path, settings: dict[str, dict[str, Any]]) -> None:
    """Write down what a folder's work is started with, or see that it was started with the same.

    Args:
        settings: stage -> its settings.
    Raises:
        UserError: the folder was begun with other settings.
    """
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    if not path.exists():
        with replacing_file(path) as temporary:
            temporary.write_text(text)
        return
    try:
        earlier = json.loads(path.read_text())
        known = {stage: dict(values) for stage, values in earlier.items()}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path} cannot be read: name another --out, or delete the folder") from None
    now = json.loads(text)
    changed = [
        f"{stage}.{key} was {known.get(stage, {}).get(key)!r}, is {value!r}"
        for stage, values in now.items()
        for key, value in values.items()
        if known.get(stage, {}).get(key) != value
    ]
    if changed:
        raise UserError(
            f"{path.parent} holds a run with other settings ({changed[0]}): name another --out, or delete it"
        )
