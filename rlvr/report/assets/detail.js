"use strict";
/* One completion, opened: what was asked, what came back token by token, and how it was judged. */

Report.verdict = (row) => {
  if (row.correct === true) return ["\u2713", "correct", "good"];
  if (row.correct === false) return ["\u2717", "wrong", "bad"];
  return ["?", "no verdict", "none"];
};

Report.response = (row) => {
  if (typeof row.response === "string") return row.response;
  return (row.tokens || []).join("");
};

let colouring = "logprobs";

const facts = (row) => {
  const lists = row.lists || {};
  const sampled = (value, index) => value !== null && Report.turnAt(row, index) !== null;
  const logprobs = (lists.logprobs || []).filter(sampled);
  const mean = logprobs.length ? logprobs.reduce((a, b) => a + b, 0) / logprobs.length : null;
  const pairs = [
    ["Gold answer", row.answer],
    ["Extracted answer", row.extracted === undefined ? "none found" : row.extracted],
    ["Grader's reason", row.reason],
    ["Reward", Report.number(row.reward)],
    ["Advantage", row.advantage === undefined ? undefined : Report.number(row.advantage)],
    ["Finish reason", Report.cut(row) ? `${row.finish_reason} (truncated)` : row.finish_reason],
    ["Tokens", row.tokens && row.tokens.length],
    ["Turns", row.turns && row.turns.length],
    ["Mean logprob", mean === null ? undefined : `${Report.number(mean)} nats`],
    ["Problem", row.problem_id],
    ["Evaluation set", row.set],
    ["Sample", row.sample],
    ["Policy version", row.policy_version],
    ...Object.entries(row.extra || {}).map(([name, value]) => [Report.words(name), value]),
  ];
  return pairs.filter(([, value]) => value !== undefined && value !== null && value !== "");
};

const factList = (pairs) => {
  const list = Report.make("dl", { class: "facts" });
  for (const [name, value] of pairs) {
    list.append(
      Report.make("div", {}, Report.make("dt", {}, name), Report.make("dd", {}, String(value))),
    );
  }
  return list;
};

const rewardTable = (rewards) => {
  const entries = Object.entries(rewards || {});
  if (!entries.length) return null;
  const body = Report.make("tbody");
  for (const [name, value] of entries) {
    body.append(
      Report.make("tr", {}, Report.make("th", { scope: "row" }, name), Report.make("td", {}, Report.number(value))),
    );
  }
  return Report.make("table", { class: "rewards" }, Report.make("caption", {}, "Rewards by function"), body);
};

const responsePart = (row) => {
  if (!row.tokens) {
    return [
      Report.make("h4", {}, "Response"),
      Report.make("div", { class: "text", tabindex: "0" }, Report.response(row)),
      Report.make("p", { class: "help" }, "No tokens were kept for this completion."),
    ];
  }
  const options = Report.colourings(row);
  if (!options.some(([name]) => name === colouring)) colouring = options[0][0];
  const label = options.find(([name]) => name === colouring)[1];
  const tinting = Report.tinting(colouring, row.lists[colouring] || []);
  const part = Report.make("div", { class: "response" });
  const choose = Report.select("Colour by", options, colouring, (name) => {
    colouring = name;
    part.replaceWith(responsePart(row)[0]);
  });
  part.append(
    Report.make("div", { class: "response-head" }, Report.make("h4", {}, "Response"), choose, Report.legend(colouring, label, tinting)),
    Report.tokens(row, colouring),
  );
  return [part];
};

/* Fill `pane` with the completion. `prompt` is its text; `actions` are the pane's buttons. */
Report.detail = (pane, row, prompt, actions) => {
  const [mark, word, tone] = Report.verdict(row);
  const cut = Report.cut(row);
  pane.replaceChildren(
    Report.make(
      "div",
      { class: "detail-head" },
      Report.make("span", { class: `verdict ${tone}` }, `${mark} ${word}`),
      cut ? Report.make("span", { class: "verdict cut" }, "truncated") : null,
      Report.make("span", { class: "reward" }, `reward ${Report.number(row.reward)}`),
      actions,
    ),
    Report.make("h4", {}, "Prompt"),
    Report.make("div", { class: "text prompt", tabindex: "0" }, prompt),
    ...responsePart(row),
    factList(facts(row)),
  );
  const table = rewardTable(row.rewards);
  if (table) pane.append(table);
  pane.scrollTop = 0;
  // The question itself usually comes last, after worked examples.
  const asked = pane.querySelector(".prompt");
  asked.scrollTop = asked.scrollHeight;
};
