"""Start the playground: ``python examples/playground``, or ``make playground``."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until Ctrl-C; 2 where it cannot be served."""
    parser = argparse.ArgumentParser(prog="playground", description="A page to drag scores in and see what follows.")
    parser.add_argument("--port", type=int, default=5006, help="of this machine, where the page is served (5006)")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        parser.error(f"--port is a number from 0 (a free one) to 65535, but got {options.port}")
    if find_spec("panel") is None:
        print("the playground needs Panel: pip install 'optlayers[playground]'", file=sys.stderr)
        return 2
    from playground.serve import serve

    return serve(options.port, browser=not options.no_browser)


if __name__ == "__main__":
    if not __package__:  # started by its folder
        sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
