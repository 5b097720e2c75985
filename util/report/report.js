"use strict";

// Tables: a click on a column's title sorts by it, numbers as numbers; cells without a value stay last.
function sortTable(header) {
  const heads = [...header.parentElement.children], column = heads.indexOf(header);
  const body = header.closest("table").tBodies[0], text = header.classList.contains("text");
  const usual = text || header.dataset.first ? "ascending" : "descending", now = header.getAttribute("aria-sort");
  const order = now === "none" ? usual : now === "ascending" ? "descending" : "ascending";
  const sign = order === "ascending" ? 1 : -1;
  const value = (line) => line.children[column].dataset.value;
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return sign * (text ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
  };
  for (const other of heads) other.setAttribute("aria-sort", other === header ? order : "none");
  body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
}

for (const button of document.querySelectorAll("th button"))
  button.addEventListener("click", () => sortTable(button.parentElement));

// Crops: one square for all pictures of a strip, in shares of their width, height and shorter side.
const clamp = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high));
const KEYS = { ArrowLeft: [-1, 0, 1], ArrowRight: [1, 0, 1], ArrowUp: [0, -1, 1], ArrowDown: [0, 1, 1],
               "+": [0, 0, 0.8], "=": [0, 0, 0.8], "-": [0, 0, 1.25] };

class Strip {
  constructor(element) {
    this.element = element;
    this.pictures = [...element.querySelectorAll(".picture img")];
    [this.x, this.y, this.side] = element.dataset.crop.split(",").map(Number);
    for (const image of this.pictures) {
      const frame = document.createElement("div"), zoom = document.createElement("canvas");
      frame.className = "frame";
      zoom.setAttribute("role", "img");
      zoom.setAttribute("aria-label", `Crop of: ${image.alt}`);
      image.after(frame);
      image.parentElement.after(zoom);
      image.draggable = false;
      image.addEventListener("pointerdown", (event) => this.begin(event, image));
      image.addEventListener("click", (event) => this.dragged || this.centre(event, image));
      image.addEventListener("load", () => this.draw());
    }
    element.addEventListener("keydown", (event) => this.key(event));
    this.draw();
  }

  place(x, y, side, image) {
    const shorter = Math.min(image.naturalWidth, image.naturalHeight);
    this.side = clamp(side, Math.min(1, 8 / shorter), 1);
    this.x = clamp(x, 0, 1 - (this.side * shorter) / image.naturalWidth);
    this.y = clamp(y, 0, 1 - (this.side * shorter) / image.naturalHeight);
    this.draw();
  }

  draw() {
    for (const image of this.pictures) {
      const width = image.naturalWidth, height = image.naturalHeight;
      if (!width) continue;
      const side = Math.max(1, Math.round(this.side * Math.min(width, height)));
      const left = clamp(Math.round(this.x * width), 0, width - side);
      const top = clamp(Math.round(this.y * height), 0, height - side);
      const zoom = image.parentElement.nextElementSibling;
      zoom.width = zoom.height = side;
      zoom.getContext("2d").drawImage(image, left, top, side, side, 0, 0, side, side);
      const box = [left / width, top / height, side / width, side / height].map((share) => `${100 * share}%`);
      [image.nextElementSibling.style.left, image.nextElementSibling.style.top,
       image.nextElementSibling.style.width, image.nextElementSibling.style.height] = box;
    }
  }

  // A click or a tap moves the square; dragging with a mouse or pen draws a new one.
  begin(event, image) {
    this.dragged = false;
    if (event.pointerType === "touch" || event.button !== 0) return;
    this.element.focus({ preventScroll: true });
    const box = image.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const drag = (e) => {
      const right = e.clientX - event.clientX, down = e.clientY - event.clientY;
      const side = Math.max(Math.abs(right), Math.abs(down));
      if (side < 5) return;
      this.dragged = true;
      this.place((right < 0 ? x - side : x) / box.width, (down < 0 ? y - side : y) / box.height,
                 side / Math.min(box.width, box.height), image);
    };
    window.addEventListener("pointermove", drag);
    window.addEventListener("pointerup", () => window.removeEventListener("pointermove", drag), { once: true });
  }

  centre(event, image) {
    const box = image.getBoundingClientRect(), half = (this.side * Math.min(box.width, box.height)) / 2;
    this.place((event.clientX - box.left - half) / box.width, (event.clientY - box.top - half) / box.height,
               this.side, image);
  }

  key(event) {
    const image = this.pictures[0];
    if (!(event.key in KEYS) || event.ctrlKey || event.metaKey || event.altKey || !image?.naturalWidth) return;
    event.preventDefault();
    const [right, down, zoom] = KEYS[event.key], shorter = Math.min(image.naturalWidth, image.naturalHeight);
    const step = Math.max(1 / shorter, this.side / 8), grown = (this.side * (1 - zoom)) / 2;
    this.place(this.x + (right * step + grown) * (shorter / image.naturalWidth),
               this.y + (down * step + grown) * (shorter / image.naturalHeight), this.side * zoom, image);
  }
}

for (const element of document.querySelectorAll(".strip[data-crop]")) new Strip(element);
