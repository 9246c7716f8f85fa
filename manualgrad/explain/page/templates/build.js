// On a page of many numbers: the cells of a step's matrices and its drawing, made when the step is first shown.
function shape(parent, tag, attributes, key) {
  const element = document.createElementNS(parent.namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (key) {
    element.dataset.k = key;
    element.setAttribute("style", "--v:0");
  }
  return parent.appendChild(element);
}

function fillGrid(table) {
  const { grid, kind, rows, columns, transposed } = table.dataset;
  const isBias = "bvBV".includes(grid[0]);
  for (let i = 0; i < rows; i++) {
    const row = table.insertRow();
    for (let j = 0; j < columns; j++) {
      let place = transposed === undefined ? [i, j] : [j, i];
      if (kind === "column") place = [isBias ? 0 : "*", i];
      if (kind === "picture") place = ["*", i * columns + j];
      const cell = row.insertCell();
      cell.className = "c";
      cell.dataset.k = [grid, ...place].join(":");
      cell.setAttribute("style", "--v:0");
      cell.textContent = "0";
    }
  }
}

function drawLines(group) {
  const [term, x1, x2, below, above] = group.dataset.lines.split(" ");
  above.split(",").forEach((y2, j) => below.split(",").forEach((y1, k) => {
    shape(group, "line", { x1, y1, x2, y2 }, `${term}:${j}:${k}`);
  }));
}

function drawCircles(group) {
  const [term, bias, column, x, radius, ...ys] = group.dataset.circles.split(" ");
  const key = (name, row, j) => (name === "-" ? null : `${name}:${row}:${j}`);
  const [labelled] = [term, bias].filter((name) => name !== "-" && data.labels[name]);
  ys.forEach((y, j) => {
    const neuron = shape(group, "g", { "data-n": `${column}:${j}` });
    shape(neuron, "circle", { class: "c", cx: x, cy: y, r: radius }, key(term, "*", j));
    if (bias !== "-") {
      const square = shape(neuron, "g", { class: "bias", "data-t": group.dataset.bias });
      const left = x - radius - 3;
      shape(square, "rect", { class: "c", x: left, y: y - radius - 4, width: 9, height: 9, rx: 2 }, key(bias, 0, j));
    }
    if (labelled) {
      const which = shape(neuron, "text", { class: "which", x, y: Number(y) + Number(radius) + 8 });
      which.textContent = labelOf(labelled, 1, j);
    }
  });
}

function build(section) {
  if (section.dataset.built) return;
  section.dataset.built = "yes";
  section.querySelectorAll("[data-grid]").forEach(fillGrid);
  section.querySelectorAll("[data-lines]").forEach(drawLines);
  section.querySelectorAll("[data-circles]").forEach(drawCircles);
}
