"""What the commands of this folder that ask a model on a server have in common.

The server is OpenAI-compatible: JUDGE_BASE_URL, JUDGE_MODEL and JUDGE_API_KEY name it, as for the
judge of an order. Its replies are kept on disk, so that the same command goes on where it stopped
and pays for nothing twice.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.base.console import Progress
from harness.base.errors import UserError
from harness.evaluation.endpoint import Endpoint, EndpointConfig, EndpointDown, endpoint_config
from harness.evaluation.judge import open_endpoint


def add_server_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-url", help="default: $JUDGE_BASE_URL")
    parser.add_argument("--model", help="default: $JUDGE_MODEL; the key is $JUDGE_API_KEY")


def server_config(options: argparse.Namespace, max_tokens: int) -> EndpointConfig:
    """The server of the options, else of the environment; max_tokens: the limit of a reply.

    Raises UserError where neither names a server or a model.
    """
    settings: dict[str, Any] = {"max_tokens": max_tokens}
    if options.base_url:
        settings["base_url"] = options.base_url
    if options.model:
        settings["model"] = options.model
    return endpoint_config(settings, "server")


@contextmanager
def open_server(config: EndpointConfig) -> Iterator[tuple[Endpoint, Progress]]:
    """The server and a line of progress, which says at the end what was asked and paid.

    Raises UserError where the server gives no answers.
    """
    endpoint = open_endpoint(config)
    progress = Progress()
    try:
        yield endpoint, progress
    except EndpointDown as down:
        raise UserError(
            f"server {config.base_url}",
            f"gives no answers ({down})",
            "what it has answered is kept; start the same command again when it is back",
        ) from None
    finally:
        progress.say(endpoint.summary())
        progress.close()
