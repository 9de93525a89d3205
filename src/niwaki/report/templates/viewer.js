
(() => {
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const [across, down] = data.scale;
const width = data.slide.width;
const LEAST = 200; // pixels around a region

// Pictures lie in a folder for each level; only those that were cut are asked for.
function source(one) {
  const known = one.tiles.map((names) => new Set(names));
  return new OpenSeadragon.TileSource({
    width: one.width, height: one.height, tileSize: one.side, tileOverlap: 0,
    minLevel: 0, maxLevel: one.tiles.length - 1,
    getTileUrl: (level, x, y) => `${one.folder}/${level}/${x}_${y}.${one.suffix}`,
    tileExists: (level, x, y) => level >= 0 && level < known.length && known[level].has(`${x}_${y}`),
  });
}

function viewer(element, one, options) {
  return new OpenSeadragon({
    element, tileSources: source(one), drawer: "canvas", showNavigationControl: false,
    crossOriginPolicy: false, loadTilesWithAjax: false, animationTime: 0.3, maxZoomPixelRatio: 8,
    visibilityRatio: 0.3, gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    gestureSettingsTouch: { clickToZoom: false }, ...options,
  });
}

const still = { tabIndex: -1, mouseNavEnabled: false, animationTime: 0, keyboardNavEnabled: false, visibilityRatio: 0,
  minZoomImageRatio: 0, maxZoomPixelRatio: 1000 };
const base = viewer(at("slide"), data.slide, {});
let over = null, smallBase = null, smallOver = null;

// What is marked lies above the map, and moves with the slide.
const marks = new Map();
function put(element, where) { marks.set(element, where); at("stage").append(element); follow(); }
function take(element) { marks.delete(element); element.remove(); }

function follow() {
  // In shares of the stage, which has another size on paper.
  const { x: wide, y: high } = base.viewport.getContainerSize();
  at("stage").style.setProperty("--shape", wide / high);
  const share = (value, whole) => `${(100 * value) / whole}%`;
  for (const [element, where] of marks) {
    const box = base.viewport.viewportToViewerElementRectangle(where);
    Object.assign(element.style, { left: share(box.x, wide), top: share(box.y, high),
      width: share(box.width, wide), height: share(box.height, high) });
  }
  if (!over || !over.viewport || !base.viewport) return;
  over.viewport.zoomTo(base.viewport.getZoom(true), null, true);
  over.viewport.panTo(base.viewport.getCenter(true), true);
}

function ruler() {
  const perPixel = data.mpp * width / (base.viewport.getZoom(true) * base.viewport.getContainerSize().x);
  const steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000];
  const length = steps.find((step) => step / perPixel > 70) || 50000;
  at("ruler").style.width = `${100 * length / perPixel / base.viewport.getContainerSize().x}%`;
  at("ruler").firstElementChild.textContent = length < 1000 ? `${length} µm` : `${length / 1000} mm`;
}

// The chosen layer: its colours are given by a filter, as a page from the disk may not read pixels.
let now = null;
function tables() { return data.maps[now.signed ? "signed" : "plain"]; }

function paint() {
  const some = at("table").value in tables() ? at("table").value : Object.keys(tables())[0];
  const channels = tables()[some];
  ["red", "green", "blue"].forEach((id, n) => at(id).setAttribute("tableValues", channels[n]));
  const lowest = at("threshold").value / 100;
  const gate = Array.from({ length: 256 }, (_, n) => {
    const value = now.signed ? Math.abs(n / 127.5 - 1) : n / 255;
    return value + 0.002 >= lowest ? 1 : 0;
  });
  at("gate").setAttribute("tableValues", gate.join(" "));
  at("map").style.opacity = at("opacity").value / 100;
  at("opacity-now").textContent = `${at("opacity").value} %`;
  at("threshold-now").textContent = number(lowest * now.limit);
  const stops = channels[0].split(" ").map((_, n) => `rgb(${channels.map((c) => Math.round(255 * c.split(" ")[n])).join(",")})`);
  at("bar").style.background = `linear-gradient(to right, ${stops.join(",")})`;
  at("what").textContent = now.title;
  at("low").textContent = now.signed ? number(-now.limit) : "0";
  at("high").textContent = number(now.limit);
  // Filters are drawn anew only when what names them changes.
  for (const one of [at("map"), at("small-map")]) { one.classList.remove("tinted"); void one.offsetWidth; one.classList.add("tinted"); }
}

function number(value) {
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  return size && (size < 0.001 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4))).replace("-", "\u2212");
}

function show(index) {
  if (over) { over.destroy(); over = null; }
  at("map").replaceChildren();
  now = index >= 0 ? data.layers[index] : null;
  for (const id of ["table", "opacity", "threshold"]) at(id).disabled = !now;
  at("what").hidden = !now;
  if (now) {
    const before = at("table").value;
    at("table").replaceChildren(...Object.keys(tables()).map((name) => new Option(name, name)));
    if (before in tables()) at("table").value = before;
    over = viewer(at("map"), now.source, still);
    over.addHandler("open", follow);
    paint();
  }
  if (chosen !== null) tile(chosen);
  remember();
}

// Tiles: where they lie is known in pixels of full resolution.
const column = (name) => data.columns.indexOf(name);
const [left, top_, wide, high] = ["x", "y", "width", "height"].map(column);
const words = { x: "x, in pixels of full resolution", y: "y, in pixels of full resolution", tissue: "share of tissue" };
let chosen = null, mark = null;

function box(row) {
  return new OpenSeadragon.Rect(row[left] / across / width, row[top_] / down / width,
    row[wide] / across / width, row[high] / down / width);
}

function nearest(point) {
  let best = null, least = Infinity;
  data.tiles.forEach((row, n) => {
    const one = box(row), middle = one.getCenter();
    const far = Math.max(Math.abs(point.x - middle.x) / one.width, Math.abs(point.y - middle.y) / one.height);
    if (far <= 0.5 && far < least) { best = n; least = far; }
  });
  return best;
}

function tile(n) {
  chosen = n;
  at("hint").hidden = n !== null;
  at("chosen").hidden = n === null;
  if (mark) take(mark);
  mark = null;
  if (n === null) return remember();
  const row = data.tiles[n], where = box(row);
  mark = document.createElement("div");
  mark.className = "mark";
  put(mark, where);
  at("tile-name").textContent = `Tile in row ${row[column("row")]}, column ${row[column("column")]}`;
  at("numbers").replaceChildren(...data.columns.flatMap((name, k) => {
    if (k <= high && name !== "x" && name !== "y") return [];
    const line = document.createElement("tr"), head = document.createElement("th"), cell = document.createElement("td");
    head.scope = "row"; head.textContent = words[name] || name; cell.textContent = number(row[k]);
    line.append(head, cell);
    return [line];
  }));
  for (const one of [smallBase, smallOver]) if (one) one.destroy();
  at("small-slide").replaceChildren(); at("small-map").replaceChildren();
  const fit = (one) => one.addHandler("open", () => one.viewport.fitBounds(where, true));
  fit(smallBase = viewer(at("small-slide"), data.slide, still));
  smallOver = null;
  if (now) fit(smallOver = viewer(at("small-map"), now.source, still));
  remember();
}

// Regions, the most relevant first.
let outline = null;
function region(n) {
  if (outline) take(outline);
  outline = null;
  if (n < 0) return remember();
  const points = data.regions[n].rings.map((ring) => ring.map(([x, y]) => [x / across / width, y / down / width]));
  const xs = points[0].map((p) => p[0]), ys = points[0].map((p) => p[1]);
  const x = Math.min(...xs), y = Math.min(...ys), w = Math.max(...xs) - x, h = Math.max(...ys) - y;
  const path = points.map((ring) => `M${ring.map((p) => `${(p[0] - x) / w} ${(p[1] - y) / h}`).join("L")}Z`).join("");
  outline = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  outline.setAttribute("viewBox", "0 0 1 1");
  outline.setAttribute("preserveAspectRatio", "none");
  outline.setAttribute("class", "outline");
  for (let k = 0; k < 2; k += 1) {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
    line.setAttribute("d", path);
    outline.append(line);
  }
  const where = new OpenSeadragon.Rect(x, y, w, h);
  put(outline, where);
  return where;
}

// The view in the address, so that it can be handed on.
let ready = false;
function remember() {
  if (!ready) return;
  const middle = base.viewport.getCenter(), parts = new URLSearchParams({
    x: Math.round(middle.x * width * across), y: Math.round(middle.y * width * down),
    zoom: base.viewport.getZoom().toPrecision(4), layer: at("layer").value, opacity: at("opacity").value,
    threshold: at("threshold").value, colours: at("table").value, region: at("region").value,
  });
  if (chosen !== null) parts.set("tile", chosen);
  history.replaceState(null, "", `#${parts}`);
}

function recall() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const whole = (name, most) => {
    const value = Number(parts.get(name));
    return parts.has(name) && Number.isInteger(value) && value >= -1 && value < most ? value : null;
  };
  for (const id of ["opacity", "threshold"]) if (whole(id, 101) !== null) at(id).value = whole(id, 101);
  if (whole("layer", data.layers.length) !== null) at("layer").value = whole("layer", data.layers.length);
  const some = whole("region", data.regions.length);
  show(Number(at("layer").value));
  if (now && parts.get("colours") in tables()) { at("table").value = parts.get("colours"); paint(); }
  if (some !== null) { at("region").value = some; region(some); }
  const n = whole("tile", data.tiles.length);
  if (n !== null && n >= 0) tile(n);
  const zoom = Number(parts.get("zoom")), x = Number(parts.get("x")), y = Number(parts.get("y"));
  if (zoom > 0 && Number.isFinite(x) && Number.isFinite(y)) {
    base.viewport.zoomTo(zoom, null, true);
    base.viewport.panTo(new OpenSeadragon.Point(x / across / width, y / down / width), true);
  }
  ready = true;
  ruler();
}

// The names of layers are long: they stand above their regions, which are numbered.
const groups = new Map();
data.regions.forEach((one, n) => {
  if (!groups.has(one.layer)) {
    const group = document.createElement("optgroup");
    group.label = one.layer;
    groups.set(one.layer, group);
    at("region").append(group);
  }
  groups.get(one.layer).append(new Option(one.name.slice(one.layer.length).replace(/^, /, ""), n));
});
base.addHandler("open", recall);
base.addHandler("viewport-change", () => { follow(); ruler(); });
base.addHandler("resize", () => { follow(); ruler(); });
base.addHandler("animation-finish", remember);
base.addHandler("canvas-click", (event) => {
  if (event.quick) tile(nearest(base.viewport.pointFromPixel(event.position)));
});
base.addHandler("canvas-key", (event) => {
  if (event.originalEvent.key === "Enter") { tile(nearest(base.viewport.getCenter())); event.preventDefaultAction = true; }
});
at("layer").addEventListener("change", () => show(Number(at("layer").value)));
for (const id of ["opacity", "threshold"]) at(id).addEventListener("input", () => { paint(); remember(); });
at("table").addEventListener("change", () => { paint(); remember(); });
at("region").addEventListener("change", () => {
  const where = region(Number(at("region").value));
  if (where) {
    // A small region is shown with what lies around it.
    const middle = where.getCenter(), w = Math.max(2 * where.width, LEAST / width), h = Math.max(2 * where.height, LEAST / width);
    base.viewport.fitBounds(new OpenSeadragon.Rect(middle.x - w / 2, middle.y - h / 2, w, h));
  }
  remember();
});
at("in").addEventListener("click", () => base.viewport.zoomBy(1.6));
at("out").addEventListener("click", () => base.viewport.zoomBy(1 / 1.6));
at("home").addEventListener("click", () => base.viewport.goHome());
window.niwakiViewer = { base, ready: () => ready, over: () => over };
})();
