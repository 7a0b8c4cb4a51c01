"""Serves as a device of TVM's RPC, and goes on when a session has broken off. It needs TVM alone.

    python serve.py HOST PORT [--tracker HOST:PORT --key NAME] [--measure]

With --measure it also measures schedules, for `pock tune`: that takes our folder pock_tvm/device as well, NumPy and
safetensors, and for a GPU what speaks to it.

TVM's own server (python -m tvm.exec.rpc_server) serves nobody any more after a session that crashed or was cut, and
waits for ever for one that hangs. Whoever reaches the port can run any code here: HOST is 127.0.0.1, or in a network of
yours alone.
"""

import argparse
import multiprocessing
import os
import select
import socket
import threading
from pathlib import Path
from typing import Any

from tvm import rpc

GRACE_S = 10.0
"""Time that a session has to end after its client has gone."""


def go_on() -> None:
    """Change how TVM's server serves a session, in its process."""
    from tvm.rpc import server

    serve = server._serving

    def end(link: socket.socket, over: threading.Event) -> None:
        gone = select.poll()
        gone.register(link, select.POLLRDHUP)
        while not over.wait(1.0):
            if gone.poll(0) and not over.wait(GRACE_S):
                for session in multiprocessing.active_children():
                    session.kill()

    def serving(link: socket.socket, *rest: Any) -> None:
        folder, over = Path.cwd(), threading.Event()
        threading.Thread(target=end, args=(link, over), daemon=True).start()
        try:
            serve(link, *rest)
        except RuntimeError as error:
            server.logger.warning("a session has broken off: %s", error)
        finally:
            over.set()
            os.chdir(folder)
            link.close()

    server._serving = serving


def go_on_and_measure() -> None:
    """Also make the measuring function known, to this process and the sessions that it forks."""
    from pock_tvm.device.measuring.service import register

    go_on()
    multiprocessing.set_start_method("fork", force=True)
    register()


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--tracker", help="HOST:PORT")
    parser.add_argument("--key", default="")
    parser.add_argument("--measure", action="store_true", help="measure schedules, too, for pock tune")
    given = parser.parse_args()
    tracker = given.tracker and (given.tracker.rpartition(":")[0], int(given.tracker.rpartition(":")[2]))
    server = rpc.Server(
        given.host,
        given.port,
        given.port + 1,
        tracker_addr=tracker,
        key=given.key,
        server_init_callback=go_on_and_measure if given.measure else go_on,
    )
    server.proc.join()


if __name__ == "__main__":
    main()
