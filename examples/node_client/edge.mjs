// Ask a model of edge-agent from Node.js: HTTP over its Unix socket, tensors as typed arrays. No packages.
//
//     const model = new Model("toy");
//     const {y} = await model.ask({x: {shape: [1, 4], data: Float32Array.of(1, 2, 3, 4)}});
//     y.shape, y.data                  // text is an array of strings, in both directions
//     model.close();

import fs from "node:fs";
import http from "node:http";
import os from "node:os";
import path from "node:path";

const DATATYPES = new Map([
  [Uint8Array, "UINT8"], [Uint16Array, "UINT16"], [Uint32Array, "UINT32"], [BigUint64Array, "UINT64"],
  [Int8Array, "INT8"], [Int16Array, "INT16"], [Int32Array, "INT32"], [BigInt64Array, "INT64"],
  [Float32Array, "FP32"], [Float64Array, "FP64"],
]);
const ARRAYS = new Map([...DATATYPES].map(([array, datatype]) => [datatype, array]).concat([["BOOL", Uint8Array]]));

export class Model {
  #agent = new http.Agent({keepAlive: true});

  constructor(name, {home = process.env.EDGE_AGENT_HOME} = {}) {
    this.name = name;
    const systems = "/run/edge-agent/agent.sock";  // the agent of the whole system
    this.socketPath = !home && fs.existsSync(systems) ? systems : path.join(home || path.join(os.homedir(), ".local/share/edge-agent"), "agent.sock");
  }

  // What it takes and gives: {inputs: [{name, datatype, shape}], outputs: …}
  async metadata() {
    return JSON.parse((await this.#request("GET", "")).body);
  }

  // Inputs and outputs by name, each {shape, data}. A wrong name, shape or type is an Error that says what was expected.
  async ask(inputs) {
    const tensors = Object.values(inputs).map(({data}) => toBytes(data));
    const entries = Object.entries(inputs).map(([name, {shape, data}], index) => {
      const datatype = Array.isArray(data) ? "BYTES" : DATATYPES.get(data.constructor);
      if (!datatype) throw new TypeError(`${name}: a ${data.constructor.name} cannot be sent`);
      return {name, datatype, shape, parameters: {binary_data_size: tensors[index].length}};
    });
    const json = Buffer.from(JSON.stringify({inputs: entries, parameters: {binary_data_output: true}}));
    const reply = await this.#request("POST", "/infer", [json, ...tensors], json.length);
    const head = JSON.parse(reply.body.subarray(0, reply.jsonBytes));
    let offset = reply.jsonBytes;
    const outputs = {};
    for (const {name, datatype, shape, parameters} of head.outputs) {
      const part = reply.body.subarray(offset, (offset += parameters.binary_data_size));
      outputs[name] = {shape, data: fromBytes(name, datatype, part)};
    }
    return outputs;
  }

  close() {
    this.#agent.destroy();
  }

  #request(method, target, parts = [], jsonBytes = 0) {
    const headers = {Host: "localhost", "Content-Length": parts.reduce((sum, part) => sum + part.length, 0)};
    if (jsonBytes) headers["Inference-Header-Content-Length"] = jsonBytes;
    return new Promise((resolve, reject) => {
      const options = {socketPath: this.socketPath, agent: this.#agent, method, path: `/v2/models/${encodeURIComponent(this.name)}${target}`, headers};
      const request = http.request(options, (response) => {
        const chunks = [];
        response.on("data", (chunk) => chunks.push(chunk));
        response.on("error", reject);
        response.on("end", () => {
          const body = Buffer.concat(chunks);
          if (response.statusCode !== 200) return reject(new Error(JSON.parse(body).error));
          resolve({body, jsonBytes: Number(response.headers["inference-header-content-length"] ?? body.length)});
        });
      });
      request.on("error", reject);
      for (const part of parts) request.write(part);
      request.end();
    });
  }
}

// Text travels as its length in four bytes and its UTF-8.
function toBytes(data) {
  if (!Array.isArray(data)) return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  return Buffer.concat(data.map(String).flatMap((text) => {
    const length = Buffer.alloc(4);
    length.writeUInt32LE(Buffer.byteLength(text));
    return [length, Buffer.from(text)];
  }));
}

function fromBytes(name, datatype, part) {
  if (datatype === "BYTES") {
    const texts = [];
    for (let offset = 0; offset < part.length;) {
      const begin = offset + 4, end = begin + part.readUInt32LE(offset);
      texts.push(part.toString("utf8", begin, end));
      offset = end;
    }
    return texts;
  }
  const TypedArray = ARRAYS.get(datatype);
  if (!TypedArray) throw new TypeError(`${name}: ${datatype} has no typed array`);
  return new TypedArray(part.buffer.slice(part.byteOffset, part.byteOffset + part.byteLength));
}
