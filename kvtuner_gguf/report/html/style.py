"""The style of a page: light or dark as its reader has it."""

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfd; --box: #ffffff; --ink: #1d1d22; --soft: #61616b; --rule: #dcdce4;
  --plan: #c8372d; --front: #4b6bb5; --uniform: #7c7c86; --centered: #2478b8; --paper: #8a5a00; --after: #1b8a5a; }
@media (prefers-color-scheme: dark) { :root { --page: #17171b; --box: #1f1f25; --ink: #ececf1; --soft: #a5a5b1;
  --rule: #3a3a44; --plan: #ff7b6b; --front: #8fabf0; --uniform: #a8a8b4; --centered: #69b7f0; --paper: #e0a54a;
  --after: #5fd0a0; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 16px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1320px; margin: 0 auto; }
h1 { font-size: 24px; line-height: 1.25; margin: 8px 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 4px; }
h3 { font-size: 14px; margin: 12px 0 6px; color: var(--soft); overflow-wrap: anywhere; }
section { background: var(--box); border: 1px solid var(--rule); border-radius: 8px; padding: 14px; margin: 0 0 16px;
  min-width: 0; }
.beside { columns: 2 560px; column-gap: 16px; }
.beside section { break-inside: avoid; }
.beside + .beside { margin-top: 16px; }
.note { color: var(--soft); font-size: 13px; margin: 2px 0 8px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 8px; margin: 0 0 16px; }
.tile { background: var(--box); border: 1px solid var(--rule); border-radius: 8px; padding: 8px 12px; min-width: 0; }
.tile b { display: block; font-size: 18px; overflow-wrap: anywhere; }
.tile span { color: var(--soft); font-size: 12px; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 8px 16px; }
.panels svg { max-width: 400px; }
svg { display: block; width: 100%; height: auto; fill: currentColor;
  font: 11px system-ui, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
svg.chart { max-width: 600px; }
figure { margin: 0; }
figcaption, .legend { font-size: 13px; margin: 4px 0; }
.key { display: inline-block; margin-right: 14px; overflow-wrap: anywhere; }
.chip { display: inline-block; padding: 0 5px; border-radius: 3px; font-size: 12px; }
.sign { color: var(--uniform); }
.tick, .axis { fill: var(--soft); }
.tick, .name { font-size: 10.5px; }
.head { font-weight: 600; }
.axis { text-anchor: middle; }
.cell { font-size: 11px; }
.grid { stroke: var(--rule); stroke-width: 1; fill: none; }
.line { fill: none; stroke: currentColor; stroke-width: 1.5; }
.mark { fill: currentColor; }
.is-uniform { color: var(--uniform); } .is-centered { color: var(--centered); } .is-plan { color: var(--plan); }
.is-front { color: var(--front); } .is-paper { color: var(--paper); }
.is-before { color: var(--plan); } .is-after { color: var(--after); }
.is-before-rms { color: var(--paper); } .is-after-rms { color: var(--centered); }
.is-paper .line, .is-before .line, .is-before-rms .line { stroke-dasharray: 5 3; }
rect.of-k { fill: var(--front); } rect.of-v { fill: var(--after); }
.sign.of-k { color: var(--front); } .sign.of-v { color: var(--after); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
td, th { text-align: left; padding: 3px 12px 3px 0; border-bottom: 1px solid var(--rule); vertical-align: top;
  overflow-wrap: anywhere; min-width: 60px; unicode-bidi: isolate; }
td:first-child, .numbers td { white-space: nowrap; }
.numbers td:first-child { white-space: normal; min-width: 110px; max-width: 240px; overflow-wrap: anywhere; }
.numbers td, .numbers th { padding-right: 8px; min-width: 0; font-size: 12px; overflow-wrap: normal; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 12px/1.5 ui-monospace, "DejaVu Sans Mono", monospace;
  margin: 8px 0; unicode-bidi: isolate; }
.word { display: inline-block; max-width: 100%; }
@media (max-width: 560px) { body { padding: 6px; } section { padding: 8px 10px; } }
"""
