// Zoom of the drawings, and what stands behind a box while the pointer or the focus is on it.
(() => {
  const tip = document.getElementById("tip");
  const hide = () => { tip.hidden = true; };
  const show = (box) => {
    const place = box.getBoundingClientRect();
    tip.textContent = box.dataset.hint;
    tip.hidden = false;
    const left = Math.min(place.left, innerWidth - tip.offsetWidth - 8);
    const below = place.bottom + 8 + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${below ? place.bottom + 8 : Math.max(8, place.top - tip.offsetHeight - 8)}px`;
  };
  for (const box of document.querySelectorAll(".net .box")) {
    const title = box.querySelector("title");
    box.dataset.hint = title.textContent;
    box.setAttribute("aria-label", title.textContent);
    title.remove();
    box.addEventListener("mouseenter", () => show(box));
    box.addEventListener("focus", () => show(box));
    box.addEventListener("mouseleave", hide);
    box.addEventListener("blur", hide);
  }
  addEventListener("scroll", hide, true);
  for (const figure of document.querySelectorAll("figure.graph")) {
    const svg = figure.querySelector("svg");
    const width = svg.width.baseVal.value;
    const height = svg.height.baseVal.value;
    let scale = 1;
    const zoom = (factor) => {
      scale = factor === 0 ? 1 : Math.min(4, Math.max(0.1, scale * factor));
      svg.setAttribute("width", width * scale);
      svg.setAttribute("height", height * scale);
      figure.dataset.scale = scale.toFixed(2);
    };
    for (const button of figure.querySelectorAll("button")) {
      button.addEventListener("click", () => zoom(Number(button.value)));
    }
    figure.addEventListener("keydown", (event) => {
      const factor = { "+": 1.25, "=": 1.25, "-": 0.8, 0: 0 }[event.key];
      if (factor !== undefined && !event.ctrlKey && !event.metaKey) {
        zoom(factor);
        event.preventDefault();
      } else if (event.key === "Escape") {
        hide();
      }
    });
  }
})();
