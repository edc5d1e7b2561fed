// The page until the real one comes: projects, runs, curves. It knows nothing but the API.
const main = document.getElementById("main");
const form = document.getElementById("filter");
const COLOURS = ["#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e"];

/** An element with attributes and children; text is never parsed as HTML. */
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "title"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.map((child) => (child instanceof Node ? child : String(child ?? ""))));
  return element;
}

async function api(path, body) {
  const answer = await fetch("/api/v1/" + path, body && {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  const json = await answer.json();
  if (!answer.ok) throw new Error([json.error.message, json.error.hint].filter(Boolean).join(". "));
  return json;
}

const part = encodeURIComponent;
const short = (value) => (typeof value === "number" ? Number(value.toPrecision(5)) : value);

function table(heads, rows) {
  return make("table", {}, make("tr", {}, ...heads.map((head) => make("th", {}, head))), ...rows);
}

async function showProjects() {
  const { projects } = await api("projects");
  main.replaceChildren(projects.length ? table(["project", "runs", "last heard of"], projects.map((each) =>
    make("tr", {},
      make("td", {}, make("a", { href: `/${part(each.entity)}/${part(each.project)}` }, `${each.entity}/${each.project}`)),
      make("td", {}, each.runs),
      make("td", {}, each.last_ts ? new Date(each.last_ts).toLocaleString() : "")))) :
    make("p", {}, "No runs yet. Log one: import icecore; run = icecore.init(project=\"first\"); run.log({\"loss\": 0.5})"));
}

async function showRuns(entity, project) {
  const filters = form.filters.value.trim();
  const page = await api(`runs/${part(entity)}/${part(project)}?limit=100${filters ? "&filters=" + part(filters) : ""}`);
  const found = [...new Set(page.runs.flatMap((run) => Object.keys(run.summary)))].filter((key) => !key.startsWith("_"));
  const keys = form.keys.value.split(",").map((key) => key.trim()).filter(Boolean);
  const shown = keys.length ? keys : found.slice(0, 3);
  const settings = [...new Set(page.runs.flatMap((run) => Object.keys(run.config)))].slice(0, 4);
  const charts = make("div", { class: "charts" });
  const rows = page.runs.map((run, i) => {
    const name = make("td", {}, dot(i), make("a", { href: run.url }, run.name || run.id));
    return make("tr", {}, name, make("td", { class: run.state }, run.state), make("td", {}, `${Math.round(run.runtime)} s`),
      ...settings.map((key) => make("td", {}, typeof run.config[key] === "object" ? JSON.stringify(run.config[key]) : short(run.config[key]))),
      ...shown.map((key) => make("td", {}, short(run.summary[key]))));
  });
  main.replaceChildren(charts, make("p", {}, `${page.count} runs`), table(["run", "state", "time", ...settings, ...shown], rows));
  if (page.runs.length && shown.length) await drawCharts(charts, page.runs, shown);
}

async function showRun(entity, project, id) {
  const at = `runs/${part(entity)}/${part(project)}/${part(id)}`;
  const [run, printed] = await Promise.all([api(at), api(at + "/console?tail=200")]);
  const wanted = form.keys.value.split(",").map((key) => key.trim()).filter(Boolean);
  const keys = wanted.length ? wanted : Object.keys(run.summary).filter((key) => !key.startsWith("_")).slice(0, 12);
  const charts = make("div", { class: "charts" });
  const pairs = (tree) => Object.entries(tree).map(([key, value]) => make("tr", {}, make("td", {}, key),
    make("td", {}, value !== null && typeof value === "object" ? JSON.stringify(value) : short(value))));
  const back = make("a", { href: `/${part(entity)}/${part(project)}` }, `${entity}/${project}`);
  main.replaceChildren(
    make("h1", {}, run.name || run.id), make("p", { class: run.state }, `${run.state}, ${Math.round(run.runtime)} s, ${run.points} points`),
    make("p", {}, back), charts, make("h2", {}, "config"), table([], pairs(run.config)),
    make("h2", {}, "summary"), table([], pairs(run.summary)),
    make("h2", {}, "console"), make("pre", {}, printed.lines.map((line) => line.text).join("\n")));
  if (keys.length) await drawCharts(charts, [run], keys);
}

function dot(i) {
  const mark = make("span", {}, "● ");
  mark.style.color = COLOURS[i % COLOURS.length];
  return mark;
}

async function drawCharts(charts, runs, keys) {
  const paths = runs.slice(0, 50).map((run) => run.path);
  const { series } = await api("series", { runs: paths, keys, kind: "metric", x: "_step", buckets: 200 });
  for (const key of keys) {
    const lines = series.filter((line) => line.key === key && line.x.length);
    if (lines.length) charts.append(chart(key, lines, paths));
  }
}

/** The least and the greatest finite value; Infinity and -Infinity where there is none. */
function ends(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  return [low, high];
}

/** What an axis spans: never nothing, so that one point lies in the middle. */
function extent(values) {
  const [low, high] = ends(values);
  return low < high ? [low, high] : [low - 0.5, low + 0.5];
}

/** The ends in words, which are those of the values and not of the axis. */
function between(values) {
  const [low, high] = ends(values);
  return low > high ? "no finite value" : low === high ? String(short(low)) : `${short(low)} … ${short(high)}`;
}

function chart(key, lines, paths) {
  const values = (line) => line.mean ?? line.last ?? line.y;
  // a bucket's mean lies inside of what was logged: the ends are those of the points themselves
  const steps = lines.flatMap((line) => [...line.x, ...(line.x_last ?? [])]);
  const logged = lines.flatMap((line) => [...values(line), ...(line.min ?? []), ...(line.max ?? [])]);
  const [left, right] = extent(steps);
  const [low, high] = extent(logged);
  const picture = make("svg", { viewBox: "0 0 420 220", preserveAspectRatio: "none", role: "img", "aria-label": key });
  for (const line of lines) {
    let pen = "M", path = "";
    values(line).forEach((value, i) => {
      if (!Number.isFinite(value)) { pen = "M"; return; }  // a hole where the value is NaN
      path += `${pen}${(10 + (400 * (line.x[i] - left)) / (right - left)).toFixed(1)},${(210 - (200 * (value - low)) / (high - low)).toFixed(1)}`;
      const alone = [i - 1, i + 1].every((beside) => !Number.isFinite(values(line)[beside]));
      if (alone) path += "m-3,0h6";  // what has no neighbour to draw a line to is a dash
      pen = "L";
    });
    picture.append(make("path", { d: path, stroke: COLOURS[paths.indexOf(line.run) % COLOURS.length] }, make("title", {}, line.run)));
  }
  return make("figure", {}, make("figcaption", {}, key), picture, make("div", {}, `${between(logged)}, steps ${between(steps)}`));
}

async function show() {
  try {
    if (location.pathname === "/login" && location.hash.startsWith("#token=")) {
      const token = location.hash.slice("#token=".length);
      history.replaceState(null, "", "/login");  // a token must not stay in the address bar
      await api("login", { token });
      location.replace("/");
      return;
    }
    const parts = location.pathname.split("/").filter(Boolean).map(decodeURIComponent);
    document.getElementById("path").textContent = parts.join(" / ");
    await (parts.length === 3 ? showRun(...parts) : parts.length === 2 ? showRuns(...parts) : showProjects());
  } catch (error) {
    main.replaceChildren(make("p", { class: "error" }, error.message));
  }
}

form.addEventListener("submit", (event) => { event.preventDefault(); show(); });
show();
