"""Start ComfyUI's own main.py, `python comfyui_main.py PARENT_ID ENGINE_FOLDER [its options]`.

Three things differ from starting it directly: `torchvision_schemas`, which a CPU torch needs;
Ctrl-C works even where the shell has it ignored (background jobs); and the server ends when the
process that started it is gone, however that came.
"""

import runpy
import signal
import sys
from pathlib import Path

import torchvision_schemas
from ending import end_with

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    end_with(int(sys.argv[1]))
    torchvision_schemas.install()
    main = Path(sys.argv[2]) / "main.py"
    sys.argv = [str(main), *sys.argv[3:]]
    sys.path[0] = str(main.parent)  # as if main.py had been started itself
    try:
        runpy.run_path(str(main), run_name="__main__")
    except KeyboardInterrupt:  # while it starts; later ComfyUI takes it itself
        sys.exit(130)
