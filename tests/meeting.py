"""Where processes that a test starts find one another."""

from torch.distributed import TCPStore


def meeting(processes: int) -> tuple[TCPStore, list[dict[str, str]]]:
    """A store, to be kept until they have ended, and the environment of each process that meets there.

    This process holds it, as `torchrun` and `accelerate launch` do: no other one can take its port meanwhile.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return store, [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
