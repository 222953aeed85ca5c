// What the charts look like, as Vega-Lite specifications. Each is a function of the room that there
// is for it.
const TYPE_TIP = ["type", LABELS.type], SIZE_TIP = ["sizeText", LABELS.bytes], BITS_TIP = ["bitsText", LABELS.bits_per_weight];
const ERROR_TIPS = [["sqnrText", LABELS.sqnr_db], ["relativeText", LABELS.relative_rms]];
const CELL_TIPS = tips(["name", LABELS.name], TYPE_TIP, ...ERROR_TIPS, ["largestText", LABELS.largest_error], BITS_TIP);

// How a table of layers and kinds fills its room: layers across, or, if they are few, down.
const LEAST_STEP = 11, WRITTEN_STEP = 46, MOST_STEP = 170;
function gridOf(columns, kinds, room) {
  const names = labelRoom(kinds);
  const across = Math.floor((2 * (room - names - 10)) / columns.length) / 2;
  const free = room - labelRoom(columns) - 30;
  const slanted = names > free / kinds.length;
  const overhang = slanted ? Math.max(0, 0.87 * labelRoom(kinds.slice(-1)) - free / kinds.length / 2) : 0;
  const down = Math.floor((2 * (free - overhang)) / kinds.length) / 2;
  const turned = columns.length < kinds.length && down >= 60 && across > 2 * down / 3;
  const step = Math.max(LEAST_STEP, Math.min(MOST_STEP, turned ? down : across));
  const written = step >= WRITTEN_STEP;
  const layerStep = turned ? 34 : step;
  const layer = {
    field: "layer", type: "ordinal", scale: { domain: columns, padding: 0 },
    axis: turned ? { title: "layer" } : layerAxis(columns, step),
  };
  const kind = {
    field: "kind", type: "ordinal", scale: { domain: kinds, padding: 0 },
    axis: { title: null, ...(turned ? { orient: "top", labelAngle: slanted ? -30 : 0, labelAlign: slanted ? "left" : "center" } : {}) },
  };
  return {
    turned,
    written,
    width: { step: turned ? step : layerStep },
    height: { step: turned ? 34 : written ? 26 : 22 },
    place: turned ? { x: kind, y: layer } : { x: layer, y: kind },
  };
}

// Black or white, whichever is read better on a colour; one of them always has a contrast of 4.5.
const channels = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
function inkOn(parts) {
  const [red, green, blue] = parts.map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
}

// Viridis, from dark to light.
const VIRIDIS = ["#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26", "#fde725"];
const viridisScale = ([low, high]) => ({
  domain: VIRIDIS.map((_, step) => low + (step / (VIRIDIS.length - 1)) * (high - low)), range: VIRIDIS, interpolate: "rgb",
});

function viridis(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1), step = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const [from, to] = [channels(VIRIDIS[step]), channels(VIRIDIS[step + 1])];
  return from.map((part, which) => part + (place - step) * (to[which] - part));
}

function sqnrScale(values) {
  const numbers = values.filter((value) => value !== null);
  const low = Math.min(...numbers), high = Math.max(...numbers);
  return numbers.length ? [low, Math.max(high, low + 1)] : [0, 1];
}

function sqnrColor(values) {
  const some = values.some((value) => value !== null);
  const [low, high] = sqnrScale(values);
  return {
    condition: [
      { test: "datum.state === 'no error'", value: "var(--lossless)" },
      { test: "datum.state === 'not finite'", value: "var(--bad)" },
    ],
    field: "sqnr",
    type: "quantitative",
    scale: viridisScale([low, high]),
    legend: some ? { title: "SQNR, dB", gradientLength: 160, gradientThickness: 12, tickCount: 4, format: high - low < 6 ? ".1f" : ".0f" } : null,
  };
}

function sqnrInk(cell, [low, high]) {
  if (cell.state === "no error") return "var(--ink)";
  return cell.state === "not finite" ? "#fff" : inkOn(viridis((cell.sqnr - low) / (high - low)));
}

function gridSpec(cells, grid, about) {
  const words = {
    mark: { type: "text", fontSize: 11, aria: false, limit: grid.width.step - 4 },
    encoding: { ...grid.place, text: { field: about.text, type: "nominal" }, fill: { field: about.ink, type: "nominal", scale: null } },
  };
  return {
    data: { values: cells },
    params: [{ name: "at", value: "" }],
    width: grid.width,
    height: grid.height,
    description: about.description,
    layer: [
      {
        name: "cells",
        mark: { type: "rect", stroke: "var(--panel)", strokeWidth: 1, cursor: "pointer" },
        encoding: {
          ...grid.place,
          color: about.color,
          tooltip: CELL_TIPS,
          description: { field: "text", type: "nominal" },
        },
      },
      ...(grid.written ? [words] : []),
      {
        transform: [{ filter: "datum.id === at" }],
        mark: { type: "rect", filled: false, stroke: "var(--ink)", strokeWidth: 3, aria: false },
        encoding: grid.place,
      },
    ],
  };
}

const columnsOf = (cells, layers) => (cells.some((cell) => cell.layer === NO_LAYER) ? [NO_LAYER, ...layers] : layers);

function mapSpec(cells, layers, kinds, allSqnr, room) {
  const domain = sqnrScale(allSqnr);
  const short = { "no error": "=", "not finite": "∞" };
  const values = cells.map((cell) => ({
    ...cell,
    short: cell.state === "error" && cell.sqnr !== null ? cell.sqnr.toFixed(1) : short[cell.state],
    ink: sqnrInk(cell, domain),
  }));
  return gridSpec(values, gridOf(columnsOf(cells, layers), kinds, room), {
    text: "short", ink: "ink", color: sqnrColor(allSqnr),
    description: "Heat map of SQNR by layer and kind; arrow keys move, Enter finds the tensor in the table",
  });
}

// Few bits are red, many are blue, floats are grey.
const BIT_COLORS = ["#a50f33", "#d8433f", "#f0793f", "#fbb258", "#f7e07a", "#cde88a", "#93d3a2", "#55b5aa", "#3787bf", "#5a4fa2"];
const FLOAT_COLORS = ["#aab2bb", "#8c959f", "#c6ccd3"];

// A type has the colour of its bits per weight, on any page, or the next one that is free.
function typeColors(types, bits) {
  const free = new Set(BIT_COLORS.keys());
  let floats = 0;
  return types.map((type) => {
    if (bits.get(type) >= 16) return FLOAT_COLORS[floats++ % FLOAT_COLORS.length];
    const wanted = Math.max(0, Math.min(9, Math.round(((bits.get(type) - 1.5) / 7) * 9)));
    const nearest = [...(free.size ? free : BIT_COLORS.keys())].sort((a, b) => Math.abs(a - wanted) - Math.abs(b - wanted))[0];
    free.delete(nearest);
    return BIT_COLORS[nearest];
  });
}

function typesSpec(cells, layers, kinds, types, bits, room) {
  const colors = typeColors(types, bits);
  const used = types.filter((type) => cells.some((cell) => cell.type === type));
  const values = cells.map((cell) => ({ ...cell, ink: inkOn(channels(colors[types.indexOf(cell.type)] ?? "#8c959f")) }));
  const others = unique(cells.map((cell) => cell.type)).filter((type) => !types.includes(type));
  const domain = [...used, ...others];
  return gridSpec(values, gridOf(columnsOf(cells, layers), kinds, room), {
    text: "type", ink: "ink", description: "Type of each tensor, by layer and kind",
    color: {
      field: "type", type: "nominal",
      scale: { domain, range: domain.map((type) => colors[types.indexOf(type)] ?? "#8c959f") },
      legend: { title: null, columns: Math.max(1, Math.floor(room / 110)), symbolType: "square" },
    },
  });
}

function scatterSpec(points, room) {
  const [unit, size] = unitFor(points.map((point) => point.bytes));
  const width = room - 62, height = Math.max(260, Math.min(420, Math.round(room / 3.4)));
  const sizes = points.map((point) => point.bytes / size);
  const span = Math.max(...sizes) - Math.min(...sizes) || Math.max(...sizes) || 1;
  const low = Math.max(0, Math.min(...sizes) - 0.12 * span), high = Math.max(...sizes) + 0.12 * span;
  const most = 1.18 * Math.max(...points.map((point) => point.percent)) || 1; // room for labels
  const least = -0.06 * most;
  const values = points.map((point) => ({
    ...point,
    size: point.bytes / size,
    x: ((point.bytes / size - low) / (high - low)) * width,
    y: ((most - point.percent) / (most - least)) * height,
  }));
  placeLabels(values, width, height).forEach((at, number) => Object.assign(values[number], {
    far: at.far,
    atSize: low + (at.x / width) * (high - low),
    atPercent: most - (at.y / height) * (most - least),
  }));
  const xScale = { domain: [low, high], nice: false, zero: false }, yScale = { domain: [least, most], nice: false };
  const x = { field: "size", type: "quantitative", title: `size on disk, ${unit}`, scale: xScale, axis: { tickCount: Math.max(3, Math.floor(room / 120)) } };
  const y = { field: "percent", type: "quantitative", title: "relative RMS, %", scale: yScale, axis: { tickCount: 6 } };
  const label = { x: { field: "atSize", type: "quantitative", scale: xScale }, y: { field: "atPercent", type: "quantitative", scale: yScale } };
  return {
    data: { values },
    width,
    height,
    description: "Size on disk against relative error, a point for each output",
    layer: [
      {
        transform: [{ filter: "datum.far" }],
        mark: { type: "rule", stroke: "var(--soft)", strokeWidth: 0.7, aria: false },
        encoding: { x, y, x2: { field: "atSize" }, y2: { field: "atPercent" } },
      },
      {
        mark: { type: "point", filled: true, size: 110, opacity: 1 },
        encoding: {
          x, y,
          color: { field: "label", type: "nominal", scale: { domain: points.map((p) => p.label) }, legend: null },
          tooltip: tips(["label", "output"], SIZE_TIP, BITS_TIP, ...ERROR_TIPS),
        },
      },
      {
        mark: { type: "text", stroke: "var(--panel)", strokeWidth: 4, strokeJoin: "round", aria: false, limit: width },
        encoding: { ...label, text: { field: "label" } },
      },
      { mark: { type: "text", limit: width }, encoding: { ...label, text: { field: "label" } } },
    ],
  };
}

// Sorted bars, with names as long as there is room for them.
const MOST_NAMED = 40;
function differencesSpec(pairs, room) {
  const color = {
    condition: { test: "datum.difference > 0", value: "var(--better)" },
    value: "var(--worse)",
  };
  const tooltip = tips(["name", LABELS.name], TYPE_TIP, ["fromText", "SQNR before"], ["toText", "after"],
    ["differenceText", "difference"], ["bytesText", "size"]);
  const values = pairs.map(({ from, to, ...pair }, rank) => ({ ...pair, rank }));
  const decibels = { field: "difference", type: "quantitative", title: "difference of SQNR, dB" };
  const ranks = values.map((pair) => pair.rank);
  const common = { data: { values }, description: "Difference of SQNR of each tensor, sorted" };
  if (pairs.length > MOST_NAMED)
    return {
      ...common,
      width: room - 58,
      height: 240,
      mark: { type: "bar", width: { band: 1 } },
      encoding: {
        x: { field: "rank", type: "ordinal", scale: { domain: ranks, padding: 0 }, axis: { labels: false, title: `${countText(pairs.length)} tensors, sorted` } },
        y: decibels, fill: color, tooltip,
      },
    };
  return {
    ...common,
    width: Math.max(120, room - labelRoom(pairs.map((pair) => pair.name)) - 12),
    height: { step: 18 },
    mark: { type: "bar", height: { band: 0.76 } },
    encoding: {
      y: { field: "name", type: "ordinal", scale: { domain: unique(values.map((pair) => pair.name)) }, axis: { title: null } },
      x: { ...decibels, axis: { tickCount: Math.max(3, Math.floor(room / 150)) } }, fill: color, tooltip,
    },
  };
}

function layersSpec(points, layers, labels, room) {
  const step = (room - 60) / layers.length;
  return {
    data: { values: points },
    width: room - 58,
    height: 240,
    description: "Relative error of each layer, a line for each output",
    mark: { type: "line", point: { size: layers.length > 12 ? 28 : 70 }, strokeWidth: 1.5 },
    encoding: {
      x: { field: "layer", type: "ordinal", scale: { type: "point", domain: layers, padding: 0.5 }, axis: { ...layerAxis(layers, step), grid: false } },
      y: { field: "percent", type: "quantitative", title: "relative RMS, %", scale: { zero: true } },
      color: {
        field: "label", type: "nominal", scale: { domain: labels },
        legend: labels.length > 1 ? { title: null, columns: Math.max(1, Math.floor(room / (labelRoom(labels) + 30))) } : null,
      },
      tooltip: tips(["label", "output"], ["layer", LABELS.layer], ...ERROR_TIPS),
    },
  };
}

function kindsSpec(rows, kinds, unit, room) {
  const names = labelRoom(kinds);
  const columns = room > 900 ? 4 : room > 560 ? 2 : 1;
  const width = Math.floor((room - names - 20) / columns) - (columns > 1 ? 26 : 0);
  const bars = (field, title, place) => ({
    width: columns === 2 ? Math.floor((room - 2 * names - 60) / 2) : width,
    height: { step: 22 },
    mark: { type: "bar", fill: "var(--bar)", height: { band: 0.72 } },
    encoding: {
      y: { field: "kind", type: "ordinal", scale: { domain: kinds }, axis: place % columns === 0 || columns === 2 ? { title: null } : null },
      x: { field, type: "quantitative", title, axis: { tickCount: 4 } },
      tooltip: tips(["kind", LABELS.kind], SIZE_TIP, BITS_TIP, ...ERROR_TIPS, ["shareText", "share of squared error"]),
    },
  });
  const all = [
    bars("size", `size, ${unit}`, 0),
    bars("bits", "bits per weight", 1),
    bars("percent", "relative RMS, %", 2),
    bars("share", "share of the squared error, %", 3),
  ];
  return {
    data: { values: rows },
    description: "Size and error of each kind of tensor",
    spacing: 22,
    vconcat: Array.from({ length: all.length / columns }, (_, row) =>
      ({ spacing: 22, hconcat: all.slice(row * columns, (row + 1) * columns) })),
  };
}

function histogramSpec(rows, room) {
  return {
    data: { values: rows },
    width: room - 58,
    height: 200,
    description: "Runs of 32 weights by their SQNR",
    mark: { type: "bar", fill: "var(--bar)", width: { band: 0.86 } },
    encoding: {
      x: { field: "label", type: "ordinal", title: "SQNR of a run, dB", scale: { domain: rows.map((row) => row.label) }, axis: { labelAngle: (room - 58) / rows.length < 30 ? -90 : -40 } },
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
    legend: { title: "difference, dB", gradientLength: 160, gradientThickness: 12, tickCount: 5, format: "+.1f" },
  };
}

const kindRows = (kinds) =>
  ({ row: { field: "kind", type: "ordinal", sort: kinds, header: { title: null, labelOrient: "top", labelAnchor: "start" } } });

function expertsSpec(cells, layers, kinds, asDifferences, room) {
  const experts = unique(cells.map((cell) => cell.expert));
  const turned = layers.length < experts.length;
  const across = turned ? experts.length : layers.length;
  const step = Math.max(LEAST_STEP, Math.min(MOST_STEP, Math.floor((2 * (room - 60)) / across) / 2));
  const layer = { field: "layer", type: "ordinal", scale: { domain: layers, padding: 0 }, axis: turned ? { title: "layer" } : layerAxis(layers, step) };
  const expert = { field: "expert", type: "ordinal", title: "expert", scale: { padding: 0 }, axis: { labelAngle: 0 } };
  return {
    data: { values: cells },
    description: "SQNR of each expert, by layer",
    facet: kindRows(kinds),
    spacing: 6,
    spec: {
      width: { step },
      height: { step: turned ? 22 : 12 },
      mark: { type: "rect", stroke: "var(--panel)", strokeWidth: 0.5 },
      encoding: {
        ...(turned ? { x: expert, y: layer } : { x: layer, y: expert }),
        color: asDifferences ? differenceColor(cells) : sqnrColor(cells.map((cell) => cell.sqnr)),
        tooltip: tips(["name", LABELS.name], TYPE_TIP, ["expert", "expert"], ...ERROR_TIPS),
      },
    },
  };
}

// The same for experts by the hundred: from the worst of a layer to its best.
function expertRangesSpec(cells, layers, kinds, room) {
  const step = Math.max(LEAST_STEP, Math.min(MOST_STEP, Math.floor((room - 60) / layers.length)));
  return {
    data: { values: cells.filter((cell) => cell.sqnr !== null) },
    description: "From the worst expert of a layer to its best",
    facet: kindRows(kinds),
    spec: {
      width: { step },
      height: 110,
      encoding: {
        x: { field: "layer", type: "ordinal", scale: { domain: layers }, axis: layerAxis(layers, step) },
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
