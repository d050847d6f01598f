// Plain onnxruntime-web (WebAssembly) in Node: node on_web.mjs JOBS.json, beside node_modules.
import { readFileSync, writeFileSync } from 'node:fs';
import * as ort from 'onnxruntime-web';

ort.env.wasm.numThreads = 1;
ort.env.logLevel = 'error';
const jobs = JSON.parse(readFileSync(process.argv[2], 'utf8'));
console.log(ort.env.versions.web ?? ort.env.versions.common);
for (const job of jobs) {
  try {
    const session = await ort.InferenceSession.create(readFileSync(job.model),
      { executionProviders: ['wasm'] });
    const bytes = readFileSync(job.input);
    const data = new Float32Array(bytes.buffer.slice(bytes.byteOffset,
      bytes.byteOffset + bytes.length));
    const found = await session.run({ [session.inputNames[0]]: new ort.Tensor(data, job.shape) });
    const parts = session.outputNames.map((name) => Float32Array.from(found[name].data));
    writeFileSync(job.output, Buffer.concat(parts.map((p) => Buffer.from(p.buffer))));
  } catch (error) {
    console.error(job.name, String(error.message ?? error).split('\n')[0]);
  }
}
