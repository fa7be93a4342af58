"use strict";
// Draws scene.json: the scan in gray, overlays above it. The state that the tests read is
// document.body.dataset.state: "loading", "ready" or "failed".

const at = (id) => document.getElementById(id);
const viewer = new niivue.Niivue({
  backColor: [0, 0, 0, 1], crosshairColor: [0.37, 0.62, 0.86, 0.9], show3Dcrosshair: true,
  crosshairWidth: 0.5, isOrientCube: true, loadingText: "", multiplanarShowRender: 1, isNearestInterpolation: false,
});
const LAYOUTS = { "all planes": 3, axial: 0, coronal: 1, sagittal: 2, "3D": 4 };
let scene;

async function start() {
  document.body.dataset.state = "loading";
  scene = await (await fetch("scene.json")).json();
  await viewer.attachToCanvas(at("canvas"));
  viewer.onLocationChange = showPlace;
  await viewer.loadVolumes(scene.volumes.map((volume) => ({ url: volume.file, ...look(volume) })));
  scene.volumes.forEach((volume, index) => {
    if (volume.kind === "labels") viewer.volumes[index].setColormapLabel(labelColors(volume.legend));
  });
  viewer.updateGLVolume();
  viewer.setSliceType(LAYOUTS["all planes"]);
  at("name").textContent = scene.volumes[0].name;
  document.title = `${scene.volumes[0].name} - umh view`;
  makeControls();
  viewer.createOnLocationChange(); // tells where the crosshair stands at first
  document.body.dataset.state = "ready";
}

function look(volume) {
  if (volume.kind === "scan") {
    return { colormap: "gray", opacity: 1, cal_min: volume.window[0], cal_max: volume.window[1] };
  }
  if (volume.kind === "map") return { colormap: "warm", opacity: 0, cal_min: 0.05, cal_max: 1 };
  return { colormap: "gray", opacity: 0.5 };
}

// A table for NiiVue: one entry a label value, the background transparent.
function labelColors(legend) {
  const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: ["background"] };
  for (const label of legend) {
    table.R.push(label.color[0]); table.G.push(label.color[1]); table.B.push(label.color[2]);
    table.A.push(255); table.I.push(label.value); table.labels.push(label.name);
  }
  return table;
}

function makeControls() {
  for (const [name, layout] of Object.entries(LAYOUTS)) {
    at("layouts").append(button(name, () => { viewer.setSliceType(layout); press("layouts", name); }));
  }
  press("layouts", "all planes");
  for (const [name, window] of Object.entries(scene.windows)) {
    at("windows").append(button(name, () => { setWindow(...window); press("windows", name); }));
  }
  showWindow();
  for (const id of ["low", "high"]) {
    at(id).addEventListener("change", () => {
      const [low, high] = [Number(at("low").value), Number(at("high").value)];
      if (low < high) setWindow(low, high); else showWindow();
      press("windows", null);
    });
  }
  viewer.onIntensityChange = showWindow;
  at("radiological").addEventListener("change", (event) => viewer.setRadiologicalConvention(event.target.checked));
  at("smooth").addEventListener("change", (event) => viewer.setInterpolation(!event.target.checked));
  at("shot").addEventListener("click", () => viewer.saveScene(`${scene.volumes[0].name}.png`));
  const section = at("overlays");
  if (scene.volumes.length > 1) section.append(element("h2", "Overlays"));
  scene.volumes.slice(1).forEach((volume, index) => section.append(overlay(volume, index + 1)));
  document.addEventListener("keydown", onKey);
}

function overlay(volume, index) {
  const box = element("div", "", "overlay");
  const shown = element("input"), opacity = element("input"), head = element("label");
  shown.type = "checkbox";
  shown.checked = viewer.volumes[index].opacity > 0;
  opacity.type = "range";
  Object.assign(opacity, { min: 0, max: 1, step: 0.05, value: shown.checked ? 0.5 : 0.6 });
  opacity.setAttribute("aria-label", `opacity of ${volume.name}`);
  const apply = () => viewer.setOpacity(index, shown.checked ? Number(opacity.value) : 0);
  shown.addEventListener("change", apply);
  opacity.addEventListener("input", () => { shown.checked = true; apply(); });
  head.append(shown, element("strong", volume.name));
  box.append(head);
  const slider = element("label", "opacity");
  slider.append(opacity);
  box.append(slider);
  if (volume.legend) {
    const list = element("ul");
    for (const label of volume.legend) {
      const line = element("li", "", "");
      const swatch = element("span", "", "swatch");
      swatch.style.backgroundColor = `rgb(${label.color.join(",")})`;
      line.dataset.value = label.value;
      line.append(swatch, element("span", label.name));
      list.append(line);
    }
    box.append(list);
    volume.list = list;
  }
  volume.shown = shown;
  return box;
}

function showPlace(place) {
  const mm = Array.from(place.mm).slice(0, 3).map((x) => x.toFixed(1)).join(", ");
  const lines = [`${mm} mm (right, front, top)`];
  place.values.forEach((found, index) => {
    const volume = scene.volumes[index];
    if (!volume || volume.kind === "colors") return;
    if (volume.kind === "labels") {
      const label = volume.legend.find((entry) => entry.value === Math.round(found.value));
      lines.push(`${volume.name}: ${label ? label.name : "background"}`);
      for (const line of volume.list ? volume.list.children : []) {
        line.className = label && Number(line.dataset.value) === label.value ? "here" : "";
      }
    } else {
      const digits = volume.kind === "map" ? 2 : 0;
      lines.push(`${volume.kind === "scan" ? "value" : volume.name}: ${found.value.toFixed(digits)} ${volume.unit || ""}`);
    }
  });
  at("place").textContent = lines.join("\n");
}

function setWindow(low, high) {
  Object.assign(viewer.volumes[0], { cal_min: low, cal_max: high });
  viewer.updateGLVolume();
  showWindow();
}

function showWindow() {
  at("low").value = Number(viewer.volumes[0].cal_min.toPrecision(5));
  at("high").value = Number(viewer.volumes[0].cal_max.toPrecision(5));
}

function onKey(event) {
  if (event.target instanceof HTMLInputElement || event.ctrlKey || event.metaKey) return;
  const names = Object.keys(LAYOUTS);
  if (event.key >= "1" && event.key <= "4") {
    const name = names[Number(event.key) - 1];
    viewer.setSliceType(LAYOUTS[name]);
    press("layouts", name);
  } else if (event.key === "h") {
    const any = scene.volumes.some((volume) => volume.shown && volume.shown.checked);
    scene.volumes.filter((volume) => volume.shown && volume.kind !== "map").forEach((volume) => {
      volume.shown.checked = !any;
      volume.shown.dispatchEvent(new Event("change"));
    });
  }
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
  at("name").textContent = `The page could not be drawn: ${error.message || error}. It needs WebGL 2.`;
});
