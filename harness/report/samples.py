"""A few completions of every skill and method, followed through the stages, for the page."""

MOST = 240  # questions on a page
EACH = 3  # questions of a skill and method
STAGES = 5  # of a longer order only base, own stage and end are shown
TEXT = 1200  # letters of a text


def choose(results):
    """[{label, skill, seed, items: [{prompt, reference, answers: [{stage, name, completion,
    score}]}]}] of the first run that has evaluations on disk. Questions whose score changed come
    first: one learned and kept, one lost again, one never learned.
    """
    found, left = [], MOST
    for name in results.skills:
        for label, series in results.series.items():
            if name not in series.order or left <= 0:
                continue
            i, T = series.order.index(name), len(series.order)
            stages = list(range(T + 1)) if T <= STAGES else sorted({0, i + 1, T})
            for run, (folder, seed) in enumerate(results.runs[label]):
                read = {
                    k: results.evaluation(folder, results.keys["R", label][run, k, i])
                    for k in stages
                }
                read = {
                    k: {
                        str(item.get("id")): item
                        for item in e.get("items") or []
                        if "completion" in item
                    }
                    for k, e in read.items()
                }
                read = {k: items for k, items in read.items() if items}
                if read:
                    items = [
                        _follow(read, item, results.metric[name], series.order)
                        for item in _pick(read, results.metric[name], i + 1)
                    ]
                    found.append(
                        {
                            "label": label,
                            "skill": name,
                            "seed": seed,
                            "items": items[: min(EACH, left)],
                        }
                    )
                    left -= len(found[-1]["items"])
                    break
    return found


def _pick(read, metric, own):
    """Ids of EACH items that show most: one of each kind first, then the next of each."""
    first, last = min(read), max(read)
    kinds = {}
    for item in read[first]:
        scores = [
            _score(read[k].get(item), metric) for k in (first, own if own in read else last, last)
        ]
        if None not in scores:
            base, taught, end = (s >= 0.5 for s in scores)
            kind = (
                0
                if taught and end and not base
                else 1
                if taught and not end
                else 2
                if not taught and not end
                else 3
            )
            kinds.setdefault(kind, []).append(item)
    order = [ids[n] for n in range(EACH) for _, ids in sorted(kinds.items()) if n < len(ids)]
    return (order or list(read[first]))[:EACH]


def _follow(read, item, metric, order):
    answers, shown = [], {}
    for k, items in sorted(read.items()):
        if item in items:
            shown = items[item]
            answers.append(
                {
                    "stage": k,
                    "name": "base" if k == 0 else order[k - 1],
                    "completion": cut(shown.get("completion")),
                    "score": _score(shown, metric),
                    "finished": shown.get("finished", True),
                }
            )
    return {
        "id": item,
        "prompt": cut(shown.get("prompt")),
        "reference": cut(shown.get("reference")),
        "answers": answers,
    }


def _score(item, metric):
    value = ((item or {}).get("scores") or {}).get(metric)
    return None if value is None else float(value)


def cut(text):
    text = text if isinstance(text, str) else "" if text is None else str(text)
    return text if len(text) <= TEXT else text[:TEXT] + f" … ({len(text) - TEXT} more letters)"
