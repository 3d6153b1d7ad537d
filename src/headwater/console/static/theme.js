// Before the page is drawn, so that it does not flash: the theme that was chosen here, else the system's.
(() => {
  const chosen = localStorage.getItem("headwater-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
