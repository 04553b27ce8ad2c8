// Runs in the audio thread: hands samples over in pieces of about 40 ms.
class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.samples = new Float32Array(1024);
    this.filled = 0;
  }

  process([input]) {
    if (!input.length) return true;
    for (const value of input[0]) {
      this.samples[this.filled++] = value;
      if (this.filled === this.samples.length) {
        this.port.postMessage(this.samples.slice());
        this.filled = 0;
      }
    }
    return true;
  }
}
registerProcessor("recorder", Recorder);
