// The table of tensors: search, sort, choose. Only so many rows are made at a time: thousands stay quick.
"use strict";

lab.tensorTable = (tensors, explorer) => {
  const PAGE = 100;
  const find = (name) => document.querySelector(`#${name}`);
  const [table, search, found, more] = ["tensors", "search", "found", "more"].map(find);
  const body = table.tBodies[0];
  const headings = [...table.querySelectorAll("th[data-key]")];
  // after the tensors come their totals
  const totals = explorer.histograms.slice(tensors.length).map((h, i) => ({ h, group: tensors.length + i, suffix: i ? `-${i}` : "" }));
  const folded = tensors.map((tensor) => tensor.label.toLowerCase());
  const state = { key: "lost", ascending: false, limit: PAGE };
  const rows = [];
  let figures = [];
  let order = [];

  const figuresOf = (h, group) => {
    const precision = explorer.precision(group);
    const c = lab.conversion(h, explorer.state.format, explorer.state.k);
    const share = (part) => lab.share(part, c.nonzero);
    return {
      count: c.count,
      lost: share(c.flushed + c.overflowed),
      flushed: share(c.flushed),
      subnormal: share(c.subnormal),
      overflowed: share(c.overflowed),
      sqnr: precision ? precision.sqnr : null,
      changed: precision ? precision.changed : null,
      zero: lab.share(c.zero, c.count),
      nonfinite: c.nonfinite,
      min: h.min ?? Infinity,
      max: h.max ?? -Infinity,
    };
  };
  const SHARES = ["lost", "flushed", "subnormal", "overflowed", "changed", "zero"];
  const cellText = (key, f, h) => {
    if (f[key] === null) return "–";
    if (key === "sqnr") return f.sqnr === Infinity ? "inf" : f.sqnr.toFixed(1);
    if (SHARES.includes(key)) return lab.percent(f[key]);
    return key === "min" || key === "max" ? lab.magnitude(h[key]) : lab.whole(f[key]);
  };
  const KEYS = ["count", "lost", "flushed", "subnormal", "overflowed", "sqnr", "changed", "zero", "nonfinite", "min", "max"];

  const UNKNOWN = { sqnr: Infinity, changed: -1 }; // not known: last, when the worst are first

  const makeRow = (index) => {
    const tensor = tensors[index];
    const row = document.createElement("tr");
    const heading = document.createElement("th");
    heading.scope = "row";
    const button = document.createElement("button");
    button.type = "button";
    button.className = "name";
    button.textContent = tensor.label;
    button.title = tensor.label;
    heading.append(button);
    const picture = document.createElement("td");
    const small = lab.smallChart();
    picture.append(small);
    const cells = Object.fromEntries(KEYS.map((key) => [key, Object.assign(document.createElement("td"), { className: "number" })]));
    const kind = document.createElement("td");
    kind.textContent = `${tensor.dtype} ${tensor.shape}`;
    row.append(heading, picture, ...KEYS.map((key) => cells[key]), kind);
    row.addEventListener("click", () => choose(index));
    return { row, button, small, cells, drawn: "" };
  };

  const fill = (index) => {
    const { cells, small } = rows[index];
    const drawn = `${explorer.state.format.name} ${explorer.state.k}`;
    if (rows[index].drawn === drawn) return;
    rows[index].drawn = drawn;
    for (const key of KEYS) cells[key].textContent = cellText(key, figures[index], explorer.histograms[index]);
    lab.drawSmall(small, explorer.histograms[index], explorer.state.format, explorer.state.k, explorer.domain);
  };

  const mark = () => {
    rows.forEach((made, index) => {
      const chosen = index === explorer.state.group;
      made.row.classList.toggle("chosen", chosen);
      made.button.setAttribute("aria-pressed", String(chosen));
    });
    for (const { group, suffix } of totals) {
      find(`all-tensors${suffix}`).setAttribute("aria-pressed", String(explorer.state.group === group));
    }
  };
  const choose = (group) => {
    explorer.choose(group);
    mark();
  };

  const update = () => {
    figures = explorer.histograms.slice(0, tensors.length).map(figuresOf);
    for (const { h, group, suffix } of totals) {
      const all = figuresOf(h, group);
      for (const key of KEYS) find(`total-${key}${suffix}`).textContent = cellText(key, all, h);
    }
    order.slice(0, state.limit).forEach(fill);
  };

  const compare = (a, b) => {
    const value = (i) => (state.key === "label" ? folded[i] : state.key === "dtype" ? tensors[i].dtype : figures[i][state.key] ?? UNKNOWN[state.key]);
    const [left, right] = [value(a), value(b)];
    return left < right ? -1 : left > right ? 1 : 0;
  };
  const arrange = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const sign = state.ascending ? 1 : -1;
    order = folded.flatMap((name, i) => (words.every((word) => name.includes(word)) ? [i] : []));
    order.sort((a, b) => sign * compare(a, b) || figures[b].lost - figures[a].lost || a - b);
    const shown = order.slice(0, state.limit);
    for (const index of shown) {
      rows[index] ??= makeRow(index);
      fill(index);
    }
    body.replaceChildren(...shown.map((index) => rows[index].row));
    for (const heading of headings) {
      if (heading.dataset.key === state.key) heading.setAttribute("aria-sort", state.ascending ? "ascending" : "descending");
      else heading.removeAttribute("aria-sort");
    }
    const rest = order.length - shown.length;
    more.hidden = rest === 0;
    more.textContent = `Show ${lab.whole(Math.min(rest, state.limit))} more of ${lab.whole(rest)}`;
    found.textContent = `${lab.whole(order.length)} of ${lab.whole(tensors.length)} tensors`;
    mark();
  };

  for (const heading of headings) {
    heading.querySelector("button").addEventListener("click", () => {
      const { key } = heading.dataset;
      state.ascending = state.key === key ? !state.ascending : key === "label" || key === "dtype" || key === "min" || key === "sqnr";
      state.key = key;
      state.limit = PAGE;
      arrange();
    });
  }
  search.addEventListener("input", () => { state.limit = PAGE; arrange(); });
  more.addEventListener("click", () => { state.limit *= 2; arrange(); });
  for (const { group, suffix } of totals) find(`all-tensors${suffix}`).addEventListener("click", () => choose(group));

  let waiting = 0;
  const moved = (settled) => {
    cancelAnimationFrame(waiting);
    if (!settled) {
      waiting = requestAnimationFrame(update); // rows stay where they are while the slider moves
      return;
    }
    update();
    arrange();
  };
  return { update, arrange, moved };
};
