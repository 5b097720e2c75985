"""`python -m tests.ranks N MODULE OPTIONS`: main(OPTIONS) of the module in N processes, as torchrun would start them
but for the imports, which are done once, and with fast scores; ends with the highest of their exit statuses."""

import importlib
import os
import sys

from torch.distributed import TCPStore

from tests.fake_weights import use_fast_scores


def main(processes: int, module: str, options: list[str]) -> int:
    """Fork them, and wait."""
    program = importlib.import_module(module)
    use_fast_scores()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port), WORLD_SIZE=str(processes),
                      TORCHELASTIC_USE_AGENT_STORE="True")
    started = []
    for rank in range(processes):
        if pid := os.fork():
            started.append(pid)
            continue
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        status = 99
        try:
            status = program.main(options)
            sys.stdout.flush()
        finally:
            os._exit(status)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
