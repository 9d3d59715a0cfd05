// Live refresh and the theme's button. Everything else works without this file.
(() => {
  "use strict";
  const every = 5000, longest = 60000;
  const main = document.getElementById("main");
  const banner = document.getElementById("banner");
  const say = (text) => { banner.textContent = text; banner.hidden = !text; };

  // What a form has done is said once: not again after a reload, nor to whom the URL is sent. A refresh leaves it alone.
  const notice = main.querySelector(".notice");
  if (notice) {
    main.before(notice);
    const here = new URL(location.href);
    for (const name of ["did", "n", "skipped"]) here.searchParams.delete(name);
    history.replaceState(history.state, "", here);
  }

  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("outbox-theme", root.dataset.theme); } catch { /* then it lasts as long as the page */ }
  });

  // Copy buttons, where the browser lets a page copy.
  const said = document.getElementById("said");
  if (navigator.clipboard) document.documentElement.dataset.copies = "";
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    navigator.clipboard.writeText(button.dataset.copy.split(" ").map((id) => document.getElementById(id).textContent).join("")).then(
      () => { said.textContent = "Copied."; button.classList.add("copied"); },
      () => { said.textContent = "The browser does not allow it."; });
    said.textContent = "";
  });

  // A time that is typed in UTC is shown in the person's own zone as well.
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  function local() {
    for (const field of document.querySelectorAll("[data-utc]")) {
      const at = new Date(field.value + "Z"), out = field.parentNode.querySelector("output");
      const text = isNaN(at) ? "" : "that is " + at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) + ", " + zone;
      if (out.textContent !== text) out.textContent = text;
    }
  }
  document.addEventListener("input", local);
  local();

  // How many rows are picked, beside the buttons that change them.
  function count() {
    const out = document.getElementById("picked");
    if (!out) return;
    const n = document.querySelectorAll("[name=pick]:checked").length;
    const text = document.querySelector("[name=all]:checked") ? "all that match" : n ? n + " picked" : "";
    if (out.textContent !== text) out.textContent = text;
  }
  document.addEventListener("change", count);
  count(); // after a reload the browser ticks again what was ticked

  // Keyboard shortcuts: single letters, so they can be turned off.
  const help = document.getElementById("help"), keys = document.getElementById("keys"), use = document.getElementById("use-keys");
  const places = { o: "", t: "tasks", x: "tasks?state=failed", f: "functions", p: "processes", a: "audit" };
  let going = 0;
  use.checked = true;
  try { use.checked = localStorage.getItem("outbox-keys") !== "off"; } catch { /* then they are on */ }
  keys.hidden = false;
  keys.addEventListener("click", () => help.showModal());
  use.addEventListener("change", () => { try { localStorage.setItem("outbox-keys", use.checked ? "on" : "off"); } catch { /* as above */ } });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input:not([type=checkbox]), select, textarea, dialog");
    if (typing || !use.checked || event.ctrlKey || event.metaKey || event.altKey) return;
    const search = document.querySelector("[role=search] input:not([type=hidden])");
    if (going && Date.now() - going < 2000 && event.key in places) location.href = document.getElementById("root").dataset.up + places[event.key];
    else if (event.key === "/" && search) { event.preventDefault(); search.focus(); }
    else if (event.key === "?") help.showModal();
    going = event.key === "g" ? Date.now() : 0;
  });

  // morph makes a node like another, and leaves alone what the person has made of it: typed text, ticks, opened details.
  const kept = (node, name) => node.nodeName === "DETAILS" && name === "open";
  // Not node.id, which of a form is the field that is called id.
  const id = (node) => (node.nodeType === 1 && node.getAttribute("id")) || "";
  const same = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && id(a) === id(b);
  function morph(from, to) {
    if (from.nodeType !== 1) {
      if (from.nodeValue !== to.nodeValue) from.nodeValue = to.nodeValue;
      return;
    }
    // Who has ticked all has ticked those that were shown then.
    if (from.dataset.seen !== undefined && document.querySelector("[name=all]:checked")) return;
    for (const { name, value } of to.attributes)
      if (!kept(from, name) && from.getAttribute(name) !== value) from.setAttribute(name, value);
    for (const { name } of [...from.attributes])
      if (!kept(from, name) && !to.hasAttribute(name)) from.removeAttribute(name);
    if (from.nodeName === "OUTPUT" || from.nodeName === "TEXTAREA" || from.nodeName === "SELECT") return;
    if (from.dataset.rows !== undefined) return rows(from, to);
    let at = from.firstChild;
    for (const want of [...to.childNodes]) {
      let have = at;
      if (id(want)) for (have = at; have && id(have) !== id(want); have = have.nextSibling);
      if (have && same(have, want)) {
        while (at !== have) { const next = at.nextSibling; at.remove(); at = next; }
        morph(have, want);
        at = have.nextSibling;
      } else {
        from.insertBefore(document.importNode(want, true), at);
      }
    }
    while (at) { const next = at.nextSibling; at.remove(); at = next; }
  }

  // rows of a list do not jump under the pointer: those that are shown are updated, new ones are counted.
  function rows(from, to) {
    const fresh = new Map([...to.children].map((tr) => [tr.id, tr]));
    for (const tr of from.children) {
      const want = fresh.get(tr.id);
      tr.classList.toggle("gone", !want);
      if (want) { morph(tr, want); fresh.delete(tr.id); }
    }
    if (fresh.size && !location.search.includes("cursor=")) more(fresh.size);
  }
  function more(n) {
    banner.replaceChildren(Object.assign(document.createElement("a"), { href: location.href, textContent: n + " new ↻" }));
    banner.hidden = false;
  }

  if (!main.hasAttribute("data-live")) return;
  const live = document.getElementById("live");
  let on = true, wait = every, timer = 0, tag = "", asking = false;
  try { on = sessionStorage.getItem("outbox-live") !== "off"; } catch { /* then it is on */ }
  const show = () => { live.textContent = on ? "● Live" : "‖ Paused"; live.title = on ? "Pause the refresh" : "Refresh again"; };
  const stop = (text) => { say(text); on = false; show(); };
  const later = () => { clearTimeout(timer); if (on && !document.hidden) timer = setTimeout(refresh, wait); };
  function refresh() {
    if (asking) return;
    asking = true;
    clearTimeout(timer);
    const x = new XMLHttpRequest();
    x.open("GET", location.href);
    x.responseType = "document"; // the browser parses it; a string would need a trusted type
    x.timeout = 20000;
    if (tag) x.setRequestHeader("If-None-Match", tag);
    x.onload = () => {
      if (x.status === 304) { wait = every; return later(); } // what is shown is what came last, its banner included
      const next = x.response && x.response.getElementById("main");
      if (x.status === 401 || x.status === 403 || x.responseURL.split("?")[0] !== location.href.split("#")[0].split("?")[0]) {
        return stop("You are signed out. Reload the page to sign in.");
      }
      if (x.status === 404) return stop("This task is gone: it is not in history any more.");
      if (x.status !== 200 || !next) return bad("The last refresh failed; what is shown may be old.");
      wait = every;
      say("");
      morph(main, next);
      document.title = x.response.title;
      local();
      count();
      tag = x.getResponseHeader("ETag") || "";
      later();
    };
    x.onloadend = () => { asking = false; };
    x.ontimeout = () => bad("The last refresh failed; what is shown may be old.");
    // No answer, or one that sends the browser to another origin, where a script may not follow.
    x.onerror = () => bad("The last refresh got no answer; what is shown may be old. Perhaps you are signed out: reload the page.");
    x.send();
  }
  function bad(text) {
    wait = Math.min(wait * 2, longest);
    tag = ""; // the next answer is shown whole, and with it this goes
    say(text + " Trying again in " + wait / 1000 + " s.");
    later();
  }
  live.hidden = false;
  live.addEventListener("click", () => {
    on = !on; wait = every;
    try { sessionStorage.setItem("outbox-live", on ? "on" : "off"); } catch { /* then it lasts as long as the page */ }
    show();
    if (on) refresh(); else clearTimeout(timer);
  });
  document.addEventListener("visibilitychange", () => { if (on && !document.hidden) refresh(); else clearTimeout(timer); });
  show();
  later();
})();
