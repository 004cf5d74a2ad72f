/** The style of every page. */
export const PAGE = `:root{color-scheme:light dark;--ink:#1f2328;--quiet:#59636e;--line:#d1d9e0;--paper:#fff;--card:#f6f8fa}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--quiet:#9aa4af;--line:#3d444d;--paper:#0d1117;--card:#161b22}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1280px;margin:0 auto;padding:16px}h1{margin:.2em 0}h2{margin:1.4em 0 .4em;border-bottom:1px solid var(--line)}
.quiet{color:var(--quiet);font-size:13px}.verdicts,.charts{display:grid;gap:12px;grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr))}
.verdict,figure{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:10px;margin:0;min-width:0}
.verdict ul{margin:0;padding-left:1.1em;font-size:13.5px}.verdict h3{margin:0}.none{border-left:4px solid #c76a00}.given{border-left:4px solid #138a5e}
figure svg{display:block;width:100%;height:auto}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px}td,th{text-align:left;padding:2px 12px 2px 0}
dl{display:grid;grid-template-columns:minmax(90px,max-content) 1fr;gap:2px 12px;font-size:13px}dt{color:var(--quiet);overflow-wrap:anywhere}dd{margin:0;overflow-wrap:anywhere}`;
