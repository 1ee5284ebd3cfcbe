// Reads the page again every few seconds, shows times in the reader's zone, and takes the theme of Airflow's page.
"use strict";

const INTERVAL = 3000; // milliseconds

function showTimes() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const when = new Date(time.dateTime);
    if (!Number.isNaN(when.getTime())) {
      time.title = time.dateTime;
      time.textContent = when.toLocaleString();
    }
  }
}

function takeTheme() {
  try {
    if (window.parent === window) return;
    const outer = window.parent.document.documentElement;
    const copy = () => {
      document.documentElement.dataset.theme = outer.classList.contains("dark") ? "dark" : "light";
    };
    copy();
    new MutationObserver(copy).observe(outer, { attributes: true, attributeFilter: ["class"] });
  } catch {
    // another site has embedded this page, or the frame may not look outside: the system's theme applies
  }
}

async function readAgain() {
  const live = document.getElementById("live");
  try {
    if (document.hidden || document.getSelection().type === "Range") return;
    const reply = await fetch(location.href, { headers: { Accept: "text/html" } });
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    const main = page.getElementById("main");
    if (main && !document.getElementById("main").contains(document.activeElement)) {
      const positions = Array.from(document.querySelectorAll(".scroll"), (table) => table.scrollLeft);
      document.getElementById("main").replaceWith(document.importNode(main, true));
      document.querySelectorAll(".scroll").forEach((table, n) => { table.scrollLeft = positions[n] ?? 0; });
      showTimes();
    }
    live.textContent = "";
  } catch {
    live.textContent = "Airflow does not answer; trying again";
  } finally {
    setTimeout(readAgain, INTERVAL);
  }
}

takeTheme();
showTimes();
setTimeout(readAgain, INTERVAL);
