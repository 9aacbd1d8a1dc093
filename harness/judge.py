"""Judge the completions that a results folder holds.

    python -m harness.judge RESULTS_DIR

docs/how-to/judge.md says what is asked, what counts and what is kept.
"""

from argparse import Namespace
from pathlib import Path

from harness.base.console import Progress
from harness.base.errors import Parser, UserError, reported
from harness.base.files import read_json
from harness.evaluation.endpoint import EndpointConfig, EndpointDown, endpoint_config
from harness.evaluation.judge import SETTINGS, judge_folder, open_endpoint


def main() -> None:
    parser = Parser(
        prog="python -m harness.judge",
        description="Judge the completions that a results folder holds; see docs/how-to/judge.md.",
    )
    parser.add_argument("folder", metavar="RESULTS_DIR", type=Path)
    parser.add_argument("--base-url", help="default: the order's, or $JUDGE_BASE_URL")
    parser.add_argument(
        "--model",
        help="default: the order's, or $JUDGE_MODEL; "
        "the key is in $JUDGE_API_KEY, or where the order says",
    )
    args = parser.parse_args()
    with reported(args.folder):
        config = _settings(args)
        endpoint = open_endpoint(config)
        progress = Progress()
        try:
            counts = judge_folder(args.folder, endpoint, progress=progress)
        except EndpointDown as down:
            raise UserError(
                f"judge {config.base_url}",
                f"gives no answers ({down})",
                "what it has answered is kept; start the same command again when it is back",
            ) from None
        finally:
            progress.say(endpoint.summary())
        print(
            f"{counts['answers']:,} answers judged, {counts['unjudged']:,} without a verdict; "
            f"records: {args.folder / 'records.jsonl'}"
        )


def _settings(args: Namespace) -> EndpointConfig:
    """The settings of the folder with the command's on top. Raises UserError if there are none."""
    if not (args.folder / "results.json").is_file():
        raise UserError(args.folder, "is no results folder", "give one that run_sequence.py wrote")
    path = args.folder / SETTINGS
    settings = read_json(path) if path.exists() else {}
    if args.base_url:
        settings["base_url"] = args.base_url
    if args.model:
        settings["model"] = args.model
    config = endpoint_config(settings, "judge")
    if config is None:
        raise UserError(
            "judge",
            "no server is named",
            "give --base-url and --model, or set JUDGE_BASE_URL and JUDGE_MODEL",
        )
    return config


if __name__ == "__main__":
    main()
