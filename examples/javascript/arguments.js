// Shows its arguments, one a line, exactly as they were given.
const given = process.argv.slice(2);
console.log(`${given.length} argument(s)`);
given.forEach((argument, index) => console.log(`${index + 1}: ${argument}`));
