// What is on this page, and which parts it needs.
"use strict";

{
  const read = (id) => {
    const element = document.querySelector(`#${id}`);
    return element && JSON.parse(element.textContent);
  };
  const data = read("data");
  lab.data = data;
  if (data.groups?.length) {
    let table = null;
    const explorer = lab.explorer(data, (settled) => table?.moved(settled));
    const group = document.querySelector("#group");
    if (group) group.addEventListener("change", () => explorer.choose(Number(group.value)));
    if (data.tensors) {
      table = lab.tensorTable(data.tensors, explorer);
      table.update();
      table.arrange();
    }
    lab.page = explorer;
  }
  lab.numberExplorer(data.formats, "fp16");
  document.documentElement.classList.add("ready");
}
