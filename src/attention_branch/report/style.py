"""How the page looks: one style sheet, system fonts, light and dark, laptop and phone."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1b2430; --quiet: #5c6775; --rule: #e3e5e8; --soft: #f1f2f4;
  --accent: #b4472a; --bar: #d98b5f; --control: #b9bfc8; --right: #1f7a4d; --wrong: #b3261e; --unsure: #8a6100;
  --up: #0b62a8; --down: #b84a00; --shade: #1b243038;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #13161b; --card: #1b2027; --ink: #e8eaed; --quiet: #9aa4b1; --rule: #2d343d; --soft: #232932;
    --accent: #f0906b; --bar: #c9764b; --control: #566070; --right: #6fcf9b; --wrong: #ff8a80; --unsure: #e5b94e;
    --up: #6cb6f5; --down: #ffa24d; --shade: #000000b0;
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
/* A shadow at the side where more of a wide table is out of sight. */
.scroll { overflow-x: auto; background:
  linear-gradient(90deg, var(--paper) 40%, transparent) 0 0 / 2.5rem 100% no-repeat local,
  linear-gradient(270deg, var(--paper) 40%, transparent) 100% 0 / 2.5rem 100% no-repeat local,
  linear-gradient(90deg, var(--shade), transparent) 0 0 / .9rem 100% no-repeat scroll,
  linear-gradient(270deg, var(--shade), transparent) 100% 0 / .9rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; margin: .4rem 0 .6rem; }
table.bars { width: 100%; }
th { text-align: left; font-weight: 600; font-size: .82rem; color: var(--quiet); border-bottom: 1px solid var(--rule); }
th, td { padding: .42rem 1.1rem .42rem 0; vertical-align: middle; } td { border-bottom: 1px solid var(--rule); }
td.number, th.number { text-align: right; white-space: nowrap; }
tr.strong td { font-weight: 600; }
td:first-child { min-width: 7.5rem; }
.matrix td:first-child { min-width: 2.2rem; }
td.bar { min-width: 13rem; width: 40%; padding-right: 0; }
.track { position: relative; overflow: hidden; height: 14px; background: var(--soft); border-radius: 3px; }
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
td.crops { display: flex; gap: 4px; } .crops img { display: block; flex: none; border-radius: 3px; }
.crops img:first-child { margin-right: 10px; }
figcaption { padding: .65rem .85rem .8rem; font-size: .88rem; line-height: 1.45; }
figcaption b { font-size: .98rem; } figcaption dl { margin: .3rem 0 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: .4rem 0; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
.right { color: var(--right); } .wrong { color: var(--wrong); } .unsure { color: var(--unsure); }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
.statements { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem;
  align-items: start; }
.statements article { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 1rem 1.1rem; }
.statements ul { margin: 0; padding: 0; list-style: none; font-size: .95rem; }
.statements li { position: relative; padding-left: 1.35rem; margin: .55rem 0; color: var(--ink); }
.statements li::before { content: "·"; position: absolute; left: .2rem; color: var(--quiet); font-weight: 700; }
.statements li.right::before { content: "✓"; left: 0; color: var(--right); }
.statements li.wrong::before { content: "✗"; left: 0; color: var(--wrong); }
.statements li.unsure::before { content: "?"; left: .1rem; color: var(--unsure); }
table small, .panel small { display: block; font-weight: 400; color: var(--quiet); font-size: .76rem;
  line-height: 1.35; }
table.sheet th:first-child, table.pictures th:first-child { position: sticky; left: 0; background: var(--paper);
  z-index: 1; }
table.sheet tbody th, table.intervals tbody th { color: var(--ink); font-size: .9rem; vertical-align: top;
  min-width: 10rem; max-width: 13rem; }
table.sheet td, table.sheet thead th { padding-right: .4rem; padding-left: .4rem; vertical-align: top; }
table.sheet td { font-size: .9rem; } table.sheet td b { font-weight: 500; }
table.sheet td small { white-space: nowrap; font-size: .72rem; }
table.sheet .quiet b { color: var(--quiet); } table.sheet th.quiet { font-size: .82rem; font-weight: 500; }
table.sheet td.best { background: color-mix(in srgb, var(--right) 14%, transparent); }
table.sheet td.best b { font-weight: 700; color: var(--ink); } table.sheet td.best b::before { content: "★ "; }
table.sheet td.right b { color: var(--right); } table.sheet td.wrong b { color: var(--wrong); }
table.pictures { font-size: .85rem; } table.pictures td, table.pictures th { border: 0; padding: .2rem .2rem .35rem 0; }
table.pictures td { vertical-align: top; }
table.pictures thead th { color: var(--ink); vertical-align: bottom; max-width: 6.2rem; line-height: 1.25;
  font-size: .78rem; overflow-wrap: anywhere; }
table.pictures tbody th { min-width: 7.5rem; max-width: 9rem; padding-right: .7rem; vertical-align: top;
  overflow-wrap: anywhere; font-size: .85rem; }
table.pictures img { display: block; width: 6.2rem; min-width: 5.5rem; height: auto; aspect-ratio: var(--shape, 1);
  border-radius: 3px; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
.panel { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: .7rem .8rem; }
.panel figcaption { padding: 0 0 .35rem; } .panel.quiet figcaption b { color: var(--quiet); font-weight: 500; }
.panel svg { width: 100%; }
.panel polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.panel polyline.up { stroke: var(--up); } .panel polyline.down { stroke: var(--down); stroke-dasharray: 7 3; }
.panel polyline.reference { stroke: var(--quiet); stroke-width: 1.2; stroke-dasharray: 1.5 3; }
.panel .between { opacity: .14; } .panel .above { fill: var(--up); } .panel .below { fill: var(--down); }
.panel .grid { stroke: var(--rule); }
.panel text.name { font-weight: 600; paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.panel text.up { fill: var(--up); } .panel text.down { fill: var(--down); }
table.intervals td { font-size: .9rem; } table.intervals td b { font-weight: 500; white-space: nowrap; }
.sides { min-width: 15rem; } .sides span + span { float: right; }
.zero { position: relative; height: 18px; min-width: 15rem; background: linear-gradient(90deg, transparent
  calc(50% - .5px), var(--quiet) calc(50% - .5px), var(--quiet) calc(50% + .5px), transparent calc(50% + .5px)),
  var(--soft); border-radius: 3px; }
.zero i { position: absolute; top: 8px; height: 3px; background: var(--quiet); border-radius: 2px; }
.zero b { position: absolute; top: 4px; width: 10px; height: 10px; margin-left: -5px; border-radius: 50%;
  background: var(--quiet); }
.zero.right i, .zero.right b { background: var(--right); } .zero.wrong i, .zero.wrong b { background: var(--wrong); }
details { border-bottom: 1px solid var(--rule); padding: .45rem 0; } summary { cursor: pointer; color: var(--accent); }
svg { display: block; max-width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--quiet); }
footer { margin-top: 3.5rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
@media (max-width: 40rem) {
  main { padding: 1.4rem .9rem 3rem; } .gallery { grid-template-columns: 1fr; } td.bar { display: none; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .55rem; }
  .tile { padding: .7rem .75rem; } .tile b { font-size: 1.4rem; }
  th, td { padding-right: .7rem; }
  table.pictures img { width: 5.5rem; } table.pictures tbody th { min-width: 5.8rem; max-width: 5.8rem; }
  table.sheet tbody th, table.intervals tbody th { min-width: 8.5rem; max-width: 8.5rem; }
  .sides, .zero { min-width: 6.5rem; } table.intervals td b { white-space: normal; }
  table.intervals tr > :last-child { display: none; }
}
"""
