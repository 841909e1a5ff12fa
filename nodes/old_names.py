"""Names that inputs and values had in earlier versions: prompts that still hold them run all the same.

web/js/old_names.js does the same for saved workflows; tests/fixtures/old_names.json pins both tables.
"""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger("safe_dit")

SCHEDULE = {"widen": "early_refresh", "held_steps": "skipped_steps", "settle": "corrector"}
# Class of a node -> old name of an input -> its name now.
INPUTS = {"SafeDitAccelerate": SCHEDULE, "SafeDitSelectiveSampler": SCHEDULE}
# Class of a node -> input -> old value -> its value now.
VALUES = {"SafeDitPartitioner": {"signal": {"spread": "attention"}}}


def add_old_names(server: Any) -> None:
    """Let ComfyUI's server read prompts with old names."""
    server.add_on_prompt_handler(with_new_names)


def with_new_names(json_data: Any) -> Any:
    """What was posted to /prompt, with the names of today; one warning says what was renamed. ComfyUI judges what is no prompt."""
    prompt = json_data.get("prompt") if isinstance(json_data, dict) else None
    nodes = prompt.values() if isinstance(prompt, dict) else ()
    renamed = [told for node in nodes for told in _rename(node)]
    if renamed:
        log.warning("SAFE-DiT: this prompt holds old names, which are still read: %s.", ", ".join(dict.fromkeys(renamed)))
    return json_data


def _rename(node: Any) -> list[str]:
    """Rename in one node; what was renamed. Where an input is there under both names, the new one counts."""
    inputs = node.get("inputs") if isinstance(node, dict) else None
    if not isinstance(inputs, dict):
        return []
    kind = str(node.get("class_type"))
    renamed = []
    for old, new in INPUTS.get(kind, {}).items():
        if old in inputs:
            value = inputs.pop(old)
            inputs.setdefault(new, value)
            renamed.append(f"{old} is now {new}")
    for name, values in VALUES.get(kind, {}).items():
        value = inputs.get(name)
        if isinstance(value, str) and value in values:
            inputs[name] = values[value]
            renamed.append(f"{name} {value} is now {values[value]}")
    return renamed
