// Heatmaps: one choice of colours for the whole page, and whether they lie over the photographs.
const body = document.body;
const menus = [...document.querySelectorAll("select.colours")];
const checks = [...document.querySelectorAll("input.over")];
const covers = [...document.querySelectorAll("input.cover")];
// The photographs lie below their maps as well, from when that is first asked for.
const lay = () => {
  for (const pair of document.querySelectorAll("button.pair")) {
    const photo = pair.querySelector(".photo") ?? pair.closest(".set")?.querySelector(".photo");
    if (!photo) continue;
    const under = document.createElement("img");
    under.className = "photo under";
    under.alt = "";
    under.src = photo.src;
    pair.lastElementChild.prepend(under);
  }
};
for (const menu of menus) {
  menu.addEventListener("change", () => {
    body.dataset.colours = menu.value;
    for (const other of menus) other.value = menu.value;
  });
}
for (const check of checks) {
  check.addEventListener("change", () => {
    if (!body.querySelector(".photo.under")) lay();
    body.classList.toggle("over", check.checked);
    for (const other of checks) other.checked = check.checked;
  });
}
for (const cover of covers) {
  cover.addEventListener("input", () => {
    body.style.setProperty("--cover", cover.value);
    for (const other of covers) other.value = cover.value;
  });
}
