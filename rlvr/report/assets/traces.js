"use strict";
/* Traces one below the other, their tokens coloured by who wrote them and by the student's
   probability; the pointer or the arrow keys read single tokens. */

{
  const { make } = Report;
  const page = Report.data("page");
  const WRITERS = { t: "the teacher", s: "the student" };
  const BATCH = 20;
  // Surprisal at which a colour is at its deepest: three orders of magnitude below certainty.
  const DEEPEST = Math.log(1000);

  const improbable = (p) => p !== null && p < page.threshold;
  const depth = (p) => (p === null ? 0 : Math.min(1, -Math.log(Math.max(p, 1e-9)) / DEEPEST));
  const written = (trace, letter) => (trace.writer ? [...trace.writer].filter((w) => w === letter).length : 0);
  const low = (trace) => trace.student.filter(improbable).length;

  document.getElementById("head").replaceChildren(
    make("h1", {}, page.title),
    make("p", { class: "summary" }, page.summary),
    Report.notes(page.notes) || "",
  );

  const share = (v) => `${(100 * v).toFixed(2)} %`;
  const figures = (found) => {
    const rows = [["all tokens", found.all], ...Object.entries(found.by_writer).map(([k, v]) => [`written by the ${k}`, v])];
    const columns = [
      ["", ([name]) => name], ["tokens", ([, f]) => Report.number(f.tokens, "count")],
      [`probability below ${found.threshold}`, ([, f]) => share(f.improbable)],
      ["mean NLL, nats", ([, f]) => f.nll.toFixed(3)],
      ...Object.keys(found.all.quantiles).map((q) => [`quantile ${q}`, ([, f]) => f.quantiles[q].toFixed(2)]),
      ["largest", ([, f]) => f.most.toFixed(2)],
    ];
    const words = found.most_improbable.length
      ? make("p", { class: "help" }, `Improbable most often: ${found.most_improbable.slice(0, 12).map((w) => `${JSON.stringify(w.text)} (${w.improbable} of ${w.count})`).join(", ")}.`)
      : null;
    document.getElementById("figures").replaceChildren(
      make("h2", {}, "Surprisal"),
      make("div", { class: "wide", tabindex: "0" }, make("table", { class: "scores" },
        make("thead", {}, make("tr", {}, ...columns.map(([name], i) => make("th", { class: i ? null : "name" }, name)))),
        make("tbody", {}, ...rows.map((row) => make("tr", {}, ...columns.map(([, show], i) => make("td", { class: i ? null : "name" }, show(row)))))))),
      words || "",
    );
  };
  if (page.figures) figures(page.figures);

  const describeToken = (trace, i) => {
    const p = trace.student[i];
    const q = trace.teacher[i];
    const lines = [JSON.stringify(trace.tokens[i]) + ` (id ${trace.ids[i]})`];
    if (trace.writer) lines.push(`written by ${WRITERS[trace.writer[i]]}`);
    if (p !== null) lines.push(`student\u2019s probability ${Report.number(p)}, surprisal ${(-Math.log(Math.max(p, 1e-30))).toFixed(2)} nats`);
    if (q !== null) lines.push(`teacher\u2019s probability ${Report.number(q)}`);
    lines.push(`token ${i + 1} of ${trace.tokens.length}`);
    return lines;
  };

  const tokens = (trace) => {
    const spans = trace.tokens.map((text, i) => {
      const kind = trace.writer ? trace.writer[i] : "n";
      const span = make("span", { class: `token ${kind}`, "data-index": i }, shown(text));
      span.style.setProperty("--share", depth(trace.student[i]).toFixed(3));
      if (improbable(trace.student[i])) span.classList.add("improbable");
      return span;
    });
    let current = -1;
    const read = (index) => {
      if (current >= 0) spans[current].classList.remove("current");
      current = index;
      tip.hidden = index < 0;
      if (index < 0) return;
      spans[index].classList.add("current");
      placeTip(spans[index], describeToken(trace, index));
    };
    return make("div", {
      class: "text tokens", tabindex: "0", role: "group", "aria-describedby": "tip",
      "aria-label": "Trace, token by token; left and right arrow keys read single tokens",
      pointerover: (event) => {
        const span = event.target.closest(".token");
        if (span) read(Number(span.dataset.index));
      },
      pointerleave: () => read(-1),
      blur: () => read(-1),
      keydown: (event) => {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (step === undefined) return;
        event.preventDefault();
        read(Math.max(0, Math.min(spans.length - 1, current + step)));
      },
    }, ...spans);
  };

  const card = (trace) => {
    const facts = [make("b", {}, trace.id)];
    if (trace.reward !== null) facts.push(make("span", { class: trace.reward > 0 ? "good" : "bad" }, trace.reward > 0 ? "right" : "wrong"));
    facts.push(make("span", {}, `${trace.tokens.length} tokens`));
    if (trace.writer) facts.push(make("span", {}, `${written(trace, "s")} by the student`));
    facts.push(make("span", {}, `${low(trace)} improbable`));
    if (trace.finish === "length") facts.push(make("span", { class: "cut" }, "cut"));
    if (trace.answer !== null) facts.push(make("span", {}, `answer ${trace.answer}`));
    return make("article", { class: "trace" }, make("header", {}, ...facts), make("div", { class: "text prompt" }, trace.prompt), tokens(trace));
  };

  const ORDERS = {
    file: ["as in the file", () => 0],
    improbable: ["most improbable tokens", (a, b) => low(b) - low(a)],
    student: ["most by the student", (a, b) => written(b, "s") - written(a, "s")],
    long: ["longest", (a, b) => b.tokens.length - a.tokens.length],
    short: ["shortest", (a, b) => a.tokens.length - b.tokens.length],
  };
  const list = make("div", {});
  const count = make("p", { class: "count", role: "status" });
  const state = { order: "file", text: "", shown: BATCH };
  const show = () => {
    const found = page.traces
      .filter((t) => !state.text || `${t.id} ${t.prompt} ${t.tokens.join("")}`.toLowerCase().includes(state.text))
      .sort(ORDERS[state.order][1]);
    count.textContent = `${Math.min(state.shown, found.length)} of ${found.length} traces`;
    tip.hidden = true;
    list.replaceChildren(...found.slice(0, state.shown).map(card));
    if (state.shown < found.length) {
      list.append(make("button", { class: "more", type: "button", click: () => { state.shown += BATCH; show(); } }, "Show more"));
    }
  };
  const key = (kind, share, text) => {
    const span = make("span", { class: `token ${kind}` }, text);
    span.style.setProperty("--share", share);
    return span;
  };
  const letters = page.traces.some((t) => t.writer);
  document.getElementById("traces").replaceChildren(
    make("h2", { id: "traces-title" }, "Traces"),
    make("p", { class: "keys" },
      ...(letters ? [key("t", "0.2", "written by the teacher"), key("s", "0.2", "written by the student")] : []),
      key(letters ? "t" : "n", "1", "the deeper, the less probable to the student"),
      key(`${letters ? "t" : "n"} improbable`, "0.6", `probability below ${page.threshold}`)),
    make("div", { class: "controls" },
      Report.select("Order", Object.entries(ORDERS).map(([k, [text]]) => [k, text]), state.order, (value) => { state.order = value; state.shown = BATCH; show(); }),
      make("label", { class: "field grow" }, make("span", {}, "Search"),
        make("input", { type: "search", input: (event) => { state.text = event.target.value.toLowerCase(); state.shown = BATCH; show(); } }))),
    count,
    list,
  );
  show();
}
