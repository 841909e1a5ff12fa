"""What ComfyUI's frontend is told of a run while it samples. Outside a server (scripts, tests in process) nothing is sent."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

from ...report import RunReport, StepRecord, note_message, step_message
from ...steps.plan import StepKind
from .newest import keep_newest
from .prompt import Place, running_server

EVENT = "safe_dit.step"
NOTE_EVENT = "safe_dit.note"
KEPT_WISHES = 32


@dataclass(frozen=True)
class LiveWish:
    """What a browser tab wants to hear of steps; `per_second` None: everything."""

    live: bool = True
    per_second: float | None = None


# By the id of the tab's connection; the newest last.
_wishes: OrderedDict[str, LiveWish] = OrderedDict()


def wish(client_id: str, wanted: LiveWish) -> None:
    """Remember what a tab wants."""
    keep_newest(_wishes, client_id, wanted, KEPT_WISHES)


class Broadcast:
    """Messages of one run to the nodes that show it."""

    def __init__(self, place: Place) -> None:
        self._ids = place.ids()
        self._mask_nodes = place.mask_nodes()
        self._told: set[str] = set()

    def begin(self, report: RunReport) -> None:
        """From here on, tell of this report."""
        report.known_as(self._ids)
        self._report = report
        self._sent_map: str | None = None
        self._sent_at = 0.0
        self._unsent: StepRecord | None = None

    def step(self, record: StepRecord, last: bool = False) -> None:
        """Tell of one evaluation. The page hears of the last of a run, and of skipped ones, however fast they come."""
        self._send_step(record, last)
        self._send_notes()

    def finish_steps(self) -> None:
        """Send the last evaluation, should it have come too soon after another."""
        if self._unsent is not None:
            self.step(self._unsent, last=True)

    def end(self) -> None:
        """The run is over, and its report complete."""
        self._send_notes()
        server = running_server()
        for node_id in self._mask_nodes if server is not None else ():
            server.send_progress_text(self._report.masks, node_id, server.client_id)

    def _send_step(self, record: StepRecord, last: bool) -> None:
        server, report = running_server(), self._report
        self._unsent = record
        if server is None or not self._ids or not self._wanted(server.client_id, last or record.kind is StepKind.SKIPPED):
            return
        self._unsent = None
        # A selective step's message stays small: it carries the tokens, and the map waits for the next step that does not.
        new_map = record.kind is not StepKind.SELECTIVE and report.map_bytes != self._sent_map
        if new_map:
            self._sent_map = report.map_bytes
        server.send_sync(EVENT, step_message(report, record, new_map) | self._ids, server.client_id)

    def _send_notes(self) -> None:
        """Tell of new sentences. They are few, so the page hears of them whatever it wants to hear of steps."""
        server = running_server()
        if server is None or not self._ids:
            return
        for sentence, level in self._report.noted.items():
            if sentence not in self._told:
                self._told.add(sentence)
                server.send_sync(NOTE_EVENT, note_message(sentence, level) | self._ids, server.client_id)

    def _wanted(self, client_id: str | None, at_once: bool) -> bool:
        wanted = _wishes.get(client_id or "", LiveWish())
        now = time.perf_counter()
        too_soon = wanted.per_second is not None and now - self._sent_at < 1.0 / wanted.per_second
        if not wanted.live or (too_soon and not at_once):
            return False
        self._sent_at = now
        return True
