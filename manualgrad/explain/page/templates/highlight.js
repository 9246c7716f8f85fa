// What the pointer or the keyboard is on, lit up wherever it appears: in the equation, the matrices and the drawing.
const tip = document.getElementById("tip");
const entry = document.getElementById("entry");
const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const LETTERS = {
  W: "new w", B: "new b", u: "∂C/∂w", v: "∂C/∂b", U: "∑ ∂C/∂w", V: "∑ ∂C/∂b", g: "∂C/∂a", s: "σ′", d: "δ", o: "output",
};

const isSingle = (term) => ["C", "N", "eta"].includes(term) || term[0] === "r";

function nameOf(term) {
  if (term === "og") return "∂C/∂a";
  if (isSingle(term)) return { C: "C", N: "N", eta: "η" }[term] ?? "r";
  return (LETTERS[term[0]] ?? term[0]) + [...term.slice(1)].map((digit) => SUPERSCRIPTS[digit]).join("");
}

function describe([name, i, j]) {
  const term = name.replace("~", "");
  const [row, column] = [labelOf(name, 0, i), labelOf(name, 1, j)];
  const value = typeset(valueAt([name, i, j]));
  if (isSingle(term)) return `${nameOf(term)} = ${value}`;
  const isMean = (column + ("wuWU".includes(term[0]) ? row : "")).includes("–");
  let where = `[${column}]`;
  if ("wuWU".includes(term[0])) where = `[${row}, ${column}]`;
  else if (!"bvBV".includes(term[0]) && data.examples > 1) where += ` of example ${row}`;
  return `${isMean ? "mean of " : ""}${nameOf(term)} ${where} = ${value}`;
}

function darken() {
  for (const element of document.querySelectorAll(".hot, .warm")) element.classList.remove("hot", "warm");
  tip.hidden = true;
}

function sameEntry([name, i, j], section) {
  const forms = (part, marks) => [part, ...marks.filter((mark) => String(resolve(`:${mark}:`, section)[1]) === String(part))];
  const rows = forms(i, ["*", "@", "%"]);
  const columns = forms(j, ["@", "%"]);
  return rows.flatMap((row) => columns.map((column) => `[data-k="${name}:${row}:${column}"]`)).join(",");
}

function light(element) {
  darken();
  const section = element.closest("section.step");
  const keyed = element.closest("[data-k]");
  const symbol = element.closest("[data-t]");
  const place = keyed && resolve(keyed.dataset.k, section);
  const term = place ? place[0].replace("~", "") : symbol.dataset.t.split(" ")[0];
  for (const other of section.querySelectorAll(`[data-t~="${term}"]`)) other.classList.add(place ? "warm" : "hot");
  if (!place) return;
  for (const other of section.querySelectorAll(sameEntry(place, section))) other.classList.add("hot");
  const formula = formulaOf(place);
  const hasMore = formula && (formula.terms.length > FEW_TERMS || !formula.isAll);
  tip.textContent = describe(place);
  if (formula) tip.append(line(`= ${formula.symbols}`), line(`= ${written(formula, FEW_TERMS)}`));
  if (hasMore) tip.append(line(`${formula.terms.length} terms: click to see all`));
  tip.hidden = false;
  const box = keyed.getBoundingClientRect();
  const left = Math.max(4, Math.min(innerWidth - tip.offsetWidth - 4, box.left + box.width / 2 - tip.offsetWidth / 2));
  const above = box.top - tip.offsetHeight - 6;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
}

document.addEventListener("pointerover", (event) => {
  const element = event.target.closest("section.step :is([data-k], [data-t])");
  if (element) light(element);
  else darken();
});
document.addEventListener("pointerleave", darken);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
document.addEventListener("click", (event) => {
  const keyed = event.target.closest("section.step [data-k]");
  if (keyed) follow(keyed);
});

const FEW_TERMS = 3;

function line(text) {
  const element = document.createElement("div");
  element.textContent = text;
  return element;
}

function follow(keyed) {
  const section = keyed.closest("section.step");
  const place = resolve(keyed.dataset.k, section);
  showEntry(place);
  if (!choose(place)) return;
  showChoice();
  light(keyed);
}

// The entry that was clicked, with all terms of its formula.
function showEntry(place) {
  const formula = formulaOf(place);
  entry.querySelector("p").textContent = describe(place);
  const lines = formula ? [`= ${formula.symbols}`, `= ${written(formula)}`] : [];
  if (formula && !formula.isAll) lines.push("The page does not hold the other terms: the arrays are too large.");
  entry.querySelector("div").replaceChildren(...lines.map(line));
  entry.hidden = false;
}

entry.querySelector("button").addEventListener("click", () => { entry.hidden = true; });
document.addEventListener("click", (event) => {
  const button = event.target.closest("button.numbers");
  if (!button) return;
  const isDense = button.closest("figure").classList.toggle("dense");
  button.setAttribute("aria-pressed", String(!isDense));
});

// A matrix in focus: the arrow keys move from entry to entry, Enter follows one, Escape leaves.
const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function moveInMatrix(event) {
  const table = document.activeElement?.closest("table");
  if (!table) return false;
  const cell = table.querySelector("td.at") ?? table.rows[0].cells[0];
  if (event.key === "Escape") table.blur();
  else if (event.key === "Enter") follow(cell);
  else if (event.key in MOVES) {
    const [down, right] = MOVES[event.key];
    const row = table.rows[Math.max(0, Math.min(table.rows.length - 1, cell.parentNode.rowIndex + down))];
    stand(row.cells[Math.max(0, Math.min(row.cells.length - 1, cell.cellIndex + right))]);
  } else return false;
  return true;
}

function stand(cell) {
  for (const other of document.querySelectorAll("td.at")) other.classList.remove("at");
  cell.classList.add("at");
  light(cell);
}

document.addEventListener("focusin", (event) => {
  const table = event.target;
  if (table.matches("table:focus-visible")) stand(table.querySelector("td.at") ?? table.rows[0].cells[0]);
});
document.addEventListener("focusout", (event) => {
  if (event.target.matches("table")) darken();
});
