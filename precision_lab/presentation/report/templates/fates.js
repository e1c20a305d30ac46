// What becomes of the elements of a histogram in a format at a loss scale: exact counts, as ExponentHistogram has them.
"use strict";

lab.FATES = ["flushed", "subnormal", "kept", "overflowed"];

// [zero, nonfinite, smallest, largest, first exponent, rows of cells], as histogram_data in data.py writes it
lab.histogram = ([zero, nonfinite, min, max, first, rows]) => {
  const sums = rows.map((row) => row.reduce((a, b) => a + b, 0));
  const below = [0];
  for (const sum of sums) below.push(below.at(-1) + sum);
  const nonzero = below.at(-1);
  return { zero, nonfinite, min, max, first, rows, sums, below, nonzero, count: nonzero + zero + nonfinite };
};

// A place is [exponent, cells]: all binades below the exponent, and so many cells of that one. 2^k moves it k down.
lab.inRow = (h, place, k, row) => {
  const cut = place[0] - k - h.first;
  if (row !== cut) return row < cut ? h.sums[row] : 0;
  let count = 0;
  for (let i = 0; i < Math.min(place[1], h.rows[row].length); i++) count += h.rows[row][i];
  return count;
};

lab.countBelow = (h, place, k) => {
  const cut = place[0] - k - h.first;
  if (cut < 0) return 0;
  return cut >= h.rows.length ? h.nonzero : h.below[cut] + lab.inRow(h, place, k, cut);
};

lab.split = (total, countBelow, { flush, normal, overflow }) => {
  const flushed = countBelow(flush);
  const small = normal ? countBelow(normal) : flushed;
  const stays = countBelow(overflow);
  return { flushed, subnormal: small - flushed, kept: stays - small, overflowed: total - stays };
};

lab.conversion = (h, format, k) => ({
  count: h.count,
  zero: h.zero,
  nonfinite: h.nonfinite,
  nonzero: h.nonzero,
  ...lab.split(h.nonzero, (place) => lab.countBelow(h, place, k), format.places),
});

lab.rowFates = (h, format, k, row) => lab.split(h.sums[row], (place) => lab.inRow(h, place, k, row), format.places);

// The loss scales 2^k, k in -126..127: the smallest at which nothing is flushed, the largest at which nothing overflows.
lab.safeWindow = (h, { places: { flush, overflow } }) => {
  let least = null;
  let most = null;
  for (let k = 127; k >= -126 && lab.countBelow(h, flush, k) === 0; k--) least = k;
  for (let k = -126; k <= 127 && lab.countBelow(h, overflow, k) === h.nonzero; k++) most = k;
  return { least, most };
};

lab.share = (part, whole) => (whole ? part / whole : 0);

// Two decimals; only nothing looks like 0, only all of it like 100. A tie goes to the even digit, as in Python.
lab.percent = (share) => {
  if (share === 0 || share === 1) return share ? "100" : "0";
  if (share < 0.0001) return "<0.01";
  if (share > 0.9999) return ">99.99";
  const percent = 100 * share;
  const tie = Number.isInteger(percent * 8) && !Number.isInteger(percent * 4);
  const down = Math.floor(percent * 100);
  return (tie && down % 2 === 0 ? down / 100 : percent).toFixed(2);
};

lab.whole = (count) => count.toLocaleString("en-US");

lab.magnitude = (value) => (value === null ? "–" : value === 0 ? "0" : Number(value.toPrecision(3)).toString());
