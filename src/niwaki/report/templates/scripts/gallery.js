// Galleries: cards are searched, filtered and sorted.
for (const gallery of document.querySelectorAll(".gallery")) {
  const search = gallery.querySelector("input[type=search]"), menu = gallery.querySelector("select.sort");
  const only = gallery.querySelector("select.only"), told = gallery.querySelector(".count");
  const groups = [...gallery.querySelectorAll(".group")];
  const cards = [...gallery.querySelectorAll(".cards > [data-words]")];
  let turned = false;
  const choose = () => {
    const wanted = (search?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    const kind = only?.value ?? "";
    let shown = 0;
    for (const card of cards) {
      const fits = wanted.every(word => card.dataset.words.toLowerCase().includes(word))
        && (!kind || card.dataset.kinds.split(" ").includes(kind));
      card.hidden = !fits;
      shown += fits;
    }
    for (const group of groups) group.hidden = !group.querySelector(".cards > [data-words]:not([hidden])");
    if (told) told.textContent = `${shown} of ${cards.length} shown`;
  };
  const sort = () => {
    const key = menu.value, up = (menu.selectedOptions[0].dataset.up === "1") !== turned;
    const value = card => card.dataset[key] === "" || card.dataset[key] === undefined ? null : Number(card.dataset[key]);
    for (const list of gallery.querySelectorAll(".cards")) {
      list.append(...[...list.children].sort((a, b) => {
        const x = value(a), y = value(b);
        if (x === null || y === null) return (x === null) - (y === null);
        return (up ? x - y : y - x) || a.dataset.number - b.dataset.number;
      }));
    }
  };
  search?.addEventListener("input", choose);
  only?.addEventListener("change", choose);
  menu?.addEventListener("change", () => { turned = false; sort(); });
  gallery.querySelector("button.turn")?.addEventListener("click", () => { turned = !turned; sort(); });
  choose();
}
