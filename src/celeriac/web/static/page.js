/* The page of Celeriac: local times, graphs, live updates, keys, confirmations. No data becomes HTML or code here:
   what the server sends is HTML that it has escaped, and a parser that runs no scripts reads it. */
"use strict";

(() => {
  document.documentElement.classList.add("scripted");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /* — times — */

  const two = (number) => String(number).padStart(2, "0");
  const day = (when) => `${when.getFullYear()}-${two(when.getMonth() + 1)}-${two(when.getDate())}`;
  const clock = (when) => `${two(when.getHours())}:${two(when.getMinutes())}:${two(when.getSeconds())}`;
  const milliseconds = (when) => `${clock(when)}.${String(when.getMilliseconds()).padStart(3, "0")}`;

  function showTimes(root) {
    for (const element of root.querySelectorAll("time[datetime]")) {
      const when = new Date(element.dateTime);
      if (Number.isNaN(when.getTime())) continue;
      const exact = element.dataset.style === "exact";
      element.textContent = `${day(when)} ${exact ? milliseconds(when) : clock(when)}`;
      element.title = `${day(when)} ${milliseconds(when)} ${zone(when)} · ${element.dateTime}`;
    }
  }

  function zone(when) {
    const parts = new Intl.DateTimeFormat(undefined, { timeZoneName: "short" }).formatToParts(when);
    return parts.find((part) => part.type === "timeZoneName")?.value ?? "";
  }

  /* — graphs — */

  const graphs = new Map(); // by the id of their sections

  function showGraphs(root) {
    for (const element of root.querySelectorAll("[data-chart]")) {
      const id = element.closest("[id]").id;
      const data = JSON.parse(element.dataset.chart);
      const graph = graphs.get(id);
      if (graph && graph.root.isConnected && element.contains(graph.root)) {
        graph.setData(data);
      } else {
        graph?.destroy();
        element.textContent = "";
        graphs.set(id, new uPlot(graphOptions(element), data, element));
      }
    }
  }

  function graphOptions(element) {
    const axis = { stroke: css("--muted"), grid: { stroke: css("--soft"), width: 1 }, ticks: { stroke: css("--line"), width: 1 }, font: "12px system-ui, sans-serif" };
    const line = (label, name, extra) => ({ label, stroke: css(name), fill: `color-mix(in srgb, ${css(name)} 14%, transparent)`, width: 1.5, points: { show: false }, ...extra });
    const wholeTime = "{YYYY}-{MM}-{DD} {HH}:{mm}:{ss}";
    return {
      width: Math.max(200, element.clientWidth), height: 172,
      cursor: { drag: { x: false, y: false }, points: { size: 6 } },
      scales: { y: { range: (_, low, high) => [0, Math.max(high * 1.1, 0.1)] } },
      axes: [{ ...axis, values: timeLabels, space: 84 }, { ...axis, size: 54 }],
      series: [
        { label: "Time", value: (_, at) => (at == null ? "–" : uPlot.fmtDate(wholeTime)(new Date(at * 1000))) },
        line("succeeded", "--success", { paths: uPlot.paths.stepped({ align: 1 }) }),
        line("failed or other", "--failed", { paths: uPlot.paths.stepped({ align: 1 }), dash: [4, 3] }),
      ],
    };
  }

  function timeLabels(_, values, __, ___, step) {
    return values.map((at) => {
      if (!Number.isInteger(at)) return "";
      const when = new Date(at * 1000);
      return step >= 86400 ? day(when).slice(5) : step < 60 ? clock(when) : clock(when).slice(0, 5);
    });
  }

  new ResizeObserver(() => {
    for (const graph of graphs.values()) {
      const width = graph.root.parentElement?.clientWidth;
      if (width) graph.setSize({ width, height: 172 });
    }
  }).observe(document.body);

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const graph of graphs.values()) graph.destroy();
    graphs.clear();
    showGraphs(document);
  });

  /* — live updates: one stream for the address, closed while the tab is hidden — */

  const parser = new DOMParser();
  const sent = new Map(); // the last HTML of each live part, as the server sent it
  let stream = null;

  function liveAddress() {
    const path = `/live${location.pathname}`;
    return ["/live/", "/live/runs", "/live/run", "/live/task"].includes(path) ? path + location.search : null;
  }

  function connect() {
    stream?.close();
    stream = null;
    const address = liveAddress();
    if (address === null || document.hidden || document.querySelector(".problem")) return;
    const opened = new EventSource(address);
    stream = opened;
    opened.addEventListener("open", () => showLive("on", "live"));
    opened.addEventListener("error", () => showLive("off", "not connected"));
    opened.addEventListener("page", (event) => { if (stream === opened) update(JSON.parse(event.data)); });
  }

  function showLive(state, text) {
    const shown = document.getElementById("live");
    if (shown.dataset.state === state) return;
    shown.dataset.state = state;
    shown.textContent = text;
  }

  function update(html) {
    const fresh = parser.parseFromString(html, "text/html");
    for (const part of fresh.querySelectorAll("[data-live]")) {
      const old = document.getElementById(part.id);
      if (!old || sent.get(part.id) === part.innerHTML) continue;
      sent.set(part.id, part.innerHTML);
      replace(old, part);
    }
    for (const old of document.querySelectorAll("[data-live]")) {
      if (!fresh.getElementById(old.id)) old.remove();
    }
    addNew(fresh);
  }

  function addNew(fresh) { // a part that the page did not have, such as the output of a task that has begun
    const main = document.getElementById("content");
    for (const part of fresh.querySelectorAll("body > [data-live]")) {
      if (!document.getElementById(part.id)) {
        const node = document.importNode(part, true);
        main.append(node);
        show(node);
      }
    }
  }

  function replace(old, part) {
    const tail = old.querySelector("pre.output");
    const atEnd = !tail || tail.scrollTop + tail.clientHeight >= tail.scrollHeight - 8;
    change(old, part);
    show(old);
    const newTail = old.querySelector("pre.output");
    if (newTail && atEnd) newTail.scrollTop = newTail.scrollHeight;
  }

  // Make a part like a fresh one, and keep all nodes that stay: the focus, a selection and a click under way survive.
  function change(old, fresh) {
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    if (old.localName === "time" && old.dateTime === fresh.dateTime) return;
    for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    if (old.dataset.chart === undefined) changeChildren(old, fresh);
  }

  function changeChildren(old, fresh) {
    const rows = new Map([...old.children].map((child) => [child.dataset.key, child]));
    let at = old.firstChild;
    for (const node of [...fresh.childNodes]) {
      const known = node.dataset?.key === undefined ? null : rows.get(node.dataset.key);
      if (known && known !== at) old.insertBefore(known, at);
      const same = known ?? (at && isLike(at, node) ? at : null);
      if (!same) {
        old.insertBefore(document.importNode(node, true), at);
        continue;
      }
      if (same === at) at = at.nextSibling;
      change(same, node);
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  }

  const isLike = (old, fresh) => old.nodeType === fresh.nodeType && old.nodeName === fresh.nodeName
    && old.dataset?.key === fresh.dataset?.key && (old.dataset?.chart === undefined) === (fresh.dataset?.chart === undefined);

  /* — keys — */

  const rows = () => [...document.querySelectorAll("main .rows tbody tr")].filter((row) => row.querySelector("a"));

  function move(by) {
    const all = rows();
    if (!all.length) return;
    const at = all.indexOf(document.activeElement?.closest?.("tr"));
    const next = at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + by, 0), all.length - 1);
    all[next].querySelector("a").focus();
    all[next].scrollIntoView({ block: "nearest" });
  }

  const turn = (rel) => document.querySelector(`.pages a[rel="${rel}"]`)?.click();
  const KEYS = {
    "/": () => document.getElementById("filter")?.select() ?? document.getElementById("filter")?.focus(),
    j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
    g: () => location.assign("/"), r: () => location.assign("/runs"), n: () => turn("next"), p: () => turn("prev"),
  };

  document.addEventListener("keydown", (event) => {
    const target = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("dialog").open) return;
    if (target.closest("input, textarea, select")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    const isArrow = event.key.startsWith("Arrow");
    if (!Object.hasOwn(KEYS, event.key) || (isArrow && !target.closest(".rows tbody tr"))) return;
    event.preventDefault();
    KEYS[event.key]();
  });

  /* — confirmations: the page of its own, in a dialog — */

  const dialog = document.getElementById("dialog");

  document.addEventListener("click", async (event) => {
    if (event.target.closest("[data-close]") && dialog.open) {
      event.preventDefault();
      dialog.close();
      return;
    }
    const link = event.target.closest("a[data-confirm]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    const answer = await fetch(link.href, { headers: { accept: "text/html" } }).catch(() => null);
    const form = answer && parser.parseFromString(await answer.text(), "text/html").querySelector(".confirm");
    if (!form) { location.assign(link.href); return; }
    dialog.replaceChildren(document.importNode(form, true));
    dialog.showModal();
    showTimes(dialog);
  });

  /* — beginning — */

  function show(root) {
    showTimes(root);
    showGraphs(root);
  }

  function remember() { // what the server sent, before this script changes it: an equal part is not replaced
    sent.clear();
    for (const part of document.querySelectorAll("[data-live]")) sent.set(part.id, part.innerHTML);
  }

  document.body.addEventListener("htmx:afterSwap", () => {
    const part = document.getElementById("results");
    if (part) sent.set(part.id, part.innerHTML);
    show(document);
  });
  document.body.addEventListener("htmx:pushedIntoHistory", connect);
  document.addEventListener("visibilitychange", connect);
  addEventListener("pagehide", () => stream?.close());
  addEventListener("pageshow", (event) => { if (event.persisted) connect(); });
  remember();
  show(document);
  for (const tail of document.querySelectorAll("pre.output")) tail.scrollTop = tail.scrollHeight;
  connect();
})();
