"""Judges the completions that a results folder holds: python -m harness.judge RESULTS_DIR; see
docs/judge.md.
"""

import sys
from pathlib import Path

from harness.base.console import Progress
from harness.base.errors import Parser, UserError, reported
from harness.base.files import read_json
from harness.evaluation.endpoint import EndpointDown, endpoint_config
from harness.evaluation.judge import SETTINGS, judge_folder, open_endpoint


def main():
    parser = Parser(prog="python -m harness.judge", description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="RESULTS_DIR", type=Path)
    parser.add_argument("--base-url", help="default: the order's, or $JUDGE_BASE_URL")
    parser.add_argument(
        "--model",
        help="default: the order's, or $JUDGE_MODEL; the key is in $JUDGE_API_KEY, or where the order says",
    )
    args = parser.parse_args()
    with reported(args.folder):
        if not (args.folder / "results.json").is_file():
            raise UserError(
                args.folder, "is no results folder", "give one that run_sequence.py wrote"
            )
        settings = args.folder / SETTINGS
        given = {k: v for k, v in (("base_url", args.base_url), ("model", args.model)) if v}
        config = endpoint_config(
            (read_json(settings) if settings.exists() else {}) | given, "judge"
        )
        if config is None:
            raise UserError(
                "judge",
                "no server is named",
                "give --base-url and --model, or set JUDGE_BASE_URL and JUDGE_MODEL",
            )
        endpoint, progress = open_endpoint(config), Progress()
        try:
            done = judge_folder(args.folder, endpoint, progress=progress)
        except EndpointDown as down:
            raise UserError(
                f"judge {config.base_url}",
                f"gives no answers ({down})",
                "what it has answered is kept; start the same command again when it is back",
            ) from None
        finally:
            progress.say(endpoint.summary())
        print(
            f"{done['answers']:,} answers judged, {done['unjudged']:,} without a verdict; records: {args.folder / 'records.jsonl'}"
        )


if __name__ == "__main__":
    sys.exit(main())
