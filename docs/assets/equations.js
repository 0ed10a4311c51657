// Equations are TeX in the page; KaTeX, which lies beside this file, sets them.
document.addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const text = element.textContent.trim();
    const display = element.tagName === "DIV";
    katex.render(text.slice(2, -2), element, { displayMode: display, fleqn: true, throwOnError: false });
  }
});
