"""Reports of finished runs, newest last, for the Report node, which runs after the sampler and finds the run through the prompt's links."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from ...report import RunReport
from .newest import keep_newest
from .prompt import is_link, run_key, upstream

KEPT_REPORTS = 32

_reports: OrderedDict[str, RunReport] = OrderedDict()


def keep_report(key: str, report: RunReport) -> None:
    """Keep the report of a run under its `run_key`, and no more than the newest."""
    keep_newest(_reports, key, report, KEPT_REPORTS)


def finished_report(node_id: str) -> RunReport:
    """Report of the last run of a node, outside a server."""
    return _reports[run_key({}, node_id)]


def report_upstream(prompt: dict[str, Any], node_id: str, parents: Mapping[str, str] | None = None) -> RunReport | None:
    """Report of the nearest sampler before `node_id` in the prompt; None where there is none, or it ran without the pack.

    `parents`: of the nodes that were made while the prompt ran, the node that made each, in the order in which they were made.
    """
    sampled = sampled_upstream(prompt, node_id, parents)
    return None if sampled is None else _reports.get(run_key(prompt, sampled))


def sampled_upstream(prompt: dict[str, Any], node_id: str, parents: Mapping[str, str] | None = None) -> str | None:
    """The nearest sampler before `node_id`; None where there is none."""
    parents = parents or {}
    latent = prompt.get(node_id, {}).get("inputs", {}).get("latent")
    before = [str(latent[0]), *upstream(prompt, str(latent[0]))] if is_link(latent) else list(upstream(prompt, node_id))
    for found in before:
        # What a node made while it ran stands in its place, the last of it nearest.
        made = [child for child in reversed(list(parents)) if _is_from(child, found, parents)]
        for candidate in (*made, found):
            if run_key(prompt, candidate) in _reports or samples(prompt.get(candidate, {}).get("class_type")):
                return candidate
    return None


def _is_from(child: str, node_id: str, parents: Mapping[str, str]) -> bool:
    while child in parents:
        child = parents[child]
        if child == node_id:
            return True
    return False


def samples(class_type: str | None) -> bool:
    """Whether nodes of this class sample: they take a guider, or a model and prompts, and give a latent."""
    known = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    if class_type not in known:
        return False
    inputs = known[class_type].INPUT_TYPES()
    taken = {given[0] for kind in ("required", "optional") for given in inputs.get(kind, {}).values() if isinstance(given[0], str)}
    return "LATENT" in known[class_type].RETURN_TYPES and ("GUIDER" in taken or {"MODEL", "CONDITIONING"} <= taken)
