// Charts: what a pointer or an arrow key points at is told; lines and axes are switched on and off.
for (const figure of document.querySelectorAll(".chart")) {
  const svg = figure.querySelector(".plot > svg"), tip = figure.querySelector(".tip");
  const box = svg.viewBox.baseVal;
  const groups = [...svg.querySelectorAll("g.line")];
  let at = null;
  const visible = () => groups.filter(group => !group.hasAttribute("hidden"))
    .map(group => [...group.querySelectorAll(".dot")]).filter(dots => dots.length);
  const place = dot => [Number(dot.dataset.x), Number(dot.dataset.y)];
  const leave = () => { at?.classList.remove("at"); at = null; tip.hidden = true; };
  const point = dot => {
    if (!dot) return;
    leave();
    at = dot;
    at.classList.add("at");
    tip.textContent = dot.dataset.words;
    tip.hidden = false;
    const [x, y] = place(dot), scale = svg.clientWidth / box.width;
    const left = Math.min(x * scale + 12, svg.clientWidth - tip.offsetWidth);
    const above = y * scale - tip.offsetHeight - 12;
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${above > 0 ? above : y * scale + 14}px`;
  };
  const nearest = event => {
    const frame = svg.getBoundingClientRect(), scale = frame.width / box.width;
    const far = dot => { const [x, y] = place(dot);
      return Math.hypot(frame.left + x * scale - event.clientX, frame.top + y * scale - event.clientY); };
    return visible().flat().reduce((best, dot) => !best || far(dot) < far(best) ? dot : best, null);
  };
  svg.addEventListener("pointermove", event => point(nearest(event)));
  svg.addEventListener("pointerdown", event => point(nearest(event)));
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", event => {
    if (event.key === "Escape") return leave();
    const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const lines = visible();
    if (!lines.length) return;
    if (!at) return point(lines[0][0]);
    const [down, along] = steps[event.key];
    let row = lines.findIndex(dots => dots.includes(at));
    const column = lines[row].indexOf(at);
    row = (row + down + lines.length) % lines.length;
    const dots = [...lines[row]].sort((a, b) => a.dataset.x - b.dataset.x);
    const start = down ? Math.min(column, dots.length - 1) : dots.indexOf(at);
    point(dots[Math.max(0, Math.min(dots.length - 1, start + along))]);
  });
  for (const button of figure.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", shown);
      groups[button.dataset.line].toggleAttribute("hidden", !shown);
      leave();
    });
  }
}
for (const switched of document.querySelectorAll(".switched")) {
  const buttons = [...switched.querySelectorAll(":scope > .switch button")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const one of buttons) one.setAttribute("aria-pressed", one === button);
      for (const figure of switched.querySelectorAll(":scope > .chart")) {
        figure.hidden = figure.dataset.name !== button.dataset.name;
      }
    });
  }
}
