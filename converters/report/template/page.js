// What the page does: the selectors, the heat map's keys, copies and files.
const MOST_EXPERT_CELLS = 6000;
const WORST = 10;
const ALL = "";

const labels = outputs.map((output) => output.label);
const layers = layersOf(outputs.flatMap((output) => output.tensors)).map(String);
const allTypes = typesOf(outputs.flatMap((output) => output.tensors));
const allBits = new Map(allTypes.map((name) => [name, bitsOf(name, outputs.flatMap((output) => output.tensors))]));
const allSqnr = outputs.flatMap((output) => cellsOf(output).map((cell) => cell.sqnr));
const first = outputs.find((output) => output.total.relative_rms !== 0) ?? outputs[0];
const state = { output: first, kind: ALL, cells: [], at: null };
const chosen = (output) => output.tensors.filter((tensor) => state.kind === ALL || tensor.kind === state.kind);
const badness = (tensor) => tensor.relative_rms ?? Infinity;

// Sorted by SQNR, what is not finite comes before all errors and what has none after them.
const sqnrOrder = (tensor) => ({ "no error": Infinity, "not finite": -Infinity })[stateOf(tensor)] ?? tensor.sqnr_db;

// How fields are written and sorted follows from their units.
const UNITS = {
  text: (key) => [(t) => t[key]],
  layer: (key) => [(t) => (t[key] === null ? NO_LAYER : String(t[key])), (t) => t[key] ?? -1],
  shape: (key) => [(t) => t[key].join(" × "), (t) => t.weights],
  bytes: (key) => [(t) => sizeText(t[key]), (t) => t[key]],
  bits: (key) => [(t) => String(Number(t[key].toFixed(3))), (t) => t[key]],
  decibels: () => [sqnrText, sqnrOrder],
  share: (key) => [(t) => percentText(t[key]), (t) => t[key] ?? Infinity],
  number: (key) => [(t) => numberText(t[key]), (t) => t[key] ?? Infinity],
  cosine: (key) => [(t) => (t[key] === null ? "not finite" : t[key].toFixed(5)), (t) => t[key] ?? -2],
};
const columnOf = ({ key, title, unit }) => column(title, ...UNITS[unit](key));
const TITLES = Object.fromEntries(COLUMNS.map(({ key, title }) => [key, title]));
const WEIGHTED = column(`${TITLES.sqnr_db}, weighted`, (t) => (t.weighted ? sqnrText(t.weighted) : ""),
  (t) => (t.weighted ? sqnrOrder(t.weighted) : Infinity));
const GAIN = column(GAIN_TITLE, (t) => (gainOf(t) === null ? "" : differenceText(gainOf(t))),
  (t) => gainOf(t) ?? -Infinity);
const WORST_COLUMNS = [
  ...COLUMNS.filter(({ key }) => ["name", "type", "sqnr_db", "relative_rms"].includes(key)).map(columnOf),
  column(TITLES.largest_error, (t) =>
    numberText(t.largest_error) + (t.largest_at ? ` at [${t.largest_at.join(", ")}]` : ""), () => 0),
  column("Worst rows", (t) => t.worst_rows.slice(0, 3).map(([expert, row, relative]) =>
    `${expert === null ? "" : `expert ${expert}, `}row ${row}: ${percentText(relative)}`).join("; ")),
];

async function drawScatter() {
  const points = outputs.filter((output) => output.total.relative_rms !== null).map((output) => ({
    label: output.label,
    bytes: output.bytes,
    percent: 100 * output.total.relative_rms,
    sizeText: sizeText(output.bytes),
    bitsText: output.bits_per_weight.toFixed(3),
    sqnrText: sqnrText(output.total),
    relativeText: percentText(output.total.relative_rms),
  }));
  if (points.length) await draw("scatter", (room) => scatterSpec(points, room));
  else clear("scatter", "No output has an error that is finite.");
}

async function drawMap() {
  state.cells = cellsOf(state.output);
  state.at = null;
  byId("map-cell").textContent = "\u00a0";
  const kinds = unique(state.output.tensors.map((tensor) => tensor.kind));
  await drawGrid("map", (room) => {
    state.turned = gridOf(columnsOf(state.cells, layers), kinds, room).turned;
    return mapSpec(state.cells, layers, kinds, allSqnr, room);
  });
  await drawGrid("types", (room) => typesSpec(state.cells, layers, kinds, allTypes, allBits, room));
}

// Where a cell is clicked its tensor is found, and where it is pointed at, written above the map.
async function drawGrid(id, specOf) {
  if (!state.cells.length) return clear(id, "No tensors were measured.");
  const view = await draw(id, specOf);
  view.addEventListener("click", (event, item) => item?.datum?.find && find(item.datum.find));
  if (id !== "map") return;
  byId(id).setAttribute("role", "application"); // Vega calls it a document, in which keys only read
  view.addEventListener("mouseover", (event, item) => item?.datum?.text && say(item.datum));
}

const say = (cell) => (byId("map-cell").textContent = cell.text);

function find(name) {
  byId("filter").value = name;
  tensors.show();
  byId("tensors-title").scrollIntoView();
}

const KEYS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };

// The next cell in a direction, past places without a tensor.
function next([right, down]) {
  const columns = [NO_LAYER, ...layers];
  const kinds = unique(state.cells.map((cell) => cell.kind));
  if (!state.at) return state.cells[0];
  if (state.turned) [right, down] = [down, right];
  let x = columns.indexOf(state.at.layer), y = kinds.indexOf(state.at.kind);
  for (;;) {
    x += right;
    y += down;
    if (!(x in columns && y in kinds)) return state.at;
    const cell = state.cells.find((each) => each.layer === columns[x] && each.kind === kinds[y]);
    if (cell) return cell;
  }
}

function onKey(event) {
  if (event.key === "Enter" && state.at) find(state.at.find);
  if (!(event.key in KEYS) || !state.cells.length) return;
  event.preventDefault();
  state.at = next(KEYS[event.key]);
  say(state.at);
  VIEWS.get("map").view.signal("at", state.at.id).runAsync();
}

async function drawLayers() {
  if (!byId("layers")) return;
  const points = outputs.flatMap((output) =>
    [...grouped(chosen(output).filter((tensor) => tensor.layer !== null), (tensor) => tensor.layer)]
      .map(([layer, group]) => ({ label: output.label, layer: String(layer), ...merged(group) }))
      .filter((point) => point.relative_rms !== null)
      .map((point) => ({
        ...point,
        percent: 100 * point.relative_rms,
        sqnrText: sqnrText(point),
        relativeText: percentText(point.relative_rms),
      })));
  if (points.length) await draw("layers", (room) => layersSpec(points, layers, labels, room));
  else clear("layers", "No tensors of this kind in a layer.");
}

async function drawKinds() {
  const whole = state.output.total.error_squares;
  const [unit, size] = unitFor(state.output.kinds.map((kind) => kind.bytes));
  const rows = state.output.kinds.map((kind) => {
    const share = whole && kind.error_squares !== null ? kind.error_squares / whole : 0;
    return {
      kind: kind.kind,
      size: kind.bytes / size,
      bits: kind.bits_per_weight,
      percent: kind.relative_rms === null ? null : 100 * kind.relative_rms,
      share: 100 * share,
      sizeText: sizeText(kind.bytes),
      bitsText: kind.bits_per_weight.toFixed(3),
      sqnrText: sqnrText(kind),
      relativeText: percentText(kind.relative_rms),
      shareText: percentText(share),
    };
  });
  await draw("kinds", (room) => kindsSpec(rows, rows.map((row) => row.kind), unit, room));
}

// Bin k has SQNRs from 3.01 (k - 1) to 3.01 k dB; the ends are open, the last is no error at all.
function binLabel(bin) {
  const decibels = (k) => (10 * k * Math.log10(2)).toFixed(0);
  if (bin === 0) return "0 or less";
  if (bin === 30) return `${decibels(29)} or more`;
  return bin === 31 ? "no error" : `${decibels(bin - 1)} to ${decibels(bin)}`;
}

async function drawHistogram() {
  const metrics = state.kind === ALL ? state.output.total : state.output.kinds.find((kind) => kind.kind === state.kind);
  const runs = metrics.histogram.reduce((total, count) => total + count, 0);
  const filled = metrics.histogram.flatMap((count, bin) => (count && bin < 31 ? [bin] : []));
  const low = Math.max(0, Math.min(...filled) - 1), high = Math.min(30, Math.max(...filled) + 1);
  const rows = metrics.histogram
    .map((count, bin) => ({
      bin,
      label: binLabel(bin),
      percent: (100 * count) / (runs || 1),
      runsText: countText(count),
      percentText: percentText(count / (runs || 1)),
    }))
    .filter(({ bin }) => (bin >= low && bin <= high) || bin === 31);
  await draw("histogram", (room) => histogramSpec(rows, room));
  byId("shares").textContent =
    `Weights that are exact: ${percentText(metrics.share_exact)}. Runs of 32 that became all zeros: ` +
    `${percentText(metrics.share_zeroed)}; whose largest weight lost more than an eighth: ${percentText(metrics.share_clipped)}.`;
}

async function drawExperts() {
  if (!byId("experts")) return;
  const cells = chosen(state.output).flatMap((tensor) =>
    tensor.experts.map(([relative_rms, sqnr_db], expert) => ({
      name: tensor.name,
      kind: tensor.kind,
      layer: tensor.layer === null ? NO_LAYER : String(tensor.layer),
      type: tensor.type,
      expert,
      sqnr: sqnr_db,
      difference: sqnr_db === null || tensor.sqnr_db === null ? null : sqnr_db - tensor.sqnr_db,
      state: stateOf({ relative_rms }),
      sqnrText: sqnrText({ relative_rms, sqnr_db }),
      relativeText: percentText(relative_rms),
    })));
  const kinds = unique(cells.map((cell) => cell.kind));
  byId("differences-label").hidden = cells.length > MOST_EXPERT_CELLS || cells.every((cell) => cell.sqnr === null);
  if (!cells.length) clear("experts", "No experts in tensors of this kind.");
  else if (cells.every((cell) => cell.state === "no error")) clear("experts", "No error in any expert.");
  else if (cells.length <= MOST_EXPERT_CELLS) await draw("experts", (room) => expertsSpec(cells, layers, kinds, byId("differences").checked, room));
  else await draw("experts", (room) => expertRangesSpec(cells, layers, kinds, room));
}

function showWorst() {
  const rows = chosen(state.output).filter((tensor) => tensor.relative_rms !== 0);
  rows.sort((a, b) => badness(b) - badness(a));
  head(byId("worst"), WORST_COLUMNS);
  fill(byId("worst"), WORST_COLUMNS, rows.slice(0, WORST));
  if (!rows.length) byId("worst").replaceChildren(element("caption", "No error in any tensor."));
}

function showTitles() {
  const kind = state.kind === ALL ? "" : state.kind;
  const write = (name, text) =>
    document.querySelectorAll(name).forEach((each) => (each.textContent = text));
  write(".of-output", state.output.label);
  write(".of-kind", kind);
  write(".of-both", [state.output.label, kind].filter(Boolean).join(", "));
}

function fillKinds() {
  const kinds = unique(state.output.kinds.map((kind) => kind.kind));
  if (!kinds.includes(state.kind)) state.kind = ALL;
  byId("kind").replaceChildren(...[ALL, ...kinds].map((kind) => element("option", kind || "all", { value: kind })));
  byId("kind").value = state.kind;
}

async function onOutput() {
  state.output = outputs[byId("output").selectedIndex];
  fillKinds();
  tensors.show(state.output.tensors);
  await Promise.all([drawMap(), drawKinds(), onKind()]);
}

async function onKind() {
  state.kind = byId("kind").value;
  showTitles();
  showWorst();
  await Promise.all([drawLayers(), drawHistogram(), drawExperts()]);
}

// All fields of a tensor that the table shows, as numbers.
const CSV_FIELDS = COLUMNS.map(({ key }) => [key === "name" ? "tensor" : key,
  (tensor) => (Array.isArray(tensor[key]) ? tensor[key].join("x") : tensor[key])]);

// Copy text, also where a browser lets pages of files not write to the clipboard.
async function copy(button) {
  const shown = button.parentElement.querySelector("code");
  const selection = getSelection();
  selection.selectAllChildren(shown);
  let copied = true;
  try {
    await navigator.clipboard.writeText(shown.textContent);
  } catch {
    copied = document.execCommand("copy");
  }
  if (copied) selection.removeAllRanges();
  const label = button.firstChild, before = label.data;
  label.data = copied ? "Copied" : "Press Ctrl+C";
  setTimeout(() => (label.data = before), 2000);
}

const drawCharts = () => Promise.all([
  outputs.length > 1 ? drawScatter() : null,
  outputs.length > 1 ? drawDifference() : null,
  drawMap(), drawKinds(), drawLayers(), drawHistogram(), drawExperts(),
]);

let tensors = null;
if (outputs.length) {
  const weighed = outputs.some((output) => output.total.weighted !== null);
  const columns = COLUMNS.map(columnOf);
  if (weighed) columns.splice(COLUMNS.findIndex(({ key }) => key === "sqnr_db") + 1, 0, WEIGHTED);
  const searched = outputs.some((output) => output.total.search);
  if (searched) columns.push(GAIN);
  const fields = [
    ...CSV_FIELDS,
    ...(weighed ? [["weighted_sqnr_db", (tensor) => tensor.weighted?.sqnr_db]] : []),
    ...(searched ? ["gained_db", "weighted_gained_db"].map((key) => [key, (tensor) => tensor.search?.[key]]) : []),
  ];
  tensors = new SortedTable(byId("tensors"), byId("filter"), byId("shown"), columns);
  byId("output").append(...labels.map((label) => element("option", label)));
  byId("output").selectedIndex = outputs.indexOf(first);
  byId("output").addEventListener("change", after(onOutput));
  byId("kind").addEventListener("change", after(onKind));
  byId("differences")?.addEventListener("change", after(drawExperts));
  byId("map").addEventListener("keydown", onKey);
  byId("csv").addEventListener("click", () => download(`${state.output.file}.csv`, fields, tensors.found()));
  document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", () => copy(button)));
  if (outputs.length > 1) setUpDifference();
  followSections();
  after(async () => {
    await Promise.all([outputs.length > 1 ? drawScatter() : null, outputs.length > 1 ? drawDifference() : null, onOutput()]);
    document.documentElement.dataset.drawn = "yes";
    followWidth(drawCharts);
  })();
}
