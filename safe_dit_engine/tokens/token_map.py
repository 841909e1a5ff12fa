"""One run's map of its tokens: evidence of the warm-up steps -> sensitivity -> partition."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .focus import Focus, find_focus
from .grid import TokenGrid
from .painting import distorted
from .partition import Partition, PartitionConfig, Signal, forced_tokens, select_rows
from .sensitivity import Evidence, guidance_strength

# The last warm-up steps know the picture best; looking at more costs time and adds little.
EVIDENCE_STEPS = 2

# Told a sentence, and whether it is a warning: something else was done than what was asked for.
Explain = Callable[[str, bool], None]


class TokenMap:
    """Sensitivity and partition of the tokens of one run, once they are known.

    `warmup_steps`: how many steps of the run are warm-up. `early`: make the map before the last of them, so that what this one remembers
    can be of context rows alone. `shared_rows`: all images have the same sensitive rows.
    """

    def __init__(
        self, config: PartitionConfig, grid: TokenGrid, warmup_steps: int, early: bool, shared_rows: bool, explain: Explain
    ) -> None:
        self.config, self.grid = config, grid
        self.evidence = Evidence()
        self.sensitivity: Tensor | None = None
        self.partition: Partition | None = None
        self._made_at = warmup_steps - 1 if early and warmup_steps > 1 else warmup_steps
        self._shared_rows = shared_rows
        self._explain = explain
        self._collects = True

    def read_prompt(self, text: str | None) -> None:
        """Find the focus words in the prompt's text; None: the host could not find it."""
        request = self.config.focus
        if request is None:
            return
        if self.config.signal is not Signal.ATTENTION:
            self._explain(f"Focus words count in the signal attention alone; with {self.config.signal.value} they have no effect.", False)
        found = Focus(missing=request.phrases) if text is None else find_focus(request, text)
        if found.missing:
            phrases = ", ".join(f"`{phrase}`" for phrase in found.missing)
            rest = "the others are counted" if found.places else "all words are counted"
            self._explain(f"The prompt does not hold the focus words {phrases}; {rest}.", True)
        self.evidence.focus = found if found.places else None

    def explain_painting(self, used: bool) -> None:
        """Say what becomes of a painting: nothing where it is not `used`, or that it is resized."""
        painting, shape = self.config.painting, self.grid.shape
        if painting is None:
            return
        if not used:
            self._explain(
                "What was painted on the map has no effect: no step of this run computes a part of the tokens. Use the preset paper, or "
                "custom with a keep ratio below 1.0 and fewer skipped steps.",
                False,
            )
        elif tuple(painting.shape) != shape:
            (height, width), (rows, columns) = painting.shape, shape
            # A painting of the same proportions is only made finer or coarser: nothing to be warned of.
            sentence = f"The map was painted on {width} x {height} tokens; it is resized to the {columns} x {rows} of this run."
            self._explain(sentence, distorted(painting, shape))

    def collects(self, step: int) -> bool:
        """Whether the evidence of this step is wanted, should the map be."""
        return self._collects and self._made_at - EVIDENCE_STEPS <= step < self._made_at

    def may_be_made(self, step: int, warming_up: bool) -> bool:
        """Whether the map may be made before this step."""
        return not warming_up or step == self._made_at

    def see_guidance(self, cond: Tensor, uncond: Tensor) -> None:
        """Note the predictions of one step under the positive and the negative prompt, `[B, C, H, W]` or `[B, C, frames, H, W]`."""
        self.evidence.add_guidance(guidance_strength(cond, uncond, self.grid))

    def give_up(self) -> None:
        """Forget the evidence, and collect no more."""
        self.evidence, self._collects = Evidence(), False

    def make(self) -> bool:
        """Make map and partition from the evidence; whether they are new."""
        if self.sensitivity is not None or not (self.evidence.has_attention or self.evidence.has_guidance):
            return False
        self.divide(self._found())
        return True

    def divide(self, sensitivity: Tensor) -> None:
        """Partition the tokens by this map `[B, h, w]`."""
        sensitivity = (sensitivity.mean(0, keepdim=True) if self._shared_rows else sensitivity).nan_to_num(0.0)
        forced, barred = forced_tokens(self.config, sensitivity.shape[0], self.grid, sensitivity.device)
        if barred is not None and barred.all():
            self._explain("All tokens are painted as context; the most sensitive one is computed all the same.", False)
        self.sensitivity = sensitivity
        self.partition = select_rows(sensitivity, self.grid, self.config.keep_ratio, forced, barred)

    def why_all(self) -> str:
        """Why every token is sensitive, as the end of a sentence; ask where that is so."""
        assert self.sensitivity is not None
        if self.grid.tokens == 1:
            return "the picture is a single token"
        forced, _ = forced_tokens(self.config, self.sensitivity.shape[0], self.grid, self.sensitivity.device)
        if forced is None or not forced.all():
            return f"the keep ratio leaves none of {self.grid.tokens} tokens out"
        return "every token is painted as sensitive" if self.config.painting is not None else "the mask covers every token"

    def _found(self) -> Tensor:
        evidence, signal = self.evidence, self.config.signal
        attention, guidance = evidence.has_attention, evidence.has_guidance
        if signal is not Signal.ATTENTION and not guidance:
            self._explain("There is no guidance signal at CFG 1; the map comes from attention alone.", False)
        if signal is not Signal.GUIDANCE and not attention:
            self._explain("The model's attention could not be read; the map comes from the guidance signal alone.", False)
        maps = []
        if attention and (signal is not Signal.GUIDANCE or not guidance):
            maps.append(evidence.attention_map(self.grid, self.config.smoothing))
        if guidance and (signal is not Signal.ATTENTION or not attention):
            maps.append(evidence.guidance_map(self.grid, self.config.smoothing))
        return sum(maps[1:], maps[0]) / len(maps)
