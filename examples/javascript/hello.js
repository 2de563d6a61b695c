// The smallest program.
console.log("Hello from JavaScript!");
