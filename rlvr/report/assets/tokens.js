"use strict";
/* A response as its tokens, each tinted by one number per token. Any per-token list of a row can be
   chosen; log-probabilities are shown as probabilities. One hue deepens for "less likely" or
   "more"; values of both signs go blue above zero and orange below, a pair that the common forms of
   colour blindness keep apart. */

const NONE = "none";

Report.colourings = (row) => {
  const names = Object.keys(row.lists || {});
  const label = (name) => (name === "logprobs" ? "sampled probability" : Report.words(name));
  return [...names.map((name) => [name, label(name)]), [NONE, "none"]];
};

/* How a list is tinted: {tint(value) -> [class, share] or null, ends: texts of the legend}. */
Report.tinting = (name, values) => {
  const finite = values.filter((value) => value !== null);
  if (name === NONE || !finite.length) return null;
  if (name === "logprobs") {
    return {
      kind: "low",
      ends: ["1", "0"],
      tint: (value) => ["low", 1 - Math.min(1, Math.exp(value))],
    };
  }
  const most = finite.reduce((a, b) => Math.max(a, Math.abs(b)), 0) || 1;
  const signed = finite.some((value) => value < 0);
  const show = (value) => Report.number(value);
  return {
    kind: signed ? "both" : "high",
    ends: signed ? [show(-most), show(most)] : ["0", show(most)],
    tint: (value) => [value < 0 ? "low" : "high", Math.abs(value) / most],
  };
};

Report.legend = (name, label, tinting) => {
  if (!tinting) return Report.make("span");
  return Report.make(
    "span",
    { class: "scale", role: "img", "aria-label": `${label}: from ${tinting.ends[0]} to ${tinting.ends[1]}` },
    tinting.ends[0],
    Report.make("i", { class: `ramp ${tinting.kind}` }),
    tinting.ends[1],
  );
};

const shown = (token) => (token === "" ? "\u2205" : token.replaceAll("\n", "\u21b5\n").replaceAll("\t", "\u21e5\t"));

/* The turn in which the policy wrote a token, from 0; null for what the environment said. */
Report.turnAt = (row, index) => {
  if (!row.turns) return 0;
  const found = row.turns.findIndex(([start, stop]) => start <= index && index < stop);
  return found < 0 ? null : found;
};

const describe = (row, index) => {
  const lines = [JSON.stringify(row.tokens[index])];
  const turn = Report.turnAt(row, index);
  if (turn === null) return [...lines, "said by the environment", `token ${index + 1} of ${row.tokens.length}`];
  if (row.turns) {
    const reward = row.turns[turn][2];
    lines.push(`turn ${turn + 1} of ${row.turns.length}` + (reward === null ? "" : `: ${Report.number(reward)}`));
  }
  for (const [name, values] of Object.entries(row.lists)) {
    const value = values[index];
    if (name === "logprobs") {
      const probability = value === null ? null : Math.exp(value);
      lines.push(`probability ${probability === null ? "\u2013" : probability.toFixed(4)}`);
      lines.push(`logprob ${Report.number(value)}`);
    } else lines.push(`${Report.words(name)} ${Report.number(value)}`);
  }
  const steps = Report.steps(row);
  const k = steps.findIndex((step) => index < step.end);
  if (k >= 0) lines.push(`step ${k + 1} of ${steps.length}: ${Report.number(steps[k].reward)}`);
  lines.push(`token ${index + 1} of ${row.tokens.length}`);
  return lines;
};

/* The steps of a response, each from one token to another, with the sum of its token rewards. */
Report.steps = (row) => {
  const rewards = row.lists && row.lists.token_rewards;
  if (!rewards || !row.steps) return [];
  return row.steps.map((end, k) => {
    const start = k ? row.steps[k - 1] : 0;
    const reward = rewards.slice(start, end).reduce((sum, value) => sum + (value || 0), 0);
    return { start, end, reward };
  });
};

/* The number of the step with the lowest reward, where there are several; else -1. */
Report.blamed = (steps) => {
  if (steps.length < 2) return -1;
  return steps.reduce((low, step, k) => (step.reward < steps[low].reward ? k : low), 0);
};

const tip = document.getElementById("tip");

const placeTip = (span, lines) => {
  tip.replaceChildren(...lines.map((line, i) => Report.make(i ? "span" : "b", {}, line)));
  tip.hidden = false;
  const at = span.getClientRects()[0] || span.getBoundingClientRect();
  const room = document.documentElement;
  const left = Math.max(4, Math.min(at.left, room.clientWidth - tip.offsetWidth - 4));
  const below = at.bottom + 6;
  const fits = below + tip.offsetHeight < room.clientHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${fits ? below : Math.max(4, at.top - tip.offsetHeight - 6)}px`;
};

/* The coloured response; the pointer or, with focus inside, left and right read single tokens. */
Report.tokens = (row, name) => {
  const tinting = Report.tinting(name, (row.lists && row.lists[name]) || []);
  const spans = row.tokens.map((token, index) => {
    const span = Report.make("span", { class: "token", "data-index": index }, shown(token));
    const said = Report.turnAt(row, index) === null;
    if (said) span.classList.add("observed");
    const value = tinting && !said ? row.lists[name][index] : null;
    if (value !== null) {
      const [side, share] = tinting.tint(value);
      span.classList.add(side);
      span.style.setProperty("--share", share.toFixed(3));
      if (name === "logprobs" && share > 0.9) span.classList.add("rare");
    }
    return span;
  });
  if (name === "token_rewards") {
    const steps = Report.steps(row);
    const low = Report.blamed(steps);
    const marked = low < 0 ? [] : spans.slice(steps[low].start, steps[low].end);
    for (const span of marked) span.classList.add("blamed");
  }
  let current = -1;
  const read = (index) => {
    if (current >= 0) spans[current].classList.remove("current");
    current = index;
    tip.hidden = index < 0;
    if (index < 0) return;
    spans[index].classList.add("current");
    placeTip(spans[index], describe(row, index));
  };
  const move = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(spans.length - 1, current + step));
    spans[next].scrollIntoView({ block: "nearest" });
    read(next);
  };
  return Report.make(
    "div",
    {
      class: "text tokens",
      tabindex: "0",
      role: "group",
      "aria-label": "Response, token by token; left and right arrow keys read single tokens",
      "aria-describedby": "tip",
      pointerover: (event) => {
        const span = event.target.closest(".token");
        if (span) read(Number(span.dataset.index));
      },
      pointerleave: () => read(-1),
      blur: () => read(-1),
      scroll: () => { tip.hidden = true; },
      keydown: move,
    },
    ...spans,
  );
};
