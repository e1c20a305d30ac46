// Histograms as SVG: the large one with its thresholds, and the small ones in the rows of a table.
"use strict";

lab.svg = (name, attributes, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};

// Exponents from a little below the smallest to a little above the largest, the same for all histograms of a page.
lab.domainOf = (histograms) => {
  const used = histograms.filter((h) => h.rows.length);
  let low = Math.min(...used.map((h) => h.first)) - 1;
  let high = Math.max(...used.map((h) => h.first + h.rows.length)) + 1;
  if (!used.length) [low, high] = [-12, 12];
  return high - low < 24 ? [low - Math.ceil((24 - high + low) / 2), high + Math.ceil((24 - high + low) / 2)] : [low, high];
};

// One path for each fate: the bars of all binades, what is lost below, what is kept above it.
lab.barPaths = (h, format, k, x, width, y, height, top) => {
  const paths = Object.fromEntries(lab.FATES.map((fate) => [fate, ""]));
  h.sums.forEach((sum, row) => {
    if (!sum) return;
    const fates = lab.rowFates(h, format, k, row);
    // a bar that is there can be seen
    const total = Math.max((height * sum) / top, 1);
    let at = y;
    for (const fate of lab.FATES) {
      if (!fates[fate]) continue;
      const part = (total * fates[fate]) / sum;
      paths[fate] += `M${x(h.first + row).toFixed(1)} ${at.toFixed(1)}h${width.toFixed(1)}v${(-part).toFixed(1)}h${(-width).toFixed(1)}z`;
      at -= part;
    }
  });
  return paths;
};

lab.drawChart = (svg, h, format, k, [low, high]) => {
  const width = Math.max(svg.parentElement.clientWidth, 240);
  const height = width < 560 ? 260 : 320;
  const bottom = height - 46;
  const top = 34;
  const side = 52; // room for zeros on the left, and for infinities and NaN on the right where there are any
  const left = side + 12;
  const right = width - (h.nonfinite ? side + 12 : 4);
  const bin = (right - left) / (high - low);
  const x = (exponent) => left + (exponent - low) * bin;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  svg.replaceChildren();
  const add = (name, attributes, ...children) => svg.append(lab.svg(name, attributes, ...children));

  const inside = (exponent) => Math.min(Math.max(exponent, low), high);
  const [flush, normal, beyond] = [format.limits.flush, format.limits.normal, format.limits.max].map(
    (limit) => Math.log2(limit) - k,
  );
  const bands = [
    ["flushed", low, flush, "flushed to zero"],
    ["subnormal", flush, normal, "subnormal"],
    ["kept", normal, beyond, `normal in ${format.name}`],
    ["overflowed", beyond, high, "overflows"],
  ];
  for (const [fate, from, to, text] of bands) {
    const [start, end] = [x(inside(from)), x(inside(to))];
    if (end - start < 1) continue;
    add("rect", { class: `band ${fate}`, x: start, y: top, width: end - start, height: bottom - top });
    if (start > left + 1) add("line", { class: "limit", x1: start, x2: start, y1: top - 6, y2: bottom });
    if (end - start > text.length * 6.2) {
      add("text", { class: "band-label", x: (start + end) / 2, y: top - 10, "text-anchor": "middle" }, text);
    }
  }

  // a bin of zeros that towers above all others is cut, and says so
  const tallest = Math.max(...h.sums, 1);
  const gap = Math.min(bin * 0.12, 2);
  const paths = lab.barPaths(h, format, k, (e) => x(e) + gap / 2, bin - gap, bottom, bottom - top - 18, tallest);
  for (const fate of lab.FATES) add("path", { class: `bar ${fate}`, d: paths[fate] });
  const aside = (count, at, text) => {
    const cut = count > tallest;
    const size = count ? Math.max(((bottom - top - 18) * Math.min(count / tallest, 1.04)), 1) : 0;
    add("rect", { class: "bar own", x: at, y: bottom - size, width: side - 14, height: size });
    if (cut) add("path", { class: "cut", d: `M${at - 3} ${top + 44}l${side - 8} -9v6l${-(side - 8)} 9z` });
    add("text", { class: "aside", x: at + (side - 14) / 2, y: bottom + 15, "text-anchor": "middle" }, text);
    add(
      "text",
      { class: "aside-share", x: at + (side - 14) / 2, y: bottom - size - 5, "text-anchor": "middle" },
      `${lab.percent(lab.share(count, h.count))} %`,
    );
  };
  aside(h.zero, 7, "zero"); // the bars are narrower than their words
  if (h.nonfinite) aside(h.nonfinite, width - side + 9, "inf, NaN");

  add("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom });
  let step = 1;
  while ((high - low) / step > (right - left) / 44) step *= 2;
  for (let e = Math.ceil(low / step) * step; e <= high; e += step) {
    add("line", { class: "axis", x1: x(e), x2: x(e), y1: bottom, y2: bottom + 4 });
    if (x(e) > width - 12) continue; // its label would be cut off
    const power = lab.svg("tspan", { class: "power", dy: "-0.4em" }, String(e).replace("-", "−"));
    add("text", { class: "tick", x: x(e), y: bottom + 18, "text-anchor": "middle" }, "2", power);
  }
  add("text", { class: "axis-title", x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, "magnitude |x|, before scaling");
};

// A row's histogram: its own height, the page's exponents.
lab.SMALL = [132, 26];
lab.smallChart = () =>
  lab.svg(
    "svg",
    { class: "small-chart", viewBox: `0 0 ${lab.SMALL.join(" ")}`, "aria-hidden": "true", focusable: "false" },
    ...lab.FATES.map((fate) => lab.svg("path", { class: `bar ${fate}`, d: "" })),
  );
lab.drawSmall = (svg, h, format, k, [low, high]) => {
  const [width, height] = lab.SMALL;
  const bin = width / (high - low);
  const paths = lab.barPaths(h, format, k, (e) => (e - low) * bin, bin * 0.9, height, height, Math.max(...h.sums, 1));
  lab.FATES.forEach((fate, i) => svg.children[i].setAttribute("d", paths[fate]));
};
