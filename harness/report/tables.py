"""The tables of a report, and their five forms: CSV, Markdown, LaTeX, HTML, terminal."""

import csv
import html
import io
import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from harness.base import metrics
from harness.report.data import ALIKE, APART, HOW, SEEDS, Estimate

MEANINGS = {
    "ACC": "mean accuracy over all skills after the last stage (Lopez-Paz & Ranzato 2017)",
    "BWT": "backward transfer: mean over all but the last skill of final minus own-stage accuracy; negative = lost "
    "(Lopez-Paz & Ranzato 2017)",
    "FWT": "forward transfer: mean over all but the first skill of accuracy just before its own stage minus base "
    "accuracy "
    "(Lopez-Paz & Ranzato 2017, with the base model as the comparison)",
    "Forgetting": "mean over all but the last skill of its best accuracy after any earlier stage minus its final one; "
    "positive = lost (Chaudhry et al. 2018)",
    "LA": "learning accuracy: mean own-stage accuracy (Riemer et al. 2019)",
    "Retention": "mean over the retention tasks whose metric is a fraction of final minus base; positive = better",
    "own stage": "accuracy right after the stage that taught the skill",
}


@dataclass
class Column:
    key: str
    title: str
    group: str = ""
    # "%": a fraction, shown times 100; "own": the metric's own unit; "text"; "count"; "seconds";
    # "GiB"
    unit: str = "%"
    signed: bool = False
    note: str = ""


@dataclass
class Table:
    """name: of its files; rows: (label, {column key: Estimate, number or text}); the first column
    is the label.
    """

    name: str
    title: str
    note: str
    columns: list
    rows: list = field(default_factory=list)
    stub: str = "method"

    def text(self, column, cell, interval=True):
        if isinstance(cell, str):
            return cell
        estimate = (
            cell
            if isinstance(cell, Estimate)
            else Estimate(math.nan if cell is None else float(cell))
        )
        if not math.isfinite(estimate.value):
            return "–"
        scale, form = {"%": (100, ".1f"), "own": (1, ".3f"), "GiB": (1, ".2f")}.get(
            column.unit, (1, ",.0f")
        )
        if column.unit == "seconds" and abs(estimate.value) < 10:
            form = ".1f"
        text = format(estimate.value * scale + 0.0, ("+" if column.signed else "") + form)
        text = text.replace("+0.0", "0.0") if float(text.replace(",", "")) == 0 else text
        text = text.lstrip("-") if float(text.replace(",", "")) == 0 else text
        if interval and math.isfinite(estimate.low):
            text += f" ±{format((estimate.high - estimate.low) / 2 * scale, form)}"
        return text.replace("-", "−", 1) if text.startswith("-") else text

    def heading(self, column):
        return f"{column.group} {column.title}".strip()

    def csv(self):
        """Numbers in the metric's own unit (accuracies as fractions), each with its bounds in two
        further columns.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        bounded = {
            c.key
            for c in self.columns
            if any(isinstance(row.get(c.key), Estimate) for _, row in self.rows)
        }
        writer.writerow(
            [
                self.stub,
                *(
                    name
                    for c in self.columns
                    for name in (
                        [self.heading(c), f"{self.heading(c)} low", f"{self.heading(c)} high"]
                        if c.key in bounded
                        else [self.heading(c)]
                    )
                ),
            ]
        )
        for label, row in self.rows:
            cells = [label]
            for column in self.columns:
                cell = row.get(column.key)
                if isinstance(cell, Estimate):
                    cells += [_number(cell.value), _number(cell.low), _number(cell.high)]
                else:
                    cells += [cell if isinstance(cell, str) else _number(cell)] + ["", ""] * (
                        column.key in bounded
                    )
            writer.writerow(cells)
        return out.getvalue()

    def markdown(self):
        head = [self.stub, *(self.heading(c) for c in self.columns)]
        lines = [
            "| " + " | ".join(_md(x) for x in head) + " |",
            "|" + "|".join(["---"] + ["---:"] * len(self.columns)) + "|",
        ]
        for label, row in self.rows:
            lines.append(
                "| "
                + " | ".join(
                    _md(x) for x in [label, *(self.text(c, row.get(c.key)) for c in self.columns)]
                )
                + " |"
            )
        return f"**{self.title}**\n\n" + "\n".join(lines) + f"\n\n{self.note}\n"

    def latex(self):
        """A tabular in booktabs style (\\usepackage{booktabs})."""
        lines = [
            f"% {self.title}. {self.note}".replace("\n", " "),
            f"\\begin{{tabular}}{{l{'r' * len(self.columns)}}}",
            "\\toprule",
        ]
        groups = _groups(self.columns)
        if any(name for name, _ in groups):
            lines.append(
                " & "
                + " & ".join(
                    f"\\multicolumn{{{len(cs)}}}{{c}}{{{_tex(name)}}}" for name, cs in groups
                )
                + " \\\\"
            )
        lines.append(
            " & ".join([_tex(self.stub), *(_tex(c.title) for c in self.columns)]) + " \\\\"
        )
        lines.append("\\midrule")
        for label, row in self.rows:
            cells = []
            for column in self.columns:
                cell = row.get(column.key)
                text = self.text(column, cell)
                if isinstance(cell, str) or text == "–":
                    cells.append(_tex(text))
                else:
                    cells.append(
                        "$"
                        + text.replace(" ±", " \\pm ").replace("−", "-").replace(",", "{,}")
                        + "$"
                    )
            lines.append(" & ".join([_tex(label), *cells]) + " \\\\")
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"

    def html(self, dot=lambda label: ""):
        """dot: gives the HTML of a label's colour mark."""
        groups, lines = _groups(self.columns), ["<table>"]
        lines.append("<thead>")
        if any(name for name, _ in groups):
            lines.append(
                f'<tr><th rowspan="2" scope="col" class="stub">{html.escape(self.stub)}</th>'
                + "".join(
                    f'<th colspan="{len(cs)}" scope="colgroup" '
                    f'class="{"group" if name else ""}">{html.escape(name)}</th>'
                    for name, cs in groups
                )
                + "</tr>"
            )
            lines.append("<tr>")
        else:
            lines.append(f'<tr><th scope="col" class="stub">{html.escape(self.stub)}</th>')
        edges = {cs[0].key for name, cs in groups if name}
        for column in self.columns:
            note = f' title="{html.escape(column.note)}" data-note' if column.note else ""
            lines.append(
                f'<th scope="col"{note} '
                f'class="{"edge" if column.key in edges else ""}">{html.escape(column.title)}</th>'
            )
        lines.append("</tr></thead><tbody>")
        for label, row in self.rows:
            kind = "base" if label.startswith("base") else "foot" if label.startswith("n (") else ""
            lines.append(
                f'<tr class="{kind}"><th scope="row" class="stub">{dot(label)}{html.escape(label)}</th>'
            )
            for column in self.columns:
                cell = row.get(column.key)
                value, _, spread = self.text(column, cell).partition(" ±")
                note = ""
                if isinstance(cell, Estimate) and math.isfinite(cell.value):
                    note = _note(self, column, label, cell)
                lines.append(
                    f'<td class="{"edge" if column.key in edges else ""}"'
                    + (f' title="{html.escape(note)}" data-note' if note else "")
                    + ">"
                    + html.escape(value)
                    + (f'<span class="ci"> ±{html.escape(spread)}</span>' if spread else "")
                    + "</td>"
                )
            lines.append("</tr>")
        return "\n".join([*lines, "</tbody></table>"])

    def terminal(self, width=100):
        """(text, what it leaves out): at most ``width`` columns wide where that can be."""
        brief = [c for c in self.columns if c.title != "own stage"]
        for columns, intervals, left_out in (  # noqa: B007 - the last one tried is returned
            (self.columns, True, ""),
            (brief, True, "own-stage accuracies"),
            (brief, False, "own-stage accuracies, intervals"),
            ([c for c in self.columns if not c.group], True, "accuracies of each skill"),
        ):
            grid = [
                [
                    self.stub,
                    *(
                        c.group if c.group and c.title == "final" else self.heading(c)
                        for c in columns
                    ),
                ]
            ]
            grid += [
                [
                    label,
                    *(self.text(c, row.get(c.key), intervals).replace(" ±", "±") for c in columns),
                ]
                for label, row in self.rows
            ]
            widths = [max(len(line[i]) for line in grid) for i in range(len(grid[0]))]
            if sum(widths) + 2 * (len(widths) - 1) <= width:
                break
        grid = [line for line in grid if set(line[1:]) != {"–"}]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in grid
        ]
        lines.insert(1, "─" * len(lines[0]))
        lines = [line.rstrip() for line in lines]
        return "\n".join(lines), left_out


def _groups(columns):
    groups = []
    for column in columns:
        if groups and groups[-1][0] == column.group:
            groups[-1][1].append(column)
        else:
            groups.append((column.group, [column]))
    return groups


def _note(table, column, label, cell):
    form = (lambda x: f"{100 * x:.2f}") if column.unit == "%" else (lambda x: f"{x:.4g}")
    bounds = (
        f" [{form(cell.low)}, {form(cell.high)}]" if math.isfinite(cell.low) else ", no interval"
    )
    parts = [
        f"{label}, {table.heading(column)}: "
        f"{form(cell.value)}{' %' if column.unit == '%' and not column.signed else ''}{bounds}"
    ]
    return "\n".join(parts + [x for x in (cell.how, cell.detail or column.note) if x])


def _number(value):
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


def _md(text):
    return str(text).replace("|", "\\|")


TEX = {
    "\\": "\\textbackslash{}",
    "&": "\\&",
    "%": "\\%",
    "_": "\\_",
    "#": "\\#",
    "$": "\\$",
    "{": "\\{",
    "}": "\\}",
    "–": "--",
    "−": "$-$",
    "Δ": "$\\Delta$",
    "→": "$\\to$",
    "^": "\\^{}",
    "~": "\\~{}",
}


def _tex(text):
    return "".join(TEX.get(letter, letter) for letter in text)


def measured(results, kind, name):
    """How a skill or task is measured, in one line: split, metric, n, protocol."""
    n, protocol = results.n.get((kind, name)), results.protocol_of.get((kind, name))
    if kind == "skill":
        fields = results.protocols.get(protocol) or {}
        decoding = fields.get("decoding") if isinstance(fields, dict) else None
        how = f"split {results.split}, metric {results.metric[name]}" + (
            f", {decoding}" if decoding else ""
        )
    else:
        task = results.retention[name]
        how = f"lm-eval, metric {task['metric']} ({'higher' if task.get('higher_is_better', True) else 'lower'} is better)"
    return f"{name}: {how}, n = {n if n is not None else '?'}, protocol {protocol or '?'}"


def interval_note(rows):
    """Which intervals the cells of a table have, and why some have none."""
    rows = [
        (label, [c for c in row.values() if isinstance(c, Estimate) and math.isfinite(c.value)])
        for label, row in rows
    ]
    rows = [(label, {c.by for c in cells}) for label, cells in rows if cells]
    if not rows:
        return "Nothing was measured yet."

    def who(by):
        labels = [label for label, found in rows if by in found]
        return "" if len(labels) == len(rows) or by != SEEDS else " for " + ", ".join(labels)

    used = [by for by in HOW if any(by in found for _, found in rows)]
    parts = [HOW[by] + who(by) for by in used if by not in (APART, ALIKE)]
    gaps = [HOW[by] for by in used if by in (APART, ALIKE)]
    note = (
        "± is half of a 95% interval " + "; ".join(parts) + "."
        if parts
        else "No number has an interval."
    )
    return note + (" No ±: " + "; ".join(gaps) + "." if gaps else "")


def main_table(results):
    """(a) methods x ACC, BWT, forgetting, mean retention change, final and own-stage accuracy of
    each skill.
    """
    in_mean = [t for t, counts in results.tasks_in_mean.items() if counts]
    columns = [
        Column("seeds", "seeds", unit="text", note="complete runs / expected"),
        Column("acc", "ACC", note=MEANINGS["ACC"]),
        Column("bwt", "BWT", signed=True, note=MEANINGS["BWT"]),
        Column("forgetting", "Forgetting", note=MEANINGS["Forgetting"]),
    ]
    if results.retention:
        columns.append(
            Column(
                "retention",
                "Retention Δ",
                signed=True,
                note=f"{MEANINGS['Retention']}; here {', '.join(in_mean) or 'none'}",
            )
        )
    for name in results.skills:
        columns += [
            Column(
                f"{name}/final",
                "final",
                name,
                note=f"after the last stage. {measured(results, 'skill', name)}",
            ),
            Column(
                f"{name}/own",
                "own stage",
                name,
                note=f"{MEANINGS['own stage']}. {measured(results, 'skill', name)}",
            ),
        ]
    rows = []
    for row in results.bases():
        order = results.series[results.bases()[row]].order
        cells = {
            "acc": results.base_estimate(
                order, row, detail="mean accuracy of the base model over all skills"
            )
        }
        cells |= {
            f"{name}/final": results.base_estimate(
                [name], row, detail=measured(results, "skill", name)
            )
            for name in results.skills
        }
        rows.append((row, cells))
    for label, series in results.series.items():
        cells = {
            "seeds": f"{results.complete(label)}/{len(series.seeds)}",
            "acc": results.estimate(label, metrics.average_accuracy),
            "bwt": results.estimate(label, metrics.backward_transfer, difference=True),
            "forgetting": results.estimate(label, metrics.forgetting, difference=True),
        }
        if results.retention:
            cells["retention"] = results.estimate(
                label, lambda D: _last_minus_base(results.retention_mean(D)), "D", difference=True
            )
        for i, name in enumerate(series.order):
            detail = measured(results, "skill", name)
            cells[f"{name}/final"] = results.estimate(
                label, lambda R, i=i: R[..., -1, i], detail=detail
            )
            cells[f"{name}/own"] = results.estimate(
                label, lambda R, i=i: R[..., i + 1, i], detail=detail
            )
        rows.append((label, cells))
    rows.append(
        (
            "n (examples)",
            {f"{name}/final": str(results.n.get(("skill", name), "–")) for name in results.skills},
        )
    )
    others = [t for t in results.retention if t not in in_mean]
    note = (
        f"Accuracies in per cent, differences in points; metric that counts of each skill, split {results.split}. "
        f"{interval_note(rows)} "
        "BWT, forgetting and retention Δ compare with earlier measurements of the same run."
        + (
            f" Retention Δ is the mean over {', '.join(in_mean)}"
            + (f"; {', '.join(others)} in other units: see the retention table." if others else ".")
            if in_mean
            else ""
        )
        + "".join(f" {series.selected}" for series in results.series.values() if series.selected)
    )
    return Table("main", "Main results", note, columns, rows)


def _last_minus_base(values):
    return values[..., -1] - values[..., 0]


def gain_table(results):
    """(b) own-stage accuracy over the base model's, with LA and FWT."""
    columns = [
        Column("la", "LA", note=MEANINGS["LA"]),
        Column(
            "gain",
            "mean gain",
            signed=True,
            note="mean over skills of own-stage minus base accuracy",
        ),
        Column("fwt", "FWT", signed=True, note=MEANINGS["FWT"]),
    ]
    columns += [
        Column(name, name, "own stage − base", signed=True, note=measured(results, "skill", name))
        for name in results.skills
    ]
    rows = []
    for label, series in results.series.items():
        cells = {
            "la": results.estimate(label, metrics.learning_accuracy),
            "gain": results.estimate(
                label, lambda R: metrics.own_stage_gain(R).mean(-1), difference=True
            ),
            "fwt": results.estimate(label, metrics.forward_transfer, difference=True),
        }
        for i, name in enumerate(series.order):
            cells[name] = results.estimate(
                label,
                lambda R, i=i: R[..., i + 1, i] - R[..., 0, i],
                detail=measured(results, "skill", name),
                difference=True,
            )
        rows.append((label, cells))
    return Table(
        "own_stage",
        "Own-stage gains over the base model",
        "Points of accuracy right after the stage that taught the skill, minus the base "
        f"model's: what earlier stages did to the skill is in it. {interval_note(rows)}",
        columns,
        rows,
    )


def retention_table(results):
    """(c) every retention task: final value and change from the base, positive = better."""
    columns, rows = [], []
    for task, entry in results.retention.items():
        unit = "%" if results.tasks_in_mean[task] else "own"
        note = measured(results, "retention", task) + (
            f", chance {entry['chance']}" if entry.get("chance") is not None else ""
        )
        group = f"{task} ({entry['metric']}{'' if entry.get('higher_is_better', True) else ', lower is better'})"
        columns += [
            Column(f"{task}/final", "final", group, unit, note=note),
            Column(f"{task}/delta", "Δ", group, unit, True, note=note),
        ]
    for row in results.bases():
        rows.append(
            (
                row,
                {
                    f"{task}/final": results.base_estimate(
                        [task], row, "D", measured(results, "retention", task)
                    )
                    for task in results.retention
                },
            )
        )
    for label in results.series:
        cells = {}
        for i, (task, entry) in enumerate(results.retention.items()):
            up, detail = entry.get("higher_is_better", True), measured(results, "retention", task)
            cells[f"{task}/final"] = results.estimate(
                label, lambda D, i=i: D[..., -1, i], "D", detail
            )
            cells[f"{task}/delta"] = results.estimate(
                label,
                lambda D, i=i, up=up: metrics.retention_delta(D[..., 0, i], D[..., -1, i], up),
                "D",
                detail,
                difference=True,
            )
        rows.append((label, cells))
    rows.append(
        (
            "n (examples)",
            {f"{t}/final": str(results.n.get(("retention", t), "–")) for t in results.retention},
        )
    )
    return Table(
        "retention",
        "Retention: what the model could do before",
        "After the last stage, and the change Δ from the base model. Δ is positive where the "
        "model became better, also where lower is better. Fractions in per cent, other metrics in lm-eval's own unit. "
        + interval_note(rows),
        columns,
        rows,
    )


def cost_table(results):
    """(d) what a run cost: prompts, tokens, seconds per part, peak memory; mean over runs.

    Without stage 0, which is no method's: the first run measures the base model for all, and a
    later one holds there at most what memory is left of another. What it took is a row of its own.
    """
    stages = results.stages()
    stages = stages[stages["stage"] > 0] if len(stages) else stages
    parts = (
        [c.removeprefix("seconds_") for c in stages.columns if c.startswith("seconds_")]
        if len(stages)
        else []
    )
    columns = [
        Column("runs", "runs", unit="text"),
        Column("stages", "stages", unit="text"),
        Column("steps", "steps", unit="count"),
        Column("prompts", "prompts", unit="count"),
        Column("tokens", "tokens", unit="count"),
    ]
    columns += [Column(f"seconds_{p}", p, "seconds", "seconds") for p in parts]
    columns += [Column("total", "total", "seconds", "seconds")] * bool(parts)
    columns += [
        Column("peak_memory_gib", "peak GiB", unit="GiB", note="largest of all stages"),
        Column("device", "device", unit="text"),
    ]
    devices = {}
    labels = {member: s.label for s in results.series.values() for member in s.members}
    for run in results.provenance():
        devices.setdefault(labels.get((run["folder"], run.get("label"))), set()).add(
            str(run.get("device", "?"))
        )
    rows = []
    for row, folders in results.base_costs().items() if parts else ():
        means = {p: float(np.mean([seconds[p] for seconds in folders])) for p in parts}
        if any(means.values()):
            rows.append(
                (
                    row,
                    {f"seconds_{p}": s for p, s in means.items() if s}
                    | {"total": sum(means.values())},
                )
            )
    for label, series in results.series.items():
        mine = stages[stages["label"] == label] if len(stages) else stages
        if mine.empty:
            continue
        sums = mine.groupby(["folder", "seed"])[
            [
                c
                for c in mine.columns
                if c in ("steps", "prompts", "tokens") or c.startswith("seconds_")
            ]
        ].sum()
        count = mine.groupby(["folder", "seed"]).size()
        whole = count.index[count == len(series.order)]
        used = sums.loc[whole] if len(whole) else sums
        means = used.mean()
        cells = {c: float(v) for c, v in means.items()}
        cells["runs"], cells["stages"] = (
            str(len(used)),
            str(len(series.order))
            if len(whole)
            else f"{count.max() if len(count) else 0} of {len(series.order)}",
        )
        cells["total"] = float(sum(v for c, v in means.items() if c.startswith("seconds_")))
        if "peak_memory_gib" in mine:
            cells["peak_memory_gib"] = float(mine["peak_memory_gib"].max())
        cells["device"] = ", ".join(sorted(devices.get(label, {"?"})))
        rows.append((label, cells))
    return Table(
        "cost",
        "Cost of a run",
        "Mean over complete runs, summed over the stages in stage.json (over what is there where no run is complete). "
        "The base model is measured once for all runs of a folder. "
        "An evaluation found in the cache costs no seconds. Compare seconds only on one device.",
        columns,
        rows,
    )


def every_metric(results):
    """(e) every metric and split on record, base and final, one row each."""
    table = results.records[results.records["final"] & results.records["label"].notna()]
    last = (
        table["label"]
        .astype(object)
        .map({label: len(s.order) for label, s in results.series.items()})
    )
    keys = ["kind", "name", "split", "metric"]
    values = {}
    for part, rows in (
        ("base", table[table["stage"] == 0]),
        ("final", table[table["stage"] == last]),
    ):
        columns = [*keys] + ["label"] * (part == "final")
        groups = rows.groupby(columns, observed=True, sort=False)["value"]
        for key, (mean, std, count) in zip(
            groups.mean().index, groups.agg(["mean", "std", "count"]).to_numpy(), strict=True
        ):
            half = (
                metrics.t_quantile(0.975, int(count) - 1) * std / count**0.5
                if part == "final" and count > 1 and std > 0
                else np.nan
            )
            how = f"mean of {int(count)} seeds, 95% t-interval" if np.isfinite(half) else ""
            values.setdefault(key[:4], {})[key[4] if part == "final" else "base"] = Estimate(
                mean, mean - half, mean + half, how
            )
    columns = [
        Column("split", "split", unit="text"),
        Column("metric", "metric", unit="text"),
        Column("base", "base", unit="own"),
    ]
    columns += [Column(label, label, unit="own") for label in results.series]
    one_base = len(results.bases()) == 1
    rows = []
    for (_, name, split, metric), cells in values.items():
        if not one_base:
            cells.pop("base", None)
        rows.append((name, {"split": split, "metric": metric, **cells}))
    return Table(
        "every_metric",
        "Every metric on record",
        "Base model and after the last stage, in the metric's own unit; ± over seeds where there are several "
        "that differ.",
        columns,
        rows,
        stub="measured",
    )


def records_used(results):
    """The records behind the tables: final ones of the metrics that count, as a DataFrame."""
    used = pd.concat(
        [
            results.skill_records[results.skill_records["final"]],
            results.retention_records[results.retention_records["final"]],
        ]
    )
    used = used.assign(folder=used["folder"].map(dict(enumerate(results.names))))
    return used[
        [
            "folder",
            "label",
            "seed",
            "stage",
            "skill",
            "step",
            "kind",
            "name",
            "split",
            "metric",
            "value",
            "stderr",
            "n",
            "protocol",
            "evaluation",
        ]
    ]
