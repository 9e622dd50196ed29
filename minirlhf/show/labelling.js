// The widget in which a person labels pairs. Text from Python goes into textContent only.

const CHOICES = [
  { action: "left", key: "1", label: "Left" },
  { action: "right", key: "2", label: "Right" },
  { action: "tie", key: "0", label: "Tie" },
  { action: "skip", key: "s", label: "Skip" },
  { action: "undo", key: "u", label: "Undo" },
];
const PATIENCE = 5000; // milliseconds until the reader is told that no answer comes

function element(tag, name, parent, text = "") {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  parent.append(made);
  return made;
}

// JupyterLab looks for this mark on the element with the focus, and leaves it its keys.
function ownKeys(made) {
  made.dataset.lmSuppressShortcuts = "true";
}

function render({ model, el }) {
  const root = element("div", "minirlhf-label", el);
  root.tabIndex = 0;
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "Label pairs");
  ownKeys(root);

  const question = element("p", "question", root);
  const prompt = element("p", "prompt", root);
  const sides = element("div", "sides", root);
  const buttons = {};
  const texts = {};
  for (const side of ["left", "right"]) {
    const box = element("div", "side", sides);
    texts[side] = element("p", "text", box);
    texts[side].dir = "auto";
    buttons[side] = element("button", "choice", box);
  }
  const others = element("div", "others", root);
  for (const action of ["tie", "skip", "undo"]) buttons[action] = element("button", "choice", others);
  const foot = element("div", "foot", root);
  const bar = element("progress", "bar", foot);
  bar.setAttribute("aria-label", "pairs labelled");
  const count = element("span", "count", foot);
  const help = element("span", "help", foot);
  help.dataset.away = "Click here to use the keys.";
  help.dataset.here = "The keys work now.";
  const note = element("p", "note", root);
  note.setAttribute("role", "status");

  let waiting = null; // a timer, while Python has not answered

  function possible(action) {
    const { done, finished } = model.get("view");
    return action === "undo" ? done > 0 : !finished;
  }

  function act(action) {
    if (waiting !== null || !possible(action)) return;
    waiting = setTimeout(() => {
      note.textContent = "The kernel does not answer. If it is not busy, run this cell again.";
    }, PATIENCE);
    model.send({ action, seen: model.get("view").done });
  }

  function draw() {
    const view = model.get("view");
    clearTimeout(waiting);
    waiting = null;
    question.textContent = view.question;
    prompt.textContent = view.prompt;
    for (const side of ["left", "right"]) texts[side].textContent = view[side];
    root.classList.toggle("finished", view.finished);
    for (const { action } of CHOICES) buttons[action].setAttribute("aria-disabled", !possible(action));
    bar.max = view.total;
    bar.value = view.done;
    count.textContent = `${view.done} of ${view.total} labelled`;
    const end = `All ${view.total} pairs are labelled. Your choices are in ${view.file}.`;
    note.textContent = view.error || (view.finished ? end : "");
    note.classList.toggle("error", view.error !== "");
  }

  for (const { action, key, label } of CHOICES) {
    const button = buttons[action];
    button.type = "button";
    button.dataset.action = action;
    ownKeys(button);
    element("kbd", "key", button, key);
    button.append(` ${label}`);
    button.addEventListener("click", () => act(action));
  }
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const found = CHOICES.find(({ key }) => key === event.key.toLowerCase());
    if (event.key.length === 1) event.stopPropagation(); // a notebook has keys of its own
    if (!found || event.repeat) return;
    event.preventDefault();
    act(found.action);
  });
  model.on("change:view", draw);
  draw();
  return () => {
    clearTimeout(waiting);
    model.off("change:view", draw);
  };
}

export default { render };
