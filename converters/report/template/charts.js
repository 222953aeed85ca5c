// What the charts look like, as Vega-Lite specifications. Colours of text and lines are those of
// the style sheet, so that charts follow the theme, and paper, without being drawn again.
const VIEWS = new Map();
const CONFIG = {
  background: null,
  font: "system-ui, sans-serif",
  view: { stroke: null },
  mark: { invalid: "show" }, // no SQNR where there is no error
  axis: {
    labelColor: "var(--ink)", titleColor: "var(--ink)", titleFontWeight: "normal",
    gridColor: "var(--line)", domainColor: "var(--line)", tickColor: "var(--line)",
    labelFontSize: 11, titleFontSize: 12, labelLimit: 240,
  },
  axisBand: { grid: false, ticks: false, domain: false },
  legend: {
    labelColor: "var(--ink)", titleColor: "var(--ink)", titleFontWeight: "normal",
    labelFontSize: 11, titleFontSize: 12, labelLimit: 400,
  },
  header: { labelColor: "var(--ink)", labelFontSize: 12, labelLimit: 400 },
  range: {
    category: ["#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d",
      "#d6a000", "#ff9da6", "#8a8f98"],
  },
};
// A card in a browser window of 1200 pixels has this much room.
const WIDE = 1080;

// Draw a chart into an element, in place of the one before.
async function draw(id, spec) {
  const element = document.getElementById(id);
  VIEWS.get(id)?.finalize();
  const result = await vegaEmbed(element, { ...spec, config: CONFIG }, {
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
  document.getElementById(id).textContent = text;
}

const stepFor = (count, most = 44) => Math.max(11, Math.min(most, Math.floor((WIDE - 190) / count)));
const layerAxis = (layers) => ({
  title: "layer",
  labelAngle: 0,
  values: layers.length > 32 ? layers.filter((layer) => !(Number(layer) % 4 > 0)) : layers,
});
const tips = (...pairs) => pairs.map(([field, title]) => ({ field, title, type: "nominal" }));
const TYPE_TIP = ["type", LABELS.type], SIZE_TIP = ["sizeText", LABELS.bytes], BITS_TIP = ["bitsText", LABELS.bits_per_weight];
const ERROR_TIPS = [["sqnrText", LABELS.sqnr_db], ["relativeText", LABELS.relative_rms]];
const CELL_TIPS = tips(["name", LABELS.name], TYPE_TIP, ...ERROR_TIPS, ["largestText", LABELS.largest_error], BITS_TIP);

function sqnrColor(values) {
  const numbers = values.filter((value) => value !== null);
  const low = Math.min(...numbers), high = Math.max(...numbers);
  return {
    condition: [
      { test: "datum.state === 'no error'", value: "var(--lossless)" },
      { test: "datum.state === 'not finite'", value: "var(--bad)" },
    ],
    field: "sqnr",
    type: "quantitative",
    scale: { scheme: "viridis", domain: numbers.length ? [low, Math.max(high, low + 1)] : [0, 1] },
    legend: numbers.length ? { title: "SQNR, dB", gradientLength: 140, tickCount: 4, format: ".0f" } : null,
  };
}

function mapSpec(cells, layers, kinds, allSqnr) {
  const columns = cells.some((cell) => cell.layer === NO_LAYER) ? [NO_LAYER, ...layers] : layers;
  const place = {
    x: { field: "layer", type: "ordinal", scale: { domain: columns, padding: 0 }, axis: layerAxis(columns) },
    y: { field: "kind", type: "ordinal", scale: { domain: kinds, padding: 0 }, axis: { title: null } },
  };
  return {
    data: { values: cells },
    params: [{ name: "at", value: "" }],
    width: { step: stepFor(columns.length) },
    height: { step: 22 },
    layer: [
      {
        name: "cells",
        mark: { type: "rect", stroke: "var(--panel)", strokeWidth: 1, cursor: "pointer" },
        encoding: {
          ...place,
          color: sqnrColor(allSqnr),
          tooltip: CELL_TIPS,
          description: { field: "text", type: "nominal" },
        },
      },
      {
        transform: [{ filter: "datum.id === at" }],
        mark: { type: "rect", filled: false, stroke: "var(--ink)", strokeWidth: 3, aria: false, interactive: false },
        encoding: place,
      },
    ],
  };
}

function scatterSpec(points) {
  const highest = 1.15 * Math.max(...points.map((point) => point.percent)); // room for its label
  const encoding = {
    x: { field: "gigabytes", type: "quantitative", title: "size on disk, GB", scale: { zero: false, padding: 40 }, axis: { tickCount: 8 } },
    y: { field: "percent", type: "quantitative", title: "relative RMS, %", scale: { domain: [0, highest || 1] }, axis: { tickCount: 6 } },
    tooltip: tips(["label", "output"], SIZE_TIP, BITS_TIP, ...ERROR_TIPS),
  };
  return {
    data: { values: points },
    width: WIDE - 80,
    height: 260,
    layer: [
      {
        mark: { type: "point", filled: true, size: 110, opacity: 1 },
        encoding: { ...encoding, color: { field: "label", type: "nominal", scale: { domain: points.map((p) => p.label) }, legend: null } },
      },
      {
        mark: { type: "text", dy: -13, fontSize: 12, fill: "var(--ink)" },
        encoding: { ...encoding, text: { field: "label" } },
      },
    ],
  };
}

function layersSpec(points, layers, labels) {
  return {
    data: { values: points },
    width: WIDE - 170,
    height: 240,
    mark: { type: "line", point: { size: 28 }, strokeWidth: 1.5 },
    encoding: {
      x: { field: "layer", type: "ordinal", scale: { type: "point", domain: layers, padding: 0.5 }, axis: { ...layerAxis(layers), grid: false } },
      y: { field: "percent", type: "quantitative", title: "relative RMS, %", scale: { zero: true } },
      color: { field: "label", type: "nominal", scale: { domain: labels }, legend: labels.length > 1 ? { title: null } : null },
      tooltip: tips(["label", "output"], ["layer", LABELS.layer], ...ERROR_TIPS),
    },
  };
}

function kindsSpec(rows, kinds) {
  const bars = (field, title, first) => ({
    width: 180,
    height: { step: 22 },
    mark: { type: "bar", fill: "var(--bar)", height: { band: 0.72 } },
    encoding: {
      y: { field: "kind", type: "ordinal", scale: { domain: kinds }, axis: first ? { title: null } : null },
      x: { field, type: "quantitative", title, axis: { tickCount: 4 } },
      tooltip: tips(["kind", LABELS.kind], SIZE_TIP, BITS_TIP, ...ERROR_TIPS, ["shareText", "share of squared error"]),
    },
  });
  return {
    data: { values: rows },
    spacing: 24,
    hconcat: [
      bars("gigabytes", "size, GB", true),
      bars("bits", "bits per weight", false),
      bars("percent", "relative RMS, %", false),
      bars("share", "share of the squared error, %", false),
    ],
  };
}

function histogramSpec(rows) {
  return {
    data: { values: rows },
    width: { step: stepFor(rows.length, 40) },
    height: 200,
    mark: { type: "bar", fill: "var(--bar)", width: { band: 0.86 } },
    encoding: {
      x: { field: "label", type: "ordinal", title: "SQNR of a run, dB", scale: { domain: rows.map((row) => row.label) }, axis: { labelAngle: -40 } },
      y: { field: "percent", type: "quantitative", title: "runs, %" },
      tooltip: tips(["label", "SQNR, dB"], ["runsText", "runs"], ["percentText", "share"]),
    },
  };
}

// Against its tensor an expert is better (blue) or worse (orange), which its type would hide.
function differenceColor(cells) {
  const most = Math.max(...cells.map((cell) => Math.abs(cell.difference ?? 0))) || 1;
  return {
    ...sqnrColor([]),
    field: "difference",
    scale: { scheme: "blueorange", reverse: true, domain: [-most, most] },
    legend: { title: "difference, dB", gradientLength: 140, tickCount: 5, format: "+.1f" },
  };
}

function expertsSpec(cells, layers, kinds, asDifferences) {
  return {
    data: { values: cells },
    facet: { row: { field: "kind", type: "ordinal", sort: kinds, header: { title: null, labelOrient: "top", labelAnchor: "start" } } },
    spacing: 6,
    spec: {
      width: { step: stepFor(layers.length) },
      height: { step: 12 },
      mark: { type: "rect", stroke: "var(--panel)", strokeWidth: 0.5 },
      encoding: {
        x: { field: "layer", type: "ordinal", scale: { domain: layers, padding: 0 }, axis: layerAxis(layers) },
        y: { field: "expert", type: "ordinal", title: "expert", scale: { padding: 0 } },
        color: asDifferences ? differenceColor(cells) : sqnrColor(cells.map((cell) => cell.sqnr)),
        tooltip: tips(["name", LABELS.name], TYPE_TIP, ["expert", "expert"], ...ERROR_TIPS),
      },
    },
  };
}

// The same for experts by the hundred: from the worst of a layer to its best.
function expertRangesSpec(cells, layers, kinds) {
  return {
    data: { values: cells.filter((cell) => cell.sqnr !== null) },
    facet: { row: { field: "kind", type: "ordinal", sort: kinds, header: { title: null, labelOrient: "top", labelAnchor: "start" } } },
    spec: {
      width: { step: stepFor(layers.length) },
      height: 110,
      encoding: {
        x: { field: "layer", type: "ordinal", scale: { domain: layers }, axis: layerAxis(layers) },
      },
      layer: [
        {
          mark: { type: "bar", fill: "var(--bar)", width: { band: 0.5 } },
          encoding: {
            y: { aggregate: "min", field: "sqnr", type: "quantitative", title: "SQNR, dB", scale: { zero: false } },
            y2: { aggregate: "max", field: "sqnr" },
            tooltip: [
              { field: "layer", title: "layer", type: "nominal" },
              { aggregate: "min", field: "sqnr", title: "worst expert, dB", format: ".2f", type: "quantitative" },
              { aggregate: "median", field: "sqnr", title: "median, dB", format: ".2f", type: "quantitative" },
              { aggregate: "max", field: "sqnr", title: "best expert, dB", format: ".2f", type: "quantitative" },
            ],
          },
        },
        {
          mark: { type: "tick", color: "var(--ink)", thickness: 2 },
          encoding: { y: { aggregate: "median", field: "sqnr", type: "quantitative" } },
        },
      ],
    },
  };
}
