"use strict";
const losses = JSON.parse(document.getElementById("losses").textContent);
const box = document.getElementById("reference");
const detail = document.getElementById("detail");
const nodes = [...document.querySelectorAll(".node")];
let chosen = "CPO";

function row(list, term, text, code) {
  const name = document.createElement("dt");
  const value = document.createElement("dd");
  name.textContent = term;
  value.textContent = text;
  if (code) value.className = "code";
  list.append(name, value);
}

function show() {
  const fact = losses[box.checked ? "reference" : "plain"][chosen];
  for (const node of nodes) {
    const name = node.dataset.loss;
    node.classList.toggle("chosen", name === chosen);
    node.classList.toggle("near", fact.asksMore.includes(name) || fact.asksLess.includes(name));
    node.setAttribute("aria-pressed", String(name === chosen));
  }
  for (const line of document.querySelectorAll("line")) {
    line.classList.toggle("near", line.dataset.edge.split(" ").includes(chosen));
  }
  const title = document.createElement("h2");
  title.textContent = fact.loss || chosen;
  const list = document.createElement("dl");
  row(list, "Equation", "log " + fact.equation, true);
  row(list, "P", fact.P, true);
  row(list, "P_C", fact.P_C, true);
  row(list, "P_A", fact.P_A, true);
  row(list, "Reads", fact.reading, false);
  if (fact.about) row(list, "Is", fact.about, false);
  row(list, "Up: ask for more", names(fact.asksMore, fact.moreSteps), false);
  row(list, "Down: ask for less", names(fact.asksLess, fact.lessSteps), false);
  detail.replaceChildren(title, list);
}

function names(found, steps) {
  return `${found.join(", ") || "none of the sixteen"} (${steps} single steps in all, ` +
    "most to losses without a name)";
}

for (const node of nodes) {
  node.addEventListener("click", () => { chosen = node.dataset.loss; show(); });
  node.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      chosen = node.dataset.loss;
      show();
    }
  });
}
box.addEventListener("change", show);
show();
