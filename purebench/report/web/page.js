// The browser of images. It reads what packed.py wrote, and computes no number that a table has: those are in the page as they are.
// Text from records enters by textContent alone.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const cells = data.cells, byId = new Map(cells.map((cell) => [cell.id, cell]));
  const $ = (id) => document.getElementById(id);
  const NO_DRAW = -2, NOT_FINITE = -1, LOST = 3, PAGE = 200;
  const COLUMNS = ["position", "index", "label", "undefended", "state", "forward", "backward", "said"];

  function el(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key.startsWith("aria-") || key === "role" || key === "for" || key === "scope" || key === "colspan") node.setAttribute(key, value);
      else node[key] = value;
    }
    node.append(...children);
    return node;
  }

  // ---- what is packed ---------------------------------------------------------------------------

  async function unpacked(id) {
    const text = atob($(id).textContent.trim());
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  function readAnswers(buffer) {
    let at = 0;
    const take = (Type, count) => {
      const view = new Type(buffer, at, count);
      at += view.byteLength;
      return view;
    };
    for (const cell of cells) {
      const n = cell.n;
      for (const name of COLUMNS) cell[name] = take(Int32Array, n);
      cell.linf = take(Float32Array, n);
      cell.l2 = take(Float32Array, n);
      cell.cleanDraws = take(Int16Array, n * cell.draws[0]);
      cell.attackedDraws = take(Int16Array, n * cell.draws[1]);
      at += -at & 3;
      cell.rowOf = new Map();
      cell.right = new Float32Array(n); // share of the attacked draws that are right; -1 where nothing was judged
      cell.rightClean = new Float32Array(n);
      for (let i = 0; i < n; i++) {
        cell.rowOf.set(cell.position[i], i);
        cell.right[i] = share(draws(cell, "attackedDraws", i), cell.label[i]);
        cell.rightClean[i] = share(draws(cell, "cleanDraws", i), cell.label[i]);
      }
    }
  }

  function draws(cell, kind, i) {
    const k = cell.draws[kind === "cleanDraws" ? 0 : 1];
    return Array.from(cell[kind].subarray(i * k, (i + 1) * k)).filter((answer) => answer !== NO_DRAW);
  }

  const count = (answers, label) => answers.reduce((sum, answer) => sum + (answer === label), 0);
  const share = (answers, label) => (answers.length ? count(answers, label) / answers.length : -1);

  function usual(answers) {
    let best = NOT_FINITE, most = 0;
    for (const answer of new Set(answers)) {
      const n = count(answers, answer);
      if (n > most) [best, most] = [answer, n];
    }
    return best;
  }

  // ---- pictures ---------------------------------------------------------------------------------

  const opened = new Map();

  function opening(block) {
    if (!opened.has(block.id)) opened.set(block.id, unpacked(block.id).then((buffer) => new Uint8Array(buffer)));
    return opened.get(block.id);
  }

  function slot(block, position) {
    if (!block) return -1;
    if (typeof block.positions === "number") return position < block.positions ? position : -1;
    block.slots ??= new Map(block.positions.map((p, i) => [p, i]));
    return block.slots.get(position) ?? -1;
  }

  async function pixels(block, position, size) {
    const at = slot(block, position);
    return at < 0 ? null : (await opening(block)).subarray(at * size, (at + 1) * size);
  }

  // kind: clean, attacked, perturbation or purified; resolves to whether there is such a picture.
  async function draw(canvas, cell, position, kind) {
    const set = data.sets[cell.set];
    if (!set.shape) return false;
    const [channels, height, width] = set.shape;
    const size = channels * height * width;
    let shown;
    if (kind === "clean") shown = await pixels(set.clean, position, size);
    else if (kind === "purified") shown = await pixels(cell.purified, position, size);
    else {
      const stored = await pixels(cell.attacked, position, size);
      if (!stored) return false;
      const step = cell.attacked.step;
      const gain = 255 * step * cell.attacked.magnified;
      if (kind === "perturbation") shown = step ? Uint8ClampedArray.from(stored, (level) => 128 + (level - 128) * gain) : null;
      else if (!step) shown = stored;
      else {
        const clean = await pixels(set.clean, position, size);
        shown = clean && Uint8ClampedArray.from(stored, (level, i) => clean[i] + (level - 128) * step * 255);
      }
    }
    if (!shown) return false;
    canvas.width = width;
    canvas.height = height;
    const image = new ImageData(width, height), area = height * width;
    for (let i = 0; i < area; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = shown[(channels === 1 ? 0 : c) * area + i];
      image.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    return true;
  }

  // ---- filters ----------------------------------------------------------------------------------

  const FACETS = [["dataset", "Dataset"], ["classifier", "Classifier"], ["score", "Score model"], ["threat", "Threat model"], ["defense", "Defense"], ["attack", "Attack"], ["gradient", "Gradient"], ["seed", "Seed"]];
  const OUTCOMES = {
    "": ["any", () => true],
    all: ["right in every draw", (c, i) => c.right[i] === 1],
    most: ["right in most draws", (c, i) => c.right[i] > 0.5],
    some: ["wrong in some draw", (c, i) => c.right[i] >= 0 && c.right[i] < 1],
    mostly: ["wrong in most draws", (c, i) => c.right[i] >= 0 && c.right[i] < 0.5],
    none: ["wrong in every draw", (c, i) => c.right[i] === 0],
    broken: ["broken: right when clean, wrong attacked", (c, i) => c.rightClean[i] > 0.5 && c.right[i] >= 0 && c.right[i] < 0.5],
    lost: ["the attack made no image", (c, i) => c.state[i] === LOST],
  };
  const ORDERS = {
    position: ["position", null],
    wrong: ["fewest right first", (c, i) => c.right[i]],
    right: ["most right first", (c, i) => -c.right[i]],
    linf: ["largest Linf first", (c, i) => -c.linf[i]],
    l2: ["largest L2 first", (c, i) => -c.l2[i]],
    label: ["label", (c, i) => c.label[i]],
  };
  const filter = Object.fromEntries([...FACETS.map(([key]) => [key, ""]), ["outcome", ""], ["against", ""], ["order", "position"]]);
  const selects = {};
  let shown = [], current = -1, first = 0;

  // A cell that uses no threat model, or no score model, belongs to all.
  const fits = (cell, key, value) => value === "" || String(cell[key]) === value || cell[key] === "-";
  const matching = (except) => cells.filter((cell) => FACETS.every(([key]) => key === except || fits(cell, key, filter[key])));

  // On one score model; a defense without one stands beside any.
  const ofOneScore = (cell, other) => cell.score === other.score || cell.score === "-" || other.score === "-";

  // The same attack on another defense; of a transfer also the cell that its images were made on.
  function partner(cell, defense) {
    const same = ["set", "classifier", "threat", "seed", "attack", "gradient"];
    const source = byId.get(cell.source);
    return cells.find((other) => other.defense === defense && ofOneScore(other, cell) && same.every((key) => other[key] === cell[key]))
      ?? (source && source.defense === defense ? source : undefined);
  }

  function find() {
    const [, wanted] = OUTCOMES[filter.outcome], [, rank] = ORDERS[filter.order];
    shown = [];
    for (const cell of matching()) {
      const other = filter.against && partner(cell, filter.against);
      if (filter.against && (!other || other === cell)) continue;
      for (let i = 0; i < cell.n; i++) {
        if (!wanted(cell, i)) continue;
        if (other) {
          const j = other.rowOf.get(cell.position[i]);
          if (j === undefined || other.right[j] < 0 || other.right[j] >= 0.5) continue;
        }
        shown.push([cell, i]);
      }
    }
    // Stable: what is equal stays in the order of the cells and positions.
    if (rank) shown.sort((a, b) => rank(...a) - rank(...b));
  }

  function option(select, value, text, disabled) {
    select.append(el("option", { value, textContent: text, disabled: Boolean(disabled) }));
  }

  function control(key, title, fill) {
    const select = el("select", { id: `f-${key}`, onchange: () => { filter[key] = select.value; refresh(); } });
    selects[key] = { select, fill };
    $("filters").append(el("label", { for: select.id }, title, select));
  }

  function makeFilters() {
    for (const [key, title] of FACETS) {
      const values = [...new Set(cells.map((cell) => String(cell[key])))].filter((value) => value !== "-");
      if (values.length < 2 && key !== "defense" && key !== "attack") continue;
      control(key, title, (select) => {
        const open = new Set(matching(key).map((cell) => String(cell[key])));
        option(select, "", "any");
        for (const value of values) option(select, value, value, !open.has(value) && !(open.has("-") && key !== "gradient"));
      });
    }
    control("outcome", "Outcome", (select) => {
      const some = cells.some((cell) => cell.state.includes(LOST));
      for (const [value, [text]] of Object.entries(OUTCOMES)) if (value !== "lost" || some) option(select, value, text);
    });
    const defenses = [...new Set(cells.map((cell) => cell.defense))];
    if (defenses.length > 1)
      control("against", "… and wrong for", (select) => {
        option(select, "", "–");
        for (const value of defenses) option(select, value, value, value === filter.defense);
      });
    control("order", "Sort by", (select) => {
      for (const [value, [text]] of Object.entries(ORDERS)) option(select, value, text);
    });
    makePresets(defenses);
  }

  function preset(text, change) {
    $("presets").append(el("button", { type: "button", textContent: text, onclick: () => { Object.assign(filter, change()); refresh(); } }));
  }

  const nothing = () => Object.fromEntries(FACETS.map(([key]) => [key, ""]));

  function makePresets(defenses) {
    const start = byId.get(data.start);
    const open = () => ({ ...nothing(), ...facetsOf(start), outcome: "", against: "", order: "position" });
    preset(`${start.defense} under ${start.attack}`, open);
    const named = (name) => defenses.find((text) => text === name) ?? defenses.find((text) => text.split(/[: ]/)[0] === name);
    const unguided = named("reverse-sde"), guided = named("coup");
    const pairs = cells.filter((cell) => cell.defense === guided && !cell.control && unguided && partner(cell, unguided));
    if (pairs.length)
      preset("unguided wrong, guided right", () => {
        const own = pairs.filter((cell) => partner(cell, unguided).attack === cell.attack);
        const here = own.find((cell) => cell.attack === filter.attack) ?? own.find((cell) => cell.gradient === "exact") ?? own[0] ?? pairs[0];
        return { ...nothing(), ...facetsOf(here), outcome: "most", against: unguided, order: "position" };
      });
    preset("broken by the attack", () => ({ outcome: "broken", against: "" }));
  }

  // Of one cell, so that it alone is shown.
  const facetsOf = (cell) => Object.fromEntries(FACETS.map(([key]) => [key, key in selects && cell[key] !== "-" ? String(cell[key]) : ""]));

  // ---- the list ---------------------------------------------------------------------------------

  function refresh(keep) {
    for (const [key, { select, fill }] of Object.entries(selects)) {
      select.replaceChildren();
      fill(select);
      select.value = filter[key];
    }
    find();
    const at = keep ? shown.findIndex(([cell, i]) => cell.id === keep[0] && cell.position[i] === keep[1]) : -1;
    tell();
    choose(Math.max(at, 0), { quiet: !keep });
  }

  function tell() {
    const chosen = matching();
    const total = chosen.reduce((sum, cell) => sum + cell.n, 0);
    const words = [`${shown.length.toLocaleString("en")} of ${total.toLocaleString("en")} images`];
    if (chosen.length === 1) {
      const [cell] = chosen, robust = cell.metrics.robust;
      words.push(`${cell.defense} under ${cell.attack}`);
      if (robust) words.push(`robust ${percent(robust)} (${robust[3]} images, ${robust[4]} draws each)`);
    } else words.push(`${chosen.length} cells`);
    if (filter.against) words.push(`wrong in most draws for ${filter.against} under the same attack`);
    $("found").textContent = words.join(" · ");
  }

  function percent([value, low, high]) {
    const text = (100 * value).toFixed(1);
    return low === null ? `${text} %` : `${text} ±${(100 * Math.max(high - value, value - low)).toFixed(1)} %`;
  }

  function bar(part) {
    const inner = el("i");
    inner.style.width = `${100 * Math.max(part, 0)}%`;
    return el("span", { className: "share", "aria-hidden": "true" }, inner);
  }

  const name = (answer) => (answer === NOT_FINITE ? "not finite" : String(answer));
  const tally = (answers, label) => (answers.length ? `right in ${count(answers, label)} of ${answers.length}` : "not judged");

  function thumb(at) {
    const [cell, i] = shown[at];
    const answers = draws(cell, "attackedDraws", i), label = cell.label[i];
    const spoken = `position ${cell.position[i]}, label ${label}, ${tally(answers, label)}, ${cell.defense} under ${cell.attack}`;
    const canvas = el("canvas", { width: 8, height: 8, "aria-hidden": "true" });
    const button = el("button", { type: "button", className: "thumb", title: spoken, "aria-label": spoken, onclick: () => choose(at) });
    button.append(canvas, bar(cell.right[i]), el("span", { className: "of", textContent: answers.length ? `${label}→${name(usual(answers))}` : `${label}→?` }));
    if (new Set(shown.slice(first, first + PAGE).map(([c]) => c)).size > 1) button.append(el("span", { className: "of", textContent: cell.defense }));
    // A picture is opened when it comes into view, and its sheet with it.
    canvas.show = () => draw(canvas, cell, cell.position[i], "attacked").then((is) => is || draw(canvas, cell, cell.position[i], "clean")).then((is) => is || canvas.remove());
    seen.observe(canvas);
    return button;
  }

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) {
      seen.unobserve(entry.target);
      entry.target.show();
    }
  }, { rootMargin: "200px" });

  function list() {
    seen.disconnect();
    const last = Math.min(first + PAGE, shown.length);
    $("thumbs").replaceChildren();
    for (let at = first; at < last; at++) $("thumbs").append(thumb(at));
    const pager = $("pager"), turn = (to) => () => choose(to);
    pager.hidden = shown.length <= PAGE;
    pager.replaceChildren(
      el("button", { type: "button", textContent: "‹ before", disabled: first === 0, onclick: turn(Math.max(0, first - PAGE)) }),
      `${first + 1} to ${last}`,
      el("button", { type: "button", textContent: "next ›", disabled: last === shown.length, onclick: turn(Math.min(first + PAGE, shown.length - 1)) }),
    );
    listed = shown;
  }

  let listed = null;

  function choose(at, { quiet = false, jump = false } = {}) {
    if (!shown.length) {
      current = -1;
      $("thumbs").replaceChildren(el("p", { className: "note", textContent: "No image is so. Loosen a filter." }));
      $("pager").hidden = true;
      $("detail").replaceChildren(el("p", { textContent: "Nothing chosen." }));
      return;
    }
    at = Math.min(Math.max(at, 0), shown.length - 1);
    const page = Math.floor(at / PAGE) * PAGE;
    if (page !== first || listed !== shown) {
      first = page;
      list();
    }
    $("thumbs").children[current - first]?.removeAttribute("aria-current");
    current = at;
    const button = $("thumbs").children[at - first];
    button.setAttribute("aria-current", "true");
    if (!quiet) {
      nearest(button, $("list"));
      const [cell, i] = shown[at];
      history.replaceState(null, "", `#${encodeURIComponent(cell.id)}/${cell.position[i]}`);
    }
    detail();
    if (jump) $("images").scrollIntoView();
  }

  // Scrolls the list alone, never the page under the reader.
  function nearest(node, box) {
    const a = node.getBoundingClientRect(), b = box.getBoundingClientRect();
    if (a.top < b.top) box.scrollTop -= b.top - a.top;
    else if (a.bottom > b.bottom) box.scrollTop += a.bottom - b.bottom;
    if (a.left < b.left) box.scrollLeft -= b.left - a.left;
    else if (a.right > b.right) box.scrollLeft += a.right - b.right;
  }

  // ---- one image --------------------------------------------------------------------------------

  function detail() {
    const [cell, i] = shown[current], position = cell.position[i], label = cell.label[i];
    const attacked = draws(cell, "attackedDraws", i), clean = draws(cell, "cleanDraws", i);
    const of = [`${cell.defense} under ${cell.attack}`, cell.threat !== "-" ? cell.threat : "", cell.gradient !== "-" ? `${cell.gradient} gradient` : "", `seed ${cell.seed}`, cell.dataset];
    const pictures = el("div", { className: "pictures" });
    $("detail").replaceChildren(
      el("h3", { textContent: `Image ${position}, label ${label}` }),
      el("p", { className: "of" }, of.filter(Boolean).join(" · "), " · ", el("a", { href: `#${encodeURIComponent(cell.id)}/${position}`, textContent: "link" }), " · ", provenance(cell)),
      pictures,
      el("dl", { className: "draws" }, ...row("clean", clean, label), ...row("attacked", attacked, label)),
      facts(cell, i),
      ...others(cell, position),
    );
    picture(pictures, cell, position, "clean", "clean", tally(clean, label));
    picture(pictures, cell, position, "attacked", "adversarial", tally(attacked, label));
    if (cell.attacked?.step) picture(pictures, cell, position, "perturbation", "perturbation", `magnified ×${short(cell.attacked.magnified)}, grey is none`);
    const made = slot(cell.purified, position);
    if (made >= 0) picture(pictures, cell, position, "purified", "purified", purifiedWords(cell, made, attacked, label));
  }

  function provenance(cell) {
    const link = el("a", { href: `#cell-${cell.id}`, textContent: "how it was made" });
    link.onclick = () => { const box = $(`cell-${cell.id}`); if (box) { box.open = true; box.closest("details.all").open = true; } };
    return link;
  }

  function purifiedWords(cell, made, attacked, label) {
    const answer = cell.purified.answers[made];
    if (answer === NOT_FINITE) return "the judge’s first draw, first vote";
    const words = `the judge’s first draw: ${name(answer)}, ${answer === label ? "right" : "wrong"}`;
    return answer === attacked[0] ? words : `${words}; recorded was ${name(attacked[0])} (another machine rounds otherwise)`;
  }

  function picture(box, cell, position, kind, title, words) {
    const canvas = el("canvas", { width: 8, height: 8, role: "img", "aria-label": `${title} picture, ${words}` });
    const figure = el("figure", {}, canvas, el("figcaption", {}, el("b", { textContent: title }), words));
    box.append(figure);
    draw(canvas, cell, position, kind).then((is) => is || figure.remove());
  }

  const short = (number) => (number >= 100 ? number.toFixed(0) : number.toFixed(1).replace(/\.0$/, ""));

  function row(title, answers, label) {
    const chips = answers.map((answer, i) => el("i", {
      className: answer === label ? "draw" : "draw wrong", textContent: answer === NOT_FINITE ? "∅" : String(answer),
      title: `draw ${i + 1}: ${name(answer)}, ${answer === label ? "right" : "wrong"}`,
    }));
    const spoken = answers.length ? answers.map(name).join(", ") : "none";
    const list = el("dd", { "aria-label": `answers of ${answers.length} draws: ${spoken}` }, ...chips, el("span", { className: "tally", textContent: tally(answers, label) }));
    return [el("dt", { textContent: title }), list];
  }

  function facts(cell, i) {
    const found = [
      ["Linf", number(cell.linf[i])],
      ["L2", number(cell.l2[i])],
      ["bare classifier, clean", `${name(cell.undefended[i])}, ${cell.undefended[i] === cell.label[i] ? "right" : "wrong"}`],
      ["the attack says", ["", "broken", "withstood", "no image was made"][cell.state[i]]],
      ["network calls of the attack", cell.forward[i] < 0 ? "" : `${cell.forward[i].toLocaleString("en")} + ${cell.backward[i].toLocaleString("en")}`],
      ["index in the dataset", String(cell.index[i])],
      ["also", cell.said[i] ? cell.saidTexts[cell.said[i] - 1] : ""],
    ];
    const list = el("dl", { className: "facts" });
    for (const [title, value] of found) if (value) list.append(el("div", {}, el("dt", { textContent: title }), el("dd", { textContent: value })));
    return list;
  }

  const number = (value) => (Number.isNaN(value) ? "" : value === 0 ? "0" : value < 0.01 ? value.toExponential(2) : value.toFixed(3));

  // The same image elsewhere: other defenses under this attack, other attacks on this defense.
  function others(cell, position) {
    const mates = cells.filter((other) => other.set === cell.set && other.seed === cell.seed && other.classifier === cell.classifier && ofOneScore(other, cell) && other.rowOf.has(position));
    const defenses = [...new Set(mates.map((other) => other.defense))].map((defense) => (defense === cell.defense ? cell : partner(cell, defense))).filter((other) => other?.rowOf.has(position));
    const attacks = mates.filter((other) => other.defense === cell.defense && (other.threat === cell.threat || other.threat === "-" || cell.threat === "-"));
    return [
      table("Under the same attack", defenses, cell, position, (other) => other.defense),
      table("The same defense", attacks, cell, position, (other) => other.attack),
    ].filter(Boolean);
  }

  function table(title, found, cell, position, words) {
    if (found.length < 2) return null;
    const body = el("tbody");
    for (const other of found) {
      const i = other.rowOf.get(position), text = words(other);
      const to = other === cell
        ? el("span", { className: "here", textContent: text })
        : el("button", { type: "button", className: "link", textContent: text, onclick: () => go(other, position) });
      body.append(el("tr", {}, el("th", { scope: "row" }, to), el("td", { textContent: tally(draws(other, "attackedDraws", i), other.label[i]).replace("right in ", "") }), el("td", {}, bar(other.right[i]))));
    }
    return el("table", { className: "others" }, el("caption", { textContent: title }), body);
  }

  function go(cell, position, how) {
    Object.assign(filter, nothing(), facetsOf(cell), { outcome: "", against: "" });
    refresh([cell.id, position]);
    if (how) choose(current, how);
  }

  // ---- keys and addresses -----------------------------------------------------------------------

  function perRow() {
    const thumbs = $("thumbs").children;
    let n = 1;
    while (n < thumbs.length && thumbs[n].offsetTop === thumbs[0].offsetTop) n++;
    return n;
  }

  function key(event) {
    const at = document.activeElement;
    if (event.ctrlKey || event.metaKey || event.altKey || current < 0) return;
    // Elsewhere the keys are the page's own: they scroll, and choose in a list of options.
    if (!(at === document.body || $("panes").contains(at)) || !inView) return;
    const inList = $("list").contains(at);
    const moves = { ArrowRight: 1, j: 1, ArrowLeft: -1, k: -1, Home: -shown.length, End: shown.length };
    const rows = inList ? { ArrowDown: perRow(), ArrowUp: -perRow() } : {};
    const by = { ...moves, ...rows }[event.key];
    if (by === undefined || ((event.key === "Home" || event.key === "End") && !inList)) return;
    event.preventDefault();
    choose(current + by);
    if (inList) $("thumbs").children[current - first].focus({ preventScroll: true });
  }

  let inView = false;

  function follow() {
    const [id, position] = decoded(location.hash.slice(1)).split("/");
    if (position === undefined) return false;
    const cell = byId.get(id), at = Number(position);
    if (!cell?.rowOf.has(at)) {
      trouble(`This page has no image ${position} of ${id}.`);
      return false;
    }
    $("trouble").hidden = true;
    go(cell, at, { jump: true });
    return true;
  }

  // A hand-made address may be no code at all.
  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  }

  function trouble(text) {
    $("trouble").textContent = text;
    $("trouble").hidden = false;
  }

  async function main() {
    if (!cells.length) return;
    if (typeof DecompressionStream === "undefined") {
      trouble("This browser is too old to open the pictures and answers (it has no DecompressionStream); the tables are whole.");
      return;
    }
    for (const cell of cells) [cell.saidTexts, cell.said] = [cell.said, null];
    readAnswers(await unpacked("answers"));
    $("browser").hidden = false;
    makeFilters();
    new IntersectionObserver(([entry]) => { inView = entry.isIntersecting; }).observe($("panes"));
    document.addEventListener("keydown", key);
    window.addEventListener("hashchange", follow);
    if (!follow()) {
      Object.assign(filter, facetsOf(byId.get(data.start)));
      refresh();
    }
    // Milliseconds since the page was asked for: `benchmarks/page.py` reads it.
    document.body.dataset.ready = Math.round(performance.now());
  }

  main().catch((error) => trouble(`The images cannot be shown: ${error.message}`));
})();
