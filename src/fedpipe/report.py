"""The report of a run: one page that needs nothing else."""

from __future__ import annotations

from typing import Any

from fedpipe import plots
from fedpipe.summary import Story, summarise

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ s.federation }} · {{ s.run }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1e293b; max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.2rem; border-bottom: 1px solid #e2e8f0 } .quiet { color: #64748b }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0 }
.card { border: 1px solid #e2e8f0; border-radius: 8px; padding: .6rem 1rem } .card b { display: block; font-size: 1.5rem }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem } .pictures svg { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: 14px } th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #e2e8f0 }
td.n { text-align: right; font-variant-numeric: tabular-nums } code { font-size: 12px; word-break: break-all } .bad { color: #b91c1c }
</style></head><body>
<h1>{{ s.federation }}</h1>
<p class="quiet">run <b>{{ s.run }}</b> · {{ s.rounds|length }} rounds · {{ learners|length }} learners · {{ "%.1f"|format(s.seconds) }} s · <code>{{ s.store }}</code></p>
<div class="cards">
{% for name, value in cards %}<div class="card">{{ name }}<b>{{ value }}</b></div>{% endfor %}
</div>
{% if curves %}<h2>Learning</h2><div class="pictures">{% for p in curves %}{{ p|safe }}{% endfor %}</div>{% endif %}
{% if each %}<h2>Each learner</h2><div class="pictures">{% for p in each %}{{ p|safe }}{% endfor %}</div>{% endif %}
<h2>Rounds</h2>
<table><tr><th>round</th><th>loss</th>{% for m in metrics %}<th>{{ m }}</th>{% endfor %}<th>learners</th><th>dropped</th><th>seconds</th><th>weights</th></tr>
{% for r in s.rounds %}<tr><td class="n">{{ r.round }}</td><td class="n">{{ number(r.loss) }}</td>
{% for m in metrics %}<td class="n">{{ number(r.metrics.get(m)) }}</td>{% endfor %}
<td class="n">{{ r.learners|length }}</td>
<td>{% for d in r.dropped %}<span class="bad">{{ d.learner }}: {{ d.why }}</span><br>{% endfor %}</td>
<td class="n">{{ "%.2f"|format(r.seconds) }}</td><td><code>{{ r.weights[7:19] }}</code></td></tr>{% endfor %}
</table>
{% if final %}<h2>Final model</h2>
<table><tr><th>tested on</th><th>examples</th>{% for m in final_metrics %}<th>{{ m }}</th>{% endfor %}</tr>
{% for name, m in final %}<tr><td>{{ name }}</td><td class="n">{{ m.examples }}</td>{% for k in final_metrics %}<td class="n">{{ number(m.metrics.get(k)) }}</td>{% endfor %}</tr>{% endfor %}
</table>
{% for name, why in left_out.items() %}<p class="bad">{{ name }} did not test it: {{ why }}</p>{% endfor %}
{% if confusion %}<div class="pictures">{{ confusion|safe }}</div>{% endif %}{% endif %}
{% if s.onnx %}<h2>ONNX</h2><p>Version at <code>{{ s.onnx.path }}</code>, opset {{ s.onnx.opset }}. Largest difference from the
trained model over {{ compared }} {{ samples }} samples: {{ "%.2g"|format(s.onnx.max_abs_difference) }}.<br><code>{{ s.onnx.digest }}</code></p>{% endif %}
{% if labels %}<h2>Data</h2><div class="pictures">{{ labels|safe }}</div>{% endif %}
{% if timings %}<h2>Time</h2><div class="pictures">{{ timings|safe }}</div>{% endif %}
</body></html>
"""


def render(story: Story) -> str:
    """The report as HTML."""
    from jinja2 import Environment

    return Environment(autoescape=True, trim_blocks=True).from_string(_PAGE).render(**_context(story))


def _context(story: Story) -> dict[str, Any]:
    summary, evaluation = summarise(story), story.evaluation
    final = []
    if evaluation:
        final = [("central test set", evaluation.central), ("all learners' test parts", evaluation.federated)]
        final = [(name, m) for name, m in (*final, *sorted(evaluation.learners.items())) if m is not None]
    return {
        "s": summary,
        "number": lambda v: "" if v is None else f"{v:.4f}",
        "learners": story.plan.federation.learners,
        "metrics": sorted({m for r in summary["rounds"] for m in r["metrics"]}),
        "cards": _cards(story),
        "final": final,
        "final_metrics": list(dict.fromkeys(k for _, m in final for k in m.metrics)),
        "left_out": evaluation.left_out if evaluation else {},
        "confusion": plots.confusion_matrix(evaluation) if evaluation and evaluation.confusion else "",
        "curves": plots.learning_curves(story),
        "each": plots.learner_curves(story),
        "labels": plots.label_counts(story) if any(s.labels for s in story.shards) else "",
        "timings": plots.timings(story) if story.timings else "",
        "samples": story.onnx.get("samples", ""),
        "compared": story.onnx.get("compared", 0),
    }


def _cards(story: Story) -> list[tuple[str, str]]:
    cards = []
    evaluation = story.evaluation
    for name, measured in (("central", evaluation and evaluation.central), ("federated", evaluation and evaluation.federated)):
        if measured:
            cards += [(f"{name} {k}", f"{v:.4f}") for k, v in measured.metrics.items()]
    if story.onnx:
        cards.append(("ONNX version", str(story.onnx["version"])))
    dropped = sum(len(r.dropped) for r in story.records)
    return [*cards, ("dropped updates", str(dropped))]
