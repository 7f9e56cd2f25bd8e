"""Files of JSON that describe a model."""

import json
from pathlib import Path
from typing import Any

from lineardit.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object.

    Raises:
        CheckpointError: it is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError):  # the last for JSON that is nested too deeply
        raise CheckpointError(f"{path} is damaged, or is no JSON.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no options.")
    return content
