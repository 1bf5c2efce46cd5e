// One question: the replies of all policies side by side.

const DEPTH_DIGITS = 2;
let current = null;

function rightness(right) {
  if (right === null) return null;
  return element("span", { className: right ? "right" : "wrong" }, right ? " ✓ right" : " ✗ wrong");
}

function marked([operation, own, heard]) {
  if (operation === "=") return `${own} `;
  const names = { s: "substitution", i: "insertion", d: "deletion" };
  const parts = {
    s: () => [element("s", {}, own), ` → ${heard}`],
    i: () => [`+${heard}`],
    d: () => ["−", element("s", {}, own)],
  };
  const name = names[operation];
  return element("span", {}, element("span", { className: `word ${name}`, title: name },
    element("span", { className: "sr" }, `${name}: `), ...parts[operation]()), " ");
}

function transcript(reply) {
  if (reply.transcript === null) return element("p", { className: "soft" }, "no transcript");
  const heading = reply.errors === null ? "Transcript" : `Transcript, ${reply.errors} of ${reply.words} words wrong`;
  const words = reply.aligned ? reply.aligned.map(marked) : [reply.transcript];
  return element("p", { className: "transcript" }, element("span", { className: "label" }, heading,
    rightness(reply.right_speech)), ...words);
}

// A bar per token; the text of the stretch stands in its title.
function strip(reply) {
  const depths = reply.depths.match(new RegExp(`.{${DEPTH_DIGITS}}`, "g")) ?? [];
  const full = data.full_depth;
  const picture = drawing("svg", {
    class: "strip", viewBox: `0 0 ${Math.max(depths.length, 1)} ${full}`, preserveAspectRatio: "none",
    role: "img", "aria-label": `depth of each of ${depths.length} tokens`,
  });
  let start = 0;
  let words = 0;
  reply.spans.forEach((width, index) => {
    const speech = index % 2 === 1;
    const group = drawing("g", { class: speech ? "speech" : "text" });
    const said = speech ? "speech" : reply.tokens.slice(words, words += width).join(" ");
    const title = drawing("title");
    title.textContent = `tokens ${start + 1} to ${start + width}: ${said}`;
    group.append(title);
    for (let i = start; i < start + width; i += 1) {
      const depth = parseInt(depths[i], 36);
      group.append(drawing("rect", { x: i + 0.08, y: full - depth, width: 0.84, height: depth }));
    }
    start += width;
    picture.append(group);
  });
  const scale = element("div", { className: "scale" },
    element("span", {}, "first token"), element("span", {}, `full depth ${full}`),
    element("span", {}, `token ${depths.length}`));
  return [picture, scale];
}

function player(reply) {
  if (reply.file === null) return [];
  const source = data.sounds[reply.sound] ?? reply.file.split("/").map(encodeURIComponent).join("/");
  const audio = element("audio", { controls: true, preload: "metadata", src: source });
  const bars = [...reply.wave];
  const head = drawing("rect", { class: "head", x: 0, y: 0, width: 0.7, height: 70, visibility: "hidden" });
  const picture = drawing("svg", {
    class: "wave", viewBox: `0 0 ${bars.length} 70`, preserveAspectRatio: "none", "aria-hidden": "true",
  });
  bars.forEach((digit, i) => {
    const half = parseInt(digit, 36) || 0.5;
    picture.append(drawing("rect", { x: i + 0.15, y: 35 - half, width: 0.7, height: 2 * half }));
  });
  picture.append(head);
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    audio.currentTime = reply.duration * (event.clientX - box.left) / box.width;
  });
  audio.addEventListener("timeupdate", () => {
    head.setAttribute("visibility", "visible");
    head.setAttribute("x", bars.length * audio.currentTime / reply.duration);
  });
  audio.addEventListener("play", () => {
    for (const other of byId("replies").querySelectorAll("audio")) if (other !== audio) other.pause();
  });
  audio.addEventListener("error", () => {
    audio.replaceWith(element("p", { className: "soft" }, `The sound file ${reply.file} is not beside this page.`));
  }, { once: true });
  return [picture, audio];
}

function card(reply) {
  const row = data.rows[reply.row];
  const facts = [
    reply.depth === null ? null : `speech depth ${number(reply.depth, 1)} of ${data.full_depth}`,
    `${reply.calls} layer calls`,
    reply.seconds === null ? null : `${number(reply.seconds, 2)} s`,
    reply.mos === null ? null : `MOS ${number(reply.mos, 2)}`,
    reply.ended ? null : "cut off at the token limit",
  ].filter((fact) => fact !== null);
  return element("article", { className: "reply" },
    element("h4", {}, icon(row), " ", element("code", {}, row.policy)),
    element("p", { className: "soft" }, facts.map((fact) => fact.replaceAll(" ", "\u00a0")).join(" · ")),
    element("p", {}, element("span", { className: "label" }, "Text", rightness(reply.right_text)), reply.text || "(empty)"),
    ...player(reply), transcript(reply), ...strip(reply));
}

const listed = () => data.questions.filter((question) => question.differs || !byId("differing").checked);

function show(question) {
  current = question;
  const questions = listed();
  const at = questions.indexOf(question);
  byId("asked").textContent = question.question;
  byId("question").value = question.id;
  byId("link").href = `#q=${question.id}`;
  byId("position").textContent = `Question ${at + 1} of ${questions.length}.`;
  byId("previous").disabled = at <= 0;
  byId("next").disabled = at >= questions.length - 1;
  byId("replies").replaceChildren(...question.replies.map(card));
}

function list() {
  byId("question").replaceChildren(
    ...listed().map((question) => element("option", { value: question.id }, question.question)));
}

function go(question) {
  history.replaceState(null, "", `#q=${question.id}`);
  show(question);
}

function step(by) {
  const questions = listed();
  const next = questions[questions.indexOf(current) + by];
  if (next) go(next);
}

// The question on which policies differ most, so that a page without its folder has its sound.
const most = () => listed().find((question) => question.id === data.first) ?? listed()[0];

// A link can lead to a question that the filter hides: show it without the filter.
function follow() {
  const id = new URLSearchParams(location.hash.slice(1)).get("q");
  const question = data.questions.find((candidate) => candidate.id === id);
  if (question && !listed().includes(question)) {
    byId("differing").checked = false;
    list();
  }
  show(question ?? current ?? most());
}

const differing = data.questions.filter((question) => question.differs).length;
byId("differing").disabled = differing === 0;
byId("differing").checked = differing > 0;
byId("left-out").textContent = data.left_out
  ? `${data.left_out} further questions do not fit into the page; records.jsonl has them.` : "";
byId("differing").addEventListener("change", () => { list(); show(listed().includes(current) ? current : most()); });
byId("question").addEventListener("change", () => go(data.questions.find((q) => q.id === byId("question").value)));
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
addEventListener("hashchange", follow);
addEventListener("keydown", (event) => {
  const busy = event.target.closest("input, select, textarea, audio, .scroll, summary");
  if (busy || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
list();
follow();
