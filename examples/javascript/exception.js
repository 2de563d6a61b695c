// Ends with an exception that nobody catches: exit code 1 and a stack trace.
const nothing = undefined;
console.log(nothing.length);
