# Reads names line by line and answers each at once, until the input ends.
import sys

count = 0
for line in sys.stdin:
    count += 1
    print(f"Hello, {line.strip()}!")
print(f"{count} answered.")
