// Runs before the first paint, so that a chosen theme does not flash.
(() => {
  let theme = null;
  try { theme = localStorage.getItem("outbox-theme"); } catch { /* storage may be denied */ }
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
})();
