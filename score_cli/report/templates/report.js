"use strict";
// The browser of traces. All text reaches the page through textContent: what a response holds is shown and never run.

const PAGE = 20;
// Longest-common-subsequence table of one diff; beyond it, the whole text counts as changed.
const MOST_CELLS = 4e6;
const holder = document.getElementById("data");

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Words, runs of white space, single signs.
const words = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) || [];

// For each word of a and of b, whether the other text keeps it.
function common(a, b) {
  const keepA = new Array(a.length).fill(false), keepB = new Array(b.length).fill(false);
  let start = 0, endA = a.length, endB = b.length;
  while (start < endA && start < endB && a[start] === b[start]) keepA[start] = keepB[start++] = true;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) keepA[--endA] = keepB[--endB] = true;
  const n = endA - start, m = endB - start;
  if (n * m > MOST_CELLS) return [keepA, keepB];
  const width = m + 1, longest = new Uint16Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--)
    for (let j = m - 1; j >= 0; j--)
      longest[i * width + j] = a[start + i] === b[start + j]
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
  for (let i = 0, j = 0; i < n && j < m; ) {
    if (a[start + i] === b[start + j]) keepA[start + i++] = keepB[start + j++] = true;
    else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i++;
    else j++;
  }
  return [keepA, keepB];
}

// The text with the words that the other lacks marked by <del> or <ins>.
function marked(parts, keep, tag) {
  const box = element("pre");
  for (let i = 0; i < parts.length; ) {
    let end = i;
    while (end < parts.length && keep[end] === keep[i]) end++;
    const run = parts.slice(i, end).join("");
    box.append(keep[i] ? run : element(tag, "", run));
    i = end;
  }
  return box;
}

function role(attempt) {
  return attempt.title.split(" ")[0];
}

function attemptBox(trace, index) {
  const attempt = trace.attempts[index], box = element("div", "attempt");
  const head = element("h4", "", attempt.title + " ");
  head.append(element("span", "verdict " + trace.chain.split("-")[index], attempt.verdict.replaceAll("_", " ")));
  box.append(head);
  const mine = words(attempt.text);
  const alike = trace.attempts.map((other, turn) => [turn, other]).filter(([, other]) => role(other) === role(attempt));
  const place = alike.findIndex(([turn]) => turn === index);
  if (place > 0) {
    const before = words(alike[place - 1][1].text);
    box.append(marked(mine, common(before, mine)[1], "ins"));
  } else if (alike.length > 1) {
    box.append(marked(mine, common(mine, words(alike[1][1].text))[0], "del"));
  } else box.append(element("pre", "", attempt.text));
  if (attempt.cut) box.append(element("p", "note", `… ${attempt.cut} more characters stand in the traces table`));
  const facts = [];
  if (attempt.answer !== null) facts.push(`answer ${attempt.answer}`);
  else if (answerOf(attempt) === null) facts.push("no answer");
  if (attempt.given) facts.push("given, not sampled");
  else facts.push(`${attempt.tokens} tokens`);
  if (attempt.logprob !== null) facts.push(`mean logprob ${attempt.logprob.toFixed(3)}`);
  if (attempt.finish === "length") facts.push("cut at the token limit");
  box.append(element("p", "facts", facts.join(" · ")));
  return box;
}

function card(data, trace) {
  const box = element("article", "trace"), problem = data.problems[trace.problem];
  const head = element("h3", "", `${trace.problem} #${trace.sample}`);
  head.append(element("span", "source", data.sources[trace.source].title));
  box.append(head);
  if (problem) {
    box.append(element("pre", "question", problem.text + (problem.cut ? " …" : "")));
    if (problem.answer !== null) box.append(element("p", "facts", `gold answer ${problem.answer}`));
  }
  const attempts = element("div", "attempts");
  trace.attempts.forEach((_, index) => attempts.append(attemptBox(trace, index)));
  box.append(attempts);
  return box;
}

// A grader that extracts nothing, as a user's own, leaves the whole text to compare.
function answerOf(attempt) {
  return ["no_answer", "truncated"].includes(attempt.verdict) ? null : attempt.answer ?? attempt.text;
}

function changedAnswer(trace) {
  const answers = trace.attempts.filter((attempt) => ["attempt", "solve"].includes(role(attempt))).map(answerOf);
  return answers.some((answer, index) => index > 0 && answer !== answers[index - 1]);
}

function matching(data, filters) {
  const wanted = filters.problem.trim().toLowerCase();
  const exact = data.traces.some((trace) => trace.problem.toLowerCase() === wanted);
  return data.traces.filter((trace) => {
    if (filters.source && data.sources[trace.source].key !== filters.source) return false;
    if (filters.chain && trace.chain !== filters.chain) return false;
    if (filters.changed && !changedAnswer(trace)) return false;
    if (!wanted || trace.problem.toLowerCase() === wanted) return true;
    if (exact) return false;
    const problem = data.problems[trace.problem];
    return trace.problem.toLowerCase().includes(wanted) || (problem && problem.text.toLowerCase().includes(wanted));
  });
}

function browse(data) {
  const form = document.getElementById("filters"), list = document.getElementById("list");
  const count = document.getElementById("count");
  const previous = document.getElementById("previous"), next = document.getElementById("next");
  let first = 0;

  for (const name of [...new Set(data.traces.map((trace) => trace.problem))].sort()) {
    const choice = element("option");
    choice.value = name;
    document.getElementById("problem-ids").append(choice);
  }

  function show() {
    const filters = {
      source: form.elements.source.value,
      chain: form.elements.chain.value,
      problem: form.elements.problem.value,
      changed: form.elements.changed.checked,
    };
    const found = matching(data, filters);
    first = Math.max(0, Math.min(first, Math.floor((found.length - 1) / PAGE) * PAGE));
    const last = Math.min(first + PAGE, found.length);
    count.textContent = found.length ? `${first + 1}–${last} of ${found.length} traces` : "no trace passes these filters";
    previous.disabled = first === 0;
    next.disabled = last >= found.length;
    list.replaceChildren(...found.slice(first, last).map((trace) => card(data, trace)));
  }

  // A link such as #source=base-sampled&chain=i-c sets the filters.
  function follow() {
    if (!location.hash.includes("=")) return;
    const wanted = new URLSearchParams(location.hash.slice(1));
    for (const name of ["source", "chain", "problem"]) form.elements[name].value = wanted.get(name) || "";
    form.elements.changed.checked = wanted.has("changed");
    first = 0;
    show();
    document.getElementById("traces").scrollIntoView();
  }

  form.addEventListener("input", () => { first = 0; show(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  previous.addEventListener("click", () => { first -= PAGE; show(); });
  next.addEventListener("click", () => { first += PAGE; show(); });
  window.addEventListener("hashchange", follow);
  show();
  follow();
}

if (holder) browse(JSON.parse(holder.textContent));
