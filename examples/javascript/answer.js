// Reads names line by line and answers each at once, until the input ends.
const readline = require("node:readline");

let count = 0;
const input = readline.createInterface({ input: process.stdin });
input.on("line", (line) => {
  count += 1;
  console.log(`Hello, ${line}!`);
});
input.on("close", () => console.log(`${count} answered.`));
