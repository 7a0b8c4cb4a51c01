"""A server whose schedules take a set time to measure, and none of this machine's: python sleeping_server.py HOST PORT."""

from __future__ import annotations

import multiprocessing
import sys

from tvm import rpc

DELAY_S = 0.3


def start() -> None:
    """Register the measuring function, with another way to measure."""
    import time

    from pock_tvm.device.measuring import service
    from pock_tvm.device.measuring.bench import Timing

    class Sleeping(service.Service):
        def do_kernel(self, record, code, limit):
            pass

        def do_measure(self, record, code, limit):
            time.sleep(DELAY_S)
            return Timing(1e-3, 1e-3)

    multiprocessing.set_start_method("fork", force=True)
    service.Service = Sleeping
    service.register()


if __name__ == "__main__":
    host, port = sys.argv[1], int(sys.argv[2])
    server = rpc.Server(host, port, port + 1, server_init_callback=start)
    server.proc.join()
