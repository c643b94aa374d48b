"""Start setup.py, once this Python is known to be new enough. Any Python can read this file."""

import sys

if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit(
            "Set-up stopped: Python 3.10 or newer is needed, and this is "
            + sys.version.split()[0]
            + ". Name a newer one, such as: make PYTHON=python3.12 demo"
        )
    from ending import end_in_order
    from setup import main

    end_in_order()
    sys.exit(main())
