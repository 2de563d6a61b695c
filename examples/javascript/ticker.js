// Prints COUNT lines (15), one every DELAY milliseconds (200).
const count = Number(process.argv[2] ?? 15);
const delay = Number(process.argv[3] ?? 200);

async function main() {
  for (let number = 1; number <= count; number += 1) {
    console.log(`tick ${number} of ${count}`);
    await new Promise((resume) => setTimeout(resume, delay));
  }
}

main();
