# Says why on standard error and ends with exit code 3.
import sys

print("Something is wrong: ending with 3.", file=sys.stderr)
sys.exit(3)
