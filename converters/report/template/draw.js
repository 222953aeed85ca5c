// How charts are drawn of Vega-Lite specifications. Colours of text and lines are those of the style
// sheet, so that charts follow the theme, and paper, without being drawn again.
const VIEWS = new Map();
const CONFIG = {
  background: null,
  font: "system-ui, sans-serif",
  view: { stroke: null },
  mark: { invalid: "show" }, // no SQNR where there is no error
  axis: {
    labelColor: "var(--ink)", titleColor: "var(--ink)", titleFontWeight: "normal",
    gridColor: "var(--line)", domainColor: "var(--line)", tickColor: "var(--line)",
    labelFontSize: 11, titleFontSize: 12,
  },
  axisBand: { grid: false, ticks: false, domain: false },
  legend: {
    labelColor: "var(--ink)", titleColor: "var(--ink)", titleFontWeight: "normal",
    labelFontSize: 11, titleFontSize: 12, orient: "top", titleOrient: "left",
    titleAnchor: "middle", titlePadding: 8, offset: 12,
  },
  header: { labelColor: "var(--ink)", labelFontSize: 12, labelLimit: 300 },
  text: { fontSize: 12, fill: "var(--ink)" },
  range: {
    category: ["#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d",
      "#d6a000", "#ff9da6", "#8a8f98", "#5b5fc7", "#2e8b7a", "#c04f8b", "#7f9a1f", "#40a4df", "#a64b2a"],
  },
};
const AXIS_FONT = "11px system-ui, sans-serif";
// Labels of axes leave most of the room to what they name.
let longestLabel = 240;

// Draw a chart into an element, in place of the one before.
async function draw(id, specOf) {
  const element = byId(id), room = Math.max(element.clientWidth, 240);
  longestLabel = Math.min(240, Math.round(0.34 * room));
  const config = {
    ...CONFIG,
    axis: { ...CONFIG.axis, labelLimit: longestLabel },
    legend: { ...CONFIG.legend, labelLimit: Math.min(300, room - 90) },
  };
  VIEWS.get(id)?.finalize();
  const result = await vegaEmbed(element, { ...specOf(room), config }, {
    ast: true, // the page's policy forbids eval
    renderer: "svg",
    actions: false,
    defaultStyle: false,
    tooltip: { disableDefaultStyle: true },
  });
  VIEWS.set(id, result);
  return result.view;
}

function clear(id, text) {
  VIEWS.get(id)?.finalize();
  VIEWS.delete(id);
  byId(id).textContent = text;
}

const tips = (...pairs) => pairs.map(([field, title]) => ({ field, title, type: "nominal" }));
const labelRoom = (texts) => Math.min(longestLabel, Math.max(0, ...texts.map((text) => textWidth(text, AXIS_FONT)))) + 12;

// The layers that an axis names: as many as its steps have room for.
function layerAxis(layers, step) {
  const every = [1, 2, 4, 5, 8, 10, 16, 20, 32, 50].find((n) => n * step >= 22) ?? 100;
  const values = layers.filter((layer) => layer === NO_LAYER ? step >= 12 : Number(layer) % every === 0);
  return { title: "layer", labelAngle: 0, values: layers.length > 12 ? values : layers };
}
