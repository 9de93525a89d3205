// Pictures become large in a dialog, with what is known of them; Escape closes it.
const dialog = document.querySelector("dialog.large"), shown = dialog.querySelector(".shown");
const words = dialog.querySelector(".words");
const open = (cells, said) => {
  shown.replaceChildren(...cells);
  words.textContent = said;
  dialog.showModal();
};
for (const pair of document.querySelectorAll("button.pair")) {
  pair.addEventListener("click", () => {
    const cells = [...pair.children].map(cell => cell.cloneNode(true));
    const frame = getComputedStyle(pair).getPropertyValue("--frame");
    shown.style.setProperty("--frame", frame || 0);
    shown.className = `shown ${pair.className.replace("pair", "")} ${pair.closest(".pixels") ? "pixels" : ""}`;
    open(cells, pair.dataset.words ?? "");
  });
}
for (const strip of document.querySelectorAll(".strips")) {
  const buttons = [...strip.querySelectorAll(".hits button")];
  buttons.forEach((button, number) => button.addEventListener("click", () => {
    const cells = [...strip.querySelectorAll(":scope > img")].map(image => {
      const cell = document.createElement("span"), large = document.createElement("img");
      cell.className = "cell";
      large.src = image.src;
      large.alt = "";
      large.className = image.className;
      large.style.objectFit = "cover";
      large.style.objectPosition = `${buttons.length > 1 ? 100 * number / (buttons.length - 1) : 0}% 0`;
      cell.style.aspectRatio = strip.dataset.shape;
      cell.append(large);
      return cell;
    });
    shown.className = "shown pixels";
    open(cells, button.title);
  }));
}
dialog.querySelector("button.close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
