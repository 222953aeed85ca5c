// The charts of an evaluation: size against divergence, and errors and routing by layer.
const { artifacts } = JSON.parse(byId("data").textContent);
const labels = artifacts.map((artifact) => artifact.label);
const layers = unique(artifacts.flatMap((artifact) => artifact.layers.map(({ layer }) => layer))).map(String);
// Artifacts of 2 and of 8 bits differ by orders of magnitude, which only a logarithmic scale shows.
const WIDE_RATIO = 20;
const MARGIN = 90;

// The ticks of logarithmic axes, in steps of 1, 2 and 5.
function logTicks(low, high) {
  const powers = Math.ceil(Math.log10(high)) - Math.floor(Math.log10(low)) + 1;
  return Array.from({ length: powers }, (_, step) => 10 ** (Math.floor(Math.log10(low)) + step))
    .flatMap((power) => [1, 2, 5].map((digit) => Number((digit * power).toPrecision(1))))
    .filter((tick) => tick >= low && tick <= high);
}

const NUMBERS = { labelExpr: "format(datum.value, '.3~g')" };

// A logarithmic scale for positive values and their error bars, with room for labels.
function logScale(points, height) {
  const least = Math.min(...points.map(({ kld, low }) => (low > 0 ? low : kld / 2)));
  const most = Math.max(...points.map(({ high }) => high));
  const room = Math.max(0.12 * Math.log(most / least), 0.2);
  const [bottom, top] = [Math.log(least) - room, Math.log(most) + 1.5 * room];
  return {
    scale: { type: "log", domain: [Math.exp(bottom), Math.exp(top)], nice: false },
    ticks: logTicks(Math.exp(bottom), Math.exp(top)),
    bottom: Math.exp(bottom),
    place: (value) => ((top - Math.log(value)) / (top - bottom)) * height,
    value: (place) => Math.exp(top - (place / height) * (top - bottom)),
  };
}

function sizeScale(sizes, width) {
  const span = Math.max(...sizes) - Math.min(...sizes) || Math.max(...sizes) || 1;
  const low = Math.max(0, Math.min(...sizes) - 0.12 * span), high = Math.max(...sizes) + 0.12 * span;
  return {
    scale: { domain: [low, high], nice: false, zero: false },
    place: (value) => ((value - low) / (high - low)) * width,
    value: (place) => low + (place / width) * (high - low),
  };
}

function divergenceSpec(points, room) {
  const [unit, size] = unitFor(points.map((point) => point.bytes));
  const width = room - MARGIN, height = Math.max(260, Math.min(420, Math.round(room / 3.4)));
  const across = sizeScale(points.map((point) => point.bytes / size), width), up = logScale(points, height);
  const values = points.map((point) => ({
    ...point,
    size: point.bytes / size,
    low: Math.max(point.low, up.bottom), // an error bar may reach below 0
    x: across.place(point.bytes / size),
    y: up.place(point.kld),
  }));
  placeLabels(values, width, height).forEach((at, number) => Object.assign(values[number], {
    far: at.far, atSize: across.value(at.x), atKld: up.value(at.y),
  }));
  const quantity = (field, { scale }, more = {}) => ({ field, type: "quantitative", scale, ...more });
  const x = quantity("size", across, { title: `size of the tensors, ${unit}`, axis: { tickCount: Math.max(3, Math.floor(room / 120)) } });
  const y = quantity("kld", up, { title: "mean KL divergence, nats", axis: { values: up.ticks, ...NUMBERS } });
  const label = { x: quantity("atSize", across), y: quantity("atKld", up) };
  const text = { type: "text", limit: width };
  return {
    data: { values },
    width,
    height,
    description: "Size against mean KL divergence, a point for each artifact, with standard errors",
    layer: [
      {
        transform: [{ filter: "datum.far" }],
        mark: { type: "rule", stroke: "var(--soft)", strokeWidth: 0.7, aria: false },
        encoding: { x, y, x2: { field: "atSize" }, y2: { field: "atKld" } },
      },
      {
        mark: { type: "rule", stroke: "var(--ink)", strokeWidth: 1.5, aria: false },
        encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" } },
      },
      {
        mark: { type: "point", filled: true, size: 110, opacity: 1 },
        encoding: {
          x, y,
          color: { field: "label", type: "nominal", scale: { domain: labels }, legend: null },
          tooltip: tips(["label", "artifact"], ["sizeText", "size"], ["bitsText", "bits per weight"], ["kldText", "mean KL"], ["topText", "same top token"]),
        },
      },
      {
        mark: { ...text, stroke: "var(--panel)", strokeWidth: 4, strokeJoin: "round", aria: false },
        encoding: { ...label, text: { field: "label" } },
      },
      { mark: text, encoding: { ...label, text: { field: "label" } } },
    ],
  };
}

// A line for each artifact over the layers.
function linesSpec(points, { title, description, scale, ticks, tooltip }, room) {
  return {
    data: { values: points },
    width: room - MARGIN,
    height: 240,
    description,
    mark: { type: "line", point: { size: layers.length > 12 ? 28 : 70 }, strokeWidth: 1.5 },
    encoding: {
      x: {
        field: "layer", type: "ordinal", scale: { type: "point", domain: layers, padding: 0.5 },
        axis: { ...layerAxis(layers, (room - MARGIN) / layers.length), grid: false },
      },
      y: { field: "percent", type: "quantitative", title, scale, axis: { tickCount: 6, ...ticks, ...NUMBERS } },
      color: {
        field: "label", type: "nominal", scale: { domain: labels },
        legend: labels.length > 1 ? { title: null, columns: Math.max(1, Math.floor(room / (labelRoom(labels) + 30))) } : null,
      },
      tooltip: tips(["label", "artifact"], ["layer", "layer"], ...tooltip),
    },
  };
}

async function drawScatter() {
  const points = artifacts.filter(({ kld }) => kld > 0).map((artifact) => ({
    ...artifact,
    layers: undefined,
    low: artifact.kld - artifact.kld_se,
    high: artifact.kld + artifact.kld_se,
    sizeText: sizeText(artifact.bytes),
    bitsText: artifact.bits_per_weight.toFixed(3),
  }));
  if (points.length) await draw("scatter", (room) => divergenceSpec(points, room));
  else clear("scatter", "No artifact has a divergence that is finite and not 0.");
}

// The points of a field of layers, in percent; those without a value are left out.
const pointsOf = (field) =>
  artifacts.flatMap(({ label, layers: own }) =>
    own.filter((each) => Number.isFinite(each[field])).map((each) => ({
      label,
      layer: String(each.layer),
      percent: 100 * each[field],
      errorText: percentText(each[field]),
      cosineText: each.cosine === null ? "not finite" : each.cosine.toFixed(6),
      expertsText: percentText(each.same_experts ?? null),
      firstText: percentText(each.same_first ?? null),
    })));

async function drawLayers() {
  if (!byId("layers")) return;
  let points = pointsOf(byId("measure")?.value ?? "relative");
  const positive = points.map(({ percent }) => percent).filter((percent) => percent > 0);
  const isWide = positive.length > 0 && Math.max(...positive) > WIDE_RATIO * Math.min(...positive);
  if (isWide) points = points.filter(({ percent }) => percent > 0);
  const domain = [Math.min(...positive) / 1.3, 1.3 * Math.max(...positive)];
  const about = {
    title: "difference of states, %",
    description: "Relative error of hidden states by layer, a line for each artifact",
    scale: isWide ? { type: "log", domain, nice: false } : { zero: true },
    ticks: isWide ? { values: logTicks(...domain) } : {},
    tooltip: [["errorText", "difference"], ["cosineText", "cosine"]],
  };
  if (points.length) await draw("layers", (room) => linesSpec(points, about, room));
  else clear("layers", "No layers were measured.");
}

async function drawRouting() {
  if (!byId("routing")) return;
  const about = {
    title: "tokens with the same experts, %",
    description: "Share of tokens that go to the same experts by layer, a line for each artifact",
    scale: { zero: false },
    tooltip: [["expertsText", "same experts"], ["firstText", "same first expert"]],
  };
  await draw("routing", (room) => linesSpec(pointsOf("same_experts"), about, room));
}

const drawCharts = () => Promise.all([drawScatter(), drawLayers(), drawRouting()]);

if (artifacts.length) {
  byId("measure")?.addEventListener("change", after(drawLayers));
  followSections();
  after(async () => {
    await drawCharts();
    document.documentElement.dataset.drawn = "yes";
    followWidth(drawCharts);
  })();
}
