"use strict";
{
  const table = document.getElementById("table"), picker = document.getElementById("set");
  const every = document.getElementById("all");
  if (table) {
    const buttons = [...table.querySelectorAll("thead button")];
    const bodies = [...table.tBodies];
    const open = (body, shown) => {
      for (const row of body.querySelectorAll("tr.run")) row.hidden = !shown;
      const more = body.querySelector(".more");
      more.textContent = shown ? "−" : "+";
      more.setAttribute("aria-expanded", shown);
    };
    const sort = (key, descending) => {
      const place = buttons.findIndex((button) => button.dataset.sort === key);
      buttons.forEach((button, i) => {
        const header = button.parentElement;
        if (i === place) header.setAttribute("aria-sort", descending ? "descending" : "ascending");
        else header.removeAttribute("aria-sort");
      });
      const value = (body) => body.rows[0].cells[place].dataset.v;
      const ordered = place < 0 ? bodies : [...bodies].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);  // unknown: last
        const compared = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return descending ? -compared : compared;
      });
      table.append(...ordered);
    };
    for (const button of buttons) button.addEventListener("click", () => {
      const [key, order] = (state.get("sort") || "").split(":");
      const descending = key === button.dataset.sort && order !== "desc";
      remember("sort", `${button.dataset.sort}:${descending ? "desc" : "asc"}`);
      sort(button.dataset.sort, descending);
    });
    for (const body of bodies) {
      const more = body.querySelector(".more");
      more.addEventListener("click", () => open(body, more.getAttribute("aria-expanded") !== "true"));
    }
    const openAll = (shown) => {
      for (const body of bodies) open(body, shown);
      every.textContent = shown ? "Hide single runs" : "Show all runs";
      every.setAttribute("aria-expanded", shown);
    };
    every.addEventListener("click", () => {
      const shown = every.getAttribute("aria-expanded") !== "true";
      remember("runs", shown ? "all" : null);
      openAll(shown);
    });
    picker.addEventListener("change", () => {
      remember("set", picker.value);
      for (const body of bodies) body.hidden = body.dataset.set !== picker.value;
    });
    const first = picker.value;
    onState(() => {
      const [key, order] = (state.get("sort") || "").split(":");
      const known = [...picker.options].some((option) => option.value === state.get("set"));
      picker.value = known ? state.get("set") : first;
      for (const body of bodies) body.hidden = body.dataset.set !== picker.value;
      sort(key, order === "desc");
      openAll(state.get("runs") === "all");
    });
  }
}
