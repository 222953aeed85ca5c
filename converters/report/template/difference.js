// Two outputs tensor by tensor: what is better in the second one, and what it takes.
const DIFFERENCE = { from: null, to: null, table: null };

// Pairs of the same tensor in two outputs: by name, or else by kind and layer where those are one.
function pairsOf(from, to) {
  const named = new Map(to.tensors.map((tensor) => [tensor.name, tensor]));
  const placeOf = (tensor) => JSON.stringify([tensor.kind, tensor.layer]);
  const there = grouped(to.tensors, placeOf), here = grouped(from.tensors, placeOf);
  const only = (tensor) =>
    here.get(placeOf(tensor)).length === 1 && there.get(placeOf(tensor))?.length === 1 ? there.get(placeOf(tensor))[0] : null;
  return from.tensors.flatMap((tensor) => {
    const other = named.get(tensor.name) ?? only(tensor);
    return other ? [pairOf(tensor, other)] : [];
  });
}

// More is better: what is not finite is worst, and no error is best.
function pairOf(from, to) {
  const [before, after] = [sqnrOrder(from), sqnrOrder(to)];
  const difference = before === after ? 0 : after - before;
  return {
    name: from.name,
    kind: from.kind,
    type: from.type === to.type ? from.type : `${from.type} → ${to.type}`,
    from, to, difference,
    bytes: to.bytes - from.bytes,
    differenceText: differenceText(difference),
    bytesText: signed(to.bytes - from.bytes, sizeText),
    fromText: sqnrText(from),
    toText: sqnrText(to),
  };
}

const signed = (number, write) => (number === 0 ? "0" : `${number > 0 ? "+" : "−"}${write(Math.abs(number))}`);
const differenceText = (decibels) =>
  Number.isFinite(decibels) ? signed(Number(decibels.toFixed(2)), (size) => `${size.toFixed(2)} dB`)
    : decibels > 0 ? "better" : "worse";

const DIFFERENCE_COLUMNS = [
  column("Tensor", (pair) => pair.name),
  column("Type", (pair) => pair.type),
  column("SQNR before", (pair) => pair.fromText, (pair) => sqnrOrder(pair.from)),
  column("after", (pair) => pair.toText, (pair) => sqnrOrder(pair.to)),
  column("Difference", (pair) => pair.differenceText, (pair) => pair.difference),
  column("Size before", (pair) => sizeText(pair.from.bytes), (pair) => pair.from.bytes),
  column("after", (pair) => sizeText(pair.to.bytes), (pair) => pair.to.bytes),
  column("Difference", (pair) => pair.bytesText, (pair) => pair.bytes),
];
const DIFFERENCE_FIELDS = [
  ["tensor", (pair) => pair.name],
  ["type_from", (pair) => pair.from.type],
  ["type_to", (pair) => pair.to.type],
  ["sqnr_db_from", (pair) => pair.from.sqnr_db],
  ["sqnr_db_to", (pair) => pair.to.sqnr_db],
  ["relative_rms_from", (pair) => pair.from.relative_rms],
  ["relative_rms_to", (pair) => pair.to.relative_rms],
  ["bytes_from", (pair) => pair.from.bytes],
  ["bytes_to", (pair) => pair.to.bytes],
];

function differenceSummary(from, to, pairs) {
  const whole = pairOf({ ...from.total, bytes: from.bytes }, { ...to.total, bytes: to.bytes });
  const count = (test) => countText(pairs.filter(test).length);
  const missing = from.tensors.length + to.tensors.length - 2 * pairs.length;
  return `${to.label} against ${from.label}: SQNR ${whole.fromText} became ${whole.toText}` +
    `${Number.isFinite(whole.difference) ? ` (${whole.differenceText})` : ""}, size ${whole.bytesText}. ` +
    `${count((pair) => pair.difference > 0)} tensors are better, ${count((pair) => pair.difference < 0)} worse, ` +
    `${count((pair) => pair.difference === 0)} as good` +
    (missing > 0 ? `; ${countText(missing)} are in one of them only.` : ".");
}

async function drawDifference() {
  DIFFERENCE.from = outputs[byId("from").selectedIndex];
  DIFFERENCE.to = outputs[byId("to").selectedIndex];
  const pairs = pairsOf(DIFFERENCE.from, DIFFERENCE.to);
  byId("difference-text").textContent = differenceSummary(DIFFERENCE.from, DIFFERENCE.to, pairs);
  // First the tensors that differ most, until a column is sorted.
  const size = (pair) => Math.abs(pair.difference);
  DIFFERENCE.table.show([...pairs].sort((a, b) => (size(a) === size(b) ? 0 : size(b) - size(a))));
  const shown = pairs.filter((pair) => Number.isFinite(pair.difference) && pair.difference !== 0);
  shown.sort((a, b) => b.difference - a.difference);
  if (shown.length) await draw("differences-chart", (room) => differencesSpec(shown, room));
  else clear("differences-chart", "No tensor has an error in both, and a different one.");
}

function setUpDifference() {
  const [from, to] = [byId("from"), byId("to")];
  for (const select of [from, to]) {
    select.append(...labels.map((label) => element("option", label)));
    select.addEventListener("change", after(drawDifference));
  }
  const lossy = outputs.filter((output) => output.total.relative_rms);
  const [one, other] = lossy.length > 1 ? lossy : outputs;
  from.selectedIndex = outputs.indexOf(one);
  to.selectedIndex = outputs.indexOf(other);
  byId("swap").addEventListener("click", after(() => {
    [from.selectedIndex, to.selectedIndex] = [to.selectedIndex, from.selectedIndex];
    return drawDifference();
  }));
  DIFFERENCE.table = new SortedTable(
    byId("differences-table"), byId("difference-filter"), byId("difference-shown"), DIFFERENCE_COLUMNS);
  byId("difference-csv").addEventListener("click", () =>
    download(`${DIFFERENCE.from.file} to ${DIFFERENCE.to.file}.csv`, DIFFERENCE_FIELDS, DIFFERENCE.table.found()));
}
