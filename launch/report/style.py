"""Colours and layout of the report; dark where the reader's system is."""

_LIGHT = {
    "page": "#fbfbfa", "card": "#ffffff", "ink": "#1b1f24", "soft": "#5a636e", "line": "#d9dde2",
    "track": "#eceef1", "on": "#ffffff", "accent": "#0b62c4", "mark": "#e8f1fc",
    "c1": "#1f5fa8", "c2": "#5b9bd5", "c3": "#9cc5ea", "c4": "#6d8096", "c5": "#7a5fb0",
    "n1": "#c2570c", "n2": "#e08a2e", "n3": "#f0b266", "n4": "#b3801a", "n5": "#d9a520",
    "idle": "#b9c0c8", "up": "#2c8a63", "base": "#8cc7ad",
    "limit": "#b3261e", "fast": "#1f5fa8", "net": "#c2570c",
}  # fmt: skip
_DARK = {
    "page": "#14171b", "card": "#1c2026", "ink": "#e8ebef", "soft": "#a2abb6", "line": "#343b44",
    "track": "#2a3038", "on": "#14171b", "accent": "#7db5f5", "mark": "#203047",
    "c1": "#5d9fe6", "c2": "#3b73b3", "c3": "#94c2ef", "c4": "#8fa0b3", "c5": "#a58ae0",
    "n1": "#f08a3c", "n2": "#c96a1c", "n3": "#f7c48a", "n4": "#c99a3a", "n5": "#f0c95a",
    "idle": "#59636e", "up": "#4fb98a", "base": "#2f7a5b",
    "limit": "#ff8a80", "fast": "#5d9fe6", "net": "#f08a3c",
}  # fmt: skip

COLOURS = {
    "matrix": "c1", "attention": "c2", "stream": "c3", "host": "c4", "recompute": "c5",
    "tensor": "n1", "context": "n2", "expert": "n3", "messages": "n4", "reduction": "n5",
    "bubble": "idle", "update": "up", "base": "base",
    "compute": "c1", "collective": "n1", "p2p": "n4", "idle": "idle",
    "weight": "c1", "grad": "c2", "optimizer": "up", "activation": "n1", "buffer": "n3",
    "workspace": "c4",
    "F": "c1", "B": "n1", "I": "n1", "W": "n3", "gather": "c3", "copy": "c4",
    "work": "c4", "reduce": "n5",
    "update-span": "up",
    "fast": "fast", "net": "net",
}  # fmt: skip
"""What is drawn -> its colour."""

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px 40px}
header{margin-bottom:22px}
h1{font-size:25px;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:17px;margin:0 0 2px}
h3{font-size:14px;margin:18px 0 6px}
p{margin:4px 0}
.note{color:var(--soft);margin:0 0 12px;max-width:74ch}
code,.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
font-size:.92em}
.layout{font-size:16px;font-weight:600;margin-top:10px;overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:18px 20px;margin:0 0 16px}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(142px,1fr));gap:1px;
background:var(--line);border:1px solid var(--line);border-radius:8px;overflow:hidden;
margin:0 0 16px}
.figures div{background:var(--card);padding:12px 16px}
.figures b{display:block;font-size:21px;line-height:1.3;font-weight:600;
font-variant-numeric:tabular-nums}
.figures span{color:var(--soft);font-size:13px}
.warn{border-left:4px solid var(--n2);padding:8px 14px;background:var(--card);
margin:0 0 16px;border-radius:4px}
.scroll{overflow-x:auto}
.scroll:focus-visible{outline:2px solid var(--accent)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--line);
vertical-align:top}
td{min-width:120px}
td.num,td>span:not(.mono),th{white-space:nowrap}
td.num,td:first-child{min-width:0}
th{color:var(--soft);font-weight:500;font-size:13px}
tr:last-child td{border-bottom:0}
th.num,td.num{text-align:right;padding:5px 0 5px 14px}
th.num+th:not(.num),td.num+td:not(.num){padding-left:18px}
tr.chosen td{font-weight:600}
svg{display:block;width:100%;overflow:hidden}
svg text{fill:var(--soft);font-size:11px}
svg text.on{fill:var(--on);font-size:10px;text-anchor:middle}
.row{display:grid;grid-template-columns:76px 1fr 58px;gap:10px;align-items:center;margin:3px 0}
.row .end{text-align:right}
.row>span{font-size:13px;color:var(--soft);font-variant-numeric:tabular-nums;white-space:nowrap}
.memory .row{grid-template-columns:76px 1fr 132px}
.split .row{grid-template-columns:minmax(90px,230px) 1fr 74px}
.split .row>span:first-child{white-space:normal;line-height:1.3}
.track{fill:var(--track)}
.limit{stroke:var(--limit);stroke-width:2}
.axis{stroke:var(--line)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;padding:0;margin:12px 0 0;
font-size:13px;color:var(--soft)}
.swatch{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px;
background:currentColor}
.swatch.dash{height:2px;vertical-align:middle;background:var(--limit)}
.swatch.hollow{background:none;border:1.5px solid var(--c4);border-radius:50%}
.swatch.ring{background:none;border:2px solid var(--accent);border-radius:50%}
.maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,230px),1fr));
gap:20px 28px}
figure{margin:0;max-width:300px}
figcaption{font-size:13px;color:var(--soft);margin-top:6px;line-height:1.4}
figcaption b{color:var(--ink)}
.maps svg{aspect-ratio:1;background:var(--track);border-radius:3px}
.grid{stroke:var(--card);stroke-width:.5;vector-effect:non-scaling-stroke}
.dot{fill:var(--c2)}.dot.here{fill:var(--accent);stroke:var(--card);stroke-width:2}
.dot.other{fill:none;stroke:var(--c4);stroke-width:1.5}
.halo{fill:none;stroke:var(--accent);stroke-width:2}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:8px 32px}
dl.why{display:grid;grid-template-columns:minmax(96px,150px) 1fr;gap:10px 16px;margin:12px 0 0}
dl.why dt{font-weight:600;overflow-wrap:anywhere}
dl.why dd{margin:0}
dl.why small{display:block;color:var(--soft);font-size:13px}
footer{color:var(--soft);font-size:13px;overflow-wrap:anywhere}
@media(max-width:640px){
main{padding:18px 10px 28px}section{padding:14px 12px}h1{font-size:21px}
.wide{display:none}.row,.memory .row{grid-template-columns:58px 1fr 48px;gap:7px}
.memory .row{grid-template-columns:58px 1fr}.memory .row .end{grid-column:2;text-align:left}
.split .row{grid-template-columns:1fr 74px}.split .row>svg{grid-column:1/3;grid-row:2}
dl.why{grid-template-columns:1fr;gap:2px}dl.why dd{margin-bottom:10px}
th,td{padding-right:10px}}
@media print{
body{font-size:11px;background:#fff}main{max-width:none;padding:0}
section,.figures{break-inside:avoid;border-color:#bbb}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}.scroll{overflow:visible}}
"""


def style() -> str:
    """The style sheet."""
    dark = f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(_DARK)}}}}}"
    names = {
        f".f-{name}{{fill:var(--{colour});color:var(--{colour})}}"
        for name, colour in COLOURS.items()
    }
    head = f":root{{color-scheme:light dark;{_variables(_LIGHT)}}}{dark}"
    return head + "".join(sorted(names)) + _RULES.replace("\n", "")


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())
