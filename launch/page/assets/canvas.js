// The canvas of places: drag to draw a box, drag a box to move it, its corners to resize, its knob to turn it.
// value: JSON {"places": [{x, y, w, h, angle}], "picture": name, "mask": name}; x, y: centre, in pixels of the picture.
// scene: what the server says: size, picture's address, texts, ghosts (where texts go without places), words, limits.
const SVG = "http://www.w3.org/2000/svg";
const state = { places: [], picture: "", mask: "" };
let selected = -1, drag = null, busy = "";

const scene = () => props.scene || {};
const words = () => scene().words || {};
const size = () => scene().size || [128, 128];
const most = () => scene().most || 5;

function read() {
  let given = {};
  try { given = JSON.parse(props.value || "{}"); } catch (error) { given = {}; }
  state.places = given.places || [];
  state.picture = given.picture || "";
  state.mask = given.mask || "";
  if (selected >= state.places.length) selected = -1;
}

function commit(extra = {}) {
  const places = state.places.map((place) => Object.fromEntries(
    Object.entries(place).map(([name, value]) => [name, Math.round(value * 10) / 10])));
  props.value = JSON.stringify({ ...state, places, ...extra });
  draw();
}

function make(name, attributes = {}, parent = null, text = "") {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}

const turned = (x, y, angle) => {
  const a = (angle * Math.PI) / 180;
  return [x * Math.cos(a) - y * Math.sin(a), x * Math.sin(a) + y * Math.cos(a)];
};

function caption(group, index, x, y, scale, isGhost) {
  const text = `${index + 1}  ${(scene().texts || [])[index] || ""}`.trim();
  const label = make("g", { transform: `translate(${x} ${y}) scale(${scale})`, class: "tag" }, group);
  const box = make("rect", { rx: 4, height: 20, y: -20, x: 0 }, label);
  const shown = make("text", { x: 6, y: -6 }, label, text.length > 22 ? text.slice(0, 21) + "…" : text);
  box.setAttribute("width", shown.getComputedTextLength() + 12 || 24);
  group.classList.add(`line-${index + 1}`);
  if (isGhost) group.classList.add("ghost");
}

function drawPlace(svg, place, index, scale) {
  const { x, y, w, h, angle = 0 } = place;
  const group = make("g", { transform: `translate(${x} ${y}) rotate(${angle})`, class: "place", "data-index": index,
    tabindex: 0, role: "button", "aria-label": `${index + 1} ${(scene().texts || [])[index] || ""}` }, svg);
  make("rect", { x: -w / 2, y: -h / 2, width: w, height: h, class: "body", "data-part": "body" }, group);
  caption(group, index, -w / 2, -h / 2 < -y + 20 * scale ? -h / 2 + 20 * scale : -h / 2, scale, false);
  if (index !== selected) return;
  group.classList.add("selected");
  const r = 7 * scale, up = -h / 2 - 22 * scale, knob = y + up < 8 * scale ? h / 2 + 22 * scale : up;
  make("line", { x1: 0, x2: 0, y1: knob < 0 ? -h / 2 : h / 2, y2: knob, class: "stem" }, group);
  make("circle", { cx: 0, cy: knob, r, "data-part": "turn", class: "knob" }, group);
  for (const [sx, sy] of [[-1, -1], [1, -1], [1, 1], [-1, 1]]) {
    make("circle", { cx: (sx * w) / 2, cy: (sy * h) / 2, r, "data-part": `corner ${sx} ${sy}`, class: "corner" }, group);
  }
}

function drawGhosts(svg, scale) {
  (scene().ghosts || []).forEach((polygon, index) => {
    const group = make("g", { class: "ghost", "data-ghost": index }, svg);
    make("polygon", { points: polygon.map((p) => p.join(",")).join(" "), class: "body" }, group);
    const xs = polygon.map((p) => p[0]), ys = polygon.map((p) => p[1]);
    const top = Math.min(...ys);
    caption(group, index, Math.min(...xs), top < 20 * scale ? top + 20 * scale : top, scale, true);
  });
}

function draw() {
  const [width, height] = size(), svg = element.querySelector("svg"), stage = element.querySelector(".stage");
  const image = element.querySelector(".stage img"), needsPicture = !!scene().picks && !scene().url;
  stage.style.aspectRatio = `${width} / ${height}`;
  stage.style.setProperty("--ratio", width / height);
  stage.classList.toggle("empty", needsPicture);
  if (scene().url) { if (image.getAttribute("src") !== scene().url) image.src = scene().url; }
  else image.removeAttribute("src");
  image.hidden = !scene().url;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const scale = width / (svg.clientWidth || width);
  const focused = svg.contains(document.activeElement);
  svg.replaceChildren();
  if (!state.places.length || state.mask) drawGhosts(svg, scale);
  if (!state.mask) state.places.forEach((place, index) => drawPlace(svg, place, index, scale));
  if (focused) focusSelected();
  const say = (name, text, isShown) => {
    const node = element.querySelector(name);
    node.hidden = !isShown;
    node.querySelector(".word") ? (node.querySelector(".word").textContent = text) : (node.textContent = text);
  };
  say(".pick", words().pick || "", !!scene().picks);
  say(".mask", words().mask || "", !!scene().masks && !needsPicture);
  say(".drop", busy || words().drop || "", needsPicture);
  say(".remove", words().remove || "", selected >= 0 && !state.mask);
  say(".clear", state.mask ? words().unmask || "" : words().clear || "", !!state.mask || state.places.length > 0);
  const hint = state.mask ? words().masked : state.places.length ? words().drawn : words().empty;
  say(".hint", busy || hint || "", !needsPicture);
  svg.setAttribute("aria-label", hint || "");
}

function at(event) {
  const svg = element.querySelector("svg"), box = svg.getBoundingClientRect(), [width, height] = size();
  return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
}

function within([x, y]) {
  const [width, height] = size();
  return [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)];
}

function adopt() {  // the automatic places become the user's own, to be moved
  state.places = (scene().ghosts || []).slice(0, most()).map((polygon) => {
    const xs = polygon.map((p) => p[0]), ys = polygon.map((p) => p[1]);
    const [l, r, t, b] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    return { x: (l + r) / 2, y: (t + b) / 2, w: r - l, h: b - t, angle: 0 };
  });
}

function begin(event) {
  if (state.mask || event.button > 0 || (scene().picks && !scene().url)) return;
  const svg = element.querySelector("svg"), start = at(event);
  let group = event.target.closest("[data-index]"), part = event.target.dataset?.part || "body";
  const ghost = event.target.closest("[data-ghost]");
  let index = group ? Number(group.dataset.index) : -1;
  if (ghost && !state.places.length) { index = Number(ghost.dataset.ghost); adopt(); part = "body"; }
  if (index >= 0) {
    selected = index;
    drag = { part, start, place: { ...state.places[index] } };
  } else if (state.places.length < most()) {
    drag = { part: "new", start: within(start), place: null };
    selected = -1;
  } else { selected = -1; draw(); return; }
  event.preventDefault();
  svg.setPointerCapture(event.pointerId);
  draw();
}

function move(event) {
  if (!drag) return;
  const now = at(event), [dx, dy] = [now[0] - drag.start[0], now[1] - drag.start[1]], old = drag.place;
  if (drag.part === "new") {
    const [x, y] = within(now), [x0, y0] = drag.start;
    const place = { x: (x + x0) / 2, y: (y + y0) / 2, w: Math.abs(x - x0), h: Math.abs(y - y0), angle: 0 };
    if (selected < 0) { state.places.push(place); selected = state.places.length - 1; } else state.places[selected] = place;
  } else if (drag.part === "turn") {
    const degrees = (Math.atan2(now[1] - old.y, now[0] - old.x) - Math.atan2(drag.start[1] - old.y, drag.start[0] - old.x));
    let angle = old.angle + (degrees * 180) / Math.PI;
    if (Math.abs(angle - 90 * Math.round(angle / 90)) < 4) angle = 90 * Math.round(angle / 90);
    state.places[selected] = { ...old, angle };
  } else if (drag.part.startsWith("corner")) {
    const [sx, sy] = drag.part.split(" ").slice(1).map(Number), [lx, ly] = turned(dx, dy, -old.angle);
    const w = Math.max(4, old.w + sx * lx), h = Math.max(4, old.h + sy * ly);
    const [cx, cy] = turned((sx * (w - old.w)) / 2, (sy * (h - old.h)) / 2, old.angle);
    state.places[selected] = { ...old, w, h, x: old.x + cx, y: old.y + cy };
  } else state.places[selected] = kept({ ...old, x: old.x + dx, y: old.y + dy });
  draw();
}

function kept(place) {  // the whole of an upright box, of a turned one its centre, stays in the picture
  const [width, height] = size(), [rx, ry] = place.angle ? [0, 0] : [place.w / 2, place.h / 2];
  const clamp = (v, r, n) => (2 * r >= n ? n / 2 : Math.min(Math.max(v, r), n - r));
  return { ...place, x: clamp(place.x, rx, width), y: clamp(place.y, ry, height) };
}

function focusSelected() {
  element.querySelector(`svg [data-index="${selected}"]`)?.focus({ preventScroll: true });
}

function end() {
  if (!drag) return;
  const [width, height] = size(), place = state.places[selected];
  if (drag.part === "new" && place && (place.w < 0.03 * width || place.h < 0.03 * height)) {  // a click
    state.places.splice(selected, 1);
    selected = -1;
  }
  drag = null;
  commit();
  focusSelected();
}

function key(event) {
  if (selected < 0 || state.mask) return;
  const far = event.shiftKey ? 8 : 1, place = state.places[selected];
  const moves = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] };
  if (event.key === "Delete" || event.key === "Backspace") { state.places.splice(selected, 1); selected = -1; }
  else if (moves[event.key]) state.places[selected] = kept({ ...place, x: place.x + moves[event.key][0], y: place.y + moves[event.key][1] });
  else return;
  event.preventDefault();
  commit();
  focusSelected();
}

async function send(file, kind) {
  if (!file) return;
  busy = words().sending || "…";
  draw();
  let path = "";
  try { if (file.size <= (scene().bytes || 1e7)) path = (await upload(file)).path; } catch (error) { path = ""; }
  busy = "";
  commit({ upload: { kind, path, bytes: file.size } });
  trigger("sent");
}

const svg = element.querySelector("svg");
svg.addEventListener("pointerdown", begin);
svg.addEventListener("pointermove", move);
svg.addEventListener("pointerup", end);
svg.addEventListener("pointercancel", end);
svg.addEventListener("keydown", key);
svg.addEventListener("focusin", (event) => {
  const group = event.target.closest("[data-index]");
  if (group && !drag && Number(group.dataset.index) !== selected) { selected = Number(group.dataset.index); draw(); }
});
element.querySelectorAll("input[type=file]").forEach((input) => input.addEventListener("change", () => {
  send(input.files[0], input.dataset.kind);
  input.value = "";
}));
element.querySelector(".stage").addEventListener("dragover", (event) => event.preventDefault());
element.querySelector(".stage").addEventListener("drop", (event) => {
  event.preventDefault();
  if (scene().picks) send(event.dataTransfer.files[0], "picture");
});
element.querySelector(".clear").addEventListener("click", () => {
  if (state.mask) state.mask = ""; else state.places = [];
  selected = -1;
  commit();
});
element.querySelector(".remove").addEventListener("click", () => {
  if (selected >= 0) state.places.splice(selected, 1);
  selected = -1;
  commit();
});
watch("value", () => { read(); draw(); });
watch("scene", draw);
new ResizeObserver(() => { if (!drag) draw(); }).observe(element.querySelector(".stage"));
read();
draw();
