"""`make comfy`: the demo's set-up with the web interface, on loopback until Ctrl-C.

Rehearsed unless LIVE=1. PORT chooses another port than 8188.
"""

from __future__ import annotations

import os
import sys

from comfyui import ComfyUI, ServerFailed
from demo import BASE, DemoFailed, child_environment, is_live, save_picture
from ending import end_in_order
from setup import engine_dir


def main() -> int:
    """Serve until stopped; the exit code."""
    end_in_order()
    try:
        live = is_live()
        environment = child_environment(live)
        save_picture()
        port = chosen_port()
        with ComfyUI(engine_dir(), BASE, environment=environment, port=port, log=None) as server:
            kind = "LIVE: each job is paid" if live else "rehearsal: free and offline"
            print(f"\n{server.origin} ({kind}). Ctrl-C stops it.\n", flush=True)
            return server.wait()
    except (DemoFailed, ServerFailed) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def chosen_port() -> int:
    """PORT, or ComfyUI's own default."""
    port = os.environ.get("PORT") or "8188"
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise DemoFailed(f"PORT is {port!r}. Set it to a number from 1 to 65535, such as 8189.")
    return int(port)


if __name__ == "__main__":
    sys.exit(main())
