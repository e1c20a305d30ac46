// The loss-scale slider and the format menu over one histogram.
"use strict";

// data.groups: [{label, histogram}]; onChange(settled) is told when the format or the loss scale has moved.
lab.explorer = (data, onChange) => {
  const find = (name) => document.querySelector(`#${name}`);
  const [slider, menu, output, svg, strip] = ["scale", "format", "scale-text", "chart", "strip"].map(find);
  const histograms = data.groups.map((group) => lab.histogram(group.histogram));
  const domain = lab.domainOf(histograms);
  const state = { group: data.chosen, format: data.formats[0], k: data.k };
  const power = (k) => `2^${k}`;
  const [least, most] = [Math.min(0, data.k), Math.max(24, data.k)];
  slider.min = least;
  slider.max = most;
  slider.value = data.k;
  menu.append(...data.formats.map((format) => new Option(format.name, format.name)));
  // the cells of the strip stand below the places of the thumb
  strip.style.marginInline = `calc(var(--thumb) / 2 - (100% - var(--thumb)) / ${2 * (most - least)})`;
  strip.append(...Array.from({ length: most - least + 1 }, () => document.createElement("i")));

  // Of the slider's loss scales; of several, that closest to 1.
  const fewestLost = (h, format) => {
    let best = null;
    for (let k = least; k <= most; k++) {
      const { flushed, overflowed } = lab.conversion(h, format, k);
      const lost = flushed + overflowed;
      if (!best || lost < best.lost || (lost === best.lost && Math.abs(k) < Math.abs(best.k))) best = { k, lost };
    }
    return best;
  };
  const windowText = (h, format) => {
    if (!h.nonzero) return "There is nothing but zeros, infinities and NaN here: no loss scale matters.";
    const { least: low, most: high } = lab.safeWindow(h, format);
    const from = low === null ? "At no power of two is nothing flushed" : `Nothing is flushed from S = ${power(low)} on`;
    const to = high === null ? "at none does nothing overflow" : `nothing overflows up to S = ${power(high)}`;
    const safe = low !== null && high !== null && low <= high;
    if (safe) return `${from}; ${to}. Safe window: ${low === high ? "" : `${power(low)} to `}${power(high)}.`;
    const best = fewestLost(h, format);
    return `${from}; ${to}. No loss scale saves everything; at S = ${power(best.k)} the fewest are lost, ${lab.whole(best.lost)}.`;
  };

  const spoken = (h, c) =>
    `${data.groups[state.group].label} in ${state.format.name} at S = ${power(state.k)}: ` +
    ["flushed", "subnormal", "overflowed", "kept"].map((f) => `${lab.percent(lab.share(c[f], c.nonzero))} % ${f}`).join(", ") +
    ` of ${lab.whole(c.nonzero)} nonzero elements.`;

  let speaking = 0;
  const draw = () => {
    const h = histograms[state.group];
    const c = lab.conversion(h, state.format, state.k);
    output.textContent = `S = ${power(state.k)}`;
    slider.setAttribute("aria-valuetext", `S = ${power(state.k)}`);
    find("group-name").textContent = data.groups[state.group].label;
    find("group-size").textContent = `${lab.whole(h.count)} elements, ${lab.whole(h.nonzero)} of them finite and not zero`;
    for (const fate of lab.FATES) {
      find(`${fate}-share`).textContent = `${lab.percent(lab.share(c[fate], c.nonzero))} %`;
      find(`${fate}-count`).textContent = lab.whole(c[fate]);
    }
    const ofAll = (part) => `${lab.percent(lab.share(part, c.count))} %`;
    find("flushed-of-all").textContent = ofAll(c.flushed);
    find("zero-before").textContent = ofAll(c.zero);
    find("zero-after").textContent = ofAll(c.zero + c.flushed);
    find("nonfinite").textContent = lab.whole(c.nonfinite);
    find("window").textContent = windowText(h, state.format);
    [...strip.children].forEach((cell, i) => {
      const at = lab.conversion(h, state.format, least + i);
      cell.className = at.overflowed ? (at.flushed ? "both" : "overflowed") : at.flushed ? "flushed" : "safe";
      cell.classList.toggle("here", least + i === state.k);
    });
    lab.drawChart(svg, h, state.format, state.k, domain);
    svg.setAttribute("aria-label", `Histogram of exponents. ${spoken(h, c)}`);
    clearTimeout(speaking); // while the slider moves, nothing is read out
    speaking = setTimeout(() => { find("spoken").textContent = spoken(h, c); }, 500);
  };

  const moved = (settled) => {
    state.k = Number(slider.value);
    state.format = data.formats[menu.selectedIndex];
    draw();
    onChange(settled);
  };
  slider.addEventListener("input", () => moved(false));
  slider.addEventListener("change", () => moved(true));
  menu.addEventListener("change", () => moved(true));
  new ResizeObserver(() => lab.drawChart(svg, histograms[state.group], state.format, state.k, domain)).observe(svg.parentElement);
  const choose = (group) => {
    state.group = group;
    draw();
  };
  // What was measured: in the formats that come first, at the loss scale that the slider starts with.
  const precision = (group) => {
    const measured = state.k === data.k ? data.groups[group].precision?.[data.formats.indexOf(state.format)] : null;
    if (!measured) return null;
    const [sqnr, changed] = measured;
    return { sqnr: sqnr === "inf" ? Infinity : sqnr, changed };
  };
  draw();
  return { state, histograms, domain, choose, precision };
};
