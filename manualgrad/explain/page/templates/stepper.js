// Turns the linear page into one step at a time.
const sections = [...document.querySelectorAll("section.step")];
const links = [...document.querySelectorAll("nav.steps a")];
const [back, next, where] = ["back", "next", "where"].map((id) => document.getElementById(id));
let current = 0;

// In a notebook the page stands in a frame that has no address to change.
function go(index, { remember = true } = {}) {
  current = Math.max(0, Math.min(sections.length - 1, index));
  darken();
  entry.hidden = true;
  sections.forEach((section, i) => section.classList.toggle("current", i === current));
  links.forEach((link, i) => (i === current ? link.setAttribute("aria-current", "step") : link.removeAttribute("aria-current")));
  back.disabled = current === 0;
  next.disabled = current === sections.length - 1;
  where.textContent = `${current + 1} of ${sections.length}`;
  showNumbers(sections[current]);
  if (remember && location.protocol !== "about:") history.replaceState(null, "", `#${sections[current].id}`);
}

const indexOfHash = () => Math.max(0, sections.findIndex((section) => `#${section.id}` === location.hash));

back.addEventListener("click", () => go(current - 1));
next.addEventListener("click", () => go(current + 1));
links.forEach((link, i) => link.addEventListener("click", (event) => {
  event.preventDefault();
  go(i);
}));
addEventListener("hashchange", () => go(indexOfHash(), { remember: false }));

addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "Escape") entry.hidden = true;
  if (moveInMatrix(event)) return event.preventDefault();
  if (event.target.closest("input, select")) return;
  const index = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: sections.length - 1 }[event.key];
  if (index === undefined) return;
  event.preventDefault();
  go(index);
});
