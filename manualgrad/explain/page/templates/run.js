// The training step and the example that the numbers are of.
const byId = (...ids) => ids.map((id) => document.getElementById(id));
const [time, moment, cost, now, play, example] = byId("time", "moment", "cost", "now", "play", "example");

function showChoice() {
  if (example) example.value = chosen.example;
  showNumbers(sections[current]);
}

function showTime() {
  chosen.time = Number(time.value);
  moment.textContent = data.steps[chosen.time];
  cost.textContent = typeset(valueAt(["C", 0, 0]));
  const point = data.points[chosen.time];
  now.style.visibility = point ? "visible" : "hidden";
  if (point) [["cx", point[0]], ["cy", point[1]]].forEach(([name, value]) => now.setAttribute(name, value));
  showNumbers(sections[current]);
}

if (time) {
  let playing = null;
  const pause = () => {
    clearInterval(playing);
    playing = null;
    play.textContent = "▶";
  };
  const advance = () => {
    if (Number(time.value) >= Number(time.max)) return pause();
    time.value = Number(time.value) + 1;
    showTime();
  };
  time.addEventListener("input", () => { pause(); showTime(); });
  play.addEventListener("click", () => {
    if (playing) return pause();
    if (time.value === time.max) time.value = 0;
    play.textContent = "❚❚";
    playing = setInterval(advance, 350);
  });
}
if (example) example.addEventListener("change", () => {
  chosen.example = Number(example.value);
  showNumbers(sections[current]);
});

document.documentElement.classList.add("js");
for (const element of document.querySelectorAll(".moves, .time, label.example, .keys, .hint")) element.hidden = false;
go(indexOfHash(), { remember: false });
if (time) showTime();
