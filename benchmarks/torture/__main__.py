"""The command: six campaigns, or those that are asked for; exit 1 for a fault."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from harness.base.errors import Parser, reported

KILLS, JOBS, CLAIMS, ORDERS = 300, 30, 1000, 200


def arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.torture",
        description="Kill runs and jobs, claim, damage files, mutate orders; by default all of it.",
    )
    parser.add_argument(
        "--kills", type=int, metavar="N", help=f"SIGKILLs over eight methods ({KILLS})"
    )
    parser.add_argument(
        "--files", type=int, metavar="N", help="damaged files; 0 for every file in three ways (0)"
    )
    parser.add_argument("--orders", type=int, metavar="N", help=f"mutated orders ({ORDERS})")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help=f"SIGKILLs of jobs that share 8 runs ({JOBS})"
    )
    parser.add_argument(
        "--claims",
        type=int,
        metavar="N",
        help=f"claims and appends by 32 processes over a simulated NFS ({CLAIMS})",
    )
    parser.add_argument(
        "--cluster",
        type=int,
        metavar="N",
        help="SIGKILLs of workers, nodes and drivers of a Ray cluster with 8 runs; wants Ray, and "
        "is not among all",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all draws (0)")
    return parser.parse_args()


def main() -> None:
    """Prints what each campaign found, and how long it took."""
    args = arguments()
    asked = [args.kills, args.jobs, args.claims, args.cluster, args.files, args.orders]
    if asked == [None] * len(asked):
        args.kills, args.jobs, args.claims = KILLS, JOBS, CLAIMS
        args.files, args.orders = 0, ORDERS
    faults = 0
    with reported("the temporary folder"), tempfile.TemporaryDirectory() as temporary:
        import torch

        from benchmarks.torture.claims import claim_by_many
        from benchmarks.torture.clusters import kill_cluster
        from benchmarks.torture.kills import kill_at_random, kill_jobs
        from benchmarks.torture.material import make_material
        from benchmarks.torture.orders import mutate_orders
        from benchmarks.torture.tears import tear_every_file

        torch.set_num_threads(1)
        folder = Path(temporary)
        make_material(folder)
        campaigns = {
            "kills": lambda: kill_at_random(folder, args.kills, args.seed),
            "jobs": lambda: kill_jobs(folder, args.jobs, args.seed),
            "claims": lambda: claim_by_many(folder / "claims" / "out", args.claims, seed=args.seed),
            "cluster": lambda: kill_cluster(folder, args.cluster, args.seed),
            "files": lambda: tear_every_file(folder, args.seed, args.files or None),
            "orders": lambda: mutate_orders(folder, args.orders, args.seed),
        }
        for name, campaign in campaigns.items():
            if getattr(args, name) is not None:
                start = time.monotonic()
                found = campaign()
                print("\n".join(found.lines()))
                print(f"{time.monotonic() - start:.0f} s, seed {args.seed}")
                faults += len(found.faults)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
