// ask.mjs MODEL VALUE... : a row of numbers to a model of one input, its outputs back.

import {Model} from "./edge.mjs";

const [name, ...values] = process.argv.slice(2);
const model = new Model(name);
try {
  const {inputs} = await model.metadata();
  const answer = await model.ask({[inputs[0].name]: {shape: [1, values.length], data: Float32Array.from(values, Number)}});
  for (const [output, {shape, data}] of Object.entries(answer)) console.log(`${output} [${shape.join(", ")}]: ${Array.from(data).join(" ")}`);
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  model.close();
}
