// The reports' numbers by their names in reports.
const { outputs, columns: COLUMNS, gain: GAIN_TITLE } = JSON.parse(document.getElementById("data").textContent);
const LABELS = Object.fromEntries(COLUMNS.map(({ key, label }) => [key, label]));

// An error of exactly 0 has no SQNR, and neither has one that is not finite.
const stateOf = (metrics) =>
  metrics.relative_rms === null ? "not finite" : metrics.relative_rms === 0 ? "no error" : "error";
const sqnrText = (metrics) =>
  stateOf(metrics) === "error" && metrics.sqnr_db !== null
    ? `${metrics.sqnr_db.toFixed(2)} dB`
    : stateOf(metrics);
// What a search gains, by importance where that is what was minimized.
const gainOf = ({ search }) => (search ? search.weighted_gained_db ?? search.gained_db : null);

// Errors of several tensors together; null as soon as one is not finite.
function merged(tensors) {
  const sum = (key) => tensors.reduce((total, tensor) => total + tensor[key], 0);
  const finite = tensors.every((tensor) => tensor.relative_rms !== null);
  const errors = sum("error_squares"), sources = sum("source_squares");
  const relative = !finite ? null : errors === 0 ? 0 : Math.sqrt(errors / sources);
  return {
    relative_rms: relative,
    sqnr_db: tensors.length === 1 ? tensors[0].sqnr_db : relative ? -20 * Math.log10(relative) : null,
    largest_error: finite ? Math.max(...tensors.map((tensor) => tensor.largest_error)) : null,
    bits_per_weight: (8 * sum("bytes")) / sum("weights"),
  };
}

const layersOf = (tensors) =>
  unique(tensors.map((tensor) => tensor.layer)).filter((layer) => layer !== null).sort((a, b) => a - b);

// One cell for each layer and kind that there is; usually it has a single tensor.
function cellsOf(output) {
  const groups = grouped(output.tensors, (tensor) => JSON.stringify([tensor.kind, tensor.layer]));
  return [...groups].map(([id, tensors]) => {
    const { kind, layer } = tensors[0];
    const whole = merged(tensors);
    const cell = {
      id,
      kind,
      layer: layer === null ? NO_LAYER : String(layer),
      sqnr: whole.sqnr_db,
      state: stateOf(whole),
      name: tensors[0].name + (tensors.length > 1 ? ` and ${tensors.length - 1} more` : ""),
      find: tensors[0].name,
      type: unique(tensors.map((tensor) => tensor.type)).join(", "),
      bits: whole.bits_per_weight,
      sqnrText: sqnrText(whole),
      relativeText: percentText(whole.relative_rms),
      largestText: numberText(whole.largest_error),
      bitsText: String(Number(whole.bits_per_weight.toFixed(3))),
    };
    cell.text =
      `${cell.name}: ${cell.type}, ${LABELS.sqnr_db} ${cell.sqnrText}, ${LABELS.relative_rms} ${cell.relativeText}, ` +
      `${LABELS.largest_error} ${cell.largestText}, ${cell.bitsText} ${LABELS.bits_per_weight}`;
    return cell;
  });
}

const bitsOf = (name, tensors) => Math.max(...tensors.filter((tensor) => tensor.type === name).map((tensor) => tensor.bits_per_weight));

// All types of all outputs, those with the fewest bits first: a type has one colour on the page.
function typesOf(tensors) {
  const found = unique(tensors.map((tensor) => tensor.type));
  const bits = new Map(found.map((name) => [name, bitsOf(name, tensors)]));
  return found.sort((a, b) => bits.get(a) - bits.get(b) || a.localeCompare(b));
}
