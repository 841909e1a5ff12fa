"""`dev.py serve`: ComfyUI with this pack on a throw-away folder, opened in the browser. Runs in the environment, which has torch."""
from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
import urllib.parse
import webbrowser
from collections.abc import Sequence

from .server import PACK_NAME, ComfyServer, ServerError
from .templates import FIRST, WORKFLOWS, template


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own arguments, and the rest, which goes to ComfyUI."""
    about = "Start ComfyUI with SAFE-DiT. Unknown arguments go to ComfyUI, for example --extra-model-paths-config FILE."
    parser = argparse.ArgumentParser(prog="serve", description=about)
    parser.add_argument("--workflow", default=FIRST, help="which of the pack's workflows to open (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="do not use the GPU")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    return parser.parse_known_args(argv)


def start_url(server: ComfyServer, workflow: str) -> str:
    """The address that opens `workflow` from the pack's templates, or the plain one when there is no such workflow."""
    if not template(workflow).is_file():
        return server.url
    return f"{server.url}/?" + urllib.parse.urlencode({"template": template(workflow).stem, "source": PACK_NAME})


def serve(server: ComfyServer, workflow: str, open_browser: bool) -> None:
    """Put the pack's workflows into the sidebar, show the address, and the page if wanted, and stay until the server ends."""
    for path in WORKFLOWS.glob("*.json"):
        shutil.copy(path, server.base / "user" / "default" / "workflows" / path.name)
    url = start_url(server, workflow)
    _say(f"ComfyUI with SAFE-DiT is at {url}\nIts folder {server.base} goes away at the end. Ctrl-C ends it.")
    if open_browser:
        webbrowser.open(url)
    while server.alive():
        time.sleep(0.5)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(argv: Sequence[str]) -> int:
    """Serve until Ctrl-C."""
    import torch  # not at the top: whatever else lies here runs before there is an environment

    options, rest = parse(argv)
    # Told to stop is as good as Ctrl-C: the server must not live on without us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Without an accelerator ComfyUI has to be told so.
    cpu = options.cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    _say("Starting ComfyUI ...")
    try:
        with ComfyServer(cpu=cpu, extra_args=rest) as server:
            serve(server, options.workflow, not options.no_browser)
    except ServerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        _say("Stopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
