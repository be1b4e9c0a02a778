"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const byId = (id) => document.getElementById(id);
  const number = new Map(data.clips.map((clip, i) => [clip.id, i]));
  let paused = still;

  // Texts go in through textContent only: clip names and method names are not trusted.
  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };

  // Start a row of videos together once all can play, so that they stay in step.
  const play = (row) => {
    if (paused) return;
    row.querySelectorAll("video").forEach((video) => { video.currentTime = 0; video.play().catch(() => {}); });
  };

  const show = (row, { id, text, pictures }) => {
    const isVideo = ({ type }) => type === "video/mp4";
    let waiting = pictures.filter(isVideo).length;
    row.style.setProperty("--n", Math.min(pictures.length, 6));
    row.replaceChildren(...pictures.map((picture) => {
      const figure = make("figure"), label = `${picture.name}, ${id}`;
      const element = make(isVideo(picture) ? "video" : "img");
      if (isVideo(picture)) {
        Object.assign(element, { loop: true, muted: true, playsInline: true, preload: "auto" });
        element.setAttribute("aria-label", label);
        element.addEventListener("loadeddata", () => { if (--waiting === 0) play(row); }, { once: true });
      } else {
        element.alt = label;
      }
      element.src = `data:${picture.type};base64,${picture.content}`;
      figure.append(element, make("figcaption", picture.name));
      return figure;
    }));
    if (text) row.append(make("p", text, "below"));
  };

  // Rows of the gallery and the exhibits are filled when they come near the window.
  const rows = document.querySelectorAll(".strip .videos");
  const shownIn = ({ dataset: { clip, exhibit, strip } }) => clip === undefined ? data.exhibits[exhibit][strip] : data.clips[number.get(clip)];
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      show(entry.target, shownIn(entry.target));
    }
  }, { rootMargin: "300px" });
  rows.forEach((row) => watcher.observe(row));

  if (!byId("stage")) return;
  let order = data.clips.map((_, i) => i);

  const scoreTable = (clip) => {
    const methods = [...new Set(data.columns.map((column) => column.method))];
    const rows = new Map();
    data.columns.forEach((column, i) => {
      const name = `${column.metric} (${column.space})`;
      if (!rows.has(name)) rows.set(name, new Map());
      rows.get(name).set(column.method, clip.values[i]);
    });
    const head = make("tr");
    head.append(make("th"), ...methods.map((text) => make("th", text, "num")));
    const body = [...rows].map(([name, values]) => {
      const row = make("tr");
      row.append(make("td", name), ...methods.map((m) => make("td", values.get(m) ?? "–", "num")));
      return row;
    });
    byId("clip-scores").replaceChildren(...(data.columns.length ? [head, ...body] : []));
  };

  const go = (place, note = true) => {
    const clip = data.clips[order[place]];
    byId("slider").value = place;
    byId("slider").setAttribute("aria-valuetext", clip.id);
    byId("clip-name").replaceChildren(clip.id, " ", make("span", `scene ${clip.scene} · ${place + 1} of ${order.length}`, "faint"));
    show(byId("stage"), clip);
    scoreTable(clip);
    if (note) history.replaceState(null, "", `#clip=${encodeURIComponent(clip.id)}`);
  };
  const place = () => Number(byId("slider").value);
  const step = (by) => go((place() + by + order.length) % order.length);

  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("slider").addEventListener("input", () => go(place()));
  byId("pause").textContent = paused ? "Play" : "Pause";
  byId("pause").addEventListener("click", () => {
    paused = !paused;
    byId("pause").textContent = paused ? "Play" : "Pause";
    document.querySelectorAll("video").forEach((video) => { if (paused) video.pause(); });
    if (!paused) document.querySelectorAll(".videos").forEach(play);
  });
  byId("find").addEventListener("input", () => {
    const text = byId("find").value.trim().toLowerCase();
    const hits = text ? order.filter((i) => data.clips[i].id.toLowerCase().includes(text)) : [];
    byId("found").textContent = text ? `${hits.length} found` : "";
    const exact = number.get(byId("find").value.trim());
    const hit = exact ?? hits[0];
    if (hit !== undefined) go(order.indexOf(hit));
  });
  data.columns.forEach((column, i) => {
    for (const direction of ["highest", "lowest"]) {
      const option = make("option", `${direction} ${column.metric} (${column.space}), ${column.method}`);
      option.value = `${i} ${direction}`;
      byId("order").append(option);
    }
  });
  byId("order").addEventListener("change", () => {
    const [column, direction] = byId("order").value.split(" ");
    order = data.clips.map((_, i) => i);
    if (column !== "") {
      const sign = direction === "lowest" ? 1 : -1;
      const value = (i) => data.clips[i].values[column] ?? sign * Infinity;
      order.sort((a, b) => sign * (value(a) - value(b)) || a - b);
    }
    go(0);
  });

  const wanted = /^#clip=(.*)$/.exec(location.hash);
  let start = 0;
  try { start = number.get(decodeURIComponent(wanted?.[1] ?? "")) ?? 0; } catch { /* a damaged address shows the first clip */ }
  go(start, false);
})();
