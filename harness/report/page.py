"""The HTML page: opens from disk, loads nothing from elsewhere, light and dark, reads on a phone."""

import html
import json
import math

from harness.report import samples, tables
from harness.report.figures import BASE
from harness.results.formats import read_object

ROWS = 400  # of records written into the page; tables/records.csv has all
CSS = """
:root{color-scheme:light dark;--ink:#1b1f24;--muted:#59636e;--line:#dfe3e8;--paper:#fefefe;--soft:#f3f4f6;
--link:#0a5ea8;--warn:#fff6e0;--warnline:#e0a93b;
--good:#0b7a55;--bad:#b54708}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--muted:#a3abb5;--line:#343a42;--paper:#171a1f;--soft:#22272e;
--link:#7cb8f0;--warn:#33290f;
--warnline:#a87c1e;--good:#4fd0a0;--bad:#f5a25d}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main,header,nav>div{max-width:1200px;margin:0 auto;padding:0 20px}
header{padding-top:36px;padding-bottom:8px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:44px 0 6px;padding-top:8px}
h3{font-size:1rem;margin:22px 0 4px}
p{margin:6px 0 10px;max-width:78ch}
.muted,.note,figcaption{color:var(--muted);font-size:.875rem}
.note,figcaption{max-width:95ch}
nav{position:sticky;top:0;z-index:5;background:var(--paper);border-bottom:1px solid var(--line)}
nav>div{display:flex;gap:18px;overflow-x:auto;white-space:nowrap;padding-top:9px;padding-bottom:9px;font-size:.9rem}
a{color:var(--link);text-decoration:none}a:hover{text-decoration:underline}
.path{display:flex;flex-wrap:wrap;gap:6px;align-items:center;margin:12px 0}
.path span{background:var(--soft);border:1px solid var(--line);border-radius:999px;padding:2px 12px;font-size:.875rem}
.path i{color:var(--muted);font-style:normal}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px;margin:8px 0}
.tall{max-height:440px;overflow:auto}
table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:7px 8px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
tbody tr:last-child>*{border-bottom:0}
thead th{color:var(--muted);font-weight:600;background:var(--soft)}
th.group{text-align:left;border-left:1px solid var(--line);color:var(--ink)}
.edge{border-left:1px solid var(--line)}
th.stub{text-align:left;position:sticky;left:0;background:var(--paper);font-weight:600;z-index:1}
thead th.stub{background:var(--soft)}
tr.base th,tr.base td,tr.foot th,tr.foot td{color:var(--muted);font-weight:400}
.left td,.left th{text-align:left}
.ci{color:var(--muted);font-size:.8em}
[data-note]{cursor:help}td[data-note]:hover,td[data-note]:focus{background:var(--soft)}
.dot{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:8px}
figure{margin:14px 0 30px}figure .scroll{border-color:var(--line);padding:6px;margin-bottom:6px}
figure img{display:block;margin:0 auto;width:100%;height:auto}
details{border:1px solid var(--line);border-radius:8px;margin:10px 0;padding:0 14px}
details[open]{padding-bottom:12px}
summary{cursor:pointer;padding:9px 0;font-weight:600;font-size:.925rem}
pre{background:var(--soft);border-radius:6px;padding:10px 12px;margin:6px 0;
font:13px/1.45 ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre-wrap;
overflow-wrap:anywhere;max-height:320px;overflow-y:auto}
.warn{background:var(--warn);border:1px solid var(--warnline);border-radius:8px;padding:10px 16px;margin:14px 0}
.warn ul{margin:4px 0;padding-left:20px;max-height:220px;overflow-y:auto}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));gap:10px;margin:8px 0 18px}
.answer{border:1px solid var(--line);border-radius:8px;padding:8px 10px;min-width:0}.answer pre{margin-bottom:0}
.answer b,.answer span{font-size:.85rem}.good{color:var(--good)}.bad{color:var(--bad)}
#why{position:fixed;left:0;right:0;bottom:0;background:var(--soft);border-top:1px solid var(--line);padding:12px 20px;
font-size:.875rem;white-space:pre-wrap;max-height:40vh;
overflow-y:auto;overflow-wrap:anywhere;z-index:9;box-shadow:0 -4px 18px rgba(0,0,0,.18)}
footer{max-width:1200px;margin:50px auto 30px;padding:0 20px;color:var(--muted);font-size:.85rem}
@media(max-width:640px){main,header,nav>div{padding-left:14px;padding-right:14px}h1{font-size:1.4rem}
th,td{padding:6px 8px}figure img.wide{width:820px}}
@media print{nav,#why{display:none}}
"""
# A hover is not to be had on a phone: a tap on a number shows its note at the foot of the page.
SCRIPT = """
const why=document.getElementById('why');
document.addEventListener('click',e=>{const cell=e.target.closest('[data-note]');
if(cell){why.textContent=cell.title;why.hidden=false}else if(!why.contains(e.target))why.hidden=true});
document.addEventListener('keydown',e=>{if(e.key==='Escape')why.hidden=true});
"""


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
