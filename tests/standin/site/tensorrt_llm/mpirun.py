"""`mpirun -n N [options] command…`, on this machine: N processes that know rank and size."""

import os
import subprocess
import sys

_WITH_VALUE = ("-n", "-np", "--np", "-x", "--bind-to", "--map-by", "-H", "--host")


def main(arguments):
    count, rest = 1, list(arguments)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        value = rest.pop(0) if option in _WITH_VALUE else ""
        if option in ("-n", "-np", "--np"):
            count = int(value)
    processes = [
        subprocess.Popen(
            rest,
            env={
                **os.environ,
                "OMPI_COMM_WORLD_RANK": str(rank),
                "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
                "OMPI_COMM_WORLD_SIZE": str(count),
            },
            # As Open MPI does: the ranks are in groups of their own.
            start_new_session=True,
            stdin=None if rank == 0 else subprocess.DEVNULL,
        )
        for rank in range(count)
    ]
    codes = []
    for process in processes:
        codes.append(process.wait())
        if codes[-1]:
            for other in processes:
                if other.poll() is None:
                    other.kill()
    bad = [code for code in codes if code]
    if not bad:
        return 0
    return bad[0] if bad[0] > 0 else 128 - bad[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
