"""The style sheet of the report's page; its variables are those of `style.CSS_VARIABLES`."""

CSS = """
:root { color-scheme: light dark;
  --font: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  --page: #f4f6f8; --card: #ffffff; --line: #dfe4ea; --ink: #1b2430; --muted: #66727f;
  --grid: #e3e8ed; --danger: #c1121f; --margin: #117a65; --safe-action: #1f4e9c;
  --passed: #2b95c9; --projected: #e39a06; --backup: #7b1e7a;
  --good: #117a65; --unknown: #8a6100; }
@media (prefers-color-scheme: dark) { :root {
  --page: #11151a; --card: #1a2027; --line: #2b333d; --ink: #e7ebf0; --muted: #9aa6b2;
  --grid: #2b333d; --danger: #ff6b6b; --margin: #43c7a5; --safe-action: #7fb0ff;
  --passed: #4db2e6; --projected: #f2b233; --backup: #d58bd9;
  --good: #1c8f77; --unknown: #a87800; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 var(--font); }
main { max-width: 1100px; margin: 0 auto; padding: 28px 20px 48px; }
header { display: flex; justify-content: space-between; align-items: flex-start; gap: 24px; }
.kicker { margin: 0; color: var(--muted); font-size: 13px; letter-spacing: .04em; }
h1 { margin: 2px 0 4px; font-size: 30px; line-height: 1.2; letter-spacing: -.01em; }
h2 { margin: 0 0 10px; font-size: 16px; }
.lead { margin: 0; color: var(--muted); }
.lead b, .lead code { color: var(--ink); }
code { font: 13px ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
.badge { flex: none; margin-top: 8px; padding: 10px 20px; border-radius: 999px; color: #fff;
  font-weight: 700; font-size: 17px; letter-spacing: .04em; white-space: nowrap; }
.badge.good { background: var(--good); } .badge.bad { background: #c1121f; }
.badge.unknown { background: var(--unknown); }
.sentence { margin: 14px 0 6px; font-size: 17px; font-weight: 600; }
.certificate { margin: 0 0 20px; padding: 10px 14px; border-left: 4px solid var(--projected);
  background: var(--card); border-radius: 0 8px 8px 0; font-size: 14px; color: var(--muted); }
.certificate b { color: var(--ink); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin-bottom: 16px; }
.tiles div, figure, .card { background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; }
.tiles div { padding: 12px 14px; display: flex; flex-direction: column; }
.tiles span, .tiles i { color: var(--muted); font-size: 13px; font-style: normal; }
.tiles b { font-size: 24px; line-height: 1.3; font-variant-numeric: tabular-nums; }
figure { margin: 0 0 16px; padding: 16px 16px 12px; }
figure svg { display: block; width: 100%; height: auto; }
figure img { display: block; width: 100%; height: auto; border-radius: 8px; }
figcaption { margin-top: 8px; color: var(--muted); font-size: 13px; }
.columns { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
.columns > div { display: flex; flex-direction: column; }
.columns > div > :last-child { flex: 1; }
.card { padding: 16px; }
.card { margin-bottom: 16px; }
table { width: 100%; border-collapse: collapse; font-size: 14px; }
th, td { padding: 5px 0; border-top: 1px solid var(--line); vertical-align: top;
  text-align: left; }
tr:first-child th, tr:first-child td { border-top: 0; }
th { width: 42%; padding-right: 14px; font-weight: 500; color: var(--muted); }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.legend { margin: 0; padding: 0; list-style: none; font-size: 14px; }
.legend span { display: inline-block; width: 12px; height: 12px; margin-right: 8px;
  border-radius: 3px; }
@media (max-width: 760px) { .columns { grid-template-columns: 1fr; } header { flex-wrap: wrap; } }
@media print { body { background: #fff; } figure, .card { break-inside: avoid; } }
"""
