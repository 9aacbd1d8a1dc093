"""The HTML page: opens from disk, loads nothing from elsewhere, light and dark, reads on a phone."""

import html
import json
import math

from harness.report import samples, tables
from harness.report.figures import BASE
from harness.report.html import TEMPLATES
from harness.results.formats import read_object

ROWS = 400  # of records written into the page; tables/records.csv has all
CSS = (TEMPLATES / "style.css").read_text(encoding="utf-8")
SCRIPT = (TEMPLATES / "script.js").read_text(encoding="utf-8")


def render(results, made, pictures, look, to_folder):
    """The page as text. made: the Tables in order; pictures: as drawn; to_folder: path from the
    page to each results folder.
    """
    e = html.escape

    def dot(label):
        colour = look[label][0] if label in look else BASE if label.startswith("base") else None
        return f'<span class="dot" style="background:{colour}"></span>' if colour else ""

    def table(item, extra="", wrap="scroll"):
        links = " · ".join(
            f'<a href="tables/{item.name}.{end}">{text}</a>'
            for end, text in (("csv", "CSV"), ("md", "Markdown"), ("tex", "LaTeX"))
        )
        return f'<div class="{wrap}" tabindex="0">{item.html(dot)}</div><p class="note">{e(item.note)} {links}</p>{extra}'

    def picture(item):
        links = (
            f'<a href="figures/{item.name}.svg">SVG</a> · <a href="figures/{item.name}.png">PNG</a>'
        )
        wide = "wide" if item.width > 7 else ""
        return (
            f'<figure id="{item.name}"><h3>{e(item.title)}</h3><div class="scroll" tabindex="0"><picture><source '
            f'srcset="figures/dark/{item.name}.svg" '
            f'media="(prefers-color-scheme: dark)"><img class="{wide}" style="max-width:{item.width * 96:.0f}px" '
            f'src="figures/{item.name}.svg" alt="{e(item.title)}: {e(item.caption)}">'
            f"</picture></div><figcaption>{e(item.caption)} {links}</figcaption></figure>"
        )

    by_name = {t.name: t for t in made}
    drawn = {p.name: p for p in pictures}
    title = " and ".join(results.names)
    sections = []

    body = []
    if "main" in by_name:
        body.append(table(by_name["main"], _meanings()))
    body += [
        picture(drawn[name]) for name in ("curves", "curves_normalised", "plane") if name in drawn
    ]
    sections.append(("results", "Results", body))
    if "own_stage" in by_name:
        body = [table(by_name["own_stage"])] + [
            picture(drawn[n]) for n in ("accuracy_matrix",) if n in drawn
        ]
        sections.append(("skills", "Learning each skill", body))
    if "retention" in by_name:
        sections.append(
            (
                "retention-section",
                "Retention",
                [table(by_name["retention"])]
                + [picture(drawn[n]) for n in ("retention",) if n in drawn],
            )
        )
    body = [table(by_name["cost"])] if "cost" in by_name and by_name["cost"].rows else []
    body += [picture(drawn["training"])] if "training" in drawn else []
    if body:
        sections.append(("cost", "Cost and training", body))
    chosen = samples.choose(results)
    if chosen:
        sections.append(("samples", "Sample completions", [_samples(chosen, results, dot)]))
    sections.append(
        ("measured", "How it was measured", [_measured(results, by_name, table, to_folder)])
    )
    sections.append(
        ("provenance", "Where the runs come from", [_provenance(results, dot, to_folder)])
    )

    paths = []
    for label in results.bases().values():
        series = results.series[label]
        steps = "".join(f"<i>→</i><span>{e(name)}</span>" for name in series.order[:15]) + (
            f"<i>… {len(series.order) - 15} more</i>" if len(series.order) > 15 else ""
        )
        paths.append(f'<div class="path"><span>{e(series.model)}</span>{steps}</div>')
    seeds = sum(len(runs) for runs in results.runs.values())
    facts = (
        f"{len(results.skills)} skill{'s' * (len(results.skills) != 1)}, {len(results.series)} "
        f"method{'s' * (len(results.series) != 1)}, {seeds} run{'s' * (seeds != 1)}, "
        f"{len(results.retention)} retention task{'s' * (len(results.retention) != 1)}, {len(results.records):,} "
        f"records"
    )
    missing = ""
    if results.missing:
        shown = "".join(f"<li>{e(line)}</li>" for line in results.missing[:60])
        more = (
            f"<li>… and {len(results.missing) - 60} more</li>" if len(results.missing) > 60 else ""
        )
        missing = f'<div class="warn" id="missing"><strong>What is missing</strong><ul>{shown}{more}</ul></div>'
    links = "".join(f'<a href="#{key}">{e(name)}</a>' for key, name, _ in sections)
    parts = "".join(
        f'<section id="{key}"><h2>{e(name)}</h2>{"".join(body)}</section>'
        for key, name, body in sections
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{e(title)}: continual learning report</title><style>{CSS}</style></head><body>
<header><h1>{e(title)}</h1><div class="muted">{e(facts)}</div>{"".join(paths)}</header>
<nav><div>{links}</div></nav><main>{missing}
<p class="muted">Every number says how it was measured: point at it, or tap it.</p>
{parts}</main><footer>Made from the records in {e(", ".join(f.resolve().name for f in results.folders))} alone.</footer>
<div id="why" hidden></div><script>{SCRIPT}</script></body></html>
"""


def _meanings():
    rows = "".join(
        f"<tr><td><strong>{html.escape(k)}</strong></td><td style='white-space:normal'>{html.escape(v)}</td></tr>"
        for k, v in tables.MEANINGS.items()
    )
    return f'<details><summary>What the columns mean</summary><table class="left"><tbody>{rows}</tbody></table></details>'


def _samples(chosen, results, dot):
    e, out = (
        html.escape,
        [
            "<p class='note'>Up to three questions of each skill and method: learned and kept, lost again, never "
            "learned, where there are such; "
            "each answered by the base model and after the stages. The score is the metric that counts.</p>"
        ],
    )
    for name in dict.fromkeys(group["skill"] for group in chosen):
        out.append(f"<h3>{e(name)} <span class='muted'>({e(results.metric[name])})</span></h3>")
        for group in (g for g in chosen if g["skill"] == name):
            out.append(
                f"<details><summary>{dot(group['label'])}{e(group['label'])}, seed {group['seed']}</summary>"
            )
            for item in group["items"]:
                out.append(
                    f"<p class='muted'>Example {e(item['id'])}</p><pre>{e(item['prompt'])}</pre>"
                    f"<p class='muted'>Reference</p><pre>{e(item['reference'])}</pre><div class='answers'>"
                )
                for answer in item["answers"]:
                    score = answer["score"]
                    mark = (
                        ""
                        if score is None
                        else f"<span class='{'good' if score >= 0.5 else 'bad'}'>{'✓' if score >= 0.5 else '✗'} {score:g}</span>"
                    )
                    when = (
                        "base"
                        if answer["stage"] == 0
                        else f"after {answer['stage']}: {answer['name']}"
                    )
                    cut = (
                        ""
                        if answer["finished"]
                        else " <span class='muted'>(cut at the limit)</span>"
                    )
                    out.append(
                        f"<div class='answer'><b>{e(when)}</b> {mark}{cut}<pre>{e(answer['completion'])}</pre></div>"
                    )
                out.append("</div>")
            out.append("</details>")
    return "".join(out)


def _measured(results, by_name, table, to_folder):
    e, out = html.escape, []
    out.append(
        "<p class='note'>Each table says which 95% intervals it has. Of several seeds: Student's t over seeds. Of one run: "
        "Wilson's for one accuracy; else a seeded percentile bootstrap, which resamples a test's "
        "examples once for all stages, so that differences between stages are paired; where the items of evaluations/ do not give a "
        "value, its standard error stands in, and differences have no interval. Means of answers all right or all wrong: Wilson's, as "
        "of one test. Records of two protocols are never averaged: the report refuses.</p>"
    )
    for kind, names in (("skill", results.skills), ("retention", results.retention)):
        for name in names:
            protocol = results.protocol_of.get((kind, name))
            if protocol is None:
                continue
            text = json.dumps(
                results.protocols.get(protocol, "not in protocols.json"),
                indent=2,
                ensure_ascii=False,
            )
            about = names[name].get("description") or ""
            out.append(
                f"<details><summary>{e(tables.measured(results, kind, name))}</summary><p "
                f"class='muted'>{e(about)}</p><pre>{e(text)}</pre></details>"
            )
    if "every_metric" in by_name:
        out.append(
            f"<details><summary>Every metric on record, base and "
            f"final</summary>{table(by_name['every_metric'], wrap='scroll tall')}</details>"
        )
    used = tables.records_used(results)
    ends = (
        used["label"]
        .astype(object)
        .map({label: len(s.order) for label, s in results.series.items()})
    )
    shown = used[
        (used["stage"] == ends)
        | (used["stage"] == 0)
        | (used["name"].astype(object) == used["skill"].astype(object))
    ]
    where = dict(zip(results.names, to_folder, strict=True))
    many = len(results.names) > 1
    rows = []
    for r in shown.head(ROWS).itertuples():
        name = e(str(r.evaluation))
        known = isinstance(r.evaluation, str) and bool(
            results.evaluation(results.names.index(r.folder), r.evaluation)
        )
        link = (
            f'<a href="{e(where[r.folder])}/evaluations/{name}.json">{name}</a>' if known else "–"
        )
        spread = f" ±{r.stderr:.3f}" if r.stderr is not None and math.isfinite(r.stderr) else ""
        n = "–" if not math.isfinite(r.n) else f"{int(r.n)}"
        rows.append(
            "<tr>"
            + (f"<td>{e(r.folder)}</td>" if many else "")
            + f"<td>{e(str(r.label))}</td><td>{r.seed}</td><td>{r.stage}</td><td>{e(str(r.name))}</td><td>{e(str(r.metric))}</td>"
            f"<td>{r.value:.4f}<span "
            f"class='ci'>{spread}</span></td><td>{n}</td><td>{e(str(r.protocol))}</td><td>{link}</td></tr>"
        )
    head = "".join(
        f"<th>{h}</th>"
        for h in (
            [
                *["folder"] * many,
                "method",
                "seed",
                "stage",
                "measured",
                "metric",
                "value ± standard error",
                "n",
                "protocol",
                "evaluation",
            ]
        )
    )
    out.append(
        f"<details><summary>Records behind the numbers: base, own stage and final</summary><div class='scroll tall' "
        f"tabindex='0'><table class='left'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div><p class='note'>{min(ROWS, len(shown))} of {len(used):,} "
        f"records that the tables and curves rest on; all of them: "
        "<a href='tables/records.csv'>records.csv</a>. Curves: <a "
        "href='tables/curves.csv'>curves.csv</a>.</p></details>"
    )
    return "".join(out)


def _provenance(results, dot, to_folder):
    e, out = html.escape, []
    for index, name in enumerate(results.names):
        order = json.dumps(
            read_object(results.folders[index] / "results.json", {}), indent=2, ensure_ascii=False
        )
        link = to_folder[index]
        out.append(
            f"<details><summary>{e(name)}: the order as it was resolved</summary><p><a "
            f"href='{e(link)}/results.json'>results.json</a> · "
            f"<a href='{e(link)}/records.jsonl'>records.jsonl</a></p><pre>{e(order)}</pre></details>"
        )
    labels = {member: s.label for s in results.series.values() for member in s.members}
    runs = results.provenance()
    rows = []
    for run in runs[:200]:
        label = labels.get((run["folder"], run.get("label")), str(run.get("label")))
        packages = ", ".join(f"{k} {v}" for k, v in (run.get("packages") or {}).items())
        config = ", ".join(f"{k} {v}" for k, v in (run.get("config") or {}).items())
        cells = [
            run.get("seed"),
            run.get("method"),
            config,
            run.get("device"),
            run.get("dtype"),
            run.get("threads"),
            run.get("git"),
            run.get("started"),
            packages,
        ]
        rows.append(
            f"<tr><th class='stub'>{dot(label)}{e(label)}</th>"
            + "".join(f"<td>{e(str(c if c is not None else '–'))[:400]}</td>" for c in cells)
            + "</tr>"
        )
    if rows:
        head = "".join(
            f"<th>{h}</th>"
            for h in (
                "seed",
                "method",
                "settings",
                "device",
                "dtype",
                "threads",
                "git",
                "started",
                "packages",
            )
        )
        out.append(
            f"<div class='scroll tall' tabindex='0'><table class='left'><thead><tr><th "
            f"class='stub'>run</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        )
        if len(runs) > 200:
            out.append(
                f"<p class='note'>The first 200 of {len(runs)} runs; runs/*/run.json has each.</p>"
            )
    else:
        out.append("<p class='note'>No run.json on disk.</p>")
    return "".join(out)
