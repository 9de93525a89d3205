// Scatter plots: a cluster or a dot that is chosen shows its images below.
for (const part of document.querySelectorAll(".clusters")) {
  const svg = part.querySelector(".scatter svg"), dots = [...svg.querySelectorAll("circle")];
  const buttons = [...part.querySelectorAll(".switch button")], said = part.querySelector(".chosen");
  const images = [...part.querySelectorAll(".photos > li")];
  let at = -1;
  const choose = cluster => {
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.cluster === cluster);
    for (const dot of dots) dot.classList.toggle("dim", cluster !== "" && dot.dataset.cluster !== cluster);
    let shown = 0;
    for (const image of images) {
      image.hidden = cluster === "" ? !image.classList.contains("typical") : image.dataset.cluster !== cluster;
      shown += !image.hidden;
    }
    const button = buttons.find(one => one.dataset.cluster === cluster);
    said.textContent = `${button ? button.textContent : ""}: ${shown} images shown`;
  };
  const mark = dot => {
    for (const one of dots) one.classList.toggle("at", one === dot);
    if (dot) { choose(dot.dataset.cluster); said.textContent += `; ${dot.dataset.words}`; }
  };
  for (const button of buttons) {
    button.addEventListener("click", () => { at = -1; mark(null); choose(button.dataset.cluster); });
  }
  for (const dot of dots) dot.addEventListener("click", () => { at = dots.indexOf(dot); mark(dot); });
  svg.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") { at = -1; mark(null); choose(""); }
    if (!step) return;
    event.preventDefault();
    at = (at + step + dots.length) % dots.length;
    mark(dots[at]);
  });
  choose("");
}
