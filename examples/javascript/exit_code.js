// Says why on standard error and ends with exit code 3.
console.error("Something is wrong: ending with 3.");
process.exitCode = 3;
