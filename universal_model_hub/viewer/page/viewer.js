"use strict";
// Draws scene.json: the scan in gray, overlays above it. The state that the tests read is
// document.body.dataset.state: "loading", "ready" or "failed".

const LAYOUTS = { "all planes": 3, axial: 0, coronal: 1, sagittal: 2, "3D": 4 };
const STEPS = { // keys to voxels along x (to the right), y (to the front), z (to the top)
  ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 0, 1], ArrowDown: [0, 0, -1],
  PageUp: [0, -1, 0], PageDown: [0, 1, 0],
};
const at = (id) => document.getElementById(id);
const viewer = new niivue.Niivue({
  backColor: [0, 0, 0, 1], crosshairColor: [0.37, 0.62, 0.86, 0.9], crosshairWidth: 0.5, show3Dcrosshair: true,
  isOrientCube: true, isRadiologicalConvention: true, showAllOrientationMarkers: true, multiplanarShowRender: 1,
  loadingText: "", logLevel: "error", dragMode: 0, // the window is dragged by dragWindow
});
let scene; // each of its volumes gets .image, what NiiVue made of it, once it is loaded
let switchedOff = []; // the switches of the overlays that the key turned off together

async function start() {
  document.body.dataset.state = "loading";
  scene = await (await fetch("scene.json")).json();
  await viewer.attachToCanvas(at("canvas"));
  // Maps are many and seldom looked at: one at a time is loaded when it is asked for.
  const first = scene.volumes.filter((volume) => volume.kind !== "map");
  await viewer.loadVolumes(first.map((volume) => ({ url: volume.file, ...look(volume) })));
  first.forEach((volume, index) => { volume.image = viewer.volumes[index]; });
  for (const volume of first) if (volume.legend) volume.image.setColormapLabel(labelColors(volume.legend));
  viewer.updateGLVolume();
  viewer.onLocationChange = () => tell("crosshair", viewer.scene.crosshairPos);
  viewer.onIntensityChange = showWindow;
  at("name").textContent = scene.volumes[0].name;
  document.title = `${scene.volumes[0].name} - umh view`;
  makeControls();
  setLayout("all planes");
  hideCovered3D();
  tell("crosshair", viewer.scene.crosshairPos);
  document.body.dataset.state = "ready";
}

function look(volume) {
  if (volume.kind === "scan") {
    const [low, high] = Object.values(scene.windows)[0];
    return { colormap: "gray", opacity: 1, cal_min: low, cal_max: high };
  }
  if (volume.kind === "map") return { colormap: "inferno", opacity: 0.6, cal_min: 0.02, cal_max: 1 };
  return { colormap: "gray", opacity: volume.shown ? 0.5 : 0 };
}

// A table for NiiVue: one entry a label, in the order of the legend; the background and labels that
// are switched off are transparent.
function labelColors(legend) {
  const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: ["background"] };
  legend.forEach((label, index) => {
    table.R.push(label.color[0]); table.G.push(label.color[1]); table.B.push(label.color[2]);
    table.A.push(label.hidden ? 0 : 255); table.I.push(index + 1); table.labels.push(label.name);
  });
  return table;
}

function makeControls() {
  for (const name of Object.keys(LAYOUTS)) at("layouts").append(button(name, () => setLayout(name)));
  for (const [name, window] of Object.entries(scene.windows)) {
    at("windows").append(button(name, () => { setWindow(...window); press("windows", name); }));
  }
  press("windows", Object.keys(scene.windows)[0]);
  showWindow();
  for (const id of ["low", "high"]) {
    at(id).addEventListener("change", () => setWindow(Number(at("low").value), Number(at("high").value)));
  }
  at("radiological").addEventListener("change", (event) => viewer.setRadiologicalConvention(event.target.checked));
  at("smooth").addEventListener("change", (event) => viewer.setInterpolation(!event.target.checked));
  at("shot").addEventListener("click", savePicture);
  const overlays = scene.volumes.filter((volume) => volume.kind === "labels" || volume.kind === "colors");
  const maps = scene.volumes.filter((volume) => volume.kind === "map");
  if (overlays.length + maps.length) at("overlays").append(element("h2", "Overlays"));
  for (const volume of overlays) at("overlays").append(overlayBox(volume));
  if (maps.length) at("overlays").append(mapBox(maps));
  // Room for all lines, so that the controls below stay where they are.
  at("place").style.minHeight = `${1.45 * (2 + overlays.length + Math.min(1, maps.length))}em`;
  at("canvas").addEventListener("pointermove", onPointer);
  at("canvas").addEventListener("pointerleave", () => tell("crosshair", viewer.scene.crosshairPos));
  document.addEventListener("keydown", onKey, true);
  // NiiVue has keys of its own, some for what this page does not show.
  document.addEventListener("keyup", (event) => event.stopPropagation(), true);
}

function overlayBox(volume) {
  const { box, shown, opacity } = switches(volume.name, volume.shown, 0.5);
  const apply = () => setOpacity(volume.image, shown.checked ? Number(opacity.value) : 0);
  shown.addEventListener("change", apply);
  opacity.addEventListener("input", () => { shown.checked = true; apply(); });
  if (volume.legend) box.append(legendList(volume));
  return box;
}

function legendList(volume) {
  volume.list = element("ul");
  if (!volume.legend.length) volume.list.append(element("li", "no label in it"));
  for (const label of volume.legend) {
    const line = element("li"), swatch = element("span", "", "swatch"), toggle = button("", () => {
      label.hidden = !label.hidden;
      toggle.setAttribute("aria-pressed", !label.hidden);
      volume.image.setColormapLabel(labelColors(volume.legend));
      viewer.updateGLVolume();
    });
    swatch.style.backgroundColor = `rgb(${label.color.join(",")})`;
    toggle.setAttribute("aria-pressed", true);
    toggle.title = "hide or show";
    toggle.append(swatch, element("span", label.name), element("span", `${label.ml < 10 ? label.ml : Math.round(label.ml)} ml`, "ml"));
    line.append(toggle);
    volume.list.append(line);
  }
  return volume.list;
}

// One box for the maps of all classes: NiiVue holds the one that is chosen.
function mapBox(maps) {
  const { box, shown, opacity } = switches("probability", false, 0.6);
  const choice = element("select");
  choice.setAttribute("aria-label", "class of the probability map");
  for (const map of maps) choice.append(element("option", map.name));
  const apply = async () => {
    const wanted = shown.checked ? maps[choice.selectedIndex] : null;
    shown.disabled = choice.disabled = true; // until it is there: loading takes a while
    for (const map of maps) {
      if (map.image && map !== wanted) { viewer.removeVolume(map.image); map.image = null; }
    }
    if (wanted && !wanted.image) wanted.image = await viewer.addVolumeFromUrl({ url: wanted.file, ...look(wanted) });
    if (wanted) setOpacity(wanted.image, Number(opacity.value));
    shown.disabled = choice.disabled = false;
    tell("crosshair", viewer.scene.crosshairPos);
  };
  shown.addEventListener("change", apply);
  choice.addEventListener("change", () => { shown.checked = true; apply(); });
  opacity.addEventListener("input", () => {
    for (const map of maps) if (map.image) setOpacity(map.image, Number(opacity.value));
  });
  box.append(choice);
  return box;
}

function switches(name, on, value) {
  const box = element("div", "", "overlay"), shown = element("input", "", "shown"), opacity = element("input");
  const head = element("label"), slider = element("label", "opacity");
  shown.type = "checkbox";
  shown.checked = on;
  opacity.type = "range";
  Object.assign(opacity, { min: 0, max: 1, step: 0.05, value });
  opacity.setAttribute("aria-label", `opacity of ${name}`);
  head.append(shown, element("strong", name));
  slider.append(opacity);
  box.append(head, slider);
  return { box, shown, opacity };
}

// Says what lies at a place, given as fractions of the scan's sides.
function tell(what, fraction) {
  const mm = viewer.frac2mm(fraction, 0, true);
  const letters = ["RL", "AP", "SI"].map((pair, axis) => `${pair[mm[axis] < 0 ? 1 : 0]} ${Math.abs(mm[axis]).toFixed(1)}`);
  const lines = [`${what}: ${letters.join(", ")} mm`];
  for (const volume of scene.volumes) {
    if (!volume.image || volume.kind === "colors") continue;
    const value = volume.image.getValue(...volume.image.mm2vox(mm));
    if (volume.legend) {
      const index = Math.round(value) - 1;
      lines.push(`${volume.name}: ${index < 0 ? "background" : volume.legend[index].name}`);
      [...volume.list.children].forEach((line, number) => line.classList.toggle("here", number === index));
    } else {
      const digits = volume.kind === "map" || !Number.isInteger(value) ? 2 : 0;
      const name = volume.kind === "scan" ? "value" : `probability of ${volume.name}`;
      lines.push(`${name}: ${value.toFixed(digits)} ${volume.unit || ""}`);
    }
  }
  at("place").textContent = lines.join("\n");
}

function onPointer(event) {
  if (event.buttons === 2) return dragWindow(event);
  if (event.buttons) return;
  const ratio = viewer.uiData.dpr;
  const fraction = viewer.canvasPos2frac([event.offsetX * ratio, event.offsetY * ratio]);
  if (fraction[0] < 0) tell("crosshair", viewer.scene.crosshairPos); // between the planes, or in 3D
  else tell("pointer", fraction);
}

// In steps of the window's own size, so that it works for HU and for any MR scale.
function dragWindow(event) {
  const { cal_min: low, cal_max: high } = viewer.volumes[0];
  const width = (high - low) * Math.exp(event.movementX / 200);
  const center = (low + high) / 2 + ((high - low) * event.movementY) / 300;
  setWindow(center - width / 2, center + width / 2);
}

function setWindow(low, high) {
  press("windows", null);
  if (low < high) {
    Object.assign(viewer.volumes[0], { cal_min: low, cal_max: high });
    viewer.refreshLayers(viewer.volumes[0], 0);
    viewer.drawScene();
  }
  showWindow();
}

function showWindow() {
  at("low").value = Number(viewer.volumes[0].cal_min.toPrecision(4));
  at("high").value = Number(viewer.volumes[0].cal_max.toPrecision(4));
}

function setOpacity(image, opacity) {
  viewer.setOpacity(viewer.volumes.indexOf(image), opacity);
  hideCovered3D();
}

// Features have a color everywhere, which would hide the scan in 3D like a box.
function hideCovered3D() {
  const covered = scene.volumes.some((volume) => volume.kind === "colors" && volume.image.opacity > 0);
  viewer.opts.multiplanarShowRender = covered ? 0 : 1;
  viewer.drawScene();
}

function setLayout(name) {
  viewer.setSliceType(LAYOUTS[name]);
  press("layouts", name);
}

function savePicture() {
  viewer.saveScene(`${scene.volumes[0].name}.png`);
}

function onKey(event) {
  const typing = event.target instanceof HTMLSelectElement
    || (event.target instanceof HTMLInputElement && event.target.type !== "checkbox");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const layout = Object.keys(LAYOUTS)[Number(event.key) - 1];
  if (layout) setLayout(layout);
  else if (STEPS[event.key]) step(...STEPS[event.key]);
  else if (event.key === "o") switchOverlays();
  else if (event.key === "r") at("radiological").click();
  else if (event.key === "s") savePicture();
  else return;
  event.preventDefault();
  event.stopPropagation();
}

function step(x, y, z) {
  viewer.moveCrosshairInVox(at("radiological").checked ? -x : x, y, z); // as it looks on the screen
}

function switchOverlays() {
  const on = [...document.querySelectorAll(".shown")].filter((box) => box.checked);
  const changed = on.length ? on : switchedOff;
  switchedOff = on;
  for (const box of changed) box.click();
}

function button(name, action) {
  const made = element("button", name);
  made.type = "button";
  made.addEventListener("click", action);
  return made;
}

function press(group, name) {
  for (const one of at(group).children) one.setAttribute("aria-pressed", one.textContent === name);
}

function element(kind, text = "", css = "") {
  const made = document.createElement(kind);
  made.textContent = text; // never as HTML: names come from files
  if (css) made.className = css;
  return made;
}

start().catch((error) => {
  document.body.dataset.state = "failed";
  at("name").className = "failed";
  at("name").textContent = `The page could not be drawn: ${error.message || error}. It needs WebGL 2, and umh view running.`;
});
