"""How the page looks: one style sheet, system fonts, light and dark, laptop and phone."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1b2430; --quiet: #5c6775; --rule: #e3e5e8; --soft: #f1f2f4;
  --accent: #b4472a; --bar: #d98b5f; --control: #b9bfc8; --right: #1f7a4d; --wrong: #b3261e; --unsure: #8a6100;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #13161b; --card: #1b2027; --ink: #e8eaed; --quiet: #9aa4b1; --rule: #2d343d; --soft: #232932;
    --accent: #f0906b; --bar: #c9764b; --control: #566070; --right: #6fcf9b; --wrong: #ff8a80; --unsure: #e5b94e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 2.4rem 1.25rem 4rem; }
h1 { font-size: clamp(1.6rem, 4vw, 2.25rem); line-height: 1.15; letter-spacing: -.015em; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; letter-spacing: -.01em; margin: 3rem 0 .35rem; }
p { margin: .35rem 0 .9rem; max-width: 46rem; }
.lead { font-size: 1.1rem; color: var(--quiet); }
.quiet, .note { color: var(--quiet); font-size: .9rem; }
.alarm { border-left: 4px solid var(--wrong); background: var(--soft); padding: .7rem 1rem;
  border-radius: 0 6px 6px 0; }
nav { display: flex; flex-wrap: wrap; gap: .4rem 1.1rem; margin: 1.2rem 0 0; font-size: .92rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem; margin: 1.6rem 0 0; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: .9rem 1rem .8rem; }
.tile b { display: block; font-size: 1.75rem; line-height: 1.15; letter-spacing: -.02em; font-weight: 650; }
.tile span { display: block; font-size: .92rem; } .tile small { color: var(--quiet); font-size: .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; margin: .4rem 0 .6rem; }
table.bars { width: 100%; }
th { text-align: left; font-weight: 600; font-size: .82rem; color: var(--quiet); border-bottom: 1px solid var(--rule); }
th, td { padding: .42rem 1.1rem .42rem 0; vertical-align: middle; } td { border-bottom: 1px solid var(--rule); }
td.number, th.number { text-align: right; white-space: nowrap; }
tr.strong td { font-weight: 600; }
td:first-child { min-width: 7.5rem; }
.matrix td:first-child { min-width: 2.2rem; }
td.bar { min-width: 13rem; width: 40%; padding-right: 0; }
.track { position: relative; height: 14px; background: var(--soft); border-radius: 3px; }
.fill { position: absolute; inset: 0 auto 0 0; background: var(--control); border-radius: 3px; min-width: 1px; }
.strong .fill { background: var(--bar); }
.whisker { position: absolute; top: 50%; height: 2px; margin-top: -1px; background: var(--ink); }
.whisker::before, .whisker::after { content: ""; position: absolute; top: -3px; height: 8px; width: 2px;
  background: var(--ink); }
.whisker::before { left: 0; } .whisker::after { right: 0; }
.matrix td { border: 0; padding: 0; width: 2.2rem; min-width: 2.2rem; height: 2rem;
  text-align: center; font-size: .82rem; }
.matrix th { border: 0; padding: 0 .6rem 0 0; text-align: right; white-space: nowrap; max-width: 12rem;
  overflow: hidden; text-overflow: ellipsis; font-weight: 500; color: var(--ink); }
.matrix thead th { padding: 0 0 .2rem; text-align: center; max-width: 2.2rem; }
.legend { display: flex; align-items: center; gap: .6rem; font-size: .85rem; color: var(--quiet);
  margin: .2rem 0 1rem; }
.legend i { flex: none; width: 9rem; height: 10px; border-radius: 3px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1rem; }
.card { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; overflow: hidden; }
.panels { display: grid; grid-template-columns: repeat(3, 1fr); gap: 2px; background: var(--card); }
.panels img { display: block; width: 100%; height: auto; aspect-ratio: var(--shape, 1); object-fit: fill; }
img.pixels { image-rendering: pixelated; }
figcaption { padding: .65rem .85rem .8rem; font-size: .88rem; line-height: 1.45; }
figcaption b { font-size: .98rem; } figcaption dl { margin: .3rem 0 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: .4rem 0; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
.right { color: var(--right); } .wrong { color: var(--wrong); } .unsure { color: var(--unsure); }
svg { display: block; max-width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--quiet); }
footer { margin-top: 3.5rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
@media (max-width: 40rem) {
  main { padding: 1.4rem .9rem 3rem; } .gallery { grid-template-columns: 1fr; } td.bar { display: none; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .55rem; }
  .tile { padding: .7rem .75rem; } .tile b { font-size: 1.4rem; }
  th, td { padding-right: .7rem; }
}
"""
