// Puts the numbers of the chosen training step, example and neurons where they belong. An element with data-k="w1:0:2" shows
// entry [0][2] of w1; "*" stands for the chosen example, "@" and "%" for the chosen neurons of the section's row and column.
const data = JSON.parse(document.getElementById("data").textContent);
const chosen = { time: 0, example: 0, neurons: {} };

function resolve(key, section) {
  const neuron = (column) => chosen.neurons[column] ?? 0;
  const places = { "*": chosen.example, "@": neuron(section.dataset.row), "%": neuron(section.dataset.column) };
  return key.split(":").map((part) => places[part] ?? part);
}

const rows = new Map();

function rowOf(name, moment, i) {
  const place = `${name} ${moment} ${i}`;
  if (!rows.has(place)) rows.set(place, data.numbers[name][moment][i].split(" "));
  return rows.get(place);
}

const valueAt = ([name, i, j]) => rowOf(name, chosen.time, i)[j];
const labelOf = (name, axis, index) => data.labels[name]?.[axis]?.[index] ?? String(Number(index) + 1);

function typeset(text) {
  const special = { nan: "NaN", inf: "∞", "-inf": "−∞" }[text];
  return special ?? text.replace(/e([+-])0*/, (_, sign) => (sign === "-" ? "e-" : "e")).replaceAll("-", "−");
}

function brief(text) {
  const x = Number(text);
  if (!Number.isFinite(x) || x === 0) return typeset(text);
  const rounded = Number(x.toPrecision(3));
  const isPlain = Math.abs(rounded) >= 0.01 && Math.abs(rounded) < 1000;
  return typeset(isPlain ? String(rounded) : x.toExponential(1));
}

function intensity(text, scale) {
  if (text === "nan") return null;
  if (text.endsWith("inf")) return text === "inf" ? 1 : -1;
  return scale === 0 ? 0 : Math.sign(text) * Math.sqrt(Math.min(1, Math.abs(text) / scale));
}

function showNumbers(section) {
  build(section);
  for (const element of section.querySelectorAll("[data-k]")) {
    const place = resolve(element.dataset.k, section);
    const text = valueAt(place);
    const shown = element.classList.contains("brief") ? brief(text) : typeset(text);
    if (element.hasAttribute("style")) {
      const v = intensity(text, data.scales[place[0]]);
      element.style.setProperty("--v", (v ?? 0).toFixed(3));
      element.classList.toggle("nan", v === null);
      element.classList.toggle("negative", v < 0);
    }
    if (element.classList.contains("factor") && shown.startsWith("−")) element.textContent = `(${shown})`;
    else if (element.firstChild) element.textContent = shown;
  }
  for (const element of section.querySelectorAll("[data-at]")) {
    const [name, j] = resolve(element.dataset.at, section);
    element.textContent = labelOf(name, 1, j);
  }
  for (const element of section.querySelectorAll(".which")) if (element.matches("output")) element.textContent = chosen.example + 1;
  for (const row of section.querySelectorAll(".batch tr")) row.classList.toggle("chosen", row.rowIndex === chosen.example);
  for (const element of section.querySelectorAll("[data-n]")) {
    const [column, j] = element.dataset.n.split(":");
    const isIn = column === section.dataset.row || column === section.dataset.column;
    element.classList.toggle("chosen", isIn && (chosen.neurons[column] ?? 0) === Number(j));
  }
}

// A click on an entry chooses its example or its neurons.
function choose(place) {
  const axes = data.axes[place[0]];
  axes.forEach((column, axis) => {
    const index = Number(place[axis + 1]);
    if (column === "*") chosen.example = index;
    else if (column) chosen.neurons[column] = index;
  });
  return axes.some((column) => column);
}
