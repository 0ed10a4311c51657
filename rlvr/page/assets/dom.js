"use strict";
/* Small helpers. Text from data reaches the page through text nodes and attributes set by name
   only, so nothing in it is ever parsed as markup. */

const Report = {};

Report.data = (id) => JSON.parse(document.getElementById(id).textContent);

/* make("a", {class: "b", click: handler}, child, ...): functions become listeners, null is left
   out, true sets an empty attribute, strings among the children become text. */
Report.make = (tag, attributes, ...children) => {
  const element = document.createElement(tag);
  Report.set(element, attributes);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
};

Report.svg = (tag, attributes, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Report.set(element, attributes);
  element.append(...children);
  return element;
};

Report.set = (element, attributes) => {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value);
    }
  }
};

/* A labelled <select>; options are [value, text] pairs. */
Report.select = (label, options, value, change) => {
  const select = Report.make("select", { change: () => change(select.value) });
  for (const [key, text] of options) select.append(Report.make("option", { value: key }, text));
  select.value = value;
  return Report.make("label", { class: "field" }, Report.make("span", {}, label), select);
};

Report.words = (name) => name.replaceAll("_", " ");

Report.notes = (lines) => {
  if (!lines.length) return null;
  const list = Report.make("ul", { class: "notes" });
  for (const line of lines) list.append(Report.make("li", {}, line));
  return list;
};
