// Places for the labels of points where they cover neither each other nor a point.
const LABEL_FONT = "12px system-ui, sans-serif";
const textWidth = (() => {
  const context = document.createElement("canvas").getContext("2d");
  return (text, font = LABEL_FONT) => {
    context.font = font;
    return context.measureText(text).width;
  };
})();

const LABEL_HEIGHT = 15;
const POINT = 8;
const overlap = (a, b) =>
  Math.max(0, Math.min(a.right, b.right) - Math.max(a.left, b.left)) *
  Math.max(0, Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top));
const around = (x, y, width, height) =>
  ({ left: x - width / 2, right: x + width / 2, top: y - height / 2, bottom: y + height / 2 });

// Centres around a point for a label of a width, the nearest first.
function* centres(point, width) {
  for (let distance = 17; distance < 130; distance += 9)
    for (const [right, down] of [[0, -1], [1, 0], [-1, 0], [0, 1], [1, -1], [-1, -1], [1, 1], [-1, 1]]) {
      const x = right && right * (distance - 4 + width / 2);
      yield { x: point.x + x, y: point.y + down * distance, far: distance > 20 };
    }
}

// Give each point {x, y, label} the centre of its label, in pixels of an area [width, height].
function placeLabels(points, width, height) {
  const boxes = points.map((point) => around(point.x, point.y, 2 * POINT, 2 * POINT));
  return points.map((point) => {
    const size = Math.min(textWidth(point.label) + 6, width);
    let best = null, least = Infinity;
    for (const centre of centres(point, size)) {
      const box = around(centre.x, centre.y, size, LABEL_HEIGHT);
      const outside = box.left < 0 || box.right > width || box.top < 0 || box.bottom > height;
      const covered = boxes.reduce((sum, other) => sum + overlap(box, other), 0) + (outside ? 1e6 : 0);
      if (covered < least) [best, least] = [{ ...centre, box }, covered];
      if (covered === 0) break;
    }
    boxes.push(best.box);
    return best;
  });
}
