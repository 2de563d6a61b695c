# Prints COUNT lines (15), one every DELAY milliseconds (200).
count=${1:-15}
delay=${2:-200}
number=1
while [ "$number" -le "$count" ]; do
    echo "tick $number of $count"
    sleep "$((delay / 1000)).$(printf '%03d' "$((delay % 1000))")"
    number=$((number + 1))
done
