/* Small repairs that style sheets cannot make.  The page reads well without them. */

/** A paragraph that is nothing but bold text, and a statement, is the takeaway of its section. */
function markTakeaways() {
  for (const bold of document.querySelectorAll(".bd-article p > strong:only-child")) {
    const words = bold.textContent.trim();
    if (bold.parentElement.textContent.trim() === words && words.endsWith(".")) bold.parentElement.classList.add("takeaway");
  }
}

/** The words on a button must be part of the name that a screen reader speaks. */
function nameButtons() {
  for (const button of document.querySelectorAll(".search-button-field")) {
    button.setAttribute("aria-label", button.textContent.trim().replace(/\s+/g, " "));
  }
  for (const summary of document.querySelectorAll("summary[aria-label]")) summary.removeAttribute("aria-label");
  for (const icon of document.querySelectorAll(".theme-switch-button :is(i, svg)")) {
    icon.removeAttribute("title");
    icon.removeAttribute("aria-labelledby");
    icon.querySelector("title")?.remove();
    icon.setAttribute("aria-hidden", "true");
  }
}

/** A list may hold list items only; the entries of the bibliography are not such items. */
function mendBibliography() {
  for (const list of document.querySelectorAll(".citation-list[role=list]")) list.removeAttribute("role");
}

/** Whatever scrolls inside itself must be reachable with the keyboard. */
function focusScrollers() {
  const wide = "mjx-container, pre, .output, .pst-scrollable-table-container";
  for (const element of document.querySelectorAll(wide)) {
    if (element.scrollWidth > element.clientWidth + 1) element.tabIndex = 0;
  }
}

document.addEventListener("DOMContentLoaded", () => {
  markTakeaways();
  nameButtons();
  mendBibliography();
});

window.addEventListener("load", async () => {
  nameButtons(); // once more: the icons have become drawings by now
  await window.MathJax?.startup?.promise;
  focusScrollers();
  window.addEventListener("resize", focusScrollers);
});
