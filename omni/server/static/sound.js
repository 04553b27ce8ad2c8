// Sound in and out: a recorder that gives raw samples, a player for samples that are still arriving, and WAV files.

export const RATE_HZ = 24000;

/** 16-bit samples as a WAV file. */
export function wav(samples, rateHz = RATE_HZ) {
  const bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const word = (at, text) => [...text].forEach((c, i) => bytes.setUint8(at + i, c.charCodeAt(0)));
  word(0, "RIFF"); bytes.setUint32(4, 36 + 2 * samples.length, true); word(8, "WAVEfmt ");
  bytes.setUint32(16, 16, true); bytes.setUint16(20, 1, true); bytes.setUint16(22, 1, true);
  bytes.setUint32(24, rateHz, true); bytes.setUint32(28, 2 * rateHz, true); bytes.setUint16(32, 2, true); bytes.setUint16(34, 16, true);
  word(36, "data"); bytes.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => bytes.setInt16(44 + 2 * i, value, true));
  return new Blob([bytes.buffer], { type: "audio/wav" });
}

export function fromBase64(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

export function toBase64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

export function toInt16(samples) {
  return Int16Array.from(samples, (x) => Math.round(Math.max(-1, Math.min(1, x)) * 32767));
}

/** The microphone: `onSamples(Float32Array)` at 24 kHz until `stop()`. */
export class Recorder {
  static async start(onSamples) {
    const recorder = new Recorder();
    recorder.stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true, noiseSuppression: true } });
    recorder.context = new AudioContext({ sampleRate: RATE_HZ });
    await recorder.context.audioWorklet.addModule("static/recorder.js");
    const node = new AudioWorkletNode(recorder.context, "recorder", { numberOfOutputs: 0 });
    node.port.onmessage = (message) => onSamples(message.data);
    recorder.context.createMediaStreamSource(recorder.stream).connect(node);
    return recorder;
  }

  async stop() {
    this.stream.getTracks().forEach((track) => track.stop());
    await this.context.close();
  }
}

/** Plays 16-bit samples in an <audio> element from the moment the first arrive; afterwards the element holds them all. */
export class Player {
  constructor(element) {
    this.element = element;
    this.context = new AudioContext({ sampleRate: RATE_HZ });
    const out = this.context.createMediaStreamDestination();
    this.meter = this.context.createAnalyser();
    this.meter.connect(out);
    this.element.srcObject = out.stream;
    this.element.play().catch(() => {});
    this.pieces = [];
    this.playing = new Set();
    this.next = 0;
    this.stopped = false;
    this.finished = false;
    this.rest = new Uint8Array(0);
  }

  push(bytes) {
    if (this.stopped) return;
    const all = new Uint8Array(this.rest.length + bytes.length);
    all.set(this.rest); all.set(bytes, this.rest.length);
    const whole = all.length - (all.length % 2);
    this.rest = all.slice(whole);
    const samples = new Int16Array(all.buffer.slice(0, whole));
    if (!samples.length) return;
    this.pieces.push(samples);
    const buffer = this.context.createBuffer(1, samples.length, RATE_HZ);
    buffer.copyToChannel(Float32Array.from(samples, (x) => x / 32768), 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.meter);
    source.onended = () => { this.playing.delete(source); this.measure(); this.settle(); };
    this.next = Math.max(this.next, this.context.currentTime + 0.03);
    source.start(this.next);
    this.next += buffer.duration;
    this.playing.add(source);
    this.measure();
  }

  /** The loudest sample that has gone through the element's stream. */
  measure() {
    const now = new Float32Array(this.meter.fftSize);
    this.meter.getFloatTimeDomainData(now);
    const peak = Math.max(Number(this.element.dataset.peak || 0), ...now.map(Math.abs));
    this.element.dataset.peak = peak.toFixed(4);
    if (this.playing.size) setTimeout(() => this.measure(), 50);
  }

  /** No more will come. */
  finish() {
    this.finished = true;
    this.settle();
  }

  settle() {
    if (!this.finished || this.playing.size || this.stopped) return;
    this.stop();
  }

  /** Silence, at once; what has come can be played again. */
  stop() {
    if (this.stopped) return;
    this.stopped = true;
    for (const source of this.playing) { source.onended = null; source.stop(); }
    this.playing.clear();
    this.context.close();
    const samples = new Int16Array(this.pieces.reduce((n, piece) => n + piece.length, 0));
    this.pieces.reduce((at, piece) => { samples.set(piece, at); return at + piece.length; }, 0);
    this.element.srcObject = null;
    if (samples.length) this.element.src = URL.createObjectURL(wav(samples));
    this.element.dataset.samples = samples.length;
  }
}
