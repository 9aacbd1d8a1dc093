"""Judge the completions that a results folder holds.

    python -m harness.judge RESULTS_DIR --base-url URL

The server and the variable that holds its key come from the command line or from your environment,
never from the folder: whoever wrote the folder would get your key. docs/how-to/judge.md says what
is asked, what counts and what is kept.
"""

import os
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
    parser.add_argument("--base-url", help="default: $JUDGE_BASE_URL; never the folder's")
    parser.add_argument("--model", help="default: the order's, or $JUDGE_MODEL")
    parser.add_argument(
        "--key-from",
        default="JUDGE_API_KEY",
        metavar="NAME",
        help="environment variable that holds the key (default %(default)s)",
    )
    args = parser.parse_args()
    with reported(args.folder):
        config = _settings(args)
        endpoint = open_endpoint(config)
        with Progress() as progress:
            progress.say(f"asks {config.model} at {config.base_url}")
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
    """The settings of the folder with the command's on top. Raises UserError if there are none.

    The folder names neither the server nor the key.
    """
    if not (args.folder / "results.json").is_file():
        raise UserError(args.folder, "is no results folder", "give one that run_sequence.py wrote")
    path = args.folder / SETTINGS
    settings = read_json(path) if path.exists() else {}
    of_folder = settings.pop("base_url", None)
    settings |= {"base_url": args.base_url, "api_key": f"${args.key_from}"}
    if args.model:
        settings["model"] = args.model
    if not args.base_url and not os.environ.get("JUDGE_BASE_URL"):
        named = f" ({SETTINGS} names {str(of_folder)[:80]!r})" if of_folder else ""
        raise UserError(
            "judge",
            f"no server is named{named}",
            "give the one that you trust with your key by --base-url, or set JUDGE_BASE_URL",
        )
    config = endpoint_config(settings, str(path) if path.exists() else "judge")
    assert config is not None  # a server is named
    return config


if __name__ == "__main__":
    main()
