# Shows its arguments, one a line, exactly as they were given.
import sys

print(f"{len(sys.argv) - 1} argument(s)")
for number, argument in enumerate(sys.argv[1:], start=1):
    print(f"{number}: {argument}")
