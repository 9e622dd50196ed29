// The token microscope in the browser. It reads its data from the JSON beside it and builds every
// element with textContent: text of models and data never becomes markup. It needs no network.
(() => {
  "use strict";

  const MINUS = "\u2212";
  // JupyterLab looks for this mark on the element with the focus, and leaves it its arrow keys.
  const OWN_KEYS = { "data-lm-suppress-shortcuts": "true" };
  const POLICIES = [
    ["alternatives", "policy", "logprob"],
    ["ref_alternatives", "reference", "ref_logprob"],
  ];

  // Column -> the terms that it is the sum of, each [factor, number]. `at` gives a column's number
  // at this token, `later` at the next one that the policy chose (0 after the last).
  const SUMS = {
    reward: {
      label: "reward",
      needs: ["kl", "score"],
      terms: (at, later, s, last) => [[-s.kl_coef, at("kl")], ...(last ? [[1, at("score")]] : [])],
    },
    td_error: {
      label: "TD error",
      needs: ["reward", "value"],
      terms: (at, later, s) => [[1, at("reward")], [s.gamma, later("value")], [-1, at("value")]],
    },
    advantage: {
      label: "advantage",
      needs: ["td_error"],
      terms: (at, later, s) => [[1, at("td_error")], [s.gamma * s.lam, later("advantage")]],
    },
    return: {
      label: "critic's target",
      needs: ["advantage", "value"],
      terms: (at) => [[1, at("advantage")], [1, at("value")]],
    },
  };

  // One term of a sum, with its sign in front: " - 0.5 × 0.123", " + (−1.2)".
  function term([factor, x]) {
    const size = Math.abs(factor);
    const times = size === 1 ? "" : `${Number(size.toPrecision(3))} \u00d7 `;
    const digits = Math.abs(x).toFixed(3);
    const shown = x < 0 && Number(digits) ? `(${MINUS}${digits})` : digits;
    return ` ${factor < 0 ? MINUS : "+"} ${times}${shown}`;
  }

  // An element with a class, a text and attributes by name.
  function make(tag, name, text, attributes) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
    return element;
  }

  // 0.123 as "+0.123"; a ratio has no sign
  function number(value, column) {
    if (value === null || value === undefined) return "no value";
    if (column.kind === "yes or no") return value ? "yes" : "no";
    const size = Math.abs(value);
    if (size === Infinity) return (value < 0 ? MINUS : "+") + "\u221e";
    const decimals = size < 10 ? 3 : size < 100 ? 2 : size < 1000 ? 1 : 0;
    const digits = column.limit < 0.01 ? size.toPrecision(4) : size.toFixed(decimals);
    if (!Number(digits)) return digits; // 0.000 has no sign
    const plus = column.low && !column.factor ? "+" : "";
    return (value < 0 ? MINUS : plus) + digits;
  }

  function percent(share) {
    if (share < 0.0005) return "<0.1 %";
    return share >= 0.0995 ? `${Math.round(100 * share)} %` : `${(100 * share).toFixed(1)} %`;
  }

  // A token with its spaces and line ends made visible, as nodes.
  function visible(token) {
    const nodes = [];
    const parts = token === "" ? ["\u2205"] : token.split(/(^ +| +$|\n|\t)/);
    for (const part of parts.filter((p) => p !== "")) {
      if (/^ +$/.test(part)) nodes.push(make("span", "blank", "\u00b7".repeat(part.length)));
      else if (part === "\n") nodes.push(make("span", "blank", "\u23ce"));
      else if (part === "\t") nodes.push(make("span", "blank", "\u21e5"));
      else nodes.push(document.createTextNode(part));
    }
    return nodes;
  }

  function spoken(token) {
    if (token === "") return "empty";
    return token.replaceAll("\n", " new line ").replaceAll("\t", " tab ").trim() || "space";
  }

  function start(root) {
    if (root.dataset.on) return;
    root.dataset.on = "yes";
    const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
    const columns = Object.fromEntries(data.columns.map((c) => [c.name, c]));
    const view = { column: data.column, step: data.step, panes: [data.left, data.right] };
    let kept = null; // the token that was clicked or reached by keys: {pane, text, position}
    let pointed = null; // the token under the mouse

    // ---- the data of what is shown

    // A side without the chosen step shows its last step before it, or its first one.
    function frame(side) {
      const frames = data.sides[side].frames;
      const before = frames.filter((f) => f.step === null || f.step <= view.step);
      return view.step !== null && before.length ? before[before.length - 1] : frames[0];
    }

    function texts(pane) {
      if (!view.panes[pane]) return [];
      const [side, text] = view.panes[pane];
      const all = frame(side).texts;
      if (text === "all") return all;
      return all.filter((t) => t.text === text);
    }

    function find(place) {
      return place && texts(place.pane).find((t) => t.text === place.text);
    }

    function value(text, name, position) {
      const raw = (text.numbers[name] || [])[position];
      return raw === undefined || raw === null ? null : Number(raw);
    }

    // ---- the fixed parts

    const head = make("div", "head");
    const legends = make("div", "legends");
    const panes = make("div", "panes");
    const left = make("div", "left");
    const panel = make("section", "panel", undefined, { "aria-label": "Numbers of one token" });
    const body = make("div", "body");
    const help = "Point at a token to see its numbers. Click it to keep it. Arrow keys move on.";
    if (data.title) root.append(make("h3", "title", data.title));
    left.append(legends, panes, make("p", "help", help));
    body.append(left, panel);
    root.append(head, body);
    root.querySelector(".still").remove();

    function control(label, field) {
      const box = make("label", "control", label);
      box.append(field);
      head.append(box);
      return field;
    }

    function chooser(options, chosen, change) {
      const select = make("select", "", undefined, OWN_KEYS);
      for (const [key, label] of options) {
        const option = make("option", "", label, { value: key });
        option.selected = key === chosen;
        select.append(option);
      }
      select.addEventListener("change", () => change(select.value));
      return select;
    }

    control(
      "Colour: ",
      chooser(data.columns.map((c) => [c.name, c.label]), view.column, (name) => {
        view.column = name;
        paint();
      })
    );

    // Each option is a side and a text, or all texts of a side.
    function choices() {
      const options = [];
      data.sides.forEach((side, i) => {
        const of = side.title ? `${side.title}, ` : "";
        const texts = side.frames.flatMap((f) => f.texts);
        const numbers = new Set(texts.map((t) => t.text));
        // the prompt stands behind the number where it tells the responses apart
        const prompts = new Map(texts.map((t) => [t.text, (data.prompts[t.prompt] ?? "").trim()]));
        const apart = new Set(prompts.values()).size === numbers.size && numbers.size > 1;
        for (const n of [...numbers].sort((a, b) => a - b)) {
          const to = apart ? `: ${prompts.get(n).slice(0, 40)}` : "";
          options.push([JSON.stringify([i, n]), `${of}response ${n}${to}`]);
        }
        if (numbers.size > 1) options.push([JSON.stringify([i, "all"]), `${of}all responses`]);
      });
      return options;
    }

    const several = choices().length > 1;
    const selects = [0, 1].map((pane) => {
      const options = pane ? [["null", "nothing"], ...choices()] : choices();
      const select = chooser(options, JSON.stringify(view.panes[pane]), (key) => {
        view.panes[pane] = JSON.parse(key);
        draw();
      });
      if (several) control(pane ? "Beside it: " : "Show: ", select);
      return select;
    });

    if (data.steps.length > 1) {
      const slider = make("input", "slider", undefined, {
        ...OWN_KEYS,
        type: "range",
        min: 0,
        max: data.steps.length - 1,
        step: 1,
      });
      const shown = make("output", "step");
      const move = () => {
        view.step = data.steps[slider.value];
        const last = data.steps[data.steps.length - 1];
        shown.textContent = `${view.step} of ${last}`;
        slider.setAttribute("aria-valuetext", `training step ${shown.textContent}`);
      };
      slider.value = data.steps.indexOf(view.step);
      move();
      slider.addEventListener("input", () => {
        move();
        draw();
      });
      control("Training step: ", slider).after(shown);
    }

    // ---- the tokens

    const boxes = new Map(); // "pane text position" -> element
    const key = (place) => `${place.pane} ${place.text} ${place.position}`;

    function draw() {
      boxes.clear();
      panes.replaceChildren();
      panes.classList.toggle("two", view.panes[1] !== null);
      view.panes.forEach((shown, pane) => {
        if (!shown) return;
        const box = make("div", "pane");
        let last; // a prompt that the next response shares is not repeated
        for (const text of texts(pane)) {
          box.append(drawText(pane, shown[0], text, text.prompt !== last));
          last = text.prompt;
        }
        if (!box.firstChild) box.append(make("p", "name", "No such response at this step."));
        panes.append(box);
      });
      if (!find(kept)) kept = null;
      const first = texts(0)[0] || texts(1)[0];
      if (!kept && first) kept = { pane: texts(0)[0] ? 0 : 1, text: first.text, position: 0 };
      if (kept) kept.position = Math.min(kept.position, find(kept).tokens.length - 1);
      pointed = null;
      paint();
    }

    function nameOf(side, text) {
      return [side.title, `response ${text.text}`].filter(Boolean).join(", ");
    }

    function drawText(pane, side, text, withPrompt) {
      const at = frame(side).step;
      const step = at === null || at === undefined ? "" : `, step ${at}`;
      const name = nameOf(data.sides[side], text) + step;
      const box = make("div", "text");
      box.append(make("p", "name", name));
      if (text.prompt !== undefined && withPrompt) {
        const prompt = make("p", "prompt", "", { dir: "auto" });
        prompt.append(make("b", "", "Prompt: "), data.prompts[text.prompt]);
        box.append(prompt);
      }
      const tokens = make("div", "tokens", undefined, {
        role: "listbox",
        "aria-label": `Tokens of ${name}`,
        "aria-orientation": "horizontal",
      });
      text.tokens.forEach((word, position) => {
        const token = data.words[word];
        const chosen = !text.chosen || text.chosen[position];
        const box = make("span", chosen ? "token" : "token tool", undefined, {
          ...OWN_KEYS,
          role: "option",
          dir: "auto",
        });
        box.append(...visible(token));
        const place = { pane, text: text.text, position };
        box.place = place;
        boxes.set(key(place), box);
        tokens.append(box);
        if (token.endsWith("\n")) tokens.append(make("br"));
      });
      box.append(tokens);
      return box;
    }

    // ---- colours

    // -1 to 1: how far a value is along the colour scale. null: no value.
    function share(column, value) {
      if (value === null || Number.isNaN(value)) return null;
      if (column.kind === "yes or no") return value ? 1 : 0;
      if (!column.limit) return 0;
      const away = column.factor ? Math.log(value) : value;
      return Math.max(-1, Math.min(1, away / column.limit));
    }

    function colour(share) {
      const end = share < 0 ? "low" : "high";
      return `color-mix(in srgb, var(--${end}) ${80 * Math.abs(share)}%, var(--zero))`;
    }

    // The column of booleans that is marked with a line below the token.
    function marks(column) {
      return column.kind === "yes or no" ? column : columns.clipped;
    }

    function paint() {
      const column = columns[view.column];
      const marked = marks(column);
      for (const box of boxes.values()) {
        const text = find(box.place);
        const at = value(text, view.column, box.place.position);
        const along = share(column, at);
        box.classList.toggle("none", along === null);
        box.style.background = along === null ? "" : colour(along);
        const mark = Boolean(marked && value(text, marked.name, box.place.position));
        box.classList.toggle("mark", mark);
        const tool = box.classList.contains("tool") ? ", written by a tool" : "";
        const yes = mark && marked !== column ? `, ${marked.label}` : "";
        box.setAttribute(
          "aria-label",
          `token ${box.place.position}: ${spoken(data.words[text.tokens[box.place.position]])}, ` +
            `${column.label} ${number(at, column)}${yes}${tool}`
        );
      }
      for (const [name, box] of legendOf) box.classList.toggle("on", name === view.column);
      show();
    }

    // The legends of all columns lie on each other and one is visible. So nothing moves when
    // another column is chosen.
    const all = data.sides.flatMap((side) => side.frames.flatMap((f) => f.texts));
    const legendOf = new Map(data.columns.map((column) => [column.name, drawLegend(column)]));
    legends.append(...legendOf.values());

    function drawLegend(column) {
      const box = make("div", "legend");
      const line = make("div", "scale");
      if (column.kind === "number") {
        const low = column.low ? -1 : 0;
        const high = column.high ? 1 : 0;
        const bar = make("span", "bar");
        const stops = [low, 0, high].map(colour);
        bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
        const end = (at) => (column.factor ? Math.exp(at * column.limit) : at * column.limit);
        const label = (at) => make("span", "", number(end(at), column));
        if (low !== high) line.append(label(low), bar, label(high));
        else line.append(bar, label(0));
        if (low && high) line.append(make("span", "", `no colour: ${column.factor ? 1 : 0}`));
        if (column.unit) line.append(make("span", "", `(${column.unit})`));
      }
      const marked = marks(column);
      const any = (name) => all.some((t) => (t.numbers[name] || []).some(Boolean));
      if (marked && any(marked.name)) line.append(example("mark", `double line: ${marked.label}`));
      if (all.some((t) => (t.numbers[column.name] || [null]).includes(null))) {
        line.append(example("none", "no value"));
      }
      if (all.some((t) => t.chosen)) line.append(example("tool", "written by a tool"));
      box.append(line, make("p", "about", column.about));
      return box;
    }

    function example(name, label) {
      const box = make("span", "example");
      box.append(make("span", `token ${name}`, "abc", { "aria-hidden": "true" }), ` ${label}`);
      return box;
    }

    // ---- the panel: the numbers of one token

    const title = make("p", "which");
    const table = make("table", "numbers");
    const cells = {};
    const tops = make("tr");
    tops.append(make("th", "", "", { scope: "col" }));
    const topCells = [0, 1].map(() => make("th", "", "", { scope: "col" }));
    tops.append(...topCells);
    const topRow = make("thead");
    topRow.append(tops);
    const rows = make("tbody");
    let group = "";
    for (const column of data.columns) {
      if (column.group !== group && data.columns.length > 4) {
        const row = make("tr", "group");
        row.append(make("th", "", column.group, { scope: "rowgroup" }));
        rows.append(row);
        group = column.group;
      }
      const row = make("tr");
      const label = make("th", "", column.label, { scope: "row", title: column.about });
      cells[column.name] = [make("td"), make("td")];
      row.append(label, ...cells[column.name]);
      row.dataset.column = column.name;
      rows.append(row);
    }
    const widths = make("colgroup");
    widths.append(make("col"), make("col", "value"), make("col", "value"));
    table.append(widths, topRow, rows);
    panel.append(title, table);

    // How rewards, values and advantages add up, with the numbers of this token. A line is left
    // empty where the sum is another one, for example where advantages were whitened.
    const sums = make("table", "numbers sums");
    const sumCells = {};
    const coefficients = make("p", "likeliest");
    const settingsOf = (place) => data.sides[view.panes[place.pane][0]].settings;
    if (data.sides.some((side) => side.settings)) {
      const lines = make("tbody");
      for (const name of Object.keys(SUMS)) {
        if (!columns[name] || !SUMS[name].needs.every((n) => columns[n])) continue;
        const row = make("tr");
        sumCells[name] = make("td");
        row.append(make("th", "", SUMS[name].label, { scope: "row" }), sumCells[name]);
        lines.append(row);
      }
      sums.append(lines);
      if (lines.firstChild) panel.append(coefficients, sums);
    }

    function drawSums(place, text) {
      const settings = settingsOf(place);
      const positions = text.tokens.map((_, t) => t).filter((t) => !text.chosen || text.chosen[t]);
      const termsAt = (name, i) => {
        const next = positions[i + 1];
        const at = (column) => value(text, column, positions[i]);
        const later = (column) => (next === undefined ? 0 : value(text, column, next));
        return SUMS[name].terms(at, later, settings, next === undefined);
      };
      // A sum is shown if it holds at every token of the response. Numbers have four digits.
      const holds = (name) =>
        positions.every((t, i) => {
          const terms = termsAt(name, i);
          const wanted = value(text, name, t);
          const known = terms.every(([, x]) => x !== null) && wanted !== null;
          const total = terms.reduce((sum, [factor, x]) => sum + factor * x, 0);
          const size = terms.reduce((sum, [factor, x]) => sum + Math.abs(factor * x), 1);
          return known && Math.abs(total - wanted) < 0.002 * size;
        });
      const here = positions.indexOf(place.position); // -1 at a token of a tool
      let shown = false;
      for (const [name, cell] of Object.entries(sumCells)) {
        const near = settings && here >= 0 && holds(name);
        shown = shown || near;
        const terms = near ? termsAt(name, here) : [];
        const sum = terms.map(term).join("").replace(/^ \+ /, "").replace(/^ (\u2212) /, "$1");
        cell.textContent = near ? sum : "";
      }
      coefficients.textContent = shown
        ? `Sums (KL coefficient ${settings.kl_coef}, gamma ${settings.gamma}, lambda ${settings.lam})`
        : "";
    }

    const bars = make("div", "policies");
    const charts = POLICIES.filter(([name]) => all.some((t) => t[name])).map(
      ([name, who, logprob]) => {
        const chart = make("div", "chart");
        const list = make("ol", "", undefined, { "aria-label": `Likeliest tokens, ${who}` });
        chart.append(make("p", "", who), list);
        bars.append(chart);
        return [name, logprob, list];
      }
    );
    const likeliest = make("p", "likeliest");
    if (charts.length) panel.append(likeliest, bars);

    function show() {
      const place = pointed || kept;
      for (const [name, box] of boxes) {
        const same = place && box.place.position === place.position;
        const here = Boolean(place && name === key(place));
        box.classList.toggle("here", here);
        box.classList.toggle("twin", Boolean(same && !here && box === twin(place)));
        const isKept = Boolean(kept && name === key(kept));
        box.setAttribute("aria-selected", isKept);
        box.tabIndex = isKept ? 0 : -1;
      }
      const text = find(place);
      if (!text) return;
      const position = place.position;
      const token = data.words[text.tokens[position]];
      const last = text.tokens.length - 1;
      title.replaceChildren(`Position ${position} (of 0 to ${last}): `, word(token));
      const other = twin(place);
      const shown = [text, other && find(other.place)];
      const places = [place, other && other.place];
      if (other && places[0].pane > places[1].pane) {
        shown.reverse();
        places.reverse();
      }
      const compared = view.panes[1] !== null;
      table.classList.toggle("compared", compared);
      for (const row of rows.querySelectorAll(".group th")) row.colSpan = compared ? 3 : 2;
      shown.forEach((t, i) => {
        topCells[i].replaceChildren();
        if (t && compared) {
          topCells[i].append(word(data.words[t.tokens[position]]));
        }
        for (const column of data.columns) {
          const shown = t ? number(value(t, column.name, position), column) : "";
          cells[column.name][i].textContent = shown;
        }
      });
      for (const row of rows.children) {
        row.classList.toggle("coloured", row.dataset.column === view.column);
      }
      drawSums(place, text);
      const side = data.sides[view.panes[place.pane][0]];
      const whose = compared ? ` in ${nameOf(side, text)}` : " tokens";
      likeliest.textContent = `Likeliest${whose} (framed: the written one)`;
      for (const [name, logprob, list] of charts) {
        const pairs = [];
        const flat = (text[name] || [])[position] || [];
        for (let i = 0; i < flat.length; i += 2) pairs.push([data.words[flat[i]], flat[i + 1]]);
        const written = value(text, logprob, position);
        if (pairs.length && written !== null && !pairs.some(([other]) => other === token)) {
          pairs[5] = [token, Math.exp(written)];
        }
        drawBars(list, pairs, token);
      }
    }

    // The token at the same position in the other pane.
    function twin(place) {
      const others = place ? texts(1 - place.pane) : [];
      const other = others.find((t) => t.text === place.text) || others[0];
      return other && boxes.get(key({ ...place, pane: 1 - place.pane, text: other.text }));
    }

    function word(token) {
      const box = make("span", "word", undefined, { dir: "auto" });
      box.append(...visible(token));
      return box;
    }

    // The five likeliest tokens and the written one. Six lines always: the panel keeps its height.
    function drawBars(list, pairs, token) {
      list.replaceChildren();
      for (let i = 0; i < 6; i += 1) {
        const line = make("li");
        if (pairs[i]) {
          const [other, probability] = pairs[i];
          const bar = make("span", "share");
          bar.style.setProperty("--share", `${100 * probability}%`);
          line.append(bar, word(other), make("span", "percent", percent(probability)));
          line.classList.toggle("written", other === token);
        }
        list.append(line);
      }
    }

    // ---- mouse, touch and keys

    const boxOf = (event) => event.target.closest(".token");

    // Not "pointerover": it also comes when new text appears under a mouse that rests.
    panes.addEventListener("pointermove", (event) => {
      const box = boxOf(event);
      if (!box || box.place === pointed) return;
      pointed = box.place;
      show();
    });
    panes.addEventListener("pointerleave", () => {
      pointed = null;
      show();
    });
    panes.addEventListener("focusin", (event) => {
      const box = boxOf(event);
      if (!box) return;
      kept = box.place;
      pointed = null;
      show();
    });

    function go(place) {
      const box = boxes.get(key(place));
      if (box) box.focus();
    }

    // Up and down: the text before or after this one, in this pane.
    function goToText(place, by) {
      const [side, chosen] = view.panes[place.pane];
      const all = frame(side).texts;
      const next = all[all.findIndex((t) => t.text === place.text) + by];
      if (!next) return;
      if (chosen !== "all") {
        view.panes[place.pane] = [side, next.text];
        selects[place.pane].value = JSON.stringify(view.panes[place.pane]);
      }
      const position = Math.min(place.position, next.tokens.length - 1);
      kept = { pane: place.pane, text: next.text, position };
      if (chosen !== "all") draw();
      go(kept);
    }

    panes.addEventListener("keydown", (event) => {
      const box = boxOf(event);
      if (!box || event.ctrlKey || event.metaKey || event.altKey) return;
      const place = box.place;
      const last = find(place).tokens.length - 1;
      const moves = {
        ArrowRight: () => go({ ...place, position: Math.min(place.position + 1, last) }),
        ArrowLeft: () => go({ ...place, position: Math.max(place.position - 1, 0) }),
        Home: () => go({ ...place, position: 0 }),
        End: () => go({ ...place, position: last }),
        ArrowUp: () => goToText(place, -1),
        ArrowDown: () => goToText(place, 1),
      };
      if (!moves[event.key]) return;
      event.preventDefault();
      event.stopPropagation();
      moves[event.key]();
    });

    draw();
  }

  const script = document.currentScript;
  const own = script && script.closest(".minirlhf-microscope");
  const roots = own ? [own] : document.querySelectorAll(".minirlhf-microscope");
  roots.forEach(start);
})();
