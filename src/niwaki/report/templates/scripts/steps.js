// Steps: a slider moves the photographs' heatmaps, the network and what is said to the same step.
for (const part of document.querySelectorAll(".by-step")) {
  const slider = part.querySelector(".steps-bar input"), said = part.querySelector("output");
  const words = [...part.querySelectorAll(".step-words li")].map(item => item.textContent);
  const bars = [...part.querySelectorAll(".network g")].map(group => ({
    kept: group.querySelector(".kept"), title: group.querySelector("title"),
    name: group.dataset.name, units: group.dataset.units.split(" ").map(Number),
    top: Number(group.dataset.top), height: Number(group.dataset.height),
  }));
  const answers = [...part.querySelectorAll(".answers")].map(list => [...list.children]);
  const show = () => {
    const step = Number(slider.value);
    part.style.setProperty("--frame", words.length > 1 ? step / (words.length - 1) : 0);
    said.textContent = words[step];
    slider.setAttribute("aria-valuetext", words[step]);
    for (const bar of bars) {
      const height = bar.height * bar.units[step] / (bar.units[0] || 1);
      bar.kept.setAttribute("height", height);
      bar.kept.setAttribute("y", bar.top + bar.height - height);
      bar.title.textContent = `${bar.name}: ${bar.units[step]} of ${bar.units[0]} units`;
    }
    for (const items of answers) items.forEach((item, number) => { item.hidden = number !== step; });
  };
  slider.addEventListener("input", show);
  show();
}
