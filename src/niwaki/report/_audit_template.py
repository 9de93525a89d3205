"""The page of an audit, as a template of Jinja."""

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}"><title>{{ heading }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em;
  color: #222; }
h1 { font-size: 1.7em; } h2 { margin-top: 1.8em; border-bottom: 1px solid #ddd; }
.finding { border-left: 5px solid #c0392b; background: #fbf4f3; padding: .6em 1em; margin: 1em 0;
}
.clean { border-left: 5px solid #27864d; background: #f2f9f4; padding: .6em 1em; }
.finding p { margin: .4em 0; } .advice { color: #444; } .advice b { color: #222; }
table { border-collapse: collapse; font-size: .85em; } td, th { padding: .25em 1em .25em 0;
  text-align: left; vertical-align: top; border-bottom: 1px solid #e5e5e5; }
.numbers td { text-align: right; font-variant-numeric: tabular-nums; }
.numbers th + th { text-align: right; } .evidence th { font-weight: 400; color: #555; width: 45%; }
.verdict { background: #f4f6f8; padding: .6em 1em .6em 2em; } a { color: #1c5a96; }
.wide { overflow-x: auto; } img { max-width: 100%; } .note { color: #555; font-size: .88em; }
summary { cursor: pointer; font-weight: 600; }
</style></head><body>
<h1>{{ heading }}</h1>
{% for remark in remarks %}<p>{{ remark }}</p>{% endfor %}
<ul class="verdict">{% for section in sections %}<li>{% if section.name %}<b>{{ section.name }}:</b>
{% endif %}{% if section.audit.caution %}<b>hardly better than guessing, see below</b>; {% endif
%}{% if section.flagged %}{{ section.flagged | length }} of
{{ section.audit.findings | length }} questions answered by yes:
{% for item in section.flagged %}<a href="#{{ section.anchor }}-{{ loop.index }}">{{
item.finding.title }}</a>{{ "; " if not loop.last }}{% endfor %}.{% else %}none of
{{ section.audit.findings | length }} questions answered by yes.{% endif %}</li>{% endfor %}</ul>
{% if table %}<h2>Before and after</h2><div class="wide"><table class="numbers"><tr>
{% for name in table.head %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for cell in row %}<{{ "th" if loop.first else "td" }}>{{ cell
}}</{{ "th" if loop.first else "td" }}>{% endfor %}</tr>{% endfor %}
</table></div><p class="note">AUC: area under the ROC curve. "seen": what heatmaps or images show,
in multiples of chance. "moved": by how much more than
under an unrelated change the output moves when the thing is changed; where nothing can be changed,
how much more often the network is wrong on these images than on others. "not tried": there was
nothing to be seen that would be worth a try.</p>
{% endif %}
{% for section in sections %}
{% set audit = section.audit %}
<h2>{{ section.name or "What was found" }}</h2>
<p>{{ audit.findings | length }} questions to {{ audit.material | length }} images; accuracy
{{ "%.1f" | format(100 * audit.accuracy) }} %, AUC {{ "%.3f" | format(audit.auc) }}. A good
accuracy
does not rule out any of what follows.</p>
{% if audit.caution %}<div class="finding"><p><b>No answer here can be relied on:
{{ audit.caution }}.</b></p></div>{% elif not section.flagged
%}<div class="clean">None of the questions was answered by yes: nothing was
found that the network should not be looking at. What was not asked was not ruled out.</div>{%
endif %}
{% for item in section.flagged %}
<div class="finding" id="{{ section.anchor }}-{{ loop.index }}">
<p><b>{{ loop.index }}. {{ item.finding.sentence }}</b></p>
<p class="advice"><b>What to do.</b> {{ item.finding.advice }}</p>
<img src="{{ item.picture }}" alt="examples">
<p class="note">Images that show it most clearly, and their heatmaps (red: speaks for what the
network
says, blue: against).{% if item.outlined %} Outlined: the place in question.{% endif
%}{% if item.finding.ordinary %} Below: images of the class that do not have it.{% endif %}
</p><table class="evidence">{% for name, value in item.rows %}
<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table></div>{% endfor %}
<h3>Where the network looks, on average</h3>
<img src="{{ section.pictures.maps }}" alt="mean maps">
<p class="note">1: as much as an even distribution over the image would give.</p>
{% if section.pictures.stains %}<h3>Which stain it looks at</h3>
<img src="{{ section.pictures.stains }}" alt="relevance by stain">
<p class="note">Haematoxylin is on nuclei, eosin on what surrounds them; "neither" is glass, or a
colour that the two stains do not make.</p>{% endif %}
<h3>Groups of heatmaps</h3>
<p class="note">Heatmaps of a class are grouped by likeness (spectral clustering of their
nearest-neighbour graph). The gap between eigenvalues, at the grey line, gives the number of
groups; a small group that stands apart may be a strategy of its own. Per group: its number and how
many images it has, its mean map in a frame of the colour of its dots, its most typical images.</p>
{% for cluster in section.clusters %}<p><b>{{ cluster.title }}</b></p>
<img src="{{ cluster.picture }}" alt="groups of heatmaps">{% endfor %}
<details><summary>Asked and answered by no: {{ section.rest | length }} questions</summary>
<div class="wide"><table>
<tr><th>question</th><th>effect</th><th>alarm from</th><th>p, corrected</th></tr>
{% for finding in section.rest %}<tr><td>{{ finding.question }}{%
if finding.note %} {{ finding.note }}{% endif %}</td>
<td>{{ "%.2f" | format(finding.effect) }}</td><td>{{ finding.smallest }}</td>
<td>{{ "%.2g" | format(finding.p) }}</td></tr>{% endfor %}</table></div></details>
{% endfor %}
<h2>How to read this</h2>
<p>Each question is answered by yes only if three things hold. Chance does not explain what is
seen:
every heatmap is compared with itself at random places, every group with random groups. Changing
the
thing moves the output more than an equally large change elsewhere (where nothing can be changed, as
of whole images that training lacks: the network is wrong on them more often than on others).
And both effects are large enough to be worth an alarm. The p-value is the larger of those two
tests, corrected for the number of questions by Holm's method: in a network without any bias, the
probability of even one false alarm is at most 5 %, as far as the tests' assumptions hold.</p>
<p>Heatmaps are by the method {{ sections[0].audit.material.method }}.</p>
</body></html>
"""
