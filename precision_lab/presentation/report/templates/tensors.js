// The table of tensors: search, sort, choose. Only so many rows are made at a time: thousands stay quick.
"use strict";

lab.tensorTable = (tensors, explorer) => {
  const PAGE = 100;
  const find = (name) => document.querySelector(`#${name}`);
  const [table, search, found, more] = ["tensors", "search", "found", "more"].map(find);
  const body = table.tBodies[0];
  const headings = [...table.querySelectorAll("th[data-key]")];
  const total = explorer.histograms.at(-1); // the last group is all of them together
  const folded = tensors.map((tensor) => tensor.label.toLowerCase());
  const state = { key: "lost", ascending: false, limit: PAGE };
  const rows = [];
  let figures = [];
  let order = [];

  const figuresOf = (h) => {
    const c = lab.conversion(h, explorer.state.format, explorer.state.k);
    const share = (part) => lab.share(part, c.nonzero);
    return {
      count: c.count,
      lost: share(c.flushed + c.overflowed),
      flushed: share(c.flushed),
      subnormal: share(c.subnormal),
      overflowed: share(c.overflowed),
      zero: lab.share(c.zero, c.count),
      nonfinite: c.nonfinite,
      min: h.min ?? Infinity,
      max: h.max ?? -Infinity,
    };
  };
  const SHARES = ["lost", "flushed", "subnormal", "overflowed", "zero"];
  const cellText = (key, f, h) => {
    if (SHARES.includes(key)) return lab.percent(f[key]);
    return key === "min" || key === "max" ? lab.magnitude(h[key]) : lab.whole(f[key]);
  };
  const KEYS = ["count", ...SHARES, "nonfinite", "min", "max"];

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
    find("all-tensors").setAttribute("aria-pressed", String(explorer.state.group === tensors.length));
  };
  const choose = (group) => {
    explorer.choose(group);
    mark();
  };

  const update = () => {
    figures = explorer.histograms.slice(0, tensors.length).map(figuresOf);
    const all = figuresOf(total);
    for (const key of KEYS) find(`total-${key}`).textContent = cellText(key, all, total);
    order.slice(0, state.limit).forEach(fill);
  };

  const compare = (a, b) => {
    const [left, right] = state.key === "label" ? [folded[a], folded[b]] : state.key === "dtype" ? [tensors[a].dtype, tensors[b].dtype] : [figures[a][state.key], figures[b][state.key]];
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
      state.ascending = state.key === key ? !state.ascending : key === "label" || key === "dtype" || key === "min";
      state.key = key;
      state.limit = PAGE;
      arrange();
    });
  }
  search.addEventListener("input", () => { state.limit = PAGE; arrange(); });
  more.addEventListener("click", () => { state.limit *= 2; arrange(); });
  find("all-tensors").addEventListener("click", () => choose(tensors.length));

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
