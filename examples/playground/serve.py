"""The server: for this machine alone, with everything that the page needs."""

from __future__ import annotations

import logging
import socket
import sys

import panel as pn
from playground.catalogue import READY
from playground.look import STYLE
from playground.page import page
from playground.scene import REGULARIZERS, scene_of
from playground.trial import Trial

__all__ = ["serve"]

ADDRESS = "127.0.0.1"


def serve(port: int, *, browser: bool) -> int:
    """Serve until Ctrl-C; 2 where the port is taken."""
    try:
        port = _free(port)  # said before anything is compiled
    except OSError as error:
        return _taken(port, error)
    logging.getLogger("bokeh").setLevel(logging.WARNING)
    pn.extension(design="native", raw_css=[STYLE], notifications=False)
    for one in READY:  # loads what is compiled, so that the first drag is as quick as the others
        scene = scene_of(one.text, one.scores)
        for regularizer in REGULARIZERS:
            scene.points(scene.begin, regularizer, 1.0)
    trial = Trial()
    try:
        server = pn.serve(
            lambda: page(trial, port),
            port=port,
            address=ADDRESS,
            show=browser,
            start=False,
            title="optlayers playground",
            verbose=False,
            websocket_origin=[f"{ADDRESS}:{port}", f"localhost:{port}"],
        )
        print(f"the playground is at http://{ADDRESS}:{port}/ for this machine alone; Ctrl-C ends it", flush=True)
        server.start()
        server.io_loop.start()
    except OSError as error:  # another one was quicker
        return _taken(port, error)
    except KeyboardInterrupt:
        pass
    finally:
        trial.close()
    return 0


def _taken(port: int, error: OSError) -> int:
    """Say that a port cannot be used, and the status to end with."""
    print(
        f"port {port} of {ADDRESS} cannot be used ({error.strerror or error}): another program has it, perhaps "
        f"another playground; choose a free one, --port {min(port + 1, 65535)} for example",
        file=sys.stderr,
    )
    return 2


def _free(port: int) -> int:
    """The port itself, or a free one for 0.

    Raises
    ------
    OSError : it is taken, or not for everyone.
    """
    with socket.socket() as asked:
        if sys.platform != "win32":  # where a port whose connections are still closing counts as free
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        asked.bind((ADDRESS, port))
        found: int = asked.getsockname()[1]
        return found
