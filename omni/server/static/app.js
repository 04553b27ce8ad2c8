// The page: a conversation with the model over its own HTTP interface, and live over its WebSocket.

import { Player, RATE_HZ, Recorder, fromBase64, toBase64, toInt16, wav } from "./sound.js";

const $ = (id) => document.getElementById(id);
let messages = []; // of this conversation, in OpenAI's shape; another has an array of its own
let attached = []; // {part, element}
let model = null;
let request = null; // AbortController of the answer under way
let player = null;
let recorder = null;
let live = null;

// --- small helpers

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").className = wrong ? "error" : "";
}

function headers() {
  return $("key").value ? { Authorization: `Bearer ${$("key").value}` } : {};
}

async function problem(response) {
  if (response.status === 401) { $("key-label").hidden = false; $("key").focus(); }
  try { return (await response.json()).error.message; } catch { return `the server answered ${response.status}`; }
}

function asDataURL(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

// --- messages on the page

function turn(role) {
  const said = make("div", { className: "said" });
  const item = make("li", { className: role }, make("div", { className: "who", textContent: role === "user" ? "You" : "μOmni" }), said);
  $("log").append(item);
  item.scrollIntoView({ block: "end" });
  return { item, said };
}

function table(caption, rows) {
  const body = make("tbody");
  for (const [name, value] of rows) body.append(make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", { textContent: value })));
  return make("table", {}, make("caption", { textContent: caption }), body);
}

function show(extras) {
  const view = $("view");
  view.replaceChildren(table("Tokens of the prompt", Object.entries(extras.prompt_tokens)));
  const labels = { started: "began", read: "prompt read", first_text: "first text", first_audio: "first sound", done: "done" };
  view.append(table("Milliseconds since the request", Object.entries(extras.timings_ms).map(([name, ms]) => [labels[name] || name, ms.toFixed(0)])));
  (extras.heard || []).forEach((url, i) => view.append(make("figure", {},
    make("img", { src: url, alt: `Log-mel spectrogram of sound ${i + 1}: time to the right, pitch upwards` }),
    make("figcaption", { textContent: `Sound ${i + 1} as it was heard` }))));
  (extras.saw || []).forEach((url, i) => view.append(make("figure", {},
    make("img", { src: url, className: "seen", alt: `Picture ${i + 1} at the size the model sees` }),
    make("figcaption", { textContent: `Picture ${i + 1} as it was seen` }))));
}

// --- attachments

function attach(part, name, preview) {
  const remove = make("button", { type: "button", textContent: "Remove" });
  remove.setAttribute("aria-label", `Remove ${name}`);
  const element = make("li", {}, preview, make("span", { textContent: name }), remove);
  const entry = { part, element, preview };
  remove.onclick = () => { attached = attached.filter((other) => other !== entry); element.remove(); $("text").focus(); };
  attached.push(entry);
  $("attached").append(element);
  say(`${name} is attached`);
}

async function attachFile(file) {
  const url = await asDataURL(file);
  if (file.type.startsWith("image/")) {
    attach({ type: "image_url", image_url: { url } }, file.name || "picture", make("img", { src: url, alt: "" }));
  } else {
    const preview = make("audio", { src: url, controls: true });
    attach({ type: "input_audio", input_audio: { data: url.split(",")[1], format: file.name.split(".").pop().toLowerCase() } }, file.name || "sound", preview);
  }
}

for (const id of ["picture", "sound"]) {
  $(id).onchange = async () => {
    for (const file of $(id).files) await attachFile(file);
    $(id).value = "";
  };
}
document.addEventListener("paste", (event) => [...event.clipboardData.files].forEach(attachFile));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => { event.preventDefault(); [...event.dataTransfer.files].forEach(attachFile); });

$("record").onclick = async () => {
  if (recorder) {
    const { stop, pieces } = recorder;
    recorder = null;
    $("record").setAttribute("aria-pressed", "false");
    $("record").textContent = "Record";
    await stop();
    const samples = toInt16(pieces.flatMap((piece) => [...piece]));
    if (!samples.length) { say("nothing was recorded", true); return; }
    await attachFile(new File([wav(samples)], "recording.wav", { type: "audio/wav" }));
    return;
  }
  const pieces = [];
  $("record").disabled = true; // until there is something to stop
  try {
    const microphone = await Recorder.start((samples) => { pieces.push(samples); $("record").dataset.samples = pieces.length * samples.length; });
    recorder = { pieces, stop: () => microphone.stop() };
    $("record").setAttribute("aria-pressed", "true");
    $("record").textContent = "Stop recording";
    say("recording …");
  } catch (error) {
    say(`no microphone: ${error.message}`, true);
  } finally {
    $("record").disabled = false;
  }
};

// --- asking

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function ask(content) {
  const history = messages;
  history.push({ role: "user", content });
  const speak = $("speak").checked;
  const body = { model: model.id, messages: history, stream: true, muomni: { view: true } };
  if (speak) Object.assign(body, { modalities: ["text", "audio"], audio: { format: "pcm16", voice: $("voice").value } });
  const { item, said } = turn("assistant");
  request = new AbortController();
  $("stop").disabled = false;
  $("send").disabled = true;
  let reply = "";
  let failed = null;
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: { "Content-Type": "application/json", ...headers() }, body: JSON.stringify(body), signal: request.signal,
    });
    if (!response.ok) throw new Error(await problem(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const { delta } = event.choices[0] || { delta: {} };
      const more = delta.content || (delta.audio && delta.audio.transcript) || "";
      if (more) { reply += more; said.textContent = reply; item.scrollIntoView({ block: "end" }); }
      if (delta.audio && delta.audio.data) {
        if (!player) { const element = make("audio", { controls: true }); item.append(element); player = new Player(element); }
        player.push(fromBase64(delta.audio.data));
      }
      if (event.muomni) {
        show(event.muomni);
        for (const notice of event.muomni.notices) item.append(make("p", { className: "notice", textContent: notice }));
      }
    }
    say("ready");
  } catch (error) {
    failed = error.name === "AbortError" ? "stopped" : error.message;
    item.append(make("p", { className: error.name === "AbortError" ? "notice" : "error", textContent: failed }));
    say(failed, error.name !== "AbortError");
  }
  if (player) player.finish();
  player = null;
  request = null;
  $("stop").disabled = true;
  $("send").disabled = false;
  item.dataset.done = failed || "yes";
  if (reply) history.push({ role: "assistant", content: reply });
  else history.pop();
}

function silence() {
  if (request) request.abort();
  if (player) { player.stop(); }
  document.querySelectorAll("audio").forEach((element) => element.pause());
}

$("form").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (request || !model || (!text && !attached.length)) return;
  const content = attached.map((entry) => entry.part);
  const { said, item } = turn("user");
  said.textContent = text;
  for (const entry of attached) item.append(entry.preview);
  if (text) content.push({ type: "text", text });
  attached = [];
  $("attached").replaceChildren();
  $("text").value = "";
  $("text").focus();
  ask(content);
};
$("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("form").requestSubmit(); }
};
document.addEventListener("keydown", (event) => { if (event.key === "Escape") silence(); });
$("stop").onclick = silence;
$("clear").onclick = () => { silence(); messages = []; $("log").replaceChildren(); $("view").replaceChildren(make("p", { textContent: "Nothing yet." })); $("text").focus(); };

// --- live conversation

function startLive() {
  const url = new URL("v1/realtime", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  url.searchParams.set("model", model.id);
  const socket = new WebSocket(url, ["realtime", ...($("key").value ? [`openai-insecure-api-key.${$("key").value}`] : [])]);
  const state = { socket, microphone: null, player: null, answer: null };
  const send = (event) => socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify(event));
  const spoken = new Map(); // item id -> the element with its transcript
  const quiet = () => { if (state.player) { state.player.stop(); state.player = null; } };
  socket.onopen = async () => {
    const output = $("speak").checked ? ["audio"] : ["text"];
    send({ type: "session.update", session: { type: "realtime", output_modalities: output, audio: { input: { transcription: { model: model.id } }, output: { voice: $("voice").value || null } } } });
    try {
      const microphone = await Recorder.start((samples) => send({ type: "input_audio_buffer.append", audio: toBase64(new Uint8Array(toInt16(samples).buffer)) }));
      if (live !== state) { await microphone.stop(); return; } // the conversation was ended meanwhile
      state.microphone = microphone;
      say(`listening at ${RATE_HZ / 1000} kHz: just speak`);
    } catch (error) {
      if (live === state) say(`no microphone: ${error.message}`, true);
      socket.close();
    }
  };
  socket.onmessage = (message) => {
    if (live !== state) return;
    const event = JSON.parse(message.data);
    switch (event.type) {
      case "input_audio_buffer.speech_started": quiet(); say("you are speaking …"); break;
      case "input_audio_buffer.committed": spoken.set(event.item_id, turn("user").said); say("thinking …"); break;
      case "conversation.item.input_audio_transcription.completed": if (spoken.has(event.item_id)) spoken.get(event.item_id).textContent = event.transcript || "(nothing understood)"; break;
      case "response.output_item.added": state.answer = turn("assistant"); break;
      case "response.output_text.delta":
      case "response.output_audio_transcript.delta": state.answer.said.textContent += event.delta; break;
      case "response.output_audio.delta":
        if (!state.player) { const element = make("audio", { controls: true }); state.answer.item.append(element); state.player = new Player(element); }
        state.player.push(fromBase64(event.delta));
        break;
      case "response.done":
        if (state.player) { if (event.response.status === "cancelled") state.player.stop(); else state.player.finish(); }
        if (state.answer) state.answer.item.dataset.done = event.response.status;
        say("listening");
        break;
      case "error": say(event.error.message, true); break;
    }
  };
  socket.onclose = () => { if (live === state) stopLive(); };
  return state;
}

function stopLive() {
  if (!live) return;
  const { socket, microphone, player: playing } = live;
  live = null;
  if (microphone) microphone.stop();
  if (playing) playing.stop();
  socket.close();
  $("live").setAttribute("aria-pressed", "false");
  $("live").textContent = "Live conversation";
}

$("live").onclick = () => {
  if (live) { stopLive(); say("ready"); return; }
  silence();
  live = startLive();
  $("live").setAttribute("aria-pressed", "true");
  $("live").textContent = "End conversation";
};

// --- beginning

async function connect() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) { say(await problem(response), true); return; }
    [model] = (await response.json()).data;
  } catch {
    say("the server cannot be reached", true);
    return;
  }
  $("voice").replaceChildren(...model.voices.map((name) => make("option", { value: name, textContent: name })));
  const speaks = model.voices.length > 0;
  $("speak").checked = speaks;
  $("speak").disabled = !speaks;
  $("voice-label").hidden = !speaks;
  const can = (...parts) => parts.every((part) => model.components.includes(part));
  $("picture").disabled = !can("vision_encoder", "image_projector");
  $("sound").disabled = $("record").disabled = $("live").disabled = !can("audio_encoder", "audio_projector");
  say(speaks ? "ready" : "ready; this model does not speak");
}

$("key").onchange = connect;
connect();
