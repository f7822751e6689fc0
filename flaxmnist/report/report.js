// Filters the mistakes of a report by label and prediction.
"use strict";
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const all = [...document.querySelectorAll(".thumbs figure")];
  const shown = document.getElementById("shown");
  const filter = () => {
    const [label, prediction] = [form.elements.label.value, form.elements.prediction.value];
    let count = 0;
    for (const one of all) {
      one.hidden = (label && one.dataset.label !== label)
        || (prediction && one.dataset.prediction !== prediction);
      count += !one.hidden;
    }
    shown.textContent = `${count} of ${all.length}`;
  };
  form.addEventListener("change", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("button[data-label]")) {
    button.addEventListener("click", () => {
      form.elements.label.value = button.dataset.label;
      form.elements.prediction.value = button.dataset.prediction;
      filter();
      form.scrollIntoView();
      form.elements.label.focus({preventScroll: true});
    });
  }
  filter();
})();
