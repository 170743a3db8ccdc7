"use strict";
(() => {
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));

  // Tables: a column's button sorts by data-value, numbers as numbers, what is missing last.
  const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  for (const table of all("table.sortable")) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const rising = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", rising ? "ascending" : "descending");
        const numeric = !head.classList.contains("words");
        const rows = Array.from(table.tBodies[0].rows);
        rows.sort((a, b) => {
          const [one, two] = [key(a, column), key(b, column)];
          if (one === "" || two === "") return (one === "") - (two === "");
          const order = numeric ? Number(one) - Number(two) : one.localeCompare(two, "en", { numeric: true });
          return rising ? order : -order;
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  // What is shown: a run is hidden by its own box or its recipe's; a recipe's mean goes with the last of its runs.
  const groups = all("[data-toggle-group]");
  const runs = all("[data-toggle-run]");
  const members = new Map();
  for (const choice of all(".choice")) {
    const own = choice.querySelector("[data-toggle-group]");
    members.set(own.dataset.toggleGroup, all("[data-toggle-run]", choice));
  }
  const followers = all("[data-group], [data-run], [data-groups]");
  const show = () => {
    const off = new Set();
    for (const box of groups) {
      const its = members.get(box.dataset.toggleGroup);
      if (!box.checked || (its.length && its.every((run) => !run.checked))) off.add(box.dataset.toggleGroup);
    }
    const offRuns = new Set(runs.filter((box) => !box.checked).map((box) => box.dataset.toggleRun));
    for (const element of followers) {
      const { group, run, groups: several } = element.dataset;
      const hidden = off.has(group) || offRuns.has(run) || (several ?? "").split(" ").some((one) => off.has(one));
      element.classList.toggle("off", hidden);
    }
    const some = off.size + offRuns.size > 0;
    // Steps along the best of all would speak of points that are not there.
    all(".series.sx, .front").forEach((front) => front.classList.toggle("off", some));
    document.getElementById("hidden-note").hidden = !some;
  };
  for (const box of groups) {
    box.addEventListener("change", () => {
      members.get(box.dataset.toggleGroup).forEach((run) => { run.checked = box.checked; });
      show();
    });
  }
  for (const box of runs) {
    box.addEventListener("change", () => {
      for (const [group, its] of members) {
        if (its.includes(box)) {
          const own = groups.find((other) => other.dataset.toggleGroup === group);
          own.checked = its.some((run) => run.checked);
          own.indeterminate = own.checked && its.some((run) => !run.checked);
        }
      }
      show();
    });
  }
  const setAll = (checked) => {
    [...groups, ...runs].forEach((box) => { box.checked = checked; box.indeterminate = false; });
    show();
  };
  document.getElementById("all").addEventListener("click", () => setAll(true));
  document.getElementById("none").addEventListener("click", () => setAll(false));

  // Lines: the figures below the pointer.
  const readout = document.getElementById("readout");
  const nearest = (xs, x) => xs.reduce((best, value, place) => (Math.abs(value - x) < Math.abs(xs[best] - x) ? place : best), 0);
  const numbers = (text) => text.split(" ").map(Number);
  const line = (text) => {
    const paragraph = document.createElement("p");
    paragraph.textContent = text;
    return paragraph;
  };
  for (const svg of all("svg[data-plot]")) {
    const series = all("[data-x]", svg);
    if (!series.length) continue;
    const [start, end, low, high, top, bottom] = numbers(svg.dataset.plot);
    const guide = document.createElementNS("http://www.w3.org/2000/svg", "path");
    guide.setAttribute("class", "guide off");
    svg.append(guide);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const share = Math.min(1, Math.max(0, (at - start) / (end - start)));
      const x = svg.dataset.log ? low * (high / low) ** share : low + share * (high - low);
      const visible = series.filter((one) => !one.classList.contains("off"));
      if (!visible.length) return;
      const xs = numbers(visible[0].dataset.x);
      const chosen = xs[nearest(xs, x)];
      const place = svg.dataset.log ? Math.log(chosen / low) / Math.log(high / low) : (chosen - low) / (high - low);
      guide.setAttribute("d", `M${start + place * (end - start)},${top}V${bottom}`);
      guide.classList.remove("off");
      const lines = visible.slice(0, 16).map((one) => {
        const own = numbers(one.dataset.x);
        const near = nearest(own, chosen);
        const where = own[near] === chosen ? "" : ` (at ${own[near]})`;
        return line(`${one.dataset.label}: ${numbers(one.dataset.y)[near]}${where}`);
      });
      readout.replaceChildren(line(`${svg.dataset.over}: ${chosen}`), ...lines);
      readout.hidden = false;
      const size = readout.getBoundingClientRect();
      const left = event.clientX + 14 + size.width > innerWidth ? event.clientX - 14 - size.width : event.clientX + 14;
      readout.style.left = `${Math.max(4, left)}px`;
      readout.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - size.height - 4))}px`;
    });
    svg.addEventListener("pointerleave", () => {
      readout.hidden = true;
      guide.classList.add("off");
    });
  }

  // A link into a closed part opens it; a small screen begins with the contents closed.
  const reveal = () => {
    const target = location.hash ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
    if (target?.matches("details")) {
      target.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", reveal);
  reveal();
  if (innerWidth < 1120) document.getElementById("panel").open = false;
})();
