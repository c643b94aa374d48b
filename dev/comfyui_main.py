"""Start ComfyUI's own main.py, `python comfyui_main.py ENGINE_FOLDER [its options]`.

Three things differ from starting it directly: `torchvision_schemas`, which a CPU torch needs;
Ctrl-C works even where the shell has it ignored (background jobs); and the server ends by itself
when the process that started it is gone, however that came.
"""

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

import torchvision_schemas


def end_with(parent: int) -> None:
    """Wait until `parent` is not our parent any more, then stop as Ctrl-C does."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    torchvision_schemas.install()
    main = Path(sys.argv[1]) / "main.py"
    sys.argv = [str(main), *sys.argv[2:]]
    sys.path[0] = str(main.parent)  # as if main.py had been started itself
    runpy.run_path(str(main), run_name="__main__")
