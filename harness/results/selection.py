"""The choice of a grid, by validation records alone."""

from harness.base import metrics


def grid_selection(about, records):
    """The choice of every grid, by validation records alone.

    A point of a grid is worth its mean own-stage validation accuracy: of each skill right after the
    stage that taught it, by the metric that counts, averaged over the skills, then over the seeds.
    For one skill that is the paper's rule (arXiv 2601.19897, appendix). Only the ends of stages
    count, and nothing is selected before all points have run with all seeds. An answer that the
    judge gave no verdict on counts as wrong here, or a point would gain by its hard answers'
    missing ones.

    about: what results.json holds; records: dicts. Returns {label of the grid: {"rule", "selected":
    label of a point or None, "points": [{"label", "values", "validation": mean or None, "runs":
    {seed: mean over skills or None}}]}}.
    """
    records = list(records)
    seen = {(r["name"], r["metric"]) for r in records}
    metric = {}
    for skill in about["skills"]:  # where a judge has spoken, his metric is the one that counts
        judged = skill.get("judge", {}).get("metrics", [None])[0]
        metric[skill["name"]] = judged if (skill["name"], judged) in seen else skill["metric"]
    own, unjudged = {}, {}
    for r in records:
        if (
            r["final"]
            and r["kind"] == "skill"
            and r["split"] == "validation"
            and r["name"] == r["skill"]
        ):
            if r["metric"] == metric.get(r["name"]):
                own.setdefault((r["method"], r["seed"]), {})[r["name"]] = r["value"]
            elif r["metric"] == "judge_errors":
                unjudged[r["method"], r["seed"], r["name"]] = r["value"]

    def worth(run):
        if len(own.get(run, ())) == len(metric):
            return sum(
                value * (1 - unjudged.get((*run, name), 0.0)) for name, value in own[run].items()
            ) / len(metric)

    out = {}
    for label, entry in about["methods"].items():
        if grid := entry.get("grid"):
            runs = {str(seed): worth((label, seed)) for seed in about["seeds"]}
            mean = None if None in runs.values() else sum(runs.values()) / len(runs)
            chosen = out.setdefault(
                grid["of"],
                {
                    "rule": "highest mean own-stage validation accuracy",
                    "selected": None,
                    "points": [],
                },
            )
            chosen["points"].append(
                {"label": label, "values": grid["values"], "validation": mean, "runs": runs}
            )
    for chosen in out.values():
        chosen["selected"] = metrics.select(
            {point["label"]: list(point["runs"].values()) for point in chosen["points"]}
        )
    return out
