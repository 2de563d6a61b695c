# Prints COUNT lines (15), one every DELAY milliseconds (200). It never flushes: the lines must come one by one anyway.
import sys
import time

count = int(sys.argv[1]) if len(sys.argv) > 1 else 15
delay = int(sys.argv[2]) if len(sys.argv) > 2 else 200
for number in range(1, count + 1):
    print(f"tick {number} of {count}")
    time.sleep(delay / 1000)
