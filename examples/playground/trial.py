"""A typed declaration is tried in another process first, which may take long or die without harm to the page."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

__all__ = ["Trial"]

LIMIT = 20.0
"""Seconds for one declaration."""
START = 300.0
"""Seconds for the process to start: it imports PyTorch and cvxpy, and on a new machine compiles kernels."""


class Trial:
    """A process that works out all that the page would show of a declaration, one at a time."""

    def __init__(self, limit: float = LIMIT) -> None:
        self.limit = limit
        self._turn = threading.Lock()
        self._process: BaseProcess | None = None
        self._line: Connection | None = None

    def start(self) -> None:
        """Start the process, so that the first declaration need not wait for it."""
        if self._turn.acquire(blocking=False):  # else one is being tried, and the server must not wait for it
            try:
                self._start()
            finally:
                self._turn.release()

    def _start(self) -> None:
        if self._process is not None and self._process.is_alive():
            return
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def refusal(self, text: str) -> str | None:
        """Why a declaration cannot be shown, None where it can. Waits for others that are being tried."""
        with self._turn:
            try:
                self._start()
                assert self._line is not None
                if not self._line.poll(START):
                    return self._end("the process that tries declarations did not start: start the playground again")
                self._line.recv()
                self._line.send(text)
                if not self._line.poll(self.limit):
                    return self._again(
                        f"this took longer than {self.limit:g} seconds and was given up: declare fewer "
                        "variables, rows or integers"
                    )
                answer: str | None = self._line.recv()
                return answer
            except (EOFError, OSError):
                return self._again(
                    "this ended the process that tried it: choose fewer rows, and numbers of similar size"
                )

    def _again(self, why: str) -> str:
        """A new process, for the next text."""
        self._end(why)
        self._start()
        return why

    def close(self) -> None:
        """End the process."""
        self._end("")

    def _end(self, why: str) -> str:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._line = None
        return why


def _serve(line: Connection) -> None:
    """Answer for one text after the other; before each, say that one may come.

    What is ready is tried at the start, so that no time of the first text goes to kernels that are compiled or loaded.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the server, which ends this process
    from playground.catalogue import READY
    from playground.scene import REGULARIZERS, Scene
    from playground.steps import LOSSES, RULES, sent_back

    def tried(text: str) -> None:
        scene = Scene(text)
        for regularizer in REGULARIZERS:
            scene.points(scene.begin, regularizer, 1.0)
        settings = {"step_size": 1.0, "regularizer": "Entropy", "temperature": 1.0}
        for rule in RULES:
            sent_back(scene, rule, scene.begin, next(iter(LOSSES)), scene.target(), **settings)

    for one in READY:
        tried(one.text)
    try:
        while True:
            line.send("ready")
            line.send(_why_not(line.recv(), tried))
    except (EOFError, OSError):
        pass  # the server has ended


def _why_not(text: str, tried: Callable[[str], None]) -> str | None:
    """Why a text cannot be shown."""
    try:
        tried(text)
    except Exception as error:  # what is typed must not end this process, whatever the reason
        return str(error) or type(error).__name__
    return None
