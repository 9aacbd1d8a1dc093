"""Trackers behind one small protocol: TensorBoard, Trackio, MLflow, Weights & Biases.

Each writes where it always does, as its own variables say (TRACKIO_DIR, MLFLOW_TRACKING_URI,
WANDB_DIR, WANDB_MODE), and TensorBoard into the results folder. ``points`` reads back what a
tracker has of a run: what it has is not logged again, so that a run that goes on continues its
curve. Packages are imported when a tracker is made, in a process of its own (tracked.py).
"""

import importlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.watch.wandb_file import history

Point = tuple[str, int, float]  # (name, optimizer step, value)
Rows = Sequence[Sequence[str]]
LONGEST = 500  # letters of a value of MLflow's parameters


class Tracker:
    """Logs runs of one order, one after the other.

    package: what is imported, and installed by pip.
    """

    package: str

    def __init__(self, project: str, folder: Path) -> None:
        """project: the order's name; folder: of its results."""
        self.project, self.folder = project, folder

    def points(self, run: str, key: str) -> list[Point]:
        """What the tracker has of a run. run: its name; key: of no other run of any folder."""
        raise NotImplementedError

    def begin(self, run: str, key: str, config: Mapping[str, Any]) -> None:
        """What comes is of this run, which may be there already."""
        raise NotImplementedError

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at an optimizer step."""
        raise NotImplementedError

    def table(self, name: str, rows: Rows) -> None:
        """A table of the report, its head in the first row."""
        raise NotImplementedError

    def finish(self) -> None:
        """The run has nothing more, for now."""


class TensorBoard(Tracker):
    """Event files in ``tensorboard/RUN`` of the results folder."""

    package = "tensorboard"

    def __init__(self, project: str, folder: Path) -> None:
        super().__init__(project, folder)
        self._event = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        self._tensor = importlib.import_module("tensorboard.compat.proto.tensor_pb2").TensorProto
        self._writer: Any = None

    def points(self, run: str, key: str) -> list[Point]:
        read = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
        events = read.EventAccumulator(str(self._place(run)), size_guidance={"scalars": 0})
        if not self._place(run).is_dir():
            return []
        events.Reload()
        names = events.Tags()["scalars"]
        return [(name, e.step, e.value) for name in names for e in events.Scalars(name)]

    def _place(self, run: str) -> Path:
        return self.folder / "tensorboard" / run

    def begin(self, run: str, key: str, config: Mapping[str, Any]) -> None:
        files = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._writer = files.EventFileWriter(str(self._place(run)), flush_secs=10)
        self._text("config", f"```\n{json.dumps(config, indent=2, default=str)}\n```")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [
            self._summary.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        self._add(scalars, step)

    def table(self, name: str, rows: Rows) -> None:
        head, *body = ["| " + " | ".join(row) + " |" for row in rows]
        line = "|" + "---|" * len(rows[0])
        self._text(f"tables/{name}", "\n".join([head, line, *body]))

    def _text(self, name: str, text: str) -> None:
        plugin = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        value = self._summary.Summary.Value(
            tag=name,
            metadata=self._summary.SummaryMetadata(plugin_data=plugin),
            tensor=self._tensor(dtype="DT_STRING", string_val=[text.encode()]),
        )
        self._add([value], 0)

    def _add(self, values: Sequence[Any], step: int) -> None:
        summary = self._summary.Summary(value=values)
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def finish(self) -> None:
        self._writer.close()


class Trackio(Tracker):
    """Trackio's local store, or the Space that TRACKIO_SPACE_ID names."""

    package = "trackio"

    def __init__(self, project: str, folder: Path) -> None:
        super().__init__(project, folder)
        self._trackio = importlib.import_module(self.package)
        self._store = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
        self._run: Any = None

    def points(self, run: str, key: str) -> list[Point]:
        rows = self._store.get_logs(self.project, key)
        return [
            (name, row["step"], value)
            for row in rows
            for name, value in row.items()
            if "/" in name and isinstance(value, int | float)
        ]

    def begin(self, run: str, key: str, config: Mapping[str, Any]) -> None:
        self._run = self._trackio.init(
            project=self.project,
            name=key,
            resume="allow",
            config=dict(config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def table(self, name: str, rows: Rows) -> None:
        frame = importlib.import_module("pandas").DataFrame(rows[1:], columns=rows[0])
        self._run.log({f"tables/{name}": self._trackio.Table(dataframe=frame)}, step=0)

    def finish(self) -> None:
        self._run.finish()


class MLflow(Tracker):
    """A run of MLflow for each run, found again by a tag."""

    package = "mlflow"

    def __init__(self, project: str, folder: Path) -> None:
        super().__init__(project, folder)
        mlflow = importlib.import_module(self.package)
        self._entities = importlib.import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        found = self._client.get_experiment_by_name(project)
        self._experiment = found.experiment_id if found else self._client.create_experiment(project)
        self._id = ""

    def points(self, run: str, key: str) -> list[Point]:
        found = self._find(key)
        if found is None:
            return []
        return [
            (name, point.step, point.value)
            for name in found.data.metrics
            for point in self._client.get_metric_history(found.info.run_id, name)
        ]

    def _find(self, key: str) -> Any:
        query = f"tags.harness_run = '{key}'"
        found = self._client.search_runs([self._experiment], filter_string=query)
        return found[0] if found else None

    def begin(self, run: str, key: str, config: Mapping[str, Any]) -> None:
        found = self._find(key)
        if found is not None:
            self._id = found.info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {"harness_run": key, "results_folder": str(config.get("results_folder", ""))}
        made = self._client.create_run(self._experiment, run_name=run, tags=tags)
        self._id = made.info.run_id
        params = [
            self._entities.Param(re.sub(r"[^\w\-. :/]", "_", name)[:250], value[:LONGEST])
            for name, value in _flat(config)
        ]
        for first in range(0, len(params), 100):  # of one request, by MLflow's limits
            self._client.log_batch(self._id, params=params[first : first + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = round(1000 * time.time())
        metrics = [self._entities.Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def table(self, name: str, rows: Rows) -> None:
        columns = {head: [row[i] for row in rows[1:]] for i, head in enumerate(rows[0])}
        file = f"tables/{name}.json"
        self._client.log_text(self._id, json.dumps(columns), file)

    def finish(self) -> None:
        self._client.set_terminated(self._id)


class WandB(Tracker):
    """A run of Weights & Biases for each run; its local files tell what was logged."""

    package = "wandb"

    def __init__(self, project: str, folder: Path) -> None:
        super().__init__(project, folder)
        self._wandb = importlib.import_module(self.package)
        self._run: Any = None

    def points(self, run: str, key: str) -> list[Point]:
        place = Path(os.environ.get("WANDB_DIR") or ".") / "wandb"
        found = []
        for file in sorted(place.glob(f"*run-*-{key}/run-{key}.wandb")):
            for row in history(file):
                step = row.pop("step", None)
                for name, value in row.items():
                    if "/" in name and step is not None and isinstance(value, int | float):
                        found.append((name, int(step), value))
        return found

    def begin(self, run: str, key: str, config: Mapping[str, Any]) -> None:
        settings = self._wandb.Settings(
            console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True
        )
        self._run = self._wandb.init(
            project=self.project,
            name=run,
            id=key,
            resume="allow",
            config=dict(config),
            settings=settings,
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def table(self, name: str, rows: Rows) -> None:
        data = [list(row) for row in rows[1:]]
        made = self._wandb.Table(columns=list(rows[0]), data=data)
        self._run.log({f"tables/{name}": made})

    def finish(self) -> None:
        self._run.finish()


TRACKERS: dict[str, type[Tracker]] = {
    "trackio": Trackio,
    "wandb": WandB,
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
}


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, value as a text) of a nested mapping."""
    found = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)))
    return found
