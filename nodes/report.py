"""SAFE-DiT Report: what the run before this node did."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..safe_dit_engine.hosts.comfy.beside import beside_dense, ran_without
from ..safe_dit_engine.hosts.comfy.prompt import whole_prompt
from ..safe_dit_engine.hosts.comfy.reports import report_upstream, sampled_upstream
from ..safe_dit_engine.hosts.comfy.sampler_times import seconds_of
from ..safe_dit_engine.tokens.pictures import sensitivity_mask, token_map

NO_RUN = (
    "No SAFE-DiT run found before this node: connect its latent to the output of a sampler whose model passed through a SAFE-DiT node "
    "(and is not bypassed)."
)


class SafeDitReport(io.ComfyNode):
    """Latent after a sampler -> the same latent, map, picture and text of the run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SafeDitReport",
            display_name="SAFE-DiT Report",
            category="SAFE-DiT",
            description=(
                "Shows what the sampler before it did: steps by kind, tokens computed, masks, memory and time. Passes the latent on."
            ),
            search_aliases=["report", "compare", "time", "token map", "sensitivity", "statistics", "safe-dit"],
            inputs=[
                io.Latent.Input("latent", tooltip="The latent straight from the sampler. It is passed on unchanged."),
                io.Image.Input("picture", optional=True, tooltip="The finished picture; with dense beside it, the node compares the two."),
                io.Image.Input(
                    "dense",
                    optional=True,
                    tooltip="The same picture without acceleration: compared with picture by a slider and as a difference.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The latent that came in."),
                io.Mask.Output(
                    display_name="sensitivity", tooltip="How strongly the prompt acts on each token, 0 to 1, at 8 times the latent's size."
                ),
                io.Image.Output(
                    display_name="token map", tooltip="The map in colour; context tokens, which selective steps leave out, are dimmed."
                ),
                io.String.Output(display_name="text", tooltip="The run in words."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.dynprompt, io.Hidden.unique_id],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, latent: dict[str, Any], picture: Any = None, dense: Any = None) -> io.NodeOutput:
        """Find the run before this node and show it."""
        dynamic, node_id = cls.hidden.dynprompt, str(cls.hidden.unique_id)
        prompt, parents = whole_prompt(dynamic), dynamic.ephemeral_parents
        report = report_upstream(prompt, node_id, parents)
        sampler = sampled_upstream(prompt, node_id, parents)
        missing = NO_RUN if sampler is None else ran_without(prompt, sampler)
        text = missing if report is None else report.text()
        if picture is not None and dense is not None:
            text = f"{text}\n{beside_dense(prompt, node_id, picture, dense)}"
        record = {} if report is None else report.record()
        samples = latent["samples"]
        found = (None, None) if report is None else (report.sensitivity, report.partition)
        mask, tokens = sensitivity_mask(*found, samples.shape), token_map(*found, samples.shape)
        shown = {"safe_dit": [record], "text": [text], "safe_dit_pictures": _pair(cls, picture, dense)}
        if report is None and sampler is not None:
            shown["safe_dit_without"] = [seconds_of(prompt, sampler)]
        return io.NodeOutput(latent, mask, tokens, text, ui=shown)


def _pair(node: type[io.ComfyNode], picture: Any, dense: Any) -> list[dict[str, Any]]:
    """The first picture of each, where the frontend can fetch them; nothing unless both are there."""
    if picture is None or dense is None:
        return []
    return [dict(ui.PreviewImage(images[:1], cls=node).as_dict()["images"][0]) for images in (picture, dense)]
