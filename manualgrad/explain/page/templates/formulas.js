// How an entry was computed, with its numbers: { symbols, terms, before, after, isAll }. null for what is given.
const signed = (place) => typeset(valueAt(place));
const factor = (place) => (signed(place).startsWith("−") ? `(${signed(place)})` : signed(place));
const size = (name, axis) => data.sizes[name][axis];
const held = (name, axis) => (axis ? rowOf(name, chosen.time, 0) : data.numbers[name][chosen.time]).length;
const range = (count) => [...Array(count).keys()];
const countOf = (letter) => [letter, 0, 0];

// Formulas read whole arrays where the page has them, else the neurons in the drawing.
const read = (term) => (!data.isWhole && `${term}~` in data.numbers ? `${term}~` : term);

function exact([name, i, j]) {
  const term = name.replace("~", "");
  if (data.isWhole && name !== term) {
    const whole = (axis, index) => (data.labels[name]?.[axis] ? Number(labelOf(name, axis, index)) - 1 : Number(index));
    return [term, whole(0, i), whole(1, j)];
  }
  return read(name) === name ? [name, Number(i), Number(j)] : null; // a mean has no formula
}

function sum(symbols, terms, count, before = "", after = "") {
  return { symbols, terms, before, after, isAll: terms.length === count };
}

function formulaOf(place) {
  const found = exact(place);
  if (!found) return null;
  const [name, i, j] = found;
  const term = name.replace("~", "");
  const [letter, number] = [term.replace(/\d+$/, ""), Number(term.match(/\d+$/)?.[0] ?? 0)];
  const layer = data.layers[number - 1];
  const of = (other) => read(`${other}${number}`);
  const symbol = (other, ...indices) => nameOf(other.replace("~", "")) + (indices.length ? `[${indices.join(",")}]` : "");
  const [row, column] = [labelOf(name, 0, i), labelOf(name, 1, j)];
  const single = (symbols, text) => sum(symbols, [text], 1);
  if (letter === "z") {
    const [w, below] = [of("w"), read(layer.below)];
    const bias = of("b") in data.numbers;
    const products = range(held(w, 1)).map((k) => `${factor([w, j, k])} · ${factor([below, i, k])}`);
    const symbols = `∑ₖ ${symbol(w, column, "k")} · ${symbol(below, "k")}${bias ? ` + ${symbol(of("b"), column)}` : ""}`;
    return sum(symbols, products, size(w, 1), "", bias ? ` + ${factor([of("b"), 0, j])}` : "");
  }
  if (letter === "a" && layer) return single(`${layer.sigma}(${symbol(of("z"), column)})`, `${layer.sigma}(${signed([of("z"), i, j])})`);
  if (letter === "s") return single(`${layer.sigma}′(${symbol(of("z"), column)})`, `${layer.sigma}′(${signed([of("z"), i, j])})`);
  if (letter === "d") {
    const [g, s] = [of("g"), of("s")];
    return single(`${symbol(g, column)} · ${symbol(s, column)}`, `${factor([g, i, j])} · ${factor([s, i, j])}`);
  }
  if (letter === "u" || letter === "v") {
    const [d, below] = [of("d"), read(layer.below)];
    const isWeight = letter === "u";
    const neuron = isWeight ? i : j;
    const share = (e) => (isWeight ? `${factor([d, e, neuron])} · ${factor([below, e, j])}` : factor([d, e, neuron]));
    const of_input = isWeight ? ` · ${symbol(below, column)}` : "";
    const symbols = `∑ᵢ ${symbol(d, isWeight ? row : column)}${of_input}, over the examples i`;
    const count = Number(valueAt([`r${number}`, 0, 0]));
    return sum(symbols, range(Math.min(count, held(d, 0))).map(share), count);
  }
  if (letter === "U" || letter === "V") {
    const one = letter.toLowerCase();
    return sum("∑ over the calls", layer.calls.map((call) => factor([read(`${one}${call}`), i, j])), layer.calls.length);
  }
  if ((letter === "W" || letter === "B") && layer.isPlain) {
    const gradient = [letter === "W" ? "U" : "V", letter === "W" ? "u" : "v"].map(of).find((other) => other in data.numbers);
    const indices = letter === "W" ? [row, column] : [column];
    const old = of(letter.toLowerCase());
    const symbols = `${symbol(old, ...indices)} − η ${symbol(gradient, ...indices)}`;
    return single(symbols, `${signed([old, i, j])} − ${factor(["eta", 0, 0])} · ${factor([gradient, i, j])}`);
  }
  if (letter === "g" && layer?.isBackpropagated) {
    const [w, d] = [read(`w${number + 1}`), read(`d${number + 1}`)];
    const products = range(held(w, 0)).map((k) => `${factor([w, k, j])} · ${factor([d, i, k])}`);
    return sum(`∑ₖ ${symbol(w, "k", column)} · ${symbol(d, "k")}`, products, size(w, 0));
  }
  return data.loss ? formulaOfLoss(term, i, j, column) : null;
}

function formulaOfLoss(term, i, j, column) {
  const { name, count, factor: twice } = data.loss;
  const [a, p, y] = [data.loss.a, data.loss.p, "y"].map(read);
  const [of_p, of_a, divisor] = [nameOf(data.loss.p), nameOf(data.loss.a), signed(countOf(count))];
  const multiple = twice === 1 ? "" : `${twice} · `;
  if (term === data.loss.gradient) {
    const text = `${multiple}(${signed([p, i, j])} − ${factor([y, i, j])}) / ${divisor}`;
    return sum(`${multiple}(${of_p}[${column}] − y[${column}]) / ${count}`, [text], 1);
  }
  if (term === "p") {
    const exps = range(held(a, 1)).map((k) => `exp(${signed([a, i, k])})`);
    const own = `exp(${signed([a, i, j])})`;
    if (name === "cross-entropy") {
      return sum(`exp ${of_a}[${column}] / ∑ₖ exp ${of_a}[k]`, exps, size(a, 1), `${own} / (`, ")");
    }
    return sum(`1 / (1 + exp(−${of_a}[${column}]))`, [`1 / (1 + exp(− ${factor([a, i, j])}))`], 1);
  }
  if (term !== "C") return null;
  const [sums, outputs] = [Number(signed(countOf("N"))), range(held(a, 1))];
  const examples = range(Math.min(held(a, 0), sums / size(a, 1)));
  const each = (share) => examples.flatMap((e) => outputs.map((k) => share(e, k))).filter((text) => text);
  const isAll = examples.length * outputs.length === sums;
  const one = name === "quadratic" ? `1 / (2 · ${divisor})` : `1 / ${divisor}`;
  if (name === "quadratic" || name === "mean squared") {
    const squares = each((e, k) => `(${signed([a, e, k])} − ${factor([y, e, k])})²`);
    const symbols = `1 / ${name === "quadratic" ? "(2r)" : "N"} ∑ (${of_a} − y)²`;
    return { symbols, terms: squares, before: `${one} · (`, after: ")", isAll };
  }
  const logarithm = (x, what) => (Number(valueAt(x)) === 0 ? "" : `${factor(x)} · log ${what}`);
  const shares = each((e, k) => {
    if (name === "cross-entropy") return logarithm([y, e, k], signed([p, e, k]));
    return `${factor([y, e, k])} · log ${signed([p, e, k])} + (1 − ${factor([y, e, k])}) · log(1 − ${signed([p, e, k])})`;
  });
  const symbols = name === "cross-entropy" ? "−1 / r ∑ y log p" : "−1 / N ∑ (y log p + (1 − y) log(1 − p))";
  return { symbols, terms: shares, before: `− ${one} · (`, after: ")", isAll };
}

function written(formula, most = Infinity) {
  const terms = formula.terms.slice(0, most);
  const rest = terms.length < formula.terms.length || !formula.isAll ? " + ⋯" : "";
  return `${formula.before}${terms.join(" + ")}${rest}${formula.after}`;
}
