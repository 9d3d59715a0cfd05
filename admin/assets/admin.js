// Live refresh and the theme's button. Everything else works without this file.
(() => {
  "use strict";
  const every = 5000, longest = 60000;
  const main = document.getElementById("main");
  const banner = document.getElementById("banner");
  const say = (text) => { banner.textContent = text; banner.hidden = !text; };

  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("outbox-theme", root.dataset.theme); } catch { /* then it lasts as long as the page */ }
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
    for (const { name, value } of to.attributes)
      if (!kept(from, name) && from.getAttribute(name) !== value) from.setAttribute(name, value);
    for (const { name } of [...from.attributes])
      if (!kept(from, name) && !to.hasAttribute(name)) from.removeAttribute(name);
    if (from.nodeName === "TEXTAREA" || from.nodeName === "SELECT") return;
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
  let on = true, wait = every, timer = 0;
  try { on = sessionStorage.getItem("outbox-live") !== "off"; } catch { /* then it is on */ }
  const show = () => { live.setAttribute("aria-pressed", on); live.textContent = on ? "● Live" : "‖ Paused"; };
  const later = () => { clearTimeout(timer); if (on && !document.hidden) timer = setTimeout(refresh, wait); };
  function refresh() {
    const x = new XMLHttpRequest();
    x.open("GET", location.href);
    x.responseType = "document"; // the browser parses it; a string would need a trusted type
    x.timeout = 20000;
    x.onload = () => {
      const next = x.response && x.response.getElementById("main");
      if (x.status === 401 || x.status === 403 || x.responseURL.split("?")[0] !== location.href.split("#")[0].split("?")[0]) {
        say("You are signed out. Reload the page to sign in.");
        on = false; show();
        return;
      }
      if (x.status !== 200 || !next) return bad();
      wait = every;
      say("");
      morph(main, next);
      later();
    };
    x.onerror = x.ontimeout = bad;
    x.send();
  }
  function bad() {
    wait = Math.min(wait * 2, longest);
    say("The last refresh failed. Trying again in " + wait / 1000 + " s.");
    later();
  }
  live.hidden = false;
  live.addEventListener("click", () => {
    on = !on; wait = every;
    try { sessionStorage.setItem("outbox-live", on ? "on" : "off"); } catch { /* then it lasts as long as the page */ }
    show();
    if (on) refresh(); else clearTimeout(timer);
  });
  document.addEventListener("visibilitychange", later);
  show();
  later();
})();
