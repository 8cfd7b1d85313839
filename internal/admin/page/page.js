// Looks every five seconds at what has changed. Without this script the page shows all the same.
const live = document.getElementById("live");
const wanted = document.getElementById("refreshing");
const stale = document.getElementById("stale");
let asking = false;

async function refresh() {
  if (asking || document.hidden || !wanted.checked || live.querySelector(":active")) return;
  asking = true;
  try {
    // Not relative to the page's own address, which may hold the password.
    const answer = await fetch(new URL(live.dataset.from, location.origin), { cache: "no-store", signal: AbortSignal.timeout(12000) });
    if (!answer.ok) throw new Error(answer.status);
    const text = await answer.text();
    if (live.querySelector(":active")) return; // a button is just being pressed
    const focused = live.contains(document.activeElement) ? document.activeElement.id : "";
    const open = [...live.querySelectorAll("details[open]")].map((details) => details.id);
    live.innerHTML = text;
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    stale.hidden = true;
  } catch {
    stale.hidden = false;
  } finally {
    asking = false;
  }
}

setInterval(refresh, 5000);
