// How numbers, sizes and lists are written. Names are only ever shown as text.
"use strict";
const byId = (id) => document.getElementById(id);
const NO_LAYER = "–";

const threeDigits = (number) =>
  Math.abs(number) >= 1e-3 && Math.abs(number) < 1e3 ? number.toPrecision(3) : number.toExponential(2);
const percentText = (share) =>
  share === null ? "not finite" : share === 0 ? "0" : `${threeDigits(100 * share)} %`;
const numberText = (number) =>
  number === null ? "not finite" : number === 0 ? "0" : threeDigits(number);
const countText = (number) => number.toLocaleString("en");

function sizeText(bytes) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
    if (bytes >= size) return `${(bytes / size).toLocaleString("en", { maximumFractionDigits: 1 })} ${unit}`;
  return `${bytes} bytes`;
}

function grouped(items, keyOf) {
  const groups = new Map();
  for (const item of items) {
    const key = keyOf(item);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(item);
  }
  return groups;
}

const unique = (items) => [...new Set(items)];

// The largest unit in which the largest of some sizes is at least 1, for axes.
function unitFor(sizes) {
  const most = Math.max(...sizes, 0);
  return [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]].find(([, size]) => most >= size) ?? ["bytes", 1];
}
